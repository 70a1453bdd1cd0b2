"""Text in place of token ids: what a vocabulary makes of it, where it may be given, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, BackendError, BundleError, Sampler
from engine.bulk.maker import pack
from engine.bundle.reader import Bundle
from engine.bundle.vocabulary import MAX_VOCABULARY_BYTES, read_vocabulary
from engine.text import TextEncoder
from tests.bulk_jobs import samples
from tests.manifests import edit
from tests.samplers import ANY_BACKEND
from tests.toy_family import LENGTH, TEXT, TOKENS, build_family
from tests.unit.test_cli import HERE, run, succeed

WORDS = "[PAD] [UNK] [CLS] [SEP] a red house ##s blue un ##der , . 子 cafe ! ##boat"
VOCABULARY = (WORDS.replace(" ", "\n") + "\n").encode()
needs_tokenizers = pytest.mark.skipif(find_spec("tokenizers") is None, reason="tokenizers is not installed")

# [CLS] is 2, [SEP] 3, [PAD] 0, [UNK] 1.
ENCODED = [
    ("a red house", [2, 4, 5, 6, 3, 0, 0]),
    ("A RED  \t house\n", [2, 4, 5, 6, 3, 0, 0]),  # lower case; spaces alone part words
    ("", [2, 3, 0, 0, 0, 0, 0]),
    ("houses", [2, 6, 7, 3, 0, 0, 0]),  # the longest piece first
    ("underboat,a", [2, 9, 10, 16, 11, 4, 3]),
    ("red underhouse", [2, 5, 1, 3, 0, 0, 0]),  # no pieces for all of a word: the whole of it is unknown
    ("子a子", [2, 13, 4, 13, 3, 0, 0]),  # each a word of its own
    ("Café!", [2, 14, 15, 3, 0, 0, 0]),  # accents are dropped
    ("a\u200dred\x00", [2, 1, 3, 0, 0, 0, 0]),  # what cannot be seen is dropped, and parts no words
    ("a [SEP] red", [2, 4, 3, 5, 3, 0, 0]),
    ("a a a a a red", [2, 4, 4, 4, 4, 4, 3]),  # cut, and the end stays
    ("x" * 101, [2, 1, 3, 0, 0, 0, 0]),
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("text") / "text.bundle", vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def sampler(path: Path) -> Iterator[Sampler]:
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as opened:
        yield opened


@needs_tokenizers
def test_texts_become_the_ids_that_bert_would_make(path: Path) -> None:
    encoder = TextEncoder.of(Bundle.open(path))
    assert encoder is not None
    for text, ids in ENCODED:
        found = encoder.encode(text)
        assert (found.dtype, found.tolist()) == (np.int64, [ids]), text
    assert encoder.encode([text for text, _ in ENCODED]).tolist() == [ids for _, ids in ENCODED]


@needs_tokenizers
def test_a_cased_vocabulary_without_begin_and_end(tmp_path: Path) -> None:
    path = build_family(tmp_path / "a.bundle", vocabulary=b"Red\nred\n[PAD]\n[UNK]")
    for name, value in {"lowercase": False, "begin": None, "end": None}.items():
        edit(path, f"text.{name}", value)
    encoder = TextEncoder.of(Bundle.open(path))
    assert encoder is not None
    assert encoder.encode("red Red RED").tolist() == [[1, 0, 3, 2, 2, 2, 2]]
    assert encoder.encode("red " * 9).tolist() == [[1] * LENGTH]


@needs_tokenizers
def test_text_gives_the_bits_of_its_tokens(sampler: Sampler) -> None:
    (one, first), (other, second) = ENCODED[0], ENCODED[3]
    assert one != other
    for text, tokens, n in ((one, first, 2), ([one, other], [first, second], None)):
        for options in ({}, {"guidance": 1.5, "steps": 3}):
            found = sampler.sample(n, text=text, seed=7, **options)
            expected = sampler.sample(n, tokens=np.array(tokens), seed=7, **options)
            np.testing.assert_array_equal(found.images, expected.images)
            np.testing.assert_array_equal(found.values["tokens"], np.broadcast_to(tokens, (2, LENGTH)))
    assert (found.images[0] != found.images[1]).any()
    styles = {"a": 1, "b": 2, "n": 3}
    found = sampler.interpolate(**styles, text=one, steps=2)
    np.testing.assert_array_equal(found.images, sampler.interpolate(**styles, tokens=np.array(first), steps=2).images)
    images = np.full((2, 12, 16, 3), 90, np.uint8)
    with pytest.raises(ArgumentError, match="needs a state that is the image"):
        sampler.reconstruct(images, text=one, steps=2, seed=1)
    sampler.warmup(2, text=one)


@needs_tokenizers
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text": "a", "tokens": np.zeros(7, np.int64)}, "text: found it beside tokens, which it becomes; expected one"),
        ({"text": 3}, "text holds 3, a int; expected a text, or one a sample"),
        ({"text": ["a", b"b"]}, "text holds b'b', a bytes; expected a text"),
        ({"text": []}, "text lists nothing; expected a text, or one a sample"),
        ({"text": "a\ud800"}, "text holds half of a surrogate pair at 1; expected Unicode"),
        ({"text": ["a", "red"], "n": 3}, "n says 3, tokens says 2"),
        ({}, r"sample: found no tokens, expected it: this bundle takes tokens int64\[batch, 7\], style"),
    ],
)
def test_texts_that_cannot_be_are_refused(sampler: Sampler, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        sampler.sample(**given)


@needs_tokenizers
def test_a_bulk_job_takes_a_text_an_image_from_a_file(path: Path, tmp_path: Path) -> None:
    texts = ["a red house", "", "blue houses, a", "a"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8-sig")
    job = ["sample", path, "-n", "4", "--seed", "7", "--steps", "2", "--text-file", tmp_path / "prompts.txt"]
    job += ["--shard-size", "3", "--out", tmp_path / "shards", *HERE]
    succeed(*job)
    with Sampler(path, ANY_BACKEND, "f32", threads=2) as opened:
        images = [opened.sample(text=texts[i : i + 3], seed=7 + i, steps=2).images for i in (0, 3)]
    np.testing.assert_array_equal(samples(tmp_path / "shards"), np.concatenate(images))
    (tmp_path / "shards" / "shard-00001.npy").unlink()
    assert json.loads(succeed(*job, "--json").stdout)["shards_made"] == 1
    (tmp_path / "prompts.txt").write_text("a\n" * 4)
    found = run(*job)
    assert (found.exit_code, "job.inputs.tokens: found" in found.stderr) == (1, True)


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (b"a", ["--text", "a"], "text-file: found it beside --text, expected one of the two"),
        (b"", [], "text-file: found nothing in "),
        (b"\xff", [], "in position 0: invalid start byte), expected UTF-8"),
        (None, [], "cannot be read ([Errno 2] No such file"),
    ],
)
def test_files_of_texts_that_cannot_be_are_refused(
    path: Path, tmp_path: Path, content: bytes | None, more: list[str], words: str
) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    found = run("sample", path, "--text-file", tmp_path / "prompts.txt", "--out", tmp_path / "a.png", *more, *HERE)
    assert (found.exit_code, found.stdout) == (1, "")
    assert words in found.stderr


def test_without_a_vocabulary_text_is_refused(tmp_path: Path) -> None:
    words = r"text: found one, but .*labels\.bundle holds no vocabulary: this bundle takes label int64.*--vocabulary"
    path = build_family(tmp_path / "labels.bundle")
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as sampler:
        for verb in (sampler.sample, lambda text: sampler.interpolate(1, 2, text=text)):
            with pytest.raises(ArgumentError, match=words):
                verb(text="a red house")
    edit(path, "text", {})
    with pytest.raises(BundleError, match=r"text: found {} \(object\), expected null, since no input is int64 \[batch, L\]"):
        Bundle.open(path)


def test_without_the_library_text_names_the_command(
    path: Path, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    encoder = TextEncoder.of(Bundle.open(path))
    assert encoder is not None
    with pytest.raises(BackendError, match=r"no package tokenizers .*: pip install .*\[text\].*, or give tokens"):
        encoder.encode("a")
    assert sampler.sample(1, tokens=np.zeros(LENGTH, np.int64), seed=0).images.shape == (1, 12, 16, 3)


# One wrong field of the entry, also for C++ (tests/cpp).
REFUSED = [
    ("text.input", "style", "text.input: found 'style' (str), expected one of 'tokens'"),
    ("text.kind", "bpe", "text.kind: found 'bpe' (str), expected one of 'wordpiece'"),
    ("text.lowercase", 1, "text.lowercase: found 1 (int), expected true or false"),
    ("text.begin", "", "text.begin: found '' (str), expected a text of 1..200"),
    ("text.pad", None, "text.pad: found null, expected a text of 1..200"),
    ("text.size", MAX_VOCABULARY_BYTES + 1, "text.size: found 16777217 (int), expected an integer in 1..16777216"),
    ("text.more", 1, "text.more: found an unknown field"),
    ("text.file", "decoder.onnx", "text.file: found 'decoder.onnx' (str), expected a file of its own for each entry"),
    ("text.sha256", "0" * 64, "vocab.txt: found SHA-256 "),
    ("text", "vocab.txt", "text: found 'vocab.txt' (str), expected an object"),
]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED)
def test_one_wrong_field_is_named(path: Path, tmp_path: Path, field: str, value: object, message: str) -> None:
    other = copied(path, tmp_path)
    edit(other, field, value)
    with pytest.raises(BundleError) as caught:
        Bundle.open(other)
    assert message in str(caught.value)


def copied(path: Path, folder: Path) -> Path:
    """A bundle that may be spoilt."""
    other = folder / "spoilt.bundle"
    other.mkdir()
    for file in path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    return other


# What is no UTF-8: no character, one in too many bytes, half of a surrogate pair, beyond Unicode, and cut ones.
BYTES = (
    b"\xff\n", b"\xc0\xae", b"\xe0\x80\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe5\xad", b"\x80", b"\xf0\x9f\x98a",
)  # fmt: skip
# A file that is none, also for C++.
NO_VOCABULARIES = [
    (VOCABULARY + b"red", "found 'red' in the lines 6 and 18, expected each token once"),
    (VOCABULARY.replace(b"[SEP]", b"[END]"), r"found no line \[SEP\], expected one for each of \[CLS\], "),
    (VOCABULARY.replace(b"\n", b"\r\n"), r"found '\[PAD\]\\r' in line 1, expected one token a line, without spaces"),
    (VOCABULARY.replace(b"red", b""), "found '' in line 6, expected one token a line"),
    (b"\n", "found '' in line 1, expected one token a line"),
    (VOCABULARY + b"\n", "found '' in line 18, expected one token a line"),
    (VOCABULARY + b"a b\n", "found 'a b' in line 18, expected one token a line"),
    *((VOCABULARY + data, f"found a byte that is no UTF-8 at {len(VOCABULARY)}, expected text in UTF-8") for data in BYTES),
    (
        VOCABULARY + "".join(f"t{i}\n" for i in range(TOKENS)).encode(),
        r"found 41 tokens, whose ids are 0 \.\. 40, expected ids in 0 \.\. 23, as the input tokens takes them",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), NO_VOCABULARIES)
def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = build_family(tmp_path / "a.bundle", vocabulary=data)
    with pytest.raises(BundleError, match=rf"vocab\.txt: {words}.*--vocabulary vocab\.txt"):
        read_vocabulary(Bundle.open(path))
    with pytest.raises(BundleError, match=words):
        Sampler(path, ANY_BACKEND, "f32", threads=1)


def test_a_bundle_says_what_it_makes_of_text(path: Path) -> None:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    assert manifest.text is not None
    assert manifest.text in manifest.files
    assert {name: getattr(manifest.text, name) for name in TEXT} == TEXT
    assert pack(bundle) == {file.name: file.read_bytes() for file in path.iterdir()}
