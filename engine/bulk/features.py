"""Features in place of images: an ONNX model of the caller's, in ONNX Runtime on the CPU, whose input says what it takes.

Input: uint8 [N, H, W, C], or float32 [N, C, H, W] in [0, 1]; output: float32 [N, D]. Resizing and normalising belong into
the model, where its SHA-256 covers them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from engine.backends.onnxruntime import native_failures, open_session
from engine.bundle.onnx_file import check_self_contained
from engine.checks import images_of
from engine.errors import ArgumentError, BackendError, BundleError, NumericsError
from engine.result import F32, U8

_UINT8, _FLOAT = "tensor(uint8)", "tensor(float)"


def read_extractor(path: str | Path) -> bytes:
    """The bytes of an ONNX file that keeps its weights to itself; ArgumentError otherwise."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArgumentError(
            f"features: found that {path} cannot be read ({error.strerror}), expected an ONNX file; check the path"
        ) from error
    try:
        check_self_contained(data, str(path))
    except BundleError as error:
        raise ArgumentError(
            f"features: found no ONNX file with all its weights inside ({error.__class__.__name__}: "
            f"{str(error).partition('; rebuild')[0]}), expected one: its SHA-256 stands for all of it; export it again so"
        ) from error
    return data


class Extractor:
    """A loaded model: images of one shape [C, H, W] in, features out."""

    def __init__(self, model: bytes, shape: tuple[int, int, int], threads: int) -> None:
        self.shape = shape
        try:
            self._session = open_session(model, threads)
        except native_failures() as error:
            raise ArgumentError(
                f"features: found a model that ONNX Runtime refuses ({type(error).__name__}: {str(error)[:300]}), expected "
                f"one that it can load; check it with onnx.checker"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            names = ", ".join(tensor.name for tensor in (*inputs, *outputs))
            self._refuse(f"{len(inputs)} inputs and {len(outputs)} outputs ({names})")
        self._input, self._output = inputs[0], outputs[0]
        self._takes_pixels = self._input.type == _UINT8
        self._check()

    def _check(self) -> None:
        channels, height, width = self.shape
        wanted = [height, width, channels] if self._takes_pixels else [channels, height, width]
        shape, result = self._input.shape, self._output.shape
        # A free dimension is a text or None; that of N must be free, since the last piece of a shard is smaller.
        fits = len(shape) == 4 and all(not isinstance(d, int) or d == w for d, w in zip(shape[1:], wanted, strict=True))
        if self._input.type not in (_UINT8, _FLOAT) or not fits or isinstance(shape[0], int):
            self._refuse(f"the input {self._input.name} as {self._input.type}{shape}")
        if self._output.type != _FLOAT or len(result) != 2 or isinstance(result[0], int):
            self._refuse(f"the output {self._output.name} as {self._output.type}{result}")

    def _refuse(self, found: str) -> NoReturn:
        channels, height, width = self.shape
        raise ArgumentError(
            f"features: found {found}, expected one input, uint8 [N, {height}, {width}, {channels}] or float32 "
            f"[N, {channels}, {height}, {width}] in [0, 1], and one output, float32 [N, D], with N free; put resizing, "
            f"normalising and pooling into the model"
        )

    def __call__(self, images: U8) -> F32:
        """Features [N, D] of images uint8 [N, H, W, C]."""
        values: Any = images if self._takes_pixels else images_of(images, self.shape)
        try:
            features = self._session.run([self._output.name], {self._input.name: values})[0]
        except native_failures() as error:
            raise BackendError(
                f"features, on {len(images)} images: found {type(error).__name__}: {str(error)[:300]}; expected [N, D]; try "
                f"the model on such images by itself"
            ) from error
        if features.ndim != 2 or len(features) != len(images):
            self._refuse(f"features {list(features.shape)} of {len(images)} images")
        if not np.isfinite(features).all():
            raise NumericsError("features: found NaN or infinity, expected finite numbers; check the model on such images")
        result: F32 = features
        return result
