"""The Sampler in use: stopped runs, broken graphs, many threads, thousands of samples, a plain interpreter."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Bundle, Cancelled, NumericsError, SamplerStateError, StepInfo, backends
from engine.backends.host import KEPT_SHAPES
from engine.resolve import KEPT_CHAINS
from tests import toy
from tests.samplers import EACH_BACKEND, SIZE, Z_DIM, open_toy, watch_graph

ROOT = Path(__file__).parents[2]


def test_the_manifest_says_which_graph_computes_in_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(toy.build_bundle(tmp_path / "toy.bundle"))
    backend = backends.open_backend(bundle, "openvino", "bf16", 1)
    graphs = ("vae_decoder", "timestep_table", "denoiser")
    assert [backend.computes_in(name) for name in graphs] == ["bf16", "f32", "bf16"]
    assert backend.graph("timestep_table").precision == "f32"
    backend.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python drops what a generator's end raises
@pytest.mark.parametrize("verb", ["draw", "graph"])
def test_an_interrupt_at_any_moment_leaves_nothing_taken(verb: str) -> None:
    """Python runs handlers where a function begins and where a call has returned: one raises at each such moment in turn."""
    moments = [-1]

    def handler(frame: object, event: str, _: object) -> None:
        if event in ("call", "c_return"):
            moments[-1] -= 1
            if moments[-1] == -1:
                raise KeyboardInterrupt

    with open_toy(threads=1) as sampler, backends.load(sampler.bundle, "timestep_table", backend=sampler.backend) as graph:
        call = {"draw": lambda: sampler.draw(1, seed=0), "graph": lambda: graph(timesteps=np.array([1]))}[verb]
        while moments[-1] < 0:  # until a call has fewer moments
            moments.append(len(moments))
            try:
                sys.setprofile(handler)
                call()
            except KeyboardInterrupt:
                sys.setprofile(None)
                call()  # while the error, and what it refers to, is alive
            finally:
                sys.setprofile(None)
    assert len(moments) > 20


class TestCallback:
    @EACH_BACKEND
    @pytest.mark.parametrize("guidance", [0.0, 0.5])
    def test_stopping_after_step_k_costs_k_network_calls(self, backend: str, guidance: float) -> None:
        with open_toy("form1", backend) as sampler:
            expected = sampler.sample(2, seed=0, guidance=guidance)
            denoiser = watch_graph(sampler)
            for k in (1, 4, 10):
                before = denoiser.calls
                with pytest.raises(Cancelled, match=rf"stopped the run after step {k} of 10 \(timestep {1000 - 100 * k}\)"):
                    sampler.sample(2, seed=0, guidance=guidance, callback=lambda info, k=k: info.step + 1 == k)
                assert denoiser.calls - before == k
            np.testing.assert_array_equal(sampler.sample(2, seed=0, guidance=guidance).x, expected.x)

    @EACH_BACKEND
    def test_stop_is_asked_between_steps(self, backend: str) -> None:
        with open_toy("form1", backend) as sampler:
            expected = sampler.sample(2, seed=0)
            denoiser, asked = watch_graph(sampler), iter([False, False, True])
            with pytest.raises(Cancelled, match=r"stop stopped the run after step 3 of 10 \(timestep 700\)") as stopped:
                sampler.sample(2, seed=0, stop=lambda: next(asked))
            assert (denoiser.calls, stopped.value.step, stopped.value.steps) == (3, 3, 10)
            np.testing.assert_array_equal(sampler.sample(2, seed=0, stop=lambda: None).x, expected.x)

    def test_a_callback_that_raises_leaves_a_sampler_that_works(self) -> None:
        def fail(info: StepInfo) -> None:
            if info.step == 2:
                raise KeyError("mine")

        with open_toy() as sampler:
            expected = sampler.sample(2, seed=0)
            with pytest.raises(KeyError, match="mine"):
                sampler.sample(2, seed=0, callback=fail)
            np.testing.assert_array_equal(sampler.sample(2, seed=0).x, expected.x)

    def test_what_a_callback_sees(self) -> None:
        seen: list[tuple[int, int, int, int]] = []
        states: list[np.ndarray] = []

        def look(info: StepInfo) -> None:
            seen.append((info.step, info.steps, info.timestep, info.first))
            states.append(info.x.copy())
            assert np.abs(info.x0).max() <= 1, "x0 is clipped"
            with pytest.raises(ValueError, match="read-only"):
                info.x[:] = 0

        with open_toy(max_batch=2) as sampler:
            batch = sampler.sample(3, seed=0, steps=5, callback=look)
        assert seen == [(i, 5, 800 - 200 * i, first) for first in (0, 2) for i in range(5)]
        np.testing.assert_array_equal(np.concatenate([states[4], states[9]]), batch.x)

    def test_progress_writes_to_stderr_only(self, capsys: pytest.CaptureFixture[str]) -> None:
        with open_toy() as sampler:
            expected = sampler.sample(seed=0)
            np.testing.assert_array_equal(sampler.sample(seed=0, progress=True).x, expected.x)
        assert capsys.readouterr().out == ""


class TestNumerics:
    @EACH_BACKEND
    @pytest.mark.parametrize("guidance", [0.0, 0.5])
    def test_nan_from_the_denoiser_names_graph_step_and_precision(self, backend: str, guidance: float) -> None:
        with (
            open_toy("nan", backend) as sampler,
            pytest.raises(
                NumericsError,
                match=rf"'denoiser' \({backend}, precision f32\) returned NaN or infinity at step 7 of 10 \(timestep 300\)",
            ),
        ):
            sampler.sample(seed=0, guidance=guidance)

    def test_nan_in_a_later_step_of_one_sample(self) -> None:
        class Breaking:
            """The real denoiser until its fourth call, then one NaN in one sample."""

            def __init__(self, graph: Callable[..., dict[str, np.ndarray]]) -> None:
                self.graph, self.calls = graph, 0

            def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
                self.calls += 1
                eps = self.graph(**inputs)["eps"].copy()
                if self.calls == 4:
                    eps[1, 2, 3, 4] = np.nan
                return {"eps": eps}

        with open_toy() as sampler:
            whole = sampler._pipeline.backend.graph("denoiser")
            sampler._pipeline.backend._graphs["denoiser"] = Breaking(whole)  # type: ignore[assignment, arg-type]
            with pytest.raises(NumericsError, match=r"at step 4 of 10 \(timestep 600\)"):
                sampler.sample(3, seed=0)
            sampler._pipeline.backend._graphs["denoiser"] = whole
            assert np.isfinite(sampler.sample(3, seed=0).x).all()

    @pytest.mark.parametrize(
        ("name", "answer"),
        [
            ("vae_decoder", {"image": np.full((1, 3, SIZE, SIZE), np.inf, np.float32)}),
            ("timestep_table", {"rows": np.full((10, 6), np.nan, np.float32)}),
            ("vae_encoder", {"mu": np.full((1, Z_DIM), np.nan, np.float32), "logvar": np.zeros((1, Z_DIM), np.float32)}),
        ],
    )
    def test_nan_before_the_first_step_names_the_graph(self, name: str, answer: dict[str, np.ndarray]) -> None:
        with open_toy() as sampler:
            watch_graph(sampler, name, answer)
            with pytest.raises(NumericsError, match=rf"graph '{name}' .* outside the loop"):
                sampler.reconstruct(np.zeros((SIZE, SIZE, 3), np.uint8), seed=0)


class TestThreads:
    @EACH_BACKEND
    def test_clones_in_threads_equal_the_serial_result(self, backend: str) -> None:
        jobs = [(seed, 1 + seed % 3) for seed in range(24)]
        with open_toy("form1", backend) as sampler:
            serial = [sampler.sample(n, seed=seed, method="ddpm").x for seed, n in jobs]
            clones = [sampler.clone() for _ in range(4)]

            def work(part: int) -> list[np.ndarray]:
                return [clones[part].sample(n, seed=seed, method="ddpm").x for seed, n in jobs[part::4]]

            with ThreadPoolExecutor(4) as pool:
                parts = list(pool.map(work, range(4)))
            for clone in clones:
                clone.close()
            sampler.sample(seed=0)
        for part, results in enumerate(parts):
            for expected, found in zip(serial[part::4], results, strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_a_clone_can_be_made_while_the_sampler_runs(self) -> None:
        made = []
        with open_toy() as sampler:
            sampler.sample(seed=0, callback=lambda info: made.append(sampler.clone()) if info.step == 0 else None)
            np.testing.assert_array_equal(made[0].sample(seed=0).x, sampler.sample(seed=0).x)
            made[0].close()

    def test_a_shared_sampler_is_refused_and_the_first_run_is_not_disturbed(self) -> None:
        started, go_on = threading.Event(), threading.Event()

        def wait(info: StepInfo) -> None:
            started.set()
            assert go_on.wait(20)

        with open_toy() as sampler, ThreadPoolExecutor(1) as pool:
            expected = sampler.sample(2, seed=0)
            running = pool.submit(sampler.sample, 2, seed=0, callback=wait)
            assert started.wait(20)
            for call in (lambda: sampler.sample(seed=1), lambda: sampler.decode(np.zeros((1, Z_DIM))), sampler.close):
                with pytest.raises(SamplerStateError, match=r"running already.*sampler\.clone\(\)"):
                    call()
            go_on.set()
            np.testing.assert_array_equal(running.result().x, expected.x)

    def test_a_callback_cannot_use_its_own_sampler(self) -> None:
        with open_toy() as sampler:
            with pytest.raises(SamplerStateError, match=r"below the callback that called it"):
                sampler.sample(seed=0, callback=lambda info: sampler.sample(seed=1))
            sampler.sample(seed=0)


def resident_bytes() -> int:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(work: Callable[[int], object], repeats: int) -> int:
    """Bytes of resident memory that `repeats` calls of `work` add, after a third as many to warm up."""
    for i in range(repeats // 3):
        work(i)
    gc.collect()
    before = resident_bytes()
    for i in range(repeats):
        work(i)
    gc.collect()
    return resident_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
class TestMemory:
    BOUND = 8 * 2**20

    @EACH_BACKEND
    def test_flat_over_two_thousand_samples(self, backend: str) -> None:
        with open_toy("form1", backend) as sampler:
            assert growth(lambda i: sampler.sample(8, seed=i, steps=2), 250) < self.BOUND

    def test_flat_over_many_shapes(self) -> None:
        order = np.random.default_rng(0).permutation(240) + 1
        with open_toy("form1", "onnxruntime", max_batch=240) as sampler:
            grown = growth(lambda i: sampler.sample(int(order[i]), seed=i, steps=2, guidance=0.5 * (i % 2)), 240)
            assert len(sampler._pipeline.chain._workspaces) <= KEPT_SHAPES  # type: ignore[attr-defined]
        assert grown < self.BOUND

    def test_the_detector_catches_a_planted_leak(self) -> None:
        leak = []
        with open_toy() as sampler:

            def leaking(i: int) -> None:
                sampler.sample(8, seed=i, steps=2)
                leak.append(np.ones(2**19, np.uint8))  # more than earlier tests left free on the heap

            assert growth(leaking, 250) > self.BOUND


def test_importing_is_quick_and_brings_no_runtime() -> None:
    program = (
        "import sys, time; t = time.process_time(); from engine import Sampler; t = time.process_time() - t; "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'PIL', 'tqdm', 'click', 'export'}; "
        "print(t, *sorted(heavy & set(sys.modules)))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert runs[0][1:] == [], "modules that sampling does not need"
    assert min(float(run[0]) for run in runs) < 0.5, "seconds of processor time: the machine may be busy"


def test_sampling_never_imports_torch() -> None:
    program = (
        "import sys; from tests.samplers import bundle; from engine import Sampler; path = bundle(); "
        "sampler = Sampler(path, threads=1); sampler.sample(2, seed=0, guidance=0.5); "
        "print(*sorted({'torch', 'export'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


class TestKeptTables:
    """A pipeline keeps the tables of its last settings."""

    def test_a_setting_that_is_kept_gives_the_same_bits_as_one_made_anew(self) -> None:
        with open_toy("form1") as sampler:
            first = sampler.sample(2, steps=5, seed=1)
            assert np.array_equal(sampler.sample(2, steps=5, seed=1).x, first.x)
            for steps in range(6, 6 + KEPT_CHAINS):
                sampler.sample(1, steps=steps)
            assert len(sampler._pipeline.chains) == KEPT_CHAINS
            assert np.array_equal(sampler.sample(2, steps=5, seed=1).x, first.x)

    @pytest.mark.parametrize("equal", [1.0, True])
    def test_what_equals_a_kept_number_is_refused_all_the_same(self, equal: Any) -> None:
        with open_toy("form1") as sampler:
            sampler.sample(1, steps=1, spacing="linspace")
            with pytest.raises(ArgumentError, match="steps"):
                sampler.sample(1, steps=equal, spacing="linspace")


@pytest.mark.parametrize("kind", ["form1", "form2"])  # the state lies around a centre in the second
def test_inpainting_of_a_state_that_is_the_image(kind: str) -> None:
    """With everything known, one step is that of `sample` from the noised image; and only what is marked changes."""
    n, shape = 3, (3, SIZE, SIZE)
    rng = np.random.default_rng(4)
    images, noise = rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8), rng.standard_normal((n, *shape)).astype(np.float32)
    hole = np.zeros((SIZE, SIZE), bool)
    hole[2:6, 1:4] = True
    with open_toy(kind, max_batch=2) as sampler:
        z = sampler.encode(images)["z"]
        start = sampler.sample(z=z).values["recon"]
        options = {"t_start": 400, "steps": 1, "clip": False}
        known = {"masks": np.zeros_like(hole), "known_noise": noise[None], "composite": False}
        found = sampler.inpaint(np.clip((start + 1) / 2, 0, 1), z=z, **known, **options)
        np.testing.assert_allclose(found.x, sampler.sample(z=z, x_T=noise, **options).x, rtol=1e-5, atol=1e-5)
        batch = sampler.inpaint(images, hole, seed=3, steps=4, method="plms")
        np.testing.assert_array_equal(batch.values["z"], z)
        free = sampler.inpaint(images, hole, seed=3, steps=4, method="plms", composite=False)
    np.testing.assert_array_equal(batch.images, np.where(hole[..., None], free.images, images))
    assert (batch.images != images)[:, hole].any(axis=(1, 2)).all()
