"""Two commits compared: each side runs its own checkout's engine, images come first, and a slower commit fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from benchmarks.latency import compare

SCHEMA = Path(compare.__file__).parents[1] / "schema" / "compare.schema.json"
# What both commits' engines have in common, as far as it is called.
ENGINE = """
import time
from types import SimpleNamespace
import numpy as np
from engine import kernels
__version__ = "{version}"

class Sampler:
    def __init__(self, path, backend="auto", precision="auto", threads=None):
        if "missing" in str(path):
            raise ValueError("no such bundle")
        self.backend, self.precision, self.threads = backend, precision, threads

    def sample(self, n=None, *, steps=None, seed=None, spacing=None):
        time.sleep({seconds} * steps)
        return SimpleNamespace(images=np.full((n, 2, 2, 3), {level}, np.uint8))

    def close(self):
        pass
"""
KERNELS = "def implementation():\n    return {'name': 'native', 'isa': 'avx2', 'path': '/x'}\n"


def checkout(folder: Path, version: str, seconds: float, level: int = 7) -> Path:
    package = folder / "engine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(ENGINE.format(version=version, seconds=seconds, level=level))
    (package / "kernels.py").write_text(KERNELS)
    return folder


def run(tmp_path: Path, *more: str, bundle: str = "a.bundle") -> Any:
    arguments = [str(tmp_path / "base"), str(tmp_path / "new"), "--bundles", "b.bundle", bundle, "--threads", "1"]
    small = ["--steps", "2", "--rounds", "2", "--repeats", "2", "--out", str(tmp_path / "out.json")]
    return CliRunner().invoke(compare.main, [*arguments, *small, *more])


def test_each_side_runs_its_own_engine_and_the_ratio_is_base_over_new(tmp_path: Path) -> None:
    checkout(tmp_path / "base", "0.1.0", 0.008)
    checkout(tmp_path / "new", "0.2.0", 0.002)
    done = run(tmp_path, "--batch", "1", "--batch", "3")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out.json").read_text())
    jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    assert [result["checkouts"][name]["version"] for name in compare.SIDES] == ["0.1.0", "0.2.0"]
    assert result["checkouts"]["new"]["kernels"] == {"name": "native", "isa": "avx2"}
    (model,) = result["models"]
    assert (model["backend"], model["precision"], model["threads"]) == ("native", "bf16", 1)
    assert [row["batch"] for row in model["results"]] == [1, 3]
    for row in model["results"]:
        assert row["ratio"] > 2
        assert {figures["n"] for figures in row["total_ms"].values()} == {4}
        assert row["mean_difference"] == 0
    assert "a, native bf16" in done.output


def test_a_slower_commit_fails_after_the_result_is_written(tmp_path: Path) -> None:
    checkout(tmp_path / "base", "0.1.0", 0.002)
    checkout(tmp_path / "new", "0.2.0", 0.006)
    done = run(tmp_path, "--batch", "1")
    assert done.exit_code == 1
    assert "found 1 rows in which the new commit is slower than 0.98 times the base" in done.output
    assert (tmp_path / "out.json").exists()


def test_other_images_are_refused_before_anything_is_timed(tmp_path: Path) -> None:
    checkout(tmp_path / "base", "0.1.0", 0.0)
    checkout(tmp_path / "new", "0.2.0", 0.0, level=9)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "found images that differ by 2 of 255 on average, expected at most 0.5" in done.output
    assert run(tmp_path, "--tolerance", "3", "--batch", "1", "--least", "0").exit_code == 0


def test_an_error_of_a_side_is_told_with_its_checkout(tmp_path: Path) -> None:
    checkout(tmp_path / "base", "0.1.0", 0.0)
    checkout(tmp_path / "new", "0.2.0", 0.0)
    done = run(tmp_path, bundle="missing.bundle")
    assert done.exit_code == 1
    assert f"new, {tmp_path / 'new'}: found ValueError: no such bundle" in done.output.replace("\n", "")
    assert "Traceback" not in done.output


def test_a_checkout_without_an_engine_of_its_own_is_refused(tmp_path: Path) -> None:
    """Else the installed engine would be timed against itself."""
    checkout(tmp_path / "base", "0.1.0", 0.0)
    (tmp_path / "new").mkdir()
    with pytest.raises(compare.BenchmarkError, match=rf"found the engine in .*, expected that of {tmp_path}"):
        compare.measure({name: tmp_path / name for name in compare.SIDES}, [], _plan(), lambda _: None)


def _plan() -> compare.Plan:
    return compare.Plan("native", "bf16", 1, (1,), 2, 1, 1)
