"""`diffusevae sample` and `interpolate` of many images: the same files, memory bounded, stopped and gone on with."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.cli import stream
from engine.pipeline import Pipeline
from tests.samplers import bundle
from tests.unit.test_cli import HERE, ROOT, run, succeed

MANY = ["-n", "11", "--batch", "2", "--steps", "2", *HERE]  # six pieces, the last of one image
GIB = 2**30


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def words_to_go_on(stderr: str) -> list[str]:
    """The arguments of the command that a stopped run prints."""
    found = re.search(r"with: .*? (sample|interpolate) (.*)$", stderr, re.MULTILINE)
    assert found, stderr
    return [found[1], *shlex.split(found[2])]


def interrupt_after(pieces: int, monkeypatch: pytest.MonkeyPatch, verb: str = "sample") -> None:
    """Ctrl-C in the piece after so many."""
    make, calls = getattr(Sampler, verb), []

    def counted(self: Sampler, *arguments: Any, **options: Any) -> Any:
        calls.append(options["seed"])
        if len(calls) == pieces + 1:
            raise KeyboardInterrupt
        return make(self, *arguments, **options)

    monkeypatch.setattr(Sampler, verb, counted)


@pytest.mark.parametrize("seed", [f"{2**64 - 3}", "5,3,9,0,1,2,77,6,4,8,7"])
@pytest.mark.parametrize("name", ["images", "a.npy", "a.png"])
def test_pieces_are_the_same_files_as_one_call(
    name: str, seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, at_once in (("pieces", 4), ("whole", 11)):
        monkeypatch.setattr(stream, "AT_ONCE", at_once)
        result = succeed("sample", bundle(), *MANY, "--seed", seed, "--with-start", "--out", tmp_path / folder / name)
        assert ("11 images, 0.0 MB of pixels, 2 at a time" in result.stderr) == (folder == "pieces")
    pieces, whole = (tmp_path / folder / name if name == "images" else tmp_path / folder for folder in ("pieces", "whole"))
    assert contents(pieces) == contents(whole)
    assert len(contents(whole)) == {"images": 22, "a.npy": 2, "a.png": 1}[name]


def test_inputs_are_cut_like_the_images(tmp_path: Path) -> None:
    z = np.random.default_rng(0).standard_normal((11, 4), np.float32)
    np.save(tmp_path / "z.npy", z)
    options = ["--input", f"z={tmp_path / 'z.npy'}", "--seed", "1", "--out", tmp_path / "a.npy", "--json"]
    report = json.loads(succeed("sample", bundle(), *MANY, *options).stdout)
    assert (report["n"], report["seeds"], report["inputs"]) == (11, {"first": 1, "last": 11}, {"z": "float32 [11, 4]"})
    assert (report["timings"]["chunks"], report["timings"]["network_calls"]) == (6, 12)
    assert report["files"] == [str(tmp_path / "a.npy")]
    with Sampler(bundle(), HERE[1], "f32", threads=2, max_batch=2) as sampler:
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), sampler.sample(11, z=z, steps=2, seed=1).images)


def test_a_stopped_folder_goes_on_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[Any] = ["sample", bundle(), *MANY, "--out", tmp_path / "images"]
    for done in (2, 4):
        with monkeypatch.context() as patch:
            interrupt_after(1, patch)
            result = run(*words)
        last = f"Interrupted; {tmp_path / 'images'} holds {done} of 11 images; go on with: "
        assert (result.exit_code, result.stderr.splitlines()[-1].startswith(last)) == (130, True), result.output
        assert len(contents(tmp_path / "images")) == done
        words = words_to_go_on(result.stderr)
        assert words[-2:] == ["--first", str(done)]
    assert words.count("--seed") == words.count("--first") == 1
    assert "wrote" in succeed(*words).output
    seed = words[words.index("--seed") + 1]
    succeed("sample", bundle(), *MANY, "--seed", seed, "--out", tmp_path / "whole")
    assert contents(tmp_path / "images") == contents(tmp_path / "whole")


def test_a_walk_in_pieces_is_the_same_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[Any] = ["interpolate", bundle(), "3", "8", "--mode", "slerp", "--with-start", *MANY]
    with monkeypatch.context() as patch:
        interrupt_after(2, patch, "interpolate")
        stopped = run(*words, "--out", tmp_path / "pieces")
    assert (stopped.exit_code, stopped.stderr.splitlines()[-1][:12]) == (130, "Interrupted;"), stopped.output
    monkeypatch.setattr(stream, "AT_ONCE", 1)
    resumed = succeed(*words_to_go_on(stopped.stderr), "--json")
    report = json.loads(resumed.stdout)
    assert (report["n"], report["seeds"], report["inputs"]) == (7, {"first": 3, "last": 3}, {"z": "float32 [7, 4]"})
    monkeypatch.setattr(stream, "AT_ONCE", 11)
    succeed(*words, "--out", tmp_path / "whole")
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 22


def test_a_stopped_array_holds_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        result = run("sample", bundle(), *MANY, "--seed", "7", "--out", tmp_path / "a.npy")
    assert result.exit_code == 130
    succeed(*words_to_go_on(result.stderr))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-from6.npy", "a.npy"]
    succeed("sample", bundle(), *MANY, "--seed", "7", "--out", tmp_path / "whole.npy")
    parts = [np.load(tmp_path / name) for name in ("a.npy", "a-from6.npy")]
    np.testing.assert_array_equal(np.concatenate(parts), np.load(tmp_path / "whole.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sample", "-n", "1000000"], "a grid of 100 million pixels, expected at most 89 million; write them to a folder"),
        (["sample", "-n", "5", "--first", "2"], "first: found 2 without a seed"),
        (["sample", "-n", "5", "--seed", "0", "--first", "5"], "first is 5; expected less than the 5 images"),
        (["sample", "-n", "5", "--first", "2", "--shard-size", "2", "--out", "a"], "first: found it with shards"),
        (["interpolate", "1", "2", "-n", "1000000"], "a grid of 100 million pixels"),
        (["interpolate", "1", "2", "-n", "5", "--first", "5"], "first is 5; expected less than the 5 images"),
        (["steps", "-n", "1000000000", "--eta", "1"], "n: found 1,000,000,000, which is 8,464.0 GB of arrays in one file"),
    ],
)  # fmt: skip
def test_refused_before_the_work(options: list[str], message: str) -> None:
    result = run(options[0], bundle(), *options[1:])
    assert (result.exit_code, message in result.stderr) == (1, True), result.output


@pytest.mark.parametrize("verb", ["sample", "__init__"])
def test_no_memory_is_a_sentence(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb == "sample":  # inside of the Sampler, which has its own words for it
        monkeypatch.setattr(Pipeline, "run", lambda *_: np.empty(2**62, np.uint8))
    else:
        monkeypatch.setattr(Sampler, "__init__", lambda *_, **__: np.empty(2**62, np.uint8))
    result = run("sample", bundle(), "--out", tmp_path / "a.png", *HERE)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert result.stderr.startswith("Error: found no memory for this (Unable to allocate")
    assert "smaller --batch" in result.stderr


def test_a_million_images_start_in_four_gigabytes(tmp_path: Path) -> None:
    out = tmp_path / "images"
    code = (
        f"import resource, signal; resource.setrlimit(resource.RLIMIT_AS, ({4 * GIB}, {4 * GIB}));"
        "signal.signal(signal.SIGINT, signal.default_int_handler); from engine.cli.main import main; main()"
    )
    options = ["-n", "1000000", "--seed", "3", "--steps", "2", "--out", str(out), *HERE]
    command = [sys.executable, "-c", code, "sample", str(bundle()), *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        try:
            assert child.stderr.readline() == "1,000,000 images, 192.0 MB of pixels, 64 at a time\n"
            until = time.monotonic() + 60
            while not (out / "00063-seed66.png").exists():
                assert child.poll() is None, child.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            said = child.stderr.read()
        finally:
            child.kill()
    assert child.returncode == 130, said
    words = words_to_go_on(said)
    first = int(words[-1])
    assert words[-2] == "--first"
    assert 64 <= first <= len(contents(out)) < 1000000
    assert f"holds {first} of 1000000 images" in said
