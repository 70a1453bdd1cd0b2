"""Modules without initial weights, which are to be given theirs."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

DRAWN = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class Unset(TorchFunctionMode):
    """Leaves initial weights out: on the meta device they are nothing, and torch loads its compiler to draw them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func in DRAWN else func(*args, **kwargs)
