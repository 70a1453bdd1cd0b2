"""Mutated bundles against the C++ library. `python -m tests.cpp.fuzz_cpp_bundle --help`.

Each seed is one case, the same on every machine: `--replay SEED` runs it alone and shows the mutated input.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from engine.bundle.manifest import parse_manifest
from tests.cpp import capi
from tests.cpp.capi import Library
from tests.cpp.refusals import PRECISION, ask_both, loaded_graphs
from tests.fuzz.fuzz_bundle import mutate_bytes, mutate_json
from tests.manifests import NEXT

PRIOR = "prior.safetensors"


class Victim:
    """A copy of a bundle that is spoilt and mended again."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.path = folder / "victim.bundle"
        shutil.copytree(bundle, self.path)
        manifest = json.loads((self.path / "manifest.json").read_text())
        drawn = next((entry for entry in manifest["inputs"] if entry["draw"] is not None), None)
        if drawn is not None and manifest["prior"] is None:
            said = {"input": drawn["name"], "kind": "gaussian_mixture", "components": 2, "file": PRIOR}
            manifest["prior"] = said
            self.write(PRIOR, prior_of(math.prod(drawn["shape"][1:])))
        manifest["next"] = dict(NEXT)
        self.manifest = manifest
        self.write_manifest(manifest)
        self.sound = {file.name: file.read_bytes() for file in self.path.iterdir()}

    def write(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """With the sizes and hashes of what lies there now."""
        for entry in _entries(manifest):
            data = (self.path / entry["file"]).read_bytes()
            entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        self.write("manifest.json", json.dumps(manifest).encode())

    def replace(self, name: str, data: bytes) -> None:
        """Put other bytes into a file, and their hash into the manifest: the parsers behind it see them."""
        self.write(name, data)
        self.write_manifest(json.loads(self.sound["manifest.json"]))

    def engine_file(self, rng: random.Random, label: str) -> str:
        """The file of an engine that opening loads."""
        checked = parse_manifest(self.sound["manifest.json"], "")
        loaded = {(name, checked.graphs[name].computes_in(PRECISION)) for name in loaded_graphs(checked)}
        wanted = [e for e in self.manifest["engines"] if (e["graph"], e["precision"]) in loaded]
        return str(rng.choice(wanted)["files"][label]["file"])

    def mend(self) -> None:
        for name, data in self.sound.items():
            file = self.path / name
            if not file.exists() or file.read_bytes() != data:
                file.write_bytes(data)


def _entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found = list(manifest["graphs"].values())
    found += [file for engine in manifest["engines"] for file in engine["files"].values()]
    return [*found, *([manifest["prior"]] if manifest["prior"] else [])]


def prior_of(width: int, components: int = 2) -> bytes:
    """A mixture as a file."""
    rng = np.random.default_rng(0)
    factors = np.tril(0.3 * rng.standard_normal((components, width, width))) + np.eye(width)
    weights = rng.uniform(0.5, 1.5, components)
    tensors = {"weights": weights / weights.sum(), "means": rng.standard_normal((components, width))}
    return save({name: array.astype(np.float32) for name, array in (tensors | {"scale_tril": factors}).items()})


# ---- what is spoilt: each returns the bytes to show ------------------------------------------------


def spoil_manifest(rng: random.Random, victim: Victim) -> bytes:
    original = victim.sound["manifest.json"]
    changed = mutate_text(rng, original, 0.7)
    victim.write("manifest.json", changed)
    return changed


def mutate_text(rng: random.Random, text: bytes, share: float) -> bytes:
    """Change values of a JSON text in this share of cases, bytes in the others."""
    by_value = rng.random() < share
    return json.dumps(mutate_json(rng, json.loads(text))).encode() if by_value else mutate_bytes(rng, text)


def spoil_program(rng: random.Random, victim: Victim) -> bytes:
    """Values anywhere; or a number or name swapped for another of the program, which stays well formed; or bytes."""
    name = victim.engine_file(rng, "program")
    data, in_form = victim.sound[name], rng.random() < 0.4
    changed = json.dumps(swapped(rng, json.loads(data))).encode() if in_form else mutate_text(rng, data, 0.7)
    victim.replace(name, changed)
    return changed


def swapped(rng: random.Random, raw: dict[str, Any]) -> dict[str, Any]:
    """A program with one to three fields exchanged for those of other entries."""
    for _ in range(rng.randint(1, 3)):
        entries = raw[rng.choice(["ops", "tensors", "ports"])]
        one, other = rng.choice(entries), rng.choice(entries)
        key = rng.choice([key for key in one if key in other])
        numbers = [0, 1, 2, 3, 31, 33, None, 2**20]
        one[key] = rng.choice([other[key], *numbers]) if isinstance(one[key], int) else other[key]
    return raw


def spoil_weights(rng: random.Random, victim: Victim) -> bytes:
    return spoil_header(rng, victim, victim.engine_file(rng, "weights"))


def spoil_prior(rng: random.Random, victim: Victim) -> bytes:
    if PRIOR not in victim.sound:
        return spoil_weights(rng, victim)
    if rng.random() < 0.7:
        return spoil_header(rng, victim, PRIOR)
    changed = bytearray(victim.sound[PRIOR])
    start = 8 + int.from_bytes(changed[:8], "little")
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(start, len(changed) - 4)
        changed[at : at + 4] = rng.choice([b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\0\0", b"\0\0\x80\xbf", rng.randbytes(4)])
    victim.replace(PRIOR, bytes(changed))
    return bytes(changed)


def spoil_header(rng: random.Random, victim: Victim, name: str) -> bytes:
    """Values, or bytes, of a safetensors header; half the time the length before it is put right again."""
    data = victim.sound[name]
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutate_text(rng, data[8:end], 0.6)
    header += b" " * (-(8 + len(header)) % rng.choice([64, 64, 64, 8, 1]))
    length = len(header) if rng.random() < 0.8 else rng.choice([0, 1, end, 2**31, 2**63, 2**64 - 1, 2**64 - 8])
    changed = length.to_bytes(8, "little") + header + data[end:]
    victim.replace(name, changed)
    return changed[: 8 + len(header)]


def spoil_file(rng: random.Random, victim: Victim) -> bytes:
    """Any file, and the manifest not told."""
    name = rng.choice(sorted(victim.sound))
    changed = mutate_bytes(rng, victim.sound[name])
    victim.write(name, changed)
    return name.encode()


SPOIL: dict[str, tuple[int, Callable[[random.Random, Victim], bytes]]] = {
    "manifest": (40, spoil_manifest), "program": (25, spoil_program), "weights": (10, spoil_weights),
    "prior": (15, spoil_prior), "file": (10, spoil_file),
}  # fmt: skip


def run(library: Library, bundle: Path, seeds: range, show: bool = False) -> collections.Counter[str]:
    """How often each outcome came; an answer that differs from Python's ends it."""
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim(bundle, Path(folder))
        assert ask_both(library, victim.path)[1].status == capi.OK, "the bundle is to be sound before it is spoilt"
        for seed in seeds:
            sys.stderr.write(f"seed {seed}\n")  # the last one written is the one to replay
            sys.stderr.flush()
            rng = random.Random(seed)
            target = rng.choices(list(SPOIL), [weight for weight, _ in SPOIL.values()])[0]
            changed = SPOIL[target][1](rng, victim)
            if show:
                sys.stderr.write(f"{target}: {changed[:20_000].decode(errors='backslashreplace')}\n")
            ours, theirs = ask_both(library, victim.path)
            if show:
                sys.stderr.write(f"Python: {ours}\nC++: {theirs}\n")
            assert theirs.status == capi.OK or str(victim.path) in theirs.text or "native graph" in theirs.text, theirs
            counts[f"{target} {'opened' if theirs.status == capi.OK else 'refused'}"] += 1
            counts["same place"] += ours.where == theirs.where
            victim.mend()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path, help="libdiffusevae.so")
    parser.add_argument("bundle", type=Path, help="a bundle with native engines in bf16, which is copied")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this seed alone and show its input")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    if options.replay is not None:
        seeds = range(options.replay, options.replay + 1)
    outcomes = run(Library(options.library), options.bundle, seeds, show=options.replay is not None)
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main()
