"""What does a chain of one shape need on the device? One allocation with every array, contexts, events, a captured graph.

What is in a `Shape` decides which calls are made with which addresses; everything else (seeds, the solver's rows,
guidance weight, where the chain starts) is uploaded, so that one captured graph serves all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.backends.tensorrt.kernels import CONTROL_WORDS
from engine.backends.tensorrt.plan import Execution, Plan
from engine.bundle.manifest import Model
from engine.chunk import Chunk
from engine.cleanup import undo
from engine.device.context import release_all
from engine.device.memory import DeviceBlock, PinnedBlock, Spec
from engine.device.stream import Event, Replay, Stream
from engine.kernels import ROW_FIELDS

STAGES = ("begin", "noise", "vae", "table", "start", "post")  # events beside those of the steps


@dataclass(frozen=True)
class Shape:
    """The part of a chunk that a captured graph depends on. x_T, noise: how many samples are given, 0 for drawn."""

    n: int
    steps: int
    guided: bool
    z_given: bool
    x_T: int
    noise: int
    cond_given: bool
    image_given: bool
    keeps_x0: bool

    @property
    def lanes(self) -> int:
        """Samples that the denoiser evaluates at once: with guidance also those without condition."""
        return 2 * self.n if self.guided else self.n


def shape_of(chunk: Chunk) -> Shape:
    """The shape of a chunk."""
    return Shape(
        n=len(chunk.seeds),
        steps=chunk.table.steps,
        guided=chunk.guidance != 0.0,
        z_given=chunk.z is not None,
        x_T=0 if chunk.x_T is None else len(chunk.x_T),
        noise=0 if chunk.noise is None else chunk.noise.shape[1],
        cond_given=chunk.cond is not None,
        image_given=chunk.image is not None,
        keeps_x0=chunk.watch is not None or chunk.table.needs_x0_prev,
    )


def uploaded(model: Model, shape: Shape) -> dict[str, Spec]:
    """What the host writes before every run, in one copy."""
    n, image = shape.n, (model.channels, model.image_size, model.image_size)
    specs: dict[str, Spec] = {
        "control": ((CONTROL_WORDS,), np.uint32),
        "rows": ((shape.steps, len(ROW_FIELDS)), np.float32),
        "timesteps": ((shape.steps,), np.int64),
        "seeds": ((n,), np.uint64),
    }
    if shape.z_given:
        specs["z"] = _latents(model, shape)
    if shape.x_T:
        specs["x_T"] = ((shape.x_T, *image), np.float32)
    if shape.noise:
        specs["noise"] = ((shape.steps, shape.noise, *image), np.float32)
    if shape.image_given:
        specs["image"] = ((n, *image), np.float32)
    if shape.cond_given:
        specs["cond"] = ((shape.lanes, *image), np.float32)
    return specs


def kept(model: Model, shape: Shape) -> dict[str, Spec]:
    """What is made on the device. Zero at first, as the unconditional halves of z and cond stay."""
    image = (model.channels, model.image_size, model.image_size)
    lanes = shape.lanes if model.z_conditioned else 1
    specs: dict[str, Spec] = {
        "x": ((shape.lanes, *image), np.float32),
        "eps": ((shape.lanes, *image), np.float32),
        "table": ((shape.steps, lanes, model.row_width), np.float32),
        "row": ((lanes, model.row_width), np.float32),
    }
    if draws_z(model, shape):
        specs["z"] = _latents(model, shape)
    if model.conditional and not shape.cond_given:
        specs["cond"] = ((shape.lanes, *image), np.float32)
    if shape.keeps_x0:
        specs["x0"] = ((shape.n, *image), np.float32)
    return specs | pixels(model, shape.n, recon=model.conditional)


def pixels(model: Model, n: int, *, recon: bool) -> dict[str, Spec]:
    """The rounded images."""
    size = (n, model.image_size, model.image_size, model.channels)
    return dict.fromkeys(("images", "recon") if recon else ("images",), (size, np.uint8))


def downloaded(model: Model, shape: Shape) -> dict[str, Spec]:
    """What the host reads after a run (x0 after a watched step)."""
    image = (model.channels, model.image_size, model.image_size)
    specs: dict[str, Spec] = {"control": ((CONTROL_WORDS,), np.uint32), "x": ((shape.n, *image), np.float32)}
    if shape.z_given or draws_z(model, shape):
        specs["z"] = ((shape.n, model.z_dim or 0), np.float32)
    if shape.keeps_x0:
        specs["x0"] = ((shape.n, *image), np.float32)
    return specs | pixels(model, shape.n, recon=model.conditional)


def draws_z(model: Model, shape: Shape) -> bool:
    """Whether the device draws the latents."""
    return model.z_dim is not None and not shape.z_given and not shape.cond_given


def _latents(model: Model, shape: Shape) -> Spec:
    return (shape.lanes if model.z_conditioned else shape.n, model.z_dim or 0), np.float32


class Prepared:
    """Everything that a chain of one shape uses again and again.

    arena     all arrays on the device; its first part mirrors `up`
    up, down  pinned: what is uploaded, what is downloaded
    runs      role -> context with shapes and addresses set
    replay    the captured graph, once there is one; `refused` says why there is none, once that is known
    """

    def __init__(self, model: Model, shape: Shape, plans: Mapping[str, Plan], stream: Stream, scratch: int) -> None:
        self.shape, self.device = shape, stream.device
        self.replay: Replay | None = None
        self.refused: str | None = None
        self._owned: list[Callable[[], object]] = []
        with undo(self.close):
            first = uploaded(model, shape)
            what = f"a chain of {shape.n} samples and {shape.steps} steps"
            self.arena = DeviceBlock(self.device, first | kept(model, shape), what, stream.handle)
            self._owned.append(self.arena.close)
            self.up = PinnedBlock(self.device, first, what)
            self._owned.append(self.up.close)
            self.down = PinnedBlock(self.device, downloaded(model, shape), what)
            self._owned.append(self.down.close)
            self.runs: dict[str, Execution] = {}
            for role, tensors in self._tensors(model).items():
                self.runs[role] = Execution(plans[role], scratch, tensors)
                self._owned.append(self.runs[role].close)
            self.events: dict[str | int, Event] = {}
            for name in (*STAGES, *range(shape.steps)):
                self.events[name] = Event(self.device)
                self._owned.append(self.events[name].close)

    def address(self, name: str) -> int:
        """Where an array lies on the device; 0 for one that this shape does not have."""
        return self.arena[name].address if name in self.arena else 0

    def close(self) -> None:
        """Give everything back, the graph before what it was captured from."""
        owned, self._owned = self._owned, []
        steps = [self.replay.close] if self.replay is not None else []
        self.replay = None
        release_all(self.device, [*steps, *reversed(owned)])

    def _tensors(self, model: Model) -> dict[str, dict[str, tuple[int, tuple[int, ...]]]]:
        """Address and shape of every input and output, by role."""
        shape, arena = self.shape, self.arena

        def whole(name: str) -> tuple[int, tuple[int, ...]]:
            return arena[name].address, arena[name].shape

        rows = (shape.steps, *arena["table"].shape[1:]) if model.z_conditioned else (shape.steps, model.row_width)
        by_z: dict[str, Any] = {"z": whole("z")} if model.z_conditioned else {}
        cond: dict[str, Any] = {"cond": whole("cond")} if model.conditional else {}
        tensors = {
            "timestep_table": {"timesteps": whole("timesteps"), **by_z, "rows": (arena["table"].address, rows)},
            "denoiser": {"x": whole("x"), **cond, "row": whole("row"), "eps": whole("eps")},
        }
        if model.conditional and not shape.cond_given:
            image = (shape.n, *arena["cond"].shape[1:])
            latent = (arena["z"].address, (shape.n, *arena["z"].shape[1:]))
            tensors["vae_decoder"] = {"z": latent, "image": (arena["cond"].address, image)}
        return tensors
