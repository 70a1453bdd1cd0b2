"""Images on disk: grids, arrays and folders in grey, colour and colour with alpha. What pictures show: tests/field."""

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
        found = load_images(files[::2], (channels, 6, 10))
        np.testing.assert_array_equal(found.images, images)
        assert found.notes == []

    def test_an_array(self, channels: int, tmp_path: Path) -> None:
        images = pixels(2, channels)
        files = save_images(tmp_path / "out.npy", images, start=images[::-1])
        assert [path.name for path in files] == ["out.npy", "out.start.npy"]
        np.testing.assert_array_equal(load_images([files[1]], (channels, 6, 10)).images, images[::-1])

    def test_a_grid(self, channels: int, tmp_path: Path) -> None:
        images = pixels(2, channels)
        save_images(tmp_path / "out.png", images)
        sheet = np.asarray(Image.open(tmp_path / "out.png")).reshape(10, 26, channels)
        np.testing.assert_array_equal(sheet[2:8, 2:12], images[0])
        np.testing.assert_array_equal(sheet[2:8, 14:24], images[1])


def test_an_array_of_another_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(1, 3, 10, 6))
    with pytest.raises(ArgumentError, match=r"holds uint8 \[1, 10, 6, 3\]; expected uint8 \[N, 6, 10, 3\]"):
        load_images([tmp_path / "a.npy"], (3, 6, 10))
