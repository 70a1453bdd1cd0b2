"""Directions in a bundle, and the verbs that move along them: sample(edits=...), edit, mix, walk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import save

from engine import ArgumentError, BundleError, Sampler
from engine.bulk.maker import pack, unpack
from engine.bundle.directions import TENSOR, Directions
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import DIRECTIONS_FILE, write_directions
from engine.bundle.writer import write_bundle
from engine.cli.main import cli
from tests import toy
from tests.fake_triton import Request
from tests.manifests import check_refused
from tests.samplers import ANY_BACKEND
from tests.triton_models import Served, ints, loading

NAMES = ("glasses", "hair=afro", "axis 1")
VECTORS = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
RECORD = {"date": "2026-01-02T03:04:05+00:00", "accuracy": {"glasses": 0.9, "hair=afro": 0.75}, "variance": {"axis 1": 0.5}}


def make(path: Path) -> Path:
    toy.build_bundle(path, defaults={"steps": 3, "spacing": "trailing"})
    write_directions(Bundle.open(path), Directions(NAMES, VECTORS), RECORD)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("directions") / "toy.bundle")


@pytest.fixture(scope="module")
def sampler(path: Path) -> Iterator[Sampler]:
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as opened:
        yield opened


def faces(n: int = 2) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


class TestBundle:
    def test_there_and_back_and_again(self, path: Path, tmp_path: Path) -> None:
        opened = Bundle.open(path)
        assert opened.manifest.directions is not None
        assert (opened.manifest.directions.names, opened.manifest.directions.record) == (NAMES, RECORD)
        again = make(tmp_path / "again.bundle")
        write_directions(Bundle.open(again), Directions(NAMES[:1], VECTORS[:1] * 2), {})
        with Sampler(again, ANY_BACKEND, "f32") as sampler:
            assert sampler.directions == NAMES[:1]
            assert np.array_equal(sampler.sample(seed=1, edits={"glasses": 1.0}).values["z"][0],
                                  sampler.draw(seed=1)["z"][0] + VECTORS[0] * 2)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("directions", [], "directions: found [] (list), expected an object"),
            ("directions.names", [], "directions.names: found [] (list), expected a list of 1..4096 different"),
            ("directions.names", ["a", "b", "a"], "expected a list of 1..4096 different printable texts"),
            ("directions.names", ["a", "b", "\x1b"], "expected a list of 1..4096 different printable texts"),
            ("directions.input", "x", "directions.input: found 'x' (str), expected one of 'z'"),
            ("directions.of", "0" * 64, "the SHA-256 of the first graph of encode"),
            ("directions.sha256", "0" * 64, "directions.safetensors: found SHA-256"),
            ("directions.more", 1, "directions.more: found an unknown field"),
        ],
    )
    def test_a_spoilt_entry_is_refused(self, tmp_path: Path, field: str, value: object, message: str) -> None:
        check_refused(make(tmp_path / "spoilt.bundle"), field, value, message)

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({TENSOR: VECTORS[:2]}, r"found directions F32 \[2, 4\], expected F32 \[3, 4\], the names of the manifest"),
            ({TENSOR: VECTORS.astype(np.float64)}, "found directions F64"),
            ({"other": VECTORS}, r"found the tensors \['other'\], expected directions"),
            ({TENSOR: VECTORS * np.float32(np.nan)}, "found NaN or infinity in directions"),
        ],
    )
    def test_a_file_of_something_else_is_refused(
        self, path: Path, tmp_path: Path, tensors: dict[str, np.ndarray], message: str
    ) -> None:
        opened = Bundle.open(path)
        raw = json.loads(opened.read_manifest())
        raw["directions"] = {k: v for k, v in raw["directions"].items() if k not in ("size", "sha256")}
        files: dict[str, Any] = {spec.file: opened.chunks(spec) for spec in opened.manifest.files}
        write_bundle(tmp_path / "other.bundle", raw, files | {DIRECTIONS_FILE: save(tensors)})
        with pytest.raises(BundleError, match=rf"{message}.*fit them again with"):
            Sampler(tmp_path / "other.bundle", ANY_BACKEND, "f32")

    def test_a_worker_is_sent_the_file_too(self, path: Path, tmp_path: Path) -> None:
        assert unpack(pack(Bundle.open(path)), tmp_path).manifest == Bundle.open(path).manifest

    def test_info_lists_them_with_their_accuracy(self, path: Path) -> None:
        shown = run("info", path).output
        assert "directions" in shown
        assert [line.split() for line in shown.splitlines() if "0% " in line] == [
            ["glasses", "90.0%", "accuracy"], ["hair=afro", "75.0%", "accuracy"], ["axis", "1", "50.0%", "variance"],
        ]  # fmt: skip
        assert json.loads(run("info", path, "--json").output)["bundle"]["directions"]["names"] == list(NAMES)


class TestEdits:
    def test_each_sample_moves_in_float32_in_the_bundles_order(self, sampler: Sampler) -> None:
        z = sampler.draw(3, seed=7)["z"]
        edits = {"axis 1": -0.3, "glasses": (1 / 3, 0.0, 2.0)}
        expected = np.stack([
            (row + np.float32(s) * VECTORS[0] if s else row) + np.float32(-0.3) * VECTORS[2]
            for row, s in zip(z, edits["glasses"], strict=True)
        ])  # fmt: skip
        drawn = sampler.sample(3, seed=7, edits=edits)
        assert np.array_equal(drawn.values["z"].view(np.uint32), expected.view(np.uint32))
        given = sampler.sample(3, seed=7, z=z, edits=edits)
        assert np.array_equal(given.images, drawn.images)
        assert np.array_equal(drawn.images, sampler.sample(3, seed=7, z=expected).images)
        assert np.array_equal(sampler.sample(3, seed=7, edits={}).images, sampler.sample(3, seed=7).images)

    @pytest.mark.parametrize(
        ("edits", "message"),
        [
            ({"glases": 1.0}, r"found 'glases', expected some of glasses, hair=afro, axis 1, .* Did you mean 'glasses'"),
            ({"glasses": float("nan")}, r"the strength of glasses is nan; expected a number in -1000 \.\. 1000"),
            ({"glasses": float("inf")}, r"the strength of glasses is inf; expected a number in -1000 \.\. 1000"),
            ({"glasses": "much"}, r"the strength of glasses is 'much', a str; expected a number"),
            ({"glasses": [1.0, 2.0, 3.0]}, r"a list of 3; expected a number, or one for each of 2 samples"),
            (["glasses"], r"edits is \['glasses'\], a list; expected strengths by name"),
        ],
    )
    def test_refusals(self, sampler: Sampler, edits: Any, message: str) -> None:
        for ask in (lambda: sampler.sample(2, seed=0, edits=edits), lambda: sampler.edit(faces(), edits)):
            with pytest.raises(ArgumentError, match=message):
                ask()

    def test_a_bundle_without_directions_names_the_command(self, tmp_path: Path) -> None:
        with Sampler(toy.build_bundle(tmp_path / "plain.bundle"), ANY_BACKEND, "f32") as sampler:
            assert sampler.directions == ()
            with pytest.raises(ArgumentError, match=r"holds no directions.*fit.directions.* BUNDLE --images FILE"):
                sampler.edit(3, {"glasses": 1.0})


class TestEdit:
    def test_seeds_and_latents_are_sampled_with_what_was_moved(self, sampler: Sampler) -> None:
        edits, z = {"glasses": 1.0}, sampler.draw(2, seed=4)["z"]
        expected = sampler.sample(2, seed=4, edits=edits).images
        assert np.array_equal(sampler.edit([4, 5], edits).images, expected)
        assert np.array_equal(sampler.edit(z, edits, seed=4).images, expected)
        assert np.array_equal(sampler.edit(4, edits).images, expected[:1])

    def test_an_unedited_image_comes_back_the_more_is_preserved(self, sampler: Sampler) -> None:
        images = faces(4)
        apart = [
            np.abs(sampler.edit(images, {"glasses": 0.0}, preserve=kept, seed=1).images.astype(int) - images).mean()
            for kept in (0.2, 0.6, 1.0)
        ]
        assert apart[0] > apart[1] > apart[2]
        assert apart[2] < 5
        seeds = sampler.edit([4, 5], {}, preserve=1.0)
        assert np.abs(seeds.images.astype(int) - sampler.sample(2, seed=4).images).mean() < 5

    def test_what_is_preserved_chooses_the_start(self, sampler: Sampler) -> None:
        batch = sampler.edit(faces(), {"glasses": 2.0}, preserve=0.75, seed=1)
        assert (batch.setting.t_start, batch.timesteps[0]) == (250, 250)
        assert np.array_equal(batch.values["z"], sampler.encode(faces())["z"] + np.float32(2) * VECTORS[0])
        assert sampler.edit(faces(), {}, preserve=1.0, seed=1).timesteps.tolist() == [0]
        assert len(sampler.edit(faces(), {}, preserve=0.5, steps=7, seed=1).timesteps) == 7
        leading = sampler.edit(faces(), {}, preserve=0.5, steps=5, spacing="leading", seed=1)
        assert leading.timesteps.tolist() == [401, 201, 1], "500 is none of a leading grid's timesteps"

    def test_a_recorded_setting_that_starts_from_an_image_is_stretched(self, tmp_path: Path) -> None:
        recorded = {"steps": 3, "spacing": None, "timesteps": [400, 200, 10], "t_start": 400, "eta": 1.0}
        path = toy.build_bundle(tmp_path / "recorded.bundle", defaults=recorded)
        write_directions(Bundle.open(path), Directions(NAMES, VECTORS), {})
        with Sampler(path, ANY_BACKEND, "f32") as sampler:
            batch = sampler.edit(faces(), {}, preserve=0.8, seed=0)
            assert (batch.timesteps.tolist(), batch.setting.eta) == ([200, 100, 5], 1.0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"preserve": 1.5}, r"preserve is 1\.5; expected a number in 0 \.\. 1"),
            ({"t_start": 100}, "t_start, which preserve says"),
            ({"z": np.zeros((1, 4))}, "edit moves z itself"),
            ({"sed": 1}, "edit has no option 'sed'"),
        ],
    )
    def test_refusals(self, sampler: Sampler, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            sampler.edit(faces(), {"glasses": 1.0}, **options)
        with pytest.raises(ArgumentError, match="edit was given seeds, and seed too"):
            sampler.edit([1, 2], {}, seed=3)

    def test_mix_is_the_weighted_mean_whatever_it_is_of(self, sampler: Sampler) -> None:
        z = sampler.draw(seed=[3, 9])["z"]
        mean = (0.25 * z[0].astype(np.float64) + 0.75 * z[1]).astype(np.float32)
        expected = sampler.sample(seed=3, z=mean).images
        assert np.array_equal(sampler.mix([3, 9], [1, 3]).images, expected)
        assert np.array_equal(sampler.mix(z, [1, 3], seed=3).images, expected)
        encoded = sampler.encode(faces())["z"].astype(np.float64).mean(axis=0).astype(np.float32)
        assert np.array_equal(sampler.mix(faces(), seed=3).values["z"][0], encoded)
        for weights in ([1.0], [1, -1], [1, 2, 3]):
            with pytest.raises(ArgumentError, match="expected two or more, and one weight each"):
                sampler.mix([3, 9], weights)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="diffusevae")


HERE = ("--backend", ANY_BACKEND, "--precision", "f32", "--threads", "1")


class TestCommands:
    def test_edit_writes_a_row_for_each_image(self, sampler: Sampler, path: Path, tmp_path: Path) -> None:
        out, edit = tmp_path / "grid.png", ("--edit", "hair=afro=2", "--edit", "glasses=-1")
        done = run("edit", path, "--of", "3,9", *edit, "--strengths", "-1,0,1", "--out", out, *HERE)
        assert done.exit_code == 0, done.output
        pixels = np.asarray(Image.open(out))
        assert pixels.shape == (2 * 10 + 2, 3 * 10 + 2, 3)
        expected = sampler.edit(9, {"hair=afro": 2.0, "glasses": -1.0}).images[0]
        assert np.array_equal(pixels[12:20, 22:30], expected)

    def test_images_are_edited_with_one_noise_a_row(self, sampler: Sampler, path: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "faces.npy", faces())
        out = tmp_path / "edited.npy"
        given = (tmp_path / "faces.npy", "--edit", "glasses=1", "--strengths", "0,1", "--seed", "6", "--preserve", "0.5")
        done = run("edit", path, *given, "--out", out, "--json", *HERE)
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["seeds"] == [6, 6, 7, 7]
        expected = sampler.edit(faces(), {"glasses": 1.0}, preserve=0.5, seed=6).images
        assert np.array_equal(np.load(out)[1::2], expected)

    def test_mix(self, sampler: Sampler, path: Path, tmp_path: Path) -> None:
        out = tmp_path / "mixed.npy"
        assert run("mix", path, "--of", "3,9", "--weights", "1,3", "--out", out, *HERE).exit_code == 0
        assert np.array_equal(np.load(out), sampler.mix([3, 9], [1, 3]).images)

    @pytest.mark.parametrize("name", ["walk.gif", "walk.webp"])
    def test_walk(self, sampler: Sampler, path: Path, tmp_path: Path, name: str) -> None:
        out = tmp_path / name
        done = run("walk", path, "3", "9", "--frames", "4", "--scale", "2", "--out", out, *HERE)
        assert done.exit_code == 0, done.output
        with Image.open(out) as picture:
            assert (picture.n_frames, picture.size) == (5, (16, 16))
            picture.seek(4)
            last = np.asarray(picture.convert("RGB"))[::2, ::2]
        expected = sampler.interpolate(3, 9, 5, mode="slerp").images[4]
        assert np.abs(last.astype(int) - expected).max() <= (0 if name.endswith("webp") else 255)
        assert np.abs(last.astype(int) - expected).mean() < 12, "256 colours a frame"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("walk", "3", "9", "--out", "w.mp4"), "ffmpeg -i w.gif -pix_fmt yuv420p w.mp4"),
            (("walk", "3", "9", "--out", "w.png"), "expected one ending in .gif or .webp"),
            (("walk", "3"), "seeds: found 1, expected two or more"),
            (("edit", "--of", "3", "--edit", "glases=1"), "Did you mean 'glasses'"),
            (("edit", "--of", "3", "--edit", "glasses=nan"), "the strength of glasses is nan"),
            (("edit", "--of", "3", "--edit", "glasses"), "'glasses' is not NAME=STRENGTH"),
            (("edit", "--of", "3", "--edit", "glasses=1", "--edit", "glasses=2"), "found one direction twice"),
            (("edit", "--edit", "glasses=1"), "images: found none, expected files, or seeds: --of 3,9"),
            (("mix", "--of", "3"), "expected two or more"),
        ],
    )
    def test_refusals(self, path: Path, arguments: tuple[str, ...], message: str) -> None:
        command, *rest = arguments
        done = run(command, path, *rest, *HERE)
        assert done.exit_code in (1, 2)
        assert message in done.output


@pytest.fixture(scope="module")
def model(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with loading(tmp_path_factory.mktemp("served")) as start:
        yield start(path)


class TestTriton:
    @staticmethod
    def texts(*edits: Any) -> np.ndarray:
        texts = [edit if isinstance(edit, str) else json.dumps(edit) for edit in edits]
        return np.array([text.encode() for text in texts], np.object_)[:, None]

    def test_samples_with_other_edits_run_at_once(self, model: Served, sampler: Sampler) -> None:
        edits = ({"glasses": 1.0}, {}, {"axis 1": -0.5, "glasses": 0.5})
        both = Request(seed=ints(4, 5), edits=self.texts(*edits[:2]))
        answers = model.answer(both, Request(seed=ints(6), edits=self.texts(edits[2])))
        found = np.concatenate([answer.arrays()["z"] for answer in answers])
        expected = np.concatenate([sampler.sample(seed=4 + i, edits=edit).values["z"] for i, edit in enumerate(edits)])
        assert np.array_equal(found, expected)

    @pytest.mark.parametrize(
        ("edits", "message"),
        [
            ({"glases": 1.0}, "Did you mean 'glasses'"), ('{"glasses": NaN}', "the strength of glasses is nan"),
            ("{", "edits is no JSON"), ("[1]", "expected strengths by name"), ({"glasses": [1.0]}, "is a list"),
            ("[" * 100_000, "expected at most 16384"),
        ],
    )  # fmt: skip
    def test_refusals(self, model: Served, edits: Any, message: str) -> None:
        assert message in model.answer(Request(seed=ints(1), edits=self.texts(edits)))[0].refusal()[1]
