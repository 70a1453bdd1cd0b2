"""Mutated checkpoints are read or refused with our own errors: `python -m tests.fuzz.fuzz_checkpoint --help`.

Each seed is one case, the same on every machine: `--replay SEED` runs it alone and says what was changed.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import re
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from engine.errors import EngineError
from export.build import Request, check_defaults, recognise
from tests import golden_models
from tests.fuzz import seeds

VALUES: list[Any] = [
    None, True, 0, -1, 2**63, 0.5, float("nan"), "", "x", "form2", "\ud800", "x" * 5000, [], [[]], {}, {"steps": 0},
    "16x99999999", "16d0,16t8", "1u0", "0:0", "1:", "16x1,16d2,16t8,8x1,8d2,8t4,4x1,4d4,4t1,1x1",
]  # fmt: skip
DTYPES = [torch.int8, torch.bool, torch.complex64, torch.float16, torch.float64, torch.float8_e4m3fn]
NAMES = [
    "n_heads", "image_size", "type", "variance", "prediction", "name", "defaults", "input_res", "enc_block_str",
    "dec_block_str", "enc_channel_str", "dec_channel_str",
]  # fmt: skip
STRINGS = golden_models.config("form1")["vae"]


def contents() -> dict[str, Any]:
    """A complete checkpoint small enough for thousands of cases: EMA weights and VAE of the golden form1."""
    state = {k: t for k, t in golden_models.state_dict("form1").items() if not k.startswith("online_network")}
    return {"state_dict": state, "hyper_parameters": {"n_heads": 2, **STRINGS}}


def mutate_content(rng: random.Random, content: dict[str, Any]) -> list[str]:
    """Change keys, shapes, numbers and hyper-parameters in place; what was done, in words."""
    state, done = content["state_dict"], []
    for _ in range(rng.randint(1, 3)):
        key, action = rng.choice(list(state)), rng.randrange(7)
        if action in (2, 3, 4) and not isinstance(state[key], torch.Tensor):
            continue  # it was replaced before
        done.append(f"action {action} on {key}")
        if action == 0:
            del state[key]
        elif action == 1:
            state[rng.choice([key + "x", key[:-1], key.replace("1", "99999"), "", key.upper()])] = state.pop(key)
        elif action == 2:
            shape = rng.choice([(), (0,), (1, *state[key].shape), (7,), (2**40,), (3, 0, 3)])
            state[key] = torch.zeros(1).expand(shape) if shape else torch.zeros(())
        elif action == 3:
            state[key] = torch.full_like(state[key], rng.choice([float("nan"), float("inf"), -1.0, 0.0, 1e-300, 1e30]))
        elif action == 4:
            state[key] = state[key].to(rng.choice(DTYPES))
        elif action == 5:
            state[key] = rng.choice(VALUES)
        else:
            name = rng.choice(NAMES)
            content["hyper_parameters"][name] = rng.choice(VALUES)
            done.append(f"{name} = {content['hyper_parameters'][name]!r:.80}")
    return done


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip bits, cut or repeat; half of the time near the start or the end, where the structure is."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        near = min(len(changed), 4000)
        start = rng.choice([rng.randrange(near), len(changed) - 1 - rng.randrange(near), rng.randrange(len(changed))])
        stop = min(len(changed), start + rng.randint(1, 40))
        action = rng.randrange(4)
        if action <= 1:
            changed[start] ^= 1 << rng.randrange(8)
        elif action == 2:
            del changed[start:stop]
        else:
            changed[start:start] = changed[start:stop]
    return bytes(changed)


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """Damage the pickle inside an archive whose checksums are right again afterwards."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            inner = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                inner = mutate_bytes(rng, inner)
            target.writestr(entry.filename, inner)
    return buffer.getvalue()


def is_array(value: Any) -> bool:
    """Whether NumPy can have it, and the disk."""
    return isinstance(value, torch.Tensor) and value.numel() < 1e7 and value.dtype != torch.float8_e4m3fn


def contain(rng: random.Random, content: dict[str, Any]) -> tuple[str, Any]:
    """The same as people save it: averages beside, lists, objects, wrappers in the keys."""
    kinds = ["plain", "plain", "pair", "list", "order", "object", "wrapped", "numpy", "deep", "flat", "apart"]
    kind = rng.choice(kinds)
    state = content["state_dict"]
    ema = {k.removeprefix("target_network."): v for k, v in state.items()}
    tensors = [v for k, v in ema.items() if k.startswith("decoder.")]
    saved: Any = {
        "plain": content,
        "pair": {"model": ema, "ema": {k: v for k, v in ema.items() if k.startswith("decoder.")}, "opt": {"state": {}}},
        "list": [ema, {"shadow": state}, rng.choice(VALUES)],
        "order": {"net": ema, "ema": {"shadow_params": tensors[rng.randrange(2) :]}},
        "object": {"model": argparse.Namespace(**ema), "average": argparse.Namespace(module=ema, decay=np.float64(0.9))},
        "wrapped": {re.sub(r"(\.\d+)\.", rng.choice([r"\1._w.", r"._orig_mod\1.", r"\1."]), k): v for k, v in state.items()},
        "numpy": {k: v.numpy() if is_array(v) else v for k, v in state.items()},
        "flat": {f"{rng.choice(['', 'ema.'])}{k}": v for k, v in state.items()} | {f"net.{k}": v for k, v in ema.items()},
        "apart": {"model": {k: v for k, v in ema.items() if "." in k}, **{k: v for k, v in ema.items() if "." not in k}},
        "deep": {"a": ({"b": [content]}, argparse.Namespace(c={"d": rng.choice(VALUES)}))},
    }[kind]
    return kind, saved


def encode(rng: random.Random, content: dict[str, Any]) -> tuple[str, str, bytes]:
    """The format, what of it in words, and the file's bytes."""
    kind = rng.choice(["zip", "legacy", "safetensors"])
    if kind == "safetensors":
        tensors = {
            k: t.contiguous() for k, t in content["state_dict"].items() if isinstance(t, torch.Tensor) and t.numel() < 1e7
        }
        texts = {str(k): json.dumps(v) for k, v in content["hyper_parameters"].items()}
        return kind, kind, save(tensors, {k: v for k, v in texts.items() if v.isascii()})
    buffer = io.BytesIO()
    container, saved = contain(rng, content)
    protocol = rng.choice([1, 2, 2, 4, 5])
    torch.save(saved, buffer, _use_new_zipfile_serialization=kind == "zip", pickle_protocol=protocol)
    return kind, f"{kind} {container} {protocol}", buffer.getvalue()


def one(seed: int, folder: Path, original: dict[str, Any], show: bool) -> str:
    """One case: read, inferred and loaded, or refused."""
    rng = random.Random(seed)
    content = {"state_dict": dict(original["state_dict"]), "hyper_parameters": dict(original["hyper_parameters"])}
    target = rng.choice(["content", "bytes", "pickle"])
    done = mutate_content(rng, content) if target == "content" else []
    try:
        kind, words, data = encode(rng, content)
    except (UnicodeEncodeError, pickle.PicklingError):
        return "not representable"  # a lone surrogate, for instance: no such file exists
    if target == "pickle" and kind == "zip":
        data = mutate_pickle(rng, data)
    elif target != "content":
        data = mutate_bytes(rng, data)
    if show:
        sys.stderr.write(f"{target} of a {words} file of {len(data)} bytes: {done}\n")
    path = folder / "case.ckpt"
    path.write_bytes(data)
    try:
        found = recognise(Request(path))
        model = found.load()
        assert model.wiring.graphs, "a model that was read has a pipeline that holds together"
        check_defaults(model, found.source)
        return f"{target} read"
    except EngineError:
        return f"{target} refused"


def main() -> None:
    original = contents()
    with tempfile.TemporaryDirectory() as folder:
        seeds.run(seeds.parser(__doc__).parse_args(), lambda seed, show: one(seed, Path(folder), original, show))


if __name__ == "__main__":
    main()
