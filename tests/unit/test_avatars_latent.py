"""The latent example: prompts, data set, a tiny training and what it packs."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "avatars-latent"


def script(name: str) -> ModuleType:
    """A module of the example, which is run by path and is part of no package."""
    pytest.importorskip("python_avatars", reason="the package python-avatars is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def prompts() -> ModuleType:
    return script("prompts")


@pytest.mark.parametrize("prompt", ["Long red hair, glasses", "long  red,hair,glasses ,"])
def test_words_are_tokens_whatever_stands_between_them(prompts: ModuleType, prompt: str) -> None:
    tokens = prompts.encode(prompt)
    assert (tokens.dtype, tokens.shape) == (np.int64, (prompts.LENGTH,))
    assert prompts.decode(tokens) == "long red hair glasses"


def test_what_is_no_word_is_unknown_and_what_is_too_long_refused(prompts: ModuleType) -> None:
    assert prompts.encode("zebra hair").tolist()[:3] == [prompts.UNKNOWN, prompts.VOCABULARY["hair"], prompts.PAD]
    assert (prompts.encode("") == prompts.PAD).all()
    with pytest.raises(ValueError, match="has 21 words, expected at most 20"):
        prompts.encode("hair " * 21)


def test_sentences_are_drawn_from_the_seed_in_words_of_the_vocabulary(prompts: ModuleType) -> None:
    dataset = script("dataset")
    rows = np.random.default_rng(0).integers(0, [len(names) for names in dataset.faces.ATTRIBUTES.values()], (2000, 10))
    said = [dataset.sentence(row, 5, index) for index, row in enumerate(rows)]
    assert said[7] == dataset.sentence(rows[7], 5, 7)
    used = {int(token) for sentence in said for token in prompts.encode(sentence)}
    special = {prompts.VOCABULARY[name] for name in ("[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    assert used == set(range(len(prompts.VOCABULARY))) - special
    count = [sentence.count(",") + 1 for sentence in said]
    assert (min(count), max(count)) == (1, 9)
