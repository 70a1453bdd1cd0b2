"""What a command is handed beside a bundle's path: inputs by name (--input), texts (--text), and where the bundle's links
may end (--allow-links)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import numpy.typing as npt

from engine.bundle.inputs import InputSpec
from engine.bundle.reader import Bundle
from engine.damage import AUTO
from engine.errors import ArgumentError
from engine.imaging import load_images
from engine.stages import all_inputs, check_vocabularies
from engine.text import TEXT, TextEncoder, replace_text

Value = int | float | Path
Command = TypeVar("Command", bound=Callable[..., Any])


class InputValue(click.ParamType):
    """NAME=NUMBER, or NAME=FILE."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Value]:
        name, equals, text = str(value).partition("=")
        if not (equals and name.isidentifier() and text):
            self.fail(f"{value!r} is not NAME=VALUE, with a number or a file for VALUE: label=3.", param, ctx)
        return name, _number(text) if _is_number(text) else Path(text)


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of --help."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


INPUT = options(
    click.option(
        "--input",
        "inputs",
        type=InputValue(),
        metavar="NAME=VALUE",
        multiple=True,
        help="An input of the bundle (`diffusevae info` lists them): a number, a .npy file of one sample or one an image, "
        "or a picture, where it is one. Again for each.",
    ),
    click.option(
        "--text",
        "texts",
        multiple=True,
        help="What to show, where the bundle has a vocabulary. Again for each image, or once for all.",
    ),
    click.option("--text-file", type=click.Path(path_type=Path), help="The same of a file: UTF-8, a line for each image."),
)


class Start(click.ParamType):
    """A timestep, or auto."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == AUTO else click.INT.convert(value, param, ctx)


START = Start()
LINKS = click.option(
    "--allow-links",
    metavar="STORE",
    multiple=True,
    help="A folder where links among the bundle's files may end, beside the bundle itself; / for any place. Again for each.",
)


def take_inputs(given: dict[str, Any], bundle: Bundle, later: Sequence[Bundle] = ()) -> dict[str, Any]:
    """The inputs of a command by name, taken out of its options: a number gets the dtype that the bundle declares, texts
    are token ids. later: the other stages of a cascade, whose inputs are given as well."""
    bundles = [bundle, *later]
    specs = all_inputs([stage.manifest for stage in bundles]) if later else bundle.manifest.inputs
    found = typed_inputs(given.pop("inputs"), specs)
    texts = _texts(given.pop("texts"), given.pop("text_file"))
    if not texts:
        return found
    check_vocabularies(bundles)
    reading = next((stage for stage in bundles if stage.manifest.text is not None), bundle)
    return replace_text(TextEncoder.of(reading), {**found, TEXT: texts}, specs, reading.path)


def raw_inputs(given: dict[str, Any], specs: Sequence[InputSpec]) -> dict[str, Any]:
    """The same for several bundles, which may read a text differently: texts as they are."""
    found = typed_inputs(given.pop("inputs"), specs)
    texts = _texts(given.pop("texts"), given.pop("text_file"))
    return {**found, TEXT: list(texts)} if texts else found


def typed_inputs(pairs: Sequence[tuple[str, Value]], inputs: Sequence[InputSpec]) -> dict[str, Any]:
    """The same of --input's own values. Names that the bundle has not are left for the Sampler to refuse."""
    by_name: dict[str, Value] = {}
    for name, value in pairs:
        if name in by_name:
            raise ArgumentError(f"input: found {name} twice, expected one value for each; leave one out")
        by_name[name] = value
    specs = {spec.name: spec for spec in inputs}
    return {name: _typed(name, value, specs.get(name)) for name, value in by_name.items()}


def _typed(name: str, value: Value, spec: InputSpec | None) -> Any:
    """What is in a file; and a whole number for an input of float32 as such: 3 is then as good as 3.0."""
    if isinstance(value, Path):
        picture = spec is not None and spec.picture is not None and value.suffix != ".npy"
        return load_images([value], spec.picture_shape).images if spec is not None and picture else _array(name, value)
    return np.array(value, np.float64) if isinstance(value, int) and spec is not None and spec.dtype == "float32" else value


def _texts(texts: Sequence[str], file: Path | None) -> Sequence[str]:
    """The texts that were given one by one, or those of a file."""
    if file is None:
        return texts
    if texts:
        raise ArgumentError("text-file: found it beside --text, expected one of the two; leave one out")
    return _lines(file)


def _lines(path: Path) -> list[str]:
    """The texts of a file, one a line; an empty line is an empty text."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f"text-file: found that {path} cannot be read ({error}), expected UTF-8, a text in each line; correct the path, "
            "or save the file as UTF-8"
        ) from error
    if not content:
        raise ArgumentError(f"text-file: found nothing in {path}, expected a text in each line; write some")
    return content.removesuffix("\n").split("\n")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _array(name: str, path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArgumentError(
            f"input {name}: found that {path} cannot be read as .npy ({error}), expected a number or a file that numpy.save "
            f"wrote; correct the path"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ArgumentError(f"input {name}: found several arrays in {path}, expected one; save it with numpy.save")
    return array
