"""The repository's contents: tracked files are text, small, or of a known kind; shipped weights are listed one by one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGEST = 400_000  # bytes
SHIPPED = {
    "examples/avatars/avatars.ckpt": 16_000_000,
    "examples/avatars/avatars-baseline.ckpt": 11_000_000,
    "examples/avatars/avatars-classifier.pt": 5_600_000,
    "examples/avatars-latent/autoencoder.safetensors": 6_000_000,
    "examples/avatars-latent/avatars-latent.ckpt": 22_000_000,
    "docs/avatars-latent.png": 800_000,
}
BINARY = {".png", ".npz", ".safetensors", ".ckpt", ".pt"}
IGNORED = ("a.whl", "dist.tar.gz", "a.zip", "b.7z", "deep/c.whl", "m.bundle/manifest.json", ".venv-any/x", "k.o", "n.so")


def tracked() -> list[str]:
    """The files that git has, and that are still there."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout: nothing is tracked")
    return [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def is_text(path: Path) -> bool:
    """Whether all of it is UTF-8 without NUL bytes."""
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def test_nothing_large_is_tracked_but_the_shipped_weights() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in tracked()}
    too_large = {name: size for name, size in sizes.items() if size > SHIPPED.get(name, LARGEST)}
    assert too_large == {}
    assert set(SHIPPED) <= set(sizes)


def test_everything_tracked_is_text_or_of_a_known_kind() -> None:
    unknown = [name for name in tracked() if Path(name).suffix not in BINARY and not is_text(ROOT / name)]
    assert unknown == []


def test_nothing_tracked_is_ignored() -> None:
    tracked()  # skips where there is no git
    both = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True).stdout
    assert both.decode().split() == []


@pytest.mark.parametrize("name", IGNORED)
def test_git_ignores_built_things(name: str) -> None:
    tracked()
    asked = subprocess.run(["git", "check-ignore", "-q", "--no-index", name], cwd=ROOT, check=False)
    assert asked.returncode == 0, name
