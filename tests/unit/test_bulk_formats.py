"""Shards that others can read, features that are those of the images, and the command line that leads there."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from PIL import Image

from engine import ArgumentError, NumericsError
from engine.bulk.cluster import Cluster, check_reachable
from engine.bulk.features import Extractor, read_extractor
from engine.cli.main import cli
from engine.errors import BulkError
from tests.bulk_jobs import MEANS, extractor, run, samples, small_job, whole_hash
from tests.samplers import ANY_BACKEND, SIZE, bundle

SHAPE = (3, SIZE, SIZE)


class TestTar:
    def test_tarfile_reads_every_sample_once(self, tmp_path: Path) -> None:
        run(tmp_path / "npy")
        run(tmp_path / "tar", small_job(format="tar"))
        images, seen = samples(tmp_path / "npy"), []
        for path in sorted((tmp_path / "tar").glob("*.tar")):
            with tarfile.open(path) as archive:
                members = archive.getmembers()
                assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
                for picture, label in zip(members[::2], members[1::2], strict=True):
                    described = json.load(archive.extractfile(label))
                    seen.append(described["index"])
                    assert described["seed"] == 7 + described["index"]
                    assert (picture.name, label.name) == (f"{seen[-1]:08d}.png", f"{seen[-1]:08d}.json")
                    pixels = np.asarray(Image.open(archive.extractfile(picture)))
                    np.testing.assert_array_equal(pixels, images[described["index"]])
        assert seen == list(range(23))

    def test_webdataset_reads_it(self, tmp_path: Path) -> None:
        webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
        run(tmp_path, small_job(format="tar"))
        urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
        found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "json"))
        assert [key for key, _, _ in found] == [f"{i:08d}" for i in range(23)]
        assert [label["seed"] for _, _, label in found] == list(range(7, 30))
        assert found[0][1].shape == (SIZE, SIZE, 3)

    def test_the_same_bytes_again(self, tmp_path: Path) -> None:
        first, second = (run(tmp_path / name, small_job(format="tar")).manifest for name in "ab")
        assert first["sha256"] == second["sha256"] == whole_hash(tmp_path / "b")
        assert first["made_by"]["png"].startswith("Pillow ")


class TestFeatures:
    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_they_are_those_of_the_images(self, dtype: str, tmp_path: Path) -> None:
        model = extractor(dtype)
        run(tmp_path / "images")
        results = []
        for threads in (1, 2):
            out = tmp_path / str(threads)
            means = replace(MEANS, features=model, threads=threads)
            results.append(run(out, small_job(features=model), means).manifest["sha256"])
        assert results[0] == results[1] == whole_hash(tmp_path / "1")
        found, images = samples(tmp_path / "1"), samples(tmp_path / "images")
        assert (found.dtype, found.shape) == (np.dtype(np.float32), (23, 3))
        np.testing.assert_allclose(found, images.mean(axis=(1, 2)) / 255, rtol=1e-5)

    def test_in_tar_shards(self, tmp_path: Path) -> None:
        model = extractor()
        means = replace(MEANS, features=model)
        run(tmp_path / "npy", small_job(features=model), means)
        run(tmp_path / "tar", small_job(features=model, format="tar"), means)
        with tarfile.open(tmp_path / "tar" / "shard-00004.tar") as archive:
            row = np.load(io.BytesIO(archive.extractfile("00000022.npy").read()))
        np.testing.assert_array_equal(row, samples(tmp_path / "npy")[22])

    @pytest.mark.parametrize(
        ("dtype", "shape", "found"),
        [
            ("uint8", ["n", 3, SIZE, SIZE], r"the input image as tensor\(uint8\)\['n', 3, 8, 8\]"),
            ("uint8", ["n", 299, 299, 3], r"the input image as tensor\(uint8\)\['n', 299, 299, 3\]"),
            ("float32", ["n", SIZE, SIZE, 3], r"the input image as tensor\(float\)\['n', 8, 8, 3\]"),
            ("float32", [4, 3, SIZE, SIZE], r"the input image as tensor\(float\)\[4, 3, 8, 8\]"),
        ],
    )
    def test_other_inputs_are_refused(self, dtype: str, shape: list[Any], found: str) -> None:
        with pytest.raises(ArgumentError, match=rf"features: found {found}, expected one input, uint8 \[N, 8, 8, 3\] or"):
            Extractor(extractor(dtype, shape=shape), SHAPE, 1)

    def test_free_dimensions_are_taken(self) -> None:
        model = Extractor(extractor("float32", shape=["n", "c", "h", "w"]), SHAPE, 1)
        assert model(np.full((2, SIZE, SIZE, 3), 255, np.uint8)).tolist() == [[1, 1, 1]] * 2

    @pytest.mark.parametrize(
        ("inputs", "outputs", "found"),
        [
            ({"a": "double"}, 1, r"the input a as tensor\(double\)"),
            ({"a": "float", "b": "float"}, 1, r"2 inputs and 1 outputs \(a, b, y0\)"),
            ({"a": "float"}, 2, r"1 inputs and 2 outputs \(a, y0, y1\)"),
            ({"a": "float"}, 1, r"the output y0 as tensor\(float\)\['n', 3, 8, 8\]"),
        ],
    )
    def test_other_graphs_are_refused(self, inputs: dict[str, str], outputs: int, found: str) -> None:
        kinds = {"double": TensorProto.DOUBLE, "float": TensorProto.FLOAT}
        kind = kinds[next(iter(inputs.values()))]
        names = list(inputs)
        nodes = [helper.make_node("Add", [names[0], names[-1]], [f"y{i}"]) for i in range(outputs)]
        shape = ["n", 3, SIZE, SIZE]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, kind, shape) for name in names],
            [helper.make_tensor_value_info(f"y{i}", kind, shape) for i in range(outputs)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        with pytest.raises(ArgumentError, match=rf"features: found {found}"):
            Extractor(model.SerializeToString(), SHAPE, 1)

    def test_nan_is_refused(self) -> None:
        with pytest.raises(NumericsError, match=r"features: found NaN or infinity, expected finite numbers"):
            Extractor(extractor(nan=True), SHAPE, 1)(np.zeros((1, SIZE, SIZE, 3), np.uint8))

    def test_files_that_are_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=r"features: found that .*nothing.onnx cannot be read .No such file"):
            read_extractor(tmp_path / "nothing.onnx")
        (tmp_path / "text.onnx").write_text("no model")
        with pytest.raises(ArgumentError, match=r"features: found no ONNX file with all its weights inside"):
            read_extractor(tmp_path / "text.onnx")
        with pytest.raises(ArgumentError, match=r"features: found a model that ONNX Runtime refuses"):
            Extractor(b"", SHAPE, 1)


HERE = ["--backend", ANY_BACKEND, "--precision", "f32", "--threads", "2"]
JOB = ["-n", "23", "--seed", "7", "--shard-size", "5", "--batch", "2", "--steps", "2"]


def sample(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["sample", str(bundle()), *map(str, arguments), *HERE], prog_name="diffusevae")


class TestCommand:
    def test_a_job_and_again(self, tmp_path: Path) -> None:
        expected = run(tmp_path / "api").manifest["sha256"]
        first = sample(*JOB, "--out", tmp_path / "cli")
        assert first.exit_code == 0, first.output
        assert "5 in" in first.stdout
        assert "of which this run made 5" in first.stdout
        assert expected in first.stdout
        (tmp_path / "cli" / "shard-00001.npy").unlink()
        again = sample(*JOB, "--out", tmp_path / "cli", "--json")
        report = json.loads(again.stdout)
        assert (report["shards_made"], report["images_made"], report["sha256"]) == (1, 5, expected)
        assert "note: " in again.stderr
        assert "shard-00001.npy is damaged or gone; it is made again" in again.stderr

    def test_each_option_alone_makes_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "f.onnx").write_bytes(extractor())
        tar = json.loads(sample("--n", "3", "--format", "tar", "--out", tmp_path / "a", "--json").stdout)
        assert (tar["job"]["shard_size"], tar["job"]["format"], tar["job"]["features"]) == (500, "tar", None)
        kept = json.loads(sample("--n", "3", "--features", tmp_path / "f.onnx", "--out", tmp_path / "b", "--json").stdout)
        assert (kept["job"]["format"], len(kept["job"]["features"])) == ("npy", 64)
        again = json.loads(sample("--n", "3", "--format", "tar", "--out", tmp_path / "a", "--json").stdout)
        assert (again["job"], again["shards_made"]) == (tar["job"], 0), "the seed that was drawn is the folder's"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--shard-size", "5", "-n", "9"], r"out: found samples.png, expected a folder for the shards"),
            (["--shard-size", "5", "--out", "{out}"], r"n: found none, expected the number of images"),
            (["--shard-size", "0", "-n", "9", "--out", "{out}"], r"shard_size is 0; expected at least 1 image"),
            (["--shard-size", "5", "-n", "9", "--out", "{out}", "--with-start"], r"with-start: found it with shards"),
            (["--workers", "2", "-n", "9", "--out", "{out}"], r"workers: found it without --ray, expected both"),
            (["--ray", "--workers", "0", "-n", "9", "--out", "{out}"], r"workers is 0; expected at least 1"),
            (["--format", "npy", "--seed", "1,2", "--out", "{out}", "-n", "2"], r"seed: found a list of 2, expected one"),
            (["--ray", "ray://head:10001", "-n", "9", "--out", "{out}"], r"found the address 'ray://head:10001', expected"),
        ],
    )
    def test_mistakes_are_one_line(self, arguments: list[str], message: str, tmp_path: Path) -> None:
        result = sample(*(argument.format(out=tmp_path / "out") for argument in arguments))
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.output
        assert not (tmp_path / "out").exists()

    def test_without_ray(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.setattr("engine.bulk.cluster.LOCAL_ENVIRONMENT", {})
        result = sample(*JOB, "--out", tmp_path / "out", "--ray")
        assert result.exit_code == 1
        assert "expected the package; install it with: pip install 'diffusevae-engine[ray]'" in result.stderr

    def test_an_address_where_nothing_listens(self) -> None:
        for address in ("auto", Cluster().address, "127.0.0.1:1"):
            check_reachable(address)
        with pytest.raises(BulkError, match=r"ray, address 'no-such-host.invalid:6379': found .*; expected a cluster"):
            check_reachable("no-such-host.invalid:6379")

    def test_ctrl_c_says_how_to_go_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("engine.bulk.run.Maker.make", interrupt)
        result = sample(*JOB, "--out", tmp_path / "out")
        assert result.exit_code == 130
        assert "keeps the finished shards, and the same command goes on from there" in result.stderr
