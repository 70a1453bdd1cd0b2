"""Which coefficients does each step of a chain have? Every solver as a table of rows, derived once in float64.

A row (kernels.ROW_FIELDS) says, for one step from timestep t to the previous kept timestep s < t:

    x0 = clip(p_x x + p_eps eps + p_cond cond)
    x' = k_x0 x0 + k_prev x0_prev + k_x x + k_eps eps + k_cond cond + sigma noise

Below, a = alpha_bar at t and a' = alpha_bar at s, with a' = 1 where no earlier timestep is kept, so that the last step
of every chain returns x0 itself. Papers: DDPM (Ho et al. 2020), DDIM (Song et al. 2021), DiffuseVAE (Pandey et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import ArgumentError, did_you_mean
from engine.kernels import ROW_FIELDS
from engine.solver.schedule import F64, I64, Schedule, check_integer, check_number, default_spacing, kept_timesteps

__all__ = ["METHODS", "VARIANCES", "Schedule", "Start", "StepTable", "build_step_table"]


@dataclass(frozen=True)
class Start:
    """What a chain starts from: x_start = k_noise noise + k_image image + k_cond cond.

    image is the VAE's reconstruction, or the image to refine, in [-1, 1].
    """

    k_noise: float
    k_image: float
    k_cond: float


@dataclass(frozen=True)
class StepTable:
    """A chain: timesteps int64 [S] in the order used (falling), rows float32 [S, 10] (kernels.ROW_FIELDS), start."""

    timesteps: I64
    rows: NDArray[np.float32]
    method: str
    spacing: str
    start: Start

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def stochastic(self) -> bool:
        """Whether any step adds noise."""
        return bool((self.rows[:, ROW_FIELDS.index("sigma")] > 0).any())

    @property
    def needs_x0_prev(self) -> bool:
        """Whether any step uses the x0 of the step before it."""
        return bool((self.rows[:, ROW_FIELDS.index("k_prev")] != 0).any())


@dataclass(frozen=True)
class _Levels:
    """Noise levels of the kept timesteps, descending, float64 [S]: alpha_bar at t and at the timestep before it."""

    alpha_bar: F64
    previous: F64

    @property
    def beta(self) -> F64:
        """beta of the spaced chain: 1 - a / a' (what makes its alphas multiply to the same alpha_bar)."""
        return 1.0 - self.alpha_bar / self.previous

    @property
    def posterior_variance(self) -> F64:
        """DDPM eq. 7: beta~ = beta (1 - a') / (1 - a); 0 in the last step."""
        return self.beta * (1.0 - self.previous) / (1.0 - self.alpha_bar)


Columns = dict[str, F64 | float]


# --- Parts of a row ---------------------------------------------------------------------------------------------------


def _predicted_x0(at: _Levels, formulation: int | None) -> Columns:
    """x0 from x_t and eps.

    Formulation 1 and unconditional, x_t = sqrt(a) x0 + sqrt(1 - a) eps (DDPM eq. 4):
        x0 = x_t / sqrt(a) - sqrt(1/a - 1) eps
    Formulation 2, x_t = sqrt(a) x0 + cond + sqrt(1 - a) eps (DiffuseVAE, formulation 2: noise centred on cond):
        x0 = (x_t - cond) / sqrt(a) - sqrt(1/a - 1) eps
    """
    scale = 1.0 / np.sqrt(at.alpha_bar)
    return {
        "p_x": scale,
        "p_eps": -np.sqrt(1.0 / at.alpha_bar - 1.0),
        "p_cond": -scale if formulation == 2 else 0.0,
    }


def _ddpm(at: _Levels, formulation: int | None, eta: float, variance: str) -> Columns:
    """Ancestral step, the mean of q(x_s | x_t, x0) (DDPM eq. 7, with the spaced chain's beta):

        mean = sqrt(a') beta / (1 - a) x0 + sqrt(1 - beta) (1 - a') / (1 - a) x_t
    Formulation 2 has the same posterior for x - cond, hence mean + (1 - k_x) cond.
    sigma^2: fixedlarge beta, fixedsmall beta~ (DDPM section 3.2).
    """
    k_x = np.sqrt(1.0 - at.beta) * (1.0 - at.previous) / (1.0 - at.alpha_bar)
    return {
        "k_x0": np.sqrt(at.previous) * at.beta / (1.0 - at.alpha_bar),
        "k_x": k_x,
        "k_cond": 1.0 - k_x if formulation == 2 else 0.0,
        "sigma": np.sqrt(at.beta if variance == "fixedlarge" else at.posterior_variance),
    }


def _ddim(at: _Levels, formulation: int | None, eta: float, variance: str) -> Columns:
    """DDIM eq. 12 with the sigma of eq. 16:

        sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')
        x'    = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma noise
    Formulation 2 keeps the centre: the direction is (x_t - sqrt(a) x0) / sqrt(1 - a) = eps + cond / sqrt(1 - a), and
    1 - sqrt(1 - a' - sigma^2) / sqrt(1 - a) of cond is added; together exactly one cond.
    """
    sigma = eta * np.sqrt(at.posterior_variance)
    return {
        "k_x0": np.sqrt(at.previous),
        "k_eps": np.sqrt(np.maximum(0.0, 1.0 - at.previous - sigma**2)),  # rounding may fall below 0 at eta = 1
        "k_cond": 1.0 if formulation == 2 else 0.0,
        "sigma": sigma,
    }


METHODS: dict[str, Callable[[_Levels, int | None, float, str], Columns]] = {"ddim": _ddim, "ddpm": _ddpm}
VARIANCES = ("fixedlarge", "fixedsmall")


# --- The table --------------------------------------------------------------------------------------------------------


def build_step_table(
    schedule: Schedule,
    *,
    formulation: int | None,
    steps: int,
    method: str = "ddim",
    spacing: str | None = None,
    eta: float = 0.0,
    variance: str = "fixedlarge",
    t_start: int | None = None,
    temperature: float = 1.0,
    clip: bool = True,
) -> StepTable:
    """The rows of one chain.

    formulation: 1, 2, or None for an unconditional model (no term with cond).
    steps, spacing: how many timesteps, and which. None is "uniform" (the reference's whole strides), or "linspace"
        with t_start; "quad" is dense near 0 and may merge duplicates (StepTable.steps counts what is left);
        "trailing" ends one stride above 0, so that no call is spent on a clean x;
        "truncated" is the last `steps` of the full chain.
    method, eta, variance: "ddim" with eta 0 (deterministic) .. 1; "ddpm" with variance "fixedlarge" or "fixedsmall"
        (of no effect with ddim). No noise in the last step.
    t_start: start at this timestep from a noised image instead of from noise.
    temperature: scales the noise that the chain starts from, not that of the steps.
    clip: limit x0 to [-1, 1] in every step, as in training.
    Raises ArgumentError, which says what can be had.
    """
    _check_solver(formulation, method, eta, variance)
    steps = check_integer("steps", steps)
    t_start = None if t_start is None else check_integer("t_start", t_start)
    temperature = check_number("temperature", temperature, 0.0)
    spacing = default_spacing(t_start) if spacing is None else spacing
    kept = kept_timesteps(schedule.T, steps, spacing, t_start)
    ascending = schedule.alpha_bar[kept]
    levels = _Levels(ascending[::-1], np.concatenate([[1.0], ascending[:-1]])[::-1])
    columns = _predicted_x0(levels, formulation) | METHODS[method](levels, formulation, eta, variance)
    columns["clip"] = 1.0 if clip else math.inf
    start = _start(schedule, formulation, t_start, temperature)
    return StepTable(kept[::-1].copy(), _rows(columns, len(kept), formulation), method, spacing, start)


def _rows(columns: Columns, steps: int, formulation: int | None) -> NDArray[np.float32]:
    rows = np.zeros((steps, len(ROW_FIELDS)))
    for name, values in columns.items():
        rows[:, ROW_FIELDS.index(name)] = values
    rows[-1, ROW_FIELDS.index("sigma")] = 0.0
    if formulation == 2:  # the image is x_0 without the centre that the chain carried along
        rows[-1, ROW_FIELDS.index("k_cond")] -= 1.0
    narrow = rows.astype(np.float32)
    narrow.setflags(write=False)
    return narrow


def _start(schedule: Schedule, formulation: int | None, t_start: int | None, temperature: float) -> Start:
    """x_T = temperature noise, or at t_start a sample of q(x_t | image) (DDPM eq. 4); + cond with formulation 2."""
    centre = 1.0 if formulation == 2 else 0.0
    if t_start is None:
        return Start(temperature, 0.0, centre)
    alpha_bar = float(schedule.alpha_bar[t_start])
    return Start(temperature * math.sqrt(1.0 - alpha_bar), math.sqrt(alpha_bar), centre)


def _check_solver(formulation: int | None, method: str, eta: float, variance: str) -> None:
    if formulation not in (None, 1, 2):
        raise ArgumentError(f"formulation is {formulation!r}; expected 1, 2, or None for an unconditional model")
    if method not in METHODS:
        raise ArgumentError(f"method is {method!r}; expected one of {', '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    if variance not in VARIANCES:
        raise ArgumentError(
            f"variance is {variance!r}; expected one of {', '.join(VARIANCES)}.{did_you_mean(variance, VARIANCES)}"
        )
    if check_number("eta", eta, 0.0, 1.0) != 0 and method != "ddim":
        raise ArgumentError(f"eta is {eta} with method={method!r}; only ddim takes eta: leave it 0 or use method='ddim'")
