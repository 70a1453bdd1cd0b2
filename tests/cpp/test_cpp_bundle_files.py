"""Files of a bundle, links and folders: what the C++ library refuses, in Python's words, and what it opens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bundle.reader import Bundle
from engine.errors import BundleError
from tests import toy
from tests.cpp import capi
from tests.cpp.building import ROOT
from tests.cpp.capi import Failed, Library, open_c
from tests.cpp.refusals import NO_ENGINES, ask_both, ask_cpp, check_same_refusal
from tests.field import test_links as links
from tests.manifests import EXTRA_FILES, damages, edit
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE


NAMES = [
    "../toy.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "..", ".", "", "C:x.onnx", "a\0b", ".hidden", "manifest.json",
    "MANIFEST.JSON", "ä.onnx", "-o.onnx", "a" * 200, "a b.onnx", "a\n.onnx", 7, None,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_only_plain_file_names_are_taken(library: Library, plain: Path, name: object) -> None:
    edit(plain, "graphs.denoiser.file", name)
    text = check_same_refusal(library, plain)
    assert "graphs.denoiser.file: found " in text
    assert "expected a plain file name" in text or "expected another name" in text


@pytest.mark.parametrize("layout", [links.hugging_face, links.dvc])
def test_links_end_in_a_store_that_is_named(
    library: Library, copy: Path, tmp_path: Path, layout: Callable[..., tuple[Path, Path]]
) -> None:
    path, store = layout(tmp_path, source=copy)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BundleError) as ours:
        Bundle.open(path, other)
    with pytest.raises(Failed) as theirs:
        open_c(library, path, allow_links=[str(other)])
    assert str(theirs.value) == f"BUNDLE: {ours.value}"
    for allowed in ([str(store)], [str(other), os.path.relpath(store.parent)], ["/"]):
        with open_c(library, path, allow_links=allowed) as sampler:
            assert sampler.info.name == b"form1"


def test_links_inside_of_the_bundle_need_no_option(library: Library, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(links.config_map(tmp_path, source=copy))
    with open_c(library, tmp_path / "latest") as sampler:
        assert sampler.info.name == b"form1"


@pytest.mark.parametrize("spoil", links.REFUSED)
def test_what_is_refused_wherever_links_may_end(
    library: Library, plain: Path, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    graph, outside = plain / "denoiser.onnx", tmp_path / "a b\x1b[31m"
    outside.mkdir()
    graph.unlink()
    spoil(graph, outside)
    with pytest.raises(BundleError) as ours:
        Bundle.open(plain, True)
    with pytest.raises(Failed) as theirs:
        open_c(library, plain, allow_links=["/"])
    text, rebuild = str(ours.value), "rebuild the bundle with: "
    assert str(theirs.value).split(rebuild)[0] == f"BUNDLE: {text.split(rebuild)[0]}"
    assert text.isprintable()


def test_what_is_no_store(library: Library, plain: Path) -> None:
    for wrong in (["nowhere"], [""], [str(plain / "manifest.json")], [None]):
        with pytest.raises(Failed, match=r"ARGUMENT: allow_links: found .*, expected a folder where a bundle's links"):
            open_c(library, plain, allow_links=wrong)
    with pytest.raises(Failed, match=r"allow_links_count is 0; expected at least 1"):
        open_c(library, plain, allow_links=[])


def test_pipes_and_folders_are_refused(library: Library, plain: Path) -> None:
    graph = plain / "denoiser.onnx"
    graph.unlink()
    assert "denoiser.onnx: found a file that cannot be read (No such file" in check_same_refusal(library, plain)
    os.mkfifo(graph)
    assert "denoiser.onnx: found no regular file" in check_same_refusal(library, plain)
    graph.unlink()
    graph.mkdir()
    assert "denoiser.onnx: found no regular file" in check_same_refusal(library, plain)


def test_wrong_places_say_what_to_give(library: Library, plain: Path, tmp_path: Path) -> None:
    text = check_same_refusal(library, plain / "manifest.json")
    assert f"found a file, expected the folder of a bundle; give the folder: {plain}" in text
    assert "found nothing that can be read (No such file or directory)" in check_same_refusal(library, tmp_path / "none")
    assert "found a folder without manifest.json, expected a bundle" in check_same_refusal(library, tmp_path)


def test_a_damaged_file_is_refused(library: Library, full: Path) -> None:
    for name in ("denoiser.onnx", *EXTRA_FILES):
        data = (full / name).read_bytes()
        for bad in list(damages(data).values())[::4]:
            (full / name).write_bytes(bad)
            text = check_same_refusal(library, full)
            kind = "SHA-256" if len(bad) == len(data) else f"{len(bad)} bytes, expected {len(data)}"
            assert f"{name}: found {kind}" in text
        (full / name).write_bytes(data)


# ---- whole bundles with native engines ---------------------------------------------------------------


@pytest.fixture(scope="module")
def native(native_bundle: Callable[..., Path]) -> Path:
    return native_bundle("form1")


@pytest.fixture
def copy(native: Path, tmp_path: Path) -> Path:
    return shutil.copytree(native, tmp_path / "copy.bundle")


def test_a_whole_bundle_opens_by_any_name(library: Library, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(copy)
    (copy / ".DS_Store").write_bytes(b"x")
    for path in (str(copy), f"{copy}/", f"{copy}//./", str(tmp_path / "latest"), os.path.relpath(copy)):
        with open_c(library, Path(path) if path == str(copy) else path) as sampler:  # type: ignore[arg-type]
            assert sampler.info.name == b"form1"


def test_the_old_bundle_aside_is_opened_while_a_writer_is_between_its_renames(library: Library, copy: Path) -> None:
    aside = copy.parent / f".{copy.name}.{'0' * 15}a.aside"
    for wrong in (f".{copy.name}.{'0' * 15}.aside", f".{copy.name}.{'0' * 15}g.aside", f"{copy.name}.{'0' * 16}.aside"):
        copy.rename(copy.parent / wrong)
        assert "found nothing that can be read" in check_same_refusal(library, copy)
        (copy.parent / wrong).rename(copy)
    copy.rename(aside)
    assert ask_both(library, copy)[1].status == capi.OK


# Writes a bundle again and again, by turns under two names and with another graph, until its input ends.
WRITER = """
import json, os, select, sys
from engine.bundle import writer as bundle_writer
os.fsync = lambda descriptor: None
raw, exchange = json.loads(sys.argv[2]), sys.argv[3] == "True"
if not exchange:
    bundle_writer._exchange = lambda a, b: False
files = {f"{name}.onnx": name.encode() for name in raw["graphs"]}
written = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    name = ("ann", "bob")[written % 2]
    bundle_writer.write_bundle(sys.argv[1], {**raw, "name": name}, {**files, "denoiser.onnx": name.encode() * 100_000})
    written += 1
    print(written, flush=True)
"""


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_bundle_that_is_replaced_meanwhile_is_never_a_mixture(library: Library, plain: Path, exchange: bool) -> None:
    raw = toy.manifest_of(toy.models_of(1, 8, 4, False), 1, 8, 4, False, ["native"])
    command = [sys.executable, "-c", WRITER, str(plain), json.dumps(raw), str(exchange)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "1\n"
        answers = [ask_cpp(library, plain).text for _ in range(300)]
        writer.stdin.close()
        assert int(writer.stdout.read().split()[-1]) > 10
    assert writer.returncode == 0
    assert [text for text in answers if NO_ENGINES not in text] == []
