"""The GPU runtime gives everything back whatever fails: every call of driver and TensorRT fails in turn, on mocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engine import Sampler
from engine.bundle.reader import Bundle
from engine.device.driver import BINDINGS
from engine.errors import BackendError, DeviceError, EngineError
from engine.result import Batch
from tests.integration.test_gpu_runtime_mock import bundles, same
from tests.mock_cuda import RELEASES, MockCuda
from tests.mock_tensorrt import Mock
from tests.unit.test_device import without_driver

__all__ = ["bundles"]  # a fixture


def scenario(bundle: Bundle, mock: Mock, expected: list[Batch]) -> None:
    """Load, first run (and capture), replay, a shape more, a watched run, results on the device, a clone, close."""
    with Sampler(bundle, "tensorrt_rtx") as gpu:
        same(gpu.sample(2, steps=2, seed=0), expected[0])
        same(gpu.sample(2, steps=2, seed=0), expected[0])
        same(gpu.sample(2, steps=2, seed=0, guidance=0.5, callback=lambda info: None), expected[1])
        same(gpu.sample_on_device(2, steps=2, seed=0).numpy(), expected[0])
        gpu.encode(expected[0].images)
        with gpu.clone() as twin:
            same(twin.sample(2, steps=2, seed=0), expected[0])


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Bundle]) -> list[Batch]:
    with Sampler(bundles["form1"], "onnxruntime", "f32", 1) as cpu:
        return [cpu.sample(2, steps=2, seed=0), cpu.sample(2, steps=2, seed=0, guidance=0.5)]


def count_calls(bundle: Bundle, expected: list[Batch]) -> list[str]:
    """The names of all calls that the scenario makes, in order."""
    with pytest.MonkeyPatch.context() as patch:
        mock = Mock().install(patch)
        scenario(bundle, mock, expected)
        assert mock.leaks() == {}
        return [name for name, _ in mock.cuda.calls]


def caught(run: Callable[[], object]) -> EngineError | None:
    """The typed error that `run` ends with, if any; every other exception is a failure of the test."""
    try:
        run()
    except EngineError as error:
        return error
    return None


def one_fault(bundle: Bundle, expected: list[Batch], at: int, status: int, sticky: bool = False) -> str:
    """Let call `at` of the scenario fail; what came of it: "error", or "survived" where the runtime goes on without.

    "unreachable" is the error of a context that cannot be made current to give its objects back: they die with it.
    """
    with pytest.MonkeyPatch.context() as patch:
        mock = Mock().install(patch)
        mock.cuda.sticky = sticky
        mock.cuda.arm(at, status)
        outcome = "survived"
        problem = caught(lambda: scenario(bundle, mock, expected))
        if problem is not None:
            outcome = "error"
            assert isinstance(problem, BackendError), problem
            assert re.search(r"found .*expected ", str(problem)), problem
        problem = None  # its traceback holds the sampler's arrays
        assert mock.cuda.failed[:1] or outcome == "survived"
        mock.cuda.disarm()
        mock.cuda.sticky = False
        left = mock.leaks()
        if sticky:
            return outcome
        # What the failed call itself should have given back is all that may be left.
        failed = mock.cuda.failed[0] if mock.cuda.failed else ""
        allowed = 1 if failed in RELEASES else 0
        if failed == "cuCtxPushCurrent" and left:
            return "unreachable"
        assert sum(left.values()) <= allowed, (at, failed, left)
    return outcome


# Calls of which there are many alike, one after the other: every sixth of them is as good as all; of others, every second.
ALIKE = ("cuEvent", "set_", "cuMemcpyDtoH")


# A result's memory is given back by a finalizer, whose failure the interpreter reports as a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_call_may_fail(bundles: dict[str, Bundle], expected: list[Batch]) -> None:
    names = count_calls(bundles["form1"], expected)
    firsts = {names.index(name) for name in names}
    cases = [at for at, name in enumerate(names) if at in firsts or at % (6 if name.startswith(ALIKE) else 2) == 0]
    assert len(cases) > 120, "each a whole life of a sampler"
    assert {names[at] for at in cases} == set(names), "every call there is"
    outcomes = Counter(one_fault(bundles["form1"], expected, at, 999) for at in cases)
    assert outcomes["error"] > 0.8 * outcomes.total(), outcomes
    assert outcomes["unreachable"] <= 8, outcomes  # a chain, a graph or a result is being closed


def test_memory_may_run_out_at_every_allocation(bundles: dict[str, Bundle], expected: list[Batch]) -> None:
    names = count_calls(bundles["form1"], expected)
    allocations = [at for at, name in enumerate(names) if name in ("cuMemAlloc", "cuMemAllocHost")]
    assert len(allocations) > 12
    for at in allocations:
        assert one_fault(bundles["form1"], expected, at, 2) == "error"


def test_a_lost_device_is_refused_clearly_wherever_it_is_lost(bundles: dict[str, Bundle], expected: list[Batch]) -> None:
    names = count_calls(bundles["form1"], expected)
    waits = [at for at, name in enumerate(names) if name in ("cuStreamSynchronize", "cuLaunchKernel", "cuGraphLaunch")]
    for at in waits[::2]:
        assert one_fault(bundles["form1"], expected, at, 700, sticky=True) == "error"


def test_after_any_fault_in_a_run_the_sampler_works_again(bundles: dict[str, Bundle], expected: list[Batch]) -> None:
    """The sampler stays open: every call of a first run, a replay and a watched run fails once, the next run is right."""
    cases = 0
    for runs in (0, 2):  # before the shape is known, and once its graph is captured
        for options in ({}, {"callback": lambda info: None}):
            with pytest.MonkeyPatch.context() as patch:
                mock = Mock().install(patch)
                with Sampler(bundles["form1"], "tensorrt_rtx") as gpu:
                    at = 0
                    while True:
                        for _ in range(runs):
                            gpu.sample(2, steps=2, seed=0)
                        mock.cuda.arm(at)
                        problem = caught(lambda gpu=gpu, options=options: gpu.sample(2, steps=2, seed=0, **options))
                        said = "CUDA_ERROR_UNKNOWN" if isinstance(problem, DeviceError) else "tensorrt_rtx refuses"
                        assert problem is None or said in str(problem)
                        done = not mock.cuda.failed
                        mock.cuda.disarm()
                        same(gpu.sample(2, steps=2, seed=0), expected[0])
                        if runs == 0:  # forget the shape, so that the next fault meets a first run again
                            chain: Any = gpu._pipeline.chain
                            with chain.device.current():
                                chain._shapes.close(chain.device)
                        if done:
                            break
                        at, cases = at + 1, cases + 1
    assert cases > 100, cases


def test_the_real_bindings_take_every_call_as_it_is_made(bundles: dict[str, Bundle], expected: list[Batch]) -> None:
    """Without a driver a call ends in "no driver", after its arguments were converted: a wrong type would be seen first."""
    if not without_driver():
        pytest.skip("this machine has a CUDA driver: its calls would have effects")
    real = pytest.importorskip(BINDINGS)
    with pytest.MonkeyPatch.context() as patch:
        mock = Mock().install(patch)
        scenario(bundles["form1"], mock, expected)
        calls = list({name: arguments for name, arguments in mock.cuda.calls if hasattr(MockCuda, f"_{name}")}.items())
    assert len(calls) > 35
    for name, arguments in calls:
        given = [_real(real, value) for value in arguments]
        with pytest.raises(RuntimeError, match="driver"):
            getattr(real, name)(*given)


def _real(real: Any, value: Any) -> Any:
    """The real bindings' member of an enumeration, where the mock's own was passed."""
    kind = type(value).__name__
    return getattr(getattr(real, kind), value.name) if hasattr(value, "name") and hasattr(real, kind) else value
