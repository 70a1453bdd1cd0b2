"""Pipelines, tables and nulls of every kind in the GPU runtime, beside the host's chain; on mocks of driver and TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from engine import Sampler
from engine.bundle.reader import Bundle
from engine.errors import BackendError, EngineError
from engine.kernels import ROW_FIELDS
from engine.resolve import resolve_request
from engine.solver.table import StepTable
from tests import toy_family
from tests.integration.test_gpu_runtime_faults import caught
from tests.integration.test_gpu_runtime_mock import bundles, mock, same
from tests.mock_tensorrt import Mock, nan_graph, write_plans

__all__ = ["bundles", "mock"]  # fixtures

LABELS = [3, 0, 9]


def family(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], **options: Any) -> Bundle:
    """The tests' own family, with graphs and manifest changed."""
    models = toy_family.graphs()
    manifest = toy_family.manifest(models, ["onnxruntime", "tensorrt_rtx"])
    change(models, manifest)
    manifest["graphs"] = {name: toy_family.entry(name, model) for name, model in models.items()}
    return Bundle.open(write_plans(path, models, manifest, **options))


def both(bundle: Bundle, **options: Any) -> None:
    """The same samples on the CPU and on the GPU, plain and replayed, twice with other inputs."""
    with Sampler(bundle, "onnxruntime", "f32", 1) as cpu, Sampler(bundle, "tensorrt_rtx") as gpu:
        for seed in (0, 1):
            expected = cpu.sample(3, seed=seed, **options)
            for _ in range(2):
                same(gpu.sample(3, seed=seed, **options), expected)


# ---- tables ----------------------------------------------------------------------------------------------------------


def with_table(sampler: Sampler, change: Callable[[StepTable], StepTable], **options: Any) -> Any:
    """A sample by a table that no solver makes."""
    request = resolve_request(sampler._pipeline, {"steps": 4, "seed": 3, **options}, "sample", n=3)
    return sampler._pipeline.run(replace(request, table=change(request.table)))


def weights(table: StepTable) -> StepTable:
    """Rows with one lane, with two, with the second alone."""
    return replace(table, weights=np.array([[1, 0], [1.5, -0.5], [0, 1], [0.25, 0]], np.float32))


def scaled(table: StepTable) -> StepTable:
    """The network is given another multiple of x in each row."""
    rows = table.rows.copy()
    rows[:, ROW_FIELDS.index("c_in")] = [0.5, 1.0, 2.0, 0.25]
    return replace(table, rows=rows)


@pytest.mark.parametrize("kind", ["form1", "form2", "zcond", "family"])
@pytest.mark.parametrize("change", [weights, scaled, lambda table: weights(scaled(table))], ids=["weights", "c_in", "both"])
def test_rows_differ_in_lanes_and_scale(
    bundles: dict[str, Bundle], mock: Mock, kind: str, change: Callable[[StepTable], StepTable]
) -> None:
    options: dict[str, Any] = {"guidance": 0.5} if change is not scaled else {}
    options |= {"label": LABELS} if kind == "family" else {}
    with Sampler(bundles[kind], "onnxruntime", "f32", 1) as cpu, Sampler(bundles[kind], "tensorrt_rtx") as gpu:
        expected = with_table(cpu, change, **options)
        for launch in ("plain", "graph"):
            found = with_table(gpu, change, **options)
            same(found, expected)
            assert found.timings.launch == launch
    assert mock.leaks() == {}


def test_a_row_without_weight_runs_one_lane(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        with_table(gpu, weights, guidance=0.5)
        (prepared,) = gpu._pipeline.chain._shapes.entries.values()  # type: ignore[attr-defined]
        assert prepared.shape.active == (1, 2, 2, 1)
        assert {lanes: run._context.shapes["x"][0] for lanes, run in prepared.steps.items()} == {1: 3, 2: 6}
    del prepared
    assert mock.leaks() == {}


@pytest.mark.parametrize(
    ("options", "full"), [({"method": "ddpm"}, True), ({"method": "ddpm", "variance": "fixedsmall"}, False), ({}, False)]
)
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_learned_variance_is_read_where_the_table_says_so(
    mock: Mock, tmp_path: Path, options: dict[str, Any], full: bool, guidance: float
) -> None:
    def learned(models: dict[str, Any], manifest: dict[str, Any]) -> None:
        models |= toy_family.graphs(learned=True)
        manifest["variance"], manifest["pipeline"]["step"]["outputs"]["range"] = "learned_range", "variance"

    launched, run_kernel = set(), mock.cuda.run_kernel
    mock.cuda.run_kernel = lambda name, *rest: (launched.add(name), run_kernel(name, *rest))  # type: ignore[method-assign]
    both(family(tmp_path / "b", learned), steps=4, guidance=guidance, label=LABELS, **options)
    assert launched & {"dv_update_full", "dv_update_plain"} == {"dv_update_full" if full else "dv_update_plain"}
    assert mock.leaks() == {}


# ---- nulls -----------------------------------------------------------------------------------------------------------


def without_a_style_null(models: dict[str, Any], manifest: dict[str, Any]) -> None:
    """What the network is fed is made of a label, which has a null, and of a style, which has none."""
    manifest["inputs"][1]["null"] = None


def with_a_null_of_its_own(models: dict[str, Any], manifest: dict[str, Any]) -> None:
    """As before, and one of the two values that the call makes has a null of its own."""
    without_a_style_null(models, manifest)
    manifest["pipeline"]["nulls"] = {"shift": 0.25}


@pytest.mark.parametrize("change", [without_a_style_null, with_a_null_of_its_own])
def test_a_null_that_depends_on_the_sample_is_made_in_every_run(mock: Mock, tmp_path: Path, change: Any) -> None:
    both(family(tmp_path / "b", change), steps=4, guidance=1.5, label=LABELS)
    assert mock.leaks() == {}


def test_a_null_that_never_changes_is_made_once(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["family"], "tensorrt_rtx") as gpu:
        counts = []
        for n in (2, 3, 2, 3):
            before = mock.cuda.count("execute_async_v3")
            gpu.sample(n, steps=2, guidance=1.0, label=5, seed=0)
            counts.append(mock.cuda.count("execute_async_v3") - before)
    # label_encoder and modulation, table, two steps, decoder; the first run makes the nulls, each is captured once.
    assert counts == [2 * 6 + 2, 2 * 6, 0, 0]
    assert mock.leaks() == {}


def test_every_call_may_fail_while_nulls_are_made(bundles: dict[str, Bundle]) -> None:
    at, errors = 0, 0
    options = {"steps": 1, "spacing": "linspace", "label": 5, "seed": 0}
    while True:
        with pytest.MonkeyPatch.context() as patch:
            mock = Mock().install(patch)
            with Sampler(bundles["family"], "tensorrt_rtx") as gpu:
                mock.cuda.arm(at)
                problem = caught(lambda gpu=gpu: gpu.sample(2, guidance=1.0, **options))
                assert problem is None or isinstance(problem, BackendError)
                errors += problem is not None
                done = not mock.cuda.failed
                mock.cuda.disarm()
                assert len(gpu.sample(2, guidance=1.0, **options)) == 2
            problem = None  # its traceback holds the sampler's arrays
            left = {kind: n for kind, n in mock.leaks().items() if kind != "tensorrt"}
            assert sum(left.values()) <= 1, (at, mock.cuda.failed, left)
        if done:
            break
        at += 4
    assert errors > 20


# ---- shapes ----------------------------------------------------------------------------------------------------------


def with_words(models: dict[str, Any], manifest: dict[str, Any]) -> None:
    """The label is a list of words, as many as there are; what the encoder makes of them has a fixed size."""
    node = helper.make_node
    models["label_encoder"] = toy_family._model(
        [node("Gather", ["labels", "label"], ["each"]), node("ReduceMean", ["each", "axis"], ["context"], keepdims=0)],
        {"label": ["batch", "words"]},
        {"context": ["batch", toy_family.CONTEXT]},
        {"labels": toy_family.weights()["labels"], "axis": np.array([1])},
    )
    manifest["inputs"][0]["shape"] = ["batch", "words"]


def test_free_dimensions_are_those_of_the_inputs(mock: Mock, tmp_path: Path) -> None:
    bundle = family(tmp_path / "b", with_words)
    for words in ([[1, 2, 3]], [[4, 5, 6, 7, 8]], [[9], [8], [7]]):
        both(bundle, steps=3, guidance=0.5, label=words)
    with Sampler(bundle, "tensorrt_rtx") as gpu:
        with pytest.raises(BackendError, match=r"input label: found \[1, 9\], expected 9 to be in 1\.\.8, the range"):
            gpu.sample(steps=2, label=[[1] * 9])
        assert len(gpu.sample(steps=2, label=[[1] * 8])) == 1
    assert mock.leaks() == {}


def test_the_smallest_profile_bounds_a_run(mock: Mock, tmp_path: Path) -> None:
    """Each call of the pipeline, with as many lanes as it takes."""
    bundle = family(tmp_path / "b", lambda models, manifest: None, batch=(1, 2, 5))
    with Sampler(bundle, "tensorrt_rtx") as gpu:
        assert gpu.max_batch == 5
        assert gpu.sample(7, steps=2, label=1, seed=0).timings.chunks == 2
        assert gpu.sample(7, steps=2, label=1, seed=0, guidance=1.0).timings.chunks == 4
    assert mock.leaks() == {}


@pytest.mark.parametrize("graph", ["label_encoder", "modulation", "decoder", "denoiser"])
def test_nan_is_found_in_every_call(mock: Mock, tmp_path: Path, graph: str) -> None:
    bundle = family(tmp_path / "b", lambda models, manifest: None, nan_at=graph)
    where = "at step 1 of 3" if graph == "denoiser" else "outside the loop"
    with Sampler(bundle, "tensorrt_rtx") as gpu:
        for _ in range(2):
            with pytest.raises(EngineError, match=rf"graph '{graph}' \(tensorrt_rtx, .*returned NaN .*{where}"):
                gpu.sample(2, steps=3, seed=0, label=1)
    assert nan_graph(toy_family.graphs()[graph])
    assert mock.leaks() == {}
