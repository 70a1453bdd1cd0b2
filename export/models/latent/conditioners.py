"""What turns a condition into tokens to attend to or channels to concatenate, under the keys of a CompVis checkpoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from export.models.latent.first_stage import StageEncoder, leave_out
from export.models.latent.spec import (
    ClassConditionerSpec,
    Conditioner,
    ImageConditionerSpec,
    InpaintConditionerSpec,
    RescalerConditionerSpec,
    TokenConditionerSpec,
)


class ClassEmbedder(nn.Module):
    """label int64 [N] -> context [N, 1, width]."""

    def __init__(self, spec: ClassConditionerSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.classes, spec.width)

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        token: torch.Tensor = self.embedding(label[:, None])
        return token


class SelfAttention(nn.Module):
    """Attention among tokens; the width of a head does not follow from that of a token."""

    def __init__(self, spec: TokenConditionerSpec) -> None:
        super().__init__()
        self.heads, self.width, self.scale = spec.heads, spec.head_width, spec.head_width**-0.5
        inner = spec.heads * spec.head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(spec.width, inner, bias=False) for _ in range(3))
        self.to_out = nn.Linear(inner, spec.width)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        q, k, v = (
            layer(x).reshape(-1, length, self.heads, self.width).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        h = self.softmax(q @ (k * self.scale).transpose(-1, -2)) @ v
        result: torch.Tensor = self.to_out(h.transpose(1, 2).flatten(2))
        return result


class FeedForward(nn.Module):
    """Four times the width, GELU, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(first, nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.net(x)
        return result


class PositionTable(nn.Module):
    """Learned positions."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(length, width)


class AttentionLayers(nn.Module):
    """Self-attention and feed-forward in turn, each behind a LayerNorm and added to what came in."""

    def __init__(self, spec: TokenConditionerSpec) -> None:
        super().__init__()
        parts = [part for _ in range(spec.layers) for part in (SelfAttention(spec), FeedForward(spec.width))]
        self.layers = nn.ModuleList([nn.ModuleList([nn.LayerNorm(spec.width), part]) for part in parts])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            norm, part = layer.children()
            x = x + part(norm(x))
        return x


class TokenTransformer(nn.Module):
    """Tokens and positions, the layers, and a last LayerNorm. No padding is masked."""

    def __init__(self, spec: TokenConditionerSpec) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(spec.vocabulary, spec.width)
        self.pos_emb = PositionTable(spec.length, spec.width)
        self.attn_layers = AttentionLayers(spec)
        self.norm = nn.LayerNorm(spec.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token_emb(tokens) + self.pos_emb.emb.weight[: tokens.shape[1]]
        result: torch.Tensor = self.norm(self.attn_layers(x))
        return result


class TokenEncoder(nn.Module):
    """tokens int64 [N, L] -> context [N, L, width]; L is at most the spec's length."""

    def __init__(self, spec: TokenConditionerSpec) -> None:
        super().__init__()
        self.transformer = TokenTransformer(spec)
        leave_out(self, ("transformer.to_logits.",))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        context: torch.Tensor = self.transformer(tokens)
        return context


class ChannelMapper(nn.Module):
    """The weights of a 1 x 1 convolution, of which `Rescaler` looks up rows."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cout, cin, 1, 1))


class Rescaler(nn.Module):
    """segmentation int64 [N, H, W] -> cond [N, channels or classes, h, w]: one-hot, halved `stages` times, mapped.

    Halving bilinearly is the mean of 2 x 2, and the map of a one-hot pixel is a row of its weights: mapped first, no tensor
    has all the classes as channels at full size.
    """

    def __init__(self, spec: RescalerConditionerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.channel_mapper = None if spec.channels is None else ChannelMapper(spec.classes, spec.channels)

    def rows(self) -> torch.Tensor:
        """What each label becomes, [classes, channels]."""
        return torch.eye(self.spec.classes) if self.channel_mapper is None else self.channel_mapper.weight[:, :, 0, 0].T

    def forward(self, segmentation: torch.Tensor) -> torch.Tensor:
        x = F.embedding(segmentation, self.rows()).permute(0, 3, 1, 2)
        return F.avg_pool2d(x, 1 << self.spec.stages)


class InpaintConditioner(StageEncoder):
    """image [N, C, H, W] in [-1, 1], mask [N, 1, H, W] (1 = fill in) -> cond [N, embed_dim + 1, h, w].

    The latent of the image whose masked part is black, unscaled, and last the mask as -1 and 1 at every `factor`-th pixel.
    """

    def __init__(self, spec: InpaintConditionerSpec) -> None:
        super().__init__(spec.stage)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        latent = self.encode((1 - mask) * (image + 1) - 1)
        step = self.spec.factor
        return torch.cat([latent, 2 * mask[:, :, ::step, ::step] - 1], dim=1)


def conditioner(spec: Conditioner) -> nn.Module | None:
    """The module of a conditioner; None where the condition is concatenated as it is."""
    if isinstance(spec, ClassConditionerSpec):
        return ClassEmbedder(spec)
    if isinstance(spec, TokenConditionerSpec):
        return TokenEncoder(spec)
    if isinstance(spec, RescalerConditionerSpec):
        return Rescaler(spec)
    if isinstance(spec, InpaintConditionerSpec):
        return InpaintConditioner(spec)
    assert isinstance(spec, ImageConditionerSpec), "a conditioner is one of five kinds"
    return None
