"""README and docs as they are followed: the commands exist, the Python runs, the command lines are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from engine.bundle.directions import Directions
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_directions
from engine.cli.elsewhere import Elsewhere
from engine.cli.main import cli
from tests import toy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUNDLE = "out/avatars.bundle"
BUILDERS = ("build", "fit-prior")  # their lines are parsed here and run in test_package.py and tests/export
GUIDES = ("docs/building.md", "docs/editing.md", "docs/install.md")


def blocks(language: str = "", text: str = README) -> list[str]:
    """The fenced blocks of a document in one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def program_lines(text: str) -> list[list[str]]:
    """The words of each line of the program in a document's blocks, without the remark behind it."""
    lines = [line for block in blocks(text=text) for line in block.splitlines() if line.startswith("diffusevae ")]
    return [shlex.split(re.split(r"\s{3,}|\s#\s", line)[0])[1:] for line in lines]


def check_words(words: list[str]) -> None:
    """Parse a line as its command does, without running it; click raises where it does not fit."""
    command = cli.commands[words[0]]
    found = command.load() if isinstance(command, Elsewhere) else command
    with found.make_context(words[0], words[1:], parent=click.Context(cli, **cli.context_settings)):
        pass


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = toy.build_bundle(tmp_path_factory.mktemp("readme") / "toy.bundle", formulation=1, image_size=8, z_dim=4)
    write_directions(Bundle.open(path), Directions(("glasses", "beard"), np.ones((2, 4), np.float32)), {})
    return path


def test_the_first_block_is_the_two_commands_and_make_has_them() -> None:
    commands = [line.split("#")[0].strip() for line in blocks()[0].strip().splitlines()]
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "test-cpp", "test-triton", "docs", "bench", "bench-serving", "quality", "gpu-check"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_continuous_integration_runs_the_test_commands() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().splitlines()
    assert lines[-3:] == ["make test", "make test-cpp", "make test-triton"]
    assert "- run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_python_runs(bundle: Path) -> None:
    code = "\n".join(blocks("python"))
    assert code.count("sampler.") >= 6
    images = np.full((2, 8, 8, 3), 128, np.uint8)
    names: dict[str, object] = {"images": images, "blurred": images, "masks": images[..., 0]}
    exec(compile(code.replace(BUNDLE, str(bundle)), "README.md", "exec"), names)
    assert names["batch"].images.shape == (16, 8, 8, 3)


def test_command_lines_are_accepted(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of Ray's workers, which start in a folder of their own
    lines = program_lines(README)
    assert {words[0] for words in lines} >= {"sample", "info", "verify", "build", "triton-repo"}
    for words in lines:
        if words[0] in BUILDERS:
            check_words(words)
            continue
        assert BUNDLE in words, words
        few = " ".join(words).replace(BUNDLE, str(bundle)).replace("--n 50000", "--n 50 --shard-size 25")
        result = CliRunner().invoke(cli, few.split())
        assert result.exit_code == 0, (words, result.output)


@pytest.mark.parametrize("guide", GUIDES)
def test_the_guides_command_lines_fit(guide: str) -> None:
    lines = program_lines((ROOT / guide).read_text(encoding="utf-8"))
    assert lines
    for words in lines:
        check_words(words)
