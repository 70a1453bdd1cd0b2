"""Guides on a toy: chains beside the published formulas, rows that cost nothing, experts, modes, and what is refused."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import Sampler
from engine.backends.guides import Guides
from engine.backends.tensorrt.backend import TensorRt
from engine.bundle.reader import Bundle
from engine.cli.main import cli
from engine.errors import ArgumentError, BundleError, NumericsError
from engine.kernels import ROW_FIELDS
from engine.solver.schedule import Schedule
from engine.solver.table import build_step_table
from tests import guided_toy, toy
from tests.manifests import ABSENT, check_refused, edit
from tests.samplers import ANY_BACKEND, EACH_BACKEND

CLASSES, SLOPES = guided_toy.CLASSES, guided_toy.SLOPES
LABELS = np.array([0, 2, 1])
KEPT = [900, 700, 500, 499, 120, 3]
ALPHA_BAR = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02).alpha_bar
FOLDER = tempfile.TemporaryDirectory(prefix="guided-")
REFUSED: list[tuple[str, object, str]] = [
    ("guide", ABSENT, "guide: missing"),
    ("guide", None, "expected an object of scale, mode and interval, as the pipeline has guides"),
    ("guide.mode", "loud", "guide.mode"),
    ("guide.interval", [5, 1000], "two timesteps of 0 .. 999"),
    ("guide.interval", [5, 4], "the lower one first"),
    ("pipeline.guides", [], "expected a list of guides"),
    ("pipeline.guides", ABSENT, "expected null, as the pipeline has no guides"),
    ("pipeline.guides.0.timesteps", [1, 500], "expected 0 as the first timestep"),
    ("pipeline.guides.1.timesteps", [502, 999], "a first timestep of 1 .. 501, without a gap"),
    ("pipeline.guides.1.timesteps", [500, 500], "a last timestep above 500"),
    ("pipeline.guides.1.timesteps", [500, 998], "expected 999"),
    ("pipeline.guides.0.classes", 1, "an integer in 2.."),
    ("pipeline.guides.0.rows", None, "a value that something makes"),
    ("pipeline.guides.0.step.inputs.label", "labels", "a value that something makes"),
    ("pipeline.guides.0.step.inputs.x", "label", "a value that fits"),
    ("pipeline.guides.0.step.outputs.g", "gradient", "outputs 'g'"),
    ("pipeline.guides.0.scale", 1, "an unknown field"),
]


@functools.cache
def bundle(guides: int = 1, nan: bool = False) -> Path:
    return guided_toy.build(Path(FOLDER.name) / f"{guides}{nan}.bundle", guides, nan=nan)


def gradient(x: np.ndarray, t: int, guides: int, mode: str, mean: np.ndarray) -> np.ndarray:
    """What the guide of a timestep gives, scaled as a mode has it."""
    second = guides == 2 and t > 500
    g = SLOPES[second] * x + 0.1 * LABELS[:, None, None, None] + (0 if second else t / 1000)
    if mode == "entropy":
        entropy = 0.1 + (x**2).mean((1, 2, 3))
        g = g * (np.log(CLASSES) / entropy)[:, None, None, None]
    if mode == "norm":
        lengths = [np.linalg.norm(array.reshape(len(x), -1), axis=1) for array in (mean, g)]
        g = g * (lengths[0] / lengths[1])[:, None, None, None]
    return g


def eps(x: np.ndarray, t: int) -> np.ndarray:
    """The toy's network."""
    return 0.1 * x + t * 3.5 / 6000


def ddim(x: np.ndarray, t: int, a: float, p: float, eta: float, noise: np.ndarray, scale: float, how: Any) -> np.ndarray:
    """Dhariwal & Nichol's algorithm 2, as it is written: eps of the limited x0, then of the score, then x0 again."""
    e = eps(x, t)
    x0 = np.clip((x - np.sqrt(1 - a) * e) / np.sqrt(a), -1, 1)
    e = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    sigma = eta * np.sqrt((1 - p) / (1 - a) * (1 - a / p))
    along = np.sqrt(1 - p - sigma**2)
    e = e - np.sqrt(1 - a) * scale * gradient(x, t, *how, np.sqrt(p) * x0 + along * e)
    x0 = (x - np.sqrt(1 - a) * e) / np.sqrt(a)
    return np.sqrt(p) * x0 + along * e + sigma * noise


def ddpm(x: np.ndarray, t: int, a: float, p: float, last: float, noise: np.ndarray, scale: float, how: Any) -> np.ndarray:
    """Algorithm 1, the variance beta but in the last step, whose is `last`."""
    x0, beta = np.clip((x - np.sqrt(1 - a) * eps(x, t)) / np.sqrt(a), -1, 1), 1 - a / p
    mean = np.sqrt(p) * beta / (1 - a) * x0 + np.sqrt(1 - beta) * (1 - p) / (1 - a) * x
    variance = last if p == 1 else beta
    return mean + variance * scale * gradient(x, t, *how, mean) + (p != 1) * np.sqrt(beta) * noise


@EACH_BACKEND
@pytest.mark.parametrize("guides", [1, 2])
@pytest.mark.parametrize("mode", ["constant", "entropy", "norm"])
@pytest.mark.parametrize("method", ["ddim_clipped", "ddpm"])
def test_chains_are_those_of_the_published_formulas(backend: str, guides: int, mode: str, method: str) -> None:
    """Timesteps on both sides of the boundary of two guides and on it."""
    rng, scale = np.random.default_rng(3), 0.7
    x_T, noise = rng.standard_normal((3, 3, 8, 8)), rng.standard_normal((len(KEPT), 3, 3, 8, 8))
    levels = [*ALPHA_BAR[KEPT], 1.0]
    a, p = levels[-3:-1]
    last = (1 - a / p) * (1 - p) / (1 - a)  # beta~ of the step before
    x = x_T
    for i, t in enumerate(KEPT):
        step, more = (ddim, 0.5) if method == "ddim_clipped" else (ddpm, last)
        x = step(x, t, levels[i], levels[i + 1], more, noise[i], scale, (guides, mode))
    eta = {"eta": 0.5} if method == "ddim_clipped" else {"variance": "fixedlarge"}
    with Sampler(bundle(guides), backend, "f32", threads=1, max_batch=2) as sampler:
        batch = sampler.sample(
            3, timesteps=KEPT, method=method, x_T=x_T, noise=noise, label=LABELS, guide_scale=scale, guide_mode=mode, **eta
        )
    np.testing.assert_allclose(batch.x, x, rtol=0, atol=2e-5 * np.abs(x).max())


def test_rows_without_a_guide_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call outside of the interval; with scale 0 none at all, no label, and the images of a bundle without guides."""
    calls: list[int] = []
    inner = Guides.gradient

    def counted(self: Guides, request: Any, i: int, *rest: Any) -> Any:
        calls.append(i)
        return inner(self, request, i, *rest)

    monkeypatch.setattr(Guides, "gradient", counted)
    plain = toy.build_bundle(Path(FOLDER.name) / "plain.bundle", None, defaults={"steps": 5, "method": "ddim_clipped"})
    with Sampler(bundle(), ANY_BACKEND) as guided, Sampler(plain, ANY_BACKEND) as unguided:
        recorded = guided.sample(2, seed=1, label=1)
        assert (recorded.setting.guide_scale, calls) == (2.0, [0, 1, 2, 3, 4])
        calls.clear()
        some = guided.sample(2, seed=1, label=1, guide_interval=(300, 500))
        assert calls == [i for i, t in enumerate(some.timesteps) if 300 <= t <= 500] != []
        calls.clear()
        none = guided.sample(2, seed=1, guide_scale=0)
        assert (none.values, calls) == ({}, [])
        np.testing.assert_array_equal(none.x, unguided.sample(2, seed=1).x)
        assert guided.sample(1, steps=3, seed=1).setting.guide_scale == 0, "a setting of the caller's own has no guide"
        assert np.abs(none.x - recorded.x).max() > 0.1
        with pytest.raises(ArgumentError, match="found no label, expected it"):
            guided.sample(2)


def test_a_gradient_that_is_not_finite_is_named_with_step_and_sample() -> None:
    with Sampler(bundle(nan=True), "onnxruntime", max_batch=2) as sampler:
        assert np.isfinite(sampler.sample(3, label=np.array([0, 1, 1])).x).all()
        with pytest.raises(NumericsError, match=r"guide 'guide_0'.* at step 1 of 5 \(timestep 800\) for sample 2"):
            sampler.sample(3, label=np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "ddim"}, "only ddim_clipped and ddpm take a guide"),
        ({"method": "plms"}, "only ddim_clipped and ddpm take a guide"),
        ({"label": 3}, "label runs from 3 to 3; expected values in 0 .. 2"),
        ({"guide_mode": "entropi"}, "expected one of constant, entropy, norm. Did you mean 'entropy'"),
        ({"guide_interval": (10, 5)}, "the lower one first"),
        ({"guide_interval": (801, 802)}, "holds none of this chain's timesteps"),
        ({"guide_scale": 0, "guide_interval": (0, 10)}, "but guide_scale is 0"),
        ({"guide_scale": np.nan}, "guide_scale is nan"),
        ({"quantize_denoised": True}, "no codebook"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with Sampler(bundle(), ANY_BACKEND) as sampler, pytest.raises(ArgumentError, match=sentence):
        sampler.sample(**{"label": 1, "guide_scale": 1.0, "seed": 0, **options})


def test_where_no_guide_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy.build_bundle(Path(FOLDER.name) / "none.bundle", None)
    with Sampler(plain, ANY_BACKEND) as sampler:
        with pytest.raises(ArgumentError, match="this bundle has no guide"):
            sampler.sample(guide_scale=1.0)
        with pytest.raises(ArgumentError, match=r"guide_interval is .*but guide_scale is 0"):
            sampler.sample(guide_interval=(0, 10))
    with Sampler(bundle(), ANY_BACKEND, size=(16, 8), overlap=0.5) as sampler:
        assert sampler.sample(guide_scale=0, seed=0).images.shape == (1, 16, 8, 3)
        with pytest.raises(ArgumentError, match="guides take images of 8 x 8 alone"):
            sampler.sample(label=1)
    assert not TensorRt.GUIDES
    with Sampler(bundle(), ANY_BACKEND) as sampler:
        monkeypatch.setattr(type(sampler._pipeline.backend), "GUIDES", False)
        with pytest.raises(ArgumentError, match=f"backend '{ANY_BACKEND}' runs no guides yet; pass guide_scale=0"):
            sampler.sample(label=1)


def test_a_fitted_setting_knows_no_guide(tmp_path: Path) -> None:
    """It is taken where no guide runs: where steps alone are named, or for a budget."""
    path = guided_toy.build(tmp_path / "fitted.bundle")
    digest = Bundle.open(path).manifest.graphs["denoiser"].sha256
    setting = toy.DEFAULTS | {"steps": 5, "timesteps": [900, 500, 300, 100, 20], "spacing": None}
    edit(path, "fitted", {"of": digest, "settings": [setting], "record": {}})
    with Sampler(path, ANY_BACKEND) as sampler:
        assert sampler.sample(label=1).setting.timesteps is None
        for fitted in ({"steps": 5}, {"setting": "fitted"}, {"guide_scale": 0}):
            found = sampler.sample(**fitted).setting
            assert (found.guide_scale, found.timesteps) == (0.0, (900, 500, 300, 100, 20))
        with pytest.raises(ArgumentError, match="a fitted setting, which knows no guide"):
            sampler.sample(label=1, budget_ms=1000, guide_scale=1.0)


def test_warming_up_runs_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Guides, "begin", lambda self, table: calls.append(len(table)))
    monkeypatch.setattr(Guides, "gradient", lambda self, request, i, x, *rest: np.zeros_like(x))
    with Sampler(bundle(), ANY_BACKEND) as sampler:
        sampler.warmup()
        sampler.warmup(2, guide_scale=1.0, method="ddpm")
    assert calls == [1, 1]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED)
def test_manifests_that_are_refused(field: str, value: object, message: str, tmp_path: Path) -> None:
    check_refused(guided_toy.build(tmp_path / "b.bundle", 2), field, value, message)


def test_a_bundle_without_guides_has_no_defaults_of_them(tmp_path: Path) -> None:
    plain = toy.build_bundle(tmp_path / "plain.bundle", None)
    assert Bundle.open(plain).manifest.guide is None
    edit(plain, "guide", {"scale": 1.0, "mode": "constant", "interval": None})
    with pytest.raises(BundleError, match="expected null, as the pipeline has no guides"):
        Bundle.open(plain)


def test_a_learned_variance_is_read_in_the_last_row_where_it_is_guided() -> None:
    """k_g exp(2 s_n v) is sigma^2 between beta~ (v = -1) and beta (v = 1), the last row's beta~ that of the one before."""
    schedule = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)
    options: dict[str, Any] = {"timesteps": KEPT, "method": "ddpm", "variance": "learned_range"}
    rows = build_step_table(schedule, **options, guide_scale=2.0).rows.astype(float)
    k_g, s_n, k_n = (rows[:, ROW_FIELDS.index(name)] for name in ("k_g", "s_n", "k_n"))
    a, p = ALPHA_BAR[KEPT], np.append(ALPHA_BAR[KEPT[1:]], 1.0)
    beta, posterior = 1 - a / p, (1 - a / p) * (1 - p) / (1 - a)
    posterior[-1] = posterior[-2]
    np.testing.assert_allclose(k_g * np.exp(2 * s_n), 2 * beta, rtol=1e-5)
    np.testing.assert_allclose(k_g * np.exp(-2 * s_n), 2 * posterior, rtol=1e-5)
    assert k_n[-1] == 0
    unguided, some = (build_step_table(schedule, **options, **more).rows for more in (
        {}, {"guide_scale": 2.0, "guide_interval": (400, 999)}
    ))  # fmt: skip
    np.testing.assert_array_equal(some[-2:], unguided[-2:])
    assert (some[:4, ROW_FIELDS.index("k_g")] != 0).all()
    assert unguided[-1, ROW_FIELDS.index("s_n")] == 0


def test_on_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        found = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert found.exit_code == 0, found.output
        return found.output

    said = ("--guide-scale", 1.5, "--guide-mode", "norm", "--guide-interval", "200,700", "--input", "label=1", "--seed", 3)
    output = run("sample", bundle(), *said, "--out", tmp_path / "a.npy", "--backend", ANY_BACKEND)
    assert "guide_scale 1.5, by norm, a guide from t 200 to 700" in output
    with Sampler(bundle(), ANY_BACKEND) as sampler:
        same = sampler.sample(seed=3, label=1, guide_scale=1.5, guide_mode="norm", guide_interval=(200, 700))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), same.images)
    told = run("info", bundle(2))
    assert "scale 2, constant; of 3 classes, 2 by timestep" in told
    assert "guide     guide_0(x, label, row=rows) -> g, entropy, t 0 to 500" in told
    assert "guide     guide_table(timesteps) -> rows, t 0 to 500" in told
    contents = json.loads(run("info", bundle(), "--json"))["bundle"]
    assert contents["guide"] == {"scale": 2.0, "mode": "constant", "interval": None}
    assert contents["graphs"]["guide_0"]["runs"] == ["guides"]
    assert contents["pipeline"]["guides"][0]["timesteps"] == [0, 999]
