"""The options of a TensorRT build. Ranges of shapes, targets and builder settings, checked before any work is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import ArgumentError, did_you_mean

# Compute capabilities that TensorRT for RTX builds for, in the order of their bits in a plan's header.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
# Turing is left out: it costs the others speed, and refuses every matrix product that is not in half precision.
RTX_DEFAULT_TARGETS = ("sm80", "sm86", "sm89", "sm120")
NOT_RTX = {"sm87": "Jetson Orin", "sm90": "H100, H200", "sm100": "B200", "sm103": "B300", "sm110": "Jetson Thor"}
# As NVIDIA writes them elsewhere.
DOTTED_TARGETS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
TARGET = re.compile(r"sm[1-9][0-9]{1,2}")
HARDWARE = ("none", "same_compute_capability", "ampere_plus")
LEVELS = range(6)
MAX_BATCH = 4096
MAX_WORKSPACE_MIB = 2**20


class Range(NamedTuple):
    """The sizes that a free dimension may have in a plan, and the one that its kernels are chosen for."""

    low: int
    usual: int
    high: int


# Tactics chosen at 4 images lose little at 1 and at 16; the activations of the largest batch are always allocated.
DEFAULT_BATCH = Range(1, 4, 16)
DEFAULT_STEPS = Range(1, 10, 1000)
DEFAULT_LEVEL = 3  # the library's own
LANES = Range(1, 1, 2)  # the sampler graph's network calls a step: two with guidance


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is built with. `targets` may be empty for TensorRT proper: the GPU that builds is the target."""

    batch: Range = DEFAULT_BATCH
    steps: Range = DEFAULT_STEPS
    targets: tuple[str, ...] = ()
    level: int = DEFAULT_LEVEL
    workspace_mib: int | None = None
    hardware: str = "none"
    timing_cache: Path | None = None

    def sizes(self) -> dict[str, Range]:
        """{free dimension: the range of its sizes}."""
        noise_steps = Range(1, self.steps.usual, self.steps.high)  # one slice of zeros stands for no noise at all
        return {"batch": self.batch, "steps": self.steps, "rows": self.steps, "noise_steps": noise_steps, "lanes": LANES}

    def as_entry(self, free: Iterable[str]) -> dict[str, Any]:
        """What the manifest records of a plan with these free dimensions, and one that is used again must match."""
        sizes = self.sizes()
        return {
            "profile": {name: list(sizes[name]) for name in sorted(set(free))},
            "optimization_level": self.level,
            "workspace_mib": self.workspace_mib,
            "hardware": self.hardware,
            "tf32": False,
        }


def read_options(backend: str, options: Mapping[str, Any], steps: int = 10, T: int = 1000) -> PlanOptions:
    """The options of the command line for one backend; ArgumentError names the option that cannot be used.

    options: keys targets, trt_batch, trt_level, trt_workspace, trt_hardware, trt_timing_cache; absent or None is not
    given. steps, T: of the model, the usual and the largest number of steps.
    """
    level = _integer(options, "trt_level", DEFAULT_LEVEL)
    if level not in LEVELS:
        raise ArgumentError(f"--trt-level: found {level}, expected {LEVELS[0]} to {LEVELS[-1]}; 3 is the library's own")
    workspace = _integer(options, "trt_workspace", None)
    if workspace is not None and not 1 <= workspace <= MAX_WORKSPACE_MIB:
        raise ArgumentError(f"--trt-workspace: found {workspace}, expected 1 to {MAX_WORKSPACE_MIB} MiB")
    rtx = backend == "tensorrt_rtx"
    given = tuple(options.get("targets") or ())
    return PlanOptions(
        batch=_batch(options.get("trt_batch") or DEFAULT_BATCH),
        steps=Range(1, min(steps, T), T),
        targets=rtx_targets(given or RTX_DEFAULT_TARGETS) if rtx else _one_target(given),
        level=level,
        workspace_mib=workspace,
        hardware="none" if rtx else _hardware(options.get("trt_hardware") or "none"),
        timing_cache=None if rtx else options.get("trt_timing_cache"),
    )


def _integer(options: Mapping[str, Any], key: str, default: Any) -> Any:
    value = options.get(key)
    return default if value is None else value


def _batch(found: tuple[int, ...]) -> Range:
    batch = tuple(found)
    if len(batch) != 3 or not 1 <= batch[0] <= batch[1] <= batch[2] <= MAX_BATCH:
        raise ArgumentError(
            f"--trt-batch: found {' '.join(map(str, batch))}, expected MIN OPT MAX with 1 <= MIN <= OPT <= MAX <= "
            f"{MAX_BATCH}: the batch sizes that a plan accepts, and between them the one that it is fastest at"
        )
    return Range(*batch)


def _hardware(found: str) -> str:
    if found not in HARDWARE:
        raise ArgumentError(
            f"--trt-hardware: found {found!r}, expected one of {', '.join(HARDWARE)}.{did_you_mean(found, HARDWARE)}"
        )
    return found


def _normalised(target: str) -> str:
    """sm86 for what people write: SM86, sm_86, 8.6."""
    text = target.strip().lower().replace("_", "")
    major, dot, minor = text.removeprefix("sm").partition(".")
    return f"sm{major}{minor}" if dot else text


def rtx_targets(given: tuple[str, ...]) -> tuple[str, ...]:
    """The targets of a TensorRT for RTX plan in the order of their bits; ArgumentError for any other."""
    wanted = [_normalised(target) for target in given]
    for target, written in zip(wanted, given, strict=True):
        if target in NOT_RTX:
            raise ArgumentError(
                f"--targets: found {written!r} ({NOT_RTX[target]}), expected targets of TensorRT for RTX: "
                f"{', '.join(RTX_TARGETS)}; {NOT_RTX[target]} need TensorRT proper: build on such a machine with "
                "--backends tensorrt"
            )
        if target not in RTX_TARGETS:
            raise ArgumentError(
                f"--targets: found {written!r}, expected one or more of {', '.join(RTX_TARGETS)}."
                f"{did_you_mean(target, RTX_TARGETS)}"
            )
    if len(set(wanted)) < len(wanted):
        raise ArgumentError(f"--targets: found {' '.join(given)}, expected each target once")
    return tuple(target for target in RTX_TARGETS if target in wanted)


def _one_target(given: tuple[str, ...]) -> tuple[str, ...]:
    """TensorRT proper builds for the GPU that it runs on; a target that is given is compared with that one."""
    wanted = tuple(_normalised(target) for target in given)
    if len(wanted) > 1:
        raise ArgumentError(
            f"--targets: found {' '.join(given)}, expected one at most: a TensorRT plan is for the GPU that it is built on; "
            "for several give --trt-hardware ampere_plus, or build --backends tensorrt_rtx"
        )
    if wanted and not TARGET.fullmatch(wanted[0]):
        raise ArgumentError(f"--targets: found {given[0]!r}, expected a compute capability such as sm86 or sm90")
    return wanted
