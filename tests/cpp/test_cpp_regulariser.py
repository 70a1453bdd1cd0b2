"""A regulariser in C++: the rows, the bits and the sentences of Python, on toy bundles (tests/regularised_toy.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ArgumentError, NumericsError
from engine.pipeline import table_of
from engine.resolve import setting_of
from tests import golden_models, regularised_toy, toy
from tests.cpp import building
from tests.cpp.capi import ARGUMENT, NUMERICS, Arguments, Failed, Library
from tests.cpp.pairs import Pair, check, opened
from tests.cpp.test_cpp_steps import plain
from tests.native_models import NEEDS_NATIVE

SOLVERS: list[Arguments] = [
    {"method": "ddim"}, {"method": "ddim", "eta": [0.5, 1.0, 0.0, 0.2, 0.5], "noise_scale": 0.9, "eps_scale": 1.1},
    {"method": "ddim_clipped", "eta": 0.3, "guidance": 0.7}, {"method": "ddpm"},
    {"method": "ddpm", "variance": "fixedsmall", "temperature": 0.8, "guidance": 1.5, "guidance_interval": (200, 700)},
]  # fmt: skip


@pytest.fixture(scope="module")
def library(cpp_runtimes: Path) -> Library:
    return Library(cpp_runtimes / "diffusevae" / building.LIBRARY)


@pytest.fixture(scope="module", params=["eps", "x0", "v", "learned"])
def pair(request: pytest.FixtureRequest, library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A bundle whose regulariser predicts this, or whose networks have learned their variances; chunks of two samples."""
    folder = tmp_path_factory.mktemp("regularised") / "b.bundle"
    learned = ("denoiser", "regulariser") if request.param == "learned" else ()
    path = regularised_toy.build(folder, "v" if learned else request.param, "before", learned=learned)
    with opened(library, path, max_batch=2) as both:
        yield both


@pytest.mark.parametrize("mode", ["off", "after", "before"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_bits_are_those_of_python(pair: Pair, mode: str, solver: Arguments) -> None:
    check(pair, seed=11, steps=5, regularise=mode, **solver)
    if mode != "off":
        check(pair, seed=11, steps=5, regularise=mode, regularise_interval=(200, 500), **solver)


@pytest.mark.parametrize("mode", ["off", "after", "before"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "karras"])
def test_tables_are_those_of_python(pair: Pair, mode: str, spacing: str) -> None:
    ours, theirs = pair
    manifest = ours.bundle.manifest
    for solver in (*SOLVERS[2:], {"clip": False, "eps_scale": 0.9}):
        given = {"steps": 5, "spacing": spacing, "regularise": mode, **solver}
        table = table_of(manifest, manifest.schedule.schedule(), setting_of(manifest, given))
        found = theirs.table(**given)
        assert found.timesteps.tolist() == table.timesteps.tolist()
        assert found.rows.tobytes() == table.rows.tobytes()
        assert found.weights.tobytes() == table.weights.tobytes()
        assert found.nets.tolist() == ([0] * len(table) if table.nets is None else table.nets.tolist())


def test_what_the_bundle_records_and_what_replaces_it(pair: Pair) -> None:
    theirs = pair[1]
    assert theirs.info.has_regulariser == 1
    assert theirs.info.defaults.values()["regularise"] == "before"
    for given in ({}, {"regularise": "off"}, {"steps": 4}, {"regularise": "after"}, {"regularise_interval": (0, 500)}):
        check(pair, seed=1, **given)


def test_a_learned_variance_is_that_of_the_network_which_takes_the_step(pair: Pair) -> None:
    if not pair[0].bundle.manifest.pipeline.learns_variance:
        pytest.skip("one bundle of four has networks that learn their variances")
    for mode in ("after", "before"):
        check(pair, seed=4, method="ddpm", variance="learned_range", spacing="linspace", steps=4, regularise=mode)


@NEEDS_NATIVE
def test_two_networks_on_the_native_engine(library: Library, tmp_path: Path) -> None:
    """Of two golden models, and nothing beside it."""
    from export.build import Request, build

    files = {name: golden_models.write_checkpoint(name, tmp_path / f"{name}.ckpt") for name in ("form1", "uncond")}
    second = {name: value for name, value in golden_models.build_options("uncond").items() if name != "name"}
    options = golden_models.build_options("form1") | {"regulariser": files["uncond"], "regulariser_options": second}
    out, backends = tmp_path / "b.bundle", ("onnxruntime", "native")
    path = build(Request(files["form1"], out=out, backends=backends, options=options)).path
    with opened(library, path, max_batch=2, backend="native", precision="bf16") as both:
        for mode in ("off", "after", "before"):
            check(both, seed=2, steps=4, eta=0.5, regularise=mode)


def test_callbacks_clones_edits_and_given_noise_see_the_same(pair: Pair) -> None:
    ours, theirs = pair
    rng = np.random.default_rng(5)
    given: Arguments = {"steps": 4, "method": "ddpm", "regularise": "after", "seed": 0}
    x_T, noise = rng.standard_normal((3, 3, 8, 8)), rng.standard_normal((7, 3, 3, 8, 8))
    given |= {"x_T": x_T.astype(np.float32), "noise": noise.astype(np.float32)}
    seen: list[tuple[int, int]] = []
    batch = ours.sample(3, **given, callback=lambda info: seen.append((info.step, info.timestep)))
    assert [step for step, _ in seen] == [*range(7), *range(7)]
    with theirs.clone() as clone:
        assert clone.sample(3, values=(), **given).x.tobytes() == batch.x.tobytes()
    images = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    masks = (rng.random((2, 8, 8)) > 0.5).astype(np.uint8) * 255
    options: Arguments = {"steps": 4, "spacing": "linspace", "regularise": "before", "seed": 3}
    expected = ours.inpaint(images, masks, **options)
    found = theirs.inpaint(images, masks, values=(), **options)
    assert found.images.tobytes() == expected.images.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "dpmpp_2m"}, {"regularise": "afte"}, {"steps": 1, "spacing": "linspace"},
        {"regularise_interval": (10, 5)}, {"regularise_interval": (801, 802)},
        {"regularise": "off", "regularise_interval": (0, 10)},
        {"regularise": "before", "regularise_interval": (0, 1000)}, {"regularise": "before", "method": "plms"},
        {"budget_ms": 10.0, "steps": None},
    ],
)  # fmt: skip
def test_sentences_are_those_of_python(pair: Pair, options: Arguments) -> None:
    said = {"regularise": "after", "steps": 5, "seed": 0} | options
    given = {name: value for name, value in said.items() if value is not None}
    with pytest.raises(ArgumentError) as ours:
        pair[0].sample(**given)
    with pytest.raises(Failed) as theirs:
        pair[1].sample(1, values=(), **given)
    assert theirs.value.status == ARGUMENT
    assert plain(str(theirs.value).partition(": ")[2]) == plain(str(ours.value))


def test_bundles_that_have_none_or_learned_no_variance(library: Library, tmp_path: Path) -> None:
    one = regularised_toy.build(tmp_path / "one.bundle", learned=("denoiser",))
    none = toy.build_bundle(tmp_path / "none.bundle")
    cases: list[tuple[Path, Arguments]] = [
        (one, {"regularise": "before", "method": "ddpm", "variance": "learned_range"}), (none, {"regularise": "after"}),
    ]  # fmt: skip
    for path, given in cases:
        with opened(library, path) as (ours, theirs):
            with pytest.raises(ArgumentError) as expected:
                ours.sample(**given)
            with pytest.raises(Failed) as found:
                theirs.sample(1, values=(), **given)
            words = str(found.value).partition(": ")[2].partition("build the bundle")[0]
            assert plain(words) == plain(str(expected.value).partition("build the bundle")[0])
    with opened(library, one) as both:  # a second network without room for what it does not say
        check(both, seed=2, method="ddpm", variance="learned_range", regularise="after", steps=4)
    other = regularised_toy.build(tmp_path / "other.bundle", learned=("regulariser",))
    with opened(library, other) as both:  # and one that says what nobody reads
        check(both, seed=2, method="ddpm", regularise="before", steps=4)


def test_another_size_runs_none(library: Library, tmp_path: Path) -> None:
    path = regularised_toy.build(tmp_path / "b.bundle", sized=True)
    with opened(library, path, height=16, width=8, overlap=0.5) as (ours, theirs):
        assert theirs.sample(1, values=(), seed=0).x.tobytes() == ours.sample(seed=0).x.tobytes()
        with pytest.raises(ArgumentError, match="regulariser takes images of 8 x 8 alone") as expected:
            ours.sample(seed=0, regularise="after")
        with pytest.raises(Failed) as found:
            theirs.sample(1, values=(), seed=0, regularise="after")
        assert plain(str(found.value).partition(": ")[2]) == plain(str(expected.value))


def test_a_network_that_returns_nan_is_named(library: Library, tmp_path: Path) -> None:
    path = regularised_toy.build(tmp_path / "b.bundle", nan=True)
    given: Arguments = {"regularise": "after", "steps": 5, "seed": 0}
    with opened(library, path) as (ours, theirs):
        with pytest.raises(NumericsError, match=r"graph 'regulariser' .* at step 2 of 9 \(timestep 600\)"):
            ours.sample(**given)
        with pytest.raises(Failed, match=r"graph 'regulariser' .* at step 2 of 9 \(timestep 600\)") as found:
            theirs.sample(1, values=(), **given)
    assert found.value.status == NUMERICS
