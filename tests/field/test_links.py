"""Bundles whose files are links, as stores of models hand them out: each layout gives the images of the plain folder."""

from __future__ import annotations

import hashlib
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.bundle import links
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, BundleError
from tests.samplers import ANY_BACKEND, bundle, open_toy
from tests.unit.test_cli import run, succeed


def plain(folder: Path, source: Path | None = None) -> Path:
    """A bundle's files in a folder of their own, those of the toy unless another is named."""
    return shutil.copytree(source or bundle(), folder)


def hugging_face(root: Path, source: Path | None = None) -> tuple[Path, Path]:
    """models--me--toy/snapshots/COMMIT/manifest.json -> ../../blobs/SHA256."""
    path, blobs = plain(root / "models--me--toy" / "snapshots" / "0a1b", source), root / "models--me--toy" / "blobs"
    blobs.mkdir()
    for file in sorted(path.iterdir()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(Path("../../blobs") / blob.name)
    return path, blobs


def dvc(root: Path, source: Path | None = None) -> tuple[Path, Path]:
    """toy.bundle/manifest.json -> /.../my cache/files/md5/0a/1b2c; the paths are to be quoted."""
    path, store = plain(root / "toy.bundle", source), root / "my cache" / "files" / "md5"
    for file in sorted(path.iterdir()):
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        place = store / digest[:2] / digest[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)
        file.symlink_to(place)
    return path, store


def config_map(root: Path, source: Path | None = None) -> Path:
    """toy/manifest.json -> ..data/manifest.json, ..data -> ..2024: no link leaves the folder."""
    path = root / "toy"
    for file in sorted(plain(path / "..2024", source).iterdir()):
        (path / file.name).symlink_to(Path("..data") / file.name)
    (path / "..data").symlink_to("..2024")
    return path


@pytest.fixture(params=[hugging_face, dvc])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    layout: Callable[[Path], tuple[Path, Path]] = request.param
    return layout(tmp_path)


def images_of(path: Path, **options: Any) -> np.ndarray:
    with Sampler(path, ANY_BACKEND, "f32", threads=2, **options) as sampler:
        return sampler.sample(2, seed=5).images


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    with open_toy() as sampler:
        return sampler.sample(2, seed=5).images


def test_links_inside_of_the_bundle_need_no_option(tmp_path: Path, expected: np.ndarray) -> None:
    (tmp_path / "latest").symlink_to(config_map(tmp_path))
    np.testing.assert_array_equal(images_of(tmp_path / "latest"), expected)


def test_a_config_map_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, open_file, count = config_map(tmp_path), links.opened, iter(range(100))
    plain(path / "..2025", bundle("uncond"))

    def kubelet_comes(*arguments: Any) -> Any:
        if next(count) == 1:  # between the manifest and the first graph
            (path / "..data_tmp").symlink_to("..2025")
            (path / "..data_tmp").rename(path / "..data")
            shutil.rmtree(path / "..2024")
        return open_file(*arguments)

    monkeypatch.setattr("engine.bundle.reader.opened", kubelet_comes)
    assert Bundle.open(path).manifest == Bundle.open(bundle("uncond")).manifest


def test_a_store_is_named_by_the_caller(stored: tuple[Path, Path], expected: np.ndarray) -> None:
    path, store = stored
    for allowed in (store, [str(path), store.parent], True):
        np.testing.assert_array_equal(images_of(path, allow_links=allowed), expected)
    with Sampler(path, ANY_BACKEND, "f32", allow_links=os.path.relpath(store)) as sampler:
        kept = pickle.dumps(sampler)
        with pytest.raises(ArgumentError, match=r"allow_links: found True with a Bundle that is open, expected none"):
            Sampler(sampler.bundle, allow_links=True)
    with pickle.loads(kept) as again:
        np.testing.assert_array_equal(again.sample(2, seed=5).images, expected)


def test_the_option_that_is_printed_opens_it(stored: tuple[Path, Path], tmp_path: Path) -> None:
    (path, store), other = stored, tmp_path / "other"
    other.mkdir()
    text = run("info", path, "--allow-links", other).stderr
    leads_to = os.path.realpath(path / "manifest.json")
    assert f"manifest.json: found a link to {leads_to}, expected one that ends in {path} or {other}; if that place" in text
    option = shlex.split(text[text.index("--allow-links ") : text.index(" (in code: allow_links)")])
    assert option == ["--allow-links", str(store)]
    assert "toy" in succeed("info", path, *option).output


LINES = [
    "info B", "verify B", "sample B --out out.npy", "sample B -n 2 --shard-size 1 --out out", "steps B -n 1 --out out.npz",
    "reconstruct B a.npy --out out", f"triton-repo B --backend {ANY_BACKEND} --out out",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_every_command_takes_it(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = hugging_face(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((1, 8, 8, 3), np.uint8))
    words = [str(path) if word == "B" else word for word in line.split()]
    assert "manifest.json: found a link to" in run(*words).stderr
    succeed(*words, "--allow-links", store)
    assert [file for file in Path().glob("out/**/*") if file.is_symlink()] == []
    assert "--out" not in words or list(Path().glob("out*"))


def to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "gone.onnx")


def to_a_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def to_itself(path: Path, outside: Path) -> None:
    path.symlink_to(path.name)


def to_a_device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def to_a_pipe(path: Path, outside: Path) -> None:
    os.mkfifo(outside / "pipe")
    path.symlink_to(outside / "pipe")


REFUSED = {
    to_nothing: "found a link to .*gone.onnx, where there is nothing, expected one to a file; copy .* \\(cp -rL\\)",
    to_a_folder: "found no regular file, expected one, or a link to one; rebuild",
    to_itself: "found a file that cannot be read \\(Too many levels of symbolic links\\)",
    to_a_device: "found no regular file",
    to_a_pipe: "found no regular file",
}


@pytest.mark.parametrize("spoil", REFUSED)
def test_what_is_refused_wherever_links_may_end(spoil: Callable[[Path, Path], None], tmp_path: Path) -> None:
    path, outside = plain(tmp_path / "toy"), tmp_path / "outside"
    outside.mkdir()
    (path / "denoiser.onnx").unlink()
    spoil(path / "denoiser.onnx", outside)
    with pytest.raises(BundleError, match=rf"denoiser\.onnx: {REFUSED[spoil]}"):
        Bundle.open(path, True)


def test_a_name_that_only_begins_as_the_bundles(tmp_path: Path) -> None:
    path, other = plain(tmp_path / "toy"), plain(tmp_path / "toy2")
    for name in ("denoiser.onnx", "manifest.json"):
        (path / name).unlink()
        (path / name).symlink_to(f"../toy2/{name}")
        with pytest.raises(BundleError, match=rf"{name}: found a link to {other}/{name}, expected one that ends in {path};"):
            Bundle.open(path)


def test_links_that_are_put_there_after_the_check_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = hugging_face(tmp_path)
    inner, walk, said = store / "inner", links._walk, "Not a directory|Too many levels of symbolic links"
    inner.mkdir()
    graph = path / "denoiser.onnx"
    (inner / "graph").write_bytes(graph.read_bytes())
    graph.unlink()
    graph.symlink_to(inner / "graph")
    opened = Bundle.open(path, store)

    def exchange(old: Path) -> None:
        old.rename(tmp_path / "outside")
        old.symlink_to(tmp_path / "outside")

    for old in (inner / "graph", inner):
        with monkeypatch.context() as patch:
            patch.setattr(links, "_walk", lambda *found, old=old: (exchange(old), walk(*found))[1])
            with pytest.raises(BundleError, match=rf"denoiser\.onnx: found a file that cannot be read \(({said})\)"):
                opened.read_graph("denoiser")
        old.unlink()
        (tmp_path / "outside").rename(old)
    assert opened.read_graph("denoiser") == (inner / "graph").read_bytes()


@pytest.mark.parametrize("wrong", ["", "nowhere", "manifest.json", 3, None, [""], [3]], ids=repr)
def test_what_is_no_store(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle())
    with pytest.raises(ArgumentError, match=r"allow_links: found .*, expected a folder where a bundle's links may end"):
        Bundle.open(bundle(), wrong)
