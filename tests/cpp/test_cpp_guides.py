"""Guides in C++: the rows, the bits and the sentences of Python, on the toy bundles with guides (tests/guided_toy.py)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.bundle.fitted import as_defaults
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_fitted
from engine.commands import command
from engine.errors import ArgumentError, NumericsError
from engine.pipeline import table_of
from engine.resolve import setting_of
from tests import guided_toy, toy
from tests.cpp import building
from tests.cpp.bundles import SIZE, with_plans
from tests.cpp.capi import ARGUMENT, NUMERICS, UNSET, Arguments, CSampler, Failed, Library, looking, open_c
from tests.cpp.changed import changed_bundle
from tests.cpp.pairs import Pair, check, opened
from tests.cpp.test_cpp_steps import plain
from tests.manifests import edit

MODES = ("constant", "entropy", "norm")
LABELS = np.array([0, 2, 1])
SOLVERS: list[Arguments] = [
    {"method": "ddim_clipped"}, {"method": "ddim_clipped", "eta": [0.5, 1.0, 0.0, 0.2, 0.5], "noise_scale": 0.9},
    {"method": "ddpm"}, {"method": "ddpm", "variance": "fixedsmall", "eps_scale": 1.1, "temperature": 0.8},
]  # fmt: skip


@pytest.fixture(scope="module")
def library(cpp_runtimes: Path) -> Library:
    return Library(cpp_runtimes / "diffusevae" / building.LIBRARY)


@pytest.fixture(scope="module", params=["one", "two", "learned"])
def pair(request: pytest.FixtureRequest, library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A bundle with a guide, with two that meet at 500, or one whose network learns its variance; chunks of two samples."""
    folder = tmp_path_factory.mktemp("guided") / "b.bundle"
    path = guided_toy.build(folder, 2 if request.param == "two" else 1, learned=request.param == "learned")
    with opened(library, path, max_batch=2) as both:
        yield both


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("interval", [{}, {"guide_interval": (200, 500)}])
def test_bits_are_those_of_python(pair: Pair, mode: str, solver: Arguments, interval: Arguments) -> None:
    given = {"seed": 11, "steps": 5, "guide_scale": 0.7, "guide_mode": mode, **solver, **interval}
    check(pair, label=LABELS, **given)
    check(pair, label=np.array([1]), **given | {"guide_scale": -3.0})


def test_a_learned_variance_scales_each_element(pair: Pair) -> None:
    if not pair[0].bundle.manifest.pipeline.learns_variance:
        pytest.skip("one bundle of three has a network that learns its variance")
    given = {"seed": 4, "label": LABELS, "method": "ddpm", "variance": "learned_range", "spacing": "linspace"}
    for steps, mode in itertools.product((1, 2, 6), MODES):
        check(pair, **given, steps=steps, guide_mode=mode, guide_scale=2.0)
    check(pair, **given, steps=6, guidance=0.0)


def test_what_the_bundle_records_and_what_replaces_it(pair: Pair) -> None:
    theirs = pair[1]
    assert theirs.info.has_guides == 1
    assert theirs.info.defaults.values()["guide_scale"] == 2.0
    check(pair, seed=1, label=LABELS)
    check(pair, seed=1, guide_scale=0.0)
    check(pair, seed=1, steps=4)  # the library's own setting has no guide
    check(pair, seed=1, label=LABELS, guide_mode="norm")
    check(pair, seed=1, label=LABELS, guide_interval=(0, 650))
    timesteps = [999, 501, 500, 499, 0]
    check(pair, seed=1, label=LABELS, timesteps=timesteps, method="ddpm", guide_scale=1.0)
    check(pair, seed=1, label=LABELS, timesteps=[600, 2], method="ddpm", guide_scale=1.0)  # other tables of timesteps


def test_callbacks_clones_and_given_noise_see_the_same(pair: Pair) -> None:
    ours, theirs = pair
    rng = np.random.default_rng(5)
    given: Arguments = {"label": LABELS, "steps": 4, "method": "ddpm", "guide_mode": "norm", "guide_scale": 1.5}
    x_T, noise = rng.standard_normal((3, 3, 8, 8)), rng.standard_normal((4, 3, 3, 8, 8))
    given |= {"x_T": x_T.astype(np.float32), "noise": noise.astype(np.float32)}
    seen: dict[str, list[bytes]] = {"c": [], "python": []}
    batch = ours.sample(3, seed=0, **given, callback=lambda info: seen["python"].append(info.x0.tobytes()))
    look = looking(lambda step: seen["c"].append(theirs.seen(step)[1].tobytes()))
    assert theirs.sample(3, values=(), seed=0, **given, callback=look).x.tobytes() == batch.x.tobytes()
    assert seen["c"] == seen["python"]
    with theirs.clone() as twin:
        assert twin.sample(3, values=(), seed=0, **given).x.tobytes() == batch.x.tobytes()


def test_a_guide_that_the_bundle_does_not_use_is_loaded_when_it_is_asked_for(tmp_path: Path, library: Library) -> None:
    off = {"scale": 0.0, "mode": "norm", "interval": None}
    path = guided_toy.build(tmp_path / "off.bundle", 2, guide=off)
    with opened(library, path) as (ours, theirs), theirs.clone() as twin:
        for sampler in (theirs, twin, theirs):
            check((ours, sampler), seed=3)
            check((ours, sampler), seed=3, label=LABELS, guide_scale=1.0)


SCHEDULES: list[Arguments] = [
    {"recipe": "linear", "T": 1000, "start": 1e-4, "end": 0.02}, {"recipe": "linear", "T": 2, "start": 0.1, "end": 0.2},
    {"recipe": "cosine", "T": 40, "s": 0.008, "max_beta": 0.999},
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_are_those_of_python(schedule: Arguments, tmp_path: Path, library: Library) -> None:
    """Or both refuse them, in the same words but for how an option is written."""
    T = schedule["T"]
    path = guided_toy.build(tmp_path / "b.bundle", learned=True)
    edit(path, "schedule", schedule)
    edit(path, "defaults.steps", 1)
    for graph in ("timestep_table", "guide_table"):
        edit(path, f"graphs.{graph}.inputs.0.range", [0, T - 1])
    edit(path, "pipeline.guides.0.timesteps", [0, T - 1])
    manifest, compared = Bundle.open(path).manifest, 0
    ways = [{}, *({"variance": name} for name in ("fixedlarge", "fixedsmall", "learned_range"))]
    intervals = [{}, *({"guide_interval": ends} for ends in ((0, T - 1), (T // 3, T // 2), (T - 1, 0), (0, T), (T, T)))]
    scales = [{"guide_scale": scale} for scale in (0.0, 1.5, np.inf)]
    methods: list[Arguments] = [{"method": name} for name in ("ddpm", "ddim", "plms")]
    methods.append({"method": "ddim_clipped", "eta": 0.4})
    with open_c(library, path, backend="openvino") as sampler:
        for steps, *parts in itertools.product((1, 2, 7), methods, ways, intervals, scales):
            given: Arguments = {"steps": min(steps, T), "spacing": "trailing"}
            for part in parts:
                given |= part
            try:
                wanted = table_of(manifest, manifest.schedule.schedule(), setting_of(manifest, given))
            except ArgumentError as error:
                refusal = f"ARGUMENT: {error}"
            else:
                assert sampler.table(**given).rows.tobytes() == wanted.rows.tobytes()
                compared += int(wanted.takes_guide)
                continue
            with pytest.raises(Failed) as caught:
                sampler.table(**given)
            assert plain(refusal) == plain(str(caught.value))
    assert compared > 10


REFUSED: list[Arguments] = [
    {"method": "ddim"}, {"method": "plms"}, {"label": np.array([3])}, {"label": None}, {"guide_mode": "entropi"},
    {"guide_interval": (10, 5)}, {"guide_interval": (801, 802)}, {"guide_scale": 0.0, "guide_interval": (0, 10)},
    {"guide_scale": float("nan")}, {"quantize_denoised": True},
]  # fmt: skip


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_refused_is_refused_in_the_words_of_python(pair: Pair, given: Arguments) -> None:
    options = {"label": np.array([1]), "guide_scale": 1.0, "seed": 0, **given}
    options = {name: value for name, value in options.items() if value is not None}
    with pytest.raises(ArgumentError) as expected:
        pair[0].sample(1, **options)
    with pytest.raises(Failed) as caught:
        pair[1].sample(1, values=(), **options)
    assert caught.value.status == ARGUMENT
    assert plain(str(caught.value).removesuffix(" in inputs.")) == plain(f"ARGUMENT: {expected.value}")


def test_half_an_interval(pair: Pair) -> None:
    with pytest.raises(Failed, match="guide_interval has one of its two timesteps alone"):
        pair[1].sample(1, label=np.array([1]), guide_interval=(UNSET, 5))


def test_a_gradient_that_is_not_finite_is_named_with_step_and_sample(tmp_path: Path, library: Library) -> None:
    path = guided_toy.build(tmp_path / "nan.bundle", nan=True)
    with opened(library, path, max_batch=2) as (ours, c):
        label = np.array([0, 1, 2])
        with pytest.raises(NumericsError) as expected:
            ours.sample(3, label=label, seed=1)
        with pytest.raises(Failed) as caught:
            c.sample(3, label=label, seed=1)
        assert str(caught.value) == f"NUMERICS: {expected.value}"
        assert caught.value.status == NUMERICS
        assert "for sample 2" in str(caught.value)
        check((ours, c), label=np.array([0, 1, 1]), seed=1)


def refused_by_both(ours: Sampler, theirs: CSampler, **given: Any) -> None:
    with pytest.raises(ArgumentError) as expected:
        ours.sample(1, **given)
    with pytest.raises(Failed) as caught:
        theirs.sample(1, values=(), **given)
    said = f"ARGUMENT: {expected.value}".replace(command("build"), "diffusevae build")
    assert plain(str(caught.value)) == plain(said)


def test_where_no_guide_can_run(tmp_path: Path, library: Library) -> None:
    bare = toy.build_bundle(tmp_path / "bare.bundle", None)
    with opened(library, bare) as (ours, theirs):
        refused_by_both(ours, theirs, guide_scale=1.0)
        refused_by_both(ours, theirs, guide_interval=(0, 10))
        assert theirs.info.has_guides == 0
    path = guided_toy.build(tmp_path / "guided.bundle")
    with opened(library, path, height=16, width=8, overlap=0.5) as (ours, theirs):
        refused_by_both(ours, theirs, label=np.array([1]), seed=0)
        check((ours, theirs), seed=0, guide_scale=0.0)
    with opened(library, path, height=8, width=8, overlap=0.5) as (ours, theirs):
        check((ours, theirs), label=LABELS, seed=0)


def test_tensorrt_runs_no_guide_yet(tmp_path: Path, library: Library) -> None:
    """A bundle that records one is opened there, and sampled without it."""
    models = {"guide_0": guided_toy.guide_graph(0.3, knows_time=True), "guide_table": guided_toy.table_graph()}
    raw = guided_toy.manifest_of(toy.models_of(None, SIZE, 0, False) | models, ["onnxruntime", "tensorrt"], {})
    changes = {
        "inputs": lambda _: raw["inputs"], "pipeline": {"guides": raw["pipeline"]["guides"]}, "guide": raw["guide"],
        "graphs": {name: toy.graph_entry(name, model) for name, model in models.items()},
    }  # fmt: skip
    files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    path = changed_bundle(with_plans(tmp_path / "plain.bundle", "uncond"), tmp_path / "guided.bundle", changes, files)
    with open_c(library, path, backend="tensorrt") as c:
        with pytest.raises(Failed, match="guide_scale is 1, but backend 'tensorrt' runs no guides yet; pass"):
            c.sample(1, values=(), label=np.array([1]), steps=2, method="ddim_clipped", guide_scale=1.0)
        assert np.isfinite(c.sample(1, values=(), steps=2, method="ddim_clipped").x).all()


def test_a_mode_that_not_every_guide_knows(tmp_path: Path, library: Library) -> None:
    path = guided_toy.build(tmp_path / "b.bundle", 2, entropy=False)
    with opened(library, path) as (ours, theirs):
        refused_by_both(ours, theirs, label=np.array([1]), guide_mode="entropy")
        check((ours, theirs), label=LABELS, seed=2, guide_mode="norm")


def test_a_fitted_setting_is_taken_where_no_guide_runs(tmp_path: Path, library: Library) -> None:
    path = guided_toy.build(tmp_path / "b.bundle")
    write_fitted(path, [as_defaults({"timesteps": steps}) for steps in ([900, 700, 300, 100, 20], [400, 150, 25])], {})
    with opened(library, path) as (ours, theirs):
        for given in ({}, {"guide_scale": 0.0}, {"steps": 3}, {"steps": 3, "guide_scale": 0.0}, {"setting": "fitted"},
                      {"setting": "plain"}, {"setting": "fitted", "guide_mode": "norm"}, {"steps": 5, "guide_scale": 1.0,
                      "method": "ddpm"}, {"guide_scale": 1.0}, {"steps": 4}):  # fmt: skip
            wanted, found = setting_of(ours._pipeline.manifest, given), theirs.table(**given).setting
            assert found | {"spacing": None, "prior": None} == vars(wanted) | {"spacing": None}
        refused_by_both(ours, theirs, label=np.array([1]), budget_ms=1000.0, guide_scale=1.0)
        found = theirs.sample(1, values=(), budget_ms=1e6, seed=0)
        assert (found.setting["guide_scale"], len(found.timesteps)) == (0.0, 5)
