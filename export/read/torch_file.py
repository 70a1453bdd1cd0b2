"""Files of torch.save as they lie on the disk: the pickled content, and tensors that stay there until they are asked for.

A zip archive since PyTorch 1.6, before that a row of pickles with the numbers behind them. Either is mapped, not read: an
optimizer's state beside the weights costs its entry in the index and no more. What may be pickled: see pickles.py.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from engine.errors import CheckpointError
from export.read.pickles import Call, StandIn, read_pickle

CHUNK = 1 << 20
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled; a protocol and a frame may precede
DAMAGED = (
    pickle.UnpicklingError, ValueError, EOFError, OSError, OverflowError, MemoryError, KeyError, NotImplementedError,
    RuntimeError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
_NAMES = "float32 float64 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64"
DTYPES = {f"torch.{name}": getattr(torch, name) for name in _NAMES.split()}
DTYPES |= {f"torch.{name}": getattr(torch, name) for name in dir(torch) if name.startswith("float8_")}
STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
NUMPY_DTYPE = re.compile(r"[<>|=]?[?biuf]\d{0,2}")


@dataclass(frozen=True)
class Storage:
    """A row of numbers in the file, by torch's key for it."""

    key: str
    dtype: torch.dtype
    elements: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in the file, none of whose numbers have been read. `offset` and `stride` count elements of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


Place = tuple[int, int]  # first byte of a storage in the file, and how many there are


class TorchFile:
    """A file of torch.save: `content` is the tree that was saved, with a StoredTensor for every tensor.

    `file` must stay open until `tensors` has been called; what that gave does not need it.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        """Read the index; DAMAGED or CheckpointError for what torch.save did not write."""
        self.path, self._file = path, file
        # A private mapping: torch wants memory that it may write to, and the file is not to change.
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if self._map[:4] == ZIP_MAGIC:
            self._archive: zipfile.ZipFile | None = zipfile.ZipFile(file)
            self._places: dict[str, Place] = {}
            self.content = self._read_archive(self._archive, size)
        else:
            self._archive = None
            self.content, self._places = self._read_legacy()

    def tensors(self, stored: dict[str, StoredTensor]) -> dict[str, torch.Tensor]:
        """These tensors, mapped; CheckpointError for one that claims what the file does not hold, DAMAGED for a checksum."""
        self._verify({tensor.storage.key for tensor in stored.values()})
        rows: dict[Storage, torch.Tensor] = {}
        result = {}
        for key, tensor in stored.items():
            last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
            count, itemsize = math.prod(tensor.shape), tensor.dtype.itemsize
            if count and (count * itemsize > tensor.storage.nbytes or (last + 1) * itemsize > tensor.storage.nbytes):
                raise CheckpointError(
                    f"{self.path}: found {key!r} claiming shape {list(tensor.shape)} over {tensor.storage.nbytes} bytes, "
                    "expected the numbers to be there; save it with .contiguous()"
                )
            if not count:
                result[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
                continue
            if tensor.storage not in rows:
                rows[tensor.storage] = self._row(tensor.storage)
            whole = rows[tensor.storage]
            typed = whole if whole.dtype == tensor.dtype else whole.view(tensor.dtype)
            result[key] = typed.as_strided(tensor.shape, tensor.stride, tensor.offset)
        return result

    def _row(self, storage: Storage) -> torch.Tensor:
        begin, size = self._place(storage.key)
        if storage.nbytes > size:
            raise pickle.UnpicklingError(f"storage {storage.key} of {size} bytes where {storage.nbytes} are named")
        if begin % 8 == 0:
            return torch.frombuffer(self._map, dtype=storage.dtype, count=storage.elements, offset=begin)
        copied = bytearray(storage.nbytes)  # files before 1.6 align nothing
        with memoryview(self._map) as whole:
            copied[:] = whole[begin : begin + storage.nbytes]
        return torch.frombuffer(copied, dtype=storage.dtype)

    def _place(self, key: str) -> Place:
        if self._archive is None:
            return self._places[key]
        entry = self._archive.getinfo(f"{self._folder}data/{key}")
        self._file.seek(entry.header_offset)
        head = self._file.read(30)  # not from the mapping: a page touched brings its neighbours into memory
        if len(head) < 30 or head[:4] != ZIP_MAGIC:
            raise zipfile.BadZipFile(f"no local header of {entry.filename}")
        begin = entry.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        if begin + entry.file_size > len(self._map):
            raise zipfile.BadZipFile(f"{entry.filename} lies outside the file")
        return begin, entry.file_size

    def _verify(self, keys: Iterable[str]) -> None:
        """Check the archive's checksums of some storages (a mapping would not); older files have none."""
        for key in keys if self._archive is not None else ():
            assert self._archive is not None
            with self._archive.open(f"{self._folder}data/{key}") as record:
                while record.read(CHUNK):
                    pass  # reading to the end verifies the entry's checksum

    def _read_archive(self, archive: zipfile.ZipFile, size: int) -> Any:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        pickles = sorted((name for name in names if name.endswith("/data.pkl")), key=len)
        if not pickles:
            kind = "a NumPy archive" if any(name.endswith(".npy") for name in names) else "a zip archive"
            raise CheckpointError(
                f"{self.path}: found {kind} that torch.save did not write (entries {', '.join(names[:3])}, …), expected "
                "a PyTorch checkpoint; check that this is the right file"
            )
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}constants.pkl" in names:
            raise CheckpointError(
                f"{self.path}: found a TorchScript archive, expected a checkpoint of weights; save module.state_dict() "
                "instead"
            )
        if sum(entry.file_size for entry in entries) > size or any(entry.compress_type for entry in entries):
            raise CheckpointError(
                f"{self.path}: found an archive that unpacks to more than its own {size} bytes, expected stored tensors as "
                "torch.save writes them; save the checkpoint again with torch.save"
            )
        order = archive.read(f"{self._folder}byteorder") if f"{self._folder}byteorder" in names else b"little"
        self._check_order(order == b"little")
        return read_pickle(io.BytesIO(archive.read(pickles[0])), CALLS, self._storage)

    def _read_legacy(self) -> tuple[Any, dict[str, Place]]:
        """Pickles of the magic number, version, system, content and storages' keys; then each storage behind its count."""
        read_pickle(self._map, {}, _no_storage)
        version, system = read_pickle(self._map, {}, _no_storage), read_pickle(self._map, {}, _no_storage)
        if version != 1001 or not isinstance(system, dict):
            raise pickle.UnpicklingError("no head as torch.save writes it")
        self._check_order(system.get("little_endian") is not False)
        named: dict[str, Storage] = {}

        def storage(identifier: Any) -> Storage:
            found = self._storage(identifier)
            return named.setdefault(found.key, found)

        content = read_pickle(self._map, CALLS, storage)
        keys = read_pickle(self._map, {}, _no_storage)
        places: dict[str, Place] = {}
        at = self._map.tell()
        for key in keys if isinstance(keys, list) else ():
            if key not in named or at + 8 > len(self._map):
                raise pickle.UnpicklingError(f"storage {key!r:.40} that the content does not name, or no room for it")
            (count,) = struct.unpack("<q", self._map[at : at + 8])
            size = count * named[key].dtype.itemsize
            if count < 0 or at + 8 + size > len(self._map):
                raise pickle.UnpicklingError(f"the end of the file where storage {key} goes on")
            places[key] = (at + 8, size)
            at += 8 + size
        return content, places

    def _check_order(self, little: bool) -> None:
        if not little or sys.byteorder != "little":
            raise CheckpointError(
                f"{self.path}: found a checkpoint in big-endian order, or a big-endian machine, expected little-endian for "
                "both; convert it to safetensors, which has one order"
            )

    def _storage(self, identifier: Any) -> Storage:
        """What a persistent id stands for: ("storage", type, key, device, elements, …)."""
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is no storage")
        _, kind, key, _, elements, *view = identifier
        dtype = STORAGES.get(kind.name.rpartition(".")[2].removesuffix("Storage")) if isinstance(kind, StandIn) else None
        if dtype is None or not isinstance(key, str) or not _is_size(elements) or any(v is not None for v in view):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return Storage(key, dtype, elements)


def _no_storage(_: Any) -> Storage:
    raise pickle.UnpicklingError("a persistent id outside the content")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None, metadata: Any) -> Any:
    """A tensor on a storage. One whose numbers are to be conjugated or negated first is not what is stored."""
    sizes = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(storage, Storage) or not all(map(_is_size, sizes)) or len(shape) != len(stride) or len(shape) > 64:
        raise pickle.UnpicklingError("a tensor of impossible sizes")
    if metadata:
        return StandIn("torch._utils._rebuild_tensor_v2", True, (storage, metadata))
    return StoredTensor(storage, dtype or storage.dtype, offset, shape, stride)


def _with_arguments(least: int, make: Callable[..., Any]) -> Call:
    """A call that has at least so many arguments."""

    def call(arguments: tuple[Any, ...]) -> Any:
        if len(arguments) < least:
            raise pickle.UnpicklingError(f"a call of {len(arguments)} arguments that takes {least}")
        return make(*arguments)

    return call


def _rebuild_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    _, _, dtype, metadata = (*rest, None)[:4]
    known = DTYPES.get(dtype.name) if isinstance(dtype, StandIn) else None
    return _tensor(storage, offset, shape, stride, known, metadata) if known else StandIn("an unknown dtype", True)


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    """A tensor of a subclass: its numbers are those of the tensor, whatever the class would do with them."""
    known = CALLS.get(function.name) if isinstance(function, StandIn) else None
    if known is None or not isinstance(arguments, tuple):
        return StandIn(kind.name if isinstance(kind, StandIn) else "a tensor subclass", True)
    return known(arguments)


def _ordered_dict(items: Any = (), *_: Any) -> dict[Any, Any]:
    """An OrderedDict; one of a list of pairs was pickled by Python 2."""
    pairs = [pair for pair in items if isinstance(pair, (list, tuple)) and len(pair) == 2] if isinstance(items, list) else []
    return {key: value for key, value in pairs if isinstance(key, str)}


CALLS: dict[str, Call] = {
    "collections.OrderedDict": _with_arguments(0, _ordered_dict),
    "torch.Size": _with_arguments(1, lambda sizes, *_: sizes),
    "torch._utils._rebuild_tensor": _with_arguments(4, lambda a, b, c, d, *_: _tensor(a, b, c, d, None, None)),
    "torch._utils._rebuild_tensor_v2": _with_arguments(
        4, lambda a, b, c, d, *rest: _tensor(a, b, c, d, None, rest[2] if len(rest) > 2 else None)
    ),
    "torch._utils._rebuild_tensor_v3": _with_arguments(7, _rebuild_v3),
    "torch._utils._rebuild_parameter": _with_arguments(1, lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": _with_arguments(1, lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": _with_arguments(3, lambda *a: _rebuild_from_type(*a[:4])),
}


def numpy_value(value: StandIn) -> np.ndarray | None:
    """The array [...] or the scalar [] of a stand-in for a NumPy one, made of its bytes; None for anything else."""
    module, _, name = value.name.rpartition(".")
    if module not in ("numpy.core.multiarray", "numpy._core.multiarray"):
        return None
    if name == "scalar" and len(value.arguments) == 2:
        dtype, data = value.arguments
        shape: Any = ()
        fortran: Any = False
    elif name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, data = value.state
    else:
        return None
    letters = dtype.arguments[0] if isinstance(dtype, StandIn) and dtype.name == "numpy.dtype" and dtype.arguments else None
    if isinstance(data, StandIn) and data.name == "_codecs.encode" and data.arguments:  # bytes, in protocol 2
        text = data.arguments[0]
        data = text.encode("latin-1", "replace") if isinstance(text, str) else None
    if not isinstance(letters, str) or not NUMPY_DTYPE.fullmatch(letters) or not isinstance(data, (bytes, bytearray)):
        return None
    big = isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",)
    try:
        kind = np.dtype(letters).newbyteorder(">" if big else "<")
    except TypeError:
        return None
    sizes = shape if isinstance(shape, tuple) and all(map(_is_size, shape)) else (-1,)
    if -1 in sizes or math.prod(sizes) * kind.itemsize != len(data):
        return None
    array = np.frombuffer(data, kind).reshape(sizes, order="F" if fortran else "C")
    return array.astype(kind.newbyteorder("="))
