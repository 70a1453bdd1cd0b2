"""DLPack: arrays to and from torch, JAX and CuPy without a copy, its capsules spelled out in ctypes.

The layout is that of dlpack.h, version 0.8 (unversioned capsules, which every library still takes and gives).
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import ArgumentError

CPU, CUDA = 1, 2  # DLDeviceType
CUDA_KINDS = (2, 13)  # device memory, managed memory
_KINDS = {0: "i", 1: "u", 2: "f"}  # DLDataTypeCode -> numpy's kind
_FRESH, _USED = b"dltensor", b"used_dltensor"


class _Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
# A capsule's destructor runs when it has no references any more: it must be named by address, not by reference.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))

_lent: dict[int, tuple[Any, ...]] = {}  # what capsules given away keep alive, by the address of their structure


@_Deleter
def _give_back(address: int) -> None:
    _lent.pop(address, None)


@_Destructor
def _forget(capsule: int) -> None:
    """A capsule that was never consumed frees what it holds; a consumed one is its consumer's business."""
    if _is_valid(capsule, _FRESH):
        _lent.pop(_pointer(capsule, _FRESH), None)


@dataclass(frozen=True)
class Described:
    """An array that a capsule describes; `owner` keeps its memory alive."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: tuple[int, int]
    owner: object


def give(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: object) -> Any:
    """A capsule over C-contiguous memory, which `owner` keeps alive for as long as the consumer uses it."""
    sizes = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    code = next(code for code, kind in _KINDS.items() if kind == dtype.kind)
    managed = _Managed()
    managed.tensor = _Tensor(
        address, _Device(*device), len(shape), _DataType(code, 8 * dtype.itemsize, 1),
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)), None, 0,
    )  # fmt: skip
    managed.deleter = ctypes.cast(_give_back, ctypes.c_void_p)
    where = ctypes.addressof(managed)
    _lent[where] = (managed, sizes, owner)
    return _new(where, _FRESH, _forget)


def take(capsule: Any, name: str) -> Described:
    """The array of a capsule, which is consumed; ArgumentError when it is none, or not C-contiguous."""
    if type(capsule).__name__ != "PyCapsule" or not _is_valid(id(capsule), _FRESH):
        raise ArgumentError(
            f"{name}: found a __dlpack__ that gives {type(capsule).__name__}, expected a fresh 'dltensor' capsule; pass the "
            f"array itself"
        )
    where = _pointer(id(capsule), _FRESH)
    managed = _Managed.from_address(where)
    tensor = managed.tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    kind = _KINDS.get(tensor.dtype.code)
    if kind is None or tensor.dtype.lanes != 1 or not is_contiguous(shape, strides):
        raise ArgumentError(
            f"{name}: found an array of DLPack type code {tensor.dtype.code} with strides {strides}, expected a "
            f"C-contiguous one of a plain number type; make it contiguous and float32 first"
        )
    dtype = np.dtype(f"{kind}{tensor.dtype.bits // 8}")
    _rename(capsule, _USED)
    owner = _Borrowed(where, managed.deleter)
    address = (tensor.data or 0) + tensor.byte_offset
    return Described(address, shape, dtype, (tensor.device.device_type, tensor.device.device_id), owner)


class _Borrowed:
    """Another library's memory, given back through its deleter when nothing here uses it any more."""

    def __init__(self, where: int, deleter: int | None) -> None:
        if deleter:
            weakref.finalize(self, _Deleter(deleter), where)


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Whether strides, in elements, are those of a C-contiguous array (None says so)."""
    if strides is None:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
