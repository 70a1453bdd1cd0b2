"""The bundles that the C++ build's tests open. Damaged copies of a good one, and toy bundles with plans for the stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from tests import mock_tensorrt, toy

STAND_IN_VERSION = "10.9.0.34"
SIZE, Z_DIM, T = 8, 4, 1000


def damaged(bundle: Path, folder: Path) -> Path:
    """A folder of copies of a bundle, each with one file cut, emptied, changed by a bit, missing or replaced by a link."""
    for path in sorted(bundle.iterdir()):
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 0x10
        for what, changed in {"cut": data[: len(data) * 2 // 3], "empty": b"", "flipped": bytes(flipped)}.items():
            _without(bundle, path.name, folder / f"{what}-{path.name}").write_bytes(changed)
        _without(bundle, path.name, folder / f"missing-{path.name}")
        _without(bundle, path.name, folder / f"link-{path.name}").symlink_to(path)
    return folder


def with_plans(path: Path, kind: str = "form1", **changes: Any) -> Path:
    """A toy bundle (form1, form2, zcond, uncond) with plans that the stand-in of TensorRT computes; 1 to 16 samples."""
    names = ["timestep_table", "denoiser", *([] if kind == "uncond" else ["vae_encoder", "vae_decoder"])]
    options = {"version": STAND_IN_VERSION, "plans": {name: plan(name, kind) for name in names}, **changes}
    return mock_tensorrt.build_bundle(path, kind, "tensorrt", **options)


def plan(name: str, kind: str) -> bytes:
    """What tensorrt_stand_in/nvinfer.cpp reads."""
    numbers = [1, 16, T, SIZE, Z_DIM, toy.ROW_WIDTH, int(kind != "uncond"), int(kind == "zcond")]
    head = f"stand-in plan\n{name} {' '.join(map(str, numbers))}".encode().ljust(128)
    if name != "vae_decoder":
        return head
    weights = toy.vae_decoder(SIZE, Z_DIM).graph.initializer
    projection = next(numpy_helper.to_array(tensor) for tensor in weights if tensor.name == "W")
    return head + np.ascontiguousarray(projection, np.float32).tobytes()


def _without(bundle: Path, name: str, to: Path) -> Path:
    """A copy of a bundle without one file, whose place is returned; hard links, so that the others take no room."""
    to.mkdir(parents=True)
    for path in bundle.iterdir():
        if path.name != name:
            (to / path.name).hardlink_to(path)
    return to / name
