"""Backend `native`: the same bits however it is called, refusals of what is damaged, and its surroundings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import numpy.typing as npt
import pytest

from engine import Cancelled, Sampler, backends
from engine.backends.native import graph as native
from engine.backends.native import isa
from engine.backends.native.backend import Native
from engine.backends.native.loop import Loop
from engine.backends.onnxruntime import OnnxRuntime
from engine.backends.workspace import Workspace
from engine.bulk.maker import origin_of
from engine.bundle.reader import Bundle
from engine.cli.contents import where
from engine.errors import ArgumentError, BackendError, BundleError, NumericsError
from engine.kernels import ROW_FIELDS, native_library
from engine.kernels.native_library import ISAS, NONE
from engine.processor import Processor
from engine.solver.table import Start, StepTable
from tests.native_models import NEEDS_NATIVE, PATHS, share
from tests.processes import forked

pytestmark = NEEDS_NATIVE
ROOT = Path(__file__).resolve().parents[2]

AMX = Processor("amx", "x86_64", frozenset({"amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512bw", "avx512_bf16"}))
VNNI = Processor("vnni", "x86_64", frozenset({"avx2", "avx512f", "avx512bw", "avx512_vnni"}))
BF16 = Processor("bf16", "x86_64", VNNI.features | {"avx512_bf16"})
PLAIN = Processor("plain", "x86_64", frozenset({"avx2"}))


@pytest.fixture(scope="module")
def bundle(native_bundle: Callable[..., Path]) -> Bundle:
    return Bundle.open(native_bundle("form1", "bf16", "int8"))


@pytest.fixture(scope="module")
def by_z(native_bundle: Callable[..., Path]) -> Bundle:
    return Bundle.open(native_bundle("form1_zcond"))


def load(bundle: Bundle, name: str = "denoiser", precision: str = "bf16", threads: int = 1) -> native.NativeGraph:
    return Native.open(bundle, precision, threads).load(name)


def inputs(bundle: Bundle, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image, row = (n, *bundle.manifest.pipeline.state.shape), bundle.manifest.pipeline.values["rows"].shape
    given = {"x": rng.standard_normal(image, np.float32), "cond": rng.uniform(-1, 1, image).astype(np.float32)}
    return given | {"row": rng.standard_normal((n if row[0] == "batch" else 1, row[1]), np.float32)}


# ---- the same bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", native.PRECISIONS)
def test_a_sample_is_the_same_in_any_batch_and_on_any_threads(bundle: Bundle, precision: str) -> None:
    given = inputs(bundle, 7)
    with load(bundle, precision=precision) as graph:
        whole = graph(**given)["eps"].copy()
        for part in (slice(0, 1), slice(2, 5), slice(6, 7)):
            some = {name: array if name == "row" else array[part] for name, array in given.items()}
            np.testing.assert_array_equal(graph(**some)["eps"], whole[part])
    for threads in (2, 3, 5):
        with load(bundle, precision=precision, threads=threads) as graph:
            assert graph.threads == threads
            np.testing.assert_array_equal(graph(**given)["eps"], whole)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("precision", native.PRECISIONS)
def test_each_instruction_set_computes_the_same_but_for_rounding(
    bundle: Bundle, precision: str, path: str, force_isa: Callable[[str], str]
) -> None:
    given = inputs(bundle, 5)
    with load(bundle, precision=precision) as graph:
        best = graph(**given)["eps"].copy()
    forced = force_isa(path)
    with load(bundle, precision=precision, threads=2) as graph:
        assert graph.isa == forced == isa.instruction_set()
        found = graph(**given)["eps"].copy()
    assert np.linalg.norm(found - best) <= 0.02 * np.linalg.norm(best)  # up to 0.0151, int8 beside AVX512_BF16
    with load(bundle, precision=precision, threads=1) as graph:
        np.testing.assert_array_equal(graph(**given)["eps"], found)


SETTINGS: dict[str, dict[str, Any]] = {
    "ddim": {"steps": 4, "spacing": "linspace"},
    "noise of seeds": {"steps": 5, "method": "ddpm"},
    "eta": {"steps": 3, "spacing": "linspace", "eta": 1.0},
    "guidance, folded": {"steps": 3, "spacing": "linspace", "guidance": 0.7},
    "guidance, not folded": {"steps": 2, "spacing": "linspace", "guidance": 0.7, "n": 9},
    "start": {"steps": 3, "t_start": 500, "eta": 1.0},
    "one step": {"steps": 1, "spacing": "linspace"},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", ["bundle", "by_z"])
def test_a_chain_in_one_call_equals_step_by_step(model: str, setting: str, request: pytest.FixtureRequest) -> None:
    options = {"n": 3, "seed": 5} | SETTINGS[setting]
    with Sampler(request.getfixturevalue(model), "native", "bf16", threads=2) as sampler:
        watched = sampler.sample(**options, callback=lambda info: None)
        alone = sampler.sample(**options)
    np.testing.assert_array_equal(alone.x, watched.x)
    np.testing.assert_array_equal(alone.images, watched.images)
    timings, steps = alone.timings, len(alone.timesteps)
    assert timings.network_calls == steps
    assert timings.first_step_ms > 0
    assert len(timings.other_steps_ms) == steps - 1
    assert all(ms > 0 for ms in timings.other_steps_ms)
    assert 0 < timings.update_ms < timings.total_ms


def test_stop_ends_a_chain_between_two_slices(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "SLICE_MS", 1e-3)
    with Sampler(bundle, "native", "bf16", threads=2) as sampler:
        expected, asked = sampler.sample(4, seed=0), []
        np.testing.assert_array_equal(sampler.sample(4, seed=0, stop=lambda: asked.append(1)).x, expected.x)
        assert asked  # how often depends on how long coming back takes
        with pytest.raises(Cancelled) as stopped:
            sampler.sample(4, seed=0, stop=lambda: True)
        assert stopped.value.step < stopped.value.steps == len(expected.timesteps)
        np.testing.assert_array_equal(sampler.sample(4, seed=0).x, expected.x)


@pytest.mark.parametrize("shared", [False, True])
def test_given_noise_serves_both_ways(bundle: Bundle, shared: bool) -> None:
    shape = (3, 1 if shared else 4, *bundle.manifest.pipeline.state.shape)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    with Sampler(bundle, "native", "bf16", threads=1, max_batch=3) as sampler:
        options = {"n": 4, "seed": 0, "steps": 3, "spacing": "linspace", "eta": 1.0, "noise": noise}
        watched = sampler.sample(**options, callback=lambda info: None)
        np.testing.assert_array_equal(sampler.sample(**options).x, watched.x)


def test_a_chain_that_is_not_finite_names_its_step(bundle: Bundle) -> None:
    with Sampler(bundle, "native", "bf16", threads=1) as sampler:
        graph = sampler._pipeline.backend.graph("denoiser")
        assert isinstance(graph, native.NativeGraph)
        given = inputs(bundle, 2)
        rows = np.repeat(given["row"][None], 3, axis=0)
        rows[1, 0, :] = np.inf
        sampler._pipeline.chain._rows = lambda *_: rows  # type: ignore[attr-defined]
        with pytest.raises(NumericsError, match=r"'denoiser' \(native, precision bf16\) returned NaN .* at step 2 of 3"):
            sampler.sample(2, seed=0, steps=3, spacing="linspace")


def loop_of(bundle: Bundle, ports: tuple[str, ...], steps: int) -> tuple[Loop, npt.NDArray[np.float32], object]:
    """A chain of one sample whose rows hand x on as it is, that x, and what must live as long as the loop."""
    given = inputs(bundle, 1)
    rows = np.zeros((steps, len(ROW_FIELDS)), np.float32)
    rows[:, [ROW_FIELDS.index(name) for name in ("k_x", "clip", "c_in")]] = 1
    table = StepTable(np.arange(steps), rows, np.ones((steps, 1), np.float32), Start(1, 0, 0), "ddim", None)
    work = Workspace(1, 1, given["x"].shape[1:])
    work.x[...] = given["x"]
    embeddings = np.repeat(given["row"][None], steps, axis=0)
    loop = Loop(bundle.manifest.pipeline.step, ports, table, work)
    loop.feed(embeddings, {"cond": given["cond"]})
    return loop, work.x, (embeddings, given)


@pytest.mark.parametrize("answer", ["goes on", "raises"])
def test_a_signal_is_answered_between_two_slices(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    def arrived(*_: object) -> None:
        seen.append(0)
        if answer == "raises":
            raise TimeoutError

    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, arrived)
    try:
        with load(bundle) as graph:
            library, handle = graph._loaded.library, graph._handle
            loop, x, kept = loop_of(bundle, graph.ports, 1000)
            monkeypatch.setattr(native_library, "SLICE_MS", 1e-6)  # over after every row
            monkeypatch.setattr(native_library, "_PATIENCE", 0.0)
            threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            if answer == "raises":
                with pytest.raises(TimeoutError):
                    library.run_steps(handle, loop.call)
                assert 0 < loop.call.slice.rows < 1000, "the rows that were left are not run"
                loop, x, kept = loop_of(bundle, graph.ports, 1000)
            assert library.run_steps(handle, loop.call) == NONE, "the handle serves on"
            assert seen == [0]
            assert min(loop.step_ms) > 0, "every row was clocked, in whichever slice"
            monkeypatch.undo()
            undivided, whole, also_kept = loop_of(bundle, graph.ports, 1000)
            assert library.run_steps(handle, undivided.call) == NONE
            np.testing.assert_array_equal(x, whole)
            del kept, also_kept
    finally:
        signal.signal(signal.SIGUSR1, before)


# ---- roles and precisions --------------------------------------------------------------------------


def test_the_table_is_float32_and_the_vae_bf16_whatever_is_asked(bundle: Bundle) -> None:
    with load(bundle, "timestep_table", precision="int8") as table, load(bundle, "vae_decoder", precision="int8") as vae:
        assert (table.precision, vae.precision) == ("f32", "bf16")
        with backends.load(bundle, "timestep_table", backend="onnxruntime", threads=1) as exact:
            timesteps = np.array([999, 500, 3, 0])
            wanted = exact(timesteps=timesteps)["rows"]
            assert np.abs(table(timesteps=timesteps)["rows"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        with pytest.raises(ArgumentError, match=r"timestep_table.*timestep.*correct them"):
            table(timesteps=np.array([5, 1000]))


def test_what_the_bundle_lacks_is_refused_with_the_command(by_z: Bundle) -> None:
    with pytest.raises(BundleError, match=r"expected native int8 denoiser; rebuild .*--backends native --precision int8"):
        load(by_z, precision="int8")
    with pytest.raises(BackendError, match="native: found precision 'f32', expected one of those it has: bf16, int8"):
        load(by_z, precision="f32")


def test_auto_takes_native_where_it_is_fastest(bundle: Bundle, by_z: Bundle) -> None:
    assert backends.choose(bundle, processor=AMX)[:2] == ("native", "bf16")
    assert backends.choose(bundle, "auto", "int8", AMX)[:2] == ("native", "int8")
    for processor in (VNNI, BF16):
        assert backends.choose(bundle, processor=processor)[:2] == ("native", "bf16"), "int8 is for who asks for it"
        assert backends.choose(by_z, processor=processor)[:2] == ("native", "bf16")
        assert backends.choose(bundle, "auto", "int8", processor)[:2] == ("native", "int8")
    assert backends.choose(bundle, processor=PLAIN)[0] != "native"
    assert backends.choose(bundle, "native", processor=PLAIN)[:2] == ("native", "bf16")
    assert backends.choose(bundle, "auto", "int8", PLAIN)[:2] == ("native", "int8"), "no other backend has int8"


def test_a_forced_instruction_set_is_checked(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.VARIABLE, "avx")
    with pytest.raises(BackendError, match=r"DIFFUSEVAE_ISA: found 'avx', expected one of amx, .*Did you mean 'avx2'\?"):
        load(bundle)
    assert Native.available()[0] is False
    missing = [name for name in ISAS if not isa.load_library().supports(name)[0]]
    for name in missing:
        monkeypatch.setenv(isa.VARIABLE, name)
        with pytest.raises(BackendError, match=rf"DIFFUSEVAE_ISA: found '{name}' on a machine that cannot run it \(.+\)"):
            isa.instruction_set()


# ---- surroundings ----------------------------------------------------------------------------------


def test_clones_in_threads_equal_the_serial_result(bundle: Bundle) -> None:
    given = [inputs(bundle, 2, seed) for seed in range(4)]
    with load(bundle) as graph:
        wanted = [graph(**case)["eps"].copy() for case in given]
        clones = [graph.clone() for _ in given]
        found: list[list[bool]] = [[] for _ in given]

        def work(index: int) -> None:
            for _ in range(5):
                found[index].append(bool(np.array_equal(clones[index](**given[index])["eps"], wanted[index])))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(given))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[True] * 5] * len(given)
    np.testing.assert_array_equal(clones[0](**given[0])["eps"], wanted[0], "a clone outlives what it was cloned from")
    for clone in clones:
        clone.close()
        with pytest.raises(BackendError, match="found a closed graph"):
            clone(**given[0])


def test_a_forked_child_computes_the_same(bundle: Bundle) -> None:
    given = inputs(bundle, 2)
    with load(bundle, threads=2) as graph:
        wanted = graph(**given)["eps"].copy()
        child = os.fork()
        if child == 0:  # threads of the parent do not exist here
            same = False
            try:
                same = np.array_equal(graph(**given)["eps"], wanted) and np.array_equal(
                    graph.clone()(**given)["eps"], wanted
                )
                graph.close()
            finally:
                os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(graph(**given)["eps"], wanted)


def test_a_graph_that_the_manifest_gives_to_another_runtime(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bits are that runtime's, the network's those of the engine, in a child of fork() too; and `info` says so."""
    shared = Bundle.open(share(bundle.path, tmp_path / "shared", "vae_decoder"))
    z = np.random.default_rng(0).standard_normal((3, *bundle.spec("vae_decoder").inputs[0].shape[1:]), np.float32)
    with backends.load(bundle, "vae_decoder", backend="onnxruntime", threads=1) as graph:
        wanted = graph(z=z)["image"].copy()
    with Sampler(shared, "native", "bf16", threads=1) as sampler, sampler.clone() as clone:
        batch, backend = sampler.sample(2, seed=1, steps=2), sampler._pipeline.backend
        assert [backend.graph(name).backend for name in ("vae_decoder", "denoiser")] == ["onnxruntime", "native"]
        assert "onnxruntime" in origin_of(MagicMock(features=None, format="npz"), sampler)["shared"]
        np.testing.assert_array_equal(backend.graph("vae_decoder")(z=z)["image"], wanted)
        np.testing.assert_array_equal(clone.sample(2, seed=1, steps=2).x, batch.x)
        given = inputs(shared, 3)
        with load(bundle) as graph:
            np.testing.assert_array_equal(backend.graph("denoiser")(**given)["eps"], graph(**given)["eps"])

        assert forked(lambda: str(np.array_equal(sampler.sample(2, seed=1, steps=2).x, batch.x))) == "True"
    assert backends.choose(shared, processor=AMX).backend == "native"
    assert {where(shared.manifest, name, "native", "bf16")["backend"] for name in ("vae_decoder", "vae_decoder.fp16")
            if name in shared.manifest.graphs} == {"onnxruntime"}  # fmt: skip
    assert where(shared.manifest, "denoiser", "native", "bf16") == {"backend": "native", "computes_in": "bf16"}
    monkeypatch.setattr(OnnxRuntime, "available", lambda: (False, "not installed"))
    assert backends.choose(shared, processor=AMX).backend == "openvino"


CHILD = """
import os, sys
if sys.argv[2] == "one core":
    os.sched_setaffinity(0, {next(iter(os.sched_getaffinity(0)))})
from engine import Sampler
first = Sampler(sys.argv[1], "native", "bf16", threads=None if sys.argv[2] == "one core" else 3)
second = first.clone()
batch = second.sample(3, seed=0, steps=3, spacing="linspace")
print(first.threads, batch.x.tobytes().hex()[:4096])
"""


@pytest.mark.parametrize("where", ["one core", "all cores"])
def test_a_process_ends_by_itself_with_graphs_open(bundle: Bundle, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(bundle.path), where], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    threads, found = done.stdout.split()
    assert int(threads) == (1 if where == "one core" else 3)
    with Sampler(bundle, "native", "bf16", threads=1) as sampler:
        assert sampler.sample(3, seed=0, steps=3, spacing="linspace").x.tobytes().hex()[:4096] == found


def test_weights_are_mapped_once_and_outlive_the_file(bundle: Bundle) -> None:
    with load(bundle) as graph, graph.clone() as clone:
        assert isinstance(clone, native.NativeGraph)
        assert clone._loaded is graph._loaded
        assert graph._loaded.weights.data.ctypes.data % 64 == 0
        assert 0 < graph.arena_bytes < 2**30
