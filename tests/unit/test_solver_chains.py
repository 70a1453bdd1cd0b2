"""Whole chains against the papers: each algorithm written out in float64 from its source, and each solver's order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from engine.solver.ddim import ddim
from engine.solver.ddpm import ddpm
from engine.solver.dpmpp_2m import dpmpp_2m
from engine.solver.levels import Levels
from engine.solver.plms import plms
from engine.solver.schedule import Schedule, kept_timesteps
from tests.gaussian_flow import curved, error_of, even_in_lambda, even_in_noise
from tests.solver_rows import run_solver

SCHEDULE = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)
SHAPE = (3, 4)
RNG = np.random.default_rng(7)
X = RNG.standard_normal(SHAPE)
CENTRE = RNG.uniform(-1, 1, SHAPE)
NOISE = RNG.standard_normal((20, *SHAPE))
MIX = RNG.standard_normal((4, 4)) / 2
TOLERANCE = 1e-11


def eps_at(x: np.ndarray, t: int) -> np.ndarray:
    """A smooth nonlinear stand-in for the noise in x."""
    return np.tanh(x @ MIX + math.cos(t / 150)) + 0.1 * x


def levels(steps: int, last: float = 1.0, **options) -> Levels:
    """Evenly spaced timesteps of the schedule; `last` is alpha_bar after the last step."""
    kept = kept_timesteps(1000, steps, "trailing")
    a = SCHEDULE.alpha_bar[kept]
    return Levels(kept[::-1].copy(), a[::-1], np.append(a[-2::-1], last), **options)


def network_of(at: Levels):
    """The stand-in as a network of `at`'s prediction: what it returns means eps_at(x - c)."""
    a_of = dict(zip(at.timesteps.tolist(), at.alpha_bar.tolist(), strict=True))

    def network(x: np.ndarray, t: int) -> np.ndarray:
        x = x - CENTRE if at.centred else x
        a, eps = a_of[t], eps_at(x, t)
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        return {"eps": eps, "x0": x0, "v": math.sqrt(a) * eps - math.sqrt(1 - a) * x0}[at.prediction]

    return network


def states_of(solver, at: Levels, clip: float) -> list[np.ndarray]:
    """x after every row, the centre taken away again where the rows have not done so already."""
    x = X + CENTRE if at.centred else X
    found = run_solver(solver, at, network_of(at), x, c=CENTRE, noise=NOISE, clip=clip)
    return [x - CENTRE if at.centred and i + 1 < len(found) else x for i, x in enumerate(found)]


# Each paper's algorithm for states around 0 and a network that returns eps.


def paper_ddim(at: Levels, clip: float) -> list[np.ndarray]:
    """Song et al. 2021, eq. 12 and 16."""
    x, states = X, []
    for t, a, a_next, n in zip(at.timesteps.tolist(), at.alpha_bar, at.previous, NOISE, strict=False):
        eps = eps_at(x, t)
        x0 = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -clip, clip)
        sigma = at.eta * math.sqrt((1 - a_next) / (1 - a)) * math.sqrt(1 - a / a_next)
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - sigma**2) * eps + (sigma * n if sigma else 0)
        states.append(x)
    return states


def paper_ddpm(at: Levels, clip: float) -> list[np.ndarray]:
    """Ho et al. 2020, eq. 6 and 7, alpha_t being the ratio of neighbouring alpha_bar."""
    x, states = X, []
    for t, a, a_next, n in zip(at.timesteps.tolist(), at.alpha_bar, at.previous, NOISE, strict=False):
        alpha = a / a_next
        beta = 1 - alpha
        x0 = np.clip((x - math.sqrt(1 - a) * eps_at(x, t)) / math.sqrt(a), -clip, clip)
        mean = math.sqrt(a_next) * beta / (1 - a) * x0 + math.sqrt(alpha) * (1 - a_next) / (1 - a) * x
        variance = beta if at.variance == "fixedlarge" else beta * (1 - a_next) / (1 - a)
        x = mean + math.sqrt(variance) * n if a_next < 1 else mean
        states.append(x)
    return states


def paper_dpmpp_2m(at: Levels, clip: float) -> list[np.ndarray]:
    """Lu et al. 2022, Algorithm 2, in alpha, sigma and lambda; the last step to sigma = 0 is the limit of first order."""
    x, states, x0_before, h_before = X, [], None, None
    for t, a, a_next in zip(at.timesteps.tolist(), at.alpha_bar, at.previous, strict=True):
        alpha, sigma, alpha_next, sigma_next = (math.sqrt(v) for v in (a, 1 - a, a_next, 1 - a_next))
        x0 = np.clip((x - sigma * eps_at(x, t)) / alpha, -clip, clip)
        if sigma_next == 0:
            x = x0
        else:
            h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
            D = x0
            if x0_before is not None:
                r = h_before / h
                D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
            x = sigma_next / sigma * x - alpha_next * (math.exp(-h) - 1) * D
            x0_before, h_before = x0, h
        states.append(x)
    return states


def paper_plms(at: Levels, clip: float) -> list[np.ndarray]:
    """Latent diffusion's PLMS: a list of past eps, and a first step that asks the network twice."""
    x, states, past = X, [], []
    steps = list(zip(at.timesteps.tolist(), at.alpha_bar, at.previous, strict=True))

    def step(x, eps, a, a_next):
        x0 = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -clip, clip)
        return math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * eps

    for i, (t, a, a_next) in enumerate(steps):
        eps = eps_at(x, t)
        if not past:
            states.append(step(x, eps, a, a_next))
            combined = (eps + eps_at(states[-1], steps[min(i + 1, len(steps) - 1)][0])) / 2
        elif len(past) == 1:
            combined = (3 * eps - past[-1]) / 2
        elif len(past) == 2:
            combined = (23 * eps - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            combined = (55 * eps - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        past = [*past, eps][-3:]
        x = step(x, combined, a, a_next)
        states.append(x)
    return states


SOLVERS = {
    "ddim": (ddim, paper_ddim, {}),
    "ddim, eta 0.6": (ddim, paper_ddim, {"eta": 0.6}),
    "ddim, eta 1": (ddim, paper_ddim, {"eta": 1.0}),
    "ddpm, large": (ddpm, paper_ddpm, {"variance": "fixedlarge"}),
    "ddpm, small": (ddpm, paper_ddpm, {"variance": "fixedsmall"}),
    "dpmpp_2m": (dpmpp_2m, paper_dpmpp_2m, {}),
    "plms": (plms, paper_plms, {}),
}


@pytest.mark.parametrize("last", [1.0, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("clip", [math.inf, 0.7])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_state_is_the_papers(name, clip, steps, last):
    solver, paper, options = SOLVERS[name]
    at = levels(steps, last, **options)
    expected, found = paper(at, clip), states_of(solver, at, clip)
    assert len(found) == len(expected) == steps + (solver is plms)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("clip", [math.inf, 0.7])
@pytest.mark.parametrize(
    ("name", "prediction"),
    [(name, prediction) for name in SOLVERS for prediction in ("eps", "x0", "v") if name != "plms" or prediction == "eps"],
)
def test_predictions_and_centre_change_the_rows_and_not_the_chain(name, prediction, clip, centred):
    solver, paper, options = SOLVERS[name]
    at = levels(7, prediction=prediction, centred=centred, **options)
    np.testing.assert_allclose(states_of(solver, at, clip), paper(at, clip), rtol=0, atol=1e-8)


def test_the_limit_is_felt():
    for solver, paper, options in SOLVERS.values():
        at = levels(7, **options)
        assert np.abs(paper(at, 0.7)[-1] - paper(at, math.inf)[-1]).max() > 0.01
        assert np.abs(states_of(solver, at, 0.7)[-1] - states_of(solver, at, math.inf)[-1]).max() > 0.01


# Order of convergence


@pytest.mark.parametrize(
    ("solver", "grid", "order"),
    [
        (ddim, even_in_lambda, 1),
        (ddim, even_in_noise, 1),
        (dpmpp_2m, even_in_lambda, 2),
        (dpmpp_2m, curved, 2),
        (plms, even_in_noise, 3),  # fourth order after a start of third
        (plms, curved, 2),  # Adams-Bashforth's weights are those of even steps
    ],
)
def test_order_of_convergence(solver, grid, order):
    coarse, fine = error_of(solver, grid, 80), error_of(solver, grid, 640)
    assert order - 0.1 < math.log2(coarse / fine) / 3 < order + 0.5
    assert fine < {1: 6e-3, 2: 1e-5, 3: 1e-6}[order]


def test_higher_orders_are_closer_in_few_steps():
    errors = [error_of(solver, even_in_lambda, 12) for solver in (ddim, dpmpp_2m)]
    assert errors[1] < errors[0] / 3
    errors = [error_of(solver, even_in_noise, 40) for solver in (ddim, plms)]
    assert errors[1] < errors[0] / 3


def test_eta_is_not_for_plms_and_dpmpp_2m():
    """They are given levels without it; what plms takes from ddim has none either way."""
    at = levels(5)
    for solver in (plms, dpmpp_2m):
        plain, noisy = solver(at).fields, solver(replace(at, eta=1.0)).fields
        for name, values in plain.items():
            np.testing.assert_array_equal(values, noisy[name])
