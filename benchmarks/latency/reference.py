"""The networks as the reference runs them: a DiffuseVAE checkpoint's torch modules, and DDIM as a plain loop.

What the contestants other than the engine have in common. The loop reads the engine's own step table, so that all
compute the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.bundle.manifest import Manifest
from engine.kernels import ROW_FIELDS
from engine.solver.table import StepTable, build_step_table

# Values by which the pipeline of a DiffuseVAE feeds its network: the VAE's image, and z where the network takes it too.
RECON, Z = "recon", "z"


def options_of(manifest: Manifest) -> dict[str, Any]:
    """What the weights of a checkpoint cannot tell, as its bundle recorded it."""
    unet = manifest.architecture["unet"]
    return {"heads": unet["heads"], "image_size": unet["image_size"]}


def networks(checkpoint: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """UNet and VAE (None where there is none) of a checkpoint, in torch."""
    from export.families.diffusevae import recognise
    from export.read.checkpoint import read_checkpoint

    return recognise(read_checkpoint(checkpoint), None, "ema", options).networks()


class Chain:
    """Deterministic DDIM from noise, evenly spaced, over the schedule of a bundle: what is timed."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._schedule = manifest.schedule.schedule()

    def run(self, steps: int, x_T: Any, c: Any, network: Callable[[Any, int], Any], limit: Callable[..., Any]) -> Any:
        """x_0 from unit noise, in numpy or torch. `network(x, t)` is called once a step; c is the centre, 0 without one."""
        table = self._table(steps)
        x = table.start.k_noise * x_T + table.start.k_centre * c
        for t, row in zip(table.timesteps.tolist(), table.rows.tolist(), strict=True):
            x = apply_row(row, x, network(x, t), c, limit)
        return x

    def _table(self, steps: int) -> StepTable:
        state = self._manifest.pipeline.state
        return build_step_table(
            self._schedule,
            prediction=self._manifest.prediction,
            centred=state.centre is not None,
            steps=steps,
            spacing="linspace",
            clip=state.clip,
        )


def apply_row(row: Sequence[float], x: Any, e: Any, c: Any, limit: Callable[..., Any]) -> Any:
    """One plain row without noise (kernels.ROW_FIELDS): x_0, limited, then the next x."""
    k = dict(zip(ROW_FIELDS, row, strict=True))
    x0 = limit(k["p_x"] * x + k["p_e"] * e + k["p_c"] * c, -k["clip"], k["clip"])
    return k["k_x0"] * x0 + k["k_x"] * x + k["k_e"] * e + k["k_c"] * c
