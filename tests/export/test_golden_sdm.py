"""Semantic diffusion models against their reference implementation: what keys tell, what is asked, maps and networks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import ArgumentError, CheckpointError, EngineError
from export.families import family_of
from export.families.sdm import NAME, Found, recognise
from export.families.sdm import graphs as sdm_graphs
from export.models.openai.spade import LabelMap
from export.precision import BOUND, HalfOptions, half_role
from export.read.checkpoint import Checkpoint
from tests import adm_models as golden

FOLDER = golden.MAPPED


@functools.cache
def found() -> Found:
    torch.set_num_threads(1)
    return recognise(golden.held(FOLDER), None, "ema", golden.said(FOLDER))


@functools.cache
def segmap() -> torch.Tensor:
    given = {name: torch.from_numpy(array) for name, array in golden.given(FOLDER).items()}
    return LabelMap(5, edges=True)(**given)


def test_what_the_reference_was_given() -> None:
    arch, of = golden.config(FOLDER)["arch"], found().architecture
    assert family_of(golden.held(FOLDER)).NAME == NAME
    assert (of.unet.map_channels, found().labels.classes, found().labels.edges) == (arch["num_classes"], 5, True)
    assert (list(of.unet.channel_mult), of.unet.num_res_blocks) == (arch["channel_mult"], arch["num_res_blocks"])
    assert of.unet.learned_variance
    assert of.defaults["guidance"] == 0.5
    assert found().lines()["label map"].startswith("5 labels and the edges of instances")


def test_the_label_map_is_the_references() -> None:
    np.testing.assert_array_equal(segmap().numpy(), golden.expected(FOLDER)["y_map"])


@torch.inference_mode()
def test_networks_are_the_references() -> None:
    arrays, network = golden.expected(FOLDER), found().network()
    x, null = torch.from_numpy(arrays["x_T"]), torch.zeros_like(segmap())
    for i, t in enumerate(arrays["t"].tolist()):
        for given, ending in ((segmap(), ""), (null, "_null")):
            output = network(x, torch.full((2,), t), segmap=given)
            for part, key in zip(output.chunk(2, dim=1), (f"eps{ending}", f"v{ending}"), strict=True):
                np.testing.assert_allclose(part.numpy(), arrays[key][i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("hoisted", [64, 256, 0])
@torch.inference_mode()
def test_what_is_made_before_the_loop_changes_nothing(hoisted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it; that of the smaller maps, the rest inside; none."""
    monkeypatch.setattr(sdm_graphs, "HOISTED", {64: 8 * 8, 256: 16 * 16, 0: 0}[hoisted])
    of = found()
    unet = of.network()
    roles = sdm_graphs.roles(of.architecture, of.labels, unet)
    denoiser, x = roles["denoiser"], torch.from_numpy(golden.expected(FOLDER)["x_T"])
    inputs = {"x": x, "row": unet.timestep_rows(torch.tensor([500])), "segmap": segmap()}
    if hoisted:
        (inputs["modulation"],) = roles["modulation"]({"segmap": segmap()}).values()
    names = [spec.name for spec in denoiser.inputs]
    assert ("segmap" in names, "modulation" in names) == (hoisted != 256, hoisted > 0)
    output = denoiser({name: inputs[name] for name in names})
    expected = unet(x, torch.full((2,), 500), segmap=segmap())
    torch.testing.assert_close(torch.cat([output["eps"], output["range"]], dim=1), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_half_denoisers() -> None:
    """Within the bound that a build holds them to."""
    of = found()
    unet = of.network()
    roles = sdm_graphs.roles(of.architecture, of.labels, unet)
    (modulation,) = roles["modulation"]({"segmap": segmap()}).values()
    x, row = torch.from_numpy(golden.expected(FOLDER)["x_T"]), unet.timestep_rows(torch.tensor([500]))
    asked = {"x": x, "row": row, "modulation": modulation}
    half, expected = half_role(roles["denoiser"], HalfOptions())(asked), roles["denoiser"](asked)
    for name in ("eps", "range"):
        assert 0 < float((half[name] - expected[name]).abs().max() / expected[name].abs().max()) < BOUND


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"instance_edges": None}, CheckpointError, "has 6 channels.*--no-instance-edges for 6 labels, or --instance-edges"),
        ({"preset": "64x64_diffusion"}, ArgumentError, "--preset: found '64x64_diffusion', expected none"),
        ({"channel_std": None}, ArgumentError, "--channel-std: found none, expected 3 numbers"),
        ({"channel_std": (1, -1, 1)}, ArgumentError, "--channel-std: found 1 -1 1, expected 3"),
        ({"image_size": None, "noise_schedule": None}, CheckpointError, "tell its image size, noise schedule"),
        ({"formulation": 1}, ArgumentError, "for a model of family sdm"),
        ({"small_size": 8}, ArgumentError, "takes no image"),
    ],
)
def test_what_is_said_wrongly_is_refused(changes: dict[str, Any], kind: type[EngineError], says: str) -> None:
    with pytest.raises(kind, match=says):
        recognise(golden.held(FOLDER), None, "ema", golden.said(FOLDER) | changes)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.ema."])
def test_wrapped_keys(wrapper: str) -> None:
    tensors = {f"{wrapper}{key}": value for key, value in golden.state_dict(FOLDER).items()}
    held = Checkpoint(Path("model.pt"), "0" * 64, tensors, {})
    assert family_of(held).NAME == NAME
    assert recognise(held, None, "ema", golden.said(FOLDER)).architecture == found().architecture


def test_a_file_that_lacks_a_map_is_refused() -> None:
    held = golden.held(FOLDER, output_blocks__1__2__out_norm__mlp_beta__weight=None)
    with pytest.raises(CheckpointError, match=r"missing output_blocks\.1\.2\.out_norm\.mlp_beta\.weight"):
        recognise(held, None, "ema", golden.said(FOLDER))


def test_edges_are_between_neighbours_alone() -> None:
    instances = torch.tensor([[[1, 1, 2], [1, 1, 1], [3, 1, 1]]])
    (edges,) = LabelMap(2, edges=True)(torch.zeros(1, 3, 3, dtype=torch.long), instances)[:, -1].tolist()
    assert edges == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
