"""The whole-sampler graph against the reference implementation's chains, and against `Sampler.sample`.

Bounds as in test_golden.py: clipping x_0 turns a last-bit difference into a visible one in single pixels, so what must hold
is the distribution of the error.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engine import Sampler, kernels
from engine.bundle.reader import Bundle
from engine.cli.main import cli
from engine.feeds import no_noise, noise_feeds, setting_feeds
from engine.solver.noise import resolve_seeds
from tests.integration.test_golden import CASES, GOLDEN, assert_close_in_distribution, chains, parse
from tests.sampler_graphs import OrtSampler, compose

ROOT = Path(__file__).parents[2]
GoldenBundle = Callable[[str], Path]
Composed = Callable[[str], tuple[Bundle, OrtSampler]]

# Sampler.sample's options: other than the golden chains, all with noise of the samples' own seeds.
RANDOM = {
    "recon start": {"timesteps": [400, 150, 25], "t_start": 400},
    "guidance": {"steps": 4, "spacing": "quad", "guidance": 1.5},
    "guided from recon, eta": {
        "steps": 3, "t_start": 500, "eta": [1.0, 0.5, 0.0], "guidance": -0.25, "temperature": 0.8, "noise_scale": 0.84,
    },
    "ancestral": {"steps": 5, "method": "ddpm", "spacing": "trailing", "variance": "fixedsmall"},
    "one step": {"steps": 1, "spacing": "linspace"},
    "second order": {"steps": 6, "method": "unipc_2", "spacing": "karras"},
    "fourth order, guided": {"steps": 6, "method": "plms", "t_start": 600, "guidance": 0.75},
}


@pytest.fixture(scope="module")
def composed(golden_bundle: GoldenBundle) -> Composed:
    """composed(name): a golden bundle and its sampler graph, ready to run; made once."""

    @functools.cache
    def make(name: str) -> tuple[Bundle, OrtSampler]:
        bundle = Bundle.open(golden_bundle(name))
        return bundle, OrtSampler(compose(bundle))

    return make


@pytest.mark.parametrize("case", CASES)
def test_chains_equal_the_reference(case: str, composed: Composed) -> None:
    bundle, run = composed(case)
    with np.load(GOLDEN / case / "expected.npz") as stored:
        expected = dict(stored)
    names, decoded = chains(case), 0
    assert len(names) >= 4, f"expected several chains in {case}, found {names}"
    for chain in names:
        feeds, _ = setting_feeds(bundle.manifest, parse(chain))
        x_T = expected["x_T"]
        feeds |= {"x_T": x_T, "noise": no_noise(len(x_T), x_T.shape[1:])}
        if "z" in expected:
            feeds["z"] = expected["z"].reshape(len(x_T), -1)
        if f"{chain}_noise" in expected:
            noise = expected[f"{chain}_noise"]
            feeds["noise"] = noise if noise.ndim == 5 else noise[:, None]
        found = run(feeds)
        assert_close_in_distribution(found["x"], expected[chain], chain)
        np.testing.assert_array_equal(found["images"], kernels.to_uint8(found["x"]), chain)
        if "recon" in found:
            assert np.abs((found["recon"] + 1) / 2 - expected["vae_decode"]).max() <= 1e-5
            decoded += 1
    assert decoded == (0 if case == "uncond" else len(names))


@pytest.mark.parametrize("case", ["form1", "form2", "form1_zcond"])
@pytest.mark.parametrize("name", RANDOM)
def test_it_equals_the_sampler(case: str, name: str, composed: Composed) -> None:
    options = RANDOM[name]
    bundle, run = composed(case)
    seeds = resolve_seeds(40, 3)
    feeds, table = setting_feeds(bundle.manifest, options)
    feeds |= noise_feeds(bundle.manifest, table, seeds)
    assert feeds["noise"].shape[0] == (len(table.rows) if table.stochastic else 1)
    with Sampler(bundle, "onnxruntime", "f32", threads=1) as sampler:
        batch = sampler.sample(seed=seeds, **options)
    found = run(feeds)
    assert_close_in_distribution(found["x"], batch.x, f"{case}, {name}")
    np.testing.assert_array_equal(kernels.to_uint8(found["recon"]), batch.start)
    assert np.mean(found["images"] != batch.images) < 0.05, "pixels differ by rounding at .5 alone"


def test_a_sample_does_not_depend_on_its_batch(composed: Composed) -> None:
    bundle, run = composed("form1")
    feeds, table = setting_feeds(bundle.manifest, {"steps": 4, "eta": 0.5})
    whole = run(feeds | noise_feeds(bundle.manifest, table, resolve_seeds(7, 4)))["x"]
    single = run(feeds | noise_feeds(bundle.manifest, table, resolve_seeds(9, 1)))["x"]
    assert np.abs(whole[2] - single[0]).mean() <= 1e-5


def test_noise_for_another_number_of_steps_is_an_error(composed: Composed) -> None:
    from engine.backends.onnxruntime import native_failures

    bundle, run = composed("uncond")
    feeds, table = setting_feeds(bundle.manifest, {"steps": 4, "eta": 1.0})
    feeds |= noise_feeds(bundle.manifest, table, resolve_seeds(0, 1))
    with pytest.raises(native_failures(), match="noise"):
        run(feeds | {"noise": feeds["noise"][:3]})


@pytest.fixture(scope="module")
def with_sampler(composed: Composed, golden_bundle: GoldenBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a sampler.onnx, as a bundle built with --whole-sampler does."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "sampler.onnx").write_bytes(compose(Bundle.open(golden_bundle("form1"))))
    return folder


def test_the_example_needs_nothing_of_ours(with_sampler: Path, golden_bundle: GoldenBundle, tmp_path: Path) -> None:
    steps = tmp_path / "steps.npz"
    done = CliRunner().invoke(cli, ["steps", str(golden_bundle("form1")), "--steps", "4", "--eta", "1", "--out", str(steps)])
    assert done.exit_code == 0, done.output
    assert "4 calls of ddim; timesteps [4], coefficients [4, 31], weights [4, 1], start [3]" in done.output
    assert "holds no sampler graph; build it with --whole-sampler" in done.output
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['whole_sampler.py', {str(with_sampler)!r}, {str(steps)!r}, '3']\n"
        f"runpy.run_path({str(ROOT / 'examples' / 'whole_sampler.py')!r}, run_name='__main__')\n"
        "ours = {'engine', 'export', 'kernels', 'torch'} & set(sys.modules)\n"
        "assert not ours, ours\n"
    )
    done_alone = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done_alone.returncode == 0, done_alone.stderr
    images = np.load(tmp_path / "images.npy")
    assert images.dtype == np.uint8
    assert images.shape[0] == 3
    assert images.std() > 10
    assert not np.array_equal(images[0], images[1])


def test_seeds_written_to_a_file_give_the_sampler_s_images(
    composed: Composed, golden_bundle: GoldenBundle, tmp_path: Path
) -> None:
    bundle, run = composed("form1")
    out = str(tmp_path / "s.npz")
    done = CliRunner().invoke(cli, ["steps", str(bundle.path), "--steps", "3", "-n", "2", "--seed", "5", "--out", out])
    assert done.exit_code == 0, done.output
    with np.load(out) as stored:
        found = run(dict(stored))
    with Sampler(bundle, "onnxruntime", "f32", threads=1) as sampler:
        assert_close_in_distribution(found["x"], sampler.sample(2, steps=3, seed=5).x, "seeds 5 and 6")


@pytest.mark.parametrize(("out", "message"), [("a.txt", "ending in .npz"), ("none/a.npz", "cannot be written")])
def test_a_bad_place_for_steps(out: str, message: str, golden_bundle: GoldenBundle, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["steps", str(golden_bundle("form1")), "--out", str(tmp_path / out)])
    assert done.exit_code == 1
    assert message in done.output
