"""The architecture of a DiffuseVAE checkpoint: weights first, then what metadata, a preset or a flag says about the rest.

One rule for everything that changes the images: all sources that speak must agree, and when none speaks the build
stops and names the flag. Nothing is guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.bundle.training import ScheduleSpec
from engine.errors import ArgumentError, CheckpointError
from engine.solver.levels import FIXED_VARIANCES
from export.families.diffusevae import process
from export.families.diffusevae.evidence import Evidence
from export.families.diffusevae.presets import PRESETS, Preset
from export.models.layouts import expected_shapes
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAESpec
from export.read import diffusion
from export.read.evidence import settle
from export.read.parts import require
from export.read.unet_keys import Shape, infer_unet
from export.read.vae_strings import infer_vae


@dataclass(frozen=True)
class Architecture:
    """Everything about the model but its weights.

    `origins` says of each field where it came from, `notes` what of it could be wrong without any weight telling.
    """

    unet: UNetSpec
    vae: VAESpec | None
    formulation: int | None
    schedule: ScheduleSpec
    prediction: str
    variance: str
    name: str
    defaults: dict[str, Any]
    origins: dict[str, str] = field(compare=False)
    notes: tuple[str, ...] = field(compare=False, default=())

    @property
    def conditional(self) -> bool:
        """True when the network refines a VAE's reconstruction."""
        return self.vae is not None


def infer(evidence: Evidence) -> Architecture:
    """Settle the whole architecture and check every key and shape of both networks against it."""
    origins: dict[str, str] = {}
    shape = infer_unet(evidence.network)
    conditional = shape.in_channels == 2 * shape.out_channels
    notes: list[str] = []
    vae = _vae(evidence, shape, origins)
    size = _image_size(evidence, shape, vae, origins)
    spec = UNetSpec(
        shape.layout, size, shape.in_channels, shape.out_channels, shape.model_channels, shape.channel_mult,
        shape.blocks_per_level, shape.attention_levels, _heads(evidence, shape, conditional, origins), shape.z_dim,
        shape.scale_shift,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = expected_shapes(UNet(spec))
    require(evidence.network.unet, shapes, evidence.path, evidence.network.prefix, f"the UNet {_describe(shape)}")
    _check_channels(evidence, spec, vae)
    _check_z(evidence, spec, vae)
    _check_preset(evidence, spec, vae)
    if evidence.metadata.get("n_heads") is None:
        notes.append(_heads_note(spec, vae, origins["heads"]))
    schedule = process.schedule(evidence, origins, notes)
    return Architecture(
        unet=spec,
        vae=vae if conditional else None,
        formulation=process.formulation(evidence, spec, origins),
        schedule=schedule,
        prediction=diffusion.prediction(
            [
                ("--prediction", evidence.options.prediction),
                ("metadata", evidence.plain("prediction", str, "eps, x0 or v")),
            ],
            origins,
        ),
        variance=diffusion.variance(_variance_claims(evidence), origins),
        name=_name(evidence, origins),
        defaults=diffusion.defaults(evidence, schedule.T, origins),
        origins=origins,
        notes=tuple(notes),
    )


def _variance_claims(evidence: Evidence) -> list[tuple[str, str | None]]:
    known = evidence.preset
    return [
        ("flag", evidence.options.variance),
        ("metadata", evidence.plain("variance", str, " or ".join(FIXED_VARIANCES))),
        (evidence.preset_label, known.variance if known else None),
    ]


def _describe(shape: Shape) -> str:
    mults = ",".join(map(str, shape.channel_mult))
    return f"({shape.layout} layout, {shape.model_channels} channels x {mults}, {shape.blocks_per_level} blocks a level)"


def _vae(evidence: Evidence, shape: Shape, origins: dict[str, str]) -> VAESpec | None:
    """The VAE's spec. An unconditional network's checkpoint may carry one: it then only tells the image size."""
    if evidence.stage is None:
        if shape.in_channels == 2 * shape.out_channels:
            raise CheckpointError(
                f"{evidence.path}: found a network that refines a VAE's reconstruction ({shape.in_channels} input channels) "
                "and no vae.* "
                "keys, expected both stages; give the VAE's checkpoint with --vae FILE"
            )
        return None
    options = evidence.options
    spec, origins["vae"] = infer_vae(evidence.stage, options.vae_enc_blocks, options.vae_dec_blocks)
    return spec


def _image_size(evidence: Evidence, shape: Shape, vae: VAESpec | None, origins: dict[str, str]) -> int:
    known = evidence.preset
    told_by_vae = "the VAE's layers, by convention" if origins.get("vae") == "weights" else "the VAE"
    found = settle(
        "image size",
        [
            (told_by_vae, vae.image_size if vae else None),
            ("--image-size", evidence.options.image_size),
            ("metadata", evidence.plain("image_size", int, "an integer")),
            (evidence.preset_label, known.image_size if known else None),
        ],
    )
    if found is None:
        raise CheckpointError(
            f"{evidence.path}: found an unconditional network, whose weights do not tell the image size, expected to be "
            "told; name it with --image-size PIXELS, or a published configuration with --preset"
        )
    size, origins["image_size"] = found
    factor = 2 ** (len(shape.channel_mult) - 1)
    if size < factor or size % factor:
        raise ArgumentError(
            f"image size: found {size} from {origins['image_size']}, expected a multiple of {factor} (the UNet halves the "
            f"image {len(shape.channel_mult) - 1} times); correct --image-size"
        )
    return size


def _heads(evidence: Evidence, shape: Shape, conditional: bool, origins: dict[str, str]) -> int:
    known = evidence.preset
    found = settle(
        "attention heads",
        [
            ("--heads", evidence.options.heads),
            ("metadata", evidence.plain("n_heads", int, "an integer")),
            (evidence.preset_label, known.heads(conditional) if known else None),
        ],
    )
    common = math.gcd(*shape.attention_channels)
    possible = [n for n in range(1, min(common, 64) + 1) if common % n == 0]
    if found is None:
        used = ", ".join(f"{name}: {entry.heads(conditional) or '?'}" for name, entry in PRESETS.items())
        raise CheckpointError(
            f"{evidence.path}: found no sign of the number of attention heads, which weights cannot tell and which "
            f"changes the images; name it with --heads N (possible: {', '.join(map(str, possible))}), or a published "
            f"configuration with --preset ({'conditional' if conditional else 'unconditional'} models: {used})"
        )
    heads, origins["heads"] = found
    if heads < 1 or common % heads:
        raise ArgumentError(
            f"attention heads: found {heads} from {origins['heads']}, expected a divisor of the attention widths "
            f"{list(shape.attention_channels)}: {', '.join(map(str, possible))}; correct --heads"
        )
    return heads


def _heads_note(spec: UNetSpec, vae: VAESpec | None, origin: str) -> str:
    """That the number of heads was only said, and which published configurations of this kind have another."""
    kind = "conditional" if spec.conditional else "unconditional"
    published = {name: (known, known.heads(spec.conditional)) for name, known in PRESETS.items()}
    alike = [name for name, (known, _) in published.items() if _fits(spec, vae, known)]
    others = {name: heads for name, (_, heads) in published.items() if heads not in (None, spec.heads)}
    against = {name: heads for name, heads in others.items() if name in alike} or (others if not alike else {})
    said = f"{spec.heads} attention heads are from {origin} and not from the file; no weight tells, another number changes "
    if not against:
        return f"{said}the images, and no published {kind} configuration of this shape has another"
    fit = "which these weights fit" if alike else f"published {kind} configuration{'s' if len(against) > 1 else ''}"
    return f"{said}the images: preset {', '.join(f'{name} has {heads}' for name, heads in against.items())} ({fit})"


def _check_channels(evidence: Evidence, spec: UNetSpec, vae: VAESpec | None) -> None:
    if vae is not None and spec.conditional and vae.channels != spec.out_channels:
        raise CheckpointError(
            f"{evidence.path}: found a network for images of {spec.out_channels} channels and a VAE for {vae.channels}, "
            "expected the VAE that it was trained with; give that one with --vae"
        )


def _check_z(evidence: Evidence, spec: UNetSpec, vae: VAESpec | None) -> None:
    if spec.z_dim is None:
        return
    if vae is None or not spec.conditional:
        raise CheckpointError(
            f"{evidence.path}: found a network conditioned on z (proj.*) but not on an image, expected the reference's two "
            "stages; this variant is not supported"
        )
    if spec.z_dim != vae.z_dim:
        raise CheckpointError(
            f"{evidence.path}: found a network conditioned on z of width {spec.z_dim} and a VAE of width {vae.z_dim}, "
            "expected the VAE that it was trained with; give that one with --vae"
        )


def _check_preset(evidence: Evidence, spec: UNetSpec, vae: VAESpec | None) -> None:
    """A preset is a promise about the weights: break it and the build stops with the field's name."""
    known = evidence.preset
    if known is None:
        return
    for name, found, expected in _promises(spec, vae, known):
        if found not in expected:
            raise CheckpointError(
                f"{evidence.path}: found {name} = {found}, expected {' or '.join(map(str, expected))} for "
                f"{evidence.preset_label}; name the right preset, or give --heads and --variance instead"
            )


Promise = tuple[str, object, tuple[object, ...]]  # a field, what the weights say, what the preset allows


def _promises(spec: UNetSpec, vae: VAESpec | None, known: Preset) -> list[Promise]:
    fields: list[Promise] = [
        ("out_channels", spec.out_channels, (3,)),
        ("channel_mult", spec.channel_mult, (known.channel_mult,)),
        ("(model_channels, blocks_per_level)", (spec.model_channels, spec.blocks_per_level), known.widths),
        ("attention_levels", spec.attention_levels, (known.attention_levels(spec.layout),)),
    ]
    if vae is not None:
        names = ("enc_blocks", "dec_blocks", "enc_channels", "dec_channels")
        fields += [(f"vae.{name}", getattr(vae, name), (getattr(known.vae, name),)) for name in names]
    return fields


def _fits(spec: UNetSpec, vae: VAESpec | None, known: Preset) -> bool:
    same_size = spec.image_size == known.image_size
    return same_size and all(found in expected for _, found, expected in _promises(spec, vae, known))


def _name(evidence: Evidence, origins: dict[str, str]) -> str:
    sources = (
        ("flag", evidence.options.name),
        ("metadata", evidence.plain("name", str, "a text")),
        ("the file's name", evidence.path.stem),
    )
    origins["name"], name = next((source, value) for source, value in sources if value)
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).strip(".-")
    return clean[:80] or "model"
