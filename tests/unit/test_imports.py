"""The import graph: every module may import what stands below it, never what stands above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up; what stands in one line may not import each other, but for modules of one package.
LAYERS = (
    ("engine.errors",),
    (
        "engine.argument_checks", "engine.cleanup", "engine.commands", "engine.forks", "engine.places", "engine.processor",
        "engine.threads",
    ),
    ("engine.kernels",),
    ("engine.solver",),
    ("engine.bundle",),
    ("engine.memory", "engine.result", "engine.text"),
    ("engine.request", "engine.checks", "engine.imaging"),
    ("engine.device",),
    ("engine.backends",),
    ("engine.pipeline",),
    ("engine.abilities", "engine.augmentation", "engine.resolve"),
    ("engine.damage", "engine.stages"),
    ("engine.deadline", "engine.inpaint", "engine.verbs"),
    ("engine.sizes",),
    ("engine.opened",),
    ("engine.feeds", "engine.sampler"),
    ("engine.cascade",),
    ("engine",),
    ("engine.serving",),
    ("engine.bulk", "engine.http", "engine.triton"),
    ("engine.cli",),
    ("engine.__main__", "export"),
)
# Commands are looked up by name and imported when they are called: the engine never needs what they need.
LATE = {("engine.cli.elsewhere", name) for name in ("export", "engine.http", "engine.triton")}


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("engine", "export"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_sources" in path.parts:
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def layer(module: str) -> int:
    """The height of a module: that of the longest name in LAYERS which it begins with."""
    found = [(len(name), i) for i, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    assert found, f"{module} has no place in LAYERS"
    # `engine` itself is the package's front, not a home for modules that have no place.
    length, height = max(found)
    assert length > len("engine") or not module.startswith("engine."), f"{module} has no place in LAYERS"
    return height


def package(module: str) -> str:
    """The name in LAYERS that a module belongs to."""
    return max((n for names in LAYERS for n in names if f"{module}.".startswith(f"{n}.")), key=len)


def imported(path: Path) -> Iterator[str]:
    """What a file imports from this project, wherever in the file, but for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    known = {name for name, _ in modules()}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in ("engine", "export"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("engine", "export"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_no_import_points_up(module: str, path: Path) -> None:
    for other in imported(path):
        if (module, package(other)) in LATE:
            continue
        # The package's front may be named for its version; everything in it is imported from where it is.
        inside = package(other) == package(module)
        assert inside or layer(other) < layer(module), f"{module} imports {other}, which stands above it"


def test_the_check_sees_an_import_that_points_up(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from engine.sampler import Sampler\n    return Sampler\n")
    assert list(imported(file)) == ["engine.sampler"]
    assert layer("engine.sampler") > layer("engine.solver.table")
