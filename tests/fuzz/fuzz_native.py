"""Mutated programs and headers, which bring out our own errors only. `python -m tests.fuzz.fuzz_native --help`.

Each seed is one case, the same on every machine: `--replay SEED` runs it alone and shows the mutated program.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.backends.native import backend as native
from engine.backends.native.weights import weights_of
from engine.bundle.graphs import GraphSpec
from engine.errors import EngineError
from export.families.diffusevae.graphs import roles
from export.graphs.roles import Role, tensor
from export.models.ncsnpp import Generator, GeneratorSpec, GeneratorStep
from export.models.openai.classifier import Classifier, ClassifierSpec
from export.models.openai.graphs import MappedDenoiser, OpenAIDenoiser
from export.models.openai.spade import modulation_width
from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import OpenAIUNet
from export.models.unet import UNet, UNetSpec
from export.native import ddgan, latent, spade
from export.native.guide import lower_classifier
from export.native.operands import eligible
from export.native.program import Assembled
from export.native.scales import of_range
from export.native.unet import lower_denoiser
from tests.fuzz import seeds
from tests.fuzz.fuzz_bundle import mutate_bytes, mutate_json

SPEC = UNetSpec("openai", 8, 6, 3, 32, (1, 2), 1, (1,), 2)


GUIDED = OpenAIUNetSpec(3, 4, 32, (1, 2), 1, (1,), 2, None, scale_shift=True, resample_blocks=True)
LABELS = OpenAIUNetSpec(3, 3, 32, (1, 2), 1, (2,), 2, None, scale_shift=True, resample_blocks=True, map_channels=5)
LARGE_STEPS = GeneratorSpec(3, 32, (32, 32), 1, (False, True), 4, 8, 1)
WORDS = OpenAIUNetSpec(3, 3, 32, (1,), 1, (1,), 2, None, context_dim=8)


@dataclass(frozen=True)
class Model:
    """The files of a graph, its name and signature, and inputs."""

    name: str
    files: Assembled
    spec: GraphSpec
    given: dict[str, np.ndarray]
    precision: str = "bf16"


def models() -> list[Model]:
    """A tiny denoiser, one with transformers in int8, one with a label map, a tiny generator and a tiny guide."""
    torch.manual_seed(0)
    role = roles(UNet(SPEC).eval().requires_grad_(False), None, 10)["denoiser"]
    row, image = np.ones((1, role.inputs[2].shape[1]), np.float32), np.ones((2, 3, 8, 8), np.float32)
    made = [Model("denoiser", lower_denoiser(role), role.spec(), {"x": image, "cond": image, "row": row})]
    made += [_with_transformers(image), _with_labels(image), _generator(image)]
    classifier = Classifier(ClassifierSpec(GUIDED, "attention", (8, 8))).eval().requires_grad_(False)
    classifier.out[2].positional_embedding.normal_()  # what a checkpoint fills: whatever lay in memory before
    inputs = tensor("x", ("batch", 3, 8, 8)), tensor("label", ("batch",), "int64"), tensor("row", (1, classifier.row_width))
    role = Role("guide", classifier, inputs, (tensor("g", ("batch", 3, 8, 8)), tensor("entropy", ("batch",))))
    row = np.ones((1, classifier.row_width), np.float32)
    given = {"x": image, "label": np.array([0, 3]), "row": row}
    return [*made, Model("guide", lower_classifier(classifier, role), role.spec(), given)]


def _with_transformers(image: np.ndarray) -> Model:
    unet = OpenAIUNet(WORDS).eval().requires_grad_(False)
    x, row = tensor("x", ("batch", 3, 8, 8)), tensor("row", (1, unet.row_width))
    tokens = tensor("keys_values", ("batch", 5, unet.context_width))
    role = Role("denoiser", OpenAIDenoiser(unet), (x, tokens, row), (tensor("eps", ("batch", 3, 8, 8)),))
    program = latent.lower_denoiser(role, "int8", {name: of_range(-4.0, 4.0, "x") for name in eligible(role)})
    given = {"x": image, "row": np.ones((1, unet.row_width), np.float32)}
    given["keys_values"] = np.ones((2, 5, unet.context_width), np.float32)
    return Model("denoiser", program, role.spec(), given, "int8")


def _with_labels(image: np.ndarray) -> Model:
    """gamma and beta of the smaller maps out of a row, the rest made of the label map."""
    unet = OpenAIUNet(LABELS).eval().requires_grad_(False)
    width = modulation_width([(norm, factor) for norm, factor in unet.spades() if factor == 2], (8, 8))
    inputs = (
        tensor("x", ("batch", 3, 8, 8)), tensor("segmap", ("batch", 5, 8, 8)), tensor("modulation", ("batch", width)),
        tensor("row", (1, unet.row_width)),
    )  # fmt: skip
    role = Role("denoiser", MappedDenoiser(unet, 2), inputs, (tensor("eps", ("batch", 3, 8, 8)),))
    given = {spec.name: np.ones([2 if d == "batch" else int(d) for d in spec.shape], np.float32) for spec in inputs}
    return Model("denoiser", spade.lower_mapped(role), role.spec(), given | {"x": image})


def _generator(image: np.ndarray) -> Model:
    generator = Generator(LARGE_STEPS).eval().requires_grad_(False)
    for parameter in generator.parameters():  # of a network-in-network: whatever lay in memory before
        parameter.normal_(std=0.1)
    width = sum(generator.row_widths)
    inputs = tensor("x", ("batch", 3, 8, 8)), tensor("row", ("batch", width))
    role = Role("generator", GeneratorStep(generator), inputs, (tensor("x0", ("batch", 3, 8, 8)),))
    given = {"x": image, "row": np.ones((2, width), np.float32)}
    return Model("generator", ddgan.lower_generator(role), role.spec(), given)


def fuzz(seed: int, models: list[Model], show: bool) -> str:
    """One mutation of the program (as values or as bytes) or of the weights' header: run, or refused by our own error."""
    rng = random.Random(seed)
    model = models[seed % len(models)]
    files = model.files
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
    try:
        packed = weights_of(weights, "weights")
        with native.open_graph(program, packed, model.spec, model.name, model.precision, 2, "program") as graph:
            graph(**model.given)
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
    made = models()
    seeds.run(options, lambda seed, show: fuzz(seed, made, show))


if __name__ == "__main__":
    main()
