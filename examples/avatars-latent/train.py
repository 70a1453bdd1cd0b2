"""The training of a small text-conditioned latent diffusion model: two stages, each resumable, on any processor.

    python examples/avatars-latent/dataset.py --out data
    python examples/avatars-latent/train.py autoencoder --data data --out runs
    python examples/avatars-latent/train.py diffuse     --data data --out runs
    python examples/avatars-latent/train.py pack        --out runs --to DIR
    python examples/avatars-latent/train.py keep        --out runs

Stage one fits an autoencoder from 64 x 64 x 3 to 16 x 16 x 4, stage two a UNet and a token encoder that predict v of its
latents, the prompt dropped for one sample in ten so that classifier-free guidance works. `pack` writes the EMA weights as
half-precision numbers in the key layout of latent diffusion (CompVis), with the YAML that such a checkpoint needs beside it.
`keep` writes stage one's beside this file: where --out has no state of stage one, the others take it from there.

Faces are not mirrored: they always wink with the same eye. A stage that was stopped continues from its last saved state.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import prompts
from safetensors.torch import load_file, save_file

from examples.avatars import dataset as faces
from examples.avatars.training import Recipe, Run, autocast, batches, loss_weights, report
from export.models.latent.conditioners import TokenEncoder
from export.models.latent.first_stage import FirstStage
from export.models.latent.spec import FirstStageSpec, OpenAIUNetSpec, TokenConditionerSpec
from export.models.openai.unet import OpenAIUNet, ResBlock, SpatialTransformer

# Its norms have 32 groups: with as few channels each would be normalised by itself, and flat areas lose their colours.
STAGE = FirstStageSpec(
    in_channels=3, out_channels=3, channels=64, channel_mult=(1, 1, 2), num_res_blocks=1, attn_resolutions=(), resolution=64,
    z_channels=4, embed_dim=4, codes=None,
)  # fmt: skip
TEXT = TokenConditionerSpec(vocabulary=len(prompts.VOCABULARY), length=prompts.LENGTH, width=128, layers=2)
UNET = OpenAIUNetSpec(
    in_channels=4, out_channels=4, model_channels=64, channel_mult=(1, 2, 2), num_res_blocks=1, attention_factors=(1, 2, 4),
    num_heads=None, num_head_channels=32, context_dim=TEXT.width,
)  # fmt: skip
KEPT = Path(__file__).with_name("autoencoder.safetensors")
T = 1000
BETA_1, BETA_T = 0.0015, 0.0195
EDGES = 0.5  # weight of the error of differences between neighbouring pixels
COLOURS = 4.0  # weight of the squared error of means over 8 x 8 pixels
UNKNOWN_RATE = 0.02  # of words that are hidden, so that one which is not in the vocabulary changes little


class TextDiffusion(nn.Module):
    """What is trained together: v [N, 4, 16, 16] from x [N, 4, 16, 16], timesteps int64 [N] and tokens int64 [N, L]."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.text = OpenAIUNet(UNET), TokenEncoder(TEXT)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.unet(x, timesteps, self.text(tokens))
        return predicted

    @torch.no_grad()
    def zero_last_layers(self) -> None:
        """Start every residual branch and the output at zero: the untrained network is an identity that answers 0."""
        last = [self.unet.out[-1]]
        last += [block.out_layers[-1] for block in self.unet.modules() if isinstance(block, ResBlock)]
        last += [block.proj_out for block in self.unet.modules() if isinstance(block, SpatialTransformer)]
        for layer in last:
            for parameter in layer.parameters():
                parameter.zero_()


def schedule() -> tuple[torch.Tensor, torch.Tensor]:
    """betas, whose roots are a line, and alpha_bar, float64 [T]."""
    betas = torch.linspace(BETA_1**0.5, BETA_T**0.5, T, dtype=torch.float64) ** 2
    return betas, torch.cumprod(1 - betas, dim=0)


def scaled(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, 64, 64, 3] as float32 [N, 3, 64, 64] in [-1, 1], channels last."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def draw_latent(moments: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A latent [N, 4, h, w] drawn from moments [N, 8, h, w], and the mean KL divergence of its numbers from N(0, 1)."""
    mean, logvar = moments.float().chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator), kl


def differences(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of neighbours in either direction."""
    yield images[..., 1:] - images[..., :-1]
    yield images[..., 1:, :] - images[..., :-1, :]


def train_autoencoder(data: Path, out: Path, recipe: Recipe) -> None:
    """Minimise |x − recon| + EDGES |differences of both| + COLOURS |means of both|² + kl_weight · KL, all of them means."""
    images = faces.load(data / "train.npz").images
    run = Run(FirstStage(STAGE), recipe, out / "autoencoder.state", seed=1)
    record = report("autoencoder: L1")
    for index in batches(run, len(images)):
        x = scaled(images[index.numpy()])
        with autocast():
            z, kl = draw_latent(run.net.moments(x), run.generator)
            recon = run.net.decode(z).float()
        error = F.l1_loss(recon, x)
        edges = sum(F.l1_loss(a, b) for a, b in zip(differences(recon), differences(x), strict=True))
        colours = F.mse_loss(F.avg_pool2d(recon, 8), F.avg_pool2d(x, 8))
        run.update(error + EDGES * edges + COLOURS * colours + recipe.kl_weight * kl)
        record(error.item())


def load_autoencoder(out: Path) -> tuple[FirstStage, int]:
    """The first stage that was trained into `out`, and its steps; else the kept one, and 0."""
    stage, path = FirstStage(STAGE), out / "autoencoder.state"
    state = torch.load(path, weights_only=True) if path.exists() else {"ema": load_file(KEPT), "step": 0}
    stage.load_state_dict(state["ema"])
    return stage.eval(), state["step"]


def keep(out: Path) -> Path:
    """Write the trained first stage's weights as half-precision numbers beside this file; their path."""
    weights, _ = load_autoencoder(out)
    save_file({key: value.half().contiguous() for key, value in weights.state_dict().items()}, KEPT)
    return KEPT


@torch.no_grad()
def encoded(data: Path, out: Path) -> dict[str, Any]:
    """moments float16 [N, 8, 16, 16] of the training images, and scale = 1 / std of latents: made once for a first stage."""
    path, (stage, step) = out / "latents.pt", load_autoencoder(out)
    if path.exists():
        cache: dict[str, Any] = torch.load(path, weights_only=True)
        if cache["step"] == step:
            return cache
    images = faces.load(data / "train.npz").images
    parts = [
        stage.moments(scaled(part)).half()
        for part in tqdm(np.array_split(images, -(-len(images) // 100)), desc="encode", mininterval=5, disable=None)
    ]
    moments = torch.cat(parts)
    latents, _ = draw_latent(moments, torch.Generator().manual_seed(2))
    cache = {"moments": moments, "scale": 1 / latents.std().item(), "step": step}
    torch.save(cache, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
    return cache


def hide(tokens: torch.Tensor, drop: float, generator: torch.Generator) -> torch.Tensor:
    """Prompts [N, L] of which a share `drop` is null, and a few words of the others unknown."""
    special = torch.tensor([prompts.PAD, prompts.BEGIN, prompts.END])
    unknown = (torch.rand(tokens.shape, generator=generator) < UNKNOWN_RATE) & ~torch.isin(tokens, special)
    null = torch.rand((len(tokens), 1), generator=generator) < drop
    return torch.where(null, torch.from_numpy(prompts.encode("")), tokens.masked_fill(unknown, prompts.UNKNOWN))


def train_diffusion(data: Path, out: Path, recipe: Recipe) -> None:
    """Minimise loss_weights(t) · |v − network(x_t, t, tokens)|², t uniform.

    v = sqrt(alpha_bar) eps − sqrt(1 − alpha_bar) z, z a latent times scale.
    """
    cache = encoded(data, out)
    moments, scale = cache["moments"], cache["scale"]
    with np.load(data / "train.npz") as stored:
        tokens = torch.from_numpy(stored["tokens"])
    _, alpha_bar = schedule()
    weight = loss_weights(alpha_bar, recipe.weighting)
    signal, noise_level = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    run = Run(TextDiffusion(), recipe, out / "diffuse.state", seed=3)
    if run.step == 0:
        run.net.zero_last_layers()
        run.ema.load_state_dict(run.net.state_dict())
    record = report("diffuse: loss")
    for index in batches(run, len(moments)):
        z = draw_latent(moments[index], run.generator)[0] * scale
        t = torch.randint(T, (len(z),), generator=run.generator)
        eps = torch.randn(z.shape, generator=run.generator)
        a, sigma = signal[t, None, None, None], noise_level[t, None, None, None]
        x_t = (a * z + sigma * eps).contiguous(memory_format=torch.channels_last)
        with autocast():
            predicted = run.net(x_t, t, hide(tokens[index], recipe.drop_condition, run.generator))
        loss = (weight[t] * (predicted.float() - (a * eps - sigma * z)).square().mean(dim=(1, 2, 3))).mean()
        run.update(loss)
        record(loss.item())


def configuration() -> dict[str, Any]:
    """The model as CompVis's code would build it."""
    unet = {
        "image_size": STAGE.resolution // STAGE.factor, "in_channels": UNET.in_channels, "out_channels": UNET.out_channels,
        "model_channels": UNET.model_channels, "attention_resolutions": list(UNET.attention_factors),
        "num_res_blocks": UNET.num_res_blocks, "channel_mult": list(UNET.channel_mult),
        "num_head_channels": UNET.num_head_channels, "use_spatial_transformer": True, "transformer_depth": UNET.depth,
        "context_dim": UNET.context_dim,
    }  # fmt: skip
    stage = {
        "double_z": True, "z_channels": STAGE.z_channels, "resolution": STAGE.resolution, "in_channels": STAGE.in_channels,
        "out_ch": STAGE.out_channels, "ch": STAGE.channels, "ch_mult": list(STAGE.channel_mult),
        "num_res_blocks": STAGE.num_res_blocks, "attn_resolutions": list(STAGE.attn_resolutions), "dropout": 0.0,
    }  # fmt: skip
    text = {"n_embed": TEXT.width, "n_layer": TEXT.layers, "vocab_size": TEXT.vocabulary, "max_seq_len": TEXT.length}
    params = {
        "linear_start": BETA_1, "linear_end": BETA_T, "timesteps": T, "parameterization": "v", "first_stage_key": "image",
        "cond_stage_key": "caption", "image_size": unet["image_size"], "channels": UNET.in_channels,
        "cond_stage_trainable": True, "conditioning_key": "crossattn", "scale_by_std": True, "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": STAGE.embed_dim, "ddconfig": stage, "lossconfig": {"target": "torch.nn.Identity"}},
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.BERTEmbedder", "params": {**text, "use_tokenizer": False},
        },
    }  # fmt: skip
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def yaml_lines(config: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Nested mappings, with scalars and lists of them, as lines of YAML."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {str(value).lower() if isinstance(value, bool) else value}"


def pack(out: Path, to: Path) -> Path:
    """Write avatars-latent.ckpt, whose path is returned, avatars-latent.yaml and vocab.txt."""
    stage, step = load_autoencoder(out)
    cache = torch.load(out / "latents.pt", weights_only=True)
    if cache["step"] != step:
        raise RuntimeError(
            f"the latents that were diffused are of {cache['step']} steps of the autoencoder, found {step}: delete"
            f" {out / 'diffuse.state'} and run `diffuse` again"
        )
    trained = torch.load(out / "diffuse.state", weights_only=True)["ema"]
    prefixes = {"unet.": "model.diffusion_model.", "text.": "cond_stage_model."}
    keys = {
        prefix + key.removeprefix(own): value
        for own, prefix in prefixes.items() for key, value in trained.items() if key.startswith(own)
    }  # fmt: skip
    keys |= {f"first_stage_model.{key}": value for key, value in stage.state_dict().items()}
    keys = {key: value.half().contiguous() for key, value in keys.items()}
    betas, alpha_bar = schedule()
    keys |= {"betas": betas.float(), "alphas_cumprod": alpha_bar.float(), "scale_factor": torch.tensor(cache["scale"])}
    to.mkdir(parents=True, exist_ok=True)
    path = to / "avatars-latent.ckpt"
    torch.save({"state_dict": keys}, path)
    path.with_suffix(".yaml").write_text("\n".join(yaml_lines(configuration())) + "\n", encoding="utf-8")
    (to / "vocab.txt").write_text("\n".join(prompts.VOCABULARY) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["autoencoder", "diffuse", "pack", "keep"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that dataset.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the resumable training states")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="where pack writes the checkpoint")
    parser.add_argument("--images", type=int, help="images the stage sees in all (default: the shipped model's)")
    parser.add_argument("--batch", type=int, help="images a step (default: 8 for the autoencoder, 32 for the diffusion)")
    parser.add_argument("--threads", type=int, help="torch threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "autoencoder":
        recipe = Recipe(args.images or 20_000, args.batch or 8, lr=1e-3, ema_decay=0.995, kl_weight=1e-3)
        train_autoencoder(args.data, args.out, recipe)
    elif args.stage == "diffuse":
        recipe = Recipe(args.images or 170_000, args.batch or 32, lr=5e-4, ema_decay=0.9995, weighting="v", prediction="v")
        train_diffusion(args.data, args.out, recipe)
    else:
        print(pack(args.out, args.to) if args.stage == "pack" else keep(args.out))


if __name__ == "__main__":
    main()
