"""The whole sampler as one graph: what it must take and give, derived from the pipeline that it stands for."""

from __future__ import annotations

from engine.bundle.fields import REBUILD, Fields, shorten
from engine.bundle.graphs import SAMPLER, GraphSpec
from engine.bundle.inputs import InputSpec
from engine.bundle.pipeline import PipelineSpec
from engine.errors import BundleError
from engine.kernels import ROW_FIELDS

GUIDE_MODE = "guide_mode"  # the index of one of engine.solver.guides.MODES, where there are guides
NETS = "nets"  # 1 for a row of the regulariser, where there is one, and 0 for one of the pipeline's own network


def sampler_contract(inputs: tuple[InputSpec, ...], spec: PipelineSpec) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs and outputs, {name: "dtype[shape]"}, of the graph `sampler`.

    How many lanes the network runs in is read off the shape of `weights`; `noise` of one step serves a table without any.
    """
    planes = ", ".join(map(str, spec.state.shape))
    state = f"float32[batch, {planes}]"
    channels, height, width = spec.image_shape
    takes = {entry.name: f"{entry.dtype}[{', '.join(map(str, entry.shape))}]" for entry in inputs} | {
        "x_T": state,
        "timesteps": "int64[rows]",
        "coefficients": f"float32[rows, {len(ROW_FIELDS)}]",
        "weights": "float32[rows, lanes]",
        "start": "float32[3]",
        "noise": f"float32[noise_steps, batch, {planes}]",
    }
    gives = {"images": f"uint8[batch, {height}, {width}, {channels}]", "x": state}
    if spec.guides:
        takes[GUIDE_MODE] = "int64[1]"
    if spec.regulariser is not None:
        takes[NETS] = "int64[rows]"
    if spec.state.start is not None:
        gives[spec.state.start] = state
    return takes, gives


def check_sampler(top: Fields, graphs: dict[str, GraphSpec], inputs: tuple[InputSpec, ...], spec: PipelineSpec) -> None:
    """Refuse a whole-sampler graph that does not take and give what the pipeline says."""
    graph = graphs.get(SAMPLER)
    if graph is None:
        return
    fields = top.object("graphs").object(SAMPLER)
    for direction, expected in zip(("inputs", "outputs"), sampler_contract(inputs, spec), strict=True):
        have = sorted(str(tensor) for tensor in getattr(graph, direction))
        want = sorted(f"{name} {kind}" for name, kind in expected.items())
        if have != want:
            raise BundleError(
                f"{fields.where}, {fields.name_of(direction)}: found {shorten('; '.join(have))}, expected "
                f"{'; '.join(want)!r} (by inputs and pipeline); {REBUILD}"
            )
