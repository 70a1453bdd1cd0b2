"""Other processes, for tests of what their parent opened or sends; spawned workers import this and the engine only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from engine import Sampler
from engine.errors import EngineError

SETTING: dict[str, Any] = {"seed": 7, "steps": 3, "spacing": "linspace"}


def images_of(sampler: Sampler) -> bytes:
    """What a worker makes of a Sampler that it is given."""
    return sampler.sample(2, **SETTING).images.tobytes()


def forked(work: Callable[[], str]) -> str:
    """What `work` returns in a child of fork(), or the error that it raises; a hang is ended by an alarm."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            text = work()
        except EngineError as error:
            text = str(error)
        except BaseException as error:  # must not go on into pytest, which is the parent's
            text = f"unexpected {error!r}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0, "the child hung or died"
    return said
