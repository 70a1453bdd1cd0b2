"""What does a plain export of the same network do? The whole UNet as one graph, timestep in, as a tutorial would export it.

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
import numpy.typing as npt

from benchmarks.latency.field import Contestant, Run, Task
from engine.backends import onnxruntime as ort
from engine.backends import openvino
from engine.bundle.reader import Bundle
from engine.solver import noise as noises
from engine.solver.table import Schedule, build_step_table

F32 = npt.NDArray[np.float32]


class PlainRunner:
    """A plain export in ONNX Runtime or OpenVINO, the VAE's decoder beside it, and the solver's loop in numpy."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        assert task.plain is not None, "a contestant without its export is skipped"
        bundle = Bundle.open(task.bundle)
        self._manifest = bundle.manifest
        spec = self._manifest.schedule
        self._schedule = Schedule(spec.beta_1, spec.beta_T, spec.T)
        how = (contestant.backend, contestant.precision, task.threads)
        self._denoise = _callable(task.plain.read_bytes(), *how)
        self._decode = _callable(bundle.read_graph("vae_decoder"), *how) if self._manifest.model.conditional else None

    def eps(self, x: F32, cond: F32 | None, z: F32 | None, timestep: int) -> F32:
        """One call with one timestep for the whole batch."""
        given = {"x": x, "cond": cond, "z": z, "t": np.full(len(x), timestep, np.int64)}
        return self._denoise({name: array for name, array in given.items() if array is not None})

    def run(self, n: int, seed: int, steps: int) -> Run:
        """VAE decoder, then the chain of DDIM, then pixels."""
        started, calls = time.perf_counter(), []
        model = self._manifest.model
        table = build_step_table(self._schedule, formulation=model.formulation, steps=steps, spacing="linspace")
        seeds = noises.resolve_seeds(seed, n)
        x = np.float32(table.start.k_noise) * noises.initial(seeds, (model.channels, model.image_size, model.image_size))
        cond = z = None
        if self._decode is not None:
            z = noises.latent(seeds, (model.z_dim or 0,))
            cond = 2 * self._decode({"z": z}) - 1
            x += np.float32(table.start.k_cond) * cond
        for t, row in zip(table.timesteps.tolist(), table.rows, strict=True):
            asked = time.perf_counter()
            eps = self.eps(x, cond, z if model.z_conditioned else None, t)
            calls.append(1e3 * (time.perf_counter() - asked))
            x = apply_row(row, x, eps, np.float32(0) if cond is None else cond, np.clip)
        np.ascontiguousarray(((np.clip(x, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))
        return Run(x, 1e3 * (time.perf_counter() - started), calls)


def apply_row(row: Any, x: Any, eps: Any, cond: Any, limit: Any) -> Any:
    """One row of a deterministic step table (kernels.ROW_FIELDS): x_0, clipped, then the next x; numpy or torch."""
    p_x, p_eps, p_cond, k_x0, _, k_x, k_eps, k_cond, _, clip = row
    x0 = limit(p_x * x + p_eps * eps + p_cond * cond, -clip, clip)
    return k_x0 * x0 + k_x * x + k_eps * eps + k_cond * cond


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

    from export.build import Request, infer_architecture, load, read
    from export.read.evidence import Options

    request = Request(checkpoint, options=Options(**options))
    source = read(request)
    unet, vae = load(source, infer_architecture(source, request.options))
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


@click.command()
@click.argument("checkpoint", type=Path)
@click.option("--options", type=json.loads, default="{}", help="What the weights cannot tell, as JSON.")
@click.option("--out", type=Path, required=True)
def main(checkpoint: Path, options: dict[str, Any], out: Path) -> None:
    """Write the plain export of a checkpoint's UNet."""
    export_plain(checkpoint, options, out)


if __name__ == "__main__":
    main()
