"""The plan of a build: the backends and precisions asked for, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.backends import BACKENDS, available
from engine.bundle.graphs import GRAPH_PRECISIONS, PRECISIONS
from engine.errors import ArgumentError, BackendError, did_you_mean
from export.engines import ENGINE_BUILDERS, EngineBuilder
from export.graphs.parity import LOADERS

ALWAYS = "onnxruntime"  # every graph is checked in it, whatever the bundle is built for
NATIVE = frozenset(PRECISIONS) - frozenset(GRAPH_PRECISIONS)  # what only engines of the CPU are built in
BUILDABLE = tuple(dict.fromkeys((*BACKENDS, *ENGINE_BUILDERS)))  # what a bundle can be built for


def default_backends(precisions: Sequence[str]) -> tuple[str, ...]:
    """What a bundle is for when the user names no backend: the CPU's, native where this machine can check what it builds.

    precisions: as asked for; native is left out where it is built in none of them.
    """
    native = available()["native"][0] and (not precisions or not NATIVE.isdisjoint(precisions))
    return ("onnxruntime", "openvino", *(("native",) if native else ()))


def check_backends(names: Sequence[str]) -> list[str]:
    """The runtimes to check graphs in; an unknown or missing backend is refused before any work is done."""
    for name in names:
        if name not in BUILDABLE:
            raise ArgumentError(
                f"--backends: found {name!r}, expected one or more of {', '.join(BUILDABLE)}.{did_you_mean(name, BUILDABLE)}"
            )
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"--backends: found {list(names)}, expected different names of {', '.join(BUILDABLE)}")
    installed = available()
    needed = [name for name in dict.fromkeys((ALWAYS, *names)) if name in LOADERS]
    for name in needed:
        if not installed[name][0]:
            raise BackendError(f"backend {name}: found that it is {installed[name][1]}")
    return needed


@dataclass(frozen=True)
class PrecisionPlan:
    """What is built in which precision: the ONNX graphs, and (backend, precision) of the engines."""

    graphs: tuple[str, ...]
    engines: tuple[tuple[str, str], ...]


def plan_precisions(asked: Sequence[str], builders: Mapping[str, EngineBuilder]) -> PrecisionPlan:
    """Float32 graphs always, half ones when asked for or built from; engines in what was asked, or in each one's best."""
    for name in asked:
        if name not in PRECISIONS:
            raise ArgumentError(
                f"--precision: found {name!r}, expected one or more of {', '.join(PRECISIONS)}."
                f"{did_you_mean(name, PRECISIONS)}"
            )
    if len(set(asked)) < len(asked):
        raise ArgumentError(f"--precision: found {list(asked)}, expected different names of {', '.join(PRECISIONS)}")
    engines = []
    for backend, builder in builders.items():
        chosen = [name for name in asked if name in builder.PRECISIONS] if asked else [builder.PRECISIONS[0]]
        if not chosen:
            raise ArgumentError(
                f"--precision: found {', '.join(asked)}, expected at least one that backend {backend} is built in: "
                f"{', '.join(builder.PRECISIONS)}; add it"
            )
        engines += [(backend, name) for name in chosen]
    built = {precision for _, precision in engines}
    for name in asked:
        if name not in built and name not in GRAPH_PRECISIONS:
            raise ArgumentError(
                f"--precision: found {name!r} and no backend that is built in it, expected one of "
                f"{', '.join(ENGINE_BUILDERS)} in --backends that has it. OpenVINO needs no graph of its own for bf16: "
                "choose it when sampling"
            )
    half = "fp16" in asked or "fp16" in built
    return PrecisionPlan(GRAPH_PRECISIONS if half else GRAPH_PRECISIONS[:1], tuple(engines))
