"""The bytes of a shard: a .npy array, or a tar that webdataset reads; the same samples give the same bytes.

tar   for sample 12: 00000012.png (with features 00000012.npy) and 00000012.json, {"index": 12, "seed": 19}. No time, user or
      group is in a header
npy   uint8 [n, H, W, C], or float32 [n, D] of features
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bulk.job import Shard
from engine.imaging import png_bytes

Samples = npt.NDArray[Any]  # uint8 [n, H, W, C] or float32 [n, D]


def encode(format: str, shard: Shard, samples: Samples) -> bytes:
    """The file of a shard."""
    return npy_bytes(samples) if format == "npy" else tar_bytes(shard, samples)


def npy_bytes(array: Samples) -> bytes:
    """An array as numpy saves it."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def tar_bytes(shard: Shard, samples: Samples) -> bytes:
    """A tar of two members a sample, in order."""
    suffix, content = ("png", png_bytes) if samples.ndim == 4 else ("npy", npy_bytes)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i, (seed, sample) in enumerate(zip(shard.seeds, samples, strict=True)):
            index = shard.first + i
            _add(archive, f"{index:08d}.{suffix}", content(sample))
            _add(archive, f"{index:08d}.json", json.dumps({"index": index, "seed": seed}).encode())
    return buffer.getvalue()


def png_encoder() -> str:
    """What the bytes of a PNG depend on beside the picture: another release may compress otherwise."""
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, zlib {features.version('zlib')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time, user and group are zero, its mode 0644
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
