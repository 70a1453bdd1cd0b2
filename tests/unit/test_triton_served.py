"""The model that Triton runs: it answers each request as a lone Sampler would, whatever else is in the batch.

The server is a stand-in (tests/fake_triton.py); tests/triton_server talks to the real one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.backends.native.backend import Native
from engine.kernels import native_library
from engine.triton.serving import Serving
from tests import fake_triton, guided_toy, regularised_toy
from tests.fake_triton import Request, TritonError
from tests.manifests import edit
from tests.samplers import ANY_BACKEND, CountingGraph, watch_graph
from tests.toy_family import build_family
from tests.triton_models import Open, Served, floats, int32, ints, loading, lone, same, texts

INVALID, INTERNAL, CANCELLED = TritonError.INVALID_ARG, TritonError.INTERNAL, TritonError.CANCELLED


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Open]:
    with loading(tmp_path) as start:
        yield start


class TestAnswers:
    def test_a_seed_is_enough(self, served: Open) -> None:
        same(served().one(seed=ints(7)), lone(seed=7))

    def test_the_recorded_setting_applies(self, served: Open) -> None:
        same(served("recorded").one(seed=ints(3)), lone("recorded", seed=3))

    def test_every_option_means_what_it_means_to_a_sampler(self, served: Open) -> None:
        found = served().one(
            seed=ints(7),
            steps=int32(6),
            method=texts("ddim"),
            spacing=texts("linspace"),
            eta=floats(0.3),
            t_start=int32(450),
            temperature=floats(0.7),
            guidance=floats(-0.1),
        )
        # 0.3, 0.7 and -0.1 are no float32: what a client wrote is meant, not the nearest that travelled.
        options = {"steps": 6, "method": "ddim", "spacing": "linspace", "eta": 0.3}
        same(found, lone(seed=7, t_start=450, temperature=0.7, guidance=-0.1, **options))

    def test_a_given_latent(self, served: Open) -> None:
        z = np.random.default_rng(0).standard_normal((2, 4), np.float32)
        same(served().one(seed=ints(1, 2), z=z), lone(seed=[1, 2], z=z))

    @pytest.mark.parametrize(("sent", "meant"), [(-1, 2**64 - 1), (-(2**63), 2**63), (2**63 - 1, 2**63 - 1), (0, 0)])
    def test_a_negative_seed_is_its_two_s_complement(self, sent: int, meant: int, served: Open) -> None:
        same(served().one(seed=ints(sent)), lone(seed=meant))

    def test_only_what_was_asked_for_is_returned(self, served: Open) -> None:
        model, expected = served(), lone(seed=5)
        responses = model.answer(Request(["recon"], seed=ints(5)), Request(["z", "image"], seed=ints(5)))
        assert {name: array.tolist() for name, array in responses[0].arrays().items()} == {"recon": expected.start.tolist()}
        assert sorted(responses[1].arrays()) == ["image", "z"]

    def test_a_model_without_inputs(self, served: Open) -> None:
        found = served("uncond").answer(Request(["image"], seed=ints(4), steps=int32(5)))[0].arrays()
        np.testing.assert_array_equal(found["image"], lone("uncond", seed=4, steps=5).images)
        assert list(found) == ["image"]

    def test_an_input_that_the_server_s_owner_took_out(self, served: Open) -> None:
        config = fake_triton.as_json({"input": [{"name": "seed", "data_type": "TYPE_INT64", "dims": ["1"]}]})
        same(served(**config).one(seed=ints(7)), lone(seed=7))


@pytest.mark.skipif(not Native.available()[0], reason=f"native is {Native.available()[1]}")
class TestBitEquality:
    def test_a_sample_is_the_same_in_any_company(self, served: Open, native_bundle: Callable[..., Path]) -> None:
        path = native_bundle("form1", "bf16", "int8")
        model = served(path, Serving(max_batch=16, threads=2))
        requests = [
            Request(seed=ints(5)),
            Request(seed=ints(-3, 0, 9), steps=int32(4, 10, 4)),
            Request(seed=ints(11), steps=int32(4), guidance=floats(0.5)),
            Request(seed=ints(5), steps=int32(4), method=texts("ddpm")),
            Request(seed=ints(6), steps=int32(4), method=texts("ddpm")),
        ]
        first, second, third, fourth, fifth = (response.arrays() for response in model.answer(*requests))
        assert model.sampler.backend == "native"
        with Sampler(path, "native", threads=1) as sampler:
            same(first, sampler.sample(seed=5))
            for row, (seed, steps) in enumerate(((2**64 - 3, 4), (0, 10), (9, 4))):
                same({name: array[row : row + 1] for name, array in second.items()}, sampler.sample(seed=seed, steps=steps))
            same(third, sampler.sample(seed=11, steps=4, guidance=0.5))
            for found, seed in ((fourth, 5), (fifth, 6)):
                same(found, sampler.sample(seed=seed, steps=4, method="ddpm"))


    def test_a_native_run_stops(
        self, served: Open, native_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All steps are one call, which comes back between slices of its time."""
        monkeypatch.setattr(native_library, "SLICE_MS", 1e-3)
        monkeypatch.setattr(native_library, "_PATIENCE", 0.0)  # however long coming back takes, after every row
        path = native_bundle("form1", "bf16", "int8")
        model = served(path, Serving(max_batch=16, threads=2))
        code, _ = model.answer(Request(seed=ints(1), steps=int32(9), cancelled=Cancels(after=3)))[0].refusal()
        assert (code, model.sampler.backend) == (CANCELLED, "native")
        said = model.server.Logger.lines[-1]
        assert re.fullmatch(r"stopped after step \d of 9: every request of the run was cancelled", said), said
        with Sampler(path, "native", threads=1) as sampler:
            same(model.one(seed=ints(5)), sampler.sample(seed=5))


class TestGroups:
    def runs(self, model: Served, *requests: Request) -> list[int]:
        """The batch sizes that the denoiser saw, once a run."""
        counting: CountingGraph = watch_graph(model.sampler)
        model.answer(*requests)
        return counting.batches

    def test_equal_settings_run_together_across_requests(self, served: Open) -> None:
        requests = [Request(seed=ints(1), steps=int32(2)), Request(seed=ints(2, 3), steps=int32(2, 2))]
        assert self.runs(served(), *requests) == [3, 3]

    def test_what_a_client_leaves_out_equals_what_another_names(self, served: Open) -> None:
        plain, named = Request(seed=ints(1)), Request(seed=ints(2), steps=int32(10), spacing=texts("uniform"), eta=floats(0))
        assert self.runs(served(), plain, named) == [2] * 10

    def test_other_settings_run_apart(self, served: Open) -> None:
        one, two = Request(seed=ints(1), steps=int32(2)), Request(seed=ints(2), steps=int32(3))
        assert self.runs(served(), one, two) == [1] * 5

    def test_lists_are_as_for_the_sampler(self, served: Open) -> None:
        model, timesteps = served(), np.array([[400, 150, 25]], np.int32)
        lists = {"timesteps": timesteps, "t_start": int32(400), "eta": floats(1.0), "noise_scale": floats(0.84, 0.9, 1).T}
        expected = model.sampler.sample(seed=1, timesteps=timesteps[0], t_start=400, eta=1.0, noise_scale=[0.84, 0.9, 1])
        counting: CountingGraph = watch_graph(model.sampler)
        found = model.answer(Request(seed=ints(1), **lists), Request(seed=ints(1), **lists))
        assert counting.batches == [2] * 3
        for response in found:
            np.testing.assert_array_equal(response.arrays()["image"][0], expected.images[0])

    def test_samples_of_one_request_may_differ(self, served: Open) -> None:
        assert self.runs(served(), Request(seed=ints(1, 2, 3), steps=int32(2, 4, 2))) == [2, 2, 1, 1, 1, 1]

    def test_given_latents_run_apart_from_drawn_ones(self, served: Open) -> None:
        given = Request(seed=ints(1), steps=int32(2), z=np.zeros((1, 4), np.float32))
        assert self.runs(served(), given, Request(seed=ints(1), steps=int32(2))) == [1] * 4


class TestAnotherFamily:
    """A class label that must be given, a style that is drawn, a state that is decoded (tests/toy_family.py)."""

    OUTPUTS = ("image", "style")

    @pytest.fixture
    def model(self, served: Open, tmp_path: Path) -> Served:
        return served(build_family(tmp_path / "latents.bundle"))

    @pytest.fixture
    def sampler(self, tmp_path: Path) -> Iterator[Sampler]:
        with Sampler(build_family(tmp_path / "alone.bundle"), ANY_BACKEND, "f32", 1) as sampler:
            yield sampler

    def test_an_answer_is_the_samplers(self, model: Served, sampler: Sampler) -> None:
        request = Request(self.OUTPUTS, seed=ints(5, 6), label=ints(3, 10), guidance=floats(0.5, 0.5))
        found = model.answer(request)[0].arrays()
        expected = sampler.sample(seed=[5, 6], label=[3, 10], guidance=0.5)
        np.testing.assert_array_equal(found["image"], expected.images)
        np.testing.assert_array_equal(found["style"], expected.values["style"])

    def test_a_learned_variance(self, served: Open, tmp_path: Path) -> None:
        path = build_family(tmp_path / "learned.bundle", learned=True)
        edit(path, "defaults.method", "ddpm")
        found = served(path).one(seed=ints(5, 6), label=ints(3, 10), guidance=floats(0.5, 0.5))
        with Sampler(path, ANY_BACKEND, "f32", 1) as sampler:
            expected = sampler.sample(seed=[5, 6], label=[3, 10], guidance=0.5)
        assert (expected.setting.method, expected.setting.variance) == ("ddpm", "learned_range")
        np.testing.assert_array_equal(found["image"], expected.images)

    def test_labels_of_several_requests_run_together(self, model: Served, sampler: Sampler) -> None:
        counting = watch_graph(model.sampler)
        requests = [Request(["image"], seed=ints(i), label=ints(i), steps=int32(3)) for i in range(4)]
        responses = model.answer(*requests)
        assert counting.batches == [4] * 3
        batch = sampler.sample(seed=range(4), label=range(4), steps=3)
        for i, response in enumerate(responses):
            np.testing.assert_array_equal(response.arrays()["image"][0], batch.images[i])

    def test_a_given_style_runs_apart_from_drawn_ones(self, model: Served, sampler: Sampler) -> None:
        style = np.full((1, 5), 0.5, np.float32)
        counting = watch_graph(model.sampler)
        given = Request(self.OUTPUTS, seed=ints(1), label=ints(2), style=style, steps=int32(2))
        drawn = Request(self.OUTPUTS, seed=ints(1), label=ints(2), steps=int32(2))
        first, second = (response.arrays() for response in model.answer(given, drawn))
        assert counting.batches == [1] * 4
        np.testing.assert_array_equal(first["style"], style)
        np.testing.assert_array_equal(first["image"], sampler.sample(seed=1, label=2, style=style, steps=2).images)
        np.testing.assert_array_equal(second["style"], sampler.draw(seed=1)["style"])

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "label is missing; expected INT64 [1, 1], one row a seed"),
            ({"label": ints(11)}, "label runs from 11 to 11; expected values in 0 .. 10"),
            ({"label": ints(1, 2)}, "label is int64 [2, 1]; expected INT64 [1, 1], one row a seed"),
            ({"label": np.array([1])}, "label is int64 [1]; expected INT64 [1, 1]"),
            ({"label": int32(1)}, "label is int32 [1, 1]; expected INT64 [1, 1]"),
            ({"label": ints(1), "style": floats(1)}, "style is float32 [1, 1]; expected FP32 [1, 5]"),
        ],
    )
    def test_a_bad_input_fails_alone(self, model: Served, inputs: dict[str, np.ndarray], message: str) -> None:
        good = Request(["image"], seed=ints(1), label=ints(2), steps=int32(2))
        bad = Request(["image"], seed=ints(1), steps=int32(2), **inputs)
        responses = model.answer(bad, good)
        code, text = responses[0].refusal()
        assert (code, message in text) == (INVALID, True), text
        assert responses[1].arrays()["image"].shape == (1, 12, 16, 3)

    def test_a_regulariser(self, served: Open, tmp_path: Path) -> None:
        """Samples of other modes run apart, to the bits of a Sampler; what cannot be is the request's own mistake."""
        path = regularised_toy.build(tmp_path / "regularised.bundle")
        model = served(path)
        said = {"regularise": texts("after", "before"), "regularise_interval": np.array([[0, 700], [100, 999]], np.int32)}
        found = model.one(seed=ints(1, 2), steps=int32(4, 4), method=texts("ddpm", "ddpm"), **said)["image"]
        with Sampler(path, ANY_BACKEND, threads=1) as sampler:
            for i, (mode, interval) in enumerate([("after", (0, 700)), ("before", (100, 999))]):
                options = {"regularise": mode, "regularise_interval": interval, "method": "ddpm", "steps": 4}
                np.testing.assert_array_equal(found[i], sampler.sample(seed=1 + i, **options).images[0])
        code, text = model.refusal(seed=ints(3), regularise=texts("after"), method=texts("plms"))
        assert (code, "take a regulariser" in text) == (INVALID, True), text

    def test_guides(self, served: Open, tmp_path: Path) -> None:
        """Samples of other modes run apart; a label is asked for where a guide runs alone."""
        path = guided_toy.build(tmp_path / "guided.bundle", 2)
        model = served(path)
        modes = {"guide_mode": texts("norm", "entropy"), "guide_interval": np.array([[0, 700], [100, 999]], np.int32)}
        said = {"guide_scale": floats(1.5, 0.3), "method": texts("ddpm", "ddpm"), "steps": int32(4, 4)}
        found = model.one(seed=ints(1, 2), label=ints(2, 0), **said, **modes)["image"]
        with Sampler(path, ANY_BACKEND, threads=1) as sampler:
            for i, (mode, interval, scale) in enumerate([("norm", (0, 700), 1.5), ("entropy", (100, 999), 0.3)]):
                options: dict[str, Any] = {"guide_scale": scale, "method": "ddpm", "steps": 4}
                options |= {"guide_mode": mode, "guide_interval": interval, "label": (2, 0)[i]}
                np.testing.assert_array_equal(found[i], sampler.sample(seed=1 + i, **options).images[0])
            plain = sampler.sample(seed=3, guide_scale=0).images
        np.testing.assert_array_equal(model.one(seed=ints(3), guide_scale=floats(0))["image"], plain)
        code, text = model.refusal(seed=ints(3))
        assert (code, "found no label, expected it" in text) == (INVALID, True), text
        code, text = model.refusal(seed=ints(3), guide_scale=floats(1), method=texts("plms"), label=ints(1))
        assert (code, "only ddim_clipped and ddpm take a guide" in text) == (INVALID, True), text
        code, text = model.refusal(seed=ints(3), guide_mode=texts("loud"), label=ints(1))
        assert (code, "guide_mode is 'loud'; expected one of constant" in text) == (INVALID, True), text

    def test_a_configuration_without_the_label(self, served: Open, tmp_path: Path) -> None:
        config = {"input": [{"name": "seed", "data_type": "TYPE_INT64", "dims": [1]}]}
        with pytest.raises(fake_triton.TritonModelException, match=r"input 'label': found nothing, expected TYPE_INT64"):
            served(build_family(tmp_path / "latents.bundle"), **config)


BAD = {
    "steps 0": ({"steps": int32(0)}, "steps is 0; expected 1 .. 1000, the timesteps there are with T = 1000"),
    "negative steps": ({"steps": int32(-2)}, "steps is -2; expected 1 .. 1000"),
    "too many steps": ({"steps": int32(53)}, "steps is 53; this server takes 1 .. 50"),
    "too many calls": (
        {"steps": int32(50), "spacing": texts("linspace"), "method": texts("plms")},
        "steps is 50, 51 calls of the network; this server takes 1 .. 50",
    ),
    "steps that uniform spacing has not": ({"steps": int32(49), "spacing": texts("uniform")}, "which no whole stride gives"),
    "method": ({"method": texts("ddimm")}, "sde_dpmpp_2m, unipc_2, ipndm, plms. Did you mean 'ddim'?"),
    "empty method": ({"method": texts("")}, "method is ''; expected one of ddim, ddim_clipped"),
    "method that is no text": ({"method": texts(b"\xff\x00")}, r"method is '\\xff\x00'; expected one of"),
    "long method": ({"method": texts("d" * 5000)}, "method holds 5000 bytes; expected a name of at most 64"),
    "spacing": ({"spacing": texts("linspac")}, "Did you mean 'linspace'?"),
    "eta": ({"eta": floats(1.5)}, "eta is 1.5; expected a number in 0 .. 1"),
    "eta of other steps": ({"eta": floats(1.0, 0.5).T, "steps": int32(3)}, "eta lists 2 numbers; expected one, or 3"),
    "no eta": ({"eta": np.zeros((1, 0), np.float32)}, "eta lists 0 numbers; expected one"),
    "timesteps": ({"timesteps": int32(5, 5).T}, "timesteps[1] is 5 after 5; expected a smaller one"),
    "too many timesteps": ({"timesteps": np.arange(51, -1, -1, np.int32)[None]}, "steps is 52; this server takes 1 .. 50"),
    "noise scale": ({"noise_scale": floats(np.nan)}, "noise_scale is nan; expected a number of at least 0"),
    "eta with ddpm": ({"eta": floats(0.5), "method": texts("ddpm")}, "eta is 0.5 with method='ddpm'; only ddim and"),
    "guidance NaN": ({"guidance": floats(np.nan)}, "guidance is nan; expected a finite number"),
    "guidance inf": ({"guidance": floats(np.inf)}, "guidance is inf; expected a finite number"),
    "guidance interval": (
        {"guidance": floats(1), "guidance_interval": int32(700, 300).T}, "guidance_interval is (700, 300); expected two"
    ),
    "guidance interval alone": (
        {"guidance_interval": int32(0, 999).T}, "guidance_interval is (0, 999), but guidance is 0; expected guidance"
    ),
    "temperature": ({"temperature": floats(-1)}, "temperature is -1.0; expected a number of at least 0"),
    "t_start": ({"t_start": int32(1000)}, "t_start is 1000; expected a timestep in 0 .. 999"),
    "negative t_start": ({"t_start": int32(-1)}, "t_start is -1; expected a timestep in 0 .. 999"),
    "NaN z": ({"z": np.full((1, 4), np.nan, np.float32)}, "z holds 4 values that are NaN or infinite in float32"),
    "z shape": ({"z": np.zeros((1, 5), np.float32)}, r"z is float32 [1, 5]; expected FP32 [1, 4], one row a seed"),
    "z dtype": ({"z": np.zeros((1, 4), np.float64)}, r"z is float64 [1, 4]; expected FP32 [1, 4]"),
    "z of two": ({"z": np.zeros((2, 4), np.float32)}, r"z is float32 [2, 4]; expected FP32 [1, 4]"),
    "steps dtype": ({"steps": np.array([[3]], np.int64)}, r"steps is int64 [1, 1]; expected INT32 [1, 1]"),
    "seed dtype": ({"seed": np.array([[3]], np.int32)}, r"seed is int32 [1, 1]; expected INT64 [1, 1]"),
    "seed shape": ({"seed": np.array([3], np.int64)}, r"seed is int64 [1]; expected INT64 [1, 1]"),
    "no seeds": ({"seed": np.zeros((0, 1), np.int64)}, r"seed has shape [0, 1]; expected [n, 1] with n in 1 .. 8"),
    "too many seeds": ({"seed": ints(*range(9))}, r"seed has shape [9, 1]; expected [n, 1] with n in 1 .. 8"),
}


class TestBadRequests:
    @pytest.mark.parametrize(("inputs", "message"), BAD.values(), ids=BAD)
    def test_fails_alone_with_a_sentence(self, inputs: dict[str, np.ndarray], message: str, served: Open) -> None:
        good = lambda seed: Request(seed=ints(seed), steps=int32(2))  # noqa: E731
        first, bad, last = served().answer(good(1), Request(**{"seed": ints(9), **inputs}), good(2))
        code, text = bad.refusal()
        assert code == INVALID
        assert message in text
        same(first.arrays(), lone(seed=1, steps=2))
        same(last.arrays(), lone(seed=2, steps=2))

    def test_a_missing_seed(self, served: Open) -> None:
        assert served().refusal(steps=int32(3)) == (
            INVALID, "seed is missing; expected INT64 [n, 1], one a sample. Choose any number.",
        )  # fmt: skip

    def test_which_sample_of_several(self, served: Open) -> None:
        code, text = served().refusal(seed=ints(1, 2, 3), steps=int32(2, 0, 0))
        assert (code, text.partition(";")[0]) == (INVALID, "sample 1 of 3: steps is 0")

    @pytest.mark.parametrize(("name", "array"), [("guidance", floats(1)), ("t_start", int32(5)), ("z", floats(1))])
    def test_what_a_pipeline_has_no_use_for_is_not_even_looked_at(
        self, name: str, array: np.ndarray, served: Open
    ) -> None:
        """The server refuses these inputs by itself: they are not in config.pbtxt."""
        assert name not in {tensor.name for tensor in served("uncond").model._reader.inputs}
        assert array.shape == (1, 1)

    def test_a_latent_that_breaks_the_network_costs_only_its_own_request(self, served: Open) -> None:
        huge = np.full((1, 4), 3e38, np.float32)  # finite, but not their sum
        small = np.full((1, 4), 0.5, np.float32)
        model = served("zcond")
        asks = [Request(seed=ints(i), steps=int32(2), z=z) for i, z in enumerate((small, huge, small))]
        first, broken, last = model.answer(*asks)
        code, text = broken.refusal()
        assert code == INTERNAL
        assert "returned NaN or infinity" in text
        same(first.arrays(), lone("zcond", seed=0, steps=2, z=small))
        same(last.arrays(), lone("zcond", seed=2, steps=2, z=small))

    def test_a_failing_runtime_fails_every_request_of_the_run(self, served: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        from engine.errors import BackendError

        def broken(*_: Any, **__: Any) -> None:
            raise BackendError("the runtime fell over, expected it not to; look at its log")

        model = served()
        monkeypatch.setattr(model.sampler, "sample", broken)
        refusals = [response.refusal() for response in model.answer(Request(seed=ints(1)), Request(seed=ints(2)))]
        assert refusals == [(INTERNAL, "the runtime fell over, expected it not to; look at its log")] * 2


class Cancels:
    """A client that cancels at the k-th question; counts them."""

    def __init__(self, after: int) -> None:
        self.after, self.asked = after, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.after


class TestCancellation:
    def test_a_run_that_no_client_waits_for_stops_between_steps(self, served: Open) -> None:
        model = served()
        counting = watch_graph(model.sampler)
        gone = Cancels(after=3)  # asked before the first step and after each: so after the third
        code, text = model.answer(Request(seed=ints(1), cancelled=gone))[0].refusal()
        assert (code, counting.calls) == (CANCELLED, 3)
        assert text.startswith("The client cancelled this request")
        assert model.server.Logger.lines[-1] == "stopped after step 3 of 10: every request of the run was cancelled"
        same(model.one(seed=ints(1)), lone(seed=1))

    def test_the_others_get_their_images(self, served: Open) -> None:
        model = served()
        counting = watch_graph(model.sampler)
        responses = model.answer(Request(seed=ints(1), cancelled=Cancels(after=2)), Request(seed=ints(2)))
        assert counting.calls == 10
        assert responses[0].refusal()[0] == CANCELLED
        same(responses[1].arrays(), lone(seed=[1, 2]), slice(1, 2))

    def test_a_run_that_was_cancelled_in_the_queue_never_starts(self, served: Open) -> None:
        model = served()
        counting = watch_graph(model.sampler)
        responses = model.answer(*(Request(seed=ints(i), cancelled=Cancels(0)) for i in range(3)))
        assert [response.refusal()[0] for response in responses] == [CANCELLED] * 3
        assert counting.calls == 0

    def test_one_question_a_step(self, served: Open) -> None:
        clients = [Cancels(after=1000) for _ in range(4)]
        served().answer(*(Request(seed=ints(i), cancelled=client) for i, client in enumerate(clients)))
        assert [client.asked for client in clients] == [10, 0, 0, 0]


class TestMetrics:
    def test_how_requests_ended_and_how_many_runs_they_took(self, served: Open) -> None:
        model = served("zcond")
        z = np.zeros((1, 4), np.float32)
        model.answer(
            Request(seed=ints(1), steps=int32(2), z=z),
            Request(seed=ints(2), steps=int32(2), z=z),
            Request(seed=ints(3), steps=int32(0)),
            Request(seed=ints(4), cancelled=Cancels(0)),
        )
        model.answer(Request(seed=ints(5), steps=int32(2), z=z + np.float32(3e38)))
        requests, runs, _ = model.model._metrics._families
        assert (requests.name, runs.name) == ("diffusevae_requests_total", "diffusevae_runs_total")
        assert {labels: metric.value for labels, metric in requests.metrics.items()} == {
            ("toy", "1", "ok"): 2, ("toy", "1", "refused"): 1, ("toy", "1", "cancelled"): 1, ("toy", "1", "late"): 0,
            ("toy", "1", "failed"): 1,
        }  # fmt: skip
        assert {labels: metric.value for labels, metric in runs.metrics.items()} == {("toy", "1"): 2}
