"""Larger pictures than a bundle's own: windows, weights, noise, and what of it is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import ArgumentError, Cancelled, Sampler, memory
from engine.bulk.job import describe
from engine.bulk.maker import Maker, Means
from engine.bundle.reader import Bundle
from engine.cli.main import cli
from engine.errors import HostMemoryError
from engine.solver import noise
from tests.canvases import GIVEN, SIZE, check_verbs
from tests.toy_family import IMAGE, STATE, build_family

# The toy family's network and decoder work pixel by pixel: in tiles they give what they give on the whole, but for rounding.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("canvas") / "b", encodes=["state_encoder"], quantizes=True)


@pytest.fixture(scope="module")
def sampler(bundle: Path) -> Iterator[Sampler]:
    with Sampler(bundle, "onnxruntime", "f32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def large(sampler: Sampler) -> Iterator[Sampler]:
    with sampler.resized(SIZE, overlap=0.5) as opened:
        yield opened


def test_windows_lie_as_far_apart_as_the_overlap_says(bundle: Path) -> None:
    canvas = Bundle.open(bundle).resized(SIZE, 0.5).tiling
    assert canvas is not None
    assert canvas.rows == (0, 3, 4)
    assert canvas.columns == (0, 4, 8, 12)
    weights = canvas.weights(1)
    assert weights.shape == STATE[1:]
    assert weights[0].max() == weights[:, 0].max() == np.float32(0.01)
    assert weights[2, 3] == pytest.approx(2 / 5)  # of a window of 6 rows, numbered 0 to 5
    assert canvas.weights(2).shape == IMAGE[1:]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("options", [{}, {"eta": 1.0, "steps": 3}, {"guidance": 2.0, "quantize_denoised": True}])
def test_a_network_of_single_pixels_does_not_notice_tiles(sampler: Sampler, overlap: float, options: dict[str, Any]) -> None:
    """And the noise of the upper left is that of a sample of the bundle's own size."""
    whole = sampler.sample(2, **GIVEN, **options)
    with sampler.resized(SIZE, overlap=overlap) as opened:
        tiled = opened.sample(2, **GIVEN, **options)
    assert tiled.images.shape == (2, *SIZE, 3)
    np.testing.assert_allclose(tiled.x[:, :, : STATE[1], : STATE[2]], whole.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tiled.images[:, : IMAGE[1], : IMAGE[2]].astype(int), whole.images, atol=1)
    assert len(np.unique(tiled.x)) == tiled.x.size  # no noise twice


def test_noise_stays_where_it_is_when_a_canvas_grows(sampler: Sampler, large: Sampler) -> None:
    with sampler.resized((36, 44), overlap=0.5) as larger:
        grown = larger.sample(**GIVEN, eta=1.0, steps=2)
    before = large.sample(**GIVEN, eta=1.0, steps=2)
    np.testing.assert_allclose(grown.x[:, :, :10, :20], before.x, rtol=1e-5, atol=1e-5)
    seeds = np.array([7], np.uint64)
    blocks = noise.initial(seeds, (2, 7, 9), block=(3, 4))
    np.testing.assert_array_equal(blocks[..., :3, :4], noise.initial(seeds, (2, 3, 4)))
    assert not np.isin(blocks[..., 3:, :], blocks[..., :3, :]).any()


def test_every_sample_is_its_own_seed_s_in_any_batch(large: Sampler) -> None:
    many = large.sample(11, **GIVEN, steps=2)
    one = large.sample(1, **GIVEN | {"seed": 14}, steps=2)
    np.testing.assert_allclose(many.x[10:], one.x, rtol=1e-6, atol=1e-6)
    assert many.timings.network_calls == 2 * 1  # in the words of whole pictures: windows are no calls of their own


def test_verbs_that_take_images_take_larger_ones(large: Sampler) -> None:
    check_verbs(large)


def test_one_window_is_the_bundle_s_own_size(sampler: Sampler) -> None:
    with sampler.resized(IMAGE[1:], overlap=0.5) as opened:
        again = opened.sample(2, **GIVEN)
    np.testing.assert_array_equal(again.x, sampler.sample(2, **GIVEN, callback=lambda _: None).x)


def test_clones_and_pickles_keep_the_size(bundle: Path, large: Sampler) -> None:
    expected = large.sample(**GIVEN, steps=2).x
    with Sampler(bundle, "onnxruntime", "f32", threads=1, size=SIZE, overlap=0.5) as opened:
        for other in (large.clone(), copy.copy(large), pickle.loads(pickle.dumps(large)), opened):
            np.testing.assert_array_equal(other.sample(**GIVEN, steps=2).x, expected)
    with large.resized(IMAGE[1:], overlap=0) as smaller:
        assert smaller.sample(**GIVEN, steps=2).images.shape == (1, *IMAGE[1:], 3)


def test_a_run_can_be_stopped_between_windows(large: Sampler) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 6

    with pytest.raises(Cancelled, match="after step 2 of 3") as caught:
        large.sample(**GIVEN, steps=3, stop=stop)  # 12 windows, 8 at a time: twice a step, and once after each
    assert caught.value.step == 2
    assert len(large.sample(**GIVEN, steps=2)) == 1


def test_a_canvas_that_does_not_fit_is_refused_before_anything_runs(
    large: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (memory.available() or 1 << 62) > 1 << 20
    monkeypatch.setattr(memory, "available", lambda: 40 << 20)
    assert len(large.sample(2, **GIVEN, steps=2)) == 2
    with pytest.raises(HostMemoryError, match=r"found 9000 images of 20 x 40, 64 at once, which take 0.1 GiB .* 0.0 GiB"):
        large.sample(9000, **GIVEN, steps=2, callback=lambda _: pytest.fail("it ran"))


BAD = [
    ({"size": SIZE}, "found 20 x 40 and no overlap for a bundle whose graphs take 12 x 16 alone.*Pass overlap=0.5 too"),
    ({"overlap": 0.5}, "found overlap alone"),
    ({"size": (21, 40), "overlap": 0.5}, "height of 21, expected a multiple of 2 from 12 to 65536; the nearest is 20"),
    ({"size": (20, 8), "overlap": 0.5}, "width of 8, expected a multiple of 2 from 16"),
    ({"size": (20, 10**9), "overlap": 0.5}, "width of 1000000000, .*the nearest is 65536"),
    ({"size": (20,), "overlap": 0.5}, "size lists 1 numbers; expected two"),
    ({"size": (20.0, 40), "overlap": 0.5}, r"size\[0\] is 20.0"),
    ({"size": SIZE, "overlap": 0.95}, "overlap is 0.95"),
    ({"size": SIZE, "overlap": float("nan")}, "overlap is nan"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_a_size_that_cannot_be(bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Sampler(bundle, "onnxruntime", **options)


def test_a_bundle_that_sees_the_whole_picture_has_no_other_size(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"20 x 40 for a bundle that works in 12 x 16 alone"):
        Bundle.open(build_family(tmp_path / "b")).resized(SIZE, 0.5)


def test_the_command_line_and_bulk_jobs_take_a_size(bundle: Path, large: Sampler, tmp_path: Path) -> None:
    style = tmp_path / "style.npy"
    np.save(style, GIVEN["style"])
    given = ["--input", "label=3", "--input", f"style={style}", "--seed", "4", "--steps", "2", "--backend", "onnxruntime"]
    given += ["--threads", "1", "--size", "20", "40", "--overlap", "0.5"]
    expected = large.sample(**GIVEN, steps=2).images
    for more, file in ([], "a.npy"), (["--shard-size", "1"], "shards"):
        out = tmp_path / file
        done = CliRunner().invoke(cli, ["sample", str(bundle), "-n", "1", *given, *more, "--out", str(out)])
        assert done.exit_code == 0, done.output
        written = out if out.is_file() else next(out.glob("shard-*.npy"))
        np.testing.assert_array_equal(np.load(written), expected)
    inputs = {name: GIVEN[name] for name in ("label", "style")}
    job = describe(Bundle.open(bundle).resized(SIZE, 0.5), 1, seed=4, inputs=inputs, steps=2)
    assert (job.size, job.overlap) == (SIZE, 0.5)
    maker = Maker(job, Bundle.open(bundle), Means("onnxruntime", "f32", 1, inputs=inputs))  # as on another machine
    assert maker.make(job.shard(0)) == written.read_bytes()
    maker.close()
