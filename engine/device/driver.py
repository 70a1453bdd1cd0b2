"""The calls of the CUDA driver. Every call by its own name, every status checked, every failure a typed error.

The driver comes through `cuda-bindings` (which `cuda-core` is built on). Nothing is imported before a GPU is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from engine.commands import install_extra
from engine.errors import DeviceError, DeviceMemoryError
from engine.forks import CUDA

BINDINGS = "cuda.bindings.driver"
INSTALL = f"install it with: {install_extra('cuda')}"
MIN_DRIVER = 12000  # as cuDriverGetVersion counts: 12.0, the oldest with all calls below
CALLS = (
    "cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString", "cuDeviceGetCount", "cuDeviceGet",
    "cuDeviceGetName", "cuDeviceGetAttribute", "cuDevicePrimaryCtxGetState", "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease", "cuCtxGetCurrent", "cuCtxGetDevice", "cuCtxPushCurrent", "cuCtxPopCurrent",
    "cuMemGetInfo", "cuMemAlloc", "cuMemFree", "cuMemAllocHost", "cuMemFreeHost", "cuMemsetD8Async",
    "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync", "cuStreamCreate", "cuStreamDestroy",
    "cuStreamSynchronize", "cuStreamWaitEvent", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate",
    "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy", "cuEventCreate", "cuEventDestroy", "cuEventRecord",
    "cuEventRecordWithFlags", "cuEventElapsedTime", "cuModuleLoadData", "cuModuleUnload",
    "cuModuleGetFunction", "cuLaunchKernel",
)  # fmt: skip
SUCCESS, OUT_OF_MEMORY, NO_DEVICE = 0, 2, 100
# After these the context is lost: every later call fails, and only a new process helps.
LOST = frozenset({214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721})


class Driver:
    """`driver("cuMemAlloc", 16)` is the call's result (None, one value or a tuple), or DeviceError.

    `lost` holds the message of the first failure that no call can recover from.
    """

    def __init__(self, api: Any) -> None:
        self.api = api
        self.lost: str | None = None

    def __call__(self, name: str, *arguments: Any, purpose: str = "") -> Any:
        """Call `name`. purpose: what the call was for, in the message of its failure."""
        CUDA.check()
        status, *values = self._invoke(name, arguments)
        if int(status) != SUCCESS:
            raise self._failure(name, int(status), purpose)
        return values[0] if len(values) == 1 else tuple(values) or None

    @property
    def gone(self) -> bool:
        """Whether nothing can be given back any more: the context is lost, or that of the process this was forked from."""
        return self.lost is not None or CUDA.elsewhere

    def _invoke(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            return tuple(getattr(self.api, name)(*arguments))
        except RuntimeError as error:  # the bindings found no driver library, or one without this function
            raise DeviceError(
                f"{name}: found no usable CUDA driver ({error}), expected libcuda of the NVIDIA driver; install the "
                f"driver (nvidia-smi shows whether it works), or choose a CPU backend, for example backend='openvino'"
            ) from error

    def _failure(self, name: str, status: int, purpose: str) -> DeviceError:
        found = f"{name}: found {self._text(status)}"
        if status == OUT_OF_MEMORY:
            return DeviceMemoryError(
                f"{found}{purpose and f' for {purpose}'}{self._free()}, expected enough memory; choose a smaller batch or "
                f"max_batch, close samplers that are not used, or stop other programs on this GPU"
            )
        if status == NO_DEVICE:
            return DeviceError(
                f"{found}, expected an NVIDIA GPU; check with nvidia-smi (CUDA_VISIBLE_DEVICES may hide it), or choose a "
                f"CPU backend, for example backend='openvino'"
            )
        if status in LOST:
            self.lost = self.lost or f"{name} failed with {self._text(status)}"
            return DeviceError(
                f"{found}{purpose and f' at {purpose}'}, expected success; the GPU's context is lost: start the process "
                f"again, and if it persists run it under compute-sanitizer"
            )
        return DeviceError(
            f"{found}{purpose and f' at {purpose}'}, expected success; check the GPU with nvidia-smi, and that driver "
            f"and cuda-bindings fit each other"
        )

    def _text(self, status: int) -> str:
        """`CUDA_ERROR_X (the driver's sentence)`; the number alone for a status that the driver does not know."""
        try:
            value = self.api.CUresult(status)
        except ValueError:  # newer than these bindings
            return f"status {status}"
        name, sentence = (self._invoke(call, (value,))[1:] for call in ("cuGetErrorName", "cuGetErrorString"))
        return f"{_decoded(*name) or f'status {status}'} ({_decoded(*sentence) or 'the driver has no text for it'})"

    def _free(self) -> str:
        """How much memory is left, where the driver says so."""
        status, *sizes = self._invoke("cuMemGetInfo", ())
        if int(status) != SUCCESS:
            return ""
        return f" ({sizes[0] / 2**20:.0f} of {sizes[1] / 2**20:.0f} MiB are free)"


def _decoded(value: Any = None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def load_driver() -> Driver:
    """The initialised driver; DeviceError when bindings or driver are missing or too old, or left behind by a fork()."""
    try:
        api = importlib.import_module(BINDINGS)
    except ImportError as error:
        raise DeviceError(
            f"{BINDINGS}: found that it cannot be imported ({error}), expected cuda-bindings, through which a GPU is "
            f"driven; {INSTALL}"
        ) from error
    missing = [name for name in CALLS if not hasattr(api, name)]
    if missing:
        raise DeviceError(
            f"{BINDINGS}: found a version without {', '.join(missing)}, expected cuda-bindings 12.8 or newer; "
            f"upgrade it with: pip install --upgrade cuda-bindings"
        )
    driver = Driver(api)
    driver("cuInit", 0)
    CUDA.enter()
    version = int(driver("cuDriverGetVersion"))
    if version < MIN_DRIVER:
        raise DeviceError(
            f"CUDA driver: found one for CUDA {_dotted(version)}, expected {_dotted(MIN_DRIVER)} or newer; upgrade the "
            f"NVIDIA driver"
        )
    return driver


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
