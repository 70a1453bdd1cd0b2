"""The configuration of a served model: what the server hands to `initialize`, checked against the bundle it serves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backends import BACKENDS, backend_class
from engine.bundle.manifest import Manifest
from engine.commands import command
from engine.errors import ArgumentError, did_you_mean
from engine.threads import default_threads
from engine.triton.tensors import inputs_of, outputs_of

PARAMETERS = ("backend", "precision", "threads", "max_steps")
AGAIN = f"write the repository again with: {command('triton-repo', 'BUNDLE', '--out', 'REPOSITORY')}"


@dataclass(frozen=True)
class Options:
    """How one instance serves its bundle. `device` is a GPU's number, or None."""

    name: str
    bundle: Path
    backend: str
    precision: str
    threads: int
    max_steps: int
    max_batch: int
    device: int | None
    previews: bool
    config: Mapping[str, Any]


def read_options(args: Mapping[str, str]) -> Options:
    """The options in the arguments of `initialize`; ArgumentError names what is wrong in config.pbtxt."""
    config = json.loads(args["model_config"])
    parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
    _check_names(parameters)
    backend, instances = parameters["backend"], _instances(config)
    on_gpu = args["model_instance_kind"] == "GPU" and backend in BACKENDS and backend_class(backend).ON_DEVICE
    threads = max(1, default_threads() // instances)
    if parameters["threads"] != "auto":
        threads = _positive("threads", parameters["threads"])
    return Options(
        name=args["model_name"],
        bundle=Path(args["model_repository"], args["model_version"], "bundle"),
        backend=backend,
        precision=parameters["precision"],
        threads=threads,
        max_steps=_positive("max_steps", parameters["max_steps"]),
        max_batch=max(1, int(config["max_batch_size"])),
        device=int(args["model_instance_device_id"]) if on_gpu else None,
        previews=bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
        config=config,
    )


def check_tensors(
    config: Mapping[str, Any], manifest: Manifest, previews: bool, later: Sequence[Manifest] = ()
) -> None:
    """Refuse a configuration of another bundle than the one that lies beside it.

    Optional inputs and outputs may be left out: whoever runs the server may not want clients to choose the steps.
    """
    given, made = inputs_of(manifest, later), outputs_of(manifest, previews, later)
    for key, expected in (("input", given), ("output", made)):
        found = {entry["name"]: f"{entry['data_type']} {list(map(int, entry['dims']))}" for entry in config[key]}
        wanted = {tensor.name: f"{tensor.kind} {list(tensor.dims)}" for tensor in expected}
        needed = [tensor.name for tensor in expected if key == "input" and not tensor.optional] or [expected[0].name]
        for name in dict.fromkeys((*needed, *found)):  # what no request can do without, and whatever else is there
            if found.get(name) != wanted.get(name):
                raise ArgumentError(
                    f"config.pbtxt, {key} {name!r}: found {found.get(name, 'nothing')}, expected "
                    f"{wanted.get(name, 'nothing')} for the bundle beside it; {AGAIN}"
                )


def _check_names(parameters: Mapping[str, str]) -> None:
    """Ours must all be there; of the others only the server's own, which are in capitals."""
    for name in PARAMETERS:
        if name not in parameters:
            raise ArgumentError(f"config.pbtxt, parameters: found no {name!r}, expected one; {AGAIN}")
    for name in parameters:
        if name not in PARAMETERS and not name.isupper():
            raise ArgumentError(
                f"config.pbtxt, parameters: found {name!r}, expected one of {', '.join(PARAMETERS)}."
                f"{did_you_mean(name, PARAMETERS)}"
            )


def _positive(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ArgumentError(f"config.pbtxt, parameters, {name}: found {text!r}, expected a whole number above 0; {AGAIN}")
    return int(text)


def _instances(config: Mapping[str, Any]) -> int:
    """How many processes serve this model on this machine, as far as the configuration tells."""
    groups = config.get("instance_group", [])
    return max(1, sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups))
