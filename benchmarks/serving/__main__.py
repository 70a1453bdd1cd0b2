"""The command: `python benchmarks/serving` from a checkout, or `python -m benchmarks.serving`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

from benchmarks.serving.run import main

if __name__ == "__main__":
    main()
