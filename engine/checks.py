"""Checks of a request: every array and option, before anything runs.

Each function returns the one form that the rest of the engine works with, or raises ArgumentError saying what
was found, what was expected and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.argument_checks import (
    check_choice,
    check_flag,
    check_integer,
    check_integers,
    check_interval,
    check_name,
    check_number,
    check_numbers,
)
from engine.bundle.inputs import InputSpec
from engine.bundle.tensors import STEPS
from engine.errors import ArgumentError, did_you_mean
from engine.result import F32, Setting
from engine.solver.guides import MODES
from engine.solver.regulariser import REGULARISE
from engine.solver.timesteps import LEAST_RHO, MOST_RHO

# Naming any of these replaces the bundle's recorded setting as a whole: half of one few-step setting and half of another
# (a recorded t_start with other steps, say) is a setting that was never measured.
REPLACES_RECORDED = ("steps", "timesteps", "spacing", "rho", "method", "eta", "t_start")


# How each option of a setting is read.
SETTING: dict[str, Callable[[str, Any], Hashable]] = {
    "steps": check_integer,
    "timesteps": check_integers,
    "spacing": check_name,
    "rho": lambda name, value: check_number(name, value, LEAST_RHO, MOST_RHO),
    "method": check_name,
    "eta": lambda name, value: check_numbers(name, value, 0.0, 1.0),
    "t_start": check_integer,
    "temperature": lambda name, value: check_number(name, value, 0.0),
    "noise_scale": lambda name, value: check_numbers(name, value, 0.0),
    "eps_scale": lambda name, value: check_numbers(name, value, 0.0),
    "guidance": lambda name, value: check_number(name, value, -math.inf),
    "guidance_interval": check_interval,
    "variance": check_name,
    "quantize_denoised": check_flag,
    "guide_scale": lambda name, value: check_number(name, value, -math.inf),
    "guide_mode": lambda name, value: check_choice(name, value, MODES),
    "guide_interval": check_interval,
    "regularise": lambda name, value: check_choice(name, value, REGULARISE),
    "regularise_interval": check_interval,
}


def setting_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a setting that a caller gave, each of one type: an integer, a float or a tuple of them, a text, or
    true or false."""
    return {name: SETTING[name](name, value) for name, value in given.items() if value is not None and name in SETTING}


def resolve_setting(recorded: Mapping[str, Any], variance: str, given: Mapping[str, Any], *, clip: bool = True) -> Setting:
    """Merge a caller's options (`setting_options`) with the bundle's recorded setting.

    Without any of REPLACES_RECORDED the recorded setting applies whole. Naming one of them replaces it by the library's
    own (ddim, uniform or, with t_start, linspace; eta 0, temperature 1, scales 1, guidance 0, no guide, no regulariser) at
    the recorded number of steps, or that of the timesteps. temperature, noise_scale, eps_scale, guidance,
    guidance_interval, variance, quantize_denoised and those of guides and of the regulariser can be given beside either.
    `build_step_table` checks what the values may be.
    """
    base: Mapping[str, Any] = recorded
    if any(name in given for name in REPLACES_RECORDED):
        base = {"steps": recorded["steps"]}
    if "timesteps" in given:
        base = {"steps": len(given["timesteps"])}
    return Setting(clip=bool(clip), **{"variance": variance, **base, **given})


def images_of(images: Any, shape: tuple[int, int, int]) -> F32:
    """Images of [C, H, W] as float32 [N, C, H, W] in [0, 1].

    Accepts uint8 [N, H, W, C] or [H, W, C], and float32/float64 [N, C, H, W] in [0, 1].
    """
    array = np.asarray(images)
    channels, height, width = shape
    wanted = (
        f"uint8 [N, {height}, {width}, {channels}] or [{height}, {width}, {channels}], "
        f"or float [N, {channels}, {height}, {width}] in [0, 1]"
    )
    if array.dtype == np.uint8:
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[1:] != (height, width, channels) or not len(array):
            raise ArgumentError(f"images has shape {list(np.shape(images))} (uint8); expected {wanted}. Resize them first.")
        planes: F32 = np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32)
        return np.divide(planes, np.float32(255), out=planes)
    if array.dtype.kind != "f":
        raise ArgumentError(f"images has dtype {array.dtype}; expected {wanted}. Convert it with .astype first.")
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise ArgumentError(f"images has shape {list(array.shape)} ({array.dtype}); expected {wanted}. Resize them first.")
    array = _finite_array("images", array)
    if array.min() < 0 or array.max() > 1:
        raise ArgumentError(
            f"images runs from {array.min():.4g} to {array.max():.4g}; expected {wanted}. "
            f"Images in [-1, 1] become so with (images + 1) / 2."
        )
    return array


def input_of(spec: InputSpec, value: Any) -> npt.NDArray[Any]:
    """A declared input as [N, ...] of its dtype; one sample [...] becomes [1, ...], to be shared.

    Trailing dimensions of 1 beyond the declared ones are accepted ([N, 64, 1, 1] for [N, 64]). For a picture uint8 will do
    too, as `picture_of` has it.
    """
    if spec.picture is not None and np.asarray(value).dtype.kind in "ub":
        return picture_of(spec, np.asarray(value))
    array = _finite_array(spec.name, value) if spec.dtype == "float32" else _integers(spec.name, value)
    rank = len(spec.shape)
    if array.ndim > rank and all(size == 1 for size in array.shape[rank:]):
        array = array.reshape(array.shape[:rank])
    if array.ndim == rank - 1:
        array = array[None]
    fits = array.ndim == rank and all(isinstance(d, str) or d == n for d, n in zip(spec.shape, array.shape, strict=True))
    if not fits or not array.size:
        raise ArgumentError(f"{spec.name} has shape {list(np.shape(value))}; expected {_wanted(spec)}, N > 0.")
    if spec.range is not None and (array.min() < spec.range[0] or array.max() > spec.range[1]):
        raise ArgumentError(
            f"{spec.name} runs from {array.min():.6g} to {array.max():.6g}; expected values in "
            f"{spec.range[0]:g} .. {spec.range[1]:g}, as this bundle takes them."
        )
    return np.ascontiguousarray(array)


def picture_of(spec: InputSpec, array: npt.NDArray[Any]) -> F32:
    """A picture input as float32 [N, C, H, W] in its range.

    image: uint8 [N, H, W, C] or [H, W, C], without C where it is 1; 0 becomes -1 and 255 becomes 1.
    mask: uint8 or bool [N, H, W, 1], [N, H, W] or [H, W]; 128 and above, or True, becomes 1 and the rest 0.
    """
    found, (channels, height, width) = array, spec.picture_shape
    size = (height, width, channels)
    if channels == 1 and found.shape[-2:] == (height, width) and found.shape != size:
        found = found[..., None]
    found = found[None] if found.ndim == 3 else found
    if found.shape[1:] != size or not len(found) or not (array.dtype == np.uint8 or (array.dtype == bool and channels == 1)):
        raise ArgumentError(f"{spec.name} has shape {list(array.shape)} ({array.dtype}); expected {_wanted(spec)}, N > 0.")
    if spec.picture == "mask" and array.dtype == np.uint8 and array.max() == 1:
        raise ArgumentError(f"{spec.name} is uint8 with no value above 1; expected 0 and 255. Pass bool, or 255 times it.")
    planes = found.transpose(0, 3, 1, 2)
    if spec.picture == "mask":
        return np.ascontiguousarray(planes if array.dtype == bool else planes >= 128, np.float32)
    picture: F32 = np.ascontiguousarray(planes, np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    return picture


def _wanted(spec: InputSpec) -> str:
    """What an input may be, for the message that refuses something else."""
    one = f" or one sample [{', '.join(map(str, spec.sample))}]" if spec.sample else " or one number"
    floats = f"{spec.dtype} [{', '.join(['N', *map(str, spec.sample)])}]{one}"
    if spec.picture is None:
        return floats
    channels, height, width = spec.picture_shape
    low = "0" if spec.picture == "mask" else "-1"
    return f"uint8 [N, {height}, {width}, {channels}], or {floats} in [{low}, 1]"


def _integers(name: str, value: Any) -> npt.NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.size and array.max() >= 2**63):
        raise ArgumentError(f"{name} has dtype {array.dtype}; expected integers. Convert it with .astype(np.int64).")
    return array.astype(np.int64)


def check_inputs(given: Mapping[str, Any], specs: tuple[InputSpec, ...], options: Iterable[str], where: str) -> None:
    """Refuse a name that is neither an option of `where` nor an input of the bundle."""
    unknown = given.keys() - options
    if unknown and (unknown := unknown - {spec.name for spec in specs}):
        name, known = next(name for name in given if name in unknown), (*options, *(spec.name for spec in specs))
        takes = ", ".join(str(spec) for spec in specs) or "none"
        raise ArgumentError(
            f"{where} has no option {name!r}, and this bundle has no such input: it takes {takes}."
            f"{did_you_mean(name, known)}"
        )


def check_free_dimensions(specs: tuple[InputSpec, ...], arrays: Mapping[str, Any]) -> None:
    """Refuse inputs that disagree on a free dimension."""
    found: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in arrays:
            continue
        for dim, size in zip(spec.sample, arrays[spec.name].shape[1:], strict=True):
            if isinstance(dim, str) and found.setdefault(dim, (size, spec.name))[0] != size:
                raise ArgumentError(
                    f"{spec.name} has {dim} = {size}, but {found[dim][1]} has {found[dim][0]}; expected one {dim} for both."
                )


def check_each_step(specs: tuple[InputSpec, ...], arrays: Mapping[str, Any], rows: int) -> None:
    """Refuse inputs that hold something for each step of another number of them."""
    for spec in specs:
        if spec.name in arrays and STEPS in spec.sample:
            found = arrays[spec.name].shape[1 + spec.sample.index(STEPS)]
            if found != rows:
                raise ArgumentError(
                    f"{spec.name} holds {found} steps; this run has {rows}. Pass one slice a step, in the order used (from "
                    "the noisiest step to the last)."
                )


def check_device_shape(name: str, shape: tuple[int, ...], sample: tuple[int | str, ...]) -> None:
    """Refuse a device array that is not [N, *sample]; a text in `sample` is a free dimension."""
    fits = len(shape) == 1 + len(sample) and all(shape)
    if not fits or any(isinstance(d, int) and d != n for d, n in zip(sample, shape[1:], strict=True)):
        raise ArgumentError(f"{name} has shape {list(shape)}; expected [N, {', '.join(map(str, sample))}], N > 0.")


def start_noise_of(x_T: Any, shape: tuple[int, int, int], name: str = "x_T") -> F32:
    """x_T as float32 [N or 1, C, H, W]: the unit Gaussian that the start's coefficients multiply."""
    array = _finite_array(name, x_T)
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise ArgumentError(
            f"{name} has shape {list(array.shape)}; expected [N, {', '.join(map(str, shape))}], or N = 1 to share it."
        )
    return array


def step_noise_of(noise: Any, shape: tuple[int, int, int], name: str = "noise") -> F32:
    """Noise of the rows as float32 [S, N or 1, C, H, W]; [S, C, H, W] is shared by the batch."""
    array = _finite_array(name, noise)
    array = array[:, None] if array.ndim == 4 else array
    if array.ndim != 5 or array.shape[2:] != shape or not len(array) or not array.shape[1]:
        dims = ", ".join(map(str, shape))
        raise ArgumentError(
            f"{name} has shape {list(np.shape(noise))}; expected [steps, N, {dims}], or [steps, {dims}] to share it."
        )
    return array


def check_noise_steps(noise: F32, steps: int, name: str = "noise") -> None:
    """Noise given for another number of steps than will run is a mistake, not something to cut to length."""
    if len(noise) != steps:
        raise ArgumentError(
            f"{name} holds {len(noise)} steps; this run has {steps}. Pass one slice a step, in the order used "
            f"(from the noisiest step to the last)."
        )


def agree_on_count(counts: Mapping[str, int | None], shared: Iterable[str] = ()) -> int | None:
    """The one N that all arguments agree on, or None when none says. `shared` names may be 1 for any N."""
    found: dict[str, int] = {}
    for name, count in counts.items():
        if count is not None and not (name in shared and count == 1):
            found[name] = count
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} says {count}" for name, count in found.items())
        raise ArgumentError(f"The number of images is contradictory: {said}. Make them agree, or leave out n.")
    return next(iter(found.values()), None)


def count_of(n: Any) -> int | None:
    """`n` as a positive int, or None."""
    if n is None:
        return None
    count = check_integer("n", n)
    if count < 1:
        raise ArgumentError(f"n is {count}; expected at least 1 image.")
    return count


def between(a: F32, b: F32, n: int, mode: str, part: slice) -> F32:
    """A part of n vectors [n, D] from a to b, both included (n = 1 gives a): "lerp" straight, "slerp" by the arc."""
    u = np.linspace(0.0, 1.0, n)[part, None]
    if mode == "lerp":
        return ((1 - u) * a + u * b).astype(np.float32)
    if mode != "slerp":
        raise ArgumentError(f"mode is {mode!r}; expected 'lerp' or 'slerp'.{did_you_mean(str(mode), ('lerp', 'slerp'))}")
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    omega = math.acos(max(-1.0, min(1.0, float(np.dot(a, b)) / lengths))) if lengths else 0.0
    # sin(omega) in the denominator: vectors along one line have no arc between them, and the line is its
    # limit.
    if math.sin(omega) < 1e-4:
        return ((1 - u) * a + u * b).astype(np.float32)
    return ((np.sin((1 - u) * omega) * a + np.sin(u * omega) * b) / math.sin(omega)).astype(np.float32)


def _finite_array(name: str, value: Any) -> F32:
    """float32, C-contiguous, every value finite."""
    array = np.asarray(value)
    if array.dtype not in (np.float32, np.float64):
        raise ArgumentError(
            f"{name} has dtype {array.dtype}; expected float32 or float64. Convert it with .astype(np.float32)."
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused with the others
        result: npt.NDArray[np.float32] = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(result).all():
        bad = int(result.size - np.isfinite(result).sum())
        raise ArgumentError(f"{name} holds {bad} values that are NaN or infinite in float32; expected finite numbers.")
    return result
