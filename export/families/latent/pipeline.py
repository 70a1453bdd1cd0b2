"""How the graphs of a latent diffusion model are wired: the manifest's `inputs` and `pipeline`.

    x_T ~ N(0, I);  e = denoiser(x, row(t), what the condition became);  image = decoder(x_0)

A condition is attended to or concatenated. Keys and values of what is attended to depend on neither x nor t and are computed
before the loop; its null is the conditioner's output of a null input. What is concatenated has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export.models.latent.spec import (
    ClassConditionerSpec,
    ImageConditionerSpec,
    InpaintConditionerSpec,
    LatentSpec,
    RescalerConditionerSpec,
    TokenConditionerSpec,
)

Json = dict[str, Any]


def inputs(spec: LatentSpec, null_tokens: Sequence[int] | None = None) -> list[Json]:
    """The declared inputs: those of the conditioner.

    null_tokens: the ids of the empty text, where they are known; without them a text model takes no guidance.
    """
    of, (channels, height, width) = spec.conditioner, spec.image
    match of:
        case ClassConditionerSpec():
            return [_input("label", "int64", [], [0, of.classes - 1], null=of.null)]
        case TokenConditionerSpec():
            null = None if null_tokens is None else list(null_tokens)
            return [_input("tokens", "int64", [of.length], [0, of.vocabulary - 1], null=null)]
        case RescalerConditionerSpec():
            sides = [side << of.stages for side in spec.latent[1:]]
            return [_input("labels", "int64", sides, [0, of.classes - 1])]
        case ImageConditionerSpec():
            return [_input("low_resolution", "float32", [of.channels, *spec.latent[1:]], [-1, 1], picture="image")]
        case InpaintConditionerSpec():
            return [
                _input("known", "float32", [channels, height, width], [-1, 1], picture="image"),
                _input("mask", "float32", [1, height, width], [0, 1], picture="mask"),
            ]
        case None:
            return []


def pipeline(spec: LatentSpec) -> Json:
    """The calls around and in the loop, and what the loop carries."""
    of, (channels, height, width) = spec.conditioner, spec.latent
    step, before = {"x": "x", "row": "rows"}, []
    after, image = [_call("first_stage_decoder", {"latent": "x"}, {"image": "decoded"})], "decoded"
    match of:
        case ClassConditionerSpec() | TokenConditionerSpec():
            (taken,) = inputs(spec)
            name = taken["name"]
            before = [
                _call("conditioner", {name: name}, {"context": "context"}),
                _call("keys_values", {"context": "context"}, {"keys_values": "keys_values"}),
            ]
            step |= {"keys_values": "keys_values"}
        case ImageConditionerSpec():
            step |= {"cond": "low_resolution"}
        case RescalerConditionerSpec() | InpaintConditionerSpec():
            names = {entry["name"]: entry["name"] for entry in inputs(spec)}
            before = [_call("conditioner", names, {"cond": "cond"})]
            step |= {"cond": "cond"}
    if isinstance(of, InpaintConditionerSpec):
        after.append(_call("composite", {"decoded": "decoded", "known": "known", "mask": "mask"}, {"image": "composite"}))
        image = "composite"
    return {
        "encode": [_call("first_stage_encoder", {"image": "image"}, {"latent": "x"})],
        "before": before,
        "rows": _call("timestep_table", {"timesteps": "timesteps"}, {"rows": "rows"}),
        "step": _call("denoiser", step, {spec.prediction: "e"}),
        "after": after,
        "nulls": {},
        "state": {"channels": channels, "height": height, "width": width, "clip": None, "centre": None, "start": None},
        "image": image,
    }


def _input(
    name: str, dtype: str, shape: list[int], limits: list[int], *, null: Any = None, picture: str | None = None
) -> Json:
    entry = {"name": name, "dtype": dtype, "shape": ["batch", *shape], "range": limits, "draw": None}
    return entry | {"null": null, "picture": picture}


def _call(graph: str, takes: dict[str, str], gives: dict[str, str]) -> Json:
    return {"graph": graph, "inputs": takes, "outputs": gives}
