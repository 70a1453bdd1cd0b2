"""Images from the GPU's memory into pycuda, without a copy:  python examples/gpu_pycuda.py BUNDLE

Written against the documented interfaces and run against mocks only: not yet run on a GPU.
"""

from __future__ import annotations

import sys

import pycuda.autoprimaryctx  # noqa: F401  # makes the device's primary context current; the Sampler takes it over
from pycuda import cumath, driver, gpuarray

from engine import Sampler


def main(bundle: str) -> None:
    stream = driver.Stream()
    with Sampler(bundle, "tensorrt_rtx") as sampler:
        latent = sampler.draw(8, seed=0)["z"]
        z = gpuarray.to_gpu_async(latent, stream=stream)

        # The Sampler waits for what `stream` was given until now; its results are complete when it returns.
        batch = sampler.sample_on_device(z=z, steps=10, seed=0, stream=stream)
        x = gpuarray.GPUArray(batch.x.shape, batch.x.dtype, base=batch.x, gpudata=batch.x.address)
        print(x.shape, float(gpuarray.max(cumath.fabs(x)).get()), batch.timings.launch)


if __name__ == "__main__":
    main(sys.argv[1])
