"""Text where a bundle is served: the command line, HTTP and Triton give the bits of `Sampler.sample(text=...)`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import BackendError, Bundle, Sampler
from engine.cli.main import cli
from engine.http.fields import fields_of
from engine.http.limits import Limits
from engine.http.reader import Reader
from engine.triton.config import model_config
from engine.triton.serving import Serving, settle
from tests import fake_triton
from tests.http_served import lone, serving
from tests.samplers import ANY_BACKEND
from tests.toy_family import LENGTH, build_family
from tests.triton_models import ints, loading, texts
from tests.unit.test_text import VOCABULARY, needs_tokenizers

TEXTS, SEEDS = ["a red house", "houses"], [3, 4]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("text") / "text.bundle", vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def expected(path: Path) -> np.ndarray:
    with lone(path) as sampler:
        images: np.ndarray = sampler.sample(text=TEXTS, seed=SEEDS).images
        return images


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@needs_tokenizers
def test_the_command_line(path: Path, expected: np.ndarray, tmp_path: Path) -> None:
    def sample(*more: str, seed: str = "3,4") -> np.ndarray:
        here = ["--backend", ANY_BACKEND, "--precision", "f32", "--threads", "1", "--out", tmp_path / "a.npy"]
        done = run("sample", path, "--seed", seed, *more, *here)
        assert done.exit_code == 0, done.output
        return np.asarray(np.load(tmp_path / "a.npy"))

    np.testing.assert_array_equal(sample("--text", TEXTS[0], "--text", TEXTS[1]), expected)
    np.testing.assert_array_equal(sample("--text", TEXTS[0])[0], expected[0])
    assert run("steps", path, "--seed", 1, "--text", TEXTS[1], "--out", tmp_path / "steps.npz").exit_code == 0
    assert np.load(tmp_path / "steps.npz")["tokens"].tolist() == [[2, 6, 7, 3, 0, 0, 0]]
    assert "holds no vocabulary" in run("sample", build_family(tmp_path / "labels.bundle"), "--text", "a").output
    shown = " ".join(run("info", path).output.split())
    assert "text may stand for tokens: wordpiece, lower case" in shown
    assert json.loads(run("info", path, "--json").output)["bundle"]["text"]["begin"] == "[CLS]"


@needs_tokenizers
def test_http(path: Path, expected: np.ndarray) -> None:
    with serving(path) as served:
        np.testing.assert_array_equal(served.ask("sample", {"seed": SEEDS, "text": TEXTS}).array, expected)
        tokens = [2, 6, 7, 3, 0, 0, 0]
        np.testing.assert_array_equal(served.ask("sample", {"seed": [4], "tokens": tokens}).array, expected[1:])
        walk = served.ask("interpolate", {"a": 1, "b": 2, "n": 2, "text": "red"})
        assert walk.array.shape == (2, 12, 16, 3)
        for body, words in (
            ({"seed": 1}, "sample: found no tokens or text, expected it in the body"),
            ({"text": "a", "tokens": tokens}, "text: found it beside tokens"),
            ({"text": 3}, "text holds 3, a int; expected a text"),
            ({"text": ["a"] * 3, "seed": [1, 2]}, "tokens says 3"),
            ({"text": "\ud800"}, "half of a surrogate pair"),
        ):
            status, message = served.ask("sample", body).refusal
            assert status == 400
            assert words in message
        post = json.loads(served.send("GET", "/openapi.json").data)["paths"]["/v1/sample"]["post"]
        content = post["requestBody"]["content"]["application/json"]
        assert content["schema"]["oneOf"] == [{"required": ["tokens"]}, {"required": ["text"]}]
        assert "tokens" not in content["schema"]["required"]
        assert served.ask("sample", content["example"]).status == 200
        assert json.loads(served.send("GET", "/v1/info").data)["text"] == "tokens"


def test_a_field_of_bundles_with_a_vocabulary_alone(path: Path, tmp_path: Path) -> None:
    plain = Bundle.open(build_family(tmp_path / "labels.bundle")).manifest
    assert "text" not in fields_of(plain, "sample", Limits())
    assert fields_of(Bundle.open(path).manifest, "sample", Limits())["tokens"].instead == "text"


@needs_tokenizers
def test_triton(path: Path, expected: np.ndarray, tmp_path: Path) -> None:
    with loading(tmp_path) as start:
        model = start(path)
        np.testing.assert_array_equal(model.one(seed=ints(*SEEDS), text=texts(*TEXTS))["image"], expected)
        tokens = np.array([[2, 6, 7, 3, 0, 0, 0]])
        np.testing.assert_array_equal(model.one(seed=ints(4), tokens=tokens)["image"], expected[1:])
        for given, words in (
            ({}, "tokens and text are missing; expected one of the two"),
            ({"text": texts("a"), "tokens": tokens}, "text: found it beside tokens"),
            ({"text": texts(b"\xff")}, "text is no UTF-8 at byte 0"),
            ({"text": texts("a" * 20_000)}, "text 0 of 1 holds 20000 bytes; expected at most 16384"),
        ):
            assert words in model.refusal(seed=ints(1), **given)[1]


def test_the_configuration_of_triton(path: Path) -> None:
    bundle = Bundle.open(path)
    config: Any = model_config(bundle.manifest, settle(bundle, Serving(backend=ANY_BACKEND)))
    inputs = {entry["name"]: (str(entry["data_type"]), entry["dims"], entry.get("optional")) for entry in config["input"]}
    assert inputs["text"] == ("TYPE_STRING", [1], True)
    assert inputs["tokens"] == ("TYPE_INT64", [LENGTH], True)
    sent = [entry["key"] for entry in config["model_warmup"][0]["inputs"]]
    assert sorted(sent) == ["seed", "tokens"], "a warm-up without either would keep the model away"


def test_servers_without_the_library_say_so_at_the_start(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as sampler, pytest.raises(BackendError, match="no package tokenizers"):
        Reader(sampler, Limits())
    with loading(tmp_path) as start:
        with pytest.raises(Exception, match="no package tokenizers"):
            start(path)
        kept = [{"name": "seed", "data_type": "TYPE_INT64", "dims": ["1"]},
                {"name": "tokens", "data_type": "TYPE_INT64", "dims": [str(LENGTH)]}]  # fmt: skip
        config = fake_triton.as_json({"input": kept})
        assert start(path, **config).one(seed=ints(4), tokens=np.zeros((1, LENGTH), np.int64))["image"].shape[0] == 1
