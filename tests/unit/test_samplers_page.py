"""The page of accelerated samplers: every command in its tables runs, and every method that there is has one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from engine.cli.main import cli
from engine.solver.table import METHODS
from engine.solver.timesteps import SPACINGS
from tests import regularised_toy, toy
from tests.samplers import ANY_BACKEND
from tests.toy_family import build_family

PAGE = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and " --- " not in line]
COMMANDS = sorted({command for row in ROWS for command in re.findall(r"`((?:sample|refine|inpaint) B [^`]*)`", row[-1])})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle with an image to start from and nulls, one that learned its variance, one with a regulariser, a picture and a
    mask."""
    folder = tmp_path_factory.mktemp("page")
    regularised_toy.build(folder / "regularised")
    toy.build_bundle(folder / "B")
    build_family(folder / "learned", learned=True)
    for name, mode in (("photo.png", "RGB"), ("mask.png", "L")):
        Image.fromarray(np.full((8, 8, 3) if mode == "RGB" else (8, 8), 200, np.uint8)).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("place")
def test_the_command_runs(command: str) -> None:
    words = [*shlex.split(command), "--backend", ANY_BACKEND, "--threads", "1", "--out", "out.npy"]
    if "learned_range" in words:
        words = ["learned" if word == "B" else word for word in words] + ["--input", "label=1"]
    if "--regularise" in words:
        words = ["regularised" if word == "B" else word for word in words]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert np.load("out.npy").dtype == np.uint8


def test_every_row_says_how_it_stands() -> None:
    bodies = [row for row in ROWS if row[0] != "method"]
    assert len(bodies) >= 35
    assert len(COMMANDS) >= 18
    assert all(len(row) == 3 for row in bodies), [row for row in bodies if len(row) != 3]
    words = ("rows", "trained", "not served", "it is DDIM", "`ipndm`'s")
    assert [row[0] for row in bodies if not any(word in row[1] for word in words)] == []
    assert [row[0] for row in bodies if row[1].startswith("rows") and row[2] == "–"] == [], "what runs has a command"


def test_every_method_is_on_the_page() -> None:
    assert [name for name in METHODS if not any(f"--method {name} " in f"{command} " for command in COMMANDS)] == []
    named = {word for command in COMMANDS for word in re.findall(r"--spacing (\w+)", command)}
    assert named <= set(SPACINGS)
