"""The GPU runtime gives the CPU's images, and everything back: all of it against a mock of driver and TensorRT."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.backends.tensorrt.chain import KEPT_SHAPES
from engine.bundle.prior import Prior
from engine.bundle.reader import Bundle
from engine.device.arrays import DeviceArray
from engine.errors import ArgumentError, Cancelled, NumericsError
from engine.result import Batch, StepInfo
from tests.mock_tensorrt import Mock, build_bundle
from tests.unit.test_device_arrays import Foreign, Lent

KINDS = ("form1", "form2", "zcond", "uncond", "family")
SETTINGS: dict[str, dict[str, Any]] = {
    "ddim": {"steps": 5},
    "ddim stochastic": {"steps": 5, "eta": 1.0},
    "ddpm quad": {"steps": 4, "method": "ddpm", "spacing": "quad", "temperature": 0.8},
    "one step": {"steps": 1, "spacing": "linspace"},
    "unclipped": {"steps": 3, "clip": False},
    "guided": {"steps": 3, "guidance": 0.5},
    "guided stochastic": {"steps": 3, "guidance": -1.5, "method": "ddpm"},
    "started late": {"steps": 3, "t_start": 500},
    "second order": {"steps": 5, "method": "unipc_2", "eps_scale": [1.0, 1.02, 1.0, 1.0, 1.0]},
    "second order, guided": {"steps": 4, "method": "dpmpp_2m", "guidance": 2.0},
    "fourth order": {"steps": 6, "method": "plms"},
}
LACKS = {  # settings that a kind has no use for: nothing to be guided by, no value to start from, another prediction
    "uncond": ("guided", "guided stochastic", "second order, guided", "started late"),
    "family": ("started late", "fourth order"),
}
NEEDS: dict[str, dict[str, Any]] = {"family": {"label": [3, 0, 9]}}  # inputs of three samples that are not drawn


def settings(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that a kind has, with the inputs that it needs."""
    for name, options in SETTINGS.items():
        if name not in LACKS.get(kind, ()):
            yield name, options | NEEDS.get(kind, {})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("plans")
    return {kind: Bundle.open(build_bundle(folder / kind, kind)) for kind in KINDS}


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    return Mock().install(monkeypatch)


def same(found: Batch, expected: Batch) -> None:
    """Equal to rounding: ONNX Runtime sums in another order with other threads and other batches."""
    np.testing.assert_allclose(found.x, expected.x, atol=2e-5, rtol=0)
    assert np.abs(found.images.astype(int) - expected.images).max() <= 1
    assert found.values.keys() == expected.values.keys()
    for name, values in expected.values.items():
        assert found.values[name].dtype == values.dtype, name
        np.testing.assert_allclose(found.values[name], values, atol=0 if name in ("z", "style", "label") else 2e-5)
    assert (found.start is None) == (expected.start is None)
    assert np.array_equal(found.timesteps, expected.timesteps)
    assert np.array_equal(found.seeds, expected.seeds)


# ---- the same images as on the CPU -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_equals_the_cpu_plain_and_replayed(bundles: dict[str, Bundle], mock: Mock, kind: str) -> None:
    with Sampler(bundles[kind], "onnxruntime", "f32", 1) as cpu, Sampler(bundles[kind], "tensorrt_rtx") as gpu:
        for name, options in settings(kind):
            expected = cpu.sample(3, seed=7, **options)
            for _ in range(2):
                found = gpu.sample(3, seed=7, **options)
                same(found, expected)
                assert found.timings.network_calls == len(expected.timesteps)
            assert found.timings.launch == "graph", name
            same(gpu.sample(3, seed=2**63, **options), cpu.sample(3, seed=2**63, **options))
    assert mock.leaks() == {}


def test_inpainting_runs_step_by_step_on_the_host(bundles: dict[str, Bundle], mock: Mock) -> None:
    rng = np.random.default_rng(3)
    images, hole = rng.integers(0, 256, (3, 8, 8, 3), np.uint8), np.arange(64).reshape(8, 8) % 3 == 0
    with Sampler(bundles["form2"], "onnxruntime", "f32", 1) as cpu, Sampler(bundles["form2"], "tensorrt_rtx") as gpu:
        for options in ({"steps": 3, "eta": 1.0}, {"steps": 4, "method": "plms", "guidance": 1.0}):
            same(*(sampler.inpaint(images, hole, seed=7, **options) for sampler in (gpu, cpu)))
        with pytest.raises(ArgumentError, match="x_T lies on a device, but what is known is blended in on the host"):
            gpu.inpaint(images, hole, x_T=gpu.sample_on_device(3, seed=1, steps=1, spacing="linspace").x)
    assert mock.leaks() == {}


def test_given_arrays_equal_the_cpu(bundles: dict[str, Bundle], mock: Mock) -> None:
    rng = np.random.default_rng(3)
    shape = (3, 8, 8)

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(np.float32)

    cases: list[dict[str, Any]] = [
        {"z": normal(3, 4)},
        {"x_T": normal(3, *shape)},
        {"x_T": normal(1, *shape), "n": 3},
        {"noise": normal(4, 3, *shape), "eta": 1.0},
        {"noise": normal(4, *shape), "n": 3, "eta": 1.0},
        {"z": normal(3, 4), "x_T": normal(3, *shape), "noise": normal(4, 3, *shape), "eta": 0.5, "guidance": 1.0},
    ]
    for kind in ("form1", "form2", "zcond"):
        with Sampler(bundles[kind], "onnxruntime", "f32", 1) as cpu, Sampler(bundles[kind], "tensorrt_rtx") as gpu:
            for case in cases:
                expected = cpu.sample(seed=[5, 6, 7], **{"steps": 4, **case})
                for _ in range(2):
                    same(gpu.sample(seed=[5, 6, 7], **{"steps": 4, **case}), expected)
    assert mock.leaks() == {}


def test_images_as_input_equal_the_cpu(bundles: dict[str, Bundle], mock: Mock) -> None:
    images = np.random.default_rng(4).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for kind in ("form1", "form2", "zcond"):
        with Sampler(bundles[kind], "onnxruntime", "f32", 1) as cpu, Sampler(bundles[kind], "tensorrt_rtx") as gpu:
            for run in (
                lambda s: s.reconstruct(images, steps=3, seed=1),
                lambda s: s.refine(images, steps=3, t_start=400, seed=1),
                lambda s: s.refine(images, steps=3, seed=1, guidance=0.5),
                lambda s: s.interpolate(3, 9, n=4, steps=2),
            ):
                same(run(gpu), run(cpu))
            encoded = gpu.encode(images)
            for name, values in cpu.encode(images).items():
                np.testing.assert_allclose(encoded[name], values, atol=1e-5)
            assert np.abs(gpu.decode(np.ones((20, 4))).astype(int) - cpu.decode(np.ones((20, 4)))).max() <= 1
    assert mock.leaks() == {}


def test_the_timings_are_the_devices_own(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        for launch in ("plain", "graph"):
            timings = gpu.sample(2, steps=4, seed=0).timings
            assert timings.launch == launch
            # The mock's clock counts the marks: one for each stage and each step.
            assert (timings.before_ms, timings.rows_ms, timings.update_ms, timings.after_ms) == (1, 1, 1, 1)
            assert timings.post_ms >= 1, "with the copies into the batch, which are the host's"
            assert (timings.first_step_ms, timings.other_steps_ms) == (1, [1, 1, 1])
            assert timings.total_ms > 0


def test_a_large_request_runs_in_chunks_of_the_profile(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["form1"], "onnxruntime", "f32", 1) as cpu, Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        assert gpu.max_batch == 16, "the profile's largest batch, below the 64 asked for"
        found = gpu.sample(37, steps=2, seed=0)
        assert found.timings.chunks == 3
        same(found, cpu.sample(37, steps=2, seed=0))
        found = gpu.sample(20, steps=2, seed=0, guidance=1.0)
        assert found.timings.chunks == 3, "with guidance half as many at once"
        same(found, cpu.sample(20, steps=2, seed=0, guidance=1.0))


# ---- graphs ------------------------------------------------------------------------------------------


def test_a_replay_is_one_launch(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        gpu.sample(2, steps=6, seed=0)
        begin = len(mock.cuda.calls)
        gpu.sample(2, steps=6, seed=1, eta=1.0, t_start=400)  # another solver and start: the same graph
        calls = Counter(name for name, _ in mock.cuda.calls[begin:])
    assert calls["cuGraphLaunch"] == 1
    assert not any(calls[name] for name in ("cuLaunchKernel", "execute_async_v3", "cuMemAlloc", "cuMemAllocHost"))
    assert calls["cuMemcpyHtoDAsync"] == 1, "one upload"
    assert calls["cuStreamSynchronize"] == 1, "the host waits once"


def test_graphs_least_recently_used_are_given_back(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        for n in range(1, 9):
            gpu.sample(n, steps=2, seed=0)
            assert len(mock.cuda.live["executables"]) == min(n, KEPT_SHAPES)
        at_eight = {kind: len(objects) for kind, objects in mock.cuda.live.items()}
        assert gpu.sample(8, steps=2, seed=0).timings.launch == "graph"
        assert gpu.sample(1, steps=2, seed=0).timings.launch == "plain", "it was dropped"
        for n in range(1, 60):
            gpu.sample(1 + n % 11, steps=2 + n % 3, seed=0)
        gc.collect()
        assert len(mock.cuda.live["memory"]) == at_eight["memory"], "flat over any number of shapes"
        assert len(mock.cuda.live["executables"]) == KEPT_SHAPES
    assert mock.leaks() == {}


@pytest.mark.parametrize("how", ["the driver", "the library", "the library late", "instantiation"])
def test_a_refused_capture_is_said_and_the_chain_runs_plainly(bundles: dict[str, Bundle], mock: Mock, how: str) -> None:
    reason = {
        "the driver": "STREAM_CAPTURE_UNSUPPORTED",
        "the library": "tensorrt_rtx does not allow capture of vae_decoder, timestep_table, denoiser",
        "the library late": "tensorrt_rtx refuses to run",
        "instantiation": "cuGraphInstantiate",
    }[how]
    mock.cuda.capturable, mock.capturable = how != "the driver", how != "the library"
    mock.refuses_capture_late = how == "the library late"
    with Sampler(bundles["form1"], "onnxruntime", "f32", 1) as cpu, Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        expected = cpu.sample(2, steps=3, seed=0)
        mock.cuda.fail_call = "cuGraphInstantiate" if how == "instantiation" else None
        for _ in range(3):
            found = gpu.sample(2, steps=3, seed=0)
            same(found, expected)
        assert found.timings.launch.startswith("plain: ")
        assert reason in found.timings.launch
        assert mock.cuda.count("cuStreamBeginCapture") <= 1, "asked once a shape"
    assert mock.leaks() == {}


# ---- callbacks, NaN ----------------------------------------------------------------------------------


def test_a_callback_sees_every_step(bundles: dict[str, Bundle], mock: Mock) -> None:
    def collect(into: list[Any]) -> Callable[[StepInfo], None]:
        return lambda info: into.append((info.step, info.steps, info.timestep, info.first, info.x.copy(), info.x0.copy()))

    seen: list[Any] = []
    wanted: list[Any] = []
    with Sampler(bundles["form2"], "onnxruntime", "f32", 1) as cpu, Sampler(bundles["form2"], "tensorrt_rtx") as gpu:
        for _ in range(2):
            seen.clear()
            found = gpu.sample(18, steps=3, seed=0, eta=1.0, callback=collect(seen))
            assert found.timings.launch == "plain"
        same(found, cpu.sample(18, steps=3, seed=0, eta=1.0, callback=collect(wanted)))
    joined = [np.concatenate([s[4] for s in seen if s[0] == step]) for step in range(3)]
    for step in range(3):
        np.testing.assert_allclose(joined[step], wanted[step][4], atol=2e-5)
    assert [s[:4] for s in seen] == [(i, 3, t, first) for first in (0, 16) for i, t in enumerate(found.timesteps)]
    assert mock.leaks() == {}


@pytest.mark.parametrize("kind", ["form1", "family"])
def test_previews_are_decoded_and_change_nothing(bundles: dict[str, Bundle], mock: Mock, kind: str) -> None:
    options: dict[str, Any] = {"seed": 0, "steps": 4, "guidance": 0.5, **({"label": [3, 0, 9]} if kind == "family" else {})}
    seen: list[np.ndarray] = []
    wanted: list[np.ndarray] = []
    with Sampler(bundles[kind], "onnxruntime", "f32", 1) as cpu, Sampler(bundles[kind], "tensorrt_rtx") as gpu:
        found = gpu.sample(3, **options, callback=lambda info: seen.append(info.images()))
        same(found, cpu.sample(3, **options, callback=lambda info: wanted.append(info.images())))
        np.testing.assert_array_equal(found.x, gpu.sample(3, **options).x)
    assert np.abs(np.array(seen).astype(int) - np.array(wanted)).max() <= 1
    assert seen[0].tobytes() != seen[3].tobytes()
    assert mock.leaks() == {}


@pytest.mark.parametrize("step", [0, 2])
def test_a_cancelled_run_stops_there_and_the_next_one_works(bundles: dict[str, Bundle], mock: Mock, step: int) -> None:
    with Sampler(bundles["form1"], "onnxruntime", "f32", 1) as cpu, Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        expected = cpu.sample(2, steps=4, seed=0)
        begin = mock.cuda.count("execute_async_v3")
        with pytest.raises(Cancelled, match=rf"after step {step + 1} of 4"):
            gpu.sample(2, steps=4, seed=0, callback=lambda info: info.step == step)
        assert mock.cuda.count("execute_async_v3") - begin == 2 + step + 1, "decoder, table, and each step's denoiser"
        with pytest.raises(ZeroDivisionError):
            gpu.sample(2, steps=4, seed=0, callback=lambda info: 1 / 0)
        same(gpu.sample(2, steps=4, seed=0), expected)
        same(gpu.sample(2, steps=4, seed=0, callback=lambda info: None), expected)
    assert mock.leaks() == {}


@pytest.mark.parametrize(
    ("graph", "when"),
    [("denoiser", r"at step 1 of 3 \(timestep \d+\)"), ("vae_decoder", "outside the loop")],
)
def test_nan_names_graph_and_step(mock: Mock, tmp_path: Path, graph: str, when: str) -> None:
    with Sampler(build_bundle(tmp_path / "b", nan_at=graph), "tensorrt_rtx") as gpu:
        message = rf"graph '{graph}' \(tensorrt_rtx, precision fp16\) returned NaN .*{when}"
        for callback in (None, None, lambda info: None):
            with pytest.raises(NumericsError, match=message):
                gpu.sample(2, steps=3, seed=0, callback=callback)
    assert mock.leaks() == {}


# ---- arrays on the device ----------------------------------------------------------------------------


def test_results_stay_on_the_device(bundles: dict[str, Bundle], mock: Mock) -> None:
    for kind in KINDS:
        options = {"label": np.arange(19) % 10} if kind == "family" else {}
        with Sampler(bundles[kind], "tensorrt_rtx") as gpu:
            expected = gpu.sample(19, steps=3, seed=5, **options)
            found = gpu.sample_on_device(19, steps=3, seed=5, **options)
            assert found.timings.chunks == 2
            assert found.images.__cuda_array_interface__["typestr"] == "|u1"
            assert len(found) == 19
            assert isinstance(found.x, DeviceArray)
            assert all(isinstance(array, DeviceArray) for array in found.values.values())
        # The results need no open Sampler.
        same(found.numpy(), expected)
        del found
        assert mock.leaks() == {}, kind


def test_inputs_may_lie_on_the_device(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["zcond"], "tensorrt_rtx") as gpu:
        made = gpu.sample_on_device(3, steps=1, spacing="linspace", seed=1)
        z, x_T = made.values["z"], made.x
        expected = gpu.sample(steps=3, seed=4, z=z.numpy(), x_T=x_T.numpy())
        for wrap in (lambda array: array, Foreign, Lent):
            for _ in range(2):
                same(gpu.sample(steps=3, seed=4, z=wrap(z), x_T=wrap(x_T)), expected)
            same(gpu.sample_on_device(steps=3, seed=4, z=wrap(z), x_T=wrap(x_T), stream=1).numpy(), expected)
            same(gpu.sample(3, steps=3, seed=4, z=wrap(z), x_T=wrap(x_T[:1])),
                 gpu.sample(3, steps=3, seed=4, z=z.numpy(), x_T=x_T[:1].numpy()))  # fmt: skip
            same(gpu.sample(3, steps=3, seed=4, z=wrap(z[:1])), gpu.sample(3, steps=3, seed=4, z=z[:1].numpy()))
        guided = gpu.sample(steps=3, seed=4, z=z.numpy(), guidance=0.5)
        same(gpu.sample(steps=3, seed=4, z=Foreign(z), guidance=0.5), guided)
        with pytest.raises(ArgumentError, match=r"z has shape \[3, 3, 8, 8\]; expected \[N, 4\]"):
            gpu.sample(z=x_T)
        with pytest.raises(ArgumentError, match=r"x_T has shape \[3, 4\]; expected \[N, 3, 8, 8\]"):
            gpu.sample(x_T=Lent(z))
        with pytest.raises(ArgumentError, match=r"z: found uint8.* expected float32 on device 0"):
            gpu.sample(z=Foreign(made.images))
        with pytest.raises(ArgumentError, match=r"sample_on_device has no option 'callback'"):
            gpu.sample_on_device(2, callback=print)
        with Sampler(bundles["zcond"], "onnxruntime", "f32", 1) as cpu:
            with pytest.raises(ArgumentError, match=r"found backend 'onnxruntime', which runs on the CPU, expected one"):
                cpu.sample_on_device(2)
            with pytest.raises(ArgumentError, match=r"z lies on a CUDA device, but backend 'onnxruntime' runs on the CPU"):
                cpu.sample(z=z)
    z = x_T = made = wrap = None  # type: ignore[assignment]
    assert mock.leaks() == {}


def test_whole_numbers_may_lie_on_the_device(bundles: dict[str, Bundle], mock: Mock) -> None:
    with Sampler(bundles["family"], "tensorrt_rtx") as gpu:
        made = gpu.sample_on_device(3, steps=2, seed=1, label=[7, 7, 2])
        expected = gpu.sample(3, steps=2, seed=1, label=[7, 7, 2])
        same(gpu.sample(3, steps=2, seed=1, label=Foreign(made.values["label"])), expected)
        same(gpu.sample(3, steps=2, seed=1, label=made.values["label"][:1]), gpu.sample(3, steps=2, seed=1, label=7))
        with pytest.raises(ArgumentError, match=r"label: found float32\[3, 5\] on device 0, expected int64 on device 0"):
            gpu.sample(3, steps=2, label=made.values["style"])
    made = None  # type: ignore[assignment]
    assert mock.leaks() == {}


def test_a_callers_context_is_used(bundles: dict[str, Bundle], mock: Mock) -> None:
    mock.cuda.foreign[0x7700] = 0
    mock.cuda.pushed().append(0x7700)  # as pycuda.autoinit leaves it
    with Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        gpu.sample(2, steps=2, seed=0)
        assert {arguments for name, arguments in mock.cuda.calls if name == "cuCtxPushCurrent"} == {(0x7700,)}
    assert mock.cuda.pushed() == [0x7700]
    assert mock.cuda.retained == [0]
    mock.cuda.pushed().clear()
    assert mock.leaks() == {}


# ---- clones and threads ------------------------------------------------------------------------------


def test_clones_share_the_engines_and_nothing_else(bundles: dict[str, Bundle], mock: Mock) -> None:
    gpu = Sampler(bundles["form1"], "tensorrt_rtx")
    loaded = mock.cuda.count("deserialize_cuda_engine")
    twins = [gpu.clone() for _ in range(3)]
    assert mock.cuda.count("deserialize_cuda_engine") == loaded
    expected = [gpu.sample(1 + i, steps=3, seed=i) for i in range(3)]
    gpu.close()
    results: list[Batch | None] = [None] * 3

    def work(i: int, twin: Sampler) -> None:
        for _ in range(3):
            results[i] = twin.sample(1 + i, steps=3, seed=i)
        twin.close()

    for i, twin in enumerate(twins):  # one after the other: the mock is not for two threads at once
        thread = threading.Thread(target=work, args=(i, twin))
        thread.start()
        thread.join(60)
    for found, wanted in zip(results, expected, strict=True):
        assert found is not None
        same(found, wanted)
    assert mock.leaks() == {}


def test_inputs_of_a_fitted_prior_are_drawn_on_the_host(bundles: dict[str, Bundle], mock: Mock) -> None:
    prior = Prior(np.ones(1, np.float32), np.full((1, 4), 2, np.float32), np.eye(4, dtype=np.float32)[None])
    seeds = np.arange(3, dtype=np.uint64)
    with Sampler(bundles["form1"], "onnxruntime", "f32", 1) as cpu, Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
        for sampler in (cpu, gpu):
            sampler._pipeline.prior = prior
        drawn = gpu._pipeline.draw(seeds, "bundle")
        assert np.array_equal(drawn["z"], cpu._pipeline.draw(seeds, "bundle")["z"])
        found = gpu.sample(3, steps=2, seed=0, **drawn)
        same(found, cpu.sample(3, steps=2, seed=0, **drawn))
        assert not np.array_equal(found.values["z"], gpu.sample(3, steps=2, seed=0).values["z"])
