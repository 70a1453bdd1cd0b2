"""A bundle sampled without this project:  python examples/whole_sampler.py BUNDLE STEPS.npz [N]

BUNDLE is built with --whole-sampler; STEPS.npz comes from `diffusevae steps BUNDLE --steps 10 --out STEPS.npz`. Only numpy
and a stock onnxruntime are needed where this runs; any solver, any number of steps, any batch.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime


def sample(bundle: str, steps: str, n: int, seed: int = 0) -> np.ndarray:
    session = onnxruntime.InferenceSession(f"{bundle}/sampler.onnx", providers=["CPUExecutionProvider"])
    feeds = dict(np.load(steps))
    random = np.random.default_rng(seed)
    sizes = {"batch": n, "noise_steps": len(feeds["timesteps"])}
    for tensor in session.get_inputs():
        if tensor.name not in feeds:  # z, x_T and noise: unit normals
            feeds[tensor.name] = random.standard_normal([sizes.get(d, d) for d in tensor.shape], np.float32)
    return session.run(["images"], feeds)[0]  # uint8 [n, H, W, 3]


if __name__ == "__main__":
    images = sample(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 4)
    np.save("images.npy", images)
    print(f"images.npy: {images.dtype} {images.shape}")
