"""A request read: its tensors as checked samples, each with a seed, its inputs and a complete setting or a budget."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle.directions import Edits, checked_edits
from engine.bundle.inputs import InputSpec
from engine.bundle.reader import Bundle
from engine.checks import input_of
from engine.deadline import Budget
from engine.errors import ArgumentError
from engine.serving.asks import Ask, Options, Settings, StageSettings
from engine.stages import all_inputs
from engine.text import TextEncoder
from engine.triton.tensors import (
    EDITS,
    FREE,
    IMAGE,
    NUMPY,
    PROGRESS,
    PROMISE,
    STAGE,
    WORDS,
    Tensor,
    inputs_of,
    of_stage,
    outputs_of,
    setting_of,
)

MAX_NAME = 64
MAX_EDITS = 16_384
MAX_WORDS = 16_384  # bytes of a text: more than any input has room for


class Reader:
    """Reads the requests of one model; `limit` is the most samples and `max_steps` the most network calls of one."""

    def __init__(
        self, bundle: Bundle, *, limit: int, max_steps: int, previews: bool, later: Sequence[Bundle] = ()
    ) -> None:
        """later: the stages after the bundle's, of a cascade."""
        manifest, stages = bundle.manifest, [stage.manifest for stage in later]
        self.manifest, self.limit = manifest, limit
        self._text = next((text for text in map(TextEncoder.of, (bundle, *later)) if text is not None), None)
        self.inputs, self._declared = inputs_of(manifest, stages), all_inputs((manifest, *stages))
        self.options = tuple(tensor.name for tensor in setting_of(manifest, stages))
        self.outputs = frozenset(tensor.name for tensor in outputs_of(manifest, previews, stages))
        cure = "have its repository written with another --max-steps."
        self._settings = Settings(manifest, max_steps, cure)
        self._stages = tuple(
            StageReader(StageSettings(before, after, stage, max_steps, cure))
            for stage, (before, after) in enumerate(pairwise((manifest, *stages)), 2)
        )

    def check_defaults(self) -> None:
        """Refuse limits that the bundle's own setting, which a request without one gets, does not keep."""
        self._settings.settle(())
        for stage in self._stages:
            stage.read({}, 0)

    def read(self, given: Mapping[str, np.ndarray], wanted: Iterable[str]) -> Ask:
        """The samples of a request's input tensors by name; ArgumentError with the sentence for its client."""
        n = self._count(given)
        for tensor in self.inputs:
            if tensor.name in given:
                _check(tensor, given[tensor.name], n)
            elif not tensor.optional:
                raise ArgumentError(f"{tensor.name} is missing; expected {_words(tensor, n)}, one row a seed. Send it too.")
        given = self._worded(given, n)
        inputs = {spec.name: self._input(spec, given[spec.name]) for spec in self._declared if spec.name in given}
        # A seed is 64 bits: what INT64 calls negative is the seed that many above 2**63.
        seeds = np.ascontiguousarray(given["seed"].reshape(n)).view(np.uint64)
        settled = [self._sample(given, i, n) for i in range(n)]
        budgets = tuple(budget for _, budget in settled if budget is not None)
        outputs = self.outputs.intersection(wanted)
        if not budgets:  # a client that names no outputs asks for all
            outputs -= {tensor.name for tensor in PROMISE}
        if shows_steps(outputs) and len(set(settled)) > 1:
            raise ArgumentError(
                f"previews: found {len(set(settled))} settings among {n} samples, expected one, so that a step is the same "
                "for all; send a request for each, or ask for no step, timestep and final"
            )
        edits = tuple(self._edits(text) for text in given[EDITS.name].reshape(n)) if EDITS.name in given else ()
        return Ask(seeds, tuple(options for options, _ in settled), budgets, inputs, outputs, edits=edits)

    def check_text(self) -> None:
        """Refuse, at load and not at the first text, a machine without the library that text needs."""
        if self._text is not None:
            self._text.encode("")

    def _worded(self, given: Mapping[str, np.ndarray], n: int) -> Mapping[str, np.ndarray]:
        """The tensors with token ids in place of texts."""
        if self._text is None:
            return given
        if WORDS.name not in given:
            if self._text.input not in given:
                raise ArgumentError(f"{self._text.input} and text are missing; expected one of the two. Send it too.")
            return given
        texts = given[WORDS.name].reshape(n)
        for i, text in enumerate(texts):
            if len(text) > MAX_WORDS:
                raise ArgumentError(f"text {i} of {n} holds {len(text)} bytes; expected at most {MAX_WORDS}. Shorten it.")
        try:
            return self._text.replace({**given, WORDS.name: [text.decode() for text in texts]})
        except UnicodeDecodeError as error:
            raise ArgumentError(f"text is no UTF-8 at byte {error.start}; expected UTF-8. Encode it so.") from error

    @staticmethod
    def _input(spec: InputSpec, given: np.ndarray) -> npt.NDArray[Any]:
        """An input as the Sampler takes it: where a sample is a single number, [n] and not Triton's [n, 1]."""
        return input_of(spec, given if spec.sample else given[:, 0])

    def _edits(self, text: Any) -> Edits:
        """The strengths of one sample."""
        if len(text) > MAX_EDITS:
            raise ArgumentError(f"edits holds {len(text)} bytes; expected at most {MAX_EDITS}. Leave some out.")
        try:
            edits = checked_edits(self.manifest.directions, json.loads(text))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(f'edits is no JSON ({error}); expected strengths by name: {{"NAME": 1.0}}.') from error
        if listed := [name for name, strength in edits.items() if isinstance(strength, tuple)]:
            raise ArgumentError(f"the strength of {listed[0]} is a list; expected a number, and one text of edits a sample.")
        return edits

    def _count(self, given: Mapping[str, np.ndarray]) -> int:
        seed = given.get("seed")
        if seed is None:
            raise ArgumentError("seed is missing; expected INT64 [n, 1], one a sample. Choose any number.")
        n = len(seed) if seed.ndim else 0
        if not 1 <= n <= self.limit:
            raise ArgumentError(
                f"seed has shape {list(seed.shape)}; expected [n, 1] with n in 1 .. {self.limit}. Send several requests."
            )
        return n

    def _sample(self, given: Mapping[str, np.ndarray], i: int, n: int) -> tuple[Options, Budget | None]:
        options = tuple((name, _option(name, given[name][i])) for name in self.options if name in given)
        try:
            settled, budget = self._settings.settle(options)
            if self._stages:
                settled = (*settled, ("stages", tuple(stage.read(given, i) for stage in self._stages)))
            return settled, budget
        except ArgumentError as error:
            if n == 1:
                raise
            raise ArgumentError(f"sample {i} of {n}: {error}") from error


class StageReader:
    """Reads the options of a cascade's stage after the first, counted from 1."""

    def __init__(self, settings: StageSettings) -> None:
        self._settings = settings
        self._tensors = {tensor.name: of_stage(tensor.name, settings.stage) for tensor in STAGE}

    def read(self, given: Mapping[str, np.ndarray], i: int) -> Options:
        """Those of sample i."""
        own = {name: _option(name, given[tensor][i]) for name, tensor in self._tensors.items() if tensor in given}
        return self._settings.settle(own)


def shows_steps(wanted: frozenset[str]) -> bool:
    """Whether a request of these outputs wants the images of every step."""
    return IMAGE in wanted and any(tensor.name in wanted for tensor in PROGRESS)


def _check(tensor: Tensor, found: np.ndarray, n: int) -> None:
    if not tensor.fits(found.shape, n) or found.dtype != NUMPY[tensor.kind]:
        raise ArgumentError(
            f"{tensor.name} is {found.dtype} {list(found.shape)}; expected {_words(tensor, n)}, one row a seed. Reshape or "
            "convert it."
        )


def _words(tensor: Tensor, n: int) -> str:
    """A tensor of n samples in words: FP32 [2, 4]."""
    dims = ", ".join("any" if size == FREE else str(size) for size in (n, *tensor.dims))
    return f"{tensor.kind.removeprefix('TYPE_')} [{dims}]"


def _option(name: str, values: np.ndarray) -> Any:
    """An option of one sample: what stands alone is a number or name, but for timesteps, which are a list."""
    plain = tuple(_plain(name, value) for value in values)
    return plain[0] if len(plain) == 1 and name != "timesteps" else plain


def _plain(name: str, value: Any) -> Any:
    """One element as `Sampler.sample` takes it."""
    if isinstance(value, bytes):
        if len(value) > MAX_NAME:
            raise ArgumentError(f"{name} holds {len(value)} bytes; expected a name of at most {MAX_NAME}. Correct it.")
        return value.decode("utf-8", "backslashreplace")  # what is no UTF-8 is no name: refused below, legibly
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.floating):
        # 0.3 is no float32: what travelled is its nearest one, whose shortest decimal is what the client wrote.
        return float(str(value))
    return int(value)
