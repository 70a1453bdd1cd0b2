"""One network of a published model of latent or guided diffusion by itself: random weights, exported and lowered without a
bundle.

A bundle of such a model takes many minutes to build, as every graph is checked in every runtime; a denoiser alone takes one.

    python benchmarks/latency/networks.py celeba256 --out out/celeba256       (started by bundles.py: torch stays in it)
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks.latency.calls import F32, Values
from benchmarks.latency.field import Contestant, Run, Task
from engine.backends import onnxruntime as ort
from engine.backends import openvino
from engine.backends.native.graph import NativeGraph, open_graph
from engine.backends.native.weights import weights_of
from engine.bundle.graphs import GraphSpec, Parity
from engine.bundle.onnx_file import Onnx, with_weights
from engine.bundle.tensors import TensorSpec
from engine.cli.terminal import Program

if TYPE_CHECKING:
    from export.graphs.roles import Role

DENOISER, DECODER = "denoiser", "first_stage_decoder"
# Preset: the published model and its network.
NETWORKS = {
    "celeba256": ("celeba256", DENOISER),
    "churches256": ("lsun_churches256", DENOISER),
    "cin256-v2": ("cin256-v2", DENOISER),
    "txt2img-1p4B": ("txt2img-1p4B", DENOISER),
    "64x64_diffusion": ("64x64_diffusion", DENOISER),
    "256x256_diffusion": ("256x256_diffusion", DENOISER),
    "decoder-f4": ("celeba256", DECODER),
    "decoder-f8": ("lsun_churches256", DECODER),
}
GRAPH, OUTSIDE = "graph.onnx", f"{DENOISER}.weights"  # the second where the weights are more than an ONNX file may hold
PROGRAM, WEIGHTS, SIGNATURE = "program.json", "program.safetensors", "signature.json"
INT8_PROGRAM, INT8_WEIGHTS = "program-int8.json", "program-int8.safetensors"  # of a denoiser: every eligible layer
CONDITION, TIMESTEP = "condition.npz", 500  # what a denoiser is conditioned on, the same for every sample
CALIBRATED_ON = 4  # samples of normal numbers, which give scales to random weights


@dataclass(frozen=True)
class Network:
    """The files of a network; the folder bears the preset's name, and is whole once it has a signature."""

    folder: Path

    @property
    def spec(self) -> GraphSpec:
        """Its inputs and outputs; the first is the one that is compared."""
        said = json.loads((self.folder / SIGNATURE).read_text())
        inputs, outputs = (
            tuple(TensorSpec(name, "float32", tuple(shape), None) for name, shape in said[side].items())
            for side in ("inputs", "outputs")
        )
        return GraphSpec("", 0, "", None, "f32", 0, inputs, outputs, Parity("", 0.0, (), {}), {})

    @property
    def has_int8(self) -> bool:
        """Whether there is a program in int8: denoisers have one. Of a folder that is no preset's, none."""
        return self.folder.name in NETWORKS and NETWORKS[self.folder.name][1] == DENOISER

    @property
    def is_whole(self) -> bool:
        """Whether it was made to the end."""
        return all((self.folder / name).exists() for name in (SIGNATURE, *((INT8_WEIGHTS,) if self.has_int8 else ())))

    def graph(self) -> Onnx:
        """The ONNX file, and the weights beside it."""
        data, outside = (self.folder / GRAPH).read_bytes(), self.folder / OUTSIDE
        if not outside.exists():
            return Onnx(data)
        return with_weights(data, GRAPH, OUTSIDE, memoryview(np.memmap(outside, np.uint8, "c")))

    def native(self, precision: str, threads: int) -> NativeGraph:
        """The native program, opened."""
        files = (INT8_PROGRAM, INT8_WEIGHTS) if precision == "int8" else (PROGRAM, WEIGHTS)
        program, weights = ((self.folder / name).read_bytes() for name in files)
        name = NETWORKS[self.folder.name][1]
        return open_graph(program, weights_of(weights, files[1]), self.spec, name, precision, threads, files[0])

    def sha256(self) -> str:
        """Of the ONNX file, which names a digest of weights that lie outside."""
        return hashlib.sha256(self.graph().data).hexdigest()

    def inputs(self, n: int, seed: int) -> Values:
        """Normal numbers for n samples, but for what a condition decides."""
        rng = np.random.default_rng(seed)
        shapes = {spec.name: [n if isinstance(size, str) else size for size in spec.shape] for spec in self.spec.inputs}
        drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        known = self.condition(n)
        return drawn | {name: known[name][: len(drawn[name])] for name in drawn if name in known}

    def condition(self, n: int) -> Values:
        """Of a denoiser for n samples: its row, keys_values where it attends to a context, and what both are made of."""
        path = self.folder / CONDITION
        if not path.exists():
            return {}
        with np.load(path) as stored:
            return {name: np.repeat(stored[name], n, axis=0) for name in stored.files}


class NetworkRunner:
    """A network on one of our backends, called by itself."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        assert task.network is not None, "whole images are EngineRunner's"
        self._network = Network(task.network)
        self._call = _opened(self._network, contestant, contestant.threads or task.threads)

    def eps(self, x: F32, values: Values, timestep: int) -> F32:
        """The network's output on `values`, its own inputs; x and the timestep are not looked at."""
        return np.array(self._call(values), np.float32)

    def run(self, n: int, seed: int, steps: int) -> Run:
        """So many calls on the same inputs, and what the last one gave."""
        return timed_calls(self._call, self._network.inputs(n, seed), steps)


def timed_calls(call: Callable[[Values], F32], values: Values, steps: int) -> Run:
    """So many calls on the same inputs, and what the last one gave."""
    calls, output = [], np.zeros(0, np.float32)
    for _ in range(steps):
        started = time.perf_counter()
        output = call(values)
        calls.append(1e3 * (time.perf_counter() - started))
    return Run(np.array(output, np.float32), sum(calls), calls)


def _opened(network: Network, contestant: Contestant, threads: int) -> Any:
    """A function from named arrays to the output."""
    if contestant.backend == "native":
        graph = network.native(contestant.precision, threads)
        return lambda values: next(iter(graph(**values).values()))
    if contestant.backend == "onnxruntime":
        session = ort.open_session(network.graph(), threads)
        return lambda values: session.run(None, values)[0]
    request = openvino.compile_model(network.graph(), contestant.precision, threads).create_infer_request()
    return lambda values: request.infer(values)[0]


def make(preset: str, folder: Path) -> None:
    """Write the files of a preset, the signature last."""
    from export.graphs.onnx_export import export_onnx
    from export.native.latent import lower_decoder, lower_denoiser
    from export.synthetic import random_network

    published, graph = NETWORKS[preset]
    role = random_network(published, graph)
    lowered = lower_denoiser(role) if graph == DENOISER else lower_decoder(role)
    folder.mkdir(parents=True, exist_ok=True)
    exported = export_onnx(role)
    (folder / GRAPH).write_bytes(exported.data)
    if exported.weights:
        with (folder / OUTSIDE).open("wb") as file:
            file.writelines(exported.pieces())
    (folder / PROGRAM).write_bytes(lowered.program)
    (folder / WEIGHTS).write_bytes(lowered.weights)
    if graph == DENOISER:
        condition = _condition(role)
        np.savez(folder / CONDITION, **condition)
        lowered = lower_denoiser(role, "int8", _scales(role, condition))
        (folder / INT8_PROGRAM).write_bytes(lowered.program)
        (folder / INT8_WEIGHTS).write_bytes(lowered.weights)
    sides = {"inputs": role.inputs, "outputs": role.outputs}
    signature = {side: {spec.name: list(spec.shape) for spec in specs} for side, specs in sides.items()}
    part = folder / f"{SIGNATURE}.part"
    part.write_text(json.dumps(signature))
    os.replace(part, folder / SIGNATURE)


def _condition(role: Role) -> Values:
    """A timestep, the first label and tokens of normal numbers, and what the network makes of them: row, keys, values."""
    import torch

    unet: Any = role.module.unet
    timestep, labels = torch.tensor([TIMESTEP]), getattr(unet, "label_emb", None)
    added = None if labels is None else labels(torch.zeros(1, dtype=torch.int64))
    found = {"timestep": timestep, "row": unet.timestep_rows(timestep, added)}
    for spec in role.inputs:
        if spec.name == "keys_values":
            shape = 1, int(spec.shape[1]), unet.spec.context_dim
            context = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            found |= {"context": context, "keys_values": unet.keys_values(context)}
    return {name: value.numpy() for name, value in found.items()}


def _scales(role: Role, condition: Values) -> Any:
    """Of every operation that may run in int8, found on normal numbers."""
    import torch

    from export.native.scales import choose_scales
    from export.native.trajectory import States

    rng = np.random.default_rng(0)
    inputs = {
        spec.name: np.repeat(condition[spec.name], CALIBRATED_ON, axis=0)
        if spec.name in condition
        else rng.standard_normal((CALIBRATED_ON, *(int(size) for size in spec.sample))).astype(np.float32)
        for spec in role.inputs
    }
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return choose_scales(role, States(tensors, (TIMESTEP,) * CALIBRATED_ON))


@click.command(cls=Program)
@click.argument("preset", type=click.Choice(list(NETWORKS)))
@click.option("--out", type=Path, required=True)
def main(preset: str, out: Path) -> None:
    """Write a preset's network with random weights: ONNX, native program and signature."""
    make(preset, out)


if __name__ == "__main__":
    main()
