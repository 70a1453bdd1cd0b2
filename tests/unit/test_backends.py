"""Runtimes: each computes what the graph says, in the precision asked for, and refuses what it cannot do."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from engine import backends
from engine.backends import base as backend_base
from engine.backends import openvino as ov_backend
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.errors import ArgumentError, BackendError, BundleError
from engine.processor import Processor, this_processor
from tests import toy
from tests.samplers import GRAPH_BACKENDS

PLAIN = Processor("plain", "x86_64", frozenset({"avx2"}))
AVX512_BF16 = Processor("avx512", "x86_64", frozenset({"avx2", "avx512_bf16"}))
AMX = Processor("amx", "x86_64", frozenset({"avx2", "amx_bf16"}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(toy.build_bundle(tmp_path_factory.mktemp("bundles") / "toy.bundle"))


@pytest.fixture(scope="module", params=sorted(GRAPH_BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(bundle: Bundle, backend: str, name: str = "denoiser", **options: Any) -> backends.Graph:
    return backends.load(bundle, name, backend=backend, **{"threads": 1, **options})


def inputs(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (n, 3, 8, 8), "cond": (n, 3, 8, 8), "row": (1, toy.ROW_WIDTH)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def eps(x: np.ndarray, cond: np.ndarray, row: np.ndarray) -> np.ndarray:
    return 0.1 * x + 0.2 * cond + row.mean(1)[:, None, None, None]


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 1e-6)


def test_every_graph_computes_what_it_should(bundle: Bundle, backend: str) -> None:
    image = np.random.default_rng(1).random((3, 3, 8, 8), np.float32)
    z = np.random.default_rng(2).standard_normal((3, 4), np.float32)
    with load(bundle, backend, "vae_encoder") as graph:
        found = graph(image=image)
        assert list(found) == ["mu", "logvar"]
        assert close(found["logvar"], 0.01 * found["mu"] - 2)
    with load(bundle, backend, "vae_decoder") as graph:
        found = graph(z=z)
        assert found["image"].shape == (3, 3, 8, 8)
        assert -1 < found["image"].min() < 0 < found["image"].max() < 1
    with load(bundle, backend, "timestep_table") as graph:
        rows = graph(timesteps=np.array([900, 0, 6]))["rows"]
        assert close(rows, np.array([[900], [0], [6]]) * np.arange(1, toy.ROW_WIDTH + 1) / 6000)
    with load(bundle, backend) as graph:
        given = inputs(3)
        found = graph(**given)["eps"]
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert close(found, eps(**given))


def test_z_conditioned_rows_differ_by_sample(tmp_path: Path, backend: str) -> None:
    bundle = Bundle.open(toy.build_bundle(tmp_path / "b", 2, z_conditioned=True))
    z = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    rows = load(bundle, backend, "timestep_table")(timesteps=np.arange(5), z=z)["rows"].copy()
    assert rows.shape == (5, 2, toy.ROW_WIDTH)
    given = inputs(2) | {"row": rows[3]}
    assert close(load(bundle, backend)(**given)["eps"], eps(**given))


def test_batches_may_change_and_results_last_until_the_next_call(bundle: Bundle, backend: str) -> None:
    graph = load(bundle, backend)
    for n in (1, 5, 2, 5, 1):
        given = inputs(n, seed=n)
        assert close(graph(**given)["eps"], eps(**given))
    first = graph(**inputs(2))["eps"]
    second = graph(**inputs(2, seed=9))["eps"]
    assert first is second, "buffers are reused while the shapes repeat"
    third = graph(**inputs(3))["eps"]
    assert third is not first
    assert close(first, eps(**inputs(2, seed=9))), "a new shape leaves the old buffer alone"


def test_a_result_may_be_the_next_input(bundle: Bundle, backend: str) -> None:
    graph, given = load(bundle, backend), inputs(2)
    expected = given["x"]
    for _ in range(4):
        given["x"] = graph(**given)["eps"]
        expected = eps(**(given | {"x": expected}))
    assert close(given["x"], expected)


def test_any_strides_and_read_only_arrays_are_taken(bundle: Bundle, backend: str) -> None:
    graph, given = load(bundle, backend), inputs(2)
    expected = eps(**given)
    wide = np.zeros((2, 3, 8, 16), np.float32)
    wide[..., ::2] = given["x"]
    raw = np.zeros(given["cond"].nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(given["cond"].shape)
    unaligned[:] = given["cond"]
    row = given["row"].copy()
    row.flags.writeable = False
    assert close(graph(x=wide[..., ::2], cond=unaligned, row=row)["eps"], expected)
    assert close(graph(**(given | {"x": np.asfortranarray(given["x"])}))["eps"], expected)


WRONG_INPUTS = {
    "missing": ({"cond": None}, r"found the inputs x, row, expected exactly x, cond, row"),
    "unknown": ({"rows": np.zeros(1)}, r"found the inputs .*, rows, expected .*\. Did you mean 'row'\?"),
    "dtype": ({"x": np.zeros((2, 3, 8, 8))}, r"x: found float64\[2, 3, 8, 8\], expected a numpy array float32\[batch, 3"),
    "byte order": ({"x": np.zeros((2, 3, 8, 8), ">f4")}, r"x: found >f4\[2, 3, 8, 8\], expected"),
    "rank": ({"x": np.zeros((3, 8, 8), np.float32)}, r"x: found float32\[3, 8, 8\], expected"),
    "size": ({"x": np.zeros((2, 3, 8, 9), np.float32)}, r"x: found float32\[2, 3, 8, 9\], expected"),
    "batches": ({"x": np.zeros((3, 3, 8, 8), np.float32)}, r"cond: found .*where batch is 3 as in the inputs before"),
    "rows": ({"row": np.zeros((2, 6), np.float32)}, r"row: found float32\[2, 6\], expected a numpy array float32\[1, 6\]"),
    "empty": ({"x": np.zeros((0, 3, 8, 8), np.float32)}, r"x: found float32\[0, 3, 8, 8\].* with batch of at least 1"),
    "list": ({"x": [1.0]}, r"x: found list, expected a numpy array"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_a_wrong_input_is_named(bundle: Bundle, backend: str, case: str) -> None:
    change, message = WRONG_INPUTS[case]
    graph, given = load(bundle, backend), inputs(2)
    wrong: dict[str, Any] = {k: v for k, v in {**given, **change}.items() if v is not None}
    with pytest.raises(ArgumentError, match=message):
        graph(**wrong)
    assert close(graph(**given)["eps"], eps(**given)), "a refused call must leave the graph usable"


def test_a_closed_graph_says_so(bundle: Bundle, backend: str) -> None:
    graph = load(bundle, backend)
    twin = graph.clone()
    graph.close()
    graph.close()
    for use in (lambda: graph(**inputs(1)), graph.clone):
        with pytest.raises(BackendError, match=rf"{backend} graph 'denoiser': found a closed graph, .*load it again"):
            use()
    assert close(twin(**inputs(1))["eps"], eps(**inputs(1))), "a clone outlives what it was made from"


def test_a_second_thread_is_refused(bundle: Bundle, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inside, go_on = load(bundle, backend), threading.Event(), threading.Event()
    run = graph._run

    def slow(arrays: Any) -> None:
        inside.set()
        assert go_on.wait(30)
        run(arrays)

    monkeypatch.setattr(graph, "_run", slow)
    results: list[np.ndarray] = []
    worker = threading.Thread(target=lambda: results.append(graph(**inputs(1))["eps"]))
    worker.start()
    assert inside.wait(30)
    with pytest.raises(BackendError, match=r"found a second thread calling it .*with clone\(\)"):
        graph(**inputs(1))
    go_on.set()
    worker.join(30)
    assert close(results[0], eps(**inputs(1)))


def test_clones_in_threads_equal_the_serial_result(bundle: Bundle, backend: str) -> None:
    graph = load(bundle, backend, threads=2)
    jobs = [inputs(1 + i % 3, seed=i) for i in range(40)]
    serial = [graph(**job)["eps"].copy() for job in jobs]
    found: list[np.ndarray | None] = [None] * len(jobs)

    def work(first: int) -> None:
        with graph.clone() as twin:
            for i in range(first, len(jobs), 4):
                found[i] = twin(**jobs[i])["eps"].copy()

    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert all(a is not None and np.array_equal(a, b) for a, b in zip(found, serial, strict=True))


def test_a_failing_runtime_is_named_and_the_graph_survives(
    bundle: Bundle, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load(bundle, backend)
    with monkeypatch.context() as patch:
        patch.setattr(graph, "_run", lambda arrays: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(
            BackendError, match=rf"{backend} graph 'denoiser' on x \[2, 3, 8, 8\], .*out of memory"
        ) as caught:
            graph(**inputs(2))
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert close(graph(**inputs(2))["eps"], eps(**inputs(2)))


# ---- precision: asked for, set, reported ---------------------------------------------------------------------


def test_float32_is_set_and_reported(bundle: Bundle, backend: str) -> None:
    graph = load(bundle, backend, precision="f32", threads=2)
    assert (graph.precision, graph.threads, graph.backend, graph.name) == ("f32", 2, backend, "denoiser")
    assert graph.clone().precision == "f32"


def test_openvino_is_told_everything_it_would_choose_by_itself(bundle: Bundle) -> None:
    compiled = load(bundle, "openvino", threads=2)._compiled  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_another_precision_than_asked_for_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov_backend, "_obtained", lambda compiled: "bf16")
    with pytest.raises(BackendError, match=r"found that it runs in 'bf16', expected 'f32' as asked for; choose"):
        load(bundle, "openvino", precision="f32")


def test_bf16_without_the_instructions_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov_backend, "this_processor", lambda: PLAIN)
    with pytest.raises(BackendError, match=r"bf16' on a processor without amx_bf16 or avx512_bf16 \(plain .*expected 'f32'"):
        load(bundle, "openvino", precision="bf16")


@pytest.mark.skipif(not this_processor().bf16, reason="this processor has neither amx_bf16 nor avx512_bf16")
def test_bf16_is_set_and_reported(bundle: Bundle) -> None:
    graph = load(bundle, "openvino", precision="bf16")
    assert graph.precision == "bf16"
    assert np.abs(graph(**inputs(2))["eps"] - eps(**inputs(2))).max() < 0.02


def test_onnxruntime_has_float32_only(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"onnxruntime: found precision 'bf16', expected one of those it has: f32"):
        load(bundle, "onnxruntime", precision="bf16")


def test_an_unknown_precision_gets_a_hint(bundle: Bundle, backend: str) -> None:
    with pytest.raises(ArgumentError, match=r"precision: found 'fp32', expected one of f32, bf16, .*Did you mean 'f32'"):
        load(bundle, backend, precision="fp32")


# ---- which backend -------------------------------------------------------------------------------------------


def test_available_imports_nothing() -> None:
    code = (
        "import sys\nfrom engine import backends\nfound = backends.available()\n"
        "assert set(found) == set(backends.BACKENDS) and found['openvino'][0] and found['onnxruntime'][0], found\n"
        "heavy = {'onnxruntime', 'openvino', 'torch', 'onnx'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("listed", "processor", "expected"),
    [
        (("onnxruntime", "openvino"), PLAIN, ("openvino", "f32")),
        (("onnxruntime", "openvino"), AVX512_BF16, ("openvino", "f32")),
        (("onnxruntime", "openvino"), AMX, ("openvino", "bf16")),
        (("onnxruntime",), AMX, ("onnxruntime", "f32")),
        (("native", "onnxruntime"), PLAIN, ("onnxruntime", "f32")),
    ],
)
def test_auto_follows_the_written_rule(
    tmp_path: Path, listed: tuple[str, ...], processor: Processor, expected: tuple[str, str]
) -> None:
    bundle = Bundle.open(toy.build_bundle(tmp_path / "b", backends=listed))
    choice = backends.choose_auto(bundle, processor)
    assert (choice.backend, choice.precision) == expected
    assert backends.RULE in choice.reason


def test_what_is_asked_for_is_what_is_chosen(bundle: Bundle) -> None:
    for processor in (PLAIN, AVX512_BF16, AMX):
        assert backends.choose(bundle, "openvino", "f32", processor) == ("openvino", "f32", "openvino f32, as asked for")
        assert backends.choose(bundle, "onnxruntime", "auto", processor)[:2] == ("onnxruntime", "f32")
        assert backends.choose(bundle, "auto", "f32", processor)[:2] == ("openvino", "f32")
    assert backends.choose(bundle, "openvino", "bf16", AVX512_BF16)[:2] == ("openvino", "bf16")
    with pytest.raises(BackendError, match=r"without amx_bf16 or avx512_bf16"):
        backends.choose(bundle, "auto", "bf16", PLAIN)
    with pytest.raises(BackendError, match=r"onnxruntime: found precision 'bf16'"):
        backends.choose(bundle, "onnxruntime", "bf16", AMX)
    with pytest.raises(ArgumentError, match=r"backend: found 'openvin', expected .*Did you mean 'openvino'\?"):
        backends.choose(bundle, "openvin")
    with pytest.raises(BackendError, match=r"openvino: found precision 'fp16', expected one of those it has: f32, bf16"):
        backends.choose(bundle, "openvino", "fp16")
    with pytest.raises(ArgumentError, match=r"precision: found 'fp61', .*Did you mean 'fp16'"):
        backends.choose(bundle, "openvino", "fp61")


def test_no_other_backend_steps_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(toy.build_bundle(tmp_path / "b", backends=("openvino",)))
    with pytest.raises(BackendError, match=r"found backend 'onnxruntime', expected one that the bundle lists: openvino"):
        backends.choose(bundle, "onnxruntime")
    with pytest.raises(BackendError, match=r"expected one that the bundle lists"):
        load(bundle, "onnxruntime")
    monkeypatch.setattr(backend_base.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"found that it is not installed; install it with: pip install openvino"):
        backends.choose(bundle, "openvino")
    with pytest.raises(BackendError, match=r"found no usable backend .*lists openvino.*pip install openvino"):
        backends.choose_auto(bundle)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_runtime_that_does_not_import_says_how_to_get_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ov_backend._core.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=rf"backend '{name}': found that it cannot be imported .*pip install {name}"):
        backends.open_backend(bundle, name, "f32", 1).graph("denoiser")


# ---- files that are sound as files and wrong as graphs --------------------------------------------------------


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, backend: str) -> None:
    models = toy.models_of(1, 8, 4, False)
    manifest = toy.manifest_of(models, 1, 8, 4, False, sorted(GRAPH_BACKENDS))
    files = {f"{role}.onnx": model.SerializeToString() for role, model in models.items()}
    for wrong, message in [
        (
            toy.denoiser(16, True, False).SerializeToString(),
            r"found x as float32\[.*16, 16\] in the file, expected x float32",
        ),
        (toy.denoiser(8, False, False).SerializeToString(), r"found cond as nothing\[\] in the file"),
        (b"not a graph", "expected an ONNX file"),
        (b"\x08\x0a", "expected a graph that it can|in the file"),
        (files["denoiser.onnx"][:100], "found a message that is cut short, expected an ONNX file"),
    ]:
        write_bundle(tmp_path / "b", manifest, files | {"denoiser.onnx": wrong})
        with pytest.raises((BackendError, BundleError), match=message):
            load(Bundle.open(tmp_path / "b"), backend)


def with_external_data(location: str, inside_a_subgraph: bool, offset: int = 0) -> bytes:
    """The toy denoiser with one weight in another file, at the top or in a branch of an If."""
    model = toy.denoiser(8, True, False)
    tensor = next(t for t in model.graph.initializer if t.name == "a")
    if inside_a_subgraph:
        model.graph.initializer.remove(tensor)
        out = helper.make_tensor_value_info("a", TensorProto.FLOAT, [])
        branches = [helper.make_graph([], name, [], [out], [tensor]) for name in ("yes", "no")]
        model.graph.initializer.append(helper.make_tensor("on", TensorProto.BOOL, [], [True]))
        node = helper.make_node("If", ["on"], ["a"], then_branch=branches[0], else_branch=branches[1])
        model.graph.node.insert(0, node)
        tensor = model.graph.node[0].attribute[1].g.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize("inside_a_subgraph", [False, True])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_weights_outside_the_graph_file_are_refused(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch, location: str, inside_a_subgraph: bool
) -> None:
    (tmp_path / "weights.bin").write_bytes(np.float32(7).tobytes())
    monkeypatch.chdir(tmp_path)  # where the runtimes look for such a file
    models = toy.models_of(1, 8, 4, False)
    manifest = toy.manifest_of(models, 1, 8, 4, False, sorted(GRAPH_BACKENDS))
    files = {f"{role}.onnx": model.SerializeToString() for role, model in models.items()}
    files["denoiser.onnx"] = with_external_data(location, inside_a_subgraph)
    write_bundle(tmp_path / "b", manifest, files)
    with pytest.raises(BundleError, match=r"denoiser\.onnx: found a tensor whose data lies in another file, expected every"):
        load(Bundle.open(tmp_path / "b"), backend)


def outside(path: Path, data: bytes, weights: bytes = bytes(4096) + np.float32(0.1).tobytes()) -> Bundle:
    """A toy bundle whose denoiser is `data` and has a file of weights."""
    models = toy.models_of(1, 8, 4, False)
    manifest = toy.manifest_of(models, 1, 8, 4, False, sorted(GRAPH_BACKENDS))
    manifest["graphs"]["denoiser"]["weights"] = {"file": "denoiser.weights"}
    files = {f"{role}.onnx": model.SerializeToString() for role, model in models.items()}
    write_bundle(path, manifest, files | {"denoiser.onnx": data, "denoiser.weights": weights})
    return Bundle.open(path)


def test_weights_in_the_file_that_the_manifest_names(bundle: Bundle, backend: str, tmp_path: Path) -> None:
    apart = outside(tmp_path / "b", with_external_data("denoiser.weights", False, 4096))
    with load(apart, backend) as graph, load(bundle, backend) as whole:
        found, expected = graph(**inputs(3)), whole(**inputs(3))
    np.testing.assert_array_equal(found["eps"], expected["eps"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_external_data("other.weights", False), r"found 'a' of type 1 in 'other\.weights', expected an ONNX file with"),
        (with_external_data("denoiser.weights", True), "found a tensor whose data lies in another file, expected every"),
        (with_external_data("denoiser.weights", False, 4097), "found 'a' from 4097 on, beyond the end of denoiser.weights"),
        (with_external_data("denoiser.weights", False)[:-9], "found a message that is cut short, expected an ONNX file"),
    ],
)
def test_weights_in_any_other_place_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        load(outside(tmp_path / "b", data), "onnxruntime")


def test_nothing_is_parsed_that_was_not_hashed(tmp_path: Path, backend: str) -> None:
    bundle = Bundle.open(toy.build_bundle(tmp_path / "b"))
    file = bundle.path / "denoiser.onnx"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"found SHA-256"):
        load(bundle, backend)


def test_running_writes_nothing_to_stdout(bundle: Bundle) -> None:
    code = (
        "import sys, numpy as np\nfrom engine import backends\nfrom engine.bundle.reader import Bundle\n"
        "bundle = Bundle.open(sys.argv[1])\n"
        "for name in ('openvino', 'onnxruntime'):\n"
        "    with backends.load(bundle, 'vae_decoder', backend=name) as graph:\n"
        "        graph(z=np.zeros((2, 4), np.float32))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle.path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
