"""Does README tell the truth? Its commands exist, its Python runs, and its command lines are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engine.cli.main import cli
from tests import toy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUNDLE = "out/avatars.bundle"


def blocks(language: str = "") -> list[str]:
    """The fenced blocks of README in one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.build_bundle(tmp_path_factory.mktemp("readme") / "toy.bundle", formulation=1, image_size=8, z_dim=4)


def test_the_first_block_is_the_two_commands_and_make_has_them() -> None:
    commands = [line.split("#")[0].strip() for line in blocks()[0].strip().splitlines()]
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "test-cpp", "test-triton", "bench", "bench-serving", "quality"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_continuous_integration_runs_the_test_commands() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().splitlines()
    assert lines[-3:] == ["make test", "make test-cpp", "make test-triton"]


def test_python_runs(bundle: Path) -> None:
    code = "\n".join(blocks("python"))
    assert code.count("sampler.") >= 6
    images = np.full((2, 8, 8, 3), 128, np.uint8)
    names: dict[str, object] = {"images": images, "blurred": images}
    exec(compile(code.replace(BUNDLE, str(bundle)), "README.md", "exec"), names)
    assert names["batch"].images.shape == (16, 8, 8, 3)


def test_command_lines_are_accepted(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of Ray's workers, which start in a folder of their own
    lines = [line for block in blocks() for line in block.splitlines() if line.startswith("diffusevae ")]
    assert any(BUNDLE in line for line in lines)
    for line in lines:
        if BUNDLE not in line:  # the line that only names further commands
            assert set(re.findall(r"[a-z]+", line)) - {"diffusevae"} <= set(cli.commands), line
            continue
        few = re.split(r"\s{3,}", line)[0].replace(BUNDLE, str(bundle)).replace("--n 50000", "--n 50 --shard-size 25")
        words = shlex.split(few)[1:]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, (line, result.output)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists(), target
