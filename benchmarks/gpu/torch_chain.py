"""The same chain in PyTorch on the same GPU: eager or compiled, half precision by autocast."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.latency import reference
from benchmarks.machine import BenchmarkError
from engine.bundle.reader import Bundle
from engine.solver import noise as noises


class TorchChain:
    """The checkpoint's networks on the GPU, and a plain loop over the engine's own step table."""

    def __init__(self, bundle: Bundle, checkpoint: Path, *, compiled: bool) -> None:
        self._torch = torch = _torch()
        self._state = bundle.manifest.pipeline.state
        self._chain = reference.Chain(bundle.manifest)
        unet, vae = reference.networks(checkpoint, reference.options_of(bundle.manifest))
        self._takes_z = unet.spec.z_dim is not None
        self._unet = unet.cuda()
        self._vae = None if vae is None else vae.cuda()
        if compiled:
            self._unet = torch.compile(self._unet, mode="max-autotune", dynamic=False)  # CUDA graphs included

    def run(self, n: int, seed: int, steps: int) -> tuple[float, float]:
        """(milliseconds on the wall, between CUDA events) of one chain, z to pixels on the host."""
        torch, state = self._torch, self._state
        seeds = noises.resolve_seeds(seed, n)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.float16):
            begin.record()
            cond = z = None
            if self._vae is not None:
                z = torch.from_numpy(noises.drawn(seeds, (self._vae.spec.z_dim,))).cuda()
                cond = 2 * self._vae.decode(z).float() - 1

            def network(x: Any, timestep: int) -> Any:
                times = torch.full((n,), timestep, dtype=torch.int64, device="cuda")
                return self._unet(x, cond, times, z if self._takes_z else None).float()

            x_T = torch.from_numpy(noises.initial(seeds, state.shape)).cuda()
            x = self._chain.run(steps, x_T, cond if state.centre is not None else 0.0, network, torch.clamp)
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
