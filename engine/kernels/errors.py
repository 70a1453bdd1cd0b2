"""Exceptions of the kernels."""

from __future__ import annotations

from engine.errors import BackendError


class KernelError(Exception):
    """Base class of everything the kernels raise on purpose."""


class KernelArgumentError(KernelError, ValueError):
    """An array or a number handed to a kernel has the wrong type, shape, layout or range."""


class KernelLoadError(KernelError, BackendError):
    """The compiled library is missing, damaged, or of another version; the message says how to mend it."""
