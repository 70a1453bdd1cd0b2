"""Settings fitted to a bundle: the distance, the networks, what the search tries, and what it makes of known landscapes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ArgumentError
from engine.solver.schedule import Schedule
from export.fitting.candidate import Candidate, nearest, resampled
from export.fitting.features import NETWORKS, EfficientNet, check_network
from export.fitting.frechet import Moments, frechet_distance, moments
from export.fitting.gits import Trajectory
from export.fitting.neighbours import precision_recall
from export.fitting.objective import Score, colour_means
from export.fitting.search import Record, Search

ALPHA_BAR = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02).alpha_bar
LOG_SNR = 0.5 * np.log(ALPHA_BAR / (1 - ALPHA_BAR))

# --- The distance -----------------------------------------------------------------------------------------------------


def gaussian(mean: list[float], covariance: Any) -> Moments:
    return Moments(np.array(mean, float), np.array(covariance, float), 100)


def test_distance_of_a_set_to_itself_is_zero_even_with_fewer_images_than_features() -> None:
    features = np.random.default_rng(0).standard_normal((20, 60))
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0.0, abs=1e-5)


def test_distance_of_gaussians_with_diagonal_covariances() -> None:
    a, b = gaussian([0, 1, 2], np.diag([1.0, 4.0, 9.0])), gaussian([1, 1, 0], np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)


def test_distance_of_gaussians_whose_covariances_do_not_commute() -> None:
    a, b = gaussian([0, 0], [[2.0, 1.0], [1.0, 3.0]]), gaussian([1, 2], [[5.0, -2.0], [-2.0, 1.5]])
    product = a.covariance @ b.covariance
    # In two dimensions tr sqrt(P) = sqrt(tr P + 2 sqrt(det P)).
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 5 + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_moments_are_those_of_numpy_in_float64() -> None:
    features = np.random.default_rng(1).standard_normal((50, 7)).astype(np.float32)
    fitted = moments(features)
    assert fitted.count == 50
    assert fitted.covariance.dtype == np.float64
    np.testing.assert_allclose(fitted.covariance, np.cov(features.astype(float).T), rtol=1e-10)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), "found the shape \\[1, 3\\], expected \\[N, D\\]"),
        (np.array([[0.0, np.nan], [1, 1]]), "found NaN or infinity"),
    ],
)
def test_features_without_a_distance_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        moments(features)


def test_features_of_two_extractors_are_refused() -> None:
    with pytest.raises(ArgumentError, match="found 2 and 1 numbers an image"):
        frechet_distance(gaussian([0, 0], np.eye(2)), gaussian([0], np.eye(1)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_same_features_in_any_batch_and_tells_images_apart(name: str) -> None:
    pytest.importorskip(NETWORKS[name].module, reason=f"the package of {name} is not installed")
    extract = EfficientNet(NETWORKS[name], 1)
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features = extract(images)
    assert features.shape == (3, 1280)
    np.testing.assert_allclose(extract(images[1:2])[0], features[1], atol=1e-3)
    assert np.abs(features[0] - features[1]).max() > 0.1
    with pytest.raises(ArgumentError, match="expected uint8"):
        extract(images.astype(np.float32))


def test_an_unknown_network_is_answered_with_the_nearest() -> None:
    with pytest.raises(ArgumentError, match=r"expected one of efficientnet-lite0, .*Did you mean 'efficientnet-lite2'"):
        check_network("efficientnet-lite3")


def test_colour_is_the_mean_of_each_cell() -> None:
    images = np.zeros((2, 8, 6, 3), np.uint8)
    images[1, :2, :2] = [255, 0, 51]
    found = colour_means(images)
    assert found.shape == (2, 48)
    np.testing.assert_allclose(found[0], -1)
    np.testing.assert_allclose(found[1, :3], [1, -1, -0.6])
    np.testing.assert_allclose(found[1, 3:], -1)


# --- What the search tries --------------------------------------------------------------------------------------------


def test_the_nearest_timestep_of_a_level() -> None:
    assert nearest(LOG_SNR, LOG_SNR[[0, 1, 500, 999]]) == [0, 1, 500, 999]
    assert nearest(LOG_SNR, np.array([99.0, -99.0])) == [0, 999]
    between = 0.6 * LOG_SNR[300] + 0.4 * LOG_SNR[301]
    assert nearest(LOG_SNR, np.array([between])) == [300]


@pytest.mark.parametrize("image", [True, False])
def test_neighbours_are_chains_and_vary_one_thing(image: bool) -> None:
    at = Candidate((400, 244, 111, 38, 9) if image else (999, 700, 400, 100, 20), image)
    found = dict(at.neighbours(LOG_SNR, 1.0))
    times = {"t1+", "t1-", "t2+", "t2-", "t3+", "t3-", "t4+", "t4-", "t+", "t-"} | ({"t0+", "t0-"} if image else set())
    assert set(found) == times | {"noise_scale-", "noise_scale+", "eps_scale-", "eps_scale+"}
    for name, candidate in found.items():
        steps = candidate.timesteps
        assert all(a > b >= 0 for a, b in pairwise(steps)), name
        if name[0] != "t":
            assert steps == at.timesteps
            assert {at.noise_scale, at.eps_scale} != {candidate.noise_scale, candidate.eps_scale}
        elif len(name) == 3:
            assert [i for i in range(5) if steps[i] != at.timesteps[i]] == [int(name[1])]
            assert (steps[int(name[1])] < at.timesteps[int(name[1])]) == (name[2] == "+")
    assert ("noise_scale-" in dict(replace(at, eta=0.0).neighbours(LOG_SNR, 1.0))) is False


def test_a_scale_stays_in_its_range() -> None:
    assert replace(Candidate((9,), True), noise_scale=0.2).scaled("noise_scale", -0.1) is None
    at = Candidate((9,), True).scaled("eps_scale", 1.0)
    assert at is not None
    assert at.eps_scale == 1.08


def test_a_chain_of_another_length_keeps_its_shape() -> None:
    found = resampled(Candidate((400, 244, 111, 38, 9), True, noise_scale=0.84), LOG_SNR, 10)
    assert found is not None
    assert found.noise_scale == 0.84
    assert found.timesteps[::2] == (400, 244, 111, 38, 9)
    assert resampled(Candidate((1,), True), LOG_SNR, 4) is None, "there are not four timesteps below 2"


def test_gits_takes_the_steps_of_least_cost() -> None:
    # Steps of the grid cost 1, those over one node 1.5, over two 9; from the first node over one costs 5.
    costs = np.full((4, 5), np.inf)
    for i in range(4):
        for j in range(i + 1, 5):
            costs[i, j] = {1: 1.0, 2: 1.5, 3: 9.0, 4: 20.0}[j - i] if (i, j) != (0, 2) else 5.0
    found = Trajectory(np.array([900, 600, 300, 100]), costs)
    assert found.steps(4) == (900, 600, 300, 100)
    assert found.steps(3) == (900, 600, 100) or found.steps(3) == (900, 600, 300)
    assert found.steps(1) == (900,)
    assert found.steps(2) == (900, 300) or costs[0, 1] + costs[1, 4] > costs[0, 2] + costs[2, 4]


# --- The search -------------------------------------------------------------------------------------------------------


BOUND = 0.05


def valley(candidate: Candidate) -> Score:
    """Least at (500, 100) with noise scaled by 0.8; colour is beyond BOUND above t = 560."""
    levels = LOG_SNR[list(candidate.timesteps)] - LOG_SNR[[500, 100]]
    fd = 100 + 50 * float(np.square(levels).sum()) + 200 * (candidate.noise_scale - 0.8) ** 2
    fd += 3000 * (candidate.eps_scale - 1) ** 2
    return Score(fd - 40 * (candidate.timesteps[0] > 560), BOUND + max(0, candidate.timesteps[0] - 560) / 1000, 0.0)


def test_the_search_finds_the_bottom_and_keeps_the_bound(tmp_path: Path) -> None:
    record = Record.open(tmp_path / "record.json", {"bundle": "a"})
    search = Search(record, valley, LOG_SNR, BOUND)
    search.run([Candidate((800, 50), True), Candidate((300, 200), True)])
    best = search.best
    assert search.finished
    assert abs(best.timesteps[0] - 500) <= 30
    assert abs(best.timesteps[1] - 100) < 8
    assert abs(best.noise_scale - 0.8) <= 0.02
    assert search.tried[best].fd < 101
    assert len(search.tried) < 120
    loose = Search(record, valley, LOG_SNR, bound=math.inf)
    loose.run([Candidate((800, 50), True), Candidate((300, 200), True)])
    assert loose.tried[loose.best].fd < search.tried[best].fd - 20, "what is beyond the bound counts where that is wider"
    assert 560 < loose.best.timesteps[0] < 600


def test_a_stopped_search_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = Search(Record.open(tmp_path / "whole.json", {}), valley, LOG_SNR, BOUND)
    whole.run([Candidate((800, 50), True)])
    calls: list[Candidate] = []

    def interrupted(candidate: Candidate) -> Score:
        if len(calls) == 10:
            raise KeyboardInterrupt
        calls.append(candidate)
        return valley(candidate)

    path, of = tmp_path / "record.json", {"seeds": [1, 2]}
    with pytest.raises(KeyboardInterrupt):
        Search(Record.open(path, of), interrupted, LOG_SNR, BOUND).run([Candidate((800, 50), True)])
    calls = []
    rest = Search(Record.open(path, of), lambda c: (calls.append(c), valley(c))[1], LOG_SNR, BOUND)
    rest.run([Candidate((800, 50), True)])
    assert rest.best == whole.best
    assert len(calls) == len(whole.tried) - 10


def test_a_search_without_time_tries_one_candidate(tmp_path: Path) -> None:
    search = Search(Record.open(tmp_path / "record.json", {}), valley, LOG_SNR, BOUND, seconds=0.0)
    search.run([Candidate((800, 50), True), Candidate((300, 200), True)])
    assert list(search.tried) == [Candidate((800, 50), True)]
    assert not search.finished


@pytest.mark.parametrize(
    ("content", "of", "words"),
    [
        ("{", {}, "nothing that can be resumed"),
        ('{"of": {}, "scores": {"a": [1, 2]}}', {}, "nothing that can be resumed"),
        ('{"of": {}, "scores": {"a": [1, NaN, 2]}}', {}, "nothing that can be resumed"),
        ('{"of": {"bundle": "a"}, "scores": {}}', {"bundle": "b"}, "scores of another bundle"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path: Path, content: str, of: dict[str, Any], words: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ArgumentError, match=words):
        Record.open(path, of)


# --- Precision and recall ---------------------------------------------------------------------------------------------


def test_precision_and_recall_of_one_set_and_of_sets_far_apart() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((700, 4)), rng.standard_normal((700, 4))
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(a, a + 100) == (0.0, 0.0)
    assert min(precision_recall(a, b)) > 0.9


def test_a_set_of_few_kinds_has_precision_without_recall() -> None:
    rng = np.random.default_rng(4)
    real = np.concatenate([rng.standard_normal((300, 3)), rng.standard_normal((300, 3)) + 50])
    precision, recall = precision_recall(real, rng.standard_normal((600, 3)))
    assert precision > 0.9
    assert 0.4 < recall < 0.55
    with pytest.raises(ArgumentError, match="of more than 5 images"):
        precision_recall(real, real[:5])
