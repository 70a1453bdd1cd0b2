"""Feeds of the whole-sampler graph: what `Sampler` derives and draws for itself, as arrays by name."""

from __future__ import annotations

import numpy as np
import pytest

from engine import kernels
from engine.bundle.prior import Prior
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError
from engine.feeds import no_noise, noise_feeds, setting_feeds, write_feeds
from engine.kernels import ROW_FIELDS
from engine.solver.noise import resolve_seeds
from tests import toy, toy_family

SEEDS = resolve_seeds([5, 2**63, 7])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A manifest whose latent is drawn."""
    return Bundle.open(toy.build_bundle(tmp_path_factory.mktemp("toy") / "bundle")).manifest


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A manifest with a class label, v prediction and a state of its own."""
    return Bundle.open(toy_family.build_family(tmp_path_factory.mktemp("family") / "bundle")).manifest


@pytest.mark.parametrize(
    ("options", "rows", "lanes"),
    [({}, 4, 1), ({"guidance": 1.5}, 4, 2), ({"method": "dpmpp_2m"}, 4, 1), ({"method": "plms", "guidance": -1.0}, 5, 2)],
)
def test_a_setting_is_a_table_a_start_and_weights(drawn, options, rows, lanes):
    feeds, table = setting_feeds(drawn, {"steps": 4, **options})
    assert list(feeds) == ["timesteps", "coefficients", "weights", "start"]
    assert feeds["timesteps"].dtype == np.int64
    assert feeds["coefficients"].shape == (rows, len(ROW_FIELDS))
    assert feeds["weights"].shape == (rows, lanes)
    assert feeds["weights"].sum(axis=1).tolist() == [1.0] * rows
    assert np.array_equal(feeds["coefficients"], table.rows)
    start = table.start
    assert feeds["start"].tolist() == np.float32([start.k_noise, start.k_start, start.k_centre]).tolist()


def test_the_recorded_setting_applies_where_none_is_given(drawn):
    feeds, table = setting_feeds(drawn, {})
    assert table.method == drawn.defaults.method
    assert len(feeds["timesteps"]) == drawn.defaults.steps


@pytest.mark.parametrize("options", [{"eta": 0.7}, {"method": "ddpm"}])
def test_noise_is_the_samples_own(drawn, options):
    feeds, table = setting_feeds(drawn, {"steps": 3, **options})
    made = noise_feeds(drawn, table, SEEDS)
    shape = drawn.pipeline.state.shape
    assert made["x_T"].shape == (3, *shape)
    assert made["noise"].shape == (len(feeds["timesteps"]), 3, *shape)
    count = int(np.prod(shape))
    assert np.array_equal(made["x_T"].reshape(3, -1), kernels.normal(SEEDS, kernels.STREAM_X_T, 0, count))
    assert np.array_equal(made["noise"][2].reshape(3, -1), kernels.normal(SEEDS, kernels.STREAM_STEP, 2, count))
    name = drawn.drawn.name
    assert np.array_equal(made[name], kernels.normal(SEEDS, kernels.STREAM_Z, 0, made[name][0].size))


def test_a_chain_without_noise_takes_one_slice_of_zeros(drawn):
    _, table = setting_feeds(drawn, {"steps": 3})
    made = noise_feeds(drawn, table, SEEDS)
    assert np.array_equal(made["noise"], no_noise(3, drawn.pipeline.state.shape))
    assert made["noise"].shape[0] == 1


def test_a_prior_and_given_inputs_take_the_place_of_the_draw(drawn):
    _, table = setting_feeds(drawn, {"steps": 3})
    name, width = drawn.drawn.name, int(np.prod(drawn.drawn.sample))
    one = np.ones((1, width), np.float32)
    prior = Prior(np.ones(1, np.float32), one * 3, np.eye(width, dtype=np.float32)[None] * 0)
    assert np.array_equal(noise_feeds(drawn, table, SEEDS, prior)[name], np.repeat(one * 3, 3, axis=0))
    for given in (one[0], np.repeat(one, 3, axis=0)):
        assert np.array_equal(noise_feeds(drawn, table, SEEDS, prior, {name: given})[name], np.repeat(one, 3, axis=0))
    with pytest.raises(ArgumentError, match=f"{name} holds 2 samples; expected 3, one a seed, or 1 for all"):
        noise_feeds(drawn, table, SEEDS, prior, {name: np.repeat(one, 2, axis=0)})


def test_an_input_that_is_not_drawn_must_be_given(labelled):
    _, table = setting_feeds(labelled, {"steps": 3})
    with pytest.raises(ArgumentError, match="label: found none, expected it, because it is not drawn"):
        noise_feeds(labelled, table, SEEDS)
    made = noise_feeds(labelled, table, SEEDS, None, {"label": 4, **rest(labelled)})
    assert made["label"].tolist() == [4, 4, 4]
    assert made["label"].dtype == np.int64


def rest(manifest) -> dict[str, np.ndarray]:
    """Zeros for every input but the label."""
    return {
        spec.name: np.zeros((1, *spec.sample), spec.dtype)
        for spec in manifest.inputs
        if spec.name != "label" and spec.draw is None
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected 1"),
        ({"method": "ddmi"}, "method is 'ddmi'"),
        ({"steps": 3, "method": "plms"}, "'plms', which is for eps prediction; this network predicts v"),
    ],
)
def test_a_setting_without_a_table_is_refused(labelled, options, message):
    with pytest.raises(ArgumentError, match=message):
        setting_feeds(labelled, options)


def test_feeds_are_written_as_one_file(drawn, tmp_path):
    feeds, _ = setting_feeds(drawn, {"steps": 2})
    path = write_feeds(tmp_path / "steps.npz", feeds)
    with np.load(path) as found:
        assert set(found) == set(feeds)
        assert all(np.array_equal(found[name], array) for name, array in feeds.items())
    for name in ("steps.txt", "steps"):
        with pytest.raises(ArgumentError, match="expected one ending in"):
            write_feeds(tmp_path / name, feeds)
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_feeds(tmp_path / "absent" / "steps.npz", feeds)
