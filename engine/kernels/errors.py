"""Which exceptions do the kernels raise? (This package imports nothing of the engine, so it has its own small family.)"""

from __future__ import annotations


class KernelError(Exception):
    """Base class of everything the kernels raise on purpose."""


class KernelArgumentError(KernelError, ValueError):
    """An array or a number handed to a kernel has the wrong type, shape, layout or range."""


class KernelLoadError(KernelError, ImportError):
    """The compiled library is missing, damaged, or of another version; the message says how to mend it."""
