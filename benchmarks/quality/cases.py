"""The settings that the quality benchmark compares, each one row of its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.quality.peers import PEERS
from export.fitting.fit import CALLS

VAE = "VAE alone"
BASELINE = "unconditional"
NOISE = "DiffuseVAE from noise"
RECON = "DiffuseVAE from reconstruction"
CURVES = (BASELINE, NOISE, RECON)

STEPS = (3, 5, 10, 25, 50)
FEW = (3, 5, 10)
START = 400  # where plain chains and peers join the noised reconstruction
STANDARD = "standard"  # N(0, I) in place of the fitted prior


@dataclass(frozen=True)
class Case:
    """One setting of a curve; steps, the network calls of a sample, are 0 for the VAE without refining.

    fitted  the bundle's own setting of so many steps, which says everything else
    peer    a scheduler of diffusers, which chooses its own timesteps from noise or from about t_start
    prior   "standard" where z is N(0, I) although the bundle has a fitted prior
    """

    curve: str
    steps: int
    spacing: str = "uniform"
    t_start: int | None = None
    eta: float = 0.0
    prior: str | None = None
    fitted: bool = False
    peer: str | None = None

    @property
    def key(self) -> str:
        """A name that is unique among the cases and stays the same between runs."""
        parts = [self.curve.lower().replace(" ", "-")]
        if self.steps:
            parts += [f"{self.steps}", self.kind]
        if self.t_start is not None:
            parts.append(f"t{self.t_start}")
        if self.eta:
            parts.append(f"eta{self.eta:g}")
        if self.prior is not None:
            parts.append(f"z-{self.prior}")
        return "/".join(parts)

    @property
    def kind(self) -> str:
        """What chooses the timesteps: the fitted setting, a peer, or a spacing."""
        return "fitted" if self.fitted else self.peer or self.spacing

    @property
    def options(self) -> dict[str, Any]:
        """What `Sampler.sample` is called with; for a peer, the engine's chain of as many calls."""
        if self.fitted:
            return {"setting": "fitted", "steps": self.steps}
        plain = {"steps": self.steps, "method": "ddim", "spacing": self.spacing, "t_start": self.t_start, "eta": self.eta}
        return {"setting": "plain", **plain}


def plain(curve: str, steps: int) -> Case:
    """The textbook's setting of a curve: DDIM in even strides from noise, with noisy steps from the reconstruction."""
    return Case(RECON, steps, "trailing", START, eta=1.0) if curve == RECON else Case(curve, steps)


def fitted(curve: str, steps: int) -> Case:
    """The setting that was fitted for this count of calls."""
    return Case(curve, steps, fitted=True)


def full() -> list[Case]:
    """Every case, the most telling ones first: an interrupted run has those."""
    cases = [Case(VAE, 0)]
    cases += [make(curve, steps) for steps in FEW for curve in CURVES for make in (fitted, plain)]
    # The setting that the shipped bundle recorded before there were fitted ones.
    cases += [Case(RECON, 5, "trailing", 300, eta=1.0)]
    cases += [plain(BASELINE, 50)]  # what few steps are held against
    cases += [
        Case(curve, steps, "trailing", START if curve == RECON else None, peer=peer.name)
        for steps in FEW for curve in (NOISE, RECON) for peer in PEERS
    ]  # fmt: skip
    cases += [fitted(curve, steps) for steps in CALLS if steps not in FEW for curve in CURVES]
    cases += [Case(VAE, 0, prior=STANDARD), Case(RECON, 5, "trailing", START, eta=1.0, prior=STANDARD)]
    rest = [plain(curve, steps) for steps in STEPS if steps not in FEW for curve in CURVES]
    return cases + [case for case in rest if case not in cases]


def quick() -> list[Case]:
    """A handful of cases: enough to see the shape of the plot."""
    cases = [Case(VAE, 0)]
    cases += [make(curve, steps) for steps in FEW[:2] for curve in CURVES for make in (fitted, plain)]
    return cases + [case for case in full() if case.peer == PEERS[1].name and case.steps == FEW[0]]
