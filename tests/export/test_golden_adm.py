"""Guided diffusion against its reference implementation: what keys tell, networks in torch, timesteps, chains of rows."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from engine.kernels import ROW_FIELDS
from engine.solver.table import StepTable, build_step_table
from engine.solver.timesteps import respaced_timesteps
from export.families.adm import Found, recognise
from export.models.openai.unet import OpenAIUNet
from tests import adm_models as golden
from tests.solver_rows import run_kernels, run_rows


@functools.cache
def found(folder: str) -> Found:
    return recognise(golden.held(folder), None, "ema", golden.said(folder))


@functools.cache
def network(folder: str) -> OpenAIUNet:
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one
    return found(folder).network()


@torch.inference_mode()
def answers(folder: str, x: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """(eps, v) of x at an original timestep."""
    process, n = golden.config(folder)["diffusion"], len(x)
    time = torch.full((n,), t * (1000 / process["steps"] if process["rescale_timesteps"] else 1.0))
    given = {name: torch.from_numpy(array) for name, array in golden.given(folder).items()}
    cond = None
    if "low_resolution" in given:
        cond = torch.nn.functional.interpolate(given["low_resolution"], x.shape[2:], mode="bilinear")
    output = network(folder)(torch.from_numpy(np.ascontiguousarray(x)), time, cond=cond, labels=given.get("label"))
    e, v = output.chunk(2, dim=1)
    return e.contiguous().numpy(), v.contiguous().numpy()


def table(folder: str, chain: str, **options: Any) -> StepTable:
    schedule = found(folder).architecture.schedule.schedule()
    return build_step_table(schedule, **golden.setting(folder, chain) | options)


@pytest.mark.parametrize("folder", golden.NAMES)
def test_what_the_reference_was_given(folder: str) -> None:
    arch, of = golden.config(folder)["arch"], found(folder).architecture
    spec = of.unet
    assert (spec.model_channels, spec.out_channels) == (arch["model_channels"], arch["out_channels"])
    assert spec.classes == arch["num_classes"]
    assert (list(spec.channel_mult), spec.num_res_blocks) == (arch["channel_mult"], arch["num_res_blocks"])
    assert list(spec.attention_factors) == arch["attention_resolutions"]
    assert (spec.scale_shift, spec.resample_blocks) == (arch["use_scale_shift_norm"], arch["resblock_updown"])
    assert spec.learned_variance
    assert spec.in_channels == 3 * (1 + (folder == "upsample"))
    assert of.variance == "learned_range"


@pytest.mark.parametrize("folder", golden.NAMES)
def test_networks_are_the_references(folder: str) -> None:
    arrays = golden.expected(folder)
    for i, t in enumerate(arrays["t"].tolist()):
        for output, key in zip(answers(folder, arrays["x_T"], t), ("eps", "v"), strict=True):
            np.testing.assert_allclose(output, arrays[key][i], rtol=0, atol=1e-5)


def test_the_order_inside_attention_is_felt() -> None:
    """And the one that was said is the reference's."""
    folder = "cosine_neworder"
    other = recognise(golden.held(folder), None, "ema", golden.said(folder) | {"attention_order": "legacy"})
    x, t = torch.from_numpy(golden.expected(folder)["x_T"]), torch.tensor([300.0, 300.0])
    with torch.inference_mode():
        assert (other.network()(x, t) - network(folder)(x, t)).abs().max() > 0.1


@pytest.mark.parametrize(("folder", "chain"), golden.CHAINS)
def test_the_kept_timesteps_are_the_references(folder: str, chain: str) -> None:
    arrays, of = golden.expected(folder), golden.config(folder)["chains"][chain]
    schedule = found(folder).architecture.schedule.schedule()
    kept = respaced_timesteps(schedule.T, of["spacing"])
    np.testing.assert_array_equal(kept, arrays[f"{chain}_timesteps"])
    alpha_bar = schedule.alpha_bar[kept]
    np.testing.assert_allclose(alpha_bar, arrays[f"{chain}_alpha_bar"], rtol=1e-6, atol=0)
    np.testing.assert_allclose(
        np.log(1 - alpha_bar / np.append(1.0, alpha_bar[:-1])), arrays[f"{chain}_log_beta"], rtol=0, atol=1e-6
    )


def test_spellings_of_the_reference() -> None:
    spellings = [key.split("_") for key in golden.expected("uncond_learned") if key.startswith("spacing_")]
    assert len(spellings) == 7
    for _, T, spelling in spellings:
        kept = respaced_timesteps(int(T[1:]), spelling.replace("-", ","))
        np.testing.assert_array_equal(kept, golden.expected("uncond_learned")[f"spacing_{T}_{spelling}"])


@pytest.mark.parametrize("chain", ["ddpm_10"])
def test_the_row_is_the_references_range(chain: str) -> None:
    """sigma at v = -1 and 1, of every row but the last, which has no noise: the reference's own two logarithms."""
    of, arrays = table("uncond_learned", chain), golden.expected("uncond_learned")
    k_n, s_n = (of.rows[:, ROW_FIELDS.index(name)].astype(float) for name in ("k_n", "s_n"))
    assert (k_n[-1], s_n[-1]) == (0, 0)
    for v, key in ((-1, "log_beta_tilde"), (1, "log_beta")):
        log_variance = 2 * (np.log(k_n[:-1]) + v * s_n[:-1])
        np.testing.assert_allclose(log_variance, arrays[f"{chain}_{key}"][:0:-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("execute", [run_rows, run_kernels])
@pytest.mark.parametrize(("folder", "chain"), golden.CHAINS)
def test_chains_are_the_references(folder: str, chain: str, execute: Any) -> None:
    of, limit = table(folder, chain), golden.tolerance(folder, chain)
    run = functools.partial(answers, folder)
    x_T, noise = golden.expected(folder)["x_T"], golden.noise(folder, chain)
    states = execute(of.timesteps, of.rows, run, x_T, noise=noise)
    for row, expected in golden.states(folder, chain).items():
        np.testing.assert_allclose(states[row], expected, rtol=0, atol=limit, err_msg=f"row {row}")


def test_another_variance_or_another_eps_would_not_reach_them() -> None:
    folder, x_T = "uncond_learned", golden.expected("uncond_learned")["x_T"]
    for chain, options in (("ddpm_10", {"variance": "fixedsmall"}), ("ddim_ddim5_eta0", {"method": "ddim"})):
        of, last = table(folder, chain, **options), max(golden.states(folder, chain))
        states = run_rows(of.timesteps, of.rows, functools.partial(answers, folder), x_T, noise=golden.noise(folder, chain))
        assert np.abs(states[last] - golden.states(folder, chain)[last]).max() > 50 * golden.tolerance(folder, chain)
