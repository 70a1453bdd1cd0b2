"""The report of a latency run: a row per contestant and batch, ratios, and tables for people, plain and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.latency import duel
from benchmarks.latency.field import Contestant

NETWORKS = ("network", "before", "rows", "after")  # the stages of a run that are graphs
REFERENCE = "torch eager f32"  # what the reference implementation does; ratios are against it where it was timed


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p90, p99 (interpolated) and the count of what was timed."""
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    figures = {"mean": float(np.mean(values)), "p50": float(p50), "p90": float(p90), "p99": float(p99)}
    return {**{key: round(value, 4) for key, value in figures.items()}, "n": len(values)}


def row_of(contestant: Contestant, batch: int, record: duel.Record) -> dict[str, Any]:
    """One line of the result."""
    total, step = percentiles(record.totals), percentiles(record.calls)
    return {
        "contestant": contestant.name,
        "batch": batch,
        "total_ms": total,
        "step_ms": step,
        "images_per_second": round(1e3 * batch / total["p50"], 2),
        "rest": rest_of(record, step["p50"]) if "update" in record.stages[0] else None,
        "load_ms": round(record.load_ms, 1),
        "first_sample_ms": round(record.first_sample_ms, 2),
        "peak_rss_mb": record.peak_rss_mb,
    }


def rest_of(record: duel.Record, step_ms: float) -> dict[str, float]:
    """What is not a neural network, for each step, in percent of a step; medians over the runs.

    A run's total without the step's network and the graphs before and after the loop, the table of timesteps among them:
    noise, update, rounding to pixels, and all Python around them. Beside it the update alone, and everything but the
    step's network.
    """
    steps = len(record.calls) / len(record.totals)

    def percent(milliseconds: list[float]) -> float:
        return round(100 * float(np.median(milliseconds)) / steps / step_ms, 3)

    runs = record.stages
    return {
        "percent_of_step": percent([r["total"] - sum(r[name] for name in NETWORKS) for r in runs]),
        "update_percent": percent([r["update"] for r in runs]),
        "all_but_denoiser_percent": percent([r["total"] - r["network"] for r in runs]),
    }


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times faster each is than the reference at the same batch, in medians; None where that was not timed."""
    medians = {(row["contestant"], row["batch"]): row for row in rows}
    for row in rows:
        base = medians.get((REFERENCE, row["batch"]))
        row["speedup"] = round(base["total_ms"]["p50"] / row["total_ms"]["p50"], 3) if base else None
        row["step_speedup"] = round(base["step_ms"]["p50"] / row["step_ms"]["p50"], 3) if base else None


def table(model: dict[str, Any], steps: int) -> str:
    """One configuration's result as text."""
    columns = {
        "contestant": -24, "batch": 5, "step p50": 9, "p90": 8, "p99": 8, "end-to-end": 11, "img/s": 8, "faster": 7,
        "TFLOP/s": 8, "rest": 7, "load": 8, "first": 8, "RSS MB": 7,
    }  # fmt: skip
    head = " ".join(f"{name:{'<' if width < 0 else '>'}{abs(width)}}" for name, width in columns.items())
    _, height, width = model["image"]
    lines = [f"{model['name']}, {height} x {width}", head]
    for row in model["results"]:
        step, total = row["step_ms"], row["total_ms"]
        faster = f"{row['speedup']:.2f}x" if row["speedup"] else "-"
        rest = f"{row['rest']['percent_of_step']:.2f} %" if row["rest"] else "-"
        lines.append(
            f"{row['contestant']:<24} {row['batch']:>5} {step['p50']:>9.2f} {step['p90']:>8.2f} {step['p99']:>8.2f} "
            f"{total['p50']:>11.1f} {row['images_per_second']:>8.2f} {faster:>7} {row['achieved']['tflops']:>8.3f} "
            f"{rest:>7} {row['load_ms']:>8.0f} {row['first_sample_ms']:>8.0f} {row['peak_rss_mb']:>7.0f}"
        )
    lines += [f"batch {entry['batch']} left out: {entry['reason']}" for entry in model["left_out"]]
    lines += [f"{c['name']:<24} skipped: {c['reason']}" for c in model["contestants"] if c["status"] == "skipped"]
    lines += [f"{f['contestant']:<24} {f['batch']:>5} FAILED: {f['reason']}" for f in model["failures"]]
    lines.append(
        f"milliseconds; {steps} steps; faster = end to end against {REFERENCE}, same batch; "
        f"rest = everything but the networks, in % of a step"
    )
    return "\n".join(lines)


MARKDOWN = (
    "batch", "contestant", "a step, ms", "{steps} steps, ms", "images/s", "faster", "TFLOP/s", "rest", "load, ms", "RSS, MB",
)  # fmt: skip


def markdown(model: dict[str, Any], steps: int) -> str:
    """The same as a table in Markdown: p50 / p90 / p99 of a step, the others medians."""
    lines = [f"| {' | '.join(MARKDOWN)} |".format(steps=steps), f"|{' --- |' * len(MARKDOWN)}"]
    for row in model["results"]:
        step = " / ".join(f"{row['step_ms'][key]:.2f}" for key in ("p50", "p90", "p99"))
        faster = f"{row['speedup']:.2f}×" if row["speedup"] else "–"
        rest = f"{row['rest']['percent_of_step']:.2f} %" if row["rest"] else "–"
        cells = (
            row["batch"], row["contestant"], step, f"{row['total_ms']['p50']:.1f}", row["images_per_second"], faster,
            f"{row['achieved']['tflops']:.3f}", rest, f"{row['load_ms']:.0f}", f"{row['peak_rss_mb']:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
