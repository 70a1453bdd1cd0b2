"""Where `refine` starts a chain, by how damaged its images look: the table that `diffusevae fit-refine` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from engine.bundle.fields import Fields, refuse
from engine.bundle.fitted import step_digest
from engine.bundle.limits import MAX_STARTS
from engine.bundle.schema import read, take

if TYPE_CHECKING:
    from engine.bundle.manifest import Manifest

MEASURES = 5  # of how damaged an image looks: the fields of engine.damage.Estimate
GREY_LEVEL = 0.005  # what rounding to 1/255 leaves no trace of
EVIDENCE = 4  # images' worth at most: the damages of the table are samples, and more images do not make them exact


@dataclass(frozen=True)
class StartRow:
    """Images with one damage: mean and spread over them of `looks`, and the PSNR in dB that each start gives."""

    mean: Annotated[tuple[float, ...], Fields.series, -10.0, 10.0, "measures"]
    spread: Annotated[tuple[float, ...], Fields.series, 0.001, 10.0, "measures"]
    psnr: Annotated[tuple[float, ...], Fields.series, 0.0, 100.0, "starts"]


@dataclass(frozen=True)
class Starts:
    """What `diffusevae fit-refine` wrote.

    of        SHA-256 of the step's graph that the table was fitted on
    t_starts  the timesteps to choose among
    damages   the table
    record    images, damages, date, engine; not read by the engine
    """

    of: Annotated[str, Fields.sha256]
    t_starts: Annotated[tuple[int, ...], Fields.falling, 0, "last"]
    damages: tuple[StartRow, ...]
    record: Annotated[dict[str, Any], Fields.free]

    def choose(self, measures: npt.NDArray[np.floating[Any]]) -> int:
        """The start that promises most for images that measure [N, MEASURES]: each damage counts as much as they look like
        images with it (normal in `looks`), so that one mistaken for another costs little."""
        mean, spread, psnr = (np.array([getattr(row, name) for row in self.damages]) for name in ("mean", "spread", "psnr"))
        apart = (looks(measures)[:, None] - mean) / spread
        likelihood = -(np.square(apart) / 2 + np.log(spread)).sum(2).mean(0) * min(len(measures), EVIDENCE)
        weights = np.exp(likelihood - likelihood.max())
        return self.t_starts[int((weights @ psnr).argmax())]


def looks(measures: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Measures [N, MEASURES] as they are compared: by ratios, as a trace of noise matters where there is little."""
    found: npt.NDArray[np.float64] = np.log(measures.astype(np.float64) + GREY_LEVEL)
    return found


def parse_starts(top: Fields, T: int) -> Starts | None:
    """The field `refine`, which may be null."""
    if top.take_null("refine"):
        return None
    fields = top.object("refine")
    taken, expected = take(Starts, fields, last=T - 1), f"a list of 1..{MAX_STARTS} damages"
    rows: Sequence[Fields] = fields.objects("damages", expected)
    if len(rows) > MAX_STARTS:
        fields.refuse("damages", expected)
    damages = tuple(read(StartRow, row, measures=MEASURES, starts=len(taken["t_starts"])) for row in rows)
    fields.done()
    return Starts(damages=damages, **taken)


def check_starts(manifest: Manifest, where: str) -> None:
    """Refuse a table that was fitted on another network than the bundle's: it would mean nothing here."""
    if manifest.refine is not None and manifest.refine.of != step_digest(manifest):
        expected = f"{step_digest(manifest)}, the SHA-256 of the step's graph, on which starts are fitted"
        refuse(where, "refine.of", manifest.refine.of, expected)
