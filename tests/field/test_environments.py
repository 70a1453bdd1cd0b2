"""Where commands run: without a home folder, as a user without a name, from an installation that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.backends import available
from tests.field.test_processes import forked
from tests.native_models import NEEDS_NATIVE
from tests.samplers import bundle, open_toy
from tests.unit.test_cli import ROOT, run, succeed

NOBODY = 54321  # a user id that no machine has a name for
# Python's own way to a home folder, as it goes for such a user.
NAMELESS = """
import pwd, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from engine.cli.main import main
main()
"""


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Path]:
    """The package in a folder that cannot be written: not even by root, as the names of compiled files are taken."""
    shutil.copytree(ROOT / "engine", tmp_path / "lib" / "engine", ignore=shutil.ignore_patterns("__pycache__", "_sources"))
    folders = [path for path in (tmp_path / "lib").rglob("*") if path.is_dir()]
    for folder in folders:
        (folder / "__pycache__").touch()
        folder.chmod(stat.S_IREAD | stat.S_IEXEC)
    yield tmp_path / "lib"
    for folder in folders:
        folder.chmod(stat.S_IRWXU)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
@pytest.mark.parametrize(("backend", "home"), [("openvino", False), ("onnxruntime", True)])
def test_sampling_needs_no_home_and_leaves_nothing_in_one(
    backend: str, home: bool, installation: Path, tmp_path: Path
) -> None:
    if not available()[backend][0]:
        pytest.skip(f"{backend} is {available()[backend][1]}")
    (tmp_path / "home").mkdir()
    ours = ("HOME", "XDG_", "ORT_", "PYTHON", "OMP_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = {**inherited, "PYTHONPATH": str(installation), "OMP_NUM_THREADS": "7"}
    environment |= {"HOME": str(tmp_path / "home")} if home else {}
    one = min(os.sched_getaffinity(0))
    words = ["sample", bundle(), "--seed", "5", "--backend", backend, "--precision", "f32", "--out", "a.npy", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS, *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {one}), timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["threads"] == 1, "affinity counts, OMP_NUM_THREADS does not"
    with open_toy(backend=backend) as sampler:
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), sampler.sample(1, seed=5).images)
    assert list((tmp_path / "home").iterdir()) == []
    assert {path.stat().st_size for path in installation.rglob("__pycache__")} == {0}


@NEEDS_NATIVE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_name(native_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = shutil.copytree(native_bundle("form1"), folder / "a.bundle")
        words = ["--seed", "7", "--steps", "2", "--backend", "native", "--threads", "2"]
        succeed("sample", path, *words, "--out", folder / "root.npy")
        succeed("info", path)
        (folder / "out").mkdir()
        os.chown(folder / "out", NOBODY, NOBODY)
        folder.chmod(0o755)
        monkeypatch.delenv("HOME")

        def as_nobody() -> str:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            done = [run("info", path), run("sample", path, *words, "--out", folder / "out" / "a.npy")]
            refused = run("sample", path, *words, "--out", folder / "b.npy")
            return f"{[one.exit_code for one in done]} {refused.exit_code} {refused.stderr}"

        assert forked(as_nobody).startswith(f"[0, 0] 1 Error: Cannot write {folder}/b.npy: Permission denied.")
        np.testing.assert_array_equal(np.load(folder / "out" / "a.npy"), np.load(folder / "root.npy"))
