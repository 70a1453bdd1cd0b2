"""Latents drawn from a bundle's prior: C++ and Python agree bit for bit, whatever the mixture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.bundle.prior import read_prior
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from tests.cpp.capi import Library, open_c
from tests.cpp.fuzz_cpp_bundle import PRIOR, prior_of
from tests.kernel_choice import component_words
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE
SEEDS = np.array([*range(150), 2**32 - 1, 2**32, 2**63, 2**64 - 1], np.uint64)


@pytest.mark.parametrize("components", [1, 2, 60])
def test_latents_are_the_same_bits(
    cpp_library: Path, native_bundle: Callable[..., Path], tmp_path: Path, components: int
) -> None:
    source = native_bundle("form1")
    manifest = json.loads((source / "manifest.json").read_text())
    (drawn,) = manifest["inputs"]
    said = {"input": drawn["name"], "kind": "gaussian_mixture", "components": components, "file": PRIOR}
    manifest["prior"] = said
    files: dict[str, bytes | Path] = {path.name: path for path in source.iterdir() if path.name != "manifest.json"}
    files[PRIOR] = prior_of(drawn["shape"][1], components)
    write_bundle(tmp_path / "prior.bundle", manifest, files)
    prior = read_prior(Bundle.open(tmp_path / "prior.bundle"))
    assert prior is not None
    chosen = np.searchsorted(prior.thresholds, component_words(SEEDS), side="right")
    assert len(set(chosen.tolist())) > components * 0.6, "the seeds are to reach most components"
    with open_c(Library(cpp_library), tmp_path / "prior.bundle") as sampler:
        z = sampler.sample(room=len(SEEDS), seed=SEEDS, steps=1, spacing="linspace").values[drawn["name"]]
    assert np.array_equal(z.view(np.uint32), prior.draw(SEEDS).view(np.uint32))
