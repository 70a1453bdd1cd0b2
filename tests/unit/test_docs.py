"""The documents: links lead somewhere, quoted errors exist, commands name files that are there, the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "benchmarks", "embed", "kernels", "examples", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
SOURCES = [
    path
    for name in ("engine", "export", "kernels", "embed")
    for path in (ROOT / name).rglob("*")
    if path.suffix in (".py", ".cmake")
]


def source_text() -> str:
    """All sources as one text in which adjacent string literals are one."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    return re.sub(r'"\s*\n\s*f?"', "", text).replace("{MANIFEST_FILE}", "manifest.json")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(((?!https?:|#)[^)#\s]+)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_scripts_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"python3? ((?:export|benchmarks|examples|kernels|docs)/[\w/.]+)", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_error_of_the_troubleshooting_page_exists() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^#### `(.*)`$", page, re.MULTILINE)
    assert len(quoted) >= 12
    text = source_text()
    assert [piece for piece in quoted if piece not in text] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
