"""Answers as bytes: PNG, WebP or .npy by the Accept header, JSON with all of it, events with a preview of each step."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.errors import ArgumentError
from engine.http.answers import Answer, Step
from engine.http.refusals import Refusal
from engine.imaging import grid, grid_bytes, png_bytes
from engine.result import U8

PNG, WEBP, NPY, JSON, EVENTS = "image/png", "image/webp", "application/x-npy", "application/json", "text/event-stream"
KINDS = (PNG, WEBP, NPY, JSON, EVENTS)  # the first where a client takes anything
LONGEST_ACCEPT = 500


def kind_for(accept: str | None) -> str:
    """The kind of answer that an Accept header prefers; Refusal 406 where it takes none that there is."""
    ranked: list[tuple[float, int, str]] = []
    for place, part in enumerate((accept or "*/*")[:LONGEST_ACCEPT].split(",")):
        name, *parameters = (word.strip() for word in part.lower().split(";"))
        quality = next((_quality(word[2:]) for word in parameters if word.startswith("q=")), 1.0)
        found = next((kind for kind in KINDS if name in (kind, f"{kind.split('/')[0]}/*", "*/*")), None)
        if found is not None and quality > 0:
            ranked.append((-quality, place, found))
    if not ranked:
        shown = (accept or "")[:LONGEST_ACCEPT]
        raise Refusal(406, f"accept: found {shown!r}, expected one of {', '.join(KINDS)}; send such a header, or none")
    return min(ranked)[2]


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def check_outputs(kind: str, wanted: frozenset[str], pictures: tuple[str, ...]) -> None:
    """Refuse outputs that a kind of answer cannot hold: a file holds one, and a picture file a picture."""
    if kind in (JSON, EVENTS):
        return
    if len(wanted) != 1:
        raise ArgumentError(f"outputs: found {len(wanted)}, expected one in {kind}. Ask for {JSON}, or for one.")
    if kind != NPY and not wanted <= set(pictures):
        raise ArgumentError(f"outputs: found {', '.join(wanted)}, which is no picture, in {kind}. Ask for {NPY} or {JSON}.")


def encode(kind: str, answer: Answer, pictures: tuple[str, ...]) -> bytes:
    """A complete answer without an error; several pictures are one grid in PNG and WebP, as the command line writes it."""
    if kind in (JSON, EVENTS):
        return json.dumps(describe(answer, pictures)).encode()
    (array,) = answer.results.values()
    return npy_bytes(array) if kind == NPY else _picture(array, kind)


def _picture(images: U8, kind: str) -> bytes:
    if kind == PNG:
        return png_bytes(images[0]) if len(images) == 1 else grid_bytes(images)
    from PIL import Image

    sheet, buffer = images[0] if len(images) == 1 else grid(images), io.BytesIO()
    picture = Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet)
    picture.save(buffer, format="WEBP", lossless=True)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def describe(answer: Answer, pictures: tuple[str, ...]) -> dict[str, Any]:
    """The JSON of an answer: pictures as base64 PNG files, other arrays as nested lists, and what they were made with."""
    found: dict[str, Any] = {
        name: [_base64(png_bytes(image)) for image in array] if name in pictures else array.tolist()
        for name, array in answer.results.items()
    }
    return {"outputs": found, **facts(answer)}


def facts(answer: Answer) -> dict[str, Any]:
    """How an answer came about: seeds, setting, timesteps, what became of a budget, and milliseconds."""
    assert answer.ask is not None
    assert answer.batch is not None
    batch = answer.batch
    deadline = None if batch.deadline is None else asdict(batch.deadline) | {"kept": batch.deadline.kept}
    return {
        "seeds": answer.ask.seeds.tolist(),
        "setting": asdict(batch.setting),
        "timesteps": batch.timesteps.tolist(),
        "deadline": deadline,
        "timings": timings(answer),
    }


def timings(answer: Answer) -> dict[str, float]:
    """Milliseconds: in the queue, in the run's network and the rest of it, and from arrival to answer; images of the run."""
    assert answer.batch is not None
    took = answer.batch.timings
    return {
        "queue_ms": round(answer.waited_ms, 3),
        "network_ms": round(took.network_ms, 3),
        "rest_ms": round(took.total_ms - took.network_ms, 3),
        "total_ms": round(answer.took_ms, 3),
        "batch": len(answer.batch),
    }


def headers(answer: Answer) -> dict[str, str]:
    """What the files' answers say beside them: the seeds and the setting, and the timings as browsers show them."""
    assert answer.ask is not None
    assert answer.batch is not None
    took = timings(answer)
    entries = [f"{name};dur={took[f'{name}_ms']}" for name in ("queue", "network", "rest", "total")]
    return {
        "Server-Timing": ", ".join(entries),
        "Diffusevae-Seeds": ",".join(map(str, answer.ask.seeds.tolist())),
        "Diffusevae-Setting": json.dumps(asdict(answer.batch.setting)),
        "Diffusevae-Batch": str(took["batch"]),
    }


def step_data(step: Step) -> str:
    """A step as the data of an event."""
    images = [_base64(png_bytes(image)) for image in step.images]
    told = {"step": step.step, "steps": step.steps, "timestep": step.timestep, "stage": step.stage + 1}
    return json.dumps({**told, "images": images})


def event(name: str, data: str) -> bytes:
    """A server-sent event; the data is one line of JSON."""
    return f"event: {name}\ndata: {data}\n\n".encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
