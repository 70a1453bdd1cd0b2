"""A check that this server's Python backend reads numpy arrays rightly: older ones know numpy 1 only, and say nothing.

Their tensors then have strides of 0: of the seeds 3 and 4 both arrive as 3, and outputs are empty (seen with Triton 2.51).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import BackendError

PROBE = [0, 1, 2]


def check_numpy(server: Any) -> None:
    """BackendError where the server's Tensor gives back something else than was put in."""
    if int(np.__version__.partition(".")[0]) < 2:
        return  # every server reads numpy 1; and in older ones from_dlpack never returns with it
    found = server.Tensor.from_dlpack("probe", np.array(PROBE)).as_numpy().tolist()
    if found != PROBE:
        raise BackendError(
            f"found numpy {np.__version__}, which the server's Python backend misreads ({PROBE} came back as {found}), "
            "expected numpy 1 or a newer server; run pip install 'numpy<2' in the environment that the server uses"
        )
