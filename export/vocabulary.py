"""The vocabulary that a build is given: which input of the model its ids are for, and what it makes of no text at all."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from engine.bundle.inputs import InputSpec
from engine.bundle.limits import MAX_VOCABULARY_BYTES
from engine.bundle.vocabulary import TextSpec, holds_tokens, parse_vocabulary, tokens_of
from engine.errors import ArgumentError
from export.families.base import Model

VOCABULARY_FILE = "vocab.txt"  # in a bundle
TOKENS = "tokens"  # of several inputs that could hold ids, the one of this name does


@dataclass(frozen=True)
class GivenVocabulary:
    """A file of BERT's kind, one token a line. lowercase: no token but the bracketed ones has a capital."""

    path: Path
    data: bytes
    lowercase: bool

    def spec_for(self, name: str) -> TextSpec:
        """The manifest's entry for the input `name`."""
        digest = hashlib.sha256(self.data).hexdigest()
        size, special = len(self.data), ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
        return TextSpec(VOCABULARY_FILE, size, digest, name, "wordpiece", self.lowercase, *special)


def read_vocabulary_file(path: Path) -> GivenVocabulary:
    """A vocabulary's file; an EngineError for one that cannot be read, or is none."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_VOCABULARY_BYTES + 1)
    except OSError as error:
        raise ArgumentError(
            f"--vocabulary {path}: found nothing to read ({error.strerror}), expected a text file of one token a line, such "
            "as the vocab.txt of bert-base-uncased; correct the path"
        ) from error
    words = [token for token in tokens_of(data, str(path)) if not (token.startswith("[") and token.endswith("]"))]
    return GivenVocabulary(path, data, lowercase=all(word == word.lower() for word in words))


def with_text(model: Model, given: GivenVocabulary) -> tuple[Model, TextSpec]:
    """The manifest's entry, and the model with the ids of an empty text as the null of an input that has none.

    ArgumentError where no input of the model can hold token ids, BundleError where they are not those of the file.
    """
    taken = _tokens_input(model, f"--vocabulary {given.path}")
    spec = given.spec_for(taken.name)
    empty = parse_vocabulary(given.data, spec, taken, str(given.path)).row([]).tolist()
    lacks = [entry["name"] == taken.name and entry["null"] is None for entry in model.inputs]
    inputs = [{**entry, "null": empty} if lack else entry for entry, lack in zip(model.inputs, lacks, strict=True)]
    defaults = {**model.defaults, "guidance": model.guidance} if any(lacks) else model.defaults
    return dataclasses.replace(model, inputs=inputs, defaults=defaults), spec


def _tokens_input(model: Model, where: str) -> InputSpec:
    found = [spec for spec in model.input_specs if holds_tokens(spec)]
    named = [spec for spec in found if spec.name == TOKENS]
    if len(found) != 1 and not named:
        takes = ", ".join(map(str, model.input_specs)) or "no inputs"
        raise ArgumentError(
            f"{where}: found a model that takes {takes}, expected one int64 input [batch, L] of token ids, or of several "
            f"one that is called {TOKENS}; leave --vocabulary out"
        )
    return (named or found)[0]
