"""What a family of models offers to a build, and the model that it hands over: graphs, and how they are wired."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from engine.bundle.fields import Fields
from engine.bundle.inputs import NORMAL, InputSpec, parse_inputs
from engine.bundle.maps import map_ports
from engine.bundle.pipeline import PipelineSpec
from engine.bundle.pipeline_reader import parse_pipeline
from engine.bundle.training import ScheduleSpec
from engine.errors import ArgumentError, did_you_mean
from export.graphs.roles import Example, FreeSize, Role, with_rows
from export.read.checkpoint import Checkpoint

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Source:
    """The files that a model came from, and which of the weights in them; `other` where there is a second file."""

    checkpoint: Checkpoint
    other: Checkpoint | None
    weights: str


@dataclass(frozen=True)
class Model:
    """A model with its weights, ready to be exported.

    roles         the float32 graphs by name, in the order in which sampling uses them
    inputs        the manifest's `inputs`
    pipeline      the manifest's `pipeline`
    prediction    what the network predicts: "eps", "x0" or "v"
    architecture  what was inferred, for people: nothing reads it again
    guidance      what `defaults` should record once the inputs have their null, where a build gives them one later
    notes         sentences on what was only said or was rounded, for people, as `architecture` is
    encoder       the file whose encoder gives the drawn input its meaning; a fitted prior belongs to it
    guide         the manifest's `guide` where the pipeline has guides
    regularise    the manifest's `regularise` where the pipeline has a regulariser
    rescaled      a tensor [T]: what the network is given for each timestep, where that is not the timestep itself
    guide_scale   what a published model is sampled with where a classifier guides it
    step_bound    the largest relative error of `step` in native bf16: what its roundings cost random weights, and some room
    """

    family: str
    name: str
    roles: Mapping[str, Role]
    inputs: Sequence[Mapping[str, Any]]
    pipeline: Mapping[str, Any]
    schedule: ScheduleSpec
    prediction: str
    variance: str
    defaults: Mapping[str, Any]
    architecture: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 0.0
    notes: Sequence[str] = ()
    encoder: Checkpoint | None = None
    step_bound: float = 0.015
    guide: Mapping[str, Any] | None = None
    regularise: Mapping[str, Any] | None = None
    rescaled: Any = field(default=None, compare=False)
    guide_scale: float | None = None

    @cached_property
    def input_specs(self) -> tuple[InputSpec, ...]:
        """`inputs`, checked as a reader of the manifest checks them."""
        return parse_inputs(Fields({"inputs": list(self.inputs)}, self._where, ""))

    @cached_property
    def wiring(self) -> PipelineSpec:
        """`pipeline`, each call held against its graph; BundleError names the field that does not fit."""
        graphs = {name: role.spec() for name, role in self.roles.items()}
        top = Fields({"pipeline": dict(self.pipeline)}, self._where, "")
        return parse_pipeline(top.object("pipeline"), self.input_specs, graphs)

    @property
    def drawn(self) -> InputSpec | None:
        """The input that is drawn once a sample when it is not given, if there is one."""
        return next((spec for spec in self.input_specs if spec.draw == NORMAL), None)

    @property
    def step(self) -> Role:
        """The graph that runs in the loop."""
        return self.roles[self.wiring.step.graph]

    @property
    def loop_graphs(self) -> tuple[str, ...]:
        """The networks of the loop: that of `step` and the regulariser's."""
        wiring = self.wiring
        return (wiring.step.graph, *(() if wiring.regulariser is None else (wiring.regulariser.step.graph,)))

    def free(self, graph: str) -> FreeSize | None:
        """What the file of a graph leaves free of its size; None where that is the model's own alone, or of no picture."""
        wiring = self.wiring
        ports = map_ports(wiring).get(graph)
        if wiring.multiple is None or not ports:
            return None
        return FreeSize(ports, wiring.multiple, (wiring.state.height, wiring.state.width))

    @property
    def example(self) -> Example:
        """Random inputs of any of its graphs, of the kind that sampling meets."""
        wiring, found = self.wiring, {}
        others = (*wiring.guides, *(() if wiring.regulariser is None else (wiring.regulariser,)))
        for rows, step in ((wiring.rows, wiring.step), *((other.rows, other.step) for other in others)):
            if rows is not None:
                port = next((port for port, value in step.inputs.items() if value == "rows"), "")
                found[step.graph] = self.roles[rows.graph], port
        return with_rows(found)

    @property
    def _where(self) -> str:
        return f"family {self.family}"


Options = TypeVar("Options")


def options_of(kind: type[Options], given: Mapping[str, Any], family: str) -> Options:
    """What was said of a model, by name, as the family's dataclass; ArgumentError for a name that it does not have."""
    known = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known and value is not None:
            raise ArgumentError(
                f"options: found {name!r}, expected some of {', '.join(known)} for a model of family {family}."
                f"{did_you_mean(name, known)}"
            )
    return kind(**{name: value for name, value in given.items() if name in known})


class Recognised(Protocol):
    """A model that was recognised in its files; its weights are not in memory yet."""

    @property
    def source(self) -> Source:
        """Its files."""

    @property
    def name(self) -> str:
        """The name that its bundle bears."""

    def lines(self) -> dict[str, str]:
        """What was inferred and from what, as lines for people."""

    def load(self) -> Model:
        """The model with the chosen weights, in float32 and evaluation mode; CheckpointError for those that are unfit."""


class Family(Protocol):
    """What a module of export/families offers."""

    NAME: str  # the manifest's `family`

    def flags(self, command: Command) -> Command:
        """Add to a click command the options that `recognise` takes."""

    def claims(self, checkpoint: Checkpoint) -> bool:
        """Whether the keys of a checkpoint are those of this family."""

    def recognise(
        self, checkpoint: Checkpoint, other: Path | None, weights: str, options: Mapping[str, Any]
    ) -> Recognised:
        """Settle everything about a model but its weights; an EngineError says what is missing, and which option names it.

        other: a second file; weights: which of those in the file; options: what was said of the model on the command line.
        """


class FolderFamily(Family, Protocol):
    """A family whose models also come as folders of several files."""

    def claims_folder(self, path: Path) -> bool:
        """Whether a folder is a model of this family."""

    def recognise_folder(self, path: Path, options: Mapping[str, Any]) -> Recognised:
        """As `recognise`, for a folder."""
