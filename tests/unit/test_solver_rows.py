"""Step tables: rows checked from the marginals that any solver must keep, the start, the weights, and what is refused.

If the network returned the true noise e of x_t = sqrt(a) x0 + c + sqrt(1 - a) e, a step must land on
x_s = sqrt(a') x0 + c + sqrt(1 - a') e' (c: the centre, where there is one). The table's rows are linear, so this is
a statement about the coefficients of x0, c and e; alpha_bar comes from the reference's golden buffers.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ArgumentError
from engine.kernels import ROW_FIELDS
from engine.solver.prediction import PREDICTIONS
from engine.solver.schedule import Schedule
from engine.solver.table import METHODS, StepTable, build_step_table, check_table

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEDULE = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)
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
    return build_step_table(SCHEDULE, **({"spacing": "linspace"} | options | {"steps": steps}))


def columns(of: StepTable) -> dict[str, np.ndarray]:
    return dict(zip(ROW_FIELDS, of.rows.T.astype(float), strict=True))


def levels(of: StepTable) -> tuple[np.ndarray, np.ndarray]:
    """alpha_bar of the timesteps of each step, and of where it leads."""
    here = ALPHA_BAR[of.timesteps]
    return here, np.append(here[1:], 1.0)


# The rows of the first two solvers, as they were when a row had ten fields: images hang on their bits


def ten_fields(kept: np.ndarray, method: str, eta: float, variance: str, centred: bool) -> dict[str, np.ndarray]:
    """The earlier formulas, operation by operation, in float64 and rounded once."""
    ascending = SCHEDULE.alpha_bar[kept]
    a, b = ascending[::-1], np.concatenate([[1.0], ascending[:-1]])[::-1]
    beta = 1.0 - a / b
    posterior = beta * (1.0 - b) / (1.0 - a)
    scale = 1.0 / np.sqrt(a)
    of = {"p_x": scale, "p_e": -np.sqrt(1.0 / a - 1.0), "p_c": -scale if centred else 0.0 * scale}
    if method == "ddpm":
        k_x = np.sqrt(1.0 - beta) * (1.0 - b) / (1.0 - a)
        of |= {"k_x0": np.sqrt(b) * beta / (1.0 - a), "k_x": k_x, "k_c": 1.0 - k_x if centred else 0.0 * k_x}
        of["k_n"] = np.sqrt(beta if variance == "fixedlarge" else posterior)
    else:
        of["k_n"] = eta * np.sqrt(posterior)
        of |= {"k_x0": np.sqrt(b), "k_e": np.sqrt(np.maximum(0.0, 1.0 - b - of["k_n"] ** 2))}
        of["k_c"] = np.full(len(a), 1.0 if centred else 0.0)
    of["k_n"][-1] = 0.0
    of["k_c"][-1] -= 1.0 if centred else 0.0
    return {name: values.astype(np.float32) for name, values in of.items()}


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("method", "eta", "variance"), SOLVERS)
def test_ddim_and_ddpm_have_the_bits_they_always_had(steps, centred, method, eta, variance):
    of = table(steps, method=method, eta=eta, variance=variance, centred=centred)
    expected = ten_fields(of.timesteps[::-1], method, eta, variance, centred)
    expected |= {"clip": np.ones(steps, np.float32), "c_in": np.ones(steps, np.float32)}
    for name, values in zip(ROW_FIELDS, of.rows.T, strict=True):
        found, wanted = np.ascontiguousarray(values), expected.get(name, np.zeros(steps, np.float32))
        assert np.array_equal(found.view(np.uint32), (wanted + np.float32(0)).view(np.uint32)), name


# Marginals


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("method", "eta", "variance"), SOLVERS)
def test_true_noise_gives_x0_and_keeps_the_marginal(steps, centred, method, eta, variance):
    of = table(steps, centred=centred, method=method, eta=eta, variance=variance)
    k, (a, a_next) = columns(of), levels(of)
    # x_t's coefficients of x0, e and c; those of the predicted x0 must be 1, 0, 0.
    of_x0, of_e, of_c = np.sqrt(a), np.sqrt(1 - a), float(centred)
    np.testing.assert_allclose(k["p_x"] * of_x0, 1, rtol=3e-7)
    np.testing.assert_allclose(k["p_x"] * of_e + k["p_e"], 0, atol=2e-7 * k["p_x"].max())
    np.testing.assert_allclose(k["p_x"] * of_c + k["p_c"], 0, atol=0)
    # And those of x'.
    np.testing.assert_allclose(k["k_x0"] + k["k_x"] * of_x0, np.sqrt(a_next), atol=2e-7)
    centre = np.full(len(of), of_c)
    centre[-1] = 0.0  # the image carries no centre
    np.testing.assert_allclose(k["k_x"] * of_c + k["k_c"], centre, atol=1e-7)
    kept_noise = k["k_x"] * of_e + k["k_e"]
    if variance == "fixedlarge" and method == "ddpm":
        np.testing.assert_allclose(k["k_n"][:-1] ** 2, (1 - a / a_next)[:-1], rtol=1e-6)
        assert (kept_noise**2 + k["k_n"] ** 2 > 1 - a_next - 1e-6).all(), "an upper bound on the variance"
    else:
        np.testing.assert_allclose(kept_noise**2 + k["k_n"] ** 2, 1 - a_next, atol=5e-7)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m", "unipc_2"])
def test_without_noise_x0_and_eps_stay_what_they_are(steps, prediction, centred, method):
    """A network that knows the truth keeps it: x' = sqrt(a') x0 + c + sqrt(1 - a') e with the same e, past x0 included."""
    of = table(steps, centred=centred, prediction=prediction, method=method)
    k, (a, a_next) = columns(of), levels(of)
    truth = {"eps": (0 * a, 1 + 0 * a), "x0": (1 + 0 * a, 0 * a), "v": (-np.sqrt(1 - a), np.sqrt(a))}[prediction]
    x = {"x0": np.sqrt(a), "e": np.sqrt(1 - a), "c": centred + 0 * a}
    network = {"x0": truth[0], "e": truth[1], "c": 0 * a}
    centre = np.where(np.arange(len(of)) < len(of) - 1, float(centred), 0.0)
    expected = {"x0": np.sqrt(a_next), "e": np.sqrt(1 - a_next), "c": centre}
    size = np.abs(k["p_x"]).max()
    for name in ("x0", "e", "c"):
        of_c = float(name == "c")
        x0 = k["p_x"] * x[name] + k["p_e"] * network[name] + k["p_c"] * of_c
        np.testing.assert_allclose(x0, float(name == "x0"), atol=3e-7 * max(1, size))
        past = (k["k_h1"] + k["k_h2"]) * float(name == "x0")
        following = k["k_x0"] * float(name == "x0") + k["k_x"] * x[name] + k["k_e"] * network[name] + k["k_c"] * of_c + past
        np.testing.assert_allclose(following, expected[name], atol=1e-6 * max(1, np.abs(k["k_x"]).max()))


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_last_step_returns_x0_exactly(steps, centred, method):
    for prediction in METHODS[method].predictions:
        for eta, variance in ((0.0, "fixedlarge"), (0.7 * ("eta" in METHODS[method].takes), "fixedsmall")):
            of = table(steps, method=method, eta=eta, variance=variance, centred=centred, prediction=prediction)
            named = dict(zip(ROW_FIELDS, of.rows[-1].tolist(), strict=True))
            others = {name: value for name, value in named.items() if name.startswith(("k_", "q_", "push"))}
            assert others == dict.fromkeys(others, 0.0) | {"k_x0": 1.0}


@pytest.mark.parametrize("steps", [2, 10, 1000])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("centred", [False, True])
def test_ddim_with_eta_1_is_ddpm_with_the_small_variance(steps, prediction, centred):
    """Equal as functions of (x, e), though written over different terms (DDIM section 4.1)."""
    ddim = columns(table(steps, method="ddim", eta=1.0, centred=centred, prediction=prediction))
    ddpm = columns(table(steps, method="ddpm", variance="fixedsmall", centred=centred, prediction=prediction))
    for k_of, p_of in (("k_x", "p_x"), ("k_e", "p_e"), ("k_c", "p_c")):
        total = [of[k_of] + of["k_x0"] * of[p_of] for of in (ddim, ddpm)]
        np.testing.assert_allclose(*total, atol=2e-5)
    np.testing.assert_allclose(ddim["k_n"], ddpm["k_n"], atol=1e-7)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_ddpm_mean_is_the_gaussian_product(steps):
    """q(x_s | x_t, x0) by precision weighting: prior N(sqrt(a') x0, 1 - a'), likelihood of x_t given x_s."""
    of = table(steps, method="ddpm", variance="fixedsmall")
    k, (a, a_next) = columns(of), levels(of)
    assert k["k_x0"][-1] == 1
    for i in range(len(of) - 1):
        alpha = a[i] / a_next[i]
        prior, likelihood = 1 / (1 - a_next[i]), alpha / (1 - alpha)
        assert k["k_n"][i] ** 2 == pytest.approx(1 / (prior + likelihood), rel=1e-6)
        assert k["k_x0"][i] == pytest.approx(math.sqrt(a_next[i]) * prior / (prior + likelihood), rel=2e-6)
        assert k["k_x"][i] == pytest.approx(likelihood / math.sqrt(alpha) / (prior + likelihood), rel=2e-6)


# History


def test_dpmpp_2m_keeps_only_an_x0_that_the_next_row_reads():
    for steps in (1, 2, 3, 4, 10):
        k = columns(table(steps, method="dpmpp_2m"))
        reads = (k["k_h1"] != 0).tolist()
        assert reads == [0 < i < steps - 1 for i in range(steps)]
        assert k["push"].tolist() == [2.0 * read for read in reads[1:]] + [0.0]
        np.testing.assert_array_equal(k["k_h2"], 0)


def test_plms_starts_with_two_calls_and_goes_on_with_up_to_three_past_eps():
    of = table(7, method="plms", spacing="trailing")
    kept = table(7, spacing="trailing").timesteps
    assert len(of) == 8
    assert of.timesteps.tolist() == [kept[0], kept[1], *kept[1:]]
    k = columns(of)
    assert k["q_x"].tolist() == [1] + [0] * 7
    assert (k["p_y"] != 0).tolist() == (k["p_x"] == 0).tolist() == [i == 1 for i in range(8)]
    assert k["push"].tolist() == [1, 0, 1, 1, 1, 1, 1, 0]
    for depth, first in ((1, 1), (2, 3), (3, 4)):
        assert (k[f"p_h{depth}"] != 0).tolist() == [first <= i and (depth == 1 or i > 1) for i in range(8)]
    assert table(1, method="plms").timesteps.tolist() == [999, 999]


def test_unipc_2_reads_up_to_two_past_x0_and_the_last_row_none():
    k = columns(table(6, method="unipc_2"))
    assert (k["k_h1"] != 0).tolist() == [0 < i < 5 for i in range(6)]
    assert (k["k_h2"] != 0).tolist() == [1 < i < 5 for i in range(6)]
    assert k["push"].tolist() == [2, 2, 2, 2, 0, 0]


def test_scales_are_folded_into_the_rows():
    plain, scaled = (columns(table(4, method="ddpm", noise_scale=scale)) for scale in (1.0, [1.0, 0.5, 2.0, 1.0]))
    assert (scaled["k_n"] / np.where(plain["k_n"], plain["k_n"], 1)).tolist() == [1.0, 0.5, 2.0, 0.0]
    assert all(np.array_equal(plain[name], scaled[name]) for name in plain if name != "k_n")
    plain, scaled = (columns(table(4, eps_scale=scale)) for scale in (1.0, 1.03))
    for name in plain:
        np.testing.assert_allclose(scaled[name], plain[name] * (1.03 if name in ("p_e", "k_e") else 1.0), rtol=1e-6)
    listed = table(4, eps_scale=[1.0] * 4, noise_scale=np.ones(4), eta=[0.5] * 4)
    assert np.array_equal(listed.rows, table(4, eta=0.5).rows)


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_history_need_none(method):
    of = table(6, method=method)
    check_table(of)
    assert (of.rows[0, [ROW_FIELDS.index(f"{which}_h{i}") for which in "pkq" for i in (1, 2, 3)]] == 0).all()


# Start, lanes, flags


def test_start_from_noise():
    assert vars(table(5, temperature=0.8).start) == {"k_noise": 0.8, "k_start": 0.0, "k_centre": 0.0}
    assert vars(table(5, temperature=0.8, centred=True).start) == {"k_noise": 0.8, "k_start": 0.0, "k_centre": 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_start_from_an_image_is_its_forward_process(method):
    for centred in (False, True):
        start = table(3, t_start=450, centred=centred, method=method).start
        assert start.k_start == pytest.approx(math.sqrt(ALPHA_BAR[450]), rel=1e-12)
        assert start.k_noise == pytest.approx(math.sqrt(1 - ALPHA_BAR[450]), rel=1e-12)
        assert start.k_centre == float(centred)
    cooled = table(3, t_start=450, temperature=0.5).start
    assert cooled.k_noise == pytest.approx(0.5 * math.sqrt(1 - ALPHA_BAR[450]), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_guidance_is_a_second_lane_in_every_row(method):
    plain, guided = table(5, method=method), table(5, method=method, guidance=1.5)
    assert plain.weights.tolist() == [[1.0]] * len(plain)
    assert guided.weights.tolist() == [[2.5, -1.5]] * len(plain)
    assert guided.weights.dtype == np.float32
    assert np.array_equal(plain.rows, guided.rows)
    assert table(5, guidance=-0.5).weights[0].tolist() == [0.5, 0.5]
    assert table(5, guidance=-1.0).weights[0].tolist() == [0.0, 1.0]


def test_clip_eta_and_temperature_touch_only_what_they_name():
    plain, clip = table(5), ROW_FIELDS.index("clip")
    assert (plain.rows[:, clip] == 1.0).all()
    free = table(5, clip=None)
    assert np.isposinf(free.rows[:, clip]).all()
    assert np.array_equal(np.delete(free.rows, clip, axis=1), np.delete(plain.rows, clip, axis=1))
    assert (table(5, clip=2.5).rows[:, clip] == 2.5).all()
    assert np.array_equal(table(5, temperature=0.3).rows, plain.rows)
    assert np.array_equal(table(5, variance="fixedsmall").rows, plain.rows)
    assert not plain.stochastic
    assert table(5, eta=0.1).stochastic
    assert table(5, method="ddpm").stochastic
    assert not table(1, method="ddpm").stochastic, "the last step adds no noise"
    assert not table(5, method="plms").stochastic
    assert not table(5, method="dpmpp_2m").stochastic


def test_arrays_are_not_to_be_written_to():
    of = table(5)
    assert of.rows.dtype == np.float32
    assert of.rows.shape == (5, len(ROW_FIELDS))
    for array in (of.rows, of.weights, of.timesteps):
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_an_option_as_another_number_of_the_same_value_is_the_same_chain():
    assert table(np.int64(5), eta=1, temperature=np.float32(1)) is table(5, eta=1.0)
    assert build_step_table(Schedule(SCHEDULE.betas), steps=5, spacing="linspace") is not table(5)


# Refused arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2.0}, "steps is 2.0, a float; expected an integer"),
        ({"steps": True}, "steps is True, a bool"),
        ({"steps": 2, "t_start": 4.5}, "t_start is 4.5, a float"),
        ({"steps": 5, "method": "ddmi"}, "method is 'ddmi'; expected one of ddim, .*Did you mean 'dd[pi]m'"),
        ({"steps": 5, "prediction": "epsilon"}, "prediction is 'epsilon'; expected one of eps, x0, v"),
        ({"steps": 5, "variance": "fixedlarg"}, "variance is 'fixedlarg'; .* Did you mean 'fixedlarge'"),
        ({"steps": 5, "eta": 1.01}, r"eta is 1.01; expected a number in 0 \.\. 1"),
        ({"steps": 5, "eta": -0.1}, "eta is -0.1; expected"),
        ({"steps": 5, "eta": math.nan}, "eta is nan; expected"),
        ({"steps": 5, "eta": "1"}, "eta is '1', a str; expected a number"),
        ({"steps": 5, "eta": 0.5, "method": "ddpm"}, "only ddim and ddim_clipped take eta: leave it 0 or use method='ddim'"),
        ({"steps": 5, "eta": 0.5, "method": "dpmpp_2m"}, "only ddim and ddim_clipped take eta: leave it 0 or use method"),
        ({"steps": 5, "eta": 1, "method": "plms"}, "eta is 1.0 with method='plms'; only ddim and ddim_clipped take eta"),
        ({"steps": 5, "eta": [0, 0.5, 0, 0, 0], "method": "unipc_2"}, r"eta\[1\] is 0.5 with method='unipc_2'; only ddim"),
        ({"steps": 5, "eta": 0.5, "method": "sde_dpmpp_2m"}, "only ddim and ddim_clipped take eta: leave it"),
        ({"steps": 5, "eta": [0, 0.5, 0, 0, 1.5]}, r"eta\[4\] is 1.5; expected a number in 0 \.\. 1"),
        ({"steps": 5, "eta": [0.5] * 4}, "eta lists 4 numbers; expected one, or 5, one a step"),
        ({"steps": 5, "noise_scale": [0.5]}, "noise_scale lists 1 numbers; expected one, or 5, one a step"),
        ({"steps": 5, "noise_scale": -0.5}, "noise_scale is -0.5; expected a number of at least 0"),
        ({"steps": 5, "noise_scale": [1, 1, math.nan, 1, 1]}, r"noise_scale\[2\] is nan; expected a number of at least 0"),
        ({"steps": 5, "eps_scale": math.nan}, "eps_scale is nan; expected a number of at least 0"),
        ({"steps": 5, "eps_scale": "1"}, "eps_scale is '1', a str; expected a number"),
        ({"steps": 5, "eps_scale": np.ones((5, 1))}, "a ndarray; expected a number"),
        ({"steps": 5, "temperature": -1}, "temperature is -1; expected a number of at least 0"),
        ({"steps": 5, "temperature": math.inf}, "temperature is inf"),
        ({"steps": 5, "guidance": math.inf}, "guidance is inf; expected a finite number"),
        ({"steps": 5, "guidance": "much"}, "guidance is 'much', a str; expected a number"),
        ({"steps": 5, "clip": -1.0}, "clip is -1.0; expected a number of at least 0"),
        ({"steps": 5, "clip": True}, "clip is True, a bool; expected a number"),
        ({"steps": 5, "method": "plms", "prediction": "v"}, "predicts v: use method='ddim' or 'ddim_clipped' or"),
        ({"steps": 5, "method": "ipndm", "prediction": "v"}, "'ipndm', which is for eps prediction; .* predicts v"),
        ({"steps": 5, "method": "plms", "prediction": "x0"}, "'plms', which is for eps prediction; .* predicts x0"),
    ],
)
def test_what_cannot_be_had_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        table(**options)
