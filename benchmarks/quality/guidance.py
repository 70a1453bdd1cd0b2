"""Guidance by a classifier: how often the pictures show what was asked for, against how near they are to real ones.

    python benchmarks/quality/guidance.py --bundle out/avatars-guided.bundle --data data

A class of the guide is a combination of attributes (`--attribute`, the last one counting fastest, as
examples/avatars/classifier.py numbers them). Each is asked for as often as held-out faces show it, at every scale, without
and with entropy-aware scaling. Distances and neighbours are to the held-out faces (judge.py); what a picture shows is read
off by a network of its own (editing.py), which has never seen noise and is not the guide.

The second table follows the gradient through the steps: its length beside the state's, at scale 1, and what the scaling by
entropy multiplies it with. That is what "guidance vanishes in late steps" means, and what the scaling is for.
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
from tqdm import tqdm

from benchmarks import figures
from benchmarks.machine import describe, machine_facts, write_json
from benchmarks.quality import editing, judge
from benchmarks.quality.plots import draw_rows
from engine import Sampler, StepInfo, backends
from engine.cli.terminal import Program, shows_progress
from engine.places import check_file
from export.attributes import Attribute, read_table
from export.dates import now

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
SCALES = (0.0, 0.3, 1.0, 3.0, 10.0)
MODES = ("constant", "entropy")
ATTRIBUTES = ("hair_color", "glasses", "beard")
HIDDEN = {"hair": ("bald", "beanie", "turban")}  # faces that do not show the colour of their hair are not asked for
CHUNK, SEED, FOLLOWED, SHOWN = 50, 40_000, 50, 12  # FOLLOWED: in one chunk of a run


@dataclass(frozen=True)
class Asked:
    """The held-out faces, uint8 [N, H, W, 3], the codes of their attributes, int64 [N, A], and their classes, int64 [N]."""

    images: U8
    codes: Ints
    labels: Ints


def asked(path: Path, names: Sequence[str], shape: tuple[int, int, int], count: int) -> Asked:
    """The first faces of a table that show all of these attributes."""
    images, known = read_table(path, shape)
    by_name = {attribute.name: attribute for attribute in known}
    chosen = [by_name[name] for name in names]
    seen = np.ones(len(images), bool)
    for name, hidden in HIDDEN.items():
        if name in by_name:
            codes = [by_name[name].values.index(value) for value in hidden if value in by_name[name].values]
            seen &= ~np.isin(by_name[name].codes, codes)
    kept = np.flatnonzero(seen)[:count]
    codes = np.stack([attribute.codes[kept] for attribute in chosen], axis=1)
    return Asked(images[kept], codes, np.ravel_multi_index(list(codes.T), sizes(chosen)).astype(np.int64))


def sizes(attributes: Sequence[Attribute]) -> tuple[int, ...]:
    """How many values each has."""
    return tuple(len(attribute.values) for attribute in attributes)


def sample(sampler: Sampler, labels: Ints, options: dict[str, Any], tick: judge.Progress, **more: Any) -> U8:
    """One picture of each class asked for, of the same seeds for all options."""
    parts = []
    for begin in range(0, len(labels), CHUNK):
        part = labels[begin : begin + CHUNK]
        inputs = {"label": part} if options["guide_scale"] else {}
        parts.append(sampler.sample(seed=range(SEED + begin, SEED + begin + len(part)), **inputs, **options, **more).images)
        tick(len(part))
    return np.concatenate(parts)


def shown(read: Ints, codes: Ints, names: Sequence[str]) -> dict[str, float]:
    """The share of pictures with the value asked for, of each attribute and of all at once."""
    right = read == codes
    return {name: round(float(right[:, k].mean()), 4) for k, name in enumerate(names)} | {
        "all": round(float(right.all(axis=1).mean()), 4)
    }


def follow(sampler: Sampler, labels: Ints, options: dict[str, Any]) -> list[dict[str, float]]:
    """Of each row: its timestep, |g| / |x| in the mean, and the mean of log K / H."""
    states: list[tuple[int, F32]] = []

    def keep(info: StepInfo) -> None:
        states.append((info.timestep, np.array(info.x)))

    labels = labels[:FOLLOWED]
    sampler.sample(seed=range(SEED, SEED + len(labels)), label=labels, callback=keep, **options)
    guide = sampler.bundle.manifest.pipeline.guides[0]
    timesteps = [timestep for timestep, _ in states]
    rows: list[dict[str, float]] = []
    how: dict[str, Any] = {"backend": "onnxruntime", "precision": "f32", "threads": sampler.threads}
    assert guide.rows is not None, "a guide of noised images knows the timestep"
    with backends.load(sampler.bundle, guide.rows.graph, **how) as table:
        (made,) = table(**{next(iter(guide.rows.inputs)): np.array(timesteps, np.int64)}).values()
        made = made.copy()
    with backends.load(sampler.bundle, guide.step.graph, **how) as graph:
        # What a row leaves behind is what the next one is given.
        for (_, x), timestep, row in zip(states, timesteps[1:], made[1:], strict=False):
            values = {"x": x, "label": labels, "rows": row[None]}
            found = graph(**{port: values[name] for port, name in guide.step.inputs.items()})
            given = {name: found[port] for port, name in guide.step.outputs.items()}
            length = [np.sqrt(np.square(part, dtype=np.float64).sum(axis=(1, 2, 3))) for part in (given["g"], x)]
            factor = np.log(guide.classes) / np.maximum(given["entropy"], 1e-6)
            about = {"timestep": timestep, "g": float((length[0] / length[1]).mean())}
            rows.append({**about, "factor": float(factor.mean()), "scaled": float((factor * length[0] / length[1]).mean())})
    return rows


def table(result: dict[str, Any]) -> str:
    """The result for people, as Markdown."""
    names = [*result["attributes"], "all"]
    head = ("scale", "mode", "FD", "FD, second", "colour", "precision", "recall", *names)
    real = (f"{100 * result['real'][name]:.1f} %" for name in names)
    lines = [head, ("---",) * len(head), ("–", "the held-out faces", *("–",) * 5, *real)]
    for row in result["rows"]:
        scores = (f"{row['fd']:.0f}", f"{row['fd_second']:.0f}", f"{row['colour']:.3f}")
        near = (f"{row['precision']:.2f}", f"{row['recall']:.2f}")
        found = (f"{100 * row['shown'][name]:.1f} %" for name in names)
        lines.append((f"{row['scale']:g}", row["mode"] if row["scale"] else "–", *scores, *near, *found))
    steps = ["", "| timestep | g of x | log K / H | scaled by it |", "| --- | --- | --- | --- |"]
    for row in result["steps"]:
        steps.append(f"| {row['timestep']} | {row['g']:.2g} | {row['factor']:.2g} | {row['scaled']:.2g} |")
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *steps])


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """The share that shows all that was asked for over the distance, a curve a mode and bundle."""
    pyplot = figures.open_pyplot()
    figure, axes = pyplot.subplots(figsize=(7.4, 4.6))
    for result in results:
        for mode, style in zip(MODES, ("o-", "s--"), strict=True):
            rows = [row for row in result["rows"] if row["mode"] == mode or not row["scale"]]
            points = [row["fd"] for row in rows], [100 * row["shown"]["all"] for row in rows]
            axes.plot(*points, style, label=f"{result['name']}, {mode}")
            for row, x, y in zip(rows, *points, strict=True):
                axes.annotate(f"{row['scale']:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set_xlabel(f"distance to held-out faces ({judge.METRIC})")
    axes.set_ylabel("pictures that show all three attributes, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save_figure(pyplot, figure, path)


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", "bundles", type=Path, multiple=True, required=True, help="With a guide; again for each.")
@click.option("--data", type=Path, default=Path("data"), help="Folder that examples/avatars/dataset.py wrote.")
@click.option("--judge", "reader_file", type=Path, default=Path("out/guidance-judge.pt"), help="Trained where missing.")
@click.option("--attribute", "names", multiple=True, default=ATTRIBUTES, help="Of a class, in its order.")
@click.option("--scale", "scales", type=float, multiple=True, default=SCALES, help="Of the guide; again for each.")
@click.option("--steps", type=click.IntRange(2), default=25)
@click.option("--samples", type=click.IntRange(2), default=1000)
@click.option("--threads", type=click.IntRange(1))
@click.option("--out", type=Path, default=Path("out/guidance.json"))
@click.option("--plot", type=Path, default=Path("out/guidance.png"))
@click.option("--picture", type=Path, default=Path("out/guidance-faces.png"))
def main(
    bundles: tuple[Path, ...], data: Path, reader_file: Path, names: tuple[str, ...], scales: tuple[float, ...], steps: int,
    samples: int, threads: int | None, out: Path, plot: Path, picture: Path,
) -> None:  # fmt: skip
    """Measure guidance by a classifier on faces whose attributes are known."""
    for path in (out, plot, picture):
        check_file(path)
    facts = machine_facts()
    click.echo(describe(facts))
    results, shown_rows = [], []
    for bundle in bundles:
        with Sampler(bundle, threads=threads) as sampler:
            result, rows = measure(sampler, data, reader_file, names, scales, steps, samples)
        results.append({**result, "machine": facts})
        shown_rows += rows
        click.echo(f"{result['name']}\n\n{table(result)}\n")
        write_json(out, {"format": "diffusevae-guidance", "format_version": 1, "date": now(), "bundles": results})
    draw(results, plot)
    draw_rows(shown_rows, picture)
    click.echo(f"wrote {out}, {plot} and {picture}")


def measure(
    sampler: Sampler, data: Path, reader_file: Path, names: Sequence[str], scales: Sequence[float], steps: int, samples: int
) -> tuple[dict[str, Any], list[tuple[str, U8]]]:
    """The result of a bundle, and its rows of the picture."""
    manifest = sampler.bundle.manifest
    shape = manifest.pipeline.image_shape
    faces = asked(data / "heldout.npz", names, shape, samples)
    images, known = read_table(data / "train.npz", shape)
    by_name = {attribute.name: attribute for attribute in known}
    chosen = [by_name[name] for name in names]
    reader = editing.Judge(chosen, shape[0], shape[1])
    reader.load_or_fit(reader_file, images, np.stack([attribute.codes for attribute in chosen], axis=1))
    base = {"setting": "plain", "steps": steps, "method": "ddim_clipped", "spacing": "trailing", "eta": 0.0}
    plan = [(scale, mode) for scale in scales for mode in (MODES if scale else MODES[:1])]
    extractors = [judge.open_extractor(name, sampler.threads) for name in (judge.FIRST, judge.SECOND)]
    rows, pictures = [], []
    total = len(faces.images) * (2 + 3 * len(plan))
    with tqdm(total=total, unit="img", delay=2, leave=False, disable=not shows_progress()) as bar:
        scorer = judge.Judge(faces.images, len(faces.images), extractors, bar.update)
        for scale, mode in plan:
            options = {**base, "guide_scale": scale} | ({"guide_mode": mode} if scale else {})
            found = sample(sampler, faces.labels, options, bar.update)
            read = shown(reader.read(found), faces.codes, names)
            rows.append({"scale": scale, "mode": mode, **scorer.scores(found, bar.update), "shown": read})
            pictures.append((f"{manifest.name}\n{scale:g} {mode if scale else ''}", found[:SHOWN]))
    result = {
        "name": manifest.name, "bundle_source_sha256": manifest.source.sha256,
        "engine": [sampler.backend, sampler.precision], "options": base, "samples": len(faces.images), "seed": SEED,
        "attributes": list(names),
        "real": shown(reader.read(faces.images), faces.codes, names), "rows": rows,
        "steps": follow(sampler, faces.labels, {**base, "guide_scale": 1.0}),
    }  # fmt: skip
    return result, pictures


if __name__ == "__main__":
    main()
