"""The fitted prior: z is what the documented mixture gives for a seed, in any batch; a file that is none is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load, save

from engine import Sampler, kernels
from engine.bundle.prior import Prior, parse_prior, read_prior, resolve_prior
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.cli.main import cli
from engine.commands import command
from engine.errors import ArgumentError, BundleError
from engine.solver import noise as noises
from tests import toy
from tests.kernel_choice import SEEDS, component_words
from tests.samplers import ANY_BACKEND, SIZE, Z_DIM, open_toy


def mixture(components: int = 3, width: int = Z_DIM, seed: int = 0) -> Prior:
    """Well separated Gaussians with full covariances."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, components + 1, dtype=np.float64) / (components * (components + 1) / 2)
    factors = np.tril(0.3 * rng.standard_normal((components, width, width)))
    factors[:, range(width), range(width)] = rng.uniform(0.5, 1.5, (components, width))
    means = 4 * rng.standard_normal((components, width))
    return Prior(*(np.ascontiguousarray(a, np.float32) for a in (weights, means, factors)))


def content(prior: Prior) -> bytes:
    return save({"weights": prior.weights, "means": prior.means, "scale_tril": prior.scale_tril})


def build_bundle(path: Path, data: bytes, components: int = 3, **said: Any) -> Path:
    """A toy bundle with this file as its prior."""
    models = toy.models_of(1, SIZE, Z_DIM, False)
    files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    raw = toy.manifest_of(models, 1, SIZE, Z_DIM, False, ["onnxruntime", "openvino"], **said)
    raw["prior"] = {"input": "z", "kind": "gaussian_mixture", "components": components, "file": "prior.safetensors"}
    write_bundle(path, raw, files | {"prior.safetensors": data})
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("prior") / "prior.bundle", content(mixture()))


def open_prior(bundle: Path, **options: Any) -> Sampler:
    return Sampler(bundle, ANY_BACKEND, "f32", **{"threads": 2, **options})


class TestDraw:
    @pytest.mark.usefixtures("each")
    def test_the_formula_operation_by_operation(self) -> None:
        prior, seeds = mixture(), np.arange(40, dtype=np.uint64)
        z, units = prior.draw(seeds), noises.drawn(seeds, (Z_DIM,))
        ends = [1 / 6, 3 / 6, 1.0]
        for i, seed in enumerate(seeds.tolist()):
            word = int(kernels.philox4x32((0, 0, 0, 3), (seed, 0))[0])
            k = next(k for k, end in enumerate(ends) if word / 2**32 < end)
            for row in range(Z_DIM):
                total = np.float32(0)
                for column in range(Z_DIM):
                    total = total + prior.scale_tril[k, row, column] * units[i, column]
                assert z[i, row] == total + prior.means[k, row]

    @pytest.mark.usefixtures("each")
    def test_known_answers(self) -> None:
        assert component_words(SEEDS).tolist() == [1299916284, 3020447697, 2027842763, 1632890453]
        flat = replace(mixture(), scale_tril=np.zeros((3, Z_DIM, Z_DIM), np.float32))
        assert np.array_equal(flat.draw(SEEDS), flat.means[[1, 2, 1, 1]])

    def test_a_batch_changes_nothing(self) -> None:
        prior = mixture(width=37)
        seeds = noises.resolve_seeds(5, 50)
        whole = prior.draw(seeds)
        assert np.array_equal(prior.draw(seeds[::-1].copy()), whole[::-1])
        for size in (1, 2, 3, 7, 49):
            parts = [prior.draw(seeds[begin : begin + size]) for begin in range(0, 50, size)]
            assert np.array_equal(np.concatenate(parts), whole), f"batches of {size}"
        assert prior.draw(seeds[:0]).shape == (0, 37)

    def test_moments(self) -> None:
        prior, n = mixture(), 6_000
        seeds = noises.resolve_seeds(0, n)
        chosen = np.searchsorted(prior.thresholds, component_words(seeds), side="right")
        z = prior.draw(seeds).astype(np.float64)
        for k, weight in enumerate(prior.weights):
            assert abs((chosen == k).mean() - weight) < 4 * np.sqrt(weight * (1 - weight) / n)
            mine = z[chosen == k]
            covariance = prior.scale_tril[k] @ prior.scale_tril[k].T
            assert np.allclose(mine.mean(axis=0), prior.means[k], atol=5 * np.sqrt(covariance.max() / len(mine)))
            assert np.allclose(np.cov(mine.T), covariance, atol=8 * covariance.max() / np.sqrt(len(mine)))

    def test_thresholds_are_whole_words(self) -> None:
        prior = mixture(4)
        ends = prior.thresholds
        assert ends.dtype == np.uint64
        assert np.abs(ends.astype(np.float64) / 2**32 - [0.1, 0.3, 0.6, 1.0]).max() < 1e-7
        assert ends[-1] == 2**32, "every word must choose a component"

    @pytest.mark.usefixtures("each")
    def test_a_word_on_a_threshold_belongs_to_the_next_component(self) -> None:
        seed, (word,) = SEEDS[:1], component_words(SEEDS[:1]).tolist()
        means, nothing = np.arange(2, dtype=np.float32)[:, None], np.zeros((2, 1, 1), np.float32)
        for end, component in ((word - 1, 1), (word, 1), (word + 1, 0)):
            ends = np.array([end, 2**32], np.uint64)
            assert kernels.mixture(seed, ends, means, nothing, np.ones((1, 1), np.float32)) == component

    @pytest.mark.parametrize(
        ("name", "given", "message"),
        [
            ("thresholds", np.array([1, 2], np.uint64), "2\\*\\*32 as the last threshold"),
            ("thresholds", np.array([2**32], np.uint64), r"have shapes \[1\] and \[2, 1\]"),
            ("factors", np.zeros((2, 1, 2), np.float32), r"factors is float32 \[2, 1, 2\]"),
            ("units", np.zeros((1, 2), np.float32), r"units is float32 \[1, 2\]"),
        ],
    )
    def test_what_is_no_mixture_is_refused(self, name: str, given: np.ndarray, message: str) -> None:
        shapes = {"means": (2, 1), "factors": (2, 1, 1), "units": (1, 1)}
        arrays = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
        with pytest.raises(kernels.KernelArgumentError, match=message):
            kernels.mixture(SEEDS[:1], **{"thresholds": np.array([5, 2**32], np.uint64), **arrays, name: given})


def changed(**tensors: np.ndarray | None) -> bytes:
    """The toy mixture's file with some tensors changed, added or (None) left out."""
    prior = mixture()
    named = {"weights": prior.weights, "means": prior.means, "scale_tril": prior.scale_tril} | tensors
    return save({name: tensor for name, tensor in named.items() if tensor is not None})


def with_value(name: str, index: tuple[int, ...], value: float) -> bytes:
    tensor = getattr(mixture(), name).copy()
    tensor[index] = value
    return changed(**{name: tensor})


REFUSED = {
    "empty": (b"", "expected a prior in safetensors"),
    "text": (b"not tensors at all", "expected a prior in safetensors"),
    "cut short": (content(mixture())[:-1], "expected a prior in safetensors"),
    "a tensor too few": (changed(means=None), r"found the tensors \['scale_tril', 'weights'\], expected weights, means"),
    "a tensor too many": (changed(more=np.zeros(1, np.float32)), r"found the tensors .*'more'"),
    "float64": (changed(weights=mixture().weights.astype(np.float64)), "found weights of dtype F64, expected F32"),
    "flat": (changed(means=mixture().means.ravel()), r"found weights \[3\], means \[12\], .*expected \[K\], \[K, D\] and"),
    "a component less": (changed(weights=mixture(2).weights), r"found weights \[2\], means \[3, 4\]"),
    "not square": (changed(scale_tril=np.zeros((3, 4, 5), np.float32)), r"scale_tril \[3, 4, 5\]"),
    "nothing": (
        changed(**{n: np.zeros(s, np.float32) for n, s in (("weights", 0), ("means", (0, 4)), ("scale_tril", (0, 4, 4)))}),
        r"found weights \[0\]",
    ),
    "NaN": (with_value("means", (1, 2), np.nan), "found NaN or infinity in means, expected finite numbers"),
    "infinity": (with_value("scale_tril", (0, 3, 0), np.inf), "found NaN or infinity in scale_tril"),
    "a negative weight": (with_value("weights", (0,), -0.2), "found weights of at least -0.2 with the sum 0.63"),
    "a zero weight": (with_value("weights", (0,), 0.0), "found weights of at least 0 with the sum"),
    "a wrong sum": (with_value("weights", (0,), 0.2), r"with the sum 1.03333, expected positive ones with the sum 1"),
    "above the diagonal": (with_value("scale_tril", (2, 0, 3), 0.1), "found values above the diagonal of scale_tril"),
    "a zero diagonal": (with_value("scale_tril", (2, 1, 1), 0.0), "found a diagonal of scale_tril that is not positive"),
}


class TestFiles:
    def test_a_good_one(self) -> None:
        prior = parse_prior(content(mixture()), "here")
        assert (prior.components, prior.width) == (3, Z_DIM)
        assert all(np.array_equal(getattr(prior, name), getattr(mixture(), name)) for name in load(content(mixture())))

    @pytest.mark.parametrize("case", REFUSED)
    def test_what_is_no_mixture(self, case: str, tmp_path: Path) -> None:
        data, message = REFUSED[case]
        with pytest.raises(BundleError, match=rf"here: {message}" if message.startswith("found") else message) as caught:
            parse_prior(data, "here")
        assert f"fit it again with: {command('fit-prior', 'BUNDLE')}" in str(caught.value)
        assert str(caught.value).isprintable()
        if data:
            path = build_bundle(tmp_path / "bad.bundle", data)
            with pytest.raises(BundleError, match=r"prior\.safetensors: found"):
                Sampler(path, ANY_BACKEND, "f32")

    def test_what_the_manifest_says_otherwise(self, tmp_path: Path) -> None:
        path = build_bundle(tmp_path / "a", content(mixture()), components=4)
        with pytest.raises(BundleError, match=r"found 3 components, expected 4, as the manifest says"):
            read_prior(Bundle.open(path))
        path = build_bundle(tmp_path / "b", content(mixture(width=5)))
        with pytest.raises(BundleError, match=r"found a prior of width 5, expected 4, the input's"):
            read_prior(Bundle.open(path))

    def test_none_is_none(self) -> None:
        with open_toy() as sampler:
            assert read_prior(sampler.bundle) is None

    def test_names(self) -> None:
        assert resolve_prior(None, True) == "bundle"
        assert resolve_prior(None, False) == "standard"
        assert resolve_prior("standard", True) == "standard"
        with pytest.raises(ArgumentError, match=r"found 'bundel', expected None or one of .* Did you mean 'bundle'"):
            resolve_prior("bundel", True)
        with pytest.raises(ArgumentError, match=r"this bundle holds no fitted prior; .*--latent-prior FILE"):
            resolve_prior("bundle", False)


class TestSampler:
    def test_both_priors(self, bundle: Path) -> None:
        with open_prior(bundle) as sampler, open_toy() as plain:
            ours, named = sampler.sample(5, seed=3, steps=3), sampler.sample(5, seed=3, steps=3, prior="bundle")
            assert np.array_equal(ours.values["z"], mixture().draw(noises.resolve_seeds(3, 5)))
            assert np.array_equal(ours.x, named.x)
            standard = sampler.sample(5, seed=3, steps=3, prior="standard")
            expected = plain.sample(5, seed=3, steps=3)
            assert np.array_equal(standard.values["z"], expected.values["z"])
            assert np.array_equal(standard.images, expected.images)
            assert not np.array_equal(standard.values["z"], ours.values["z"])
            assert (ours.setting.prior, named.setting.prior) == ("bundle", "bundle")
            assert (standard.setting.prior, expected.setting.prior) == ("standard", "standard")

    def test_a_sample_is_the_same_in_any_batch_and_clone(self, bundle: Path) -> None:
        with open_prior(bundle, max_batch=3) as sampler:
            whole = sampler.sample(7, seed=11, steps=2)
            alone = [sampler.sample(seed=seed, steps=2) for seed in range(11, 18)]
            assert np.array_equal(np.concatenate([batch.values["z"] for batch in alone]), whole.values["z"])
            with sampler.clone() as twin:
                assert np.array_equal(twin.sample(7, seed=11, steps=2).values["z"], whole.values["z"])

    def test_where_no_latent_is_drawn(self, bundle: Path) -> None:
        with open_prior(bundle) as sampler:
            batch = sampler.sample(2, seed=0, steps=2)
            given = sampler.sample(z=batch.values["z"], seed=0, steps=2)
            assert given.setting.prior is None
            assert np.array_equal(given.x, batch.x)
            assert sampler.reconstruct(batch.images, steps=2, seed=0).setting.prior is None
            assert sampler.refine(batch.images, steps=2, seed=0).setting.prior is None
            with pytest.raises(ArgumentError, match=r"prior is 'standard', but no input is drawn here"):
                sampler.sample(z=batch.values["z"], prior="standard")
            with pytest.raises(ArgumentError, match=r"but no input is drawn here"):
                sampler.reconstruct(batch.images, prior="standard")
        with open_toy("uncond") as plain:
            assert plain.sample(1, seed=0, steps=2).setting.prior is None
            with pytest.raises(ArgumentError, match=r"prior is 'standard', but no input is drawn"):
                plain.sample(1, prior="standard")

    def test_interpolation_ends_at_what_the_seeds_draw(self, bundle: Path) -> None:
        with open_prior(bundle) as sampler:
            for prior, reported in ((None, "bundle"), ("standard", "standard")):
                walk = sampler.interpolate(3, 9, n=4, steps=2, prior=prior)
                ends = [sampler.sample(seed=seed, steps=2, prior=prior).values["z"][0] for seed in (3, 9)]
                assert np.array_equal(walk.values["z"][[0, -1]], ends)
                assert walk.setting.prior == reported
            between = sampler.interpolate(walk.values["z"][0], walk.values["z"][1], n=2, steps=2, seed=0)
            assert between.setting.prior is None
            with pytest.raises(ArgumentError, match=r"no input is drawn here"):
                sampler.interpolate(walk.values["z"][0], walk.values["z"][1], n=2, prior="standard")

    def test_the_whole_samplers_inputs(self, bundle: Path, tmp_path: Path) -> None:
        target = tmp_path / "steps.npz"
        result = CliRunner().invoke(cli, ["steps", str(bundle), "-n", "3", "--seed", "4", "--out", str(target)])
        assert result.exit_code == 0, result.output
        with np.load(target) as feeds:
            assert np.array_equal(feeds["z"], mixture().draw(noises.resolve_seeds(4, 3)))

    def test_the_command_line(self, bundle: Path, tmp_path: Path) -> None:
        def run(*more: str) -> dict[str, Any]:
            arguments = ["--backend", ANY_BACKEND, "--precision", "f32", "--steps", "2", "--json", *more]
            result = CliRunner().invoke(cli, arguments_of(*arguments))
            assert result.exit_code == 0, result.output
            report: dict[str, Any] = json.loads(result.stdout)
            return report

        def arguments_of(*more: str) -> list[str]:
            return ["sample", str(bundle), "-n", "2", "--seed", "0", "--out", str(tmp_path / "a.npy"), *more]

        assert run()["setting"]["prior"] == "bundle"
        assert run("--prior", "standard")["setting"]["prior"] == "standard"
        text = CliRunner().invoke(cli, arguments_of("--backend", ANY_BACKEND)).output
        assert "from the bundle's prior" in text
        wrong = CliRunner().invoke(cli, arguments_of("--prior", "standart"))
        assert wrong.exit_code == 2
        assert "Did you mean 'standard'?" in wrong.output
