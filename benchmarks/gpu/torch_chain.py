"""How long does the same chain take in PyTorch on the same GPU? Eager or compiled, half precision by autocast."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.latency.plain import apply_row
from benchmarks.machine import BenchmarkError
from engine.bundle.reader import Bundle
from engine.solver import noise as noises
from engine.solver.table import Schedule, build_step_table


class TorchChain:
    """The checkpoint's networks on the GPU, and a plain loop over the engine's own step table."""

    def __init__(self, bundle: Bundle, checkpoint: Path, *, compiled: bool) -> None:
        self._torch = torch = _torch()
        from export.build import Request, infer_architecture, load, read
        from export.read.evidence import Options

        manifest = bundle.manifest
        options = {"heads": manifest.model.unet["heads"], "image_size": manifest.model.image_size}
        request = Request(checkpoint, options=Options(**options))
        source = read(request)
        self._model = infer_architecture(source, request.options)
        unet, vae = load(source, self._model)
        self._unet = unet.cuda()
        self._vae = None if vae is None else vae.cuda()
        if compiled:
            self._unet = torch.compile(self._unet, mode="max-autotune", dynamic=False)  # CUDA graphs included
        self._schedule = Schedule(self._model.beta_1, self._model.beta_T, self._model.T)

    def run(self, n: int, seed: int, steps: int) -> tuple[float, float]:
        """(milliseconds on the wall, between CUDA events) of one chain, z to pixels on the host."""
        torch = self._torch
        table = build_step_table(self._schedule, formulation=self._model.formulation, steps=steps, spacing="linspace")
        seeds = noises.resolve_seeds(seed, n)
        size = self._model.unet.image_size
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.float16):
            begin.record()
            cond = z = None
            if self._vae is not None:
                z = torch.from_numpy(noises.latent(seeds, (self._vae.spec.z_dim,))).cuda()
                cond = 2 * self._vae.decode(z).float() - 1
            x = table.start.k_noise * torch.from_numpy(noises.initial(seeds, (3, size, size))).cuda()
            x = x if cond is None else x + table.start.k_cond * cond
            for t, row in zip(table.timesteps.tolist(), table.rows.tolist(), strict=True):
                times = torch.full((n,), t, dtype=torch.int64, device="cuda")
                eps = self._unet(x, cond, times, z if self._model.unet.z_dim else None).float()
                x = apply_row(row, x, eps, 0.0 if cond is None else cond, torch.clamp)
            pixels = ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            end.record()
            pixels.cpu()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - started), float(begin.elapsed_time(end))


def _torch() -> Any:
    """PyTorch with a working GPU; BenchmarkError when it is missing or was built without one."""
    try:
        import torch
    except ImportError as error:
        raise BenchmarkError(f"found no torch ({error}), expected it; install a CUDA build of torch") from error
    if not torch.cuda.is_available():
        raise BenchmarkError(f"found torch {torch.__version__} without a usable GPU, expected a CUDA build; install one")
    return torch
