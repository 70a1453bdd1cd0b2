"""What a benchmark ran on: facts about machine, libraries and threads that every result file carries."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from engine import __version__, kernels
from engine.errors import ArgumentError, EngineError
from engine.processor import this_processor
from engine.threads import cpu_quota, default_threads

PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "onnx", "scikit-image")
BUSY = 0.5  # load average above which a machine is doing something else too


class BenchmarkError(EngineError):
    """A benchmark cannot give a result that means anything, for instance because contestants disagree."""


def machine_facts() -> dict[str, Any]:
    """Processor, memory, system and threads of this machine, as plain values for JSON.

    Ask first of all: the load average is to be that of others, not of the benchmark's own builds and contestants.
    """
    processor = this_processor()
    quota = cpu_quota()
    return {
        "processor": processor.name,
        "architecture": processor.architecture,
        "features": sorted(processor.features),
        "processors": os.cpu_count() or 1,
        "cpu_quota": quota if quota != float("inf") else None,
        "default_threads": default_threads(),
        "memory_gb": memory_gb(),
        "system": system_name(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions(),
        "kernels": {key: str(value) for key, value in kernels.implementation().items() if key in ("name", "isa")},
    }


def versions() -> dict[str, str]:
    """Python, the engine that runs, and those of PACKAGES that are installed, by name; looked up without importing any."""
    # A checkout's engine runs beside an installed one of another version, or without any.
    found = {"python": platform.python_version(), "diffusevae-engine": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an absent package has no version to state
    return found


def memory_gb() -> float:
    """Physical memory in GiB, one decimal; 0 where the system does not tell."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 0.0
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def system_name() -> str:
    """The distribution's name (or the kernel's, where there is none) and the kernel's release."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError, AttributeError):  # not Linux, or a container without the file
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release()}"


def describe(facts: dict[str, Any]) -> str:
    """The facts in two lines for people, and a third where the machine was busy."""
    told = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"{facts['processor']} ({' '.join(facts['features']) or 'features unknown'}), {facts['processors']} processors, "
        f"{facts['memory_gb']:.0f} GiB, {facts['system']}",
        told,
    ]
    if (facts["load_average"] or 0.0) > BUSY:
        lines.append(f"WARNING: load average {facts['load_average']}: something else is running, and times will suffer")
    return "\n".join(lines)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same of a text."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"{path}: cannot be written ({error.strerror or error}), expected a place for results; choose another --out"
        ) from error
