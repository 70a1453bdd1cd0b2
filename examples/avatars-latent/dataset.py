"""The avatars' faces at 64x64 with a sentence about each, from the seeds of the faces of 32x32.

A sentence depends on its face's seed and number alone, as the face does.

    python examples/avatars-latent/dataset.py --out DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import prompts

from examples.avatars import dataset as faces

SIZE = 64


def face(attributes: np.ndarray) -> dict[str, str]:
    """A face's K attribute values by name."""
    return {name: names[value] for (name, names), value in zip(faces.ATTRIBUTES.items(), attributes, strict=True)}


def sentence(attributes: np.ndarray, seed: int, index: int) -> str:
    """The sentence of face ``index`` of the set ``seed``, whose K attribute values are given."""
    return prompts.describe(face(attributes), np.random.default_rng((seed, index, 1)))


def build(path: Path, count: int, seed: int, workers: int | None = None) -> None:
    """Write a set into the .npz ``path``: images uint8 [count, 64, 64, 3], tokens int64 [count, L], attributes, and told
    bool [count, A], whether the sentence says the attributes in told_names [A]; and the sentences beside it, a line each."""
    images, attributes = faces.draw(count, seed, workers, SIZE, title=path.name)
    sentences = [sentence(values, seed, index) for index, values in enumerate(attributes)]
    tokens = np.array([prompts.encode(said) for said in sentences], dtype=np.int64)
    named = [prompts.told(face(values), said) for values, said in zip(attributes, sentences, strict=True)]
    told = np.array([[name in names for name in prompts.TOLD] for names in named])
    faces.save(path, images, attributes, seed, tokens=tokens, told=told, told_names=np.array(prompts.TOLD))
    path.with_suffix(".txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")


def main() -> None:
    """Build the training and the held-out set and a preview."""
    parser = argparse.ArgumentParser(description="Make the data set of faces with prompts.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train", type=int, default=24_000, help="faces to train on (default: 24000)")
    parser.add_argument("--heldout", type=int, default=1_000, help="faces to hold out (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)  # found out now where it cannot be
    build(options.out / "heldout.npz", options.heldout, options.seed + faces.HELDOUT_SEED_OFFSET, options.workers)
    build(options.out / "train.npz", options.train, options.seed, options.workers)
    shown = faces.load(options.out / "heldout.npz").images
    faces.save_preview(options.out / "preview.png", shown, scale=2)


if __name__ == "__main__":
    main()
