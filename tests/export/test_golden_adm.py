"""The reference's ancestral chain with a learned variance, through this engine's rows and kernels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.kernels import ROW_FIELDS
from engine.solver.schedule import Schedule
from engine.solver.table import StepTable, build_step_table
from export.models.unet import sinusoid
from tests.golden_models import weight
from tests.solver_rows import run_kernels, run_rows

FOLDER = Path(__file__).parents[1] / "golden_adm" / "uncond_learned"
CONFIG = json.loads((FOLDER / "config.json").read_text())
EXPECTED = np.load(FOLDER / "expected.npz")
TOLERANCE = 3 * CONFIG["float32_floor"]


class Network:
    """The golden model, read off its keys: (eps, v) of x at a timestep."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one
        self.p = {key: weight(CONFIG["seed"], key, shape) for key, shape in CONFIG["parameters"].items()}

    @torch.inference_mode()
    def __call__(self, x: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        emb = sinusoid(torch.tensor([t]), CONFIG["arch"]["model_channels"], "openai")
        emb = F.silu(self.linear(F.silu(self.linear(emb, "time_embed.0")), "time_embed.2"))
        skips = [self.conv(torch.from_numpy(np.ascontiguousarray(x)), "input_blocks.0.0")]
        skips.append(self.res(skips[-1], emb, "input_blocks.1.0"))
        skips.append(self.res(skips[-1], emb, "input_blocks.2.0", lambda h: F.avg_pool2d(h, 2)))
        skips.append(self.attention(self.res(skips[-1], emb, "input_blocks.3.0"), "input_blocks.3.1"))
        h = self.attention(self.res(skips[-1], emb, "middle_block.0"), "middle_block.1")
        h = self.res(h, emb, "middle_block.2")
        for block in range(4):
            h = self.res(torch.cat([h, skips.pop()], 1), emb, f"output_blocks.{block}.0")
            if block < 2:
                h = self.attention(h, f"output_blocks.{block}.1")
            if block == 1:
                h = self.res(h, emb, "output_blocks.1.2", lambda h: F.interpolate(h, scale_factor=2.0))
        e, v = self.conv(F.silu(self.norm(h, "out.0")), "out.2").chunk(2, dim=1)
        return e.contiguous().numpy(), v.contiguous().numpy()

    def of(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.p[f"{key}.weight"], self.p[f"{key}.bias"]

    def linear(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return F.linear(x, *self.of(key))

    def norm(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return F.group_norm(x, 32, *self.of(key))

    def conv(self, x: torch.Tensor, key: str) -> torch.Tensor:
        kernel, bias = self.of(key)
        return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2)

    def res(self, x: torch.Tensor, emb: torch.Tensor, key: str, resample=lambda h: h) -> torch.Tensor:
        h = self.conv(resample(F.silu(self.norm(x, f"{key}.in_layers.0"))), f"{key}.in_layers.2")
        scale, shift = self.linear(emb, f"{key}.emb_layers.1")[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm(h, f"{key}.out_layers.0") * (1 + scale) + shift)
        x = resample(x)
        skip = self.conv(x, f"{key}.skip_connection") if f"{key}.skip_connection.weight" in self.p else x
        return skip + self.conv(h, f"{key}.out_layers.3")

    def attention(self, x: torch.Tensor, key: str) -> torch.Tensor:
        n, channels, *_ = x.shape
        qkv = F.conv1d(self.norm(x, f"{key}.norm").flatten(2), *self.of(f"{key}.qkv"))
        width = CONFIG["arch"]["num_head_channels"]
        q, k, v = qkv.reshape(n * channels // width, 3, width, -1).unbind(1)  # the legacy order: heads before q, k, v
        weights = torch.softmax(q.transpose(1, 2) @ k * width**-0.5, dim=-1)
        h = (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(n, channels, -1)
        return x + F.conv1d(h, *self.of(f"{key}.proj_out")).reshape(x.shape)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


def table(variance: str) -> StepTable:
    schedule = Schedule.from_recipe("linear", CONFIG["diffusion"]["steps"], start=1e-4, end=0.02)
    return build_step_table(schedule, steps=10, method="ddpm", spacing="linspace", variance=variance)


def test_the_network_is_the_references(network):
    for found, key in zip(network(EXPECTED["x_T"], int(EXPECTED["t"])), ("eps", "v"), strict=True):
        np.testing.assert_allclose(found, EXPECTED[key], rtol=0, atol=1e-5)


def test_the_row_is_the_references_range():
    """sigma at v = -1 and 1, of every row but the last, which has no noise: the reference's own two logarithms."""
    of = table("learned_range")
    np.testing.assert_array_equal(of.timesteps, EXPECTED["timesteps"][::-1])
    k_n, s_n = (of.rows[:, ROW_FIELDS.index(name)].astype(float) for name in ("k_n", "s_n"))
    assert (k_n[-1], s_n[-1]) == (0, 0)
    for v, key in ((-1, "log_beta_tilde"), (1, "log_beta")):
        np.testing.assert_allclose(2 * (np.log(k_n[:-1]) + v * s_n[:-1]), EXPECTED[key][:0:-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("execute", [run_rows, run_kernels])
def test_the_chain_is_the_references(network, execute):
    of = table("learned_range")
    noise = np.concatenate([EXPECTED["noise"], np.zeros_like(EXPECTED["noise"][:1])])
    states = execute(of.timesteps, of.rows, network, EXPECTED["x_T"], noise=noise)
    for index, key in ((0, "first"), (4, "middle"), (9, "last")):
        np.testing.assert_allclose(states[index], EXPECTED[key], rtol=0, atol=TOLERANCE, err_msg=key)
    fixed = execute(of.timesteps[:5], table("fixedsmall").rows[:5], network, EXPECTED["x_T"], noise=noise)
    assert np.abs(fixed[-1] - EXPECTED["middle"]).max() > 50 * TOLERANCE, "which another variance would not reach"
