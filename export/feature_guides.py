"""Guides by what the denoiser itself sees: the gradient of a loss of its layers' outputs, taken through the network.

    g = - grad_x loss(layers of denoiser(x, row, ...))          [N, C, H, W], of each sample by itself

The mechanism of depth-aware guidance (Kim et al. 2022), whose loss is of a depth map that a head makes of such layers; any
head will do. The guide's graph has a forward pass of its own, as far as the last of the layers.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.bundle.pipeline import ROWS, TIMESTEPS, X
from engine.errors import ExportError
from export.families.base import Model
from export.graphs.gradients import traced
from export.graphs.roles import Example, Role, tensor
from export.guides import BOUND, COMPUTE, Recorded, check, check_scale, distinct, frozen, guide_entry, recording

NAME = "guide"
NO_CLASSES = 2  # the least that a manifest has; without entropy nothing reads it


@dataclass(frozen=True)
class FeatureGuide:
    """What a model is guided by.

    head    {layer: its output [N, ...]} -> a loss a sample, [N]
    layers  the names of submodules of the denoiser, `model.step.module`
    """

    head: nn.Module
    layers: tuple[str, ...]


class FeatureGradient(Recorded):
    """x, row and what else the denoiser takes -> g: plain operations."""

    def __init__(self, denoiser: nn.Module, guide: FeatureGuide, x: str, given: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.of = denoiser, guide, x  # in a tuple: the parameters are in the trace already
        names = list(given)
        self.recorded = traced(lambda *values: self.by_autograd(**dict(zip(names, values, strict=True))), *given.values())
        kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]

        def forward(*values: torch.Tensor, **named: torch.Tensor) -> Any:
            return self.recorded(*values, *(named[name] for name in names[len(values) :]))

        # torch's exporter asks a module for the names of its inputs.
        forward.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
        self.forward = forward

    def by_autograd(self, **inputs: torch.Tensor) -> tuple[torch.Tensor]:
        denoiser, guide, x = self.of
        at = inputs[x].detach().requires_grad_(True)
        with torch.enable_grad():
            loss = guide.head(features(denoiser, guide.layers, inputs | {x: at}))
            (g,) = torch.autograd.grad(-loss.sum(), at)
        return (g.detach(),)


def features(denoiser: nn.Module, layers: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs of layers by name in one forward pass."""
    found: dict[str, torch.Tensor] = {}
    modules = dict(denoiser.named_modules())

    def keep(name: str) -> Any:
        def hook(module: nn.Module, taken: object, given: torch.Tensor) -> None:
            found[name] = given

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        denoiser(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def feature_role(model: Model, guide: FeatureGuide, examples: Example | None = None) -> Role:
    """The graph of a guide through a model's denoiser, checked against autograd.

    ExportError for layers that it does not have, a head that gives no loss a sample or whose loss of one depends on the
    others, a gradient that cannot be recorded, or one further off than 1e-4.
    """
    step, denoiser = model.step, model.step.module
    there = dict(denoiser.named_modules())
    if unknown := [name for name in guide.layers if not name or name not in there]:
        raise ExportError(
            f"guide: found no layer {', '.join(map(repr, unknown))} in the denoiser, expected names of its modules, such as "
            f"{', '.join(list(there)[1:6])}"
        )
    x = next(port for port, value in model.wiring.step.inputs.items() if value == X)
    g = tensor("g", next(spec.shape for spec in step.inputs if spec.name == x))
    with frozen(nn.ModuleList([denoiser, guide.head])):
        given = distinct(step)
        _check_head(denoiser, guide, given, len(given[x]))
        with recording("guide", f"the gradient of {type(guide.head).__name__}", "head"):
            module = FeatureGradient(denoiser, guide, x, given)
        _check_samples(module, given, len(given[x]))
        role = Role(NAME, module, step.inputs, (g,), compute=COMPUTE)
        check(role, examples or model.example)
    return role


def with_feature_guide(
    model: Model,
    guide: FeatureGuide,
    *,
    scale: float = 1.0,
    mode: str = "constant",
    interval: tuple[int, int] | None = None,
) -> Model:
    """The model with a guide through its own denoiser, of every timestep; options as `export.guides.with_guides` has them.

    A positive scale lowers the loss. The guide has no entropy, so that mode "entropy" is refused.
    """
    check_scale(model, scale)
    wiring, pipeline = model.wiring, model.pipeline
    if wiring.per_sample_rows:
        others = ", ".join(sorted(set(wiring.rows.inputs.values()) - {TIMESTEPS}))
        raise ExportError(
            f"guide: found that the rows of {wiring.rows.graph} depend on {others} too, expected a denoiser whose rows are "
            "of timesteps alone, as a guide's are"
        )
    table = dataclasses.replace(model.roles[wiring.rows.graph], name=f"{NAME}_table")
    role = feature_role(model, guide)
    takes = ROWS in wiring.step.inputs.values()
    entry = {
        "rows": {**pipeline["rows"], "graph": table.name} if takes else None,
        "step": {"graph": role.name, "inputs": dict(wiring.step.inputs), "outputs": {"g": "g"}},
        "timesteps": [0, model.schedule.T - 1],
        "classes": NO_CLASSES,
    }
    return dataclasses.replace(
        model,
        roles={**model.roles, **({table.name: table} if takes else {}), role.name: role},
        pipeline={**pipeline, "guides": [entry]},
        guide=guide_entry(scale, mode, interval),
    )


def _check_head(denoiser: nn.Module, guide: FeatureGuide, given: Mapping[str, torch.Tensor], batch: int) -> None:
    with torch.no_grad():
        seen = features(denoiser, guide.layers, given)
        if silent := [name for name in guide.layers if not isinstance(seen.get(name), torch.Tensor)]:
            raise ExportError(f"guide: found no tensor that {', '.join(silent)} gives, expected layers that give one each")
        loss = guide.head(seen)
    shape = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
    if shape != (batch,):
        raise ExportError(f"guide: found a loss {shape} of {batch} samples, expected {(batch,)}: a number a sample")


def _check_samples(module: FeatureGradient, given: Mapping[str, torch.Tensor], batch: int) -> None:
    """Refuse a loss of one sample that depends on the others."""
    first = {name: value[:1] if len(value) == batch else value for name, value in given.items()}
    ((alone,), (among,)) = module.by_autograd(**first), module.by_autograd(**given)
    off = float((alone - among[:1]).abs().max() / alone.abs().max().clamp(min=1e-30))
    if not off <= BOUND:
        raise ExportError(
            f"guide: found a sample whose gradient differs by {off:.2g} beside others, expected the same: the head may not "
            "look at the batch"
        )
