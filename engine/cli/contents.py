"""A bundle's contents for `diffusevae info`: inputs, pipeline, schedule, and which graph runs where and in what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click
import numpy as np

from engine.backends import choose
from engine.bundle.graphs import SAMPLER, graph_of
from engine.bundle.inputs import EACH_STEP
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import CallSpec, PipelineSpec
from engine.bundle.reader import Bundle
from engine.cli.output import echo_fields
from engine.errors import BackendError
from engine.stages import RECORDED

SECTIONS = ("encode", "before", "rows", "step", "quantize", "after")


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """The manifest's contents, and what "auto" means for it here; plain values for JSON."""
    manifest = bundle.manifest
    auto = auto_choice(bundle)
    chosen = auto["backend"], auto["precision"] or "f32"
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "family": manifest.family,
        "architecture": manifest.architecture,
        "inputs": [asdict(spec) | {"null": _plain(spec.null)} for spec in manifest.inputs],
        "pipeline": describe_pipeline(manifest.pipeline),
        "schedule": {"recipe": manifest.schedule.recipe, "T": manifest.schedule.T, **manifest.schedule.numbers},
        "prediction": manifest.prediction,
        "variance": manifest.variance,
        "defaults": asdict(manifest.defaults),
        "fitted": asdict(manifest.fitted) if manifest.fitted else None,
        "refine": asdict(manifest.refine) if manifest.refine else None,
        "source": asdict(manifest.source),
        "backends": list(manifest.backends),
        "auto": auto,
        "graphs": {
            key: asdict(spec) | {"runs": runs(manifest, key), **where(manifest, key, *chosen)}
            for key, spec in manifest.graphs.items()
        },
        "prior": asdict(manifest.prior) if manifest.prior else None,
        "directions": asdict(manifest.directions) if manifest.directions else None,
        "text": asdict(manifest.text) if manifest.text else None,
        "augmentation": asdict(manifest.augmentation) if manifest.augmentation else None,
        "next": asdict(manifest.next) if manifest.next else None,
        "guide": asdict(manifest.guide) if manifest.guide else None,
        "regularise": asdict(manifest.regularise) if manifest.regularise else None,
        "engines": [asdict(engine) | {"size": engine.size} for engine in manifest.engines],
        "built_with": manifest.built_with,
    }


def describe_pipeline(pipeline: PipelineSpec) -> dict[str, Any]:
    """A pipeline as the manifest has it."""
    step = pipeline.multiple
    return {
        **{section: [asdict(call) for call in calls_of(pipeline, section)] for section in SECTIONS},
        "guides": [asdict(guide) for guide in pipeline.guides],
        "regulariser": asdict(pipeline.regulariser) if pipeline.regulariser else None,
        "nulls": {name: _plain(null) for name, null in pipeline.nulls.items()},
        "state": asdict(pipeline.state),
        "image": pipeline.image,
        "image_shape": list(pipeline.image_shape),
        "size_step": None if step is None else step * (pipeline.maps or {})[pipeline.image],
    }


def auto_choice(bundle: Bundle) -> dict[str, str | None]:
    """What "auto" chooses; a machine without any of the bundle's backends is still worth describing."""
    try:
        return dict(choose(bundle)._asdict())
    except BackendError as error:
        return {"backend": None, "precision": None, "reason": str(error)}


def calls_of(pipeline: PipelineSpec, section: str) -> tuple[CallSpec, ...]:
    """The calls of a section; `rows` and `step` have one each, `quantize` one or none."""
    found = getattr(pipeline, section)
    return (found,) if isinstance(found, CallSpec) else found or ()


def runs(manifest: Manifest, key: str) -> list[str]:
    """The sections of the pipeline in which a graph runs; those of the whole sampler are all of them but `encode`
    and `quantize`."""
    if graph_of(key) == SAMPLER:
        return [section for section in SECTIONS if section not in ("encode", "quantize")]
    pipeline = manifest.pipeline
    found = [section for section in SECTIONS if any(c.graph == graph_of(key) for c in calls_of(pipeline, section))]
    second = any(call.graph == graph_of(key) for call in pipeline.regulariser_calls)
    return found or ["regulariser" if second else "guides"]


def where(manifest: Manifest, key: str, backend: str | None, precision: str) -> dict[str, str | None]:
    """The backend that runs a graph when this one is chosen, and the precision that it then computes in."""
    name, computed = graph_of(key), manifest.graphs[key].computes_in(precision)
    for engine in manifest.engines:
        if (engine.backend, engine.precision, engine.graph) == (backend, computed, name) and engine.runs_on:
            return {"backend": engine.runs_on[0], "computes_in": "f32"}
    return {"backend": backend, "computes_in": computed}


def show_contents(bundle: dict[str, Any]) -> None:
    """The same for people."""
    source, auto, state = bundle["source"], bundle["auto"], bundle["pipeline"]["state"]
    click.echo(f"bundle {bundle['path']}")
    echo_fields(
        {
            "name": f"{bundle['name']}, of the family {bundle['family']}",
            "image": size_line(bundle["pipeline"]["image_shape"]),
            **sizes_line(bundle["pipeline"]["size_step"]),
            "state": state_line(state),
            "schedule": ", ".join(f"{name} {value}" for name, value in bundle["schedule"].items()),
            "prediction": f"{bundle['prediction']}, variance {bundle['variance']}",
            "defaults": ", ".join(f"{name} {value}" for name, value in bundle["defaults"].items() if value is not None),
            **fitted_line(bundle["fitted"]),
            **starts_line(bundle["refine"]),
            "source": f"{source['file']} ({source['weights']} weights, SHA-256 {source['sha256'][:12]}…)",
            "backends": ", ".join(bundle["backends"]),
            "auto": auto["reason"],
            "prior": prior_line(bundle["prior"]),
            **text_line(bundle["text"]),
            **({} if bundle["augmentation"] is None else {"noise level": f"told to {bundle['augmentation']['input']}"}),
            **next_line(bundle["next"]),
            **guide_line(bundle["guide"], bundle["pipeline"]["guides"]),
            **regulariser_line(bundle["regularise"], bundle["pipeline"]["regulariser"]),
            **notes_line(bundle["architecture"]),
            "built with": ", ".join(f"{name} {version}" for name, version in bundle["built_with"].items()),
        },
        indent="  ",
    )
    click.echo("inputs")
    for entry in bundle["inputs"]:
        click.echo(f"  {input_line(entry, bundle['prior'])}")
    if not bundle["inputs"]:
        click.echo("  none: a seed is all that a sample takes")
    click.echo("pipeline")
    for line in pipeline_lines(bundle["pipeline"]):
        click.echo(f"  {line}")
    show_directions(bundle["directions"])
    show_graphs(bundle)
    show_engines(bundle["engines"])


def text_line(text: dict[str, Any] | None) -> dict[str, str]:
    """Which input a text becomes."""
    if text is None:
        return {}
    return {"text": f"may stand for {text['input']}: {text['kind']}{', lower case' * text['lowercase']} ({size_of(text)})"}


def next_line(following: dict[str, Any] | None) -> dict[str, str]:
    """The bundle that goes on with the images, and how."""
    if following is None:
        return {}
    return {"next": ", ".join([f"{following['bundle']} goes on with the images", *told(following)])}


def guide_line(guide: dict[str, Any] | None, guides: list[dict[str, Any]]) -> dict[str, str]:
    """How the bundle's guides are used."""
    if guide is None:
        return {}
    interval = "" if guide["interval"] is None else ", t {} to {}".format(*guide["interval"])
    many = f", {len(guides)} by timestep" if len(guides) > 1 else ""
    return {"guide": f"scale {guide['scale']:g}, {guide['mode']}{interval}; of {guides[0]['classes']} classes{many}"}


def regulariser_line(regularise: dict[str, Any] | None, regulariser: dict[str, Any] | None) -> dict[str, str]:
    """How the bundle's second network is used."""
    if regularise is None or regulariser is None:
        return {}
    interval = "" if regularise["interval"] is None else ", t {} to {}".format(*regularise["interval"])
    return {"regulariser": f"predicts {regulariser['prediction']}; {regularise['mode']}{interval}"}


def told(following: dict[str, Any]) -> list[str]:
    """The options that a bundle records for the next one."""
    return [f"{name} {following[name]}" for name in RECORDED if following[name] is not None]


def show_directions(directions: dict[str, Any] | None) -> None:
    """Each direction, with what its fit says of it: a record is free, so that there may be nothing."""
    if directions is None:
        return
    click.echo(f"directions of {directions['input']} ({size_of(directions)})")
    for name in directions["names"]:
        known = [(kind, directions["record"].get(kind)) for kind in ("accuracy", "variance")]
        told = [f"{shares[name]:.1%} {kind}" for kind, shares in known if is_share(shares, name)]
        click.echo(f"  {name:<22}{', '.join(told)}".rstrip())


def is_share(shares: object, name: str) -> bool:
    """Whether this is a share of 1 by name."""
    return isinstance(shares, dict) and isinstance(shares.get(name), (int, float))


def sizes_line(step: int | None) -> dict[str, str]:
    """The other sizes of images that graphs run on as a whole."""
    return {} if step is None else {"other sizes": f"multiples of {step}, with --size"}


def fitted_line(fitted: dict[str, Any] | None) -> dict[str, str]:
    """The counts of steps that have a fitted setting."""
    if fitted is None:
        return {}
    counts = sorted(setting["steps"] for setting in fitted["settings"])
    date = str(fitted["record"].get("date", "an unknown date"))[:10]
    return {"fitted": f"settings of {', '.join(map(str, counts))} steps, of {date}"}


def starts_line(refine: dict[str, Any] | None) -> dict[str, str]:
    """The starts that `refine` chooses among."""
    if refine is None:
        return {}
    starts, date = ", ".join(map(str, refine["t_starts"][::-1])), str(refine["record"].get("date", "an unknown date"))
    return {"refine": f"t_start auto is one of {starts}, of {date[:10]}"}


def show_graphs(bundle: dict[str, Any]) -> None:
    """Each graph: when it runs, what runs it here and in which precision, that of its weights, and its parity."""
    heads = f"{'graph':<24}{'runs in':<24}{'on':<14}{'weights':<9}{'computes':<10}{'opset':<7}{'size':>10}"
    click.echo(f"{heads}  largest relative error")
    for key, graph in bundle["graphs"].items():
        parity = graph["parity"]
        error = f"{parity['max_relative_error']:.1e} against {parity['reference']}"
        place = f"{key:<22}{', '.join(graph['runs']):<24}{graph['backend'] or '-':<14}"
        what = f"{graph['precision']:<9}{graph['computes_in']:<10}{graph['opset']:<7}"
        click.echo(f"  {place}{what}{size_of(graph):>10}  {error}")


def show_engines(engines: list[dict[str, Any]]) -> None:
    """Each engine: what it was built from, and what its builder measured."""
    if engines:
        click.echo(f"{'engine':<17}{'precision':<11}{'graph':<22}{'size':>10}  built for")
    for engine in engines:
        name = f"  {engine['backend']:<15}{engine['precision']:<11}{engine['graph']:<22}"
        if engine["runs_on"]:
            runners = " or else ".join(engine["runs_on"])
            click.echo(f"{name}{'-':>10}  run in f32 by {runners}, the first that a library knows")
            continue
        click.echo(f"{name}{size_of(engine):>10}  {', '.join(engine['targets']) or 'any processor'}")
        if line := record_line(engine):
            click.echo(f"    {line}")


def notes_line(architecture: dict[str, Any]) -> dict[str, str]:
    """What the build was told and no weight confirms; a manifest's architecture is free, so it may lack this."""
    notes = architecture.get("notes")
    texts = [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    return {"note": ". ".join(texts)} if texts else {}


def size_line(shape: list[int]) -> str:
    """[C, H, W] in words."""
    channels, height, width = shape
    return f"{height} x {width}, {channels} channel{'s' if channels > 1 else ''}"


def state_line(state: dict[str, Any]) -> str:
    """What the loop carries, in a line."""
    parts = [size_line([state["channels"], state["height"], state["width"]])]
    parts.append("no clip" if state["clip"] is None else f"clip {state['clip']:g}")
    parts += [f"{name} {state[name]}" for name in ("centre", "start") if state[name] is not None]
    return ", ".join(parts)


def input_line(entry: dict[str, Any], prior: dict[str, Any] | None) -> str:
    """An input, and where it comes from when it is not given."""
    low_high = "unbounded" if entry["range"] is None else "{:g} to {:g}".format(*entry["range"])
    drawn = "drawn from the bundle's prior" if prior and prior["input"] == entry["name"] else "drawn from N(0, I)"
    null = "" if entry["null"] is None else f", null {_brief(entry['null'])}"
    shape = ", ".join(map(str, entry["shape"]))
    kind = {"image": "a picture, ", "mask": "a mask, 1 what is to be filled in, ", None: ""}[entry["picture"]]
    drawn += ", anew in every step" if entry["draw"] == EACH_STEP else ""
    how = drawn if entry["draw"] else f"{kind}to be given"
    return f"{entry['name']} {entry['dtype']}[{shape}]: {low_high}, {how}{null}"


def pipeline_lines(pipeline: dict[str, Any]) -> Iterator[str]:
    """Each call with what it is fed, the nulls, and what becomes the image."""
    for section in SECTIONS:
        for call in pipeline[section]:
            yield f"{section:<10}{call['graph']}({_wires(call['inputs'])}) -> {_wires(call['outputs'])}"
    for guide in pipeline["guides"]:
        for call in (guide["rows"], guide["step"]):
            if call is not None:
                served = "t {} to {}".format(*guide["timesteps"])
                yield f"{'guide':<10}{call['graph']}({_wires(call['inputs'])}) -> {_wires(call['outputs'])}, {served}"
    second = pipeline["regulariser"] or {}
    for call in (second.get("rows"), second.get("step")):
        if call is not None:
            yield f"{'regulariser':<12}{call['graph']}({_wires(call['inputs'])}) -> {_wires(call['outputs'])}"
    if pipeline["nulls"]:
        yield f"{'nulls':<10}{', '.join(f'{name} {_brief(null)}' for name, null in pipeline['nulls'].items())}"
    yield f"{'image':<10}{pipeline['image']}"


def size_of(entry: dict[str, Any]) -> str:
    """The size in an entry, for people."""
    return f"{entry['size'] / 1e6:.2f} MB"


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
            parts.append(f"{what} {size_of({'size': size})}")
    if parts:
        parts.append("by " + ", ".join(f"{name} {version}" for name, version in engine["made_with"].items()))
    return ", ".join(parts)


def prior_line(prior: dict[str, Any] | None) -> str:
    """The density that the drawn input comes from."""
    if prior is None:
        return "none: what is drawn comes from N(0, I)"
    kind = prior["kind"].replace("_", " ")
    return f"{prior['input']} from a {kind} of {prior['components']} components ({size_of(prior)})"


def _wires(wiring: dict[str, str]) -> str:
    """{name in the graph: value} as a call is written: both names where they differ."""
    return ", ".join(port if port == value else f"{port}={value}" for port, value in wiring.items())


def _plain(null: np.ndarray | None) -> Any:
    return None if null is None else null.tolist()


def _brief(null: Any) -> str:
    return f"{null:g}" if isinstance(null, (int, float)) else "of its own"
