"""A regulariser from two checkpoints to images: what is built, chains written out in numpy beside every runtime, the
whole-sampler graph, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from engine import Sampler
from engine.backends.native.backend import Native
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, CheckpointError, EngineError, ExportError
from engine.feeds import noise_feeds, setting_feeds
from engine.solver.noise import resolve_seeds
from export import build_engines
from export.build import Request, build, recognise
from export.build_engines import main
from export.context import Watch
from export.families.base import Model
from export.graphs.extra import GraphOptions, fits_a_plan
from export.graphs.parity import LOADERS
from export.native import trajectory
from export.regulariser import with_regulariser
from tests import golden_models, regularised_toy
from tests.native_models import NEEDS_NATIVE
from tests.sampler_graphs import compose
from tests.samplers import EACH_BACKEND

KEPT, STEPS = [800, 500, 250, 60], 4
OWN, SECOND = "form1", "uncond"
SECOND_OPTIONS = {name: value for name, value in golden_models.build_options(SECOND).items() if name != "name"}
Network = Callable[[np.ndarray, int], np.ndarray]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints of two golden models."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: golden_models.write_checkpoint(name, folder / f"{name}.ckpt") for name in (OWN, SECOND, "form2")}


@pytest.fixture(scope="module")
def models(files: dict[str, Path]) -> dict[str, Model]:
    return {
        name: recognise(Request(path, options=golden_models.build_options(name))).load() for name, path in files.items()
    }


@pytest.fixture(scope="module")
def bundle(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conditional golden model with the unconditional one, for every runtime that is here, and the whole sampler."""
    native = ("native",) if Native.available()[0] else ()
    request = Request(
        files[OWN],
        out=tmp_path_factory.mktemp("bundle") / "b.bundle",
        backends=("onnxruntime", "openvino", *native),
        options=golden_models.build_options(OWN) | {"regulariser": files[SECOND], "regulariser_options": SECOND_OPTIONS},
        graph_options=GraphOptions(whole_sampler=True),
        precisions=("bf16", "int8") if native else (),
    )
    with pytest.MonkeyPatch.context() as patch:  # few states: what is tested is not the choice of layers
        patch.setattr(trajectory, "STATES", 4)
        patch.setattr(trajectory, "LANES", 1)
        return build(request).path


def networks(models: dict[str, Model], recon: np.ndarray) -> tuple[Network, Network]:
    """eps of both models in torch, in float32: for x and a timestep."""

    def of(model: Model, **given: np.ndarray) -> Network:
        table, step = model.roles["timestep_table"], model.roles["denoiser"]

        def network(x: np.ndarray, t: int) -> np.ndarray:
            (rows,) = table({"timesteps": torch.tensor([t])}).values()
            fed = {"x": x, **given}
            tensors = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in fed.items()}
            (eps,) = step(tensors | {"row": rows}).values()
            return eps.numpy().astype(np.float64)

        return network

    return of(models[OWN], cond=recon), of(models[SECOND])


def written_out(x: np.ndarray, own: Network, second: Network, mode: str, noise: np.ndarray, a: np.ndarray) -> np.ndarray:
    """DDIM with eta 0.5 and a regulariser, without a table."""
    draws = iter(noise)
    for i, t in enumerate(KEPT):
        p = a[KEPT[i + 1]] if i + 1 < STEPS else 1.0
        taken = own
        if mode == "before":
            x0 = np.clip((x - np.sqrt(1 - a[t]) * own(x, t)) / np.sqrt(a[t]), -1, 1)
            x, taken = np.sqrt(a[t]) * x0 + np.sqrt(1 - a[t]) * next(draws), second
        eps = taken(x, t)
        x0 = np.clip((x - np.sqrt(1 - a[t]) * eps) / np.sqrt(a[t]), -1, 1)
        sigma = 0.5 * np.sqrt((1 - p) / (1 - a[t]) * (1 - a[t] / p))
        x = np.sqrt(p) * x0 + np.sqrt(1 - p - sigma**2) * eps + sigma * next(draws)
        if mode == "after" and i + 1 < STEPS:
            t = KEPT[i + 1]
            x0 = np.clip((x - np.sqrt(1 - p) * second(x, t)) / np.sqrt(p), -1, 1)
            x = np.sqrt(p) * x0 + np.sqrt(1 - p) * next(draws)
    return x


@pytest.mark.parametrize("mode", ["after", "before"])
@pytest.mark.parametrize(
    ("backend", "precision", "most"),
    [
        ("onnxruntime", "f32", 1e-4),
        ("openvino", "f32", 1e-4),
        pytest.param("native", "bf16", 0.1, marks=NEEDS_NATIVE),
        pytest.param("native", "int8", 0.1, marks=NEEDS_NATIVE),
    ],
)
def test_chains_of_two_golden_networks(
    bundle: Path, models: dict[str, Model], backend: str, precision: str, most: float, mode: str
) -> None:
    rng, rows = np.random.default_rng(1), 2 * STEPS - (mode == "after")
    x_T, noise = rng.standard_normal((3, 3, 16, 16)), rng.standard_normal((rows, 3, 3, 16, 16))
    with Sampler(bundle, backend, precision, threads=1) as sampler:
        batch = sampler.sample(x_T=x_T, noise=noise, seed=0, timesteps=KEPT, eta=0.5, regularise=mode)
        levels = sampler._pipeline.schedule.alpha_bar
        assert (len(batch.timesteps), batch.timings.network_calls) == (rows, rows)
    expected = written_out(x_T, *networks(models, batch.values["recon"]), mode, noise, levels)
    without = written_out(x_T, *networks(models, batch.values["recon"])[:1] * 2, mode, noise, levels)
    error = np.linalg.norm(batch.x - expected) / np.linalg.norm(expected)
    assert error <= most
    assert np.linalg.norm(without - expected) / np.linalg.norm(expected) > 0.2, "the second network is another"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("mode", ["after", "before"])
@NEEDS_NATIVE
def test_the_native_engine_draws_each_sample_alone(bundle: Path, mode: str, precision: str) -> None:
    options: dict[str, Any] = {"steps": 5, "eta": 1.0, "regularise": mode}
    with Sampler(bundle, "native", precision, threads=2) as sampler:
        many = sampler.sample(9, seed=3, **options).x
        np.testing.assert_array_equal(sampler.sample(seed=7, **options).x[0], many[4])


@EACH_BACKEND
@pytest.mark.parametrize(
    "options",
    [
        {"regularise": "off", "guidance": 0.5},
        {"regularise": "after", "method": "ddpm", "steps": 5},
        {"regularise": "before", "steps": 4, "eta": 1.0, "guidance": 0.5},
        {"regularise": "before", "steps": 5, "regularise_interval": (300, 700)},
    ],
)
def test_the_whole_sampler_is_the_sampler(bundle: Path, backend: str, options: dict[str, Any]) -> None:
    opened, seeds = Bundle.open(bundle), resolve_seeds(3, 2)
    options = {"spacing": "linspace", "steps": 4, **options}
    feeds, table = setting_feeds(opened.manifest, options)
    feeds |= noise_feeds(opened.manifest, table, seeds)
    found = LOADERS[backend](opened.read_graph("sampler"))(feeds)["x"]
    with Sampler(bundle, backend, "f32", threads=1) as sampler:
        expected = sampler.sample(seed=seeds, **options).x
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


@EACH_BACKEND
def test_a_row_of_the_whole_sampler_runs_one_network(tmp_path: Path, backend: str) -> None:
    """Each with a variance of its own. Each run is a session's first, whose rows are no others: OpenVINO's once were."""
    opened = Bundle.open(regularised_toy.build(tmp_path / "b.bundle", learned=("denoiser", "regulariser")))
    whole, seeds = compose(opened), resolve_seeds(3, 2)
    with Sampler(opened, backend, "f32", threads=1) as sampler:
        for mode in ("off", "after", "before"):
            options = {"regularise": mode, "method": "ddpm", "steps": 4, "variance": "learned_range"}
            feeds, table = setting_feeds(opened.manifest, options)
            feeds |= noise_feeds(opened.manifest, table, seeds)
            found = LOADERS[backend](whole)(feeds)["x"]
            np.testing.assert_allclose(found, sampler.sample(seed=seeds, **options).x, rtol=0, atol=1e-5)


def test_what_is_written(bundle: Path, files: dict[str, Path]) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    assert raw["regularise"] == {"mode": "off", "interval": None}
    assert raw["pipeline"]["regulariser"]["prediction"] == "eps"
    assert raw["architecture"]["regulariser"]["file"] == f"{SECOND}.ckpt"
    assert (raw["source"]["other_file"], len(raw["source"]["other_sha256"])) == (f"{SECOND}.ckpt", 64)
    assert raw["graphs"]["regulariser"]["compute"] == {"int8": "bf16"}
    run_in = {(entry["graph"], entry["precision"]) for entry in raw["engines"] if entry["backend"] == "native"}
    native = {("denoiser", "bf16"), ("denoiser", "int8"), ("regulariser", "bf16")} if Native.available()[0] else set()
    assert {entry for entry in run_in if entry[0] in ("denoiser", "regulariser")} == native
    assert {"name": "nets", "dtype": "int64", "shape": ["rows"], "range": [0, 1]} in raw["graphs"]["sampler"]["inputs"]
    assert not fits_a_plan(Bundle.open(bundle).manifest.pipeline)


def test_what_a_build_records(models: dict[str, Model]) -> None:
    made = with_regulariser(models[OWN], models[SECOND], Path("u.ckpt"), mode="before", interval=(0, 500))
    assert made.regularise == {"mode": "before", "interval": [0, 500]}
    steps = dict(models[OWN].defaults) | {"method": "dpmpp_2m"}
    other = dataclasses.replace(models[OWN], defaults=steps)
    with pytest.raises(ArgumentError, match="only ddim, ddim_clipped, ddpm take a regulariser"):
        with_regulariser(other, models[SECOND], Path("u.ckpt"), mode="after")
    assert with_regulariser(other, models[SECOND], Path("u.ckpt")).wiring.regulariser is not None


def changed(model: Model, **state: Any) -> Model:
    return dataclasses.replace(model, pipeline={**model.pipeline, "state": {**model.pipeline["state"], **state}})


def test_second_models_that_do_not_fit(models: dict[str, Model]) -> None:
    own, second, path = models[OWN], models[SECOND], Path("u.ckpt")
    schedule = second.schedule
    with pytest.raises(CheckpointError, match=r"u.ckpt: found a model that is fed recon, expected an unconditional one"):
        with_regulariser(own, own, path)
    with pytest.raises(ExportError, match="lies around 'recon', expected one without a centre"):
        with_regulariser(models["form2"], second, path)
    for numbers in ({"start": 1e-4, "end": 0.03}, {"start": 2e-4, "end": 0.02}):
        other = dataclasses.replace(second, schedule=dataclasses.replace(schedule, numbers=numbers))
        with pytest.raises(CheckpointError, match="a timestep is one level for both"):
            with_regulariser(own, other, path)
    short = dataclasses.replace(second, schedule=dataclasses.replace(schedule, T=500))
    with pytest.raises(CheckpointError, match="a timestep is one level for both"):
        with_regulariser(own, short, path)
    with pytest.raises(CheckpointError, match="found a model whose clean state has no limit, expected the limit 1"):
        with_regulariser(own, changed(second, clip=None), path)
    betas = tuple(np.float32(schedule.schedule().betas).astype(float).tolist())
    stored = dataclasses.replace(schedule, recipe="table", numbers={}, betas=betas)
    assert with_regulariser(own, dataclasses.replace(second, schedule=stored), path).regularise is not None


def test_a_model_of_other_images_is_refused(files: dict[str, Path], models: dict[str, Model]) -> None:
    options = SECOND_OPTIONS | {"image_size": 32}
    second = recognise(Request(files[SECOND], options=options)).load()
    with pytest.raises(CheckpointError, match="found a model of states of 3 x 32 x 32, expected 3 x 16 x 16"):
        with_regulariser(models[OWN], second, files[SECOND])


def test_options_without_a_regulariser_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ArgumentError, match="--regularise: found it without --regulariser"):
        build(Request(files[OWN], options={"regularise": "after"}), Watch())


def test_the_command_line(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said reaches the build, each option of the second model as its family takes it."""
    asked: list[Request] = []
    monkeypatch.setattr(build_engines, "build", lambda request, _: asked.append(request))
    monkeypatch.setattr(build_engines, "summarise", lambda _: None)
    words = [str(files[OWN]), "--heads", "2", "--regulariser", str(files[SECOND]), "--regularise", "after"]
    done = CliRunner().invoke(main, [*words, "--regulariser-options", "--heads two"])
    assert (done.exit_code, "'two' is not a valid integer" in done.output) == (2, True), done.output
    done = CliRunner().invoke(main, [*words, "--regulariser-options", "--head 2"])
    assert (done.exit_code, "No such option '--head'" in done.output) == (2, True), done.output
    more = ["--regularise-interval", "0,800", "--regulariser-options", "--heads 2 --image-size 16"]
    done = CliRunner().invoke(main, [*words, *more])
    assert done.exit_code == 0, done.output
    options = asked[0].options
    assert (options["heads"], options["regularise"], tuple(options["regularise_interval"])) == (2, "after", (0, 800))
    assert options["regulariser_options"] == {"heads": 2, "image_size": 16}
    with pytest.raises(EngineError, match="name it with --image-size PIXELS"):
        build(dataclasses.replace(asked[0], options={**options, "regulariser_options": {"heads": 2}}), Watch())
