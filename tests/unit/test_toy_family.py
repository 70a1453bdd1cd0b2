"""The toy family (tests/toy_family.py) through Python: every verb and option against a float64 reference of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError
from engine.solver import noise as noises
from tests.samplers import ANY_BACKEND, EACH_BACKEND, watch_graph
from tests.toy_family import CLASSES, IMAGE, STATE, STYLE, Reference, build_family

TOLERANCE = 2e-5  # float32 runtimes over a few steps of a network with values around 1


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("family") / "latents.bundle")


@pytest.fixture(scope="module")
def quantizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("family") / "quantizes.bundle", quantizes=True)


@pytest.fixture
def sampler(family: Path, request: pytest.FixtureRequest) -> Iterator[Sampler]:
    """On the backend that the test names."""
    with Sampler(family, request.getfixturevalue("backend"), "f32", 2) as opened:
        yield opened


def given(n: int = 3) -> dict[str, Any]:
    """Inputs and noise of n samples, different for each."""
    rng = np.random.default_rng(n)
    return {
        "label": np.arange(n) * 3 % (CLASSES + 1),
        "style": rng.standard_normal((n, STYLE)).astype(np.float32),
        "x_T": rng.standard_normal((n, *STATE)).astype(np.float32),
    }


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@EACH_BACKEND
class TestChain:
    @pytest.mark.parametrize("guidance", [0.0, 1.5, -0.5])
    @pytest.mark.parametrize("eta", [0.0, 0.7])
    def test_equals_the_reference(self, backend: str, sampler: Sampler, guidance: float, eta: float) -> None:
        inputs, steps = given(), 7
        noise = np.random.default_rng(9).standard_normal((steps, 3, *STATE)).astype(np.float32)
        options = {"steps": steps, "spacing": "trailing", "guidance": guidance, "eta": eta}
        batch = sampler.sample(**inputs, noise=noise, **options)
        reference = Reference()
        timesteps = batch.timesteps.tolist()
        assert (len(timesteps), timesteps[0]) == (steps, 999)
        expected = reference.sample(timesteps, **inputs, guidance=guidance, eta=eta, noise=noise)
        close(batch.x, expected)
        assert batch.images.shape == (3, *IMAGE[1:], IMAGE[0])
        assert np.abs(batch.images.astype(int) - reference.pixels(expected)).max() <= 1
        assert (batch.images != batch.images[:1]).any(), "every sample has its own label, style and noise"

    def test_guidance_on_an_interval_costs_nothing_outside(self, backend: str, sampler: Sampler) -> None:
        """Rows outside are those of a run without guidance, calls and bits; `n` = 9 has one call a lane."""
        inputs, plain = given(9), {"steps": 6, "spacing": "trailing"}
        batch = sampler.sample(**inputs, **plain, guidance=1.5, guidance_interval=(333, 666))
        timesteps = batch.timesteps.tolist()
        guided = [333 <= t <= 666 for t in timesteps]
        assert guided == [False, False, True, True, False, False]
        assert batch.timings.network_calls == len(timesteps) + sum(guided)
        assert batch.setting.guidance_interval == (333, 666)
        close(batch.x, Reference().sample(timesteps, **inputs, guidance=1.5, interval=(333, 666)))
        states: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for name, options in ((True, {"guidance": 1.5, "guidance_interval": (333, 666)}), (False, {})):
            sampler.sample(**inputs, **plain, **options, callback=lambda info, to=states[name]: to.append(info.x.copy()))
        same = [bool((one == other).all()) for one, other in zip(states[True], states[False], strict=True)]
        assert same == [True, True, False, False, False, False]

    def test_every_step_quantised(self, backend: str, quantizes: Path) -> None:
        """x0 goes through the codebook, and eps is the network's own; the watcher sees the new x0."""
        inputs, steps, seen = given(), 5, []
        noise = np.random.default_rng(9).standard_normal((steps, 3, *STATE)).astype(np.float32)
        options = {"steps": steps, "spacing": "trailing", "eta": 0.7, "guidance": 1.5, "noise": noise}
        with Sampler(quantizes, backend, "f32", 2) as sampler:
            plain = sampler.sample(**inputs, **options)
            batch = sampler.sample(**inputs, **options, quantize_denoised=True)
            watched = sampler.sample(
                **inputs, **options, quantize_denoised=True, callback=lambda info: seen.append(np.abs(info.x0).max())
            )
        np.testing.assert_array_equal(batch.x, watched.x)
        assert max(seen) <= 1 < np.abs(plain.x).max()
        expected = {name: options[name] for name in ("eta", "guidance", "noise")}
        close(batch.x, Reference().sample(batch.timesteps.tolist(), **inputs, **expected, quantized=True))
        close(plain.x, Reference().sample(batch.timesteps.tolist(), **inputs, **expected))
        assert np.abs(plain.images.astype(int) - Reference().pixels(np.tanh(plain.x))).max() <= 1, "decoded are codes"

    def test_the_recorded_setting_and_what_is_drawn(self, backend: str, sampler: Sampler) -> None:
        batch = sampler.sample(2, seed=2**63, label=4)
        seeds = np.array([2**63, 2**63 + 1], np.uint64)
        style, x_T = noises.drawn(seeds, (STYLE,)), noises.initial(seeds, STATE)
        np.testing.assert_array_equal(batch.values["style"], style)
        np.testing.assert_array_equal(batch.values["label"], [4, 4])
        close(batch.x, Reference().sample(batch.timesteps.tolist(), x_T, np.array([4, 4]), style))
        assert batch.setting.steps == 6
        assert batch.start is None

    @pytest.mark.parametrize("guidance", [0.0, 2.0])
    def test_chunks_are_the_batch(self, backend: str, family: Path, guidance: float) -> None:
        inputs = given(7)
        with Sampler(family, backend, "f32", 1, max_batch=3) as small, Sampler(family, backend, "f32", 1) as large:
            cut, whole = (s.sample(**inputs, guidance=guidance) for s in (small, large))
        assert (cut.timings.chunks, whole.timings.chunks) == (3, 1)
        close(cut.x, whole.x)
        for name in ("label", "style"):
            np.testing.assert_array_equal(cut.values[name], whole.values[name])

    def test_one_sample_in_a_batch_is_itself_alone(self, backend: str, sampler: Sampler) -> None:
        batch = sampler.sample(seed=[5, 6, 7], label=[1, 2, 3], guidance=1.0)
        alone = sampler.sample(seed=6, label=2, guidance=1.0)
        close(batch.x[1:2], alone.x)

    def test_the_null_lane_is_the_null_label_and_style(self, backend: str, sampler: Sampler) -> None:
        """With w = -1 only the null lane counts: what is given changes nothing, and equals the nulls given as inputs."""
        x_T, null = given()["x_T"], np.full((3, STYLE), 0.1, np.float32)
        nulls = sampler.sample(label=CLASSES, style=null, x_T=x_T, steps=4)
        for inputs in ({"label": 2, "style": null + 5}, {"label": [0, 5, 9], "style": null - 1}):
            close(sampler.sample(**inputs, x_T=x_T, steps=4, guidance=-1.0).x, nulls.x)

    def test_a_null_that_is_each_samples_own(self, backend: str, tmp_path: Path) -> None:
        """Where only the label has a null, scale and shift have one that depends on the sample's style."""
        path, reference = build_family(tmp_path / "half.bundle", style_null=False), Reference()
        with Sampler(path, backend, "f32", 1, max_batch=2) as sampler:
            for n in (3, 2):
                inputs = given(n)
                batch = sampler.sample(**inputs, steps=5, guidance=1.5)
                close(batch.x, reference.sample(batch.timesteps.tolist(), **inputs, guidance=1.5, style_null=False))
            counted = watch_graph(sampler, "modulation")
            sampler.sample(**given(2), steps=5, guidance=1.5)
            assert counted.calls == 2, "once for the inputs and once for the nulls, though two values come of it"

    def test_two_steps_of_history_are_closer_to_a_fine_solution(self, backend: str, sampler: Sampler) -> None:
        """DPM-Solver++ 2M solves the same equation as DDIM, to the second order."""

        def solved(method: str, steps: int) -> np.ndarray:
            options = {"method": method, "steps": steps, "spacing": "trailing", "guidance": 0.5}
            return sampler.sample(seed=[1, 2], label=[3, 4], **options).x

        fine = solved("ddim", 1000)
        first, second = (np.abs(solved(method, 20) - fine).max() for method in ("ddim", "dpmpp_2m"))
        assert second < first / 4

    def test_ancestral_steps(self, backend: str, sampler: Sampler) -> None:
        """DDIM with eta 1 is the ancestral sampler with the smaller variance."""
        options: dict[str, Any] = {"seed": [1, 2], "label": [3, 4], "steps": 8, "spacing": "trailing", "guidance": 0.5}
        close(sampler.sample(method="ddpm", **options).x, sampler.sample(method="ddim", eta=1.0, **options).x)

    def test_a_solver_for_eps_is_refused(self, backend: str, sampler: Sampler) -> None:
        with pytest.raises(ArgumentError, match=r"method is 'plms', which is for eps prediction; this network predicts v"):
            sampler.sample(label=1, method="plms")

    def test_calls_around_the_loop_run_once(self, backend: str, sampler: Sampler) -> None:
        names = ("label_encoder", "modulation", "timestep_table", "denoiser", "decoder")
        sampler.sample(seed=0, label=1, guidance=1.0)  # the null's context is computed once a bundle
        counted = {name: watch_graph(sampler, name) for name in names}
        sampler.sample(seed=0, label=1, guidance=1.0, steps=5, spacing="trailing")
        assert {name: graph.calls for name, graph in counted.items()} == {
            "label_encoder": 1, "modulation": 1, "timestep_table": 1, "denoiser": 5, "decoder": 1,
        }  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("learned") / "learned.bundle", learned=True)


@EACH_BACKEND
class TestLearnedVariance:
    @pytest.mark.parametrize("n", [3, 10])  # lanes in one call, and in two
    @pytest.mark.parametrize("guidance", [0.0, 1.5])
    def test_ancestral_steps_equal_the_reference(self, backend: str, learned: Path, n: int, guidance: float) -> None:
        inputs, steps = given(n), 6
        noise = np.random.default_rng(9).standard_normal((steps, n, *STATE)).astype(np.float32)
        with Sampler(learned, backend, "f32", 2) as sampler:
            batch = sampler.sample(**inputs, noise=noise, steps=steps, method="ddpm", spacing="trailing", guidance=guidance)
        timesteps = batch.timesteps.tolist()
        assert batch.setting.variance == "learned_range", "what the manifest says"
        close(batch.x, Reference().sample(timesteps, **inputs, guidance=guidance, noise=noise, learned=True))

    def test_what_does_not_read_it_is_what_it_is_without(self, backend: str, learned: Path, family: Path) -> None:
        settings: list[dict[str, Any]] = [
            {"eta": 0.7, "steps": 5}, {"method": "dpmpp_2m"}, {"method": "ddpm", "variance": "fixedsmall"}
        ]
        with Sampler(learned, backend, "f32", 1) as one, Sampler(family, backend, "f32", 1) as other:
            for setting in settings:
                found, expected = (s.sample(seed=[1, 2], label=3, guidance=0.5, **setting) for s in (one, other))
                np.testing.assert_array_equal(found.x, expected.x)
            fixed = other.sample(seed=[1, 2], label=3, method="ddpm")
            assert np.abs(one.sample(seed=[1, 2], label=3, method="ddpm").x - fixed.x).max() > 0.01, "which it changes"

    def test_a_network_without_it_is_refused(self, backend: str, sampler: Sampler) -> None:
        with pytest.raises(ArgumentError, match=r"no second output .*; expected one of fixedlarge, fixedsmall\."):
            sampler.sample(label=1, variance="learned_range")


@EACH_BACKEND
class TestVerbs:
    def test_encode(self, backend: str, sampler: Sampler) -> None:
        images = np.random.default_rng(3).integers(0, 256, (2, *IMAGE[1:], IMAGE[0]), np.uint8)
        found = sampler.encode(images)
        planes = images.transpose(0, 3, 1, 2) / 255 * 2 - 1
        assert list(found) == ["style"]
        close(found["style"], Reference().encode(planes))

    def test_interpolate_walks_the_drawn_input(self, backend: str, sampler: Sampler) -> None:
        path = sampler.interpolate(3, 8, 4, label=6)
        ends = sampler.draw(seed=[3, 8])["style"]
        np.testing.assert_array_equal(path.values["style"][[0, -1]], ends)
        close(path.values["style"][1], (2 * ends[0] + ends[1]) / 3)
        close(path.x[:1], sampler.sample(seed=3, label=6).x)

    def test_a_clone_gives_the_same(self, backend: str, sampler: Sampler) -> None:
        with sampler.clone() as twin:
            np.testing.assert_array_equal(twin.sample(seed=1, label=2).images, sampler.sample(seed=1, label=2).images)

    def test_warmup_needs_nothing(self, backend: str, sampler: Sampler) -> None:
        counted = watch_graph(sampler)
        sampler.warmup(2)
        assert counted.batches == [2]

    @pytest.mark.parametrize("verb", ["refine", "reconstruct"])
    def test_verbs_that_need_a_state_of_pixels(self, backend: str, sampler: Sampler, verb: str) -> None:
        images = np.zeros((1, *IMAGE[1:], IMAGE[0]), np.uint8)
        with pytest.raises(ArgumentError, match=rf"{verb} needs a state that is the image, or an encoder to it"):
            getattr(sampler, verb)(images, steps=2, t_start=500)

    def test_decode_needs_a_start_value(self, backend: str, sampler: Sampler) -> None:
        with pytest.raises(ArgumentError, match="decode needs a start value"):
            sampler.decode(label=1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, r"found no label, expected it: this bundle takes label int64\[batch\], style float32\[batch, 5\]"),
            ({"label": 11}, r"label runs from 11 to 11; expected values in 0 \.\. 10"),
            ({"label": -1}, r"label runs from -1 to -1"),
            ({"label": 1.0}, r"label has dtype float64; expected integers"),
            ({"label": [1, 2], "seed": [1, 2, 3]}, r"contradictory: seed says 3, label says 2"),
            ({"label": 1, "style": np.zeros((1, 4), np.float32)}, r"style has shape \[1, 4\]; expected float32 \[N, 5\]"),
            ({"label": 1, "t_start": 500}, r"t_start is 500, but this bundle's pipeline has no start value"),
            ({"label": 1, "lable": 2}, r"Did you mean 'label'\?"),
            ({"label": 1, "z": np.zeros((1, 4), np.float32)}, r"no option 'z', and this bundle has no such input"),
            ({"label": 1, "x_T": np.zeros((1, 3, 12, 16), np.float32)}, r"x_T has shape .* expected \[N, 4, 6, 8\]"),
        ],
    )
    def test_bad_input_is_refused(self, backend: str, sampler: Sampler, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            sampler.sample(**options)

@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encodes the state alone, draws no input, and decodes codes."""
    path = tmp_path_factory.mktemp("latent") / "latent.bundle"
    return build_family(path, encodes=["state_encoder"], draws=False, quantizes=True)


PHOTOS = np.random.default_rng(3).integers(0, 256, (3, *IMAGE[1:], IMAGE[0]), np.uint8)
STATES = Reference().encode_state(PHOTOS.transpose(0, 3, 1, 2) / 127.5 - 1)


@EACH_BACKEND
class TestEncodedState:
    def test_encode_and_reconstruct(self, backend: str, latent: Path) -> None:
        with Sampler(latent, backend, "f32", 1, max_batch=2) as sampler:
            encoded, batch = sampler.encode(PHOTOS), sampler.reconstruct(PHOTOS)
            for options, found in (({"steps": 3}, "steps"), ({"seed": 0, "label": 3}, "seed, label")):
                with pytest.raises(ArgumentError, match=rf"without a step between; expected no options, found {found}\."):
                    sampler.reconstruct(PHOTOS, **options)
        assert list(encoded) == ["x"]
        close(encoded["x"], STATES)
        close(batch.x, STATES)
        assert np.abs(batch.images.astype(int) - Reference().pixels(np.tanh(STATES))).max() <= 1
        assert (len(batch.timesteps), batch.setting.steps, batch.timings.chunks) == (0, 0, 2)

    def test_refine_starts_from_the_noised_state(self, backend: str, latent: Path) -> None:
        inputs, reference = given(), Reference()
        with Sampler(latent, backend, "f32", 1, max_batch=2) as sampler:
            batch = sampler.refine(PHOTOS, **inputs, steps=4, t_start=400, guidance=0.5)
            with pytest.raises(ArgumentError, match="refine: found no label, style, expected it"):
                sampler.refine(PHOTOS, t_start=400)
            with pytest.raises(ArgumentError, match=r"images has shape \[1, 6, 8, 4\] \(uint8\); expected uint8 \[N, 12"):
                sampler.refine(np.zeros((1, 6, 8, 4), np.uint8), t_start=400)
        a = reference.alpha_bar[400]
        start = np.sqrt(a) * STATES + np.sqrt(1 - a) * inputs["x_T"]
        del inputs["x_T"]
        assert batch.timesteps[0] == 400
        close(batch.x, reference.sample(batch.timesteps.tolist(), start, **inputs, guidance=0.5))

    def test_interpolate_walks_x_T_along_the_sphere(self, backend: str, latent: Path) -> None:
        style = given()["style"][:1]
        with Sampler(latent, backend, "f32", 1) as sampler:
            walk = sampler.interpolate(3, 8, 4, label=6, style=style, eta=0.5)
            ends = [sampler.sample(seed=3, label=6, style=style, eta=0.5, x_T=noises.initial(np.uint64([seed]), STATE)).x[0]
                    for seed in (3, 8)]  # fmt: skip
            path = sampler.path(3, noises.initial(np.uint64([8]), STATE), 3)
            with pytest.raises(ArgumentError, match="interpolate moves x_T from a to b; expected it not given too"):
                sampler.interpolate(3, 8, label=6, style=style, x_T=path["x_T"])
        close(walk.x[[0, -1]], np.stack(ends))
        np.testing.assert_array_equal(walk.seeds, [3] * 4)
        lengths = np.linalg.norm(path["x_T"].reshape(3, -1), axis=1)
        assert lengths[1] > 0.97 * lengths[[0, 2]].min(), "a straight line would lose three tenths of it"


def test_a_state_beside_an_input_is_where_reconstruction_starts(tmp_path: Path) -> None:
    path = build_family(tmp_path / "both.bundle", encodes=["image_encoder", "state_encoder"])
    x_T, reference = given()["x_T"], Reference()
    with Sampler(path, ANY_BACKEND, "f32", 1) as sampler:
        batch = sampler.reconstruct(PHOTOS, label=[1, 2, 3], x_T=x_T, steps=4)
    style, a = reference.encode(PHOTOS.transpose(0, 3, 1, 2) / 127.5 - 1), reference.alpha_bar[-1]
    close(batch.values["style"], style)
    start = np.sqrt(a) * STATES + np.sqrt(1 - a) * x_T
    close(batch.x, reference.sample(batch.timesteps.tolist(), start, np.array([1, 2, 3]), style))


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Families whose style is made of pictures: of a photo, and of a photo and a mask."""
    folder = tmp_path_factory.mktemp("pictured")
    kinds = {"photo": ["photo"], "masked": ["photo", "mask"]}
    return {kind: build_family(folder / kind, encodes=[], pictures=inputs) for kind, inputs in kinds.items()}


UNIT = PHOTOS.transpose(0, 3, 1, 2) / 255
HOLE = np.zeros(IMAGE[1:], bool)
HOLE[3:8, 4:10] = True


class TestPictures:
    def test_upscale_is_a_sample_of_the_picture(self, pictured: dict[str, Path]) -> None:
        reference, x_T = Reference(), given()["x_T"]
        with Sampler(pictured["photo"], ANY_BACKEND, "f32", 1, max_batch=2) as sampler:
            batch = sampler.upscale(PHOTOS, label=4, x_T=x_T, steps=4)
            same = [sampler.upscale(UNIT, label=4, x_T=x_T, steps=4)]
            same += [sampler.sample(photo=photo, label=4, x_T=x_T, steps=4) for photo in (PHOTOS, 2 * UNIT - 1)]
            assert sampler.sample(3, photo=PHOTOS[0], label=4).values["photo"].shape == (3, *IMAGE)
            sampler.warmup()
        close(batch.values["photo"], 2 * UNIT - 1)
        style = reference.encode(2 * UNIT - 1)
        close(batch.x, reference.sample(batch.timesteps.tolist(), x_T, np.full(3, 4), style, style_null=False))
        for other in same:
            close(other.x, batch.x)

    def test_a_mask_is_what_is_to_be_filled_in(self, pictured: dict[str, Path]) -> None:
        x_T, style = given()["x_T"], Reference().encode((2 * UNIT - 1) * ~HOLE)
        masks = [HOLE, HOLE[None], 255 * HOLE.astype(np.uint8), np.uint8(200) * HOLE[None, ..., None].astype(np.uint8),
                 HOLE[None, None].astype(np.float32)]  # fmt: skip
        with Sampler(pictured["masked"], ANY_BACKEND, "f32", 1) as sampler:
            batches = [sampler.sample(photo=PHOTOS, mask=mask, label=4, x_T=x_T, steps=4) for mask in masks]
        expected = Reference().sample(batches[0].timesteps.tolist(), x_T, np.full(3, 4), style, style_null=False)
        for batch in batches:
            close(batch.x, expected)
            np.testing.assert_array_equal(batch.values["mask"], np.broadcast_to(HOLE, (3, 1, *HOLE.shape)))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"photo": PHOTOS[:, :6]}, r"photo has shape \[3, 6, 16, 3\] \(uint8\); expected uint8 \[N, 12, 16, 3\], or "
             r"float32 \[N, 3, 12, 16\] or one sample \[3, 12, 16\] in \[-1, 1\], N > 0"),
            ({"photo": PHOTOS.astype(np.float32)}, r"photo has shape \[3, 12, 16, 3\]; expected uint8 \[N, 12, 16, 3\], or"),
            ({"photo": 255 * UNIT}, r"photo runs from .*; expected values in -1 .. 1"),
            ({"photo": np.full((1, *IMAGE), np.nan)}, "photo holds 576 values that are NaN"),
            ({"photo": PHOTOS > 3}, r"photo has shape .* \(bool\); expected uint8 \[N, 12, 16, 3\]"),
            ({"mask": HOLE[:6]}, r"mask has shape \[6, 16\] \(bool\); expected uint8 \[N, 12, 16, 1\], .* in \[0, 1\]"),
            ({"mask": PHOTOS}, r"mask has shape \[3, 12, 16, 3\] \(uint8\)"),
            ({"mask": HOLE.astype(np.uint8)}, "mask is uint8 with no value above 1; expected 0 and 255"),
            ({"mask": np.full((1, 1, 12, 16), 1.5)}, "mask runs from 1.5 to 1.5; expected values in 0 .. 1"),
            ({"mask": None}, r"found no mask, expected it: this bundle takes label int64\[batch\], photo"),
        ],
    )
    def test_bad_pictures_are_refused(self, pictured: dict[str, Path], changes: dict[str, Any], message: str) -> None:
        with Sampler(pictured["masked"], ANY_BACKEND, "f32", 1) as sampler, pytest.raises(ArgumentError, match=message):
            sampler.sample(**{"photo": PHOTOS, "mask": HOLE, "label": 4} | changes)

    def test_upscale_needs_one_picture(self, pictured: dict[str, Path]) -> None:
        both, one = (Sampler(pictured[kind], ANY_BACKEND, "f32", 1) for kind in ("masked", "photo"))
        with both as sampler, pytest.raises(ArgumentError, match="upscale needs exactly one input that is an image, and no"):
            sampler.upscale(PHOTOS, label=3)
        with one as sampler:
            with pytest.raises(ArgumentError, match=r"images has shape \[1, 3, 4, 3\] \(uint8\); expected uint8 \[N, 12"):
                sampler.upscale(PHOTOS[:1, :3, :4], label=3)
            with pytest.raises(ArgumentError, match="upscale takes photo from the images; expected none beside them"):
                sampler.upscale(PHOTOS, label=3, photo=PHOTOS)


def blended(timesteps: list[int], x: np.ndarray, keep: np.ndarray, noise: np.ndarray, **inputs: Any) -> np.ndarray:
    """The blended chain in float64, step by step, from x_T."""
    reference, x = Reference(), x.astype(np.float64)
    for i, t in enumerate(timesteps):
        a = reference.alpha_bar[t]
        x = keep * (np.sqrt(a) * STATES + np.sqrt(1 - a) * noise[i]) + (1 - keep) * x
        then = reference.alpha_bar[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
        with_inputs = reference.modulation(inputs["label"], inputs["style"])
        v = reference.denoise(x, *with_inputs, t)
        x0, eps = np.sqrt(a) * x - np.sqrt(1 - a) * v, np.sqrt(1 - a) * x + np.sqrt(a) * v
        x = np.sqrt(then) * x0 + np.sqrt(1 - then) * eps
    return x


class TestInpainting:
    @EACH_BACKEND
    def test_blends_what_is_known_before_each_step(self, backend: str, latent: Path) -> None:
        inputs, reference = given(), Reference()
        x_T = inputs.pop("x_T")
        noise = np.random.default_rng(9).standard_normal((4, 3, *STATE)).astype(np.float32)
        with Sampler(latent, backend, "f32", 1, max_batch=2) as sampler:
            batch = sampler.inpaint(PHOTOS, HOLE, known_noise=noise, x_T=x_T, steps=4, **inputs)
            raw = sampler.inpaint(PHOTOS, HOLE, known_noise=noise, x_T=x_T, steps=4, composite=False, **inputs)
        keep = 1 - HOLE[::2, ::2].astype(float)
        expected = blended(batch.timesteps.tolist(), x_T, keep, noise, **inputs)
        close(batch.x, expected)
        assert np.abs(raw.images.astype(int) - reference.pixels(np.tanh(expected))).max() <= 1
        np.testing.assert_array_equal(batch.images, np.where(HOLE[..., None], raw.images, PHOTOS))

    def test_a_sample_keeps_its_noise_in_any_batch_and_its_other_draws(self, latent: Path) -> None:
        inputs = {"label": 3, "style": given()["style"][:1], "steps": 4, "eta": 0.5}
        with Sampler(latent, ANY_BACKEND, "f32", 1) as sampler:
            batch = sampler.inpaint(PHOTOS, HOLE, seed=[7, 8, 9], **inputs)
            alone = sampler.inpaint(PHOTOS[1:2], HOLE, seed=8, **inputs)
            nothing_known = sampler.inpaint(PHOTOS, np.ones_like(HOLE), seed=[7, 8, 9], **inputs)
            plain = sampler.sample(seed=[7, 8, 9], **inputs)
            noise = np.stack([noises.known_noise(np.uint64([7, 8, 9]), row, STATE) for row in range(4)])
            given_noise = sampler.inpaint(PHOTOS, HOLE, seed=[7, 8, 9], known_noise=noise, **inputs)
        close(alone.x, batch.x[1:2])
        np.testing.assert_array_equal(nothing_known.x, plain.x)
        np.testing.assert_array_equal(given_noise.x, batch.x)
        assert not np.allclose(noise[0], noise[1])

    def test_a_network_that_takes_image_and_mask_is_handed_them(self, pictured: dict[str, Path]) -> None:
        options = {"label": 4, "seed": 3, "steps": 4}
        with Sampler(pictured["masked"], ANY_BACKEND, "f32", 1) as sampler:
            batch, sampled = sampler.inpaint(PHOTOS, HOLE, **options), sampler.sample(3, photo=PHOTOS, mask=HOLE, **options)
            with pytest.raises(ArgumentError, match="as photo and mask; expected no mask, known_noise beside them"):
                sampler.inpaint(PHOTOS, HOLE, label=4, mask=HOLE, known_noise=np.zeros((4, *STATE)))
        np.testing.assert_array_equal(batch.x, sampled.x)
        np.testing.assert_array_equal(batch.images, np.where(HOLE[..., None], sampled.images, PHOTOS))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"images": PHOTOS[:, :6]}, r"images has shape \[3, 6, 16, 3\] \(uint8\); expected uint8 \[N, 12, 16, 3\]"),
            ({"masks": HOLE[:6]}, r"masks has shape \[6, 16\] \(bool\); expected uint8 \[N, 12, 16, 1\], or float32"),
            ({"masks": np.repeat(HOLE[None], 2, 0)}, "contradictory: images says 3, masks says 2"),
            ({"masks": np.full((1, 1, 12, 16), np.nan)}, "masks holds 192 values that are NaN"),
            ({"masks": np.full((1, 1, 12, 16), -0.5)}, r"masks runs from -0.5 to -0.5; expected values in 0 .. 1"),
            ({"known_noise": np.zeros((3, *STATE))}, r"known_noise holds 3 steps; this run has 4"),
            ({"known_noise": np.zeros((4, 3, 8, 8))}, r"known_noise has shape .* expected \[steps, N, 4, 6, 8\]"),
            ({"label": None}, "inpaint: found no label, expected it"),
            ({"lable": 3}, "inpaint has no option 'lable'"),
        ],
    )
    def test_bad_holes_are_refused(self, latent: Path, changes: dict[str, Any], message: str) -> None:
        asked: dict[str, Any] = {"images": PHOTOS, "masks": HOLE, "label": 3, "style": given()["style"][:1], "steps": 4}
        with Sampler(latent, ANY_BACKEND, "f32", 1) as sampler, pytest.raises(ArgumentError, match=message):
            sampler.inpaint(**asked | changes)

    def test_a_bundle_without_a_way_says_so(self, family: Path) -> None:
        needed = "inpaint needs an image and a mask among its inputs, a state that is the image, or an encoder"
        with Sampler(family, ANY_BACKEND, "f32", 1) as sampler, pytest.raises(ArgumentError, match=needed):
            sampler.inpaint(PHOTOS, HOLE, label=3)


def test_its_pipeline_is_read_as_it_was_written(family: Path) -> None:
    manifest = Bundle.open(family).manifest
    pipeline = manifest.pipeline
    assert (pipeline.state.shape, pipeline.image_shape) == (STATE, IMAGE)
    assert (manifest.prediction, manifest.schedule.recipe, pipeline.state.clip) == ("v", "cosine", None)
    assert [spec.name for spec in manifest.inputs] == ["label", "style"]
    assert pipeline.guided
    assert all(pipeline.null_is_computed(value) for value in ("context", "scale", "shift"))
    np.testing.assert_allclose(manifest.schedule.schedule().alpha_bar, Reference().alpha_bar, rtol=1e-12)
