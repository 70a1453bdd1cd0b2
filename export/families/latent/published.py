"""The published models of the reference, recognised by the shapes of their weights where no configuration is given.

Shapes tell neither heads nor schedule: only what has exactly the shapes of a published model is taken for it. Sources: the
configurations that CompVis/latent-diffusion has under models/ldm and configs/latent-diffusion.
"""

from __future__ import annotations

from engine.bundle.training import ScheduleSpec
from engine.errors import ArgumentError, CheckpointError, did_you_mean
from export.families.latent.config import Config
from export.families.latent.weights import AVERAGE, CONDITIONER, STAGE, UNET, Expected, expected
from export.models.latent.spec import (
    ClassConditionerSpec,
    Conditioner,
    FirstStageSpec,
    ImageConditionerSpec,
    InpaintConditionerSpec,
    LatentSpec,
    RescalerConditionerSpec,
    TokenConditionerSpec,
)
from export.models.openai.spec import OpenAIUNetSpec
from export.read.checkpoint import Checkpoint

VQ_F4 = FirstStageSpec(3, 3, 128, (1, 2, 4), 2, (), 256, 3, 3, 8192)
VQ_F4_NO_ATTENTION = FirstStageSpec(3, 3, 128, (1, 2, 4), 2, (), 256, 3, 3, 8192, attention=False)
VQ_F8 = FirstStageSpec(3, 3, 128, (1, 2, 2, 4), 2, (32,), 256, 4, 4, 16384)
KL_F8 = FirstStageSpec(3, 3, 128, (1, 2, 4, 4), 2, (), 256, 4, 4, None)


def _model(
    unet: OpenAIUNetSpec,
    stage: FirstStageSpec,
    conditioner: Conditioner | None,
    betas: tuple[float, float],
    size: int,
    *,
    scale: float | None = 1.0,
    use_ema: bool = True,
    tokenizer: bool = False,
) -> Config:
    """A model of 1000 steps that predicts noise; scale None: beside its weights."""
    spec = LatentSpec(unet, stage, conditioner, (stage.embed_dim, size, size), "eps", 1.0 if scale is None else scale)
    recipe = ScheduleSpec("scaled_linear", 1000, {"start": betas[0], "end": betas[1]}, None)
    return Config(spec, recipe, use_ema, scale is None, tokenizer, "the published configuration")


_FACES = _model(
    OpenAIUNetSpec(3, 3, 224, (1, 2, 3, 4), 2, (8, 4, 2), None, 32), VQ_F4, None, (0.0015, 0.0195), 64
)
_SEMANTIC = (OpenAIUNetSpec(6, 3, 128, (1, 4, 8), 2, (32, 16, 8), 8, None), VQ_F4, RescalerConditionerSpec(182, 2, 3))
PUBLISHED: dict[str, Config] = {
    "celeba256": _FACES,
    "ffhq256": _FACES,
    "lsun_beds256": _FACES,
    "lsun_churches256": _model(
        OpenAIUNetSpec(4, 4, 192, (1, 2, 2, 4, 4), 2, (1, 2, 4, 8), 8, None, scale_shift=True, resample_blocks=True),
        KL_F8, None, (0.0015, 0.0155), 32, scale=None,
    ),
    "cin256": _model(
        OpenAIUNetSpec(4, 4, 256, (1, 2, 4), 2, (4, 2, 1), None, 32, 512),
        VQ_F8, ClassConditionerSpec(1000, 512), (0.0015, 0.0195), 32,
    ),
    "cin256-v2": _model(
        OpenAIUNetSpec(3, 3, 192, (1, 2, 3, 5), 2, (8, 4, 2), 1, None, 512),
        VQ_F4, ClassConditionerSpec(1001, 512, 1000), (0.0015, 0.0195), 64, use_ema=False,
    ),
    "text2img256": _model(
        OpenAIUNetSpec(3, 3, 192, (1, 2, 3, 5), 2, (8, 4, 2), None, 32, 640),
        VQ_F4, TokenConditionerSpec(30522, 77, 640, 32), (0.0015, 0.0195), 64, tokenizer=True,
    ),
    "txt2img-1p4B": _model(
        OpenAIUNetSpec(4, 4, 320, (1, 2, 4, 4), 2, (4, 2, 1), 8, None, 1280),
        KL_F8, TokenConditionerSpec(30522, 77, 1280, 32), (0.00085, 0.012), 32, scale=0.18215, use_ema=False,
        tokenizer=True,
    ),
    "layout2img-openimages256": _model(
        OpenAIUNetSpec(3, 3, 128, (1, 2, 3, 4), 2, (8, 4, 2), None, 32, 512, 3),
        VQ_F4, TokenConditionerSpec(8192, 92, 512, 16), (0.0015, 0.0205), 64,
    ),
    "bsr_sr": _model(
        OpenAIUNetSpec(6, 3, 160, (1, 2, 2, 4), 2, (16, 8), None, 32),
        VQ_F4, ImageConditionerSpec(3), (0.0015, 0.0155), 64,
    ),
    "inpainting_big": _model(
        OpenAIUNetSpec(7, 3, 256, (1, 2, 3, 4), 2, (8, 4, 2), 8, None, resample_blocks=True),
        VQ_F4_NO_ATTENTION, InpaintConditionerSpec(VQ_F4_NO_ATTENTION), (0.0015, 0.0205), 64,
    ),
    "semantic_synthesis256": _model(*_SEMANTIC, (0.0015, 0.0205), 64),
    "semantic_synthesis512": _model(*_SEMANTIC, (0.0015, 0.0205), 128),
}  # fmt: skip


def published(name: str) -> Config:
    """The configuration of a published model; ArgumentError with the nearest names otherwise."""
    if name not in PUBLISHED:
        raise ArgumentError(
            f"--preset: found {name!r}, expected one of {', '.join(PUBLISHED)}.{did_you_mean(name, PUBLISHED)}"
        )
    return PUBLISHED[name]


def identify(checkpoint: Checkpoint) -> tuple[str, Config]:
    """The name and configuration of the published model whose shapes a checkpoint has.

    Of several that differ in nothing the first is given. CheckpointError where none has these shapes, or where several have
    that are not the same model.
    """
    near = {name: config.spec for name, config in PUBLISHED.items() if _is_near(checkpoint, config)}
    found = [name for name, spec in near.items() if _fits(checkpoint, expected(spec))]
    if not found:
        raise CheckpointError(
            f"{checkpoint.path}: found weights of none of the published models ({', '.join(PUBLISHED)}), expected to be "
            "told heads, schedule and scale, which weights do not say; give the YAML that lies beside the checkpoint: "
            "--config model.yaml"
        )
    if any(PUBLISHED[name] != PUBLISHED[found[0]] for name in found):
        raise CheckpointError(
            f"{checkpoint.path}: found weights that fit {' and '.join(found)}, which differ in more than weights, expected "
            f"to be told which; name it: --preset {found[0]}"
        )
    return found[0], PUBLISHED[found[0]]


def _is_near(checkpoint: Checkpoint, config: Config) -> bool:
    """Whether the first convolutions fit, which is told sooner than whether everything does."""
    unet, stage = config.spec.unet, config.spec.stage
    first = (f"{UNET}input_blocks.0.0.weight", f"{AVERAGE}diffusion_modelinput_blocks00weight")
    tensor = next((checkpoint.tensors[name] for name in first if name in checkpoint.tensors), None)
    last = checkpoint.tensors.get(f"{STAGE}post_quant_conv.weight")
    if tensor is None or last is None:
        return False
    return tuple(tensor.shape[:2]) == (unet.model_channels, unet.in_channels) and len(last) == stage.z_channels


def _fits(checkpoint: Checkpoint, shapes: Expected) -> bool:
    """Whether every key of the networks is there in its shape, and the denoiser has no other."""
    found = {key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.items()}
    unet = {key.removeprefix(UNET): shape for key, shape in found.items() if key.startswith(UNET)}
    if not unet:
        unet = {key: found.get(f"{AVERAGE}diffusion_model{key.replace('.', '')}", ()) for key in shapes.unet}
    rest = {f"{STAGE}{key}": shape for key, shape in shapes.stage.items()}
    rest |= {f"{CONDITIONER}{key}": shape for key, shape in shapes.conditioner.items()}
    return unet == dict(shapes.unet) and all(found.get(key) == shape for key, shape in rest.items())
