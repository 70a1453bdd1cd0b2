"""Bundles that the tests of cascades are made of."""

from __future__ import annotations

from pathlib import Path

from tests import toy
from tests.manifests import edit
from tests.toy_family import build_family


def build_stages(folder: Path) -> Path:
    """faces: 8 x 8 images; 12 x 16 of a picture: large, and told, which hears of the noise level; of an image: latent."""
    toy.build_bundle(folder / "faces.bundle")
    build_family(folder / "large.bundle", pictures=("photo",), encodes=("state_encoder",))
    build_family(folder / "told.bundle", pictures=("photo",), encodes=("state_encoder",), level="int64")
    build_family(folder / "latent.bundle", encodes=("state_encoder",))
    return folder


def build_pair(folder: Path) -> tuple[Path, Path]:
    """faces and latent, of two checkpoints, which are to be named."""
    toy.build_bundle(folder / "faces.bundle")
    build_family(folder / "latent.bundle", encodes=("state_encoder",))
    edit(folder / "latent.bundle", "source.sha256", "5" * 64)
    return folder / "faces.bundle", folder / "latent.bundle"
