"""The step tables of C++ and Python. Every row and every start, bit for bit, for every solver and schedule."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import ArgumentError
from engine.solver.schedule import SPACINGS
from engine.solver.table import METHODS, VARIANCES, Schedule, StepTable, build_step_table
from tests.cpp import capi
from tests.cpp.capi import ARGUMENT, Arguments, CSampler, Failed, Library, open_c
from tests.cpp.changed import changed_bundle
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE

FORMULATIONS = {"form1": 1, "form2": 2, "uncond": None}
SCHEDULES: dict[str, tuple[int, float, float]] = {  # T, beta_1, beta_T
    "trained": (1000, 1e-4, 0.02),
    "long": (4000, 2.5e-5, 0.005),
    "short": (37, 1e-3, 0.5),
    "steep": (100, 1e-12, 0.999),
    "flat": (50, 0.01, 0.01),
    "two": (2, 0.1, 0.2),
    "one": (1, 0.1, 0.1),
}


@pytest.fixture(scope="module")
def opened(
    library: Library, native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], CSampler]]:
    """opened(model, schedule): a bundle that was trained with another schedule, as far as its manifest knows."""
    samplers: dict[tuple[str, str], CSampler] = {}

    def get(model: str, schedule: str) -> CSampler:
        if (model, schedule) not in samplers:
            T, beta_1, beta_T = SCHEDULES[schedule]
            changes = {
                "schedule": {"T": T, "beta_1": beta_1, "beta_T": beta_T},
                "defaults": {"steps": 1, "t_start": None, "spacing": "linspace"},
            }
            path = changed_bundle(native_bundle(model), tmp_path_factory.mktemp("schedule") / "other.bundle", changes)
            samplers[model, schedule] = open_c(library, path, threads=1)
        return samplers[model, schedule]

    yield get
    for sampler in samplers.values():
        sampler.free()


def expected(model: str, schedule: str, options: Arguments) -> StepTable:
    T, beta_1, beta_T = SCHEDULES[schedule]
    return build_step_table(Schedule(beta_1, beta_T, T), formulation=FORMULATIONS[model], **options)


def assert_same(wanted: StepTable, sampler: CSampler, options: Arguments) -> None:
    timesteps, rows, start, setting = sampler.table(**options)
    assert timesteps.tolist() == wanted.timesteps.tolist()
    assert rows.tobytes() == wanted.rows.tobytes()
    assert start == (wanted.start.k_noise, wanted.start.k_image, wanted.start.k_cond)
    assert (setting["method"], setting["spacing"]) == (wanted.method, wanted.spacing)


SOLVERS: list[Arguments] = [
    {"method": "ddim"}, {"method": "ddim", "eta": 0.3}, {"method": "ddim", "eta": 1.0, "clip": False},
    *({"method": "ddpm", "variance": variance} for variance in VARIANCES), {"temperature": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("model", FORMULATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tables(model: str, schedule: str, opened: Callable[[str, str], CSampler]) -> None:
    T, sampler, compared = SCHEDULES[schedule][0], opened(model, schedule), 0
    counts = sorted({1, 2, 3, 5, 10, T // 3 + 1, T} & set(range(1, T + 1)))
    starts = [None, *([] if model == "uncond" else sorted({0, 1, T // 2, T - 1} & set(range(T))))]
    for spacing, steps, t_start, solver in itertools.product(SPACINGS, counts, starts, SOLVERS):
        options = {"spacing": spacing, "steps": steps, **solver} | ({} if t_start is None else {"t_start": t_start})
        compared += assert_same_answer(model, schedule, sampler, options)
    assert compared >= len(SOLVERS)


def assert_same_answer(model: str, schedule: str, sampler: CSampler, options: Arguments) -> bool:
    """The same table from Python and C (true), or the same refusal (false)."""
    try:
        wanted = expected(model, schedule, options)
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


OPTIONS = st.fixed_dictionaries(
    {"steps": st.integers(-1, 1001), "variance": st.sampled_from(VARIANCES)},  # not given, it is the bundle's own
    optional={
        "method": st.sampled_from(tuple(METHODS)),
        "spacing": st.sampled_from(tuple(SPACINGS)),
        "eta": st.sampled_from([0.0, 0.1, 1.0, 5e-324, 1.5, -0.5]) | st.floats(0, 1),
        "t_start": st.integers(-1, 1000),
        "temperature": st.floats(-0.5, 1e6),
        "clip": st.booleans(),
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=OPTIONS, model=st.sampled_from(["form1", "form2"]))
def test_any_options(options: Arguments, model: str, opened: Callable[[str, str], CSampler]) -> None:
    assert_same_answer(model, "trained", opened(model, "trained"), options)


def test_the_number_of_steps_can_be_asked_for(opened: Callable[[str, str], CSampler]) -> None:
    sampler = opened("form1", "trained")
    options, _ = sampler.options({"steps": 60, "spacing": "quad"})
    table = sampler.library.made(capi.Table, "step_table")
    sampler.library.call("get_step_table", sampler.handle, options, table)
    wanted = expected("form1", "trained", {"steps": 60, "spacing": "quad"})
    assert table.steps == wanted.steps < 60
    room = np.zeros(wanted.steps, np.int64)
    table.timesteps, table.capacity = capi.address(room), wanted.steps - 1
    with pytest.raises(Failed, match=rf"capacity of the step table is {wanted.steps - 1}; this chain has {wanted.steps}"):
        sampler.library.call("get_step_table", sampler.handle, options, table)
    assert not room.any()
    table.capacity = wanted.steps
    sampler.library.call("get_step_table", sampler.handle, options, table)
    assert room.tolist() == wanted.timesteps.tolist()


def test_the_recorded_setting_is_replaced_as_a_whole(
    library: Library, native_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    recorded = {
        "steps": 4, "method": "ddim", "spacing": "trailing", "t_start": 450, "eta": 0.5, "temperature": 0.8,
        "guidance": 0.25,
    }  # fmt: skip
    changes = {"defaults": recorded, "variance": "fixedsmall"}
    path = changed_bundle(native_bundle("form1"), tmp_path / "a.bundle", changes)
    own = {
        "steps": 4, "method": "ddim", "spacing": "uniform", "t_start": None, "eta": 0.0, "temperature": 1.0, "guidance": 0.0,
    }  # fmt: skip
    everywhere = {"variance": "fixedsmall", "clip": True, "prior": "standard"}
    cases: list[tuple[Arguments, Arguments]] = [
        ({}, recorded),
        ({"guidance": 1.5, "temperature": 0.5}, recorded | {"guidance": 1.5, "temperature": 0.5}),
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
            assert sampler.table(**options)[3] == everywhere | wanted
