"""The reference's latent diffusion chains, through this engine's rows and kernels: DDIM, ancestral and PLMS."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.backends.host import blend_in
from engine.request import Blend
from engine.solver.schedule import Schedule
from engine.solver.table import StepTable, build_step_table
from export.models.layouts import expected_shapes, from_checkpoint
from export.models.unet import Attention, UNet, UNetSpec
from tests.solver_rows import run_kernels, run_rows

FOLDER = Path(__file__).parents[1] / "golden_ldm" / "uncond_vq_f4"
CONFIG = json.loads((FOLDER / "config.json").read_text())
EXPECTED = np.load(FOLDER / "expected.npz")
SCHEDULE = Schedule.from_recipe("scaled_linear", CONFIG["T"], start=CONFIG["linear_start"], end=CONFIG["linear_end"])
BLENDED = "ddim_uniform_5_eta1_blend"
SPACED = [run for run, of in CONFIG["runs"].items() if of["sampler"] != "ddpm" and run != BLENDED]
TOLERANCE = 5e-5


def weight(key: str, shape: list[int]) -> torch.Tensor:
    """A weight by the recipe, as its moving average is called in a checkpoint."""
    name = "model_ema.diffusion_model" + key.replace(".", "")
    values = np.random.default_rng([CONFIG["seed"], zlib.crc32(name.encode())]).standard_normal(shape)
    if len(shape) > 1:
        values = values / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.05 * values + (0 if key.endswith("bias") else 1)
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def network() -> Callable[[np.ndarray, int], np.ndarray]:
    """eps(x, t) of the golden model."""
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one
    unet = CONFIG["unet"]
    downsampling = [2**level for level in range(len(unet["channel_mult"]))]
    spec = UNetSpec(
        layout="openai",
        image_size=unet["image_size"],
        in_channels=unet["in_channels"],
        out_channels=unet["out_channels"],
        model_channels=unet["model_channels"],
        channel_mult=tuple(unet["channel_mult"]),
        blocks_per_level=unet["num_res_blocks"],
        attention_levels=tuple(i for i, factor in enumerate(downsampling) if factor in unet["attention_resolutions"]),
        heads=1,
    )
    net = UNet(spec)
    assert {key: list(shape) for key, shape in expected_shapes(net).items()} == CONFIG["parameters"]
    net.load_state_dict(from_checkpoint(net, {key: weight(key, shape) for key, shape in CONFIG["parameters"].items()}))
    for module in net.modules():
        if isinstance(module, Attention):
            set_heads(module, unet["num_head_channels"])

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        with torch.inference_mode():
            out = net(torch.from_numpy(np.ascontiguousarray(x)), None, torch.full((len(x),), t))
        return np.ascontiguousarray(out.numpy())

    return eps


def set_heads(attention: Attention, width: int) -> None:
    """Heads of a fixed width at every level; the checkpoint has q, k and v of one head side by side."""
    channels = attention.proj.out_channels
    attention.heads, attention.scale = channels // width, width**-0.5
    with torch.no_grad():
        for values in (attention.qkv.weight, attention.qkv.bias):
            by_head = values.reshape(attention.heads, 3, width, *values.shape[1:])
            values.copy_(by_head.transpose(0, 1).reshape(values.shape).clone())


def difference(found: np.ndarray, key: str) -> float:
    expected = EXPECTED[key]
    return float(np.abs(found - expected).mean() / expected.std())


def table_of(run: str) -> StepTable:
    """The chain of a run: the reference's own timesteps, which end at alpha_bar[0] and not at 1."""
    of = CONFIG["runs"][run]
    spacing = {"uniform": "leading", "quad": "leading_quad"}[of["spacing"]]
    return build_step_table(SCHEDULE, steps=of["S"], spacing=spacing, method=of["sampler"], eta=of["eta"], clip=None)


def test_the_network_is_the_references(network):
    for t, expected in zip(EXPECTED["t"], EXPECTED["eps"], strict=True):
        assert np.abs(network(EXPECTED["x_T"], int(t)) - expected).mean() / expected.std() < 1e-5


@pytest.mark.parametrize("run", SPACED)
def test_scaled_linear_is_the_references_schedule(run):
    timesteps = EXPECTED[f"{run}_timesteps"]
    np.testing.assert_allclose(SCHEDULE.alpha_bar[timesteps], EXPECTED[f"{run}_alphas64"], rtol=1e-12)
    before = np.concatenate([[0], timesteps[:-1]])
    np.testing.assert_allclose(SCHEDULE.alpha_bar[before], EXPECTED[f"{run}_alphas_prev"], rtol=1e-6)


@pytest.mark.parametrize("execute", [run_rows, run_kernels])
@pytest.mark.parametrize("run", SPACED)
def test_ddim_and_plms_chains(network, run, execute):
    of, table = CONFIG["runs"][run], table_of(run)
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


def test_the_tolerance_sees_another_last_level(network):
    """A chain that ends at alpha_bar = 1 in the last step, as those of other spacings do, is another one."""
    run = "plms_uniform_10_eta0"
    timesteps = EXPECTED[f"{run}_timesteps"][::-1].tolist()
    table = build_step_table(SCHEDULE, timesteps=timesteps, method="plms", clip=None)
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
