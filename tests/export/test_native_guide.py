"""Guides as native programs: the gradient of the reference's classifiers in bf16, beside autograd in float32."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.backends.native.graph import NativeGraph, open_graph
from engine.backends.native.weights import weights_of
from engine.errors import ArgumentError, BundleError, ExportError
from export.graphs.roles import Inputs, Role, example, tensor
from export.guides import Guide
from export.models.openai.classifier import Classifier, ClassifierSpec
from export.models.openai.spec import OpenAIUNetSpec
from export.native import builder
from export.native.guide import classifier_unfit, lower_classifier
from export.native.measure import GUIDE_BOUND, GUIDE_SIZES, measure_program, relative_error
from export.native.pack import fold_doubling
from export.native.program import Assembled
from tests import adm_guides as guided
from tests import adm_models as golden
from tests.native_models import NEEDS_NATIVE

FOLDERS = ("classifier_attention", "classifier_adaptive")


class Autograd(nn.Module):
    """x, label, row -> g, entropy by torch's own gradient."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    @torch.inference_mode(False)
    def forward(self, x: torch.Tensor, label: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_(True)
        with torch.enable_grad():
            log_p = self.classifier(x, row.clone()).log_softmax(-1)
            (g,) = torch.autograd.grad(log_p[torch.arange(len(x)), label.clone()].sum(), x)
        return g, -(log_p.exp() * log_p).sum(-1).detach()


@dataclass(frozen=True)
class Made:
    """A classifier, its guide's signature over autograd, and its program."""

    classifier: Classifier
    role: Role
    program: Assembled

    def graph(self, threads: int = 1) -> NativeGraph:
        """The program, opened."""
        weights = weights_of(self.program.weights, "weights")
        return open_graph(self.program.program, weights, self.role.spec(), "guide", "bf16", threads, "program")


def made(classifier: Classifier, image: tuple[int, int, int]) -> Made:
    classifier = classifier.eval().requires_grad_(False)
    inputs = (
        tensor("x", ("batch", *image)), tensor("label", ("batch",), "int64", (0.0, classifier.spec.out_channels - 1.0)),
        tensor("row", (1, classifier.row_width)),
    )  # fmt: skip
    outputs = (tensor("g", ("batch", *image)), tensor("entropy", ("batch",)))
    role = Role("guide", Autograd(classifier), inputs, outputs)
    return Made(classifier, role, lower_classifier(classifier, role))


@functools.cache
def of_golden(folder: str) -> Made:
    classifier, arrays = guided.network(folder), golden.expected(folder)
    return made(classifier, arrays["x_T"].shape[1:])


def small(pool: str = "adaptive", size: tuple[int, int] = (8, 8), **changes: object) -> Classifier:
    """A classifier with random weights."""
    torch.manual_seed(5)
    spec = OpenAIUNetSpec(3, 6, 32, (1, 2), 1, (1, 2), 2, None)
    classifier = Classifier(ClassifierSpec(replace(spec, **changes), pool, size))  # type: ignore[arg-type]
    if pool == "attention":
        nn.init.normal_(classifier.out[2].positional_embedding)
    return classifier


def given(of: Made, batch: int, t: float | None = None) -> Inputs:
    """Drawn inputs; the row of a timestep, or drawn too."""
    inputs = example(of.role, batch, 1, 3)
    if t is not None:
        with torch.no_grad():
            inputs["row"] = of.classifier.timestep_rows(torch.tensor([t]))
    return inputs


def answer(graph: NativeGraph, inputs: Inputs) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in graph(**{key: value.numpy() for key, value in inputs.items()}).items()}


def check(of: Made, inputs: Inputs) -> None:
    """g and entropy beside float32's."""
    want = of.role(inputs)
    with of.graph() as graph:
        found = answer(graph, inputs)
    g, exact = found["g"].ravel().astype(np.float64), want["g"].numpy().ravel().astype(np.float64)
    assert relative_error(g, exact) < 0.04
    assert g @ exact > 0.999 * np.linalg.norm(g) * np.linalg.norm(exact)
    np.testing.assert_allclose(found["entropy"], want["entropy"].numpy(), rtol=0, atol=1e-2)


@NEEDS_NATIVE
@pytest.mark.parametrize("t", [0.0, 20.0, 999.0])
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_reference_s_classifiers(folder: str, t: float) -> None:
    of, arrays = of_golden(folder), golden.expected(folder)
    taken = {"x": torch.from_numpy(arrays["x_T"]), "label": torch.from_numpy(arrays["y"]).long()}
    check(of, given(of, 2, t) | taken)


@NEEDS_NATIVE
@pytest.mark.parametrize(
    ("pool", "size", "changes"),
    [
        ("adaptive", (8, 12), {}),
        ("adaptive", (16, 8), {"scale_shift": True, "channel_mult": (1, 1, 2)}),
        ("attention", (8, 12), {"resample_blocks": True, "model_channels": 64}),
        ("attention", (16, 16), {"num_heads": None, "num_head_channels": 8, "attention_factors": ()}),
    ],
)
def test_other_classifiers(pool: str, size: tuple[int, int], changes: dict[str, object]) -> None:
    of = made(small(pool, size, **changes), (3, *size))
    check(of, given(of, 3))


@NEEDS_NATIVE
@pytest.mark.parametrize("folder", FOLDERS)
def test_bits_depend_on_neither_batch_nor_threads(folder: str) -> None:
    of = of_golden(folder)
    inputs = given(of, 7, 300.0)
    with of.graph() as graph:
        want = answer(graph, inputs)
    assert np.ptp(want["entropy"]) > 0, "samples differ"
    for threads in (1, 2, 3):
        with of.graph(threads) as graph:
            for batch in (1, 2, 5, 7):
                found = answer(graph, {key: value if key == "row" else value[:batch] for key, value in inputs.items()})
                for name, array in found.items():
                    np.testing.assert_array_equal(array, want[name][:batch])


@NEEDS_NATIVE
def test_a_label_that_is_no_class() -> None:
    of = of_golden("classifier_adaptive")
    with of.graph() as graph, pytest.raises(ArgumentError, match="label"):
        answer(graph, given(of, 2) | {"label": torch.tensor([0, 5])})


Change = Callable[[dict[str, Any]], None]


@NEEDS_NATIVE
@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("classify", lambda op: op.update(factor=17), r"weights \(classify\)"),
        ("classify", lambda op: op.update(labels="x"), r"labels \(classify\)"),
        ("classify", lambda op: op.update(heads=0), r"places \(classify\)"),
        ("classify", lambda op: op.update(output_port="g"), r"output_port \(classify\)"),
        ("classify", lambda op: op.update(scale=0.0), r"scale \(classify\)"),
        ("classify", lambda op: op.update(source="input"), r"(source|heads|places) \(classify\)"),
        ("norm_gradient", lambda op: op.update(factor=3), r"sources \(norm_gradient\): found 64 x 8 x 8"),
        ("norm_gradient", lambda op: op.update(activation="gelu"), r"activation \(norm_gradient\)"),
        ("norm_gradient", lambda op: op["norm"].update(groups=7), r"norm\.groups \(norm_gradient\)"),
        ("norm_gradient", lambda op: op["norm"].update(scale_row=2**20), r"norm\.scale_row \(norm_gradient\)"),
        ("norm_gradient", lambda op: op.update(residual="input"), r"residual \(norm_gradient\)"),
        ("norm_gradient", lambda op: op["sources"].__setitem__(0, "middle_block.1.attention"), "map that attention writes"),
        ("attention_gradient", lambda op: op.update(heads=5), r"heads \(attention_gradient\)"),
        ("attention_gradient", lambda op: op["sources"].pop(), r"sources \(attention_gradient\)"),
        ("attention_gradient", lambda op: op.update(sources=["input", "input"]), r"sources \(attention_gradient\)"),
        ("attention_gradient", lambda op: op.update(output=op["sources"][0]), r"output \(attention_gradient\)"),
    ],
)  # fmt: skip
def test_a_malformed_program_is_refused(kind: str, change: Change, sentence: str) -> None:
    of = of_golden("classifier_attention")
    program = json.loads(of.program.program)
    change(next(op for op in program["ops"] if op["kind"] == kind))
    with pytest.raises(BundleError, match=sentence):
        replace(of, program=replace(of.program, program=json.dumps(program).encode())).graph()


def multiply_adds(program: dict[str, Any]) -> tuple[int, int]:
    """Of a guide's products, as done: those that end with the classifier's answer, and those behind it."""
    maps = {tensor["name"]: tensor for tensor in [*program["tensors"], *program["ports"]]}
    forward, back, classified = 0, 0, False
    for op in program["ops"]:
        classified = classified or op["kind"] == "classify"
        out = maps[op.get("output") or op["output_port"]]
        pixels, channels = out["height"] * out["width"], [maps[name]["channels"] for name in op.get("sources", ())]
        if op["kind"] == "conv":
            taps = 4 if op["upsample"] else op["kernel"] ** 2
            skipped = 0 if op["skip"] is None else sum(maps[name]["channels"] for name in op["skip"]["sources"])
            count = pixels * out["channels"] * (sum(channels) * taps + skipped)
        elif op["kind"].startswith("attention"):
            count = pixels**2 * channels[0] // 3 * (5 if op["kind"] == "attention_gradient" else 2)
        else:
            count = 0
        forward, back = (forward, back + count) if classified else (forward + count, back)
    return forward, back


@pytest.mark.parametrize("folder", FOLDERS)
def test_going_back_multiplies_little_more_than_going_forward(folder: str) -> None:
    forward, back = multiply_adds(json.loads(of_golden(folder).program.program))
    assert 0.8 * forward < back < 1.3 * forward


def test_a_convolution_of_stride_2_goes_back_through_zeros() -> None:
    rng = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((4, 3, 3, 3), (1, 3, 6, 6)))
    x.requires_grad_(True)
    y = F.conv2d(x, weight, stride=2, padding=1)
    g = torch.randn(y.shape, generator=rng, dtype=torch.float64)
    (want,) = torch.autograd.grad((y * g).sum(), x)
    turned = weight.transpose(0, 1).flip(2, 3).numpy().astype(np.float32)
    found = torch.zeros_like(want)
    for phase, taps in enumerate(fold_doubling(turned, stuffed=True)):
        py, px = divmod(phase, 2)
        kernel = torch.from_numpy(taps).double().reshape(3, 4, 2, 2)
        found[..., py::2, px::2] = F.conv2d(F.pad(g, (1 - px, px, 1 - py, py)), kernel)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("classifier", "size", "sentence"),
    [
        (small("spatial"), (8, 8), "a pool of kind spatial"),
        (small("spatial_v2"), (8, 8), "a pool of kind spatial_v2"),
        (small(), (2048, 8), "images of 2048 x 8"),
        (small(), (128, 128), "attention over 16384 pixels"),
    ],
)
def test_what_cannot_be_lowered(classifier: Classifier, size: tuple[int, int], sentence: str) -> None:
    of = Role("guide", classifier, (tensor("x", ("batch", 3, *size)),), ())
    assert sentence in str(classifier_unfit(classifier, of))


class _Unrecorded(Guide):
    """A guide that is not traced: what lowering sees of one."""

    def __init__(self, classifier: nn.Module) -> None:
        nn.Module.__init__(self)
        self.classifier = [classifier]


def test_the_builder_lowers_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "LOWERINGS", builder.LOWERINGS | {_Unrecorded: builder.LOWERINGS[Guide]})
    monkeypatch.setattr(builder, "UNFIT", builder.UNFIT | {_Unrecorded: builder.UNFIT[Guide]})
    of = of_golden("classifier_attention")
    assert builder.lower(replace(of.role, module=_Unrecorded(of.classifier))) == of.program
    other = replace(of.role, module=_Unrecorded(nn.Flatten()))
    with pytest.raises(ExportError, match="a guide by a Flatten, expected a classifier of guided-diffusion"):
        builder.lower(other)


@NEEDS_NATIVE
def test_an_entropy_is_measured_in_nats_and_a_gradient_by_its_size() -> None:
    of = of_golden("classifier_adaptive")
    record = measure_program(of.role, of.program, "bf16", example, GUIDE_BOUND, GUIDE_SIZES)
    assert 1e-3 < float(str(record["relative_error"])) < GUIDE_BOUND
