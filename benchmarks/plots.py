"""How do the results look? Distance against milliseconds, samples side by side, and the contestants' times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import BASELINE, FEW_CALLS, NOISE, RECON, VAE
from benchmarks.machine import BenchmarkError

# Okabe and Ito's colours, told apart with every kind of colour vision, and a marker each for prints without colour.
STYLES = {VAE: ("#7f7f7f", "D"), BASELINE: ("#D55E00", "s"), NOISE: ("#0072B2", "o"), RECON: ("#009E73", "^")}
INK, GRID, HIGHLIGHT = "#222222", "#dddddd", "#E69F00"
# A colour for each family of contestants, the first that a name contains.
FAMILIES = ("torch", "plain", "native int8", "native", "")
BARS = ("#9aa5b1", "#CC79A7", "#E69F00", "#009E73", "#0072B2")


def open_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise BenchmarkError(
            f"plots: found no matplotlib ({error}), expected it; install it with: pip install 'diffusevae-engine[benchmark]'"
        ) from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 11, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "savefig.facecolor": "white"}
    )
    return pyplot


def save_figure(pyplot: Any, figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        pyplot.close(figure)


def _frame(axes: Any, title: str, subtitle: str) -> None:
    """Title and subtitle at the left, two spines, a faint grid behind everything."""
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", pad=38)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9.5, color="#555555", va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


# --- Quality ----------------------------------------------------------------------------------------------------------


def draw_quality(result: dict[str, Any], path: Path) -> None:
    """Distance against milliseconds an image, both on log axes: a curve for each way to sample."""
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 5.8))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for curve in (BASELINE, NOISE, RECON, VAE):
        _draw_curve(axes, curve, [row for row in result["settings"] if row["curve"] == curve])
    for floor in result["floors"][-1:]:
        axes.axhline(max(floor["fd"], 1e-3), color=INK, linewidth=1, linestyle=(0, (4, 3)))
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
    _frame(axes, "Quality against time", _circumstances(result))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10)
    save_figure(pyplot, figure, path)


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
                row["ms_per_image"], _visible(row), "o", markersize=18, fillstyle="none", color=HIGHLIGHT,
                markeredgewidth=2.5, label=f"best with at most {FEW_CALLS} network calls", linestyle="none",
            )  # fmt: skip


def draw_rows(rows: Sequence[tuple[str, Any]], path: Path) -> None:
    """One captioned row of images for each setting, the same seeds in the same columns; images uint8 [N, H, W, 3]."""
    pyplot = open_pyplot()
    columns = max(len(images) for _, images in rows)
    figure, grid = pyplot.subplots(len(rows), 1, figsize=(0.95 * columns + 2.2, 1.02 * len(rows)), squeeze=False)
    for (caption, images), axes in zip(rows, grid[:, 0], strict=True):
        gap = np.full((images.shape[1], 1, 3), 255, np.uint8)
        strip = np.concatenate([part for image in images for part in (image, gap)][:-1], axis=1)
        axes.imshow(strip, interpolation="nearest")
        axes.set_axis_off()
        axes.text(-4, images.shape[1] / 2, caption, ha="right", va="center", fontsize=11)
    figure.subplots_adjust(hspace=0.06)
    save_figure(pyplot, figure, path)


# --- Latency ----------------------------------------------------------------------------------------------------------


def draw_latency(result: dict[str, Any], path: Path) -> None:
    """Median milliseconds of a whole image, and of one step: a row of panels for each model, a panel for each batch size."""
    pyplot = open_pyplot()
    models = [model for model in result["models"] if model["results"]]
    batches = sorted({row["batch"] for model in models for row in model["results"]})
    names = [c["name"] for c in models[0]["contestants"] if any(_timed(model, c["name"]) for model in models)]
    size = (2.2 + 4.2 * len(batches), (0.34 * len(names) + 1.1) * len(models) + 0.5)
    figure, grid = pyplot.subplots(len(models), len(batches), figsize=size, squeeze=False)
    for model, line in zip(models, grid, strict=True):
        for batch, axes in zip(batches, line, strict=True):
            rows = {row["contestant"]: row for row in model["results"] if row["batch"] == batch}
            _draw_panel(axes, names, rows, f"{model['name']}, batch {batch}")
            axes.tick_params(axis="y", labelleft=batch == batches[0])
    machine = f"{result['machine']['processor']}, threads: {result['threads']}, alternating in one run"
    figure.suptitle(
        f"Milliseconds from z to pixels, {result['steps']} steps (median; line to p90; in brackets one step)\n{machine}",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    figure.tight_layout()
    save_figure(pyplot, figure, path)


def _timed(model: dict[str, Any], name: str) -> bool:
    return any(row["contestant"] == name for row in model["results"])


def _draw_panel(axes: Any, names: Sequence[str], rows: dict[str, Any], title: str) -> None:
    """A bar for each contestant that was timed; an empty line for one that was not."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", color=GRID)
    axes.set_axisbelow(True)
    if rows:
        axes.set_xlim(0, 1.45 * max(row["total_ms"]["p90"] for row in rows.values()))
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "left out: too long here", transform=axes.transAxes, ha="center", color="#777777")
    for position, name in enumerate(names):
        if name in rows:
            _draw_bar(axes, position, name, rows[name])


def _draw_bar(axes: Any, position: int, name: str, row: dict[str, Any]) -> None:
    total, step = row["total_ms"], row["step_ms"]
    axes.barh(position, total["p50"], height=0.66, color=BARS[next(i for i, key in enumerate(FAMILIES) if key in name)])
    axes.plot([total["p50"], total["p90"]], [position, position], color=INK, linewidth=1.4)
    axes.annotate(
        f"{total['p50']:.0f} ({step['p50']:.3g})", (total["p90"], position), xytext=(5, 0), textcoords="offset points",
        va="center", fontsize=9,
    )  # fmt: skip
