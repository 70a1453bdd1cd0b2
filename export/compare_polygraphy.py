"""TensorRT on your GPU against ONNX Runtime:  python export/compare_polygraphy.py NAME.bundle --tensorrt

For those who live in polygraphy: its summary of a graph, and its runners over the float32 graph in ONNX Runtime, the
graph itself there, and with --tensorrt the graph built and run by TensorRT here (TensorRT for RTX with
POLYGRAPHY_USE_TENSORRT_RTX=1 in the environment). Exit code 1 when they differ by more than the tolerance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # From a checkout nothing needs to be installed; and this folder itself must not shadow other packages.
    HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]

import click
import numpy as np
import onnx

from engine.backends.base import read_onnx
from engine.bundle.graphs import SAMPLER, graph_of
from engine.bundle.reader import Bundle
from engine.cli.inputs import LINKS
from engine.cli.terminal import Program
from engine.commands import install_extra
from engine.errors import BackendError, ExportError, first_line
from engine.feeds import Feeds, noise_feeds, setting_feeds
from engine.solver.noise import resolve_seeds
from export.graphs.parity import relative_error
from export.graphs.roles import FREE

REFERENCE = "onnxruntime float32"
TOLERANCE = 5e-3  # a half graph is measured at 2e-3 when it is exported; on a GPU half products round once more
SEED = 0
STEPS = 3


def compare(bundle: Bundle, key: str, *, batch: int = 2, tensorrt: bool = False) -> dict[str, dict[str, float]]:
    """{runner: {output: relative error against the float32 graph in ONNX Runtime}} of one graph of a bundle.

    BackendError when polygraphy or TensorRT is missing, ExportError when a runner fails.
    """
    polygraphy = _polygraphy()
    feeds = inputs_of(bundle, key, batch)
    model = _whole(bundle, key)
    runners = [_onnxruntime(REFERENCE, _whole(bundle, graph_of(key))), _onnxruntime(f"onnxruntime {key}", model)]
    if tensorrt:
        runners.append(_tensorrt(key, model, feeds))
    from polygraphy.comparator import Comparator

    try:
        results = Comparator.run(runners, data_loader=[feeds])
    except polygraphy.exception.PolygraphyException as error:
        raise ExportError(
            f"{bundle.path}, graph {key}: found that polygraphy cannot run it ({first_line(error)}), "
            "expected a result from every runner; its own messages above say which one failed"
        ) from error
    outputs = {name: iterations[0] for name, iterations in results}
    expected = outputs.pop(REFERENCE)
    return {
        name: {tensor: _difference(found[tensor], expected[tensor]) for tensor in expected if tensor != "images"}
        for name, found in outputs.items()
    }


def inspect(bundle: Bundle, key: str) -> str:
    """Polygraphy's summary of a graph: inputs, outputs, number of nodes and weights."""
    _polygraphy()
    from polygraphy.backend.onnx import util

    text: str = util.str_from_onnx(onnx.load_from_string(_whole(bundle, key)))
    return text


def _whole(bundle: Bundle, key: str) -> bytes:
    """A graph that has its weights inside; ExportError for one that has not."""
    model = read_onnx(bundle, key)
    if model.weights:
        raise ExportError(
            f"{bundle.path}, graph {key}: found weights in a file of their own, expected a graph of less than 2 GiB, "
            "with all of them inside; choose another graph, or build in half: --precision fp16"
        )
    return model.data


def inputs_of(bundle: Bundle, key: str, batch: int) -> Feeds:
    """Random inputs of a graph, within its ranges; the sampler's are a chain of the bundle's schedule with its noise."""
    name, manifest = graph_of(key), bundle.manifest
    if name == SAMPLER:
        feeds, table = setting_feeds(manifest, {"steps": STEPS})
        feeds |= noise_feeds(manifest, table, resolve_seeds(SEED, batch))
        return feeds
    rng = np.random.default_rng(SEED)
    sizes = {"batch": batch, "steps": STEPS}
    feeds = {}
    for tensor in bundle.spec(key).inputs:
        shape = [sizes.get(d, FREE) if isinstance(d, str) else d for d in tensor.shape]
        low, high = tensor.range or (0.0, 0.0)
        if tensor.dtype == "int64":
            feeds[tensor.name] = rng.integers(int(low), int(high) + 1, shape)
        elif tensor.range is None:
            feeds[tensor.name] = rng.standard_normal(shape, np.float32)
        else:
            feeds[tensor.name] = rng.uniform(low, high, shape).astype(np.float32)
    return feeds


def _polygraphy() -> Any:
    try:
        import polygraphy
        import polygraphy.exception
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise BackendError(
            f"polygraphy: found that it cannot be imported ({error}), expected the package; "
            f"install it with: {install_extra('polygraphy')}"
        ) from error
    G_LOGGER.module_severity = G_LOGGER.ERROR  # its progress would drown the table below
    return polygraphy


def _onnxruntime(name: str, model: bytes) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    return OnnxrtRunner(SessionFromOnnx(model, providers=["CPUExecutionProvider"]), name=name)


def _tensorrt(key: str, model: bytes, feeds: Feeds) -> Any:
    """A runner that builds the graph for exactly these shapes when it is started."""
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxBytes, Profile, TrtRunner
    from polygraphy.backend.trt.util import trt
    from polygraphy.exception import PolygraphyException

    try:
        version = trt.__version__  # polygraphy imports TensorRT at the first look into it
    except PolygraphyException as error:
        raise BackendError(
            f"--tensorrt: found that TensorRT cannot be imported ({first_line(error)}), expected it and a GPU; "
            "install tensorrt, or tensorrt-rtx-cu13 and set POLYGRAPHY_USE_TENSORRT_RTX=1"
        ) from error
    profile = Profile()
    for name, array in feeds.items():
        profile.add(name, min=array.shape, opt=array.shape, max=array.shape)
    network = NetworkFromOnnxBytes(model, strongly_typed=True)
    engine = EngineFromNetwork(network, config=CreateConfig(profiles=[profile], tf32=False))
    return TrtRunner(engine, name=f"TensorRT {version} {key}")


def _difference(found: Any, expected: Any) -> float:
    return relative_error(np.asarray(found, np.float64), np.asarray(expected, np.float64))


def graphs_of(bundle: Bundle, names: Sequence[str]) -> tuple[str, ...]:
    """The graphs named, checked; without names all half ones, or where there are none, all."""
    for name in names:
        bundle.spec(name)
    halves = tuple(key for key, spec in bundle.manifest.graphs.items() if spec.precision == "fp16")
    return tuple(names) or halves or tuple(bundle.manifest.graphs)


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100})
@click.argument("path", metavar="BUNDLE")
@click.option("--graph", "names", multiple=True, metavar="NAME", help="Graph to compare; repeatable.  [default: half ones]")
@click.option("--batch", type=click.IntRange(1), default=2, show_default=True, help="Samples in the inputs.")
@click.option("--tensorrt", is_flag=True, help="Build and run in TensorRT too, on this machine's GPU.")
@click.option("--tolerance", type=float, default=TOLERANCE, show_default=True, help="Largest relative error that passes.")
@click.option("--inspect", "show", is_flag=True, help="Print polygraphy's summary of each graph first.")
@LINKS
@click.pass_context
def main(
    ctx: click.Context,
    path: str,
    names: tuple[str, ...],
    batch: int,
    tensorrt: bool,
    tolerance: float,
    show: bool,
    allow_links: tuple[str, ...],
) -> None:
    """Compare graphs of BUNDLE across runtimes with polygraphy; the reference is the float32 graph in ONNX Runtime."""
    worst = 0.0
    bundle = Bundle.open(path, allow_links)
    for key in graphs_of(bundle, names):
        if show:
            click.echo(inspect(bundle, key))
        for runner, errors in compare(bundle, key, batch=batch, tensorrt=tensorrt).items():
            listed = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
            click.echo(f"{runner:<40} {listed}")
            worst = max(worst, *errors.values())
    passed = worst <= tolerance
    click.echo(f"{'within' if passed else 'NOT within'} {tolerance:g}: largest relative error {worst:.2e}")
    ctx.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
