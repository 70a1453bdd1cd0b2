"""A run on the command line: lines for people or one JSON object for machines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from engine.bundle.manifest import Manifest
from engine.errors import ArgumentError
from engine.imaging import Loaded, check_grid, check_target, file_names, grid_bytes, kind_of, save_images
from engine.result import U8, Batch, Deadline, Timings
from engine.sampler import Sampler
from engine.solver.guides import CONSTANT
from engine.solver.noise import resolve_seeds
from engine.solver.regulariser import OFF

STDOUT = "-"


def check_out(out: str, as_json: bool) -> None:
    """Refuse a place that cannot be written, first of all; `-` is standard output where that is free and no terminal."""
    if out != STDOUT:
        check_target(out, add=True)
    elif as_json or sys.stdout.buffer.isatty():
        there = "--json" if as_json else "a terminal"
        raise ArgumentError(f"out: found - with {there} there, expected standard output for a picture; name a .png file")


def check_results(
    manifest: Manifest,
    count: int,
    seed: int | Iterable[int] | None,
    *,
    out: str,
    with_start: bool,
    add: bool,
    first: int = 0,
    **_: Any,
) -> None:
    """Refuse a place without room for so many images, a folder where they would be mixed with others, or a huge grid.

    first: how many of them an earlier run made, and this one leaves out.
    """

    def names() -> Iterator[str]:
        if seed is not None:
            base = int(resolve_seeds(seed, 1)[0]) if isinstance(seed, int) else 0
            seeds = ((base + index) % 2**64 for index in range(count)) if isinstance(seed, int) else seed
            yield from file_names(names_of(seeds), with_start)

    if out == STDOUT or kind_of(out) == ".png":
        check_grid(out, count - first, manifest.pipeline.image_shape, with_start)
    if out != STDOUT:
        check_target(out, results_bytes(manifest, count - first, with_start), names=names(), add=add)


def results_bytes(manifest: Manifest, count: int, with_start: bool) -> int:
    """How much memory so many images take."""
    return count * math.prod(manifest.pipeline.image_shape) * (2 if with_start else 1)


def names_of(seeds: Iterable[int], first: int = 0) -> Iterator[str]:
    """The names of a folder's files, without suffix; `first` is the index of the first."""
    return (f"{index:05d}-seed{seed}" for index, seed in enumerate(seeds, first))


def write(
    out: str, images: U8, start: U8 | None, names: Sequence[str], add: bool = False, columns: int | None = None
) -> list[Path]:
    """Write images to `out`, or as a grid to stdout; the files."""
    if out != STDOUT:
        return save_images(out, images, start=start, names=names, add=add, columns=columns)
    stream = sys.stdout.buffer
    stream.write(grid_bytes(images, start, columns))
    stream.flush()
    return []


def finish(
    sampler: Sampler,
    batch: Batch,
    *,
    out: str,
    with_start: bool,
    add: bool,
    as_json: bool,
    loaded: Loaded | None = None,
    first: int = 0,
    columns: int | None = None,
) -> None:
    """Save a batch to `out` and report it on stdout, or on stderr where `out` is stdout; notes go to stderr.

    first: the index of its first image among those of a folder; columns: of a grid. Where pictures could not be read this
    ends the command with exit code 1.
    """
    for note in (*loaded.notes, *loaded.ignored) if loaded else ():
        click.echo(f"note: {note}", err=True)
    seeds = batch.seeds.tolist()
    start = batch.start if with_start else None
    files = write(out, batch.images, start, list(names_of(seeds, first)), add or first > 0, columns)
    if as_json:
        read = {"sources": loaded.sources, "unreadable": loaded.unreadable} if loaded else {}
        echo_json(describe(sampler, batch, files) | read)
    else:
        report(sampler, batch, files, seeds_line(seeds))
    if loaded and loaded.unreadable:
        for line in loaded.unreadable:
            click.echo(f"not read: {line}", err=True)
        raise click.ClickException(f"{len(loaded.unreadable)} of the places given could not be read; the rest is done")


def report(sampler: Sampler, batch: Batch, files: Sequence[Path], seeds: str) -> None:
    """A few lines about a run."""
    wrote = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    echo_fields(
        {
            "bundle": f"{sampler.bundle.manifest.name} on {sampler.backend}, {sampler.precision}",
            "setting": setting_line(batch),
            "seeds": seeds,
            "time": timing_line(batch.timings),
            **({} if batch.deadline is None else {"budget": deadline_line(batch.deadline)}),
            "wrote": wrote or "a picture to standard output",
        },
        err=not files,
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
        "deadline": None if batch.deadline is None else asdict(batch.deadline) | {"kept": batch.deadline.kept},
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
    if not len(batch.timesteps):
        return "encoded and decoded, without a step"
    words = [f"{setting.steps} steps {setting.method}", f"t {batch.timesteps[0]} to {batch.timesteps[-1]}"]
    if setting.t_start is not None:
        words.append("from a noised image")
    if setting.prior == "bundle":
        words.append("from the bundle's prior")
    plain = {"eta": 0.0, "temperature": 1.0, "noise_scale": 1.0, "eps_scale": 1.0, "guidance": 0.0, "guide_scale": 0.0}
    found = {name: getattr(setting, name) for name, usual in plain.items() if getattr(setting, name) != usual}
    words += [f"{name} {' '.join(f'{one:g}' for one in np.atleast_1d(value))}" for name, value in found.items()]
    if setting.guidance_interval is not None:
        words.append("guided from t {} to {}".format(*setting.guidance_interval))
    if setting.guide_scale and setting.guide_mode != CONSTANT:
        words.append(f"by {setting.guide_mode}")
    if setting.guide_interval is not None:
        words.append("a guide from t {} to {}".format(*setting.guide_interval))
    if setting.regularise != OFF:
        words.append(f"regularised {setting.regularise} each step, {len(batch.timesteps)} calls")
    if setting.regularise_interval is not None:
        words.append("from t {} to {}".format(*setting.regularise_interval))
    if setting.quantize_denoised:
        words.append("every step quantised")
    return ", ".join(words)


def deadline_line(deadline: Deadline) -> str:
    """A budget and what became of it."""
    word = "kept" if deadline.kept else "missed"
    calls = f"{deadline.done} of {deadline.calls} calls" if deadline.done < deadline.calls else f"{deadline.calls} calls"
    return f"{deadline.budget_ms:g} ms, {word}: {deadline.took_ms:.1f} ms for {calls}, expected {deadline.expected_ms:.1f}"


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


def echo_fields(fields: Mapping[str, str], indent: str = "", err: bool = False) -> None:
    """Aligned `name  value` lines."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(f"{indent}{name:<{width}}  {value}", err=err)
