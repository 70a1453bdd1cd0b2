"""How is an image sampled? The loop of DiffuseVAE's second stage, one comment a line of the algorithm.

The solver is not here: each step applies one row of a `StepTable` (see engine/steps.py for what a row holds),
so DDIM, DDPM, both formulations and truncated chains all run through these lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import kernels
from engine.backends import Graph
from engine.errors import Cancelled, NumericsError
from engine.network import Workspace, ask_for
from engine.result import F32, StepInfo, Timings
from engine.solver.table import Start, StepTable

K_PREV = kernels.ROW_FIELDS.index("k_prev")

Watch = Callable[[StepInfo], object]


@dataclass(frozen=True)
class Chain:
    """What a run of the loop needs beside its buffers; all of it is decided before the first step.

    embeddings  float32 [S, 1 or lanes, R]: the timestep table's rows, one slice a step
    seeds       uint64 [n]: each sample's noise stream, generated inside the update where a step's sigma is
                not 0
    noise       float32 [S, n or 1, 3, H, W] in place of the seeds' streams, or None
    watch       called after every step; None when nobody looks. A true answer stops the run
    where       names backend and precision in error messages
    """

    table: StepTable
    denoiser: Graph
    embeddings: F32
    seeds: npt.NDArray[np.uint64]
    noise: F32 | None = None
    guidance: float = 0.0
    threads: int = 1
    watch: Watch | None = None
    first: int = 0
    where: str = ""


def start_state(start: Start, work: Workspace, x_T: F32, image: F32 | None) -> None:
    """x = k_noise * x_T + k_image * image + k_cond * cond, in place in the workspace."""
    np.multiply(x_T, np.float32(start.k_noise), out=work.x)
    for k, source in ((start.k_image, image), (start.k_cond, work.cond)):
        if k != 0.0 and source is not None:
            work.x += np.float32(k) * source


def run_chain(chain: Chain, work: Workspace, timings: Timings) -> F32:
    """Take `work.x` from x_T to x_0 in place and return it: float32 [n, 3, H, W].

    A denoiser that can run whole chains does so in one call when nobody watches; its result is the same, bit for bit.
    Raises NumericsError when the denoiser returns NaN or infinity, Cancelled when `watch` asks to stop, and
    whatever `watch` itself raises. The workspace can be used again after any of them.
    """
    run_steps = getattr(chain.denoiser, "run_steps", None)
    if run_steps is not None and chain.watch is None:
        return _run_at_once(chain, run_steps, work, timings)
    ask = ask_for(work)
    table = chain.table
    x0, x0_prev = work.x0, work.x0_prev
    for i, (t, row) in enumerate(zip(table.timesteps, table.rows, strict=True)):
        asked = perf_counter()
        # eps = eps_theta(x_t, t, cond), and without the condition where guidance needs it
        eps, eps_uncond = ask(chain.denoiser, work, chain.embeddings[i], timings)
        answered = perf_counter()
        # eps = eps_c + w (eps_c - eps_u);  x_0 = clip(p . (x, eps, cond));
        # x_{t-1} = k . (x_0, x_0 of the step before, x, eps, cond) + sigma * noise,  noise ~ N(0, I)
        finite = kernels.update(
            row,
            work.x,
            eps,
            eps_uncond=eps_uncond,
            guidance=chain.guidance,
            cond=work.cond,
            x0_prev=x0_prev if row[K_PREV] != 0.0 else None,
            noise=None if chain.noise is None else chain.noise[i],
            seeds=chain.seeds if chain.noise is None else None,
            step=i if chain.noise is None else None,
            out=work.x,
            x0_out=x0 if chain.watch is not None or table.needs_x0_prev else None,
            threads=chain.threads,
        )
        timings.add_step(i, 1e3 * (answered - asked))
        timings.update_ms += 1e3 * (perf_counter() - answered)
        if not finite:
            raise NumericsError(_not_finite(chain, i, int(t)))
        if chain.watch is not None:
            _report(chain, i, int(t), work.x, x0)
        x0, x0_prev = x0_prev, x0
    return work.x


def _run_at_once(chain: Chain, run_steps: Callable[..., Any], work: Workspace, timings: Timings) -> F32:
    """The same loop inside the denoiser's backend: one call for all steps, guidance always in one batch of 2N."""
    x, cond = work.x_stack, work.cond_stack
    if work.guided and not work.folded:
        x = np.concatenate([work.x, work.x])
        cond = None if work.cond is None else np.concatenate([work.cond, np.zeros_like(work.cond)])
    times = run_steps(
        rows=np.ascontiguousarray(chain.embeddings),
        coefficients=np.ascontiguousarray(chain.table.rows),
        x=x,
        cond=cond,
        samples=len(work.x),
        keep_x0=chain.table.needs_x0_prev,
        seeds=chain.seeds if chain.noise is None else None,
        noise=None if chain.noise is None else np.ascontiguousarray(chain.noise),
        guidance=chain.guidance,
    )
    for i, milliseconds in enumerate(times.network_ms):
        timings.add_step(i, milliseconds)
    timings.update_ms += times.update_ms
    timings.network_calls += chain.table.steps
    if times.failed_step is not None:
        raise NumericsError(_not_finite(chain, times.failed_step, int(chain.table.timesteps[times.failed_step])))
    if x is not work.x_stack:
        np.copyto(work.x, x[: len(work.x)])
    return work.x


def _report(chain: Chain, i: int, t: int, x: F32, x0: F32) -> None:
    """Show a finished step to the watcher; stop when it says so."""
    views = x.view(), x0.view()
    for view in views:
        view.flags.writeable = False
    info = StepInfo(i, chain.table.steps, t, *views, first=chain.first)
    if chain.watch is not None and chain.watch(info):
        raise Cancelled(
            f"The callback stopped the run after step {i + 1} of {chain.table.steps} (timestep {t}). "
            f"No batch was made; the sampler is ready for the next call."
        )


def _not_finite(chain: Chain, i: int, t: int) -> str:
    return (
        f"The graph 'denoiser' ({chain.where}) returned NaN or infinity at step {i + 1} of "
        f"{chain.table.steps} (timestep {t}); every value was expected to be finite. Open the bundle with "
        f"precision='f32' if it ran in another; if it persists, check the z, x_T and noise you passed, and "
        f"build the bundle again from its checkpoint."
    )
