"""The engine's solvers beside those of diffusers, on one network: the same images to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import cases
from benchmarks.quality.peers import AGREEMENT, PEERS, Network, Peer, chain
from benchmarks.quality.study import REPEATS, Study
from engine import Sampler, kernels
from tests.samplers import open_toy

pytest.importorskip("diffusers", reason="the package diffusers is not installed")
SHARED = [pytest.param(peer, id=peer.name) for peer in PEERS if peer.method is not None]


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with open_toy() as opened:
        yield opened


@pytest.mark.parametrize("peer", SHARED)
@pytest.mark.parametrize("steps", [2, 5, 10])
def test_from_noise(sampler: Sampler, peer: Peer, steps: int) -> None:
    check(sampler, peer, *chain(peer, network := Network(sampler, [1, 2, 3]), steps), network)


@pytest.mark.parametrize("peer", [peer for peer in SHARED if peer.id != "DDIM"])
def test_from_the_start_image(sampler: Sampler, peer: Peer) -> None:
    """Not DDIM, whose diffusers' version steps to t - T // steps, where its own list of timesteps may hold another."""
    found, visited = chain(peer, network := Network(sampler, [1, 2, 3]), 5, 400)
    assert len(visited) == 5
    assert abs(visited[0] - 400) < 40
    check(sampler, peer, found, visited, network, t_start=visited[0])


def test_a_row_of_the_benchmark(sampler: Sampler) -> None:
    """Its chain is one of limited predictions, on the noise and the drawn values of its seeds; and it is timed."""
    study = Study(sampler, None, None, None)  # type: ignore[arg-type]  # nothing is judged
    case = cases.Case(cases.NOISE, 5, "trailing", peer="DDIM")
    assert study.missing(case) is None
    found = study.run(case, [1, 2, 3])
    network, alpha_bar = Network(sampler, [1, 2, 3]), sampler.bundle.manifest.schedule.schedule().alpha_bar
    x = network.noise()
    for t, after in zip(found.timesteps, [*alpha_bar[found.timesteps[1:]], 1.0], strict=True):
        x0 = np.clip(network.x0(x, t), -1.0, 1.0)
        eps = (x - np.sqrt(alpha_bar[t]) * x0) / np.sqrt(1.0 - alpha_bar[t])
        x = (np.sqrt(after) * x0 + np.sqrt(1.0 - after) * eps).astype(np.float32)
    assert np.abs(found.images.astype(int) - kernels.to_uint8(x)).max() <= 1
    assert len(study.time_single(case)) == REPEATS


def check(sampler: Sampler, peer: Peer, found: Any, visited: list[int], network: Network, **options: Any) -> None:
    ours = sampler.sample(seed=network.seeds, timesteps=visited, method=peer.method, clip=False, **options).x
    assert np.abs(ours - found).max() <= AGREEMENT * np.abs(ours).max()
