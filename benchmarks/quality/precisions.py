"""The cost of a lower precision: the same seeds in float32, fp16, bf16 and int8: distance of the pictures, and pixels.

    python benchmarks/quality/precisions.py --bundle out/avatars.bundle

Each precision makes the same samples. Stated are the Fréchet distance to held-out images, its change against float32, and
the mean absolute difference of the images in units of 1/255; and a picture shows the same seeds side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np
import numpy.typing as npt

from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from benchmarks.quality import faces, judge, plots, study
from engine import Sampler
from engine.backends import available
from engine.bundle.graphs import graph_key
from engine.bundle.reader import Bundle
from engine.cli.terminal import Program
from engine.places import check_file
from engine.processor import this_processor
from export.dates import now
from export.fitting.features import Features
from export.fitting.frechet import Moments, frechet_distance, moments

U8 = npt.NDArray[np.uint8]
REFERENCE = ("onnxruntime", "f32")
PICTURED = 12
# What a precision may cost: of the distance in percent, and of a pixel in 1/255 on average (None: no bound stated).
BOUNDS: dict[str, tuple[float, float | None]] = {
    "f32": (0.5, 0.1), "fp16": (1.0, 1.0), "bf16": (2.0, 1.0), "int8": (5.0, None),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A sampling setting to compare the precisions at; without further options the bundle's recorded one."""

    name: str
    options: dict[str, Any]


PLAIN = {"setting": "plain"}
WAYS = (Way("recorded setting", PLAIN), Way("10 steps from noise", {**PLAIN, "steps": 10}))


def runnable(bundle: Bundle) -> list[tuple[str, str]]:
    """(backend, precision) of everything that this bundle and machine can sample with on the CPU, the reference first."""
    there, step = available(), bundle.manifest.pipeline.step.graph
    found = [REFERENCE, *([("onnxruntime", "fp16")] if graph_key(step, "fp16") in bundle.manifest.graphs else [])]
    if there["openvino"][0] and "openvino" in bundle.manifest.backends:
        found += [("openvino", "f32"), *([("openvino", "bf16")] if this_processor().bf16 else [])]
    if there["native"][0] and "native" in bundle.manifest.backends:
        found += [("native", p) for p in ("bf16", "int8") if bundle.has_engine("native", p, step)]
    return found


def draw(sampler: Sampler, way: Way, samples: int, tick: judge.Progress) -> U8:
    """Images of the study's seeds, uint8 [N, H, W, 3]."""
    parts = []
    for first in range(0, samples, judge.CHUNK):
        seeds = study.seeds_of(first, min(judge.CHUNK, samples - first))
        parts.append(sampler.sample(seed=seeds, **way.options).images)
        tick(len(seeds))
    return np.concatenate(parts)


def compare(
    images: Sequence[U8], names: Sequence[tuple[str, str]], features: Features, reference: Moments
) -> list[dict[str, Any]]:
    """A row for each precision; the first is what the others are compared with."""
    rows: list[dict[str, Any]] = []
    for (backend, precision), pictures in zip(names, images, strict=True):
        fd = frechet_distance(reference, moments(judge.extract(features, pictures, lambda _: None)))
        change = 100 * (fd / rows[0]["fd"] - 1) if rows else 0.0
        pixel = float(np.abs(pictures.astype(np.int16) - images[0]).mean())
        most, most_pixel = BOUNDS[precision]
        rows.append({
            "backend": backend, "precision": precision, "fd": round(fd, 3), "fd_change_percent": round(change, 3),
            "mean_pixel_difference": round(pixel, 4), "fd_bound_percent": most, "pixel_bound": most_pixel,
            "within": abs(change) <= most and (most_pixel is None or pixel <= most_pixel),
        })  # fmt: skip
    return rows


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{result['metric']}, {result['samples']} samples each, the same seeds; differences to each first row"]
    for way in result["ways"]:
        lines.append(f"{way['way']}")
        for row in way["rows"]:
            lines.append(
                f"  {row['backend']:<12} {row['precision']:<5} FD {row['fd']:>9.2f} ({row['fd_change_percent']:+.2f} %, "
                f"at most {row['fd_bound_percent']:g})  pixels {row['mean_pixel_difference']:.3f}/255  "
                f"{'within' if row['within'] else 'BEYOND'}"
            )
    return "\n".join(lines)


def measure(
    facts: dict[str, Any], bundle: Path, heldout: Path, samples: int, threads: int | None, picture: Path
) -> dict[str, Any]:
    """Everything: sample in each precision, compare, and draw the picture of the recorded setting."""
    opened = Bundle.open(bundle)
    names = runnable(opened)
    if len(names) < 2:
        raise BenchmarkError(
            f"{bundle}: found one precision only, expected a bundle with others; build it with "
            f"--backends onnxruntime openvino native --precision f32 bf16 int8"
        )
    held = faces.load_faces(heldout)
    samplers = [Sampler(opened, backend, precision, threads) for backend, precision in names]
    extract = judge.open_extractor(judge.FIRST, samplers[0].threads)
    with study.progress(len(held), "held-out images") as tick:
        reference = moments(judge.extract(extract, held, tick))
    ways = []
    for way in WAYS:
        images = []
        for sampler in samplers:
            with study.progress(samples, f"{way.name}, {sampler.backend} {sampler.precision}") as tick:
                images.append(draw(sampler, way, samples, tick))
        ways.append({"way": way.name, "rows": compare(images, names, extract, reference)})
        if way is WAYS[0]:
            shown = [(f"{b}\n{p}", pictures[:PICTURED]) for (b, p), pictures in zip(names, images, strict=True)]
            plots.draw_rows(shown, picture)
    return {
        "format": "diffusevae-precisions",
        "format_version": 2,
        "date": now(),
        "machine": facts,
        "bundle": study.identity(samplers[0]),
        "metric": judge.METRIC,
        "heldout": len(held),
        "samples": samples,
        "ways": ways,
    }


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", type=Path, default=Path("out/avatars.bundle"))
@click.option("--heldout", type=Path, default=Path("data/heldout.npz"), help="Held-out images; rendered where missing.")
@click.option("--samples", type=click.IntRange(2), default=1000, help="Images of each precision and setting.")
@click.option("--threads", type=int, default=None, help="Default: what affinity and container allow.")
@click.option("--out", type=Path, default=Path("out/precisions.json"))
@click.option("--picture", type=Path, default=Path("out/precisions.png"))
def main(bundle: Path, heldout: Path, samples: int, threads: int | None, out: Path, picture: Path) -> None:
    """Compare float32, bf16 and int8 on the same seeds; exit code 1 where one costs more than its bound."""
    for place in (out, picture):
        check_file(place)
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    result = measure(facts, bundle, faces.held_out(heldout, out.parent), samples, threads, picture)
    write_json(out, result)
    click.echo(table(result))
    click.echo(f"wrote {out} and {picture}")
    beyond = [row for way in result["ways"] for row in way["rows"] if not row["within"]]
    if beyond:
        raise click.ClickException(f"{len(beyond)} of the rows above are beyond their bound")


if __name__ == "__main__":
    main()
