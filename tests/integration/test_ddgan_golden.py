"""A denoising diffusion GAN against its reference implementation: from a state dict to images, in every runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler, kernels
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError
from engine.feeds import noise_bytes, noise_feeds, setting_feeds
from tests import ddgan_models as golden
from tests.sampler_graphs import OrtSampler
from tests.samplers import ANY_BACKEND, EACH_BACKEND

Samplers = Callable[[str], Sampler]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the whole-sampler graph."""
    import torch

    from export.graphs.extra import GraphOptions

    torch.set_num_threads(1)
    whole = GraphOptions(whole_sampler=True)
    return golden.build_ddgan(tmp_path_factory.mktemp("ddgan"), graph_options=whole)


@pytest.fixture(scope="module")
def samplers(bundle: Path) -> Iterator[Samplers]:
    """samplers(backend): opened once."""
    opened: dict[str, Sampler] = {}

    def get(backend: str) -> Sampler:
        if backend not in opened:
            opened[backend] = Sampler(bundle, backend, "f32", threads=1)
        return opened[backend]

    yield get
    for sampler in opened.values():
        sampler.close()


@EACH_BACKEND
def test_the_chain_equals_the_reference(backend: str, samplers: Samplers) -> None:
    states: list[np.ndarray] = []
    batch = samplers(backend).sample(2, callback=lambda info: states.append(info.x.copy()), **golden.given())
    np.testing.assert_array_equal(batch.timesteps, [3, 2, 1, 0])
    for row, expected in enumerate(golden.expected()["states"]):
        np.testing.assert_allclose(states[row], expected, rtol=0, atol=golden.tolerance(), err_msg=f"row {row}")
    np.testing.assert_allclose(batch.x, golden.expected()["x0"][-1], rtol=0, atol=golden.tolerance())


def test_the_whole_sampler_as_one_graph(bundle: Path, samplers: Samplers) -> None:
    opened, sampler = Bundle.open(bundle), samplers(ANY_BACKEND)
    run = OrtSampler(opened.read_graph("sampler"))
    feeds, table = setting_feeds(opened.manifest, {})
    seeds = np.array([5, 6], np.uint64)
    drawn = noise_feeds(opened.manifest, table, seeds)
    assert sum(array.nbytes for array in drawn.values()) == noise_bytes(opened.manifest, table, 2)
    same = sampler.sample(2, seed=5)
    np.testing.assert_allclose(run(feeds | drawn)["x"], same.x, rtol=0, atol=golden.tolerance())
    np.testing.assert_array_equal(drawn["z"], same.values["z"])
    replayed = feeds | noise_feeds(opened.manifest, table, seeds, None, {"z": golden.latents()}) | golden.given()
    np.testing.assert_allclose(run(replayed)["x"], golden.expected()["states"][-1], rtol=0, atol=golden.tolerance())


def test_latents_are_drawn_anew_in_every_step_from_a_stream_of_their_own(samplers: Samplers) -> None:
    """A sample's are the same in any batch; each step's are those of its own place in the stream."""
    sampler = samplers(ANY_BACKEND)
    batch = sampler.sample(3, seed=7)
    z = batch.values["z"]
    assert z.shape == (3, 4, 8)
    for sample, seed in enumerate((7, 8, 9)):
        for row in range(4):
            expected = kernels.normal(np.array([seed], np.uint64), kernels.STREAM_FRESH, row, 8)[0]
            np.testing.assert_array_equal(z[sample, row], expected)
    alone = sampler.sample(1, seed=8)
    np.testing.assert_array_equal(alone.values["z"][0], z[1])
    np.testing.assert_allclose(alone.x[0], batch.x[1], rtol=0, atol=1e-5)
    again = sampler.sample(3, seed=7, z=z)
    np.testing.assert_array_equal(again.x, batch.x)
    shared = sampler.sample(2, seed=7, z=z[0])
    np.testing.assert_array_equal(shared.values["z"][1], z[0])
    fewer = sampler.sample(1, seed=7, steps=2, method="ddpm")
    np.testing.assert_array_equal(fewer.values["z"], z[:1, :2])
    sampler.warmup()


def test_large_requests_run_in_parts(bundle: Path, samplers: Samplers) -> None:
    expected = samplers(ANY_BACKEND).sample(3, seed=7)
    with Sampler(bundle, ANY_BACKEND, "f32", threads=1, max_batch=2) as sampler:
        batch = sampler.sample(3, seed=7)
    np.testing.assert_array_equal(batch.values["z"], expected.values["z"])
    np.testing.assert_allclose(batch.x, expected.x, rtol=0, atol=1e-5)


def test_what_a_request_cannot_say(samplers: Samplers) -> None:
    sampler = samplers(ANY_BACKEND)
    assert [str(spec) for spec in sampler.inputs] == ["z float32[batch, steps, 8]"]
    with pytest.raises(ArgumentError, match=r"z holds 3 steps; this run has 4\. Pass one slice a step"):
        sampler.sample(z=golden.latents()[:, :3])
    with pytest.raises(ArgumentError, match=r"z has shape \[2, 4, 7\]; expected float32 \[N, steps, 8\]"):
        sampler.sample(z=golden.latents()[..., :7])
    with pytest.raises(ArgumentError, match="prior is 'bundle', but no input is drawn here"):
        sampler.sample(prior="bundle")
    with pytest.raises(ArgumentError, match="guidance is 1, but nothing"):
        sampler.sample(guidance=1)
    with pytest.raises(ArgumentError, match="needs an input that is drawn"):
        sampler.draw(1)


def test_the_ends_of_a_path_are_their_own_samples(samplers: Samplers) -> None:
    """Between two seeds x_T goes along the arc, with the latents of one seed."""
    sampler = samplers(ANY_BACKEND)
    path = sampler.interpolate(3, 4, 3, seed=3)
    np.testing.assert_allclose(path.x[0], sampler.sample(seed=3).x[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(path.values["z"][2], path.values["z"][0])


def test_the_native_engine_has_no_operations_for_it() -> None:
    from export.families.ddgan import recognise
    from export.native import builder

    model = recognise(golden.held(), None, "ema", golden.SAID).load()
    assert str(builder.unfit(model)).startswith("graph generator: found a GeneratorStep, expected a network that the native")
