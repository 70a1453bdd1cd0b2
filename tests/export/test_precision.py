"""Half graphs are half where they should be and float32 where it matters, and as near to float32 as they must be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from engine.errors import ArgumentError, ExportError
from engine.solver.feeds import step_feeds
from engine.solver.table import build_step_table
from export.build import Request, recognise
from export.families.diffusevae.graphs import roles
from export.graphs.onnx_export import export_onnx
from export.graphs.parity import measure
from export.graphs.reference import WholeSampler
from export.graphs.roles import Role, with_rows
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec
from export.precision import BOUND, HalfOptions, half_role, half_roles, layer_names

VAE_SPEC = VAESpec(4, "4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1", "4:64,1:8", "4:64,1:8")
T = 20
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
SENSITIVE = ("InstanceNormalization", "GroupNormalization", "Softmax", "Erf", "Sigmoid")
MATRIX = ("Conv", "Gemm", "MatMul")


@pytest.fixture(scope="module")
def wanted() -> dict[str, Role]:
    """The roles of a model so small that its export takes seconds; one attention, z-conditioned."""
    torch.manual_seed(0)
    unet = UNet(UNetSpec("openai", 4, 6, 3, 32, (1, 2), 1, (), 2, z_dim=8, scale_shift=True))
    return roles(unet.eval().requires_grad_(False), VAE(VAE_SPEC).eval().requires_grad_(False), T)


def exported(wanted: dict[str, Role], name: str, options: HalfOptions) -> onnx.ModelProto:
    """One half graph, checked against float32 torch."""
    role = half_role(wanted[name], options)
    model = export_onnx(role)
    examples = with_rows({"denoiser": (wanted["timestep_table"], "row")})
    error = measure(wanted[name], model, ["onnxruntime"], examples, BOUND)["onnxruntime"]
    assert 0 < error <= BOUND, "a half graph rounds, but not too much"
    return onnx.load_from_string(model.data)


@pytest.fixture(scope="module")
def denoiser(wanted: dict[str, Role]) -> onnx.ModelProto:
    return exported(wanted, "denoiser", HalfOptions())


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of a graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    infos = [*graph.value_info, *graph.input, *graph.output]
    return {i.name: i.type.tensor_type.elem_type for i in infos} | {t.name: t.data_type for t in graph.initializer}


def operands(model: onnx.ModelProto, ops: tuple[str, ...]) -> Iterator[tuple[str, set[int]]]:
    """(node, the types of its operands and result) of every node of these kinds."""
    found = kinds(model)
    for node in model.graph.node:
        if node.op_type in ops:
            yield node.name, {found[name] for name in (*node.input, *node.output) if name}


class TestDenoiser:
    def test_matrix_products_are_half_but_for_the_last(self, denoiser: onnx.ModelProto) -> None:
        found = list(operands(denoiser, MATRIX))
        assert len(found) > 15
        assert all(len(types) == 1 for _, types in found), "a product of two types is no product in half"
        floats = [name for name, types in found if types == {FLOAT}]
        assert len(floats) == 1, floats
        weights = {t.name: t.data_type for t in denoiser.graph.initializer if len(t.dims) == 4}
        assert {name for name, kind in weights.items() if kind == FLOAT} == {"unet.out_conv.layer.weight"}

    def test_what_is_sensitive_is_float32(self, denoiser: onnx.ModelProto) -> None:
        found = list(operands(denoiser, SENSITIVE))
        assert len(found) > 10
        assert {kind for _, types in found for kind in types} == {FLOAT}

    def test_inputs_and_outputs_are_float32(self, denoiser: onnx.ModelProto) -> None:
        infos = (*denoiser.graph.input, *denoiser.graph.output)
        assert {info.type.tensor_type.elem_type for info in infos} == {FLOAT}
        labels = {prop.key: prop.value for prop in denoiser.metadata_props}
        assert (labels["graph"], labels["precision"]) == ("denoiser", "fp16")

    def test_it_takes_half_the_bytes(self, wanted: dict[str, Role], denoiser: onnx.ModelProto) -> None:
        full = sum(p.numel() for name, p in wanted["denoiser"].module.named_parameters() if ".emb." not in name) * 4
        assert sum(len(t.raw_data) for t in denoiser.graph.initializer) < 0.6 * full

    def test_named_layers_stay_float32(self, wanted: dict[str, Role]) -> None:
        model = exported(wanted, "denoiser", HalfOptions(keep_float32=("unet.middle.0.attn", "unet.stem")))
        weights = {t.name: t.data_type for t in model.graph.initializer if len(t.dims) == 4}
        kept = {name.removesuffix(".layer.weight") for name, kind in weights.items() if kind == FLOAT}
        assert kept == {"unet.stem", "unet.middle.0.attn.qkv", "unet.middle.0.attn.proj", "unet.out_conv"}
        assert all(len(types) == 1 for _, types in operands(model, MATRIX))

    def test_turing_has_no_float32_product(self, wanted: dict[str, Role]) -> None:
        model = exported(wanted, "denoiser", HalfOptions(turing=True))
        assert {kind for _, types in operands(model, MATRIX) for kind in types} == {HALF}


@pytest.mark.parametrize(("name", "last"), [("vae_encoder", {"enc.mu", "enc.logvar"}), ("vae_decoder", {"dec.last_conv"})])
def test_vae(wanted: dict[str, Role], name: str, last: set[str]) -> None:
    model = exported(wanted, name, HalfOptions())
    weights = {t.name: t.data_type for t in model.graph.initializer if len(t.dims) == 4}
    assert {key.removesuffix(".layer.weight") for key, kind in weights.items() if kind == FLOAT} == last
    assert {kind for _, types in operands(model, SENSITIVE) for kind in types} == {FLOAT}


def test_the_table_is_half_for_turing_alone(wanted: dict[str, Role]) -> None:
    assert [role.name for role in half_roles(wanted, HalfOptions())] == ["vae_encoder", "vae_decoder", "denoiser"]
    turing = half_roles(wanted, HalfOptions(turing=True))
    assert [role.name for role in turing] == list(wanted)
    model = exported(wanted, "timestep_table", HalfOptions(turing=True))
    assert {kind for _, types in operands(model, MATRIX) for kind in types} == {HALF}
    sinusoids = next(t for t in model.graph.initializer if list(t.dims) == [T, 32])
    assert sinusoids.data_type == FLOAT


def test_the_module_given_is_not_touched(wanted: dict[str, Role]) -> None:
    before = {name: p.dtype for name, p in wanted["denoiser"].module.named_parameters()}
    half = half_role(wanted["denoiser"], HalfOptions(turing=True))
    assert {name: p.dtype for name, p in wanted["denoiser"].module.named_parameters()} == before
    assert half.precision == "fp16"
    assert wanted["denoiser"].precision == "f32"


def test_attention_in_half_survives_large_scores(wanted: dict[str, Role]) -> None:
    # Scores of several hundred: exp in half is infinite above 11, softmax in float32 is not.
    role = half_role(wanted["denoiser"], HalfOptions())
    attention = role.module.unet.middle[0].attn
    scores = torch.tensor([[[[700.0, 690.0, -700.0]]]], dtype=torch.float16)
    weights = attention.softmax(scores)
    assert weights.dtype == torch.float16
    assert torch.isfinite(weights).all()
    assert abs(float(weights.float().sum()) - 1) < 1e-3


class TestNames:
    def test_an_unknown_name_gets_a_hint(self, wanted: dict[str, Role]) -> None:
        message = r"found 'unet.midle.0.attn', expected the name of a layer.*Did you mean 'unet.middle.0.attn'"
        with pytest.raises(ArgumentError, match=message):
            half_roles(wanted, HalfOptions(keep_float32=("unet.stem", "unet.midle.0.attn")))

    @pytest.mark.parametrize("name", ["unet.out_conv", "unet.time_mlp.0", "unet.middle.0.res.emb", "unet.out_norm", ""])
    def test_what_is_float32_anyway_is_no_choice(self, wanted: dict[str, Role], name: str) -> None:
        with pytest.raises(ArgumentError, match="--keep-float32: found"):
            half_roles(wanted, HalfOptions(keep_float32=(name,)))

    def test_turing_keeps_nothing(self, wanted: dict[str, Role]) -> None:
        with pytest.raises(ArgumentError, match=r"found unet.stem beside the Turing variant .*expected none: on SM75"):
            half_roles(wanted, HalfOptions(("unet.stem",), turing=True))

    def test_layers_and_what_holds_them(self, wanted: dict[str, Role]) -> None:
        names = layer_names(wanted)
        for name in ("unet", "unet.stem", "unet.middle.0.attn.qkv", "enc.in_conv", "dec.block_mod.0.c1"):
            assert name in names


def test_a_weight_beyond_float16_is_named(wanted: dict[str, Role]) -> None:
    module = wanted["vae_decoder"].module
    spoilt = copy.deepcopy(module)
    spoilt.dec.block_mod[0].c1.weight.data[0, 0] = 1e6
    bad = Role("vae_decoder", spoilt, wanted["vae_decoder"].inputs, wanted["vae_decoder"].outputs)
    message = r"found values up to 1e\+06 in dec.block_mod.0.c1.weight, expected .*65504; .*-float32 dec.block_mod.0.c1"
    with pytest.raises(ExportError, match=message):
        half_role(bad, HalfOptions())
    assert half_role(bad, HalfOptions(keep_float32=("dec.block_mod.0.c1",))).precision == "fp16"


def test_the_bound_is_enforced(wanted: dict[str, Role]) -> None:
    role = wanted["vae_decoder"]
    model = onnx.load_from_string(export_onnx(half_role(role, HalfOptions())).data)
    weight = next(t for t in model.graph.initializer if t.name.endswith("last_conv.layer.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match=r"expected at most 0.002 against float32; keep layers with --keep-float32"):
        measure(role, model.SerializeToString(), ["onnxruntime"], bound=BOUND)


def test_the_trained_model_is_finite_in_half() -> None:
    """Four samples of the shipped model at its recorded setting: no NaN, and the images of float32 but for rounding."""
    model = recognise(Request(Path(__file__).parents[2] / "examples" / "avatars" / "avatars.ckpt")).load()
    state = model.wiring.state
    options = dict(model.defaults) | {"prediction": model.prediction, "variance": model.variance, "clip": state.clip}
    table = build_step_table(model.schedule.schedule(), centred=state.centre is not None, **options)
    feeds = {name: torch.from_numpy(value) for name, value in step_feeds(table).items()}
    rng = torch.Generator().manual_seed(0)
    shape = (4, *state.shape)
    feeds |= {"x_T": torch.randn(shape, generator=rng), "noise": torch.randn((len(table.rows), *shape), generator=rng)}
    feeds["z"] = torch.randn((4, *model.input_specs[0].sample), generator=rng)
    halves = {role.name: role for role in half_roles(model.roles, HalfOptions())}
    with torch.inference_mode():
        expected = WholeSampler(model.wiring, model.roles)(**feeds)
        found = WholeSampler(model.wiring, {**model.roles, **halves})(**feeds)
    for a, b in zip(found, expected, strict=True):
        assert torch.isfinite(a).all()
        assert float((a - b).abs().mean()) < 5e-3
