"""How the graphs of a denoising diffusion GAN are wired: the manifest's `inputs` and `pipeline`.

    x_T ~ N(0, I);  x0 = generator(x, row(t, z)) with a fresh z ~ N(0, I) in each step;  x' ~ q(x' | x, x0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.bundle.inputs import EACH_STEP
from export.families.ddgan.architecture import Architecture
from export.families.ddgan.graphs import Z
from export.graphs.roles import Role, entry_of

Json = dict[str, Any]


def inputs(roles: Mapping[str, Role]) -> list[Json]:
    """The declared inputs: the latent of every step."""
    (latent,) = (spec for spec in roles["generator_table"].inputs if spec.name == Z)
    return [entry_of(latent) | {"draw": EACH_STEP, "null": None, "picture": None}]


def pipeline(of: Architecture) -> Json:
    """The calls around and in the loop, and what the loop carries."""
    height, width = of.size
    rows = {"graph": "generator_table", "inputs": {"timesteps": "timesteps", Z: Z}, "outputs": {"rows": "rows"}}
    return {
        "encode": [],
        "before": [],
        "rows": rows,
        "step": {"graph": "generator", "inputs": {"x": "x", "row": "rows"}, "outputs": {"x0": "e"}},
        "quantize": None,
        "after": [],
        "nulls": {},
        "state": {
            "channels": of.generator.channels, "height": height, "width": width, "clip": None, "centre": None, "start": None,
        },
        "image": "x",
        "maps": None,
        "multiple": None,
    }  # fmt: skip
