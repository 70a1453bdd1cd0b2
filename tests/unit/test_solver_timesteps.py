"""Which timesteps a short chain keeps, by every spacing, and what each of them refuses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ArgumentError
from engine.kernels import ROW_FIELDS
from engine.solver.schedule import Schedule
from engine.solver.table import StepTable, build_step_table
from engine.solver.timesteps import SPACINGS, kept_timesteps
from tests.solver_rows import run_rows

GOLDEN = Path(__file__).parents[1] / "golden"
LATENT = sorted((GOLDEN.parent / "golden_ldm").glob("*/config.json"))
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz"))
SCHEDULE = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)


def table(steps: int, **options) -> StepTable:
    return build_step_table(SCHEDULE, **({"spacing": "linspace"} | options | {"steps": steps}))


@pytest.mark.parametrize("folder", FOLDERS)
def test_timesteps_and_noise_levels_of_the_reference(folder):
    expected = np.load(GOLDEN / folder / "expected.npz")
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    schedule = Schedule.from_recipe("linear", config["T"], start=config["beta1"], end=config["beta2"])
    np.testing.assert_allclose(np.sqrt(schedule.alpha_bar), expected["sqrt_alpha_bar"], rtol=0, atol=1e-15)
    cases = [name for name in expected if name.endswith("_timesteps")]
    assert len(cases) >= 4
    for case in cases:
        method, spacing, steps = case.split("_")[:3]
        of = build_step_table(schedule, steps=int(steps), method=method, spacing=spacing)
        assert of.timesteps[::-1].tolist() == expected[case].tolist()


@pytest.mark.parametrize("path", LATENT, ids=lambda path: path.parent.name)
def test_leading_chains_are_those_of_latent_diffusion(path):
    of, expected = json.loads(path.read_text()), np.load(path.with_name("expected.npz"))
    schedule = Schedule.from_recipe("scaled_linear", of["T"], start=of["linear_start"], end=of["linear_end"])
    chains = {name: run for name, run in of["runs"].items() if run["sampler"] != "ddpm"}
    assert chains
    for name, run in chains.items():
        timesteps = expected[f"{name}_timesteps"].tolist()
        options = {"spacing": {"uniform": "leading", "quad": "leading_quad"}[run["spacing"]], "method": run["sampler"]}
        if run.get("last"):  # the reference's way to begin amid a chain
            options["t_start"] = timesteps[-1]
        found = build_step_table(schedule, clip=None, steps=run["S"], eta=run["eta"], **options)
        assert len(found) == run["calls"]
        steps = [row for row in range(len(found)) if row != 1 or run["sampler"] != "plms"]  # its second call
        assert found.timesteps[steps][::-1].tolist() == timesteps
        p_x, k_x0, k_n = (found.rows[steps[::-1], ROW_FIELDS.index(field)] for field in ("p_x", "k_x0", "k_n"))
        # The reference's levels are float32 numbers in float64 arithmetic.
        np.testing.assert_allclose(np.float64(p_x) ** -2, expected[f"{name}_alphas"], rtol=0, atol=5e-7)
        np.testing.assert_allclose(np.float64(k_x0) ** 2, expected[f"{name}_alphas_prev"], rtol=0, atol=5e-7)
        np.testing.assert_allclose(k_n, expected[f"{name}_sigmas"], rtol=0, atol=1e-6)


def test_leading_counts_are_refused_where_the_reference_would_leave_the_schedule():
    refused = [3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)]
    for steps in range(1, 1001):
        grid = range(1, 1001, 1000 // steps)
        assert (grid[-1] == 1000) == (steps in refused)
        if steps not in refused:
            assert kept_timesteps(SCHEDULE.alpha_bar, steps, "leading").tolist() == list(grid)
            continue
        with pytest.raises(ArgumentError, match=rf"steps is {steps}, with which leading spacing over") as refusal:
            kept_timesteps(SCHEDULE.alpha_bar, steps, "leading")
        nearest = str(refusal.value).split(f"nearest to {steps}: ")[1].split(";")[0]
        assert not {int(count) for count in nearest.split(" and ")} & set(refused)


@pytest.mark.parametrize("method", ["ddim", "ddim_clipped", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc_2", "ipndm", "plms"])
def test_every_solver_ends_a_leading_chain_at_the_level_of_0(method):
    """A network that knows the image: whatever the solver, x is then sqrt(a_0) image + sqrt(1 - a_0) eps, without noise."""
    a = SCHEDULE.alpha_bar
    image, eps = np.full((1, 1, 2, 2), 0.25), np.full((1, 1, 2, 2), 2.0)
    chain = table(8, spacing="leading", method=method, clip=None)
    start = np.sqrt(a[876]) * image + np.sqrt(1 - a[876]) * eps

    def network(x, t):
        return (x - np.sqrt(a[t]) * image) / np.sqrt(1 - a[t])

    x = run_rows(chain.timesteps, chain.rows.astype(np.float64), network, start, noise=np.zeros((len(chain), 1)))[-1]
    assert len(chain) == 8 + (method == "plms")
    left = (x - np.sqrt(a[0]) * image) / np.sqrt(1 - a[0])  # of the noise that it started with
    np.testing.assert_allclose(left, left.mean(), rtol=1e-6)
    if method not in ("ddpm", "sde_dpmpp_2m"):
        np.testing.assert_allclose(left, eps, rtol=1e-3)
    assert chain.stochastic == (method in ("ddpm", "sde_dpmpp_2m"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 4, "spacing": None}, [750, 500, 250, 0]),
        ({"steps": 3, "spacing": "uniform"}, [668, 334, 0]),
        ({"steps": 5, "spacing": "linspace"}, [999, 749, 500, 250, 0]),
        ({"steps": 1, "spacing": "linspace"}, [999]),
        ({"steps": 4, "spacing": "trailing"}, [999, 749, 499, 249]),
        ({"steps": 4, "spacing": "trailing", "t_start": 400}, [400, 300, 200, 99]),
        ({"steps": 1, "spacing": "trailing", "t_start": 400}, [400]),
        ({"steps": 4, "spacing": "trailing", "t_start": 3}, [3, 2, 1, 0]),
        ({"steps": 3, "spacing": "truncated"}, [2, 1, 0]),
        ({"steps": 3, "spacing": None, "t_start": 450}, [450, 225, 0]),
        ({"steps": 1, "spacing": None, "t_start": 450}, [450]),
        ({"steps": 4, "spacing": "linspace", "t_start": 3}, [3, 2, 1, 0]),
        ({"steps": 4, "spacing": "quad", "t_start": 450}, [450, 200, 50, 0]),
        ({"steps": 1, "spacing": "quad", "t_start": 450}, [450]),
        ({"steps": 3, "spacing": "truncated", "t_start": 2}, [2, 1, 0]),
        ({"steps": 1, "spacing": "truncated"}, [0]),
        ({"steps": 4, "spacing": "leading"}, [751, 501, 251, 1]),
        ({"steps": 6, "spacing": "leading"}, [997, 831, 665, 499, 333, 167, 1]),
        ({"steps": 1, "spacing": "leading"}, [1]),
        ({"steps": 400, "spacing": "leading", "t_start": 7}, [7, 5, 3, 1]),
        ({"steps": 3, "spacing": "leading_quad"}, [801, 201, 1]),
        ({"steps": 5, "spacing": "leading_quad", "t_start": 51}, [51, 1]),
    ],
)
def test_kept_timesteps(options, expected):
    of = table(**options)
    assert of.timesteps.tolist() == expected
    assert of.timesteps.dtype == np.int64
    assert len(of) == len(of.rows) == len(expected)


def test_every_count_there_is_starts_at_t_start_and_ends_at_0():
    for t_start in (1, 2, 7, 100, 450, 999):
        for spacing in ("linspace", "quad"):
            for steps in range(2, min(t_start + 1, 120) + 1):
                kept = kept_timesteps(SCHEDULE.alpha_bar, steps, spacing, t_start)
                assert kept[0] == 0
                assert kept[-1] == t_start
                assert (np.diff(kept) > 0).all()
                assert len(kept) == steps or spacing == "quad"


def test_trailing_starts_at_t_start_takes_every_count_and_keeps_its_stride():
    for t_start in (1, 2, 7, 100, 450, 999):
        for steps in range(1, min(t_start + 1, 120) + 1):
            kept = kept_timesteps(SCHEDULE.alpha_bar, steps, "trailing", t_start)
            assert kept[-1] == t_start
            assert kept[0] >= 0
            assert len(kept) == steps
            strides = np.diff(np.concatenate([[-1], kept]))
            assert strides.min() >= 1
            assert np.ptp(strides) <= 1


@pytest.mark.parametrize(
    "expected",
    [  # of the few-step study, on this schedule
        [400, 244, 111, 38, 9], [400, 150, 25], [400, 303, 206, 125, 68, 33, 13, 4], [500, 336, 163, 54, 11],
        [400, 323, 244, 171, 111, 68, 38, 20, 9, 3], [640, 486, 277, 93, 17],
        [999, 944, 880, 804, 711, 593, 434, 233, 77, 15],
    ],
)  # fmt: skip
def test_karras(expected):
    start = {} if expected[0] == 999 else {"t_start": expected[0]}
    assert table(len(expected), spacing="karras", **start).timesteps.tolist() == expected


@pytest.mark.parametrize(("spacing", "rho"), [("logsnr", None), ("karras", 3.0), ("karras", 20.0)])
def test_spacings_of_the_noise_level_are_even_in_it(spacing, rho):
    kept = table(6, spacing=spacing, **({} if rho is None else {"rho": rho}), t_start=900).timesteps
    sigma = np.sqrt(1 / SCHEDULE.alpha_bar[[*kept, 0]] - 1)
    distances = np.diff(-np.log(sigma) if rho is None else sigma ** (1 / rho))
    np.testing.assert_allclose(distances, distances.mean(), rtol=0.03)


def test_spacings_of_the_noise_level_keep_every_count_there_is():
    worn_out = np.array([1 - 2.0**-53, 1.0, 0.5, 1e-300, 0.0, 0.0])  # levels beyond what a logarithm tells apart
    for alpha_bar in (SCHEDULE.alpha_bar, worn_out, np.ones(1)):
        for last in {0, 5, 60, len(alpha_bar) - 1} & set(range(len(alpha_bar))):
            counts = {1, 2, last // 2 + 1, last + 1} & set(range(1, last + 2))
            for spacing, steps in itertools.product(("karras", "logsnr"), counts):
                kept = kept_timesteps(alpha_bar, steps, spacing, last)
                assert len(kept) == steps
                assert (np.diff(kept) > 0).all()
                assert (kept[0] >= 0) & (kept[-1] == last)


def test_listed_timesteps_are_those_of_the_chain():
    kept = [400, 244, 111, 38, 9]
    spaced = table(5, spacing="karras", t_start=400, eta=1.0)
    for given in (kept, tuple(kept), np.array(kept, np.int32)):
        for beside in ({}, {"steps": 5}):
            listed = build_step_table(SCHEDULE, timesteps=given, t_start=400, eta=1.0, **beside)
            assert listed.timesteps.tolist() == kept
            assert np.array_equal(listed.rows, spaced.rows)
            assert (listed.start, listed.spacing) == (spaced.start, None)
    assert build_step_table(SCHEDULE, timesteps=kept).start.k_start == 0, "from noise, at the first timestep"
    assert build_step_table(SCHEDULE, timesteps=range(999, -1, -1)).timesteps[-1] == 0


def test_quad_merges_duplicates_as_the_reference_does():
    of = table(300, spacing="quad")
    wanted = {int(value) for value in np.linspace(0, math.sqrt(800), 300) ** 2}
    assert set(of.timesteps.tolist()) == wanted
    assert len(of) == len(wanted) < 300


def test_the_whole_chain_is_the_same_by_every_spacing_that_has_it():
    rows = [table(1000, spacing=spacing, method="ddpm").rows for spacing in ("uniform", "linspace", "truncated")]
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_truncated_rows_are_the_last_of_the_full_chain():
    for method in ("ddpm", "ddim"):
        full, short = (table(n, spacing="truncated", method=method) for n in (1000, 6))
        assert np.array_equal(full.rows[-6:], short.rows)


REFUSED = [
    ({"steps": 0}, r"steps is 0; expected 1 \.\. 1000, the timesteps there are with T = 1000"),
    ({"steps": -3}, "steps is -3; expected 1"),
    ({"steps": 1001}, r"steps is 1001; expected 1 \.\. 1000"),
    ({"steps": 7, "t_start": 5}, r"steps is 7; expected 1 \.\. 6, the timesteps there are with t_start = 5"),
    ({"steps": 2, "t_start": 1000}, r"t_start is 1000; expected a timestep in 0 \.\. 999, e\.g\. 450"),
    ({"steps": 2, "t_start": -1}, "t_start is -1; expected"),
    (
        {"steps": 700, "spacing": "uniform"},
        r"uniform spacing over T=1000 exists for 2 to 36, 38, \.\.\., 334, 500, 1000; nearest to 700: 500 and 1000; "
        "or use spacing='linspace'",
    ),
    ({"steps": 1, "spacing": "uniform"}, "nearest to 1: 2; or use spacing='linspace'"),
    ({"steps": 1, "spacing": "quad"}, "quad spacing would spend at t = 0: use spacing='linspace' or t_start="),
    ({"steps": 5, "spacing": "uniform", "t_start": 400}, "would miss t_start: use spacing='linspace' or 'quad'"),
    ({"steps": 5, "spacing": "truncated", "t_start": 400}, "starts at t = 4, but t_start is 400: pass steps=401"),
    ({"steps": 5, "rho": 3.0}, "rho is 3.0 with spacing='linspace'; only karras takes rho: leave it out or use spacing="),
    ({"steps": 5, "spacing": "karras", "rho": 0.5}, r"rho is 0.5; expected a number in 1 \.\. 100"),
    ({"steps": 37, "spacing": "leading"}, "end at t = 1000, beyond the last timestep; nearest to 37: 35 and 38; or use"),
    (
        {"steps": 4, "spacing": "leading", "t_start": 500},
        "t_start is 500, which is none of the timesteps of this spacing with 4 steps: pass t_start=501, the nearest, or use",
    ),
    ({"steps": 1, "spacing": "leading_quad"}, "leading_quad spacing would spend at t = 1: use spacing='linspace'"),
    ({"steps": 5, "spacing": "quadd"}, "spacing is 'quadd'; expected one of uniform, .* Did you mean 'quad'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_timesteps_that_cannot_be_had_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        table(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": []}, "timesteps is empty; expected a list of integers"),
        ({"timesteps": 5}, "timesteps is 5, a int; expected a list of integers"),
        ({"timesteps": [5, 2.0]}, r"timesteps\[1\] is 2.0, a float; expected an integer"),
        ({"timesteps": [1000, 2]}, r"timesteps\[0\] is 1000; expected a timestep in 0 \.\. 999"),
        ({"timesteps": [5, -1]}, r"timesteps\[1\] is -1; expected a timestep in 0 \.\. 999"),
        ({"timesteps": [5, 7]}, r"timesteps\[1\] is 7 after 5; expected a smaller one: each comes once"),
        ({"timesteps": [5, 5]}, r"timesteps\[1\] is 5 after 5; expected a smaller one"),
        ({"timesteps": [5, 2], "steps": 3}, "steps is 3, but timesteps lists 2: leave steps out, the list says it"),
        ({"timesteps": [5, 2], "spacing": "quad"}, "spacing is 'quad' beside timesteps, which need no spacing: leave one"),
        ({"timesteps": [5, 2], "rho": 3.0}, "rho is 3.0 beside timesteps, which need no spacing"),
        ({"timesteps": [5, 2], "t_start": 6}, "t_start is 6, but timesteps begin at 5: pass t_start=5 to start from an"),
    ],
)
def test_lists_that_are_no_chain_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        build_step_table(SCHEDULE, **options)


def test_uniform_refusals_name_only_counts_that_exist():
    for T in (2, 3, 10, 100, 1000):
        exists = {len(range(0, T, i)) for i in range(1, T)}
        for steps in range(1, T + 1):
            if steps in exists:
                assert len(kept_timesteps(np.ones(T), steps, "uniform")) == steps
                continue
            with pytest.raises(ArgumentError) as refusal:
                kept_timesteps(np.ones(T), steps, "uniform")
            nearest = str(refusal.value).split(f"nearest to {steps}: ")[1].split(";")[0]
            assert {int(count) for count in nearest.split(" and ")} <= exists
    assert list(SPACINGS)[:7] == ["uniform", "quad", "linspace", "trailing", "truncated", "karras", "logsnr"]
    assert list(SPACINGS)[7:] == ["leading", "leading_quad"]
