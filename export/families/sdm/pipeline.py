"""How the graphs of a semantic diffusion model are wired: the manifest's `inputs` and `pipeline`.

    segmap = label_map(labels, (instances));  x_T ~ N(0, I);  eps, range = denoiser(x, segmap, modulation(segmap), row(t))

The null of the label map is no label anywhere: zeros, edges included. Its gamma and beta are made once for all requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.families.adm.architecture import Architecture
from export.families.sdm.architecture import Labels
from export.families.sdm.graphs import given
from export.graphs.roles import Role, entry_of

Json = dict[str, Any]


def inputs(of: Architecture, labels: Labels) -> list[Json]:
    """The declared inputs: the label map and, where the network knows edges, the instances."""
    return [entry_of(spec) | {"draw": None, "null": None, "picture": None} for spec in given(of, labels)]


def pipeline(of: Architecture, labels: Labels, roles: Mapping[str, Role]) -> Json:
    """The calls around and in the loop, and what the loop carries."""
    height, width = of.size
    denoiser = roles["denoiser"]
    asked = {spec.name: spec.name for spec in given(of, labels)}
    before = [_call("label_map", asked, {"segmap": "segmap"})]
    if "modulation" in roles:
        before.append(_call("modulation", {"segmap": "segmap"}, {"modulation": "modulation"}))
    takes = {spec.name: "rows" if spec.name == "row" else spec.name for spec in denoiser.inputs}
    gives = {spec.name: "variance" if spec.name == "range" else "e" for spec in denoiser.outputs}
    return {
        "encode": [],
        "before": before,
        "rows": _call("timestep_table", {"timesteps": "timesteps"}, {"rows": "rows"}),
        "step": _call("denoiser", takes, gives),
        "quantize": _call("renormalizer", {"x0": "x0"}, {"renormalized": "x0"}) if "renormalizer" in roles else None,
        "after": [],
        "nulls": {"segmap": 0.0},
        "state": {
            "channels": of.unet.channels, "height": height, "width": width, "clip": 1.0, "centre": None, "start": None,
        },
        "image": "x",
        # gamma and beta are made for one size, some of them of maps smaller than the state.
        "maps": None,
        "multiple": None,
    }  # fmt: skip


def _call(graph: str, takes: dict[str, str], gives: dict[str, str]) -> Json:
    return {"graph": graph, "inputs": takes, "outputs": gives}
