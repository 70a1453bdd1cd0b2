"""How is a bundle built from a terminal?  python export/build_engines.py ckpt.pt --out NAME.bundle"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
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
        raise SystemExit(
            f"Error: found no {', '.join(missing)}, expected the packages that building needs; install them with: "
            "pip install 'diffusevae-engine[export]'"
        )

import click

from engine.backends import BACKENDS
from engine.cli import NearChoice
from engine.cli_output import echo_fields
from engine.errors import EngineError
from engine.steps import VARIANCES
from export.architecture import Architecture
from export.build import Built, Request, Source, Watch, build
from export.evidence import Options
from export.parts import WEIGHTS
from export.presets import PRESETS

PRECISIONS = ("f32",)


class BuildCommand(click.Command):
    """Accepts `--backends a b` beside `--backends a --backends b`, and shows our errors without a traceback."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, "--backends"))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EngineError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; no bundle was written, an older one is untouched") from None


def spread(args: list[str], option: str) -> list[str]:
    """Repeat `option` before each of the words behind it that are no option and no file."""
    result: list[str] = []
    open_ended = False
    for index, word in enumerate(args):
        if word.startswith("-"):
            open_ended = word == option
        elif open_ended and args[index - 1] != option:
            if word not in BACKENDS and (Path(word).exists() or Path(word).suffix):
                open_ended = False  # the checkpoint, given last
            else:
                result.append(option)
        result.append(word)
    return result


class Narrator(Watch):
    """Prints what was inferred, and a line per stage with its time."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        start = time.perf_counter()
        yield
        click.echo(f"  {name:<24} {time.perf_counter() - start:6.1f} s")

    def inferred(self, architecture: Architecture, source: Source) -> None:
        """The model as it was understood, each line with where that came from."""
        click.echo("")
        echo_fields(describe(architecture, source), indent="  ")
        click.echo("")


def describe(architecture: Architecture, source: Source) -> dict[str, str]:
    """What was inferred, as lines for people."""
    a, unet, origins = architecture, architecture.unet, architecture.origins
    kind = f"formulation {a.formulation}" if a.conditional else "unconditional"
    mults = ",".join(map(str, unet.channel_mult))
    attention = ", ".join(str(unet.image_size >> level) for level in unet.attention_levels)
    single = "" if source.network.prefix.startswith(tuple(WEIGHTS.values())) else " (the only network in the file)"
    lines = {
        "name": (a.name, origins["name"]),
        "weights": (f"{source.weights}{single}", source.network.prefix + "*"),
        "model": (kind, origins["formulation"]),
        "image size": (f"{unet.image_size} x {unet.image_size}", origins["image_size"]),
        "UNet": (
            f"{unet.layout} layout, {unet.model_channels} channels x {mults}, {unet.blocks_per_level} blocks a level",
            "weights",
        ),
        "attention": (f"at {attention or 'the middle only'}{' and the middle' if attention else ''}", "weights"),
        "heads": (str(unet.heads), origins["heads"]),
    }  # fmt: skip
    if unet.z_dim is not None:
        lines["z into the UNet"] = (f"width {unet.z_dim}{', scale-shift' if unet.scale_shift else ''}", "weights")
    if a.vae is not None:
        lines["VAE encoder"] = (a.vae.enc_blocks, origins["vae"])
        lines["VAE decoder"] = (a.vae.dec_blocks, origins["vae"])
    lines["schedule"] = (f"linear, beta {a.beta_1:g} to {a.beta_T:g}, T = {a.T}", origins["schedule"])
    lines["variance"] = (a.variance, origins["variance"])
    lines["defaults"] = (", ".join(f"{k} {v}" for k, v in a.defaults.items() if v not in (None, 0.0)), origins["defaults"])
    return {key: f"{value}  [{origin}]" for key, (value, origin) in lines.items()}


def summarise(built: Built) -> None:
    """The closing table and the next command."""
    runtimes = list(built.graphs[0].parity)
    rows = [("graph", "file", "size", *(f"error in {name}" for name in runtimes))]
    for graph in built.graphs:
        errors = (f"{graph.parity[name]:.1e}" for name in runtimes)
        rows.append((graph.role.name, f"{graph.role.name}.onnx", f"{len(graph.model) / 1e6:.1f} MB", *errors))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    click.echo("")
    for row in rows:
        click.echo("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo("\n  error: largest relative difference to torch in float32, batches of 1, 2 and 5")
    click.echo(f"\nWrote {built.path}. Next:\n  diffusevae sample {built.path} -n 16 --out grid.png")


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
@click.option(
    "--backends",
    multiple=True,
    metavar="NAME...",
    default=("onnxruntime", "openvino"),
    show_default=True,
    help="Runtimes that the bundle is for and that every graph is checked in; one or more names.",
)
@click.option(
    "--precision",
    type=NearChoice(PRECISIONS),
    default="f32",
    show_default=True,
    help="Precision of the stored graphs. bf16 needs no graph of its own: choose it when sampling.",
)
@click.option("--preset", metavar="NAME", help=f"A published configuration of the reference: {', '.join(PRESETS)}.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads of the UNet; weights cannot tell.")
@click.option("--image-size", type=click.IntRange(1), metavar="PIXELS", help="Side of the images, for unconditional models.")
@click.option(
    "--formulation", type=click.IntRange(1, 2), help="DiffuseVAE formulation, for files without the schedule's constants."
)
@click.option(
    "--schedule",
    type=(float, float, int),
    metavar="BETA_1 BETA_T T",
    default=None,
    help="Linear noise schedule, for files without betas; the reference's is 0.0001 0.02 1000.",
)
@click.option(
    "--variance",
    type=NearChoice(VARIANCES),
    help="Variance of method ddpm that the bundle records.  [default: fixedlarge]",
)
@click.option(
    "--vae-enc-blocks", metavar="TEXT", help="Block string of the VAE's encoder, if outside the reference's convention."
)
@click.option("--vae-dec-blocks", metavar="TEXT", help="Block string of its decoder.")
def main(
    checkpoint: Path,
    vae: Path | None,
    out: Path | None,
    weights: str,
    backends: tuple[str, ...],
    precision: str,
    **said: Any,
) -> None:
    """Build a bundle from trained DiffuseVAE weights.

    CHECKPOINT is a checkpoint of the reference implementation (Lightning .ckpt), a state dict saved by torch.save, or a
    .safetensors file. The architecture is read off the weights; where they cannot tell and a wrong guess would change the
    images, the build stops and names the option to give. Every graph is run in ONNX Runtime and in the chosen runtimes
    and compared with torch before anything is written.
    """
    del precision  # one choice, already checked: it is there so that asking for another gets an answer
    click.echo(f"Building from {checkpoint}")
    request = Request(checkpoint, vae, out, weights, backends, Options(**said))
    summarise(build(request, Narrator()))


if __name__ == "__main__":
    main()
