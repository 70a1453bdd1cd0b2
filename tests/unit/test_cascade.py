"""Cascades: what a stage is handed, its seeds and noise, and what does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Bundle, Cascade, CascadeError, EngineError, Sampler, StepInfo, kernels
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.limits import MAX_STAGES
from engine.solver import noise as noises
from engine.stages import check_stages, name_next
from tests.cascades import build_pair, build_stages
from tests.manifests import edit
from tests.samplers import ANY_BACKEND
from tests.toy_family import IMAGE, Reference, build_family


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stages(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def open_stage(folder: Path) -> Iterator[Callable[[str], Sampler]]:
    opened: dict[str, Sampler] = {}

    def stage(name: str) -> Sampler:
        if name not in opened:
            opened[name] = Sampler(folder / f"{name}.bundle", ANY_BACKEND, "f32", threads=1)
        return opened[name]

    yield stage
    for sampler in opened.values():
        sampler.close()


def enlarged(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] in [0, 1] as the second stage takes them, float32 [N, C, 12, 16]."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    return kernels.enlarge(planes / np.float32(255), *IMAGE[1:])


# ---- enlarging -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("each")
@pytest.mark.parametrize("size", [(5, 7), (10, 14), (11, 7), (40, 61)])
def test_enlarging_is_torchs_and_pillows_bilinear(size: tuple[int, int]) -> None:
    torch, image = pytest.importorskip("torch"), pytest.importorskip("PIL.Image")
    x = np.random.default_rng(3).uniform(-1, 1, (2, 3, 5, 7)).astype(np.float32)
    found = kernels.enlarge(x, *size)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode="bilinear", align_corners=False).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    plane = image.fromarray(x[1, 2]).resize(size[::-1], image.Resampling.BILINEAR)
    np.testing.assert_allclose(found[1, 2], np.asarray(plane), atol=2e-6)


def test_enlarging_has_the_same_bits_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.kernel_choice import use

    x = np.random.default_rng(4).uniform(0, 1, (3, 1, 9, 4)).astype(np.float32)
    found = []
    for name in ("compiled", "numpy"):
        use(monkeypatch, name)
        found.append([kernels.enlarge(x, *size).tobytes() for size in ((9, 4), (18, 4), (31, 17))])
        assert found[-1][0] == x.tobytes(), "the same size is the same image"
    assert found[0] == found[1]


@pytest.mark.usefixtures("each")
def test_enlarging_stays_in_range_and_refuses_to_shrink() -> None:
    x = np.ones((1, 1, 3, 3), np.float32)
    x[0, 0, 1] = -1
    found = kernels.enlarge(x, 97, 101)
    assert found.max() == 1.0
    assert found.min() == -1.0
    for size in ((2, 3), (3, 2)):
        with pytest.raises(kernels.KernelArgumentError, match=r"expected .* of at most that size"):
            kernels.enlarge(x, *size)


# ---- what a stage is handed ------------------------------------------------------------------------------------------


def test_a_cascade_is_its_stages_one_behind_the_other(open_stage: Callable[[str], Sampler]) -> None:
    faces, large = open_stage("faces"), open_stage("large")
    with Cascade([faces, large]) as cascade:
        found = cascade.sample(3, seed=7, label=[1, 2, 3], steps=4, stages=[{"steps": 5, "guidance": 0.5}])
    low = faces.sample(3, seed=7, steps=4)
    assert found.stages[0].images.tobytes() == low.images.tobytes()
    photo = 2 * enlarged(low.images) - 1
    seeds = noises.stage_seeds(low.seeds, 1)
    by_hand = large.sample(seed=seeds, photo=photo, label=[1, 2, 3], steps=5, guidance=0.5)
    assert found.x.tobytes() == by_hand.x.tobytes()
    assert found.images.tobytes() == found.stages[1].images.tobytes() == by_hand.images.tobytes()
    assert found.seeds.tolist() == [7, 8, 9]
    assert found.stages[1].seeds.tolist() == seeds.tolist()
    assert found.setting.guidance == 0.5
    assert found.timings.network_calls == sum(one.timings.network_calls for one in found.stages)
    assert found.timings.network_ms == pytest.approx(sum(one.timings.network_ms for one in found.stages))
    assert found.timings.total_ms >= sum(one.timings.total_ms for one in found.stages)


def test_the_picture_reaches_the_network(open_stage: Callable[[str], Sampler]) -> None:
    """Against the family in float64: what the photo encoder is fed is the enlarged picture."""
    large, reference = open_stage("large"), Reference()
    images = np.random.default_rng(1).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    with Cascade([open_stage("faces"), large]) as cascade:
        found = cascade.upscale(images, seed=3, label=4, stages=[{"timesteps": [900, 400, 30]}])
    x_T = noises.initial(found.stages[0].seeds, found.x.shape[1:])
    wanted = reference.sample([900, 400, 30], x_T, np.array([4, 4]), reference.encode(2 * enlarged(images) - 1))
    np.testing.assert_allclose(found.x, wanted, atol=1e-5)


def test_another_bundle_starts_from_the_image(open_stage: Callable[[str], Sampler]) -> None:
    faces, latent = open_stage("faces"), open_stage("latent")
    with Cascade([faces, latent]) as cascade:
        found = cascade.sample(2, seed=1, label=3, stages=[{"t_start": 400, "steps": 4}])
        with pytest.raises(ArgumentError, match="found no t_start"):
            cascade.sample(2, seed=1, label=3)
    by_hand = latent.refine(enlarged(found.stages[0].images), seed=found.stages[1].seeds, label=3, t_start=400, steps=4)
    assert found.x.tobytes() == by_hand.x.tobytes()


def test_inputs_go_to_every_stage_that_takes_them(folder: Path, open_stage: Callable[[str], Sampler]) -> None:
    latent, large = open_stage("latent"), open_stage("large")
    with Cascade([latent, large]) as cascade:
        assert [spec.name for spec in cascade.inputs] == ["label", "style"]
        found = cascade.sample(2, seed=1, label=3)
        assert [one.values["label"].tolist() for one in found.stages] == [[3, 3], [3, 3]]
        own = cascade.sample(2, seed=1, label=3, stages=[{"label": [4, 5]}])
        assert [one.values["label"].tolist() for one in own.stages] == [[3, 3], [4, 5]]
        with pytest.raises(ArgumentError, match=r"no stage of this cascade has such an input.*label"):
            cascade.sample(1, lable=3)
        with pytest.raises(ArgumentError, match="no option 'photo'"):
            cascade.sample(1, label=3, photo=np.zeros(IMAGE, np.float32))


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_a_sample_has_one_seed_whatever_is_around_it(open_stage: Callable[[str], Sampler]) -> None:
    options = {"label": 2, "eta": 1.0, "stages": [{"noise_level": 90, "eta": 0.7, "steps": 3}]}
    with Cascade([open_stage("faces"), open_stage("told")]) as cascade:
        together, alone = cascade.sample(5, seed=11, **options), cascade.sample(seed=[14], **options)
        again = cascade.upscale(together.stages[0].images, seed=11, label=2, stages=options["stages"])
    assert together.x[3].tobytes() == alone.x[0].tobytes()
    assert again.x.tobytes() == together.x.tobytes()
    low = open_stage("faces").sample(5, seed=11, eta=1.0)
    assert together.stages[0].images.tobytes() == low.images.tobytes()


def test_chunks_change_nothing(folder: Path) -> None:
    options = {"label": 2, "stages": [{"noise_level": 90, "steps": 3}]}
    paths = [folder / "faces.bundle", folder / "large.bundle"]
    with Cascade(paths, ANY_BACKEND, max_batch=2) as small, Cascade(paths, ANY_BACKEND) as whole:
        assert small.sample(5, seed=3, **options).x.tobytes() == whole.sample(5, seed=3, **options).x.tobytes()


def test_stages_draw_from_seeds_of_their_own() -> None:
    seeds = np.array([0, 1, 2**64 - 1], np.uint64)
    assert noises.stage_seeds(seeds, 0).tolist() == seeds.tolist()
    found = {seed for stage in range(4) for seed in noises.stage_seeds(seeds, stage).tolist()}
    assert len(found) == 12
    low, high = kernels.philox4x32([0, 0, 2, kernels.STREAM_STAGE], [1, 0])[:2].tolist()
    assert noises.stage_seeds(seeds, 2)[1] == low | high << 32


# ---- conditioning augmentation ---------------------------------------------------------------------------------------


def test_the_picture_is_noised_to_the_level(open_stage: Callable[[str], Sampler]) -> None:
    large = open_stage("large")
    images = np.random.default_rng(2).integers(0, 256, (3, *IMAGE[1:], 3), dtype=np.uint8)
    found = large.upscale(images, noise_level=250, seed=5, label=1).values["photo"].astype(np.float64)
    clean = large.upscale(images, seed=5, label=1).values["photo"].astype(np.float64)
    alpha_bar = Reference().alpha_bar[250]
    noise = noises.augmentation(np.arange(5, 8, dtype=np.uint64), IMAGE)
    np.testing.assert_allclose(found, np.sqrt(alpha_bar) * clean + np.sqrt(1 - alpha_bar) * noise, atol=1e-6)
    initial = noises.initial(np.arange(5, 8, dtype=np.uint64), IMAGE)
    assert abs(np.corrcoef(noise.ravel(), initial.ravel())[0, 1]) < 0.05, "another stream than that of x_T"


@pytest.mark.parametrize("verb", ["upscale", "refine"])
def test_level_0_changes_no_bit(verb: str, open_stage: Callable[[str], Sampler]) -> None:
    run: Any = getattr(open_stage("large" if verb == "upscale" else "latent"), verb)
    images = np.random.default_rng(2).integers(0, 256, (2, *IMAGE[1:], 3), dtype=np.uint8)
    options = {"seed": 5, "label": 1, **({} if verb == "upscale" else {"t_start": 300})}
    plain = run(images, **options)
    assert run(images, noise_level=0, **options).x.tobytes() == plain.x.tobytes()
    assert run(images, noise_level=100, **options).x.tobytes() != plain.x.tobytes()
    for level in (-1, 1000):
        with pytest.raises(ArgumentError, match=rf"noise_level is {level}; expected 0 \(none\) .. 999"):
            run(images, noise_level=level, **options)


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_network_that_hears_of_the_level_is_told(tmp_path: Path, dtype: str) -> None:
    build_family(tmp_path / "a.bundle", pictures=("photo",), encodes=("state_encoder",), level=dtype)
    images = np.random.default_rng(2).integers(0, 256, (2, *IMAGE[1:], 3), dtype=np.uint8)
    with Sampler(tmp_path / "a.bundle", ANY_BACKEND, "f32", threads=1) as sampler:
        assert sampler.upscale(images, label=1, seed=0).values["level"].tolist() == [0, 0]
        found = sampler.upscale(images, label=1, seed=0, noise_level=70)
        assert found.values["level"].dtype == dtype
        assert found.values["level"].tolist() == [70, 70]
        other = sampler.upscale(images, label=1, seed=0, level=np.array([70], dtype)).x
        assert np.abs(other - found.x).max() > 1e-3, "told of the level of a picture that somebody else noised"
        with pytest.raises(ArgumentError, match=r"noise_level and level, which it sets.*Leave level out"):
            sampler.upscale(images, label=1, noise_level=70, level=np.array([70], dtype))


# ---- the next bundle -------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path)


def test_one_path_is_followed(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    faces, latent = pair
    name_next(faces, latent, t_start=300, steps=4)
    with Cascade(list(pair), ANY_BACKEND) as listed, Cascade(faces, ANY_BACKEND) as named:
        assert len(named) == 2
        given = listed.sample(2, seed=4, label=1, stages=[{"t_start": 300, "steps": 4}])
        assert named.sample(2, seed=4, label=1).x.tobytes() == given.x.tobytes()
        assert listed.sample(2, seed=4, label=1).x.tobytes() == given.x.tobytes(), "the options are of that pair"
        other = named.sample(2, seed=4, label=1, stages=[{"steps": 6}])
        assert (other.setting.steps, other.setting.t_start) == (6, 300)
    monkeypatch.chdir(faces)
    with Cascade(".", ANY_BACKEND) as here:
        assert [sampler.bundle.path.name for sampler in here.samplers][1] == "latent.bundle"
    name_next(faces, None)
    with pytest.raises(CascadeError, match=r"a cascade of 1 bundles, expected 2 .. 8"):
        Cascade(faces)


def test_a_next_bundle_that_is_missing_or_another_is_refused(pair: tuple[Path, Path]) -> None:
    faces, latent = pair
    name_next(faces, latent, t_start=300)
    edit(latent, "source.sha256", "6" * 64)
    with pytest.raises(CascadeError, match=rf"found a bundle of the checkpoint {'6' * 64}, expected {'5' * 64}"):
        Cascade(faces)
    os.rename(latent, latent.with_name("elsewhere.bundle"))
    with pytest.raises(CascadeError, match=r"the next bundle of .*faces\.bundle: .*found nothing that can be read"):
        Cascade(faces)
    with Sampler(faces, ANY_BACKEND) as alone:
        assert len(alone.sample(1, seed=0)) == 1


def test_a_circle_and_a_long_chain_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.bundle" for index in range(MAX_STAGES + 1)]
    for path in paths:
        build_family(path, encodes=("state_encoder",))
    for path, following in pairwise(paths[:-1]):
        name_next(path, following, t_start=300)
    with Cascade(paths[0], ANY_BACKEND) as whole:
        assert len(whole) == MAX_STAGES
    name_next(paths[-2], paths[-1], t_start=300)
    cut = "end it there with: .*cascade .*{}\\.bundle'? --remove"
    with pytest.raises(CascadeError, match=f"more than 8 bundles.*{cut.format(7)}"):
        Cascade(paths[0])
    name_next(paths[1], None)
    with pytest.raises(CascadeError, match=f"found 1\\.bundle as the next bundle, which comes before it.*{cut.format(0)}"):
        name_next(paths[1], paths[0], t_start=300)


def test_stages_that_do_not_fit_are_refused(tmp_path: Path, folder: Path) -> None:
    for paths, message in (
        (("large", "faces"), r"takes images of 8 x 8, expected at least the 12 x 16"),
        (("faces", "faces", "large", "latent", "latent", "latent", "latent", "latent", "latent"), r"a cascade of 9 bundles"),
        ((), r"a cascade of 0 bundles, expected 2 .. 8"),
    ):
        with pytest.raises(CascadeError, match=message):
            Cascade([folder / f"{name}.bundle" for name in paths])
    build_family(tmp_path / "plain.bundle", encodes=())
    with pytest.raises(CascadeError, match="no way for it to take an image"):
        Cascade([folder / "faces.bundle", tmp_path / "plain.bundle"])
    with pytest.raises(ArgumentError, match="expected a folder beside"):
        name_next(folder / "faces.bundle", tmp_path / "plain.bundle")


def test_an_input_of_one_name_is_one_for_all_stages(tmp_path: Path) -> None:
    label = {"name": "label", "dtype": "int64", "shape": ["batch"], "draw": None, "picture": None}
    paths = [build_family(tmp_path / f"{name}.bundle", encodes=("state_encoder",)) for name in "ab"]
    edit(paths[1], "inputs.0", {**label, "range": [3, 20], "null": 3})
    with Cascade(paths, ANY_BACKEND) as cascade:
        assert [spec.range for spec in cascade.inputs if spec.name == "label"] == [(3, 10)]
    edit(paths[1], "inputs.0", {**label, "range": [11, 20], "null": 11})
    with pytest.raises(CascadeError, match=r"takes label in 11 \.\. 20, expected .*, in 0 \.\. 10;"):
        Cascade(paths)
    manifest = Bundle.open(paths[0]).manifest
    spec, *others = manifest.inputs
    changed: list[dict[str, Any]] = [{"dtype": "float32"}, {"shape": ("batch", 2)}]
    for other in changed:
        differing = replace(manifest, inputs=(replace(spec, **other), *others))
        with pytest.raises(CascadeError, match=r"takes label .*, expected label int64\[batch\]"):
            check_stages([manifest, differing])


def test_a_stage_that_takes_a_picture_has_no_start(tmp_path: Path, folder: Path) -> None:
    for name in ("faces", "large"):
        (tmp_path / f"{name}.bundle").symlink_to(folder / f"{name}.bundle")
    with pytest.raises(ArgumentError, match="t_start is 300, but this bundle's pipeline has no start value"):
        name_next(tmp_path / "faces.bundle", tmp_path / "large.bundle", t_start=300)


def test_what_the_next_bundle_cannot_have_is_not_written(pair: tuple[Path, Path]) -> None:
    faces, latent = pair
    before = (faces / MANIFEST_FILE).read_bytes()
    for options, message in (({"noise_level": 1000}, "noise_level is 1000"), ({"steps": 2001}, "steps")):
        with pytest.raises(EngineError, match=message):
            name_next(faces, latent, **options)
    assert (faces / MANIFEST_FILE).read_bytes() == before


# ---- the rest of a Sampler -------------------------------------------------------------------------------------------


def test_a_callback_hears_of_all_stages_and_can_stop(open_stage: Callable[[str], Sampler]) -> None:
    seen: list[tuple[int, int]] = []

    def watch(info: StepInfo) -> bool:
        seen.append((info.stage, info.step))
        return False

    with Cascade([open_stage("faces"), open_stage("large")]) as cascade:
        cascade.sample(1, seed=0, label=1, steps=2, callback=watch, stages=[{"steps": 3}])
        assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
        for given, message in (
            ({"budget_ms": 5}, "budget_ms"),
            ({"stages": [{}, {}]}, "expected a list of 1"),
            ({"stages": {}}, "expected a list of 1"),
        ):
            with pytest.raises(ArgumentError, match=message):
                cascade.sample(1, label=1, **given)
        with pytest.raises(ArgumentError, match="eta, which is of the stage that made the images"):
            cascade.upscale(np.zeros((8, 8, 3), np.uint8), label=1, eta=1.0)
        with pytest.raises(ArgumentError, match="expected images of at most 12 x 16"):
            cascade.upscale(np.zeros((13, 8, 3), np.uint8), label=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"t_start": 300}, "stage 2: t_start is 300, but this bundle's pipeline has no start value"),
        ({"label": None}, "stage 2: upscale: found no label"),
        ({"label": 11}, "stage 2: label runs from 11 to 11"),
        ({"label": [1, 2, 3]}, "stage 2: The number of images is contradictory: n says 2, label says 3"),
        ({"noise_level": 3, "level": np.array([3])}, "stage 2: upscale was given noise_level and level, which it sets"),
        ({"photo": np.zeros(IMAGE, np.float32)}, "stage 2: upscale takes photo from the images"),
        ({"x_T": np.zeros((1, 4, 6, 9), np.float32)}, "stage 2: x_T has shape"),
        ({"text": "red"}, "stage 2: text: found one, but .* holds no vocabulary"),
    ],
)
def test_what_a_stage_of_a_picture_refuses_is_known_before_any_runs(
    given: dict[str, Any], message: str, open_stage: Callable[[str], Sampler]
) -> None:
    def ran(info: StepInfo) -> bool:
        raise AssertionError(f"a step of stage {info.stage}")

    options = {"label": 1, **given}
    with Cascade([open_stage("faces"), open_stage("told")]) as cascade:
        with pytest.raises(ArgumentError, match=message):
            cascade.sample(2, seed=0, callback=ran, stages=[options])
        with pytest.raises(ArgumentError, match=message):
            cascade.upscale(np.zeros((2, 8, 8, 3), np.uint8), callback=ran, stages=[options])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stepz": 3}, r"stage 2: refine has no option 'stepz'.*Did you mean 'steps'"),
        ({"t_start": 300, "noise_level": 1000}, "noise_level is 1000"),
        ({"t_start": 1000}, "t_start"),
        ({"steps": 3}, "found no t_start"),
        ({"t_start": 300, "setting": "fitted"}, "setting is 'fitted'"),
        ({"t_start": "auto"}, "this bundle has no table of starts"),
    ],
)
def test_a_stage_is_refused_before_any_runs(
    given: dict[str, Any], message: str, open_stage: Callable[[str], Sampler]
) -> None:
    def ran(info: StepInfo) -> bool:
        raise AssertionError(f"a step of stage {info.stage}")

    with Cascade([open_stage("faces"), open_stage("latent")]) as cascade, pytest.raises(ArgumentError, match=message):
        cascade.sample(1, seed=0, label=1, callback=ran, stages=[given])


def test_what_a_cascade_opened_it_closes(folder: Path, open_stage: Callable[[str], Sampler]) -> None:
    with Cascade([open_stage("faces"), folder / "large.bundle"], ANY_BACKEND) as cascade, cascade.clone() as twin:
        found = [one.sample(2, seed=3, label=1).x.tobytes() for one in (cascade, twin)]
        assert found[0] == found[1]
        large = cascade[1]
    with pytest.raises(EngineError, match="is closed"):
        large.sample(1)
    assert len(open_stage("faces").sample(1, seed=0)) == 1
