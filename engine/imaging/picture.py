"""One picture file as a viewer shows it: upright, in sRGB, what is transparent on a background, 8 bits a channel."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError, did_you_mean
from engine.result import U8

# Tried whatever the suffix. Without those that start other programs (EPS) or know their files by the suffix alone.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "ICO")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels
RGB = tuple[int, int, int]
ORIENTATION = 0x0112  # EXIF's tag
# Pillow's name of the turn that sets a picture of each EXIF orientation upright.
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
# 16-bit gray in a file becomes Pillow's 32-bit mode in these formats, scaled to 16 bits; elsewhere its white is unknown.
SIXTEEN_IN_I = ("PNG", "PPM", "JPEG2000")
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}  # of ICC profiles: Pillow's mode
GAMMA, GAMMA_OFF = 1 / 2.2, 0.05  # a PNG's that is sRGB's, up to the share that viewers leave alone, too
CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # a PNG's in its order: sRGB's white, red, green, blue
PREVIEW = (254, 50706)  # TIFF's NewSubfileType, where 1 says "of a larger picture", and DNGVersion
# What people take for pictures, by how it starts, and what helps.
TO_PNG = "Convert it to PNG."
STRANGERS = (
    (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*", "a picture whose start is damaged", "Copy it again."),
    (b"....ftyp(?:hei|hev|mif|msf)", "HEIC", TO_PNG),
    (b"....ftypavi[fs]", "AVIF", TO_PNG),  # where Pillow was built without it
    (b"....ftyp", "a film", "Save one frame as PNG."),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", TO_PNG),
    (b"8BPS", "a Photoshop file", TO_PNG),
    (b"%PDF|%!PS", "PDF or PostScript", TO_PNG),
    (rb"(?i:\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<svg)", "SVG", TO_PNG),
    (rb"(?i:\s*<(?:!doctype )?html)", "a web page", "Download it again."),
    (b"version https://git-lfs", "a Git LFS pointer", "Fetch the file itself: git lfs pull"),
    (b"\x93NUMPY", "an array", "Give it the suffix .npy."),
    (b"PK\3\4|\x1f\x8b", "an archive", "Unpack it."),
    (rb"\Z", "an empty file", "Copy it again."),
)


def parse_background(text: str) -> RGB:
    """A colour by Pillow's names, or #rrggbb; ArgumentError for others and for one that is transparent itself."""
    from PIL import ImageColor

    try:
        colour = ImageColor.getrgb(text)
    except (ValueError, AttributeError, TypeError) as error:
        hint = did_you_mean(str(text), ImageColor.colormap)
        raise ArgumentError(f"background: found {text!r}, expected a colour name or #rrggbb.{hint}") from error
    if len(colour) == 4 and colour[3] != 255:
        raise ArgumentError(f"background: found {text!r}, expected a colour without transparency; give #rrggbb")
    return colour[0], colour[1], colour[2]


def read_picture(path: Path, channels: int, background: RGB) -> tuple[Any, list[str]]:
    """As `decode_picture`, of a file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ArgumentError(f"{path}: found no regular file, expected a picture; save it to a file first")
        file = open(path, "rb")  # noqa: SIM115  (closed below, where its errors are the picture's no more)
    except (OSError, ValueError) as error:
        raise ArgumentError(_unreadable(str(path), None, error)) from error
    with file:
        return decode_picture(file, str(path), channels, background)


def decode_picture(
    file: BinaryIO,
    name: str,
    channels: int,
    background: RGB,
    *,
    formats: Sequence[str] = FORMATS,
    max_pixels: int | None = None,
) -> tuple[Any, list[str]]:
    """A picture as a Pillow image of L, RGB or RGBA, and what of it was dropped; ArgumentError where that is impossible.

    name        what messages call it
    channels    1 for luminance, 3 for colour, 4 for colour and alpha. With 1 and 3 what is transparent shows `background`
    formats     of FORMATS, those that are taken
    max_pixels  the most of a picture that is decoded; None for what Pillow takes to be safe
    """
    from PIL import Image

    notes: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            Image.init()
            with Image.open(file, formats=[known for known in formats if known in Image.OPEN]) as opened:
                if max_pixels is not None and opened.width * opened.height > max_pixels:
                    raise ArgumentError(
                        f"{name}: found a picture of {opened.width} x {opened.height}, expected at most {max_pixels:,} "
                        "pixels; make it smaller"
                    )
                picture, raw = _first_frame(opened, name, notes)
                colour, alpha = _layers(picture, raw, opened.format or "", name, notes)
                colour = _in_srgb(colour, opened.info, notes)
        said = [warning for warning in said if warning.category is not Image.DecompressionBombWarning]
        notes += [" ".join(str(warning.message).split()) for warning in said]
    except ArgumentError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever a damaged file makes them meet
        raise ArgumentError(_unreadable(name, file, error, formats)) from error
    return _composed(colour, alpha, channels, background, notes), notes


def _unreadable(name: str, file: BinaryIO | None, error: Exception, formats: Sequence[str] = FORMATS) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        what = f"more pixels than are safe to decode ({error})" if str(error) else "more pixels than there is memory for"
        return f"{name} cannot be read as an image: found {what}. Make it smaller."
    if isinstance(error, UnidentifiedImageError) and file is not None:
        file.seek(0)
        head = file.read(1000)
        known = ((what, cure) for start, what, cure in STRANGERS if re.match(start, head, re.DOTALL))
        what, cure = next(known, ("an unknown format", TO_PNG))
        there = ", ".join(known for known in formats if known in Image.OPEN)
        return f"{name} cannot be read as an image: found {what}, expected one of the formats {there}. {cure}"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{name} cannot be read as an image: {reason}. Export or copy it again."


def _first_frame(opened: Any, name: str, notes: list[str]) -> tuple[Any, str]:
    """The first frame, decoded and upright, and how its samples lie in the file (Pillow's raw mode)."""
    from PIL import Image

    frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
        if getattr(opened, "default_image", False):
            opened.seek(1)  # the picture before it is for programs that show no animation
    tags = getattr(opened, "tag_v2", {})
    if PREVIEW[1] in tags or tags.get(PREVIEW[0]) == 1:
        raise ArgumentError(
            f"{name}: found a camera's raw file, of which just the preview can be read, expected a picture; "
            "develop it and save it as PNG"
        )
    arguments = opened.tile[0][3] if opened.tile else ""
    raw = arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""
    if opened.format == "PPM" and opened.mode == "RGB" and not isinstance(arguments, str) and arguments[-1] > 255:
        raw += ";16"
    opened.load()
    try:
        orientation = opened.getexif().get(ORIENTATION)
    except Exception:  # as above; viewers show a picture with damaged EXIF data all the same
        notes.append("its EXIF data is damaged, so that it may lie on its side")
        orientation = None
    turn = TURNS.get(orientation)
    return opened.transpose(Image.Transpose[turn]) if turn else opened, raw


def _layers(picture: Any, raw: str, format: str, name: str, notes: list[str]) -> tuple[Any, Any | None]:
    """The colours (L, RGB, CMYK or LAB) and alpha (L), None for a picture without."""
    key = picture.info.get("transparency")
    mode, deep = picture.mode, ";16" in raw and not raw.startswith("BGR")  # BGR;16 has 16 bits for all three
    if mode in ("La", "LA"):
        both = picture.convert("LA")
        return both.getchannel("L"), both.getchannel("A")
    if mode in ("RGBA", "RGBa", "PA") or (mode == "P" and (key is not None or picture.palette.mode.endswith("A"))):
        if deep:
            notes.append("16 bits reduced to 8")
        whole = picture.convert("RGBA")
        return whole.convert("RGB"), whole.getchannel("A")
    if mode.startswith("I;16") or (mode == "I" and format in SIXTEEN_IN_I):
        values = np.asarray(picture).astype(np.uint32)
        white = 4095 if "12" in raw else 65535
        notes.append("16 bits reduced to 8")
        return _gray(((values * 255 + white // 2) // white).astype(np.uint8)), _alpha_of(values[..., None], key)
    if mode in ("I", "F"):
        kind = "whole" if mode == "I" else "floating-point"
        raise ArgumentError(
            f"{name}: found a picture of 32-bit {kind} numbers, whose white is not known, expected 8 or 16 bits; save it so"
        )
    if deep and mode == "RGB":
        notes.append("16 bits reduced to 8")
        key = None if key is None else tuple(value >> 8 for value in key)
    elif raw in ("L;2", "L;4") and key is not None:
        key = key * (85 if raw == "L;2" else 17)  # Pillow spreads the samples over 0 .. 255, and the key not
    flat = picture if mode in ("L", "RGB", "CMYK", "LAB") else picture.convert("L" if mode == "1" else "RGB")
    pixels = np.asarray(flat)
    return flat, _alpha_of(pixels if pixels.ndim == 3 else pixels[..., None], key)


def _alpha_of(pixels: npt.NDArray[Any], key: Any) -> Any | None:
    """The alpha that a PNG's transparent colour stands for."""
    return None if key is None else _gray(np.where((pixels == np.array(key)).all(-1), 0, 255).astype(np.uint8))


def _gray(array: U8) -> Any:
    from PIL import Image

    return Image.fromarray(array)


def _in_srgb(colour: Any, info: dict[str, Any], notes: list[str]) -> Any:
    """L or RGB in sRGB, by what the file says of its colours; a profile that cannot be used is noted, and sRGB assumed."""
    profile = info.get("icc_profile")
    if not profile and "srgb" not in info:
        colour = _without_gamma(colour, info, notes)
    try:
        from PIL import ImageCms

        srgb = ImageCms.createProfile("sRGB")
    except ImportError:  # a Pillow that was built without LittleCMS
        if profile or colour.mode == "LAB":
            notes.append("its colour profile is not applied, as this Pillow lacks LittleCMS")
        return colour if colour.mode in ("L", "RGB") else colour.convert("RGB")
    found: Any = None
    if profile:
        try:
            found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = SPACES.get(found.profile.xcolor_space)
            if space == "RGB" and colour.mode == "L":
                colour = colour.convert("RGB")
            if space == colour.mode == "RGB" and ImageCms.getProfileDescription(found).startswith("sRGB"):
                return colour
            if space == colour.mode:
                return ImageCms.profileToProfile(colour, found, srgb, outputMode="RGB")
        except (OSError, ValueError, ImageCms.PyCMSError):
            found = None
        notes.append("its colour profile cannot be used, so that it is taken as sRGB")
    if colour.mode == "LAB":
        return ImageCms.profileToProfile(colour, ImageCms.createProfile("LAB"), srgb, outputMode="RGB")
    return colour if colour.mode in ("L", "RGB") else colour.convert("RGB")


def _without_gamma(colour: Any, info: dict[str, Any], notes: list[str]) -> Any:
    """A PNG's samples by its gamma (gAMA) as those of sRGB, as browsers show them; its primaries (cHRM) are left alone."""
    chromaticities = info.get("chromaticity", CHROMATICITIES)
    if not np.allclose(chromaticities, CHROMATICITIES, atol=0.01):
        notes.append("its primaries are taken as those of sRGB")
    gamma = info.get("gamma") or GAMMA
    if not isinstance(gamma, float) or not 0.01 < gamma < 100 or abs(gamma / GAMMA - 1) < GAMMA_OFF:
        return colour
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    notes.append(f"its gamma of {gamma:.3g} became that of sRGB")
    return colour.point(np.rint(255 * shown).astype(int).tolist() * len(colour.getbands()))


def _composed(colour: Any, alpha: Any | None, channels: int, background: RGB, notes: list[str]) -> Any:
    """Colours and alpha in the mode of so many channels."""
    from PIL import Image

    if channels == 4:
        whole = colour.convert("RGBA")
        if alpha is not None:
            whole.putalpha(alpha)
        return whole
    if alpha is not None and alpha.getextrema()[0] < 255:
        canvas = Image.new("RGB", colour.size, background)
        canvas.paste(colour.convert("RGB"), mask=alpha)
        colour = canvas
        notes.append("its transparent parts show the background #{:02x}{:02x}{:02x}".format(*background))
    if channels == 1 and colour.mode != "L":
        pixels = np.asarray(colour)
        if (pixels != pixels[..., :1]).any():
            notes.append("its colours became luminance")
    return colour if colour.mode == MODES[channels] else colour.convert(MODES[channels])
