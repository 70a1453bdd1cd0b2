"""How the graphs of a DiffuseVAE model are wired: the manifest's `inputs` and `pipeline`.

    z ~ N(0, I) or a fitted prior;  recon = vae_decoder(z);  eps = denoiser(x, recon, row(t));  x_0 is the image

The refiner was trained with the reconstruction (and z, where it takes one) replaced by zeros now and then: that is its null.
Formulation 2 centres every x_t on the reconstruction. The unconditional model has neither z nor reconstruction.
"""

from __future__ import annotations

from typing import Any

from export.models.unet import UNetSpec
from export.models.vae import VAESpec

Json = dict[str, Any]


def inputs(unet: UNetSpec, vae: VAESpec | None) -> list[Json]:
    """The declared inputs: z, where there is a VAE."""
    if vae is None:
        return []
    null = 0.0 if unet.z_dim is not None else None
    z = {"name": "z", "dtype": "float32", "shape": ["batch", vae.z_dim], "range": "unbounded", "draw": "normal"}
    return [z | {"picture": None, "null": null}]


def pipeline(unet: UNetSpec, formulation: int | None, prediction: str) -> Json:
    """The calls around and in the loop, and what the loop carries; `formulation` None is the unconditional model."""
    rows, step = {"timesteps": "timesteps"}, {"x": "x", "row": "rows"}
    encode: list[Json] = []
    before: list[Json] = []
    nulls: Json = {}
    if formulation is not None:
        encode = [_call("vae_encoder", {"image": "image"}, {"mu": "z", "logvar": "z_logvar"})]
        before = [_call("vae_decoder", {"z": "z"}, {"image": "recon"})]
        step = {"x": "x", "cond": "recon", "row": "rows"}
        nulls = {"recon": 0.0}
    if unet.z_dim is not None:
        rows |= {"z": "z"}
    return {
        "encode": encode,
        "before": before,
        "rows": _call("timestep_table", rows, {"rows": "rows"}),
        "step": _call("denoiser", step, {prediction: "e"}),
        "quantize": None,
        "after": [],
        "nulls": nulls,
        "state": {
            "channels": unet.out_channels,
            "height": unet.image_size,
            "width": unet.image_size,
            "clip": 1.0,
            "centre": "recon" if formulation == 2 else None,
            "start": "recon" if formulation is not None else None,
        },
        "image": "x",
        # The VAE's reconstruction is of the whole picture.
        "maps": [] if formulation is None else None,
        "multiple": 1 << (len(unet.channel_mult) - 1) if formulation is None else None,
    }


def _call(graph: str, takes: dict[str, str], gives: dict[str, str]) -> Json:
    return {"graph": graph, "inputs": takes, "outputs": gives}
