"""Architectures of DiffuseVAE checkpoints: read off keys and shapes exactly, and refused where they cannot tell."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ArgumentError, CheckpointError, EngineError
from engine.solver.schedule import Schedule
from export.families.diffusevae import Options, recognise
from export.families.diffusevae.architecture import Architecture, infer
from export.families.diffusevae.evidence import Evidence
from export.families.diffusevae.presets import PRESETS
from export.models.layouts import expected_shapes
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec
from export.read.checkpoint import Checkpoint
from export.read.diffusion import DEFAULTS
from export.read.parts import select, split
from export.read.schedule import linear
from export.synthetic import schedule_constants
from tests import golden_models

PATH = Path("a.ckpt")
SMALL = VAESpec(
    16,
    "16x1,16d2,16t8,8x1,8d2,8t4,4x1,4d4,4t1,1x1",
    "1x1,1u4,1t4,4x1,4u2,4t8,8x1,8u2,8t16,16x1",
    "16:64,8:32,4:32,1:24",
    "16:64,8:32,4:32,1:24",
)
UNET = UNetSpec("openai", 16, 6, 3, 32, (1, 2), 1, (1,), 2)


def meta(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor with a shape and no numbers."""
    return torch.empty(shape, device="meta")


@functools.cache
def constants(formulation: int | None, T: int = 1000) -> dict[str, torch.Tensor]:
    return schedule_constants(Schedule.from_recipe("linear", T, start=1e-4, end=0.02), formulation)


def state_of(
    spec: UNetSpec | None = UNET, vae: VAESpec | None = SMALL, formulation: int | None = 1
) -> dict[str, torch.Tensor]:
    """The EMA half of a training wrapper, without numbers."""
    state: dict[str, torch.Tensor] = {}
    with torch.device("meta"):
        if spec is not None:
            shapes = expected_shapes(UNet(spec))
            state |= {f"target_network.decoder.{key}": meta(shape) for key, shape in shapes.items()}
            state |= {f"target_network.{key}": value for key, value in constants(formulation).items()}
        if vae is not None:
            state |= {f"vae.{key}": value for key, value in VAE(vae).state_dict().items()}
    return state


# The keys that the inference leans on, each layout's.
ANCHORS = (
    "input_blocks.0.0.weight", "conv_in.weight", "time_embed.0.weight", "input_blocks.1.0.out_layers.3.weight",
    "down.1.block.0.conv2.weight", "input_blocks.3.1.qkv.weight", "out.2.weight", "conv_out.bias",
    "vae.enc.block_mod.2.weight", "vae.dec.block_mod.2.weight", "vae.dec.block_mod.0.c4.weight",
)  # fmt: skip


def some_of(state: dict[str, torch.Tensor]) -> list[str]:
    """The anchors and every 40th key of the weights: all would take minutes."""
    keys = [key for key in state if "decoder." in key or key.startswith("vae.")]
    return [key for index, key in enumerate(keys) if index % 40 == 0 or key.endswith(ANCHORS)]


def infer_from(state: dict[str, torch.Tensor], metadata: dict[str, Any] | None = None, **options: Any) -> Architecture:
    checkpoint = Checkpoint(PATH, "0" * 64, state, metadata or {})
    parts = split(checkpoint)
    network = select(parts, "ema", PATH)
    return infer(Evidence(PATH, checkpoint.metadata, network, parts.vae, Options(**options)))


class TestGolden:
    @pytest.mark.parametrize("name", golden_models.NAMES)
    def test_what_the_reference_was_given(self, name: str) -> None:
        cfg = golden_models.config(name)
        found = infer_from(golden_models.state_dict(name), **golden_models.build_options(name))
        attention = [cfg["res"] >> level for level in found.unet.attention_levels]
        if cfg["unet"] == "openai":
            attention = [2**level for level in found.unet.attention_levels]
        unet = found.unet
        assert (unet.layout, unet.image_size, unet.model_channels) == (cfg["unet"], cfg["res"], cfg["dim"])
        assert (list(unet.channel_mult), unet.blocks_per_level) == (cfg["dim_mults"], cfg["n_residual"])
        assert (attention, unet.heads) == (cfg["attn"], cfg["n_heads"])
        assert (unet.z_dim, unet.scale_shift) == (cfg["z_dim"] if cfg["z_cond"] else None, cfg["z_cond"])
        assert found.formulation == {"form1": 1, "form2": 2, "uncond": None}[cfg["type"]]
        assert found.schedule == linear(cfg["beta1"], cfg["beta2"], cfg["T"])
        assert found.prediction == "eps"
        assert found.variance == cfg["variance"]
        if cfg["vae"] is None:
            assert found.vae is None
        else:
            assert found.vae is not None
            assert dataclasses.astuple(found.vae) == (*cfg["vae"].values(), 3)


class TestPublished:
    @pytest.mark.parametrize("layout", ["openai", "ddim"])
    @pytest.mark.parametrize("name", PRESETS)
    def test_every_preset_is_inferred_from_its_own_shapes(self, name: str, layout: str) -> None:
        preset = PRESETS[name]
        base, blocks = preset.widths[-1]
        spec = UNetSpec(
            layout, preset.image_size, 6, 3, base, preset.channel_mult, blocks, preset.attention_levels(layout), 8
        )  # fmt: skip
        found = infer_from(state_of(spec, preset.vae), preset=name)
        assert found.unet == spec
        assert found.vae == preset.vae
        assert (found.variance, found.origins["heads"]) == (preset.variance, f"preset {name}")

    def test_heads_follow_the_scripts(self) -> None:
        preset = PRESETS["cifar10"]
        spec = UNetSpec("openai", 32, 3, 3, 128, preset.channel_mult, 2, (), 1)
        found = infer_from(state_of(spec, None, None), preset="cifar10")
        assert (found.unet.heads, found.unet.image_size, found.formulation) == (1, 32, None)

    def test_no_unconditional_model_is_published(self) -> None:
        spec = UNetSpec("openai", 256, 3, 3, 128, PRESETS["afhq256"].channel_mult, 2, (4,), 1)
        with pytest.raises(CheckpointError, match=r"name it with --heads N \(possible: 1, 2, 4, 8"):
            infer_from(state_of(spec, None, None), preset="afhq256")

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"channel_mult": (1, 2, 2, 4)}, "channel_mult = (1, 2, 2, 4)"),
            ({"model_channels": 64}, "(model_channels, blocks_per_level) = (64, 2)"),
            ({"attention_levels": (1,)}, "attention_levels = (1,)"),
        ],
    )
    def test_a_broken_promise_names_the_field(self, changes: dict[str, Any], field: str) -> None:
        spec = UNetSpec("openai", 32, 6, 3, 128, (1, 2, 2, 2), 2, (), 8)
        with pytest.raises(CheckpointError) as refusal:
            infer_from(state_of(dataclasses.replace(spec, **changes), PRESETS["cifar10"].vae), preset="cifar10")
        assert f"found {field}, expected" in str(refusal.value)
        assert "for preset cifar10" in str(refusal.value)

    def test_a_preset_of_another_size(self) -> None:
        with pytest.raises(ArgumentError, match=r"image size: found 16 from the VAE.* but 64 from preset celeba64"):
            infer_from(state_of(), preset="celeba64")

    def test_an_unknown_preset(self) -> None:
        with pytest.raises(ArgumentError, match=r"'cifar100', expected one of cifar10, .*Did you mean 'cifar10'"):
            infer_from(state_of(), preset="cifar100")


class TestKeysThatDoNotFit:
    def test_missing(self) -> None:
        state = state_of()
        del state["target_network.decoder.input_blocks.3.0.in_layers.2.bias"]
        del state["vae.dec.last_conv.bias"]
        with pytest.raises(CheckpointError, match=r"missing vae\.dec\.last_conv\.bias \(expected shape \[3\]\)"):
            infer_from(state, heads=2)
        state["vae.dec.last_conv.bias"] = meta((3,))
        message = r"missing target_network\.decoder\.input_blocks\.3\.0\.in_layers\.2\.bias \(expected shape \[64\]\); the"
        with pytest.raises(CheckpointError, match=message):
            infer_from(state, heads=2)

    @pytest.mark.parametrize("layout", ["openai", "ddim"])
    def test_any_single_missing_key_is_named(self, layout: str) -> None:
        state = state_of(dataclasses.replace(UNET, layout=layout))
        for key in some_of(state):
            rest = {name: tensor for name, tensor in state.items() if name != key}
            with pytest.raises(CheckpointError) as refusal:
                infer_from(rest, heads=2)
            # Where a whole layer had one tensor only, the layer is what is missed.
            layer = key.rsplit(".", 1)[0]
            assert key in str(refusal.value) or layer in str(refusal.value), (key, refusal.value)

    @pytest.mark.parametrize("layout", ["openai", "ddim"])
    def test_any_single_misshapen_key_is_named(self, layout: str) -> None:
        state = state_of(dataclasses.replace(UNET, layout=layout))
        for key in some_of(state):
            wrong = state | {key: meta((7, *state[key].shape))}
            with pytest.raises(EngineError) as refusal:
                infer_from(wrong, heads=2)
            layer = key.rsplit(".", 1)[0]
            assert key in str(refusal.value) or layer in str(refusal.value) or "channels" in str(refusal.value), key

    def test_extra(self) -> None:
        state = state_of() | {"target_network.decoder.input_blocks.1.0.extra.weight": meta((3,))}
        with pytest.raises(CheckpointError, match=r"unexpected target_network\.decoder\.input_blocks\.1\.0\.extra\.weight;"):
            infer_from(state, heads=2)

    def test_many_are_counted(self) -> None:
        state = {key: tensor for key, tensor in state_of().items() if ".output_blocks.0" not in key}
        with pytest.raises(CheckpointError, match=r"missing target_network\.decoder\.output_blocks\.0.* and 14 more"):
            infer_from(state, heads=2)

    def test_a_level_with_fewer_blocks(self) -> None:
        spec = dataclasses.replace(UNET, blocks_per_level=2)
        state = {key: tensor for key, tensor in state_of(spec).items() if ".input_blocks.5." not in key}
        with pytest.raises(CheckpointError, match=r"found \[2, 1\] residual blocks on the levels"):
            infer_from(state, heads=2)

    @pytest.mark.parametrize(
        ("key", "shape", "says"),
        [
            ("input_blocks.0.0.weight", (32, 4, 3, 3), "found 4 input channels, expected 3 .unconditional. or 6"),
            ("out.2.weight", (6, 32, 3, 3), "found 6 output channels .a network that also learns the variance."),
            ("label_emb.weight", (10, 128), "a class-conditional UNet"),
        ],
    )
    def test_relatives_of_the_layout(self, key: str, shape: tuple[int, ...], says: str) -> None:
        state = state_of() | {f"target_network.decoder.{key}": meta(shape)}
        if key == "out.2.weight":
            state["target_network.decoder.out.2.bias"] = meta(shape[:1])
        with pytest.raises(CheckpointError, match=says):
            infer_from(state, heads=2)

    def test_z_without_its_vae(self) -> None:
        spec = dataclasses.replace(UNET, z_dim=32, scale_shift=True)
        with pytest.raises(CheckpointError, match=r"conditioned on z of width 32 and a VAE of width 24"):
            infer_from(state_of(spec), heads=2)


class TestHeads:
    def test_are_asked_for(self) -> None:
        message = r"name it with --heads N \(possible: 1, 2, 4, 8, 16, 32, 64\), .*--preset .*cifar10: 8"
        with pytest.raises(CheckpointError, match=message):
            infer_from(state_of())

    @pytest.mark.parametrize("heads", [3, 128, 10**6])
    def test_that_do_not_divide(self, heads: int) -> None:
        with pytest.raises(ArgumentError, match=rf"found {heads} from --heads, expected a divisor"):
            infer_from(state_of(), heads=heads)

    def test_from_our_own_checkpoints(self) -> None:
        found = infer_from(state_of(), {"n_heads": 4})
        assert (found.unet.heads, found.origins["heads"]) == (4, "metadata")

    def test_two_answers(self) -> None:
        with pytest.raises(ArgumentError, match=r"attention heads: found 2 from --heads but 4 from metadata"):
            infer_from(state_of(), {"n_heads": 4}, heads=2)

    @pytest.mark.parametrize("value", ["4", 4.0, True, [4]])
    def test_metadata_of_another_type(self, value: Any) -> None:
        with pytest.raises(CheckpointError, match=r"as the hyper-parameter 'n_heads', expected an integer"):
            infer_from(state_of(), {"n_heads": value})


class TestSize:
    @pytest.fixture
    def unconditional(self) -> dict[str, torch.Tensor]:
        return state_of(dataclasses.replace(UNET, in_channels=3), None, None)

    def test_is_asked_for(self, unconditional: dict[str, torch.Tensor]) -> None:
        with pytest.raises(CheckpointError, match=r"name it with --image-size PIXELS"):
            infer_from(unconditional, heads=2)

    def test_from_flag_or_metadata(self, unconditional: dict[str, torch.Tensor]) -> None:
        assert infer_from(unconditional, heads=2, image_size=64).unet.image_size == 64
        assert infer_from(unconditional, {"image_size": 48}, heads=2).unet.image_size == 48

    def test_from_the_vae_that_the_reference_stores_unused(self) -> None:
        found = infer_from(state_of(dataclasses.replace(UNET, in_channels=3), SMALL, None), heads=2)
        assert (found.unet.image_size, found.vae, found.formulation) == (16, None, None)

    def test_that_the_unet_cannot_halve(self, unconditional: dict[str, torch.Tensor]) -> None:
        with pytest.raises(ArgumentError, match=r"found 33 from --image-size, expected a multiple of 2"):
            infer_from(unconditional, heads=2, image_size=33)

    def test_that_the_vae_denies(self) -> None:
        with pytest.raises(ArgumentError, match=r"found 16 from the VAE's layers, by convention but 32 from --image-size"):
            infer_from(state_of(), heads=2, image_size=32)


class TestVAE:
    # Pools by 4 at once: the convention would take it for an image size of 8.
    EXOTIC = VAESpec(
        16, "16x1,16d4,16t4,4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1,4u4,4t16,16x1", "16:64,4:32,1:24", "16:64,4:32,1:24"
    )

    def test_is_asked_for(self) -> None:
        with pytest.raises(CheckpointError, match=r"6 input channels.*give the VAE's checkpoint with --vae FILE"):
            infer_from(state_of(vae=None), heads=2)

    def test_strings_in_the_file_win_over_the_convention(self) -> None:
        names = ("input_res", "enc_block_str", "dec_block_str", "enc_channel_str", "dec_channel_str")
        metadata = dict(zip(names, dataclasses.astuple(self.EXOTIC), strict=False))
        found = infer_from(state_of(vae=self.EXOTIC), metadata, heads=2)
        assert (found.vae, found.origins["vae"]) == (self.EXOTIC, "metadata")

    def test_flags(self) -> None:
        found = infer_from(
            state_of(vae=self.EXOTIC), heads=2, vae_enc_blocks=self.EXOTIC.enc_blocks, vae_dec_blocks=self.EXOTIC.dec_blocks
        )
        assert (found.vae, found.origins["vae"]) == (self.EXOTIC, "flag")

    def test_one_flag(self) -> None:
        with pytest.raises(ArgumentError, match=r"found one of the two, expected both"):
            infer_from(state_of(), heads=2, vae_enc_blocks="16x1")

    @pytest.mark.parametrize(
        ("enc", "says"),
        [
            ("16x1,16d2,16t8,8x1,8d2,8t4,4x1,4d2,4t1,1x1", "changing resolution inconsistently at 4"),
            ("16x1,16d2,16t8,8x1,8d2,8t4,4x1", "ending at resolution 4, expected 1"),
            ("16x99999999", "numbers or a length that no VAE has"),
            ("16y3", "expected entries like '32x2'"),
            ("16x2,16d2,16t8,8x1,8d2,8t4,4x1,4d4,4t1,1x1", r"missing vae\.enc\.block_mod"),
        ],
    )
    def test_blocks_that_cannot_be(self, enc: str, says: str) -> None:
        with pytest.raises(EngineError, match=says):
            infer_from(state_of(), heads=2, vae_enc_blocks=enc, vae_dec_blocks=SMALL.dec_blocks)

    def test_outside_the_convention(self) -> None:
        vae = VAESpec(8, "8x1,8d2,4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1,4u2,8x1", "8:64,4:64,1:24", "8:64,4:64,1:24")
        spec = dataclasses.replace(UNET, image_size=8)
        with pytest.raises(
            CheckpointError,
            match=r"no transition vae.dec.block_mod.5.weight behind it.*--vae-enc-blocks and --vae-dec-blocks",
        ):
            infer_from(state_of(spec, vae), heads=2)

    def test_strings_that_are_not_the_weights_own(self) -> None:
        metadata = {
            "enc_block_str": SMALL.enc_blocks, "dec_block_str": SMALL.dec_blocks.replace("16x1", "16x3"),
            "enc_channel_str": SMALL.enc_channels, "dec_channel_str": SMALL.dec_channels,
        }  # fmt: skip
        with pytest.raises(CheckpointError, match=r"\(from metadata\): missing vae\.dec\.block_mod\.10"):
            infer_from(state_of(), metadata, heads=2)
        metadata["dec_channel_str"] = "16:64,1:24"
        with pytest.raises(CheckpointError, match=r"without resolution 4"):
            infer_from(state_of(), metadata, heads=2)


class TestSchedule:
    def test_from_the_weights(self) -> None:
        """What is recognised and what is kept as a table: test_schedule.py."""
        steps = torch.linspace(0, 1, 1000, dtype=torch.float64)
        for betas, recipe in (
            (torch.linspace(5e-4, 0.01, 50), "linear"),
            ((0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * steps) ** 2, "scaled_linear"),
            ((1 - torch.cos((steps + 0.01) * 1.5)).clamp(1e-4, 0.999), "table"),
        ):
            found = infer_from(state_of() | {"target_network.betas": betas}, heads=2)
            assert (found.schedule.recipe, found.schedule.T) == (recipe, len(betas))
            assert found.origins["schedule"] == "weights"

    def test_a_count_that_ten_does_not_divide(self) -> None:
        state = state_of() | {"target_network.betas": torch.linspace(1e-4, 0.02, 7).double()}
        assert infer_from(state, heads=2).defaults == DEFAULTS | {"steps": 7, "spacing": "linspace"}

    @pytest.mark.parametrize("betas", [torch.zeros(10), torch.ones(1) / 2, torch.full((3, 3), 0.1), torch.arange(4)])
    def test_betas_that_are_none(self, betas: torch.Tensor) -> None:
        with pytest.raises(CheckpointError, match=r"target_network\.betas.*expected (at least two )?betas between 0"):
            infer_from(state_of() | {"target_network.betas": betas}, heads=2)

    def test_a_bare_network_asks_for_everything(self) -> None:
        prefix = "target_network.decoder."
        state = {key.removeprefix(prefix): t for key, t in state_of().items() if key.startswith((prefix, "vae."))}
        with pytest.raises(CheckpointError, match=r"found no betas.*--schedule 0\.0001 0\.02 1000"):
            infer_from(state, heads=2)
        with pytest.raises(CheckpointError, match=r"--formulation 1 or --formulation 2"):
            infer_from(state, heads=2, schedule=(1e-4, 0.02, 1000))
        found = infer_from(state, heads=2, schedule=(1e-4, 0.02, 1000), formulation=2)
        assert (found.formulation, found.schedule.T, found.origins["schedule"]) == (2, 1000, "--schedule")
        with pytest.raises(ArgumentError, match=r"expected 0 < beta_1 <= beta_T < 1"):
            infer_from(state, heads=2, schedule=(0.02, 1e-4, 1000), formulation=2)

    def test_two_answers(self) -> None:
        with pytest.raises(ArgumentError, match=r"T = 1000 in the weights but .*T = 500 from --schedule"):
            infer_from(state_of(), heads=2, schedule=(1e-4, 0.02, 500))
        finer = state_of() | {"target_network.betas": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)}
        assert infer_from(finer, heads=2, schedule=(1e-4, 0.02, 1000)).schedule.recipe == "table"
        with pytest.raises(ArgumentError, match=r"formulation: found 1 from weights but 2 from --formulation"):
            infer_from(state_of(), heads=2, formulation=2)
        with pytest.raises(CheckpointError, match=r"formulation 2's constants or --formulation with an unconditional"):
            infer_from(state_of(dataclasses.replace(UNET, in_channels=3), SMALL, None), heads=2, formulation=1)


class TestMetadata:
    OWN = {  # noqa: RUF012
        "n_heads": 4, "image_size": 16, "type": "form1", "variance": "fixedsmall", "name": "faces of März",
        "defaults": {"steps": 4, "t_start": 450, "spacing": "linspace"},
    }  # fmt: skip

    def test_our_own_checkpoints_need_no_flags(self) -> None:
        found = infer_from(state_of(), copy.deepcopy(self.OWN))
        assert (found.unet.heads, found.variance, found.name) == (4, "fixedsmall", "faces-of-M-rz")
        assert found.defaults["t_start"] == 450
        assert found.defaults["method"] == "ddim"
        listed = {"timesteps": [450, 20], "t_start": 450, "noise_scale": [0.8, 1.0]}
        found = infer_from(state_of(), copy.deepcopy(self.OWN) | {"defaults": listed})
        assert found.defaults == DEFAULTS | {"steps": 2, "spacing": None, **listed}

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"type": "form3"}, "type 'form3'.*expected one of form1, form2, uncond"),
            ({"type": "uncond"}, "type 'uncond' .* 6 input channels"),
            ({"type": "form2"}, "formulation: found 1 from weights but 2 from metadata"),
            ({"image_size": 32}, "image size: found 16"),
            ({"variance": "fixed"}, "variance: found 'fixed' from metadata, expected fixedlarge or fixedsmall"),
            ({"defaults": {"stepz": 1}}, "the default 'stepz'.*Did you mean 'steps'"),
            ({"defaults": [1]}, "'defaults', expected a dict"),
        ],
    )
    def test_metadata_that_cannot_be(self, change: dict[str, Any], says: str) -> None:
        with pytest.raises(EngineError, match=says):
            infer_from(state_of(), self.OWN | change)

    def test_prediction(self) -> None:
        assert infer_from(state_of(), heads=2).origins["prediction"].startswith("assumed")
        found = infer_from(state_of(), self.OWN | {"prediction": "v"})
        assert (found.prediction, found.origins["prediction"]) == ("v", "metadata")
        assert infer_from(state_of(), heads=2, prediction="x0").prediction == "x0"
        with pytest.raises(ArgumentError, match=r"prediction: found eps from --prediction but v from metadata"):
            infer_from(state_of(), self.OWN | {"prediction": "v"}, prediction="eps")
        with pytest.raises(ArgumentError, match=r"prediction: found 'epsilon' from metadata, expected eps or x0 or v"):
            infer_from(state_of(), self.OWN | {"prediction": "epsilon"})

    def test_a_flag_chooses_the_variance(self) -> None:
        assert infer_from(state_of(), self.OWN, variance="fixedlarge").origins["variance"] == "flag"
        assert infer_from(state_of(), heads=2).origins["variance"].startswith("assumed")


def test_an_option_of_another_family() -> None:
    checkpoint = Checkpoint(PATH, "0" * 64, state_of(), {})
    assert recognise(checkpoint, None, "ema", {"heads": 2, "scheduler": None}).name == "a"
    with pytest.raises(ArgumentError, match=r"options: found 'head', expected some of heads.*Did you mean 'heads'"):
        recognise(checkpoint, None, "ema", {"head": 2})
