"""The plot of distance against milliseconds, and samples side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures
from benchmarks.quality.cases import BASELINE, CURVES, NOISE, RECON, VAE, Case, plain
from benchmarks.quality.peers import PEERS

# Okabe and Ito's colours, told apart with every kind of colour vision, and a marker each for prints without colour.
STYLES = {VAE: ("#7f7f7f", "D"), BASELINE: ("#D55E00", "s"), NOISE: ("#0072B2", "o"), RECON: ("#009E73", "^")}


def draw_quality(result: dict[str, Any], path: Path) -> None:
    """Distance against milliseconds an image, both on log axes: a curve for each way to sample."""
    pyplot = figures.open_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 5.8))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for curve in CURVES:
        _draw_curve(axes, curve, [row for row in result["settings"] if row["curve"] == curve])
    alone = [row for row in result["settings"] if row["key"] == Case(VAE, 0).key]
    axes.plot(*_points(alone), STYLES[VAE][1], color=STYLES[VAE][0], markersize=8, label=VAE)
    if result["floor"] is not None:
        level = _visible(result["floor"])
        axes.axhline(level, color=figures.INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"real images: {level:.1f}", (1, level), xycoords=("axes fraction", "data"), xytext=(-4, 4),
            textcoords="offset points", ha="right", fontsize=9,
        )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(_sparse())
    axes.set_xlabel("milliseconds per image, batch 1, seed to pixels")
    axes.set_ylabel(f"{result['metric']['fd']}, lower is better")
    figures.frame(axes, "Quality against time", _circumstances(result))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10)
    figures.save_figure(pyplot, figure, path)


def _circumstances(result: dict[str, Any]) -> str:
    inputs, engine = result["inputs"], result["engine"]
    counts = f"{inputs['samples']} samples a setting against {inputs['heldout']['images']} held-out images"
    how = f"{result['machine']['processor']}, threads: {engine['threads']}, {engine['backend']} {engine['precision']}"
    return f"{counts}; {how}\nnumbers are network calls; diffusers' schedulers stand at our time of as many calls"


def _sparse() -> Any:
    """Labels 2 and 5 between the powers of ten, and no others."""
    from matplotlib.ticker import FuncFormatter

    def label(value: float, _: int) -> str:
        lead = value / 10 ** np.floor(np.log10(value)) if value > 0 else 0
        return f"{value:g}" if round(float(lead), 6) in (2.0, 5.0) else ""

    return FuncFormatter(label)


def _draw_curve(axes: Any, curve: str, rows: Sequence[dict[str, Any]]) -> None:
    """The fitted settings of a curve as a line with the counts of calls, the plain ones dashed, the peers as crosses."""
    color, marker = STYLES[curve]
    textbook = [row for row in rows if row["key"] == plain(curve, row["network_calls"]).key]
    ours = [row for row in rows if row["kind"] == "fitted"]
    peers = [row for row in rows if row["kind"] in {peer.name for peer in PEERS}]
    for drawn, style, name in (
        (ours, {"linestyle": "-", "linewidth": 2.2, "marker": marker, "markersize": 8}, f"{curve}, fitted"),
        (textbook, {"linestyle": "--", "linewidth": 1.2, "marker": marker, "fillstyle": "none"}, f"{curve}, plain"),
        (peers, {"linestyle": "none", "marker": "x", "alpha": 0.7}, f"diffusers, {curve.removeprefix('DiffuseVAE ')}"),
    ):
        if drawn:
            axes.plot(*_points(sorted(drawn, key=lambda row: int(row["network_calls"]))), color=color, label=name, **style)
    for row in (*ours, *textbook):
        # The fitted settings lie lowest where it matters: their numbers stand below them, the others' above.
        axes.annotate(
            f"{row['network_calls']}", (row["ms_per_image"], _visible(row)), xytext=(0, -16 if row in ours else 8),
            textcoords="offset points", ha="center", fontsize=9, color=color,
        )  # fmt: skip


def _points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["ms_per_image"] for row in rows], [_visible(row) for row in rows]


def _visible(row: dict[str, Any]) -> float:
    """The distance, kept above the 0 that a log axis cannot show."""
    return max(float(row["fd"]), 1e-3)


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
