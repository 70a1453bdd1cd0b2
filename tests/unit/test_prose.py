"""The prose of the sources: module docstrings name what is there, every package has one, and some words are left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = sorted(path for folder in ("engine", "export", "benchmarks", "examples", "kernels") for path in (ROOT / folder).rglob("*.py"))
COMPILED = sorted(
    path for folder in ("kernels", "embed") for path in (ROOT / folder).rglob("*") if path.suffix in (".h", ".hpp", ".c", ".cpp", ".cu")
)
# Words that read like a translation; the sentences get better without them.
AVOIDED = re.compile(r"\b(nobody|somebody|anybody|everybody|what is told)\b", re.IGNORECASE)


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark that ends a sentence."""
    return re.split(r"(?<=[.?!])(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


def first_comment(text: str) -> str:
    """The first comment of a C++ file that is no include guard's."""
    found = re.match(r"\s*(?:/\*+(.*?)\*/|((?://[^\n]*\n\s*)+))", text, re.DOTALL)
    assert found is not None, "the file begins without a comment"
    return found[1] or re.sub(r"^\s*//+ ?", "", found[2], flags=re.MULTILINE)


def words_of(path: Path) -> list[tuple[int, str]]:
    """Comments and docstrings of a Python file, with their lines; any line of a C++ file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(enumerate(lines, 1))


@pytest.mark.parametrize("path", PYTHON, ids=named(PYTHON))
def test_a_module_names_what_it_holds(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "the module has no docstring"
    assert not first_sentence(docstring).endswith("?"), first_sentence(docstring)


@pytest.mark.parametrize("path", COMPILED, ids=named(COMPILED))
def test_a_compiled_file_names_what_it_holds(path: Path) -> None:
    sentence = first_sentence(first_comment(path.read_text(encoding="utf-8")))
    assert not sentence.endswith("?"), sentence


@pytest.mark.parametrize("path", [*PYTHON, *COMPILED], ids=named([*PYTHON, *COMPILED]))
def test_words_that_are_left_out(path: Path) -> None:
    found = [f"{path.name}:{number}: {line.strip()}" for number, line in words_of(path) if AVOIDED.search(line)]
    assert found == []
