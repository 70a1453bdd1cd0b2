"""A denoising diffusion GAN against its reference implementation: from a state dict to images, in every runtime and on the
native engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler, kernels
from engine.backends.native.backend import Native
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError
from engine.feeds import noise_bytes, noise_feeds, setting_feeds
from tests import ddgan_models as golden
from tests.latent_runs import difference
from tests.native_models import NEEDS_NATIVE, PATHS
from tests.sampler_graphs import OrtSampler
from tests.samplers import ANY_BACKEND, EACH_BACKEND

BF16, INT8 = 1.5e-2, 4e-2  # of networks, and of the chain, whose steps each make x0 anew; found up to 5.1e-3 in bf16
Samplers = Callable[..., Sampler]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the whole-sampler graph, and native engines where they can be run."""
    import torch

    from export.graphs.extra import GraphOptions

    torch.set_num_threads(1)
    whole, folder = GraphOptions(whole_sampler=True), tmp_path_factory.mktemp("ddgan")
    native = Native.available()[0]
    more = {"backends": ("onnxruntime", "openvino", "native"), "precisions": ("bf16", "int8")} if native else {}
    return golden.build_ddgan(folder, graph_options=whole, if_fit=True, **more)


@pytest.fixture(scope="module")
def samplers(bundle: Path) -> Iterator[Samplers]:
    """samplers(backend, precision): opened once."""
    opened: dict[tuple[str, str], Sampler] = {}

    def get(backend: str, precision: str = "f32") -> Sampler:
        key = (backend, precision)
        if key not in opened:
            opened[key] = Sampler(bundle, backend, precision, threads=1)
        return opened[key]

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


# ---- the native engine -----------------------------------------------------------------------------


@functools.cache
def generator() -> tuple[Any, Any, np.ndarray]:
    """The generator, its program, and the rows of all timesteps with the first step's latents, [T, N, R]."""
    import torch

    from export.families.ddgan import recognise
    from export.native import builder

    roles = recognise(golden.held(), None, "ema", golden.SAID).load().roles
    z = torch.from_numpy(golden.latents())[:, :1].expand(-1, 4, -1)
    (rows,) = roles["generator_table"]({"timesteps": torch.arange(4), "z": z}).values()
    return roles["generator"], builder.lower(roles["generator"]), rows.numpy()


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
def test_the_generator_in_bf16(path: str, force_isa: Callable[[str], str]) -> None:
    from export.native.measure import open_assembled

    force_isa(path)
    role, program, rows = generator()
    x = golden.expected()["x_T"]
    with open_assembled(role, program, "bf16") as graph:
        for t, expected in enumerate(golden.expected()["probe_x0"]):
            (found,) = graph(x=x, row=rows[t]).values()
            assert difference(found, expected) < BF16
            np.testing.assert_array_equal(graph(x=x[1:], row=rows[t, 1:])["x0"], found[1:], "the bits of a batch")


@NEEDS_NATIVE
@pytest.mark.parametrize(("precision", "bound"), [("bf16", BF16), ("int8", INT8)])
def test_the_chain_on_the_native_engine(precision: str, bound: float, bundle: Path, samplers: Samplers) -> None:
    states: list[np.ndarray] = []
    sampler = samplers("native", precision)
    engines = [engine for engine in Bundle.open(bundle).manifest.engines if engine.precision in (precision, "f32")]
    assert {engine.graph for engine in engines if engine.runs_on} == {"generator_table"}
    sampler.sample(2, callback=lambda info: states.append(info.x.copy()), **golden.given())
    for row, expected in enumerate(golden.expected()["states"]):
        assert difference(states[row], expected) < bound, row
    alone = sampler.sample(2, **golden.given())
    np.testing.assert_array_equal(alone.x, states[-1], "the loop in one call")
    batch = sampler.sample(3, seed=7)
    np.testing.assert_array_equal(sampler.sample(1, seed=8).x[0], batch.x[1], "the bits of a batch")
