"""What is this machine, what is this bundle, and do they fit? The commands `info` and `verify`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from typing import Any

import click
import numpy as np

from engine import kernels
from engine.backends import RULE, available, choose
from engine.bundle.manifest import SAMPLER, Manifest
from engine.bundle.reader import Bundle
from engine.cli.output import echo_fields, echo_json
from engine.errors import BackendError, EngineError
from engine.processor import this_processor
from engine.sampler import Sampler
from engine.threads import default_threads

# Between float32 runtimes whole chains differ by rounding alone; clipping makes single pixels chaotic, so the
# mean counts. An engine in less than float32 may be as far off as its precision is coarse.
MEAN_BOUND = 1e-3
MEAN_BOUNDS = {"fp16": 1e-2, "bf16": 3e-2, "int8": 1e-1}


@click.command(short_help="Show what this machine has, and what is in a bundle.")
@click.argument("bundle", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def info(bundle: str | None, as_json: bool) -> None:
    """Show what this machine has and, with BUNDLE, what is in it and which backend would run it, and why."""
    machine = machine_facts()
    contents = bundle_facts(Bundle.open(bundle)) if bundle is not None else None
    if as_json:
        echo_json({"machine": machine, "bundle": contents})
        return
    show_machine(machine, with_rule=contents is None)
    if contents is not None:
        click.echo("")
        show_bundle(contents)


@click.command(short_help="Check a bundle's hashes and compare its backends.")
@click.argument("bundle")
@click.option("-n", "--number", "n", type=click.IntRange(min=1), default=2, show_default=True, help="Images to sample.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of the first image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def verify(ctx: click.Context, bundle: str, n: int, seed: int, as_json: bool) -> None:
    """Check every hash of BUNDLE, load each graph on each backend it lists, sample, and compare the results.

    Exit code 1 when the bundle is refused, when no backend could run it, or when two backends disagree.
    """
    opened = Bundle.open(bundle)
    report = check_backends(opened, n, seed)
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
    if manifest.latent_prior is not None:
        words.append("the latent prior")
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


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """The manifest's contents and what "auto" means for it here."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "family": manifest.family,
        "model": asdict(manifest.model),
        "schedule": asdict(manifest.schedule),
        "variance": manifest.variance,
        "defaults": asdict(manifest.defaults),
        "source": asdict(manifest.source),
        "backends": list(manifest.backends),
        "auto": auto_choice(bundle),
        "graphs": {key: asdict(spec) for key, spec in manifest.graphs.items()},
        "latent_prior": asdict(manifest.latent_prior) if manifest.latent_prior else None,
        "engines": [asdict(engine) | {"size": engine.size} for engine in manifest.engines],
        "built_with": manifest.built_with,
        "summary": model_line(manifest),
    }


def auto_choice(bundle: Bundle) -> dict[str, str | None]:
    """What "auto" chooses; a machine without any of the bundle's backends is still worth describing."""
    try:
        return dict(choose(bundle)._asdict())
    except BackendError as error:
        return {"backend": None, "precision": None, "reason": str(error)}


def model_line(manifest: Manifest) -> str:
    """The model in one line."""
    model = manifest.model
    kind = f"formulation {model.formulation}" if model.conditional else "unconditional"
    parts = [f"{model.image_size}x{model.image_size}", kind]
    if model.z_dim is not None:
        parts.append(f"latent {model.z_dim}" + (", UNet conditioned on it" if model.z_conditioned else ""))
    schedule = manifest.schedule
    parts.append(f"T {schedule.T}, {schedule.recipe} betas {schedule.beta_1:g} to {schedule.beta_T:g}")
    return ", ".join([*parts, manifest.variance])


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


def show_bundle(bundle: dict[str, Any]) -> None:
    """The bundle's facts for people."""
    source, auto = bundle["source"], bundle["auto"]
    settings = [f"{name} {value}" for name, value in bundle["defaults"].items() if value is not None]
    click.echo(f"bundle {bundle['path']}")
    echo_fields(
        {
            "name": bundle["name"],
            "model": bundle["summary"],
            "setting": ", ".join(settings),
            "source": f"{source['file']} ({source['weights']} weights, SHA-256 {source['sha256'][:12]}…)",
            "backends": ", ".join(bundle["backends"]),
            "auto": auto["reason"],
            "latent prior": prior_line(bundle["latent_prior"]),
            "built with": ", ".join(f"{name} {version}" for name, version in bundle["built_with"].items()),
        },
        indent="  ",
    )
    click.echo(f"  {'graph':<20}{'precision':<11}{'opset':<7}{'size':>10}  largest relative error")
    for key, graph in bundle["graphs"].items():
        parity = graph["parity"]
        error = f"{parity['max_relative_error']:.1e} against {parity['reference']}"
        click.echo(f"  {key:<20}{graph['precision']:<11}{graph['opset']:<7}{megabytes(graph):>10}  {error}")
    if bundle["engines"]:
        click.echo(f"  {'engine':<15}{'precision':<11}{'role':<16}{'size':>10}  built for")
    for engine in bundle["engines"]:
        name = f"  {engine['backend']:<15}{engine['precision']:<11}{engine['role']:<16}"
        click.echo(f"{name}{megabytes(engine):>10}  {', '.join(engine['targets']) or 'any processor'}")
        if line := record_line(engine):
            click.echo(f"    {line}")


def megabytes(entry: dict[str, Any]) -> str:
    """The size in an entry, for people."""
    return f"{entry['size'] / 2**20:.2f} MB"


def record_line(engine: dict[str, Any]) -> str:
    """What an engine accepts, and what its builder measured; nothing in either object must be there."""
    record, profile = engine["record"], engine["options"].get("profile")
    parts = []
    if isinstance(profile, dict):
        sizes = {name: value for name, value in profile.items() if isinstance(value, list) and len(value) == 3}
        parts += [f"{name} {low} to {high}" for name, (low, _, high) in sizes.items()]
    if isinstance(layers := record.get("fused_layers"), int):
        parts.append(f"{layers} fused layers")
    for key, what in (("activation_bytes", "activations"), ("weight_bytes", "weights")):
        if isinstance(size := record.get(key), int):
            parts.append(f"{what} {megabytes({'size': size})}")
    if parts:
        parts.append("by " + ", ".join(f"{name} {version}" for name, version in engine["made_with"].items()))
    return ", ".join(parts)


def prior_line(prior: dict[str, Any] | None) -> str:
    """What latents are drawn from."""
    if prior is None:
        return "none: latents are drawn from N(0, I)"
    return f"{prior['kind'].replace('_', ' ')} of {prior['components']} components ({megabytes(prior)})"


def check_backends(bundle: Bundle, n: int, seed: int) -> dict[str, Any]:
    """Sample the same images on every listed backend, in float32 or what its engines are; how far apart are they?"""
    results: dict[str, dict[str, Any]] = {}
    images: dict[str, np.ndarray] = {}
    for backend, precision in _ways(bundle):
        name = backend if precision == "f32" else f"{backend} {precision}"
        try:
            with Sampler(bundle, backend, precision) as sampler:
                batch = sampler.sample(n, seed=seed)
                if bundle.manifest.model.conditional:
                    sampler.reconstruct(batch.images, seed=seed)
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
    """Each listed backend with the precisions of its own denoisers, or with f32."""
    ways = []
    for name in bundle.manifest.backends:
        engines = [e for e in bundle.manifest.engines if e.backend == name and e.role in ("denoiser", SAMPLER)]
        ways += [(name, precision) for precision in dict.fromkeys(e.precision for e in engines)] or [(name, "f32")]
    return ways


def _difference(a: str, b: str, images: dict[str, np.ndarray]) -> dict[str, Any]:
    gap = np.abs(images[a] - images[b])
    bound = max(MEAN_BOUNDS.get(name.partition(" ")[2], MEAN_BOUND) for name in (a, b))
    return {"between": [a, b], "max": float(gap.max()), "mean": float(gap.mean()), "bound": bound}
