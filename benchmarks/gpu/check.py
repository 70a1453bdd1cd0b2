"""The GPU check: whether the GPU path works on this machine, is right, and how fast it is. One command, one JSON report.

    python benchmarks/gpu examples/avatars/avatars.ckpt --out out/gpu-check.json

Builds plans for the GPU that is there, samples the golden vectors and compares them at half-precision tolerance, compares
whole chains with ONNX Runtime in float32, and times graph replay and plain launches beside torch and ONNX Runtime on the
same GPU, where those are installed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks import children
from benchmarks.gpu import golden
from benchmarks.gpu.torch_chain import TorchChain
from benchmarks.machine import BenchmarkError, machine_facts, write_json
from engine import Sampler
from engine.backends import available
from engine.bundle.reader import Bundle
from engine.cli.terminal import Program
from engine.device.context import Device, open_device
from engine.errors import BackendError
from engine.places import check_file
from export.dates import now

ROOT = Path(__file__).resolve().parents[2]
# What half precision may cost: images in [-1, 1], against float32. Clipping makes single pixels chaotic: the mean counts.
CHAIN_MEAN = 1e-2
SETTINGS: tuple[dict[str, Any], ...] = (
    {"steps": 5},
    {"steps": 5, "eta": 1.0},
    {"steps": 10, "guidance": 0.5},
    {"steps": 4, "t_start": 400},
)
GPU_BACKENDS = ("tensorrt_rtx", "tensorrt")  # in the order in which they are tried
STAGES = ("noise", "before", "rows", "update", "after", "post")  # of Timings, beside the steps' network
Say = Callable[[str], None]


# --- What is there, what is built ---------------------------------------------------------------------------------------


def device_facts(device: Device) -> dict[str, Any]:
    """The GPU, its driver's version and its memory."""
    with device.current():
        free, total = device("cuMemGetInfo")
    return {
        "name": device.name,
        "target": device.sm,
        "driver": int(device.driver("cuDriverGetVersion")),
        "memory_mb": round(int(total) / 2**20),
        "free_mb": round(int(free) / 2**20),
    }


def choose_backend(asked: str | None) -> str:
    """The TensorRT that is installed and usable; BenchmarkError with what to install when none is."""
    states = {name: available()[name] for name in ((asked,) if asked else GPU_BACKENDS)}
    for name, (usable, _) in states.items():
        if usable:
            return name
    told = "; ".join(f"{name}: {reason}" for name, (_, reason) in states.items())
    raise BenchmarkError(f"found no usable TensorRT ({told}), expected one; install it as said")


def build(checkpoint: Path, out: Path, backend: str, target: str, batch: int, say: Say) -> tuple[Path, float]:
    """The bundle with plans for this GPU, and the seconds that it took."""
    started = time.perf_counter()
    beside = [name for name in ("onnxruntime-cuda",) if available()[name][0]]
    command = [
        sys.executable, "export/build_engines.py", str(checkpoint.resolve()), "--out", str(out.resolve()),
        "--backends", "onnxruntime", backend, *beside, "--precision", "fp16",
        "--trt-batch", "1", str(min(4, batch)), str(batch),
    ]  # fmt: skip
    command += ["--targets", target] if backend == "tensorrt_rtx" else []
    say(f"building {out} for {backend} on {target}")
    if children.run(command, cwd=ROOT).returncode != 0:
        raise BenchmarkError("found that the build failed (its message is above), expected a bundle with plans; mend that")
    return out, time.perf_counter() - started


# --- Is it right? -------------------------------------------------------------------------------------------------------


def compare(bundle: Bundle, backend: str, say: Say) -> list[dict[str, Any]]:
    """Whole chains on the GPU, replayed, beside ONNX Runtime in float32 on the CPU."""
    rows, pipeline = [], bundle.manifest.pipeline
    with Sampler(bundle, "onnxruntime", "f32") as cpu, Sampler(bundle, backend) as gpu:
        for setting in SETTINGS:
            if ("guidance" in setting and not pipeline.guided) or ("t_start" in setting and pipeline.state.start is None):
                continue
            expected = cpu.sample(4, seed=0, **setting)
            plain, replayed = (gpu.sample(4, seed=0, **setting) for _ in range(2))
            gap = np.abs(replayed.x - expected.x)
            rows.append(
                {
                    "setting": setting,
                    "launch": replayed.timings.launch,
                    "mean": float(gap.mean()),
                    "max": float(gap.max()),
                    "bound": CHAIN_MEAN,
                    "plain_equals_replay": bool(np.array_equal(plain.x, replayed.x)),
                    "ok": bool(gap.mean() <= CHAIN_MEAN),
                }
            )
            say(f"  {setting}: mean difference {gap.mean():.2e}, {replayed.timings.launch}")
    return rows


# --- How fast is it? ----------------------------------------------------------------------------------------------------


def percentiles(values: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4), "n": len(values)}


def time_sampler(sampler: Sampler, n: int, steps: int, repeats: int) -> dict[str, Any]:
    """Wall and device milliseconds of whole runs, z to pixels on the host."""
    sampler.warmup(n, steps=steps, spacing="linspace")
    wall, device, launch = [], [], ""
    for seed in range(repeats + 3):
        timings = sampler.sample(n, steps=steps, spacing="linspace", seed=seed).timings
        parts = [getattr(timings, f"{stage}_ms") for stage in STAGES]
        wall.append(timings.total_ms)
        device.append(sum(parts) + timings.network_ms)
        launch = timings.launch
    # Without a launch the times between are the host's own, with the copies of every step among them.
    return {"total_ms": percentiles(wall[3:]), "device_ms": percentiles(device[3:]) if launch else None, "launch": launch}


@contextmanager
def captures(sampler: Sampler, on: bool) -> Iterator[None]:
    """Let the GPU runtime replay captured graphs, or not."""
    chain: Any = sampler._pipeline.chain
    chain.captures = on
    yield
    chain.captures = True


def contest(
    bundle: Bundle, checkpoint: Path, backend: str, n: int, steps: int, repeats: int, say: Say
) -> list[dict[str, Any]]:
    """The times of all at one batch size; what is not installed is listed with the reason."""
    rows = []

    def enter(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        row: dict[str, Any] = {"contestant": name, "batch": n, "steps": steps}
        try:
            row |= {"status": "timed", **measure()}
            say(f"  batch {n:>3} {name:<24} {row['total_ms']['p50']:9.3f} ms, p99 {row['total_ms']['p99']:.3f}")
        except (BackendError, BenchmarkError) as error:
            row |= {"status": "skipped", "reason": str(error)}
            say(f"  batch {n:>3} {name:<24} skipped: {error}")
        rows.append(row)

    with Sampler(bundle, backend) as sampler:
        for name, on in ((f"{backend} graph", True), (f"{backend} no graph", False)):
            with captures(sampler, on):
                enter(name, lambda: time_sampler(sampler, n, steps, repeats))

    def runtime() -> dict[str, Any]:
        with Sampler(bundle, "onnxruntime-cuda", "fp16") as sampler:
            return time_sampler(sampler, n, steps, repeats)

    enter("onnxruntime-cuda fp16", runtime)
    for compiled in (False, True):
        name = "torch.compile fp16" if compiled else "torch eager fp16"
        enter(name, lambda compiled=compiled: time_torch(bundle, checkpoint, compiled, n, steps, repeats))  # type: ignore[misc]
    return rows


def time_torch(bundle: Bundle, checkpoint: Path, compiled: bool, n: int, steps: int, repeats: int) -> dict[str, Any]:
    """The same chain over the same network in PyTorch on the same GPU."""
    chain = TorchChain(bundle, checkpoint, compiled=compiled)
    runs = [chain.run(n, seed, steps) for seed in range(repeats + 3)][3:]
    total, device = (percentiles([run[i] for run in runs]) for i in range(2))
    return {"total_ms": total, "device_ms": device, "launch": ""}


# --- The command --------------------------------------------------------------------------------------------------------


def check(
    checkpoint: Path, backend: str | None, ordinal: int, batches: Sequence[int], steps: int, repeats: int, out: Path,
    say: Say,
) -> dict[str, Any]:  # fmt: skip
    """Everything; DeviceError before any work where there is no GPU."""
    facts, device = machine_facts(), open_device(ordinal)  # the load average of before the build
    try:
        say(f"{device!r}")
        chosen = choose_backend(backend)
        path, seconds = build(checkpoint, out.with_suffix(".bundle"), chosen, device.sm, 2 * max(batches), say)
        bundle = Bundle.open(path)
        say("comparing with ONNX Runtime in float32")
        agreement = compare(bundle, chosen, say)
        say("golden vectors")
        chains = golden.check(chosen, device.sm, out.parent, say)
        say("timing")
        rows = [row for n in batches for row in contest(bundle, checkpoint, chosen, n, steps, repeats, say)]
        return {
            "format": "diffusevae-gpu-check",
            "format_version": 1,
            "date": now(),
            "machine": facts,
            "device": device_facts(device),
            "backend": {"name": chosen, "version": available()[chosen][1]},
            "build": {"seconds": round(seconds, 1), "engines": {e.name: e.size for e in bundle.manifest.engines}},
            "agreement": agreement,
            "golden": chains,
            "results": rows,
            "ok": all(row["ok"] for row in (*agreement, *chains)),
        }
    finally:
        device.release()


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path), default=ROOT / "examples/avatars/avatars.ckpt")
@click.option("--backend", type=click.Choice(GPU_BACKENDS), default=None, help="[default: the one that is installed]")
@click.option("--device", type=int, default=0, help="Number of the GPU.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 16), help="Repeat for several.")
@click.option("--steps", type=click.IntRange(1), default=10)
@click.option("--repeats", type=click.IntRange(1), default=100, help="Timed runs of each contestant.")
@click.option("--out", type=Path, default=Path("out/gpu-check.json"))
def main(
    checkpoint: Path, backend: str | None, device: int, batches: tuple[int, ...], steps: int, repeats: int, out: Path
) -> None:
    """Build for this machine's GPU, check the results and time them; exit code 1 when something is wrong."""
    check_file(out)
    report = check(checkpoint, backend, device, batches, steps, repeats, out, click.echo)
    write_json(out, report)
    click.echo(f"wrote {out}: {'all within tolerance' if report['ok'] else 'NOT within tolerance'}")
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
