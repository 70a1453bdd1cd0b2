"""The demonstration: one picture from the shipped model, and where its milliseconds went.

    python examples/avatars/demo.py out/avatars.bundle --out out/avatars.png

Each column is one seed: what the VAE draws, what the refiner makes of it in the few steps from the VAE's image that the
bundle records as its default setting, in ten such steps, and what it makes in ten steps from pure noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from engine import Batch, Sampler
from engine.imaging import grid
from engine.places import check_file

COLUMNS, SCALE, SEED = 12, 3, 0
PLAIN: dict[str, Any] = {"steps": 10, "setting": "plain"}  # DDIM from noise


def timing_lines(name: str, batch: Batch) -> list[str]:
    """Say where the time of one run went, in milliseconds for the whole batch."""
    t = batch.timings
    rest = t.total_ms - t.before_ms - t.rows_ms - t.network_ms - t.update_ms - t.post_ms
    parts = {
        "VAE decoder": t.before_ms,
        "timestep table": t.rows_ms,
        "first step": t.first_step_ms,
        f"{len(t.other_steps_ms)} other steps": sum(t.other_steps_ms),
        "DDIM update": t.update_ms,
        "to uint8": t.post_ms,
        "everything else": rest,
    }
    head = f"{name}: {t.total_ms:.1f} ms for {len(batch)} images, {t.total_ms / len(batch):.1f} ms an image"
    return [head, *(f"    {label:<16} {ms:8.2f} ms  {100 * ms / t.total_ms:5.1f} %" for label, ms in parts.items())]


def main() -> None:
    """Sample, write the picture, print the timings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/avatars.png"))
    args = parser.parse_args()
    check_file(args.out)
    with Sampler(args.bundle) as sampler:
        print(f"{args.bundle.name}: {sampler.backend} {sampler.precision}, {sampler.threads} threads")
        sampler.warmup(COLUMNS)
        few = sampler.sample(COLUMNS, seed=SEED)
        ten = sampler.sample(COLUMNS, seed=SEED, steps=10)
        noise = sampler.sample(COLUMNS, seed=SEED, **PLAIN)
    from PIL import Image

    rows = [few.start, few.images, ten.images, noise.images]
    sheet = grid(np.concatenate([row for row in rows if row is not None]), columns=COLUMNS, pad=1)
    picture = Image.fromarray(sheet).resize((sheet.shape[1] * SCALE, sheet.shape[0] * SCALE), Image.Resampling.NEAREST)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out)
    setting = few.setting
    start = "from noise" if setting.t_start is None else f"from the VAE's image at t = {setting.t_start}"
    print(*timing_lines("10 steps from noise", noise), sep="\n")
    print(*timing_lines(f"default, {len(few.timesteps)} steps {start}", few), sep="\n")
    print(f"wrote {args.out}, from the top: the VAE's images, the default setting, the fitted 10 steps, 10 from noise")


if __name__ == "__main__":
    main()
