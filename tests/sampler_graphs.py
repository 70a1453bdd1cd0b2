"""The whole-sampler graph of a bundle that was built without one, made of the bundle's own graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from engine.backends.onnxruntime import open_session
from engine.bundle.reader import Bundle
from export.graphs.roles import Role
from export.graphs.sampler_graph import compose_sampler
from export.graphs.sampler_role import sampler_role


def roles_of(bundle: Bundle) -> dict[str, Role]:
    """The pipeline's graphs with the signatures of the manifest, and nothing behind them."""
    graphs, names = bundle.manifest.graphs, bundle.manifest.pipeline.graphs
    return {name: Role(name, nn.Identity(), graphs[name].inputs, graphs[name].outputs) for name in names}


def compose(bundle: Bundle) -> bytes:
    """The float32 sampler graph of a bundle."""
    manifest, wanted = bundle.manifest, roles_of(bundle)
    role = sampler_role(manifest.inputs, manifest.pipeline, wanted)
    return compose_sampler(role, manifest.pipeline, {name: bundle.read_graph(name) for name in wanted})


class OrtSampler:
    """Runs a sampler graph in ONNX Runtime on one thread; takes only those feeds that the graph has."""

    def __init__(self, model: bytes) -> None:
        self.session = open_session(model, 1)
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.session.run(self.outputs, {name: feeds[name] for name in self.inputs})
        return dict(zip(self.outputs, found, strict=True))
