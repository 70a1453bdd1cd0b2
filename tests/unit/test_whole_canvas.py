"""Other sizes than a bundle's own on the whole of a canvas at once: numbers, noise, weights, and what of it is refused."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import ArgumentError, BackendError, Sampler, backends, memory
from engine.backends import choose
from engine.backends.native.graph import NativeGraph
from engine.bulk.job import describe
from engine.bulk.maker import Maker, Means
from engine.bundle.reader import Bundle
from engine.cli.main import cli
from engine.errors import HostMemoryError
from tests.canvases import GIVEN, SIZE, check_verbs
from tests.native_models import NEEDS_NATIVE
from tests.samplers import EACH_BACKEND
from tests.toy_family import IMAGE, STATE, build_family

NOISY: dict[str, Any] = {"eta": 1.0, "steps": 3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that works pixel by pixel."""
    folder = tmp_path_factory.mktemp("whole") / "b"
    return build_family(folder, encodes=["state_encoder"], quantizes=True, multiple=2)


@pytest.fixture(scope="module")
def large(bundle: Path) -> Iterator[Sampler]:
    with Sampler(bundle, "onnxruntime", "f32", threads=1, size=SIZE) as opened:
        yield opened


@EACH_BACKEND
@pytest.mark.parametrize("options", [{}, NOISY, {"guidance": 2.0, "quantize_denoised": True}])
def test_the_bundle_s_own_size_and_the_upper_left_of_a_larger_one(
    bundle: Path, backend: str, options: dict[str, Any]
) -> None:
    """Of the own size the bits; a network of single pixels has the same ones there when the canvas grows, noise included."""
    with Sampler(bundle, backend, "f32", threads=1) as plain, plain.resized(IMAGE[1:]) as own, plain.resized(SIZE) as larger:
        expected = plain.sample(2, **GIVEN, **options)
        same, grown = own.sample(2, **GIVEN, **options), larger.sample(2, **GIVEN, **options)
    np.testing.assert_array_equal(same.x, expected.x)
    np.testing.assert_array_equal(same.images, expected.images)
    assert grown.images.shape == (2, *SIZE, 3)
    np.testing.assert_allclose(grown.x[:, :, : STATE[1], : STATE[2]], expected.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grown.images[:, : IMAGE[1], : IMAGE[2]].astype(int), expected.images, atol=1)
    assert len(np.unique(grown.x)) == grown.x.size  # no noise twice


def test_a_smaller_one_is_a_part_of_it(bundle: Path, large: Sampler) -> None:
    """From the multiple on, whatever the bundle's own size is."""
    expected = large.sample(1, **GIVEN, **NOISY)
    with large.resized((4, 24)) as opened:
        found = opened.sample(1, **GIVEN, **NOISY)
    np.testing.assert_allclose(found.x, expected.x[:, :, :2, :12], rtol=1e-5, atol=1e-5)


def test_the_whole_and_tiles_are_of_one_noise(bundle: Path, large: Sampler) -> None:
    with large.resized(SIZE, overlap=0.5) as tiled:
        np.testing.assert_allclose(
            tiled.sample(2, **GIVEN, **NOISY).x, large.sample(2, **GIVEN, **NOISY).x, rtol=1e-5, atol=1e-5
        )


def test_labels_of_pixels_lie_over_the_state_too(tmp_path: Path) -> None:
    """[n, H, W]: cut into windows, and of the canvas's size on the whole."""
    made = build_family(tmp_path / "b", encodes=["state_encoder"], multiple=2, segments=True)
    labels = np.random.default_rng(1).integers(0, 4, (2, *SIZE))
    with Sampler(made, "onnxruntime", "f32", threads=1) as plain, plain.resized(SIZE) as whole:
        own = plain.sample(2, **GIVEN, segmentation=labels[:, : IMAGE[1], : IMAGE[2]], **NOISY)
        found = whole.sample(2, **GIVEN, segmentation=labels, **NOISY)
        with plain.resized(SIZE, overlap=0.5) as tiled:
            expected = tiled.sample(2, **GIVEN, segmentation=labels, **NOISY)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.x[:, :, : STATE[1], : STATE[2]], own.x, rtol=1e-5, atol=1e-5)


def test_each_graph_runs_once_a_step(large: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, shapes = large._pipeline.backend.graph("denoiser"), []
    run = graph._run
    monkeypatch.setattr(graph, "_run", lambda arrays: (shapes.append(arrays["x"].shape), run(arrays)))
    large.sample(2, **GIVEN, steps=3)
    assert shapes == 3 * [(2, STATE[0], 10, 20)]


def test_verbs_that_take_images_take_other_sizes(large: Sampler) -> None:
    check_verbs(large)


def test_clones_and_pickles_keep_the_size(bundle: Path, large: Sampler) -> None:
    expected = large.sample(**GIVEN, steps=2).x
    with Sampler(bundle, "onnxruntime", "f32", threads=1) as plain, plain.resized(SIZE) as resized:
        for other in (large.clone(), copy.copy(large), pickle.loads(pickle.dumps(large)), resized):
            np.testing.assert_array_equal(other.sample(**GIVEN, steps=2).x, expected)
        with resized.resized(IMAGE[1:]) as back:
            np.testing.assert_array_equal(back.sample(**GIVEN, steps=2).x, plain.sample(**GIVEN, steps=2).x)


def test_the_command_line_and_bulk_jobs_take_a_size_alone(bundle: Path, large: Sampler, tmp_path: Path) -> None:
    style = tmp_path / "style.npy"
    np.save(style, GIVEN["style"])
    given = ["--input", "label=3", "--input", f"style={style}", "--seed", "4", "--steps", "2", "--backend", "onnxruntime"]
    given += ["--threads", "1", "--size", "20", "40"]
    expected = large.sample(**GIVEN, steps=2).images
    for more, file in ([], "a.npy"), (["--shard-size", "1"], "shards"):
        out = tmp_path / file
        done = CliRunner().invoke(cli, ["sample", str(bundle), "-n", "1", *given, *more, "--out", str(out)])
        assert done.exit_code == 0, done.output
        written = out if out.is_file() else next(out.glob("shard-*.npy"))
        np.testing.assert_array_equal(np.load(written), expected)
    inputs = {name: GIVEN[name] for name in ("label", "style")}
    job = describe(Bundle.open(bundle).resized(SIZE, None), 1, seed=4, inputs=inputs, steps=2)
    assert (job.size, job.overlap) == (SIZE, None)
    maker = Maker(job, Bundle.open(bundle), Means("onnxruntime", "f32", 1, inputs=inputs))  # as on another machine
    assert maker.make(job.shard(0)) == written.read_bytes()
    maker.close()


def test_info_tells_the_steps_of_other_sizes(bundle: Path) -> None:
    said = CliRunner().invoke(cli, ["info", str(bundle)]).output
    assert re.search(r"^ *other sizes +multiples of 4, with --size$", said, re.MULTILINE), said


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((22, 40), "height of 22, expected a multiple of 4 from 4 to 65536; the nearest is 24"),
        ((20, 2), "width of 2, expected a multiple of 4 from 4"),
        ((0, 40), "height of 0, .*the nearest is 4"),
        ((20, 10**9), "width of 1000000000, .*the nearest is 65536"),
    ],
)
def test_a_size_that_cannot_be(bundle: Path, size: tuple[int, int], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Bundle.open(bundle).resized(size, None)


def test_plans_are_of_one_size(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name a backend of plans is refused, in another size; "auto" passes it over."""
    kind = backends.backend_class("openvino")
    monkeypatch.setattr(kind, "ANY_SIZE", False)
    opened = Bundle.open(bundle)
    assert choose(opened.resized(IMAGE[1:], None), "openvino").backend == "openvino"
    assert choose(opened.resized(SIZE, None)).backend == "onnxruntime"
    with pytest.raises(BackendError, match=r"20 x 40 with backend 'openvino', whose plans take 12 x 16 alone.*overlap"):
        Sampler(bundle, "openvino", "f32", threads=1, size=SIZE)
    with Sampler(bundle, "openvino", "f32", threads=1) as plain, pytest.raises(BackendError, match="whose plans take"):
        plain.resized(SIZE)


def test_a_canvas_that_does_not_fit_is_refused_before_anything_runs(
    large: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 40 << 20)
    assert len(large.sample(2, **GIVEN, steps=2)) == 2
    with pytest.raises(HostMemoryError, match=r"found 9000 images of 20 x 40, .* 0.1 GiB beside .* or pass overlap=0.5"):
        large.sample(9000, **GIVEN, steps=2, callback=lambda _: pytest.fail("it ran"))


# ---- the native engine -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(native_bundle: Callable[..., Path]) -> Iterator[Sampler]:
    """An unconditional model of 16 x 16 with attention, in bf16."""
    with Sampler(native_bundle("uncond"), "native", "bf16", threads=1) as opened:
        yield opened


def sides(sampler: Sampler) -> tuple[int, int]:
    height, width = sampler.bundle.manifest.pipeline.image_shape[1:]
    return height, width


@NEEDS_NATIVE
@pytest.mark.parametrize("options", [{}, NOISY | {"spacing": "linspace"}])
def test_native_has_the_bits_of_its_own_size_and_those_of_one_call(native: Sampler, options: dict[str, Any]) -> None:
    with native.resized(sides(native)) as own:
        expected = native.sample(3, seed=1, **options)
        np.testing.assert_array_equal(own.sample(3, seed=1, **options).x, expected.x)
    height, width = sides(native)
    with native.resized((height, 2 * width)) as larger, larger.clone() as twin:
        alone = larger.sample(2, seed=1, **options)
        np.testing.assert_array_equal(larger.sample(2, seed=1, **options, callback=lambda _: None).x, alone.x)
        np.testing.assert_array_equal(twin.sample(1, seed=2, **options).x, alone.x[1:])
        assert alone.x.shape[2:] == (height, 2 * width)
        between = larger.interpolate(1, 5, 3, **options)  # of x_T, which starts from what the seed draws
        np.testing.assert_array_equal(between.x[0], larger.sample(1, seed=1, **options).x[0])


@NEEDS_NATIVE
def test_native_equals_float32_in_another_size(native: Sampler) -> None:
    multiple, (height, _) = native.bundle.manifest.pipeline.multiple, sides(native)
    assert multiple is not None
    size = (2 * height, height + multiple)
    x = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    row = Sampler(native.bundle, "onnxruntime", "f32", threads=1)._pipeline.backend.graph("timestep_table")
    given = {"x": x, "row": row(timesteps=np.array([500]))["rows"].copy()}
    found = {}
    for backend, precision in (("native", "bf16"), ("onnxruntime", "f32")):
        with Sampler(native.bundle, backend, precision, threads=1, size=size) as opened:
            (answer,) = opened._pipeline.backend.graph("denoiser")(**given).values()
            found[backend] = answer.copy()
    difference = found["native"] - found["onnxruntime"]
    assert np.linalg.norm(difference) < 1.5e-2 * np.linalg.norm(found["onnxruntime"])


@NEEDS_NATIVE
def test_native_sizes_share_their_weights(native: Sampler) -> None:
    height, width = sides(native)
    with native.resized((2 * height, width)) as larger:
        graphs = [sampler._pipeline.backend.graph("denoiser") for sampler in (native, larger)]
        assert all(isinstance(graph, NativeGraph) for graph in graphs)
        own, other = (graph._loaded for graph in graphs if isinstance(graph, NativeGraph))
        assert other.weights is own.weights
        assert [tensor.height for tensor in other.program.tensors] == [2 * tensor.height for tensor in own.program.tensors]
        assert larger._pipeline.backend.working_bytes(1) > native._pipeline.backend.working_bytes(1) > 0


@NEEDS_NATIVE
def test_what_the_native_engine_does_not_run_is_said_with_a_cure(native: Sampler) -> None:
    with pytest.raises(BackendError, match=r"state of 2048 x \d+ .* not run: .*height: found 2048.* Pass overlap=0.5"):
        native.resized((2048, sides(native)[1]))
    with pytest.raises(BackendError, match=r"\(attention\): found \d+, expected 1..16384. Pass overlap=0.5 too"):
        native.resized((1024, 1024))


@NEEDS_NATIVE
def test_native_maps_are_part_of_the_estimate(native: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = sides(native)
    with native.resized((8 * height, 8 * width)) as larger:
        wanted = larger._pipeline.backend.working_bytes(2)
        monkeypatch.setattr(memory, "available", lambda: wanted)
        with pytest.raises(HostMemoryError, match=r"GiB, \d+\.\d of them in the networks; .* or pass overlap=0.5"):
            larger.sample(2, seed=0, callback=lambda _: pytest.fail("it ran"))
        monkeypatch.setattr(memory, "available", lambda: 2 * wanted)
        assert len(larger.sample(1, seed=0, steps=2, spacing="linspace")) == 1
        monkeypatch.setattr(memory, "available", lambda: wanted // 2)  # what is touched is no longer free
        assert len(larger.sample(1, seed=0, steps=2, spacing="linspace")) == 1
