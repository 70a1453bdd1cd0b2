"""A bundle becomes a picture:  python examples/sample.py BUNDLE OUT.png [N [BUDGET_MS]]"""

from __future__ import annotations

import sys

from engine import Sampler
from engine.imaging import check_target, save_images


def main(bundle: str, out: str, n: str = "8", budget_ms: str | None = None) -> None:
    check_target(out)  # before the work
    with Sampler(bundle) as sampler:
        sampler.warmup(int(n))
        # With a budget: of the settings fitted to the bundle the best that keeps it.
        batch = sampler.sample(int(n), seed=0, budget_ms=None if budget_ms is None else float(budget_ms))

    # The images that the chain starts from above, what its steps made of them below.
    save_images(out, batch.images, start=batch.start)

    print(sampler.choice)
    print(f"{len(batch)} images in {len(batch.timesteps)} steps, {batch.timings.total_ms:.1f} ms: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
