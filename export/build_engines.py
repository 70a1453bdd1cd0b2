"""Building a bundle from a terminal: `diffusevae build CKPT --out NAME.bundle`.

From a checkout this file itself is the command: `python export/build_engines.py CKPT --out NAME.bundle`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")

if __name__ == "__main__":
    # From a checkout nothing needs to be installed; and this folder itself must not shadow other packages.
    HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        from engine.commands import install_extra

        raise SystemExit(
            f"Error: found no {', '.join(missing)}, expected the packages that building needs; install them with: "
            f"{install_extra('export')}"
        )

import click
from tqdm import tqdm

from engine.bundle.graphs import PRECISIONS
from engine.bundle.inputs import InputSpec
from engine.cli.options import NearChoice
from engine.cli.output import echo_fields
from engine.cli.terminal import Program
from engine.commands import command
from export.build import Built, Request, build
from export.context import Watch
from export.engine_options import engine_options, take_engine_options
from export.families import family_flags
from export.families.base import Recognised
from export.graphs.extra import GraphOptions
from export.guide_flags import guide_flags
from export.plan import BUILDABLE, default_backends
from export.read.parts import WEIGHTS
from export.regulariser_flags import regulariser_flags
from export.tensorrt.check import Checked, check_request
from export.tensorrt.options import DOTTED_TARGETS, RTX_TARGETS

NAMES: dict[str, tuple[str, ...]] = {  # options that take several words
    "--backends": BUILDABLE,
    "--precision": PRECISIONS,
    "--targets": (*RTX_TARGETS, *DOTTED_TARGETS),
}


class BuildCommand(Program):
    """Accepts `--backends a b` beside `--backends a --backends b`."""

    interrupted = "Interrupted; no bundle was written, an older one is untouched."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for option, names in NAMES.items():
            args = spread(args, option, names)
        return super().parse_args(ctx, args)


def spread(args: list[str], option: str, names: Collection[str]) -> list[str]:
    """Repeat `option` before each of the words behind it that are one of its names, or neither option nor file."""
    result: list[str] = []
    open_ended = False
    for index, word in enumerate(args):
        if word.startswith("-"):
            open_ended = word == option
        elif open_ended and args[index - 1] != option:
            if word not in names and (Path(word).exists() or Path(word).suffix):
                open_ended = False  # the checkpoint, given last
            else:
                result.append(option)
        result.append(word)
    return result


class Narrator(Watch):
    """Prints what was inferred, and a line per stage with its time."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        click.echo(f"  {name:<28} {time.perf_counter() - start:6.1f} s")

    def progress(self, phase: str, done: int, total: int) -> None:
        """A bar below the stages, on a terminal only."""
        if self._bar is None:
            self._bar = tqdm(disable=None, leave=False, bar_format="    {desc} {bar} {n_fmt}/{total_fmt}")
        self._bar.total, self._bar.n = total, done
        self._bar.set_description_str(phase)

    def note(self, text: str) -> None:
        """A sentence below the stage that it is about."""
        click.echo(f"    {text}")

    def inferred(self, found: Recognised) -> None:
        """The model as it was understood, each line with where that came from."""
        click.echo("")
        echo_fields(found.lines(), indent="  ")
        click.echo("")


def summarise(built: Built) -> None:
    """The closing tables and the next command."""
    runtimes = list(built.graphs[0].parity)
    rows = [("graph", "file", "size", *(f"error in {name}" for name in runtimes))]
    for graph in built.graphs:
        errors = (f"{graph.parity[name]:.1e}" if name in graph.parity else "-" for name in runtimes)
        rows.append((graph.key, graph.file, megabytes(graph.nbytes), *errors))
    echo_table(rows)
    click.echo("\n  error: largest relative difference to torch in float32, batches of 1, 2 and 5")
    if built.engines:
        lines = [("engine", "precision", "graph", "file", "size")]
        for engine in built.engines:
            entry = engine.entry
            for name, data in engine.files.items():
                lines.append((entry["backend"], entry["precision"], entry["graph"], name, megabytes(len(data))))
            if not engine.files:
                lines.append((entry["backend"], "f32", entry["graph"], f"run by {entry['runs_on'][0]}", "-"))
        echo_table(lines)
    for note in built.model.notes:
        click.echo(f"\nNote: {note}.")
    worded = None if built.text is None else built.text.input
    needed = ["--text", "WORDS"] if worded else []
    given = [spec for spec in built.model.input_specs if spec.draw is None and spec.name != worded]
    needed += [word for spec in given for word in ("--input", _example(spec))]
    click.echo(f"\nWrote {built.path}. Next:\n  {command('sample', built.path, *needed, '-n', '16', '--out', 'grid.png')}")


def _example(spec: InputSpec) -> str:
    """An input as `--input` takes it: the least number, or the name of a file to be given."""
    if len(spec.shape) == 1:
        return f"{spec.name}={int(spec.range[0]) if spec.range else 0}"
    return f"{spec.name}={spec.name}.{'npy' if spec.picture is None else 'png'}"


def megabytes(nbytes: int) -> str:
    """The size of a file, for people."""
    return f"{nbytes / 1e6:.1f} MB"


def echo_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows in columns, the first one being their heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    click.echo("")
    for row in rows:
        click.echo("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command(cls=BuildCommand, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--vae", type=click.Path(path_type=Path), help="The VAE's own checkpoint, when CHECKPOINT holds none.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Bundle to write; an older one there is replaced at the end, in one step.  [default: NAME.bundle]",
)
@click.option("--name", help="Name that the bundle bears.  [default: the file's name]")
@click.option(
    "--weights",
    type=NearChoice(list(WEIGHTS)),
    default="ema",
    show_default=True,
    help="The moving average of the weights, or the weights themselves.",
)
@click.option("--key", metavar="PATH", help="Which of several sets of weights in CHECKPOINT, such as ema.module.")
@click.option(
    "--backends",
    multiple=True,
    metavar="NAME...",
    help="Runtimes that the bundle is for: graphs are checked in them, or engines built for them; one or more of "
    f"{', '.join(BUILDABLE)}.  [default: onnxruntime openvino, and native where it runs here]",
)
@click.option(
    "--precision",
    "precisions",
    type=NearChoice(PRECISIONS),
    multiple=True,
    metavar="NAME...",
    help=f"What is stored, one or more of {', '.join(PRECISIONS)}: float32 graphs always, fp16 adds half ones, and "
    "engines are built in those that their backend has.  [default: f32, and what each engine is best in]",
)
@click.option(
    "--keep-float32",
    multiple=True,
    metavar="NAME",
    help="Layer, or module with all its layers, that half graphs keep in float32, e.g. unet.middle.0.attn; repeatable.",
)
@click.option(
    "--turing", is_flag=True, help="Half graphs that TensorRT takes on SM75: every matrix product in half, even the last."
)
@click.option(
    "--whole-sampler",
    is_flag=True,
    help="Add the whole sampler as one ONNX graph, for any ONNX runtime; it doubles the bundle. TensorRT's comes by itself.",
)
@click.option(
    "--latent-prior",
    type=click.Path(path_type=Path),
    help="File of fit-prior: the density that z is drawn from, instead of N(0, I).",
)
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    help="WordPiece vocabulary, a token a line, of a model that takes token ids: the bundle then takes text.",
)
@family_flags
@guide_flags
@regulariser_flags
@engine_options
@click.option(
    "--check", is_flag=True, help="Only report which nodes of the graphs TensorRT does not take, and write nothing."
)
def main(
    checkpoint: Path,
    vae: Path | None,
    out: Path | None,
    weights: str,
    key: str | None,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    keep_float32: tuple[str, ...],
    turing: bool,
    whole_sampler: bool,
    latent_prior: Path | None,
    vocabulary: Path | None,
    check: bool,
    **said: Any,
) -> None:
    """Build a bundle from trained weights.

    CHECKPOINT is a checkpoint of the reference implementation (Lightning .ckpt), anything saved by torch.save that holds
    its weights, a .safetensors file, or the .index.json of its shards. The architecture is read off the weights; where they
    cannot tell and a wrong guess would change the images, the build stops and names the option to give. Every graph is run
    in ONNX Runtime and in the chosen runtimes and compared with torch before anything is written.
    """
    click.echo(f"Building from {checkpoint}")
    chosen, backends = bool(backends), backends or default_backends(precisions)
    graphs = GraphOptions(keep_float32, turing, whole_sampler)
    engines = take_engine_options(said, (*backends, "tensorrt_rtx") if check else backends)
    files = (checkpoint, vae, out, weights, key)
    request = Request(*files, backends, precisions, said, engines, graphs, latent_prior, vocabulary, if_fit=not chosen)
    if check:
        report(check_request(request, Narrator()))
    else:
        summarise(build(request, Narrator()))


def report(checked: Checked) -> None:
    """What `--check` found; exit code 1 when a graph would not run."""
    click.echo(f"\n{checked.library} on {', '.join(checked.graphs)}:")
    for finding in checked.findings:
        click.echo(f"  {finding}")
    if checked.findings:
        raise click.ClickException(f"{len(checked.findings)} node(s) that TensorRT does not take; nothing was written")
    click.echo("  its parser takes every node; a build may still refuse types for a target. Nothing was written.")


if __name__ == "__main__":
    main()
