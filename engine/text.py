"""Text as the token ids that an input holds: the pieces that a vocabulary has for its words, by the library `tokenizers`.

BERT's way with WordPiece: spaces and punctuation part words, and of each word the longest pieces that the vocabulary has are
taken from the left, ##-pieces behind the first. Too long a text is cut silently, as the models' own code does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle.reader import Bundle
from engine.bundle.vocabulary import CONTINUES, MAX_WORD, Vocabulary, read_vocabulary
from engine.commands import command, install_extra
from engine.errors import ArgumentError, BackendError

TEXT = "text"  # what a caller may give in place of the input


class TextEncoder:
    """Texts to token ids; in any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.input = vocabulary, vocabulary.spec.input

    @classmethod
    def of(cls, bundle: Bundle) -> TextEncoder | None:
        """That of a bundle, None where it has no vocabulary; BundleError where the file is not what the manifest says."""
        vocabulary = read_vocabulary(bundle)
        return None if vocabulary is None else cls(vocabulary)

    def encode(self, texts: Any) -> npt.NDArray[np.int64]:
        """int64 [N, L] of several texts, [1, L] of one; ArgumentError for what is none, BackendError without the library."""
        listed = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Iterable) else [texts]
        for text in listed:
            if not isinstance(text, str):
                raise ArgumentError(f"text holds {text!r}, a {type(text).__name__}; expected a text, or one a sample.")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ArgumentError(f"text holds half of a surrogate pair at {error.start}; expected Unicode.") from error
        if not listed:
            raise ArgumentError("text lists nothing; expected a text, or one a sample.")
        # One at a time: the library's own threads for several do not survive a fork.
        pieces = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in listed)
        return np.stack([self.vocabulary.row(ids) for ids in pieces])

    @cached_property
    def tokenizer(self) -> Any:
        """The library's; BackendError where it is not installed."""
        try:
            from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        except ImportError as error:
            raise BackendError(
                f"text: found no package tokenizers ({error}), expected it to make token ids of text; install it with: "
                f"{install_extra('text')}, or give {self.input} itself"
            ) from error
        spec = self.vocabulary.spec
        how = {"unk_token": spec.unknown, "max_input_chars_per_word": MAX_WORD, "continuing_subword_prefix": CONTINUES}
        made = Tokenizer(models.WordPiece(vocab=dict(self.vocabulary.ids), **how))
        made.normalizer = normalizers.BertNormalizer(lowercase=spec.lowercase)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.add_special_tokens(list(spec.special))  # "[SEP]" in a text is that token
        return made

    def replace(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, with the input in place of the text; ArgumentError where it is there too."""
        if given.get(self.input) is not None:
            raise ArgumentError(f"text: found it beside {self.input}, which it becomes; expected one of the two.")
        return {name: value for name, value in given.items() if name != TEXT} | {self.input: self.encode(given[TEXT])}


def replace_text(
    encoder: TextEncoder | None, given: Mapping[str, Any], takes: Iterable[object], path: object
) -> dict[str, Any]:
    """A caller's options and inputs with token ids in place of `text`, if it is there.

    takes: what the bundle takes, for the refusal of one that holds no vocabulary; path: where it lies.
    """
    if given.get(TEXT) is None:
        return {name: value for name, value in given.items() if name != TEXT}
    if encoder is None:
        raise ArgumentError(
            f"text: found one, but {path} holds no vocabulary: this bundle takes "
            f"{', '.join(map(str, takes)) or 'no inputs'}. Leave text out; a model of token ids gets a vocabulary with: "
            f"{command('build', 'CKPT', '--vocabulary', 'vocab.txt')}"
        )
    return encoder.replace(given)
