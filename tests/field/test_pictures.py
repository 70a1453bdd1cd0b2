"""Pictures as people have them: each line a file, and the pixels that a viewer shows of it. See README.md for a new line."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from engine.errors import ArgumentError
from engine.imaging import load_images
from tests.samplers import SIZE, bundle
from tests.unit.test_cli import HERE, run, succeed

COLOURS = {
    "R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "K": (0, 0, 0), "W": (255, 255, 255), "y": (255, 255, 0),
    "8": (128, 128, 128), "4": (100, 100, 100), "5": (85, 85, 85), "r": (255, 127, 127), "l": (76, 76, 76),
}  # fmt: skip
Make = Callable[[Path], Path]


def picture(letters: str, mode: str = "RGB", times: int = 1) -> Image.Image:
    """ "RG/BK" as a picture, each letter a square of `times` pixels."""
    rows = np.array([[COLOURS[letter] for letter in row] for row in letters.split("/")], np.uint8)
    return Image.fromarray(rows.repeat(times, 0).repeat(times, 1)).convert(mode)


def file(name: str, content: Image.Image | bytes, **options: Any) -> Make:
    """What writes a picture, or bytes, under a name."""

    def make(folder: Path) -> Path:
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content.save(folder / name, **options)
        return folder / name

    return make


def held(orientation: int) -> bytes:
    """The EXIF data of a camera that is held otherwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def turned(name: str, orientation: int, times: int = 1, **options: Any) -> Make:
    """The file that such a camera writes."""
    return file(name, picture("RG/BK", times=times), exif=held(orientation), **options)


def veiled(letters: str, alpha: int) -> Image.Image:
    """RGBA with one alpha everywhere."""
    image = picture(letters, "RGBA")
    image.putalpha(alpha)
    return image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth: int, kind: int, rows: bytes, trns: bytes = b"", size: tuple[int, int] = (2, 2)) -> bytes:
    """A PNG of raw rows, for what Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    key = chunk(b"tRNS", trns) if trns else b""
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def told(data: bytes, **chunks: bytes) -> bytes:
    """A PNG with further chunks before its pixels."""
    return data[:33] + b"".join(chunk(name.encode(), content) for name, content in chunks.items()) + data[33:]


def swapped_profile() -> bytes:
    """An ICC profile (gamma 2.2) whose red is sRGB's blue and the other way round, as no program would guess it."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0233, 0)
    title = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"swap\0" + bytes(78)
    tags = {b"desc": title, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(0.9642, 1, 0.8249)}
    tags |= {b"rXYZ": xyz(*blue), b"gXYZ": xyz(*green), b"bXYZ": xyz(*red), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return header.ljust(68, b"\0") + xyz(0.9642, 1, 0.8249)[8:] + bytes(48) + table + body


def lab(letters: str) -> Image.Image:
    return ImageCms.profileToProfile(
        picture(letters), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )


MPO = {"save_all": True, "append_images": [picture("WW/WW")], "quality": 100}  # Pillow leaves marks on what is appended
RGBK, INDEXED = picture("RG/BK"), picture("RG/BK").quantize(4)
GRAY_55 = png(8, 0, b"\0\0\x37\0\xff\x37")  # a share of 0.216 of white, which sRGB stores as 128
LINEAR, WIDE = struct.pack(">I", 100_000), struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
RED_16 = (b"\0" + b"\xff\xff\0\0\0\0" * 2) * 2
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SIXTEEN = Image.fromarray(np.array([[0, 25700], [32896, 65535]], np.uint16))  # K, 4, 8, W
MOVING = {"save_all": True, "append_images": [picture("WW/WW")], "duration": 100}
TWO = "the first of 2 frames"
ON_WHITE = "its transparent parts show the background #ffffff"
DEEP = "16 bits reduced to 8"

# what it is: (the file, the pixels, what the note says, how far off a channel may be, options, channels of the model)
SHOWN: dict[str, tuple[Any, ...]] = {
    "as it is": (file("a.png", RGBK), "RG/BK"),
    **{
        f"EXIF orientation {number}": (turned("a.png", number), shown)
        for number, shown in enumerate(("RG/BK", "GR/KB", "KB/GR", "BK/RG", "RB/GK", "BR/KG", "KG/BR", "GK/RB"), 1)
    },
    "EXIF orientation that does not exist": (turned("a.png", 9), "RG/BK"),
    "EXIF in a JPEG": (turned("a.jpg", 6, 16, quality=100, subsampling=0), "BR/KG", "32x32 resized to 2x2", 3),
    "EXIF in a WebP": (turned("a.webp", 8, lossless=True), "GK/RB"),
    "EXIF in a TIFF": (turned("a.tif", 3), "KB/GR"),
    "EXIF that ends early": (file("a.png", RGBK, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "RG/BK", "Corrupt EXIF data"),
    "EXIF that is none": (file("a.png", RGBK, exif=b"Exif\0\0nonsense"), "RG/BK", "its EXIF data is damaged"),
    "transparent over red": (file("a.png", veiled("RR/RR", 0)), "WW/WW", ON_WHITE),
    "half transparent": (file("a.png", veiled("RR/RR", 128)), "rr/rr", ON_WHITE, 1),
    "opaque alpha": (file("a.png", veiled("RG/BK", 255)), "RG/BK"),
    "transparent, another background": (file("a.png", veiled("RR/RR", 0)), "GG/GG", "#00ff00", 0, {"background": "lime"}),
    "transparent, background in digits": (file("a.png", veiled("RR/RR", 0)), "yy/yy", "#ffff00", 0, {"background": "#ff0"}),
    "transparent and turned": (file("a.png", RGBK, transparency=(255, 0, 0), exif=held(3)), "KB/GW", ON_WHITE),
    "palette": (file("a.png", INDEXED), "RG/BK"),
    "palette, one entry transparent": (file("a.gif", INDEXED, transparency=INDEXED.getpixel((0, 0))), "WG/BK", ON_WHITE),
    "palette, alpha an entry": (file("a.png", INDEXED, transparency=bytes(4)), "WW/WW", ON_WHITE),
    "gray": (file("a.png", picture("48/KW", "L")), "48/KW"),
    "gray and alpha": (file("a.png", Image.merge("LA", [picture("48/KW", "L"), picture("WW/WK", "L")])), "48/KW", ON_WHITE),
    "gray, black transparent": (file("a.png", picture("48/KW", "L"), transparency=0), "48/WW", ON_WHITE),
    "colour, red transparent": (file("a.png", RGBK, transparency=(255, 0, 0)), "WG/BK", ON_WHITE),
    "1 bit": (file("a.png", picture("KW/WK", "1")), "KW/WK"),
    "1 bit, black transparent": (file("a.png", png(1, 0, b"\0\x40\0\x80", b"\0\0")), "WW/WW", ON_WHITE),
    "2 bits, its gray transparent": (file("a.png", png(2, 0, b"\0\x10\0\xc0", b"\0\1")), "KW/WK", ON_WHITE),
    "4 bits, its gray transparent": (file("a.png", png(4, 0, b"\0\x05\0\xf0", b"\0\5")), "KW/WK", ON_WHITE),
    "16 bits gray": (file("a.png", SIXTEEN), "K4/8W", DEEP),
    "16 bits, one value transparent": (file("a.png", png(16, 0, b"\0dd\x80\x80\0\0\0\xff\xff", b"dd")), "W8/KW", ON_WHITE),
    "16 bits gray, turned": (file("a.png", SIXTEEN, exif=held(3)), "W8/4K", DEEP),
    "16 bits in a TIFF": (file("a.tif", SIXTEEN), "K4/8W", DEEP),
    "16 bits big-endian TIFF": (file("a.tif", Image.frombytes("I;16B", (2, 2), b"\0\0dd\x80\x80\xff\xff")), "K4/8W", DEEP),
    "16 bits in a PGM": (file("a.pgm", SIXTEEN), "K4/8W", DEEP),
    "16 bits in a JPEG 2000": (file("a.jp2", SIXTEEN), "K4/8W", DEEP),
    "16 bits colour": (file("a.png", png(16, 2, RED_16)), "RR/RR", DEEP),
    "16 bits colour, red transparent": (file("a.png", png(16, 2, RED_16, b"\xff\xff\0\0\0\0")), "WW/WW", ON_WHITE),
    "16 bits with alpha": (file("a.png", png(16, 6, (b"\0" + b"\xff\xff" + bytes(14)) * 2)), "WW/WW", f"{DEEP}, {ON_WHITE}"),
    "CMYK": (file("a.tif", picture("RG/BK", "CMYK")), "RG/BK"),
    "CMYK in a JPEG": (file("a.jpg", picture("RR/RR", "CMYK"), quality=100), "RR/RR", "", 3),
    "YCbCr": (file("a.tif", picture("RG/BK", "YCbCr")), "RG/BK", "", 2),
    "LAB": (file("a.tif", lab("RG/BW")), "RG/BW", "", 22),
    "palette and alpha": (file("a.tif", RGBK.quantize(4).convert("PA")), "RG/BK"),
    "animated GIF": (file("a.gif", RGBK, **MOVING), "RG/BK", TWO),
    "animated WebP": (file("a.webp", RGBK, lossless=True, **MOVING), "RG/BK", TWO),
    "animated PNG": (file("a.png", RGBK, **MOVING), "RG/BK", TWO),
    "animated PNG with a picture for others": (file("a.png", RGBK, default_image=True, **MOVING), "WW/WW", TWO),
    "pages of a TIFF": (file("a.tif", RGBK, **MOVING), "RG/BK", TWO),
    "ICC profile": (file("a.png", picture("RB/GW"), icc_profile=swapped_profile()), "BR/GW", "", 3),
    "ICC profile of a gray picture": (file("a.png", picture("48/KW", "L"), icc_profile=swapped_profile()), "48/KW", "", 3),
    "ICC profile and alpha": (file("a.png", veiled("RB/RB", 0), icc_profile=swapped_profile()), "WW/WW", ON_WHITE),
    "ICC profile sRGB": (file("a.png", picture("RG/B4"), icc_profile=SRGB), "RG/B4"),
    "ICC profile that is damaged": (file("a.png", RGBK, icc_profile=b"no profile"), "RG/BK", "profile cannot be used"),
    "gamma of linear light": (file("a.png", told(GRAY_55, gAMA=LINEAR)), "K8/W8", "its gamma of 1 became that of sRGB"),
    "gamma of sRGB": (file("a.png", told(encoded(RGBK), gAMA=struct.pack(">I", 45_455))), "RG/BK"),
    "gamma of nothing": (file("a.png", told(encoded(RGBK), gAMA=bytes(4))), "RG/BK"),
    "gamma, and sRGB beside it": (file("a.png", told(encoded(picture("48/KW")), gAMA=LINEAR, sRGB=b"\0")), "48/KW"),
    "primaries of a wide screen": (file("a.png", told(encoded(RGBK), cHRM=WIDE)), "RG/BK", "primaries are taken as"),
    "16 bits colour in a PPM": (file("a.ppm", b"P6 2 2 65535 " + b"\xff\xff\0\0\0\0" * 4), "RR/RR", DEEP),
    "a phone's two pictures": (file("a.jpg", encoded(picture("RR/RR"), "MPO", **MPO)), "RR/RR", TWO, 3),
    "animated WebP with alpha": (file("a.webp", veiled("RR/RR", 0), lossless=True, **MOVING), "WW/WW", f"{TWO}, {ON_WHITE}"),
    "bytes behind the end": (file("a.jpg", encoded(picture("RR/RR"), "JPEG", quality=100) + b"trailer"), "RR/RR", "", 3),
    "a scan, white as 0": (file("a.tif", encoded(picture("48/KW", "L"), "TIFF", tiffinfo={262: 0})), "48/KW"),
    "a fax": (file("a.tif", picture("KW/WK", "1"), compression="group4"), "KW/WK"),
    "a JPEG called .png": (file("a.png", encoded(picture("RR/RR"), "JPEG", quality=100)), "RR/RR", "", 3),
    "BMP": (file("a.bmp", picture("RG/BK")), "RG/BK"),
    "gray model, colours": (file("a.png", picture("RR/48")), "ll/48", "its colours became luminance", 0, {}, 1),
    "gray model, gray picture": (file("a.png", picture("4W/8K")), "4W/8K", "", 0, {}, 1),
    "gray model, transparent": (file("a.png", veiled("KK/KK", 0)), "ll/ll", "#ff0000", 0, {"background": "red"}, 1),
    "model with alpha, gray picture": (file("a.png", picture("4W/8K", "L")), "4W/8K", "", 0, {}, 4),
    "model with alpha, CMYK": (file("a.tif", picture("RG/BK", "CMYK")), "RG/BK", "", 0, {}, 4),
}  # fmt: skip

WHOLE = picture("RG/BK", times=32)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")
# what it is: (the file, a piece of the message)
REFUSED: dict[str, tuple[Make, str]] = {
    "floating point": (file("a.tif", Image.new("F", (2, 2), 0.5)), "floating-point numbers, whose white is not known"),
    "32-bit numbers": (file("a.tif", Image.new("I", (2, 2), 7)), "32-bit whole numbers, whose white is not known"),
    **{
        f"a {format} that ends early": (file("a.x", data[: len(data) * 2 // 3]), "cannot be read as an image")
        for format, data in ((format, encoded(WHOLE, format)) for format in FORMATS)
    },
    "an empty file": (file("a.png", b""), "found an empty file, expected one of the formats PNG, JPEG"),
    "a JPEG of three bytes": (file("a.jpg", b"\xff\xd8\xff"), "found a picture whose start is damaged"),
    "a web page": (file("a.png", b"<html>404</html>"), "found a web page, expected one of the formats PNG, JPEG"),
    "a pointer": (file("a.png", b"version https://git-lfs.github.com/spec/v1"), "Fetch the file itself: git lfs pull"),
    "HEIC": (file("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0"), "found HEIC, expected one of the formats PNG"),
    "a film": (file("a.png", b"\0\0\0\x18ftypisom"), "found a film"),
    "JPEG XL": (file("a.jxl", b"\xff\x0a\0"), "found JPEG XL, expected one of the formats PNG"),
    "Photoshop": (file("a.psd", b"8BPS\0\1"), "found a Photoshop file"),
    "SVG": (file("a.svg", b'<?xml version="1.0"?>\n<svg/>'), "found SVG"),
    "TGA, known by its suffix alone": (file("a.tga", encoded(RGBK, "TGA")), "found an unknown format, expected one of"),
    "a camera's raw file": (file("a.dng", encoded(RGBK, "TIFF", tiffinfo={50706: b"\1\4\0\0"})), "a camera's raw file"),
    "a preview": (file("a.nef", encoded(RGBK, "TIFF", tiffinfo={254: 1})), "found a camera's raw file"),
    "PostScript, which starts a program": (file("a.eps", encoded(picture("RG/BK"), "EPS")), "found PDF or PostScript"),
    "no pixels": (file("a.png", png(8, 0, b"", size=(0, 2))), "cannot be read as an image"),
    "a bomb": (file("a.png", png(1, 0, b"", size=(60000, 60000))), "more pixels than are safe to decode"),
    "several arrays": (file("a.npz", b"PK\3\4"), "found an archive"),
    "a folder called a picture": (lambda folder: (folder / "a.png").mkdir() or folder / "a.png", "a.png holds no images"),
    "a pipe": (lambda folder: os.mkfifo(folder / "a.png") or folder / "a.png", "found no regular file"),
    "nothing there": (lambda folder: folder / "a.png", "does not exist"),
}

# what it is: (rows of gray levels in, --fit, width x height of the model, rows out, note); the background is 9
FITTED: dict[str, tuple[list[list[int]], str, tuple[int, int], list[list[int]], str]] = {
    "a checkerboard becomes its mean": ([[0, 255] * 2, [255, 0] * 2] * 2, "crop", (2, 2), [[128] * 2] * 2, "4x4 resized"),
    "a stripe counts by its share": ([[0, 240, 0]] * 3, "crop", (2, 2), [[80, 80]] * 2, "3x3 resized to 2x2"),
    "all of a large one counts": ([[250] + [0] * 49] * 50, "crop", (1, 1), [[5]], "50x50 resized to 1x1"),
    "wide, cropped at its centre": ([[1, 2, 3, 4]] * 2, "crop", (2, 2), [[2, 3]] * 2, "4x2 cropped to 2x2"),
    "tall, cropped": ([[1, 1], [2, 2], [3, 3], [4, 4]], "crop", (2, 2), [[2] * 2, [3] * 2], "2x4 cropped to 2x2"),
    "wide, padded": ([[1, 2, 3, 4]] * 2, "pad", (4, 4), [[9] * 4, [1, 2, 3, 4], [1, 2, 3, 4], [9] * 4], "4x2 padded to 4x4"),
    "shrunk and padded": ([[2, 4]] * 4, "pad", (2, 2), [[3, 9]] * 2, "2x4 resized to 1x2 and padded to 2x2"),
    "enlarged": ([[7]], "crop", (2, 2), [[7, 7]] * 2, "1x1 resized to 2x2"),
    "a line, cropped": ([[5] * 99], "crop", (1, 3), [[5]] * 3, "99x1 cropped to 1x1 and resized to 1x3"),
    "a line, padded": ([[5] * 99], "pad", (3, 3), [[9] * 3, [5] * 3, [9] * 3], "99x1 resized to 3x1 and padded to 3x3"),
}


@pytest.mark.parametrize("case", SHOWN.values(), ids=SHOWN)
def test_what_a_viewer_shows(case: tuple[Any, ...], tmp_path: Path) -> None:
    make, letters, note, tolerance, options, channels = (*case, *("", 0, {}, 3)[len(case) - 2 :])
    loaded = load_images([make(tmp_path)], (channels, 2, 2), **options)
    expected = np.asarray(picture(letters, "RGBA"), int)[..., :channels]
    assert np.abs(loaded.images[0] - expected).max() <= tolerance, loaded.images[0].tolist()
    assert note in "".join(loaded.notes)
    assert bool(note) == bool(loaded.notes)


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(make: Make, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a\\.") as caught:
        load_images([make(tmp_path)], (3, 2, 2))
    assert message in str(caught.value)


@pytest.mark.parametrize(("rows", "fit", "size", "shown", "note"), FITTED.values(), ids=FITTED)
def test_other_sizes(
    rows: list[list[int]], fit: str, size: tuple[int, int], shown: list[list[int]], note: str, tmp_path: Path
) -> None:
    Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / "a.png")
    loaded = load_images([tmp_path / "a.png"], (1, size[1], size[0]), fit=fit, background="#090909")
    assert loaded.images[0, :, :, 0].tolist() == shown
    assert loaded.notes[0].startswith(f"a.png: {note}")


def test_a_model_with_alpha_keeps_it(tmp_path: Path) -> None:
    image = Image.merge("RGBA", [*picture("RK/RK").split(), Image.fromarray(np.array([[255, 0]] * 2, np.uint8))])
    image.save(tmp_path / "a.png")
    assert load_images([tmp_path / "a.png"], (4, 2, 2)).images[0, 0].tolist() == [[255, 0, 0, 255], [0, 0, 0, 0]]
    # Red beside nothing is red at half the strength, and not a dark red.
    assert load_images([tmp_path / "a.png"], (4, 1, 1)).images[0, 0, 0].tolist() == [255, 0, 0, 128]


@pytest.mark.parametrize("background", ["", "whit", "#12345", "#ff000080", "rgb(1)"])
def test_backgrounds_that_are_none(background: str) -> None:
    with pytest.raises(ArgumentError, match="background: found"):
        load_images([], (3, 2, 2), background=background)


class TestFolders:
    @pytest.fixture
    def mixed(self, tmp_path: Path) -> Path:
        """As it comes from a Mac: hidden files, a broken picture, numbers without zeros, and what is no picture."""
        folder = tmp_path / "photos"
        (folder / "inside.png").mkdir(parents=True)
        for number in (10, 9, 2):
            Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(folder / f"a{number}.PNG")
        (folder / "a3.jpg").write_bytes(encoded(WHOLE, "JPEG")[:400])
        (folder / "a4.heic").write_bytes(b"\0\0\0\x18ftypheic")
        (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
        for name in ("._a2.png", ".DS_Store", "labels.csv"):
            (folder / name).write_bytes(b"\0\5\x16\7")
        return folder

    def test_order_and_what_is_left_out(self, mixed: Path) -> None:
        loaded = load_images([mixed], (3, SIZE, SIZE), strict=False)
        assert loaded.images[:, 0, 0, 0].tolist() == [2, 9, 10]
        assert [Path(source).name for source in loaded.sources] == ["a2.PNG", "a9.PNG", "a10.PNG"]
        assert [Path(line.split(" ")[0]).name for line in loaded.unreadable] == ["a3.jpg", "a4.heic", "gone.png"]
        assert loaded.ignored == [f"{mixed}: 1 files are ignored that are not pictures, such as labels.csv"]
        with pytest.raises(ArgumentError, match=r"a3\.jpg cannot be read as an image"):
            load_images([mixed], (3, SIZE, SIZE))

    @pytest.mark.parametrize("named", [False, True])
    def test_refine_does_the_rest_and_returns_1(self, named: bool, mixed: Path, tmp_path: Path) -> None:
        images = sorted(mixed.glob("a*.*")) if named else [mixed]
        result = run("refine", bundle(), *images, "--seed", "0", "--out", tmp_path / "out.npy", "--json", *HERE)
        report = json.loads(result.stdout)
        assert (result.exit_code, report["n"], len(report["sources"])) == (1, 3, 3)
        assert len(report["unreadable"]) == (2 if named else 3)
        assert f"not read: {mixed / 'a3.jpg'} cannot be read as an image" in result.stderr
        assert np.load(tmp_path / "out.npy").shape == (3, SIZE, SIZE, 3)

    def test_strict_stops_with_nothing_done(self, mixed: Path, tmp_path: Path) -> None:
        result = run("reconstruct", bundle(), mixed, "--strict", "--out", tmp_path / "out", *HERE)
        assert (result.exit_code, result.stdout, (tmp_path / "out").exists()) == (1, "", False)
        assert "a3.jpg cannot be read" in result.stderr

    def test_nothing_that_can_be_read(self, mixed: Path) -> None:
        paths = [mixed / "a3.jpg", mixed / "missing.png"]
        with pytest.raises(ArgumentError, match=r"None of 2 places could be read.*a3\.jpg.*missing\.png does not exist"):
            load_images(paths, (3, 2, 2), strict=False)


def test_background_and_fit_on_the_command_line(tmp_path: Path) -> None:
    veiled("RR", 0).save(tmp_path / "a.png")
    options = ["--background", "blue", "--fit", "pad", "--with-start", "--seed", "0", "--out", tmp_path / "out.npy"]
    result = succeed("refine", bundle(), tmp_path / "a.png", *options, *HERE)
    assert (np.load(tmp_path / "out.start.npy") == COLOURS["B"]).all()
    assert "a.png: 2x1 resized to 8x4 and padded to 8x8, its transparent parts show the background #0000ff" in result.stderr
