"""Classifiers that guide as experts of a range of timesteps, none of which they are told: a ResNet and a ViT.

The keys are those of torchvision's ResNets (bottlenecks) and timm's ViTs, which is what their files hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-6  # of the ViT's norms
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of images in [0, 1]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1 to four times as many channels; the input, projected if it differs, is added."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        cout = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, cout, 1, bias=False), nn.BatchNorm2d(cout)
        projected = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
        self.downsample = projected if stride != 1 or cin != cout else nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class ResNet(nn.Module):
    """Logits [N, classes] of x [N, 3, H, W] in about [-1, 1], which is not normalised.

    width: channels of the stem; blocks: how many bottlenecks each of the four stages has.
    """

    def __init__(self, width: int, blocks: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            wide, layers = width << stage, []
            for i in range(count):
                layers.append(Bottleneck(channels, wide, 2 if stage and not i else 1))
                channels = 4 * wide
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            h = getattr(self, f"layer{stage}")(h)
        logits: torch.Tensor = self.fc(h.mean(dim=(2, 3)))
        return logits


class ViTBlock(nn.Module):
    """Attention and a GELU network, each behind a layer norm and added."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        h = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = x + self.attn["proj"](h.transpose(1, 2).flatten(2))
        wide: torch.Tensor = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + wide


class ViT(nn.Module):
    """Logits [N, classes] of x [N, 3, size, size] in about [-1, 1], normalised as ImageNet's images are."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, classes: int, inner: int) -> None:
        super().__init__()
        self.size = size
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList([ViTBlock(width, heads, inner) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, EPSILON), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        h = self.patch_embed["proj"](((1 + x) / 2 - mean) / deviation).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(h.shape[0], -1, -1), h], dim=1) + self.pos_embed
        for block in self.blocks:
            h = block(h)
        logits: torch.Tensor = self.head(self.norm(h)[:, 0])
        return logits
