"""How the graphs of a latent diffusion model are wired: the manifest's `inputs` and `pipeline`.

    x_T ~ N(0, I);  e = denoiser(x, row(t), what the condition became);  image = first_stage_decoder(x_0)

VQ looks x_0 up first, image = first_stage_decoder(codebook(x_0)); `quantize` calls the same graph for every row.

A condition is attended to or concatenated. Keys and values of what is attended to depend on neither x nor t and are computed
before the loop; its null is the conditioner's output of a null input. What is concatenated has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export.families.latent.graphs import conditions
from export.graphs.roles import entry_of
from export.models.latent.spec import ClassConditionerSpec, InpaintConditionerSpec, LatentSpec, TokenConditionerSpec

Json = dict[str, Any]
NAMES = {"image": "known", "cond": "low_resolution"}  # of inputs whose graph calls them otherwise
PICTURES = {"known": "image", "low_resolution": "image", "mask": "mask"}


def inputs(spec: LatentSpec, null_tokens: Sequence[int] | None = None) -> list[Json]:
    """The declared inputs: what a request says of the condition.

    null_tokens: the ids of the empty text, where they are known; without them a text model takes no guidance.
    """
    null: Any = None
    if isinstance(spec.conditioner, ClassConditionerSpec):
        null = spec.conditioner.null
    elif isinstance(spec.conditioner, TokenConditionerSpec) and null_tokens is not None:
        null = list(null_tokens)
    found = []
    for tensor in conditions(spec):
        name = NAMES.get(tensor.name, tensor.name)
        more = {"name": name, "draw": None, "null": null, "picture": PICTURES.get(name)}
        found.append(entry_of(tensor) | more)
    return found


def pipeline(spec: LatentSpec) -> Json:
    """The calls around and in the loop, and what the loop carries."""
    channels, height, width = spec.latent
    given = {tensor.name: NAMES.get(tensor.name, tensor.name) for tensor in conditions(spec)}
    step, before = {"x": "x", "row": "rows"}, []
    coded = spec.stage.codes is not None
    look_up = [_call("codebook", {"latent": "x"}, {"codes": "codes"})] if coded else []
    decode = _call("first_stage_decoder", {"latent": "codes" if coded else "x"}, {"image": "decoded"})
    after, image = [*look_up, decode], "decoded"
    if isinstance(spec.conditioner, ClassConditionerSpec | TokenConditionerSpec):
        before = [
            _call("conditioner", given, {"context": "context"}),
            _call("keys_values", {"context": "context"}, {"keys_values": "keys_values"}),
        ]
        step |= {"keys_values": "keys_values"}
    elif "cond" in given:
        step |= given
    elif given:
        before = [_call("conditioner", given, {"cond": "cond"})]
        step |= {"cond": "cond"}
    if isinstance(spec.conditioner, InpaintConditionerSpec):
        after.append(_call("composite", {"decoded": "decoded", **given}, {"composite": "inpainted"}))
        image = "inpainted"
    return {
        "encode": [_call("first_stage_encoder", {"image": "image"}, {"latent": "x"})],
        "before": before,
        "rows": _call("timestep_table", {"timesteps": "timesteps"}, {"rows": "rows"}),
        "step": _call("denoiser", step, {spec.prediction: "e"}),
        "quantize": _call("codebook", {"latent": "x0"}, {"codes": "x0"}) if coded else None,
        "after": after,
        "nulls": {},
        "state": {"channels": channels, "height": height, "width": width, "clip": None, "centre": None, "start": None},
        "image": image,
        "maps": [given[tensor.name] for tensor in conditions(spec) if len(tensor.shape) > 2],
        "multiple": 1 << (len(spec.unet.channel_mult) - 1),  # the first stage takes what that leaves
    }


def _call(graph: str, takes: dict[str, str], gives: dict[str, str]) -> Json:
    return {"graph": graph, "inputs": takes, "outputs": gives}
