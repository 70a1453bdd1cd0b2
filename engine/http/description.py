"""What a server says of itself: `/v1/info` for programs, and the OpenAPI document, whose examples work as they stand."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

import numpy as np

from engine import __version__, resolve
from engine.bundle.examples import examples_of
from engine.cascade import Cascade
from engine.http import formats
from engine.http.axes import principal_axes
from engine.http.fields import IMAGES, MASKS, WHOLE
from engine.http.reader import Reader, picture_of
from engine.imaging import FITS, png_bytes
from engine.text import TEXT

SUMMARIES = {
    "sample": "Images of seeds",
    "reconstruct": "Pictures encoded, and sampled from what the encoder makes of them",
    "refine": "Pictures refined themselves: denoised, sharpened",
    "edit": "Seeds, latents or pictures, moved along the bundle's directions",
    "interpolate": "The way from one image to another",
    "upscale": "Small pictures, sampled large",
    "inpaint": "Pictures whose masked part is filled in",
}
ERRORS = {
    "400": "A field is wrong; the message says which, what was expected and what to do",
    "401": "The token is missing or another", "403": "Another Host or Origin", "406": "No such kind of answer",
    "408": "The body took too long", "413": "The body is too large", "415": "The body is no JSON",
    "429": "The queue is full: Retry-After says when to ask again",
    "503": "No setting keeps the budget, the images have no room, or the server closes", "504": "The answer took too long",
}  # fmt: skip


def info(reader: Reader) -> dict[str, Any]:
    """The bundle, the machine's part in it, the verbs and their fields, and the limits."""
    sampler, manifest = reader.sampler, reader.manifest
    stages = [one.bundle.manifest for one in sampler.samplers] if isinstance(sampler, Cascade) else [manifest]
    channels, height, width = stages[-1].pipeline.image_shape
    drawn, fitted = manifest.drawn, manifest.fitted
    return {
        "name": manifest.name,
        "version": __version__,
        "path": str(sampler.bundle.path),
        "backend": sampler.backend,
        "precision": sampler.precision,
        "threads": sampler.threads,
        "image": {"height": height, "width": width, "channels": channels},
        "stages": [stage.name for stage in stages],
        "inputs": [str(spec) for spec in reader.inputs],
        "given": [
            {"name": spec.name, "shape": list(spec.sample), "range": spec.range, "dtype": spec.dtype}
            for spec in reader.inputs
            if spec.draw is None
        ],
        "text": next((stage.text.input for stage in stages if stage.text is not None), None),
        "drawn": None if drawn is None else {"name": drawn.name, "shape": list(drawn.sample)},
        "start": manifest.pipeline.state.start,
        "directions": [] if manifest.directions is None else list(manifest.directions.names),
        "axes": principal_axes(sampler.bundle).tolist(),
        "outputs": list(reader.outputs),
        "setting": asdict(resolve.setting_of(manifest, {})),
        "fitted": [] if fitted is None else [asdict(setting) for setting in fitted.settings],
        "T": manifest.schedule.T,
        "limits": vars(reader.limits),
        "verbs": {verb: {name: field.schema for name, field in reader.fields[verb].items()} for verb in reader.verbs},
    }


def openapi(reader: Reader) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {f"/v1/{verb}": {"post": _operation(reader, verb)} for verb in reader.verbs}
    for path, summary, kind in (
        ("/v1/info", "What this server runs and takes", formats.JSON),
        ("/healthz", "Whether the process lives", "text/plain"),
        ("/readyz", "Whether it has warmed up and answers", "text/plain"),
        ("/metrics", "Prometheus's metrics", "text/plain"),
    ):  # fmt: skip
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "It", "content": {kind: {}}}}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{reader.manifest.name}: diffusion in a few steps", "version": __version__,
            "description": "Bodies hold the keyword arguments of the Sampler's verbs in Python; the Accept header chooses "
            "the kind of the answer. The same seed, inputs and setting are the same image.",
        },
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(reader: Reader, verb: str) -> dict[str, Any]:
    fields = reader.fields[verb].values()
    body = {
        "type": "object",
        "properties": {field.name: field.schema for field in fields},
        "required": [field.name for field in fields if field.needed and not field.instead],
        "additionalProperties": False,
    }
    for field in fields:
        if field.needed and field.instead:
            body["oneOf"] = [{"required": [field.name]}, {"required": [field.instead]}]
    pictures, text = {"schema": {"type": "string", "format": "binary"}}, {"schema": {"type": "string"}}
    content = {
        formats.PNG: pictures, formats.WEBP: pictures, formats.NPY: pictures, formats.JSON: {"schema": {"type": "object"}},
        formats.EVENTS: text,
    }  # fmt: skip
    error = {"schema": {"type": "object", "properties": {"error": {"type": "object"}}}}
    return {
        "summary": SUMMARIES[verb],
        "operationId": verb,
        "parameters": _parameters(reader, verb),
        "requestBody": {"required": True, "content": {formats.JSON: {"schema": body, "example": _example(reader, verb)}}},
        "responses": {
            "200": {"description": "The images; several are one grid in PNG and WebP", "content": content},
            **{code: {"description": text, "content": {formats.JSON: error}} for code, text in ERRORS.items()},
        },
    }


def _parameters(reader: Reader, verb: str) -> list[dict[str, Any]]:
    names = ", ".join(reader.outputs)
    found = {"outputs": ({"type": "string", "default": "image"}, f"Some of {names}, with commas between them.")}
    if IMAGES in reader.fields[verb] or verb == "edit" or any(spec.picture for spec in reader.inputs):
        found["fit"] = ({"type": "string", "default": FITS[0]}, "Pictures of other proportions: crop, or pad.")
        found["background"] = ({"type": "string", "default": "white"}, "Below what is transparent.")
    return [
        {"name": name, "in": "query", "schema": schema, "description": text} for name, (schema, text) in found.items()
    ]


def _example(reader: Reader, verb: str) -> dict[str, Any]:
    """A body that works as it stands."""
    examples = examples_of(reader.inputs, free=1) or {}
    needed: dict[str, Any] = {
        spec.name: np.asarray(examples[spec.name]).tolist() if spec.picture is None else _picture(spec.picture_shape)
        for spec in reader.inputs
        if spec.name in examples
    }
    if worded := [field.name for field in reader.fields[verb].values() if field.instead and field.name in needed]:
        del needed[worded[0]]
        needed[TEXT] = "a red house"
    if verb == "interpolate":
        return {"a": 3, "b": 9, "n": min(8, reader.limits.max_batch), **needed}
    if verb == "edit" and reader.manifest.directions is not None:
        first = reader.manifest.directions.names[0]
        return {"what": list(range(min(4, reader.limits.max_batch))), "edits": {first: 1.0}, **needed}
    if verb == "sample":
        return {"n": min(4, reader.limits.max_batch), "seed": 0, **needed}
    shape = picture_of(reader.manifest, verb)
    pictures: dict[str, Any] = {IMAGES: [_picture(shape)], MASKS: [_picture((1, *shape[1:]))]}
    if shape != reader.manifest.pipeline.image_shape:
        pictures[WHOLE] = False
    known = {name: value for name, value in needed.items() if name in reader.fields[verb]}
    setting = {"seed": 0, "steps": 5, "t_start": reader.manifest.schedule.T * 3 // 10}
    fields = reader.fields[verb]
    return {**{name: value for name, value in (pictures | setting).items() if name in fields}, **known}


def _picture(shape: tuple[int, int, int]) -> str:
    """A ramp as a picture's file in base64."""
    channels, height, width = shape
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    return base64.b64encode(png_bytes(np.tile(ramp, (height, 1, channels)))).decode()
