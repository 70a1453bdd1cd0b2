"""Guides as native programs: the gradient of the reference's classifiers in bf16, beside autograd in float32."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from engine.backends.native.graph import NativeGraph, open_graph
from engine.backends.native.weights import weights_of
from export.graphs.roles import Role, example, tensor
from export.models.openai.classifier import POOLS, Classifier, ClassifierSpec
from export.native.guide import classifier_unfit, lower_classifier
from export.native.measure import relative_error
from export.native.program import Assembled
from tests.guides import golden_classifier
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
        return open_graph(
            self.program.program, weights_of(self.program.weights, "weights"), self.role.spec(), "guide", "bf16", threads, "program"
        )


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
def golden(folder: str) -> Made:
    classifier, _, arrays = golden_classifier(folder)
    return made(classifier, arrays["x_T"].shape[1:])
