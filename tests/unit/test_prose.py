"""The prose of the sources: a file's first sentence names what is in it, and some words are left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "export", "benchmarks", "examples", "kernels", "embed", "docs")
SUFFIXES = (".h", ".hpp", ".c", ".cpp", ".cu")
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
COMPILED = sorted(
    path for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES
)
# Words that read like a translation; sentences get better without them.
AVOIDED = re.compile(r"\b(nobody|somebody|anybody|everybody|what is told)\b", re.IGNORECASE)


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark that ends a sentence."""
    return re.split(r"(?<=[.?!])(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


def first_comment(text: str) -> str | None:
    """The comment that a C or C++ file begins with."""
    found = re.match(r"\s*(?:/\*+(.*?)\*/|((?://[^\n]*\n\s*)+))", text, re.DOTALL)
    return found and (found[1] or re.sub(r"^\s*//+ ?", "", found[2], flags=re.MULTILINE))


@pytest.mark.parametrize("path", [*PYTHON, *TESTS], ids=named([*PYTHON, *TESTS]))
def test_a_module_names_what_it_holds(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree)
    assert docstring or not tree.body, "the module has no docstring"
    assert not first_sentence(docstring or "").endswith("?"), first_sentence(docstring or "")


@pytest.mark.parametrize("path", COMPILED, ids=named(COMPILED))
def test_a_compiled_file_names_what_it_holds(path: Path) -> None:
    comment = first_comment(path.read_text(encoding="utf-8"))
    if comment is None:
        assert path.with_suffix(".h").is_file(), "neither the file nor a header of its name begins with a comment"
        return
    assert not first_sentence(comment).endswith("?"), first_sentence(comment)


@pytest.mark.parametrize("path", [*PYTHON, *COMPILED], ids=named([*PYTHON, *COMPILED]))
def test_words_that_are_left_out(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if AVOIDED.search(line)] == []
