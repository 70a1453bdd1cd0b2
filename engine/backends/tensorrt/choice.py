"""Whether a GPU backend is there, and whether "auto" takes it: from installed packages and the driver, never an error.

The written rule (engine.backends.RULE) chooses one only where a CUDA device is present that the bundle's plans cover: a
machine without a device never gets it, whatever is installed.
"""

from __future__ import annotations

from importlib import metadata, util

from engine.backends.tensorrt.library import INSTALL
from engine.backends.tensorrt.plan import PRECISION, covers
from engine.bundle.reader import Bundle
from engine.device.context import presence


def available(backend: str) -> tuple[bool, str]:
    """(whether the library is installed and a GPU is there for it, its version and the GPUs, or what is missing)."""
    if util.find_spec(backend) is None:
        return False, f"not installed; install it with: {INSTALL[backend]} (and an NVIDIA driver)"
    there, about, _ = presence()
    version = f"{backend} {_version(backend)}"
    return there, f"{version}, {about}" if there else f"not usable: {version} is installed, but {about}"


def auto_precision(bundle: Bundle, backend: str, precision: str) -> str | None:
    """The precision in which "auto" takes this backend for a bundle, or None where it does not."""
    step = bundle.manifest.pipeline.step.graph
    built = bundle.spec(step).computes_in(PRECISION)
    if precision not in ("auto", PRECISION) or not bundle.has_engine(backend, built, step):
        return None
    there, _, capabilities = presence()
    targets = bundle.engine(backend, built, step).targets
    return PRECISION if there and any(covers(targets, capability) for capability in capabilities[:1]) else None


def _version(backend: str) -> str:
    for distribution in (backend, f"{backend}_cu13", f"{backend}_cu12"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue  # the wheels are named after the CUDA version that they were built for
    return "(version unknown)"
