"""The whole sampler in torch: a pipeline's calls and the loop over a step table's rows, as the engine runs them.

What the whole-sampler graph must equal, and where int8 calibration looks at what the network is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from engine.bundle.guides import ENTROPY, G, guide_of
from engine.bundle.pipeline import ROWS, TIMESTEPS, VARIANCE, CallSpec, E, PipelineSpec, X
from engine.kernels import ROW_FIELDS
from engine.solver.guides import BY_ENTROPY, BY_NORM, LEAST_ENTROPY, LEAST_NORM, MODES
from engine.solver.regulariser import REGULARISER
from export.graphs.roles import Inputs, Role

Seen = Callable[[int, Inputs], None]  # called with the row's number and what the network is asked


class WholeSampler(nn.Module):
    """x and, where the pipeline has one, the start value: the outputs of the graph `sampler` but for the bytes."""

    def __init__(self, pipeline: PipelineSpec, roles: Mapping[str, Role], seen: Seen | None = None) -> None:
        super().__init__()
        self.pipeline, self.roles, self.seen = pipeline, dict(roles), seen
        self.parts = nn.ModuleDict({name: roles[name].module for name in pipeline.graphs if name in roles})
        self.guides = GuidesInTorch(pipeline, self.roles) if pipeline.guides else None

    def forward(
        self,
        x_T: torch.Tensor,
        timesteps: torch.Tensor,
        coefficients: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        noise: torch.Tensor,
        guide_mode: torch.Tensor | None = None,
        nets: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        state, lanes = self.pipeline.state, weights.shape[1]
        values = dict(inputs)
        for call in self.pipeline.before:
            values |= self._call(call, values)
        rows = self._rows(values, timesteps, lanes)
        constants = {port: self._lanes(name, values, lanes) for port, name in self.pipeline.constants.items()}
        x = start[0] * x_T
        for factor, name in ((start[1], state.start), (start[2], state.centre)):
            x = x if name is None else x + factor * values[name]
        c = torch.zeros_like(x) if state.centre is None else values[state.centre]
        y, h1, h2, h3 = (torch.zeros_like(x) for _ in range(4))
        for i, row in enumerate(coefficients):
            k: Inputs = dict(zip(ROW_FIELDS, row, strict=True))
            if nets is not None and nets[i] == REGULARISER:
                e, v = self._second(int(timesteps[i]), k["c_in"] * x)
            else:
                e, v = self._network(i, k["c_in"] * x, constants, rows, weights[i])
            spread = None if v is None else torch.exp(k["s_n"] * v)
            n = noise[i % len(noise)] if spread is None else spread * noise[i % len(noise)]
            # x0 = limit(p . slots);  x' = k . slots;  y' = q . slots
            x0 = k["p_x"] * x + k["p_e"] * e + k["p_c"] * c
            x0 = x0 + (k["p_y"] * y + k["p_h1"] * h1 + k["p_h2"] * h2 + k["p_h3"] * h3)
            x0 = torch.clamp(x0, -k["clip"], k["clip"])
            slots = {"x0": x0, "x": x, "e": e, "c": c, "n": n, "y": y, "h1": h1, "h2": h2, "h3": h3}
            if self.guides is not None and k["k_g"] != 0:
                assert guide_mode is not None, "an input of pipelines with guides"
                mean = _sum(k, "k", {name: value for name, value in slots.items() if name != "n"})
                mode = MODES[int(guide_mode)]
                slots["g"] = self.guides.gradient(int(timesteps[i]), x, values, mode, mean, spread)
            x = _sum(k, "k", slots)
            if any(bool(k[f"q_{name}"] != 0) for name in slots):
                y = _sum(k, "q", slots)
            if k["push"] > 0:
                h1, h2, h3 = (e if k["push"] == 1 else x0), h1, h2
        return (x,) if state.start is None else (x, values[state.start])

    def images(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """The value that becomes pixels, of a final x."""
        values = dict(inputs)
        for call in self.pipeline.before:
            values |= self._call(call, values)
        values[X] = x
        for call in self.pipeline.after:
            values |= self._call(call, values)
        return values[self.pipeline.image]

    def _call(self, call: CallSpec, values: Inputs) -> Inputs:
        outputs = self.roles[call.graph]({port: values[name] for port, name in call.inputs.items()})
        return {call.outputs[port]: value for port, value in outputs.items()}

    def _rows(self, values: Inputs, timesteps: torch.Tensor, lanes: int) -> torch.Tensor:
        """[rows, 1, R], or [rows, lanes * N, R] where they depend on the sample."""
        call = self.pipeline.rows
        taken = {name: self._lanes(name, values, lanes) for name in call.inputs.values() if name != TIMESTEPS}
        rows = self._call(call, taken | {TIMESTEPS: timesteps})[ROWS]
        return rows if rows.dim() == 3 else rows[:, None, :]

    def _lanes(self, name: str, values: Inputs, lanes: int) -> torch.Tensor:
        """A value in every lane, [lanes * N, ...]: itself, then its null."""
        value = values[name]
        null = self._null(name, values).expand(value.shape) if lanes > 1 else value
        return torch.cat([value, *[null] * (lanes - 1)])

    def _null(self, name: str, values: Inputs) -> torch.Tensor:
        pipeline = self.pipeline
        if name in pipeline.nulls:
            return torch.as_tensor(pipeline.nulls[name]).expand(values[name].shape)
        if not pipeline.null_is_computed(name):
            return values[name]
        call = pipeline.maker(name)
        assert call is not None
        return self._call(call, {value: self._null(value, values) for value in call.inputs.values()})[name]

    def _network(
        self, i: int, x: torch.Tensor, constants: Inputs, rows: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """e of row i: the lanes that have a weight, each times its own, added up; and lane 0's second output, or None."""
        active = len(weights) if bool((weights[1:] != 0).any()) else 1
        count = active * len(x)
        step = self.pipeline.step
        inputs = {port: value[:count] for port, value in constants.items()}
        for port, name in step.inputs.items():
            if name == X:
                inputs[port] = torch.cat([x] * active)
            elif name == ROWS:
                inputs[port] = rows[i][:count] if len(rows[i]) > 1 else rows[i]
        if self.seen is not None:
            self.seen(i, inputs)
        outputs = self.roles[step.graph](inputs)
        made = {name: outputs[port].chunk(active) for port, name in step.outputs.items()}
        e = torch.stack([w * part for w, part in zip(weights, made[E], strict=False)]).sum(0)
        return e, made[VARIANCE][0] if VARIANCE in made else None


    def _second(self, t: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """e of the regulariser at timestep t, and its second output or None."""
        spec, own = self.pipeline.regulariser, {X: x}
        assert spec is not None, "nets are an input of pipelines with one"
        if spec.rows is not None:
            (own[ROWS],) = self.roles[spec.rows.graph](dict.fromkeys(spec.rows.inputs, torch.tensor([t]))).values()
        found = self.roles[spec.step.graph]({port: own[name] for port, name in spec.step.inputs.items()})
        given = {name: found[port] for port, name in spec.step.outputs.items()}
        return given[E], given.get(VARIANCE)


class GuidesInTorch:
    """The guides of a pipeline as engine/backends/guides.py runs them."""

    def __init__(self, pipeline: PipelineSpec, roles: Mapping[str, Role]) -> None:
        self.specs, self.roles = pipeline.guides, roles

    def gradient(
        self, t: int, x: torch.Tensor, values: Inputs, mode: str, mean: torch.Tensor, spread: torch.Tensor | None
    ) -> torch.Tensor:
        """The operand g of a row at timestep t; spread: exp(s_n v)."""
        guide, own = self.specs[guide_of(self.specs, t)], {X: x}
        if guide.rows is not None:
            (own[ROWS],) = self.roles[guide.rows.graph](dict.fromkeys(guide.rows.inputs, torch.tensor([t]))).values()
        step = guide.step
        known = {**values, **own}
        found = self.roles[step.graph]({port: known[name] for port, name in step.inputs.items()})
        given = {name: found[port] for port, name in step.outputs.items()}
        g = given[G] if spread is None else spread * spread * given[G]
        if mode == BY_ENTROPY:
            g = g * (math.log(guide.classes) / given[ENTROPY].clamp(min=LEAST_ENTROPY))[:, None, None, None]
        elif mode == BY_NORM:
            lengths = [value.double().square().sum(dim=(1, 2, 3), keepdim=True).sqrt() for value in (mean, g)]
            g = g * (lengths[0] / lengths[1].clamp(min=LEAST_NORM)).float()
        return g


def _sum(k: Inputs, kind: str, slots: Inputs) -> torch.Tensor:
    """Every slot times its coefficient, added up from the left."""
    total = torch.zeros(())
    for name, value in slots.items():
        total = total + k[f"{kind}_{name}"] * value
    return total
