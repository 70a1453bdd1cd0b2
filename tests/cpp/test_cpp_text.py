"""Texts in C++: the ids that Python makes, for every character that C++ takes, the bits of its images, and refusals."""

from __future__ import annotations

import os
import random
import runpy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Sampler
from engine.bundle.reader import Bundle
from engine.text import TextEncoder
from tests import toy_family
from tests.cpp import building
from tests.cpp.capi import ARGUMENT, CSampler, Failed, Library, open_c
from tests.cpp.test_cpp_family import same
from tests.manifests import edit
from tests.toy_family import IMAGE, build_family
from tests.unit.test_text import ENCODED, VOCABULARY

pytest.importorskip("tokenizers", reason="the extra text is not installed")
GENERATOR = runpy.run_path(str(building.SOURCE / "generate_characters.py"))
SPECIAL = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"]
# Letters of which texts are made: each kind of character that the rules tell apart, and what looks like a token.
PARTS = [
    *map(chr, range(1, 0x100)), *"ÀĀİıŁſẞßΆΐςΣЁйѴ",
    *"\u0301\u0345が゛パ子\U00020000가각힣１Ａ，。👍🏽❤\ufe0f\u200d\u2028",
    *SPECIAL, "[sep]", "[UNK", "[SEP", "]", "##", "##ing", "unbelievable", "reading", "Reading", " ", " ", " ", "  \t",
]  # fmt: skip
LONG = ["x" * 100, "x" * 101, "é" * 100, "é" * 101, "가" * 50, "각" * 34, "e\u0301" * 100, "子" * 120, "x\u00ad" * 100]


def spelling() -> bytes:
    """A vocabulary with a piece for every letter, at the front of a word and behind it, so that each shows in the ids."""
    letters = [chr(code) for code in GENERATOR["characters"]() if GENERATOR["kind"](code) in ("kAlone", "kLetter")]
    letters += [chr(code) for code in (*range(0x1100, 0x1200), 0x2C65, 0x2C66)]
    alone = {letter for letter in letters if 0x3400 <= ord(letter) <= 0x9FFF or ord(letter) >= 0x20000}
    parts = [f"##{letter}" for letter in letters if letter not in alone]
    words = ["un", "##believ", "##able", "unbe", "read", "##ing", "##in", "Read"]
    return "\n".join([*SPECIAL, *words, *letters, *parts]).encode()


@pytest.fixture(scope="module")
def library(cpp_runtimes: Path) -> Library:
    return Library(cpp_runtimes / "diffusevae" / building.LIBRARY)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("text") / "text.bundle", encodes=["state_encoder"], vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def sampler(path: Path, library: Library) -> Iterator[CSampler]:
    with open_c(library, path, backend="openvino", max_batch=2) as opened:
        yield opened


@pytest.fixture(scope="module", params=["without capitals", "cased"])
def speller(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, library: Library
) -> Iterator[tuple[CSampler, TextEncoder]]:
    """C++ and Python over the vocabulary that spells, with room for long texts."""
    vocabulary = spelling()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_family, "TOKENS", vocabulary.count(b"\n") + 1)
        patch.setattr(toy_family, "LENGTH", 256)
        path = build_family(tmp_path_factory.mktemp("spelling") / "a.bundle", vocabulary=vocabulary)
    if request.param == "cased":
        for name, value in {"lowercase": False, "begin": None, "end": None, "pad": "[SEP]"}.items():
            edit(path, f"text.{name}", value)
    encoder = TextEncoder.of(Bundle.open(path))
    assert encoder is not None
    with open_c(library, path, backend="openvino") as opened:
        yield opened, encoder


def ids(sampler: CSampler, texts: list[str]) -> np.ndarray:
    """What C++ makes of them, int64 [N, L]."""
    return sampler.sample(room=len(texts), values=["tokens"], text=texts, steps=2, seed=0).values["tokens"]


def check_ids(speller: tuple[CSampler, TextEncoder], texts: list[str]) -> None:
    """Those of Python's library."""
    found, expected = ids(speller[0], texts), speller[1].encode(texts)
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours.tolist() == theirs.tolist(), ascii(text)
    assert found.shape == expected.shape


# ---- ids -------------------------------------------------------------------------------------------------------------


def test_the_table_of_characters_is_what_is_generated() -> None:
    committed = GENERATOR["FILE"].read_text(encoding="utf-8")
    assert committed == GENERATOR["header"](), "python embed/cpp/generate_characters.py"


def test_texts_become_the_ids_that_bert_would_make(sampler: CSampler) -> None:
    known = [(text, expected) for text, expected in ENCODED if "\0" not in text]
    assert len(known) == len(ENCODED) - 1
    assert ids(sampler, [text for text, _ in known]).tolist() == [expected for _, expected in known]


def test_every_character_becomes_what_the_library_makes_of_it(speller: tuple[CSampler, TextEncoder]) -> None:
    taken = [chr(code) for code in GENERATOR["characters"]() if code != 0]
    assert len(taken) > 80_000
    words = [f"x{letter}y" for letter in taken]
    texts = [" ".join(words[i : i + 36]) for i in range(0, len(words), 36)]  # up to 7 pieces a word
    check_ids(speller, texts)


def test_random_texts_become_what_the_library_makes_of_them(speller: tuple[CSampler, TextEncoder]) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(PARTS, k=rng.randrange(60))) for _ in range(4000)]
    texts += ["".join(rng.choices("abc ,[]SEPé", k=rng.randrange(600))) for _ in range(100)]  # some are cut
    check_ids(speller, texts)
    check_ids(speller, [*LONG, *(f"a {word}[SEP]{word} b" for word in LONG), "", " ", "\u0301", "[SEP]", "[SEP][CLS]x[UNK]"])


def test_the_longest_of_the_special_tokens_that_fit_is_taken(library: Library, tmp_path: Path) -> None:
    path = build_family(tmp_path / "a.bundle", vocabulary=b"a\nab\nabc\nb\n##c\n##b\nc\nbc\nd")
    for name, value in {"begin": "ab", "end": "abc", "pad": "a", "unknown": "bc"}.items():
        edit(path, f"text.{name}", value)
    encoder = TextEncoder.of(Bundle.open(path))
    assert encoder is not None
    texts = ["abcb", "dabd", "aabc", "bbc", "ABC", "dd", "caba", "a bc ab"]
    with open_c(library, path, backend="openvino") as sampler:
        check_ids((sampler, encoder), texts)


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a red house", ["Café!", "houses, a", "a [SEP] 子"]], ids=["one for all", "one each"])
@pytest.mark.parametrize("options", [{}, {"guidance": 1.5, "steps": 3}], ids=["recorded", "guided"])
def test_images_have_the_bits_of_python(
    path: Path, sampler: CSampler, text: str | list[str], options: dict[str, Any]
) -> None:
    with Sampler(path, "openvino", "f32", 2, max_batch=2) as python, sampler.clone() as twin:
        expected = python.sample(3, text=text, seed=7, **options)
        same(sampler.sample(3, text=text, seed=7, **options), expected)
        same(twin.sample(3, text=text, seed=7, **options), expected)
    assert sampler.info.text_input == b"tokens"
    if not isinstance(text, str):
        same(sampler.sample(room=3, text=text, seed=7, **options), expected)
        assert (expected.images[0] != expected.images[1]).any()


def test_what_is_filled_in_has_the_bits_of_python(path: Path, sampler: CSampler) -> None:
    images = np.random.default_rng(8).integers(0, 256, (2, *IMAGE[1:], IMAGE[0]), np.uint8)
    mask = np.zeros(IMAGE[1:], np.uint8)
    mask[4:12, 5:9] = 255
    given: dict[str, Any] = {"seed": 5, "text": ["a red house", "blue"], "steps": 3, "eta": 1.0}
    with Sampler(path, "openvino", "f32", 2, max_batch=2) as python:
        same(sampler.inpaint(images, mask, **given), python.inpaint(images, mask, **given))


# Prints the token ids of each argument.
PROGRAM = """
#include <diffusevae.hpp>
#include <iostream>
int main(int argc, char** argv) {
    diffusevae::OpenOptions open;
    open.backend = "openvino";
    diffusevae::Sampler sampler(argv[1], open);
    diffusevae::SampleOptions options;
    options.texts.assign(argv + 2, argv + argc);
    options.values = {sampler.info().text_input};
    for (const int64_t id : sampler.sample(options).values.at("tokens").values<int64_t>()) std::cout << id << ' ';
    options.texts[0] += std::string("\\0a", 2);
    try { sampler.sample(options); } catch (const diffusevae::ArgumentError& error) { std::cout << error.what(); }
}
"""


def test_the_wrapper_takes_texts(path: Path, cpp_runtimes: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text(PROGRAM)
    libraries = cpp_runtimes / "diffusevae"
    flags = ["-std=c++17", f"-I{building.SOURCE / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ldiffusevae"]
    flags += ["-Wl,--allow-shlib-undefined"]
    building.run([os.environ.get("CXX", "c++"), tmp_path / "a.cpp", "-o", tmp_path / "a", *flags])
    texts = [ENCODED[0][0], ENCODED[7][0]]
    printed = subprocess.run([tmp_path / "a", path, *texts], capture_output=True, check=True, timeout=60, text=True).stdout
    numbers = " ".join(str(id) for _, row in (ENCODED[0], ENCODED[7]) for id in row)
    assert printed == f"{numbers} texts holds one with a zero byte, where C ends it; expected none. Leave it out."


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(call: Callable[[], object]) -> str:
    """What C++ says to arguments that cannot be."""
    with pytest.raises(Failed) as caught:
        call()
    assert caught.value.status == ARGUMENT
    return str(caught.value).removeprefix("ARGUMENT: ")


def test_what_python_refuses_is_refused_in_its_words(
    path: Path, sampler: CSampler, library: Library, tmp_path: Path
) -> None:
    labels = build_family(tmp_path / "labels.bundle")
    with Sampler(path, "openvino") as python, Sampler(labels, "openvino") as other, open_c(
        library, labels, backend="openvino"
    ) as without:
        assert without.info.text_input is None
        beside: dict[str, Any] = {"text": "a", "tokens": np.zeros((1, 7), np.int64)}
        for ours, theirs, given in (
            (python, sampler, beside), (other, without, {"text": "a", "label": np.array([1])}),
            (python, sampler, {"text": ["a", "red"], "n": 3}),
        ):  # fmt: skip
            with pytest.raises(ArgumentError) as expected:
                ours.sample(**given)
            words = str(expected.value).split(" with: ")[0].split(". ")[0]
            assert words in refused(lambda theirs=theirs, given=given: theirs.sample(**given))  # type: ignore[misc]
    images, masks = np.zeros((1, *IMAGE[1:], IMAGE[0]), np.uint8), np.full(IMAGE[1:], 255, np.uint8)
    assert "text: found it beside tokens" in refused(lambda: sampler.inpaint(images, masks, **beside))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff", r"texts[0] holds a byte that is no UTF-8 at 0; expected UTF-8."),
        (["a", b"red \xed\xa0\x80"], "texts[1] holds a byte that is no UTF-8 at 4; expected UTF-8."),
        (b"a\xc0\xae", "texts[0] holds a byte that is no UTF-8 at 1"),
        (b"a \xf4\x90\x80\x80", "texts[0] holds a byte that is no UTF-8 at 2"),
        (b"a \xe5\xad", "texts[0] holds a byte that is no UTF-8 at 2"),
        (["a", None], "texts[1] is a null pointer; expected a text, or one a sample."),
        ([], "texts_count is 0; expected at least 1."),
        ("a ש red", "texts[0] holds 'ש' (U+05E9), of a script that this library has no rules for; expected Latin, "
                    "Greek, Cyrillic, Chinese, Japanese or Korean. Give tokens itself, with the ids that engine.text "
                    "makes in Python."),
        ("a" * 1000 + "\U000e0001", "texts[0] holds '\\U000e0001' (U+E0001), of a script"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(sampler: CSampler, text: Any, words: str) -> None:
    assert words in refused(lambda: sampler.sample(text=text, seed=1))
    assert sampler.sample(text="a", seed=1, steps=2).images.shape == (1, *IMAGE[1:], IMAGE[0])


def test_characters_without_rules_are_refused(sampler: CSampler) -> None:
    taken = set(GENERATOR["characters"]())
    edges = {code + step for code in taken for step in (-1, 1)} - taken
    others = set(random.Random(0).sample(sorted(set(range(0x110000)) - taken), 300))
    checked = [code for code in sorted(edges | others) if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000]
    assert len(checked) > 300
    for code in checked:
        assert f"(U+{code:04X}), of a script" in refused(lambda code=code: sampler.sample(text=f"a{chr(code)}"))  # type: ignore[misc]
