"""The toy family (tests/toy_family.py) as one whole-sampler graph, composed from its pipeline, in both runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from engine import Sampler
from engine.bundle.reader import Bundle
from engine.errors import BundleError
from engine.feeds import noise_feeds, setting_feeds
from export.graphs.parity import LOADERS
from export.graphs.roles import Role
from export.graphs.sampler_graph import compose_sampler
from export.graphs.sampler_role import sampler_role
from tests.manifests import edit
from tests.samplers import EACH_BACKEND
from tests.toy_family import BACKENDS, IMAGE, STATE, Reference, build_family

SEEDS = np.array([5, 2**63, 9], np.uint64)
LABELS = np.array([3, 10, 0])


def compose(bundle: Bundle) -> bytes:
    """The sampler graph over the bundle's own graphs."""
    manifest = bundle.manifest
    graphs = {name: manifest.graphs[name] for name in manifest.pipeline.graphs}
    roles = {name: Role(name, nn.Identity(), spec.inputs, spec.outputs) for name, spec in graphs.items()}
    role = sampler_role(manifest.inputs, manifest.pipeline, roles)
    return compose_sampler(role, manifest.pipeline, {name: bundle.read_graph(name) for name in graphs})


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with its whole-sampler graph in it."""
    folder = tmp_path_factory.mktemp("family")
    plain = Bundle.open(build_family(folder / "plain.bundle"))
    return build_family(folder / "whole.bundle", sampler=compose(plain))


def run(bundle: Bundle, backend: str, **setting: Any) -> dict[str, np.ndarray]:
    """The graph's outputs for SEEDS and LABELS."""
    feeds, table = setting_feeds(bundle.manifest, setting)
    feeds |= noise_feeds(bundle.manifest, table, SEEDS, None, {"label": LABELS})
    found: dict[str, np.ndarray] = LOADERS[backend](bundle.read_graph("sampler"))(feeds)
    return found


@EACH_BACKEND
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"steps": 5, "guidance": 1.5},
        {"steps": 4, "method": "ddpm"},
        {"steps": 6, "method": "dpmpp_2m", "guidance": -0.5},
        {"steps": 3, "eta": 0.7, "guidance": 2.0, "temperature": 0.8},
    ],
)
def test_it_is_the_sampler(family: Path, backend: str, setting: dict[str, Any]) -> None:
    bundle = Bundle.open(family)
    found = run(bundle, backend, **setting)
    with Sampler(bundle, backend, "f32", 1) as sampler:
        batch = sampler.sample(seed=SEEDS, label=LABELS, **setting)
    assert sorted(found) == ["images", "x"], "there is no start value"
    assert (found["x"].shape, found["images"].shape) == ((3, *STATE), (3, *IMAGE[1:], IMAGE[0]))
    np.testing.assert_allclose(found["x"], batch.x, rtol=2e-5, atol=2e-5)
    assert np.abs(found["images"].astype(int) - batch.images).max() <= 1


@EACH_BACKEND
def test_it_is_the_reference(family: Path, backend: str) -> None:
    bundle, reference = Bundle.open(family), Reference()
    feeds, table = setting_feeds(bundle.manifest, {"steps": 7, "spacing": "trailing", "guidance": 1.0})
    feeds |= noise_feeds(bundle.manifest, table, SEEDS, None, {"label": LABELS})
    found = LOADERS[backend](bundle.read_graph("sampler"))(feeds)
    expected = reference.sample(table.timesteps.tolist(), feeds["x_T"], LABELS, feeds["style"], guidance=1.0)
    np.testing.assert_allclose(found["x"], expected, rtol=2e-5, atol=2e-5)
    assert np.abs(found["images"].astype(int) - reference.pixels(expected)).max() <= 1


@pytest.mark.parametrize("setting", [{}, {"method": "ddpm", "guidance": 1.5}, {"method": "ddpm", "variance": "fixedlarge"}])
def test_a_learned_variance(tmp_path: Path, setting: dict[str, Any]) -> None:
    plain = Bundle.open(build_family(tmp_path / "plain.bundle", learned=True))
    bundle = Bundle.open(build_family(tmp_path / "whole.bundle", learned=True, sampler=compose(plain)))
    for backend in BACKENDS:
        with Sampler(bundle, backend, "f32", 1) as sampler:
            batch = sampler.sample(seed=SEEDS, label=LABELS, **setting)
        np.testing.assert_allclose(run(bundle, backend, **setting)["x"], batch.x, rtol=2e-5, atol=2e-5)


def test_a_null_that_is_each_samples_own(tmp_path: Path) -> None:
    bundle = Bundle.open(build_family(tmp_path / "half.bundle", style_null=False))
    feeds, table = setting_feeds(bundle.manifest, {"steps": 4, "guidance": 1.0})
    feeds |= noise_feeds(bundle.manifest, table, SEEDS, None, {"label": LABELS})
    found = LOADERS["onnxruntime"](compose(bundle))(feeds)
    chain = Reference().sample(
        table.timesteps.tolist(), feeds["x_T"], LABELS, feeds["style"], guidance=1.0, style_null=False
    )
    np.testing.assert_allclose(found["x"], chain, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("field", "value"), [("0.dtype", "float32"), ("0.name", "lable"), ("2.shape", ["batch", 3, 6, 8])])
def test_another_signature_is_refused(family: Path, field: str, value: object, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bundle"
    copy.mkdir()
    for file in family.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    edit(copy, f"graphs.sampler.inputs.{field}", value)
    with pytest.raises(BundleError, match=r"graphs\.sampler\.inputs: found .*by inputs and pipeline"):
        Bundle.open(copy)
