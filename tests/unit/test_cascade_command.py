"""Cascades on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engine import Bundle, Cascade, Sampler
from engine.cli.main import cli
from engine.stages import name_next
from tests.cascades import build_pair, build_stages
from tests.samplers import ANY_BACKEND
from tests.toy_family import IMAGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stages(tmp_path_factory.mktemp("cascade"))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_the_command_names_shows_and_samples(pair: tuple[Path, Path], tmp_path: Path) -> None:
    faces, latent = pair
    named = run("cascade", faces, latent, "--t-start", 300, "--steps", 4)
    assert named.exit_code == 0, named.output
    assert "stage 1  faces.bundle: 8 x 8" in named.output
    assert "stage 2  latent.bundle: 12 x 16, image to image, steps 4, t_start 300" in named.output
    assert "latent.bundle goes on with the images, steps 4, t_start 300" in run("info", faces).output
    alone = run("sample", faces, "--seed", 1, "--out", tmp_path / "low.npy")
    assert "note: latent.bundle goes on with these images" in alone.output
    assert "--cascade" in alone.output
    options = ["--backend", ANY_BACKEND, "-n", 2, "--seed", 1, "--input", "label=3", "--cascade"]
    done = run("sample", faces, *options, "--stage", "steps=3", "--out", tmp_path / "a.npy")
    assert done.exit_code == 0, done.output
    assert "stage 2  latents: 3 steps ddim, t 300 to 0" in done.output
    with Cascade(faces, ANY_BACKEND) as cascade:
        wanted = cascade.sample(2, seed=1, label=3, stages=[{"steps": 3}])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), wanted.images)
    report = json.loads(run("sample", faces, *options, "--out", tmp_path / "b.png", "--json").stdout)
    assert report["seeds"] == [1, 2]
    assert run("cascade", faces, "--remove").exit_code == 0
    assert Bundle.open(faces).manifest.next is None


def test_pictures_are_noised_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (2, *IMAGE[1:], 3), dtype=np.uint8)
    np.save(tmp_path / "in.npy", images)
    options = ["--backend", ANY_BACKEND, "--seed", 5, "--input", "label=1", "--noise-level", 90, "--out", tmp_path / "a.npy"]
    done = run("upscale", folder / "told.bundle", tmp_path / "in.npy", *options)
    assert done.exit_code == 0, done.output
    with Sampler(folder / "told.bundle", ANY_BACKEND) as sampler:
        wanted = sampler.upscale(images, label=1, seed=5, noise_level=90)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), wanted.images)


def test_options_of_a_stage_are_read_as_those_of_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    faces, latent = pair
    name_next(faces, latent, t_start=300, steps=4)
    np.save(tmp_path / "label.npy", np.array([4, 5]))
    shared = ["sample", faces, "--backend", ANY_BACKEND, "-n", 2, "--seed", 1, "--cascade", "--out", tmp_path / "a.npy"]
    chain = "timesteps=300,200,50,t_start=300,method=ddim,eta=0.5,0.4,0,seed=3,8,noise_level=20"
    written = f"label={tmp_path / 'label.npy'},{chain}"
    done = run(*shared, "--stage", written)
    assert done.exit_code == 0, done.output
    later = {
        "label": [4, 5], "timesteps": [300, 200, 50], "method": "ddim", "eta": [0.5, 0.4, 0.0], "seed": [3, 8],
        "noise_level": 20, "t_start": 300,
    }  # fmt: skip
    with Cascade(faces, ANY_BACKEND) as cascade:
        wanted = cascade.sample(2, seed=1, stages=[later])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), wanted.images)
    for options, message in (
        (["steps=3,steps=4"], "steps is given twice"),
        (["steps=three"], "stage 2: 'three' is not a valid integer"),
        (["method=ddmp"], "stage 2: 'ddmp'"),
        (["label=x.npy"], "stage 2: input label: found that x.npy cannot be read"),
        (["stepz=3"], "stage 2: found stepz, expected one of .*Did you mean 'steps'"),
        (["steps"], "'steps' is not NAME=VALUE"),
        (["steps=3", "steps=4"], "found options of 2 stages, expected those of the 1 after the first"),
    ):
        done = run(*shared, *(word for option in options for word in ("--stage", option)))
        assert done.exit_code != 0
        assert re.search(message, " ".join(done.output.split())), done.output


def test_links_of_all_stages_are_allowed_on_the_command_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for path in pair:
        graph = next(path.glob("*.onnx"))
        graph.rename(store / f"{path.name}-{graph.name}")
        graph.symlink_to(store / f"{path.name}-{graph.name}")
    options = ["--t-start", 300, "--steps", 4]
    assert "allow-links" in run("cascade", *pair, *options).output
    done = run("cascade", *pair, *options, "--allow-links", store)
    assert done.exit_code == 0, done.output
    sample = ["sample", pair[0], "--cascade", "--backend", ANY_BACKEND, "--input", "label=1", "--out", tmp_path / "a.png"]
    assert "allow-links" in run(*sample).output
    done = run(*sample, "--allow-links", store)
    assert done.exit_code == 0, done.output


def test_the_start_image_is_the_last_stages(pair: tuple[Path, Path], tmp_path: Path) -> None:
    name_next(*pair, t_start=300, steps=4)
    options = ["--cascade", "--backend", ANY_BACKEND, "--input", "label=1", "--with-start", "--out", tmp_path / "a.png"]
    done = run("sample", pair[0], *options)
    assert done.exit_code == 1
    assert re.search(r"with-start: found .*latent\.bundle, whose chains start from noise", done.output), done.output


def test_mistakes_are_answered_in_a_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    faces, latent = pair
    for arguments, message in (
        (["cascade", faces], "expected either NEXT or --remove"),
        (["cascade", latent, faces], "expected at least the 12 x 16"),
        (["sample", faces, "--cascade", "--out", tmp_path / "a.png"], "a cascade of 1 bundles"),
        (["sample", faces, "--stage", "steps=3", "--out", tmp_path / "a.png"], "found it without --cascade"),
        (["sample", faces, "--cascade", "--first", "2", "--seed", "1", "-n", "4"], "expected one call of all stages"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1, done.output
        assert message in done.output
        assert "Traceback" not in done.output
