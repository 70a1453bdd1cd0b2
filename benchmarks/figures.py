"""What the plots of all benchmarks share: matplotlib without a window, ink, grid and titles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machine import BenchmarkError

INK, GRID, HIGHLIGHT = "#222222", "#dddddd", "#E69F00"


def open_pyplot() -> Any:
    """matplotlib.pyplot without a window, in the house's style; BenchmarkError where matplotlib is missing."""
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
    """Write a figure, making its folder, and close it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        pyplot.close(figure)


def frame(axes: Any, title: str, subtitle: str) -> None:
    """Title and subtitle at the left, two spines, a faint grid behind everything."""
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", pad=38)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9.5, color="#555555", va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
