"""The code that a GPU loads: the fatbin that nvcc compiled at installation, or what NVRTC compiles here, once, and keeps.

Bytes only: loading them is the backend's business (engine/backends/tensorrt/kernels.py). kernels/cuda/README.md has the
kernels' arguments. Raises KernelLoadError, which says what to install.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.commands import install_extra, reinstall
from engine.kernels import build_cuda
from engine.kernels.errors import KernelLoadError

__all__ = [
    "BAD_CALL", "BAD_FULL_ROW", "BAD_OVERRUN", "BAD_ROWS", "BLOCK", "CONTROL_FORMAT", "KERNELS", "CudaCode", "code", "cubin",
    "describe", "fatbin", "launch_grid",
]  # fmt: skip

FATBIN = Path(__file__).with_name(build_cuda.FATBIN)
CACHE_VARIABLE = "DIFFUSEVAE_CACHE"

# cuda/control.h: step, ticket, bad, steps, pushes; k_noise, k_start, k_centre.
CONTROL_FORMAT = "<5I3f"
BAD_ROWS, BAD_FULL_ROW, BAD_OVERRUN = 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF
BAD_CALL = 0xFFFF0000  # + the number that the host gave a graph outside the loop (dv_finite)

# Each kernel and its number of arguments, every one a 64-bit word.
KERNELS = {"dv_update_plain": 20, "dv_update_full": 23, "dv_start": 15, "dv_finite": 4, "dv_to_uint8": 5}
BLOCK = 128  # threads along x
_ELEMENTS_PER_BLOCK, _GRID_LIMIT = 4 * BLOCK, 65535

_COMPILE_AGAIN = f"Run `python -m engine.kernels.build_cuda`, or `{reinstall()}`."
_INSTALL = (
    f"Install NVRTC with `{install_extra('cuda')}` (cuda-bindings, nvidia-cuda-nvrtc), or install this package "
    f"where nvcc is on the PATH or named by {build_cuda.VARIABLE}."
)


@dataclass(frozen=True)
class CudaCode:
    """A module's bytes. kind: "fatbin" or "cubin"; made_with: the compiler and its version."""

    kind: str
    code: bytes
    made_with: str
    path: str


def launch_grid(count: int, samples: int = 1) -> tuple[int, int, int]:
    """How many blocks a kernel is launched with, for BLOCK threads each (kernels/cuda/README.md)."""
    blocks = -(-count // _ELEMENTS_PER_BLOCK)
    return (_limit(blocks), _limit(samples), 1)


def _limit(blocks: int) -> int:
    return min(max(1, blocks), _GRID_LIMIT)


def code(arch: str) -> CudaCode:
    """What a device of `arch` ("sm_86") loads: the fatbin where it was built and covers the device, else NVRTC's cubin."""
    capability = _capability(arch)
    if FATBIN.exists():
        header, payload = _installed()
        if _covers(header["targets"], capability):
            return CudaCode("fatbin", payload, header["made_with"], str(FATBIN))
    return _compiled(arch)


def fatbin() -> bytes:
    """The fatbin that was compiled at installation, verified."""
    if not FATBIN.exists():
        raise KernelLoadError(
            f"The CUDA kernels were not compiled at installation: {FATBIN} does not exist. With nvcc at hand: "
            f"{_COMPILE_AGAIN} Without: cubin(arch) compiles at first use."
        )
    return _installed()[1]


def cubin(arch: str) -> bytes:
    """Machine code for `arch` ("sm_86"), compiled by NVRTC at the first call and kept in the user's cache."""
    return _compiled(arch).code


def describe() -> dict[str, str]:
    """What code() takes, without compiling anything: {"source": "fatbin", ...} or {"source": "nvrtc", ...}."""
    if FATBIN.exists():
        header, _ = _installed()
        facts = {"source": "fatbin", "targets": " ".join(header["targets"]), "made_with": header["made_with"]}
        return facts | {"path": str(FATBIN)}
    return {"source": "nvrtc", "made_with": f"nvrtc {_nvrtc_version(_nvrtc())}", "path": str(cache_folder())}


def cache_folder() -> Path:
    """Where compiled kernels are kept: $DIFFUSEVAE_CACHE, or the user's cache directory."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen) / "cuda"
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    home = os.path.expanduser("~")
    if not base and home == "~":
        raise KernelLoadError(
            f"the cache of compiled CUDA kernels: found neither HOME nor a home of user {os.getuid()}, expected a place; "
            f"set {CACHE_VARIABLE}=FOLDER"
        )
    return (Path(base) if base else Path(home) / ".cache") / "diffusevae" / "cuda"


# ---- the fatbin --------------------------------------------------------------------------------------


def _installed() -> tuple[dict[str, Any], bytes]:
    """Header and code of the fatbin, of these sources and undamaged."""
    opened = _unseal(FATBIN)
    if opened is None:
        raise KernelLoadError(
            f"{FATBIN} is unreadable or damaged: size or SHA-256 differ from what its first line says. {_COMPILE_AGAIN}"
        )
    found, expected = opened[0].get("sources"), _source_hash()
    if found != expected:
        raise KernelLoadError(
            f"{FATBIN} was compiled from other sources: found {str(found)[:12]}, expected {expected[:12]}. {_COMPILE_AGAIN}"
        )
    return opened


def _unseal(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Header and code of what build_cuda.seal wrote; None where it cannot be read or is not that, whole."""
    try:
        line, _, payload = path.read_bytes().partition(b"\n")
        header = json.loads(line)
    except (OSError, ValueError):  # ValueError: broken JSON or UTF-8. Callers refuse the file, or replace it
        return None
    if not isinstance(header, dict) or header.get("size") != len(payload):
        return None
    found = header.pop("sha256", None)
    return (header, payload) if found == build_cuda.sealed_hash(header, payload) else None


def _source_hash() -> str:
    try:
        return build_cuda.source_hash()
    except OSError as error:
        raise KernelLoadError(f"CUDA sources are missing: {error}. Run `{reinstall()}`.") from error


def _capability(arch: str) -> int:
    """ "sm_86" as 86."""
    found = re.fullmatch(r"sm_(\d{2,3})", arch)
    if found is None:
        raise KernelLoadError(f"The architecture is {arch!r}; expected 'sm_' and a compute capability, such as 'sm_86'.")
    capability = int(found[1])
    if capability < build_cuda.ARCHITECTURES[0]:
        raise KernelLoadError(
            f"The device is {arch}; expected sm_{build_cuda.ARCHITECTURES[0]} (Turing) or newer: use another backend on it."
        )
    return capability


def _covers(targets: list[str], capability: int) -> bool:
    """Machine code runs on its own major version from its minor version up, PTX on everything from its version up."""
    for target in targets:
        kind, _, number = target.partition("_")
        built = int(number)
        if built <= capability and (kind == "compute" or built // 10 == capability // 10):
            return True
    return False


# ---- NVRTC -------------------------------------------------------------------------------------------


def _compiled(arch: str) -> CudaCode:
    """The cubin from the cache, or compiled now. A damaged entry is replaced."""
    _capability(arch)
    nvrtc = _nvrtc()
    version = _nvrtc_version(nvrtc)
    key = hashlib.sha256(f"{_source_hash()} {version} {arch}".encode()).hexdigest()
    path = cache_folder() / f"{arch}-{key[:32]}.cubin"
    made_with = f"nvrtc {version}"
    opened = _unseal(path) if path.exists() else None
    if opened is not None and opened[0].get("key") == key:
        return CudaCode("cubin", opened[1], made_with, str(path))
    compiled = _compile(nvrtc, arch)
    try:
        build_cuda.seal(path, compiled, kind="cubin", key=key, made_with=made_with)
    except OSError as error:
        warnings.warn(
            f"The compiled CUDA kernels could not be kept in {path.parent}: {error}. The next process will compile them "
            f"again: name a writable folder in {CACHE_VARIABLE}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return CudaCode("cubin", compiled, made_with, str(path))


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelLoadError(f"There are no compiled CUDA kernels, nor NVRTC for it: {error}. {_INSTALL}") from error
    return nvrtc


def _call(nvrtc: Any, function: str, *arguments: Any) -> Any:
    """One NVRTC call; its single result, or None. The library itself is found at the first call."""
    try:
        status, *results = getattr(nvrtc, function)(*arguments)
    except (RuntimeError, OSError) as error:
        raise KernelLoadError(f"NVRTC's library cannot be loaded: {error}. {_INSTALL}") from error
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelLoadError(f"{function} failed with {status.name}. {_INSTALL}")
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def _nvrtc_version(nvrtc: Any) -> str:
    major, minor = _call(nvrtc, "nvrtcVersion")
    return f"{major}.{minor}"


def _compile(nvrtc: Any, arch: str) -> bytes:
    """The cubin of cuda/update.cu. NVRTC reads the headers from this folder and needs no other."""
    here = build_cuda.FOLDER
    options = [f"-arch={arch}", *build_cuda.FLAGS, f"-I{here / 'include'}", f"-I{(here / build_cuda.SOURCE).parent}"]
    text = (here / build_cuda.SOURCE).read_bytes()
    program = _call(nvrtc, "nvrtcCreateProgram", text, build_cuda.SOURCE.encode(), 0, [], [])
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_call(nvrtc, "nvrtcGetProgramLogSize", program))
            _call(nvrtc, "nvrtcGetProgramLog", program, log)
            raise KernelLoadError(
                f"NVRTC {_nvrtc_version(nvrtc)} did not compile the CUDA kernels for {arch}: {status.name}.\n"
                f"{log.rstrip(bytes(1)).decode(errors='replace').strip()}\n"
                f"It knows {_architectures(nvrtc)}: `pip install -U nvidia-cuda-nvrtc` where the device is newer."
            )
        compiled = bytearray(_call(nvrtc, "nvrtcGetCUBINSize", program))
        _call(nvrtc, "nvrtcGetCUBIN", program, compiled)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(compiled)


def _architectures(nvrtc: Any) -> str:
    return ", ".join(f"sm_{arch}" for arch in _call(nvrtc, "nvrtcGetSupportedArchs"))
