"""Graphs of a bundle beside the pipeline's own in float32: half variants, and the whole sampler as one graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.bundle.files import MAX_GRAPH_BYTES
from engine.bundle.graphs import SAMPLER
from engine.bundle.pipeline import PipelineSpec
from engine.errors import ExportError
from export.context import Graph
from export.families.base import Model
from export.graphs.onnx_export import export_onnx, fixed
from export.graphs.parity import measure
from export.graphs.sampler_graph import compose_sampler
from export.graphs.sampler_role import measure_sampler, sampler_role
from export.precision import BOUND, HalfOptions, half_roles, in_half

if TYPE_CHECKING:
    from export.engines import BuildContext

HALF_RUNTIMES = ("onnxruntime",)  # OpenVINO on a CPU computes a half graph in float32: nothing would be learnt


@dataclass(frozen=True)
class GraphOptions:
    """The wishes of a build: see HalfOptions for the first two; whole_sampler: the whole sampler as well."""

    keep_float32: tuple[str, ...] = ()
    turing: bool = False
    whole_sampler: bool = False

    def for_targets(self, targets: Iterable[str]) -> GraphOptions:
        """The same, and graphs that Turing takes where one of the targets is SM75."""
        return replace(self, turing=True) if "sm75" in targets else self

    def of(self, model: Model, precisions: Iterable[str]) -> Model:
        """The model with the graphs that half precision is for: for Turing all of them, the timestep table too."""
        if not self.turing or "fp16" not in precisions:
            return model
        guides = model.wiring.guide_graphs  # whose gradients are too small for half
        return replace(model, roles={n: role if n in guides else in_half(role) for n, role in model.roles.items()})


def extra_graphs(
    context: BuildContext, precisions: Sequence[str], options: GraphOptions, backends: Sequence[str]
) -> list[Graph]:
    """The graphs to add to the float32 ones in `context`, each checked against torch.

    Half variants where "fp16" is among the precisions. The sampler in every precision where it is asked for, or where a
    TensorRT backend will build from the half one, where it can: a manifest has none in half without the one in float32.
    """
    model = context.model
    made: list[Graph] = []
    exported = {graph.role.name: graph for graph in context.graphs}
    for_plans = "fp16" in precisions and any(name.startswith("tensorrt") for name in backends)
    whole = options.whole_sampler or (for_plans and fits_a_plan(model.wiring))
    if whole:
        made.append(_sampler(context, exported, "f32"))
    if "fp16" in precisions:
        halves = list(_half_graphs(context, model, HalfOptions(options.keep_float32, options.turing)))
        made += halves
        if whole:
            made.append(_sampler(context, exported | {half.role.name: half for half in halves}, "fp16"))
    return made


def fits_a_plan(pipeline: PipelineSpec) -> bool:
    """Whether TensorRT takes the sampler: with one guide at most (export/graphs/sampler_guides.py), and one network, as an
    If of two was never tried there."""
    return len(pipeline.guides) <= 1 and pipeline.regulariser is None


def _half_graphs(context: BuildContext, model: Model, options: HalfOptions) -> Iterator[Graph]:
    guides = model.wiring.guide_graphs
    for role in half_roles({name: role for name, role in model.roles.items() if name not in guides}, options):
        with context.watch.stage(f"export {role.name} fp16"):
            found = export_onnx(role, model.free(role.name))
        with context.watch.stage(f"check {role.name} fp16"):
            parity = measure(
                model.roles[role.name], found, HALF_RUNTIMES, model.example, BOUND, model.free(role.name)
            )
        yield Graph(role, found.data, parity, found.weights)


def _sampler(context: BuildContext, parts: Mapping[str, Graph], precision: str) -> Graph:
    model, wiring = context.model, context.model.wiring
    names = {call.graph for call in (*wiring.run_calls, *wiring.guide_calls, *wiring.regulariser_calls)}
    size = sum(graph.nbytes for name, graph in parts.items() if name in names)
    if size > MAX_GRAPH_BYTES:
        raise ExportError(
            f"graph {SAMPLER}: found graphs of {size / 2**30:.2f} GiB together, expected less than 2 GiB, all that an "
            "ONNX file may hold; leave out --whole-sampler and the TensorRT backends, whose plans are built from it"
        )
    role = sampler_role(model.input_specs, wiring, model.roles, precision)
    with context.watch.stage(f"compose sampler {precision}"):
        own = {name: fixed(graph.model, graph.role, model.free(name) if name in names else None)
               for name, graph in parts.items()}  # fmt: skip
        data = compose_sampler(role, wiring, own)
    with context.watch.stage(f"check sampler {precision}"):
        parity = measure_sampler(role, data, HALF_RUNTIMES, model.schedule.schedule(), model.prediction)
    return Graph(role, data, parity)
