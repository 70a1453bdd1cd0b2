"""How does a program sample from a bundle?  python examples/sample.py BUNDLE OUT.png [N]"""

from __future__ import annotations

import sys

from engine import Sampler
from engine.imaging import save_images


def main(bundle: str, out: str, n: str = "8") -> None:
    with Sampler(bundle) as sampler:
        sampler.warmup(int(n))
        batch = sampler.sample(int(n), seed=0)

    # The VAE's images above, what the diffusion steps made of them below.
    save_images(out, batch.images, recon=batch.recon)

    print(sampler.choice)
    print(f"{len(batch)} images in {len(batch.timesteps)} steps, {batch.timings.total_ms:.1f} ms: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
