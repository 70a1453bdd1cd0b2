"""A plain export of the same network: the whole UNet as one graph, timestep in, as a tutorial would export it.

No table of timestep rows, no folding: what the engine's own graphs are compared with. Run as a script it writes
`denoiser-plain.onnx`:

    python benchmarks/latency/plain.py CKPT --options '{"heads": 8}' --out denoiser-plain.onnx
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import json

import click
import numpy as np

from benchmarks.latency import reference
from benchmarks.latency.calls import F32, Values
from benchmarks.latency.field import Contestant, Run, Task
from engine.backends import onnxruntime as ort
from engine.backends import openvino
from engine.bundle.reader import Bundle
from engine.cli.terminal import Program
from engine.places import check_file
from engine.solver import noise as noises


class PlainRunner:
    """A plain export in ONNX Runtime or OpenVINO, the VAE's decoder beside it, and the solver's loop in numpy."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        assert task.plain is not None, "a contestant without its export is skipped"
        bundle = Bundle.open(task.bundle)
        self._manifest = bundle.manifest
        self._chain = reference.Chain(bundle.manifest)
        how = (contestant.backend, contestant.precision, task.threads)
        self._denoise = _callable(task.plain.read_bytes(), *how)
        maker = self._manifest.pipeline.maker(reference.RECON)
        self._decode = _callable(bundle.read_graph(maker.graph), *how) if maker is not None else None

    def eps(self, x: F32, values: Values, timestep: int) -> F32:
        """One call with one timestep for the whole batch."""
        given = {"x": x, "cond": values.get(reference.RECON), "z": values.get(reference.Z)}
        given["t"] = np.full(len(x), timestep, np.int64)
        return self._denoise({name: array for name, array in given.items() if array is not None})

    def run(self, n: int, seed: int, steps: int) -> Run:
        """VAE decoder, then the chain of DDIM, then pixels."""
        started, calls = time.perf_counter(), []
        pipeline, drawn = self._manifest.pipeline, self._manifest.drawn
        seeds = noises.resolve_seeds(seed, n)
        values: Values = {}
        if drawn is not None and self._decode is not None:
            z = noises.drawn(seeds, [int(size) for size in drawn.sample])
            values[reference.RECON] = self._decode({"z": z})
            values |= {reference.Z: z} if pipeline.per_sample_rows else {}

        def network(x: F32, timestep: int) -> F32:
            asked = time.perf_counter()
            eps = self.eps(x, values, timestep)
            calls.append(1e3 * (time.perf_counter() - asked))
            return eps

        centre = values[pipeline.state.centre] if pipeline.state.centre is not None else np.float32(0)
        x_T = noises.initial(seeds, pipeline.state.shape)
        x: F32 = self._chain.run(steps, x_T, centre, network, np.clip)
        np.ascontiguousarray(((np.clip(x, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))
        return Run(x, 1e3 * (time.perf_counter() - started), calls)


def _callable(model: bytes, backend: str, precision: str, threads: int) -> Any:
    """A function from named arrays to a model's one output."""
    if backend == "onnxruntime":
        session = ort.open_session(model, threads)
        return lambda arrays: session.run(None, arrays)[0]
    request = openvino.compile_model(model, precision, threads).create_infer_request()
    return lambda arrays: np.array(request.infer(arrays)[0], np.float32)


def export_plain(checkpoint: Path, options: dict[str, Any], out: Path) -> None:
    """Write UNet.forward (time embedding and all) as one ONNX graph: x, cond, t, z as the model has them -> eps."""
    import torch

    unet, vae = reference.networks(checkpoint, options)
    size, batch = unet.spec.image_size, 2
    given = {
        "x": torch.zeros(batch, 3, size, size),
        "cond": torch.zeros(batch, 3, size, size) if vae is not None else None,
        "t": torch.zeros(batch, dtype=torch.int64),
        "z": torch.zeros(batch, unet.spec.z_dim) if unet.spec.z_dim else None,
    }
    dim = torch.export.Dim("batch")
    names = [name for name, value in given.items() if value is not None]
    part = out.with_name(f"{out.name}.part")
    torch.onnx.export(
        unet, tuple(given.values()), part, dynamo=True, input_names=names, output_names=["eps"], verbose=False,
        dynamic_shapes=[None if value is None else {0: dim} for value in given.values()], external_data=False,
    )  # fmt: skip
    os.replace(part, out)


@click.command(cls=Program)
@click.argument("checkpoint", type=Path)
@click.option("--options", type=json.loads, default="{}", help="What the weights cannot tell, as JSON.")
@click.option("--out", type=Path, required=True)
def main(checkpoint: Path, options: dict[str, Any], out: Path) -> None:
    """Write the plain export of a checkpoint's UNet."""
    check_file(out)
    export_plain(checkpoint, options, out)


if __name__ == "__main__":
    main()
