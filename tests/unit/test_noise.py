"""Seeds and noise: what `seed=` means, and that every sample has noise of its own."""

from __future__ import annotations

import numpy as np
import pytest

from engine import kernels
from engine.errors import ArgumentError
from engine.solver import noise


@pytest.mark.parametrize(
    ("seed", "n", "expected"),
    [
        (0, 3, [0, 1, 2]),
        (0, None, [0]),
        (7, 0, []),
        (2**32 - 1, 2, [2**32 - 1, 2**32]),
        (2**63, 2, [2**63, 2**63 + 1]),
        (2**64 - 1, 3, [2**64 - 1, 0, 1]),
        ([7, 0, 2**63], None, [7, 0, 2**63]),
        ((5, 5), 2, [5, 5]),
        ([], None, []),
        (np.array([3, 1], np.int32), 2, [3, 1]),
        (np.uint64(2**64 - 1), 1, [2**64 - 1]),
    ],
)
def test_seeds(seed, n, expected):
    seeds = noise.resolve_seeds(seed, n)
    assert seeds.dtype == np.uint64
    assert seeds.tolist() == expected


def test_no_seed_draws_one_that_can_be_passed_again():
    drawn = noise.resolve_seeds(None, 4)
    assert np.array_equal(noise.resolve_seeds(int(drawn[0]), 4), drawn)
    assert len({int(noise.resolve_seeds(None, 1)[0]) for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("seed", "n", "message"),
    [
        (-1, 1, r"seed is -1; expected 0 \.\. 2\*\*64 - 1"),
        (2**64, 1, "seed is 18446744073709551616; expected"),
        (1.0, 1, "seed is 1.0, a float; expected an integer"),
        (True, 1, "seed is True, a bool"),
        ("7", 1, "seed is '7', a str"),
        ([1, -2], None, "seed is -2"),
        ([1, "2"], None, "seed is '2', a str"),
        ([1, 2], 3, "seed lists 2 seeds for n = 3 samples: expected one seed a sample"),
        (0, -1, "n is -1; expected a number of samples, 0 or more"),
    ],
)
def test_refused_seeds(seed, n, message):
    with pytest.raises(ArgumentError, match=message):
        noise.resolve_seeds(seed, n)


def test_drawn_inputs_start_and_step_noise_are_the_documented_streams():
    seeds = noise.resolve_seeds([0, 2**32 - 1, 2**63])
    for drawn, stream, step in (
        (noise.drawn(seeds, (2, 3)), kernels.STREAM_Z, 0),
        (noise.initial(seeds, (2, 3)), kernels.STREAM_X_T, 0),
        (noise.step_noise(seeds, 0, (2, 3)), kernels.STREAM_STEP, 0),
        (noise.step_noise(seeds, 4, (2, 3)), kernels.STREAM_STEP, 4),
    ):
        assert drawn.dtype == np.float32
        assert np.array_equal(drawn, kernels.normal(seeds, stream, step, 6).reshape(3, 2, 3))


def test_what_is_drawn_anew_for_every_row_is_a_stream_of_its_own():
    seeds = noise.resolve_seeds([0, 2**63])
    drawn = noise.fresh(seeds, 3, (2, 3))
    assert drawn.shape == (2, 3, 2, 3)
    for row in range(3):
        assert np.array_equal(drawn[:, row], kernels.normal(seeds, kernels.STREAM_FRESH, row, 6).reshape(2, 2, 3))
    assert kernels.STREAM_FRESH == 7  # as philox.h has it


def test_noise_is_pinned_for_ever():
    """A bundle's pictures are known by their seeds: these numbers never change."""
    drawn = noise.initial(noise.resolve_seeds([0, 2**63]), (5,))
    assert drawn.view(np.uint32).tolist() == [
        [0x3FD359CC, 0x3F587C38, 0xBDD11915, 0xBDECD296, 0xBE333127],
        [0xBEF15D13, 0x3E923980, 0x3DD71386, 0x3E6CA6DE, 0xBABB197F],
    ]


def test_step_noise_fills_a_given_array():
    seeds = noise.resolve_seeds(3, 2)
    out = np.empty((2, 3, 5, 5), np.float32)
    assert np.shares_memory(noise.step_noise(seeds, 1, (3, 5, 5), out), out)
    assert np.array_equal(out, noise.step_noise(seeds, 1, (3, 5, 5)))
    with pytest.raises(ArgumentError, match=r"out has shape \[2, 3, 5, 5\]; expected C-contiguous float32 \[2, 3, 5, 6\]"):
        noise.step_noise(seeds, 1, (3, 5, 6), out)
