"""A model that takes words: how near its pictures are to held-out ones, and how often they show what was asked.

    python benchmarks/quality/prompts.py --bundle out/avatars-latent.bundle --data data

Each held-out prompt is sampled once, in each number of steps, with and without guidance, in the plain setting (DDIM, evenly
spaced) and the fitted one where the bundle has it. Distances and neighbours are to the held-out pictures (judge.py). What a
prompt asks for is read off the pictures by a network that was trained on the training faces and their attributes
(editing.py); for each attribute that a prompt names, the share of pictures that show the value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.machine import describe, machine_facts, write_json
from benchmarks.quality import editing, judge
from engine import Sampler
from engine.bundle.fitted import as_options
from engine.cli.terminal import Program, shows_progress
from engine.places import check_file
from export.attributes import Attribute, read_table
from export.dates import now

U8 = npt.NDArray[np.uint8]
Options = dict[str, Any]
STEPS = (3, 5, 10, 20, 50)
ASKED = ("hair", "glasses", "beard", "skin")
CHUNK, SEED = 50, 30_000


@dataclass(frozen=True)
class Heldout:
    """Pictures that no network has seen: images uint8 [N, H, W, 3], tokens int64 [N, L], the code of each attribute in
    ASKED, int64 [N, 4], and whether the prompt names it, bool [N, 4]."""

    images: U8
    tokens: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    told: npt.NDArray[np.bool_]


def read_heldout(path: Path, shape: tuple[int, int, int]) -> Heldout:
    """A set of examples/avatars-latent/dataset.py."""
    images, known = read_table(path, shape)
    with np.load(path) as stored:
        tokens, told, names = stored["tokens"], stored["told"], stored["told_names"].tolist()
    return Heldout(images, tokens, codes_of(known), told[:, [names.index(name) for name in ASKED]])


def attributes(known: list[Attribute]) -> list[Attribute]:
    """Those in ASKED, in its order."""
    by_name = {attribute.name: attribute for attribute in known}
    return [by_name[name] for name in ASKED]


def codes_of(known: list[Attribute]) -> npt.NDArray[np.int64]:
    """Theirs, [N, 4]."""
    return np.stack([attribute.codes for attribute in attributes(known)], axis=1)


def rows(sampler: Sampler, counts: Sequence[int], scales: Sequence[float]) -> Iterator[tuple[Options, Options]]:
    """(what a row says of itself, the options of `sample`)."""
    fitted = sampler.bundle.manifest.fitted
    for scale in scales:
        for steps in counts:
            about = {"steps": steps, "scale": scale}
            plain = {"setting": "plain", "steps": steps, "spacing": "trailing", "guidance": scale - 1}
            yield {**about, "setting": "plain"}, plain
            if fitted is not None and (found := fitted.get(steps)) is not None:
                yield {**about, "setting": "fitted"}, {**as_options(found), "guidance": scale - 1}


def sample(sampler: Sampler, heldout: Heldout, options: dict[str, Any], tick: judge.Progress) -> U8:
    """One picture of each prompt."""
    parts = []
    for begin in range(0, len(heldout.tokens), CHUNK):
        tokens = heldout.tokens[begin : begin + CHUNK]
        seeds = range(SEED + begin, SEED + begin + len(tokens))
        parts.append(sampler.sample(seed=seeds, tokens=tokens, **options).images)
        tick(len(tokens))
    return np.concatenate(parts)


def shown(read: npt.NDArray[np.int64], heldout: Heldout) -> dict[str, float]:
    """The share of pictures with the value that their prompt names, by attribute and of all."""
    right = read == heldout.codes
    of_each = {name: float(right[heldout.told[:, k], k].mean()) for k, name in enumerate(ASKED)}
    return {name: round(value, 4) for name, value in {**of_each, "all": float(right[heldout.told].mean())}.items()}


def table(result: dict[str, Any]) -> str:
    """The result for people, as Markdown."""
    head = ("guidance", "steps", "setting", "FD", "FD, second", "colour", "precision", "recall", *ASKED, "all")
    real = (f"{100 * result['real'][name]:.1f} %" for name in (*ASKED, "all"))
    lines = [head, ("---",) * len(head), ("–", "–", "the held-out faces", *("–",) * 5, *real)]
    for row in result["rows"]:
        scores = (f"{row['fd']:.0f}", f"{row['fd_second']:.0f}", f"{row['colour']:.3f}")
        near = (f"{row['precision']:.2f}", f"{row['recall']:.2f}")
        asked = (f"{100 * row['shown'][name]:.1f} %" for name in (*ASKED, "all"))
        lines.append((f"{row['scale']:g}", str(row["steps"]), row["setting"], *scores, *near, *asked))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", type=Path, default=Path("out/avatars-latent.bundle"))
@click.option("--data", type=Path, default=Path("data"), help="Folder that examples/avatars-latent/dataset.py wrote.")
@click.option("--judge", "reader_file", type=Path, default=Path("out/prompts-judge.pt"), help="Trained where missing.")
@click.option("--steps", "counts", type=click.IntRange(1), multiple=True, default=STEPS, help="Again for each.")
@click.option("--scale", "scales", type=float, multiple=True, default=(1.0, 3.0), help="Of guidance; again for each.")
@click.option("--threads", type=click.IntRange(1))
@click.option("--out", type=Path, default=Path("out/prompts.json"))
def main(
    bundle: Path, data: Path, reader_file: Path, counts: tuple[int, ...], scales: tuple[float, ...], threads: int | None,
    out: Path,
) -> None:  # fmt: skip
    """Measure a model that takes words on held-out prompts."""
    check_file(out)
    facts = machine_facts()
    click.echo(describe(facts))
    with Sampler(bundle, threads=threads) as sampler:
        shape = sampler.bundle.manifest.pipeline.image_shape
        heldout = read_heldout(data / "heldout.npz", shape)
        images, known = read_table(data / "train.npz", shape)
        reader = editing.Judge(attributes(known), shape[0], shape[1])
        reader.load_or_fit(reader_file, images, codes_of(known))
        extractors = [judge.open_extractor(name, sampler.threads) for name in (judge.FIRST, judge.SECOND)]
        planned = list(rows(sampler, counts, scales))
        total = len(heldout.images) * (2 + 3 * len(planned))
        with tqdm(total=total, unit="img", delay=2, leave=False, disable=not shows_progress()) as bar:
            scorer = judge.Judge(heldout.images, len(heldout.images), extractors, bar.update)
            result: dict[str, Any] = {
                "format": "diffusevae-prompts", "format_version": 1, "date": now(), "machine": facts,
                "bundle_source_sha256": sampler.bundle.manifest.source.sha256,
                "engine": [sampler.backend, sampler.precision], "prompts": len(heldout.tokens), "seed": SEED,
                "real": shown(reader.read(heldout.images), heldout), "rows": [],
            }  # fmt: skip
            for about, options in planned:
                found = sample(sampler, heldout, options, bar.update)
                scores = scorer.scores(found, bar.update)
                result["rows"].append({**about, "options": options, **scores, "shown": shown(reader.read(found), heldout)})
                write_json(out, result)
    click.echo(table(result))
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
