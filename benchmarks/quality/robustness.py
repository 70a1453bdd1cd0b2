"""Damaged conditions: what the refiner makes of pictures with noise, blur and other damages that it was not trained for.

    python benchmarks/quality/robustness.py --bundle out/avatars.bundle

For each damage of held-out images: the damaged ones, the VAE's reconstruction of them, `refine` from the best of many fixed
starts and from t_start="auto", and `reconstruct`; PSNR and SSIM against the originals, and a Fréchet distance to other
held-out images. The strengths are none of those that `diffusevae fit-refine` fits to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np
import numpy.typing as npt

from benchmarks import figures
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json, write_text
from benchmarks.quality import faces, judge, study
from engine import Sampler
from engine.bundle.starts import Starts
from engine.cli.terminal import Program
from engine.commands import command, install_extra
from engine.places import check_file
from export.dates import now
from export.fit_refine import STARTS, psnr, starts_of
from export.fitting.damages import MEASURED, Damage
from export.fitting.features import Features
from export.fitting.frechet import Moments, frechet_distance, moments

U8 = npt.NDArray[np.uint8]
SEED = 2_000_000  # of damages and chains: image i has SEED + i
ALLOWED = 0.3  # dB that "auto" may lose against the best fixed start
WAYS = {"damaged": "damaged", "vae": "VAE", "refine": "refine, best start", "reconstruct": "reconstruct"}
STYLES = {"damaged": ("#7f7f7f", "x"), "vae": ("#D55E00", "s"), "refine": ("#009E73", "o"), "reconstruct": ("#0072B2", "^")}
SHOWN = 1  # faces of the grid
TITLES = [damage.title for damage in MEASURED]


class Judge:
    """Scores of images [N, H, W, 3] against their originals, and against other images."""

    def __init__(self, features: Features, others: U8) -> None:
        try:
            from skimage.metrics import structural_similarity
        except ImportError as error:
            raise BenchmarkError(
                f"SSIM: found no scikit-image ({error}), expected it; install it with: {install_extra('benchmark')}"
            ) from error
        self.similarity, self.features = structural_similarity, features
        self.others: Moments = moments(judge.extract(features, others, lambda _: None))

    def scores(self, images: U8, originals: U8) -> dict[str, float]:
        """PSNR in dB and SSIM, the means over images, and the distance."""
        pairs = zip(images, originals, strict=True)
        ssim = [self.similarity(a, b, channel_axis=2, data_range=255) for a, b in pairs]
        fd = frechet_distance(self.others, moments(judge.extract(self.features, images, lambda _: None)))
        gained = float(psnr(images, originals).mean())
        return {"psnr": round(gained, 2), "ssim": round(float(np.mean(ssim)), 4), "fd": round(fd, 2)}


def encoded(sampler: Sampler, images: U8) -> U8:
    """The VAE's reconstruction."""
    names = [spec.name for spec in sampler.inputs]
    return sampler.decode(**{name: value for name, value in sampler.encode(images).items() if name in names})


def measure(
    sampler: Sampler, scorer: Judge, damage: Damage | None, originals: U8, swept: int
) -> tuple[dict[str, Any], list[U8]]:
    """A row, and the first images: original, damaged, reconstructed by the VAE, refined, reconstructed."""
    damaged = originals if damage is None else damage(originals, SEED)
    few, true = damaged[:swept], originals[:swept]
    seeds = chain_seeds(len(originals))
    starts = {*starts_of(sampler, STARTS), *table_of(sampler).t_starts}
    sweep = {start: psnr(sampler.refine(few, t_start=start, seed=seeds[:swept]).images, true) for start in sorted(starts)}
    best = max(sweep, key=lambda start: float(sweep[start].mean()))
    estimate = sampler.estimate_damage(few)
    measures = np.stack(estimate, 1)
    auto = table_of(sampler).choose(measures)
    lost = float((sweep[best] - sweep[auto]).mean())
    # Images do not depend on each other: what each by itself gives is that of the sweep.
    own = [table_of(sampler).choose(one[None]) for one in measures]
    alone = float(np.mean([sweep[best][i] - sweep[start][i] for i, start in enumerate(own)]))
    ways = {
        "damaged": damaged,
        "vae": encoded(sampler, damaged),
        "refine": sampler.refine(damaged, t_start=best, seed=seeds).images,
        "reconstruct": sampler.reconstruct(damaged, seed=seeds).images,
    }
    row = {
        "damage": "none" if damage is None else damage.title,
        "estimate": {name: round(float(value.mean()), 5) for name, value in estimate._asdict().items()},
        **{way: scorer.scores(images, originals) for way, images in ways.items()},
        "sweep": {str(start): round(float(value.mean()), 2) for start, value in sweep.items()},
        "best_t_start": best,
        "auto": {"t_start": auto, "loss": round(lost, 2), "loss_alone": round(alone, 2)},
    }
    return row, [originals[:SHOWN], *(images[:SHOWN] for images in ways.values())]


def table_of(sampler: Sampler) -> Starts:
    """Where "auto" looks a start up; BenchmarkError for a bundle without."""
    path, found = sampler.bundle.path, sampler.bundle.manifest.refine
    if found is None:
        cure = command("fit-refine", str(path), "--images", "train.npz")
        raise BenchmarkError(f"{path}: found no table of starts, expected one; fit it with: {cure}")
    return found


def chain_seeds(count: int) -> npt.NDArray[np.int64]:
    """Of the chains."""
    return np.arange(SEED, SEED + count)


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: PSNR / SSIM / distance of each way, and what "auto" takes and loses."""
    lines = [
        "| damage | damaged | VAE | refine, best | t | reconstruct | auto: t | loses, dB | one by one |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        cells = ["{psnr:.1f} / {ssim:.2f} / {fd:.0f}".format(**row[way]) for way in WAYS]
        cells.insert(3, str(row["best_t_start"]))
        loss = f"{row['auto']['loss']:.2f}{'' if row['auto']['loss'] <= ALLOWED else ' (!)'}"
        cells += [str(row["auto"]["t_start"]), loss, f"{row['auto']['loss_alone']:.2f}"]
        lines.append(f"| {' | '.join([row['damage'], *cells])} |")
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """PSNR of each damage, a mark for each way."""
    pyplot = figures.open_pyplot()
    rows = result["rows"][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(rows) + 1.5))
    for way, label in WAYS.items():
        color, marker = STYLES[way]
        values = [row[way]["psnr"] for row in rows]
        axes.plot(values, range(len(rows)), marker, color=color, label=label, markersize=7)
    values = [row["refine"]["psnr"] - row["auto"]["loss"] for row in rows]
    axes.plot(values, range(len(rows)), "|", color="black", label="refine, auto", markersize=13)
    axes.set_yticks(range(len(rows)), [row["damage"] for row in rows], fontsize=9)
    axes.set_xlim(9, 45)
    axes.set_xlabel("PSNR in dB against the original, higher is better (undamaged images lie beyond the right edge)")
    inputs = result["inputs"]
    figures.frame(axes, "Damaged conditions", f"{inputs['images']} held-out images, {result['engine']['steps']} steps")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10)
    figures.save_figure(pyplot, figure, path)


def draw_grid(rows: Sequence[tuple[str, list[U8]]], path: Path) -> None:
    """A row a damage: of each face the original, then every way."""
    pyplot = figures.open_pyplot()
    side = rows[0][1][0].shape[2]
    titles = ["original", *(label.replace(", ", "\n") for label in WAYS.values())] * SHOWN
    figure, grid = pyplot.subplots(len(rows), 1, figsize=(0.95 * len(titles) + 2.2, 1.0 * len(rows)), squeeze=False)
    for index, ((title, ways), axes) in enumerate(zip(rows, grid[:, 0], strict=True)):
        strip = np.concatenate([images[face] for face in range(len(ways[0])) for images in ways], axis=1)
        axes.imshow(strip, interpolation="nearest")
        axes.set_xticks([(column + 0.5) * side for column in range(len(titles))], titles if index == 0 else [], fontsize=8)
        axes.xaxis.tick_top()
        axes.set_yticks([side / 2], [title], fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.subplots_adjust(hspace=0.04)
    figures.save_figure(pyplot, figure, path)


def inputs_of(heldout: Path, number: int, reference: int) -> tuple[U8, U8]:
    """The images to damage, and others to measure distances to."""
    held = faces.load_faces(heldout)
    if len(held) < number + 2:
        raise BenchmarkError(
            f"{heldout}: found {len(held)} images, expected at least {number + 2}: {number} to damage and others to compare "
            f"with; pass --images {max(2, len(held) // 4)}"
        )
    return held[:number], held[number : number + reference]


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", type=Path, default=Path("out/avatars.bundle"), help="With a table of `diffusevae fit-refine`.")
@click.option("--heldout", type=Path, default=Path("data/heldout.npz"), help="Held-out images; rendered where missing.")
@click.option("--images", "number", type=click.IntRange(2), default=500, help="Images that are damaged.")
@click.option("--sweep", type=click.IntRange(1), default=100, help="Of these, for finding the best start.")
@click.option("--reference", type=click.IntRange(2), default=2000, help="Other images, for distances.")
@click.option(
    "--only", multiple=True, type=click.Choice(TITLES), metavar="DAMAGE", help="As the table names it; again for each. "
    "Default: all."
)  # fmt: skip
@click.option("--backend", default="auto", help="As for sample.")
@click.option("--precision", default="auto", help="As for sample.")
@click.option("--threads", type=int, default=None, help="Default: what affinity and container allow.")
@click.option("--out", type=Path, default=Path("out/robustness.json"), help="Table, plot and grid are written beside it.")
def main(
    bundle: Path, heldout: Path, number: int, sweep: int, reference: int, only: tuple[str, ...], backend: str,
    precision: str, threads: int | None, out: Path,
) -> None:  # fmt: skip
    """Damage held-out images in many ways, and measure what comes back; exit code 1 where "auto" loses too much."""
    check_file(out)
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    originals, others = inputs_of(faces.held_out(heldout, out.parent), number, reference)
    with Sampler(bundle, backend, precision, threads) as sampler:
        table_of(sampler)
        scorer = Judge(judge.open_extractor(judge.FIRST, sampler.threads), others)
        result: dict[str, Any] = {
            "format": "diffusevae-robustness", "format_version": 1, "date": now(), "machine": facts,
            "bundle": {"sha256": sampler.bundle.digest, **study.identity(sampler)},
            "engine": {"threads": sampler.threads, "steps": sampler.bundle.manifest.defaults.steps},
            "metric": judge.METRIC, "seed": SEED,
            "inputs": {"images": len(originals), "swept": min(sweep, len(originals)), "reference": len(others)},
            "rows": [],
        }  # fmt: skip
        pictures = []
        for damage in (None, *(damage for damage in MEASURED if not only or damage.title in only)):
            row, shown = measure(sampler, scorer, damage, originals, sweep)
            result["rows"].append(row)
            pictures.append((row["damage"], shown))
            click.echo(table({"rows": [row]}).splitlines()[-1])
            write_json(out, result)
    write_text(out.with_suffix(".table.md"), table(result))
    draw(result, out.with_suffix(".png"))
    draw_grid(pictures, out.with_name(f"{out.stem}-grid.png"))
    lost = [row["damage"] for row in result["rows"] if row["auto"]["loss"] > ALLOWED]
    if lost:
        raise click.ClickException(f"auto loses more than {ALLOWED} dB against the best start for: {'; '.join(lost)}")


if __name__ == "__main__":
    main()
