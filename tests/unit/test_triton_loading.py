"""Loading and unloading without a server: what keeps a model away from clients, and that the server's log says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.errors import SamplerStateError
from engine.triton.options import read_options
from engine.triton.repository import write_repository
from engine.triton.served import TritonPythonModel
from engine.triton.serving import Serving
from tests import fake_triton
from tests.fake_triton import Request, TritonModelException
from tests.samplers import ANY_BACKEND, bundle
from tests.triton_models import CHOSEN, Open, ints, loading, lone, same


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Open]:
    with loading(tmp_path) as start:
        yield start


class TestLoading:
    def test_says_what_runs(self, served: Open) -> None:
        line = served().server.Logger.lines[0]
        assert line == f"toy: bundle toy on {ANY_BACKEND}, f32, threads 1; batches of up to 8, at most 50 steps"

    def test_a_damaged_bundle(self, tmp_path: Path) -> None:
        written = write_repository(bundle(), tmp_path / "damaged", CHOSEN)
        arguments = fake_triton.arguments(written.model, CHOSEN)
        file = written.model / "1" / "bundle" / "denoiser.onnx"
        file.write_bytes(file.read_bytes()[:-1])
        with fake_triton.server(), pytest.raises(TritonModelException, match="the file is truncated or of another build"):
            TritonPythonModel().initialize(arguments)

    def test_a_backend_that_this_machine_has_not(self, served: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.backends._available", lambda name: (False, "not installed; install it with: pip"))
        with pytest.raises(TritonModelException, match=f"backend '{ANY_BACKEND}': found that it is not installed"):
            served()

    def test_a_warm_up_that_fails(self, served: Open) -> None:
        with pytest.raises(TritonModelException, match=r"warm-up: The graph 'denoiser' .* returned NaN or infinity at step"):
            served("nan")

    def test_a_warm_up_runs_the_smallest_and_the_largest_batch(self, served: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        runs, sample = [], Sampler.sample

        def noted(self: Sampler, n: int, **options: Any) -> Any:
            runs.append((n, options["seed"], options.get("guidance")))
            return sample(self, n, **options)

        monkeypatch.setattr(Sampler, "sample", noted)
        served("recorded")
        assert runs == [(1, 0, None), (8, 0, 0.25)]

    def test_a_limit_below_what_the_bundle_records(self, tmp_path: Path) -> None:
        written = write_repository(bundle(), tmp_path / "limit", CHOSEN)
        low = Serving(**{**vars(CHOSEN), "max_steps": 10})
        arguments = fake_triton.arguments(written.model, low)
        arguments["model_config"] = arguments["model_config"].replace('"string_value": "10"', '"string_value": "9"')
        with fake_triton.server(), pytest.raises(TritonModelException, match=r"steps is 10; this server takes 1 .. 9"):
            TritonPythonModel().initialize(arguments)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"parameters": {}}, "parameters: found no 'backend', expected one; write the repository again"),
            ({"threads": "many"}, "parameters, threads: found 'many', expected a whole number above 0"),
            ({"max_steps": "0"}, "parameters, max_steps: found '0'"),
            ({"max_step": "5"}, "found 'max_step', expected one of .* Did you mean 'max_steps'?"),
            ({"backend": "openvno"}, "backend: found 'openvno'"),
            ({"input": [{"name": "seed", "data_type": "TYPE_INT32", "dims": [1]}]}, r"input 'seed': found TYPE_INT32 \[1\]"),
            ({"input": []}, "input 'seed': found nothing, expected TYPE_INT64"),
            ({"output": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [9, 9, 3]}]}, r"expected TYPE_UINT8 \[8, 8,"),
            (
                {"output": [{"name": n, "data_type": "TYPE_UINT8", "dims": [8, 8, 3]} for n in ("image", "latent")]},
                "output 'latent': found TYPE_UINT8 .*, expected nothing for the bundle beside it",
            ),
        ],
    )
    def test_a_configuration_that_was_edited_wrongly(self, changes: dict[str, Any], message: str, served: Open) -> None:
        known = {"backend": ANY_BACKEND, "precision": "f32", "threads": "1", "max_steps": "50"}
        names = {key: value for key, value in changes.items() if isinstance(value, str)}
        if names:
            changes = {"parameters": {key: {"string_value": value} for key, value in (known | names).items()}}
        with pytest.raises(TritonModelException, match=message):
            served(**changes)

    def test_the_server_s_own_parameters_are_left_to_it(self, served: Open) -> None:
        values = {"backend": ANY_BACKEND, "precision": "f32", "threads": "1", "max_steps": "50", "FORCE_CPU": "yes"}
        model = served(parameters={key: {"string_value": value} for key, value in values.items()})
        assert model.sampler.threads == 1

    @pytest.mark.parametrize(("instances", "threads"), [(1, 6), (2, 3), (4, 1), (16, 1)])
    def test_instances_share_the_threads(
        self, instances: int, threads: int, served: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engine.triton.options.default_threads", lambda: 6)
        chosen = Serving(**{**vars(CHOSEN), "threads": None, "instances": instances})
        assert served("form1", chosen).sampler.threads == threads

    def test_a_gpu_instance_takes_its_own_gpu(self, tmp_path: Path) -> None:
        written = write_repository(bundle(), tmp_path, CHOSEN)
        arguments = fake_triton.arguments(written.model, CHOSEN)
        assert read_options(arguments).device is None
        arguments |= {"model_instance_kind": "GPU", "model_instance_device_id": "3"}
        assert read_options(arguments).device is None, "a backend on the CPU takes no device"
        arguments["model_config"] = arguments["model_config"].replace(f'"{ANY_BACKEND}"', '"tensorrt_rtx"')
        assert read_options(arguments).device == 3

    def test_numpy_that_the_server_misreads(self, served: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(np, "__version__", "2.4.6")
        misread = classmethod(lambda cls, name, array: cls(name, np.zeros(3, np.int64)))
        monkeypatch.setattr(fake_triton.Tensor, "from_dlpack", misread)
        with pytest.raises(TritonModelException, match=r"found numpy 2.4.6, .* .\[0, 1, 2\] came back as \[0, 0, 0\]"):
            served()
        monkeypatch.setattr(np, "__version__", "1.26.4")
        same(served().one(seed=ints(7)), lone(seed=7))

    def test_finalize_closes(self, served: Open) -> None:
        model = served()
        sampler = model.sampler
        model.model.finalize()
        with pytest.raises(SamplerStateError, match="This Sampler is closed"):
            sampler.sample(1)
        with pytest.raises(TritonModelException, match="not initialized, or was finalized; load it again"):
            model.answer(Request(seed=ints(1)))
        model.model.finalize()
