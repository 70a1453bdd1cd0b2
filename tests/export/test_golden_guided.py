"""Guided chains of the reference by rows and autograd: the arithmetic of a guide, and of entropy-aware scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine import kernels
from engine.kernels import ROW_FIELDS
from engine.solver.guides import MODES, scaled_gradient
from engine.solver.table import build_step_table
from export.families.adm import recognise
from export.guides import Guide
from tests import adm_guides as guided
from tests import adm_models as golden

K_G = ROW_FIELDS.index("k_g")


@pytest.mark.parametrize(("folder", "chain"), guided.CHAINS)
def test_guided_chains_are_the_references(folder: str, chain: str) -> None:
    torch.set_num_threads(1)
    model, classifier, scale = guided.case(folder, chain)
    found = recognise(golden.held(model), None, "ema", golden.said(model))
    network, guide, of = found.network(), guided.network(classifier, scale), found.architecture
    options = guided.options(folder, chain)
    mode, setting = options.get("guide_mode", MODES[0]), golden.setting(folder, chain)
    table = build_step_table(of.schedule.schedule(), **setting, guide_scale=options["guide_scale"])
    x, labels = options["x_T"].copy(), torch.from_numpy(options["label"])
    rescaled = 1000 / of.schedule.T if of.rescale else 1.0
    recorded = Guide.__new__(Guide)  # by autograd: its recording is another test's
    recorded.__dict__["classifier"] = [guide.requires_grad_(False)]
    for i, (t, row) in enumerate(zip(table.timesteps, table.rows, strict=True)):
        time, at = torch.full((2,), float(t) * rescaled), torch.from_numpy(x.copy())
        with torch.no_grad():
            e, v = (part.contiguous().numpy() for part in network(
                at, time, labels=None if of.unet.classes is None else labels
            ).chunk(2, dim=1))  # fmt: skip
        g, entropy = (part.numpy() for part in recorded.by_autograd(at, labels, guide.timestep_rows(time[:1])))
        if f"{chain}_entropy" in golden.expected(folder):
            np.testing.assert_allclose(entropy, golden.expected(folder)[f"{chain}_entropy"][i], rtol=2e-4, atol=1e-6)
        assert row[K_G] != 0, "the last row is guided too"
        g = scaled_gradient(row, g, v, mode, entropy, 5, lambda: x)
        assert kernels.update(row, x, e, g=g, v=v, noise=options["noise"][i])
        if i in golden.states(folder, chain):
            expected, limit = golden.states(folder, chain)[i], golden.tolerance(folder, chain)
            np.testing.assert_allclose(x, expected, rtol=0, atol=limit, err_msg=f"row {i}")
