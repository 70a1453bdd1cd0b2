"""Fitting recovers a known mixture, the file reaches the bundle, and a prior of another model is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from engine import Sampler
from engine.bundle.onnx_file import Onnx
from engine.bundle.prior import Prior
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, BundleError, ExportError
from export import build as building
from export import fit_latent_prior as command
from export.build import Request, build
from export.latent_prior import (
    fit,
    log_likelihood,
    read_prior_file,
    sample_posterior,
    size_of_prior,
    standard_prior,
    to_bytes,
    write_prior,
)
from tests import golden_models, toy

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'diffusevae-engine[export]'")

ROOT = Path(__file__).resolve().parents[2]
GoldenBundle = Callable[[str], Path]


def known() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """weights, means, factors of two Gaussians in the plane."""
    factors = np.array([[[1.0, 0.0], [0.8, 0.5]], [[0.3, 0.0], [-0.2, 0.6]]])
    return np.array([0.7, 0.3]), np.array([[3.0, 0.0], [-3.0, 1.0]]), factors


def posterior(n: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """mu and logvar whose aggregated posterior is the mixture of `known`: the posteriors are narrow."""
    weights, means, factors = known()
    rng = np.random.default_rng(0)
    chosen = rng.choice(2, n, p=weights)
    mu = means[chosen] + np.einsum("nij,nj->ni", factors[chosen], rng.standard_normal((n, 2)))
    return mu.astype(np.float32), np.full((n, 2), -12, np.float32)


@pytest.fixture(scope="module")
def fitted() -> Prior:
    return fit(*posterior(), 2, seed=0)


class TestFit:
    def test_recovers_a_known_mixture(self, fitted: Prior) -> None:
        weights, means, factors = known()
        order = np.argsort(-fitted.weights)
        assert np.allclose(fitted.weights[order], weights, atol=0.02)
        assert np.allclose(fitted.means[order], means, atol=0.06)
        found = fitted.scale_tril[order]
        assert np.allclose(found @ found.transpose(0, 2, 1), factors @ factors.transpose(0, 2, 1), atol=0.08)
        assert all(getattr(fitted, name).dtype == np.float32 for name in ("weights", "means", "scale_tril"))

    def test_is_repeatable(self, fitted: Prior) -> None:
        assert to_bytes(fit(*posterior(), 2, seed=0)) == to_bytes(fitted)

    def test_the_posteriors_width_counts(self) -> None:
        mu, _ = posterior(2000)
        wide = fit(0 * mu, np.full_like(mu, 2 * np.log(0.5)), 1)
        assert np.allclose(wide.scale_tril[0], 0.5 * np.eye(2), atol=0.03)

    def test_more_draws_overfit_less(self) -> None:
        rng = np.random.default_rng(0)
        mu, logvar = 0.1 * rng.standard_normal((40, 6)), np.zeros((40, 6))
        unseen = sample_posterior(mu, logvar, seed=7, draws=50)
        assert unseen.shape == (2000, 6)
        few, many = (log_likelihood(fit(mu, logvar, 2, draws=draws), unseen) for draws in (1, 20))
        assert many > few + 0.5

    def test_log_likelihood(self, fitted: Prior) -> None:
        z = np.random.default_rng(1).standard_normal((500, 3))
        expected = float((-0.5 * (z**2).sum(axis=1) - 1.5 * np.log(2 * np.pi)).mean())
        assert log_likelihood(standard_prior(3), z) == pytest.approx(expected, abs=1e-9)
        unseen = sample_posterior(*posterior(), seed=9)
        assert log_likelihood(fitted, unseen) > log_likelihood(fit(*posterior(), 1), unseen) + 0.3

    def test_refusals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mu, logvar = posterior(20)
        with pytest.raises(ArgumentError, match=r"--components: found 11 for 20 images, expected 1\.\.10"):
            fit(mu, logvar, 11)
        with pytest.raises(ArgumentError, match=r"found mu \[20, 2\] and logvar \[19, 2\], expected \[N, D\] of both"):
            fit(mu, logvar[1:], 2)
        with pytest.raises(ArgumentError, match=r"found NaN or infinity in mu or logvar"):
            fit(mu * np.nan, logvar, 2)
        monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
        with pytest.raises(ExportError, match=r"found no scikit-learn, .* pip install 'diffusevae-engine\[export\]'"):
            fit(mu, logvar, 2)


class TestFiles:
    def test_there_and_back(self, fitted: Prior, tmp_path: Path) -> None:
        write_prior(tmp_path / "p", fitted, "ab" * 32)
        found = read_prior_file(tmp_path / "p")
        assert np.array_equal(found.prior.scale_tril, fitted.scale_tril)
        assert (found.checkpoint_sha256, found.data) == ("ab" * 32, (tmp_path / "p").read_bytes())
        write_prior(tmp_path / "p", fitted)
        assert read_prior_file(tmp_path / "p").checkpoint_sha256 is None

    def test_refusals(self, fitted: Prior, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=r"--latent-prior .*absent: found nothing to read .*fit it again with"):
            read_prior_file(tmp_path / "absent")
        (tmp_path / "text").write_text("no mixture")
        with pytest.raises(BundleError, match=r"text: found .*expected a prior in safetensors"):
            read_prior_file(tmp_path / "text")
        with pytest.raises(ArgumentError, match=r"--out .*: found that it cannot be written"):
            write_prior(tmp_path / "no" / "folder", fitted)


class TestBuild:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        return golden_models.write_checkpoint("form1", tmp_path / "form1.ckpt")

    def test_it_enters_the_bundle(
        self, checkpoint: Path, tmp_path: Path, golden_bundle: GoldenBundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built = Bundle.open(golden_bundle("form1"))  # the same weights: exporting them again would take a while
        monkeypatch.setattr(building, "export_onnx", lambda role, free: Onnx(built.read_graph(role.name)))
        width = golden_models.config("form1")["z_dim"]
        prior = dataclasses.replace(standard_prior(width), means=np.full((1, width), 2, np.float32))
        write_prior(tmp_path / "p", prior, hashlib.sha256(checkpoint.read_bytes()).hexdigest())
        request = Request(checkpoint, out=tmp_path / "a", backends=("onnxruntime",), options={"heads": 2})
        path = build(dataclasses.replace(request, latent_prior=tmp_path / "p")).path
        bundle = Bundle.open(path)
        spec = bundle.manifest.prior
        assert spec is not None
        assert (spec.input, spec.kind, spec.components) == ("z", "gaussian_mixture", 1)
        assert bundle.read_prior() == (tmp_path / "p").read_bytes()
        with Sampler(bundle, "onnxruntime", "f32", threads=2) as sampler:
            drawn, plain = (sampler.sample(2, seed=5, steps=2, prior=prior) for prior in (None, "standard"))
            assert np.array_equal(drawn.values["z"], plain.values["z"] + np.float32(2))

    @pytest.mark.parametrize(
        ("name", "width", "sha256", "message"),
        [
            ("form1", 3, None, r"found a prior of width 3, expected \d+, the input's"),
            ("form1", None, "ab" * 32, r"found a prior fitted to the VAE of the checkpoint abab.*, form1.ckpt; fit it"),
            ("uncond", 3, None, r"found a model without an input that is drawn.*with a VAE; leave --latent-prior out"),
        ],
    )
    def test_of_another_model(self, tmp_path: Path, name: str, width: int | None, sha256: str | None, message: str) -> None:
        path = golden_models.write_checkpoint(name, tmp_path / f"{name}.ckpt")
        write_prior(tmp_path / "p", standard_prior(width or golden_models.config(name)["z_dim"]), sha256)
        options = golden_models.build_options(name)
        with pytest.raises((ArgumentError, BundleError), match=message):
            build(Request(path, out=tmp_path / "a", options=options, latent_prior=tmp_path / "p"))
        assert not (tmp_path / "a").exists()

    def test_a_bad_file_is_refused_before_any_work(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=r"--latent-prior absent: found nothing to read"):
            build(Request(tmp_path / "no.ckpt", latent_prior=Path("absent")))


class TestCommand:
    def run(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(command.main, [str(argument) for argument in arguments])

    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), np.uint8)
        np.savez(tmp_path / "images.npz", images=pixels)
        return tmp_path / "images.npz"

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        return toy.build_bundle(tmp_path / "toy.bundle")

    def test_of_a_bundle(self, bundle: Path, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "prior"
        result = self.run(bundle, "--images", images, "--heldout", images, "--components", 2, "--out", out)
        assert result.exit_code == 0, result.output
        found, manifest = read_prior_file(out), Bundle.open(bundle).manifest
        assert (found.prior.components, found.prior.width) == (2, manifest.inputs[0].shape[1])
        assert found.checkpoint_sha256 == manifest.source.sha256
        for line in ("2 Gaussians of width", "fitted to 80 images", "held-out images", "nats a latent", "under N(0, I)"):
            assert line in result.output
        folder = tmp_path / "folder"
        folder.mkdir()
        with np.load(images) as content:
            for i, pixels in enumerate(content["images"]):
                Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        linked = tmp_path / "linked"
        linked.mkdir()
        for file in bundle.iterdir():
            (linked / file.name).symlink_to(file)
        again = self.run(linked, "--allow-links", bundle, "--images", folder, "--components", 2, "--out", tmp_path / "again")
        assert again.exit_code == 0, again.output
        assert (tmp_path / "again").read_bytes() == out.read_bytes()

    def test_room_is_estimated_before_the_work(
        self, bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "prior"
        assert self.run(bundle, "--images", images, "--components", 3, "--out", out).exit_code == 0
        size = size_of_prior(3, 4)
        assert size < out.stat().st_size < size + 500
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size_of_prior(300, 4) - 1))
        monkeypatch.setattr(command, "encode", lambda *_: pytest.fail("the work began"))
        result = self.run(bundle, "--images", images, "--components", 300, "--out", out)
        assert (result.exit_code, "0.0 MB free, expected about 0.0 MB" in result.output) == (1, True), result.output

    def test_of_a_checkpoint(
        self, bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Request] = []

        def fake_build(request: Request) -> None:
            asked.append(request)
            assert request.out is not None
            shutil.copytree(bundle, request.out)

        monkeypatch.setattr(command, "build", fake_build)
        result = self.run("c.ckpt", "--heads", 2, "--images", images, "--components", 1, "--out", tmp_path / "prior")
        assert result.exit_code == 0, result.output
        (request,) = asked
        assert (request.checkpoint, request.weights) == (Path("c.ckpt"), "ema")
        assert request.options == {"heads": 2, "preset": None}
        assert request.out is not None
        assert not request.out.parent.exists(), "the bundle that was built to encode with must not stay"
        assert read_prior_file(tmp_path / "prior").prior.components == 1

    def test_refusals(self, bundle: Path, images: Path, tmp_path: Path) -> None:
        size = 8
        np.savez(tmp_path / "named.npz", pictures=np.zeros((1, size, size, 3), np.uint8))
        np.savez(tmp_path / "float.npz", images=np.zeros((1, size, size, 3)))
        np.savez(tmp_path / "small.npz", images=np.zeros((1, size + 1, size, 3), np.uint8))
        (tmp_path / "text.npz").write_text("text")
        (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04" + bytes(40))
        folder = tmp_path / "folder"
        folder.mkdir()
        Image.new("RGB", (size + 1, size)).save(folder / "a.png")
        for name, message in (
            ("named.npz", "found no array 'images', expected an .npz file"),
            ("float.npz", "found float64"),
            ("small.npz", "found uint8"),
            ("text.npz", "found nothing that can be read"),
            ("zip.npz", "found nothing that can be read"),
            ("absent.npz", "found nothing that can be read"),
            ("folder", "found 1 pictures that would be changed"),
        ):
            result = self.run(bundle, "--images", tmp_path / name, "--components", 1, "--out", tmp_path / "prior")
            assert (result.exit_code, message in result.output) == (1, True), result.output
            assert "Traceback" not in result.output
        plain = toy.build_bundle(tmp_path / "plain.bundle", None)
        result = self.run(plain, "--images", images, "--out", tmp_path / "prior")
        assert "such as an unconditional one, expected one with a VAE" in result.output
        assert not (tmp_path / "prior").exists()

    def test_help_is_the_checked_in_text(self) -> None:
        hint = "update it with: python export/fit_latent_prior.py --help > tests/help/fit_latent_prior.txt"
        found = self.run("--help").output.replace("Usage: main ", "Usage: fit_latent_prior.py ")
        assert found == (ROOT / "tests/help/fit_latent_prior.txt").read_text(), hint

    def test_progress_counts_the_rounds(self) -> None:
        counted: list[int] = []

        def ticks(steps: Iterable[int]) -> Iterable[int]:
            for step in steps:
                counted.append(step)
                yield step

        fit(*posterior(500), 2, ticks=ticks)
        assert counted[0] == 0
        assert counted == list(range(len(counted)))

    def test_from_a_checkout_in_any_folder(self, tmp_path: Path) -> None:
        arguments = [str(ROOT / "export/fit_latent_prior.py"), "absent", "--images", "x.npz", "--out", "o"]
        done = subprocess.run([sys.executable, "-I", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert "absent: found nothing to read" in done.stderr
        assert "Traceback" not in done.stderr
