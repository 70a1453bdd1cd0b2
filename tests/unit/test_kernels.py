"""Do update and to_uint8 compute what row.h says: every size, alignment and alias, with equal bits in C++ and numpy?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine import kernels
from engine.kernels import KernelArgumentError
from tests.kernel_choice import SEEDS, use

SHAPES = [(0, 3, 4, 4), (1, 0), (1, 1), (1, 3), (2, 5), (3, 3, 7, 5), (2, 511), (2, 512), (2, 513), (1, 1_000_003)]


def floats(shape: tuple[int, ...], seed: int, offset: int = 0) -> np.ndarray:
    """Normals in memory that begins `offset` floats after an allocation."""
    flat = np.random.default_rng(seed).standard_normal(math.prod(shape) + offset).astype(np.float32)
    return flat[offset:].reshape(shape)


def row(**fields: float) -> np.ndarray:
    values = dict.fromkeys(kernels.ROW_FIELDS, 0.0) | {"clip": math.inf} | fields
    return np.array([values[name] for name in kernels.ROW_FIELDS], np.float32)


FULL = row(p_x=1.3, p_eps=-0.8, p_cond=-0.4, k_x0=0.6, k_prev=-0.2, k_x=0.3, k_eps=0.5, k_cond=0.7, sigma=0.9, clip=1.0)


def operands(shape: tuple[int, ...], offset: int = 0) -> dict[str, np.ndarray]:
    names = ("x", "eps", "eps_uncond", "cond", "x0_prev", "noise")
    return {name: floats(shape, i, (offset + i) % 4 if offset else 0) for i, name in enumerate(names)}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


# The update


def expected_update(r: np.ndarray, o: dict[str, np.ndarray], guidance: float) -> tuple[np.ndarray, np.ndarray]:
    """The three lines of the formula in float64."""
    p_x, p_eps, p_cond, k_x0, k_prev, k_x, k_eps, k_cond, sigma, clip = r.astype(float)
    f = {name: array.astype(float) for name, array in o.items()}
    eps = f["eps"] + guidance * (f["eps"] - f["eps_uncond"])
    x0 = np.clip(p_x * f["x"] + p_eps * eps + p_cond * f["cond"], -clip, clip)
    x = k_x0 * x0 + k_prev * f["x0_prev"] + k_x * f["x"] + k_eps * eps + k_cond * f["cond"] + sigma * f["noise"]
    return x, x0


@pytest.mark.parametrize("shape", SHAPES)
def test_update_is_the_formula(each, shape):
    o = operands(shape)
    want, want_x0 = expected_update(FULL, o, 0.7)
    out, x0 = np.empty(shape, np.float32), np.empty(shape, np.float32)
    assert kernels.update(FULL, **o, guidance=0.7, out=out, x0_out=x0)
    np.testing.assert_allclose(out, want, atol=4e-6)
    np.testing.assert_allclose(x0, want_x0, atol=4e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_update_has_the_same_bits_in_numpy(monkeypatch, shape, offset):
    o = operands(shape, offset)
    results = []
    for name in ("native", "numpy"):
        use(monkeypatch, name)
        out, x0 = floats(shape, 8, offset), floats(shape, 9, 2 * offset)
        kernels.update(FULL, **o, guidance=-0.3, out=out, x0_out=x0)
        results.append((out, x0))
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1], results[1][1])


@pytest.mark.parametrize("name", ["x", "eps", "eps_uncond", "cond", "x0_prev", "noise"])
def test_update_in_place_of_any_operand(each, name):
    o = operands((2, 3, 9, 7))
    want, want_x0 = (np.empty((2, 3, 9, 7), np.float32) for _ in range(2))
    kernels.update(FULL, **o, guidance=0.7, out=want, x0_out=want_x0)
    for target, wanted in (("out", want), ("x0_out", want_x0)):
        copy = {key: array.copy() for key, array in o.items()}
        other = {"out": "x0_out", "x0_out": "out"}[target]
        kernels.update(FULL, **copy, guidance=0.7, **{target: copy[name], other: np.empty_like(want)})
        assert same_bits(copy[name], wanted)


def test_update_without_out_replaces_x(each):
    o = operands((2, 30))
    want = np.empty((2, 30), np.float32)
    kernels.update(FULL, **o, out=want)
    kernels.update(FULL, **o)
    assert same_bits(o["x"], want)


@pytest.mark.parametrize(
    ("zeroed", "absent"),
    [
        ({"p_cond": 0, "k_cond": 0}, "cond"),
        ({"k_prev": 0}, "x0_prev"),
        ({"sigma": 0}, "noise"),
    ],
)
def test_an_operand_that_no_coefficient_uses_may_be_absent_and_is_not_read(each, zeroed, absent):
    r = FULL.copy()
    for field in zeroed:
        r[kernels.ROW_FIELDS.index(field)] = 0
    o = operands((3, 600))
    o[absent][:] = np.nan
    present, missing = np.empty((3, 600), np.float32), np.empty((3, 600), np.float32)
    assert kernels.update(r, **o, guidance=0.5, out=present)
    assert kernels.update(r, **{k: v for k, v in o.items() if k != absent}, guidance=0.5, out=missing)
    assert np.isfinite(present).all()
    assert same_bits(present, missing)


def test_eps_uncond_is_not_read_without_guidance(each):
    o = operands((1, 40))
    o["eps_uncond"][:] = np.nan
    assert kernels.update(FULL, **o, guidance=0.0)
    assert np.isfinite(o["x"]).all()


@pytest.mark.parametrize("count", [1, 5, 512, 1029])
def test_generated_noise_is_the_noise_of_normal(each, count):
    o = operands((SEEDS.size, count))
    o["noise"] = kernels.normal(SEEDS, kernels.STREAM_STEP, 6, count)
    given, generated = np.empty((SEEDS.size, count), np.float32), np.empty((SEEDS.size, count), np.float32)
    kernels.update(FULL, **o, out=given)
    del o["noise"]
    kernels.update(FULL, **o, seeds=SEEDS, step=6, out=generated)
    assert same_bits(given, generated)


def test_noise_of_one_sample_is_shared_by_the_batch(each):
    o = operands((3, 3, 9, 9))
    one = o["noise"][:1].copy()
    repeated, shared = np.empty((3, 3, 9, 9), np.float32), np.empty((3, 3, 9, 9), np.float32)
    kernels.update(FULL, **(o | {"noise": np.repeat(one, 3, axis=0)}), out=repeated)
    kernels.update(FULL, **(o | {"noise": one}), out=shared)
    assert same_bits(repeated, shared)


def test_x0_is_limited_to_clip(each):
    x = np.array([[-3, -1, 0.5, 1, 3]], np.float32)
    for clip, want in ((1, [-1, -1, 0.5, 1, 1]), (2, [-2, -1, 0.5, 1, 2]), (math.inf, [-3, -1, 0.5, 1, 3])):
        out = np.empty_like(x)
        kernels.update(row(p_x=1, k_x0=1, clip=clip), x, np.zeros_like(x), out=out)
        assert out.tolist() == [want]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 7, 511, 512, 1024, 1036])
@pytest.mark.parametrize("name", ["eps", "eps_uncond"])
def test_guard_reports_one_bad_network_value_anywhere(each, bad, at, name):
    o = operands((1, 1037))
    assert kernels.update(FULL, **o, guidance=0.5, out=np.empty((1, 1037), np.float32))
    o[name][0, at] = bad
    assert not kernels.update(FULL, **o, guidance=0.5, out=np.empty((1, 1037), np.float32))


def test_nan_stays_nan_and_touches_no_other_element(each):
    o = operands((2, 100))
    o["eps"][1, 13] = np.nan
    kernels.update(FULL, **o)
    assert np.argwhere(np.isnan(o["x"])).tolist() == [[1, 13]]


def test_threads_change_no_bit(monkeypatch):
    use(monkeypatch, "native")
    o = operands((3, 1_100_001))
    serial, parallel = np.empty((3, 1_100_001), np.float32), np.empty((3, 1_100_001), np.float32)
    del o["noise"]
    for threads, out in ((1, serial), (3, parallel)):
        assert kernels.update(FULL, **o, seeds=SEEDS[:3].copy(), step=1, out=out, threads=threads)
    assert same_bits(serial, parallel)
    o["eps"][2, 1_100_000] = np.nan
    assert not kernels.update(FULL, **o, seeds=SEEDS[:3].copy(), step=1, out=parallel, threads=3)


# Refused arguments


def good() -> dict:
    return {"row": row(k_x=1), "x": floats((2, 8), 0), "eps": floats((2, 8), 1)}


READ_ONLY = np.zeros((2, 8), np.float32)
READ_ONLY.setflags(write=False)
BYTES = np.zeros(65, np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": row(k_x=1)[:9]}, r"row is float32 \[9\]; expected C-contiguous, aligned float32 \[10\]"),
        ({"row": row(k_x=math.nan)}, "expected nine finite coefficients"),
        ({"row": row(k_x=1, clip=-1)}, "then clip >= 0 or infinity"),
        ({"row": row(k_x=1, clip=math.nan)}, "then clip >= 0 or infinity"),
        ({"x": np.float32(1)}, "x is a float32; expected"),
        ({"x": np.zeros((), np.float32)}, "x is a single number"),
        ({"x": np.zeros((2, 8))}, r"x is float64 \[2, 8\]; expected"),
        ({"x": np.zeros((2, 16), np.float32)[:, ::2]}, r"x is non-contiguous float32 \[2, 8\].*np.ascontiguousarray"),
        ({"x": BYTES[1:].view(np.float32).reshape(2, 8)}, "aligned"),
        ({"eps": np.zeros((2, 7), np.float32)}, r"eps is float32 \[2, 7\]; expected .*\[2, 8\]"),
        ({"eps": None}, "eps is a NoneType"),
        ({"cond": np.zeros((1, 8), np.float32)}, r"cond is float32 \[1, 8\]"),
        ({"noise": np.zeros((3, 8), np.float32)}, r"noise is float32 \[3, 8\]; expected .*\[2, 8\] or \[1, 8\]"),
        ({"out": np.zeros((2, 9), np.float32)}, r"out is float32 \[2, 9\]"),
        ({"out": READ_ONLY}, "expected writable"),
        ({"x0_out": [0.0]}, "x0_out is a list"),
        ({"row": row(p_cond=1)}, "p_cond = 1.0 but cond is absent: pass cond"),
        ({"row": row(k_cond=2)}, "k_cond = 2.0 but cond is absent"),
        ({"row": row(k_prev=1)}, "k_prev = 1.0 but x0_prev is absent"),
        ({"row": row(sigma=0.5)}, "sigma = 0.5 but no noise: pass noise, or seeds and step"),
        ({"guidance": 1.5}, "guidance is 1.5 but eps_uncond is absent"),
        ({"seeds": SEEDS[:2].copy()}, "seeds and step go together"),
        ({"step": 1}, "seeds and step go together"),
        ({"seeds": SEEDS.copy(), "step": 1}, r"seeds is uint64 \[4\]; expected .*\[2\]"),
        ({"seeds": np.zeros(2, np.int64), "step": 1}, r"seeds is int64 \[2\]; expected .*uint64"),
        ({"seeds": SEEDS[:2].copy(), "step": -1}, r"step is -1; expected 0 \.\. 2\*\*32 - 1"),
        ({"seeds": SEEDS[:2].copy(), "step": 1, "noise": np.zeros((2, 8), np.float32)}, "noise and seeds are both given"),
    ],
)
def test_update_refuses(each, change, message):
    with pytest.raises(KernelArgumentError, match=message):
        kernels.update(**(good() | change))


def test_update_refuses_partial_overlap(each):
    memory = np.zeros(100, np.float32)
    here, there = memory[:16].reshape(2, 8), memory[8:24].reshape(2, 8)
    with pytest.raises(KernelArgumentError, match="out overlaps x: expected separate memory"):
        kernels.update(**(good() | {"x": here, "out": there}))
    with pytest.raises(KernelArgumentError, match="x0_out overlaps out"):
        kernels.update(**(good() | {"out": here, "x0_out": here}))
    with pytest.raises(KernelArgumentError, match="out overlaps noise"):
        kernels.update(**(good() | {"noise": memory[:8].reshape(1, 8), "out": here}))


# Images


def test_to_uint8_clips_and_rounds_half_up(each):
    values = [-2, -1, -0.9999, 0, 1 / 255, 0.9999, 1, 2, math.nan, math.inf, -math.inf, (100.5 / 127.5) - 1]
    want = [0, 0, 0, 128, 128, 255, 255, 255, 0, 255, 0, 101]
    x = np.array(values, np.float32).reshape(1, 1, 3, 4)
    assert kernels.to_uint8(x).reshape(-1).tolist() == want


def test_to_uint8_returns_every_byte_it_was_made_from(each):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x = np.ascontiguousarray((pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2))
    assert np.array_equal(kernels.to_uint8(x), pixels)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 1, 3, 5), (2, 3, 1, 1), (3, 3, 17, 33), (1, 4, 9, 2), (2, 3, 64, 64)])
def test_to_uint8_has_the_same_bytes_in_numpy(monkeypatch, shape):
    x = floats(shape, 3, offset=1)
    results = []
    for name in ("native", "numpy"):
        use(monkeypatch, name)
        results.append(kernels.to_uint8(x))
    assert results[0].shape == (shape[0], *shape[2:], shape[1])
    assert np.array_equal(*results)


def test_to_uint8_refuses(each):
    with pytest.raises(KernelArgumentError, match=r"x has shape \(3, 4\); expected \[N, C, H, W\]"):
        kernels.to_uint8(np.zeros((3, 4), np.float32))
    with pytest.raises(KernelArgumentError, match=r"out is uint8 \[1, 3, 4, 4\]; expected writable .*\[1, 4, 4, 3\]"):
        kernels.to_uint8(np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 3, 4, 4), np.uint8))
