"""The remedies in error messages: the spelling of a command from a checkout and from a wheel, quoted for a shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.commands import SCRIPTS, command, install_extra, is_checkout, reinstall

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment on the PATH with `python` and `diffusevae` in it, which is the one that runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "diffusevae"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_checkout_has_the_scripts(name: str, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert is_checkout()
    assert command(name, "CKPT", "--out", "PATH") == f"python {SCRIPTS[name]} CKPT --out PATH"
    assert (ROOT / SCRIPTS[name]).is_file()


def test_from_another_folder_the_script_is_named_in_full(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(programs)
    assert shlex.split(command("build", "CKPT")) == ["python", str(ROOT / "export" / "build_engines.py"), "CKPT"]


def test_a_wheel_has_the_program(programs: Path) -> None:
    assert command("build", "CKPT", root=programs) == "diffusevae build CKPT"
    assert command("fit-prior", "BUNDLE", root=programs) == "diffusevae fit-prior BUNDLE"
    assert command("verify", Path("out/a.bundle")) == "diffusevae verify out/a.bundle"


@pytest.mark.usefixtures("no_programs")
def test_without_the_program_on_the_path_the_interpreter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command("info", "a.bundle", root=tmp_path))
    assert words == [sys.executable, "-m", "engine", "info", "a.bundle"]


@pytest.mark.usefixtures("no_programs")
def test_what_is_printed_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    missing = tmp_path / "a folder" / "it's missing.bundle"
    line = command("info", missing)
    run = subprocess.run(line, shell=True, text=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    assert run.returncode == 1, run.stderr
    assert str(missing) in run.stderr


def test_an_extra_is_quoted() -> None:
    assert install_extra("export") == "pip install 'diffusevae-engine[export]'"


def test_a_checkout_is_installed_again_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert reinstall() == "pip install -e ."
