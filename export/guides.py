"""Guides: the gradient of a classifier's log-probability as a graph, for classifier guidance (Dhariwal & Nichol 2021).

    g = grad_x log softmax(classifier(x, row))_y          [N, C, H, W], of each sample by itself
    entropy = - sum p log p, p = softmax(...)             [N], in nats: what entropy-aware scaling divides by

A guide takes the image as the denoiser does, noised, and the row that the classifier makes of a timestep (of a classifier
that knows no timestep: none). Any torch module in evaluation can be one; its parameters become constants.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.bundle.inputs import InputSpec
from engine.bundle.tensors import TensorSpec
from engine.errors import ExportError, first_line
from engine.solver.table import METHODS
from export.families.base import Model
from export.graphs.gradients import traced
from export.graphs.roles import Example, Inputs, Role, entry_of, example, tensor

BOUND = 1e-4  # largest difference from autograd, relative to the largest gradient
BATCHES = (2, 3, 5)
EXACT = {"bf16": "f32", "int8": "f32", "fp16": "f32"}  # of the table of timesteps
# A gradient may be smaller than what half can say; bf16, whose exponents are float32's, costs it 1 to 4 % in the L2 norm.
COMPUTE = {"int8": "bf16", "fp16": "f32"}
LABEL = "label"


class Recorded(nn.Module):
    """A gradient as plain operations, beside what they were recorded from."""

    def by_autograd(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same outputs by torch's own gradient."""
        raise NotImplementedError


class Guide(Recorded):
    """x, label, (row) -> g, entropy: plain operations, recorded from a classifier(x) or classifier(x, row)."""

    def __init__(self, classifier: nn.Module, x: torch.Tensor, label: torch.Tensor, row: torch.Tensor | None) -> None:
        super().__init__()
        self.classifier = [classifier]  # in a list: its parameters are in the trace already
        if row is None:
            self.recorded = traced(lambda x, label: self.by_autograd(x, label), x, label)
        else:
            self.recorded = traced(lambda x, label, row: self.by_autograd(x, label, row), x, label, row)

    def forward(
        self, x: torch.Tensor, label: torch.Tensor, row: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        g, entropy = self.recorded(x, label) if row is None else self.recorded(x, label, row)
        return g, entropy

    def by_autograd(  # type: ignore[override]  # its inputs by name
        self, x: torch.Tensor, label: torch.Tensor, row: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (classifier,) = self.classifier
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            log_p = (classifier(x) if row is None else classifier(x, row)).log_softmax(-1)
            # By a mask, as indexing would become a scatter.
            chosen = (torch.arange(log_p.shape[-1]) == label[:, None]).to(log_p.dtype) * log_p
            (g,) = torch.autograd.grad(chosen.sum(), x)
        return g.detach(), -(log_p.exp() * log_p).sum(-1).detach()


@dataclass(frozen=True)
class Guidance:
    """What a guide is for: images [C, H, W], classes, and the width of the row (None: the classifier knows no timestep)."""

    image: tuple[int, int, int]
    classes: int
    row_width: int | None = None


def guide_role(classifier: nn.Module, of: Guidance, name: str = "guide") -> Role:
    """The graph of a guide, checked against autograd; ExportError for a classifier that cannot be recorded, whose logits
    are not [N, classes], or whose gradient comes out further off than 1e-4.

    classifier: x float32 [N, C, H, W] (and row [1 or N, R]) -> logits [N, classes].
    """
    inputs = [tensor("x", ("batch", *of.image)), tensor("label", ("batch",), "int64", (0.0, of.classes - 1.0))]
    if of.row_width is not None:
        inputs.append(tensor("row", (1, of.row_width)))
    outputs = (tensor("g", ("batch", *of.image)), tensor("entropy", ("batch",)))
    with frozen(classifier):
        unmade = Role(name, classifier, tuple(inputs), outputs)
        given = distinct(unmade)
        _check_logits(classifier, given, of.classes, name)
        with entered(classifier) as layers, recording(f"guide {name}", "its gradient", "module", layers):
            module = Guide(classifier, given["x"], given["label"], given.get("row"))
        # Of a classifier that is sure the entropy is the difference of nearly equal numbers.
        role = Role(name, module, tuple(inputs), outputs, compute=COMPUTE, scales={"entropy": math.log(of.classes)})
        check(role, example)
    return role


@dataclass(frozen=True)
class OwnGuide:
    """A classifier to guide a model with.

    classifier  x float32 [N, C, H, W], noised, as the model's network is given it (and row [1, R]) -> logits [N, classes]
    table       timesteps int64 [S] -> rows float32 [S, R], for a classifier that knows the timestep: a graph of its own, of
                one input and one output
    timesteps   (low, high), both included, that it serves; None: all
    """

    classifier: nn.Module
    classes: int
    table: Role | None = None
    timesteps: tuple[int, int] | None = None


def with_guides(
    model: Model,
    guides: Sequence[OwnGuide],
    *,
    scale: float = 1.0,
    mode: str = "constant",
    interval: tuple[int, int] | None = None,
) -> Model:
    """The model with guides, from the clean end; of several timesteps the first serves what two serve.

    scale, mode, interval: what the bundle records, as `Sampler.sample` takes them (guide_scale, ...). All guides and a model
    with classes are told one label. ExportError for a classifier that cannot be recorded or has other classes.
    """
    check_scale(model, scale)
    entries: list[dict[str, Any]] = []
    roles = dict(model.roles)
    state = model.wiring.state.shape
    labelled = label_of(model)
    for index, guide in enumerate(guides):
        name = "guide" if len(guides) == 1 else f"guide_{index}"
        _check_label(guide, labelled or (roles[entries[0]["step"]["graph"]].inputs[1] if entries else None), name)
        made, takes = _table_of(guide, f"{name}_table"), {"x": "x", LABEL: LABEL}
        width, rows = None, None
        if made is not None:
            width, roles[made.name] = int(made.outputs[0].shape[-1]), made
            rows = _call(made.name, {made.inputs[0].name: "timesteps"}, {made.outputs[0].name: "rows"})
            takes["row"] = "rows"
        roles[name] = guide_role(guide.classifier, Guidance(state, guide.classes, width), name)
        step = _call(name, takes, {"g": "g", "entropy": "entropy"})
        low, high = guide.timesteps or (0, model.schedule.T - 1)
        entries.append({"rows": rows, "step": step, "timesteps": [low, high], "classes": guide.classes})
    given = [entry_of(roles[entries[0]["step"]["graph"]].inputs[1]) | {"draw": None, "null": None, "picture": None}]
    return dataclasses.replace(
        model,
        roles=roles,
        inputs=[*model.inputs, *(given if labelled is None else [])],
        pipeline={**model.pipeline, "guides": entries},
        guide=guide_entry(scale, mode, interval),
    )


def guide_entry(scale: float, mode: str, interval: tuple[int, int] | None) -> dict[str, Any]:
    """The manifest's `guide`."""
    return {"scale": scale, "mode": mode, "interval": None if interval is None else list(interval)}


def check_scale(model: Model, scale: float) -> None:
    """Refuse a scale that the recorded method has no use for."""
    if scale and not takes_guide(model):
        expected = " or ".join(name for name, method in METHODS.items() if "guide" in method.takes)
        raise ExportError(
            f"guides: found a model that records method {model.defaults['method']}, which takes no guide, expected "
            f"{expected}; give a scale of 0, and a method and a scale when sampling"
        )


def takes_guide(model: Model) -> bool:
    """Whether the method that a model records takes guides."""
    return "guide" in METHODS[model.defaults["method"]].takes


def label_of(model: Model) -> InputSpec | None:
    """The label that a model takes."""
    return next((spec for spec in model.input_specs if spec.name == LABEL), None)


def classes_of(label: InputSpec | TensorSpec | None) -> int | None:
    """How many classes a label has; None where there is none."""
    return None if label is None or label.range is None else int(label.range[1]) + 1


def _check_label(guide: OwnGuide, label: InputSpec | TensorSpec | None, name: str) -> None:
    """Refuse a guide of other classes than the label that there is already."""
    found = classes_of(label)
    if label is not None and (label.dtype, label.shape, found) != ("int64", ("batch",), guide.classes):
        raise ExportError(
            f"guide {name}: found a classifier of {guide.classes} classes, expected {found or 'none'}, as the model's input "
            f"{label.name} has: one label is for all"
        )


def _table_of(guide: OwnGuide, name: str) -> Role | None:
    return None if guide.table is None else dataclasses.replace(guide.table, name=name)


def _call(graph: str, takes: dict[str, str], gives: dict[str, str]) -> dict[str, Any]:
    return {"graph": graph, "inputs": takes, "outputs": gives}


@contextlib.contextmanager
def recording(where: str, what: str, kind: str, layers: Sequence[str] = ()) -> Iterator[None]:
    """ExportError for what goes wrong while a gradient is recorded; layers: those being computed, the innermost last."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{where}: {error}") from error
    except (RuntimeError, TypeError, ValueError) as error:
        at = f", layer {layers[-1]!r}" if layers and layers[-1] else ""
        raise ExportError(
            f"{where}{at}: found that torch {torch.__version__} cannot record {what} ({first_line(error)[:200]}), expected "
            f"a {kind} without branches or shapes that depend on values"
        ) from error


def distinct(role: Role) -> Inputs:
    """An example to record from, whose batch is no other size: tracing takes equal sizes for one."""
    sizes = {size for spec in role.inputs for size in spec.shape}
    return example(role, next(n for n in (2, 3, 5, 7, 11, 13) if n not in sizes), 1, 0)


def check(role: Role, examples: Example) -> float:
    """The largest difference of a guide's outputs from autograd, relative to the largest value; ExportError above BOUND."""
    module, worst = role.module, 0.0
    assert isinstance(module, Recorded)
    for seed, batch in enumerate(BATCHES):
        given = examples(role, batch, 1, seed)
        exact = module.by_autograd(**given)
        for (name, found), wanted in zip(role(given).items(), exact, strict=True):
            off = (found - wanted).abs().max() / wanted.abs().max().clamp(min=role.scales.get(name, 1e-30))
            worst = max(worst, float(off)) if torch.isfinite(off) else float("inf")
    if not worst <= BOUND:
        raise ExportError(
            f"guide {role.name}: found a gradient that differs by {worst:.2g} from autograd's, relative to the largest, "
            f"expected at most {BOUND:g}; the module may compute in half precision, or at random"
        )
    return worst


def _check_logits(classifier: nn.Module, given: Inputs, classes: int, name: str) -> None:
    row: Mapping[str, torch.Tensor] = {key: value for key, value in given.items() if key == "row"}
    with torch.no_grad():
        logits = classifier(given["x"], *row.values())
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (len(given["x"]), classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ExportError(f"guide {name}: found logits {found}, expected {(len(given['x']), classes)}: a number a class")


@contextlib.contextmanager
def entered(classifier: nn.Module) -> Iterator[list[str]]:
    """The names of the layers that are being computed, the innermost last: after an error those in which it arose."""
    inside: list[str] = []
    names = {module: name for name, module in classifier.named_modules()}

    def enter(module: nn.Module, _: object) -> None:
        inside.append(names[module])

    def leave(*_: object) -> None:
        inside.pop()

    hooks = [hook for module in names for hook in (
        module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    )]  # fmt: skip
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def frozen(classifier: nn.Module) -> Iterator[None]:
    """In evaluation, with no parameter to be trained; as it was, afterwards."""
    modes = [(module, module.training) for module in classifier.modules()]
    trained = [p for p in classifier.parameters() if p.requires_grad]
    classifier.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)
