"""The graphs of a denoising diffusion GAN: signatures, and in which precision each may be computed.

    generator_table   timesteps, z -> rows     what depends on the step and its latent: time, gamma and beta of every block
    generator         x, row -> x0
"""

from __future__ import annotations

from engine.bundle.tensors import STEPS
from export.families.ddgan.architecture import Architecture
from export.graphs.roles import Role, tensor
from export.models.ncsnpp import Generator, GeneratorStep, GeneratorTable

# What the table rounds off would enter every step.
EXACT = {"bf16": "f32", "int8": "f32", "fp16": "f32"}
Z = "z"


def roles(of: Architecture, generator: Generator) -> dict[str, Role]:
    """The graphs of a bundle by name, in the order in which sampling uses them."""
    T, width = of.schedule.T, sum(generator.row_widths)
    state = ("batch", of.generator.channels, *of.size)
    steps = tensor("timesteps", (STEPS,), "int64", (0.0, T - 1.0))
    rows = tensor("rows", (STEPS, "batch", width))
    latent = tensor(Z, ("batch", STEPS, of.generator.latent))
    table = Role("generator_table", GeneratorTable(generator, T), (steps, latent), (rows,), compute=EXACT)
    inputs = (tensor("x", state), tensor("row", ("batch", width)))
    step = Role("generator", GeneratorStep(generator), inputs, (tensor("x0", state),))
    return {role.name: role for role in (table, step)}
