"""The training of the shipped model. Three stages, each resumable, on whatever processor is there.

    python examples/avatars/dataset.py --out data
    python examples/avatars/train.py vae      --data data --out runs
    python examples/avatars/train.py diffuse  --data data --out runs      conditioned on the VAE's reconstructions
    python examples/avatars/train.py baseline --data data --out runs      the same network without a VAE
    python examples/avatars/train.py pack     --out runs --to examples/avatars

Stage one fits the VAE. Stage two fits the DDPM of DiffuseVAE's formulation 1: eps(x_t, t, reconstruction), the condition
dropped for one sample in ten so that classifier-free guidance works. The baseline is what the paper compares with: the
same network, images seen and optimiser without the condition. `pack` writes the EMA weights of the stages that were run in
the reference's key layout, with the setting given as --defaults.

The shipped networks saw 115,000 images each like this, and then 95,000 more for the colour drift of few-step sampling:
    python examples/avatars/train.py diffuse  --data data --out runs --images 210000 --weighting few-step
    python examples/avatars/train.py baseline --data data --out runs --images 210000 --weighting few-step
(the refiner in two parts, 50,000 and 45,000). Ten steps from noise then painted faces in false colours: near t = T an error
of eps is multiplied by up to 158 in x0, where v is -x0 itself. So the refiner was taught to predict v, for 300,800 images
more: 64,000 with an EMA of 0.999, and from those weights 236,800 of a million
    python examples/avatars/train.py diffuse  --data data --out runs --images 1000000 --prediction v --weighting v \\
        --begin WEIGHTS --ema 0.9995 --lr 4e-4
and the baseline alike, from its own weights, for 57,600 of a million. Then the refiner went on for 490,000 images and the
baseline for 675,000, until the rate had fallen to nothing, through torch.compile, which is not used here any more: in its
backward pass (torch 2.13, AVX-512) nothing below the last upsampling had a gradient. Of the refiner's 206 tensors 46 were
trained so, those at full resolution and of the timestep; of the baseline presumably as many.

The VAE's latents are not N(0, I); the density that is sampled instead:
    python export/fit_latent_prior.py examples/avatars/avatars.ckpt --images data/train.npz --components 16 \\
        --out examples/avatars/latent_prior.safetensors

A stage that was stopped continues from its last saved state; its progress bar counts images seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.avatars import dataset
from examples.avatars.training import Recipe, Run, autocast, batches, loss_weights, report
from export.models import layouts
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec

VAE_SPEC = VAESpec(
    image_size=32,
    enc_blocks="32d2,32t16,16d2,16t8,8x1,8d2,8t4,4x1,4d4,4t1,1x1",
    dec_blocks="1x1,1u4,1t4,4x2,4u2,4t8,8x2,8u2,8t16,16x2,16u2,16t32,32x1",
    enc_channels="32:64,16:96,8:128,4:160,1:64",
    dec_channels="32:48,16:96,8:128,4:160,1:64",
)
HEADS = 4
T = 1000
BETA_1, BETA_T = 1e-4, 0.02


def unet_spec(conditional: bool) -> UNetSpec:
    """The refiner's architecture, with or without the reconstruction as a second input."""
    return UNetSpec(
        layout="openai", image_size=32, in_channels=6 if conditional else 3, out_channels=3, model_channels=32,
        channel_mult=(1, 1, 2, 4), blocks_per_level=1, attention_levels=(2,), heads=HEADS,
    )  # fmt: skip


def schedule() -> tuple[torch.Tensor, torch.Tensor]:
    """betas and alpha_bar, float64 [T], as the reference registers them: a float32 line, then double."""
    betas = torch.linspace(BETA_1, BETA_T, T).double()
    return betas, torch.cumprod(1 - betas, dim=0)


def load_images(path: Path) -> torch.Tensor:
    """Images of a rendered set as float32 [N, 3, 32, 32] in [0, 1], channels last."""
    images = torch.from_numpy(dataset.load(path).images).permute(0, 3, 1, 2)
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def train_vae(data: Path, out: Path, recipe: Recipe) -> None:
    """Minimise squared error + kl_weight * KL(q(z|x) || N(0, 1)), both summed over an image."""
    images = load_images(data / "train.npz")
    run = Run(VAE(VAE_SPEC), recipe, out / "vae.state", seed=1)
    record = report("vae")
    for index in batches(run, len(images)):
        x = images[index].contiguous(memory_format=torch.channels_last)
        with autocast():
            mu, logvar = run.net.encode(x)
            mu, logvar = mu.float(), logvar.float()
            z = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=run.generator)
            recon = run.net.decode(z)
        error = (recon.float() - x).square().sum() / len(x)
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum() / len(x)
        run.update(error + recipe.kl_weight * kl)
        record(error.item())


@torch.no_grad()
def reconstructions(vae: VAE, images: torch.Tensor, seed: int) -> torch.Tensor:
    """decode(z), z ~ q(z | x), for every image: float32 [N, 3, 32, 32] in [0, 1], what stage two is conditioned on."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for x in images.split(500):
        mu, logvar = vae.encode(x)
        parts.append(vae.decode(mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=generator)))
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def load_vae(out: Path) -> VAE:
    """The VAE of this run's first stage, or the shipped one where that stage was not run."""
    vae = VAE(VAE_SPEC)
    if (out / "vae.state").exists():
        vae.load_state_dict(torch.load(out / "vae.state", weights_only=True)["ema"])
    else:
        shipped = torch.load(Path(__file__).parent / "avatars.ckpt", weights_only=True)["state_dict"]
        vae.load_state_dict({key.removeprefix("vae."): value for key, value in shipped.items() if key.startswith("vae.")})
    return vae.eval()


def train_ddpm(data: Path, out: Path, recipe: Recipe, conditional: bool, begin: Path | None = None) -> None:
    """Minimise loss_weights(t) · |target − network(x_t, t, cond)|², t uniform.

    target: eps, or v = sqrt(alpha_bar) eps − sqrt(1 − alpha_bar) x_0 (Salimans and Ho 2022), which is −x_0 at t near T,
    where an error of eps would be multiplied by 1/sqrt(alpha_bar) in x_0. begin: weights of the UNet to start from.
    """
    images = load_images(data / "train.npz")
    cond_images = None
    if conditional:
        vae = load_vae(out)
        cond_images = reconstructions(vae, images, seed=2) * 2 - 1
    images = images * 2 - 1
    _, alpha_bar = schedule()
    weight = loss_weights(alpha_bar, recipe.weighting)
    signal, noise_level = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    name = "diffuse" if conditional else "baseline"
    run = Run(UNet(unet_spec(conditional)), recipe, out / f"{name}.state", seed=3)
    if run.step == 0 and begin is not None:
        run.net.load_state_dict(torch.load(begin, weights_only=True))
        run.ema.load_state_dict(run.net.state_dict())
    elif run.step == 0:
        zero_last_layers(run)
    record = report(name)
    for index in batches(run, len(images)):
        x0 = images[index]
        t = torch.randint(T, (len(x0),), generator=run.generator)
        eps = torch.randn(x0.shape, generator=run.generator)
        a, sigma = signal[t, None, None, None], noise_level[t, None, None, None]
        x_t = a * x0 + sigma * eps
        target = eps if recipe.prediction == "eps" else a * eps - sigma * x0
        cond = None
        if cond_images is not None:
            keep = torch.rand(len(x0), generator=run.generator) >= recipe.drop_condition
            cond = (cond_images[index] * keep[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        with autocast():
            predicted = run.net(x_t.contiguous(memory_format=torch.channels_last), cond, t)
        loss = (weight[t] * (predicted.float() - target).square().mean(dim=(1, 2, 3))).mean()
        run.update(loss)
        record(loss.item())


@torch.no_grad()
def zero_last_layers(run: Run) -> None:
    """Start every residual branch and the output at zero, as guided-diffusion does: the untrained network is an identity."""
    net = run.net
    assert isinstance(net, UNet)
    last = [net.out_conv]
    for stage in net.stages():
        last += [stage.res.conv2] + ([stage.attn.proj] if stage.attn is not None else [])
    for conv in last:
        conv.weight.zero_()
        assert conv.bias is not None
        conv.bias.zero_()
    run.ema.load_state_dict(net.state_dict())


def diffusion_buffers() -> dict[str, torch.Tensor]:
    """The schedule buffers that every reference checkpoint carries and that a reader infers T and the betas from."""
    betas, alpha_bar = schedule()
    return {"betas": betas, "sqrt_alpha_bar": alpha_bar.sqrt(), "minus_sqrt_alpha_bar": (1 - alpha_bar).sqrt()}


def pack(out: Path, to: Path, stage: str, defaults: dict[str, object] | None, prediction: str = "eps") -> Path:
    """Write a stage's EMA weights as a Lightning checkpoint in the reference's key layout; return its path.

    prediction: what the stage was trained to predict, which a state does not say and a build must know.
    """
    conditional = stage == "diffuse"
    state = torch.load(out / f"{stage}.state", weights_only=True)["ema"]
    net = UNet(unet_spec(conditional))
    prefix = "target_network."
    keys = {f"{prefix}decoder.{key}": tensor for key, tensor in layouts.to_checkpoint(net, state).items()}
    keys |= {f"{prefix}{key}": tensor for key, tensor in diffusion_buffers().items()}
    if conditional:
        keys |= {f"vae.{key}": tensor.contiguous() for key, tensor in load_vae(out).state_dict().items()}
    hyper = {
        "name": "avatars" if conditional else "avatars-baseline", "type": "form1" if conditional else "uncond",
        "image_size": 32, "n_heads": HEADS, "variance": "fixedlarge", "prediction": prediction,
    }  # fmt: skip
    if conditional:
        hyper |= {
            "input_res": VAE_SPEC.image_size, "enc_block_str": VAE_SPEC.enc_blocks, "dec_block_str": VAE_SPEC.dec_blocks,
            "enc_channel_str": VAE_SPEC.enc_channels, "dec_channel_str": VAE_SPEC.dec_channels,
        }  # fmt: skip
    if defaults is not None:
        hyper["defaults"] = defaults
    path = to / f"{hyper['name']}.ckpt"
    torch.save({"state_dict": {key: tensor.contiguous() for key, tensor in keys.items()}, "hyper_parameters": hyper}, path)
    return path


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["vae", "diffuse", "baseline", "pack"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that dataset.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the resumable training states")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="where pack writes the checkpoints")
    parser.add_argument("--images", type=int, help="images the stage sees in all (default: the shipped model's)")
    parser.add_argument("--weighting", choices=["min-snr", "few-step", "v"], default="min-snr", help="of the loss over t")
    parser.add_argument(
        "--prediction", choices=["eps", "v"], default="eps", help="what the refiner predicts, when it is trained and packed"
    )
    parser.add_argument("--begin", type=Path, help="UNet weights that a new run starts from")
    parser.add_argument("--batch", type=int, default=32, help="images a step (default: 32)")
    parser.add_argument("--lr", type=float, default=6e-4, help="highest learning rate (default: 6e-4)")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the moving average (default: 0.999)")
    parser.add_argument("--defaults", type=json.loads, help="JSON that pack records as the setting to sample with")
    parser.add_argument("--threads", type=int, help="torch threads; two stages side by side run best with one each")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "vae":
        train_vae(args.data, args.out, Recipe(images=args.images or 90_000, batch=32, lr=1e-3, clip=200.0))
    elif args.stage == "pack":
        for stage, defaults in (("diffuse", args.defaults), ("baseline", None)):
            if (args.out / f"{stage}.state").exists():
                print(pack(args.out, args.to, stage, defaults, args.prediction))
    else:
        recipe = Recipe(
            images=args.images or 115_000, batch=args.batch, lr=args.lr, ema_decay=args.ema, weighting=args.weighting,
            prediction=args.prediction,
        )  # fmt: skip
        train_ddpm(args.data, args.out, recipe, conditional=args.stage == "diffuse", begin=args.begin)


if __name__ == "__main__":
    main()
