"""Mutated manifests and graphs, out of which only our own errors may come: `python -m tests.fuzz.fuzz_bundle --help`.

Each seed is one case, the same on every machine: `--replay SEED` runs it alone and shows the mutated input.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine import backends
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.errors import BackendError, BundleError
from tests import toy
from tests.fuzz import seeds
from tests.manifests import NEXT, full_files, full_manifest

GRAPH_BACKENDS = ["onnxruntime", "openvino"]  # which parse the graphs themselves
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "batch", "../../etc/passwd", "/", "\0", "\ud800", "\x1b[2J", "é" * 300, [], [[]], [None], {}, {"": {}}, [1] * 1000,
    "denoiser.onnx", "f32", "openvino", "native", "sampler.fp16", "recon", "rows", "e", "timesteps", "image", "normal",
    "variance", "learned_range",
]  # fmt: skip


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Change one to four places of a JSON value: replace, delete, rename, duplicate, nudge."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 4)):
        holder, key = rng.choice(list(_places(value)))
        action = rng.randrange(5)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[str(rng.choice(["", key + key, key[:-1], "\ud800", "x" * 1000]))] = holder.pop(key)
        elif action == 2 and isinstance(holder, list):
            holder.append(holder[key])
        elif action == 3 and type(holder[key]) in (int, float):
            holder[key] += rng.choice([-1, 1, 0.5, 10**9])
        else:
            holder[key] = rng.choice(HOSTILE)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        found.append((value, key))
        found.extend(_places(value[key]))
    return found or [({"": None}, "")]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change one to four places: flip a bit, cut, insert, repeat."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        stop = min(len(changed), start + rng.randint(1, 40))
        action = rng.randrange(5)
        if action <= 1 and changed:
            changed[min(start, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif action == 2:
            del changed[start:stop]
        elif action == 3:
            changed[start:start] = rng.choice([b"[" * 50_000, b"\xff\xfe", b"NaN", b"\0", b'"name": 1,', b"9" * 5000])
        else:
            changed[start:start] = changed[start:stop]
    return bytes(changed)


def fuzz_manifest(seed: int, bundle: Path, show: bool) -> str:
    """One mutated manifest: opened, or refused in printable words."""
    rng = random.Random(seed)
    file = bundle / "manifest.json"
    original = file.read_bytes()
    if rng.random() < 0.7:
        changed = json.dumps(mutate_json(rng, json.loads(original))).encode()
    else:
        changed = mutate_bytes(rng, original)
    if show:
        sys.stderr.write(changed[:20_000].decode(errors="backslashreplace") + "\n")
    file.write_bytes(changed)
    try:
        Bundle.open(bundle)
        return "opened"
    except BundleError as error:
        if not str(error).isprintable() or len(str(error)) > 2000:
            raise AssertionError(f"seed {seed}: an error that would garble a terminal: {error!r:.300}") from error
        return "refused"
    finally:
        file.write_bytes(original)


def fuzz_onnx(seed: int, bundle: Path, show: bool) -> str:
    """One mutated denoiser whose hash is right, so that the native parsers see it: runs, or is refused."""
    rng = random.Random(seed)
    models = toy.models_of(1, 8, 4, False)
    files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    changed = bytearray(files["denoiser.onnx"])
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    if show:
        sys.stderr.write(f"{bytes(changed)!r}\n")
    manifest = toy.manifest_of(models, 1, 8, 4, False, GRAPH_BACKENDS)
    path = bundle.parent / "onnx.bundle"
    write_bundle(path, manifest, files | {"denoiser.onnx": bytes(changed)})
    opened, image = Bundle.open(path), np.zeros((2, 3, 8, 8), np.float32)
    outcomes = []
    for name in GRAPH_BACKENDS:
        try:
            with backends.load(opened, "denoiser", backend=name, threads=1) as graph:
                graph(x=image, cond=image, row=np.zeros((1, toy.ROW_WIDTH), np.float32))
            outcomes.append(f"{name} ran")
        except (BackendError, BundleError):
            outcomes.append(f"{name} refused")
    return ", ".join(outcomes)


TARGETS: dict[str, Callable[[int, Path, bool], str]] = {"manifest": fuzz_manifest, "onnx": fuzz_onnx}


def main() -> None:
    parser = seeds.parser(__doc__)
    parser.add_argument("--target", choices=sorted(TARGETS), default="manifest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models, bundle = toy.models_of(1, 8, 4, False), Path(folder) / "toy.bundle"
        write_bundle(bundle, full_manifest(models) | {"next": NEXT, "augmentation": None}, full_files(models))
        seeds.run(options, lambda seed, show: TARGETS[options.target](seed, bundle, show))


if __name__ == "__main__":
    main()
