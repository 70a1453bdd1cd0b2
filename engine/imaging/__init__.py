"""Images on disk: pictures as people have them in, PNG grids, folders of PNG files, .npy arrays and animations out."""

from __future__ import annotations

from engine.imaging.animate import check_animation, save_animation
from engine.imaging.fit import FITS
from engine.imaging.grid import grid
from engine.imaging.read import SUFFIXES, Loaded, decode_images, load_images
from engine.imaging.write import check_grid, check_target, file_names, grid_bytes, kind_of, png_bytes, save_images

__all__ = [
    "FITS", "SUFFIXES", "Loaded", "check_animation", "check_grid", "check_target", "decode_images", "file_names", "grid",
    "grid_bytes", "kind_of", "load_images", "png_bytes", "save_animation", "save_images",
]  # fmt: skip
