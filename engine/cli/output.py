"""A run on the command line: lines for people or one JSON object for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from engine.imaging import save_images
from engine.result import Batch, Timings
from engine.sampler import Sampler


def finish(sampler: Sampler, batch: Batch, *, out: str, with_start: bool, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Save a batch to `out` and report it on stdout; notes go to stderr."""
    for note in notes:
        click.echo(f"note: {note}", err=True)
    names = [f"{index:05d}-seed{seed}" for index, seed in enumerate(batch.seeds.tolist())]
    files = save_images(out, batch.images, start=batch.start if with_start else None, names=names)
    if as_json:
        echo_json(describe(sampler, batch, files))
        return
    echo_fields(
        {
            "bundle": f"{sampler.bundle.manifest.name} on {sampler.backend}, {sampler.precision}",
            "setting": setting_line(batch),
            "seeds": seeds_line(batch.seeds.tolist()),
            "time": timing_line(batch.timings),
            "wrote": ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else ""),
        }
    )


def describe(sampler: Sampler, batch: Batch, files: Sequence[Path]) -> dict[str, Any]:
    """The JSON object of a run."""
    return {
        "bundle": str(sampler.bundle.path),
        "name": sampler.bundle.manifest.name,
        "backend": sampler.backend,
        "precision": sampler.precision,
        "threads": sampler.threads,
        "n": len(batch),
        "seeds": batch.seeds.tolist(),
        "inputs": {name: inline(batch.values[name]) for name in declared(sampler, batch)},
        "setting": asdict(batch.setting),
        "timesteps": batch.timesteps.tolist(),
        "timings": batch.timings.as_dict(),
        "files": [str(path) for path in files],
    }


def declared(sampler: Sampler, batch: Batch) -> list[str]:
    """The bundle's inputs that took part in a run."""
    return [spec.name for spec in sampler.bundle.manifest.inputs if spec.name in batch.values]


def inline(array: np.ndarray) -> list[Any] | str:
    """One number a sample as a list; larger inputs by dtype and shape."""
    return array.tolist() if array.ndim == 1 else f"{array.dtype.name} {list(array.shape)}"


def seeds_line(seeds: Sequence[int]) -> str:
    """The seeds as briefly as they can be passed again."""
    if len(seeds) > 1 and len(set(seeds)) == 1:
        return f"{seeds[0]}, for all {len(seeds)}"
    if len(seeds) > 4 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ",".join(map(str, seeds))


def setting_line(batch: Batch) -> str:
    """The setting in a few words: steps, method and what differs from the plain chain."""
    setting = batch.setting
    words = [f"{setting.steps} steps {setting.method}", f"t {batch.timesteps[0]} to {batch.timesteps[-1]}"]
    if setting.t_start is not None:
        words.append("from a noised image")
    if setting.prior == "bundle":
        words.append("from the bundle's prior")
    plain = {"eta": 0.0, "temperature": 1.0, "guidance": 0.0}
    words += [f"{name} {getattr(setting, name):g}" for name, usual in plain.items() if getattr(setting, name) != usual]
    return ", ".join(words)


def timing_line(timings: Timings) -> str:
    """Where the time went, in milliseconds."""
    others = timings.other_steps_ms
    stages = {"before": timings.before_ms, "rows": timings.rows_ms, "first step": timings.first_step_ms}
    parts = [f"{name} {value:.1f}" for name, value in stages.items()]
    if others:
        parts.append(f"{len(others)} more steps {sum(others):.1f}")
    stages = {"noise": timings.noise_ms, "update": timings.update_ms, "after": timings.after_ms}
    parts += [f"{name} {value:.1f}" for name, value in stages.items()]
    return f"{timings.total_ms:.1f} ms: {', '.join(parts)}, output {timings.post_ms:.1f}"


def echo_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout and nothing else."""
    click.echo(json.dumps(value, indent=2))


def echo_fields(fields: Mapping[str, str], indent: str = "") -> None:
    """Aligned `name  value` lines."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(f"{indent}{name:<{width}}  {value}")
