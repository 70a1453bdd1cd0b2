"""Fitting few-step settings from a terminal: `diffusevae fit-setting BUNDLE --images FILE`.

From a checkout this file itself is the command: `python export/fit_setting.py BUNDLE --images FILE`.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
import numpy as np

from engine import Sampler, __version__
from engine.bulk.job import describe_inputs
from engine.bundle.fitted import as_defaults, step_digest
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import check_rewritable, write_fitted
from engine.cli.inputs import INPUT, take_inputs
from engine.cli.terminal import Program, shows_progress
from engine.errors import ArgumentError
from engine.places import check_file
from engine.result import U8
from export.dates import now
from export.fitting import front
from export.fitting.features import DEFAULT, NETWORKS, check_network, open_features, title_of
from export.fitting.fit import CALLS, FIRST_SEED, UNSEEN, Fit, Fitting
from export.fitting.objective import Objective, Reference
from export.fitting.saved import check_beside_take, checkpoint_of, load_fit, save_fit
from export.fitting.search import Record
from export.training_images import read_images, thinned

MAX_IMAGES = 3000


class Interruptible(Program):
    """Says what Ctrl-C leaves."""

    interrupted = "Interrupted; the bundle is as it was, and the same command goes on from the record."


@contextmanager
def bar() -> Iterator[Callable[[str], None]]:
    """What shows on stderr how far the search is."""
    from tqdm import tqdm

    with tqdm(desc="fit", unit=" settings", delay=2, leave=False, disable=not shows_progress()) as shown:

        def say(text: str) -> None:
            shown.set_postfix_str(text, refresh=False)
            shown.update()

        yield say


def starts_from_image(sampler: Sampler, start: str | None) -> bool:
    """Whether chains are to start from the pipeline's start image: where there is one, unless the caller says otherwise."""
    has = sampler.bundle.manifest.pipeline.state.start is not None
    if start == "image" and not has:
        raise ArgumentError(
            f"start is 'image', but the pipeline of {sampler.bundle.path} has no start image; expected 'noise': leave "
            "--start out"
        )
    return has and start != "noise"


@click.command(cls=Interruptible, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Training images, a few hundred or more: an .npz file with 'images', uint8 [N, H, W, C], or a folder of pictures. "
    "Without them the timesteps alone are fitted, to long chains of the model's own.",
)
@click.option(
    "--calls", type=click.IntRange(1, 100), multiple=True, default=CALLS, show_default=True, help="Again for each."
)
@click.option("--start", type=click.Choice(["image", "noise"]), help="Default: the start image, where the pipeline has one.")
@click.option("--guidance", type=float, default=0.0, show_default=True, help="The weight that settings are fitted for.")
@click.option(
    "--network", default=DEFAULT, show_default=True, help=f"Features: {', '.join(NETWORKS)}, or an ONNX file of yours."
)
@click.option("--seeds", type=click.IntRange(16, UNSEEN), default=256, show_default=True, help="Samples a setting.")
@click.option("--proof", type=click.IntRange(16, UNSEEN), default=512, show_default=True, help="Samples of the proof.")
@click.option("--minutes", type=click.FloatRange(0), default=10.0, show_default=True, help="Of the search.")
@click.option("--record", type=click.Path(path_type=Path), help="Scores so far.  [default: BUNDLE.settings.json]")
@click.option("--save", type=click.Path(path_type=Path), help="Write them into this file too, for --take.")
@click.option("--take", type=click.Path(path_type=Path), help="What --save wrote of the same checkpoint: no search then.")
@click.option("--plot", type=click.Path(path_type=Path), help="A picture of what was found, PNG or SVG.")
@click.option("--dry-run", is_flag=True, help="Leave the bundle as it is.")
@INPUT
@click.option("--backend", default="auto", show_default=True, help="As for sample.")
@click.option("--precision", default="auto", show_default=True, help="As for sample.")
@click.option("--threads", type=click.IntRange(1), help="As for sample.")
def main(
    bundle: Path, images: Path | None, calls: tuple[int, ...], start: str | None, network: str, seeds: int, proof: int,
    minutes: float, record: Path | None, save: Path | None, take: Path | None, plot: Path | None, dry_run: bool,
    guidance: float, inputs: Any, texts: tuple[str, ...], text_file: Path | None, backend: str, precision: str,
    threads: int | None,
) -> None:  # fmt: skip
    """Find the best setting for each count of network calls, and write those that hold into the bundle.

    A setting is judged by the Fréchet distance of its pictures to the training images, with a bound on the drift of their
    colours. What is found is put to the proof on seeds that the search has not seen: where it is no better than the plain
    setting, that one stays. `sample --steps K` then uses the fitted setting of K calls; `--setting plain` does not.
    """
    if take is not None:
        check_beside_take(click.get_current_context())
        return take_settings(bundle, take, dry_run)
    counts = tuple(sorted(set(calls)))
    record = record or bundle.with_name(f"{bundle.resolve().name}.settings.json")
    for file in (record, save, plot):
        if file is not None:
            check_file(file)
    if plot is not None:
        front.open_pyplot()
    if images is not None:
        check_network(network)
    if not dry_run:
        check_rewritable(bundle)
    with Sampler(bundle, backend, precision, threads) as sampler, bar() as say:
        taken = take_inputs({"inputs": inputs, "texts": texts, "text_file": text_file}, sampler.bundle)
        fitting = Fitting(sampler, starts_from_image(sampler, start), taken, say, guidance)
        searched, unseen = range(FIRST_SEED, FIRST_SEED + seeds), range(FIRST_SEED + UNSEEN, FIRST_SEED + UNSEEN + proof)
        about = identity(sampler, fitting)
        if images is None:
            about |= {"objective": "the teacher's end", "seeds": [FIRST_SEED, fitting.teacher_seeds]}
            found = list(fitting.imitate(counts, unseen))
        else:
            training = few(read_images(images, sampler.bundle.manifest.pipeline.image_shape))
            features = open_features(network, sampler.bundle.manifest.pipeline.image_shape, sampler.threads)
            about |= {
                "objective": f"FD ({title_of(network)})",
                "seeds": [FIRST_SEED, seeds],
                "images": [len(training), hashlib.sha256(training.tobytes()).hexdigest()],
            }
            reference = Reference(features, training)
            objective, held = (
                Objective(sampler, reference, of, fitting.image, fitting.conditions) for of in (searched, unseen)
            )
            found = list(fitting.run(objective, held, Record.open(record, about), counts, 60 * minutes))
        checkpoint = checkpoint_of(sampler.bundle.manifest.source)
    for line in table(found):
        click.echo(line)
    settings = [as_defaults(fit.candidate.options) for fit in ordered(found) if fit.candidate is not None]
    made = {**about, "unseen": [unseen.start, proof], "date": now(), "engine_version": __version__}
    made["fits"] = [fit.as_dict() for fit in found]
    if save is not None:
        save_fit(save, "settings", checkpoint, settings, made)
    if plot is not None:
        sampled = f"{sampler.bundle.manifest.name}: {about['objective']}, {proof} samples from the {about['start']}"
        front.draw(found, sampled, plot)
    write(bundle, settings, made, dry_run)


def take_settings(bundle: Path, file: Path, dry_run: bool) -> None:
    """Put the settings of a file into the bundle."""
    settings, made = load_fit(file, "settings", checkpoint_of(Bundle.open(bundle).manifest.source))
    write(bundle, settings, made, dry_run)


def write(bundle: Path, settings: list[dict[str, Any]], made: dict[str, Any], dry_run: bool) -> None:
    """Put settings into the bundle, and say so."""
    if dry_run:
        return
    write_fitted(bundle, settings, made)
    click.echo(
        f"Wrote {len(settings)} fitted settings into {bundle}: `sample --steps K` uses them, `--setting plain` does not."
    )


def few(images: U8) -> U8:
    """At most MAX_IMAGES: more cost minutes and hardly move the reference."""
    if len(images) > MAX_IMAGES:
        click.echo(f"Using {MAX_IMAGES} of {len(images)} images, evenly from the whole")
    return thinned(images, MAX_IMAGES)


def ordered(found: list[Fit]) -> list[Fit]:
    """The best pictures first, which is how a deadline chooses among them."""
    return sorted(found, key=lambda fit: math.inf if fit.score is None else fit.score.fd)


def identity(sampler: Sampler, fitting: Fitting) -> dict[str, Any]:
    """What scores depend on: the network and how it is run, and where chains start."""
    manifest = sampler.bundle.manifest
    return {
        "step": step_digest(manifest),
        "prior": manifest.prior.sha256 if manifest.prior is not None else None,
        "engine": [sampler.backend, sampler.precision],
        "start": "image" if fitting.image else "noise",
        "guidance": fitting.guidance,
        "inputs": describe_inputs({name: np.asarray(value) for name, value in fitting.conditions.of_all.items()}),
    }


def table(found: list[Fit]) -> Iterator[str]:
    """One line for each count of calls."""
    yield "distances on unseen seeds, lower is better"
    yield f"{'calls':>5} {'plain':>9} {'colour':>7} {'fitted':>9} {'colour':>7}  setting"
    for fit in sorted(found, key=lambda fit: fit.calls):
        plain = f"{fit.calls:>5} {fit.plain.fd:>9.4g} {fit.plain.colour:>7.3f}"
        if fit.candidate is None or fit.score is None:
            yield f"{plain} {'-':>9} {'-':>7}  nothing better was found"
            continue
        options = {name: value for name, value in fit.candidate.options.items() if value not in (None, 1.0, "ddim")}
        words = " ".join(f"{name}={value}" for name, value in options.items()).replace(", ", ",")
        yield f"{plain} {fit.score.fd:>9.4g} {fit.score.colour:>7.3f}  {words}"


if __name__ == "__main__":
    main()
