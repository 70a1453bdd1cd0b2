"""The safe reading of a checkpoint: untrusted weights, as tensors and plain metadata and nothing else.

A pickle can run code, so no name in one is ever looked up (pickles.py): what is no tensor and no plain container becomes an
inert stand-in, and only weights that cannot be had without code are refused. Which of several sets of weights is meant:
candidates.py.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from engine.errors import CheckpointError, first_line
from export.read.candidates import ROOT, select
from export.read.pickles import StandIn
from export.read.safetensors_file import INDEX_SUFFIX, MAX_INDEX, read_index, read_safetensors
from export.read.torch_file import DAMAGED, LEGACY_MAGIC, ZIP_MAGIC, StoredTensor, TorchFile, numpy_value
from export.read.wrappers import NETWORK

CHUNK = 1 << 20
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
MAX_CONTAINERS = 10_000  # in hyper-parameters
MAX_INTEGER_BITS = 1024  # of a hyper-parameter: Python does not even print integers of any length
# Files that people hand over by mistake, recognised by how they start.
STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with 'git lfs pull'"),
    (b"<!DOCTYPE", "a web page; the download failed, fetch the file again"),
    (b"<!doctype", "a web page; the download failed, fetch the file again"),
    (b"<html", "a web page; the download failed, fetch the file again"),
    (b"\x89HDF", "an HDF5 file, not PyTorch weights"),
    (b"\x93NUMPY", "a NumPy array, not PyTorch weights"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
)


@dataclass(frozen=True)
class Selection:
    """Which of the sets of weights in a file is meant.

    weights: "ema" or "online", where names say which is which; key: the path of one, as messages list them; part: what is
    looked for; flag: the option for `key`.
    """

    weights: str = "ema"
    key: str | None = None
    part: str = NETWORK
    flag: str = "--key"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors that were chosen in a file, by key, its plain hyper-parameters, and the SHA-256 of its bytes.

    key: the path of the chosen set in the file, "." for what was saved itself; notes: sentences on what came from elsewhere.
    """

    path: Path
    sha256: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    key: str = "."
    notes: tuple[str, ...] = field(default=())


def read_checkpoint(path: str | os.PathLike[str], selection: Selection | None = None) -> Checkpoint:
    """Read a file of torch.save, whatever container the weights are in, a safetensors file, or an index of shards.

    Tensors of torch.save stay mapped on the disk until they are used, and those that were not chosen are not read. The
    SHA-256 of an index is that of its bytes and of its shards' SHA-256s. CheckpointError when a file cannot be opened, is
    damaged, is not such a file, holds weights that need code, or several sets of weights and no sign which is meant.
    """
    path, selection = Path(path), selection or Selection()
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            file.seek(0)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            size = file.tell()
            file.seek(0)
            if path.name.endswith(INDEX_SUFFIX):
                return _chosen(path, _read_shards(path, file.read(MAX_INDEX), digest), {}, selection, digest)
            if _is_safetensors(path, head, size):
                return _chosen(path, *read_safetensors(path), selection, digest)
            _check_magic(path, head, size)
            return _read_torch(path, file, size, selection, digest)
    except IsADirectoryError as error:
        files = sorted(os.listdir(path))
        inside = [name for suffix in (INDEX_SUFFIX, SUFFIXES) for name in files if name.endswith(suffix)]
        cure = f"give one of those inside, such as {path / inside[0]}" if inside else "none is inside, check the path"
        raise CheckpointError(f"{path}: found a folder, expected a checkpoint file; {cure}") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: found nothing to read ({error.strerror}), expected a checkpoint file; check the path"
        ) from error


def _read_torch(path: Path, file: BinaryIO, size: int, selection: Selection, digest: Any) -> Checkpoint:
    try:
        saved = TorchFile(path, file, size)
    except DAMAGED as error:
        raise _damaged(path, error) from error
    hyper = saved.content.get("hyper_parameters") if isinstance(saved.content, dict) else None

    def mapped(stored: dict[str, StoredTensor]) -> dict[str, torch.Tensor]:
        try:
            return saved.tensors(stored)
        except DAMAGED as error:
            raise _damaged(path, error) from error

    return _chosen(path, saved.content, _plain(hyper, {}), selection, digest, mapped)


def _chosen(
    path: Path,
    content: Any,
    metadata: Any,
    selection: Selection,
    digest: Any,
    mapped: Callable[[dict[str, StoredTensor]], dict[str, torch.Tensor]] = lambda stored: {},
) -> Checkpoint:
    """The checkpoint of the set of weights that is meant; `mapped` gives the tensors that are still in the file."""
    state, key, notes = select(path, content, selection.weights, selection.key, selection.part, selection.flag)
    found = mapped({name: value for name, value in state.items() if isinstance(value, StoredTensor)})
    tensors = {name: value if isinstance(value, torch.Tensor) else found[name] for name, value in state.items()}
    return Checkpoint(path, digest.hexdigest(), tensors, metadata if isinstance(metadata, dict) else {}, key, tuple(notes))


def _read_shards(path: Path, data: bytes, digest: Any) -> dict[str, torch.Tensor]:
    """The tensors of all shards of an index, each from the one that it is said to be in."""
    tensors: dict[str, torch.Tensor] = {}
    for name, keys in read_index(path, data).items():
        shard = read_checkpoint(path.parent / name, Selection(key=ROOT))  # all of it: what is meant, the whole tells
        digest.update(bytes.fromhex(shard.sha256))
        missing = next((key for key in keys if key not in shard.tensors), None)
        if missing is not None:
            raise CheckpointError(
                f"{path}: found no {missing!r} in {name}, expected it there; copy or download the index and its shards again"
            )
        tensors |= {key: shard.tensors[key] for key in keys}
    return tensors


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    """By suffix, or by a header length that fits the file and is followed by JSON."""
    if path.suffix == ".safetensors":
        return True
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < size


def _check_magic(path: Path, head: bytes, size: int) -> None:
    """Refuse what is recognisably something else."""
    expected = "expected a PyTorch checkpoint (.ckpt, .pt, .pth), a .safetensors file or its .index.json"
    if not size:
        raise CheckpointError(f"{path}: found an empty file, {expected}; copy or download it again")
    for magic, what in STRANGERS:
        if head.lstrip().startswith(magic):
            raise CheckpointError(f"{path}: found {what}; {expected}")
    if head.startswith(ZIP_MAGIC) or (head.startswith(b"\x80") and LEGACY_MAGIC in head):
        return
    if head.startswith(b"\x80"):
        raise CheckpointError(f"{path}: found a pickle that torch.save did not write, {expected}; save with torch.save")
    raise CheckpointError(
        f"{path}: found a file that starts with {head[:8]!r}, {expected}; check that this is the right file"
    )


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path}: found a damaged or truncated file ({first_line(error)}), expected what torch.save wrote; copy or "
        "download it again"
    )


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """`value` as plain values, those of NumPy and of a namespace's attributes included; what is none of them becomes None.

    done: what was made of a container before, by its id: a pickle may share one, or nest it in itself.
    """
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_INTEGER_BITS else None
    if id(value) in done or len(done) > MAX_CONTAINERS:
        return done.get(id(value))
    if isinstance(value, StandIn):
        array = numpy_value(value)
        if array is not None:
            return _plain_number(array) if not array.ndim else None
        done[id(value)] = None
        inner = value.entries or (value.state if isinstance(value.state, dict) else None)
        if isinstance(inner, dict) and "_val" in inner:  # a value of OmegaConf's
            inner = inner["_val"]
        elif isinstance(inner, dict) and isinstance(inner.get("_content"), (dict, list)):
            inner = inner["_content"]
        done[id(value)] = _plain(inner, done)
        return done[id(value)]
    done[id(value)] = None
    if isinstance(value, Mapping):
        done[id(value)] = {key: _plain(item, done) for key, item in value.items() if isinstance(key, str)}
    elif isinstance(value, (list, tuple)):
        done[id(value)] = [_plain(item, done) for item in value]
    return done[id(value)]


def _plain_number(scalar: np.ndarray) -> Any:
    """A scalar of NumPy as Python's; 0.02 in float32 is 0.02, and not what that is in float64."""
    narrow = scalar.dtype.kind == "f" and scalar.dtype.itemsize < 8
    return float(str(scalar[()])) if narrow else scalar.item()


def as_float32(tensors: Mapping[str, torch.Tensor], path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The same weights as finite float32; CheckpointError names the first key of another kind or with NaN or infinity."""
    result: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{path}: found dtype {tensor.dtype} under {prefix + key!r}, expected floating-point weights; save the "
                "model before quantizing it"
            )
        converted = tensor.detach().to(torch.float32)
        if not bool(torch.isfinite(converted).all()):
            raise CheckpointError(
                f"{path}: found NaN or infinity in {prefix + key!r}, expected finite weights; use an earlier checkpoint of "
                "the training run"
            )
        result[key] = converted
    return result


def stored_as(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Sentences on weights that are stored in another precision than they are computed with."""
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    del kinds["float32"]
    return [f"{n} of {len(tensors)} tensors are stored as {kind} and computed with in float32" for kind, n in kinds.items()]
