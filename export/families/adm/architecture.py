"""The architecture and the process of a model: weights first, then what was said of it, or published of its shapes.

What changes the images and has no usual answer (heads, schedule, size) is asked for, all of it at once. What the reference
leaves at its default is taken for that, with a note.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.bundle.limits import MAX_T
from engine.bundle.training import PLAIN, ScheduleSpec
from engine.errors import ArgumentError, CheckpointError
from engine.solver.levels import LEARNED_RANGE
from engine.solver.timesteps import kept_timesteps, respaced_timesteps
from export.families.adm.published import PUBLISHED, Published, identify, published
from export.models.openai.spec import OpenAIUNetSpec
from export.read.evidence import settle
from export.read.schedule import COSINE, linear

T = TypeVar("T")
SCHEDULES = ("linear", "cosine")
ORDERS = ("legacy", "new")
STEPS = 25  # of DDIM, the setting of the reference's shorter runs
Heads = tuple[str, int]  # "heads" or "head channels", and how many


@dataclass(frozen=True)
class Options:
    """What a user may say of a checkpoint; None is not said.

    preset, image_size, small_size, noise_schedule, diffusion_steps, rescale_timesteps, attention_order: see `Published`
    heads, head_channels   one of the two
    size                   [height, width] of the images, for a model that is to draw others than it was trained on
    respacing              the timesteps that the bundle records, as the reference spells them: "ddim25", "250", "10,15,20"
    fixed_variance         leave the learned variance out
    variance               of ddpm, that the bundle records
    prediction             what the network was trained to predict; None: eps
    guide                  files of classifiers that guide it
    guide_scale, guide_heads, guide_head_channels, guide_depth   of those: the scale that the bundle records, heads as above,
                           residual blocks of a level
    """

    preset: str | None = None
    name: str | None = None
    heads: int | None = None
    head_channels: int | None = None
    attention_order: str | None = None
    noise_schedule: str | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None
    image_size: int | None = None
    small_size: int | None = None
    size: tuple[int, int] | None = None
    respacing: str | None = None
    fixed_variance: bool | None = None
    variance: str | None = None
    prediction: str | None = None
    guide: tuple[Path, ...] | None = None
    guide_scale: float | None = None
    guide_heads: int | None = None
    guide_head_channels: int | None = None
    guide_depth: int | None = None


@dataclass(frozen=True)
class Architecture:
    """Everything about a model but its weights.

    unet      as it is built: without a learned variance where that is left out
    size      [height, width] of the images;  small: of those that an upsampler takes
    origins   where each answer came from;  notes: which of them no weight confirms
    """

    unet: OpenAIUNetSpec
    size: tuple[int, int]
    small: tuple[int, int] | None
    schedule: ScheduleSpec
    rescale: bool
    new_order: bool
    variance: str
    prediction: str
    defaults: dict[str, Any]
    origins: dict[str, str] = field(compare=False)
    notes: tuple[str, ...] = field(compare=False)


def infer(shape: OpenAIUNetSpec, path: Path, said: Options) -> Architecture:
    """Settle a model whose UNet has this shape; CheckpointError names every option that is missing."""
    answers = _Answers(shape, path, said)
    upsampler = shape.in_channels != shape.channels
    if said.heads is not None and said.head_channels is not None:
        raise ArgumentError("--heads, --head-channels: found both, expected one of the two; leave the other out")
    heads = answers.ask("heads", "--heads N or --head-channels C", _said_heads(said), _heads_of(answers.known))
    size = answers.ask("image size", "--image-size PIXELS", said.image_size, answers.published("size"))
    small = None
    if upsampler:
        small = answers.ask("small size", "--small-size PIXELS", said.small_size, answers.published("small"))
    elif said.small_size is not None:
        raise ArgumentError(f"--small-size: found {said.small_size} for a model that takes no image, expected none")
    recipe = answers.ask(
        "noise schedule", "--noise-schedule linear or cosine", said.noise_schedule, answers.published("noise_schedule")
    )
    steps = answers.take("diffusion steps", "--diffusion-steps", said.diffusion_steps, answers.published("T"), 1000)
    rescaled = answers.published("rescale")
    rescale = answers.take("rescaled timesteps", "--rescale-timesteps", said.rescale_timesteps, rescaled, False)
    said_order = None if said.attention_order is None else said.attention_order == "new"
    new_order = answers.take("attention order", "--attention-order", said_order, answers.published("new_order"), False)
    answers.refuse_missing()
    assert heads and size and recipe, "what is missing was refused"  # noqa: PT018
    unet = _with_heads(shape, heads)
    if said.fixed_variance and unet.learned_variance:
        unet = replace(unet, out_channels=unet.channels, learned_variance=False)
        answers.notes.append("the learned variance is left out (--fixed-variance): method ddpm adds a fixed one")
    schedule = schedule_of(recipe, steps)
    sides = said.size or (size, size)
    return Architecture(
        unet=unet,
        size=_checked(sides, unet, said),
        small=None if small is None else _scaled(sides, size, small),
        schedule=schedule,
        rescale=rescale,
        new_order=new_order,
        variance=said.variance or (LEARNED_RANGE if unet.learned_variance else "fixedlarge"),
        prediction=said.prediction or "eps",
        defaults=defaults(schedule, said.respacing),
        origins=answers.origins,
        notes=tuple(answers.notes),
    )


class _Answers:
    """Collects what is known of a model, from where, and which options are missing."""

    def __init__(self, shape: OpenAIUNetSpec, path: Path, said: Options) -> None:
        self.path, self.preset = path, said.preset
        self.known: Published | None = None
        if said.preset is not None:
            self.known, self.label = published(said.preset), f"preset {said.preset}"
            _check_preset(shape, self.known, self.label, path)
        elif (name := identify(shape)) is not None:
            self.known, self.label = PUBLISHED[name], f"the shapes of {name}"
        self.origins: dict[str, str] = {}
        self.notes: list[str] = []
        self.missing: dict[str, str] = {}

    def published(self, name: str) -> Any:
        """A field of the published model that this is, or None."""
        return getattr(self.known, name, None)

    def ask(self, name: str, flag: str, said: T | None, known: T | None) -> T | None:
        """An answer that there is no default for."""
        if said is not None:
            flags = [word for word in flag.split() if word.startswith("--")]
            # Of heads, which two flags tell, the value says by which.
            given = f"--{said[0].replace(' ', '-')}" if isinstance(said, tuple) and len(flags) > 1 else flags[0]
            self._against(name, given, said, known)
            self.origins[name] = given
            return said
        if known is not None:
            self.origins[name] = self.label
            return known
        self.missing[name] = flag
        return None

    def take(self, name: str, flag: str, said: T | None, known: T | None, default: T) -> T:
        """An answer that the reference has a default for."""
        if said is None and known is None:
            self.origins[name] = f"the reference's default; {flag}"
            return default
        found = self.ask(name, flag, said, known)
        assert found is not None
        return found

    def _against(self, name: str, flag: str, said: T, known: T | None) -> None:
        """A preset that was named must agree; shapes that are a published model's are only worth a note."""
        if self.preset is not None:
            settle(name, [(flag, _text(said)), (self.label, None if known is None else _text(known))])
        elif known is not None and said != known:
            self.notes.append(f"{name}: {flag} says otherwise than {self.label}, which has {_text(known)}")

    def refuse_missing(self) -> None:
        """CheckpointError with every missing option; a note of what was assumed."""
        if self.missing:
            raise CheckpointError(
                f"{self.path}: found a UNet of none of the published models ({', '.join(PUBLISHED)}), whose weights do not "
                f"tell its {', '.join(self.missing)}; expected to be told: give {', '.join(self.missing.values())} as it "
                "was trained"
            )
        assumed = {name: origin.partition("; ")[2] for name, origin in self.origins.items() if "default" in origin}
        if assumed:
            self.notes.append(
                f"{', '.join(assumed)}: taken for the reference's defaults, which no weight confirms; if it was trained "
                f"otherwise, images are wrong without {', '.join(assumed.values())}"
            )


def _text(value: object) -> str:
    return " ".join(map(str, reversed(value))) if isinstance(value, tuple) else str(value)


def _check_preset(shape: OpenAIUNetSpec, known: Published, label: str, path: Path) -> None:
    """A preset is a promise about the weights: break it and the build stops with the field's name."""
    for name, expected in vars(known.shape).items():
        found = getattr(shape, name)
        if found != expected:
            other = identify(shape)
            cure = f"name the right one, --preset {other}" if other else "leave it out and give --heads and the others"
            raise CheckpointError(f"{path}: found {name} = {found}, expected {expected} for {label}; {cure}")


def _said_heads(said: Options) -> Heads | None:
    pairs = (("heads", said.heads), ("head channels", said.head_channels))
    return next(((kind, count) for kind, count in pairs if count is not None), None)


def _heads_of(known: Published | None) -> Heads | None:
    if known is None:
        return None
    heads, width = known.unet.num_heads, known.unet.num_head_channels
    return ("heads", heads) if heads is not None else ("head channels", width or 1)


def _with_heads(shape: OpenAIUNetSpec, heads: Heads) -> OpenAIUNetSpec:
    kind, count = heads
    levels = {level for level in range(len(shape.widths)) if 1 << level in shape.attention_factors}
    widths = sorted({shape.widths[level] for level in (*levels, len(shape.widths) - 1)})
    if count < 1 or any(width % count for width in widths):
        raise ArgumentError(
            f"{kind}: found {count}, expected a divisor of the attention widths {', '.join(map(str, widths))}; correct "
            "--heads or --head-channels"
        )
    return replace(shape, num_heads=count) if kind == "heads" else replace(shape, num_head_channels=count)


def _checked(sides: tuple[int, int], unet: OpenAIUNetSpec, said: Options) -> tuple[int, int]:
    if any(side < unet.multiple or side % unet.multiple for side in sides):
        flag = "--image-size" if said.size is None else "--size"
        raise ArgumentError(
            f"{flag}: found {sides[0]} x {sides[1]}, expected multiples of {unet.multiple}: the UNet halves the image "
            f"{len(unet.channel_mult) - 1} times"
        )
    return sides


def _scaled(sides: tuple[int, int], size: int, small: int) -> tuple[int, int]:
    """The small image's size, for images of `sides` where those of `size` have one of `small`."""
    if not 1 <= small <= size or any(side * small % size for side in sides):
        raise ArgumentError(
            f"--small-size: found {small} for images of {size}, built for {sides[0]} x {sides[1]}, expected whole sides; "
            "correct --small-size or --size"
        )
    return sides[0] * small // size, sides[1] * small // size


def schedule_of(recipe: str, steps: int) -> ScheduleSpec:
    """The reference's schedules: "linear" keeps the range of 1000 steps over any number of them."""
    if recipe not in SCHEDULES:
        raise ArgumentError(f"--noise-schedule: found {recipe!r}, expected {' or '.join(SCHEDULES)}")
    least = 2 if recipe == "cosine" else 21  # the last beta, 0.02 1000 / T, stays below 1
    if not least <= steps <= MAX_T:
        raise ArgumentError(f"--diffusion-steps: found {steps}, expected {least} .. {MAX_T} with a {recipe} schedule")
    if recipe == "cosine":
        return ScheduleSpec("cosine", steps, dict(COSINE), None)
    return linear(0.1 / steps, 20 / steps, steps)


def defaults(schedule: ScheduleSpec, respacing: str | None) -> dict[str, Any]:
    """The setting that the bundle records: DDIM in 25 whole strides, or the chain of the reference's spelling."""
    T = schedule.T
    strides, steps = respacing is None or respacing.startswith("ddim"), min(STEPS, T)
    chain: dict[str, Any] = {"steps": steps, "timesteps": None, "spacing": "uniform"}
    if respacing is None:
        try:
            respaced_timesteps(T, f"ddim{steps}")
        except ArgumentError:  # no whole stride gives so many
            chain["spacing"] = "linspace"
    else:
        kept = respaced_timesteps(T, respacing)
        chain["steps"] = len(kept)
        if not strides:
            even = kept_timesteps(schedule.schedule().alpha_bar, len(kept), "linspace")
            listed = None if (even == kept).all() else kept[::-1].tolist()
            chain |= {"timesteps": listed, "spacing": "linspace" if listed is None else None}
    return {**PLAIN, **chain, "method": "ddim_clipped" if strides else "ddpm"}
