"""The front of a fit as a picture: how far images are from the training images for each count of calls, plain and fitted."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.commands import install_extra
from engine.errors import ArgumentError
from export.fitting.fit import Fit

PLAIN, FITTED = ("#7f7f7f", "s", "plain setting"), ("#0072B2", "o", "fitted setting")


def open_pyplot() -> Any:
    """matplotlib's pyplot, without a window; ArgumentError where it is not installed."""
    try:
        importlib.import_module("matplotlib").use("agg")
    except ImportError as error:
        raise ArgumentError(
            f"--plot: found no matplotlib ({error}), expected it; leave --plot out, or install it with: "
            f"{install_extra('benchmark')}"
        ) from error
    return importlib.import_module("matplotlib.pyplot")


def draw(fits: Sequence[Fit], subtitle: str, path: Path) -> None:
    """Write the picture. `subtitle` says what was compared."""
    pyplot, found = open_pyplot(), sorted(fits, key=lambda fit: fit.calls)
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    lines = (
        (PLAIN, [(fit.calls, fit.plain.fd) for fit in found]),
        (FITTED, [(fit.calls, (fit.plain if fit.score is None else fit.score).fd) for fit in found]),
    )
    for (colour, marker, label), points in lines:
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
    for calls, distance in lines[1][1]:
        axes.annotate(f"{distance:.4g}", (calls, distance), (0, -14), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks([fit.calls for fit in found], [str(fit.calls) for fit in found])
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.set_xlabel("network calls")
    axes.set_ylabel("distance on unseen seeds, lower is better")
    axes.set_title("Settings fitted to this bundle", loc="left", fontweight="bold", pad=22)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color="#555555", va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150, bbox_inches="tight")
    finally:
        pyplot.close(figure)
