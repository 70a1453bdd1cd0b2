"""Stored betas become the recipe that they were made by, or stay the table that they are.

No betas here are made by the code that reads them: each test computes its own, as other libraries and dtypes do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.bundle.fields import Fields
from engine.bundle.training import ScheduleSpec, parse_schedule
from engine.errors import CheckpointError
from export.read.schedule import agree, describe, entry_of, linear, read_schedule

PATH = Path("a.ckpt")
T = 1000


def read(betas: torch.Tensor | np.ndarray) -> ScheduleSpec:
    return read_schedule(torch.as_tensor(betas), "betas", PATH)


def exactly(start: float, end: float, count: int = T) -> np.ndarray:
    """The straight line in float64."""
    return np.array([start + (end - start) * i / (count - 1) for i in range(count)])


def scaled(start: float, end: float, count: int = T) -> np.ndarray:
    """What latent diffusion calls linear: squares of a straight line, in float64."""
    return np.array([(start**0.5 + (end**0.5 - start**0.5) * i / (count - 1)) ** 2 for i in range(count)])


def cosine(count: int = T) -> np.ndarray:
    """As guided diffusion writes it: a function and a loop over Python floats."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)])


def towards(betas: torch.Tensor, limits: float | torch.Tensor) -> torch.Tensor:
    """Every value moved by one unit in the last place."""
    return torch.nextafter(betas, torch.as_tensor(limits, dtype=betas.dtype).expand_as(betas))


def in_dtype(dtype: torch.dtype) -> Callable[[np.ndarray], torch.Tensor]:
    return lambda betas: torch.from_numpy(betas).to(dtype)


STORED = {
    "float32": in_dtype(torch.float32),
    "half": in_dtype(torch.float16),
    "bfloat16": in_dtype(torch.bfloat16),
    "float32, kept in float64": lambda betas: torch.from_numpy(betas).float().double(),
    "half, kept in float32": lambda betas: torch.from_numpy(betas).half().float(),
}
FIRST, LAST = np.float32(1e-4), np.float32(0.02)
LINES = {
    "torch.linspace": torch.linspace(1e-4, 0.02, T),
    "torch.linspace, then double": torch.linspace(1e-4, 0.02, T).double(),
    "numpy in float32": torch.from_numpy(np.linspace(1e-4, 0.02, T, dtype=np.float32)),
    "numpy in float64, then float32": torch.from_numpy(np.linspace(1e-4, 0.02, T).astype(np.float32)),
    "start plus i steps, in float32": torch.from_numpy(FIRST + np.arange(T, dtype=np.float32) * ((LAST - FIRST) / (T - 1))),
    "torch.linspace in half": torch.linspace(1e-4, 0.02, T).half(),
    "torch.linspace in bfloat16": torch.linspace(1e-4, 0.02, T).bfloat16(),
}


class TestLinear:
    @pytest.mark.parametrize("how", LINES)
    def test_any_library_s_line(self, how: str) -> None:
        assert read(LINES[how]) == linear(1e-4, 0.02, T)

    @pytest.mark.parametrize("how", STORED)
    @pytest.mark.parametrize(
        ("start", "end", "count"), [(1e-4, 0.02, 4000), (5e-4, 0.01, 50), (0.00085, 0.012, T), (1e-3, 1e-3, 2)]
    )
    def test_any_dtype(self, how: str, start: float, end: float, count: int) -> None:
        assert read(STORED[how](exactly(start, end, count))) == linear(start, end, count)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_one_unit_in_the_last_place_off(self, dtype: torch.dtype) -> None:
        betas = torch.from_numpy(exactly(1e-4, 0.02)).to(dtype)
        either = torch.where(torch.arange(T) % 3 == 0, 1.0, 0.0)
        for limits in (1.0, 0.0, either):
            found = read(towards(betas, limits))
            assert found == linear(1e-4, 0.02, T), limits
        # In float64 too: such a file was widened after it was computed.
        assert read(towards(betas, 1.0).double()) == linear(1e-4, 0.02, T)

    def test_one_value_off_by_more_is_no_line(self) -> None:
        betas = torch.linspace(1e-4, 0.02, T)
        betas[500] *= 1 + 1e-6
        found = read(betas)
        assert found.recipe == "table"
        np.testing.assert_array_equal(found.schedule().betas, betas.double().numpy())

    def test_values_that_are_finer_than_the_recipe_are_kept(self) -> None:
        betas = exactly(1e-4, 0.02)
        found = read(betas)
        assert found.recipe == "table"
        np.testing.assert_array_equal(found.schedule().betas, betas)
        assert agree(linear(1e-4, 0.02, T), found), "a preset that says linear does not contradict them"

    def test_ends_of_many_digits(self) -> None:
        start, end = float(np.float32(0.000123456789)), float(np.float32(0.0198765432))
        found = read(exactly(start, end).astype(np.float32))
        assert found.recipe == "linear"
        assert found.numbers["start"] == pytest.approx(start, rel=2e-7)
        assert found.numbers["end"] == pytest.approx(end, rel=2e-7)


@pytest.mark.parametrize("how", [*STORED, "float64"])
class TestOtherRecipes:
    def stored(self, betas: np.ndarray, how: str) -> torch.Tensor:
        return torch.from_numpy(betas) if how == "float64" else STORED[how](betas)

    def test_scaled_linear(self, how: str) -> None:
        for start, end in ((0.00085, 0.012), (0.0015, 0.0195)):
            found = read(self.stored(scaled(start, end), how))
            assert found == ScheduleSpec("scaled_linear", T, {"start": start, "end": end}, None)

    @pytest.mark.parametrize("count", [50, 1000, 4000])
    def test_cosine(self, how: str, count: int) -> None:
        # 0.999 is 1 in bfloat16: no table could hold it.
        found = read(self.stored(cosine(count), how))
        assert found == ScheduleSpec("cosine", count, {"s": 0.008, "max_beta": 0.999}, None)

    def test_another_shape_is_a_table(self, how: str) -> None:
        betas = 1e-4 + (0.02 - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, T)))
        stored = self.stored(betas, how)
        found = read(stored)
        assert found.recipe == "table"
        np.testing.assert_array_equal(found.schedule().betas, stored.double().numpy())


def test_scaled_linear_one_unit_off_and_in_float32_arithmetic() -> None:
    expected = ScheduleSpec("scaled_linear", T, {"start": 0.00085, "end": 0.012}, None)
    assert read(torch.linspace(0.00085**0.5, 0.012**0.5, T) ** 2) == expected
    betas = torch.from_numpy(scaled(0.00085, 0.012)).float()
    assert read(towards(betas, 1.0)) == read(towards(betas, 0.0)) == expected


def test_cosine_in_another_arithmetic() -> None:
    steps = torch.linspace(0, T, T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((steps / T + 0.008) / 1.008 * torch.pi * 0.5) ** 2
    alpha_bar = alpha_bar / alpha_bar[0]
    betas = torch.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)
    assert read(betas).recipe == read(betas.float()).recipe == "cosine"
    # In float32 throughout, the difference of two numbers near 1 has lost three digits: those are what was trained with.
    narrow = alpha_bar.float()
    lossy = torch.clip(1 - narrow[1:] / narrow[:-1], 1e-6, 0.999)
    assert read(lossy).recipe == "table"


@pytest.mark.parametrize(
    ("betas", "says"),
    [
        (torch.zeros(10), r"found 0 as betas\[0\], expected betas between 0 and 1"),
        (torch.tensor([0.1, 0.2, 1.0, 0.3]), r"found 1 as betas\[2\]"),
        (torch.tensor([0.1, -0.2, 0.15]), r"found -0\.2 as betas\[1\]"),
        (torch.tensor([0.1, math.nan, 0.2]), "expected at least two betas"),
        (torch.tensor([0.1, math.inf, 0.2]), "expected at least two betas"),
        (torch.ones(1) / 2, "expected at least two betas"),
        (torch.full((3, 3), 0.1), r"of shape \[3, 3\]"),
        (torch.arange(4), r"dtype torch\.int64, expected at least two betas"),
        (torch.tensor([0.1, 1e-300, 0.3], dtype=torch.float64), r"of 1 - beta stays 0\.9 at \[1\], expected it to fall"),
        (torch.cat([torch.tensor([0.1, 0.3]), torch.full((4000,), 0.9)]).double(), "and stay above 0"),
    ],
)
def test_what_is_no_schedule(betas: torch.Tensor, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read(betas)


@pytest.mark.parametrize("betas", [exactly(1e-4, 0.02), scaled(0.0015, 0.0195), cosine(), np.linspace(0.02, 1e-4, 10)])
def test_the_manifest_holds_every_schedule(betas: np.ndarray) -> None:
    """To JSON and back: the betas that sampling will use are those within rounding of the ones stored."""
    found = read(betas.astype(np.float32))
    text = json.dumps({"schedule": entry_of(found)})
    again = parse_schedule(Fields(json.loads(text)["schedule"], "manifest.json", "schedule"))
    assert again == found
    np.testing.assert_allclose(again.schedule().betas, betas, rtol=3e-7)
    assert f"T = {len(betas)}" in describe(found)


def test_agreement() -> None:
    table = ScheduleSpec("table", 3, {}, (0.1, 0.2, 0.3))
    assert agree(linear(1e-4, 0.02, 7), linear(1e-4, 0.02, 7))
    assert agree(linear(0.1, 0.3, 3), table)
    assert not agree(linear(0.1, 0.31, 3), table)
    assert not agree(linear(0.1, 0.3, 4), table)
    assert not agree(linear(1e-4, 0.02, 7), linear(1e-4, 0.021, 7))
