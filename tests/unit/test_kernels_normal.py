"""The normals: standard, seeded as documented, the same bits in C++ and numpy. Known answers for Philox4x32-10."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine import kernels
from engine.kernels import KernelArgumentError, fallback
from tests.kernel_choice import SEEDS, use


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(each, counter, key, expected):
    assert kernels.philox4x32(counter, key).tolist() == expected


def reference_normals(seed: int, stream: int, step: int, count: int) -> np.ndarray:
    """Box-Muller in float64 on single Philox blocks, written from the paper rather than from philox.h."""
    values: list[float] = []
    for block in range((count + 3) // 4):
        counter = [block % 2**32, block >> 32, step, stream]
        words = [int(w) >> 8 for w in kernels.philox4x32(counter, [seed % 2**32, seed >> 32])]
        for u, v in (words[:2], words[2:]):
            radius, angle = math.sqrt(-2 * math.log((u + 1) / 2**24)), 2 * math.pi * v / 2**24
            values += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(values[:count])


@pytest.mark.parametrize("seed", SEEDS.tolist())
@pytest.mark.parametrize(("stream", "step"), [(0, 0), (1, 0), (2, 7), (2, 2**32 - 1)])
def test_normals_are_box_muller_of_the_seeds_own_blocks(each, seed, stream, step):
    got = kernels.normal(np.array([seed], np.uint64), stream, step, 1027)[0]
    assert got.dtype == np.float32
    assert np.abs(got - reference_normals(seed, stream, step, 1027)).max() < 2e-6


def test_normals_keep_their_accuracy_over_many_words():
    words = np.random.default_rng(0).integers(0, 2**32, (2, 1_000_000), np.uint32)
    words[:, :4] = [[0, 0xFFFFFFFF, 0xFFFFFE00, 0x80000000], [0, 0xFFFFFFFF, 0x40000000, 0xBFFFFFFF]]
    u, v = (words[0] >> 8).astype(float) + 1, (words[1] >> 8).astype(float)
    radius, angle = np.sqrt(-2 * np.log(u / 2**24)), 2 * np.pi * v / 2**24
    got = fallback.box_muller_radius(words[0])
    cosine, sine = fallback.box_muller_angle(words[1])
    assert np.abs(got - radius).max() < 1e-6
    assert np.abs(got * cosine - radius * np.cos(angle)).max() < 2e-6
    assert np.abs(got * sine - radius * np.sin(angle)).max() < 2e-6
    assert got[0] == pytest.approx(math.sqrt(48 * math.log(2)), rel=1e-6), "the smallest u is 2**-24"
    assert got[1] == 0, "the largest u is 1"


def test_moments_of_normals(each):
    n = 400_000
    values = kernels.normal(np.array([5], np.uint64), 0, 0, n)[0].astype(float)
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((values**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / n)


def test_normals_follow_the_normal_distribution_function(each):
    """Kolmogorov-Smirnov over 64 seeds: sqrt(n) D has mean 0.8687 and deviation 0.26 for a true sample."""
    n = 4000
    values = np.sort(kernels.normal(np.arange(64, dtype=np.uint64), 0, 0, n).astype(float))
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values.ravel()]).reshape(values.shape)
    ranks = np.arange(n) / n
    distance = np.maximum(below - ranks, ranks + 1 / n - below).max(axis=1) * math.sqrt(n)
    assert abs(distance.mean() - 0.8687) < 4 * 0.26 / math.sqrt(64)
    assert distance.max() < 2.2


def test_normals_of_neighbouring_seeds_steps_and_streams_are_unrelated(each):
    seeds = np.arange(8, dtype=np.uint64)
    drawn = [kernels.normal(seeds, stream, step, 20_000) for stream in (0, 1, 2) for step in (0, 1)]
    correlation = np.corrcoef(np.concatenate(drawn))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / math.sqrt(20_000)


def test_a_samples_noise_does_not_depend_on_its_batch(each):
    alone = {int(seed): kernels.normal(np.array([seed], np.uint64), 2, 3, 301)[0] for seed in SEEDS}
    for order in (SEEDS, SEEDS[::-1].copy(), np.repeat(SEEDS, 3)):
        for seed, values in zip(order.tolist(), kernels.normal(order, 2, 3, 301), strict=True):
            assert same_bits(values, alone[seed])


def test_fewer_elements_are_the_first_of_more(each):
    full = kernels.normal(SEEDS, 1, 0, 1100)
    for count in (0, 1, 2, 3, 4, 5, 255, 256, 257, 1023):
        assert same_bits(kernels.normal(SEEDS, 1, 0, count), full[:, :count].copy())


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 255, 256, 257, 4099, 1_000_003])
def test_normals_have_the_same_bits_in_numpy(monkeypatch, count):
    results = []
    for name in ("compiled", "numpy"):
        use(monkeypatch, name)
        results.append(kernels.normal(SEEDS, 2, 9, count))
    assert same_bits(*results)


def test_normals_fill_a_given_array(each):
    out = np.empty((SEEDS.size, 77), np.float32)
    assert kernels.normal(SEEDS, 0, 0, 77, out) is out
    assert same_bits(out, kernels.normal(SEEDS, 0, 0, 77))


def test_normal_refuses(each):
    with pytest.raises(KernelArgumentError, match="count is -1"):
        kernels.normal(SEEDS, 0, 0, -1)
    with pytest.raises(KernelArgumentError, match="stream is 4294967296"):
        kernels.normal(SEEDS, 2**32, 0, 1)
    with pytest.raises(KernelArgumentError, match="seeds have shape"):
        kernels.normal(SEEDS.reshape(2, 2), 0, 0, 1)
    with pytest.raises(KernelArgumentError, match=r"out is float32 \[4, 2\]"):
        kernels.normal(SEEDS, 0, 0, 3, np.empty((4, 2), np.float32))
    with pytest.raises(KernelArgumentError, match="counter and key have 3 and 2 words"):
        kernels.philox4x32([0, 0, 0], [0, 0])
