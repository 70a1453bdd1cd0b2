"""A bundle on the disk is the old one or the new one, whoever is killed; nothing else is ever replaced."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from engine.bundle import writer as bundle_writer
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.errors import BundleError
from tests import toy

FILES: dict[str, bytes | Path] = {"denoiser.onnx": b"d" * 5000, "timestep_table.onnx": b"t" * 100}


def manifest(name: str = "toy") -> dict[str, Any]:
    """An unconditional manifest without sizes and hashes; at this level a graph is any bytes."""
    models = toy.models_of(None, 8, 4, False)
    return {**toy.manifest_of(models, None, 8, 4, False, ["onnxruntime"]), "name": name}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_sizes_and_hashes_are_filled_in_and_paths_are_copied(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    given = manifest()
    write_bundle(tmp_path / "new" / "a.bundle", given, FILES | {"denoiser.onnx": tmp_path / "big"})
    bundle = Bundle.open(tmp_path / "new" / "a.bundle")
    assert bundle.read_graph("denoiser") == (tmp_path / "big").read_bytes()
    assert bundle.manifest.graphs["timestep_table"].size == 100
    assert "size" not in given["graphs"]["denoiser"], "the caller's manifest must stay as it was"
    assert os.listdir(tmp_path / "new") == ["a.bundle"], "nothing may be left beside the bundle"


def test_an_old_bundle_is_replaced_also_through_a_link(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", manifest("old"), FILES)
    write_bundle(tmp_path / "a", manifest("new"), FILES)
    assert Bundle.open(tmp_path / "a").manifest.name == "new"
    (tmp_path / "link").symlink_to("a")
    write_bundle(tmp_path / "link", manifest("third"), FILES)
    assert (tmp_path / "link").is_symlink()
    assert Bundle.open(tmp_path / "a").manifest.name == "third"
    assert sorted(os.listdir(tmp_path)) == ["a", "link"]


@pytest.mark.parametrize("damage", [b'{"format": "diffusevae-bundle", "gra', b'{"format": "diffusevae-bundle"}'])
def test_a_damaged_or_foreign_version_can_be_replaced(tmp_path: Path, damage: bytes) -> None:
    write_bundle(tmp_path / "a", manifest("old"), FILES)
    (tmp_path / "a" / "manifest.json").write_bytes(damage)
    write_bundle(tmp_path / "a", manifest("new"), FILES)
    assert Bundle.open(tmp_path / "a").manifest.name == "new"


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    other, file, web, mixed = (tmp_path / name for name in ("other", "file", "web", "mixed"))
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    file.write_text("text")
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "a browser extension"}')
    write_bundle(mixed, manifest(), FILES)
    (mixed / "notes.txt").write_text("mine")
    before = content(tmp_path)
    for path, message in [
        (other, "found a folder that is not a bundle"),
        (file, "found a file, expected a folder or nothing"),
        (web, "found a folder that is not a bundle"),
        (mixed, "found 'notes.txt' beside the files of the old bundle"),
    ]:
        with pytest.raises(BundleError, match=rf"{message}.*(choose another --out|move it away)"):
            write_bundle(path, manifest(), FILES)
    assert content(tmp_path) == before
    (mixed / "notes.txt").unlink()
    (mixed / "sub").mkdir()
    with pytest.raises(BundleError, match=r"found 'sub' beside"):
        write_bundle(mixed, manifest(), FILES)


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_bundle(tmp_path / "a", manifest(), FILES)
    assert Bundle.open(tmp_path / "a").manifest.name == "toy"


def wrong_manifests() -> list[tuple[dict[str, Any], dict[str, bytes | Path], str]]:
    size, digest, nan, odd = manifest(), manifest(), manifest(), manifest()
    size["graphs"]["denoiser"]["size"] = 7
    digest["graphs"]["denoiser"]["sha256"] = "0" * 64
    nan["schedule"]["beta_1"] = float("nan")
    odd["built_with"]["path"] = Path("x")
    return [
        (size, FILES, "found size 5000, expected 7 as the manifest says"),
        (digest, FILES, "found sha256 [0-9a-f]{64}, expected '0{64}'"),
        (nan, FILES, "found a manifest that JSON cannot hold"),
        (odd, FILES, "found a manifest that JSON cannot hold"),
        ({**manifest(), "variance": "none"}, FILES, "variance: found 'none'"),
        ({**manifest(), "graphs": 3}, FILES, "graphs: found 3"),
        (manifest(), {**FILES, "more.bin": b""}, r"found the files \[.*more\.bin.*\], expected exactly those"),
        (manifest(), {"denoiser.onnx": b""}, "expected exactly those that the manifest names"),
        (manifest(), {**FILES, "denoiser.onnx": b""}, r"graphs\.denoiser\.size: found 0"),
        (manifest(), {**FILES, "denoiser.onnx": Path("absent")}, "absent: found a file that cannot be read"),
    ]


@pytest.mark.parametrize("case", range(len(wrong_manifests())))
def test_a_wrong_manifest_leaves_the_old_bundle(tmp_path: Path, case: int) -> None:
    wrong, files, message = wrong_manifests()[case]
    write_bundle(tmp_path / "a", manifest("old"), FILES)
    before = content(tmp_path)
    with pytest.raises(BundleError, match=message):
        write_bundle(tmp_path / "a", wrong, files)
    assert content(tmp_path) == before


@pytest.mark.parametrize("failing", range(6))
def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The disk is full at the n-th flush: graph, graph, manifest, folder; after the exchange, parent folder."""
    write_bundle(tmp_path / "a", manifest("old"), FILES)
    calls, flush = [0], os.fsync

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == failing + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    if failing < 5:
        with pytest.raises(BundleError, match=r"cannot be written .No space left on device") as caught:
            write_bundle(tmp_path / "a", manifest("new"), FILES)
        assert isinstance(caught.value.__cause__, OSError)
    else:
        write_bundle(tmp_path / "a", manifest("new"), FILES)
    assert Bundle.open(tmp_path / "a").manifest.name == ("old" if failing < 4 else "new")
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_size_limit_leaves_the_old_bundle(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="this system has no resource limits")
    write_bundle(tmp_path / "a", manifest("old"), FILES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(BundleError, match=r"cannot be written .File too large"):
            write_bundle(tmp_path / "a", manifest("new"), FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Bundle.open(tmp_path / "a").manifest.name == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot be written .*expected a folder with room and write permission"):
        write_bundle(tmp_path / "file" / "a", manifest(), FILES)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    write_bundle(tmp_path / "a", manifest("old"), FILES)
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(BundleError, match=r"Read-only file system"):
        write_bundle(tmp_path / "a", manifest("new"), FILES)
    assert Bundle.open(tmp_path / "a").manifest.name == "old"


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(bundle_writer, "_exchange", lambda a, b: False)
    write_bundle(tmp_path / "a", manifest("old"), FILES)
    dead = [tmp_path / f".a.{'0' * 16}.writing", tmp_path / f".a.{'1' * 16}.aside"]
    others = [tmp_path / f".a.b.{'0' * 16}.writing", tmp_path / ".a.notes.writing"]
    for folder in (*dead, *others):
        folder.mkdir()
        (folder / "x").write_bytes(b"")
    with bundle_writer._hidden_folder(tmp_path / "a") as living:
        write_bundle(tmp_path / "a", manifest("new"), FILES)
        assert living.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a", *others])
    assert Bundle.open(tmp_path / "a").manifest.name == "new"


def test_a_bundle_put_aside_by_a_dead_writer_is_found(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", manifest("old"), FILES)
    (tmp_path / "a").rename(tmp_path / f".a.{'f' * 16}.aside")
    assert Bundle.open(tmp_path / "a").manifest.name == "old"
    with pytest.raises(BundleError, match=r"variance"):
        write_bundle(tmp_path / "a", {**manifest(), "variance": "none"}, FILES)
    assert Bundle.open(tmp_path / "a").manifest.name == "old", "a failed build must not remove the only copy"
    write_bundle(tmp_path / "a", manifest("new"), FILES)
    assert Bundle.open(tmp_path / "a").manifest.name == "new"
    assert os.listdir(tmp_path) == ["a"]


KILLER = textwrap.dedent(
    """
    import json, os, pathlib, random, signal, sys, time
    from engine.bundle import writer as bundle_writer
    from engine.bundle.reader import Bundle

    target, raw, mode, exchange = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"
    files = {"denoiser.onnx": b"d" * 2_000_000, "timestep_table.onnx": b"t"}
    os.fsync = lambda descriptor: None  # slow, and of no account when the machine lives on
    if not exchange:
        bundle_writer._exchange = lambda a, b: False
    WATCHED = ("open", "os.", "fcntl.", "shutil.", "ctypes.")

    def child(point):
        count = [0]
        def hook(event, _):
            if event.startswith(WATCHED):
                count[0] += 1
                if count[0] == point:
                    os.kill(os.getpid(), signal.SIGKILL)
        if mode == "event":
            sys.addaudithook(hook)
        bundle_writer.write_bundle(target, {**raw, "name": "new"}, files)

    def killed_at(point):
        pid = os.fork()
        if pid == 0:
            try:
                child(point)
            finally:
                os._exit(0)
        if mode == "time":
            time.sleep(random.Random(point).random() * 0.015)
            os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    seen, point = {"old": 0, "new": 0}, 0
    while True:
        point += 1
        bundle_writer.write_bundle(target, {**raw, "name": "old"}, files)
        killed = killed_at(point)
        seen[Bundle.open(target).manifest.name] += 1
        if (mode == "event" and not killed) or (mode == "time" and point == 40):
            break
    bundle_writer.write_bundle(target, {**raw, "name": "last"}, files)
    seen |= {"points": point, "left": os.listdir(target.parent), "last": Bundle.open(target).manifest.name}
    print(json.dumps(seen))
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("mode", ["event", "time"])
def test_kill_9_leaves_the_old_or_the_new(tmp_path: Path, mode: str, exchange: bool) -> None:
    """Killed before each of its system calls in turn ("event"), and at random moments ("time")."""
    command = [sys.executable, "-c", KILLER, str(tmp_path / "a"), json.dumps(manifest()), mode, str(exchange)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["last"] == "last"
    assert seen["left"] == ["a"], "stale folders must be cleaned by the next writer"
    assert seen["old"] + seen["new"] == seen["points"]
    if mode == "event":
        assert min(seen["old"] - 10, seen["new"] - 3) >= 0, f"kills must fall on both sides of the exchange: {seen}"


RACERS = textwrap.dedent(
    """
    import json, os, pathlib, sys
    from engine.bundle import writer as bundle_writer
    from engine.bundle.reader import Bundle
    from engine.errors import BundleError

    target, raw, exchange = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == "True"
    os.fsync = lambda descriptor: None
    if not exchange:
        bundle_writer._exchange = lambda a, b: False

    def write(name, times):
        for _ in range(times):
            files = {"denoiser.onnx": name.encode() * 1000, "timestep_table.onnx": name.encode()}
            bundle_writer.write_bundle(target, {**raw, "name": name}, files)

    write("first", 1)
    pids = []
    for name in ("ann", "bob", "eve"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                write(name, 15)
                code = 0
            except BundleError as error:
                print(error, file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        pids.append(pid)
    opened, torn, codes = 0, 0, []
    while len(codes) < len(pids):
        bundle = Bundle.open(target)
        opened += 1
        try:
            data = bundle.read_graph("denoiser")
            torn += data != bundle.manifest.name.encode() * 1000
        except BundleError:
            pass  # replaced between opening and reading: refused
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes.append(os.waitstatus_to_exitcode(status))
    print(json.dumps({"opened": opened, "torn": torn, "codes": codes, "last": Bundle.open(target).manifest.name,
                      "left": os.listdir(target.parent)}))
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_builders_at_once_never_mix(tmp_path: Path, exchange: bool) -> None:
    command = [sys.executable, "-c", RACERS, str(tmp_path / "a"), json.dumps(manifest()), str(exchange)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["codes"], seen["torn"], seen["left"]) == ([0, 0, 0], 0, ["a"]), (seen, done.stderr)
    assert seen["opened"] > 10, seen
    assert seen["last"] in ("ann", "bob", "eve"), seen
