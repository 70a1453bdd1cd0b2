"""The plans of a bundle, and those of the older bundle that are still good; the same for both TensorRT libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.bundle.engines import EngineSpec
from engine.bundle.graphs import SAMPLER, graph_key
from engine.bundle.reader import Bundle
from engine.errors import BundleError, ExportError
from export.context import Graph
from export.engines import BuildContext, BuiltEngine
from export.families.base import Model
from export.graphs.extra import fits_a_plan
from export.graphs.onnx_export import fixed
from export.tensorrt.library import Library, open_library, settle_targets
from export.tensorrt.options import PlanOptions, read_options
from export.tensorrt.plan import build_plan

PRECISIONS = ("fp16",)
PLAN = "plan"


@dataclass(frozen=True)
class _Kept:
    """A plan of the older bundle: its file, its verified bytes, its record."""

    file: str
    data: bytes
    record: dict[str, Any]


def check_request(backend: str, options: Mapping[str, Any]) -> None:
    """Refuse unusable options, a missing library and a missing GPU before any graph is exported."""
    wishes = read_options(backend, options)
    settle_targets(open_library(backend), wishes.targets, wishes.hardware)


def unfit(model: Model) -> str | None:
    """None: TensorRT's parser, which takes any graph or says itself what it does not take."""
    del model
    return None


def build_plans(backend: str, context: BuildContext, precision: str, options: Mapping[str, Any]) -> list[BuiltEngine]:
    """A plan of every graph of the pipeline, and of the whole sampler if there; but for `_unfit_graphs`."""
    library, model = open_library(backend), context.model
    wishes = read_options(backend, options, steps=model.defaults["steps"], T=model.schedule.T)
    wishes = replace(wishes, targets=settle_targets(library, wishes.targets, wishes.hardware))
    chosen, unfit = chosen_graphs(context, precision), _unfit_graphs(context, wishes.targets)
    for name, reason in unfit.items():
        context.watch.note(f"{backend}: no plan of {name}: {reason}")
    return [_engine(library, context, precision, graph, wishes) for graph in chosen if graph.role.name not in unfit]


def _unfit_graphs(context: BuildContext, targets: Sequence[str]) -> dict[str, str]:
    """{graph that no plan is built of, because of guides or a regulariser: why}; their own are plans for a later chain."""
    wiring, there = context.model.wiring, dict.fromkeys(graph.role.name for graph in context.graphs)
    if wiring.guides and "sm75" in targets:
        reason = "guides compute in float32, of which sm75 takes no matrix product"
        return {name: reason for name in there if name in (*wiring.guide_graphs, SAMPLER)}
    reason = "TensorRT builds none of several guides" if len(wiring.guides) > 1 else "none with a regulariser was ever tried"
    return {name: reason for name in there if name == SAMPLER and not fits_a_plan(wiring)}


def chosen_graphs(context: BuildContext, precision: str) -> list[Graph]:
    """The graph that each plan is built from, in the precision that it computes in; ExportError when there is none."""
    there = {graph.key: graph for graph in context.graphs}
    chosen = []
    for name, role in {graph.role.name: graph.role for graph in context.graphs}.items():
        found = role.computes_in(precision)
        if name == SAMPLER and graph_key(name, found) not in there:
            continue  # only asked for in another precision
        chosen.append(context.graph(name, found))
    return chosen


def _engine(
    library: Library, context: BuildContext, precision: str, graph: Graph, wishes: PlanOptions
) -> BuiltEngine:
    """One plan: the older bundle's where nothing that it depends on has changed, else a new one."""
    name, found = graph.role.name, graph.role.computes_in(precision)
    entry: dict[str, Any] = {
        "backend": library.backend,
        "precision": found,
        "graph": name,
        "files": {PLAN: {"file": f"{name}.{library.backend}.{found}.plan"}},
        "source_sha256": graph.sha256,
        "made_with": library.made_with,
        "targets": list(wishes.targets),
        "options": wishes.as_entry(d for tensor in graph.role.inputs for d in tensor.shape if isinstance(d, str)),
    }
    label = f"{library.backend} {name}"
    kept = _kept(context.previous, entry)
    if kept is not None:
        context.watch.note(f"{label}: nothing changed, {kept.file} of the older bundle is used again")
        return _built({**entry, "record": kept.record}, kept.data)
    if graph.weights:
        raise ExportError(
            f"graph {graph.key}: found more weights than an ONNX file may hold (2 GiB), expected fewer for a plan of "
            f"{library.backend}; build plans in half, --precision fp16, or leave {library.backend} out of --backends"
        )
    with context.watch.stage(label):
        onnx = fixed(graph.model, graph.role, context.model.free(name))
        plan = build_plan(library, graph.key, onnx, graph.role.inputs, wishes, context.watch)
    return _built({**entry, "record": {"graph": graph.key, **plan.record}}, plan.data)


def _built(entry: dict[str, Any], data: bytes) -> BuiltEngine:
    return BuiltEngine(entry, {entry["files"][PLAN]["file"]: data})


def _kept(previous: Bundle | None, entry: Mapping[str, Any]) -> _Kept | None:
    """The plan of the older bundle that a build would only repeat; None when there is none or its bytes do not verify."""
    if previous is None:
        return None
    for spec in previous.manifest.engines:
        if _same(spec, entry):
            try:
                data = previous.read_engine(spec, PLAN)
            except BundleError:
                return None  # replaced or damaged since the bundle was opened: build it
            return _Kept(spec.files[PLAN].file, data, spec.record)
    return None


def _same(spec: EngineSpec, entry: Mapping[str, Any]) -> bool:
    found = {
        "backend": spec.backend,
        "precision": spec.precision,
        "graph": spec.graph,
        "source_sha256": spec.source_sha256,
        "made_with": spec.made_with,
        "targets": list(spec.targets),
        "options": spec.options,
    }
    return all(entry[key] == value for key, value in found.items())
