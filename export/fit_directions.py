"""Fitting directions from a terminal: `diffusevae fit-directions BUNDLE --images FILE`.

From a checkout this file itself is the command: `python export/fit_directions.py BUNDLE --images FILE`.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # From a checkout nothing needs to be installed; and this folder itself must not shadow other packages.
    HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]
    if missing := [name for name in ("numpy", "click", "tqdm") if find_spec(name) is None]:
        from engine.commands import install_extra

        raise SystemExit(f"Error: found no {', '.join(missing)}, expected them; install with: {install_extra('export')}")

import click

from engine import Sampler, __version__
from engine.bundle.directions import Directions
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_directions
from engine.bundle.writer import check_place
from engine.cli.terminal import Program
from engine.errors import ArgumentError
from engine.places import check_file
from export import directions
from export.attributes import chosen, contrasts, read_table
from export.dates import now
from export.posterior import encode, encoder_shape, posterior_of


def fitted(
    sampler: Sampler, images: Path, names: tuple[str, ...], orthogonal: bool, axes: int | None
) -> tuple[Directions, dict[str, Any]]:
    """The directions of a table, or principal axes, and how they were found."""
    bundle = sampler.bundle
    posterior = posterior_of(bundle.manifest, bundle.path)
    pixels, table = read_table(images, encoder_shape(sampler))
    wanted = contrasts(chosen(table, names), directions.LEAST)
    mean, log_variance = encode(sampler, posterior, pixels, "encode")
    record: dict[str, Any] = {
        "date": now(),
        "engine": __version__,
        "images": [len(pixels), hashlib.sha256(pixels.tobytes()).hexdigest()],
        "orthogonal": orthogonal,
    }
    parts: list[Directions] = []
    if wanted:
        found = directions.fit(mean, wanted, orthogonal=orthogonal)
        parts.append(found.directions)
        record["accuracy"] = {name: round(value, 4) for name, value in found.accuracy.items()}
    if axes is not None or not wanted:
        principal, shares = directions.axes(mean, log_variance, axes or min(directions.AXES, posterior.width))
        parts.append(principal)
        record["variance"] = {name: round(share, 4) for name, share in zip(principal.names, shares, strict=True)}
    return directions.joined(parts), record


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Images with attributes: an .npz file with 'images', 'attributes', 'attribute_names' and 'categories', or a folder "
    "of pictures with a .csv: file,NAME,...",
)
@click.option("--attribute", "names", multiple=True, metavar="NAME", help="Only this one; again for each.  [default: all]")
@click.option("--orthogonal", is_flag=True, help="Leave out of each what the probes of other attributes see.")
@click.option(
    "--axes",
    type=click.IntRange(1),
    help="So many principal axes of the aggregated posterior too.  [default: 10 without a table, else none]",
)
@click.option("--save", type=click.Path(path_type=Path), help="Write them into this file too, for --take.")
@click.option("--take", type=click.Path(path_type=Path), help="What --save wrote of the same checkpoint; no --images then.")
@click.option("--dry-run", is_flag=True, help="Leave the bundle as it is.")
@click.option("--threads", type=click.IntRange(1), help="As for sample.")
def main(
    bundle: Path, images: Path | None, names: tuple[str, ...], orthogonal: bool, axes: int | None, save: Path | None,
    take: Path | None, dry_run: bool, threads: int | None,
) -> None:  # fmt: skip
    """Find directions in a model's latent, and write them into the bundle.

    Each goes from the mean of the images without an attribute to the mean of those with it: strength 1 of `edit`. An
    attribute of two values gives one direction, NAME; more values give one each, NAME=VALUE, and NAME alone where one of
    them is none. Accuracies are those of linear probes on images that they were not fitted to, the mean of both sides.
    """
    if (images is None) == (take is None):
        found_ones = "none" if take is None else "--take too"
        raise ArgumentError(f"--images: found {found_ones}, expected images, or a file to --take")
    if save is not None:
        check_file(save)
    opened = Bundle.open(bundle)
    if not dry_run:
        check_place(bundle, sum(spec.size for spec in opened.manifest.files))
    source = opened.manifest.source
    checkpoint = source.other_sha256 or source.sha256
    if take is not None:
        found, record = directions.load_file(take, posterior_of(opened.manifest, bundle).width, checkpoint)
    else:
        assert images is not None, "one of the two is given"
        with Sampler(opened, precision="f32", threads=threads) as sampler:
            found, record = fitted(sampler, images, names, orthogonal, axes)
    for name in found.names:
        known = [f"{record[kind][name]:7.1%} {kind}" for kind in ("accuracy", "variance") if name in record.get(kind, {})]
        click.echo(f"  {name:<24}{', '.join(known)}")
    if save is not None:
        directions.save_file(save, found, record, checkpoint)
    if not dry_run:
        write_directions(opened, found, record)
    click.echo(f"{'Found' if dry_run else f'Wrote into {bundle}'}: {len(found.names)} directions")


if __name__ == "__main__":
    main()
