"""How do tests get the whole-sampler graph of a bundle that was built without one? From the bundle's own graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from engine.backends.onnxruntime import open_session
from engine.bundle.manifest import TensorSpec
from engine.bundle.reader import Bundle
from export.graphs.roles import Role, Tensor
from export.graphs.sampler_graph import compose_sampler
from export.graphs.sampler_role import sampler_role

PARTS = ("vae_decoder", "timestep_table", "denoiser")


def roles_of(bundle: Bundle) -> dict[str, Role]:
    """The roles by name with the signatures of the manifest, and nothing behind them."""

    def tensors(specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
        return tuple(Tensor(spec.name, spec.shape, spec.dtype, spec.range) for spec in specs)

    graphs = bundle.manifest.graphs
    return {
        name: Role(name, nn.Identity(), tensors(graphs[name].inputs), tensors(graphs[name].outputs))
        for name in PARTS
        if name in graphs
    }


def compose(bundle: Bundle) -> bytes:
    """The float32 sampler graph of a bundle."""
    wanted = roles_of(bundle)
    return compose_sampler(sampler_role(wanted), {name: bundle.read_graph(name) for name in wanted})


class OrtSampler:
    """Runs a sampler graph in ONNX Runtime on one thread; takes only those feeds that the graph has."""

    def __init__(self, model: bytes) -> None:
        self.session = open_session(model, 1)
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.session.run(self.outputs, {name: feeds[name] for name in self.inputs})
        return dict(zip(self.outputs, found, strict=True))
