"""Experts of ranges of timesteps (PPAP, Go et al. 2023): one classifier off the shelf, and an adapter for each range.

    guides = experts(base, [adapter_0, adapter_1], T=1000)      # state dicts, from the clean end
    build(Request(checkpoint, guides=guides, guide_scale=7.5))

An adapter is folded into the base as the reference's inference runs it, which never merges: what a low-rank product adds is
scaled by alpha / r on convolutions and not on linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from engine.errors import CheckpointError
from export.guide_options import equal_ranges
from export.guides import OwnGuide
from export.models.experts import ResNet, ViT
from export.models.unset import unset

Tensors = Mapping[str, torch.Tensor]
ALPHA_OVER_R = 0.5  # the reference's default, which no file tells
HEAD = 64  # channels of each head in timm's ViTs
SCALE = 7.5  # of the gradient, the reference's default
WRAPPERS = ("resnet.", "deit.classifier.")  # what the reference calls the base inside an adapter
BASES = {"conv1.weight", "bn1.weight", "fc.weight"}, {"pos_embed", "patch_embed.proj.weight", "head.weight"}
COUNTER = "num_batches_tracked"  # of batch norms, in some files and not in others; nothing reads it


def experts(base: Tensors, adapters: Sequence[Tensors], T: int, *, heads: int | None = None) -> tuple[OwnGuide, ...]:
    """The guides of equal ranges of T timesteps, from the clean end; a boundary belongs to the lower one.

    base: a state dict of torchvision's ResNet or timm's ViT; adapters: what the reference saves of each expert; heads: of a
    ViT, 64 channels each unless it is said. CheckpointError for weights that are neither, or that do not fit. From files,
    checked against a model, they are made by `export.guide_files`.
    """
    guides = []
    for adapter, timesteps in zip(adapters, equal_ranges(T, len(adapters)), strict=True):
        network = classifier_of(folded(base, adapter), heads)
        classes = next(layer.out_features for layer in reversed(list(network.modules())) if isinstance(layer, nn.Linear))
        guides.append(OwnGuide(network, classes, timesteps=timesteps))
    return tuple(guides)


def is_base(state: Tensors) -> bool:
    """Whether a state dict is that of a ResNet or a ViT, by a few of its keys."""
    return any(keys <= state.keys() for keys in BASES)


def uncounted(state: Tensors) -> dict[str, torch.Tensor]:
    """Without the counters of batch norms."""
    return {key: value for key, value in state.items() if not key.endswith(COUNTER)}


def folded(base: Tensors, adapter: Tensors, alpha_over_r: float = ALPHA_OVER_R) -> dict[str, torch.Tensor]:
    """The base's weights with an adapter's in their place, and its low-rank products added.

    What an adapter does not name stays the base's: the scale and statistics of `downsample.1`, say. CheckpointError for a
    key that belongs to nothing in the base.
    """
    state = uncounted(base)
    own = {_own(key): value for key, value in uncounted(adapter).items()}
    for key, value in own.items():
        name, _, leaf = key.rpartition(".")
        target = f"{name}.weight" if leaf in ("lora_A", "lora_B") else key
        if target not in state:
            raise CheckpointError(
                f"adapter: found {key}, expected weights of its base, which has no {target}; the two belong to different "
                "models"
            )
        if leaf == "lora_A":
            state[target] = _added(state[target], value, own.get(f"{name}.lora_B"), alpha_over_r, key)
        elif leaf != "lora_B":
            state[target] = value
    return state


def _added(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor | None, alpha_over_r: float, key: str) -> torch.Tensor:
    """A weight with a low-rank product added."""
    fits = b is not None and b.ndim == a.ndim == 2 and b.shape[1] == a.shape[0]
    if b is None or not fits or b.shape[0] * a.shape[1] != weight.numel():
        found = [list(value.shape) for value in (a, b) if value is not None]
        raise CheckpointError(
            f"adapter: found {key} of shapes {' and '.join(map(str, found))}, expected two whose product has the "
            f"{weight.numel()} numbers of its base's weight; the two belong to different models"
        )
    factor = alpha_over_r if weight.ndim == 4 else 1.0
    return weight.float() + factor * (b.float() @ a.float()).reshape(weight.shape)


def _own(key: str) -> str:
    """A key of the base for one of an adapter's: an adapted layer's own weights lie below it there."""
    bare = next((key.removeprefix(wrapper) for wrapper in WRAPPERS if key.startswith(wrapper)), key)
    return re.sub(r"\.(?:conv|linear)\.(weight|bias)$", r".\1", bare)


def classifier_of(state: Tensors, heads: int | None = None) -> nn.Module:
    """The network that a state dict is of, in evaluation; its weights are those of the dict where they are float32."""
    try:
        network = unset(lambda: _vit(state, heads) if "pos_embed" in state else _resnet(state))
        network.load_state_dict({key: value.detach().float() for key, value in uncounted(state).items()}, assign=True)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"expert: found weights that are neither torchvision's ResNet of bottlenecks nor timm's ViT ({error}), expected "
            "one of the two; record any other classifier with export.guides.OwnGuide"
        ) from error
    return network.eval().requires_grad_(False)


def _resnet(state: Tensors) -> ResNet:
    counts = [len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)]
    return ResNet(state["conv1.weight"].shape[0], (counts[0], counts[1], counts[2], counts[3]), state["fc.weight"].shape[0])


def _vit(state: Tensors, heads: int | None) -> ViT:
    _, tokens, width = state["pos_embed"].shape
    patch, inner = state["patch_embed.proj.weight"].shape[-1], state["blocks.0.mlp.fc1.weight"].shape[0]
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    size, heads = patch * round((tokens - 1) ** 0.5), heads or max(1, width // HEAD)
    if width % heads:
        raise CheckpointError(
            f"expert: found a ViT of width {width}, expected a multiple of its {heads} attention heads; give their number"
        )
    return ViT(size, patch, width, depth, heads, state["head.weight"].shape[0], inner)
