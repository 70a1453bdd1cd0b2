"""The structs of diffusevae.h for ctypes, and one class over its calls that is used as `engine.Sampler` is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OK, ARGUMENT, BUNDLE, BACKEND, NUMERICS, CANCELLED, BUSY, NO_MEMORY, INTERNAL, DEADLINE = range(10)
UNSET, UNSET_NUMBER = -(2**63), -float(np.finfo(np.float64).max)
Arguments = dict[str, Any]
INT, LONG, DOUBLE, TEXT, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_char_p, ctypes.c_void_p
MAX_RANK = 8
DTYPES = {"float32": 1, "int64": 2, "uint8": 3, "uint64": 4, "float64": 5}
ROW_FIELDS = 31
ARRAYS = ("x_T", "noise", "images", "masks", "known_noise")  # beside the inputs that a bundle declares
OF_ROWS = ("timesteps", "step_ms")  # outputs with one number a row of the step table


# Options of one number, or of one a step under the other name.
SCALES = {"eta": "etas", "noise_scale": "noise_scales", "eps_scale": "eps_scales"}


GUIDE = ("guide_scale", DOUBLE), ("guide_mode", TEXT), ("guide_interval", LONG * 2)
REGULARISE = ("regularise", TEXT), ("regularise_interval", LONG * 2)
INTERVALS = ("guidance_interval", "guide_interval", "regularise_interval")  # None where both ends are unset


def listed(name: str) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """The two fields of a list."""
    return (name, ctypes.POINTER(LONG if name == "timesteps" else DOUBLE)), (f"{name}_count", LONG)


class Array(ctypes.Structure):
    """diffusevae_array."""

    _fields_ = [("name", TEXT), ("dtype", INT), ("rank", INT), ("shape", LONG * MAX_RANK), ("data", POINTER)]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Array:
        """A numpy array, which must outlive it."""
        shape = (LONG * MAX_RANK)(*array.shape)
        return cls(name.encode(), DTYPES[array.dtype.name], array.ndim, shape, array.ctypes.data)


class ArrayInfo(ctypes.Structure):
    """diffusevae_array_info."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("name", TEXT), ("dtype", INT), ("rank", INT), ("shape", LONG * MAX_RANK),
        ("dimensions", TEXT * MAX_RANK), *((name, INT) for name in ("drawn", "has_null", "bounded")), ("low", DOUBLE),
        ("high", DOUBLE), ("is_image", INT),
    ]  # fmt: skip

    @property
    def text(self) -> str:
        """As a manifest's tensors are shown: "label int64[batch]"."""
        dtype = next(name for name, number in DTYPES.items() if number == self.dtype)
        dims = [str(self.shape[i]) if self.shape[i] >= 0 else self.dimensions[i].decode() for i in range(self.rank)]
        return f"{self.name.decode()} {dtype}[{', '.join(dims)}]"

    def room(self, sizes: Mapping[str, int]) -> np.ndarray:
        """Zeros for this output, its free dimensions of these sizes."""
        dtype = next(name for name, number in DTYPES.items() if number == self.dtype)
        shape = [
            self.shape[i] if self.shape[i] >= 0 else sizes[self.dimensions[i].decode()] for i in range(self.rank)
        ]
        return np.zeros(shape, dtype)


class OpenOptions(ctypes.Structure):
    """diffusevae_open_options."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("backend", TEXT), ("precision", TEXT), ("threads", LONG), ("max_batch", LONG),
        ("allow_links", ctypes.POINTER(TEXT)), ("allow_links_count", LONG), ("height", LONG), ("width", LONG),
        ("overlap", DOUBLE),
    ]  # fmt: skip


class Setting(ctypes.Structure):
    """diffusevae_setting."""

    _fields_ = [
        ("steps", LONG), *listed("timesteps"), ("spacing", TEXT), ("rho", DOUBLE), ("method", TEXT), ("eta", DOUBLE),
        *listed("etas"), ("t_start", LONG), ("temperature", DOUBLE), ("noise_scale", DOUBLE), *listed("noise_scales"),
        ("eps_scale", DOUBLE), *listed("eps_scales"), ("guidance", DOUBLE), ("guidance_interval", LONG * 2),
        ("variance", TEXT), ("quantize_denoised", INT), *GUIDE, *REGULARISE, ("clip", INT), ("prior", TEXT),
    ]  # fmt: skip

    def values(self) -> dict[str, Any]:
        """By name as in Python, with None for what is not set and a tuple for a list."""
        found = {name: getattr(self, name) for name, _ in self._fields_}
        for name in ("timesteps", *SCALES.values()):
            values, count = found.pop(name), found.pop(f"{name}_count")
            found[name] = tuple(values[:count]) if values else None
        for name, many in SCALES.items():
            several = found.pop(many)
            assert (several is None) == (found[name] != UNSET_NUMBER)
            found[name] = found[name] if several is None else several
        found = {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}
        ends = {name: tuple(found[name]) for name in INTERVALS}
        found |= {name: None if both == (UNSET, UNSET) else both for name, both in ends.items()}
        found |= {name: bool(found[name]) for name in ("clip", "quantize_denoised")}
        return found | {"t_start": None if self.t_start == UNSET else self.t_start}


class Info(ctypes.Structure):
    """diffusevae_info."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        *((name, LONG) for name in (
            "image_channels", "image_height", "image_width", "state_channels", "state_height", "state_width", "timesteps",
            "inputs", "outputs")),
        *((name, INT) for name in ("guided", "has_start", "has_prior", "has_guides", "has_regulariser")),
        *((name, LONG) for name in ("threads", "max_batch", "weight_bytes")),
        *((name, TEXT) for name in ("name", "family", "start", "backend", "precision", "isa")), ("defaults", Setting),
        ("fitted", ctypes.POINTER(LONG)), ("fitted_count", LONG),
        ("directions", ctypes.POINTER(TEXT)), ("directions_count", LONG), ("text_input", TEXT),
    ]  # fmt: skip

    @property
    def state(self) -> tuple[int, int, int]:
        """One sample's state, [C, H, W]."""
        return self.state_channels, self.state_height, self.state_width


class Step(ctypes.Structure):
    """diffusevae_step."""

    _fields_ = [
        ("size", ctypes.c_size_t), *((name, LONG) for name in ("step", "steps", "timestep", "first", "n")), ("x", POINTER),
        ("x0", POINTER),
    ]  # fmt: skip


CALLBACK = ctypes.CFUNCTYPE(INT, ctypes.POINTER(Step), POINTER)


class Edit(ctypes.Structure):
    """diffusevae_edit."""

    _fields_ = [("name", TEXT), ("strength", DOUBLE)]


class SampleOptions(ctypes.Structure):
    """diffusevae_sample_options."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("n", LONG), ("seeds", POINTER), ("seeds_count", LONG), ("has_seed", INT),
        ("seed", ctypes.c_uint64), ("steps", LONG), ("setting", TEXT), *listed("timesteps"), ("spacing", TEXT),
        ("rho", DOUBLE), ("method", TEXT), ("eta", DOUBLE), *listed("etas"), ("t_start", LONG), ("temperature", DOUBLE),
        ("noise_scale", DOUBLE),
        *listed("noise_scales"), ("eps_scale", DOUBLE), *listed("eps_scales"), ("guidance", DOUBLE),
        ("guidance_interval", LONG * 2), ("variance", TEXT), ("quantize_denoised", INT), *GUIDE, *REGULARISE, ("clip", INT),
        ("prior", TEXT), ("inputs", ctypes.POINTER(Array)), ("inputs_count", LONG), ("callback", CALLBACK),
        ("user", POINTER), ("budget_ms", DOUBLE), ("at_most", INT), ("anytime", INT),
        ("edits", ctypes.POINTER(Edit)), ("edits_count", LONG), ("texts", ctypes.POINTER(TEXT)), ("texts_count", LONG),
    ]  # fmt: skip


class Timings(ctypes.Structure):
    """diffusevae_timings."""

    _fields_ = [
        *((f"{name}_ms", DOUBLE) for name in (
            "before", "rows", "noise", "network", "first_step", "update", "after", "post", "total")),
        ("network_calls", LONG), ("chunks", LONG),
    ]  # fmt: skip


class Deadline(ctypes.Structure):
    """diffusevae_deadline."""

    _fields_ = [
        *((f"{name}_ms", DOUBLE) for name in ("budget", "expected", "took")), *((name, LONG) for name in ("calls", "done")),
        ("kept", INT),
    ]  # fmt: skip


class Result(ctypes.Structure):
    """diffusevae_result."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("outputs", ctypes.POINTER(Array)), ("outputs_count", LONG), ("n", LONG), ("rows", LONG),
        ("setting", Setting), ("timings", Timings), ("deadline", Deadline),
    ]  # fmt: skip


class StageOptions(ctypes.Structure):
    """diffusevae_stage_options."""

    _fields_ = [
        ("size", ctypes.c_size_t), *((name, LONG) for name in ("steps", "t_start", "noise_level")), ("guidance", DOUBLE),
    ]  # fmt: skip


class StageInputs(ctypes.Structure):
    """diffusevae_stage_inputs."""

    _fields_ = [("size", ctypes.c_size_t), ("picture", TEXT), ("level", TEXT)]


class Table(ctypes.Structure):
    """diffusevae_step_table."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("capacity", LONG), ("timesteps", POINTER), ("rows", POINTER), ("weights", POINTER),
        ("nets", POINTER), ("calls", LONG), ("lanes", LONG),
        *((name, DOUBLE) for name in ("k_noise", "k_start", "k_centre")), ("setting", Setting),
    ]  # fmt: skip


@dataclass(frozen=True)
class CTable:
    """A step table as C gives it."""

    timesteps: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    start: tuple[float, float, float]  # k_noise, k_start, k_centre
    setting: dict[str, Any]
    nets: np.ndarray


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
            "input": [POINTER, LONG, ctypes.POINTER(ArrayInfo)],
            "output": [POINTER, LONG, ctypes.POINTER(ArrayInfo)],
            "sample": [POINTER, ctypes.POINTER(SampleOptions), ctypes.POINTER(Result)],
            "inpaint": [POINTER, ctypes.POINTER(SampleOptions), INT, ctypes.POINTER(Result)],
            "upscale": [POINTER, ctypes.POINTER(SampleOptions), LONG, ctypes.POINTER(Result)],
            "open_next": [ctypes.POINTER(POINTER), LONG, ctypes.POINTER(OpenOptions), ctypes.POINTER(POINTER)],
            "check_upscale": [POINTER, ctypes.POINTER(SampleOptions), LONG],
            "check_stages": [ctypes.POINTER(POINTER), LONG],
            "get_stage_options": [POINTER, POINTER, ctypes.POINTER(StageOptions)],
            "get_stage_inputs": [POINTER, ctypes.POINTER(StageInputs)],
            "stage_seeds": [POINTER, LONG, LONG, POINTER],
            "preview": [POINTER, ctypes.POINTER(Array)],
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
    """What a run wrote: `values` of the pipeline by name, `pixels` of those that are images."""

    images: np.ndarray
    x: np.ndarray
    seeds: np.ndarray
    timesteps: np.ndarray
    step_ms: np.ndarray
    values: dict[str, np.ndarray]
    pixels: dict[str, np.ndarray]
    setting: dict[str, Any]
    timings: Timings
    deadline: Deadline


def address(array: np.ndarray | None) -> int | None:
    """Where an array lies."""
    return None if array is None else array.ctypes.data


class CSampler:
    """A sampler behind the C interface, called as engine.Sampler is."""

    def __init__(self, library: Library, handle: POINTER) -> None:  # type: ignore[valid-type]
        self.library, self.handle = library, handle
        self.info = library.made(Info, "info")
        library.call("describe", handle, ctypes.byref(self.info))
        self.inputs = {info.name.decode(): info for info in self._listed("input", self.info.inputs)}
        self.outputs = {info.name.decode(): info for info in self._listed("output", self.info.outputs)}

    def _listed(self, what: str, count: int) -> Iterator[ArrayInfo]:
        for index in range(count):
            info = self.library.made(ArrayInfo, "array_info")
            self.library.call(what, self.handle, index, ctypes.byref(info))
            yield info

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
        inputs: list[Array] = []
        for name, value in given.items():
            if name == "seed" and isinstance(value, int):
                options.has_seed, options.seed = 1, value
            elif name == "seed":
                alive.append(np.ascontiguousarray(value, np.uint64))
                options.seeds, options.seeds_count = address(alive[-1]), len(alive[-1])
            elif name in ("images", "masks") and np.asarray(value).dtype == np.uint8:
                alive.append(np.ascontiguousarray(value))
                inputs.append(Array.of(name, alive[-1]))
            elif name in ARRAYS or name in self.inputs:
                whole = name in self.inputs and self.inputs[name].dtype == DTYPES["int64"]
                alive.append(np.ascontiguousarray(value, np.int64 if whole else np.float32))
                inputs.append(Array.of(name, alive[-1]))
            elif name == "timesteps" or (name in SCALES and not isinstance(value, (int, float))):
                field, kind = SCALES.get(name, name), LONG if name == "timesteps" else DOUBLE
                alive.append((kind * len(value))(*value))
                setattr(options, field, alive[-1])
                setattr(options, f"{field}_count", len(value))
            elif name == "edits" and not value:
                continue
            elif name == "edits":
                alive.append((Edit * len(value))(*((key.encode(), strength) for key, strength in value.items())))
                options.edits, options.edits_count = alive[-1], len(value)
            elif name == "text":
                texts = [value] if isinstance(value, (str, bytes)) else value
                alive.append((TEXT * len(texts))(*(text.encode() if isinstance(text, str) else text for text in texts)))
                options.texts, options.texts_count = alive[-1], len(texts)
            elif name == "callback":
                alive.append(CALLBACK(value))
                options.callback = alive[-1]
            else:
                setattr(options, name, value.encode() if isinstance(value, str) else value)
        if inputs:
            alive.append((Array * len(inputs))(*inputs))
            options.inputs, options.inputs_count = alive[-1], len(inputs)
        return options, [*alive, inputs]

    def sample(
        self,
        n: int | None = None,
        *,
        room: int | None = None,
        values: Sequence[str] | None = None,
        sizes: Mapping[str, int] | None = None,
        **given: Any,
    ) -> CBatch:
        """Sample; n as in Python, or `room` where the library is to find it out.

        values: those of the pipeline to fetch, None for all that a run without arrays of another size has; sizes: of their
        free dimensions.
        """
        given = given if n is None else {"n": n, **given}
        return self._run("sample", room or n or 1, values, sizes or {}, given)

    def inpaint(
        self, images: Any, masks: Any, *, composite: int = True, values: Sequence[str] | None = None, **given: Any
    ) -> CBatch:
        """Inpaint; images and masks uint8 or float."""
        n = len(images) if np.ndim(images) == 4 else 1
        return self._run("inpaint", n, values, {}, {"images": images, "masks": masks, **given}, int(composite))

    def upscale(
        self, images: Any, *, noise_level: int = UNSET, values: Sequence[str] | None = None, **given: Any
    ) -> CBatch:
        """As a stage of a cascade; images uint8 or float, of the size that is taken or smaller."""
        n = len(images) if np.ndim(images) == 4 else 1
        return self._run("upscale", n, values, {}, {"images": images, **given}, noise_level)

    def check_upscale(self, images: Any, *, noise_level: int = UNSET, **given: Any) -> None:
        """What `upscale` would refuse, without a run."""
        options, alive = self.options({"images": images, **given})
        self.library.call("check_upscale", self.handle, ctypes.byref(options), noise_level)
        del alive

    def _run(
        self, function: str, n: int, values: Sequence[str] | None, sizes: Mapping[str, int], given: Arguments, *more: int
    ) -> CBatch:
        """Call a function of options and a result, with room for n samples; more: arguments between the two."""
        options, alive = self.options(given)
        own = ("images", "x", "seeds", *OF_ROWS)
        if values is None:
            values = [name for name in self.outputs if name not in own]
        sizes = {"batch": n, "rows": self.info.timesteps + 1, **sizes}
        arrays = {name: self.outputs[name].room(sizes) for name in (*own, *values)}
        pixels = {
            name: np.zeros([arrays[name].shape[i] for i in (0, 2, 3, 1)], np.uint8)
            for name in values if self.outputs[name].is_image and arrays[name].shape[1] in (1, 3, 4)
        }  # fmt: skip
        wanted = [Array.of(name, array) for name, array in (*arrays.items(), *pixels.items())]
        result = self.library.made(Result, "result")
        result.outputs, result.outputs_count = (Array * len(wanted))(*wanted), len(wanted)
        self.library.call(function, self.handle, ctypes.byref(options), *more, ctypes.byref(result))
        del alive
        lengths = {name: result.rows if name in OF_ROWS else result.n for name in arrays}
        assert [result.outputs[i].shape[0] for i in range(len(arrays))] == list(lengths.values())
        cut = {name: array[: lengths[name]] for name, array in arrays.items()}
        return CBatch(
            **{name: cut[name] for name in own},
            values={name: cut[name] for name in values},
            pixels={name: array[: result.n] for name, array in pixels.items()},
            setting=result.setting.values(),
            timings=result.timings,
            deadline=result.deadline,
        )

    def seen(self, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the x and x0 that a callback was shown."""
        shape = (step.n, *self.info.state)
        count = int(np.prod(shape))
        x, x0 = (np.ctypeslib.as_array((ctypes.c_float * count).from_address(at)).copy() for at in (step.x, step.x0))
        return x.reshape(shape), x0.reshape(shape)

    def preview(self, step: Step) -> np.ndarray:
        """The images of a step, from within a callback."""
        images = self.outputs["images"].room({"batch": step.n})
        self.library.call("preview", self.handle, ctypes.byref(Array.of("images", images)))
        return images

    def table(self, **given: Any) -> CTable:
        """The step table of a chain."""
        options, alive = self.options(given)
        table = self.library.made(Table, "step_table")
        most = table.capacity = 2 * self.info.timesteps
        timesteps, rows = np.zeros(most, np.int64), np.zeros((most, ROW_FIELDS), np.float32)
        weights, nets = np.zeros(2 * most, np.float32), np.zeros(most, np.int64)
        table.timesteps, table.rows, table.weights = address(timesteps), address(rows), address(weights)
        table.nets = address(nets)
        self.library.call("get_step_table", self.handle, ctypes.byref(options), ctypes.byref(table))
        del alive
        calls, lanes = table.calls, table.lanes
        return CTable(
            timesteps[:calls], rows[:calls], weights[: calls * lanes].reshape(calls, lanes),
            (table.k_noise, table.k_start, table.k_centre), table.setting.values(),
            nets[:calls],
        )  # fmt: skip


def open_c(library: Library, path: Path, **given: Any) -> CSampler:
    """Open a bundle; options as in diffusevae_open_options, two threads unless named; allow_links: a list of texts."""
    options = library.made(OpenOptions, "open_options")
    if (stores := given.pop("allow_links", None)) is not None:
        options.allow_links = (TEXT * len(stores))(*(None if store is None else store.encode() for store in stores))
        options.allow_links_count = len(stores)
    for name, value in {"threads": 2, **given}.items():
        setattr(options, name, value.encode() if isinstance(value, str) else value)
    handle = POINTER()
    library.call("open", str(path).encode(), ctypes.byref(options), ctypes.byref(handle))
    return CSampler(library, handle)


def looking(look: Callable[[Step], object]) -> Callable[[Any, Any], int]:
    """A C callback that calls `look` and stops where it answers something true."""
    return lambda step, user: int(bool(look(step.contents)))
