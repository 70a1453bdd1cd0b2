"""The sampler graph is built as it must be: one Loop, each weight once, the signature of the manifest, equal to torch.

And for a family that only the tests know: what the graph computes is what its own float64 reference does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from engine.bundle.onnx_file import Onnx
from engine.bundle.reader import Bundle
from engine.bundle.whole import sampler_contract
from engine.errors import ExportError
from engine.solver.feeds import no_noise, step_feeds
from engine.solver.schedule import Schedule
from engine.solver.table import build_step_table
from export.context import Graph, Watch
from export.engines import BuildContext
from export.families.base import Model
from export.families.diffusevae.graphs import roles
from export.families.diffusevae.pipeline import inputs, pipeline
from export.graphs import extra
from export.graphs.extra import GraphOptions, extra_graphs
from export.graphs.onnx_export import OPSET, export_onnx
from export.graphs.roles import Role
from export.graphs.sampler_graph import compose_sampler
from export.graphs.sampler_role import BOUNDS, measure_sampler, sampler_role
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec
from export.read.schedule import linear
from tests import toy_family
from tests.sampler_graphs import OrtSampler, compose

VAE_SPEC = VAESpec(4, "4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1", "4:64,1:8", "4:64,1:8")
T = 20
SCHEDULE = Schedule.from_recipe("linear", T, start=1e-4, end=0.02)


@dataclasses.dataclass(frozen=True)
class Parts:
    """A tiny model, and its exported graphs."""

    model: Model
    graphs: dict[str, bytes]

    def role(self, model: Model | None = None) -> Role:
        model = model or self.model
        return sampler_role(model.input_specs, model.wiring, model.roles)

    def compose(self, graphs: dict[str, bytes] | None = None) -> bytes:
        return compose_sampler(self.role(), self.model.wiring, graphs or self.graphs)

    def measure(self, data: bytes, model: Model | None = None) -> float:
        model = model or self.model
        return measure_sampler(self.role(model), data, ["onnxruntime"], SCHEDULE, model.prediction)["onnxruntime"]


def parts_of(formulation: int | None, prediction: str = "eps") -> Parts:
    torch.manual_seed(0)
    conditional = formulation is not None
    spec = UNetSpec("openai", 4, 6 if conditional else 3, 3, 32, (1,), 1, (), 2, 8 if conditional else None, conditional)
    unet = UNet(spec).eval().requires_grad_(False)
    vae = VAE(VAE_SPEC).eval().requires_grad_(False) if conditional else None
    model = Model(
        "diffusevae", "tiny", roles(unet, vae, T, prediction), inputs(spec, VAE_SPEC if conditional else None),
        pipeline(spec, formulation, prediction), linear(1e-4, 0.02, T), prediction, "fixedlarge", {"steps": 2},
    )  # fmt: skip
    return Parts(model, {name: export_onnx(model.roles[name]).data for name in model.wiring.graphs if name != "vae_encoder"})


@pytest.fixture(scope="module")
def zcond() -> Parts:
    """Conditional, with the network conditioned on z too: rows differ by sample."""
    return parts_of(1)


@pytest.fixture(scope="module")
def uncond() -> Parts:
    return parts_of(None)


@pytest.fixture(scope="module")
def sampler(zcond: Parts) -> bytes:
    return zcond.compose()


def test_it_equals_torch(zcond: Parts, sampler: bytes) -> None:
    assert zcond.measure(sampler) <= BOUNDS["f32"]


def test_a_centre(zcond: Parts) -> None:
    """Formulation 2, whose every x_t lies around the reconstruction."""
    spec = zcond.model.step.module.unet.spec
    centred = Parts(dataclasses.replace(zcond.model, pipeline=pipeline(spec, 2, "eps")), zcond.graphs)
    assert centred.model.wiring.state.centre == "recon"
    data = centred.compose()
    assert centred.measure(data) <= BOUNDS["f32"]
    with pytest.raises(ExportError, match="relative error"):
        centred.measure(zcond.compose())


def test_another_prediction() -> None:
    parts = parts_of(None, "v")
    assert parts.measure(parts.compose()) <= BOUNDS["f32"]
    assert parts.model.step.outputs[0].name == "v"


def test_unconditional(uncond: Parts) -> None:
    role = uncond.role()
    assert uncond.measure(uncond.compose()) <= BOUNDS["f32"]
    assert [t.name for t in role.inputs] == ["x_T", "timesteps", "coefficients", "weights", "start", "noise"]
    assert [t.name for t in role.outputs] == ["images", "x"]


@pytest.mark.parametrize("kind", ["zcond", "uncond"])
def test_the_signature_is_the_manifest_s(kind: str, request: pytest.FixtureRequest) -> None:
    parts: Parts = request.getfixturevalue(kind)
    role = parts.role()
    contract = sampler_contract(parts.model.input_specs, parts.model.wiring)
    for tensors, expected in zip((role.inputs, role.outputs), contract, strict=True):
        assert {t.name: f"{t.dtype}[{', '.join(map(str, t.shape))}]" for t in tensors} == expected
    graph = onnx.load_from_string(parts.compose()).graph
    for infos, tensors in ((graph.input, role.inputs), (graph.output, role.outputs)):
        found = [(i.name, tuple(d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim)) for i in infos]
        assert found == [(t.name, t.shape) for t in tensors]


def test_one_loop_that_tensorrt_takes(sampler: bytes) -> None:
    model = onnx.load_from_string(sampler)
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    body = loops[0].attribute[0].g
    assert len(loops) == 1
    assert loops[0].input[1] == "", "TensorRT takes a trip count or a condition, not both"
    going_on = next(node for node in body.node if body.output[0].name in node.output)
    assert going_on.op_type == "Constant"
    assert not {node.op_type for node in (*model.graph.node, *body.node)} & {"If", "Scan"}
    assert next(node for node in model.graph.node if "images" in node.output).op_type == "Cast"
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    labels = {prop.key: prop.value for prop in model.metadata_props}
    assert (labels["graph"], labels["precision"]) == ("sampler", "f32")


def test_each_weight_is_stored_once(zcond: Parts, sampler: bytes) -> None:
    assert len(sampler) < 1.1 * sum(map(len, zcond.graphs.values())) + 20_000
    names = [node.name for node in onnx.load_from_string(sampler).graph.node]
    assert len(set(names)) == len(names)


def test_the_same_parts_give_the_same_bytes(zcond: Parts, sampler: bytes) -> None:
    assert zcond.compose() == sampler


def test_parts_that_do_not_fit(zcond: Parts, uncond: Parts) -> None:
    mixed = zcond.graphs | {"denoiser": uncond.graphs["denoiser"]}
    with pytest.raises(ExportError, match=r"graph sampler: found that its parts do not fit together .*expected a sound"):
        zcond.compose(mixed)


def test_a_part_that_holds_a_graph(uncond: Parts) -> None:
    model = onnx.load_from_string(uncond.graphs["timestep_table"])
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("rows", TensorProto.FLOAT, None)])
    model.graph.node.append(helper.make_node("If", ["timesteps"], ["odd"], then_branch=body, else_branch=body))
    with pytest.raises(ExportError, match=r"timestep_table: found the node If .*without --whole-sampler"):
        uncond.compose(uncond.graphs | {"timestep_table": model.SerializeToString()})


def test_a_wrong_weight_is_noticed(zcond: Parts, sampler: bytes) -> None:
    model = onnx.load_from_string(sampler)
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    weight = next(t for t in body.initializer if t.name.endswith("out_conv.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    with pytest.raises(ExportError, match=r"graph sampler: found a relative error of \S+ in onnxruntime .* at most 0\.0001"):
        zcond.measure(model.SerializeToString())


def test_images_must_be_the_bytes_of_x(uncond: Parts) -> None:
    model = onnx.load_from_string(uncond.compose())
    half = next(t for t in model.graph.initializer if t.name == "number/half")
    half.CopyFrom(onnx.numpy_helper.from_array(np.float32(0), half.name))  # rounds down
    with pytest.raises(ExportError, match="and images that are not its x"):
        uncond.measure(model.SerializeToString())


@pytest.fixture(scope="module", params=[True, False], ids=["both nulls", "a null of the label alone"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, OrtSampler]:
    path = toy_family.build_family(tmp_path_factory.mktemp("toy") / "toy.bundle", style_null=request.param)
    return request.param, OrtSampler(compose(Bundle.open(path)))


class TestAnotherFamily:
    """Composed from a pipeline that no code of export was written for."""

    @pytest.mark.parametrize(
        "options", [{}, {"guidance": 1.5}, {"eta": 1.0, "guidance": -0.3}, {"method": "dpmpp_2m", "guidance": 0.5}]
    )
    def test_against_its_own_reference(self, other: tuple[bool, OrtSampler], options: dict[str, float]) -> None:
        style_null, run = other
        reference, rng = toy_family.Reference(), np.random.default_rng(3)
        schedule = Schedule.from_recipe("cosine", toy_family.T, s=0.008, max_beta=0.999)
        table = build_step_table(schedule, prediction="v", steps=7, spacing="trailing", clip=None, **options)
        shape = (3, *toy_family.STATE)
        given = {
            "label": rng.integers(0, toy_family.CLASSES, 3),
            "style": rng.standard_normal((3, toy_family.STYLE)).astype(np.float32),
            "x_T": rng.standard_normal(shape).astype(np.float32),
            "noise": no_noise(3, toy_family.STATE),
        }
        if table.stochastic:
            given["noise"] = rng.standard_normal((len(table.rows), *shape)).astype(np.float32)
        found = run(step_feeds(table) | given)
        assert found["images"].shape == (3, *toy_family.IMAGE[1:], 3)
        if table.method == "ddim":
            expected = reference.sample(
                table.timesteps.tolist(), given["x_T"], given["label"], given["style"],
                guidance=options.get("guidance", 0.0), eta=options.get("eta", 0.0), noise=given["noise"],
                style_null=style_null,
            )  # fmt: skip
            assert np.abs(found["x"] - expected).max() <= 1e-4 * np.abs(expected).max()
        else:
            plain = build_step_table(schedule, prediction="v", steps=200, clip=None, guidance=0.5)
            fine = run(step_feeds(plain) | given)["x"]
            assert np.abs(found["x"] - fine).max() <= 0.1 * np.abs(fine).max(), "seven second-order steps are near 200"
        pixels = reference.pixels(found["x"].astype(np.float64))
        assert np.abs(pixels.astype(int) - found["images"]).max() <= 1


class TestWhichGraphs:
    """What extra_graphs adds, with everything that takes time replaced."""

    @pytest.fixture
    def made(self, zcond: Parts, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
        monkeypatch.setattr(extra, "export_onnx", lambda role, free: Onnx(f"{role.name} {role.precision}".encode()))
        monkeypatch.setattr(extra, "measure", lambda *_: {"onnxruntime": 0.0})
        monkeypatch.setattr(extra, "measure_sampler", lambda *_: {"onnxruntime": 0.0})
        monkeypatch.setattr(
            extra, "compose_sampler", lambda _, wiring, parts: b"; ".join(parts[name] for name in wiring.graphs)
        )
        def run(precisions: tuple[str, ...], backends: tuple[str, ...] = (), **wishes: bool) -> list[str]:
            options = GraphOptions(**wishes)  # type: ignore[arg-type]
            model = options.of(zcond.model, precisions)
            graphs = tuple(Graph(role, f"{role.name} f32".encode(), {}) for role in model.roles.values())
            found = extra_graphs(BuildContext(model, graphs, Watch()), precisions, options, backends)
            self.contents = {graph.key: graph.model.decode() for graph in found}
            return list(self.contents)

        return run

    HALVES = ("vae_encoder.fp16", "vae_decoder.fp16", "denoiser.fp16")

    def test_none_by_default(self, made: Callable[..., list[str]]) -> None:
        assert made(("f32",), ("onnxruntime",)) == []

    def test_half_graphs(self, made: Callable[..., list[str]]) -> None:
        assert made(("f32", "fp16"), ("onnxruntime-cuda",)) == list(self.HALVES)
        assert "timestep_table.fp16" in made(("f32", "fp16"), turing=True)

    def test_turing_computes_the_table_in_half(self, zcond: Parts) -> None:
        table = GraphOptions(turing=True).of(zcond.model, ("f32", "fp16")).roles["timestep_table"]
        assert (table.computes_in("fp16"), table.computes_in("bf16")) == ("fp16", "f32")
        assert zcond.model.roles["timestep_table"].computes_in("fp16") == "f32"
        assert GraphOptions(turing=True).of(zcond.model, ("f32",)) is zcond.model

    def test_the_target_decides_for_turing(self) -> None:
        assert GraphOptions(whole_sampler=True).for_targets(("sm86", "sm75")) == GraphOptions((), True, True)
        assert GraphOptions().for_targets(("sm86",)) == GraphOptions()

    def test_the_sampler_when_asked_for_and_for_tensorrt(self, made: Callable[..., list[str]]) -> None:
        assert made(("f32",), whole_sampler=True) == ["sampler"]
        assert self.contents["sampler"] == "vae_encoder f32; vae_decoder f32; timestep_table f32; denoiser f32"
        assert made(("f32", "fp16"), ("tensorrt_rtx",)) == ["sampler", *self.HALVES, "sampler.fp16"]
        assert self.contents["sampler.fp16"] == "vae_encoder fp16; vae_decoder fp16; timestep_table f32; denoiser fp16"
        assert made(("f32", "fp16"), whole_sampler=True) == ["sampler", *self.HALVES, "sampler.fp16"]
