"""The vocabulary of a bundle that may be given text: the tokens whose ids an input holds, one a line of a file.

    [begin] ids of the text's pieces [end] [pad] [pad] ...

A row has exactly the input's length: what is too long loses its last pieces and keeps its end. Cutting text into pieces is
`engine.text`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

import numpy as np
import numpy.typing as npt

from engine.bundle.fields import REBUILD, Fields, shorten
from engine.bundle.files import FileSpec
from engine.bundle.inputs import InputSpec
from engine.bundle.limits import MAX_VOCABULARY_BYTES, MIN_TOKENS
from engine.bundle.schema import read
from engine.errors import BundleError

if TYPE_CHECKING:
    from engine.bundle.reader import Bundle

MAX_WORD = 100  # characters of a word that may be cut; a longer one is unknown
CONTINUES = "##"  # in front of a piece that stands behind another of its word


@dataclass(frozen=True)
class TextSpec(FileSpec):
    """How text becomes an input of token ids, and the file that holds the vocabulary.

    input          an int64 input [batch, L]
    lowercase      capitals and accents are dropped before the vocabulary is asked
    begin, end     tokens around each text; None: there is none
    pad, unknown   tokens behind it, and in place of words that the vocabulary has no pieces for
    """

    size: Annotated[int, Fields.integer, 1, MAX_VOCABULARY_BYTES]
    input: Annotated[str, Fields.choice, "tokens"]
    kind: Annotated[str, Fields.choice, ("wordpiece",)]
    lowercase: Annotated[bool, Fields.boolean]
    begin: Annotated[str, Fields.text] | None
    end: Annotated[str, Fields.text] | None
    pad: Annotated[str, Fields.text]
    unknown: Annotated[str, Fields.text]

    @property
    def special(self) -> tuple[str, ...]:
        """The tokens that stand for no piece of a text, each once."""
        return tuple(dict.fromkeys(token for token in (self.begin, self.end, self.pad, self.unknown) if token is not None))


@dataclass(frozen=True)
class Vocabulary:
    """ids: those of all tokens, 0 .. V - 1. length: L of the input."""

    spec: TextSpec
    ids: Mapping[str, int]
    length: int

    def row(self, pieces: Sequence[int]) -> npt.NDArray[np.int64]:
        """The ids of a text's pieces between those of begin and end, cut and padded: int64 [L]."""
        before, after = ([] if token is None else [self.ids[token]] for token in (self.spec.begin, self.spec.end))
        kept = [*before, *pieces[: self.length - len(before) - len(after)], *after]
        return np.array(kept + [self.ids[self.spec.pad]] * (self.length - len(kept)), np.int64)


def holds_tokens(spec: InputSpec) -> bool:
    """Whether an input can hold the token ids of a text: int64 [batch, L], L fixed and with room for a token."""
    length = spec.sample[0] if len(spec.sample) == 1 else None
    return spec.dtype == "int64" and isinstance(length, int) and length >= MIN_TOKENS


def parse_text(top: Fields, inputs: tuple[InputSpec, ...]) -> TextSpec | None:
    """The field `text`, which may be null."""
    if top.take("text", "an object or null") is None:
        return None
    tokens = [spec.name for spec in inputs if holds_tokens(spec)]
    if not tokens:
        top.refuse("text", f"null, since no input is int64 [batch, L] with L of {MIN_TOKENS} or more")
    return read(TextSpec, top.object("text"), tokens=tokens)


def read_vocabulary(bundle: Bundle) -> Vocabulary | None:
    """The vocabulary of a bundle, None where it has none; BundleError when the file is not what the manifest says."""
    spec, data = bundle.manifest.text, bundle.read_text()
    if spec is None or data is None:
        return None
    taken = next(one for one in bundle.manifest.inputs if one.name == spec.input)
    return parse_vocabulary(data, spec, taken, str(bundle.path / spec.file))


def parse_vocabulary(data: bytes, spec: TextSpec, taken: InputSpec, where: str) -> Vocabulary:
    """The bytes of a vocabulary's file, every token checked; BundleError otherwise. taken: the input of the ids."""
    if len(data) > MAX_VOCABULARY_BYTES:
        _refuse(where, f"{len(data)} bytes", f"at most {MAX_VOCABULARY_BYTES}")
    tokens = tokens_of(data, where)
    ids: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if ids.setdefault(token, number) != number:
            _refuse(where, f"{shorten(token)} in the lines {ids[token] + 1} and {number + 1}", "each token once")
    if missing := [token for token in spec.special if token not in ids]:
        _refuse(where, f"no line {missing[0]}", f"one for each of {', '.join(spec.special)}")
    low, high = taken.range or (0, len(tokens))
    if low > 0 or high < len(tokens) - 1:
        found = f"{len(tokens)} tokens, whose ids are 0 .. {len(tokens) - 1}"
        _refuse(where, found, f"ids in {low:g} .. {high:g}, as the input {taken.name} takes them")
    return Vocabulary(spec, ids, int(taken.sample[0]))


def tokens_of(data: bytes, where: str) -> list[str]:
    """The lines of a vocabulary's file: UTF-8, none of them empty or with spaces; BundleError otherwise."""
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")  # no splitlines: a token may be U+2028
    except UnicodeDecodeError as error:
        _refuse(where, f"a byte that is no UTF-8 at {error.start}", "text in UTF-8", error)
    for number, token in enumerate(lines, 1):
        if not token or any(space in token for space in " \t\r\v\f"):
            _refuse(where, f"{shorten(token)} in line {number}", "one token a line, without spaces")
    return lines


def _refuse(where: str, found: str, expected: str, cause: BaseException | None = None) -> NoReturn:
    raise BundleError(f"{where}: found {found}, expected {expected}; give the vocabulary that the model was trained with, "
                      f"--vocabulary vocab.txt, and {REBUILD}") from cause
