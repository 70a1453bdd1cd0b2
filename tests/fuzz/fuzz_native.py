"""Mutated programs and headers, which bring out our own errors only. `python -m tests.fuzz.fuzz_native --help`.

Each seed is one case, the same on every machine: `--replay SEED` runs it alone and shows the mutated program.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np
import torch

from engine.backends.native import backend as native
from engine.backends.native.weights import weights_of
from engine.bundle.graphs import GraphSpec
from engine.errors import EngineError
from export.families.diffusevae.graphs import roles
from export.models.unet import UNet, UNetSpec
from export.native.program import Assembled
from export.native.unet import lower_denoiser
from tests.fuzz import seeds
from tests.fuzz.fuzz_bundle import mutate_bytes, mutate_json

SPEC = UNetSpec("openai", 8, 6, 3, 32, (1, 2), 1, (1,), 2)


def model() -> tuple[Assembled, GraphSpec]:
    """A tiny denoiser's files and its signature."""
    torch.manual_seed(0)
    role = roles(UNet(SPEC).eval().requires_grad_(False), None, 10)["denoiser"]
    return lower_denoiser(role), role.spec()


def fuzz(seed: int, files: Assembled, spec: GraphSpec, show: bool) -> str:
    """One mutation of the program (as values or as bytes) or of the weights' header: run, or refused by our own error."""
    rng = random.Random(seed)
    program, weights = files.program, files.weights
    kind = rng.random()
    if kind < 0.7:
        program = json.dumps(_mutated(rng, json.loads(program))).encode()
    elif kind < 0.8:
        program = mutate_bytes(rng, program)
    else:
        length = 8 + int.from_bytes(weights[:8], "little")
        weights = mutate_bytes(rng, weights[:length]) + weights[length:]
    if show:
        sys.stderr.write(program[:100_000].decode(errors="backslashreplace") + "\n")
    rows = np.ones((1, spec.inputs[2].shape[1]), np.float32)
    image = np.ones((2, 3, 8, 8), np.float32)
    try:
        with native.open_graph(program, weights_of(weights, "weights"), spec, "denoiser", "bf16", 2, "program") as graph:
            graph(x=image, cond=image, row=rows)
        return "ran"
    except EngineError as error:
        if not str(error).isprintable() or len(str(error)) > 3000:
            raise AssertionError(f"seed {seed}: an error that would garble a terminal: {error!r:.300}") from error
        return f"{type(error).__name__}"


def _mutated(rng: random.Random, raw: Any) -> Any:
    """Half the time anywhere; half the time a number or name swapped for another of the program, which stays well formed."""
    if rng.random() < 0.5:
        return mutate_json(rng, raw)
    for _ in range(rng.randint(1, 3)):
        ops = rng.choice([raw["ops"], raw["tensors"]])
        one, other = rng.choice(ops), rng.choice(ops)
        key = rng.choice([key for key in one if key in other])
        one[key] = rng.choice([other[key], 0, 1, 2, 3, 31, 33, None, 2**20]) if isinstance(one[key], int) else other[key]
    return raw


def main() -> None:
    options = seeds.parser(__doc__).parse_args()
    files, spec = model()
    seeds.run(options, lambda seed, show: fuzz(seed, files, spec, show))


if __name__ == "__main__":
    main()
