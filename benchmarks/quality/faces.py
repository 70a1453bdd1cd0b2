"""The sets of faces that distances are measured to: read from a file, or rendered once where there is none."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from benchmarks.machine import BenchmarkError

U8 = npt.NDArray[np.uint8]
RENDERED = 4_000  # faces of either set where no file is given, from the seeds of examples/avatars/dataset.py


def load_faces(path: Path) -> U8:
    """The images of a set that examples/avatars/dataset.py wrote, uint8 [N, 32, 32, 3]."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            images: U8 = stored["images"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BenchmarkError(
            f"{path}: found what cannot be read ({error}), expected an .npz with images; "
            f"make it with: python examples/avatars/dataset.py --out {path.parent}"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 4:
        raise BenchmarkError(
            f"{path}: found {images.dtype} {list(images.shape)}, expected at least 4 images, "
            f"uint8 [N, H, W, 3]; give another file"
        )
    return images


def held_out(path: Path, out: Path) -> Path:
    """`path` itself, or where it does not exist the same faces rendered once into the folder `out`, with
    training faces beside."""
    if path.exists():
        return path
    rendered = out / "heldout.npz"
    try:
        from examples.avatars import dataset
    except ImportError as error:
        raise BenchmarkError(
            f"{path}: found no held-out images and no renderer ({error}), expected either; give --heldout, "
            f"or install the renderer with: pip install 'diffusevae-engine[benchmark]'"
        ) from error
    for target, seed in ((rendered, dataset.HELDOUT_SEED_OFFSET), (out / "train.npz", 0)):
        if not target.exists():
            click.echo(f"{path} does not exist: rendering {RENDERED} faces of seed {seed} into {target}")
            dataset.build(target, RENDERED, seed)
    return rendered
