"""Is the sampler graph built as it must be: one Loop, each weight once, the signature of the manifest, equal to torch?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch

from engine.bundle.graphs import contract
from engine.bundle.manifest import Model
from engine.errors import ExportError
from engine.solver.table import Schedule
from export.context import Graph, Watch
from export.engines import BuildContext
from export.families.architecture import Architecture
from export.graphs import extra
from export.graphs.extra import GraphOptions, extra_graphs
from export.graphs.onnx_export import OPSET, export_onnx
from export.graphs.roles import Role, roles
from export.graphs.sampler_graph import compose_sampler
from export.graphs.sampler_role import BOUNDS, measure_sampler, sampler_role
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec

VAE_SPEC = VAESpec(4, "4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1", "4:64,1:8", "4:64,1:8")
T = 20
SCHEDULE = Schedule(1e-4, 0.02, T)
PARTS = ("vae_decoder", "timestep_table", "denoiser")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The roles of a tiny model, the exported ones that a sampler is made of, and the model as the manifest has it."""

    roles: dict[str, Role]
    models: dict[str, bytes]
    model: Model

    @property
    def formulation(self) -> int | None:
        return self.model.formulation


def parts_of(conditional: bool) -> Parts:
    torch.manual_seed(0)
    spec = UNetSpec("openai", 4, 6 if conditional else 3, 3, 32, (1,), 1, (), 2, 8 if conditional else None, conditional)
    unet = UNet(spec).eval().requires_grad_(False)
    vae = VAE(VAE_SPEC).eval().requires_grad_(False) if conditional else None
    wanted = roles(unet, vae, T)
    formulation, z_dim = (1, 8) if conditional else (None, None)
    model = Model(formulation, 4, 3, z_dim, conditional, unet.row_width, {}, {} if conditional else None)
    return Parts(wanted, {name: export_onnx(wanted[name]) for name in PARTS if name in wanted}, model)


@pytest.fixture(scope="module")
def zcond() -> Parts:
    """Conditional, with the network conditioned on z too: rows differ by sample."""
    return parts_of(conditional=True)


@pytest.fixture(scope="module")
def uncond() -> Parts:
    return parts_of(conditional=False)


@pytest.fixture(scope="module")
def sampler(zcond: Parts) -> bytes:
    return compose_sampler(sampler_role(zcond.roles), zcond.models)


def test_it_equals_torch(zcond: Parts, sampler: bytes) -> None:
    errors = measure_sampler(sampler_role(zcond.roles), sampler, ["onnxruntime"], SCHEDULE, zcond.formulation)
    assert errors["onnxruntime"] <= BOUNDS["f32"]


def test_formulation_2(zcond: Parts, sampler: bytes) -> None:
    errors = measure_sampler(sampler_role(zcond.roles), sampler, ["onnxruntime"], SCHEDULE, 2)
    assert errors["onnxruntime"] <= BOUNDS["f32"]


def test_unconditional(uncond: Parts) -> None:
    role = sampler_role(uncond.roles)
    model = compose_sampler(role, uncond.models)
    assert measure_sampler(role, model, ["onnxruntime"], SCHEDULE, None)["onnxruntime"] <= BOUNDS["f32"]
    assert [t.name for t in role.inputs] == ["x_T", "timesteps", "coefficients", "start", "noise"]
    assert [t.name for t in role.outputs] == ["images", "x"]


@pytest.mark.parametrize("kind", ["zcond", "uncond"])
def test_the_signature_is_the_manifest_s(kind: str, request: pytest.FixtureRequest) -> None:
    parts: Parts = request.getfixturevalue(kind)
    role = sampler_role(parts.roles)
    inputs, outputs = contract("sampler", parts.model)
    for tensors, expected in ((role.inputs, inputs), (role.outputs, outputs)):
        assert {t.name: f"{t.dtype}[{', '.join(map(str, t.shape))}]" for t in tensors} == expected
    graph = onnx.load_from_string(compose_sampler(role, parts.models)).graph
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
    assert (labels["role"], labels["precision"]) == ("sampler", "f32")


def test_each_weight_is_stored_once(zcond: Parts, sampler: bytes) -> None:
    assert len(sampler) < 1.1 * sum(map(len, zcond.models.values())) + 20_000
    names = [node.name for node in onnx.load_from_string(sampler).graph.node]
    assert len(set(names)) == len(names)


def test_the_same_parts_give_the_same_bytes(zcond: Parts, sampler: bytes) -> None:
    assert compose_sampler(sampler_role(zcond.roles), zcond.models) == sampler


def test_parts_that_do_not_fit(zcond: Parts, uncond: Parts) -> None:
    mixed = zcond.models | {"denoiser": uncond.models["denoiser"]}
    with pytest.raises(ExportError, match=r"graph sampler: found that its parts do not fit together .*expected a sound"):
        compose_sampler(sampler_role(zcond.roles), mixed)


def test_a_wrong_weight_is_noticed(zcond: Parts, sampler: bytes) -> None:
    model = onnx.load_from_string(sampler)
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    weight = next(t for t in body.initializer if t.name.endswith("out_conv.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    with pytest.raises(ExportError, match=r"graph sampler: found a relative error of \S+ in onnxruntime .* at most 0\.0001"):
        measure_sampler(sampler_role(zcond.roles), model.SerializeToString(), ["onnxruntime"], SCHEDULE, 1)


def test_images_must_be_the_bytes_of_x(uncond: Parts) -> None:
    role = sampler_role(uncond.roles)
    model = onnx.load_from_string(compose_sampler(role, uncond.models))
    half = next(t for t in model.graph.initializer if t.name == "half")
    half.CopyFrom(onnx.numpy_helper.from_array(np.float32(0), "half"))  # rounds down
    with pytest.raises(ExportError, match="and images that are not its x"):
        measure_sampler(role, model.SerializeToString(), ["onnxruntime"], SCHEDULE, None)


class TestWhichGraphs:
    """What extra_graphs adds, with everything that takes time replaced."""

    @pytest.fixture
    def made(self, zcond: Parts, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
        monkeypatch.setattr(extra, "export_onnx", lambda role: f"{role.name} {role.precision}".encode())
        monkeypatch.setattr(extra, "measure", lambda *_: {"onnxruntime": 0.0})
        monkeypatch.setattr(extra, "measure_sampler", lambda *_: {"onnxruntime": 0.0})
        monkeypatch.setattr(
            extra, "compose_sampler", lambda role, parts: "; ".join(data.decode() for data in parts.values()).encode()
        )
        graphs = tuple(Graph(role, f"{role.name} f32".encode(), {}) for role in zcond.roles.values())
        architecture = Architecture.__new__(Architecture)
        for name, value in {"beta_1": 1e-4, "beta_T": 0.02, "T": T, "formulation": 1}.items():
            object.__setattr__(architecture, name, value)
        context = BuildContext(architecture, None, None, None, graphs, Watch())  # type: ignore[arg-type]

        def run(precisions: tuple[str, ...], backends: tuple[str, ...] = (), **options: bool) -> list[str]:
            found = extra_graphs(context, precisions, GraphOptions(**options), backends)  # type: ignore[arg-type]
            self.contents = {graph.key: graph.model.decode() for graph in found}
            return list(self.contents)

        return run

    HALVES = ("vae_encoder.fp16", "vae_decoder.fp16", "denoiser.fp16")

    def test_none_by_default(self, made: Callable[..., list[str]]) -> None:
        assert made(("f32",), ("onnxruntime",)) == []

    def test_half_graphs(self, made: Callable[..., list[str]]) -> None:
        assert made(("f32", "fp16"), ("onnxruntime-cuda",)) == list(self.HALVES)
        assert "timestep_table.fp16" in made(("f32", "fp16"), turing=True)

    def test_the_target_decides_for_turing(self) -> None:
        assert GraphOptions(whole_sampler=True).for_targets(("sm86", "sm75")) == GraphOptions((), True, True)
        assert GraphOptions().for_targets(("sm86",)) == GraphOptions()

    def test_the_sampler_when_asked_for_and_for_tensorrt(self, made: Callable[..., list[str]]) -> None:
        assert made(("f32",), whole_sampler=True) == ["sampler"]
        assert self.contents["sampler"] == "vae_decoder f32; timestep_table f32; denoiser f32"
        assert made(("f32", "fp16"), ("tensorrt_rtx",)) == [*self.HALVES, "sampler.fp16"]
        assert self.contents["sampler.fp16"] == "vae_decoder fp16; timestep_table f32; denoiser fp16"
        assert made(("f32", "fp16"), whole_sampler=True) == ["sampler", *self.HALVES, "sampler.fp16"]
