"""The options that several commands share, and what is made of them: a bundle, a Sampler, the arguments of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from engine.abilities import picture_shape
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import X
from engine.bundle.prior import PRIORS
from engine.bundle.reader import Bundle
from engine.cli.inputs import LINKS, START, Command, options, take_inputs
from engine.cli.output import check_out, check_results, finish
from engine.cli.terminal import shows_progress
from engine.errors import ArgumentError, did_you_mean
from engine.imaging import FITS, load_images
from engine.resolve import SETTING_OPTIONS, SETTINGS
from engine.result import Batch
from engine.sampler import Sampler
from engine.solver.guides import MODES
from engine.solver.regulariser import REGULARISE
from engine.solver.table import METHODS, VARIANCES
from engine.solver.timesteps import SPACINGS


class NearChoice(click.Choice):
    """A choice that answers an unknown value with the nearest one."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        names = [str(choice) for choice in self.choices]
        return f"{value!r} is not one of {', '.join(names)}.{did_you_mean(str(value), names)}"


class Seeds(click.ParamType):
    """A whole number, or several with commas between them."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | list[int]:
        words = str(value).split(",")
        if not all(word.strip().isdecimal() for word in words):
            self.fail(
                f"{value!r} is not a whole number from 0 to 2**64 - 1, or several with commas: 7 or 7,0,9.",
                param,
                ctx,
            )
        numbers = [int(word) for word in words]
        return numbers[0] if len(numbers) == 1 else numbers


class Listed(click.ParamType):
    """Numbers with commas between them; single: where there is one, that number."""

    def __init__(self, number: type[int] | type[float], example: str, single: bool) -> None:
        self.name, self._number, self._example, self._single = ("number" if single else "list"), number, example, single

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            numbers = [self._number(word) for word in str(value).split(",")]
        except ValueError:
            one = "a number, or several with commas" if self._single else "a list of whole numbers with commas"
            self.fail(f"{value!r} is not {one}: {self._example}.", param, ctx)
        return numbers[0] if self._single and len(numbers) == 1 else numbers


TIMESTEPS = Listed(int, "400,244,111,38,9", single=False)
SCALE = Listed(float, "0.84 or 0.9,0.8,0.7", single=True)
SETTING = options(
    click.option("--steps", type=int, help="Denoising steps."),
    click.option(
        "--setting", type=NearChoice(SETTINGS), help="Fitted: the bundle's own for these steps; default where it has one."
    ),
    click.option("--timesteps", type=TIMESTEPS, help="The timesteps themselves, falling: 400,244,111,38,9."),
    click.option("--spacing", type=NearChoice(SPACINGS), help="Which timesteps are kept."),
    click.option("--rho", type=float, help="Of karras spacing; default: 7."),
    click.option("--method", type=NearChoice(METHODS), help="Solver."),
    click.option("--eta", type=SCALE, help="DDIM's share of fresh noise: 0 none, 1 as much as DDPM; or one a step."),
    click.option("--t-start", type=START, help="Start from the noised start image (or the one given) at this timestep."),
    click.option("--temperature", type=float, help="Scale of the starting noise."),
    click.option("--noise-scale", type=SCALE, help="Scale of the steps' noise; or one a step: 0.9,0.8,0.7."),
    click.option("--eps-scale", type=SCALE, help="Scale of the network's eps; or one a step."),
    click.option("--guidance", type=float, help="Guidance weight; not 0 doubles the network's work."),
    click.option(
        "--guidance-interval",
        type=Listed(int, "200,800", single=False),
        metavar="LOW,HIGH",
        help="Guide only between these timesteps, both included; the others cost one evaluation.",
    ),
    click.option("--variance", type=NearChoice(VARIANCES), help="DDPM's variance; default: the bundle's."),
    click.option(
        "--quantize-denoised", is_flag=True, default=None, help="Look each step's prediction up in the bundle's codebook."
    ),
    click.option("--guide-scale", type=float, help="Scale of the guides' gradient; 0 runs none. Default: the bundle's."),
    click.option("--guide-mode", type=NearChoice(MODES), help="Whether each sample's entropy divides it, say."),
    click.option(
        "--guide-interval",
        type=Listed(int, "200,800", single=False),
        metavar="LOW,HIGH",
        help="Run guides only between these timesteps, both included.",
    ),
    click.option(
        "--regularise",
        type=NearChoice(REGULARISE),
        help="Where the bundle's second network comes in: after each step, before it, or not at all. Default: the bundle's.",
    ),
    click.option(
        "--regularise-interval",
        type=Listed(int, "200,800", single=False),
        metavar="LOW,HIGH",
        help="Run it only between these timesteps, both included.",
    ),
)
MACHINE = options(
    LINKS,
    click.option("--backend", default="auto", show_default=True, help="Runtime, one that the bundle lists, or auto."),
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        help="f32, bf16 (where the processor has it) or auto.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads; default: what this process may use."),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Images computed at a time.",
    ),
)
CANVAS = options(
    click.option(
        "--size",
        type=int,
        nargs=2,
        default=None,
        metavar="HEIGHT WIDTH",
        help="Of the images, other than the bundle's own: computed as a whole, or with --overlap in tiles.",
    ),
    click.option("--overlap", type=float, help="With it, in tiles: the share that the next one covers, such as 0.5."),
)
SEED = click.option("--seed", type=Seeds(), help="Image i uses SEED + i; or one a image: 7,0,9. Default: random.")
PRIOR = click.option(
    "--prior", type=NearChoice(PRIORS), help="What the drawn input comes from; default: the bundle's, if any."
)
FIRST = click.option(
    "--first",
    metavar="K",
    type=click.IntRange(min=0),
    default=0,
    help="Leave the first K of the images out: the rest of a run that was stopped.",
)
BUDGET = options(
    click.option("--budget-ms", type=float, help="Take the best fitted setting that keeps this time a batch."),
    click.option("--at-most", is_flag=True, help="With it: where none does, the fastest."),
    click.option("--anytime", is_flag=True, help="With it: end a late chain with what it has."),
)
NOISE_SEED = click.option("--seed", type=Seeds(), help="Of the starting noise. Default: A where A is a seed, else random.")


def output(default: str) -> Callable[[Command], Command]:
    """Where results go; with any other suffix than those two, or none, `--out` is a folder."""
    return options(
        click.option(
            "--out",
            default=default,
            show_default=True,
            help="A .png grid, a .npy array, a folder for single files, or - for a grid on standard output.",
        ),
        click.option("--add", is_flag=True, help="Write into a folder that holds other pictures too."),
        click.option("--with-start", is_flag=True, help="Show the image that each chain may start from above it."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    )


READING = options(
    click.option("--background", default="white", show_default=True, help="Below what is transparent: colour or #rrggbb."),
    click.option(
        "--fit",
        type=NearChoice(FITS),
        default=FITS[0],
        show_default=True,
        help="Pictures of other proportions lose their edges, or get edges of the background.",
    ),
    click.option("--strict", is_flag=True, help="Stop at the first picture that cannot be read, with nothing done."),
)


def open_bundle(bundle: str, given: dict[str, Any]) -> Bundle:
    """The bundle; refuses an --out that cannot be written and a start image that cannot be shown, in this order."""
    check_out(given["out"], given["as_json"])
    opened = take_canvas(Bundle.open(bundle, given.pop("allow_links")), given)
    if given["with_start"]:
        check_start(opened)
    return opened


def check_start(opened: Bundle) -> None:
    """Refuse a bundle without a start image for --with-start."""
    if not has_start_image(opened.manifest):
        raise ArgumentError(
            f"with-start: found {opened.path}, whose chains start from noise or from no picture, expected a bundle with an "
            f"image to start from; leave --with-start out"
        )


def take_canvas(opened: Bundle, given: dict[str, Any]) -> Bundle:
    """The bundle at the size that is asked for, where a command has such options; takes them out of `given`."""
    return opened.resized(given.pop("size", None), given.pop("overlap", None))


def open_sampler(opened: Bundle, given: dict[str, Any]) -> Sampler:
    """The Sampler that the machine options in `given` describe; takes them out of it."""
    machine = {name: given.pop(name) for name in ("backend", "precision", "threads")}
    return Sampler(opened, max_batch=given.pop("batch"), **machine)


def run_options(opened: Bundle, given: dict[str, Any]) -> dict[str, Any]:
    """The options and inputs of one `Sampler.sample` call; takes them out of `given`."""
    options = {name: given.pop(name) for name in (*SETTING_OPTIONS, "setting", "seed")}
    return {**options, **take_inputs(given, opened), "progress": not given["as_json"] and shows_progress()}


def has_start_image(manifest: Manifest) -> bool:
    """Whether a chain may start from a picture: from a value of the state, where the state itself is the image."""
    return manifest.pipeline.state.start is not None and manifest.pipeline.image == X


def run_images(
    bundle: str,
    images: tuple[str, ...],
    run: Callable[..., Batch],
    given: dict[str, Any],
    shape: Callable[[Manifest], tuple[int, int, int]] = picture_shape,
) -> None:
    """Read the pictures at the size that a Sampler's method takes, run it on them, and write what came out."""
    opened = open_bundle(bundle, given)
    reading = {name: given.pop(name) for name in ("background", "fit", "strict")}
    loaded = load_images(images, shape(opened.manifest), **reading)
    level = {"noise_level": given.pop("noise_level")} if "noise_level" in given else {}
    options = {**run_options(opened, given), **level}
    check_results(opened.manifest, len(loaded.images), options["seed"], **given)
    with open_sampler(opened, given) as sampler:
        finish(sampler, run(sampler, loaded.images, **options), loaded=loaded, **given)
