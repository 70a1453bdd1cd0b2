"""Spoiling a bundle: one field of its manifest, or the bytes of one file, at a time.

And a manifest with everything that one may hold, to be spoilt: graphs and engines in it are any bytes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from engine.bundle.reader import Bundle
from engine.commands import command
from engine.errors import BundleError
from engine.kernels import ROW_FIELDS
from tests import toy

REBUILD = command("build", "CKPT", "--out", "PATH")

ABSENT = object()
NEXT: dict[str, Any] = {  # the field `next` of a cascade's first bundle
    "bundle": "b.bundle", "source": "0" * 64, "steps": 4, "t_start": 300, "noise_level": 20, "guidance": 0.5,
}  # fmt: skip
EXTRA_FILES = {
    "denoiser.fp16.onnx": b"half" * 50,
    "sampler.onnx": b"whole" * 50,
    "prior.safetensors": b"prior" * 50,
    "denoiser.native.bf16.json": b"{}",
    "denoiser.native.bf16.safetensors": b"weights" * 50,
    "denoiser.tensorrt_rtx.fp16.plan": b"plan" * 50,
}


def edit(bundle: Path, dotted: str, value: object) -> None:
    """Set (or, with ABSENT, delete) one field of a manifest, named like the errors name it; ':' in a key stands for '.'."""
    file = bundle / "manifest.json"
    raw = json.loads(file.read_text())
    *path, last = [int(key) if key.isdigit() else key.replace(":", ".") for key in dotted.split(".")]
    holder: Any = raw
    for key in path:
        holder = holder[key]
    if value is ABSENT:
        del holder[last]
    else:
        holder[last] = value
    file.write_text(json.dumps(raw))


def damages(data: bytes) -> dict[str, bytes]:
    """TESTS: empty, one byte, text, truncated at every tenth, one byte more, seeded single-bit flips."""
    found = {"empty": b"", "one byte": data[:1], "text": b"not a graph\n", "longer": data + b"\0"}
    found |= {f"{tenth}0 %": data[: len(data) * tenth // 10] for tenth in range(1, 10)}
    for seed in range(24):
        bit = random.Random(seed).randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        found[f"bit {bit}"] = bytes(flipped)
    return found


def sampler_entry(formulation: int | None = 1) -> dict[str, Any]:
    """The whole sampler's entry, for 8 x 8 images and a latent of 4."""
    shapes: dict[str, list[int | str]] = {
        "x_T": ["batch", 3, 8, 8], "timesteps": ["rows"], "coefficients": ["rows", len(ROW_FIELDS)],
        "weights": ["rows", "lanes"], "start": [3], "noise": ["noise_steps", "batch", 3, 8, 8],
    }  # fmt: skip
    outputs: dict[str, list[int | str]] = {"images": ["batch", 8, 8, 3], "x": ["batch", 3, 8, 8]}
    if formulation is not None:
        shapes |= {"z": ["batch", 4]}
        outputs |= {"recon": ["batch", 3, 8, 8]}
    kinds = {"timesteps": "int64", "images": "uint8"}

    def tensors(named: dict[str, list[int | str]]) -> list[dict[str, Any]]:
        return [{"name": n, "dtype": kinds.get(n, "float32"), "shape": s, "range": "unbounded"} for n, s in named.items()]

    parity = {"reference": "none (toy)", "max_relative_error": 0.0, "batches": [1], "runtimes": {}}
    return {
        "file": "sampler.onnx", "precision": "f32", "opset": 21, "inputs": tensors(shapes), "outputs": tensors(outputs),
        "compute": {}, "weights": None, "parity": parity,
    }  # fmt: skip


def full_manifest(models: dict[str, Any]) -> dict[str, Any]:
    """Everything that a manifest may hold, without sizes and hashes."""
    raw = toy.manifest_of(models, 1, 8, 4, False, ["onnxruntime", "native", "tensorrt_rtx"])
    half = copy.deepcopy(raw["graphs"]["denoiser"]) | {"file": "denoiser.fp16.onnx", "precision": "fp16"}
    raw["graphs"] |= {"denoiser.fp16": half, "sampler": sampler_entry()}
    raw["prior"] = {"input": "z", "kind": "gaussian_mixture", "components": 4, "file": "prior.safetensors"}
    common = {"graph": "denoiser", "made_with": {"x": "1.0"}, "options": {"level": 3}, "record": {"seconds": [1.5]}}
    native = {"program": {"file": "denoiser.native.bf16.json"}, "weights": {"file": "denoiser.native.bf16.safetensors"}}
    raw["engines"] = [
        {"backend": "native", "precision": "bf16", "files": native, "source_sha256": "0" * 64, "targets": [], **common},
        {
            "backend": "tensorrt_rtx", "precision": "fp16", "files": {"plan": {"file": "denoiser.tensorrt_rtx.fp16.plan"}},
            "source_sha256": hashlib.sha256(EXTRA_FILES["denoiser.fp16.onnx"]).hexdigest(), "targets": ["sm86"], **common,
        },
        {
            "backend": "native", "precision": "bf16", "runs_on": ["onnxruntime", "openvino"], "source_sha256": "0" * 64,
            "targets": [], **common, "graph": "vae_decoder",
        },
    ]  # fmt: skip
    return raw


def full_files(models: dict[str, Any]) -> dict[str, bytes | Path]:
    """The files that `full_manifest` names."""
    return {f"{name}.onnx": model.SerializeToString() for name, model in models.items()} | EXTRA_FILES


def check_refused(bundle: Path, field: str, value: object, message: str) -> None:
    """Change one field of the manifest: opening must say what was found, where, and the command that mends it, in a line."""
    edit(bundle, field, value)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    text = str(caught.value)
    assert message in text
    assert REBUILD in text
    assert str(bundle) in text
    assert text.isprintable()
    assert len(text) < 1200
