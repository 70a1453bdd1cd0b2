"""The reference's latent diffusion chains, through this engine's rows and kernels: DDIM, ancestral and PLMS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.backends.host import blend_in
from engine.request import Blend
from engine.solver.schedule import Schedule
from engine.solver.table import StepTable, build_step_table
from export.models.latent.graphs import Codebook
from tests import latent_models
from tests.solver_rows import run_kernels, run_rows

FOLDER = "uncond_vq_f4"
CONFIG = latent_models.config(FOLDER)
EXPECTED = latent_models.expected(FOLDER)
SCHEDULE = Schedule.from_recipe("scaled_linear", CONFIG["T"], start=CONFIG["linear_start"], end=CONFIG["linear_end"])
BLENDED, QUANTIZED = "ddim_uniform_5_eta1_blend", "ddim_uniform_5_eta0_qx0"
SPACED = [
    "ddim_uniform_10_eta0", "ddim_uniform_6_eta0", "ddim_quad_10_eta0", "plms_uniform_10_eta0", "ddim_uniform_5_eta1",
]  # fmt: skip
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def network() -> Callable[[np.ndarray, int], np.ndarray]:
    """eps(x, t) of the golden model."""
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one
    net, _, _ = latent_models.networks(FOLDER)

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        with torch.inference_mode():
            out = net(torch.from_numpy(np.ascontiguousarray(x)), torch.tensor([t]))
        return np.ascontiguousarray(out.numpy())

    return eps


def difference(found: np.ndarray, key: str) -> float:
    expected = EXPECTED[key]
    return float(np.abs(found - expected).mean() / expected.std())


def table_of(run: str, **changed: object) -> StepTable:
    """The chain of a run: the reference's own timesteps, which end at alpha_bar[0] and not at 1."""
    of = CONFIG["runs"][run]
    spacing = {"uniform": "leading", "quad": "leading_quad"}[of["spacing"]]
    options = {"steps": of["S"], "spacing": spacing} | changed
    return build_step_table(SCHEDULE, method=of["sampler"], eta=of["eta"], clip=None, **options)


@pytest.mark.parametrize("run", SPACED)
def test_scaled_linear_is_the_references_schedule(run):
    timesteps = EXPECTED[f"{run}_timesteps"]
    np.testing.assert_allclose(SCHEDULE.alpha_bar[timesteps], EXPECTED[f"{run}_alphas64"], rtol=1e-12)
    before = np.concatenate([[0], timesteps[:-1]])
    np.testing.assert_allclose(SCHEDULE.alpha_bar[before], EXPECTED[f"{run}_alphas_prev"], rtol=1e-6)


@pytest.mark.parametrize("execute", [run_rows, run_kernels])
@pytest.mark.parametrize("run", SPACED)
def test_ddim_and_plms_chains(network, run, execute):
    of = CONFIG["runs"][run]
    table = table_of(run)
    assert len(table) == of["calls"]
    noise = EXPECTED[f"{run}_noise"] if of["eta"] else None
    states = execute(table.timesteps, table.rows, network, EXPECTED["x_T"], noise=noise)
    extra = of["calls"] - of["steps"]
    assert difference(states[extra], f"{run}_step1") < TOLERANCE
    assert difference(states[of["steps"] // 2 - 1 + extra], f"{run}_mid") < TOLERANCE
    assert difference(states[-1], run) < TOLERANCE


def test_a_chain_that_is_kept_to_what_is_known(network):
    table, a = table_of(BLENDED), np.array(SCHEDULE.alpha_bar[EXPECTED[f"{BLENDED}_timesteps"][::-1]])
    levels = (np.sqrt(a).astype(np.float32), np.sqrt(1 - a).astype(np.float32))
    blend = Blend(EXPECTED["fs_latent"], EXPECTED["mask_keep"], *levels, EXPECTED[f"{BLENDED}_known_noise"])
    x, states, noise = EXPECTED["x_T"].copy(), [], EXPECTED[f"{BLENDED}_noise"]
    for i in range(len(table)):
        blend_in(blend, np.zeros(2, np.uint64), i, x, None)
        x = run_kernels(table.timesteps[i : i + 1], table.rows[i : i + 1], network, x, noise=noise[i : i + 1])[-1]
        states.append(x.copy())  # blended in place
    for index, key in ((0, f"{BLENDED}_step1"), (1, f"{BLENDED}_mid"), (-1, BLENDED)):
        assert difference(states[index], key) < TOLERANCE


@pytest.mark.parametrize("execute", [run_rows, run_kernels])
def test_a_chain_whose_every_x0_is_looked_up_in_the_codebook(network, execute):
    codes, table, found = Codebook(latent_models.networks(FOLDER)[1].quantize, 1.0), table_of(QUANTIZED), []

    def quantize(x0: np.ndarray) -> np.ndarray:
        found.append(codes.quantize.indices(torch.from_numpy(x0)).numpy())
        return codes(torch.from_numpy(x0)).numpy()

    states = execute(table.timesteps, table.rows, network, EXPECTED["x_T"], quantize=quantize)
    np.testing.assert_array_equal(found, EXPECTED[f"{QUANTIZED}_step_indices"])
    for index, key in ((0, f"{QUANTIZED}_step1"), (1, f"{QUANTIZED}_mid"), (-1, QUANTIZED)):
        assert difference(states[index], key) < TOLERANCE


def test_the_tolerance_sees_another_last_level(network):
    """A chain that ends at alpha_bar = 1 in the last step, as this engine's own tables do, is another one."""
    run = "plms_uniform_10_eta0"
    listed = EXPECTED[f"{run}_timesteps"][::-1].tolist()
    table = table_of(run, steps=None, spacing=None, timesteps=listed)
    assert difference(run_rows(table.timesteps, table.rows, network, EXPECTED["x_T"])[-1], run) > 4 * TOLERANCE


@pytest.mark.parametrize("execute", [run_rows, run_kernels])
def test_ancestral_chain(network, execute):
    run = "ddpm_truncated_6"
    table = build_step_table(
        SCHEDULE, steps=CONFIG["runs"][run]["steps"], method="ddpm", spacing="truncated", variance="fixedsmall", clip=None
    )
    np.testing.assert_array_equal(table.timesteps, np.sort(EXPECTED[f"{run}_timesteps"])[::-1])
    states = execute(table.timesteps, table.rows, network, EXPECTED["x_T"], noise=EXPECTED[f"{run}_noise"])
    for index, key in ((0, f"{run}_step1"), (2, f"{run}_mid"), (-1, run)):
        assert difference(states[index], key) < TOLERANCE
