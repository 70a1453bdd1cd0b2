"""Modules without initial weights, which are to be given theirs, and what those must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Made = TypeVar("Made")
DRAWN = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class Unset(TorchFunctionMode):
    """Leaves initial weights out: on the meta device they are nothing, and torch loads its compiler to draw them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func in DRAWN else func(*args, **kwargs)


def unset(make: Callable[[], Made]) -> Made:
    """What `make` returns, its modules on the meta device: their weights come with load_state_dict(…, assign=True)."""
    with torch.device("meta"), Unset():
        return make()


def shapes_of(module: nn.Module | None) -> Mapping[str, tuple[int, ...]]:
    """The shape of each of a module's weights by key; none of None."""
    return {} if module is None else {key: tuple(value.shape) for key, value in module.state_dict().items()}
