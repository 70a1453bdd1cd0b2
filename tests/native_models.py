"""Which bundles do the native engine's tests use? The golden ones, with native engines added and nothing exported again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.backends.native import backend as native
from engine.bundle.writer import write_bundle
from engine.kernels.native_library import ISAS
from tests import golden_models

NEEDS_NATIVE = pytest.mark.skipif(not native.available()[0], reason=f"native is {native.available()[1]}")

# The AMX kernels over software in place of the tile instructions: for processors that have all that they need but tiles.
SOFTWARE_TILES = "amx, tiles in software"
SOFTWARE_TILES_FLAGS = ("-DDV_SOFTWARE_TILES", f"-I{Path(__file__).with_name('unit')}")
PATHS = (*ISAS, SOFTWARE_TILES)  # what `force_isa` takes


def build_native(golden: Path, name: str, folder: Path, precisions: Sequence[str] = ("bf16",), budget: str = "free") -> Path:
    """A copy of a golden bundle that holds native engines in these precisions too."""
    from export.native import builder

    context = build_context(golden, name, folder)
    engines: dict[str, Any] = {}
    for precision in precisions:
        for engine in builder.build(context, precision, {"int8_budget": budget}):
            engines.setdefault("{backend} {precision} {role}".format(**engine.entry), engine)
    manifest = json.loads((golden / "manifest.json").read_text())
    manifest["backends"] = [*manifest["backends"], "native"]
    manifest["engines"] = [engine.entry for engine in engines.values()]
    files = {entry["file"]: (golden / entry["file"]).read_bytes() for entry in manifest["graphs"].values()}
    for engine in engines.values():
        files |= engine.files
    write_bundle(folder / f"{name}.bundle", manifest, files)
    return folder / f"{name}.bundle"


def build_context(golden: Path, name: str, folder: Path) -> Any:
    """What a build hands the engine builders, with the golden bundle's graphs."""
    from export.build import Request, infer_architecture, load, read
    from export.context import Graph, Watch
    from export.engines import BuildContext
    from export.graphs.roles import roles
    from export.read.evidence import Options

    options = Options(**golden_models.build_options(name))
    source = read(Request(golden_models.write_checkpoint(name, folder / f"{name}.ckpt"), options=options))
    architecture = infer_architecture(source, options)
    unet, vae = load(source, architecture)
    graphs = tuple(
        Graph(role, (golden / f"{role.name}.onnx").read_bytes(), {}) for role in roles(unet, vae, architecture.T).values()
    )
    fields = {field.name for field in dataclasses.fields(BuildContext)}
    known = {
        "architecture": architecture, "source": source, "unet": unet, "vae": vae, "graphs": graphs, "watch": Watch(),
    }  # fmt: skip
    return BuildContext(**{key: value for key, value in known.items() if key in fields})
