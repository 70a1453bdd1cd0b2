"""How does TensorRT for RTX run a graph? As TensorRT does (engine/backends/tensorrt.py), from plans of its own."""

from __future__ import annotations

from engine.backends.tensorrt import choice as gpu_choice
from engine.backends.tensorrt.backend import PRECISIONS, TensorRtGraph, chunk_engine, load_plan
from engine.bundle.reader import Bundle
from engine.device.context import Device

NAME = "tensorrt_rtx"

__all__ = ["NAME", "PRECISIONS", "available", "chunk_engine", "load"]


def load(
    bundle: Bundle, role: str, *, precision: str = PRECISIONS[0], threads: int | None = None, device: Device | None = None
) -> TensorRtGraph:
    """Load a plan of TensorRT for RTX; see engine.backends.tensorrt.load."""
    return load_plan(NAME, bundle, role, precision, device)


def available() -> tuple[bool, str]:
    """(whether it runs here, its version and the GPUs or what is missing)."""
    return gpu_choice.available(NAME)
