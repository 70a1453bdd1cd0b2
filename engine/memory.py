"""Memory: what a run on a canvas takes, and what is free.

Of what the networks themselves take, only backend native knows the figure before it touches any memory (the layout of a
program). The other runtimes' is not estimated: ONNX Runtime and OpenVINO say none before they run.
"""

from __future__ import annotations

import math
from pathlib import Path

from engine.bundle.pipeline import PipelineSpec
from engine.errors import HostMemoryError

STATES = 10  # arrays of the state's size that a chain may have: x, x0, y, history, noise and what numpy makes between


def available() -> int | None:
    """Bytes that the system could give without swapping (Linux's MemAvailable); None where nothing says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # another system
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def needed(spec: PipelineSpec, lanes: int, at_once: int, n: int) -> int:
    """Bytes of n samples, so many of them at once: of what is as large as the canvas outside of the networks."""
    state = 4 * math.prod(spec.state.shape)
    kinds = [value.shape[1:] for name, value in spec.values.items() if name in (spec.maps or {})]
    maps = [4 * math.prod(size for size in shape if isinstance(size, int)) for shape in kinds]
    results = state + math.prod(spec.image_shape)
    return at_once * ((STATES + 2 * lanes) * state + sum(maps) + 2 * max(maps, default=0)) + n * results


def check_room(spec: PipelineSpec, lanes: int, at_once: int, n: int, networks: int, *, tiled: bool) -> None:
    """HostMemoryError, before anything runs, for a canvas that does not fit. networks: bytes that they take, where known."""
    free, wanted = available(), needed(spec, lanes, at_once, n) + networks
    if free is not None and wanted > free:
        height, width = spec.image_shape[1:]
        beside = f", {networks / 2**30:.1f} of them in the networks" if networks else " beside the networks"
        cure = "" if tiled else ", or pass overlap=0.5, whose tiles take less"
        raise HostMemoryError(
            f"size: found {n} images of {height} x {width}, {at_once} at once, which take {wanted / 2**30:.1f} GiB{beside}; "
            f"expected at most the {free / 2**30:.1f} GiB that are free. Lower max_batch, n or the size{cure}."
        )
