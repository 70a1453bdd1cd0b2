"""Where results go and what terminals are like: each line a command, and what it must say before it works. See README.md."""

from __future__ import annotations

import importlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from engine import Sampler
from engine.bundle.reader import Bundle
from engine.cli.main import cli
from engine.errors import ArgumentError
from engine.imaging import check_target, save_images
from engine.places import check_file, check_folder
from tests.samplers import bundle, open_toy
from tests.unit.test_cli import HERE, ROOT, run, succeed

# {no}: a folder where nothing can be made, {file}: a file, {full}: a folder with other things in it. No input exists.
REFUSED_AT_ONCE = [
    ("sample B --out {no}/a.png", "Cannot write {no}/a.png"),
    ("sample B --out {no}/images", "Cannot write {no}/images"),
    ("sample B --out {file}/deep/a.npy", "a file where a folder is needed"),
    ("sample B --out {file}", "found a file, expected a folder"),
    ("sample B --out a.jpg", "a.jpg ends in .jpg; expected a .png grid"),
    ("sample B --out a.PT", "a.PT ends in .PT; expected a .png grid"),
    ("sample B --out ''", "found an empty name"),
    ("sample B --out - --json", "found - with --json there"),
    ("sample B --out - --shard-size 2", "found -, which is standard output elsewhere"),
    ("sample B --out {no}/shards --shard-size 2", "Cannot write {no}/shards"),
    ("sample B --out a.png --format tar", "expected a folder for the shards"),
    ("sample B --out a.tar --format tar", "a.tar ends in .tar"),
    ("sample B --add --shard-size 2 --out a", "add: found it with shards"),
    ("reconstruct B a.png --out {no}/a.npy", "Cannot write {no}/a.npy"),
    ("refine B a.png --out {no}/a.npy", "Cannot write {no}/a.npy"),
    ("interpolate B 1 2 --out {no}/a.npy", "Cannot write {no}/a.npy"),
    ("steps B --out {no}/a.npz", "Cannot write {no}/a.npz"),
    ("steps B --out a.npy", "expected one ending in .npz"),
    ("steps B --out -", "found -, which is standard output elsewhere"),
    ("triton-repo B --out {no}/models", "Cannot write {no}/models"),
    ("triton-repo B --out {file}", "found a file, expected a folder"),
    ("build C --out {no}/a.bundle", "Cannot write {no}/a.bundle"),
    ("build C --out {file}", "found a file, expected a folder"),
    ("build C --out {full}", "found a folder that is not a bundle"),
    ("build C --out -", "found -, which is standard output elsewhere"),
    ("fit-prior B --images I --out {no}/a.safetensors", "Cannot write {no}/a.safetensors"),
    ("fit-prior B --images I --out {full}", "found a folder, expected a file"),
    ("benchmarks.latency.run --out {no}/a.json", "Cannot write {no}/a.json"),
    ("benchmarks.latency.compare {full} {full} --bundles a b --out {no}/a.json", "Cannot write {no}/a.json"),
    ("benchmarks.quality.run --out {file} --plot {no}/a.png", "Cannot write {no}/a.png"),
    ("benchmarks.quality.precisions --out {file} --picture {no}/a.png", "Cannot write {no}/a.png"),
    ("benchmarks.serving.run --out {file} --plot {no}/a.png", "Cannot write {no}/a.png"),
    ("benchmarks.serving.embedding --out {no}/a.json", "Cannot write {no}/a.json"),
    ("benchmarks.gpu.check --out {no}/a.json", "Cannot write {no}/a.json"),
]
# What a disk of 100 free bytes is too small for.
TOO_LARGE = [
    "sample B -n 4 --out a.npy", "sample B -n 4 --out a.png", "sample B -n 4 --out images", "sample B -n 100000000 --out a",
    "sample B --seed 1,2,3 --out a.npy", "sample B -n 4 --shard-size 2 --out shards", "interpolate B 1 2 --out a.npy",
    "refine B {picture} --with-start --out a.npy", "steps B --out a.npz", "triton-repo B --out models",
]  # fmt: skip
# encoding of the terminal: the bytes that it gets for the … in `diffusevae info`
TERMINALS = {"ascii": b"...)", "latin-1": b"...)", "cp1252": b"\x85)", "utf-8": "…)".encode(), "iso8859-15": b"...)"}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    return {"no": "/proc/nowhere", "file": tmp_path / "file", "full": tmp_path / "full", "picture": tmp_path / "picture.png"}


def words_of(line: str, places: dict[str, Any], path: Path | str) -> list[str]:
    return [{"B": str(path), "''": ""}.get(word, word.format(**places)) for word in line.split()]


@pytest.mark.parametrize(("line", "message"), REFUSED_AT_ONCE, ids=[line for line, _ in REFUSED_AT_ONCE])
def test_it_is_said_before_anything_is_opened(
    line: str, message: str, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = words_of(line, places, "no.bundle")
    name = words.pop(0) if line.startswith("benchmarks") else ""
    result = CliRunner().invoke(importlib.import_module(name).main if name else cli, words)
    assert message.format(**places) in result.stderr
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is made, not even a folder"


@pytest.mark.parametrize("line", TOO_LARGE)
def test_room_is_estimated_before_the_work(line: str, places: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    path = bundle()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    monkeypatch.setattr(Sampler, "__init__", begin)
    monkeypatch.setattr("engine.bulk.run.Maker", begin, raising=False)
    result = run(*words_of(line, places, path))
    assert (result.exit_code, "MB free, expected about" in result.stderr) == (1, True), result.output


@pytest.mark.parametrize("name", ["samples_t0.8", "run.1", "v2.png/", "there.png", "a.b/c.d"])
def test_folders_whose_names_have_dots(name: str, tmp_path: Path) -> None:
    (tmp_path / "there.png").mkdir()
    files = save_images(f"{tmp_path}/{name}", np.zeros((2, 4, 4, 3), np.uint8))
    assert files == [tmp_path / name / "00000.png", tmp_path / name / "00001.png"]
    assert all(file.is_file() for file in files)


def test_what_is_looked_at_is_left_as_it_is(tmp_path: Path) -> None:
    there = tmp_path / "there.npy"
    there.write_bytes(b"old")
    for path in (there, tmp_path / "new.npy", tmp_path / "deep" / "new.png", tmp_path / "folder"):
        check_target(path, 1000)
    (tmp_path / "link.npy").symlink_to("/proc/nowhere/a.npy")
    for check in (check_file, check_folder):
        with pytest.raises(ArgumentError, match=r"Cannot write .*link\.npy"):
            check(tmp_path / "link.npy")
    assert (there.read_bytes(), sorted(p.name for p in tmp_path.iterdir())) == (b"old", ["link.npy", "there.npy"])


class TestOneFolderTwice:
    def sample(self, out: Path, *options: str) -> Any:
        return run("sample", bundle(), "--out", out, *options, *HERE)

    def test_two_runs_are_not_mixed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "notes.txt").write_text("no picture")
        assert self.sample(out, "-n", "2", "--seed", "5").exit_code == 0
        assert self.sample(out, "-n", "2", "--seed", "5").exit_code == 0, "the same files again are one run"
        before = {file.name: file.read_bytes() for file in out.iterdir()}
        for options in (("-n", "1", "--seed", "5"), ("-n", "2", "--seed", "6"), ("-n", "2")):
            with monkeypatch.context() as patch:
                patch.setattr(Sampler, "__init__", lambda *_, **__: pytest.fail("the work began"))
                result = self.sample(out, *options)
            assert (result.exit_code, "as two runs would be mixed" in result.stderr) == (1, True)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
        assert self.sample(out, "-n", "1", "--seed", "6", "--add").exit_code == 0
        assert sorted(file.name for file in out.glob("*.png")) == ["00000-seed5.png", "00000-seed6.png", "00001-seed6.png"]

    def test_interpolations_neither(self, tmp_path: Path) -> None:
        arguments = ["interpolate", bundle(), "3", "8", "--out", tmp_path / "out", *HERE]
        succeed(*arguments, "-n", "3")
        succeed(*arguments, "-n", "3")
        assert "such as 00002-seed3.png" in run(*arguments, "-n", "2").stderr

    def test_in_python(self, tmp_path: Path) -> None:
        images = np.zeros((2, 4, 4, 3), np.uint8)
        save_images(tmp_path, images)
        with pytest.raises(ArgumentError, match=r"found 1 pictures that this run would not replace, such as 00001\.png"):
            save_images(tmp_path, images[:1])
        assert save_images(tmp_path, images[:1], add=True) == [tmp_path / "00000.png"]


def test_standard_output_is_a_picture() -> None:
    result = succeed("sample", bundle(), "-n", "4", "--seed", "5", "--out", "-", *HERE)
    with open_toy() as sampler:
        image = sampler.sample(4, seed=5).images[3]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.stdout_bytes)))[-10:-2, -10:-2], image)
    assert "a picture to standard output" in result.stderr


@pytest.mark.parametrize(("encoding", "shown"), TERMINALS.items())
def test_a_terminal_without_the_character(encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path, raw = str(bundle()), io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
        with pytest.raises(SystemExit) as stop:
            cli(["info", path])
        sys.stdout.flush()
    source = next(line for line in raw.getvalue().splitlines() if b"SHA-256" in line)
    assert (stop.value.code, source[-len(shown) :]) == (0, shown)


@pytest.mark.parametrize("arguments", [["--help"], ["info"]])
def test_head_ends_it_quietly(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "engine", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 141)


def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Bundle, "open", broken)
    result = run("info", "B")
    assert (result.exit_code, "the pipe to another process broke" in result.stderr) == (1, True)


def test_bars_are_for_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("engine.pipeline._bar", lambda *_: seen.append(True))
    arguments = ["sample", bundle(), "--out", tmp_path / "a.png", *HERE]
    succeed(*arguments)
    assert seen == []
    monkeypatch.setattr("engine.cli.options.shows_progress", lambda: True)
    succeed(*arguments)
    assert seen == [True]
