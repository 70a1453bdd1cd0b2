"""The command: `python benchmarks/quality` from a checkout, or `python -m benchmarks.quality`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed
# numpy's own pool of threads would spin beside the engine's; the distance needs 0.3 s without it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.quality.run import main

if __name__ == "__main__":
    main()
