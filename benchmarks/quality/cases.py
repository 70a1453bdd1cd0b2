"""The settings that the quality benchmark compares, each one row of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VAE = "VAE alone"
BASELINE = "unconditional DDIM"
NOISE = "DiffuseVAE from noise"
RECON = "DiffuseVAE from reconstruction"
CURVES = (VAE, BASELINE, NOISE, RECON)

STEPS = (3, 5, 10, 25, 50)
FEW = (3, 5, 10)
FEWEST = (3, 5)
STARTS = (200, 300, 400, 500, 600)
GUIDANCE = 0.5
PLAIN = "standard"  # N(0, I) in place of the fitted prior
FEW_CALLS = 5  # what counts as few-step when a default is recommended: network calls a sample, guidance counting twice


@dataclass(frozen=True)
class Case:
    """One setting: a curve of the plot and what `Sampler.sample` is called with; steps 0 is the VAE without refining."""

    curve: str
    steps: int
    spacing: str = "uniform"
    t_start: int | None = None
    guidance: float = 0.0
    eta: float = 0.0
    prior: str | None = None  # "standard" where z is N(0, I) although the bundle has a fitted prior

    @property
    def key(self) -> str:
        """A name that is unique among the cases and stays the same between runs."""
        parts = [self.curve.lower().replace(" ", "-")]
        if self.steps:
            parts += [f"{self.steps}", self.spacing]
        if self.t_start is not None:
            parts.append(f"t{self.t_start}")
        if self.guidance:
            parts.append(f"w{self.guidance:g}")
        if self.eta:
            parts.append(f"eta{self.eta:g}")
        if self.prior is not None:
            parts.append(f"z-{self.prior}")
        return "/".join(parts)

    @property
    def network_calls(self) -> int:
        """Evaluations of the denoiser for one sample."""
        return self.steps * (2 if self.guidance else 1)

    @property
    def plain(self) -> bool:
        """Whether it lies on its curve of the plot; the others are variations of a point on it."""
        usual = self.guidance == 0.0 and self.eta == 0.0 and self.prior is None
        return usual and self.spacing == default_spacing(self.t_start)

    def setting(self) -> dict[str, Any]:
        """The setting in the form of a bundle's recorded defaults."""
        return {
            "steps": self.steps,
            "method": "ddim",
            "spacing": self.spacing,
            "t_start": self.t_start,
            "eta": self.eta,
            "temperature": 1.0,
            "guidance": self.guidance,
        }


def default_spacing(t_start: int | None) -> str:
    """Uniform strides as the reference (they exist for every count in STEPS); from t_start evenly, no call at t = 0."""
    return "uniform" if t_start is None else "trailing"


def full() -> list[Case]:
    """Every case, the most telling ones first: an interrupted run has those."""
    cases = [Case(VAE, 0)]
    cases += [Case(curve, steps) for steps in FEW for curve in (NOISE, BASELINE)]
    cases += [Case(RECON, steps, "trailing", t) for steps in FEWEST for t in STARTS]
    cases += [Case(RECON, steps, "trailing", t, eta=1.0) for steps in FEWEST for t in STARTS[1:4]]
    cases += [Case(RECON, 10, "trailing", t, eta=eta) for t in STARTS[2:] for eta in (0.0, 1.0)]
    cases += [Case(VAE, 0, prior=PLAIN), Case(RECON, 5, "trailing", 500, eta=1.0, prior=PLAIN), Case(NOISE, 10, prior=PLAIN)]
    cases += [Case(curve, steps, eta=1.0) for steps in FEW for curve in (NOISE, BASELINE)]
    cases += [Case(RECON, 5, "linspace", 400), Case(RECON, 5, "trailing", 400, GUIDANCE)]
    cases += [Case(NOISE, 5, "quad"), Case(NOISE, 5, "trailing")]
    cases += [Case(curve, steps) for steps in STEPS if steps not in FEW for curve in (NOISE, BASELINE)]
    cases += [Case(RECON, steps, "trailing", 400) for steps in STEPS if steps not in FEW]
    return cases


def quick() -> list[Case]:
    """A handful of cases: enough to see the shape of the plot."""
    cases = [Case(VAE, 0)]
    cases += [Case(curve, steps) for steps in (3, 10) for curve in (NOISE, BASELINE)]
    return cases + [Case(RECON, steps, "trailing", t) for steps in FEWEST for t in (300, 500)]


def recommend(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of lowest FD among the DiffuseVAE settings of at most FEW_CALLS network calls; None without any."""
    usual = [row for row in rows if row["curve"] in (NOISE, RECON) and row["prior"] is None]
    few = [row for row in usual if row["network_calls"] <= FEW_CALLS]
    return min(few, key=lambda row: float(row["fd"])) if few else None
