"""The commands `info` and `verify`: this machine, a bundle, and whether they fit."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import click
import numpy as np

from engine import kernels
from engine.backends import RULE, available
from engine.bundle.examples import example_inputs
from engine.bundle.graphs import SAMPLER
from engine.bundle.reader import Bundle
from engine.cli.contents import describe_bundle, show_contents
from engine.cli.inputs import INPUT, LINKS, take_inputs
from engine.cli.output import echo_fields, echo_json
from engine.errors import EngineError
from engine.processor import this_processor
from engine.sampler import Sampler
from engine.threads import default_threads

# Between float32 runtimes whole chains differ by rounding alone; clipping makes single pixels chaotic, so the
# mean counts. An engine in less than float32 may be as far off as its precision is coarse.
MEAN_BOUND = 1e-3
MEAN_BOUNDS = {"fp16": 1e-2, "bf16": 3e-2, "int8": 1e-1}


@click.command(short_help="Show what this machine has, and what is in a bundle.")
@click.argument("bundle", required=False)
@LINKS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def info(bundle: str | None, allow_links: tuple[str, ...], as_json: bool) -> None:
    """Show what this machine has and, with BUNDLE, what is in it and which backend would run it, and why."""
    machine = machine_facts()
    contents = describe_bundle(Bundle.open(bundle, allow_links)) if bundle is not None else None
    if as_json:
        echo_json({"machine": machine, "bundle": contents})
        return
    show_machine(machine, with_rule=contents is None)
    if contents is not None:
        click.echo("")
        show_contents(contents)


@click.command(short_help="Check a bundle's hashes and compare its backends.")
@click.argument("bundle")
@click.option("-n", "--number", "n", type=click.IntRange(min=1), default=2, show_default=True, help="Images to sample.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of the first image.")
@INPUT
@LINKS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def verify(
    ctx: click.Context, bundle: str, n: int, seed: int, allow_links: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """Check every hash of BUNDLE, load each graph on each backend it lists, sample, and compare the results.

    An input that must be given, and is not, is the value nearest to zero that it may have.

    Exit code 1 when the bundle is refused, when no backend could run it, or when two backends disagree.
    """
    opened = Bundle.open(bundle, allow_links)
    inputs = (example_inputs(opened.manifest) or {}) | take_inputs(given, opened)
    report = check_backends(opened, n, seed, inputs)
    if as_json:
        echo_json({"bundle": str(opened.path), "graphs": list(opened.manifest.graphs), **report})
    else:
        click.echo(f"{opened.path}: manifest, sizes and SHA-256 of {_count(opened)} match")
        echo_fields({name: result["message"] for name, result in report["backends"].items()}, indent="  ")
        for pair in report["differences"]:
            click.echo(
                f"  {pair['between'][0]} and {pair['between'][1]}: largest difference {pair['max']:.2e}, "
                f"mean {pair['mean']:.2e} (images in [-1, 1])"
            )
        click.echo("verified" if report["ok"] else "NOT verified")
    ctx.exit(0 if report["ok"] else 1)


def _count(bundle: Bundle) -> str:
    """The files that were verified, in words."""
    manifest = bundle.manifest
    words = [f"{len(manifest.graphs)} graphs"]
    if manifest.prior is not None:
        words.append("the prior")
    if manifest.directions is not None:
        words.append("the directions")
    if manifest.text is not None:
        words.append("the vocabulary")
    if manifest.engines:
        words.append(f"{len(manifest.engines)} engines")
    return ", ".join(words)


def machine_facts() -> dict[str, Any]:
    """What decides here, whatever the bundle."""
    processor = this_processor()
    return {
        "processor": processor.name,
        "architecture": processor.architecture,
        "features": sorted(processor.features),
        "threads": default_threads(),
        "kernels": kernels.implementation(),
        "backends": {name: {"available": there, "reason": reason} for name, (there, reason) in available().items()},
        "auto_rule": RULE,
    }


def show_machine(machine: dict[str, Any], *, with_rule: bool) -> None:
    """The machine's facts for people; a bundle's own line says the rule again, applied."""
    kernel = machine["kernels"]
    click.echo("machine")
    echo_fields(
        {
            "processor": f"{machine['processor']} ({machine['architecture']})",
            "features": " ".join(machine["features"]) or "unknown",
            "threads": f"{machine['threads']} (what affinity and container limits allow)",
            "kernels": f"{kernel['name']} {kernel['isa']} ({kernel.get('path') or kernel.get('reason', '')})",
            **{name: fact["reason"] for name, fact in machine["backends"].items()},
            **({"rule": machine["auto_rule"]} if with_rule else {}),
        },
        indent="  ",
    )


def check_backends(bundle: Bundle, n: int, seed: int, inputs: dict[str, Any]) -> dict[str, Any]:
    """Sample the same images on every listed backend, in float32 or what its engines are, and compare them."""
    results: dict[str, dict[str, Any]] = {}
    images: dict[str, np.ndarray] = {}
    for backend, precision in _ways(bundle):
        name = backend if precision == "f32" else f"{backend} {precision}"
        try:
            with Sampler(bundle, backend, precision) as sampler:
                batch = sampler.sample(n, seed=seed, **inputs)
                if bundle.manifest.pipeline.encode:
                    sampler.encode(batch.images)
        except EngineError as error:
            there = available().get(backend, (False, "unknown to this version"))[0]
            results[name] = {"ok": False, "installed": there, "message": str(error)}
        else:
            images[name] = batch.x
            message = f"loaded every graph, sampled {n} in {batch.timings.total_ms:.0f} ms"
            results[name] = {"ok": True, "installed": True, "message": message}
    differences = [_difference(a, b, images) for a, b in combinations(images, 2)]
    failed = any(result["installed"] and not result["ok"] for result in results.values())
    agree = all(pair["mean"] <= pair["bound"] for pair in differences)
    return {"ok": bool(images) and not failed and agree, "backends": results, "differences": differences}


def _ways(bundle: Bundle) -> list[tuple[str, str]]:
    """Each listed backend with the precisions of its own engines of the network, or with f32."""
    ways, whole = [], (bundle.manifest.pipeline.step.graph, SAMPLER)
    for name in bundle.manifest.backends:
        engines = [e for e in bundle.manifest.engines if e.backend == name and e.graph in whole]
        ways += [(name, precision) for precision in dict.fromkeys(e.precision for e in engines)] or [(name, "f32")]
    return ways


def _difference(a: str, b: str, images: dict[str, np.ndarray]) -> dict[str, Any]:
    gap = np.abs(images[a] - images[b])
    bound = max(MEAN_BOUNDS.get(name.partition(" ")[2], MEAN_BOUND) for name in (a, b))
    return {"between": [a, b], "max": float(gap.max()), "mean": float(gap.mean()), "bound": bound}
