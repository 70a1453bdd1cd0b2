"""What a bundle says of cascades: the bundle after it, and its own input that hears how noisy a picture before was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from engine.bundle.fields import FILE_NAME, Fields
from engine.bundle.inputs import InputSpec
from engine.bundle.limits import MAX_T
from engine.bundle.schema import read, take

# Fields of a manifest that may be absent, which is as null: older bundles lack them.
OPTIONAL = ("next", "augmentation", "guide", "regularise")


def parse_neighbour(fields: Fields, key: str) -> str:
    """The name of a folder beside that of the bundle."""
    expected = "the name of a folder beside this bundle (letters, digits, '.', '_', '-')"
    return str(fields.checked(key, expected, lambda value: type(value) is str and FILE_NAME.fullmatch(value)))


@dataclass(frozen=True)
class NextSpec:
    """The bundle that goes on with this one's images, and how it is sampled there unless a caller says otherwise.

    bundle       the name of its folder, beside this bundle's
    source       SHA-256 of the checkpoint that it was built from: another bundle under that name is refused
    steps, t_start, guidance  as for `Sampler.sample`; None: what that bundle records
    noise_level  of the pictures that it takes; None: 0
    """

    bundle: Annotated[str, parse_neighbour]
    source: Annotated[str, Fields.sha256]
    steps: Annotated[int, Fields.integer_or_null, 1, MAX_T] | None
    t_start: Annotated[int, Fields.integer_or_null, 0, MAX_T - 1] | None
    noise_level: Annotated[int, Fields.integer_or_null, 0, MAX_T - 1] | None
    guidance: Annotated[float, Fields.number, -100.0, 100.0] | None


@dataclass(frozen=True)
class AugmentationSpec:
    """The input that is told the noise level of the picture which the bundle takes: one number a sample."""

    input: Annotated[str, Fields.text]


def parse_next(top: Fields) -> NextSpec | None:
    """The field `next`, which may be null or absent."""
    if "next" not in top or top.take_null("next"):
        return None
    return read(NextSpec, top.object("next"))


def parse_augmentation(top: Fields, inputs: tuple[InputSpec, ...]) -> AugmentationSpec | None:
    """The field `augmentation`, which may be null or absent."""
    if "augmentation" not in top or top.take_null("augmentation"):
        return None
    fields = top.object("augmentation")
    spec = AugmentationSpec(**take(AugmentationSpec, fields))
    if not any(entry.name == spec.input and not entry.sample and entry.draw is None for entry in inputs):
        fields.refuse("input", "an input of one number a sample, [batch], that is not drawn")
    fields.done()
    return spec
