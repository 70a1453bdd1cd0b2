"""The kernels in numpy, for machines without a compiler: operation by operation as row.h and philox.h, with the same bits.

Every operation is an IEEE-754 float32 add, multiply, square root or conversion in the headers' order; tests compare.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels.operands import F32, FULL, INDEX, PUSH_E, U64, Operands

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]

STREAM_STEP, STREAM_PRIOR = 2, 3  # kStreamStep and kStreamPrior of philox.h

_LOG = (-0.0763449296, 0.12761575, -0.131601825, 0.142017588, -0.166233569, 0.200012267, -0.250008196, 0.333333313)
_SIN = (-0.00460567372, 0.0796817318, -0.645963669, 1.57079637)
_EXP = (0.00138145592, 0.0083687352, 0.041668389, 0.166665211, 0.49999994)
_COS = (0.000904021668, -0.0208602883, 0.253669232, -1.23370051, 1.0)


def _polynomial(x: F32, coefficients: tuple[float, ...]) -> F32:
    """Horner's rule in float32, highest power first."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + np.float32(coefficient)
    return value


def philox_words(c0: U32, c1: U32, c2: U32, c3: U32, key0: int, key1: int) -> tuple[U32, U32, U32, U32]:
    """Philox4x32-10 over arrays of counters under one key."""
    for round_ in range(10):
        k0 = np.uint32((key0 + round_ * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint32((key1 + round_ * 0xBB67AE85) & 0xFFFFFFFF)
        p0 = c0.astype(np.uint64) * np.uint64(0xD2511F53)
        p1 = c2.astype(np.uint64) * np.uint64(0xCD9E8D57)
        high0, low0 = (p0 >> np.uint64(32)).astype(np.uint32), p0.astype(np.uint32)
        high1, low1 = (p1 >> np.uint64(32)).astype(np.uint32), p1.astype(np.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def box_muller_radius(word: U32) -> F32:
    """sqrt(-2 ln u), u = (upper 24 bits + 1) / 2**24; see philox.h."""
    u = ((word >> np.uint32(8)) + np.uint32(1)).astype(np.float32) * np.float32(2.0**-24)
    shifted = u.view(np.int32) + np.int32(0x3F800000 - 0x3F3504F3)
    e = ((shifted >> 23) - 127).astype(np.float32)
    x = ((shifted & 0x007FFFFF) + np.int32(0x3F3504F3)).view(np.float32) - np.float32(1)
    xx = x * x
    ln = (x * xx) * _polynomial(x, _LOG)
    ln = ln + e * np.float32(-2.12194442e-4)
    ln = ln - np.float32(0.5) * xx
    ln = ln + x
    ln = ln + e * np.float32(0.693359375)
    radius: F32 = np.sqrt(np.float32(-2) * ln)
    return radius


def box_muller_angle(word: U32) -> tuple[F32, F32]:
    """(cos, sin) of 2 pi u, u = upper 24 bits / 2**24; see philox.h."""
    k = (word >> np.uint32(8)).astype(np.int32)
    quadrant = (k + (1 << 21)) >> 22
    y = (k - quadrant * (1 << 22)).astype(np.float32) * np.float32(2.0**-22)
    yy = y * y
    s = _polynomial(yy, _SIN) * y
    c = _polynomial(yy, _COS)
    odd = (quadrant & 1) != 0
    cosine, sine = np.where(odd, s, c), np.where(odd, c, s)
    cosine = np.where((quadrant + 1) & 2, -cosine, cosine)
    sine = np.where(quadrant & 2, -sine, sine)
    return cosine, sine


def exponential(z: F32) -> F32:
    """exp(z), z limited to -87 .. 88; see row.h."""
    z = np.where(z < -87, np.float32(-87), z)
    z = np.where(z > 88, np.float32(88), z)
    shifted = z * np.float32(1.44269504) + np.float32(12582912)
    k = shifted - np.float32(12582912)
    r = z - k * np.float32(0.693359375)
    r = r - k * np.float32(-2.12194442e-4)
    e = (r * r) * _polynomial(r, _EXP) + r
    scale: F32 = ((shifted.view(np.uint32) - np.uint32(0x4B400000 - 127)) << np.uint32(23)).view(np.float32)
    return (e + np.float32(1)) * scale


def _normal_sample(seed: int, stream: int, step: int, count: int) -> F32:
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    low, high = blocks.astype(np.uint32), (blocks >> np.uint64(32)).astype(np.uint32)
    c2, c3 = np.full_like(low, step), np.full_like(low, stream)
    words = philox_words(low, high, c2, c3, seed & 0xFFFFFFFF, seed >> 32)
    values = np.empty((blocks.size, 4), np.float32)
    for pair in (0, 2):
        radius = box_muller_radius(words[pair])
        cosine, sine = box_muller_angle(words[pair + 1])
        values[:, pair], values[:, pair + 1] = radius * cosine, radius * sine
    return values.reshape(-1)[:count]


def _lanes_sum(o: Operands) -> F32:
    """combine() of row.h: lanes of weight 0 are left out, and the first of the others begins the sum."""
    parts = [
        weight * lane
        for weight, lane in zip(o.weights, o.e.reshape(o.weights.size, *o.x.shape), strict=True)
        if weight != 0
    ]
    if not parts:
        return np.zeros_like(o.x)
    total: F32 = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _row(o: Operands, e: F32, noise: F32 | None) -> tuple[F32, F32, F32]:
    """step_plain() and step_full() of row.h: (x0, x', y'), y' of no meaning where the row sets none."""
    zero = np.float32(0)
    c, n, y, h1, h2, h3, g = (zero if value is None else value for value in (o.c, noise, o.y, o.h1, o.h2, o.h3, o.g))
    p, k, q, clip = o.row, o.row[INDEX["k_x0"] :], o.row[INDEX["q_x0"] :], o.row[INDEX["clip"]]
    x, more = o.x, (y, h1, h2, h3, g)
    x0 = p[0] * x + p[1] * e + p[2] * c
    full = bool(o.row[list(FULL)].any())
    if full:
        x0 = x0 + p[3] * y + p[4] * h1 + p[5] * h2 + p[6] * h3
    x0 = np.where(x0 < -clip, -clip, x0)
    x0 = np.where(x0 > clip, clip, x0)
    following: F32 = k[0] * x0 + k[1] * x + k[2] * e + k[3] * c + k[4] * n
    base: F32 = q[0] * x0 + q[1] * x + q[2] * e + q[3] * c + q[4] * n
    for i, value in enumerate(more if full else (), 5):
        following = following + k[i] * value
        base = base + q[i] * value
    return x0, following, base


def _between(size: int, to_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], F32, F32]:
    """between() of kernels.cpp: the two pixels that each of an enlarged axis lies between, and their weights."""
    centre = ((2 * np.arange(to_size) + 1) * size - to_size).astype(np.float64) / (2 * to_size)
    at = np.clip(centre, 0, size - 1)
    first = at.astype(np.int64)
    far = (at - first).astype(np.float32)
    return first, np.minimum(first + 1, size - 1), np.float32(1) - far, far


class NumpyKernels:
    """The same kernels as loader.CompiledKernels; `reason` says why numpy was taken."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def update(self, o: Operands) -> bool:
        with np.errstate(all="ignore"):  # NaN and infinity are reported by the result, as in the compiled kernel
            e = _lanes_sum(o)
            x0, following, base = _row(o, e, self._noise(o))
        if o.push_out is not None:
            o.push_out[...] = e if o.row[INDEX["push"]] == PUSH_E else x0
        if o.x0_out is not None:
            o.x0_out[...] = x0
        if o.y_out is not None:
            o.y_out[...] = base
        o.out[...] = following
        return bool(np.isfinite(e).all()) and (o.v is None or bool(np.isfinite(o.v).all()))

    def _noise(self, o: Operands) -> F32 | None:
        noise = o.noise
        if noise is None and o.seeds is not None:
            noise = np.empty_like(o.x)
            self.normal(o.seeds, STREAM_STEP, o.step, o.x.size // max(1, o.x.shape[0]), noise)
        if noise is None or o.v is None:
            return noise
        return exponential(o.row[INDEX["s_n"]] * o.v) * noise

    def normal(self, seeds: U64, stream: int, step: int, count: int, out: F32) -> None:
        rows = out.reshape(seeds.size, count)
        for values, seed in zip(rows, seeds.tolist(), strict=True):
            values[:] = _normal_sample(seed, stream, step, count)

    def mixture(self, seeds: U64, thresholds: U64, means: F32, factors: F32, units: F32, out: F32) -> None:
        for index, seed in enumerate(seeds.tolist()):
            counter = np.array([0, 0, 0, STREAM_PRIOR], np.uint32)
            word = self.philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))[0]
            k = int(np.searchsorted(thresholds, word, side="right"))
            terms = factors[k] * units[index]
            np.add(np.add.accumulate(terms, axis=1)[:, -1], means[k], out=out[index])

    def to_uint8(self, x: F32, out: U8) -> None:
        limited = np.where(x > -1, x, np.float32(-1))  # NaN fails the comparison and becomes -1
        limited = np.where(limited < 1, limited, np.float32(1))
        out[...] = ((limited + np.float32(1)) * np.float32(127.5) + np.float32(0.5)).astype(np.uint8).transpose(0, 2, 3, 1)

    def enlarge(self, x: F32, out: F32) -> None:
        upper, lower, near, far = (values[..., None] for values in _between(x.shape[2], out.shape[2]))
        first, second, left, right = _between(x.shape[3], out.shape[3])
        across = left * x[..., first] + right * x[..., second]
        out[...] = near * across[:, :, upper[:, 0]] + far * across[:, :, lower[:, 0]]

    def philox4x32(self, counter: U32, key: U32) -> U32:
        c0, c1, c2, c3 = np.split(counter, 4)
        return np.concatenate(philox_words(c0, c1, c2, c3, int(key[0]), int(key[1])))

    def describe(self) -> dict[str, str]:
        return {"name": "numpy", "isa": "numpy", "reason": self._reason}
