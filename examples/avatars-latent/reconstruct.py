"""What the autoencoder makes of faces that it has not seen: a picture, and how far it is from them.

    python examples/avatars-latent/reconstruct.py --data data --out docs/avatars-latent-autoencoder.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import train
from PIL import Image

from examples.avatars import dataset as faces

SHOWN, ENLARGED = 12, 2


@torch.no_grad()
def reconstructed(images: np.ndarray, out: Path) -> np.ndarray:
    """uint8 [N, 64, 64, 3] encoded to the mean and decoded."""
    stage, _ = train.load_autoencoder(out)
    parts = []
    for some in np.array_split(images, -(-len(images) // 50)):
        z, _ = stage.moments(train.scaled(some)).chunk(2, dim=1)
        parts.append(((stage.decode(z).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def main() -> None:
    """Reconstruct the held-out faces, draw the first of them, and print the error of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that dataset.py wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where a state may lie; else the kept weights")
    parser.add_argument("--out", type=Path, default=Path("out/autoencoder.png"))
    args = parser.parse_args()
    images = faces.load(args.data / "heldout.npz").images
    found = reconstructed(images, args.runs)
    error = found.astype(np.float64) - images
    psnr = 10 * np.log10(255**2 / np.square(error).mean(axis=(1, 2, 3)))
    print(f"{len(images)} held-out faces: {np.abs(error).mean():.2f} levels of 255 on average, PSNR {psnr.mean():.1f} dB")
    rows = np.concatenate([np.concatenate(list(row[:SHOWN]), axis=1) for row in (images, found)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rows.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)).save(args.out)


if __name__ == "__main__":
    main()
