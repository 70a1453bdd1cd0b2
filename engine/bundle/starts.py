"""Where `refine` starts a chain, by how damaged its images look: the table that `diffusevae fit-refine` writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from engine.bundle.fields import Fields, refuse
from engine.bundle.fitted import step_digest
from engine.bundle.limits import MAX_STARTS
from engine.bundle.schema import read, take

if TYPE_CHECKING:
    from engine.bundle.manifest import Manifest

RESIDUAL = 10.0  # beyond what two images in [-1, 1] can differ by, and more noise than pixels in [0, 1] can show

GREY_LEVEL = 0.005  # what rounding to 1/255 leaves no trace of


@dataclass(frozen=True)
class StartRow:
    """The best start of images that look so: the noise in them, how far the encoder's reconstruction is off, both RMS
    in [0, 1], and the timestep."""

    noise: Annotated[float, Fields.number, 0.0, RESIDUAL]
    residual: Annotated[float, Fields.number, 0.0, RESIDUAL]
    t_start: Annotated[int, Fields.integer, 0, "last"]


@dataclass(frozen=True)
class Starts:
    """What `diffusevae fit-refine` wrote.

    of      SHA-256 of the step's graph that the table was fitted on
    starts  the table; the row nearest to an estimate holds
    record  images, damages, scores, date, engine; not read by the engine
    """

    of: Annotated[str, Fields.sha256]
    starts: tuple[StartRow, ...]
    record: Annotated[dict[str, Any], Fields.free]

    def nearest(self, noise: float, residual: float) -> StartRow:
        """The row of the images that look most like these: by ratios, as a trace of noise matters where there is little."""

        def distance(row: StartRow) -> float:
            pairs = ((row.noise, noise), (row.residual, residual))
            return math.hypot(*(math.log((a + GREY_LEVEL) / (b + GREY_LEVEL)) for a, b in pairs))

        return min(self.starts, key=distance)


def parse_starts(top: Fields, T: int) -> Starts | None:
    """The field `refine`, which may be null."""
    if top.take_null("refine"):
        return None
    fields = top.object("refine")
    taken, expected = take(Starts, fields), f"a list of 1..{MAX_STARTS} rows"
    rows: Sequence[Fields] = fields.objects("starts", expected)
    if len(rows) > MAX_STARTS:
        fields.refuse("starts", expected)
    starts = tuple(read(StartRow, row, last=T - 1) for row in rows)
    fields.done()
    return Starts(starts=starts, **taken)


def check_starts(manifest: Manifest, where: str) -> None:
    """Refuse a table that was fitted on another network than the bundle's: it would mean nothing here."""
    if manifest.refine is not None and manifest.refine.of != step_digest(manifest):
        expected = f"{step_digest(manifest)}, the SHA-256 of the step's graph, on which starts are fitted"
        refuse(where, "refine.of", manifest.refine.of, expected)
