"""A cascade behind Triton: what the repository holds, its tensors, and Python's bits; against the stand-in for a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Bundle, Cascade, CascadeError
from engine.cascade import CascadeBatch
from engine.serving.warm import warm_up
from engine.stages import name_next
from engine.triton.repository import RepositoryError, write_repository
from engine.triton.serving import Serving, settle
from engine.triton.tensors import inputs_of, outputs_of
from tests import toy
from tests.fake_triton import Request, TritonError
from tests.manifests import edit
from tests.samplers import ANY_BACKEND
from tests.toy_family import build_family
from tests.triton_models import CHOSEN, Open, floats, int32, ints, loading
from tests.unit.test_text import VOCABULARY

BOTH = ["image", "image_1"]
LABEL: dict[str, Any] = {"name": "label", "dtype": "int64", "shape": ["batch"], "draw": None, "picture": None}


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A bundle of 8 x 8 images that names one of 12 x 16, which is told the noise level."""
    toy.build_bundle(tmp_path / "low.bundle")
    build_family(tmp_path / "high.bundle", pictures=("photo",), encodes=("state_encoder",), level="int64")
    name_next(tmp_path / "low.bundle", tmp_path / "high.bundle", steps=4, noise_level=30)
    return tmp_path / "low.bundle"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Open]:
    with loading(tmp_path) as start:
        yield start


def alone(first: Path, **options: Any) -> Any:
    with Cascade(first, ANY_BACKEND, "f32", 1) as cascade:
        return cascade.sample(**options)


def test_its_tensors_are_those_of_the_stages(first: Path) -> None:
    low, high = Bundle.open(first).manifest, Bundle.open(first.with_name("high.bundle")).manifest
    inputs = {tensor.name: tensor for tensor in inputs_of(low, [high])}
    assert {"seed", "z", "label", "steps", "t_start", "steps_2", "noise_level_2", "guidance_2"} < set(inputs)
    assert not {"photo", "level", "budget_ms", "t_start_2"} & set(inputs), "a stage that takes a picture starts from noise"
    assert not inputs["label"].optional
    outputs = {tensor.name: tensor.dims for tensor in outputs_of(low, False, [high])}
    assert outputs == {"image": (12, 16, 3), "image_1": (8, 8, 3)}


def test_requests_have_the_bits_of_python(first: Path, served: Open) -> None:
    model = served(first)
    found = model.one(seed=ints(7, 9), label=ints(3, 4), outputs=BOTH)
    batch = alone(first, seed=[7, 9], label=[3, 4])
    np.testing.assert_array_equal(found["image"], batch.images)
    np.testing.assert_array_equal(found["image_1"], batch.stages[0].images)
    found = model.one(
        seed=ints(7), label=ints(3), steps=int32(5), steps_2=int32(3), noise_level_2=int32(100), guidance_2=floats(0.5)
    )
    later = {"steps": 3, "noise_level": 100, "guidance": 0.5}
    batch = alone(first, seed=[7], label=[3], steps=5, stages=[later])
    np.testing.assert_array_equal(found["image"], batch.images)
    z = np.random.default_rng(1).standard_normal((1, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        model.one(seed=ints(7), label=ints(3), z=z)["image"], alone(first, seed=[7], label=[3], z=z).images
    )


def test_several_clients_run_together_and_a_low_image_is_optional(first: Path, served: Open) -> None:
    model = served(first)
    requests = [
        Request(seed=ints(1), label=ints(3), outputs=["image"]), Request(seed=ints(2, 3), label=ints(5, 6), outputs=BOTH),
        Request(seed=ints(4), label=ints(3), steps_2=int32(2)),
    ]  # fmt: skip
    found = [answer.arrays() for answer in model.answer(*requests)]
    batch = alone(first, seed=[1, 2, 3], label=[3, 5, 6])
    assert set(found[0]) == {"image"}
    np.testing.assert_array_equal(found[0]["image"], batch.images[:1])
    np.testing.assert_array_equal(found[1]["image_1"], batch.stages[0].images[1:])
    other = alone(first, seed=[4], label=[3], stages=[{"steps": 2}])
    np.testing.assert_array_equal(found[2]["image"], other.images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_level_2": int32(1000)}, r"stage 2: noise_level is 1000; expected 0 \(none\) .. 999"),
        ({"steps_2": int32(53)}, "this server takes 1 .. 50"),
        ({"steps_2": int32(0)}, "steps"),
        ({"label": ints(11)}, "label runs from 11 to 11"),
    ],
)
def test_bad_options_of_a_stage_are_refused(given: dict[str, Any], message: str, first: Path, served: Open) -> None:
    code, text = served(first).refusal(**{"seed": ints(1), "label": ints(2), **given})
    assert code == TritonError.INVALID_ARG
    assert re.search(message, text), text


def test_an_input_has_the_range_of_all_stages(first: Path, served: Open) -> None:
    """A label for the first stage alone is its client's mistake, not that of a request it would run with."""
    build_family(first, encodes=("state_encoder",))
    name_next(first, first.with_name("high.bundle"))
    edit(first.with_name("high.bundle"), "inputs.0", {**LABEL, "range": [0, 4], "null": 4})
    requests = [Request(seed=ints(1), label=ints(3)), Request(seed=ints(2), label=ints(7))]
    good, bad = served(first).answer(*requests)
    np.testing.assert_array_equal(good.arrays()["image"], alone(first, seed=[1], label=[3]).images)
    assert "label runs from 7 to 7; expected values in 0 .. 4" in bad.refusal()[1]


def test_the_repository_holds_every_stage(first: Path, tmp_path: Path) -> None:
    written = write_repository(first, tmp_path / "repo", CHOSEN)
    version = written.model / "1"
    assert sorted(path.name for path in version.iterdir()) == ["bundle", "high.bundle", "model.py"]
    assert written.graph is None
    with Cascade(version / "bundle", ANY_BACKEND, "f32", 1) as copy:
        assert copy.sample(1, seed=3, label=1).x.tobytes() == alone(first, n=1, seed=3, label=1).x.tobytes()
    with pytest.raises(ArgumentError, match="previews: found them for a cascade"):
        write_repository(first, tmp_path / "other", Serving(previews=True, backend=ANY_BACKEND))


def test_stages_that_cannot_be_served_are_refused(first: Path, tmp_path: Path) -> None:
    high = first.with_name("high.bundle")
    high.rename(first.with_name("bundle"))
    name_next(first, first.with_name("bundle"))
    with pytest.raises(RepositoryError, match="found a bundle of this name as a stage after the first"):
        write_repository(first, tmp_path / "repo", CHOSEN)
    edit(first.with_name("bundle"), "source.sha256", "1" * 64)
    with pytest.raises(CascadeError, match="found a bundle of the checkpoint"):
        write_repository(first, tmp_path / "repo", CHOSEN)
    assert not (tmp_path / "repo").exists()


def test_the_most_steps_are_those_of_all_stages(first: Path) -> None:
    low, high = (Bundle.open(path) for path in (first, first.with_name("high.bundle")))
    assert settle(low, CHOSEN, [high]).max_steps == 50
    name_next(first, high.path, steps=125)
    low = Bundle.open(first)
    assert settle(low, Serving(backend=ANY_BACKEND), [high]).max_steps == 125
    with pytest.raises(ArgumentError, match="max_steps: found 50, expected 125"):
        settle(low, CHOSEN, [high])


def test_a_stage_from_an_image_has_a_recorded_start(tmp_path: Path) -> None:
    toy.build_bundle(tmp_path / "low.bundle")
    high = build_family(tmp_path / "high.bundle", encodes=("state_encoder",))
    name_next(tmp_path / "low.bundle", high, steps=4)
    with pytest.raises(ArgumentError, match=r"records no t_start for high\.bundle.*--t-start 400"):
        write_repository(tmp_path / "low.bundle", tmp_path / "repo", CHOSEN)
    assert not (tmp_path / "repo").exists()
    name_next(tmp_path / "low.bundle", high, steps=4, t_start=300)
    assert write_repository(tmp_path / "low.bundle", tmp_path / "repo", CHOSEN).settled.max_steps == 50


def test_a_request_that_drops_the_start_is_refused_before_any_stage_runs(tmp_path: Path, served: Open) -> None:
    toy.build_bundle(tmp_path / "low.bundle")
    high = build_family(tmp_path / "high.bundle", encodes=("state_encoder",))
    edit(high, "defaults.t_start", 300)
    edit(high, "defaults.spacing", "linspace")
    name_next(tmp_path / "low.bundle", high)
    model = served(tmp_path / "low.bundle")
    assert model.one(seed=ints(1), label=ints(2), steps_2=int32(3), t_start_2=int32(200))["image"].shape == (1, 12, 16, 3)
    text = model.refusal(seed=ints(1), label=ints(2), steps_2=int32(3))[1]
    assert re.search("^stage 2: .*found no t_start", text), text


@pytest.mark.parametrize("starts", [False, True])
def test_a_warm_up_at_the_largest_batch_is_of_one_step(first: Path, starts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if starts:
        build_family(first.with_name("high.bundle"), encodes=("state_encoder",))
        name_next(first, first.with_name("high.bundle"), steps=4, t_start=300, guidance=0.5)
    batches: list[CascadeBatch] = []
    with Cascade(first, ANY_BACKEND, "f32", 1) as cascade:
        sample = cascade.sample
        monkeypatch.setattr(cascade, "sample", lambda *given, **options: batches.append(sample(*given, **options)))
        warm_up(cascade, 3, pytest.fail)
    assert [(len(batch), [len(one.timesteps) for one in batch.stages]) for batch in batches] == [(1, [10, 4]), (3, [1, 1])]
    if starts:
        last = batches[-1].stages[1]
        assert (last.timesteps.tolist(), last.setting.guidance) == ([300], 0.5)


def test_stages_that_read_text_have_one_vocabulary(tmp_path: Path, served: Open) -> None:
    words = {"encodes": ("state_encoder",)}
    build_family(tmp_path / "a.bundle", vocabulary=VOCABULARY, **words)  # type: ignore[arg-type]
    build_family(tmp_path / "b.bundle", vocabulary=VOCABULARY, **words)  # type: ignore[arg-type]
    name_next(tmp_path / "a.bundle", tmp_path / "b.bundle", t_start=300)
    text = np.array([b"red house"], object)[:, None]
    found = served(tmp_path / "a.bundle").one(seed=ints(5), text=text)
    np.testing.assert_array_equal(found["image"], alone(tmp_path / "a.bundle", seed=[5], text="red house").images)
    build_family(tmp_path / "b.bundle", vocabulary=VOCABULARY.replace(b"house", b"mouse"), **words)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="found stages with different vocabularies"):
        write_repository(tmp_path / "a.bundle", tmp_path / "repo", CHOSEN)
