"""A vocabulary given to a build: which input it is for, the null of that input, and the bundle that takes text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from engine import ArgumentError, BundleError, Sampler
from engine.bundle.reader import Bundle
from export import build as building
from export.build import Request, build
from export.build_engines import summarise
from export.context import Graph
from export.families.base import Model, Source
from export.graphs.roles import Role
from export.vocabulary import read_vocabulary_file, with_text
from tests.samplers import ANY_BACKEND
from tests.toy_family import LENGTH, TOKENS, build_family
from tests.unit.test_text import VOCABULARY

OTHER = {
    "name": "more", "dtype": "int64", "shape": ["batch", 9], "range": "unbounded", "draw": None, "picture": None,
    "null": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build_family(tmp_path_factory.mktemp("toy") / "toy.bundle", vocabulary=VOCABULARY))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_bytes(VOCABULARY)
    return path


def model_of(bundle: Bundle, null: list[int] | None = None, more: Sequence[dict[str, Any]] = ()) -> Model:
    """The model of a bundle, with this null of its tokens."""
    raw, manifest = json.loads(bundle.read_manifest()), bundle.manifest
    inputs = [raw["inputs"][0] | {"null": null}, *raw["inputs"][1:], *more]
    roles = {name: Role(name, nn.Identity(), spec.inputs, spec.outputs) for name, spec in manifest.graphs.items()}
    how = (manifest.schedule, manifest.prediction, manifest.variance, raw["defaults"])
    return Model(manifest.family, manifest.name, roles, inputs, raw["pipeline"], *how)


def test_a_bundle_built_with_a_vocabulary_takes_text(
    toy: Bundle, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(SimpleNamespace(path=Path("a.ckpt"), sha256="0" * 64), None, "ema")
    found = SimpleNamespace(name="toy", source=source, load=lambda: model_of(toy))
    monkeypatch.setattr(building, "recognise", lambda request: found)
    monkeypatch.setattr(building, "export_graphs", lambda model, *_: (model, [
        Graph(role, toy.read_graph(name), {"onnxruntime": 0.0}) for name, role in model.roles.items()
    ]))  # fmt: skip
    path = tmp_path / "built.bundle"
    summarise(build(Request(Path("a.ckpt"), out=path, vocabulary=file)))
    assert "--text WORDS -n 16" in capsys.readouterr().out, "the next command, in words instead of ids"
    manifest = Bundle.open(path).manifest
    assert manifest.text == toy.manifest.text
    assert manifest.inputs[0].null is not None
    assert manifest.inputs[0].null.tolist() == [2, 3, 0, 0, 0, 0, 0]  # begin and end of an empty text
    assert (path / "vocab.txt").read_bytes() == VOCABULARY
    build(Request(Path("a.ckpt"), out=path))
    assert Bundle.open(path).manifest.text is None
    if find_spec("tokenizers") is None:
        pytest.skip("tokenizers is not installed")
    build(Request(Path("a.ckpt"), out=path, vocabulary=file))
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as sampler:
        kept = {"seed": 1, "steps": 2, "guidance": -1.0}  # of the null lane alone
        expected = sampler.sample(style=np.full(5, 0.1), text="", seed=1, steps=2)
        np.testing.assert_array_equal(sampler.sample(style=np.full(5, 0.1), text="a red", **kept).images, expected.images)


def test_a_null_that_is_there_stays(toy: Bundle, file: Path) -> None:
    for null, expected in ((None, [2, 3, 0, 0, 0, 0, 0]), ([5] * LENGTH, [5] * LENGTH)):
        model, spec = with_text(model_of(toy, null), read_vocabulary_file(file))
        assert (model.inputs[0]["null"], spec.input, spec.lowercase) == (expected, "tokens", True)


def test_of_several_inputs_the_one_called_tokens_is_meant(toy: Bundle, file: Path) -> None:
    given = read_vocabulary_file(file)
    assert with_text(model_of(toy, more=[OTHER]), given)[1].input == "tokens"
    words = r"--vocabulary .*words\.txt: found a model that takes .*, expected one int64 input \[batch, L\]"
    others = [OTHER, OTHER | {"name": "another"}]
    for inputs in (others, [OTHER | {"shape": ["batch", "length"]}], []):
        model = model_of(toy)
        object.__setattr__(model, "inputs", inputs)
        with pytest.raises(ArgumentError, match=words):
            with_text(model, given)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (None, ArgumentError, r"--vocabulary .*words\.txt: found nothing to read .*vocab\.txt of bert-base-uncased"),
        (b"\xff", BundleError, r"words\.txt: found a byte that is no UTF-8 at 0"),
        (b"[PAD]\n[UNK]\n[CLS]\nred", BundleError, r"words\.txt: found no line \[SEP\]"),
        (VOCABULARY + b"\n".join(b"t%d" % i for i in range(TOKENS)), BundleError, r"expected ids in 0 \.\. 23"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(
    toy: Bundle, file: Path, data: bytes | None, error: type[Exception], words: str
) -> None:
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)
    with pytest.raises(error, match=words):
        with_text(model_of(toy), read_vocabulary_file(file))


def test_capitals_tell_a_cased_vocabulary(file: Path) -> None:
    file.write_bytes(VOCABULARY + "Ärger".encode())
    assert not read_vocabulary_file(file).lowercase
