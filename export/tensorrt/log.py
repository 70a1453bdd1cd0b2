"""The builder's messages, and the first bytes of a plan. Kernels after fusion, memory, reasons of a failure."""

from __future__ import annotations

import re
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from export.tensorrt.options import RTX_TARGETS

KEPT = 6  # last warnings and errors, for the message of a failure
WARNING, INFO = 2, 3  # of ILogger.Severity: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose
# With DETAILED profiling verbosity the kernels of a plan, one a line; TensorRT 10 words it in the second way.
LAYERS = re.compile(r"^(?:Name: .*?, LayerType: (\w+)|Layer\((\w+)\): )", re.MULTILINE)
LAYER_LISTS = ("Layers:", "Engine Layer Information:")
MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")
MAX_MESSAGE = 400
# magic, 12 bytes, size of what follows, version as four bytes, its own magic, bits of the targets
HEADER = struct.Struct("<4s12xQ4B4sI")


@dataclass
class BuildNotes:
    """What a logger heard during one build."""

    complaints: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    layers: Counter[str] = field(default_factory=Counter)
    memory: Counter[str] = field(default_factory=Counter)

    def hear(self, severity: int, message: str) -> None:
        """Take what is of use from one message."""
        if severity <= WARNING:
            self.complaints.append(" ".join(message.split())[:MAX_MESSAGE])
        elif severity == INFO:
            for kind, count in MEMORY.findall(message):
                self.memory[kind] += int(count)
        elif message.startswith(LAYER_LISTS):
            self.layers.update(first or second for first, second in LAYERS.findall(message))

    def reasons(self) -> str:
        """The last messages in one line."""
        return "; ".join(self.complaints) or "without a message"

    def as_record(self) -> dict[str, Any]:
        """For the manifest; null where this library's messages say nothing."""
        return {
            "fused_layers": sum(self.layers.values()) or None,
            "layer_kinds": dict(sorted(self.layers.items())),
            "activation_bytes": self.memory.get("Activation"),
            "weight_bytes": self.memory.get("Weights"),
        }


def make_logger(module: Any, hear: Callable[[int, str], None]) -> Any:
    """An ILogger of the library `module` that hands every message to `hear`."""

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            hear(int(severity), message)

    return Logger()


def read_header(plan: bytes) -> dict[str, Any] | None:
    """What the header of a TensorRT for RTX plan says, or None when it has none that is known.

    Read off bytes that no document describes: good for a record, never for deciding whether a plan may be used.
    """
    if len(plan) < HEADER.size:
        return None
    magic, size, *rest = HEADER.unpack_from(plan)
    version, _, bits = rest[:4], rest[4], rest[5]
    if magic != b"vtrt":
        return None
    targets = [target for bit, target in enumerate(RTX_TARGETS) if bits >> bit & 1]
    return {"bytes": size, "version": ".".join(map(str, version)), "targets": targets}
