"""Backend `tensorrt`: plans on an NVIDIA GPU, and a chain that stays there. `tensorrt_rtx` (rtx.py) is the same code.

The plans were built by export/tensorrt/; nothing is built here.
"""

from __future__ import annotations

from typing import TypeVar

from engine.backends.base import Backend, check_precision
from engine.backends.tensorrt import choice as gpu_choice
from engine.backends.tensorrt.chain import GpuChain
from engine.backends.tensorrt.graph import NATIVE_FAILURES, TensorRtGraph
from engine.backends.tensorrt.plan import PRECISION, Plan, rebuild
from engine.bundle.reader import Bundle
from engine.cleanup import run_all, undo
from engine.device.context import Device, open_device
from engine.errors import BackendError
from engine.forks import CUDA
from engine.processor import Processor

Self = TypeVar("Self", bound="TensorRt")


class TensorRt(Backend):
    """Plans of TensorRT over one device; every user of the device has a share of its own."""

    NAME = "tensorrt"
    PRECISIONS = (PRECISION,)
    ON_DEVICE = True
    GUIDES = False
    REGULARISES = False
    ANY_SIZE = False
    ONE_PROCESS = CUDA

    def __init__(self, bundle: Bundle, precision: str, threads: int, device: Device) -> None:
        super().__init__(bundle, precision, threads)
        self.device = device
        self._chain: GpuChain | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """(whether it runs here, its version and the GPUs or what is missing)."""
        return gpu_choice.available(cls.NAME)

    @classmethod
    def auto_precision(cls, bundle: Bundle, precision: str, processor: Processor) -> str | None:
        """fp16 where a device is present that the bundle's plans were built for."""
        return gpu_choice.auto_precision(bundle, cls.NAME, precision)

    @classmethod
    def open(cls: type[Self], bundle: Bundle, precision: str, threads: int, device: object = None) -> Self:
        """This backend over a bundle. device: as engine.device.context.open_device takes it. DeviceError without a GPU."""
        check_precision(precision, cls.PRECISIONS, cls.NAME)
        return cls(bundle, precision, threads, open_device(device))

    def load(self, name: str) -> TensorRtGraph:
        """Load a plan; BackendError when plan, library or GPU is not what it must be, BundleError when it is damaged."""
        device = self.device.share()
        with undo(device.release), device.current():
            try:
                plan = Plan(self.bundle, self.NAME, name, self.computes_in(name), device)
            except NATIVE_FAILURES as error:
                raise BackendError(
                    f"{self.NAME}, graph {name!r} of {self.bundle.path}: found {type(error).__name__}: {error}; expected a "
                    f"plan that it can load; upgrade {self.NAME}, or {rebuild(self.bundle, self.NAME)}"
                ) from error
            return TensorRtGraph(plan, device)

    def chain(self) -> GpuChain:
        """The chain on the device, one a backend."""
        return self.device_chain()

    def device_chain(self) -> GpuChain:
        """The same chain: its results may stay where they are."""
        if self._chain is None:
            spec = self.bundle.manifest.pipeline
            names = dict.fromkeys(call.graph for call in spec.run_calls)
            self._chain = GpuChain(self, {name: self._plan(name) for name in names}, self.device)
        return self._chain

    def _plan(self, name: str) -> Plan:
        graph = self.graph(name)
        assert isinstance(graph, TensorRtGraph)
        return graph.plan

    def _another(self: Self, bundle: Bundle) -> Self:
        return type(self)(bundle, self.precision, self.threads, self.device.share())

    def close(self) -> None:
        """Free the chain and every graph, the device last; closing twice does no harm."""
        chain, self._chain = self._chain, None
        device, self.device = self.device, None  # type: ignore[assignment]  # closed
        steps = [chain.close] if chain is not None else []
        run_all([*steps, super().close, *([device.release] if device is not None else [])])
