"""Whole chains against the papers: each algorithm written out in float64 from its source, and each solver's order."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from engine.solver.ddim import ddim, ddim_clipped
from engine.solver.ddpm import ddpm
from engine.solver.dpmpp_2m import dpmpp_2m, sde_dpmpp_2m
from engine.solver.ipndm import ipndm
from engine.solver.levels import Levels
from engine.solver.plms import plms
from engine.solver.schedule import Schedule
from engine.solver.timesteps import kept_timesteps
from engine.solver.unipc_2 import unipc_2
from tests.gaussian_flow import curved, error_of, even_in_lambda, even_in_noise, spread_error_of
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
    kept = kept_timesteps(SCHEDULE.alpha_bar, steps, "trailing")
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


# Each paper's algorithm for states around 0 and a network that returns eps. Where x0 is limited, the multistep methods of
# x0 take sqrt(a) x0 + sqrt(1 - a) eps for the state, which is the state itself without a limit.


def scaled(value: float | np.ndarray, at: Levels) -> list[float]:
    """One number a step."""
    return np.broadcast_to(value, at.steps).tolist()


def paper_ddim(at: Levels, clip: float, again: bool = False) -> list[np.ndarray]:
    """Song et al. 2021, eq. 12 and 16; again: eps is derived again from x0 as limited."""
    x, states = X, []
    levels_of_steps = zip(at.timesteps.tolist(), at.alpha_bar, at.previous, NOISE, strict=False)
    options = zip(*(scaled(value, at) for value in (at.eta, at.noise_scale, at.eps_scale)), strict=True)
    for (t, a, a_next, n), (eta, noise_scale, eps_scale) in zip(levels_of_steps, options, strict=False):
        eps = eps_scale * eps_at(x, t)
        x0 = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -clip, clip)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a) if again else eps
        sigma = eta * math.sqrt((1 - a_next) / (1 - a)) * math.sqrt(1 - a / a_next)
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - sigma**2) * eps + noise_scale * sigma * n
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


def paper_dpmpp_2m(at: Levels, clip: float, sde: bool = False) -> list[np.ndarray]:
    """Lu et al. 2022, Algorithm 2, in alpha, sigma and lambda; the last step to sigma = 0 is the limit of first order. As an
    SDE e^-h and 1 - e^-h become e^-2h, and the noise is what is then missing."""
    x, states, x0_before, h_before = X, [], None, None
    steps = zip(at.timesteps.tolist(), at.alpha_bar, at.previous, NOISE, scaled(at.eps_scale, at), strict=False)
    for t, a, a_next, n, eps_scale in steps:
        alpha, sigma, alpha_next, sigma_next = (math.sqrt(v) for v in (a, 1 - a, a_next, 1 - a_next))
        eps = eps_scale * eps_at(x, t)
        x0 = np.clip((x - sigma * eps) / alpha, -clip, clip)
        x = alpha * x0 + sigma * eps
        if sigma_next == 0:
            x = x0
        else:
            h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
            D = x0
            if x0_before is not None:
                r = h_before / h
                D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
            if sde:
                missing = math.sqrt(1 - math.exp(-2 * h))
                x = sigma_next / sigma * math.exp(-h) * x + alpha_next * (1 - math.exp(-2 * h)) * D
                x = x + at.noise_scale * sigma_next * missing * n
            else:
                x = sigma_next / sigma * x - alpha_next * (math.exp(-h) - 1) * D
            x0_before, h_before = x0, h
        states.append(x)
    return states


def paper_sde_dpmpp_2m(at: Levels, clip: float) -> list[np.ndarray]:
    """Lu et al. 2022: their SDE, with the D of Algorithm 2."""
    return paper_dpmpp_2m(at, clip, sde=True)


def bh2_weights(ratios: list[float], h: float) -> np.ndarray:
    """Zhao et al. 2023, for x0 and B(h) = e^-h - 1: the solution of R a = b, one weight a difference."""
    phi, b = math.expm1(-h) / -h - 1, []
    for n in range(1, len(ratios) + 1):
        b.append(phi * math.factorial(n) / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(n + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, b)


def bh2_step(x, before, at_end, a, a_next, h, weights):
    """One step of UniP or UniC from x: `before` is x0 at its start, `at_end` the differences that are weighted."""
    towards = math.sqrt(a_next) * math.expm1(-h)
    moved = sum((w * d for w, d in zip(weights, at_end, strict=True)), before)
    return math.sqrt((1 - a_next) / (1 - a)) * x - towards * moved


def paper_unipc_2(at: Levels, clip: float) -> list[np.ndarray]:
    """Zhao et al. 2023, Algorithms 1 and 2, second order: keep the corrected state, correct it with each new x0, step on."""
    x, states, corrected, past, h_past = X, [], None, [], []
    a_past = 1.0
    for i, (t, a, a_next) in enumerate(zip(at.timesteps.tolist(), at.alpha_bar, at.previous, strict=True)):
        eps = scaled(at.eps_scale, at)[i] * eps_at(x, t)
        x0 = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -clip, clip)
        if a_next == 1:
            states.append(x0)
            break
        moved = math.sqrt(a) * x0 + math.sqrt(1 - a) * eps - x  # 0 without a limit
        if past:
            h, ratios, differences = h_past[-1], [1.0], [x0 - past[-1]]
            if len(past) > 1:
                ratios.insert(0, -h_past[-2] / h)
                differences.insert(0, (past[-2] - past[-1]) / ratios[0])
            weights = bh2_weights(ratios, h) if len(past) > 1 else [0.5]
            x = bh2_step(corrected, past[-1], differences, a_past, a, h, weights)
        corrected = x = x + moved
        h = math.log(math.sqrt(a_next / (1 - a_next))) - math.log(math.sqrt(a / (1 - a)))
        differences = [(past[-1] - x0) / (-h_past[-1] / h)] if past else []
        x = bh2_step(corrected, x0, differences, a, a_next, h, [0.5][: len(differences)])
        past, h_past, a_past = [*past, x0], [*h_past, h], a
        states.append(x)
    return states


def paper_ipndm(at: Levels, clip: float) -> list[np.ndarray]:
    """Zhang & Chen 2023: DDIM with Adams-Bashforth's eps of the highest order that the past allows, up to the fourth."""
    weights = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]
    x, states, past = X, [], []
    for i, (t, a, a_next) in enumerate(zip(at.timesteps.tolist(), at.alpha_bar, at.previous, strict=True)):
        past = [scaled(at.eps_scale, at)[i] * eps_at(x, t), *past][:4]
        eps = sum(w * e for w, e in zip(weights[len(past) - 1], past, strict=True))
        x0 = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -clip, clip)
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * eps
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
        scale = scaled(at.eps_scale, at)[i]
        eps = scale * eps_at(x, t)
        if not past:
            states.append(step(x, eps, a, a_next))
            combined = (eps + scale * eps_at(states[-1], steps[min(i + 1, len(steps) - 1)][0])) / 2
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
    "ddim_clipped": (ddim_clipped, partial(paper_ddim, again=True), {"eta": 0.6, "noise_scale": 0.84, "eps_scale": 1.02}),
    "ddpm, large": (ddpm, paper_ddpm, {"variance": "fixedlarge"}),
    "ddpm, small": (ddpm, paper_ddpm, {"variance": "fixedsmall"}),
    "ddim, scaled": (ddim, paper_ddim, {"eta": 1.0, "noise_scale": 0.84, "eps_scale": 1.02}),
    "dpmpp_2m": (dpmpp_2m, paper_dpmpp_2m, {}),
    "dpmpp_2m, scaled": (dpmpp_2m, paper_dpmpp_2m, {"eps_scale": 1.02}),
    "sde_dpmpp_2m": (sde_dpmpp_2m, paper_sde_dpmpp_2m, {"noise_scale": 0.9}),
    "unipc_2": (unipc_2, paper_unipc_2, {}),
    "ipndm": (ipndm, paper_ipndm, {}),
    "plms": (plms, paper_plms, {}),
}
EPS_ONLY = ("ipndm", "plms")


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
    [(name, what) for name in SOLVERS for what in ("eps", "x0", "v") if what == "eps" or name not in EPS_ONLY],
)
def test_predictions_and_centre_change_the_rows_and_not_the_chain(name, prediction, clip, centred):
    solver, paper, options = SOLVERS[name]
    at = levels(7, prediction=prediction, centred=centred, **options)
    np.testing.assert_allclose(states_of(solver, at, clip), paper(at, clip), rtol=0, atol=1e-8)


@pytest.mark.parametrize("clip", [math.inf, 0.7])
def test_scales_and_eta_may_differ_from_step_to_step(clip):
    lists = {
        "eta": np.array([0.0, 1.0, 0.3, 0.0, 0.7]), "noise_scale": np.array([1.0, 0.84, 0.0, 1.2, 1.0]),
        "eps_scale": np.array([1.0, 1.03, 0.97, 1.0, 1.1]),
    }  # fmt: skip
    for solver, paper in ((ddim, paper_ddim), (ipndm, paper_ipndm), (plms, paper_plms), (unipc_2, paper_unipc_2)):
        at = levels(5, **(lists if solver is ddim else {"eps_scale": lists["eps_scale"]}))
        np.testing.assert_allclose(states_of(solver, at, clip), paper(at, clip), rtol=0, atol=TOLERANCE)


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
        (unipc_2, even_in_lambda, 3),
        (unipc_2, curved, 3),
        (ipndm, even_in_noise, 3),  # fourth order after a start of first
        (ipndm, curved, 2),
        (plms, even_in_noise, 3),  # fourth order after a start of third
        (plms, curved, 2),  # Adams-Bashforth's weights are those of even steps
    ],
)
def test_order_of_convergence(solver, grid, order):
    coarse, fine = error_of(solver, grid, 80), error_of(solver, grid, 640)
    assert order - 0.1 < math.log2(coarse / fine) / 3 < order + 0.5
    assert fine < {1: 6e-3, 2: 1e-5, 3: 1e-6}[order]


def test_order_of_the_spread_that_noise_leaves():
    """The standard deviation of what a stochastic chain ends with, on Gaussian data."""
    for solver, order in ((ddim, 1), (sde_dpmpp_2m, 2)):
        coarse, fine = (spread_error_of(solver, even_in_lambda, steps) for steps in (40, 160))
        assert order - 0.1 < math.log2(coarse / fine) / 2 < order + 0.5
    assert fine < 1e-3


def test_higher_orders_are_closer_in_few_steps():
    errors = [error_of(solver, even_in_lambda, 12) for solver in (ddim, dpmpp_2m)]
    assert errors[1] < errors[0] / 3
    errors = [error_of(solver, even_in_noise, 40) for solver in (ddim, plms)]
    assert errors[1] < errors[0] / 3


def test_eta_is_for_ddim_alone():
    """The others are given levels without it; what they take from ddim is the same either way."""
    at = levels(5)
    for solver in (plms, ipndm, dpmpp_2m, sde_dpmpp_2m, unipc_2):
        plain, noisy = solver(at).fields, solver(replace(at, eta=1.0)).fields
        for name, values in plain.items():
            np.testing.assert_array_equal(values, noisy[name])
