"""The option --input NAME=VALUE, on a bundle that has one to be given and one that is drawn (tests/toy_family.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import Sampler
from tests.samplers import ANY_BACKEND
from tests.toy_family import build_family
from tests.unit.test_cli import HERE, run, succeed


class TestInputs:
    @pytest.fixture
    def family(self, tmp_path: Path) -> Path:
        return build_family(tmp_path / "family")

    def expected(self, family: Path, **options: Any) -> Any:
        with Sampler(family, ANY_BACKEND, "f32", 2) as sampler:
            return sampler.sample(**options)

    def test_a_number_is_for_all_images(self, family: Path, tmp_path: Path) -> None:
        arguments = ["sample", family, "-n", "3", "--seed", "5", "--input", "label=4", "--out", tmp_path / "a.npy"]
        report = json.loads(succeed(*arguments, "--json", *HERE).stdout)
        assert report["inputs"] == {"label": [4, 4, 4], "style": "float32 [3, 5]"}
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), self.expected(family, n=3, seed=5, label=4).images)

    def test_a_file_has_one_for_each_image(self, family: Path, tmp_path: Path) -> None:
        label, style = np.array([1, 10]), np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
        np.save(tmp_path / "label.npy", label)
        np.save(tmp_path / "style.npy", style)
        given = ["--input", f"label={tmp_path / 'label.npy'}", "--input", f"style={tmp_path / 'style.npy'}"]
        succeed("sample", family, "--seed", "5", *given, "--out", tmp_path / "a.npy", *HERE)
        expected = self.expected(family, seed=5, label=label, style=style)
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected.images)

    def test_other_verbs_take_them_too(self, family: Path, tmp_path: Path) -> None:
        arguments = [family, "1", "2", "-n", "3", "--input", "label=0", "--out", tmp_path / "a.npy"]
        succeed("interpolate", *arguments, *HERE)
        with Sampler(family, ANY_BACKEND, "f32", 2) as sampler:
            expected = sampler.interpolate(1, 2, 3, label=0).images
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
        report = json.loads(succeed("verify", family, "--input", "label=3", "--json").stdout)
        assert report["ok"]
        assert json.loads(succeed("verify", family, "--json").stdout)["ok"], "0 where nothing is given"

    @pytest.mark.parametrize(
        ("given", "code", "message"),
        [
            ([], 1, "found no label, expected it: this bundle takes label int64[batch]"),
            (["label"], 2, "'label' is not NAME=VALUE"),
            (["=3"], 2, "'=3' is not NAME=VALUE"),
            (["label=11"], 1, "label runs from 11 to 11; expected values in 0 .. 10"),
            (["label=1.5"], 1, "label has dtype float64; expected integers"),
            (["lable=1"], 1, "Did you mean 'label'?"),
            (["label=1", "label=2"], 1, "input: found label twice, expected one value for each"),
            (["label=no-such.npy"], 1, "input label: found that no-such.npy cannot be read as .npy"),
            (["label=1", "style=nan"], 1, "style holds 1 values that are NaN or infinite"),
            (["label=1", "style=2"], 1, "style has shape []; expected float32 [N, 5] or one sample [5]"),
        ],
    )
    def test_mistakes_are_one_line(self, given: list[str], code: int, message: str, family: Path, tmp_path: Path) -> None:
        options = [word for value in given for word in ("--input", value)]
        result = run("sample", family, "--out", tmp_path / "a.png", *options, *HERE)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
        assert "Traceback" not in result.output

    def test_an_archive_is_no_array(self, family: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "several.npz", a=1, b=2)
        result = run("sample", family, "--input", f"label={tmp_path / 'several.npz'}", "--out", tmp_path / "a.png")
        assert result.exit_code == 1
        assert "found several arrays in" in result.stderr

    def test_a_start_that_is_no_picture_is_not_shown(self, family: Path, tmp_path: Path) -> None:
        result = run("sample", family, "--input", "label=1", "--with-start", "--out", tmp_path / "a.png", *HERE)
        assert result.exit_code == 1
        assert "expected a bundle with an image to start from; leave --with-start out" in result.stderr

    def test_pictures_are_files(self, tmp_path: Path) -> None:
        path = build_family(tmp_path / "pictured", encodes=[], pictures=["photo", "mask"])
        rng = np.random.default_rng(0)
        photo, mask = rng.integers(0, 256, (12, 16, 3), np.uint8), 255 * rng.integers(0, 2, (12, 16), np.uint8)
        for name, array in (("photo", photo), ("mask", mask)):
            Image.fromarray(array).save(tmp_path / f"{name}.png")
        given = [f"--input={name}={tmp_path / name}.png" for name in ("photo", "mask")]
        arguments = ["sample", path, "-n", "2", "--seed", "5", "--input", "label=1", "--out", tmp_path / "a.npy"]
        succeed(*arguments, *given, *HERE)
        with Sampler(path, ANY_BACKEND, "f32", 2) as sampler:
            expected = sampler.sample(2, seed=5, label=1, photo=photo, mask=mask).images
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
        for wrong, message in (("no.png", "no.png"), ("3", "photo has shape []; expected uint8 [N")):
            result = run(*arguments, "--input", f"photo={wrong}", given[1], *HERE)
            assert (result.exit_code, message in result.stderr) == (1, True), result.stderr

    def test_upscale_reads_them_at_the_size_of_the_input(self, tmp_path: Path) -> None:
        path = build_family(tmp_path / "pictured", encodes=[], pictures=["photo"])
        photo = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(photo).save(tmp_path / "photo.png")
        options = ["--seed", "5", "--input", "label=1", "--out", tmp_path / "a.npy", *HERE]
        succeed("upscale", path, tmp_path / "photo.png", *options)
        with Sampler(path, ANY_BACKEND, "f32", 2) as sampler:
            np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), sampler.upscale(photo, seed=5, label=1).images)
        assert "photo float32[batch, 3, 12, 16]: -1 to 1, a picture, to be given" in succeed("info", path).output

    def test_inpaint_takes_a_picture_and_its_mask(self, tmp_path: Path) -> None:
        path = build_family(tmp_path / "latent", encodes=["state_encoder"])
        rng = np.random.default_rng(0)
        photo, mask = rng.integers(0, 256, (12, 16, 3), np.uint8), np.zeros((12, 16), np.uint8)
        mask[2:8, 3:9] = 255
        for name, array in (("photo", photo), ("mask", mask)):
            Image.fromarray(array).save(tmp_path / f"{name}.png")
        options = ["--mask", tmp_path / "mask.png", "--seed", "5", "--input", "label=1", "--out", tmp_path / "a.npy", *HERE]
        succeed("inpaint", path, tmp_path / "photo.png", tmp_path / "photo.png", *options)
        succeed("inpaint", path, tmp_path / "photo.png", "--no-composite", *options[:6], "--out", tmp_path / "b.npy", *HERE)
        found = np.load(tmp_path / "a.npy")
        with Sampler(path, ANY_BACKEND, "f32", 2) as sampler:
            expected = sampler.inpaint(np.stack([photo, photo]), mask, seed=5, label=1).images
        np.testing.assert_array_equal(found, expected)
        assert (np.load(tmp_path / "b.npy")[0] != photo)[mask == 0].any()
        result = run("inpaint", build_family(tmp_path / "family"), tmp_path / "photo.png", *options)
        assert (result.exit_code, "inpaint needs an image and a mask" in result.stderr) == (1, True)
