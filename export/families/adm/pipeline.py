"""How the graphs of a guided diffusion model are wired: the manifest's `inputs` and `pipeline`.

    x_T ~ N(0, I);  eps, range = denoiser(x, (enlarged), row(t, (label)));  x_0, limited, is the image

There is no null: these models were trained with their label always, and none stands for no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.families.adm.architecture import Architecture
from export.graphs.roles import Role, entry_of

Json = dict[str, Any]


def inputs(roles: Mapping[str, Role]) -> list[Json]:
    """The declared inputs: the label, and the image that an upsampler enlarges."""
    given = [(role.inputs[0], picture) for name, picture in GIVEN.items() if (role := roles.get(name)) is not None]
    return [entry_of(spec) | {"draw": None, "null": None, "picture": picture} for spec, picture in given]


GIVEN: dict[str, str | None] = {"label_embedding": None, "enlarger": "image"}  # what takes an input, and what that is


def pipeline(of: Architecture) -> Json:
    """The calls around and in the loop, and what the loop carries."""
    before, rows, step = [], {"timesteps": "timesteps"}, {"x": "x"}
    if of.small is not None:
        before.append(_call("enlarger", {"low_resolution": "low_resolution"}, {"cond": "enlarged"}))
        step |= {"cond": "enlarged"}
    if of.unet.classes is not None:
        before.append(_call("label_embedding", {"label": "label"}, {"embedding": "label_embedding"}))
        rows |= {"z": "label_embedding"}
    variance = {"range": "variance"} if of.unet.learned_variance else {}
    height, width = of.size
    return {
        "encode": [],
        "before": before,
        "rows": _call("timestep_table", rows, {"rows": "rows"}),
        "step": _call("denoiser", {**step, "row": "rows"}, {of.prediction: "e", **variance}),
        "quantize": None,
        "after": [],
        "nulls": {},
        "state": {
            "channels": of.unet.channels, "height": height, "width": width, "clip": 1.0, "centre": None, "start": None,
        },
        "image": "x",
        # A map has whole pixels to one of the state's: the small image of an upsampler has not.
        "maps": [] if of.small is None else None,
        "multiple": of.unet.multiple if of.small is None else None,
    }  # fmt: skip


def _call(graph: str, takes: dict[str, str], gives: dict[str, str]) -> Json:
    return {"graph": graph, "inputs": takes, "outputs": gives}
