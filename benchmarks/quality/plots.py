"""The plot of distance against milliseconds, and samples side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures
from benchmarks.quality.cases import BASELINE, FEW_CALLS, NOISE, RECON, VAE

# Okabe and Ito's colours, told apart with every kind of colour vision, and a marker each for prints without colour.
STYLES = {VAE: ("#7f7f7f", "D"), BASELINE: ("#D55E00", "s"), NOISE: ("#0072B2", "o"), RECON: ("#009E73", "^")}


def draw_quality(result: dict[str, Any], path: Path) -> None:
    """Distance against milliseconds an image, both on log axes: a curve for each way to sample."""
    pyplot = figures.open_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 5.8))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for curve in (BASELINE, NOISE, RECON, VAE):
        _draw_curve(axes, curve, [row for row in result["settings"] if row["curve"] == curve])
    for floor in result["floors"][-1:]:
        axes.axhline(max(floor["fd"], 1e-3), color=figures.INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"real images against real images: {floor['fd']:.1f}",
            (1, max(floor["fd"], 1e-3)), xycoords=("axes fraction", "data"), xytext=(-4, 4),
            textcoords="offset points", ha="right", fontsize=9,
        )  # fmt: skip
    _ring(axes, result)
    plain = "{x:g}"
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(_sparse())
    axes.set_xlabel("milliseconds per image, batch 1, seed to pixels")
    axes.set_ylabel(f"{result['metric']['name']}, lower is better")
    figures.frame(axes, "Quality against time", _circumstances(result))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10)
    figures.save_figure(pyplot, figure, path)


def _circumstances(result: dict[str, Any]) -> str:
    inputs, engine = result["inputs"], result["engine"]
    counts = f"{inputs['samples']} samples a setting against {inputs['heldout']['images']} held-out images"
    how = f"{result['machine']['processor']}, threads: {engine['threads']}, {engine['backend']} {engine['precision']}"
    return f"{counts}; {how}\nnumbers are steps; faint points are other starts, spacings and guidance"


def _sparse() -> Any:
    """Labels 2 and 5 between the powers of ten, and no others."""
    from matplotlib.ticker import FuncFormatter

    def label(value: float, _: int) -> str:
        lead = value / 10 ** np.floor(np.log10(value)) if value > 0 else 0
        return f"{value:g}" if round(float(lead), 6) in (2.0, 5.0) else ""

    return FuncFormatter(label)


def _draw_curve(axes: Any, curve: str, rows: Sequence[dict[str, Any]]) -> None:
    """The points of a curve joined by step count; variations, and starts that are not the best, small and alone."""
    if not rows:
        return
    color, marker = STYLES[curve]
    front = _front(rows)
    others = [row for row in rows if row not in front]
    if others:
        axes.plot(*_points(others), marker, color=color, markersize=5, alpha=0.35, markeredgewidth=0)
    label = f"{curve}\n(best start of each step count)" if curve == RECON else curve
    line = "none" if curve == VAE else "-"
    axes.plot(*_points(front), marker=marker, color=color, markersize=8, linewidth=2.2, linestyle=line, label=label)
    for row in front:
        if row["steps"]:
            # The reconstruction's curve lies lowest where it matters: its names stand below it, the others' above.
            place = (0, -16) if row["setting"]["t_start"] is not None else (0, 8)
            axes.annotate(
                f"{row['steps']}", (row["ms_per_image"], _visible(row)), xytext=place, textcoords="offset points",
                ha="center", fontsize=9, color=color,
            )  # fmt: skip


def _front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best plain row of each step count, by steps."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["plain"] and (row["steps"] not in best or row["fd"] < best[row["steps"]]["fd"]):
            best[row["steps"]] = row
    return [best[steps] for steps in sorted(best)]


def _points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["ms_per_image"] for row in rows], [_visible(row) for row in rows]


def _visible(row: dict[str, Any]) -> float:
    """The distance, kept above the 0 that a log axis cannot show."""
    return max(float(row["fd"]), 1e-3)


def _ring(axes: Any, result: dict[str, Any]) -> None:
    """Mark the recommended setting."""
    for row in result["settings"]:
        if row["key"] == result["recommended_key"]:
            axes.plot(
                row["ms_per_image"], _visible(row), "o", markersize=18, fillstyle="none", color=figures.HIGHLIGHT,
                markeredgewidth=2.5, label=f"best with at most {FEW_CALLS} network calls", linestyle="none",
            )  # fmt: skip


def draw_rows(rows: Sequence[tuple[str, Any]], path: Path) -> None:
    """One captioned row of images for each setting, the same seeds in the same columns; images uint8 [N, H, W, 3]."""
    pyplot = figures.open_pyplot()
    columns = max(len(images) for _, images in rows)
    figure, grid = pyplot.subplots(len(rows), 1, figsize=(0.95 * columns + 2.2, 1.02 * len(rows)), squeeze=False)
    for (caption, images), axes in zip(rows, grid[:, 0], strict=True):
        gap = np.full((images.shape[1], 1, 3), 255, np.uint8)
        strip = np.concatenate([part for image in images for part in (image, gap)][:-1], axis=1)
        axes.imshow(strip, interpolation="nearest")
        axes.set_axis_off()
        axes.text(-4, images.shape[1] / 2, caption, ha="right", va="center", fontsize=11)
    figure.subplots_adjust(hspace=0.06)
    figures.save_figure(pyplot, figure, path)
