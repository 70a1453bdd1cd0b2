"""A classifier of noised faces, to guide the models that know no labels: what a face shows, at every noise level.

    python examples/avatars/dataset.py    --out data
    python examples/avatars/classifier.py --data data --out runs          forty minutes of one processor, resumable
    python examples/avatars/classifier.py --data data --out runs --pack   examples/avatars/avatars-classifier.pt

The network is the encoder of guided-diffusion, and the file a plain state dict under its keys, as its own classifiers are:
`diffusevae build avatars-baseline.ckpt --guide avatars-classifier.pt` reads it. One class is one combination of hair colour,
glasses and beard, so that one softmax speaks of all three: class_of and attributes_of say which.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.avatars import dataset
from examples.avatars.train import load_images, schedule
from examples.avatars.training import Recipe, Run, autocast, batches, report
from export.models.openai.classifier import ATTENTION, Classifier, ClassifierSpec
from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import ResBlock

CLASSED = ("hair_color", "glasses", "beard")  # the last one counts fastest in the number of a class
COUNTS = tuple(len(dataset.ATTRIBUTES[name]) for name in CLASSED)
SIDE = 32
SPEC = ClassifierSpec(
    OpenAIUNetSpec(
        in_channels=3, out_channels=math.prod(COUNTS), model_channels=32, channel_mult=(1, 2, 4), num_res_blocks=1,
        attention_factors=(4,), num_heads=None, num_head_channels=32, scale_shift=True, resample_blocks=True,
    ),
    ATTENTION,
    (SIDE, SIDE),
)  # fmt: skip
SHIPPED = Path(__file__).with_name("avatars-classifier.pt")


def class_of(**names: str) -> int:
    """The class of hair_color="pink", glasses="none", beard="beard"; KeyError or ValueError for what is not drawn."""
    return int(np.ravel_multi_index([dataset.ATTRIBUTES[name].index(names[name]) for name in CLASSED], COUNTS))


def attributes_of(label: int) -> dict[str, str]:
    """The other way round."""
    return {
        name: dataset.ATTRIBUTES[name][int(value)]
        for name, value in zip(CLASSED, np.unravel_index(label, COUNTS), strict=True)
    }


def labels(faces: dataset.AvatarSet) -> torch.Tensor:
    """The class of every face, int64 [N]."""
    columns = [faces.attributes[:, faces.attribute_names.index(name)] for name in CLASSED]
    return torch.from_numpy(np.ravel_multi_index(columns, COUNTS).astype(np.int64))


@torch.no_grad()
def begin(net: Classifier) -> None:
    """Every residual branch begins as an identity, as guided-diffusion's do; positions are small and random."""
    for module in net.modules():
        if isinstance(module, ResBlock):
            last = module.out_layers[3]
            assert isinstance(last, torch.nn.Conv2d)
            last.weight.zero_()
    pool = net.out[2]
    positions = pool.positional_embedding
    assert isinstance(positions, torch.nn.Parameter)
    torch.nn.init.normal_(positions, std=positions.shape[0] ** -0.5)


def train(data: Path, out: Path, recipe: Recipe) -> None:
    """Minimise the cross entropy of x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, t uniform."""
    faces = dataset.load(data / "train.npz")
    images, classes = load_images(data / "train.npz") * 2 - 1, labels(faces)
    _, alpha_bar = schedule()
    signal, noise_level = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    net = Classifier(SPEC)
    begin(net)
    run = Run(net, recipe, out / "classifier.state", seed=5)
    record = report("classifier")
    for index in batches(run, len(images)):
        t = torch.randint(len(signal), (len(index),), generator=run.generator)
        x0 = images[index]
        x0 = torch.where((torch.rand(len(index), generator=run.generator) < 0.5)[:, None, None, None], x0.flip(3), x0)
        eps = torch.randn(x0.shape, generator=run.generator)
        x_t = signal[t, None, None, None] * x0 + noise_level[t, None, None, None] * eps
        with autocast():
            logits = run.net(x_t.contiguous(memory_format=torch.channels_last), run.net.timestep_rows(t))
        loss = F.cross_entropy(logits.float(), classes[index])
        run.update(loss)
        record(loss.item())


@torch.no_grad()
def accuracy(net: Classifier, faces: dataset.AvatarSet, t: int, seed: int = 0) -> dict[str, float]:
    """The share of faces whose attribute is the likeliest one of x_t, of each attribute by itself."""
    images = torch.from_numpy(faces.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    _, alpha_bar = schedule()
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    x_t = alpha_bar[t].sqrt().float() * images + (1 - alpha_bar[t]).sqrt().float() * eps
    row = net.timestep_rows(torch.tensor([t]))
    p = torch.cat([net(part, row).softmax(-1) for part in x_t.split(200)]).unflatten(1, COUNTS)
    truth = np.unravel_index(labels(faces).numpy(), COUNTS)
    found = {}
    for axis, name in enumerate(CLASSED):
        others = [other for other in (1, 2, 3) if other != axis + 1]
        found[name] = float((p.sum(others).argmax(1).numpy() == truth[axis]).mean())
    return found


def pack(data: Path, out: Path) -> None:
    """Write the EMA weights as guided-diffusion's state dict, and say how well they know held-out faces."""
    net = Classifier(SPEC).eval()
    net.load_state_dict(torch.load(out / "classifier.state", weights_only=True)["ema"])
    torch.save({key: tensor.contiguous() for key, tensor in net.state_dict().items()}, SHIPPED)
    print(SHIPPED)
    heldout = dataset.load(data / "heldout.npz")
    for t in (0, 100, 250, 500, 750):
        print(f"t {t:3d}: " + ", ".join(f"{name} {share:.1%}" for name, share in accuracy(net, heldout, t).items()))


def main() -> None:
    """Parse the command line; train, or write what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that dataset.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the resumable state")
    parser.add_argument("--images", type=int, default=240_000, help="images seen in all (default: 240,000)")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--pack", action="store_true", help="write the shipped file from the state instead of training")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.pack:
        pack(args.data, args.out)
    else:
        train(args.data, args.out, Recipe(images=args.images, batch=64, lr=6e-4, ema_decay=0.999))


if __name__ == "__main__":
    main()
