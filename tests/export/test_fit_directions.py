"""Directions found again where they were put, tables of attributes read or refused, and both in a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from engine import ArgumentError
from engine.bundle.directions import Directions, read_directions
from engine.bundle.reader import Bundle
from export import directions
from export.attributes import Attribute, chosen, contrasts, read_table
from export.fit_directions import main
from tests import toy

SHAPE = (3, 8, 8)
ROOT = Path(__file__).parents[2]


def attribute(name: str, values: Sequence[str], codes: Sequence[int] | np.ndarray) -> Attribute:
    return Attribute(name, tuple(values), np.asarray(codes))


def latents(n: int = 4000) -> tuple[np.ndarray, list[Attribute]]:
    """Means with glasses along the first axis, and a hat, which is mostly worn with glasses, along the second."""
    rng = np.random.default_rng(0)
    glasses = rng.random(n) < 0.4
    hat = np.where(rng.random(n) < 0.8, glasses, rng.random(n) < 0.5)
    z = 0.3 * rng.standard_normal((n, 5)) * [1, 1, 1, 1, 1e-4]
    z[:, 0] += 2.0 * glasses
    z[:, 1] += 1.5 * hat
    return z, [attribute("glasses", ["no", "yes"], glasses * 1), attribute("hat", ["no", "yes"], hat * 1)]


class TestFit:
    def test_strength_1_is_the_way_between_the_means(self) -> None:
        z, table = latents()
        fitted = directions.fit(z, contrasts(table, 20))
        glasses = table[0].codes == 1
        assert fitted.directions.names == ("glasses", "hat")
        assert np.allclose(fitted.directions.vectors[0], z[glasses].mean(axis=0) - z[~glasses].mean(axis=0), atol=1e-5)
        assert all(accuracy > 0.97 for accuracy in fitted.accuracy.values())

    def test_orthogonal_is_what_the_others_probe_does_not_see(self) -> None:
        z, table = latents()
        plain, orthogonal = (directions.fit(z, contrasts(table, 20), orthogonal=o).directions for o in (False, True))
        assert abs(plain.vectors[0, 1]) > 0.8, "hats come with glasses"
        apart = [z[a.codes == 1].mean(axis=0) - z[a.codes == 0].mean(axis=0) for a in table]
        own, other = (np.linalg.solve(np.cov(z.T) + 1e-4 * np.eye(5), way) for way in apart)
        assert abs(other @ orthogonal.vectors[0]) < 0.05 * abs(other @ plain.vectors[0])
        assert own @ orthogonal.vectors[0] == pytest.approx(own @ plain.vectors[0], rel=0.02)

    def test_the_accuracy_is_that_of_images_not_fitted_to(self) -> None:
        rng = np.random.default_rng(1)
        coin = contrasts([attribute("coin", "01", rng.integers(0, 2, 200))], 20)
        noise = directions.fit(rng.standard_normal((200, 60)), coin)
        assert 0.35 < noise.accuracy["coin"] < 0.65

    def test_axes(self) -> None:
        rng = np.random.default_rng(2)
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        z = rng.standard_normal((5000, 3)) * [3.0, 1.0, 0.0] @ turn.T
        found, shares = directions.axes(z, np.full_like(z, np.log(0.01)), 2)
        assert found.names == ("axis 1", "axis 2")
        assert np.allclose(np.linalg.norm(found.vectors, axis=1), [3.0, 1.0], atol=0.1)
        assert abs(found.vectors[0] @ turn[:, 0]) == pytest.approx(3.0, abs=0.1)
        assert found.vectors[0, np.abs(found.vectors[0]).argmax()] > 0
        assert np.allclose(shares, [0.9, 0.1], atol=0.01)

    def test_refusals(self) -> None:
        z, table = latents(100)
        with pytest.raises(ArgumentError, match=r"--axes: found 6, expected 1\.\.5"):
            directions.axes(z, z, 6)
        with pytest.raises(ArgumentError, match="expected 40 images or more"):
            directions.fit(z[:30], contrasts(table, 1))
        with pytest.raises(ArgumentError, match="expected 40 images or more"):
            directions.fit(z * np.nan, contrasts(table, 1))
        twin = attribute("twin", ["no", "yes"], table[0].codes)
        with pytest.raises(ArgumentError, match=r"glasses: found that other attributes tell all of it.*--orthogonal"):
            directions.fit(z, contrasts([table[0], twin], 1), orthogonal=True)
        axis = attribute("axis 1", ["no", "yes"], table[0].codes)
        with pytest.raises(ArgumentError, match="found two directions 'axis 1', expected names that do not clash"):
            directions.joined([directions.fit(z, contrasts([axis], 1)).directions, directions.axes(z, z, 1)[0]])


class TestNames:
    @pytest.mark.parametrize(
        ("values", "names"),
        [
            (["no", "yes"], ["a"]),
            (["x", "y", "z"], ["a=x", "a=y", "a=z"]),
            (["none", "beard", "moustache"], ["a", "a=beard", "a=moustache"]),
        ],
    )
    def test_a_direction_a_value(self, values: list[str], names: list[str]) -> None:
        codes = np.arange(60) % len(values)
        found = contrasts([attribute("a", values, codes)], 20)
        assert [contrast.name for contrast in found] == names
        assert found[0].side.tolist() == (codes == 0 if names[0] == "a=x" else codes != 0).tolist()

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ([attribute("a", ["x"], [0] * 60)], "a: found the value x alone, expected two or more"),
            ([attribute("a", "01", [0] * 50 + [1] * 10)], "a: found 10 images on one side, expected 20 or more on both"),
            ([attribute("a", "01", [0, 1] * 30)] * 2, "found two directions 'a', expected names that do not clash"),
            ([attribute("a=x", "01", [0, 1] * 30), attribute("a", "xyz", [0, 1, 2] * 20)], "found two directions 'a=x'"),
            ([attribute("\x1b", "01", [0, 1] * 30)], "expected 1..200 printable characters"),
        ],
    )
    def test_refusals(self, table: list[Attribute], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            contrasts(table, 20)

    def test_some_of_them(self) -> None:
        table = latents(100)[1]
        assert chosen(table, ["hat"]) == table[1:]
        with pytest.raises(ArgumentError, match=r"found 'hats', expected some of glasses, hat\. Did you mean 'hat'"):
            chosen(table, ["hats"])


def bright(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Images that are bright on the left half where the code is 1, darker where it is 0."""
    rng = np.random.default_rng(4)
    codes, images = rng.integers(0, 2, n), rng.integers(0, 100, (n, 8, 8, 3), dtype=np.uint8)
    images[codes == 1, :, :4] += 150
    return images, codes


def folder(path: Path, text: str, names: Sequence[str]) -> Path:
    path.mkdir()
    for index, name in enumerate(names):
        Image.fromarray(bright()[0][index]).save(path / name)
    (path / "table.csv").write_text(text, encoding="utf-8")
    return path


class TestTables:
    def test_an_npz_file(self, tmp_path: Path) -> None:
        images, codes = bright()
        rows = np.stack([codes, 2 * codes], axis=1)
        categories = json.dumps({"left": ["dark", "bright"], "three": ["x", "y", "z"]})
        named = {"images": images, "attributes": rows, "attribute_names": ["left", "three"]}
        np.savez(tmp_path / "a.npz", **named, categories=categories)
        read, (left, three) = read_table(tmp_path / "a.npz", SHAPE)
        assert np.array_equal(read, images)
        assert (left.values, three.values) == (("dark", "bright"), ("x", "z")), "no image has y"
        assert np.array_equal(three.codes, codes)
        np.savez(tmp_path / "b.npz", images=images, attributes=rows - 1, attribute_names=["left", "three"])
        assert read_table(tmp_path / "b.npz", SHAPE)[1][0].values == ("-1", "0")
        np.savez(tmp_path / "c.npz", images=images)
        assert read_table(tmp_path / "c.npz", SHAPE)[1] == []

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"attributes": np.zeros((60, 2), int), "attribute_names": ["a"]}, r"found attributes int64 \[60, 2\] of 60"),
            ({"attribute_names": ["a"]}, "found no attributes of 60 images, 1 names"),
            ({"attributes": np.zeros((60, 1)), "attribute_names": ["a"]}, "found attributes float64"),
            ({"attributes": np.ones((60, 1), int), "attribute_names": ["a"], "categories": '{"a": ["x"]}'}, "a from 1 to 1"),
            ({"attributes": np.ones((60, 1), int), "attribute_names": ["a"], "categories": "{"}, "no JSON"),
            ({"attributes": np.ones((60, 1), int), "attribute_names": ["a"], "categories": "[]"}, "found categories"),
        ],
    )
    def test_npz_files_of_something_else(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        np.savez(tmp_path / "a.npz", images=bright()[0], **arrays)
        with pytest.raises(ArgumentError, match=message):
            read_table(tmp_path / "a.npz", SHAPE)

    def test_a_folder_with_a_csv(self, tmp_path: Path) -> None:
        path = folder(tmp_path / "f", "\ufefffile,hat\nb.png, yes\na.png,no\n", ["a.png", "b.png"])
        images, (hat,) = read_table(path, SHAPE)
        assert np.array_equal(images, bright()[0][[1, 0]])
        assert (hat.name, hat.values, hat.codes.tolist()) == ("hat", ("no", "yes"), [1, 0])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file,hat\na.png,1\n", r"found 1 pictures without a row \('b.png'\)"),
            ("file,hat\na.png,1\nb.png,0\nc.png,1\n", r"found 1 rows whose file is missing \('c.png'\)"),
            ("file,hat\na.png,1\nb.png,0\na.png,1\n", r"found 1 files in several rows \('a.png'\)"),
            ("file,hat\na.png,1\nb.png\n", r"found \['b.png'\] in row 3, expected 2 values"),
            ("file,hat\na.png,1\nb.png,\n", "in row 3, expected 2 values, none empty"),
            ("file\na.png\n", "found 2 lines of 1 columns"),
            ("", "found 0 lines of 0 columns"),
        ],
    )
    def test_tables_that_do_not_fit(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            read_table(folder(tmp_path / "f", text, ["a.png", "b.png"]), SHAPE)

    def test_two_tables(self, tmp_path: Path) -> None:
        path = folder(tmp_path / "f", "file,hat\n", ["a.png"])
        (path / "more.csv").write_text("")
        with pytest.raises(ArgumentError, match=r"found 2 \.csv files, expected one"):
            read_table(path, SHAPE)


class TestCommand:
    def test_help_is_the_checked_in_text(self) -> None:
        found = CliRunner().invoke(main, ["--help"]).output.replace("Usage: main ", "Usage: fit_directions.py ")
        hint = "update it with: python export/fit_directions.py --help > tests/help/fit_directions.txt"
        assert found == (ROOT / "tests/help/fit_directions.txt").read_text(), hint

    def test_directions_reach_the_bundle(self, tmp_path: Path) -> None:
        images, codes = bright()
        np.savez(tmp_path / "a.npz", images=images, attributes=codes[:, None], attribute_names=["left"])
        path = toy.build_bundle(tmp_path / "toy.bundle")
        before = (path / "manifest.json").read_bytes()
        arguments = [str(path), "--images", str(tmp_path / "a.npz"), "--threads", "1"]
        done = CliRunner().invoke(main, [*arguments, "--dry-run", "--save", str(tmp_path / "d.safetensors")])
        assert done.exit_code == 0, done.output
        assert (path / "manifest.json").read_bytes() == before
        done = CliRunner().invoke(main, [*arguments, "--axes", "2"])
        assert done.exit_code == 0, done.output
        spec = Bundle.open(path).manifest.directions
        assert spec is not None
        assert spec.names == ("left", "axis 1", "axis 2")
        assert spec.record["accuracy"]["left"] > 0.9
        assert set(spec.record["variance"]) == {"axis 1", "axis 2"}

    def test_what_was_saved_is_taken_by_a_bundle_of_the_same_checkpoint(self, tmp_path: Path) -> None:
        path, file = toy.build_bundle(tmp_path / "toy.bundle"), tmp_path / "d.safetensors"
        vectors = np.arange(4, dtype=np.float32)[None]
        directions.save_file(file, Directions(("left",), vectors), {"accuracy": {"left": 0.9}}, "0" * 64)
        done = CliRunner().invoke(main, [str(path), "--take", str(file)])
        assert done.exit_code == 0, done.output
        found = read_directions(Bundle.open(path))
        assert found is not None
        assert (found.names, found.vectors.tolist()) == (("left",), vectors.tolist())
        directions.save_file(file, Directions(("left",), vectors), {}, "1" * 64)
        for arguments, message in (
            (("--take", str(file)), "found directions of the checkpoint 1111"),
            (("--take", str(path / "manifest.json")), "expected a file that --save wrote"),
            ((), "expected images, or a file to --take"),
        ):
            done = CliRunner().invoke(main, [str(path), *arguments])
            assert (done.exit_code, message in done.output) == (1, True), done.output

    def test_axes_without_a_table(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=bright()[0])
        path = toy.build_bundle(tmp_path / "toy.bundle")
        done = CliRunner().invoke(main, [str(path), "--images", str(tmp_path / "a.npz"), "--threads", "1"])
        assert done.exit_code == 0, done.output
        assert "4 directions" in done.output

    def test_a_model_without_an_encoder(self, tmp_path: Path) -> None:
        path = toy.build_bundle(tmp_path / "toy.bundle", formulation=None)
        done = CliRunner().invoke(main, [str(path), "--images", "absent.npz"])
        assert (done.exit_code, "found a model without an encoder's mean" in done.output) == (1, True)
