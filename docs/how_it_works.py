"""The drawing of docs/how-it-works.md: python docs/how_it_works.py writes docs/how-it-works.svg."""

from __future__ import annotations

from html import escape
from pathlib import Path

OUT = Path(__file__).with_suffix(".svg").with_name("how-it-works.svg")
WIDTH, HEIGHT = 1000, 590
BUILD, DATA, RUN, LOOP = "#e8eef7", "#fdf3d8", "#e6f4ea", "#fbe9e7"
INK, GREY = "#1f2933", "#52606d"


def text(
    x: float,
    y: float,
    words: str,
    size: int = 13,
    weight: str = "normal",
    colour: str = INK,
    anchor: str = "middle",
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str, title: str, *lines: str) -> str:
    """A box with a bold title and smaller lines below it."""
    first = y + (height - 17 * len(lines)) / 2 + 5
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="{GREY}"/>']
    parts.append(text(x + width / 2, first, title, weight="bold"))
    parts += [text(x + width / 2, first + 17 * (i + 1), line, 12, colour=GREY) for i, line in enumerate(lines)]
    return "".join(parts)


def arrow(*points: tuple[float, float], label: str = "", at: tuple[float, float] = (0, 0)) -> str:
    """A line through the points with a head at the last one."""
    path = " ".join(f"{'M' if i == 0 else 'L'}{x},{y}" for i, (x, y) in enumerate(points))
    line = f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.4" marker-end="url(#head)"/>'
    return line + (text(*at, label, 12, colour=GREY) if label else "")


def build_row() -> list[str]:
    """From a checkpoint to a bundle, left to right."""
    y, height = 52, 76
    return [
        text(20, 32, "export: once, with torch", 14, "bold", anchor="start"),
        box(20, y, 120, height, BUILD, "read", "checkpoint,", "tensors only"),
        box(180, y, 150, height, BUILD, "families", "recognise, infer,", "name the pipeline"),
        box(370, y, 150, height, BUILD, "graphs", "ONNX, compared", "with torch"),
        box(560, y, 180, height, BUILD, "native, tensorrt", "programs and plans,", "parity measured"),
        *(arrow((x, y + height / 2), (x + 38, y + height / 2)) for x in (140, 330, 520)),
        arrow((650, y + height), (650, 168)),
    ]


def bundle_row() -> list[str]:
    """The contract between the two halves."""
    what = "inputs, pipeline, schedule, defaults; each graph and engine with size, SHA-256 and measured error"
    return [
        box(20, 170, 960, 58, DATA, "bundle", f"manifest.json: {what}"),
        arrow((262, 228), (262, 298)), arrow((500, 228), (500, 298)), arrow((884, 228), (884, 298)),
    ]  # fmt: skip


def run_row() -> list[str]:
    """What a request goes through."""
    y, height = 300, 84
    return [
        text(20, 270, "engine: each request, numpy only", 14, "bold", anchor="start"),
        box(20, y, 96, height, RUN, "inputs", "given, or", "drawn by seed"),
        box(156, y, 130, height, RUN, "before", "VAE decoder, text", "encoder, …: once"),
        f'<rect x="326" y="{y - 2}" width="454" height="250" rx="9" fill="{LOOP}" stroke="{GREY}" stroke-dasharray="5 4"/>',
        text(553, y + 24, "loop: one row of the step table is one network call", 13, "bold"),
        box(820, y, 160, height, RUN, "after", "first-stage decoder, …,", "then uint8 pixels"),
        arrow((116, 342), (154, 342)), arrow((286, 342), (324, 342)),
        arrow((780, 342), (818, 342), label="x", at=(798, 334)),
    ]  # fmt: skip


def loop_body() -> list[str]:
    """The network with its lanes, and the update that a row describes."""
    formulas = "x0 = clip(p · [x, e, c, y, h]),   x' = k · [x0, x, e, c, n, y, h, g]"
    tables = (
        "timestep table: all embeddings at once",
        "step table: DDIM, DDPM, DPM-Solver++",
        "and PLMS as float32 coefficients",
    )
    executors = "One loop, three executors: on the host step by step, in one native call, on a device as one captured graph."
    return [
        box(346, 346, 170, 82, "#ffffff", "network", "lanes of one batch:", "inputs, and their nulls"),
        box(580, 346, 180, 82, "#ffffff", "e = Σ weight · lane", "guidance is two lanes"),
        box(346, 464, 414, 66, "#ffffff", "update: one fused pass over memory", formulas),
        arrow((516, 387), (578, 387), label="e₀ e₁ …", at=(547, 379)),
        arrow((670, 428), (670, 462)),
        arrow((431, 464), (431, 430), label="x'", at=(418, 451)),
        box(20, 440, 266, 90, RUN, "rows", *tables),
        arrow((286, 485), (324, 485)),
        text(500, 572, executors, colour=GREY),
    ]  # fmt: skip


def drawing() -> str:
    """The whole picture."""
    head = '<marker id="head" markerWidth="9" markerHeight="7" refX="8" refY="3.5" orient="auto">'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, sans-serif">',
        f'<defs>{head}<path d="M0,0 L9,3.5 L0,7 z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        *build_row(), *bundle_row(), *run_row(), *loop_body(),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    OUT.write_text(drawing(), encoding="utf-8")
    print(OUT)
