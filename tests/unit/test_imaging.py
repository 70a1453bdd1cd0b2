"""Images on disk: grids, arrays and folders in grey, colour and colour with alpha; pictures cropped to any proportions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import ArgumentError
from engine.imaging import load_images, save_images


def pixels(n: int, channels: int, height: int = 6, width: int = 10) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 256, (n, height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
class TestRoundTrip:
    def test_a_folder(self, channels: int, tmp_path: Path) -> None:
        images = pixels(3, channels)
        files = save_images(tmp_path / "out", images, start=images[::-1])
        assert [path.name for path in files[:2]] == ["00000.png", "00000-start.png"]
        found, notes = load_images(files[::2], (channels, 6, 10))
        np.testing.assert_array_equal(found, images)
        assert notes == []

    def test_an_array(self, channels: int, tmp_path: Path) -> None:
        images = pixels(2, channels)
        files = save_images(tmp_path / "out.npy", images, start=images[::-1])
        assert [path.name for path in files] == ["out.npy", "out.start.npy"]
        np.testing.assert_array_equal(load_images([files[1]], (channels, 6, 10))[0], images[::-1])

    def test_a_grid(self, channels: int, tmp_path: Path) -> None:
        images = pixels(2, channels)
        save_images(tmp_path / "out.png", images)
        sheet = np.asarray(Image.open(tmp_path / "out.png")).reshape(10, 26, channels)
        np.testing.assert_array_equal(sheet[2:8, 2:12], images[0])
        np.testing.assert_array_equal(sheet[2:8, 14:24], images[1])


@pytest.mark.parametrize(
    ("found", "box"),
    [((20, 12), (0, 0, 20, 12)), ((30, 12), (5, 0, 25, 12)), ((20, 32), (0, 10, 20, 22)), ((10, 6), (0, 0, 10, 6))],
)
def test_pictures_are_cropped_around_their_centre(
    found: tuple[int, int], box: tuple[int, int, int, int], tmp_path: Path
) -> None:
    picture = Image.fromarray(pixels(1, 3, found[1], found[0])[0])
    picture.save(tmp_path / "a.png")
    images, notes = load_images([tmp_path / "a.png"], (3, 6, 10))
    expected = picture.resize((10, 6), Image.Resampling.LANCZOS, box=box)
    np.testing.assert_array_equal(images[0], np.asarray(expected))
    assert notes == ([] if found == (10, 6) else [f"a.png: {found[0]}x{found[1]} cropped and resized to 10x6"])


def test_an_array_of_another_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(1, 3, 10, 6))
    with pytest.raises(ArgumentError, match=r"holds uint8 \[1, 10, 6, 3\]; expected uint8 \[N, 6, 10, 3\]"):
        load_images([tmp_path / "a.npy"], (3, 6, 10))
