"""Edits on faces that no direction was fitted to, judged by a network that knows the pictures alone.

    python benchmarks/quality/editing.py --bundle out/avatars.bundle --train data/train.npz --heldout data/heldout.npz

The judge is a small convolutional network, trained on the training faces to read every attribute off the pixels. For each
direction, strength and `preserve` are chosen on some held-out faces without the attribute and measured on others: how often
the judge sees the attribute afterwards, how often it sees each other one as before, and how far its features move. An
attribute of several values loses the old one with the strength that the new one gets: from long hair to an afro. What the
judge cannot read off real faces with the attribute, such as the eyes behind sunglasses, has no figure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np
import numpy.typing as npt

from benchmarks import figures
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from engine import Sampler
from engine.cli.terminal import Program
from engine.imaging import grid, png_bytes
from engine.places import check_file
from export.attributes import WITHOUT, Attribute, read_table
from export.dates import now

U8 = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int64]
EPOCHS, BATCH, RATE = 6, 128, 2e-3
STRENGTHS, PRESERVED = (1.0, 1.5, 2.0), (0.9, 0.95, 0.98)
SUCCEEDS, STAYS = 0.8, 0.9  # the goal
READABLE = 0.85  # of real faces with the attribute, from which on a figure means something
CHOOSING, MEASURED, SEED = 8, 40, 20_000
TOLD = 0.6  # accuracy of a direction's own probe below which the latent hardly knows the attribute: it is not edited
SHOWN = 11  # edits in the picture at most, of those that succeed


class Judge:
    """The network, trained or read from a file; `read` gives the attributes of images, `features` what they are read off."""

    def __init__(self, attributes: list[Attribute], channels: int, side: int) -> None:
        import torch

        torch.manual_seed(0)
        self.torch, self.names, self.sizes = torch, [a.name for a in attributes], [len(a.values) for a in attributes]
        layers: list[Any] = []
        for before, after, stride in ((channels, 32, 1), (32, 64, 2), (64, 96, 2)):
            convolution = torch.nn.Conv2d(before, after, 3, stride=stride, padding=1)
            layers += [convolution, torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
        wide = 96 * (side // 4) ** 2
        layers += [torch.nn.Flatten(), torch.nn.Linear(wide, 256), torch.nn.ReLU(), torch.nn.Linear(256, sum(self.sizes))]
        self.network = torch.nn.Sequential(*layers)

    def fit(self, images: U8, codes: Codes) -> None:
        """Cross-entropy of all attributes, one-cycle AdamW."""
        torch, network = self.torch, self.network
        optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
        steps = EPOCHS * (len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
        x, y = self._tensor(images), torch.from_numpy(codes)
        network.train()
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
                outs = network(x[chosen]).split(self.sizes, 1)
                loss = sum(torch.nn.functional.cross_entropy(out, y[chosen, k]) for k, out in enumerate(outs))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()

    def load_or_fit(self, path: Path, images: U8, codes: Codes) -> None:
        """The weights of the file, which is written where it is not there yet."""
        if path.exists():
            self.network.load_state_dict(self.torch.load(path, weights_only=True))
        else:
            self.fit(images, codes)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.torch.save(self.network.state_dict(), path)
        self.network.eval()

    def read(self, images: U8) -> Codes:
        """[N, A]."""
        with self.torch.no_grad():
            outs = self.network(self._tensor(images)).split(self.sizes, 1)
        return np.stack([out.argmax(1).numpy() for out in outs], axis=1)

    def features(self, images: U8) -> npt.NDArray[np.float32]:
        """[N, 256]."""
        with self.torch.no_grad():
            found: npt.NDArray[np.float32] = self.network[:-1](self._tensor(images)).numpy()
        return found

    def _tensor(self, images: U8) -> Any:
        return self.torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)


@dataclass(frozen=True)
class Target:
    """An edit and what is to be seen afterwards: the codes of its attribute that count as success."""

    label: str
    direction: str
    sign: int
    attribute: int
    wanted: tuple[int, ...]


def targets(attributes: list[Attribute], directions: tuple[str, ...]) -> Iterator[Target]:
    """Every direction that an attribute has; NAME alone both ways."""
    for index, attribute in enumerate(attributes):
        for code, value in enumerate(attribute.values):
            if f"{attribute.name}={value}" in directions:
                yield Target(f"{attribute.name}={value}", f"{attribute.name}={value}", 1, index, (code,))
        if attribute.name in directions:
            without = [code for code, value in enumerate(attribute.values) if value.lower() in WITHOUT] or [0]
            rest = tuple(code for code in range(len(attribute.values)) if code not in without)
            yield Target(f"+ {attribute.name}", attribute.name, 1, index, rest)
            yield Target(f"- {attribute.name}", attribute.name, -1, index, tuple(without))


class Study:
    """The held-out faces, what they show, and the edits of them."""

    def __init__(self, sampler: Sampler, judge: Judge, images: U8, attributes: list[Attribute], codes: Codes) -> None:
        self.sampler, self.judge, self.images, self.attributes, self.codes = sampler, judge, images, attributes, codes
        self.correct = judge.read(images) == codes
        features = judge.features(images[:1000])
        self.apart = float(np.linalg.norm(features[:500] - features[500:], axis=1).mean())

    def readable(self, target: Target) -> npt.NDArray[np.bool_]:
        """Of which attributes a figure means something."""
        there = np.isin(self.codes[:, target.attribute], target.wanted)
        found: npt.NDArray[np.bool_] = self.correct[there].mean(axis=0) >= READABLE
        return found

    def edited(self, target: Target, faces: Codes, strength: float, preserve: float) -> U8:
        """These faces with the attribute, and without the value that they had."""
        edits: dict[str, Any] = {target.direction: target.sign * strength}
        for code, value in enumerate(self.attributes[target.attribute].values):
            name = f"{self.attributes[target.attribute].name}={value}"
            if name in self.sampler.directions and name != target.direction and "=" in target.direction:
                there = self.codes[faces, target.attribute] == code
                edits[name] = tuple(np.where(there, -strength, 0.0).tolist())
        seeds = [SEED + int(face) for face in faces]
        return self.sampler.edit(self.images[faces], edits, preserve=preserve, seed=seeds).images

    def measure(self, target: Target, faces: Codes, strength: float, preserve: float) -> dict[str, Any]:
        """Shares of these faces."""
        edited = self.edited(target, faces, strength, preserve)
        after = self.judge.read(edited)
        seen = np.isin(after[:, target.attribute], target.wanted)
        same = (after == self.codes[faces]).mean(axis=0)
        readable = self.readable(target)
        stays = {
            name: round(float(same[k]), 3) if readable[k] else None
            for k, name in enumerate(self.judge.names) if k != target.attribute
        }  # fmt: skip
        moved = np.linalg.norm(self.judge.features(edited) - self.judge.features(self.images[faces]), axis=1).mean()
        return {
            "edit": target.label, "strength": strength, "preserve": preserve, "faces": len(faces),
            "success": round(float(seen.mean()), 3), "stays": stays, "identity": round(float(moved) / self.apart, 3),
        }  # fmt: skip

    def best(self, target: Target) -> dict[str, Any]:
        """The row of the strength and `preserve` that a few faces speak for, measured on others."""
        able = np.flatnonzero(~np.isin(self.codes[:, target.attribute], target.wanted) & self.correct.all(axis=1))
        some, others = able[:CHOOSING], able[CHOOSING : CHOOSING + MEASURED]
        tried = [self.measure(target, some, *way) for way in product(STRENGTHS, PRESERVED)]
        chosen = max(tried, key=merit)
        return self.measure(target, others, chosen["strength"], chosen["preserve"])


def least(row: dict[str, Any]) -> float:
    """The share of the attribute that stays least."""
    return min((share for share in row["stays"].values() if share is not None), default=1.0)


def merit(row: dict[str, Any]) -> float:
    """How near a row is to the goal; a success above it counts little more."""
    known = [share for share in row["stays"].values() if share is not None]
    return min(row["success"] / SUCCEEDS, 1.0) + (float(np.mean(known)) + min(known)) / 2 + 0.01 * row["success"]


def reaches(row: dict[str, Any]) -> bool:
    """Whether an edit keeps both promises."""
    return bool(row["success"] >= SUCCEEDS and least(row) >= STAYS)


def line(row: dict[str, Any]) -> str:
    """A row as text; a star where it reaches the goal."""
    how = f"{row['edit']:<24}x{row['strength']:<4g} preserve {row['preserve']:<5g} succeeds {row['success']:6.1%}"
    return f"{how}  least that stays {least(row):6.1%}  identity {row['identity']:.2f}{'  *' if reaches(row) else ''}"


def draw(result: dict[str, Any], path: Path) -> None:
    """The matrix: a row an edit, its success first, then what stays of every attribute."""
    pyplot = figures.open_pyplot()
    rows, names = result["edits"], result["judge"]["attributes"]
    values = np.full((len(rows), len(names) + 1), np.nan)
    for i, row in enumerate(rows):
        stays = [row["stays"].get(name) for name in names]
        values[i] = [row["success"], *(np.nan if share is None else share for share in stays)]
    figure, axes = pyplot.subplots(figsize=(9, 0.27 * len(rows) + 2))
    axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "black" if value > 0.6 else "white"
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names) + 1), ["succeeds", *names], rotation=30, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [f"{row['edit']}  x{row['strength']:g}" for row in rows], fontsize=8)
    axes.axvline(0.5, color="white", linewidth=3)
    axes.set_xlabel("per cent of held-out faces; empty: the attribute itself, or what cannot be seen on real faces with it")
    figures.save_figure(pyplot, figure, path)


def picture(study: Study, known: list[Target], rows: list[dict[str, Any]], path: Path) -> None:
    """Two faces, a row each: as they are, then with every edit that succeeds, as it was measured."""
    by_name = {row["edit"]: row for row in rows if row["success"] >= SUCCEEDS}
    faces = np.flatnonzero(study.correct.all(axis=1))[:2]
    columns = [study.images[faces]]
    for target in [target for target in known if target.label in by_name][:SHOWN]:
        row = by_name[target.label]
        columns.append(study.edited(target, faces, row["strength"], row["preserve"]))
    sheet = grid(np.stack(columns, axis=1).reshape(-1, *study.images.shape[1:]), columns=len(columns))
    path.write_bytes(png_bytes(sheet.repeat(2, axis=0).repeat(2, axis=1)))


def load(path: Path, shape: tuple[int, int, int]) -> tuple[U8, list[Attribute], Codes]:
    """Images, their attributes, and these as one array [N, A]."""
    images, attributes = read_table(path, shape)
    if not attributes:
        raise BenchmarkError(f"{path}: found images without attributes, expected those of examples/avatars/dataset.py")
    return images, attributes, np.stack([attribute.codes for attribute in attributes], axis=1)


@click.command(cls=Program)
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="With directions.")
@click.option("--train", type=click.Path(path_type=Path), required=True, help="Faces that the judge is trained on.")
@click.option("--heldout", type=click.Path(path_type=Path), required=True, help="Faces to edit.")
@click.option("--judge", type=click.Path(path_type=Path), default="out/judge.pt", show_default=True, help="Weights.")
@click.option("--out", type=click.Path(path_type=Path), default="docs/editing.json", show_default=True)
@click.option("--only", multiple=True, help="An attribute; again for each.  [default: all]")
@click.option("--threads", type=click.IntRange(1), help="As for sample.")
def main(
    bundle: Path, train: Path, heldout: Path, judge: Path, out: Path, only: tuple[str, ...], threads: int | None
) -> None:
    """Measure every direction of a bundle on held-out faces."""
    check_file(out)
    facts = machine_facts()
    click.echo(describe(facts))
    with Sampler(bundle, threads=threads) as sampler:
        spec = sampler.bundle.manifest.directions
        if spec is None:
            raise BenchmarkError(f"{bundle}: found no directions, expected some; fit them with: diffusevae fit-directions")
        shape = sampler.bundle.manifest.pipeline.image_shape
        known, attributes, codes = load(train, shape)
        images, held, heldout_codes = load(heldout, shape)
        if [a.values for a in held] != [a.values for a in attributes]:
            raise BenchmarkError(f"{heldout}: found other attributes than in {train}, expected the same")
        seer = Judge(attributes, shape[0], shape[1])
        seer.load_or_fit(judge, known, codes)
        study = Study(sampler, seer, images, attributes, heldout_codes)
        some = images[:1000]
        decoded = seer.read(sampler.decode(sampler.encode(some)[spec.input])) == heldout_codes[:1000]
        plain = sampler.edit(some[:200], {}, preserve=PRESERVED[0], seed=SEED).images
        result: dict[str, Any] = {
            "format": "diffusevae-editing", "format_version": 1, "date": now(), "machine": facts,
            "engine": {"backend": sampler.backend, "precision": sampler.precision, "threads": sampler.threads},
            "bundle": {"sha256": sampler.bundle.digest, "directions": spec.record},
            "goal": {"succeeds": SUCCEEDS, "stays": STAYS, "readable": READABLE},
            "judge": {
                "attributes": seer.names, "epochs": EPOCHS, "train": len(known), "heldout": len(images),
                "accuracy": dict(zip(seer.names, study.correct.mean(axis=0).round(4).tolist(), strict=True)),
                "on_reconstructions": dict(zip(seer.names, decoded.mean(axis=0).round(4).tolist(), strict=True)),
                "unedited": dict(zip(
                    seer.names, (seer.read(plain) == heldout_codes[:200]).mean(axis=0).round(4).tolist(), strict=True)),
            },
            "unedited_psnr": {f"{kept:g}": round(psnr(sampler, some[:100], kept), 2) for kept in (0.6, 0.8, 0.9, 0.95)},
            "edits": [],
        }  # fmt: skip
        accuracy = spec.record["accuracy"]
        asked = sorted(targets(attributes, spec.names), key=lambda target: -accuracy[target.direction])
        result["left_out"] = {t.label: accuracy[t.direction] for t in asked if accuracy[t.direction] < TOLD}
        for target in asked:
            if target.label not in result["left_out"] and (not only or seer.names[target.attribute] in only):
                row = study.best(target)
                result["edits"].append(row)
                click.echo(line(row))
                write_json(out, result)
        picture(study, asked, result["edits"], out.with_name("edits.png"))
    draw(result, out.with_suffix(".png"))
    click.echo(f"{sum(map(reaches, result['edits']))} of {len(result['edits'])} edits reach the goal")


def psnr(sampler: Sampler, images: U8, preserve: float) -> float:
    """Of faces that come back without any edit, in dB."""
    back = sampler.edit(images, {}, preserve=preserve, seed=SEED).images
    return float(10 * np.log10(255**2 / np.mean((back.astype(np.float64) - images) ** 2)))


if __name__ == "__main__":
    main()
