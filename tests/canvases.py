"""What the tests of other sizes share: one size, one request, and the verbs that take images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Sampler
from tests.toy_family import IMAGE

SIZE = (20, 40)  # of images of the toy family, whose own is 12 x 16; the state's is half of it: 10 x 20, of 6 x 8
GIVEN: dict[str, Any] = {"label": 3, "style": np.linspace(-1, 1, 5, dtype=np.float32), "seed": 4}


def check_verbs(large: Sampler) -> None:
    """refine, inpaint and reconstruct take images of SIZE, and no others."""
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    asked = {name: value for name, value in GIVEN.items() if name != "seed"}
    assert large.refine(images, t_start=300, steps=2, **asked).images.shape == images.shape
    mask = np.zeros((1, *SIZE), bool)
    mask[:, :, 20:] = True
    filled = large.inpaint(images, mask, steps=2, **asked)
    np.testing.assert_array_equal(filled.images[:, :, :20], images[:, :, :20])
    assert large.reconstruct(images).images.shape == images.shape
    with pytest.raises(ArgumentError, match=r"20, 40"):
        large.refine(images[:, : IMAGE[1], : IMAGE[2]], t_start=300, steps=2, **asked)
