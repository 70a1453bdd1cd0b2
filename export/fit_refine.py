"""Fitting the starts of `refine` from a terminal: `diffusevae fit-refine BUNDLE --images FILE`.

From a checkout this file itself is the command: `python export/fit_refine.py BUNDLE --images FILE`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # From a checkout nothing needs to be installed; and this folder itself must not shadow other packages.
    HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]
    if missing := [name for name in ("numpy", "click", "tqdm") if find_spec(name) is None]:
        from engine.commands import install_extra

        raise SystemExit(f"Error: found no {', '.join(missing)}, expected them; install with: {install_extra('export')}")

import click
import numpy as np
import numpy.typing as npt

from engine import Sampler, __version__
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import check_rewritable, write_starts
from engine.bundle.starts import looks
from engine.cli.terminal import Program, shows_progress
from engine.errors import ArgumentError
from engine.places import check_file
from engine.result import U8
from export.dates import now
from export.fitting.damages import FITTED
from export.fitting.saved import check_beside_take, checkpoint_of, load_fit, save_fit
from export.training_images import read_images, thinned

LEAST = 8  # images, below which a best start is chance
SEED = 3_000_000  # of the damages and chains, away from those of the benchmarks
# Where chains may start, in thousandths of the schedule. Between 400 and 999 nothing was seen to be better than both.
STARTS = (4, 10, 50, 100, 150, 200, 300, 400, 999)
SPREAD = 0.1  # added to how much images with a damage differ: the damages that will come are none of those fitted to
ESTIMATED = 128  # images at most that say how a damage looks, which costs little


class Fit(NamedTuple):
    """How a damage is called, how images with it look (mean and spread of `looks`), and what each start gives in dB."""

    title: str
    mean: list[float]
    spread: list[float]
    psnr: dict[int, float]

    @property
    def best(self) -> int:
        """The start that gives most."""
        return max(self.psnr, key=lambda start: self.psnr[start])


def psnr(images: U8, originals: U8) -> npt.NDArray[np.float64]:
    """Of each image [N, H, W, C], in dB [N]; where one has no error, that of half a grey level stands for it."""
    errors = np.square(images.astype(np.float64) - originals).mean(axis=(1, 2, 3))
    ratio: npt.NDArray[np.float64] = 10 * np.log10(255**2 / np.maximum(errors, 0.25))
    return ratio


def starts_of(sampler: Sampler, thousandths: Sequence[int]) -> list[int]:
    """The timesteps to try: all that leave the recorded number of steps room."""
    T, steps = sampler.bundle.manifest.schedule.T, sampler.bundle.manifest.defaults.steps
    return sorted({min(max(T * share // 1000, steps - 1), T - 1) for share in thousandths})


def measure(sampler: Sampler, training: U8, number: int, known: Mapping[str, Mapping[str, float]]) -> Iterator[Fit]:
    """What each start makes of images with each damage, the undamaged ones first.

    known: what an earlier run has measured of the same, in dB by damage and start.
    """
    images, more, starts = thinned(training, number), thinned(training, ESTIMATED), starts_of(sampler, STARTS)
    for damage in (None, *FITTED):
        title = "none" if damage is None else damage.title
        gained = {start: known[title][str(start)] for start in starts if str(start) in known.get(title, {})}
        for start in starts:
            if start not in gained:
                damaged = images if damage is None else damage(images, SEED)
                refined = sampler.refine(damaged, t_start=start, seed=SEED).images
                gained[start] = round(float(psnr(refined, images).mean()), 3)
        measures = looks(np.stack(sampler.estimate_damage(more if damage is None else damage(more, SEED)), 1))
        mean, spread = measures.mean(0), measures.std(0) + SPREAD
        yield Fit(title, mean.round(4).tolist(), spread.round(4).tolist(), gained)


def known_of(sampler: Sampler, about: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What the bundle's own record has of a run with the same images, seed and engine."""
    refine = sampler.bundle.manifest.refine
    if refine is None or any(refine.record.get(key) != value for key, value in about.items()):
        return {}
    rows = zip(refine.record.get("damages", ()), refine.damages, strict=False)
    return {title: dict(zip(map(str, refine.t_starts), row.psnr, strict=True)) for title, row in rows}


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Training images: an .npz file with 'images', uint8 [N, H, W, C], or a folder of pictures.",
)
@click.option("--number", type=click.IntRange(LEAST), default=64, show_default=True, help="Images of them that are refined.")
@click.option("--save", type=click.Path(path_type=Path), help="Write the table into this file too, for --take.")
@click.option("--take", type=click.Path(path_type=Path), help="What --save wrote of the same checkpoint; no --images then.")
@click.option("--dry-run", is_flag=True, help="Leave the bundle as it is.")
@click.option("--backend", default="auto", show_default=True, help="As for sample.")
@click.option("--precision", default="auto", show_default=True, help="As for sample.")
@click.option("--threads", type=click.IntRange(1), help="As for sample.")
def main(
    bundle: Path, images: Path | None, number: int, save: Path | None, take: Path | None, dry_run: bool, backend: str,
    precision: str, threads: int | None,
) -> None:  # fmt: skip
    """Find where refining should start for images that look so and so, and write the table into the bundle.

    Training images are damaged in known ways: noise, blur, low resolution, JPEG, salt and pepper, masks. For each the table
    says what each start brings back in PSNR, at the recorded number of steps, beside five measures of the images alone, of
    noise, edges and the distance from the encoder's reconstruction. `refine --t-start auto` then takes the start that
    promises most for the images it is given. A second run with the same images measures only what is new.
    """
    from tqdm import tqdm

    if take is not None:
        check_beside_take(click.get_current_context())
        rows, record = load_fit(take, "starts", checkpoint_of(Bundle.open(bundle).manifest.source))
        return write(bundle, rows, record, dry_run)
    if images is None:
        raise ArgumentError("--images: found none, expected training images, or a file to --take")
    if save is not None:
        check_file(save)
    if not dry_run:
        check_rewritable(bundle)
    with Sampler(bundle, backend, precision, threads) as sampler:
        training = read_images(images, sampler.bundle.manifest.pipeline.image_shape)
        if len(training) < LEAST:
            raise ArgumentError(f"--images {images}: found {len(training)} images, expected at least {LEAST}; give more")
        chosen = thinned(training, number)
        about = {
            "engine": [sampler.backend, sampler.precision],
            "engine_version": __version__,
            "images": [len(chosen), hashlib.sha256(chosen.tobytes()).hexdigest()],
            "seed": SEED,
        }
        fits = measure(sampler, training, number, known_of(sampler, about))
        total, hidden = len(FITTED) + 1, not shows_progress()
        found = list(tqdm(fits, total=total, desc="fit", unit=" damages", delay=2, leave=False, disable=hidden))
        checkpoint = checkpoint_of(sampler.bundle.manifest.source)
    click.echo(f"{'damage':<26}{'t_start':>9}{'dB':>7}")
    for fit in found:
        click.echo(f"{fit.title:<26}{fit.best:>9}{fit.psnr[fit.best]:>7.2f}")
    starts = sorted(found[0].psnr, reverse=True)
    rows = [{"mean": fit.mean, "spread": fit.spread, "psnr": [fit.psnr[start] for start in starts]} for fit in found]
    record = {"date": now(), **about, "t_starts": starts, "damages": [fit.title for fit in found]}
    if save is not None:
        save_fit(save, "starts", checkpoint, rows, record)
    write(bundle, rows, record, dry_run)


def write(bundle: Path, rows: list[dict[str, Any]], record: dict[str, Any], dry_run: bool) -> None:
    """Put a table into the bundle, and say so."""
    if dry_run:
        return
    write_starts(bundle, record["t_starts"], rows, record)
    click.echo(f"Wrote a table of {len(rows)} damages into {bundle}: `refine --t-start auto` uses it.")


if __name__ == "__main__":
    main()
