"""A denoising diffusion GAN against its reference implementation: what keys tell, what is asked, schedule and generator."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import ArgumentError, CheckpointError, EngineError
from engine.kernels import ROW_FIELDS
from engine.solver.table import StepTable, build_step_table
from export.families import family_of
from export.families.ddgan import NAME, Found, recognise
from export.families.ddgan.graphs import roles
from export.precision import BOUND, HalfOptions, half_role
from tests import ddgan_models as golden


@functools.cache
def found() -> Found:
    torch.set_num_threads(1)
    return recognise(golden.held(), None, "ema", golden.SAID)


@functools.cache
def graphs() -> Any:
    return roles(found().architecture, found().network())


def table() -> StepTable:
    of = found().architecture
    return build_step_table(
        of.schedule.schedule(), prediction="x0", clip=None, variance="fixedsmall", **of.defaults
    )


def test_what_the_reference_was_given() -> None:
    arch, spec = golden.config()["arch"], found().architecture.generator
    assert family_of(golden.held()).NAME == NAME
    assert (spec.base, spec.channels, spec.blocks) == (arch["num_channels_dae"], 3, arch["num_res_blocks"])
    assert [width // spec.base for width in spec.widths] == arch["ch_mult"]
    assert [16 >> level for level, attends in enumerate(spec.attends) if attends] == arch["attn_resolutions"]
    assert (spec.latent, spec.embedding, spec.layers) == (arch["nz"], arch["z_emb_dim"], arch["n_mlp"])
    assert "0.1 and 20" in found().architecture.notes[0]


def test_the_schedule_and_the_rows_are_the_references() -> None:
    arrays, of = golden.expected(), table()
    np.testing.assert_allclose(found().architecture.schedule.betas, arrays["betas"], rtol=2e-6)
    np.testing.assert_array_equal(of.timesteps, arrays["timesteps"])
    column = {name: of.rows[:, i] for i, name in enumerate(ROW_FIELDS)}
    np.testing.assert_allclose(column["k_x0"][:-1], arrays["coef1"][:0:-1], rtol=2e-5)
    np.testing.assert_allclose(column["k_x"][:-1], arrays["coef2"][:0:-1], rtol=2e-5)
    np.testing.assert_allclose(2 * np.log(column["k_n"][:-1]), arrays["log_variance"][:0:-1], rtol=2e-5)
    assert [column[name][-1] for name in ("k_x0", "k_x", "k_n")] == [1, 0, 0]


@torch.inference_mode()
def test_networks_are_the_references() -> None:
    arrays, network = golden.expected(), found().network()
    z, x = torch.from_numpy(golden.latents()), torch.from_numpy(arrays["x_T"])
    embedded = network.embed_latent(z).transpose(0, 1)
    np.testing.assert_allclose(embedded.numpy(), arrays["zemb"], rtol=0, atol=2e-6)
    steps = torch.arange(4)
    first = graphs()["generator_table"]({"timesteps": steps, "z": z[:, :1].expand(-1, 4, -1)})["rows"]
    for t, expected in enumerate(arrays["probe_x0"]):
        output = graphs()["generator"]({"x": x, "row": first[t]})["x0"]
        np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=1e-5)
    second = graphs()["generator_table"]({"timesteps": steps[:1], "z": z[:, 1:2]})["rows"]
    output = graphs()["generator"]({"x": x, "row": second[0]})["x0"]
    np.testing.assert_allclose(output.numpy(), arrays["probe_z1"], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_half_generators() -> None:
    """Within the bound that a build holds them to; what carries the residual stream is in float32."""
    role, x = graphs()["generator"], torch.from_numpy(golden.expected()["x_T"])
    z = torch.from_numpy(golden.latents())
    rows = graphs()["generator_table"]({"timesteps": torch.arange(4), "z": z})["rows"]
    half = half_role(role, HalfOptions())
    for t in range(4):
        asked = {"x": x, "row": rows[t]}
        expected = role(asked)["x0"]
        assert 0 < float((half(asked)["x0"] - expected).abs().max() / expected.abs().max()) < BOUND


def test_the_folded_convolution_is_the_filter_and_the_convolution() -> None:
    from torch.nn.functional import conv2d, pad

    from export.models.ncsnpp import PyramidConv, smoothing

    torch.manual_seed(0)
    layer, x = PyramidConv(3, 8), torch.randn(1, 3, 8, 12)
    filtered = conv2d(pad(x, (2, 2, 2, 2)), smoothing(1.0).expand(3, 1, 4, 4), groups=3)
    expected = conv2d(filtered, layer.Conv2d_0.weight, layer.Conv2d_0.bias, stride=2)
    torch.testing.assert_close(layer.folded()(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"image_size": None, "diffusion_steps": None}, CheckpointError, "image size and steps.*--diffusion-steps T"),
        ({"diffusion_steps": None}, CheckpointError, "not tell its steps; .*4 steps for CIFAR-10"),
        ({"image_size": 15}, ArgumentError, "--image-size: found 15 x 15, expected multiples of 2"),
        ({"size": (16, 9)}, ArgumentError, "--size: found 16 x 9"),
        ({"beta_min": 30}, ArgumentError, "found 4, 30 and 20, expected"),
        ({"heads": 2}, ArgumentError, "for a model of family ddgan"),
    ],
)
def test_what_is_said_wrongly_is_refused(changes: dict[str, Any], kind: type[EngineError], says: str) -> None:
    with pytest.raises(kind, match=says):
        recognise(golden.held(), None, "ema", golden.SAID | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"module__all_modules__9__NIN_0__W": None}, r"missing module\.all_modules\.9\.NIN_0\.W"),
        ({"module__all_modules__5__Conv2d_0__weight": None}, "without Conv2d_0.weight behind the first of its levels"),
        ({"module__all_modules__18__bias": torch.zeros(4)}, r"misshapen module\.all_modules\.18\.bias"),
        ({"module__z_transform__7__bias": torch.full((32,), float("nan"))}, "NaN or infinity in 'z_transform.7.bias'"),
    ],
)
def test_other_files_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        recognise(golden.held(**changes), None, "ema", golden.SAID).network()


def test_the_schedule_that_was_said() -> None:
    of = recognise(golden.held(), None, "ema", golden.SAID | {"diffusion_steps": 2, "beta_min": 0.2, "beta_max": 10.0})
    assert not of.architecture.notes
    assert (of.architecture.schedule.T, of.architecture.defaults["steps"]) == (2, 2)
    assert of.lines()["schedule"].startswith("2 steps, betas 0.7348, 0.9770")
