"""What is the whole sampler, in torch? Its signature, the loop that its ONNX file must equal, and how near that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from engine import kernels
from engine.errors import ExportError
from engine.kernels import ROW_FIELDS
from engine.solver.feeds import step_feeds
from engine.solver.table import Schedule, build_step_table
from export.graphs.parity import LOADERS, native_failures, relative_error
from export.graphs.roles import Inputs, Role, Tensor

NAME = "sampler"
# Largest relative error of x against the float32 loop in torch, for chains that start at T / 2: nearer to T, x0 divides
# every rounding error by sqrt(alpha_bar) and clipping makes single pixels jump (tests/integration measures whole chains).
BOUNDS = {"f32": 1e-4, "fp16": 2e-2}
BATCHES = (1, 2, 1)
STEPS = (1, 2, 3)
GUIDANCE = (0.0, 0.5, 0.0)
ETA = (0.0, 0.0, 1.0)


class WholeSampler(nn.Module):
    """The reference: VAE decoder, table and denoiser as the roles have them, and the loop of engine/chain.py."""

    def __init__(self, decoder: nn.Module | None, table: nn.Module, denoiser: nn.Module, z_conditioned: bool) -> None:
        super().__init__()
        self.decoder, self.table, self.denoiser = decoder, table, denoiser
        self.z_conditioned = z_conditioned

    def forward(
        self,
        x_T: torch.Tensor,
        timesteps: torch.Tensor,
        coefficients: torch.Tensor,
        start: torch.Tensor,
        noise: torch.Tensor,
        z: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """x, and for a conditional model recon, both [N, 3, H, W] in [-1, 1]."""
        recon = torch.zeros_like(x_T)
        if self.decoder is not None and z is not None:
            recon = 2 * self.decoder(z) - 1
        weights = torch.ones(1) if guidance is None else guidance
        lanes = torch.tensor([1.0, 0.0])[: len(weights)]
        cond = torch.cat([lane * recon for lane in lanes])
        by_z = [torch.cat([lane * z for lane in lanes])] if self.z_conditioned and z is not None else []
        rows = self.table(timesteps, *by_z)
        x, x0 = start[0] * x_T + start[1] * recon + start[2] * recon, torch.zeros_like(x_T)
        for step, row in enumerate(coefficients):
            k = dict(zip(ROW_FIELDS, row, strict=True))
            embedding = rows[step] if by_z else rows[step : step + 1]
            lanes_x = torch.cat([x] * len(weights))
            inputs = (lanes_x, embedding) if self.decoder is None else (lanes_x, cond, embedding)
            parts = self.denoiser(*inputs).chunk(len(weights))
            eps = torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)
            previous, limit = x0, k["clip"]
            x0 = torch.clamp(k["p_x"] * x + k["p_eps"] * eps + k["p_cond"] * recon, -limit, limit)
            drawn = noise[step % len(noise)]
            x = k["k_x0"] * x0 + k["k_prev"] * previous + k["k_x"] * x + k["k_eps"] * eps
            x = x + k["k_cond"] * recon + k["sigma"] * drawn
        return (x,) if self.decoder is None else (x, recon)


def sampler_role(wanted: Mapping[str, Role], precision: str = "f32") -> Role:
    """The sampler over these float32 roles; `precision` is that of the file to be composed."""
    denoiser, decoder = wanted["denoiser"], wanted.get("vae_decoder")
    image = denoiser.outputs[0].shape
    z_conditioned = len(wanted["timestep_table"].inputs) > 1
    module = WholeSampler(
        decoder.module if decoder else None, wanted["timestep_table"].module, denoiser.module, z_conditioned
    )
    latent = decoder.inputs if decoder else ()
    inputs = (
        *latent,
        Tensor("x_T", image),
        wanted["timestep_table"].inputs[0],
        Tensor("coefficients", ("steps", len(ROW_FIELDS))),
        Tensor("start", (3,)),
        *((Tensor("guidance", ("lanes",)),) if decoder else ()),
        Tensor("noise", ("noise_steps", *image)),
    )
    outputs = (
        Tensor("images", ("batch", *image[2:], image[1]), "uint8", (0.0, 255.0)),
        Tensor("x", image),
        *((Tensor("recon", image, range=(-1.0, 1.0)),) if decoder else ()),
    )
    return Role(NAME, module.eval(), inputs, outputs, precision)


def measure_sampler(
    role: Role, model: bytes, runtimes: Sequence[str], schedule: Schedule, formulation: int | None
) -> dict[str, float]:
    """The largest relative error of each runtime; ExportError when one exceeds its bound, or when bytes are not x's."""
    cases = _examples(role, schedule, formulation)
    with torch.inference_mode():
        expected = [[value.numpy() for value in role.module(**case)] for case in cases]
    bound, errors = BOUNDS[role.precision], {}
    for name in runtimes:
        try:
            run = LOADERS[name](model)
            found = [run({key: value.numpy() for key, value in case.items()}) for case in cases]
        except native_failures() as error:
            raise ExportError(
                f"graph {role.name}: found that {name} cannot run it ({str(error).strip().splitlines()[0][:200]}), "
                "expected it to run; install the versions of the extra [export]"
            ) from error
        names = [tensor.name for tensor in role.outputs[1:]]  # images are x, rounded
        pairs = [(f[key], e[i]) for f, e in zip(found, expected, strict=True) for i, key in enumerate(names)]
        errors[name] = max(relative_error(a, b) for a, b in pairs)
        same_bytes = all(np.array_equal(f["images"], kernels.to_uint8(f["x"])) for f in found)
        if not errors[name] <= bound or not same_bytes:
            raise ExportError(
                f"graph {role.name}: found a relative error of {errors[name]:.3g} in {name} against torch"
                f"{'' if same_bytes else ', and images that are not its x'}, expected at most {bound:g}; report this "
                f"message with the versions of torch, onnx and {name}"
            )
    return errors


def _examples(role: Role, schedule: Schedule, formulation: int | None) -> list[Inputs]:
    """Chains from the middle of the schedule: one step, two with guidance, three with fresh noise."""
    conditional = formulation is not None
    cases = []
    for seed, (batch, steps, guidance, eta) in enumerate(zip(BATCHES, STEPS, GUIDANCE, ETA, strict=True)):
        table = build_step_table(
            schedule,
            formulation=formulation,
            steps=min(steps, schedule.T // 2),
            t_start=schedule.T // 2 if conditional else None,
            spacing="linspace" if conditional else "truncated",
            eta=eta,
        )
        arrays = step_feeds(table, guidance, conditional=conditional)
        free = {"batch": batch, "noise_steps": table.steps if table.stochastic else 1}
        rng = np.random.default_rng(seed)
        for tensor in role.inputs:
            if tensor.name not in arrays:  # z, x_T and noise: unit normals
                shape = [free[d] if isinstance(d, str) else d for d in tensor.shape]
                arrays[tensor.name] = rng.standard_normal(shape, np.float32)
        cases.append({tensor.name: torch.from_numpy(arrays[tensor.name]) for tensor in role.inputs})
    return cases
