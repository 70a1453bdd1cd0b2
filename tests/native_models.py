"""Bundles of the native engine's tests: the golden ones, with native engines added and nothing exported again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.backends.native.backend import Native
from engine.bundle.writer import write_bundle
from engine.kernels.native_library import ISAS
from tests import golden_models

NEEDS_NATIVE = pytest.mark.skipif(not Native.available()[0], reason=f"native is {Native.available()[1]}")

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
            engines.setdefault("{backend} {precision} {graph}".format(**engine.entry), engine)
    manifest = json.loads((golden / "manifest.json").read_text())
    manifest["backends"] = [*manifest["backends"], "native"]
    manifest["engines"] = [engine.entry for engine in engines.values()]
    files = {entry["file"]: (golden / entry["file"]).read_bytes() for entry in manifest["graphs"].values()}
    for engine in engines.values():
        files |= engine.files
    write_bundle(folder / f"{name}.bundle", manifest, files)
    return folder / f"{name}.bundle"


def share(bundle: Path, into: Path, graph: str, runs_on: Sequence[str] = ("onnxruntime", "openvino")) -> Path:
    """A copy of a native bundle, one of whose graphs another runtime runs."""
    shutil.copytree(bundle, into)
    manifest = json.loads((into / "manifest.json").read_text())
    for entry in manifest["engines"]:
        if entry["graph"] == graph:
            del entry["files"]
            entry["runs_on"] = list(runs_on)
    (into / "manifest.json").write_text(json.dumps(manifest))
    return into


def build_context(golden: Path, name: str, folder: Path) -> Any:
    """What a build hands the engine builders, with the golden bundle's graphs."""
    from export.build import Request, recognise
    from export.context import Graph, Watch
    from export.engines import BuildContext

    path = golden_models.write_checkpoint(name, folder / f"{name}.ckpt")
    model = recognise(Request(path, options=golden_models.build_options(name))).load()
    graphs = tuple(Graph(role, (golden / f"{role.name}.onnx").read_bytes(), {}) for role in model.roles.values())
    return BuildContext(model, graphs, Watch())
