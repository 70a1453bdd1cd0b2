"""One network in torch, with the weights that networks.py drew: our modules in eager torch, and diffusers' own through
torch.compile, where it has a class for the network: not for churches256, whose blocks resample and whose heads are eight
however wide a level is, nor for guided diffusion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.latency.calls import F32, Values
from benchmarks.latency.field import Contestant, Run, Task
from benchmarks.latency.networks import DENOISER, NETWORKS, Network, timed_calls
from benchmarks.machine import BenchmarkError

KNOWN = ("celeba256", "cin256-v2", "decoder-f4", "decoder-f8")


class _ModuleRunner(ABC):
    """One network as a module of torch, called by itself; which module, and how, is a subclass' own."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        import torch

        from export.synthetic import random_network

        assert task.network is not None, "whole images are others'"
        torch.set_num_threads(contestant.threads or task.threads)
        self._torch, self._network = torch, Network(task.network)
        self._published, self._graph = NETWORKS[task.network.name]
        self._role = random_network(self._published, self._graph)
        self._bf16 = contestant.precision == "bf16"

    def eps(self, x: F32, values: Values, timestep: int) -> F32:
        """The network's output on `values`; x and the timestep are not looked at."""
        return self._answer(values)

    def run(self, n: int, seed: int, steps: int) -> Run:
        """So many calls on the same inputs, and what the last one gave."""
        return timed_calls(self._answer, self._network.inputs(n, seed), steps)

    @abstractmethod
    def _answer(self, values: Values) -> F32:
        """The network's output on its own inputs."""


class EagerRunner(_ModuleRunner):
    """Our own modules, in eager torch; bf16 by autocast."""

    def _answer(self, values: Values) -> F32:
        tensors = {name: self._torch.from_numpy(array) for name, array in values.items()}
        with self._torch.autocast("cpu", dtype=self._torch.bfloat16, enabled=self._bf16):
            return np.array(next(iter(self._role(tensors).values())).float().numpy())


class DiffusersRunner(_ModuleRunner):
    """diffusers' module, in one precision throughout and compiled for the shapes of its first call."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        super().__init__(contestant, task)
        from torch._inductor import config

        config.freezing = True
        torch = self._torch
        module, call = peer(self._published, self._graph, self._role.module)
        del self._role  # ours is done with: two copies of the weights would count as its memory
        self._dtype = torch.bfloat16 if self._bf16 else torch.float32
        module = module.to(dtype=self._dtype, memory_format=torch.channels_last)
        self._call = torch.compile(lambda values: call(module, values), dynamic=False)

    def _answer(self, values: Values) -> F32:
        n = len(next(iter(values.values())))
        given = {**values, **self._network.condition(n)}
        tensors = {name: self._torch.from_numpy(array) for name, array in given.items()}
        with self._torch.inference_mode():
            tensors = {k: v.to(self._dtype) if v.is_floating_point() else v for k, v in tensors.items()}
            return np.array(self._call(tensors).float().numpy())


def peer(published_name: str, graph: str, module: Any) -> tuple[Any, Callable[[Any, Mapping[str, Any]], Any]]:
    """diffusers' module with the weights of a module of ours, and a function that calls it on tensors by name."""
    from export.families.latent.diffusers_keys import given_back, stage_places, unet_places
    from export.families.latent.published import published

    spec = published(published_name).spec
    if graph == DENOISER:
        theirs = _unet(spec.unet, spec.latent[1])
        places, state, call = unet_places(spec.unet), module.unet.state_dict(), _denoise
    else:
        theirs = _stage(spec.stage)
        places, state, call = stage_places(spec.stage), module.state_dict(), _decoder(module.scale)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    width = spec.unet.num_head_channels
    weights = given_back(state, places, shapes, width=width, heads=spec.unet.num_heads)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    # Of a first stage's other half nothing is used.
    left = [key for key in missing if graph == DENOISER or not key.startswith(("encoder.", "quant_conv.", "quantize."))]
    if left or unexpected:
        raise BenchmarkError(
            f"{published_name}: found no weights for {left[:3]} and did not know {unexpected[:3]}, expected one network in "
            "both forms"
        )
    return theirs.eval().requires_grad_(False), call


def _denoise(module: Any, values: Mapping[str, Any]) -> Any:
    context = (values["context"],) if "context" in values else ()
    return module(values["x"], values["timestep"], *context, return_dict=False)[0]


def _decoder(scale: float) -> Callable[[Any, Mapping[str, Any]], Any]:
    def decode(module: Any, values: Mapping[str, Any]) -> Any:
        z = module.post_quant_conv(values["latent"] / scale)
        return module.decoder(z)

    return decode


def _unet(spec: Any, side: int) -> Any:
    """diffusers' denoiser of this form."""
    import diffusers

    attends = [1 << level in spec.attention_factors for level in range(len(spec.channel_mult))]
    crossed = spec.context_dim is not None
    kind = "CrossAttn" if crossed else "Attn"
    size = {
        "sample_size": side, "in_channels": spec.in_channels, "out_channels": spec.out_channels,
        "layers_per_block": spec.num_res_blocks, "norm_eps": 1e-5,
        "block_out_channels": tuple(spec.model_channels * mult for mult in spec.channel_mult),
        "down_block_types": tuple(f"{kind if there else ''}DownBlock2D" for there in attends),
        "up_block_types": tuple(f"{kind if there else ''}UpBlock2D" for there in reversed(attends)),
    }  # fmt: skip
    if crossed:
        return diffusers.UNet2DConditionModel(
            **size, cross_attention_dim=spec.context_dim, attention_head_dim=spec.num_heads
        )
    return diffusers.UNet2DModel(**size, attention_head_dim=spec.num_head_channels)


def _stage(spec: Any) -> Any:
    """diffusers' first stage of this form."""
    import diffusers

    levels = len(spec.channel_mult)
    attends = [spec.resolution >> level in spec.attn_resolutions for level in range(levels)]
    size = {
        "in_channels": spec.in_channels, "out_channels": spec.out_channels, "latent_channels": spec.z_channels,
        "layers_per_block": spec.num_res_blocks,
        "block_out_channels": tuple(spec.channels * mult for mult in spec.channel_mult),
        "down_block_types": tuple(f"{'Attn' if there else ''}DownEncoderBlock2D" for there in attends),
        "up_block_types": tuple(f"{'Attn' if there else ''}UpDecoderBlock2D" for there in reversed(attends)),
    }  # fmt: skip
    if spec.codes is None:
        return diffusers.AutoencoderKL(**size)
    return diffusers.VQModel(**size, num_vq_embeddings=spec.codes, vq_embed_dim=spec.embed_dim)
