"""What a training needs whatever it fits: a recipe, a run that resumes, batches, weights of timesteps."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from engine.processor import this_processor

SAVED_EVERY = 180  # seconds


@dataclass(frozen=True)
class Recipe:
    """What one stage is trained with. `images` is how many images the stage sees in all."""

    images: int
    batch: int
    lr: float
    ema_decay: float = 0.999
    warmup: int = 200
    clip: float = 1.0  # of the gradient's norm
    kl_weight: float = 0.06
    drop_condition: float = 0.1
    weighting: str = "min-snr"
    prediction: str = "eps"


def loss_weights(alpha_bar: torch.Tensor, weighting: str) -> torch.Tensor:
    """How much the eps error at each timestep counts, float32 [T].

    "min-snr" is min(SNR, 5)/SNR: nearly clean images are easy, and few-step sampling hardly visits them.
    "v" is min(SNR, 5)/(SNR + 1) + 0.15, for networks that predict v: min-snr's weight on x0 as a weight on v, with a floor
    that keeps the nearly clean steps in sight.
    "few-step" is SNR^(-1/4), a fit to how far one step of a ten-step DDIM chain carries an eps error into x,
    (sqrt(a') sqrt(1/a - 1) - sqrt(1 - a'))^2: sixteen times as far at t = 900 as at t = 100. It goes for the colour drift
    that is left when the network is otherwise good.
    """
    snr = alpha_bar / (1 - alpha_bar)
    weights = {
        "min-snr": snr.clamp(max=5) / snr, "few-step": snr**-0.25, "v": snr.clamp(max=5) / (snr + 1) + 0.15,
    }  # fmt: skip
    return weights[weighting].float()


def autocast() -> torch.autocast:
    """bf16 where the processor multiplies it natively; elsewhere emulation would be slower than float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=this_processor().bf16)


class Run:
    """One stage's weights, their moving average, the optimiser and the count of images seen: all that a resume needs."""

    def __init__(self, net: torch.nn.Module, recipe: Recipe, path: Path, seed: int) -> None:
        self.net = net.to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.recipe, self.path = recipe, path
        self.optimizer = torch.optim.Adam(net.parameters(), recipe.lr, betas=(0.9, 0.99), fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self.step = state["step"]

    def save(self) -> None:
        """Write the state beside its old self, then replace it: a kill leaves one of the two."""
        state = {
            "net": self.net.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(), "step": self.step,
        }  # fmt: skip
        temporary = self.path.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero at the last image."""
        recipe = self.recipe
        progress = min(1.0, self.step * recipe.batch / recipe.images)
        return recipe.lr * min(1.0, (self.step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * progress))

    def update(self, loss: torch.Tensor) -> None:
        """One optimiser step and one step of the moving average (shorter while the run is young)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - decay)


def batches(run: Run, count: int) -> Iterator[torch.Tensor]:
    """Indices of random batches until the recipe's images are seen, saving the run every few minutes and at the end."""
    recipe, saved = run.recipe, time.monotonic()
    with tqdm(total=recipe.images, initial=run.step * recipe.batch, unit="img", mininterval=5, disable=None) as bar:
        while run.step * recipe.batch < recipe.images:
            yield torch.randint(count, (recipe.batch,), generator=run.generator)
            bar.update(recipe.batch)
            if time.monotonic() - saved > SAVED_EVERY:
                run.save()
                saved = time.monotonic()
    run.save()


def report(name: str) -> Callable[[float], None]:
    """Return a function that prints a running mean of the loss every 200 steps, to standard error."""
    seen: list[float] = []

    def record(loss: float) -> None:
        seen.append(loss)
        if len(seen) == 200:
            tqdm.write(f"{name}: mean loss {sum(seen) / len(seen):.4f}", file=sys.stderr)
            seen.clear()

    return record
