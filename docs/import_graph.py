"""The drawing of the import graph: python docs/import_graph.py writes docs/import-graph.svg.

Boxes are the packages and modules of tests/unit/test_imports.py, one row a layer; an arrow goes from what imports to what is
imported. Arrows that follow from others (a longer way leads there too) are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.unit.test_imports import LAYERS, imported, modules, package

OUT = ROOT / "docs" / "import-graph.svg"
WIDTH, ROW, BOX, HIGH = 900, 56, 132, 28
UP, DOWN, SKIP = "#c62828", "#52606d", "#9aa5b1"


def edges() -> set[tuple[str, str]]:
    """(importer, imported) between the boxes."""
    found = {(package(name), package(other)) for name, path in modules() for other in imported(path)}
    return {(a, b) for a, b in found if a != b}


def reduced(graph: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that no longer way replaces."""

    def reachable(start: str, without: tuple[str, str]) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            node = todo.pop()
            for edge in graph - {without}:
                if edge[0] == node and edge[1] not in seen:
                    seen.add(edge[1])
                    todo.append(edge[1])
        return seen

    return {edge for edge in graph if edge[1] not in reachable(edge[0], edge)}


def places() -> dict[str, tuple[float, float]]:
    """The centre of each box: the ground at the bottom."""
    found = {}
    for height, names in enumerate(LAYERS):
        y = ROW * (len(LAYERS) - height) - 14
        for i, name in enumerate(names):
            found[name] = (WIDTH * (i + 1) / (len(names) + 1), float(y))
    return found


def arrow(start: tuple[float, float], end: tuple[float, float], bend: int) -> str:
    """A line to the row below, or a bow around the rows between; red if it points up."""
    (x0, y0), (x1, y1) = start, end
    colour = DOWN if y1 > y0 else UP
    y0, y1 = (y0 + HIGH / 2, y1 - HIGH / 2) if y1 > y0 else (y0 - HIGH / 2, y1 + HIGH / 2)
    rows = abs(y1 - y0) / ROW
    side = bend * min(90 + 30 * rows, 260) if rows > 1 and abs(x1 - x0) < BOX else 0
    path = f"M{x0:.0f},{y0:.0f} C{x0 + side:.0f},{y0 + 24:.0f} {x1 + side:.0f},{y1 - 24:.0f} {x1:.0f},{y1:.0f}"
    return f'<path d="{path}" fill="none" stroke="{colour if rows < 1 else SKIP}" marker-end="url(#head)"/>'


def drawing() -> str:
    """The picture, boxes over arrows."""
    at, graph = places(), reduced(edges())
    height = ROW * len(LAYERS) + 20
    arrows = [arrow(at[a], at[b], 1 if i % 2 else -1) for i, (a, b) in enumerate(sorted(graph))]
    boxes = []
    for name, (x, y) in at.items():
        label = name.removeprefix("engine.")
        boxes.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{BOX}" height="{HIGH}" rx="6" fill="#e8eef7" '
            f'stroke="{DOWN}"/><text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-size="13">{label}</text>'
        )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, sans-serif">',
        '<defs><marker id="head" markerWidth="8" markerHeight="6" refX="7" refY="3" orient="auto">'
        f'<path d="M0,0 L8,3 L0,6 z" fill="{DOWN}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>',
        *arrows, *boxes, "</svg>",
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    OUT.write_text(drawing(), encoding="utf-8")
    print(OUT)
