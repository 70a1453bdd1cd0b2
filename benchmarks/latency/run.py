"""The latency of an image, beside the same network in other hands. All contestants alternate in one run.

    python benchmarks/latency                                            all configurations, batches 1, 4 and 16
    python benchmarks/latency --preset cifar10 --batch 1 --batch 16

The networks have the size of published configurations and random weights, which take as long as trained ones; avatars is the
trained model that ships. Timed are whole runs, from z to uint8 pixels, and the network calls inside them; before that all
outputs are compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.latency import bundles, duel, plots, report, roofline, targets, work
from benchmarks.latency.calls import check_inputs
from benchmarks.latency.field import BY_NAME, CONTESTANTS, Contestant, Task, skip_reason
from benchmarks.latency.networks import NETWORKS, Network
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json, write_text
from engine.backends import available
from engine.backends.native.isa import instruction_set, runs_here
from engine.bundle.maps import free_sizes
from engine.bundle.reader import Bundle
from engine.cli.terminal import Program
from engine.places import check_file
from engine.processor import this_processor
from engine.threads import resolve_threads
from export.dates import now

WARMUP = "one whole run after loading and one for the comparison, then one step at the start of each turn"


@dataclass(frozen=True)
class Schedule:
    """What is timed at which batch sizes: a batch whose slowest run would take longer than `longest` seconds is left out."""

    batches: tuple[int, ...]
    plan: duel.Plan
    skip: tuple[str, ...] = ()
    longest: float = 90.0


@dataclass(frozen=True)
class Subject:
    """What is timed: its name, the hash of what it was made from, the shape of what it makes, the work of a call, and what
    every contestant is given before, so that outputs can be compared."""

    name: str
    sha256: str
    shape: tuple[int | str, ...]
    amount: work.Work
    inputs: Callable[[int], list[duel.Given]]


def subject_of(task: Task) -> Subject:
    """A bundle's pipeline, or one network."""
    if task.network is not None:
        network, nothing = Network(task.network), np.zeros(0, np.float32)
        shape, amount = network.spec.outputs[0].shape[1:], work.count(network.graph().data)
        return Subject(task.network.name, network.sha256(), shape, amount, lambda n: [(nothing, network.inputs(n, 1), 0)])
    bundle = Bundle.open(task.bundle)
    manifest, pipeline = bundle.manifest, bundle.manifest.pipeline
    amount = work.count(bundle.read_graph(pipeline.step.graph), free_sizes(pipeline))
    return Subject(manifest.name, manifest.source.sha256, pipeline.image_shape, amount, lambda n: check_inputs(manifest, n))


def field(task: Task, skip: Sequence[str]) -> tuple[list[Contestant], list[dict[str, Any]]]:
    """Who takes part on this machine, and the entry of each in the result."""
    fit, entries = [], []
    for contestant in CONTESTANTS:
        reason = skip_reason(contestant, task, this_processor(), available())
        reason = "left out with --skip" if contestant.name in skip else reason
        fit += [contestant] if reason is None else []
        entry = {"name": contestant.name, "backend": contestant.backend, "precision": contestant.precision}
        entries.append({**entry, "status": "timed" if reason is None else "skipped", "reason": reason})
    if not fit:
        raise BenchmarkError(f"found no contestant that can run here: {json.dumps(entries)}; install onnxruntime")
    return fit, entries


def wanted(skip: Sequence[str]) -> list[Contestant]:
    """The contestants that were not left out: bundles are built for these."""
    return [contestant for contestant in CONTESTANTS if contestant.name not in skip]


def measure_model(task: Task, schedule: Schedule, say: duel.Say) -> dict[str, Any]:
    """One configuration: compare and time all contestants at each batch size."""
    fit, entries = field(task, schedule.skip)
    subject = subject_of(task)
    amount = subject.amount
    result: dict[str, Any] = {
        "name": subject.name,
        "bundle_source_sha256": subject.sha256,
        "image": list(subject.shape),
        "work": {"gflop": round(amount.flop / 1e9, 4), "mega_weights": round(amount.weights / 1e6, 4)},
        "contestants": entries,
        "left_out": [],
        "agreement": [],
        "failures": [],
        "results": [],
    }
    slowest = 0.0  # seconds an image of the slowest contestant so far
    for batch in sorted(schedule.batches):
        if slowest * batch > schedule.longest:
            reason = f"a run would take {slowest * batch:.0f} s, longer than --longest {schedule.longest:g}"
            result["left_out"].append({"batch": batch, "reason": reason})
            say(f"{subject.name}, batch {batch}: left out, {reason}")
            continue
        inputs = subject.inputs(batch)
        contest = duel.compete(fit, task, inputs, batch, schedule.plan, _prefixed(say, subject.name))
        result["agreement"] += contest.agreement
        result["failures"] += [{"contestant": k, "batch": batch, "reason": v} for k, v in contest.failures.items()]
        for contestant in fit:
            if contestant.name in contest.records:
                row = report.row_of(contestant, batch, contest.records[contestant.name])
                result["results"].append({**row, "achieved": roofline.achieved(row, contestant.precision, amount)})
                slowest = max(slowest, row["total_ms"]["p50"] / 1e3 / batch)
    _note_failures(entries, result["failures"])
    report.add_ratios(result["results"])
    return result


def _note_failures(entries: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]]) -> None:
    """Who failed at any batch size bears that as its status, with the first reason."""
    first = {failure["contestant"]: failure["reason"] for failure in reversed(failures)}
    for entry in entries:
        if entry["name"] in first:
            entry |= {"status": "failed", "reason": first[entry["name"]]}


def _prefixed(say: duel.Say, name: str) -> Callable[[str], None]:
    return lambda line: say(f"{name}, {line}")


def measure(
    tasks: Sequence[Task], schedule: Schedule, facts: dict[str, Any], say: duel.Say, *, roof: bool = True
) -> dict[str, Any]:
    """All configurations, the roofline, and the targets. facts: the machine before anything was built or run."""
    models = [measure_model(task, schedule, say) for task in tasks]
    isa = instruction_set() if runs_here()[0] else None
    plan = schedule.plan
    return {
        "format": "diffusevae-latency",
        "format_version": 4,
        "date": now(),
        "machine": facts,
        "steps": tasks[0].steps,
        "threads": tasks[0].threads,
        "protocol": {
            "rounds": plan.rounds,
            "most_runs_a_turn": plan.repeats,
            "seconds_a_turn": plan.seconds,
            "warmup": WARMUP,
            "process": "one for each contestant; the others sleep during a turn",
        },
        "instruction_set": isa,
        "roofline": roofline.measure(tasks[0].threads) if isa and roof else None,
        "models": models,
        "targets": targets.judge(models, isa),
    }


def as_text(result: dict[str, Any]) -> str:
    """The whole result as text."""
    parts = [report.table(model, result["steps"]) for model in result["models"]]
    if result["roofline"] is not None:
        parts.append(roofline.text(result["roofline"], result["models"]))
    return "\n\n".join([*parts, targets.text(result["targets"], result["instruction_set"])])


def document(result: dict[str, Any]) -> str:
    """The whole result in Markdown."""
    parts = [f"# Latency\n\n{describe(result['machine'])}\n\nOutput of `benchmarks/latency`, {result['date']}."]
    for model in result["models"]:
        parts.append(f"## {model['name']}\n\n{report.markdown(model, result['steps'])}")
    parts.append(f"## Everything as printed\n\n```\n{as_text(result)}\n```")
    return "\n\n".join(parts) + "\n"


@click.command(cls=Program, context_settings={"show_default": True})
@click.option(
    "--preset",
    "presets",
    multiple=True,
    default=bundles.PRESETS,
    type=click.Choice([*bundles.PRESETS, *NETWORKS]),
    help="A published configuration with random weights (of latent diffusion one network alone), or the trained avatars; "
    "repeat for several.",
)
@click.option("--bundle", type=Path, default=None, help="A bundle to time instead.")
@click.option("--checkpoint", type=Path, default=None, help="What --bundle was built from, for the contestants in torch.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 4, 16), help="Repeat for several.")
@click.option("--steps", type=click.IntRange(2), default=10)
@click.option("--threads", type=int, default=None, help="The same for all.  [default: what affinity and container allow]")
@click.option("--rounds", type=click.IntRange(1), default=6, help="Turns of each contestant.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Most runs in a turn.")
@click.option("--seconds", type=float, default=3.0, help="A turn starts no further run after so long.")
@click.option("--longest", type=float, default=90.0, help="Leave batches out whose slowest run would take more seconds.")
@click.option("--skip", multiple=True, type=click.Choice(list(BY_NAME)), help="Leave a contestant out; repeat for several.")
@click.option("--out", type=Path, default=Path("out/latency.json"))
@click.option("--plot", type=Path, default=Path("out/latency.png"))
def main(
    presets: tuple[str, ...], bundle: Path | None, checkpoint: Path | None, batches: tuple[int, ...], steps: int,
    threads: int | None, rounds: int, repeats: int, seconds: float, longest: float, skip: tuple[str, ...], out: Path,
    plot: Path,
) -> None:  # fmt: skip
    """Time every contestant on the same networks in alternating turns."""
    for place in (out, out.with_suffix(".md"), plot):
        check_file(place)
    facts = machine_facts()  # now: later the load average is that of builds and contestants
    click.echo(describe(facts))
    count, competing = resolve_threads(threads), wanted(skip)
    if bundle is None:
        tasks = [bundles.task_of(preset, out.parent, steps, count, competing) for preset in presets]
    else:
        tasks = [bundles.task_from(bundle, checkpoint, steps, count, out.parent, competing)]
    schedule = Schedule(batches, duel.Plan(rounds, repeats, seconds), skip, longest)
    result = measure(tasks, schedule, facts, click.echo)
    write_json(out, result)
    click.echo(as_text(result))
    write_text(out.with_suffix(".md"), document(result))
    plots.draw_latency(result, plot)
    click.echo(f"wrote {out}, {out.with_suffix('.md')} and {plot}")
    failed = [(model["name"], failure) for model in result["models"] for failure in model["failures"]]
    if failed:
        names = "; ".join(f"{name}, batch {f['batch']}: {f['contestant']}" for name, f in failed)
        raise click.ClickException(f"found contestants that failed (reasons above), expected none: {names}")
