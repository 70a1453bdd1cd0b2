"""Real TensorRT plans get into a bundle with what is needed to refuse them later, and are built only when needed.

Two plans of toy graphs are built, once for the module, by TensorRT for RTX; everything else looks at those.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from engine.bundle.reader import Bundle
from engine.bundle.tensors import TensorSpec
from engine.bundle.writer import write_bundle
from engine.cli.main import cli
from engine.errors import BundleError, ExportError
from export.build_engines import main
from export.context import Graph, Watch
from export.engines import BuildContext, BuiltEngine
from export.graphs.roles import Role, tensor
from export.tensorrt import check as tensorrt_check
from export.tensorrt import engines as tensorrt_engines
from export.tensorrt.check import check_model
from export.tensorrt.engines import build_plans
from export.tensorrt.library import open_library
from export.tensorrt.log import read_header
from export.tensorrt.options import read_options
from export.tensorrt.plan import Plan, build_plan
from tests import toy

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install tensorrt-rtx-cu13"
)
SIZE, CHANNELS = 8, 32
ROLES = ("timestep_table", "denoiser")


class Listener(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, phase: str, done: int, total: int) -> None:
        self.steps.append((phase, done, total))


def half_denoiser() -> onnx.ModelProto:
    """x, row -> eps in the shape of the real ones: half convolutions around a float32 GroupNorm and SiLU."""
    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float16)

    weights = {"w1": kernel(CHANNELS, 3, 3, 3), "w2": kernel(3, CHANNELS, 3, 3), "scale": np.ones(CHANNELS, np.float32)}
    weights |= {"shift": np.zeros(CHANNELS, np.float32), "axis": np.array([1], np.int64)}
    weights["column"] = np.array([-1, 1, 1, 1], np.int64)
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["x16", "w1"], ["a16"], pads=[1] * 4),
        helper.make_node("Cast", ["a16"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("GroupNormalization", ["a", "scale", "shift"], ["b"], num_groups=8),
        helper.make_node("Sigmoid", ["b"], ["gate"]),
        helper.make_node("Mul", ["b", "gate"], ["c"]),
        helper.make_node("Cast", ["c"], ["c16"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["c16", "w2"], ["d16"], pads=[1] * 4),
        helper.make_node("Cast", ["d16"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["row", "axis"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "column"], ["offset"]),
        helper.make_node("Add", ["d", "offset"], ["eps"]),
    ]
    image: list[int | str] = ["batch", 3, SIZE, SIZE]
    inputs = [value("x", image), value("row", [1, toy.ROW_WIDTH])]
    return model_of(nodes, inputs, [value("eps", image)], weights)


def value(name: str, shape: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", toy.OPSET)], ir_version=toy.IR_VERSION)


def graph_of(name: str, model: onnx.ModelProto, precision: str = "f32") -> Graph:
    """As the exporter makes it, its signature read off the model."""

    def tensors(infos: Any) -> tuple[TensorSpec, ...]:
        names = {TensorProto.INT64: "int64", TensorProto.FLOAT: "float32"}
        return tuple(
            tensor(
                info.name,
                tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim),
                names[info.type.tensor_type.elem_type],
            )
            for info in infos
        )

    compute = {"fp16": "f32"} if name == "timestep_table" else {}
    inputs, outputs = tensors(model.graph.input), tensors(model.graph.output)
    role = Role(name, cast(Any, None), inputs, outputs, precision, compute)
    return Graph(role, model.SerializeToString(), {})


def context_of(graphs: list[Graph], watch: Watch | None = None, previous: Bundle | None = None) -> BuildContext:
    """What the builder looks at; it needs no torch module."""
    wiring = SimpleNamespace(guides=())
    model = cast(
        Any,
        SimpleNamespace(defaults={"steps": 10}, schedule=SimpleNamespace(T=1000), free=lambda graph: None, wiring=wiring),
    )
    return BuildContext(model, tuple(graphs), watch or Watch(), previous)


def graphs() -> list[Graph]:
    models = toy.models_of(None, SIZE, 4, False)
    return [*(graph_of(role, models[role]) for role in ROLES), graph_of("denoiser", half_denoiser(), "fp16")]


def write(path: Path, engines: list[BuiltEngine]) -> Path:
    """An unconditional toy bundle with these engines."""
    models = toy.models_of(None, SIZE, 4, False)
    manifest = toy.manifest_of(models, None, SIZE, 4, False, ["onnxruntime", "tensorrt_rtx"])
    half = half_denoiser()
    manifest["graphs"]["denoiser.fp16"] = {
        **toy.graph_entry("denoiser", half),
        "file": "denoiser.fp16.onnx",
        "precision": "fp16",
    }
    manifest["engines"] = [engine.entry for engine in engines]
    files = {f"{role}.onnx": model.SerializeToString() for role, model in models.items()}
    files["denoiser.fp16.onnx"] = half.SerializeToString()
    write_bundle(path, manifest, files | {name: data for engine in engines for name, data in engine.files.items()})
    return path


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def engines(listener: Listener) -> list[BuiltEngine]:
    """The two plans that this module builds."""
    options = {"targets": ("sm120", "sm86"), "trt_batch": (1, 2, 8)}
    return build_plans("tensorrt_rtx", context_of(graphs(), listener), "fp16", options)


@pytest.fixture
def bundle(engines: list[BuiltEngine], tmp_path: Path) -> Path:
    return write(tmp_path / "toy.bundle", engines)


@needs_rtx
class TestPlans:
    def test_entries_hold_what_refuses_a_plan_later(self, engines: list[BuiltEngine]) -> None:
        assert [engine.entry["graph"] for engine in engines] == list(ROLES)
        there = {graph.key: graph for graph in graphs()}
        profiles = ({"steps": [1, 10, 1000]}, {"batch": [1, 2, 8]})
        for engine, key, profile in zip(engines, ("timestep_table", "denoiser.fp16"), profiles, strict=True):
            entry = engine.entry
            precision = "f32" if entry["graph"] == "timestep_table" else "fp16"
            assert (entry["backend"], entry["precision"]) == ("tensorrt_rtx", precision)
            assert entry["source_sha256"] == there[key].sha256, "the table stays float32, the denoiser is the half one"
            assert entry["made_with"] == {"tensorrt_rtx": open_library("tensorrt_rtx").version}
            assert entry["targets"] == ["sm86", "sm120"], "in the order of the plan's bits"
            assert entry["options"]["profile"] == profile, "the free dimensions that the graph has"
            file = f"{entry['graph']}.tensorrt_rtx.{precision}.plan"
            assert list(engine.files) == [entry["files"]["plan"]["file"]] == [file]

    def test_record(self, engines: list[BuiltEngine]) -> None:
        """The builder fused GroupNorm and SiLU: fewer kernels than the graph has nodes."""
        record = engines[1].entry["record"]
        (plan,) = engines[1].files.values()
        assert record["graph"] == "denoiser.fp16"
        assert 3 <= record["fused_layers"] == sum(record["layer_kinds"].values()) < len(half_denoiser().graph.node)
        assert record["layer_kinds"]["correlation"] == 2, "two convolutions"
        assert record["weight_bytes"] > 2 * (2 * 27 * CHANNELS), "at least the kernels in half"
        assert record["activation_bytes"] > 0
        assert 0 < record["seconds"] < 60
        assert record["peak_memory_bytes"] > len(plan)
        assert record["header"] == read_header(plan)
        assert record["header"]["targets"] == ["sm86", "sm120"]
        assert record["header"]["bytes"] == len(plan)
        assert record["header"]["version"] == engines[1].entry["made_with"]["tensorrt_rtx"]

    def test_progress_is_told(self, engines: list[BuiltEngine], listener: Listener) -> None:
        assert listener.stages == ["tensorrt_rtx timestep_table", "tensorrt_rtx denoiser"]
        assert any(phase.startswith("denoiser.fp16: ") for phase, _, _ in listener.steps)
        assert all(0 <= done <= total for _, done, total in listener.steps)

    def test_the_builders_own_reason_reaches_the_user(self) -> None:
        """Turing takes no float32 matrix product: the builder returns None and only its log says why."""
        model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", ["batch", 64])],
                         [value("y", ["batch", 64])], {"w": np.ones((64, 64), np.float32)})  # fmt: skip
        inputs, options = [tensor("x", ("batch", 64))], read_options("tensorrt_rtx", {"targets": ("sm75",)})
        with pytest.raises(ExportError, match=r"graph product: found .* no plan \(.*FP32 GEMM is not supported.*--turing"):
            build_plan(open_library("tensorrt_rtx"), "product", model.SerializeToString(), inputs, options)

    def test_info_shows_the_record(self, engines: list[BuiltEngine], bundle: Path) -> None:
        result = CliRunner().invoke(cli, ["info", str(bundle)])
        assert result.exit_code == 0, result.output
        record = engines[1].entry["record"]
        assert f"{record['fused_layers']} fused layers" in result.output
        assert "sm86, sm120" in result.output
        assert "batch 1 to 8" in result.output
        assert "activations" in result.output


@needs_rtx
class TestAgain:
    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The graphs that were built after all, by a builder that costs nothing."""
        keys: list[str] = []

        def build(library: Any, key: str, *_: Any) -> Plan:
            keys.append(key)
            return Plan(b"another plan", {})

        monkeypatch.setattr(tensorrt_engines, "build_plan", build)
        return keys

    SAME: dict[str, Any] = {"targets": ("sm86", "sm120"), "trt_batch": (1, 2, 8)}  # noqa: RUF012

    def test_nothing_changed(self, engines: list[BuiltEngine], bundle: Path, built: list[str]) -> None:
        watch = Listener()
        again = build_plans("tensorrt_rtx", context_of(graphs(), watch, Bundle.open(bundle)), "fp16", self.SAME)
        assert again == engines
        assert built == []
        assert len(watch.notes) == 2
        assert "nothing changed, denoiser.tensorrt_rtx.fp16.plan of the older bundle" in watch.notes[1]

    @pytest.mark.parametrize(
        "change",
        [{"targets": ("sm86",)}, {"trt_level": 5}, {"trt_workspace": 64}],
        ids=lambda change: next(iter(change)),
    )
    def test_a_changed_option(self, bundle: Path, built: list[str], change: dict[str, Any]) -> None:
        build_plans("tensorrt_rtx", context_of(graphs(), previous=Bundle.open(bundle)), "fp16", self.SAME | change)
        assert built == ["timestep_table", "denoiser.fp16"]

    def test_another_batch_leaves_the_table_alone(self, bundle: Path, built: list[str]) -> None:
        changed = self.SAME | {"trt_batch": (1, 2, 4)}
        build_plans("tensorrt_rtx", context_of(graphs(), previous=Bundle.open(bundle)), "fp16", changed)
        assert built == ["denoiser.fp16"]

    def test_a_changed_graph(self, bundle: Path, built: list[str]) -> None:
        changed = half_denoiser()
        changed.doc_string = "another graph"
        graph = graph_of("denoiser", changed, "fp16")
        build_plans("tensorrt_rtx", context_of([*graphs()[:2], graph], previous=Bundle.open(bundle)), "fp16", self.SAME)
        assert built == ["denoiser.fp16"]

    def test_another_version_of_the_library(
        self, bundle: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = open_library("tensorrt_rtx")
        monkeypatch.setattr(library.module, "__version__", "1.99.0")
        build_plans("tensorrt_rtx", context_of(graphs(), previous=Bundle.open(bundle)), "fp16", self.SAME)
        assert built == ["timestep_table", "denoiser.fp16"]

    def test_a_plan_that_was_damaged_meanwhile(self, bundle: Path, built: list[str]) -> None:
        opened = Bundle.open(bundle)
        (bundle / "denoiser.tensorrt_rtx.fp16.plan").write_bytes(b"damaged")
        build_plans("tensorrt_rtx", context_of(graphs(), previous=opened), "fp16", self.SAME)
        assert built == ["denoiser.fp16"]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda data: b"", "found 0 bytes"),
        (lambda data: b"not a plan\n", "found 11 bytes"),
        (lambda data: data[: len(data) // 10], "truncated"),
        (lambda data: data[:-1], "truncated"),
        (flipped, "found SHA-256"),
        (lambda data: data[:32] + b"\x3f" + data[33:], "found SHA-256"),
    ],
    ids=["empty", "text", "truncated", "one byte short", "one bit", "another target"],
)
def test_a_damaged_plan_is_refused_unread(bundle: Path, damage: Any, found: str) -> None:
    path = bundle / "denoiser.tensorrt_rtx.fp16.plan"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=found) as refused:
        Bundle.open(bundle)
    assert path.name in str(refused.value)
    assert "rebuild the bundle with" in str(refused.value)


@needs_rtx
class TestCheck:
    def test_a_graph_that_runs(self) -> None:
        library = open_library("tensorrt_rtx")
        assert check_model(library, "denoiser.fp16", half_denoiser().SerializeToString()) == []

    def test_names_the_node(self) -> None:
        nodes = [
            helper.make_node("Relu", ["x"], ["a"], name="first"),
            helper.make_node("Unique", ["a"], ["u"], name="odd"),
            helper.make_node("Relu", ["u"], ["y"], name="last"),
        ]
        model = model_of(nodes, [value("x", ["batch", 3])], [value("y", ["n"])], {})
        (finding,) = check_model(open_library("tensorrt_rtx"), "denoiser", model.SerializeToString())
        assert (finding.node, finding.name, finding.operator) == (1, "odd", "Unique")
        assert str(finding) == "denoiser: node 1, Unique 'odd': unsupported node"

    def test_no_graph_at_all(self) -> None:
        (finding,) = check_model(open_library("tensorrt_rtx"), "denoiser", b"garbage")
        assert "parse the ONNX model" in str(finding)


@needs_rtx
class TestCheckCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: onnx.ModelProto) -> Any:
        """`--check` on these graphs instead of exported ones."""
        context = context_of([*graphs()[:2], graph_of("denoiser", model, "fp16")])
        monkeypatch.setattr(tensorrt_check, "prepare", lambda request, watch: SimpleNamespace(context=context))
        monkeypatch.chdir(tmp_path)
        return CliRunner().invoke(main, ["a.ckpt", "--check"], prog_name="build_engines.py")

    def test_all_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        result = self.run(monkeypatch, tmp_path, half_denoiser())
        assert result.exit_code == 0, result.output
        assert "on timestep_table, denoiser.fp16:\n  its parser takes every node" in result.output
        assert list(tmp_path.iterdir()) == []

    def test_one_node_does_not(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        model = half_denoiser()
        model.graph.node[4].op_type, model.graph.node[4].name = "Unique", "gate"
        result = self.run(monkeypatch, tmp_path, model)
        assert result.exit_code == 1, result.output
        assert "  denoiser.fp16: node 4, Unique 'gate': unsupported node" in result.output
        assert "1 node(s) that TensorRT does not take; nothing was written" in result.output


def test_a_missing_half_graph_is_an_error() -> None:
    with pytest.raises(ExportError, match=r"graph denoiser\.fp16: found only timestep_table, denoiser, expected it"):
        tensorrt_engines.chosen_graphs(context_of(graphs()[:2]), "fp16")
