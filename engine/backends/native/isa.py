"""Instruction sets of the native engine: the best that this machine runs, or the one that DIFFUSEVAE_ISA forces."""

from __future__ import annotations

import os

from engine.errors import BackendError, did_you_mean
from engine.kernels import native_library
from engine.kernels.errors import KernelLoadError
from engine.kernels.native_library import ISAS, NativeError, NativeLibrary
from engine.processor import Processor, this_processor

VARIABLE = "DIFFUSEVAE_ISA"
# What a processor must report for the instruction sets on which native bf16 beats every other CPU backend. On Zen 5,
# CIFAR-10 at batch 1, ms a step: OpenVINO f32 27.8 and bf16 16.2; avx512_bf16 8.4; avx512, which widens to float32, 14.6.
_FAST = {
    "amx": frozenset({"amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512bw", "avx512_bf16"}),
    "avx512_bf16": frozenset({"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512_vnni"}),
}


def runs_here() -> tuple[bool, str]:
    """(whether the engine runs here, its instruction set or why it does not)."""
    try:
        isa = instruction_set()
    except BackendError as error:
        return False, f"not available: {error}"
    return True, f"compiled in, instruction set {isa}{f' ({VARIABLE} is set)' if os.environ.get(VARIABLE) else ''}"


def instruction_set() -> str:
    """One of ISAS: what graphs loaded now run on; BackendError where none of them does."""
    library, forced = load_library(), os.environ.get(VARIABLE)
    if not forced:
        best = library.isa()
        if not best:
            _, why = library.supports(ISAS[-1])
            raise BackendError(
                f"backend 'native': found a processor on which no instruction set of its kernels runs ({why}), expected "
                f"one of {', '.join(ISAS)}; choose another backend"
            )
        return best
    if forced not in ISAS:
        raise BackendError(
            f"{VARIABLE}: found {forced!r}, expected one of {', '.join(ISAS)}, or the variable unset for the best."
            f"{did_you_mean(forced, ISAS)}"
        )
    there, why = library.supports(forced)
    if not there:
        raise BackendError(
            f"{VARIABLE}: found {forced!r} on a machine that cannot run it ({why}), expected one that it can; unset the "
            f"variable, or choose {library.isa() or 'another backend'}"
        )
    return forced


def ceiling(what: str, threads: int, seconds: float) -> float | None:
    """What this machine could do: operations a second of "bf16_l2", "int8_l2" or "f32_l2" products with operands from L2,
    or bytes a second of "stream"; None where the instruction set has no such unit."""
    try:
        return load_library().ceiling(what, instruction_set(), threads, seconds)
    except NativeError as error:
        if error.status == native_library.UNSUPPORTED:
            return None
        raise BackendError(f"native, roofline of {what!r}: found {error}; expected a measurement; choose another") from error


def is_fast(processor: Processor) -> bool:
    """Whether one of _FAST runs: on this machine as library and system say, on another as its features do."""
    if processor is this_processor():
        return runs_here()[0] and instruction_set() in _FAST
    return any(needed <= processor.features for needed in _FAST.values())


def load_library() -> NativeLibrary:
    try:
        return native_library.native_library()
    except KernelLoadError as error:
        raise BackendError(f"backend 'native': found no library of it: {error}") from error
