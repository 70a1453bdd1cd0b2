"""The step tables of C++ and Python. Every row and every start, bit for bit, for every solver and schedule."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.bundle.fitted import as_defaults
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_fitted
from engine.errors import ArgumentError
from engine.pipeline import table_of
from engine.resolve import setting_of
from engine.solver.levels import FIXED_VARIANCES
from engine.solver.table import METHODS, Schedule, StepTable, build_step_table
from engine.solver.timesteps import SPACINGS
from tests.cpp import capi
from tests.cpp.capi import ARGUMENT, Arguments, CSampler, Failed, Library, open_c
from tests.cpp.changed import changed_bundle
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE

MODELS = ("form1", "form2", "uncond")
RNG = np.random.default_rng(3)
SCHEDULES: dict[str, dict[str, Any]] = {
    "trained": {"recipe": "linear", "T": 1000, "start": 1e-4, "end": 0.02},
    "long": {"recipe": "linear", "T": 4000, "start": 2.5e-5, "end": 0.005},
    "short": {"recipe": "linear", "T": 37, "start": 1e-3, "end": 0.5},
    "steep": {"recipe": "linear", "T": 100, "start": 1e-12, "end": 0.999},
    "flat": {"recipe": "linear", "T": 50, "start": 0.01, "end": 0.01},
    "two": {"recipe": "linear", "T": 2, "start": 0.1, "end": 0.2},
    "one": {"recipe": "linear", "T": 1, "start": 0.1, "end": 0.1},
    "latent diffusion": {"recipe": "scaled_linear", "T": 1000, "start": 0.0015, "end": 0.0195},
    "scaled, one": {"recipe": "scaled_linear", "T": 1, "start": 0.1, "end": 0.2},
    "cosine": {"recipe": "cosine", "T": 1000, "s": 0.008, "max_beta": 0.999},
    "cosine, short": {"recipe": "cosine", "T": 20, "s": 0.0, "max_beta": 0.5},
    "table": {"recipe": "table", "T": 30, "betas": np.sort(RNG.uniform(1e-4, 0.3, 30)).tolist()},
}


class Opened(Protocol):
    """See the fixture `opened`."""

    def __call__(self, model: str, schedule: str, prediction: str = "eps") -> CSampler: ...


@pytest.fixture(scope="module")
def opened(
    library: Library, native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    """opened(model, schedule, prediction): a bundle that was trained otherwise, as far as its manifest knows."""
    samplers: dict[tuple[str, str, str], CSampler] = {}

    def get(model: str, schedule: str, prediction: str = "eps") -> CSampler:
        key = model, schedule, prediction
        if key not in samplers:
            changes = {
                "schedule": lambda _: SCHEDULES[schedule],
                "prediction": prediction,
                "defaults": {"steps": 1, "t_start": None, "spacing": "linspace"},
            }
            path = changed_bundle(native_bundle(model), tmp_path_factory.mktemp("schedule") / "other.bundle", changes)
            samplers[key] = open_c(library, path, threads=1)
        return samplers[key]

    yield get
    for sampler in samplers.values():
        sampler.free()


def expected(model: str, schedule: str, prediction: str, options: Arguments) -> StepTable:
    numbers = dict(SCHEDULES[schedule])
    made = Schedule.from_recipe(numbers.pop("recipe"), numbers.pop("T"), **numbers)
    given = {name: value for name, value in options.items() if name != "clip"}
    clip = 1.0 if options.get("clip", True) else None
    return build_step_table(made, prediction=prediction, centred=model == "form2", clip=clip, **given)


def assert_same(wanted: StepTable, sampler: CSampler, options: Arguments) -> None:
    found = sampler.table(**options)
    assert found.timesteps.tolist() == wanted.timesteps.tolist()
    assert found.rows.tobytes() == wanted.rows.tobytes()
    assert found.weights.tobytes() == wanted.weights.tobytes()
    assert found.weights.shape == wanted.weights.shape
    assert found.start == (wanted.start.k_noise, wanted.start.k_start, wanted.start.k_centre)
    assert (found.setting["method"], found.setting["spacing"]) == (wanted.method, wanted.spacing)


SOLVERS: list[Arguments] = [
    {"method": "ddim"}, {"method": "ddim", "eta": 0.3}, {"method": "ddim", "eta": 1.0, "clip": False},
    *({"method": "ddpm", "variance": variance} for variance in FIXED_VARIANCES), {"temperature": 0.7},
    *({"method": method} for method in ("ddim_clipped", "dpmpp_2m", "sde_dpmpp_2m", "unipc_2", "ipndm", "plms")),
    {"method": "ddpm", "variance": "fixedsmall", "noise_scale": 0.84, "eps_scale": 1.02},
    {"method": "plms", "eps_scale": 0.97, "clip": False},
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tables(model: str, schedule: str, opened: Opened) -> None:
    compare(model, schedule, "eps", opened)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("model", ["form1", "form2"])
@pytest.mark.parametrize("schedule", ["trained", "cosine", "one"])
def test_other_predictions(model: str, schedule: str, prediction: str, opened: Opened) -> None:
    compare(model, schedule, prediction, opened)


def compare(model: str, schedule: str, prediction: str, opened: Opened) -> None:
    T, sampler, compared = SCHEDULES[schedule]["T"], opened(model, schedule, prediction), 0
    counts = sorted({1, 2, 3, 5, 10, T // 3 + 1, T} & set(range(1, T + 1)))
    starts = [None, *([] if model == "uncond" else sorted({0, 1, T // 2, T - 1} & set(range(T))))]
    # Spacings and solvers know nothing of each other: every solver on one of the first, and the first on all of them.
    chosen = [("trailing", solver) for solver in SOLVERS] + [(spacing, SOLVERS[0]) for spacing in SPACINGS]
    for (spacing, solver), steps, t_start in itertools.product(chosen, counts, starts):
        options = {"spacing": spacing, "steps": steps, **solver} | ({} if t_start is None else {"t_start": t_start})
        compared += assert_same_answer(model, schedule, prediction, sampler, options)
    eps_only = sum(prediction not in METHODS[solver.get("method", "ddim")].predictions for solver in SOLVERS)
    assert compared >= len(SOLVERS) - eps_only


def assert_same_answer(model: str, schedule: str, prediction: str, sampler: CSampler, options: Arguments) -> bool:
    """The same table from Python and C (true), or the same refusal (false)."""
    try:
        wanted = expected(model, schedule, prediction, options)
    except ArgumentError as error:
        refusal = str(error)
    else:
        assert_same(wanted, sampler, options)
        return True
    with pytest.raises(Failed) as caught:
        sampler.table(**options)
    assert caught.value.status == ARGUMENT
    assert plain(f"ARGUMENT: {refusal}") == plain(str(caught.value))
    return False


INTERVALS: tuple[tuple[Arguments, bool], ...] = (
    ({"guidance": 1.5, "guidance_interval": (1, 600)}, True), ({"guidance": -1.0, "guidance_interval": (0, 999)}, True),
    ({"guidance": 1.5, "guidance_interval": (500, 500), "method": "plms"}, True),
    ({"guidance": 1.5, "guidance_interval": (600, 1)}, False), ({"guidance": 1.5, "guidance_interval": (0, 1000)}, False),
    ({"guidance": 1.5, "guidance_interval": (-1, 5)}, False), ({"guidance_interval": (1, 600)}, False),
    ({"guidance": 1.5, "guidance_interval": (501, 502)}, False),
)  # fmt: skip


@pytest.mark.parametrize(("options", "fits"), INTERVALS)
def test_guidance_on_an_interval(options: Arguments, fits: bool, opened: Opened) -> None:
    given = {"timesteps": [900, 700, 500, 20], "variance": "fixedlarge", **options}
    assert assert_same_answer("form1", "trained", "eps", opened("form1", "trained"), given) is fits


def plain(refusal: str) -> str:
    """A refusal apart from how Python and C write an option and a number."""
    text = re.sub(r"[-+0-9.e]+", lambda number: f"{float(number[0]):g}" if is_number(number[0]) else number[0], refusal)
    return re.sub(r"[ =.]", "", text)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def one_or_listed(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """A number, or a list of one a step of a chain of up to five."""
    return numbers | st.lists(numbers, min_size=1, max_size=5)


SCALES = st.sampled_from([0.0, 1.0, 0.84, -0.5, float("nan")]) | st.floats(0, 2)
VARIANCE = {"variance": st.sampled_from(FIXED_VARIANCES)}  # not given, it is the bundle's own
STEPS = {"steps": st.integers(-1, 1001) | st.integers(1, 5)}
TIMESTEPS = {"timesteps": st.lists(st.integers(-1, 1000), min_size=1, max_size=5).map(lambda them: sorted(them)[::-1])}
OPTIONAL = {
    "method": st.sampled_from(tuple(METHODS)),
    "rho": st.just(7.0) | st.floats(0.5, 101),
    "eta": one_or_listed(st.sampled_from([0.0, 0.1, 1.0, 5e-324, 1.5, -0.5]) | st.floats(0, 1)),
    "noise_scale": one_or_listed(SCALES),
    "eps_scale": one_or_listed(SCALES),
    "t_start": st.integers(-1, 1000),
    "temperature": st.floats(-0.5, 1e6),
    "guidance": st.sampled_from([0.0, 0.5, -1.0, 5e-324]) | st.floats(-5, 5),
    "guidance_interval": st.tuples(st.integers(-1, 1000), st.integers(-1, 1000)) | st.just((200, 800)),
    "clip": st.booleans(),
}
SPACING = {"spacing": st.sampled_from(tuple(SPACINGS))}
OPTIONS = st.fixed_dictionaries(STEPS | VARIANCE, optional=OPTIONAL | SPACING) | st.fixed_dictionaries(
    TIMESTEPS | VARIANCE, optional=OPTIONAL
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=OPTIONS, model=st.sampled_from(["form1", "form2"]))
def test_any_options(options: Arguments, model: str, opened: Opened) -> None:
    assert_same_answer(model, "trained", "eps", opened(model, "trained"), options)


def test_the_number_of_rows_can_be_asked_for(opened: Opened) -> None:
    sampler = opened("form1", "trained")
    options, _ = sampler.options({"steps": 60, "spacing": "quad"})
    table = sampler.library.made(capi.Table, "step_table")
    sampler.library.call("get_step_table", sampler.handle, options, table)
    wanted = expected("form1", "trained", "eps", {"steps": 60, "spacing": "quad"})
    rows = len(wanted)
    assert table.calls == rows < 60
    assert table.lanes == 1
    room = np.zeros(rows, np.int64)
    table.timesteps, table.capacity = capi.address(room), rows - 1
    with pytest.raises(Failed, match=rf"capacity of the step table is {rows - 1}; this chain has {rows} rows"):
        sampler.library.call("get_step_table", sampler.handle, options, table)
    assert not room.any()
    table.capacity = rows
    sampler.library.call("get_step_table", sampler.handle, options, table)
    assert room.tolist() == wanted.timesteps.tolist()


def test_the_recorded_setting_is_replaced_as_a_whole(
    library: Library, native_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    recorded = {
        "steps": 4, "timesteps": (450, 200, 50, 9), "spacing": None, "rho": 7.0, "method": "ddim", "t_start": 450,
        "eta": (0.5, 1.0, 0.0, 0.0), "temperature": 0.8, "noise_scale": (0.9, 0.8, 1.0, 1.0), "eps_scale": 1.02,
        "guidance": 0.25,
    }  # fmt: skip
    changes = {"defaults": recorded, "variance": "fixedsmall"}
    path = changed_bundle(native_bundle("form1"), tmp_path / "a.bundle", changes)
    own = {
        "steps": 4, "timesteps": None, "spacing": "uniform", "rho": 7.0, "method": "ddim", "t_start": None, "eta": 0.0,
        "temperature": 1.0, "noise_scale": 1.0, "eps_scale": 1.0, "guidance": 0.0,
    }  # fmt: skip
    listed = own | {"spacing": None}
    everywhere = {"variance": "fixedsmall", "clip": True, "prior": "standard", "guidance_interval": None}
    everywhere |= {"quantize_denoised": False, "guide_scale": 0.0, "guide_mode": "constant", "guide_interval": None}
    everywhere |= {"regularise": "off", "regularise_interval": None}
    cases: list[tuple[Arguments, Arguments]] = [
        ({}, recorded),
        ({"guidance": 1.5, "temperature": 0.5}, recorded | {"guidance": 1.5, "temperature": 0.5}),
        ({"noise_scale": 0.5, "eps_scale": [1.0] * 4}, recorded | {"noise_scale": 0.5, "eps_scale": (1.0,) * 4}),
        ({"timesteps": [9, 3], "eta": [1.0, 0.0]}, listed | {"steps": 2, "timesteps": (9, 3), "eta": (1.0, 0.0)}),
        ({"spacing": "karras", "rho": 3.0}, own | {"spacing": "karras", "rho": 3.0}),
        ({"guidance_interval": (9, 200)}, recorded | {"guidance_interval": (9, 200)}),
        ({"variance": "fixedlarge"}, recorded | {"variance": "fixedlarge"}),
        ({"steps": 5}, own | {"steps": 5}),
        ({"method": "ddpm"}, own | {"method": "ddpm"}),
        ({"eta": 0.0}, own),
        ({"spacing": "quad", "guidance": 0.5}, own | {"spacing": "quad", "guidance": 0.5}),
        ({"t_start": 300}, own | {"t_start": 300, "spacing": "linspace"}),
    ]
    with open_c(library, path, threads=1) as sampler:
        assert sampler.info.defaults.values() == recorded | everywhere
        for options, wanted in cases:
            assert sampler.table(**options).setting == everywhere | wanted


FITTED = (
    {"timesteps": [400, 150, 25], "t_start": 400, "eta": 1.0, "noise_scale": 0.84, "eps_scale": 1.01},
    {"timesteps": [900, 700, 300, 100, 20], "method": "dpmpp_2m"},
)


def test_fitted_settings_are_meant_as_in_python(
    library: Library, native_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    recorded = {"steps": 5, "spacing": "trailing", "eta": 0.5}
    path = changed_bundle(native_bundle("form1"), tmp_path / "a.bundle", {"defaults": recorded})
    write_fitted(path, [as_defaults(setting) for setting in FITTED], {})
    manifest = Bundle.open(path).manifest
    asked: list[Arguments] = [
        {}, {"steps": 3}, {"steps": 5}, {"steps": 4}, {"setting": "plain"}, {"setting": "plain", "steps": 3},
        {"setting": "fitted", "steps": 3, "temperature": 0.5}, {"steps": 3, "noise_scale": 0.5}, {"steps": 3, "eta": 0.0},
        {"timesteps": [9, 5, 1]}, {"steps": 3, "spacing": "linspace"},
    ]  # fmt: skip
    with open_c(library, path, threads=1) as sampler:
        for options in asked:
            ours = setting_of(manifest, options)
            found = sampler.table(**options)
            wanted = table_of(manifest, manifest.schedule.schedule(), ours)
            assert found.timesteps.tolist() == wanted.timesteps.tolist(), options
            assert found.rows.tobytes() == wanted.rows.tobytes(), options
            assert found.setting["steps"] == ours.steps
        for options, words in (
            ({"setting": "fited"}, "setting.* 'fited'.*fitted"),
            ({"setting": "fitted", "steps": 4}, "this bundle has none of 4 steps"),
            ({"setting": "fitted", "eta": 1.0}, "which a fitted setting says itself"),
        ):
            with pytest.raises(Failed, match=words):
                sampler.table(**options)
            with pytest.raises(ArgumentError, match=words):
                setting_of(manifest, options)
