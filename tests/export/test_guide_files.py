"""Guides from files: the timesteps of each, cures that can be pasted, and experts of a base and its adapters."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ArgumentError, CheckpointError, EngineError
from export import guide_files
from export.build_engines import main
from export.context import Watch
from export.experts import experts
from export.families.adm import recognise
from export.families.base import Model, Source
from export.guide_files import with_guide_files
from export.guide_options import GuideOptions, Range, equal_ranges, ranges_of, split
from export.guides import OwnGuide
from tests import adm_guides as guided
from tests import adm_models as golden

T = 1000
A, B, C = Path("a.pt"), Path("b.pt"), Path("the third.pt")


def parsed(*words: str) -> GuideOptions:
    """What a terminal's words say of guides."""
    given = main.make_context("build", ["model.pt", *words]).params
    return split(given)[0]


# ---- timesteps -------------------------------------------------------------------------------------


def test_timesteps_that_are_not_said() -> None:
    assert parsed() == GuideOptions()
    assert ranges_of(parsed("--guide", "a.pt"), T) == ((0, 999),)
    adapted = parsed("--guide", "base.pth", "--guide-adapter", "a.pt", "--guide-adapter", "b.pt")
    assert ranges_of(adapted, T) == ((0, 500), (500, 999)), "a boundary is the lower one's, as the reference has it"
    assert equal_ranges(T, 5)[1:] == ((200, 400), (400, 600), (600, 800), (800, 999))
    assert ranges_of(GuideOptions((A,), guide_adapter=(B,)), T) == ((0, 999),)


def test_timesteps_as_they_are_said() -> None:
    said = parsed("--guide", "a.pt", "--guide-timesteps", "0", "99", "--guide", "b.pt", "--guide-timesteps", "100", "999")
    assert said == GuideOptions((A, B), guide_timesteps=((0, 99), (100, 999)))
    assert ranges_of(said, T) == ((0, 99), (100, 999))
    assert ranges_of(replace(said, guide_timesteps=((0, 100), (100, 999))), T)[1] == (100, 999), "a boundary may be shared"


@pytest.mark.parametrize(
    ("ranges", "says", "cured"),
    [
        (None, "found none for 2 guides, expected a range for each", ((0, 499), (500, 999))),
        ([(0, 999)], "found 1 for 2 guides, expected a range for each", ((0, 499), (500, 999))),
        ([(0, 299), (400, 999)], "found 400 999 for b.pt, expected 300 as the first", ((0, 299), (300, 999))),
        ([(0, 299), (200, 999)], "found 200 999 for b.pt, expected 300 as the first", ((0, 299), (300, 999))),
        ([(0, 299), (299, 299)], "found 299 299 for b.pt, expected 300 as the first", ((0, 299), (300, 999))),
        ([(0, 0), (0, 999)], "found 0 999 for b.pt, expected 1 as the first", ((0, 0), (1, 999))),
        ([(500, 999), (0, 499)], "found 500 999 for a.pt, expected 0 as the first", ((0, 499), (500, 999))),
        ([(0, 299), (300, 900)], "found 300 900 for b.pt, expected 999, the model's last", ((0, 299), (300, 999))),
        ([(0, 999), (0, 999)], "found 0 999 for b.pt, expected 1000 as the first", ((0, 499), (500, 999))),
        ([(0, 1000), (1001, 2000)], "found 0 1000 for a.pt, expected two of the model's", ((0, 499), (500, 999))),
        ([(9, 0), (10, 999)], "found 9 0 for a.pt, expected two of the model's", ((0, 0), (1, 999))),
    ],
)
def test_timesteps_that_are_refused_and_the_cure_as_pasted(
    ranges: Sequence[Range] | None, says: str, cured: Sequence[Range]
) -> None:
    said = GuideOptions((A, B), guide_timesteps=None if ranges is None else tuple(ranges))
    with pytest.raises(ArgumentError) as caught:
        ranges_of(said, T)
    sentence, _, cure = str(caught.value).partition("; give ")
    assert says in sentence
    pasted = parsed(*shlex.split(cure))
    assert ranges_of(pasted, T) == tuple(cured)
    assert set(pasted.guide or ()) == {A, B}


def test_the_cure_of_adapters_keeps_the_order_of_the_timesteps() -> None:
    said = GuideOptions((A,), guide_adapter=(B, C), guide_timesteps=((300, 999), (0, 299)))
    with pytest.raises(ArgumentError) as caught:
        ranges_of(said, T)
    _, _, cure = str(caught.value).partition("; give ")
    first, second = "'the third.pt' --guide-timesteps 0 299", "b.pt --guide-timesteps 300 999"
    assert cure == f"--guide a.pt --guide-adapter {first} --guide-adapter {second}"
    assert ranges_of(parsed(*shlex.split(cure)), T) == ((0, 299), (300, 999))
    with pytest.raises(ArgumentError, match="found 2 for 1 adapter, expected a range for each"):
        ranges_of(GuideOptions((A,), guide_adapter=(B,), guide_timesteps=((0, 1), (2, 999))), T)


def test_files_that_do_not_belong_together() -> None:
    with pytest.raises(ArgumentError, match="--guide-adapter: found it without --guide"):
        parsed("--guide-adapter", "a.pt")
    with pytest.raises(ArgumentError, match="--guide-timesteps: found it without --guide"):
        parsed("--guide-timesteps", "0", "999")
    with pytest.raises(ArgumentError, match=r"2 files beside --guide-adapter, expected one, .*; give --guide a\.pt alone"):
        parsed("--guide", "a.pt", "--guide", "b.pt", "--guide-adapter", "c.pt")
    with pytest.raises(ArgumentError, match="found 17 guides, expected at most 16"):
        parsed(*["--guide", "a.pt"] * 17)


# ---- experts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    """What the golden experts guide: no classes, 1000 timesteps."""
    return recognise(golden.held(guided.EXPERTS), None, "ema", golden.said(guided.EXPERTS)).load()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The guides that a model was given, and the scale, in place of recordings of their gradients."""
    found: list[Any] = []

    def keep(model: Model, guides: Sequence[OwnGuide], *, scale: float) -> Model:
        found.extend([*guides, scale])
        return model

    monkeypatch.setattr(guide_files, "with_guides", keep)
    return found


class Noting(Watch):
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def counted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the counters of its batch norms, which are whole numbers."""
    ending = "running_var"
    norms = [key.removesuffix(ending) for key in state if key.endswith(ending)]
    return state | {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}


def adapted(into: Path, kind: str = "experts", **said: Any) -> GuideOptions:
    """A golden base and its adapters in files, as people have them: the base under a name."""
    torch.save({"model": counted(guided.expert_base(kind))}, into / "base.pth")
    files = []
    for number, adapter in enumerate(guided.adapters(kind)):
        files.append(into / f"adapter_{number}.pt")
        torch.save(counted(adapter), files[-1])
    return GuideOptions(**{"guide": (into / "base.pth",), "guide_adapter": tuple(files), **said})


def put(model: Model, said: GuideOptions, watch: Watch | None = None) -> tuple[Model, Source]:
    source = Source(golden.held(guided.EXPERTS), None, "ema")
    return with_guide_files(model, source, said, watch or Watch())


def test_experts_from_files_are_those_of_state_dicts(model: Model, given: list[Any], tmp_path: Path) -> None:
    watch = Noting()
    made, source = put(model, adapted(tmp_path), watch)
    *guides, scale = given
    assert scale == 7.5
    assert [guide.timesteps for guide in guides] == [(0, 500), (500, 999)]
    x = torch.from_numpy(golden.expected(guided.EXPERTS)["x_T"])
    for guide, own in zip(guides, experts(guided.expert_base(), guided.adapters(), T=T), strict=True):
        torch.testing.assert_close(guide.classifier(x), own.classifier(x), rtol=0, atol=0)
    assert source.other is not None
    assert source.other.path.name == "base.pth"
    entries = made.architecture["guides"]
    assert [(entry["file"], entry.get("timesteps")) for entry in entries] == [
        ("base.pth", None), ("adapter_0.pt", [0, 500]), ("adapter_1.pt", [500, 999]),
    ]  # fmt: skip
    assert len({entry["sha256"] for entry in entries}) == 3
    assert watch.notes == [
        f"guide of t {low} to {high}: base.pth, a ResNet of 5 classes, adapted by adapter_{i}.pt"
        for i, (low, high) in enumerate([(0, 500), (500, 999)])
    ]


def test_heads_of_a_vit(model: Model, given: list[Any], tmp_path: Path) -> None:
    made, _ = put(model, adapted(tmp_path, "vit_expert", guide_heads=2, guide_scale=3.0))
    guide, scale = given
    assert (guide.timesteps, guide.classifier.blocks[0].heads, scale) == ((0, 999), 2, 3.0)
    assert not any("heads" in note for note in made.notes)
    given.clear()
    made, _ = put(model, adapted(tmp_path, "vit_expert"))
    assert given[0].classifier.blocks[0].heads == 1
    assert "base.pth: heads of 64 channels are those of timm's ViTs, which no weight confirms" in made.notes[-1]
    with pytest.raises(CheckpointError, match=r"adapter_0.pt beside .*base.pth: .* a multiple of its 3 attention heads"):
        put(model, adapted(tmp_path, "vit_expert", guide_heads=3))


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"guide_depth": 2}, "--guide-depth: found it beside --guide-adapter"),
        ({"guide_head_channels": 32}, "--guide-head-channels: found it beside --guide-adapter"),
        ({"guide_heads": 2}, "--guide-heads: found it beside --guide-adapter"),
        ({"guide_timesteps": ((0, 999),)}, "found 1 for 2 adapters"),
    ],
)
def test_options_that_experts_do_not_take(said: dict[str, Any], says: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=says):
        put(model, adapted(tmp_path, **said))


def test_experts_that_do_not_fit(model: Model, given: list[Any], tmp_path: Path) -> None:
    said = adapted(tmp_path)
    (vit := tmp_path / "vit").mkdir()
    other = adapted(vit, "vit_expert", guide_heads=2)
    wider = recognise(golden.held(guided.EXPERTS), None, "ema", {**golden.said(guided.EXPERTS), "image_size": 32}).load()
    labelled = recognise(golden.held("class_learned"), None, "ema", golden.said("class_learned")).load()
    seven = {**guided.expert_base(), "fc.weight": torch.zeros(7, 256), "fc.bias": torch.zeros(7)}
    torch.save(seven, tmp_path / "seven.pth")
    model_file = tmp_path / "model.pt"
    torch.save(golden.state_dict("class_learned"), model_file)
    cases: list[tuple[Model, GuideOptions, str]] = [
        (model, replace(said, guide_adapter=other.guide_adapter), r"adapter_0.pt beside .*: adapter: found .* its base"),
        (model, replace(said, guide=(model_file,)), "found neither a ResNet of torchvision nor a ViT of timm"),
        (wider, other, "found a ViT of 16 x 16 pixels, by the positions that it knows, expected 32 x 32"),
        (labelled, replace(said, guide=(tmp_path / "seven.pth",)), "found a classifier of 7 classes, expected 5"),
        (model, GuideOptions(said.guide), "found no classifier of guided-diffusion, .*needs --guide-adapter beside it"),
    ]  # fmt: skip
    for of, options, says in cases:
        with pytest.raises(EngineError, match=says):
            put(of, options)
    assert given == []


def test_low_rank_products_of_another_shape(model: Model, given: list[Any], tmp_path: Path) -> None:
    said = adapted(tmp_path)
    wrong = guided.adapters()[0] | {"resnet.conv1.lora_B": torch.zeros(3, 28)}
    torch.save(wrong, tmp_path / "adapter_0.pt")
    with pytest.raises(CheckpointError, match=r"found conv1.lora_A of shapes \[28, 21\] and \[3, 28\], expected two whose"):
        put(model, said)


# ---- classifiers of guided-diffusion ---------------------------------------------------------------


def test_several_classifiers_by_timestep(model: Model, given: list[Any], tmp_path: Path) -> None:
    weights, files = guided.state_dict("classifier_attention"), (tmp_path / "clean.pt", tmp_path / "noisy.pt")
    torch.save(weights, files[0])
    torch.save({**weights, "out.2.c_proj.weight": 2 * weights["out.2.c_proj.weight"]}, files[1])
    of = guided.said("classifier_attention")
    made, source = put(model, GuideOptions(files, guide_timesteps=((0, 399), (400, 999)), **of))
    first, second, scale = given
    assert [first.timesteps, second.timesteps, scale] == [(0, 399), (400, 999), 1.0]
    last = [guide.classifier.state_dict()["out.2.c_proj.weight"] for guide in (first, second)]
    torch.testing.assert_close(2 * last[0], last[1])
    assert first.table is not None
    assert source.other is not None
    assert source.other.path == files[0]
    assert [entry["timesteps"] for entry in made.architecture["guides"]] == [[0, 399], [400, 999]]
