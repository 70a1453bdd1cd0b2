"""Damaged pictures are read or refused with our own errors: `python -m tests.fuzz.fuzz_images --help`.

Each seed is one case, the same on every machine: `--replay SEED` runs it alone and says what was changed. A case that takes
more than TIME or brings the process above MEMORY is a fault as well.
"""

from __future__ import annotations

import functools
import io
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from engine.errors import ArgumentError
from engine.imaging import FITS, load_images
from tests.fuzz import seeds

TIME = 60.0  # seconds of this process's own: a picture just below the limit takes a few
MEMORY = 4 << 20  # KiB, as Linux counts the peak; such a picture of 4 channels is 0.7 GB, and is held a few times
INTERESTING = (0, 1, 2, 3, 16, 255, 256, 13_000, 32_767, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
SUFFIXES = (".png", ".jpg", ".gif", ".tif", ".bmp", ".webp", ".ppm", ".ico", ".heic", "")
# What is read as it is, before any damage: name of the case, mode, Pillow's format, options of its save.
VALID: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    *((f"PNG {mode}", mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("PNG tRNS", "P", "PNG", {"transparency": bytes(range(9))}),
    ("PNG colour key", "RGB", "PNG", {"transparency": (255, 0, 0)}),
    ("PNG text", "RGB", "PNG", {"pnginfo": "text"}),
    ("APNG", "RGBA", "PNG", {"frames": 3}),
    ("APNG default", "RGB", "PNG", {"frames": 3, "default_image": True}),
    *((f"JPEG {mode}", mode, "JPEG", {}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG progressive", "RGB", "JPEG", {"progressive": True}),
    ("MPO", "RGB", "MPO", {"frames": 2}),
    *((f"TIFF {mode}", mode, "TIFF", {}) for mode in ("1", "P", "L", "LA", "RGBA", "I;16", "I;16B", "CMYK", "YCbCr", "LAB")),
    *((f"TIFF {how}", "RGB", "TIFF", {"compression": how}) for how in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
    ("TIFF group4", "1", "TIFF", {"compression": "group4"}),
    ("TIFF pages", "RGB", "TIFF", {"frames": 3}),
    ("BigTIFF", "RGB", "TIFF", {"big_tiff": True}),
    ("GIF", "P", "GIF", {}),
    ("GIF animated", "P", "GIF", {"frames": 3, "transparency": 0, "disposal": 2}),
    ("WebP", "RGB", "WEBP", {}),
    ("WebP lossless", "RGBA", "WEBP", {"lossless": True}),
    ("WebP animated", "RGBA", "WEBP", {"frames": 3}),
    *((f"BMP {mode}", mode, "BMP", {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *((f"PPM {mode}", mode, "PPM", {}) for mode in ("1", "L", "RGB", "I;16")),
    ("ICO", "RGBA", "ICO", {}),
    ("QOI", "RGBA", "QOI", {}),
    ("JPEG 2000", "RGBA", "JPEG2000", {}),
)  # fmt: skip
# What is refused as it is: numbers without a white, and formats that are not read.
REFUSED: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    *((f"TIFF {mode}", mode, "TIFF", {}) for mode in ("F", "I")),
    *((name, "RGB", name, {}) for name in ("TGA", "PCX", "SGI")),
)
WITH_EXIF = ("PNG", "JPEG", "WEBP", "TIFF")
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E], EXIF[0x8769] = 6, "a description", {0x9003: "2026:01:01 00:00:00"}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@functools.cache
def gradient(mode: str, turn: int = 0) -> Image.Image:
    """23x17 pixels of this mode, with everything from black to white."""
    ramp = np.linspace(0, 255, 23 * 17, dtype=np.float32).reshape(17, 23)
    planes = np.stack([np.roll(ramp, 5 * i + turn) for i in range(4)], -1).astype(np.uint8)
    colour = Image.fromarray(planes)
    if mode in ("F", "I"):
        return Image.fromarray(ramp.astype({"F": np.float32, "I": np.int32}[mode]))
    if mode.startswith("I;16"):
        return Image.frombytes(mode, (23, 17), (ramp * 257).astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    if mode == "LAB":
        return Image.frombytes("LAB", (23, 17), planes[..., :3].tobytes())
    return colour if mode == "RGBA" else colour.convert("RGB").convert(mode)


def encoded(mode: str, format: str, options: dict[str, Any], exif: bytes = b"", profile: bytes = b"") -> bytes:
    """A file of this format; `frames` among the options makes it move."""
    from PIL.PngImagePlugin import PngInfo

    options = dict(options)
    if options.pop("pnginfo", None):
        options["pnginfo"] = info = PngInfo()
        info.add_text("Comment", "x" * 999, zip=True)
        info.add_itxt("Title", "é" * 99, zip=True)
    if frames := options.pop("frames", 0):
        others = [gradient(mode, i + 1).copy() for i in range(frames - 1)]
        options |= {"save_all": True, "append_images": others, "duration": 40}
    options |= ({"exif": exif} if exif else {}) | ({"icc_profile": profile} if profile else {})
    buffer = io.BytesIO()  # copies: saving one leaves marks on it
    gradient(mode).copy().save(buffer, format=format, **options)
    return buffer.getvalue()


def flipped(rng: random.Random, data: bytes) -> bytes:
    """One to eight bits changed, half of them where the structure is."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(rng.choice([min(len(data), 64), len(data)]))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(rng: random.Random, data: bytes) -> bytes:
    """Cut at the end, in the middle, or at the start."""
    start, stop = sorted(rng.sample(range(len(data) + 1), 2))
    return rng.choice([data[:stop], data[:start] + data[stop:], data[start:]])


def renumbered(rng: random.Random, data: bytes) -> bytes:
    """One to three numbers of 1, 2, 4 or 8 bytes, such as lengths, sizes and offsets, replaced by others."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        width, near = rng.choice([1, 2, 2, 4, 4, 8]), rng.choice([64, 300, len(data)])
        if len(changed) >= width:
            at = rng.randrange(min(near, len(changed) - width + 1))
            value = rng.choice(INTERESTING) & (1 << 8 * width) - 1
            changed[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
    return bytes(changed)


def rechunked(rng: random.Random, data: bytes) -> bytes:
    """A PNG's chunks dropped, doubled, moved, renamed or changed within, checksums right; another file renumbered."""
    if not data.startswith(b"\x89PNG"):
        return renumbered(rng, data)
    chunks, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.randint(1, 3)):
        index, action = rng.randrange(len(chunks)), rng.randrange(6)
        name, content = chunks[index]
        if action == 0:
            chunks[index : index + 1] = []
        elif action == 1:
            chunks.insert(rng.randrange(len(chunks)), chunks[index])
        elif action == 2:
            names = b"IHDR PLTE tRNS gAMA cHRM sRGB iCCP zTXt iTXt eXIf acTL fcTL fdAT pHYs IDAT IEND quux".split()
            chunks[index] = (rng.choice(names), content)
        elif content:
            chunks[index] = (name, rng.choice([flipped, truncated, renumbered])(rng, content))
        if not chunks:
            break
    rows = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return data[:8] + b"".join(rows)


def enlarged(rng: random.Random, data: bytes) -> bytes:
    """Width and height, wherever they are said, become huge; a PNG's checksum is right again."""
    size = rng.choices([1, 23, 2_000, 13_000, 60_000, 10**8, 2**31 - 1], k=2)
    for form in (">II", "<II", ">HH", "<HH"):
        for old in ((23, 17), (17, 23)):
            limit = 65_535 if form.endswith("HH") else 2**32 - 1
            data = data.replace(struct.pack(form, *old), struct.pack(form, *(min(side, limit) for side in size)))
    data = data.replace(b"23 17", b"%d %d" % tuple(size))
    for tag, side in ((256, size[0]), (257, size[1])):  # a TIFF's entries
        data = data.replace(struct.pack("<HHI", tag, 4, 1), struct.pack("<HHI", tag, 4, 1) + struct.pack("<I", side), 1)
    if data.startswith(b"\x89PNG"):
        data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    return data


DAMAGE: tuple[Callable[[random.Random, bytes], bytes], ...] = (flipped, truncated, renumbered, rechunked, enlarged)


def made(rng: random.Random) -> tuple[str, str, bytes]:
    """What it is, what was done to it, and the file's bytes."""
    name, mode, format, options = rng.choice((*VALID, *VALID, *REFUSED))
    exif = profile = b""
    words = []
    if format in WITH_EXIF and "compression" not in options and rng.random() < 0.4:
        exif = EXIF.tobytes()
        if rng.random() < 0.5 and format != "TIFF":  # where it is no block of its own
            exif = exif[:6] + rng.choice(DAMAGE[:3])(rng, exif[6:])
            words.append("EXIF")
    if format in WITH_EXIF and rng.random() < 0.3:
        profile = PROFILE
        if rng.random() < 0.7:
            profile = rng.choice(DAMAGE[:3])(rng, profile)
            words.append("ICC")
    data = encoded(mode, format, options, exif, profile)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        damage = rng.choice(DAMAGE)
        if len(data) > 1:
            data = damage(rng, data)
            words.append(damage.__name__)
    return name, " ".join(words), data


def one(seed: int, folder: Path, show: bool) -> str:
    """One case: an image of the size that was asked for, or refused in printable words."""
    rng = random.Random(seed)
    name, words, data = made(rng)
    shape = (rng.choice([1, 3, 4]), rng.randint(1, 9), rng.randint(1, 9))
    options = {"fit": rng.choice(FITS), "background": rng.choice(["white", "#010203"])}
    path = folder / f"case{rng.choice(SUFFIXES)}"
    path.write_bytes(data)
    if show:
        sys.stderr.write(f"{words or 'nothing'} on {name}, {len(data)} bytes, as {path.suffix}, {shape}, {options}\n")
    begun = time.process_time()
    try:
        loaded = load_images([path], shape, **options)
        assert (loaded.images.dtype, loaded.images.shape) == (np.uint8, (1, shape[1], shape[2], shape[0]))
        said, outcome = loaded.notes, "read"
    except ArgumentError as error:
        said, outcome = [str(error)], "refused"
    finally:
        path.unlink()
    assert all(text.isprintable() and len(text) < 2000 for text in said), said
    assert words or (outcome == "refused") == (name in {row[0] for row in REFUSED}), f"{name}, whole: {outcome}, {said}"
    assert time.process_time() - begun < TIME, "it takes too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEMORY, "it takes too much memory"
    return f"{'damaged' if words else 'whole'} {outcome}"


def main() -> None:
    options = seeds.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds.run(options, lambda seed, show: one(seed, Path(folder), show))


if __name__ == "__main__":
    main()
