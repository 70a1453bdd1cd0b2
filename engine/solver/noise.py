"""Seeds, and the noise of each sample: a function of (seed, stream, step, element), the same in any batch and on any backend
(Philox4x32-10, kernels/include/diffusevae/philox.h)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from engine import kernels
from engine.argument_checks import check_integer
from engine.errors import ArgumentError

Seeds = NDArray[np.uint64]
F32 = NDArray[np.float32]

_SEED_END = 2**64
# Of a canvas, a side: the two numbers of a block share the word of the counter that names the stream, of which 4 bits do.
BLOCK_BITS, STREAM_BITS = 14, 4
MAX_BLOCKS = 2**BLOCK_BITS
Block = tuple[int, int] | None


def _one_seed(value: object) -> int:
    number = check_integer("seed", value, "an integer in 0 .. 2**64 - 1, a list of them, or None")
    if not 0 <= number < _SEED_END:
        raise ArgumentError(f"seed is {value}; expected 0 .. 2**64 - 1: take it modulo 2**64, or hash it")
    return number


def listed_seeds(seed: Any) -> Seeds | None:
    """The seeds of a list, tuple, range or array of one dimension, uint64 [N]; None for what is no list."""
    if isinstance(seed, (str, bytes)) or not hasattr(seed, "__len__") or not hasattr(seed, "__getitem__"):
        return None
    if isinstance(seed, Mapping) or getattr(seed, "ndim", 1) == 0:
        return None
    return np.array([_one_seed(value) for value in seed], np.uint64)


def resolve_seeds(seed: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer] | None, n: int | None = None) -> Seeds:
    """One seed a sample, uint64 [N].

    seed: an integer gives sample i the seed (seed + i) mod 2**64; a list is taken as it is, and n must be None or its
    length; None draws 64 bits from the operating system and goes on as with an integer, so that the result reports
    what to pass to have the same again. n None means 1 without a list.
    Raises ArgumentError.
    """
    if n is not None and n < 0:
        raise ArgumentError(f"n is {n}; expected a number of samples, 0 or more")
    return seeds_for(seed, listed_seeds(seed), n)


def seeds_for(seed: Any, listed: Seeds | None, n: int | None) -> Seeds:
    """The same where `listed_seeds` has read the seed already."""
    if listed is not None:
        if n is not None and n != len(listed):
            raise ArgumentError(
                f"seed lists {len(listed)} seeds for n = {n} samples: expected one seed a sample; "
                "pass as many, leave n out, or give one integer"
            )
        return listed
    first = int.from_bytes(os.urandom(8), "little") if seed is None else _one_seed(seed)
    return np.arange(1 if n is None else n, dtype=np.uint64) + np.uint64(first)  # modulo 2**64, as unsigned sums are


def drawn(seeds: Seeds, shape: Sequence[int]) -> F32:
    """Unit normals of the input that a bundle draws: float32 [N, *shape]."""
    return _draw(seeds, kernels.STREAM_Z, 0, shape, None)


def fresh(seeds: Seeds, rows: int, shape: Sequence[int]) -> F32:
    """Unit normals of the input that a bundle draws anew for every row of a table: float32 [N, rows, *shape]."""
    return np.stack([_draw(seeds, kernels.STREAM_FRESH, row, shape, None) for row in range(rows)], axis=1)


def initial(seeds: Seeds, shape: Sequence[int], out: F32 | None = None, block: Block = None) -> F32:
    """Unit normal noise that a chain starts from, before temperature: float32 [N, *shape], into `out` when given.

    block: of a canvas, the height and width that it is laid out in (see `_draw`).
    """
    return _draw(seeds, kernels.STREAM_X_T, 0, shape, out, block)


def step_noise(
    seeds: Seeds, step_index: int, shape: Sequence[int], out: F32 | None = None, block: Block = None
) -> F32:
    """Unit normal noise of row `step_index` of a table (0 is the first): float32 [N, *shape], into `out` when given.

    The same numbers as kernels.update(..., seeds=seeds, step=step_index) generates in passing, where there is no block.
    """
    return _draw(seeds, kernels.STREAM_STEP, step_index, shape, out, block)


def known_noise(seeds: Seeds, row: int, shape: Sequence[int], block: Block = None) -> F32:
    """Unit normal noise of what is known of a state, for blending it in before row `row`: float32 [N, *shape]."""
    return _draw(seeds, kernels.STREAM_KNOWN, row, shape, None, block)


def augmentation(seeds: Seeds, shape: Sequence[int]) -> F32:
    """Unit normal noise of a picture that a stage of a cascade takes: float32 [N, *shape]."""
    return _draw(seeds, kernels.STREAM_AUGMENT, 0, shape, None)


def stage_seeds(seeds: Seeds, stage: int) -> Seeds:
    """The seeds of a cascade's stage, counted from 0, whose own seeds those of the first are.

    Those after it come from the first's by a stream of their own: with one seed in all stages, states of one shape would
    start from the noise that the picture before was made of.
    """
    if stage == 0:
        return seeds
    found = np.empty_like(seeds)
    counter = np.array([0, 0, stage, kernels.STREAM_STAGE], np.uint32)
    for index, seed in enumerate(seeds.tolist()):
        low, high = kernels.philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32])[:2].tolist()
        found[index] = low | high << 32
    return found


def _draw(
    seeds: Seeds, stream: int, step: int, shape: Sequence[int], out: F32 | None, block: Block = None
) -> F32:
    """One draw. A canvas [C, H, W] is laid out from its upper left in blocks: each has the noise of a sample of that size,
    from its own stream, the first one from that of a sample that is no canvas."""
    full = (seeds.size, *shape)
    if out is not None and (out.shape != full or not out.flags.c_contiguous):
        raise ArgumentError(f"out has shape {list(out.shape)}; expected C-contiguous float32 {list(full)}")
    if block is None:
        count = math.prod(shape)
        flat = None if out is None else out.reshape(seeds.size, count)
        return kernels.normal(seeds, stream, step, count, flat).reshape(full)
    out = np.empty(full, np.float32) if out is None else out
    size = (shape[0], *block)
    for down, top in enumerate(range(0, shape[1], block[0])):
        for across, left in enumerate(range(0, shape[2], block[1])):
            named = stream | down << STREAM_BITS | across << (STREAM_BITS + BLOCK_BITS)
            part = kernels.normal(seeds, named, step, math.prod(size)).reshape(seeds.size, *size)
            room = out[:, :, top : top + block[0], left : left + block[1]]
            room[:] = part[:, :, : room.shape[2], : room.shape[3]]
    return out
