"""The public interface: `from engine import Sampler`. It needs numpy and one runtime, never torch."""

from __future__ import annotations

from engine.bundle.reader import Bundle
from engine.cascade import Cascade, CascadeBatch
from engine.device.arrays import DeviceArray, DeviceBatch
from engine.errors import (
    ArgumentError,
    BackendError,
    BundleError,
    Cancelled,
    CascadeError,
    DeadlineError,
    DeviceError,
    EngineError,
    NumericsError,
    SamplerStateError,
)
from engine.result import Batch, Deadline, Setting, StepInfo, Timings
from engine.sampler import Sampler

__version__ = "0.2.0"

__all__ = [
    "ArgumentError",
    "BackendError",
    "Batch",
    "Bundle",
    "BundleError",
    "Cancelled",
    "Cascade",
    "CascadeBatch",
    "CascadeError",
    "Deadline",
    "DeadlineError",
    "DeviceArray",
    "DeviceBatch",
    "DeviceError",
    "EngineError",
    "NumericsError",
    "Sampler",
    "SamplerStateError",
    "Setting",
    "StepInfo",
    "Timings",
    "__version__",
]
