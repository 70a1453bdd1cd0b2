"""Bulk jobs on the command line: `diffusevae sample` with --shard-size, --format, --features or --ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from engine.bulk.cluster import LOCAL, Cluster
from engine.bulk.crew import on_ray
from engine.bulk.features import read_extractor
from engine.bulk.job import FORMATS, SHARD_SIZE, describe
from engine.bulk.maker import Means
from engine.bulk.run import Result, generate, in_this_process
from engine.bundle.reader import Bundle
from engine.cli.cascade import StageValues, stage_options
from engine.cli.inputs import options, take_inputs
from engine.cli.options import take_canvas
from engine.cli.output import echo_fields, echo_json
from engine.cli.terminal import shows_progress
from engine.errors import ArgumentError
from engine.imaging import check_target, kind_of
from engine.stages import check_stages, followed

BULK = ("shard_size", "format", "features", "ray", "workers")
bulk_options = options(
    click.option(
        "--shard-size",
        type=int,
        help="Write --out as a folder of files of so many images, which the same command goes on with when it was stopped. "
        f"{SHARD_SIZE} where only others of these five are given.",
    ),
    click.option("--format", type=click.Choice(FORMATS), help="Shards as .npy arrays (the default) or tar of PNG files."),
    click.option("--features", metavar="FILE.onnx", help="Keep this model's output for the images, not the images."),
    click.option(
        "--ray",
        metavar="[ADDRESS]",
        is_flag=False,
        flag_value=LOCAL,
        help="Make the shards on a Ray cluster: on one of this machine alone, auto, or HOST:PORT.",
    ),
    click.option("--workers", type=int, help="With --ray: at most so many; --threads is then of each."),
)


def take_bulk(given: dict[str, Any]) -> dict[str, Any] | None:
    """The bulk options, taken out of `given`; None where there is none of them."""
    taken = {name: given.pop(name) for name in BULK}
    return None if all(value is None for value in taken.values()) else taken


class Bar:
    """Progress as a bar on stderr, and notes above it; without `shown` the notes alone."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None

    def start(self, total: int, made: int) -> None:
        """Show the bar where an earlier run left it."""
        from tqdm import tqdm

        self._bar = tqdm(total=total, initial=made, unit="image", disable=not self._shown)

    def made(self, images: int) -> None:
        """Move it."""
        self._bar.update(images)

    def note(self, text: str) -> None:
        """A line on stderr."""
        from tqdm import tqdm

        with tqdm.external_write_mode():
            click.echo(f"note: {text}", err=True)

    def close(self) -> None:
        """Leave the line."""
        if self._bar is not None:
            self._bar.close()


def sample_in_bulk(
    path: str, n: int | None, bulk: dict[str, Any], given: dict[str, Any], stages: Sequence[StageValues] | None
) -> None:
    """Run the job of these options in the folder --out, or go on with it, and report it. stages: None for the bundle alone,
    else the options of --stage, for the cascade that it names."""
    out, as_json, seed = _folder(given.pop("out")), given.pop("as_json"), given.pop("seed")
    if given.pop("add"):
        raise ArgumentError("add: found it with shards, whose folder holds one job alone; leave it out")
    if given.pop("with_start"):
        raise ArgumentError("with-start: found it with shards, which hold the images alone; leave it out")
    if bulk["workers"] is not None and bulk["ray"] is None:
        raise ArgumentError("workers: found it without --ray, expected both; add --ray, or use --threads")
    features = None if bulk["features"] is None else read_extractor(bulk["features"])
    machine = {name: given.pop(name) for name in ("backend", "precision", "threads")}
    allow_links = given.pop("allow_links")
    bundle = take_canvas(Bundle.open(path, allow_links), given)
    later = [] if stages is None else followed(bundle, allow_links)[1:]
    if stages is not None:
        check_stages([bundle.manifest, *(stage.manifest for stage in later)])
        given["stages"] = stage_options(stages, [bundle, *later]) or None
    size = SHARD_SIZE if bulk["shard_size"] is None else bulk["shard_size"]
    format = bulk["format"] or FORMATS[0]
    inputs = take_inputs(given, bundle, later)
    kept: dict[str, Any] = {"shard_size": size, "format": format, "features": features, "later": later}
    job = describe(bundle, n, seed=seed, inputs=inputs, **kept, **given)
    make = in_this_process if bulk["ray"] is None else on_ray(Cluster(bulk["ray"], bulk["workers"]))
    bar, started = Bar(not as_json and shows_progress()), perf_counter()
    try:
        means = Means(**machine, features=features, inputs=inputs)
        with redirect_stdout(sys.stderr):  # where Ray's own remarks belong: they would end up amid --json
            result = generate(job, bundle, out, means, adopt_seed=seed is None, make=make, progress=bar, later=later)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{out} keeps the finished shards, and the same command goes on from there") from error
    finally:
        bar.close()
    _report(result, out, perf_counter() - started, as_json)


def _folder(out: str) -> Path:
    if kind_of(out):
        raise ArgumentError(f"out: found {out}, expected a folder for the shards of a bulk job; give one: --out shards")
    return check_target(out, add=True)


def _report(result: Result, out: Path, seconds: float, as_json: bool) -> None:
    manifest = result.manifest
    job, made_by, shards = manifest["job"], manifest["made_by"], manifest["shards"]
    if as_json:
        report = {**manifest, "out": str(out), "shards_made": result.shards_made, "seconds": seconds}
        echo_json({**report, "images_made": result.images_made})
        return
    rate = f"; {result.images_made / seconds:.1f} images/s" if result.images_made else ""
    echo_fields(
        {
            "bundle": f"{job['name']} on {made_by['backend']}, {made_by['precision']}",
            "setting": f"{job['setting']['steps']} steps {job['setting']['method']}",
            "seeds": f"{shards[0]['seeds'][0]} to {shards[-1]['seeds'][1]}",
            "shards": f"{len(shards)} in {out}, of which this run made {result.shards_made}",
            "time": f"{seconds:.1f} s{rate}",
            "SHA-256": manifest["sha256"],
        }
    )
