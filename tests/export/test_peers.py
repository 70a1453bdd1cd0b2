"""The engine's solvers beside those of diffusers, on one network: the same images to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.peers import AGREEMENT, PEERS, Network, Peer, chain
from engine import Sampler
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


def check(sampler: Sampler, peer: Peer, found: Any, visited: list[int], network: Network, **options: Any) -> None:
    ours = sampler.sample(seed=network.seeds, timesteps=visited, method=peer.method, clip=False, **options).x
    assert np.abs(ours - found).max() <= AGREEMENT * np.abs(ours).max()
