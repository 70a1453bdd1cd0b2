"""Limits of a manifest, stated once: embed/cpp/src/bundle/limits.h is generated from here."""

from __future__ import annotations

FORMAT_VERSION = 3
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_GRAPH_BYTES = 2**31 - 1  # a protobuf message, and so an ONNX file, ends below 2 GiB
MAX_ENGINE_BYTES = 2**40
MAX_T = 1_000_000
MAX_SIDE = 65_536  # height and width of a state
MAX_CHANNELS = 65_536
MAX_DIMENSION = 2**31
MAX_RANK = 8
MAX_INPUTS = 32
MAX_CALLS = 64  # in one section of the pipeline
MAX_COMPONENTS = 65_536
MAX_OPSET = 1000
MAX_TEXT = 200
MAX_DIGITS = 20  # longer integers are no field of ours, and int() of a long text is quadratic
MAX_LANES = 4
MAX_TEMPERATURE = 100
MAX_GUIDANCE = 100
MAX_CLIP = 1_000_000

LIMITS = {name: value for name, value in sorted(globals().items()) if name.isupper() and isinstance(value, int)}
