"""Images as frames of an animation: GIF or WebP, as Pillow writes them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from engine.errors import ArgumentError
from engine.places import check_file, unwritable
from engine.result import U8

ANIMATED = (".gif", ".webp")
VIDEO = (".mp4", ".mov", ".mkv", ".webm", ".avi")


def check_animation(path: str | os.PathLike[str]) -> Path:
    """The place to write an animation to; ArgumentError where it is none, or a video, which Pillow does not write."""
    suffix = Path(path).suffix.lower()
    if suffix in VIDEO:
        gif = os.fspath(Path(path).with_suffix(".gif"))
        convert = shlex.join(["ffmpeg", "-i", gif, "-pix_fmt", "yuv420p", os.fspath(path)])
        raise ArgumentError(
            f"{path}: found a video, expected {' or '.join(ANIMATED)}, which Pillow writes; write {gif}, "
            f"and convert it with: {convert}"
        )
    return check_file(path, suffixes=ANIMATED)


def save_animation(path: str | os.PathLike[str], images: U8, fps: float) -> Path:
    """Write uint8 [N, H, W, C] as an animation that repeats for ever; a WebP without loss."""
    from PIL import Image

    target = check_animation(path)
    frames = [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in images]
    lossless: dict[str, Any] = {"lossless": True} if target.suffix.lower() == ".webp" else {}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(target, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, **lossless)
    except OSError as error:
        raise unwritable(target, error) from error
    return target
