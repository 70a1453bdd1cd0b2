"""Are the step tables the papers' updates? Checked from the marginals that any solver must keep, not from its formulas.

If the network returned the true noise e of x_t = sqrt(a) x0 + c + sqrt(1 - a) e, a step must land on
x_s = sqrt(a') x0 + c + sqrt(1 - a') e' (c: the condition, in formulation 2 only). The table's rows are linear, so this is
a statement about the coefficients of x0, c and e; alpha_bar comes from the reference's golden buffers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ArgumentError
from engine.kernels import ROW_FIELDS
from engine.solver.schedule import SPACINGS, kept_timesteps
from engine.solver.table import Schedule, StepTable, build_step_table

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz"))
SCHEDULE = Schedule(1e-4, 0.02, 1000)
COUNTS = [1, 2, 5, 10, 25, 50, 1000]
ALPHA_BAR = np.load(GOLDEN / "form1" / "expected.npz")["sqrt_alpha_bar"] ** 2
SOLVERS = [
    ("ddim", 0.0, "fixedlarge"),
    ("ddim", 0.5, "fixedlarge"),
    ("ddim", 1.0, "fixedsmall"),
    ("ddpm", 0.0, "fixedsmall"),
    ("ddpm", 0.0, "fixedlarge"),
]


def table(steps: int, **options) -> StepTable:
    return build_step_table(SCHEDULE, **({"formulation": 1, "spacing": "linspace"} | options | {"steps": steps}))


def columns(of: StepTable) -> dict[str, np.ndarray]:
    return dict(zip(ROW_FIELDS, of.rows.T.astype(float), strict=True))


def levels(of: StepTable) -> tuple[np.ndarray, np.ndarray]:
    """alpha_bar of the timesteps of each step, and of where it leads."""
    here = ALPHA_BAR[of.timesteps]
    return here, np.append(here[1:], 1.0)


# Marginals


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("formulation", [None, 1, 2])
@pytest.mark.parametrize(("method", "eta", "variance"), SOLVERS)
def test_true_noise_gives_x0_and_keeps_the_marginal(steps, formulation, method, eta, variance):
    of = table(steps, formulation=formulation, method=method, eta=eta, variance=variance)
    k, (a, a_next) = columns(of), levels(of)
    # x_t's coefficients of x0, e and c; those of the predicted x0 must be 1, 0, 0.
    of_x0, of_e, of_c = np.sqrt(a), np.sqrt(1 - a), float(formulation == 2)
    np.testing.assert_allclose(k["p_x"] * of_x0, 1, rtol=3e-7)
    np.testing.assert_allclose(k["p_x"] * of_e + k["p_eps"], 0, atol=2e-7 * k["p_x"].max())
    np.testing.assert_allclose(k["p_x"] * of_c + k["p_cond"], 0, atol=0)
    # And those of x'.
    np.testing.assert_allclose(k["k_x0"] + k["k_x"] * of_x0, np.sqrt(a_next), atol=2e-7)
    centre = np.full(of.steps, of_c)
    centre[-1] = 0.0  # the image carries no centre
    np.testing.assert_allclose(k["k_x"] * of_c + k["k_cond"], centre, atol=1e-7)
    kept_noise = k["k_x"] * of_e + k["k_eps"]
    if variance == "fixedlarge" and method == "ddpm":
        np.testing.assert_allclose(k["sigma"][:-1] ** 2, (1 - a / a_next)[:-1], rtol=1e-6)
        assert (kept_noise**2 + k["sigma"] ** 2 > 1 - a_next - 1e-6).all(), "an upper bound on the variance"
    else:
        np.testing.assert_allclose(kept_noise**2 + k["sigma"] ** 2, 1 - a_next, atol=5e-7)


@pytest.mark.parametrize("steps", COUNTS)
def test_the_last_step_returns_x0_exactly(steps):
    for method, eta, variance in SOLVERS:
        for formulation in (None, 1, 2):
            last = table(steps, method=method, eta=eta, variance=variance, formulation=formulation).rows[-1]
            named = dict(zip(ROW_FIELDS, last.tolist(), strict=True))
            others = {name: value for name, value in named.items() if name.startswith("k_") or name == "sigma"}
            assert others == dict.fromkeys(others, 0.0) | {"k_x0": 1.0}


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_ddim_with_eta_1_is_ddpm_with_the_small_variance(steps):
    """Equal as functions of (x, eps), though written over different terms (DDIM section 4.1)."""
    for formulation in (1, 2):
        ddim = columns(table(steps, method="ddim", eta=1.0, formulation=formulation))
        ddpm = columns(table(steps, method="ddpm", variance="fixedsmall", formulation=formulation))
        for k_of, p_of in (("k_x", "p_x"), ("k_eps", "p_eps"), ("k_cond", "p_cond")):
            total = [of[k_of] + of["k_x0"] * of[p_of] for of in (ddim, ddpm)]
            np.testing.assert_allclose(*total, atol=2e-5)
        np.testing.assert_allclose(ddim["sigma"], ddpm["sigma"], atol=1e-7)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_ddpm_mean_is_the_gaussian_product(steps):
    """q(x_s | x_t, x0) by precision weighting: prior N(sqrt(a') x0, 1 - a'), likelihood of x_t given x_s."""
    of = table(steps, method="ddpm", variance="fixedsmall")
    k, (a, a_next) = columns(of), levels(of)
    for i in range(of.steps - 1):
        alpha = a[i] / a_next[i]
        prior, likelihood = 1 / (1 - a_next[i]), alpha / (1 - alpha)
        assert k["sigma"][i] ** 2 == pytest.approx(1 / (prior + likelihood), rel=1e-6)
        assert k["k_x0"][i] == pytest.approx(math.sqrt(a_next[i]) * prior / (prior + likelihood), rel=2e-6)
        assert k["k_x"][i] == pytest.approx(likelihood / math.sqrt(alpha) / (prior + likelihood), rel=2e-6)


# Which timesteps


@pytest.mark.parametrize("folder", FOLDERS)
def test_timesteps_and_noise_levels_of_the_reference(folder):
    expected = np.load(GOLDEN / folder / "expected.npz")
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    schedule = Schedule(config["beta1"], config["beta2"], config["T"])
    np.testing.assert_allclose(np.sqrt(schedule.alpha_bar), expected["sqrt_alpha_bar"], rtol=0, atol=1e-15)
    cases = [name for name in expected if name.endswith("_timesteps")]
    assert len(cases) >= 4
    for case in cases:
        method, spacing, steps = case.split("_")[:3]
        of = build_step_table(schedule, formulation=1, steps=int(steps), method=method, spacing=spacing)
        assert of.timesteps[::-1].tolist() == expected[case].tolist()


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
    ],
)
def test_kept_timesteps(options, expected):
    of = table(**options)
    assert of.timesteps.tolist() == expected
    assert of.timesteps.dtype == np.int64
    assert of.steps == len(of.rows) == len(expected)


def test_every_count_there_is_starts_at_t_start_and_ends_at_0():
    for t_start in (1, 2, 7, 100, 450, 999):
        for spacing in ("linspace", "quad"):
            for steps in range(2, min(t_start + 1, 120) + 1):
                kept = kept_timesteps(1000, steps, spacing, t_start)
                assert kept[0] == 0
                assert kept[-1] == t_start
                assert (np.diff(kept) > 0).all()
                assert len(kept) == steps or spacing == "quad"


def test_trailing_starts_at_t_start_takes_every_count_and_keeps_its_stride():
    for t_start in (1, 2, 7, 100, 450, 999):
        for steps in range(1, min(t_start + 1, 120) + 1):
            kept = kept_timesteps(1000, steps, "trailing", t_start)
            assert kept[-1] == t_start
            assert kept[0] >= 0
            assert len(kept) == steps
            strides = np.diff(np.concatenate([[-1], kept]))
            assert strides.min() >= 1
            assert np.ptp(strides) <= 1


def test_quad_merges_duplicates_as_the_reference_does():
    of = table(300, spacing="quad")
    wanted = {int(value) for value in np.linspace(0, math.sqrt(800), 300) ** 2}
    assert set(of.timesteps.tolist()) == wanted
    assert of.steps == len(wanted) < 300


def test_the_whole_chain_is_the_same_by_every_spacing_that_has_it():
    rows = [table(1000, spacing=spacing, method="ddpm").rows for spacing in ("uniform", "linspace", "truncated")]
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_truncated_rows_are_the_last_of_the_full_chain():
    for method in ("ddpm", "ddim"):
        full, short = (table(n, spacing="truncated", method=method) for n in (1000, 6))
        assert np.array_equal(full.rows[-6:], short.rows)


# Start, flags


def test_start_from_noise():
    assert table(5, temperature=0.8).start == table(5, temperature=0.8, formulation=None).start
    assert vars(table(5, temperature=0.8).start) == {"k_noise": 0.8, "k_image": 0.0, "k_cond": 0.0}
    assert vars(table(5, temperature=0.8, formulation=2).start) == {"k_noise": 0.8, "k_image": 0.0, "k_cond": 1.0}


def test_start_from_an_image_is_its_forward_process():
    for formulation, centre in ((1, 0.0), (2, 1.0)):
        start = table(3, t_start=450, formulation=formulation).start
        assert start.k_image == pytest.approx(math.sqrt(ALPHA_BAR[450]), rel=1e-12)
        assert start.k_noise == pytest.approx(math.sqrt(1 - ALPHA_BAR[450]), rel=1e-12)
        assert start.k_cond == centre
    cooled = table(3, t_start=450, temperature=0.5).start
    assert cooled.k_noise == pytest.approx(0.5 * math.sqrt(1 - ALPHA_BAR[450]), rel=1e-12)


def test_clip_eta_and_temperature_touch_only_what_they_name():
    plain, clip = table(5), ROW_FIELDS.index("clip")
    assert (plain.rows[:, clip] == 1.0).all()
    free = table(5, clip=False)
    assert np.isposinf(free.rows[:, clip]).all()
    assert np.array_equal(np.delete(free.rows, clip, axis=1), np.delete(plain.rows, clip, axis=1))
    assert np.array_equal(table(5, temperature=0.3).rows, plain.rows)
    assert np.array_equal(table(5, variance="fixedsmall").rows, plain.rows)
    assert not plain.stochastic
    assert table(5, eta=0.1).stochastic
    assert table(5, method="ddpm").stochastic
    assert not table(1, method="ddpm").stochastic, "the last step adds no noise"
    assert not table(5, method="ddpm").needs_x0_prev


def test_rows_are_float32_and_not_to_be_changed():
    rows = table(5).rows
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


@pytest.mark.parametrize(("beta_1", "beta_T", "T"), [(1e-4, 0.02, 1), (1e-4, 0.02, 2), (1e-4, 0.02, 7), (8e-4, 0.012, 999)])
def test_betas_run_from_the_first_to_the_last_in_float32(beta_1, beta_T, T):
    schedule = Schedule(beta_1, beta_T, T)
    assert schedule.betas[0] == np.float32(beta_1)
    assert T == 1 or schedule.betas[-1] == np.float32(beta_T)
    assert np.array_equal(schedule.betas, schedule.betas.astype(np.float32))
    np.testing.assert_allclose(schedule.betas, np.linspace(beta_1, beta_T, T), rtol=2e-7)
    assert schedule.alpha_bar[-1] == pytest.approx(math.prod(1 - beta for beta in schedule.betas.tolist()), rel=1e-12)
    assert build_step_table(schedule, formulation=1, steps=T, spacing="linspace").steps == T


# Refused arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps is 0; expected 1 \.\. 1000, the timesteps there are with T = 1000"),
        ({"steps": -3}, "steps is -3; expected 1"),
        ({"steps": 1001}, r"steps is 1001; expected 1 \.\. 1000"),
        ({"steps": 2.0}, "steps is 2.0, a float; expected an integer"),
        ({"steps": True}, "steps is True, a bool"),
        ({"steps": 7, "t_start": 5}, r"steps is 7; expected 1 \.\. 6, the timesteps there are with t_start = 5"),
        ({"steps": 2, "t_start": 1000}, r"t_start is 1000; expected a timestep in 0 \.\. 999, e\.g\. 450"),
        ({"steps": 2, "t_start": -1}, "t_start is -1; expected"),
        ({"steps": 2, "t_start": 4.5}, "t_start is 4.5, a float"),
        (
            {"steps": 700, "spacing": "uniform"},
            r"uniform spacing over T=1000 exists for 2 to 36, 38, \.\.\., 334, 500, 1000; nearest to 700: 500 and 1000; "
            "or use spacing='linspace'",
        ),
        ({"steps": 1, "spacing": "uniform"}, "nearest to 1: 2; or use spacing='linspace'"),
        ({"steps": 1, "spacing": "quad"}, "quad spacing would spend at t = 0: use spacing='linspace' or t_start="),
        ({"steps": 5, "spacing": "uniform", "t_start": 400}, "would miss t_start: use spacing='linspace' or 'quad'"),
        ({"steps": 5, "spacing": "truncated", "t_start": 400}, "starts at t = 4, but t_start is 400: pass steps=401"),
        ({"steps": 5, "spacing": "quadd"}, "spacing is 'quadd'; expected one of uniform, .* Did you mean 'quad'"),
        ({"steps": 5, "method": "ddmi"}, "method is 'ddmi'; expected one of ddim, ddpm. Did you mean 'dd[pi]m'"),
        ({"steps": 5, "variance": "fixedlarg"}, "variance is 'fixedlarg'; .* Did you mean 'fixedlarge'"),
        ({"steps": 5, "eta": 1.01}, r"eta is 1.01; expected a number in 0 \.\. 1"),
        ({"steps": 5, "eta": -0.1}, "eta is -0.1; expected"),
        ({"steps": 5, "eta": math.nan}, "eta is nan; expected"),
        ({"steps": 5, "eta": "1"}, "eta is '1', a str; expected a number"),
        ({"steps": 5, "eta": 0.5, "method": "ddpm"}, "only ddim takes eta: leave it 0 or use method='ddim'"),
        ({"steps": 5, "temperature": -1}, "temperature is -1; expected a number of at least 0"),
        ({"steps": 5, "temperature": math.inf}, "temperature is inf"),
        ({"steps": 5, "formulation": 3}, "formulation is 3; expected 1, 2, or None"),
    ],
)
def test_what_cannot_be_had_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        table(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.02, 10), r"beta_1 is 0.0; expected a variance in \(0, 1\)"),
        ((1e-4, 1.0, 10), "beta_T is 1.0; expected"),
        ((1e-4, math.nan, 10), "beta_T is nan; expected"),
        ((1e-4, 0.02, 0), "T is 0; expected 1 or more"),
        ((1e-4, 0.02, 10, "linaer"), "recipe is 'linaer'; expected one of linear. Did you mean 'linear'"),
    ],
)
def test_schedules_that_are_none_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Schedule(*arguments)


def test_uniform_refusals_name_only_counts_that_exist():
    for T in (2, 3, 10, 100, 1000):
        exists = {len(range(0, T, i)) for i in range(1, T)}
        for steps in range(1, T + 1):
            if steps in exists:
                assert len(kept_timesteps(T, steps, "uniform")) == steps
                continue
            with pytest.raises(ArgumentError) as refusal:
                kept_timesteps(T, steps, "uniform")
            nearest = str(refusal.value).split(f"nearest to {steps}: ")[1].split(";")[0]
            assert {int(count) for count in nearest.split(" and ")} <= exists
    assert list(SPACINGS) == ["uniform", "quad", "linspace", "trailing", "truncated"]
