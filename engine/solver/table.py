"""The step table: every solver as rows of coefficients, derived once in float64. One row is one call of the network.

A row (kernels.ROW_FIELDS; kernels/include/diffusevae/row.h) takes x from timestep t to the kept timestep before it:

    e   = sum of weight e_lane                        lanes of the network, which is given c_in x
    x0  = limit(p_x x + p_e e + p_c c  [+ p_y y + p_h1 h1 + p_h2 h2 + p_h3 h3], clip)
    n   = exp(s_n v) noise, where s_n is not 0 (v: the network's second output); otherwise the noise itself
    g   = a guide's gradient, scaled as engine/solver/guides.py has it
    x'  = k_x0 x0 + k_x x + k_e e + k_c c + k_n n  [+ k_y y + k_h1 h1 + k_h2 h2 + k_h3 h3 + k_g g]
    y'  = the same sum with q, where any q is not 0
    push: 1 puts e and 2 puts x0 in front of the history h1, h2, h3

The network is the pipeline's own, or its regulariser where `nets` says so (engine/solver/regulariser.py).

A solver is a function from `Levels` to `Columns` in a file of its own, and a line of METHODS (methods.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.argument_checks import Numbers, check_integer, check_integers, check_interval, check_number, check_numbers
from engine.errors import ArgumentError
from engine.kernels import ROW_FIELDS
from engine.solver.check import check_rows
from engine.solver.levels import VARIANCES, Columns, Levels
from engine.solver.methods import METHODS, check_regulariser, check_solver
from engine.solver.prediction import PREDICTIONS
from engine.solver.regulariser import AFTER, NETS, OFF, OWN, visited, with_regulariser
from engine.solver.schedule import F64, I64, Schedule
from engine.solver.timesteps import (
    LEADING,
    LEAST_RHO,
    MOST_RHO,
    RHO,
    check_beside_timesteps,
    default_spacing,
    kept_timesteps,
    listed_timesteps,
)

__all__ = ["METHODS", "PREDICTIONS", "VARIANCES", "Schedule", "Start", "StepTable", "build_step_table", "check_table"]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Start:
    """What a chain starts from: x = k_noise x_T + k_start start + k_centre centre, start being an image or its latent."""

    k_noise: float
    k_start: float
    k_centre: float


@dataclass(frozen=True, eq=False)
class StepTable:
    """A chain, in the order of its R network calls.

    timesteps   int64 [R], what the network is called with
    rows        float32 [R, 31], kernels.ROW_FIELDS
    weights     float32 [R, L], of the network's lanes: L = 1, or 2 with guidance (the inputs, their nulls)
    nets        int64 [R], 1 where the regulariser is called and 0 elsewhere; None where it is nowhere
    """

    timesteps: I64
    rows: F32
    weights: F32
    start: Start
    method: str
    spacing: str | None  # None where the timesteps were listed
    nets: I64 | None = None

    def __len__(self) -> int:
        return len(self.rows)

    # Executors ask at every run; a table is kept for many.
    @cached_property
    def lanes(self) -> int:
        """L."""
        return int(self.weights.shape[1])

    @cached_property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return self._uses("k_n", "q_n")

    @cached_property
    def carries_y(self) -> bool:
        """Whether any row reads or writes y."""
        return self._uses("p_y", "k_y", *(name for name in ROW_FIELDS if name.startswith("q_")))

    @cached_property
    def guided(self) -> NDArray[np.bool_]:
        """Which rows take a guide's gradient: bool [R]."""
        found: NDArray[np.bool_] = self.rows[:, ROW_FIELDS.index("k_g")] != 0.0
        return found

    @cached_property
    def takes_guide(self) -> bool:
        """Whether any row does."""
        return bool(self.guided.any())

    def regularised(self, i: int) -> bool:
        """Whether row i calls the regulariser."""
        return self.nets is not None and self.nets[i] != OWN

    @cached_property
    def pushes(self) -> bool:
        """Whether any row puts something in front of the history."""
        return self._uses("push")

    @cached_property
    def scales_x(self) -> bool:
        """Whether any row gives the network something else than x."""
        return bool((self.rows[:, ROW_FIELDS.index("c_in")] != 1.0).any())

    def _uses(self, *fields: str) -> bool:
        return bool(self.rows[:, [ROW_FIELDS.index(name) for name in fields]].any())


def build_step_table(
    schedule: Schedule,
    *,
    prediction: str = "eps",
    centred: bool = False,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    spacing: str | None = None,
    rho: float = RHO,
    method: str = "ddim",
    eta: float | Sequence[float] = 0.0,
    variance: str = "fixedlarge",
    t_start: int | None = None,
    temperature: float = 1.0,
    noise_scale: float | Sequence[float] = 1.0,
    eps_scale: float | Sequence[float] = 1.0,
    clip: float | None = 1.0,
    guidance: float = 0.0,
    guidance_interval: tuple[int, int] | None = None,
    guide_scale: float = 0.0,
    guide_interval: tuple[int, int] | None = None,
    regularise: str = OFF,
    regularise_interval: tuple[int, int] | None = None,
    regulariser: str | None = None,
) -> StepTable:
    """The rows of one chain, in arrays that are not to be written to.

    prediction, centred: what the network returns, and whether the state lies around a centre (`Levels`).
    steps, spacing: how many timesteps, and which. None is "uniform" (the reference's whole strides), or "linspace"
        with t_start; "quad" is dense near 0 and may merge duplicates; "trailing" ends one stride above 0, so that no
        call is spent on a clean x; "truncated" is the last `steps` of the full chain; "karras" is even in
        sigma^(1 / rho), rho 1 .. 100, and "logsnr" in lambda, both ending one stride above t = 0. "leading"
        takes strides of T // steps, and "leading_quad" the squares of "quad", each + 1, so that the last step goes from
        t = 1 to alpha_bar[0] and not to x0; "leading" often has more rows than `steps`; t_start keeps those up to it.
    timesteps: the timesteps themselves, falling, in place of steps, spacing and rho.
    method, eta, variance: "ddim" with eta 0 (deterministic) .. 1, and "ddim_clipped", whose eps is that of the limited
        x0; "ddpm" with variance "fixedlarge", "fixedsmall" or, for a network that returns it, "learned_range" (of no
        effect with the others); "dpmpp_2m" and, with noise, "sde_dpmpp_2m", second order; "unipc_2", the same with a
        corrector; "ipndm" and "plms", fourth order, eps prediction, of which "plms" begins with a row more.
    t_start: start at this timestep from a noised image instead of from noise; with `timesteps`, the first of them.
    temperature: scales the noise that the chain starts from, noise_scale that of the steps.
    eps_scale: scales eps wherever it is used.
    eta, noise_scale and eps_scale are one number, or one a step.
    clip: limit x0 to [-clip, clip] in every row, as in training; None: no limit.
    guidance: w in e = e_0 + w (e_0 - e_1), lane 0 with the inputs and lane 1 with their nulls. 0 is one lane.
    guidance_interval: (low, high), the timesteps, both included, whose rows are guided (Kynkaanniemi et al. 2024); the
        others run lane 0 alone. None: all rows.
    guide_scale: what a guide's gradient is multiplied by, with "ddim_clipped" and "ddpm"; 0: no row takes one.
    guide_interval: (low, high), as guidance_interval, of the rows that take it.
    regularise: "off", "after" or "before": where a second network comes in, with "ddim", "ddim_clipped" and "ddpm". Its
        calls come on top of `steps`, and noise in each of the rows between.
    regularise_interval: (low, high), both included, of the timesteps at which it does. None: all.
    regulariser: what it predicts; None where there is none.
    Raises ArgumentError, which says what can be had.
    """
    eta = check_numbers("eta", eta, 0.0, 1.0)
    guide_scale = check_number("guide_scale", guide_scale, -math.inf)
    check_solver(method, prediction, variance, eta, guide_scale)
    check_regulariser(method, regularise, regulariser)
    t_start = None if t_start is None else check_integer("t_start", t_start)
    rho = check_number("rho", rho, LEAST_RHO, MOST_RHO)
    if timesteps is not None:
        timesteps = check_integers("timesteps", timesteps)
        check_beside_timesteps(timesteps, None if steps is None else check_integer("steps", steps), spacing, t_start, rho)
        steps = len(timesteps)
    elif spacing is None:
        spacing = default_spacing(t_start)
    chain = _Chain(
        schedule=schedule,
        prediction=prediction,
        centred=bool(centred),
        steps=check_integer("steps", steps),
        timesteps=timesteps,
        spacing=spacing,
        rho=rho,
        method=method,
        eta=eta,
        variance=variance,
        t_start=t_start,
        temperature=check_number("temperature", temperature, 0.0),
        noise_scale=check_numbers("noise_scale", noise_scale, 0.0),
        eps_scale=check_numbers("eps_scale", eps_scale, 0.0),
        clip=math.inf if clip is None else check_number("clip", clip, 0.0),
        guidance=check_number("guidance", guidance, -math.inf),
        guidance_interval=None if guidance_interval is None else check_interval("guidance_interval", guidance_interval),
        guide_scale=guide_scale,
        guide_interval=None if guide_interval is None else check_interval("guide_interval", guide_interval),
        regularise=regularise,
        regularise_interval=(
            None if regularise_interval is None else check_interval("regularise_interval", regularise_interval)
        ),
        regulariser=regulariser,
    )
    return _table(chain)


class _Chain(NamedTuple):
    """Checked arguments of `build_step_table`."""

    schedule: Schedule
    prediction: str
    centred: bool
    steps: int
    timesteps: tuple[int, ...] | None
    spacing: str | None
    rho: float
    method: str
    eta: Numbers
    variance: str
    t_start: int | None
    temperature: float
    noise_scale: Numbers
    eps_scale: Numbers
    clip: float
    guidance: float
    guidance_interval: tuple[int, int] | None
    guide_scale: float
    guide_interval: tuple[int, int] | None
    regularise: str
    regularise_interval: tuple[int, int] | None
    regulariser: str | None

    def kept(self) -> I64:
        """The timesteps, ascending."""
        if self.timesteps is not None or self.spacing is None:
            return listed_timesteps(self.timesteps or (), self.schedule.T)
        return kept_timesteps(self.schedule.alpha_bar, self.steps, self.spacing, self.t_start, self.rho)

    @property
    def end(self) -> float:
        """The level after the last step: 1, which returns x0, or that of t = 0 where the spacing ends there."""
        return float(self.schedule.alpha_bar[0]) if self.spacing in LEADING else 1.0

    def each_step(self, name: str, steps: int) -> F64 | float:
        """An option that is one number, or one a step."""
        value: Numbers = getattr(self, name)
        if not isinstance(value, tuple):
            return value
        if len(value) != steps:
            raise ArgumentError(f"{name} lists {len(value)} numbers; expected one, or {steps}, one a step")
        return np.array(value)


@lru_cache(maxsize=64)  # a service asks for the same few settings again and again; deriving one takes 0.3 ms
def _table(chain: _Chain) -> StepTable:
    kept = chain.kept()
    ascending = chain.schedule.alpha_bar[kept]
    levels = Levels(
        timesteps=kept[::-1].copy(),
        alpha_bar=ascending[::-1],
        previous=np.concatenate([[chain.end], ascending[:-1]])[::-1],
        prediction=chain.prediction,
        centred=chain.centred,
        eta=chain.each_step("eta", len(kept)),
        variance=chain.variance,
        noise_scale=chain.each_step("noise_scale", len(kept)),
        eps_scale=chain.each_step("eps_scale", len(kept)),
        guide_scale=_guide_scale(chain, kept[::-1]),
    )
    runs = _regularised(chain, levels.timesteps)
    with np.errstate(all="ignore"):  # rows of a schedule beyond float32 are refused below, with the field's name
        timesteps, exact, nets = _exact(chain, levels, runs)
        rows = exact.astype(np.float32)
    w = chain.guidance
    weights = np.tile(np.array([1.0 + w, -w] if w else [1.0], np.float32), (len(rows), 1))
    if chain.guidance_interval is not None:
        weights[~_within(chain, "guidance_interval", timesteps)] = 1.0, 0.0
    if nets is not None and w:
        weights[nets != OWN] = 1.0, 0.0
    check_rows(rows, guide=chain.guide_scale != 0.0)
    for array in (timesteps, rows, weights, *(() if nets is None else (nets,))):  # shared by every request for this chain
        array.setflags(write=False)
    return StepTable(timesteps, rows, weights, _start(chain), chain.method, chain.spacing, nets)


def _exact(chain: _Chain, levels: Levels, runs: NDArray[np.bool_]) -> tuple[I64, F64, I64 | None]:
    """Timesteps, rows in float64 and, where the regulariser runs at some of the steps' levels, the nets."""
    solver = METHODS[chain.method].solver
    if chain.regulariser is None or not runs.any():
        return *exact_rows(solver, levels, chain.clip), None
    return with_regulariser(
        levels, lambda of: exact_rows(solver, of, chain.clip)[1], chain.regularise, chain.regulariser, runs
    )


def exact_rows(solver: Callable[[Levels], Columns], levels: Levels, clip: float = math.inf) -> tuple[I64, F64]:
    """What a solver makes of these levels: timesteps int64 [R] and rows float64 [R, 31]."""
    columns = solver(levels)
    rows = np.zeros((len(columns.timesteps), len(ROW_FIELDS)))
    for name, values in {"clip": clip, "c_in": 1.0, **columns.fields}.items():
        rows[:, ROW_FIELDS.index(name)] = values
    if levels.centred:  # the image is x_0 without the centre that the chain carried along
        rows[-1, ROW_FIELDS.index("k_c")] -= 1.0
    return columns.timesteps, rows + 0.0  # + 0.0: no negative zeros


def check_table(table: StepTable, *, guide: bool = False, regulariser: bool = False) -> None:
    """Refuse a table that no executor can run; `guide`: whether there is a gradient g, `regulariser`: whether there is a
    second network. ArgumentError names the field."""
    calls = len(table.rows)
    for name, array, shape, dtype in (
        ("timesteps", table.timesteps, (calls,), np.int64),
        ("weights", table.weights, (calls, table.weights.shape[-1]), np.float32),
        ("rows", table.rows, (calls, len(ROW_FIELDS)), np.float32),
        *(() if table.nets is None else (("nets", table.nets, (calls,), np.int64),)),
    ):
        if array.shape != shape or array.dtype != dtype or not array.size:
            raise ArgumentError(
                f"{name} is {array.dtype} {list(array.shape)}; expected {np.dtype(dtype)} {list(shape)}, not empty"
            )
    if not np.isfinite(table.weights).all():
        raise ArgumentError("weights holds values that are NaN or infinite; expected finite numbers")
    known = NETS if regulariser else (OWN,)
    if table.nets is not None and not np.isin(table.nets, known).all():
        found = next(net for net in table.nets.tolist() if net not in known)
        raise ArgumentError(f"nets holds {found}; expected {' or '.join(map(str, known))}")
    check_rows(table.rows, guide=guide)


def _guide_scale(chain: _Chain, timesteps: I64) -> F64 | float:
    """What a guide's gradient is multiplied by in each row."""
    if chain.guide_interval is None:
        return chain.guide_scale
    return np.where(_within(chain, "guide_interval", timesteps), chain.guide_scale, 0.0)


def _regularised(chain: _Chain, timesteps: I64) -> NDArray[np.bool_]:
    """Whether the regulariser runs at the level that each step begins at: bool [S]."""
    runs = np.full(len(timesteps), chain.regularise != OFF)
    if chain.regularise == AFTER:
        runs[0] = False
        if len(timesteps) == 1:
            raise ArgumentError(
                "regularise is 'after' with one step, and nothing comes after the last; expected two steps or more, or "
                "regularise='before'"
            )
    if chain.regularise_interval is not None:
        there = timesteps if chain.regularise == OFF else visited(chain.regularise, timesteps)
        runs[len(timesteps) - len(there) :] &= _within(chain, "regularise_interval", there)
    return runs


# What each interval is of, and where that is not asked for.
_OF: dict[str, tuple[str, float | str]] = {
    "guidance_interval": ("guidance", 0.0),
    "guide_interval": ("guide_scale", 0.0),
    "regularise_interval": ("regularise", OFF),
}


def _within(chain: _Chain, name: str, timesteps: I64) -> NDArray[np.bool_]:
    """Which timesteps an interval holds. ArgumentError for one that says nothing."""
    (low, high), (by, none) = getattr(chain, name), _OF[name]
    found, T = f"{name} is ({low}, {high})", chain.schedule.T
    if not 0 <= low <= high < T:
        raise ArgumentError(f"{found}; expected two timesteps of 0 .. {T - 1}, the lower one first")
    if getattr(chain, by) == none:
        raise ArgumentError(f"{found}, but {by} is {none or 0}; expected {by} beside it. Pass {by}, or leave it out")
    within: NDArray[np.bool_] = (low <= timesteps) & (timesteps <= high)
    if not within.any():
        ends = f"{timesteps[0]} to {timesteps[-1]}"
        raise ArgumentError(f"{found}, which holds none of this chain's timesteps, {ends}; widen it")
    return within


def _start(chain: _Chain) -> Start:
    """x_T = temperature noise, or at t_start a sample of q(x_t | start) (DDPM eq. 4); + the centre where there is one."""
    centre = 1.0 if chain.centred else 0.0
    if chain.t_start is None:
        return Start(chain.temperature, 0.0, centre)
    alpha_bar = float(chain.schedule.alpha_bar[chain.t_start])
    return Start(chain.temperature * math.sqrt(1.0 - alpha_bar), math.sqrt(alpha_bar), centre)
