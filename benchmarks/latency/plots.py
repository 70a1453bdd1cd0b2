"""The plot of the latency benchmark: a bar for each contestant, a panel for each model and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures

# A colour for each family of contestants, the first that a name contains.
FAMILIES = ("torch", "plain", "native int8", "native", "")
BARS = ("#9aa5b1", "#CC79A7", "#E69F00", "#009E73", "#0072B2")


def draw_latency(result: dict[str, Any], path: Path) -> None:
    """Median milliseconds of a whole image, and of one step: a row of panels for each model, a panel for each batch size."""
    pyplot = figures.open_pyplot()
    models = [model for model in result["models"] if model["results"]] or result["models"][:1]
    batches = sorted({row["batch"] for model in models for row in model["results"]}) or [0]
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
    figures.save_figure(pyplot, figure, path)


def digits(milliseconds: float) -> str:
    """Three digits, or all before the point where these are more."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _timed(model: dict[str, Any], name: str) -> bool:
    return any(row["contestant"] == name for row in model["results"])


def _draw_panel(axes: Any, names: Sequence[str], rows: dict[str, Any], title: str) -> None:
    """A bar for each contestant that was timed; an empty line for one that was not."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", color=figures.GRID)
    axes.set_axisbelow(True)
    if rows:
        axes.locator_params(axis="x", nbins=5)  # five numbers of five digits are what fits beside each other
        axes.set_xlim(0, 1.45 * max(row["total_ms"]["p90"] for row in rows.values()))
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "not timed", transform=axes.transAxes, ha="center", color="#777777")
    for position, name in enumerate(names):
        if name in rows:
            _draw_bar(axes, position, name, rows[name])


def _draw_bar(axes: Any, position: int, name: str, row: dict[str, Any]) -> None:
    total, step = row["total_ms"], row["step_ms"]
    axes.barh(position, total["p50"], height=0.66, color=BARS[next(i for i, key in enumerate(FAMILIES) if key in name)])
    axes.plot([total["p50"], total["p90"]], [position, position], color=figures.INK, linewidth=1.4)
    axes.annotate(
        f"{total['p50']:.0f} ({digits(step['p50'])})", (total["p90"], position), xytext=(5, 0), textcoords="offset points",
        va="center", fontsize=9,
    )  # fmt: skip
