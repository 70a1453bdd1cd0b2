"""The processor's instruction sets that decide precision and kernels, by their Linux names."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

# The features that decide something here; a processor's other flags are left out.
FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip
BF16_FEATURES = ("amx_bf16", "avx512_bf16")  # either computes bf16 products in hardware
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """name and architecture as the system gives them; features: those of FEATURES that it reports."""

    name: str
    architecture: str
    features: frozenset[str]

    @property
    def bf16(self) -> bool:
        """Whether bf16 products run in hardware."""
        return not self.features.isdisjoint(BF16_FEATURES)

    @property
    def amx_bf16(self) -> bool:
        """Whether there are bf16 matrix tiles, which make bf16 several times as fast as float32."""
        return "amx_bf16" in self.features

    def __str__(self) -> str:
        known = " ".join(feature for feature in FEATURES if feature in self.features)
        return f"{self.name} ({self.architecture}; {known or 'features unknown'})"


@functools.cache
def this_processor() -> Processor:
    """The processor this runs on."""
    return read_processor(_CPUINFO)


def read_processor(cpuinfo: Path) -> Processor:
    """The processor that a file in /proc/cpuinfo's format describes; without one (not Linux) no feature is claimed.

    A feature counts only when every processor listed has it.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names: list[str] = []
    flags: list[set[str]] = []
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            names.append(value)
        elif key in ("flags", "Features"):
            flags.append(set(value.split()))
    common = set.intersection(*flags) if flags else set()
    name = names[0] if names else platform.processor() or "unknown processor"
    return Processor(name, platform.machine(), frozenset(common & set(FEATURES)))
