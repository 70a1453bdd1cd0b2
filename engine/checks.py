"""Is this what the Sampler can take? Every array and option of a request is checked before anything runs.

Each function returns the one form that the rest of the engine works with, or raises ArgumentError saying what
was found, what was expected and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError, did_you_mean
from engine.result import F32, Setting
from engine.solver.schedule import check_integer, check_number

# Naming any of these replaces the bundle's recorded setting as a whole: half of one few-step setting and half
# of another (a recorded t_start with somebody else's step count, say) is a setting that nobody measured.
REPLACES_RECORDED = ("steps", "method", "spacing", "eta", "t_start")


def resolve_setting(recorded: Mapping[str, Any], variance: str, given: Mapping[str, Any], *, clip: bool = True) -> Setting:
    """Merge a caller's options (None = not given) with the bundle's recorded setting.

    Without any of steps, method, spacing, eta and t_start the recorded setting applies whole. Naming one of
    them replaces it by the library's own (ddim, uniform or, with t_start, linspace; eta 0, temperature 1,
    guidance 0) at the recorded number of steps. temperature, guidance and variance can be given beside
    either. `build_step_table` checks everything but guidance, which it does not see.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    base: Mapping[str, Any] = recorded
    if any(name in chosen for name in REPLACES_RECORDED):
        base = {"steps": recorded["steps"]}
    merged = {"variance": variance, **base, **chosen}
    if "guidance" in merged:
        merged["guidance"] = check_number("guidance", merged["guidance"], -math.inf)
    return Setting(clip=bool(clip), **merged)


def check_options(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse an option that `where` does not have."""
    known = tuple(known)
    for name in given:
        if name not in known:
            raise ArgumentError(f"{where} has no option {name!r}.{did_you_mean(name, known)} It takes: {', '.join(known)}.")


def images_of(images: Any, size: int, channels: int = 3) -> F32:
    """Images as float32 [N, C, H, W] in [0, 1].

    Accepts uint8 [N, H, W, C] or [H, W, C], and float32/float64 [N, C, H, W] in [0, 1].
    """
    array = np.asarray(images)
    wanted = (
        f"uint8 [N, {size}, {size}, {channels}] or [{size}, {size}, {channels}], "
        f"or float [N, {channels}, {size}, {size}] in [0, 1]"
    )
    if array.dtype == np.uint8:
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[1:] != (size, size, channels) or not len(array):
            raise ArgumentError(f"images has shape {list(np.shape(images))} (uint8); expected {wanted}. Resize them first.")
        planes: F32 = np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32)
        return np.divide(planes, np.float32(255), out=planes)
    if array.dtype.kind != "f":
        raise ArgumentError(f"images has dtype {array.dtype}; expected {wanted}. Convert it with .astype first.")
    if array.ndim != 4 or array.shape[1:] != (channels, size, size) or not len(array):
        raise ArgumentError(f"images has shape {list(array.shape)} ({array.dtype}); expected {wanted}. Resize them first.")
    array = _finite_array("images", array)
    if array.min() < 0 or array.max() > 1:
        raise ArgumentError(
            f"images runs from {array.min():.4g} to {array.max():.4g}; expected {wanted}. "
            f"Images in [-1, 1] become so with (images + 1) / 2."
        )
    return array


def latent_of(z: Any, z_dim: int | None, name: str = "z") -> F32:
    """A latent as float32 [N, z_dim]; [N, z_dim, 1, 1] and one vector [z_dim] are accepted too."""
    check_has_latent(z_dim, name)
    array = _finite_array(name, z)
    if array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != z_dim or not len(array):
        raise ArgumentError(f"{name} has shape {list(np.shape(z))}; expected [N, {z_dim}] or [N, {z_dim}, 1, 1], N > 0.")
    return np.ascontiguousarray(array)


def check_has_latent(z_dim: int | None, name: str = "z") -> None:
    """Refuse a latent for a model that has none."""
    if z_dim is None:
        raise ArgumentError(
            f"{name} was given, but this bundle is unconditional: it has no VAE and no latent. Leave it out."
        )


def check_device_shape(name: str, shape: tuple[int, ...], sample: tuple[int, ...]) -> None:
    """Refuse a device array that is not [N, *sample]."""
    if len(shape) != 1 + len(sample) or shape[1:] != sample or not shape[0]:
        raise ArgumentError(f"{name} has shape {list(shape)}; expected [N, {', '.join(map(str, sample))}], N > 0.")


def start_noise_of(x_T: Any, shape: tuple[int, int, int]) -> F32:
    """x_T as float32 [N or 1, C, H, W]: the unit Gaussian that the start's coefficients multiply."""
    array = _finite_array("x_T", x_T)
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise ArgumentError(
            f"x_T has shape {list(array.shape)}; expected [N, {', '.join(map(str, shape))}], or N = 1 to share it."
        )
    return array


def step_noise_of(noise: Any, shape: tuple[int, int, int]) -> F32:
    """Per-step noise as float32 [S, N or 1, C, H, W]; [S, C, H, W] is shared by the batch."""
    array = _finite_array("noise", noise)
    array = array[:, None] if array.ndim == 4 else array
    if array.ndim != 5 or array.shape[2:] != shape or not len(array) or not array.shape[1]:
        dims = ", ".join(map(str, shape))
        raise ArgumentError(
            f"noise has shape {list(np.shape(noise))}; expected [steps, N, {dims}], or [steps, {dims}] to share it."
        )
    return array


def check_noise_steps(noise: F32 | None, steps: int) -> None:
    """Noise given for another number of steps than will run is a mistake, not something to cut to length."""
    if noise is not None and len(noise) != steps:
        raise ArgumentError(
            f"noise holds {len(noise)} steps; this run has {steps}. Pass one slice a step, in the order used "
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


def check_start(setting: Setting, *, conditional: bool, has_image: bool) -> None:
    """Refuse what an unconditional model cannot have: guidance, and a start from a reconstruction."""
    if conditional:
        return
    if setting.guidance != 0.0:
        raise ArgumentError(
            f"guidance is {setting.guidance:g}, but this bundle is unconditional and has no condition to be "
            f"guided by; expected 0. Leave it out."
        )
    if setting.t_start is not None and not has_image:
        raise ArgumentError(
            f"t_start is {setting.t_start}, but this bundle is unconditional and has no reconstruction to "
            f"start from. Leave it out, or call refine(images, t_start=...)."
        )


def between(a: F32, b: F32, n: int, mode: str) -> F32:
    """n latents [n, z_dim] from a to b, both included (n = 1 gives a): "lerp" straight, "slerp" by the arc."""
    u = np.linspace(0.0, 1.0, n)[:, None]
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
