"""The roofline of this machine: matrix products from the second-level cache and its weight streaming, measured.

Both by the native library with the instructions its convolutions use, in the same run as the contestants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.latency.work import BYTES, Work

SECONDS = 0.5
PRODUCTS = {"f32": "f32_l2", "bf16": "bf16_l2", "int8": "int8_l2"}


def measure(threads: int) -> dict[str, Any]:
    """TFLOP/s (int8: TOP/s) of each precision, None where the processor has no unit for it, and GB/s of streaming."""
    from engine.backends.native.isa import ceiling, instruction_set

    products = {precision: ceiling(what, threads, SECONDS) for precision, what in PRODUCTS.items()}
    stream = ceiling("stream", threads, SECONDS)
    assert stream is not None, "every processor reads memory"
    return {
        "isa": instruction_set(),
        "threads": threads,
        "tflops": {name: None if value is None else round(value / 1e12, 4) for name, value in products.items()},
        "stream_gb_per_s": round(stream / 1e9, 2),
    }


def achieved(row: Mapping[str, Any], precision: str, work: Work) -> dict[str, float]:
    """TFLOP/s, and GB/s of weights if each is read once a call, of a contestant's median step.

    Operations are the network's own, convolutions done directly: with Winograd's form a contestant can pass the roofline.
    """
    seconds = row["step_ms"]["p50"] / 1e3
    return {
        "tflops": round(work.flop * row["batch"] / seconds / 1e12, 4),
        "weights_gb_per_s": round(work.weights * BYTES[precision] / seconds / 1e9, 3),
    }


def text(roof: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    """The ceiling and how near each model's work comes to it, for people."""
    peaks = ", ".join(f"{name} {value:.3g} TFLOP/s" for name, value in roof["tflops"].items() if value is not None)
    lines = [
        f"roofline ({roof['isa']}, {roof['threads']} threads): {peaks} from L2; {roof['stream_gb_per_s']:.1f} GB/s",
        "operations are counted as a direct convolution does them; native does 16 of 36 where it takes Winograd's form",
    ]
    for model in models:
        work = model["work"]
        lines.append(f"{model['name']}: {work['gflop']:.2f} GFLOP and {work['mega_weights']:.1f} M weights a step")
    return "\n".join(lines)
