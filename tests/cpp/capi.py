"""How do tests call libdiffusevae? The structs of diffusevae.h for ctypes, and one class over its calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OK, ARGUMENT, BUNDLE, BACKEND, NUMERICS, CANCELLED, BUSY, NO_MEMORY, INTERNAL = range(9)
UNSET, UNSET_NUMBER = -(2**63), -float(np.finfo(np.float64).max)
Arguments = dict[str, Any]
INT, LONG, DOUBLE, TEXT, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_char_p, ctypes.c_void_p


class OpenOptions(ctypes.Structure):
    """diffusevae_open_options."""

    _fields_ = [("size", ctypes.c_size_t), ("backend", TEXT), ("precision", TEXT), ("threads", LONG), ("max_batch", LONG)]


class Setting(ctypes.Structure):
    """diffusevae_setting."""

    _fields_ = [
        ("steps", LONG), ("t_start", LONG), ("method", TEXT), ("spacing", TEXT), ("variance", TEXT), ("prior", TEXT),
        ("eta", DOUBLE), ("temperature", DOUBLE), ("guidance", DOUBLE), ("clip", INT),
    ]  # fmt: skip

    def values(self) -> dict[str, Any]:
        """By name, with None for what is not set."""
        found = {name: getattr(self, name) for name, _ in self._fields_}
        found = {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}
        return found | {"t_start": None if self.t_start == UNSET else self.t_start, "clip": bool(self.clip)}


class Info(ctypes.Structure):
    """diffusevae_info."""

    _fields_ = [
        ("size", ctypes.c_size_t), *((name, LONG) for name in ("image_size", "channels", "z_dim", "timesteps")),
        *((name, INT) for name in ("formulation", "conditional", "z_conditioned", "has_prior")),
        *((name, LONG) for name in ("threads", "max_batch", "weight_bytes")),
        *((name, TEXT) for name in ("name", "backend", "precision", "isa")), ("defaults", Setting),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """diffusevae_step."""

    _fields_ = [
        ("size", ctypes.c_size_t), *((name, LONG) for name in ("step", "steps", "timestep", "first", "n")), ("x", POINTER),
        ("x0", POINTER),
    ]  # fmt: skip


CALLBACK = ctypes.CFUNCTYPE(INT, ctypes.POINTER(Step), POINTER)


class SampleOptions(ctypes.Structure):
    """diffusevae_sample_options."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("n", LONG), ("seeds", POINTER), ("seeds_count", LONG), ("has_seed", INT),
        ("seed", ctypes.c_uint64), ("steps", LONG), ("method", TEXT), ("spacing", TEXT), ("eta", DOUBLE), ("t_start", LONG),
        ("temperature", DOUBLE), ("guidance", DOUBLE), ("variance", TEXT), ("clip", INT), ("prior", TEXT), ("z", POINTER),
        ("z_count", LONG), ("x_T", POINTER), ("x_T_count", LONG), ("noise", POINTER), ("noise_steps", LONG),
        ("noise_count", LONG), ("callback", CALLBACK), ("user", POINTER),
    ]  # fmt: skip


class Timings(ctypes.Structure):
    """diffusevae_timings."""

    _fields_ = [
        *((f"{name}_ms", DOUBLE) for name in (
            "vae", "table", "noise", "network", "first_step", "update", "post", "total")),
        ("network_calls", LONG), ("chunks", LONG),
    ]  # fmt: skip


class Result(ctypes.Structure):
    """diffusevae_result."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("capacity", LONG), *((name, POINTER) for name in ("images", "recon", "z", "x", "seeds")),
        ("steps_capacity", LONG), ("timesteps", POINTER), ("step_ms", POINTER), ("n", LONG), ("steps", LONG),
        ("setting", Setting), ("timings", Timings),
    ]  # fmt: skip


class Table(ctypes.Structure):
    """diffusevae_step_table."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("capacity", LONG), ("timesteps", POINTER), ("rows", POINTER), ("steps", LONG),
        ("k_noise", DOUBLE), ("k_image", DOUBLE), ("start_k_cond", DOUBLE), ("setting", Setting),
    ]  # fmt: skip


class Failed(Exception):
    """A call answered another status than OK."""

    def __init__(self, status: int, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.status = status


class Library:
    """The functions of diffusevae.h with their types; `check` raises Failed."""

    def __init__(self, path: Path) -> None:
        self.c = library = ctypes.CDLL(str(path))
        for name in ("error", "version", "status_name"):
            getattr(library, f"diffusevae_{name}").restype = TEXT
        signatures = {
            "open": [TEXT, ctypes.POINTER(OpenOptions), ctypes.POINTER(POINTER)],
            "clone": [POINTER, ctypes.POINTER(POINTER)],
            "describe": [POINTER, ctypes.POINTER(Info)],
            "sample": [POINTER, ctypes.POINTER(SampleOptions), ctypes.POINTER(Result)],
            "get_step_table": [POINTER, ctypes.POINTER(SampleOptions), ctypes.POINTER(Table)],
            "free": [POINTER],
            "cancel": [POINTER],
        }
        for name, arguments in signatures.items():
            getattr(library, f"diffusevae_{name}").argtypes = arguments

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that answers a status; Failed unless it is OK."""
        status = getattr(self.c, f"diffusevae_{name}")(*arguments)
        if status != OK:
            raise Failed(status, self.c.diffusevae_status_name(status).decode(), self.c.diffusevae_error().decode())

    def made(self, struct: type[Any], name: str) -> Any:
        """A struct as its _init function leaves it."""
        value = struct()
        getattr(self.c, f"diffusevae_{name}_init")(ctypes.byref(value))
        return value


@dataclass
class CBatch:
    """What a run wrote; arrays that were not asked for are None."""

    images: np.ndarray
    recon: np.ndarray | None
    z: np.ndarray | None
    x: np.ndarray
    seeds: np.ndarray
    timesteps: np.ndarray
    step_ms: np.ndarray
    setting: dict[str, Any]
    timings: Timings


def address(array: np.ndarray | None) -> int | None:
    """Where an array lies."""
    return None if array is None else array.ctypes.data


class CSampler:
    """A sampler behind the C interface, called as engine.Sampler is."""

    def __init__(self, library: Library, handle: POINTER) -> None:  # type: ignore[valid-type]
        self.library, self.handle = library, handle
        self.info = library.made(Info, "info")
        library.call("describe", handle, ctypes.byref(self.info))

    def __enter__(self) -> CSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def free(self) -> None:
        self.library.c.diffusevae_free(self.handle)
        self.handle = POINTER()

    def cancel(self) -> None:
        self.library.c.diffusevae_cancel(self.handle)

    def clone(self) -> CSampler:
        twin = POINTER()
        self.library.call("clone", self.handle, ctypes.byref(twin))
        return CSampler(self.library, twin)

    def options(self, given: Mapping[str, Any]) -> tuple[SampleOptions, list[Any]]:
        """The struct for options named as in Python, and what must live as long as it."""
        options = self.library.made(SampleOptions, "sample_options")
        alive: list[Any] = []
        for name, value in given.items():
            if name == "seed" and isinstance(value, int):
                options.has_seed, options.seed = 1, value
            elif name in ("seed", "z", "x_T", "noise"):
                array = np.ascontiguousarray(value, np.uint64 if name == "seed" else np.float32)
                alive.append(array)
                name = "seeds" if name == "seed" else name
                setattr(options, name, address(array))
                counts = [f"{name}_steps", f"{name}_count"] if name == "noise" else [f"{name}_count"]
                for count, size in zip(counts, array.shape, strict=False):
                    setattr(options, count, size)
            elif name == "callback":
                alive.append(CALLBACK(value))
                options.callback = alive[-1]
            else:
                setattr(options, name, value.encode() if isinstance(value, str) else value)
        return options, alive

    def sample(self, n: int | None = None, *, room: int | None = None, **given: Any) -> CBatch:
        """Sample; n as in Python, or `room` where the library is to find it out."""
        options, alive = self.options(given if n is None else {"n": n, **given})
        most, steps = room or n or 1, self.info.timesteps
        side, channels = self.info.image_size, self.info.channels
        arrays = {
            "images": np.zeros((most, side, side, channels), np.uint8),
            "recon": np.zeros((most, side, side, channels), np.uint8) if self.info.conditional else None,
            "z": np.zeros((most, self.info.z_dim), np.float32) if self.info.conditional else None,
            "x": np.zeros((most, channels, side, side), np.float32),
            "seeds": np.zeros(most, np.uint64),
            "timesteps": np.zeros(steps, np.int64),
            "step_ms": np.zeros(steps),
        }
        result = self.library.made(Result, "result")
        result.capacity, result.steps_capacity = most, steps
        for name, array in arrays.items():
            setattr(result, name, address(array))
        self.library.call("sample", self.handle, ctypes.byref(options), ctypes.byref(result))
        del alive
        cut = {
            name: array if array is None else array[: result.steps if name in ("timesteps", "step_ms") else result.n]
            for name, array in arrays.items()
        }
        return CBatch(**cut, setting=result.setting.values(), timings=result.timings)  # type: ignore[arg-type]

    def seen(self, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the x and x0 that a callback was shown."""
        shape = (step.n, self.info.channels, self.info.image_size, self.info.image_size)
        count = int(np.prod(shape))
        x, x0 = (np.ctypeslib.as_array((ctypes.c_float * count).from_address(at)).copy() for at in (step.x, step.x0))
        return x.reshape(shape), x0.reshape(shape)

    def table(self, **given: Any) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float], dict[str, Any]]:
        """timesteps, rows, (k_noise, k_image, k_cond) and the setting of a chain."""
        options, _ = self.options(given)
        table = self.library.made(Table, "step_table")
        table.capacity = self.info.timesteps
        timesteps, rows = np.zeros(table.capacity, np.int64), np.zeros((table.capacity, 10), np.float32)
        table.timesteps, table.rows = address(timesteps), address(rows)
        self.library.call("get_step_table", self.handle, ctypes.byref(options), ctypes.byref(table))
        start = (table.k_noise, table.k_image, table.start_k_cond)
        return timesteps[: table.steps], rows[: table.steps], start, table.setting.values()


def open_c(library: Library, path: Path, **given: Any) -> CSampler:
    """Open a bundle; options as in diffusevae_open_options, two threads unless named."""
    options = library.made(OpenOptions, "open_options")
    for name, value in {"threads": 2, **given}.items():
        setattr(options, name, value.encode() if isinstance(value, str) else value)
    handle = POINTER()
    library.call("open", str(path).encode(), ctypes.byref(options), ctypes.byref(handle))
    return CSampler(library, handle)


def looking(look: Callable[[Step], object]) -> Callable[[Any, Any], int]:
    """A C callback that calls `look` and stops where it answers something true."""
    return lambda step, user: int(bool(look(step.contents)))
