"""The Sampler against the formulas; a sample is its own in any batch, order, chunk and backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import kernels
from engine.backends import available
from engine.sampler import Sampler
from engine.solver import noise as noises
from tests import toy
from tests.samplers import ANY_BACKEND, EACH_BACKEND, SIZE, Z_DIM, T, open_toy, watch_graph

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, T))
SHAPE = (3, SIZE, SIZE)
CLOSE = 2e-4  # float32 chains of ten steps against float64


def decode(z: np.ndarray) -> np.ndarray:
    """The decoder of tests/toy.py restated in float64, as the condition in [-1, 1]."""
    weights = np.random.default_rng(2).standard_normal((Z_DIM, 3 * SIZE**2)).astype(np.float32)
    return 2 / (1 + np.exp(-(z.astype(np.float64) @ weights))).reshape(-1, *SHAPE) - 1


def ddim(
    x: np.ndarray,
    cond: np.ndarray | float,
    timesteps: list[int],
    *,
    guidance: float = 0.0,
    centre: np.ndarray | float = 0.0,
    z_term: np.ndarray | float = 0.0,
) -> np.ndarray:
    """DDIM (Song et al. 2021, eq. 12, eta 0) on the toy denoiser, in float64; `centre` is formulation 2's cond."""
    x = np.array(x, np.float64)
    for t, before in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, a_before = ALPHA_BAR[t], 1.0 if before is None else ALPHA_BAR[before]
        without = 0.1 * x + 3.5 * t / 6000
        with_cond = without + 0.2 * cond + z_term
        eps = with_cond + guidance * (with_cond - without)
        x0 = np.clip((x - centre - np.sqrt(1 - a) * eps) / np.sqrt(a), -1, 1)
        x = np.sqrt(a_before) * x0 + np.sqrt(1 - a_before) * eps + (0.0 if before is None else centre)
    return x


def seeded(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """z and x_T of seeds seed .. seed + n - 1."""
    seeds = noises.resolve_seeds(seed, n)
    return noises.drawn(seeds, (Z_DIM,)), noises.initial(seeds, SHAPE)


@EACH_BACKEND
class TestAgainstTheFormulas:
    def test_formulation_1_is_ddim_conditioned_on_the_reconstruction(self, backend: str) -> None:
        z, x_T = seeded(3)
        with open_toy("form1", backend) as sampler:
            batch = sampler.sample(3, seed=0)
        expected = ddim(x_T, decode(z), list(range(900, -1, -100)))
        np.testing.assert_allclose(batch.x, expected, atol=CLOSE)
        np.testing.assert_array_equal(batch.values["z"], z)
        np.testing.assert_array_equal(batch.timesteps, range(900, -1, -100))
        assert batch.start is not None
        assert np.abs(batch.start.transpose(0, 3, 1, 2) - (decode(z) + 1) * 127.5).max() <= 0.51, "rounded to nearest"
        np.testing.assert_array_equal(batch.images, kernels.to_uint8(batch.x))

    def test_formulation_2_starts_from_the_condition_and_drops_it_in_the_end(self, backend: str) -> None:
        z, x_T = seeded(2)
        cond = decode(z)
        with open_toy("form2", backend) as sampler:
            batch = sampler.sample(2, seed=0, temperature=0.5)
        expected = ddim(cond + 0.5 * x_T, cond, list(range(900, -1, -100)), centre=cond)
        np.testing.assert_allclose(batch.x, expected, atol=CLOSE)

    def test_unconditional_is_plain_ddim(self, backend: str) -> None:
        _, x_T = seeded(2)
        with open_toy("uncond", backend) as sampler:
            batch = sampler.sample(2, seed=0)
        np.testing.assert_allclose(batch.x, ddim(x_T, 0.0, list(range(900, -1, -100))), atol=CLOSE)
        assert (batch.values, batch.start) == ({}, None)

    @pytest.mark.parametrize("kind", ["form1", "form2"])
    def test_t_start_begins_at_the_noised_reconstruction(self, backend: str, kind: str) -> None:
        z, x_T = seeded(2)
        cond = decode(z)
        centre = cond if kind == "form2" else 0.0
        with open_toy(kind, backend) as sampler:
            batch = sampler.sample(2, seed=0, steps=4, t_start=450)
        start = np.sqrt(ALPHA_BAR[450]) * cond + np.sqrt(1 - ALPHA_BAR[450]) * x_T + centre
        np.testing.assert_allclose(batch.x, ddim(start, cond, [450, 300, 150, 0], centre=centre), atol=CLOSE)

    @pytest.mark.parametrize("kind", ["form1", "zcond"])
    @pytest.mark.parametrize("n", [3, 20])
    def test_guidance_folded_and_in_two_calls(self, backend: str, kind: str, n: int) -> None:
        z, x_T = seeded(n)
        z_term = 0.01 * z.mean(axis=1).reshape(-1, 1, 1, 1) if kind == "zcond" else 0.0
        with open_toy(kind, backend) as sampler:
            denoiser = watch_graph(sampler)
            batch = sampler.sample(n, seed=0, guidance=0.7)
        expected = ddim(x_T, decode(z), list(range(900, -1, -100)), guidance=0.7, z_term=z_term)
        np.testing.assert_allclose(batch.x, expected, atol=CLOSE)
        assert denoiser.batches == ([2 * n] * 10 if n == 3 else [n] * 20)
        assert batch.timings.network_calls == denoiser.calls

    def test_reconstruct_starts_from_the_noised_image(self, backend: str) -> None:
        pixels = np.random.default_rng(5).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
        _, x_T = seeded(2)
        with open_toy("form1", backend) as sampler:
            encoded = sampler.encode(pixels)
            mu, logvar = encoded["z"], encoded["z_logvar"]
            batch = sampler.reconstruct(pixels, seed=0)
            short = sampler.reconstruct(pixels, seed=0, steps=3, t_start=400)
        image = pixels.transpose(0, 3, 1, 2) / 127.5 - 1
        for found, t, timesteps in ((batch, 999, list(range(900, -1, -100))), (short, 400, [400, 200, 0])):
            start = np.sqrt(ALPHA_BAR[t]) * image + np.sqrt(1 - ALPHA_BAR[t]) * x_T
            np.testing.assert_allclose(found.x, ddim(start, decode(mu), timesteps), atol=CLOSE)
        np.testing.assert_array_equal(batch.values["z"], mu)
        assert logvar.shape == mu.shape == (2, Z_DIM)

    def test_refine_takes_the_image_itself_as_condition(self, backend: str) -> None:
        pixels = np.random.default_rng(6).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
        image = pixels.transpose(0, 3, 1, 2) / 127.5 - 1
        _, x_T = seeded(2)
        with open_toy("form1", backend) as sampler:
            decoder = watch_graph(sampler, "vae_decoder")
            batch = sampler.refine(pixels, seed=0)
            short = sampler.refine(pixels, seed=0, steps=2, t_start=300)
        np.testing.assert_allclose(batch.x, ddim(x_T, image, list(range(900, -1, -100))), atol=CLOSE)
        start = np.sqrt(ALPHA_BAR[300]) * image + np.sqrt(1 - ALPHA_BAR[300]) * x_T
        np.testing.assert_allclose(short.x, ddim(start, image, [300, 0]), atol=CLOSE)
        np.testing.assert_array_equal(batch.start, pixels)
        assert "z" not in batch.values
        assert decoder.calls == 0, "refine needs no decoder"

    def test_refine_without_a_start_value_only_starts_from_the_image(self, backend: str) -> None:
        image = np.random.default_rng(7).random((1, *SHAPE))
        _, x_T = seeded(1)
        with open_toy("uncond", backend) as sampler:
            batch = sampler.refine(image, seed=0, steps=2, t_start=300)
        start = np.sqrt(ALPHA_BAR[300]) * (2 * image - 1) + np.sqrt(1 - ALPHA_BAR[300]) * x_T
        np.testing.assert_allclose(batch.x, ddim(start, 0.0, [300, 0]), atol=CLOSE)


class TestNoise:
    @EACH_BACKEND
    @pytest.mark.parametrize("kind", ["form1", "zcond", "uncond"])
    def test_a_sample_is_the_same_in_any_batch_order_and_chunk(self, backend: str, kind: str) -> None:
        seeds = [0, 2**32 - 1, 2**63, 7, 2**64 - 1]
        options: dict[str, Any] = {"method": "ddpm", "steps": 5}
        with open_toy(kind, backend) as sampler, open_toy(kind, backend, max_batch=2) as chunked:
            whole = sampler.sample(seed=seeds, **options)
            turned = sampler.sample(seed=seeds[::-1], **options)
            alone = sampler.sample(seed=seeds[2], **options)
            pieces = chunked.sample(seed=seeds, **options)
        np.testing.assert_array_equal(whole.seeds, np.array(seeds, np.uint64))
        if kind != "uncond":
            np.testing.assert_array_equal(whole.values["z"][2], alone.values["z"][0])
            np.testing.assert_array_equal(whole.values["z"], pieces.values["z"])
        # The noise is equal to the bit; a runtime may sum in another order for another batch size.
        np.testing.assert_allclose(turned.x[::-1], whole.x, atol=1e-5)
        np.testing.assert_allclose(alone.x[0], whole.x[2], atol=1e-5)
        np.testing.assert_allclose(pieces.x, whole.x, atol=1e-5)
        assert pieces.timings.chunks == 3

    @pytest.mark.skipif(not all(there for there, _ in available().values()), reason="needs every backend installed")
    def test_backends_agree(self) -> None:
        results = []
        for backend in available():
            with open_toy("form1", backend) as sampler:
                results.append(sampler.sample(4, seed=3, method="ddpm", steps=10))
        first, *others = results
        for other in others:
            np.testing.assert_array_equal(other.values["z"], first.values["z"])
            np.testing.assert_allclose(other.x, first.x, atol=1e-5)

    def test_seed_i_is_seed_plus_i_and_none_is_reported(self) -> None:
        with open_toy() as sampler:
            batch = sampler.sample(3, seed=2**64 - 2)
            np.testing.assert_array_equal(batch.seeds, np.array([2**64 - 2, 2**64 - 1, 0], np.uint64))
            drawn = sampler.sample(2)
            again = sampler.sample(seed=[int(seed) for seed in drawn.seeds])
            other = sampler.sample(2)
        np.testing.assert_array_equal(drawn.images, again.images)
        assert not np.array_equal(drawn.seeds, other.seeds)

    def test_given_arrays_take_the_place_of_drawn_ones(self) -> None:
        z, x_T = seeded(3)
        seeds = noises.resolve_seeds(0, 3)
        steps = np.stack([noises.step_noise(seeds, i, SHAPE) for i in range(5)])
        options: dict[str, Any] = {"method": "ddpm", "steps": 5}
        with open_toy() as sampler, open_toy(max_batch=2) as chunked:
            drawn = sampler.sample(3, seed=0, **options)
            for one in (sampler, chunked):
                given = one.sample(
                    z=z[:, :, None, None].astype(np.float64), x_T=x_T, noise=steps.astype(np.float64), seed=99, **options
                )
                np.testing.assert_allclose(given.x, drawn.x, atol=1e-6)
            np.testing.assert_array_equal(sampler.sample(z=z, x_T=x_T, seed=0, **options).x, drawn.x)

    def test_noise_and_x_T_can_be_shared_by_the_batch(self) -> None:
        z, x_T = seeded(3)
        steps = np.random.default_rng(1).standard_normal((5, *SHAPE))
        options: dict[str, Any] = {"method": "ddpm", "steps": 5, "z": z}
        with open_toy(max_batch=2) as sampler:
            shared = sampler.sample(x_T=x_T[:1], noise=steps, **options)
            spelt = sampler.sample(x_T=np.repeat(x_T[:1], 3, 0), noise=np.repeat(steps[:, None], 3, 1), **options)
        np.testing.assert_array_equal(shared.x, spelt.x)


class TestInterpolate:
    def test_ends_are_the_seeds_own_latents_and_the_noise_is_shared(self) -> None:
        with open_toy() as sampler:
            path = sampler.interpolate(3, 8, 5)
            first = sampler.sample(seed=3)
            last = sampler.sample(seed=8)
        np.testing.assert_allclose(path.x[0], first.x[0], atol=1e-5)
        z, first_z, last_z = (batch.values["z"] for batch in (path, first, last))
        np.testing.assert_allclose(z[4], last_z[0], atol=1e-6)
        np.testing.assert_allclose(z[2], (first_z[0] + last_z[0]) / 2, atol=1e-6)
        assert set(path.seeds.tolist()) == {3}

    def test_latents_and_the_arc(self) -> None:
        a, b = np.array([2.0, 0, 0, 0]), np.array([0, 2.0, 0, 0])
        with open_toy() as sampler:
            arc = sampler.interpolate(a, b, 3, mode="slerp", seed=1)
            same = sampler.interpolate(a, a, 2, mode="slerp", seed=1)
        np.testing.assert_allclose(arc.values["z"][1], [np.sqrt(2), np.sqrt(2), 0, 0], atol=1e-6)
        np.testing.assert_allclose(same.values["z"], [a, a], atol=1e-6)
        with open_toy() as sampler, pytest.raises(ValueError, match=r"mode is 'slrp'; .*Did you mean 'slerp'"):
            sampler.interpolate(a, b, mode="slrp")


class TestSetting:
    def test_the_recorded_setting_applies_whole_or_not_at_all(self) -> None:
        with open_toy("recorded") as sampler:
            recorded = sampler.sample(seed=0).setting
            warmer = sampler.sample(seed=0, temperature=1.5).setting
            named = sampler.sample(seed=0, method="ddpm").setting
            counted = sampler.sample(seed=0, steps=10)
        assert (recorded.steps, recorded.t_start, recorded.temperature, recorded.guidance) == (4, 450, 0.8, 0.25)
        assert (warmer.t_start, warmer.temperature, warmer.guidance) == (450, 1.5, 0.25)
        assert (named.steps, named.t_start, named.temperature, named.guidance) == (4, None, 1.0, 0.0)
        np.testing.assert_array_equal(counted.timesteps, range(900, -1, -100))

    def test_a_setting_of_lists_is_run_reported_and_recorded(self, tmp_path: Path) -> None:
        setting: dict[str, Any] = {
            "timesteps": (400, 150, 25), "t_start": 400, "eta": (1.0, 1.0, 0.0), "noise_scale": (0.84, 0.5, 1.0),
            "eps_scale": 1.02,
        }  # fmt: skip
        noise = np.random.default_rng(0).standard_normal((3, 1, 3, 8, 8))
        louder = noise * np.reshape(setting["noise_scale"], (3, 1, 1, 1, 1))
        with open_toy() as sampler:
            found = sampler.sample(seed=0, **setting)
            given = sampler.sample(seed=0, noise=noise, **setting)
            plain = sampler.sample(seed=0, noise=louder, **setting | {"noise_scale": 1.0})
            images = sampler.sample(2, seed=0).images
            start = sampler.reconstruct(images, seed=0, timesteps=[400, 150, 25])
            same = sampler.reconstruct(images, seed=0, timesteps=[400, 150, 25], t_start=400)
        np.testing.assert_array_equal(found.timesteps, [400, 150, 25])
        assert {name: getattr(found.setting, name) for name in ("steps", "spacing", *setting)} == {
            "steps": 3, "spacing": None, **setting,
        }  # fmt: skip
        np.testing.assert_allclose(given.x, plain.x, atol=1e-5)
        np.testing.assert_array_equal(start.x, same.x)
        defaults = {"steps": 3, "spacing": None, **setting}
        path = toy.build_bundle(tmp_path / "lists.bundle", defaults=defaults)
        with Sampler(path, ANY_BACKEND, threads=1) as sampler:
            recorded, quieter = sampler.sample(seed=0), sampler.sample(seed=0, noise_scale=[0.5] * 3).setting
            counted = sampler.sample(seed=0, steps=4).setting
        np.testing.assert_array_equal(recorded.x, found.x)
        assert recorded.setting == found.setting
        assert (quieter.timesteps, quieter.noise_scale) == (setting["timesteps"], (0.5, 0.5, 0.5))
        assert (counted.timesteps, counted.noise_scale, counted.eta) == (None, 1.0, 0.0)

    def test_steps_changed_between_calls_take_effect(self) -> None:
        with open_toy() as sampler:
            denoiser = watch_graph(sampler)
            for steps in (10, 5, 25, 10):
                before = denoiser.calls
                assert len(sampler.sample(seed=0, steps=steps).timesteps) == steps
                assert denoiser.calls - before == steps

    def test_results_are_the_callers_own(self) -> None:
        with open_toy() as sampler:
            first = sampler.sample(2, seed=0)
            kept = first.x.copy(), first.images.copy(), first.values["z"].copy()
            sampler.sample(2, seed=50)
            np.testing.assert_array_equal(first.x, kept[0])
            np.testing.assert_array_equal(first.images, kept[1])
            np.testing.assert_array_equal(first.values["z"], kept[2])
            first.x[:] = np.nan
            np.testing.assert_array_equal(sampler.sample(2, seed=0).x, kept[0])

    def test_decode_and_warmup(self) -> None:
        with open_toy() as sampler:
            sampler.warmup(2)
            batch = sampler.sample(2, seed=0)
            np.testing.assert_array_equal(sampler.decode(batch.values["z"]), batch.start)

    def test_timings_cover_the_run(self) -> None:
        with open_toy(max_batch=2) as sampler:
            timings = sampler.sample(3, seed=0).timings
        names = ("before_ms", "rows_ms", "noise_ms", "network_ms", "update_ms", "post_ms")
        stages = [getattr(timings, name) for name in names]
        assert all(stage > 0 for stage in stages)
        assert sum(stages) <= timings.total_ms
        assert len(timings.other_steps_ms) == 9
        assert timings.network_calls == 20
        assert timings.as_dict()["network_ms"] == timings.network_ms
