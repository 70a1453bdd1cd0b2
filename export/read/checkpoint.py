"""The safe reading of a checkpoint: untrusted weights, as tensors and plain metadata and nothing else.

A pickle can run code, so nothing is unpickled beyond tensors and plain containers (torch's weights-only reader). Old
Lightning versions key their callbacks by class; names from Lightning itself are therefore replaced by inert
placeholders, never imported. Everything else that is not plain is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError

CHUNK = 1 << 20
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # protocol 2, then torch's magic number
LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What torch.load lets out when it trips over damaged or hostile bytes; anything else is a fault of ours.
LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, OSError,
    MemoryError, OverflowError, struct.error, AssertionError, zipfile.BadZipFile, ImportError,
)  # fmt: skip
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
class Checkpoint:
    """A file's tensors by key, its plain hyper-parameters, and the SHA-256 of its bytes."""

    path: Path
    sha256: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a Lightning checkpoint, a `{"state_dict": …}` file, a bare state dict or a safetensors file.

    Tensors of zip-format files stay mapped on the disk until they are used. CheckpointError when the file cannot be
    opened, is damaged, is not such a file, or holds anything but tensors and plain values.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
            size = file.tell()
    except OSError as error:
        raise CheckpointError(
            f"{path}: found nothing to read ({error.strerror}), expected a checkpoint file; check the path"
        ) from error
    if _is_safetensors(path, head, size):
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _read_torch(path, head, size)
    _check_storages(path, tensors, size)
    return Checkpoint(path, sha256.hexdigest(), tensors, metadata)


def _digest(file: Any) -> Any:
    """`hashlib.file_digest` for Python 3.10."""
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    """By suffix, or by a header length that fits the file and is followed by JSON."""
    if path.suffix == ".safetensors":
        return True
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < size


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{path}: found a safetensors file but no reader for it, expected the package safetensors; install it with: "
            "pip install safetensors"
        ) from error
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            texts = file.metadata() or {}
    except (SafetensorError, *LOAD_ERRORS) as error:
        raise CheckpointError(
            f"{path}: found a damaged safetensors file ({_first_line(error)}), expected a complete one; copy or "
            "download it again"
        ) from error
    return tensors, {key: _from_text(text) for key, text in texts.items()}


def _from_text(text: str) -> Any:
    """safetensors metadata holds texts only; what reads as JSON is taken as such."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_torch(path: Path, head: bytes, size: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    _check_magic(path, head, size)
    is_zip = head.startswith(ZIP_MAGIC)
    try:
        if is_zip:
            _check_archive(path, size)
        with torch.serialization.safe_globals(_placeholders(path) if is_zip else []):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except LOAD_ERRORS as error:
        raise _explain(path, error) from error
    return _state_dict(path, content), _plain_metadata(content)


def _check_magic(path: Path, head: bytes, size: int) -> None:
    """Refuse what is recognisably something else before the unpickler sees it."""
    expected = "expected a PyTorch checkpoint (.ckpt, .pt, .pth) or a .safetensors file"
    if not size:
        raise CheckpointError(f"{path}: found an empty file, {expected}; copy or download it again")
    for magic, what in STRANGERS:
        if head.lstrip().startswith(magic):
            raise CheckpointError(f"{path}: found {what}; {expected}")
    if head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        return
    if head.startswith(b"\x80"):
        raise CheckpointError(f"{path}: found a pickle that torch.save did not write, {expected}; save with torch.save")
    raise CheckpointError(
        f"{path}: found a file that starts with {head[:8]!r}, {expected}; check that this is the right file"
    )


def _check_archive(path: Path, size: int) -> None:
    """Verify a zip-format checkpoint's checksums (a memory-mapped load would not) and that it does not inflate."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if not any(name.endswith("/data.pkl") for name in names):
            kind = "a NumPy archive" if any(name.endswith(".npy") for name in names) else "a zip archive"
            raise CheckpointError(
                f"{path}: found {kind} that torch.save did not write (entries {', '.join(names[:3])}, …), expected "
                "a PyTorch checkpoint; check that this is the right file"
            )
        if sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(
                f"{path}: found an archive that unpacks to more than its own {size} bytes, expected stored tensors as "
                "torch.save writes them; save the checkpoint again with torch.save"
            )
        for entry in entries:
            with archive.open(entry) as file:
                while file.read(CHUNK):
                    pass  # reading to the end verifies the entry's checksum


class _Placeholder:
    """Stands where a Lightning class or object was; accepts and forgets everything."""

    def __new__(cls, *args: object) -> _Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


def _placeholders(path: Path) -> list[Any]:
    """Inert stand-ins for the names from Lightning that the file mentions; its AttributeDict is a plain dict to us."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [
        (dict if name.endswith(".AttributeDict") else _Placeholder, name) for name in names if name.startswith(LIGHTNING)
    ]


def _explain(path: Path, error: BaseException) -> CheckpointError:
    """Our error for what torch's reader raised."""
    text = str(error)
    for mark in ("Unsupported global: GLOBAL ", "Trying to load unsupported GLOBAL "):
        if mark in text:
            name = text.split(mark, 1)[1].split()[0]
            return CheckpointError(
                f"{path}: found the pickled name {name}, expected tensors and plain values (numbers, text, lists, dicts) "
                "only: a pickle can run code, so nothing else is read. If you trust the file, strip it where it was made: "
                "torch.save({'state_dict': torch.load('FILE', weights_only=False)['state_dict']}, 'stripped.ckpt')"
            )
    if "TorchScript" in text:
        return CheckpointError(
            f"{path}: found a TorchScript archive, expected a checkpoint of weights; save module.state_dict() instead"
        )
    return CheckpointError(
        f"{path}: found a damaged or truncated file ({_first_line(error)}), expected what torch.save wrote; copy or "
        "download it again"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _state_dict(path: Path, content: object) -> dict[str, torch.Tensor]:
    """The tensors by key, from `{"state_dict": …}` or a bare state dict."""
    state = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state = content["state_dict"]
    if not isinstance(state, Mapping) or not any(isinstance(v, torch.Tensor) for v in state.values()):
        shown = f"keys {[str(key) for key in list(state)[:5]]}" if isinstance(state, Mapping) else "no dict"
        raise CheckpointError(
            f"{path}: found a {type(content).__name__} without weights ({shown}), expected a state dict or "
            "{'state_dict': …}; save module.state_dict()"
        )
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: found {type(value).__name__} under the key {str(key)[:80]!r}, expected a tensor under a text "
                "key; save module.state_dict() alone"
            )
    return dict(state)


def _plain_metadata(content: object) -> dict[str, Any]:
    hyper = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return _plain(hyper, depth=8) if isinstance(hyper, Mapping) else {}


def _plain(value: Any, depth: int) -> Any:
    """`value` without whatever is not a plain value; what is not plain becomes None."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping) and depth:
        return {key: _plain(item, depth - 1) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, (list, tuple)) and depth:
        return [_plain(item, depth - 1) for item in value]
    return None


def _check_storages(path: Path, tensors: Mapping[str, torch.Tensor], size: int) -> None:
    """Bound what the tensors can cost by what the file holds: a view may claim any shape over a few bytes."""
    storages: dict[int, int] = {}
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: found a {tensor.layout} tensor on {tensor.device} under {key!r}, expected a dense one; save it "
                "dense"
            )
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise CheckpointError(
                f"{path}: found {key!r} claiming shape {list(tensor.shape)} over {storage.nbytes()} bytes, expected the "
                "numbers to be there; save it with .contiguous()"
            )
    if sum(storages.values()) > size:
        raise CheckpointError(
            f"{path}: found tensors of {sum(storages.values())} bytes in a file of {size}, expected no more than the "
            "file holds; copy or download it again"
        )


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
