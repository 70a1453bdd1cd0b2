"""Graphs as torch defines them: a name, the module, what goes in and what comes out.

This is the one place where a graph's signature is said. The ONNX file, the manifest and the native program are made from it,
and the manifest's reader holds the pipeline against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from engine.bundle.graphs import GraphSpec, Parity, graph_key
from engine.bundle.maps import free_dimension, sizes_of, tensors_at
from engine.bundle.tensors import BATCH, Shape, TensorSpec

Inputs = dict[str, torch.Tensor]
STEPS = "steps"  # the free dimension of a table of timesteps


def tensor(
    name: str, shape: tuple[int | str, ...], dtype: str = "float32", range: tuple[float, float] | None = None
) -> TensorSpec:
    """One input or output. A text in `shape` is a free dimension; `range` None means unbounded."""
    return TensorSpec(name, dtype, shape, range)


def entry_of(spec: TensorSpec) -> dict[str, object]:
    """A tensor as manifest.json has it."""
    limits = "unbounded" if spec.range is None else list(spec.range)
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "range": limits}


@dataclass(frozen=True)
class Role:
    """One graph: its name, the torch module that defines it, its signature, and "f32" or "fp16" for its weights.

    compute: {precision asked for: precision that this graph runs in}, where they differ.
    scales: {output: what its error is relative to, where that is more than its largest value}.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str = "f32"
    compute: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def computes_in(self, asked: str) -> str:
        """The precision that this graph runs in when `asked` is what is built or run."""
        return self.compute.get(asked, asked)

    def spec(self) -> GraphSpec:
        """The signature as the manifest's reader has it, without a file."""
        parity = Parity("", 0.0, (), {})
        return GraphSpec("", 0, "", None, self.precision, 0, self.inputs, self.outputs, parity, dict(self.compute))

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs by name, computed in torch."""
        with torch.inference_mode():
            result = self.module(**inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        return {spec.name: value for spec, value in zip(self.outputs, outputs, strict=True)}


@dataclass(frozen=True)
class FreeSize:
    """The height and width that a graph's file leaves free.

    ports     {input or output that lies over the state: its pixels to one of the state's, a side}
    multiple  what a side of the state is a multiple of
    own       height and width of the state that the model was made for
    """

    ports: Mapping[str, int]
    multiple: int
    own: tuple[int, int]

    def at(self, role: Role, height: int, width: int) -> Role:
        """The role for a state of this size; its module takes any."""
        inputs, outputs = (tensors_at(tensors, self.ports, (height, width)) for tensors in (role.inputs, role.outputs))
        return replace(role, inputs=inputs, outputs=outputs)

    def names(self, spec: TensorSpec) -> Shape:
        """The shape of a tensor in the file: with names in the place of height and width."""
        factor = self.ports.get(spec.name)
        return spec.shape if factor is None else (*spec.shape[:-2], *(free_dimension(factor, axis) for axis in (0, 1)))

    def sizes(self) -> dict[str, int]:
        """{a free dimension of the file: its size in the state that the model was made for}."""
        return sizes_of(self.ports.values(), self.own)


def weights_file(role: Role) -> str:
    """The file for the weights of a graph that has more than an ONNX file may hold."""
    return f"{graph_key(role.name, role.precision)}.weights"


Example = Callable[[Role, int, int, int], Inputs]


def example(role: Role, batch: int, steps: int, seed: int) -> Inputs:
    """Random inputs within their ranges: timesteps over the whole of it, unit noise where there is no bound."""
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: _example(spec, batch, steps, generator) for spec in role.inputs}


def _example(spec: TensorSpec, batch: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    sizes = {BATCH: batch, STEPS: steps}
    shape = [sizes.get(d, FREE) if isinstance(d, str) else d for d in spec.shape]
    low, high = spec.range or (0.0, 0.0)
    if spec.dtype == "int64" and spec.shape == (STEPS,):
        return torch.linspace(high, low if steps > 1 else high, steps).round().long()
    if spec.dtype == "int64":
        return torch.randint(int(low), int(high) + 1, shape, generator=generator)
    if spec.range is None:
        return torch.randn(shape, generator=generator)
    return low + (high - low) * torch.rand(shape, generator=generator)


FREE = 3  # of any other free dimension in an example
OTHER_SEEDS = 1000  # what a table is fed shares no numbers with what the step is


def with_rows(steps_of: Mapping[str, tuple[Role, str]]) -> Example:
    """`example`, but a step's port is the embedding of a timestep as sampling has it: from its table, one a seed.

    steps_of: {a step's graph: its table, and the port}.
    """

    def made(role: Role, batch: int, steps: int, seed: int) -> Inputs:
        inputs = example(role, batch, steps, seed)
        table, port = steps_of.get(role.name, (None, ""))
        if table is None or port not in inputs:
            return inputs
        asked = example(table, batch, 3, seed + OTHER_SEEDS)
        times = next(spec.name for spec in table.inputs if spec.shape == (STEPS,))
        asked[times] = asked[times][seed % 3 : seed % 3 + 1]
        (rows,) = table(asked).values()
        return inputs | {port: rows[0] if rows.dim() == 3 else rows}

    return made
