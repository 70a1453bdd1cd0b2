"""src/bundle/limits.h from engine/bundle/limits.py: the limits of a manifest are stated once for both languages.

Run from anywhere as `python embed/cpp/generate_limits.py`; a test compares what is committed with what this writes.
"""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = Path(__file__).resolve().parent / "src" / "bundle" / "limits.h"
TEMPLATE = """\
// Limits of a manifest. Written by embed/cpp/generate_limits.py from engine/bundle/limits.py: change them there.
#ifndef DIFFUSEVAE_BUNDLE_LIMITS_H
#define DIFFUSEVAE_BUNDLE_LIMITS_H

#include <cstdint>

namespace diffusevae {{

{lines}

}}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_LIMITS_H
"""


def limits() -> dict[str, int]:
    """Those of the Python reader, by name; its file is run by itself, so that nothing has to be installed."""
    found: dict[str, int] = runpy.run_path(str(ROOT / "engine" / "bundle" / "limits.py"))["LIMITS"]
    return found


def constant(name: str) -> str:
    """MAX_SIDE as C++ spells it: kMaxSide."""
    return "k" + "".join(word.capitalize() for word in name.split("_"))


def header(limits: dict[str, int]) -> str:
    """The text of limits.h."""
    lines = [f"constexpr int64_t {constant(name)} = {value};" for name, value in sorted(limits.items())]
    return TEMPLATE.format(lines="\n".join(lines))


if __name__ == "__main__":
    HEADER.write_text(header(limits()), encoding="utf-8")
