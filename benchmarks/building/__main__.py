"""The command: `python benchmarks/building` from a checkout, or `python -m benchmarks.building`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

from benchmarks.building.run import main

if __name__ == "__main__":
    main()
