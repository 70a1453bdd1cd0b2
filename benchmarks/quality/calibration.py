"""Which inputs int8 is calibrated on: draws of timesteps from real chains beside images that are noised in one go.

    python benchmarks/quality/calibration.py examples/avatars/avatars.ckpt --prediction v

Every eligible layer goes into int8 (simulated exactly, in torch) with the scales that each calibration gives:

    normal    states of real chains, timesteps from a normal distribution that leans to the clean end: what builds do
    uniform   states of real chains, timesteps spread evenly
    forward   the chains' own images noised forward to timesteps of the normal draw
    noise     the first state of every chain alone

and is judged on chains of other seeds: the error of the network's answer on states that float32 met, with timesteps spread
evenly and by the normal draw, and how far the final images are from float32's. Errors are relative, in the L2 norm.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.machine import describe, machine_facts, write_json
from engine.bundle.pipeline import X
from engine.cli.terminal import Program, shows_progress
from engine.places import check_file
from export.build import Request, recognise
from export.dates import now
from export.families import family_flags
from export.families.base import Model
from export.native.int8 import relative_l2
from export.native.operands import eligible
from export.native.scales import Scale, choose_scales, evaluate, in_int8
from export.native.trajectory import NORMAL, STATES, UNIFORM, Chain, States, joined, run_chains

UNSEEN = 1000  # the first seed of the chains that calibrations are judged on; each of `groups` takes four
METHODS = ("normal", "uniform", "forward", "noise")


def drawn(model: Model, chains: Sequence[Chain], method: str, seed: int) -> States:
    """The calibration states of a method, as many of each chain."""
    count, T = STATES // len(chains), model.schedule.T
    parts = []
    for number, chain in enumerate(chains):
        rng = np.random.default_rng([seed, number])
        if method == "noise":
            chain = Chain(chain.timesteps[:1], chain.asked[:1], chain.x)
        states = chain.states(count, NORMAL if method in ("normal", "forward") else UNIFORM, T, rng)
        parts.append(noised(model, chain, states, rng) if method == "forward" else states)
    return joined(parts)


def noised(model: Model, chain: Chain, states: States, rng: np.random.Generator) -> States:
    """The same timesteps, with x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps of the chain's images in x's place."""
    alpha_bar = model.schedule.schedule().alpha_bar[list(states.timesteps)]
    x0 = chain.x[[number % len(chain.x) for number in range(len(states))]]
    eps = torch.from_numpy(rng.standard_normal(x0.shape, np.float32))
    alpha_bar = alpha_bar[:, None, None, None]
    signal, noise = (torch.from_numpy(np.sqrt(part).astype(np.float32)) for part in (alpha_bar, 1 - alpha_bar))
    (port,) = (port for port, name in model.wiring.step.inputs.items() if name == X)
    return States({**states.inputs, port: signal * x0 + noise * eps}, states.timesteps)


def judged(model: Model, scales: dict[str, Scale], seeds: Sequence[int], tick: Callable[[int], object]) -> dict[str, float]:
    """What int8 with these scales costs on chains of other seeds, in the mean."""
    role, T = model.step, model.schedule.T
    found: dict[str, list[float]] = {"evenly": [], "clean end": [], "images": []}
    for seed in seeds:
        exact = run_chains(model, seed)
        with in_int8(eligible(role), scales):
            rounded = run_chains(model, seed)
        found["images"] += [relative_l2(ours.x, chain.x) for ours, chain in zip(rounded, exact, strict=True)]
        for name, draw in (("evenly", UNIFORM), ("clean end", NORMAL)):
            states = joined([chain.states(STATES, draw, T, np.random.default_rng(seed)) for chain in exact])
            answers = evaluate(role, states)
            with in_int8(eligible(role), scales):
                found[name].append(relative_l2(evaluate(role, states), answers))
        tick(1)
    return {name: round(float(np.mean(values)), 5) for name, values in found.items()}


def compare(model: Model, groups: int, trials: int, tick: Callable[[int], object]) -> list[dict[str, Any]]:
    """A row a method: the mean over `trials` calibrations of other seeds each, judged on the same `groups` of chains."""
    seeds = [UNSEEN + 4 * group for group in range(groups)]
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        results = []
        for trial in range(trials):
            states = drawn(model, run_chains(model, 4 * trial), method, trial)
            results.append((states, judged(model, choose_scales(model.step, states), seeds, tick)))
        errors = {name: [scores[name] for _, scores in results] for name in results[0][1]}
        timesteps = np.concatenate([states.timesteps for states, _ in results])
        histogram = np.histogram(timesteps, bins=10, range=(0, model.schedule.T))[0].tolist()
        means = {name: round(float(np.mean(values)), 5) for name, values in errors.items()}
        rows.append({"method": method, **means, "trials": errors, "histogram": histogram})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people, as Markdown: means, and in brackets the least and largest of the trials."""
    lines = ["| calibrated on | states drawn evenly | toward the clean end | final images |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = (f"{row[name]:.4f} ({min(found):.4f}, {max(found):.4f})" for name, found in row["trials"].items())
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("checkpoint", type=Path)
@family_flags
@click.option("--groups", type=click.IntRange(1), default=4, help="Of four chains in each setting to judge on.")
@click.option("--trials", type=click.IntRange(1), default=3, help="Calibrations of each method.")
@click.option("--threads", type=click.IntRange(1))
@click.option("--out", type=Path, default=Path("out/calibration.json"))
def main(checkpoint: Path, groups: int, trials: int, threads: int | None, out: Path, **options: Any) -> None:
    """Compare what int8 is calibrated on."""
    check_file(out)
    facts = machine_facts()
    click.echo(describe(facts))
    if threads:
        torch.set_num_threads(threads)
    found = recognise(Request(checkpoint, options=options))
    model = found.load()
    total = len(METHODS) * trials * groups
    with tqdm(total=total, unit="chains", delay=2, leave=False, disable=not shows_progress()) as bar:
        rows = compare(model, groups, trials, bar.update)
    result = {
        "format": "diffusevae-calibration", "format_version": 1, "date": now(), "machine": facts, "model": found.name,
        "source_sha256": found.source.checkpoint.sha256, "layers": len(eligible(model.step)), "states": STATES, "rows": rows,
    }  # fmt: skip
    write_json(out, result)
    click.echo(f"{found.name}: all {result['layers']} eligible layers in int8\n\n{table(rows)}\nwrote {out}")


if __name__ == "__main__":
    main()
