"""Which graphs does a bundle hold beside one float32 graph a role? Half variants, and the whole sampler as one graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.solver.table import Schedule
from export.context import Graph
from export.graphs.onnx_export import export_onnx
from export.graphs.parity import measure
from export.graphs.roles import Role, TimestepTable
from export.graphs.sampler_graph import compose_sampler
from export.graphs.sampler_role import measure_sampler, sampler_role
from export.precision import BOUND, HalfOptions, half_roles

if TYPE_CHECKING:
    from export.engines import BuildContext

HALF_RUNTIMES = ("onnxruntime",)  # OpenVINO on a CPU computes a half graph in float32: nothing would be learnt


@dataclass(frozen=True)
class GraphOptions:
    """What the user said about graphs: see HalfOptions for the first two. whole_sampler: the whole sampler as well."""

    keep_float32: tuple[str, ...] = ()
    turing: bool = False
    whole_sampler: bool = False

    def for_targets(self, targets: Iterable[str]) -> GraphOptions:
        """The same, and graphs that Turing takes where one of the targets is SM75."""
        return replace(self, turing=True) if "sm75" in targets else self


def extra_graphs(
    context: BuildContext, precisions: Sequence[str], options: GraphOptions, backends: Sequence[str]
) -> list[Graph]:
    """The graphs to add to the float32 ones in `context`, each checked against torch.

    Half variants where "fp16" is among the precisions. The sampler in every precision where it is asked for, and in half
    where a TensorRT backend will build from it.
    """
    wanted = {graph.role.name: graph.role for graph in context.graphs}
    models = {graph.role.name: graph.model for graph in context.graphs}
    made: list[Graph] = []
    if options.whole_sampler:
        made.append(_sampler(context, wanted, models, "f32"))
    if "fp16" in precisions:
        halves = list(_half_graphs(context, wanted, HalfOptions(options.keep_float32, options.turing)))
        made += halves
        if options.whole_sampler or any(name.startswith("tensorrt") for name in backends):
            made.append(_sampler(context, wanted, models | {half.role.name: half.model for half in halves}, "fp16"))
    return made


def _half_graphs(context: BuildContext, wanted: Mapping[str, Role], options: HalfOptions) -> Iterator[Graph]:
    table = wanted["timestep_table"].module
    assert isinstance(table, TimestepTable)
    for role in half_roles(wanted, options):
        with context.watch.stage(f"export {role.name} fp16"):
            model = export_onnx(role)
        with context.watch.stage(f"check {role.name} fp16"):
            parity = measure(wanted[role.name], model, HALF_RUNTIMES, table, BOUND)
        yield Graph(role, model, parity)


def _sampler(context: BuildContext, wanted: Mapping[str, Role], models: Mapping[str, bytes], precision: str) -> Graph:
    architecture = context.architecture
    schedule = Schedule(architecture.beta_1, architecture.beta_T, architecture.T)
    role = sampler_role(wanted, precision)
    parts = {name: data for name, data in models.items() if name in ("vae_decoder", "timestep_table", "denoiser")}
    with context.watch.stage(f"compose sampler {precision}"):
        model = compose_sampler(role, parts)
    with context.watch.stage(f"check sampler {precision}"):
        parity = measure_sampler(role, model, HALF_RUNTIMES, schedule, architecture.formulation)
    return Graph(role, model, parity)
