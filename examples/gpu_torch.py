"""Images from the GPU's memory into torch, without a copy:  python examples/gpu_torch.py BUNDLE

Written against the documented interfaces and run against mocks only: not yet run on a GPU.
"""

from __future__ import annotations

import sys

import torch

from engine import Sampler


def main(bundle: str) -> None:
    torch.cuda.init()  # the Sampler works in torch's own context, in which tensors can be shared
    with Sampler(bundle, "tensorrt_rtx") as sampler:
        z = torch.from_numpy(sampler.draw(8, seed=0)["z"]).cuda()

        # Latents come from torch's current stream; the images stay where they are.
        batch = sampler.sample_on_device(z=z, steps=10, seed=0, stream=torch.cuda.current_stream())
        images = torch.from_dlpack(batch.images)
        brightness = images.float().mean(dim=(1, 2, 3))

    print(images.shape, images.device, brightness.tolist(), batch.timings.launch)


if __name__ == "__main__":
    main(sys.argv[1])
