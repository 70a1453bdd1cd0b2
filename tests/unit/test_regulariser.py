"""A regulariser on a toy: chains of two networks written out in numpy, what costs nothing, and what is refused."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import Sampler
from engine.backends.tensorrt.backend import TensorRt
from engine.bundle.reader import Bundle
from engine.cli.main import cli
from engine.errors import ArgumentError, BundleError, NumericsError
from engine.solver.schedule import Schedule
from engine.solver.table import StepTable, build_step_table, check_table
from tests import regularised_toy, toy
from tests.manifests import ABSENT, edit
from tests.regularised_toy import own, second
from tests.samplers import ANY_BACKEND, EACH_BACKEND, watch_graph

KEPT = [900, 700, 500, 120, 3]
SCHEDULE = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)
ALPHA_BAR = SCHEDULE.alpha_bar
FOLDER = tempfile.TemporaryDirectory(prefix="regularised-")
REFUSED: list[tuple[str, object, str]] = [
    ("regularise", ABSENT, "regularise: missing"),
    ("regularise", None, "expected an object of mode and interval, as the pipeline has a regulariser"),
    ("regularise.mode", "around", "regularise.mode"),
    ("regularise.interval", [0, 500], "null, as the mode is 'off'"),
    ("regularise", {"mode": "after", "interval": [5, 1000]}, "two timesteps of 0 .. 999"),
    ("regularise", {"mode": "after", "interval": [5, 4]}, "the lower one first"),
    ("regularise.scale", 1, "an unknown field"),
    ("pipeline.regulariser", ABSENT, "expected null, as the pipeline has no regulariser"),
    ("pipeline.regulariser", [], "expected an object"),
    ("pipeline.regulariser.rows", None, "a value that something makes"),
    ("pipeline.regulariser.rows.outputs.rows", "row", "a call with one output"),
    ("pipeline.regulariser.prediction", "score", "pipeline.regulariser.prediction"),
    ("pipeline.regulariser.step.inputs.x", "recon", "a value that something makes"),
    ("pipeline.regulariser.step.inputs.row", "x", "a value that fits"),
    ("pipeline.regulariser.step.outputs.x0", "x0", "one output, which is called 'e'"),
    ("pipeline.regulariser.step.graph", "second", "one of the bundle's graphs"),
    ("pipeline.regulariser.classes", 3, "an unknown field"),
    ("pipeline.state.centre", "recon", "an unconditional network is not told 'recon'"),
]


@functools.cache
def bundle(prediction: str = "x0", mode: str = "off") -> Path:
    return regularised_toy.build(Path(FOLDER.name) / f"{prediction}{mode}.bundle", prediction, mode)


def x0_of(e: np.ndarray, x: np.ndarray, a: float, prediction: str) -> np.ndarray:
    """The limited x0 of what a network returns."""
    found = {
        "eps": (x - np.sqrt(1 - a) * e) / np.sqrt(a),
        "x0": e,
        "v": np.sqrt(a) * x - np.sqrt(1 - a) * e,
    }[prediction]
    return np.clip(found, -1, 1)


def step(x: np.ndarray, x0: np.ndarray, eps: np.ndarray, a: float, p: float, method: str, noise: np.ndarray) -> np.ndarray:
    """DDIM with eta 0.5, of the network's eps or of that of the limited x0, or DDPM with fixedsmall."""
    if method == "ddpm":
        beta = 1 - a / p
        sigma = np.sqrt(beta * (1 - p) / (1 - a))
        return np.sqrt(p) * beta / (1 - a) * x0 + np.sqrt(1 - beta) * (1 - p) / (1 - a) * x + sigma * noise
    if method == "ddim_clipped":
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    sigma = 0.5 * np.sqrt((1 - p) / (1 - a) * (1 - a / p))
    return np.sqrt(p) * x0 + np.sqrt(1 - p - sigma**2) * eps + sigma * noise


def eps_of(e: np.ndarray, x: np.ndarray, a: float, prediction: str) -> np.ndarray:
    if prediction == "eps":
        return e
    if prediction == "x0":
        return (x - np.sqrt(a) * e) / np.sqrt(1 - a)
    return np.sqrt(1 - a) * x + np.sqrt(a) * e


def chain(
    x: np.ndarray, recon: np.ndarray, noise: list[np.ndarray], mode: str, prediction: str, method: str, guidance: float,
    within: tuple[int, int],
) -> tuple[np.ndarray, list[int]]:
    """The chain as it is described, without a table: its last state, and the timestep of every call."""
    calls, draws = list[int](), iter(noise)

    def conditional(x: np.ndarray, t: int) -> np.ndarray:
        calls.append(t)
        return (1 + guidance) * own(x, t, recon) - guidance * own(x, t, 0 * recon)

    def unconditional(x: np.ndarray, t: int) -> np.ndarray:
        calls.append(t)
        return second(x, t)

    for i, t in enumerate(KEPT):
        a, p = ALPHA_BAR[t], 1.0 if i + 1 == len(KEPT) else ALPHA_BAR[KEPT[i + 1]]
        if mode == "before" and within[0] <= t <= within[1]:
            x0 = x0_of(conditional(x, t), x, a, "eps")
            x = np.sqrt(a) * x0 + np.sqrt(1 - a) * next(draws)
            e, kind = unconditional(x, t), prediction
        else:
            e, kind = conditional(x, t), "eps"
        x = step(x, x0_of(e, x, a, kind), eps_of(e, x, a, kind), a, p, method, next(draws))
        if mode == "after" and i + 1 < len(KEPT) and within[0] <= KEPT[i + 1] <= within[1]:
            x0 = x0_of(unconditional(x, KEPT[i + 1]), x, p, prediction)
            x = np.sqrt(p) * x0 + np.sqrt(1 - p) * next(draws)
    return x, calls


@EACH_BACKEND
@pytest.mark.parametrize("mode", ["after", "before"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    ("method", "guidance", "within"),
    [("ddim", 0.0, (0, 999)), ("ddim_clipped", 0.5, (0, 999)), ("ddpm", 0.0, (120, 700)), ("ddim", 0.7, (500, 500))],
)
def test_a_chain_is_that_of_its_description(
    backend: str, mode: str, prediction: str, method: str, guidance: float, within: tuple[int, int]
) -> None:
    rng, rows = np.random.default_rng(3), 2 * len(KEPT)
    x_T, noise = rng.standard_normal((3, 3, 8, 8)), rng.standard_normal((rows, 3, 3, 8, 8))
    options: dict[str, Any] = {"ddpm": {"variance": "fixedsmall"}}.get(method, {"eta": 0.5})
    options |= {"timesteps": KEPT, "method": method, "guidance": guidance, "x_T": x_T, "regularise": mode}
    options |= {} if within == (0, 999) else {"regularise_interval": within}
    z = rng.standard_normal((3, 4))
    with Sampler(bundle(prediction), backend, "f32", threads=1, max_batch=2) as sampler:
        recon = sampler.sample(z=z, steps=2).values["recon"].astype(np.float64)
        x, calls = chain(x_T, recon, list(noise), mode, prediction, method, guidance, within)
        batch = sampler.sample(3, z=z, noise=noise[: len(calls)], **options)
    assert batch.timesteps.tolist() == calls
    assert batch.setting.steps == len(KEPT) < len(calls)
    np.testing.assert_allclose(batch.x, x, rtol=0, atol=2e-5 * max(1.0, np.abs(x).max()))


@pytest.mark.parametrize("mode", ["after", "before"])
def test_a_samples_bits_do_not_depend_on_its_batch(mode: str) -> None:
    options: dict[str, Any] = {"method": "ddpm", "steps": 4, "regularise": mode, "guidance": 0.5}
    with Sampler(bundle(), ANY_BACKEND, max_batch=3) as sampler:
        many = sampler.sample(11, seed=5, **options)
        for i in (0, 4, 10):
            np.testing.assert_array_equal(sampler.sample(seed=5 + i, **options).x[0], many.x[i])
        noise = sampler.sample(seed=5, **options)
        assert np.abs(noise.x[0] - many.x[1]).max() > 1e-3


def test_rows_of_the_regulariser_draw_noise_of_their_own() -> None:
    """Of the stream that the steps' noise is of, at the row that they are; what x_T a seed means stays as it is."""
    from engine.solver import noise as noises

    seeds = np.array([7], np.uint64)
    drawn = np.stack([noises.step_noise(seeds, row, (3, 8, 8)) for row in range(7)])
    given = {"noise": drawn, "x_T": noises.initial(seeds, (3, 8, 8))}
    with Sampler(bundle(), ANY_BACKEND) as sampler:
        options: dict[str, Any] = {"steps": 4, "spacing": "linspace", "eta": 1.0, "regularise": "after", "seed": 7}
        np.testing.assert_array_equal(sampler.sample(**options).x, sampler.sample(**options, **given).x)


def test_a_chain_without_it_costs_and_changes_nothing() -> None:
    plain = toy.build_bundle(Path(FOLDER.name) / "plain.bundle", defaults={"steps": 5})
    with Sampler(bundle(), ANY_BACKEND) as sampler, Sampler(plain, ANY_BACKEND) as without:
        second = watch_graph(sampler, "regulariser")
        for options in ({}, {"regularise": "off"}, {"method": "plms", "steps": 4}):
            found, expected = sampler.sample(2, seed=1, **options), without.sample(2, seed=1, **options)
            np.testing.assert_array_equal(found.x, expected.x)
            assert found.timings.network_calls == expected.timings.network_calls
        assert second.calls == 0
        found = sampler.sample(2, seed=1, method="ddpm", steps=5, regularise="after", guidance=1.0)
        assert (second.calls, found.timings.network_calls) == (4, 9)
        assert second.batches == [2] * 4
    table = build_step_table(SCHEDULE, steps=5, regulariser="x0")
    assert table.nets is None


def test_what_is_recorded_applies_whole() -> None:
    with Sampler(bundle(mode="before"), ANY_BACKEND) as sampler:
        assert sampler.sample(seed=0).setting.regularise == "before"
        assert sampler.sample(seed=0).timings.network_calls == 10
        assert sampler.sample(seed=0, regularise="off").setting.regularise == "off"
        assert sampler.sample(seed=0, steps=3, spacing="linspace").setting.regularise == "off"
        second = watch_graph(sampler, "regulariser")
        sampler.warmup()
        sampler.warmup(regularise="after")
        assert second.calls == 2


def test_an_edit_keeps_what_is_known_at_the_level_of_each_row() -> None:
    """Inside of a mask of nothing the known image comes back, whatever the rows between are."""
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    mask = np.zeros((1, 8, 8), bool)
    with Sampler(bundle(), ANY_BACKEND) as sampler:
        for mode in ("after", "before"):
            batch = sampler.inpaint(image, mask, seed=0, steps=4, spacing="linspace", regularise=mode)
            assert len(batch.timesteps) == {"after": 7, "before": 8}[mode]
            np.testing.assert_array_equal(batch.images, image)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "dpmpp_2m"}, "look back at earlier ones; only ddim, ddim_clipped, ddpm take a regulariser"),
        ({"method": "plms"}, "take a regulariser: leave it 'off' or use method='ddim'"),
        ({"regularise": "afte"}, "expected one of off, after, before. Did you mean 'after'"),
        ({"steps": 1, "spacing": "linspace"}, "nothing comes after the last; expected two steps or more"),
        ({"regularise_interval": (10, 5)}, "the lower one first"),
        ({"regularise_interval": (801, 802)}, "holds none of this chain's timesteps, 600 to 0"),
        ({"regularise": "before", "regularise_interval": (801, 802)}, "holds none of this chain's timesteps, 800 to 0"),
        ({"regularise": "off", "regularise_interval": (0, 10)}, "but regularise is off"),
        ({"regularise": 1}, "expected a name"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with Sampler(bundle(), ANY_BACKEND) as sampler, pytest.raises(ArgumentError, match=sentence):
        sampler.sample(**{"regularise": "after", "steps": 5, "seed": 0, **options})


def test_where_no_regulariser_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy.build_bundle(Path(FOLDER.name) / "none.bundle", None)
    with Sampler(plain, ANY_BACKEND) as sampler, pytest.raises(ArgumentError, match="this bundle has no regulariser"):
        sampler.sample(regularise="before")
    assert not TensorRt.REGULARISES
    with Sampler(bundle(), ANY_BACKEND) as sampler:
        with pytest.raises(ArgumentError, match="which knows no regulariser"):
            sampler.sample(budget_ms=1000, regularise="after")
        monkeypatch.setattr(type(sampler._pipeline.backend), "REGULARISES", False)
        with pytest.raises(ArgumentError, match=f"'{ANY_BACKEND}' runs no second network in its loop yet"):
            sampler.sample(regularise="after")


def test_a_learned_variance_is_that_of_the_network_which_takes_the_step(tmp_path: Path) -> None:
    """Where one network has learned none, the steps that it would take are refused; where both have, each has its own."""
    options: dict[str, Any] = {"method": "ddpm", "steps": 3, "spacing": "linspace", "variance": "learned_range", "seed": 0}
    path = regularised_toy.build(tmp_path / "both.bundle", learned=("denoiser", "regulariser"))
    with Sampler(path, ANY_BACKEND) as sampler:
        found = {mode: sampler.sample(regularise=mode, **options).x for mode in ("after", "before")}
        assert np.abs(found["after"] - found["before"]).max() > 1e-3
        assert all(np.isfinite(x).all() for x in found.values())
    with Sampler(regularised_toy.build(tmp_path / "one.bundle", learned=("denoiser",)), ANY_BACKEND) as sampler:
        np.testing.assert_array_equal(sampler.sample(regularise="after", **options).x, found["after"])
        with pytest.raises(ArgumentError, match=r"which takes the steps, has no second output .* or regularise='after'"):
            sampler.sample(regularise="before", **options)


def test_a_network_that_returns_nan_is_named(tmp_path: Path) -> None:
    path = regularised_toy.build(tmp_path / "b.bundle")
    with Sampler(path, "onnxruntime") as sampler:
        nan = {"x0": np.full((1, 3, 8, 8), np.nan, np.float32)}
        watch_graph(sampler, "regulariser", nan)
        with pytest.raises(NumericsError, match=r"graph 'regulariser' .* at step 2 of 9 \(timestep 600\)"):
            sampler.sample(regularise="after", steps=5, seed=0)
        assert np.isfinite(sampler.sample(seed=0).x).all()


@pytest.mark.parametrize(("field", "value", "message"), REFUSED)
def test_manifests_that_are_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    path = regularised_toy.build(tmp_path / "b.bundle")
    edit(path, field, value)
    with pytest.raises(BundleError, match=message):
        Bundle.open(path)


def test_a_table_of_unknown_networks_is_refused() -> None:
    table = build_step_table(SCHEDULE, steps=5, regulariser="v", regularise="after")
    check_table(table, regulariser=True)
    with pytest.raises(ArgumentError, match="nets holds 1; expected 0"):
        check_table(table)
    other = StepTable(table.timesteps, table.rows, table.weights, table.start, "ddim", None, table.nets + 1)  # type: ignore[operator]
    with pytest.raises(ArgumentError, match="nets holds 2; expected 0 or 1"):
        check_table(other, regulariser=True)


def test_guidance_is_of_the_own_networks_rows() -> None:
    table = build_step_table(SCHEDULE, steps=4, regulariser="v", regularise="after", guidance=1.0)
    assert table.nets is not None
    assert table.nets.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert table.weights.tolist() == [[2, -1], [1, 0]] * 3 + [[2, -1]]


def test_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    words = ["sample", str(bundle()), "--backend", ANY_BACKEND, "--seed", "0", "--steps", "5", "--out", str(out)]
    run = CliRunner().invoke(cli, [*words, "--regularise", "before", "--regularise-interval", "0,500"])
    assert run.exit_code == 0, run.output
    assert "regularised before each step, 8 calls, from t 0 to 500" in run.output
    run = CliRunner().invoke(cli, [*words, "--regularise", "befor"])
    assert (run.exit_code, "Did you mean 'before'" in run.output) == (2, True), run.output
    run = CliRunner().invoke(cli, ["info", str(bundle())])
    assert "regulariser" in run.output
    assert "predicts x0; off" in run.output
