"""Engines, half graphs and a fitted prior: held to the manifest as strictly as the graphs that a bundle must have."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from engine.bundle.engines import EngineSpec
from engine.bundle.files import FileSpec
from engine.bundle.graphs import graph_key
from engine.bundle.manifest import check_manifest
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.errors import ArgumentError, BundleError
from tests import toy
from tests.manifests import (
    ABSENT,
    EXTRA_FILES,
    check_refused,
    damages,
    edit,
    full_files,
    full_manifest,
    sampler_entry,
)


def read_manifest(bundle: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return raw


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    models = toy.models_of(1, 8, 4, False)
    write_bundle(tmp_path / "full.bundle", full_manifest(models), full_files(models))
    return tmp_path / "full.bundle"


def test_everything_is_found_under_its_name(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    assert set(manifest.graphs) == {*manifest.pipeline.graphs, "sampler", "denoiser.fp16"}
    assert opened.spec(graph_key("denoiser", "fp16")).precision == "fp16"
    assert opened.read_graph("denoiser.fp16") == EXTRA_FILES["denoiser.fp16.onnx"]
    assert opened.spec(graph_key("sampler")).outputs[0].dtype == "uint8"
    assert opened.read_prior() == EXTRA_FILES["prior.safetensors"]
    native = opened.engine("native", "bf16", "denoiser")
    assert isinstance(native, EngineSpec)
    assert native == manifest.engines[0]
    assert (native.targets, native.options, native.record) == ((), {"level": 3}, {"seconds": [1.5]})
    weights = EXTRA_FILES["denoiser.native.bf16.safetensors"]
    digest = hashlib.sha256(weights).hexdigest()
    assert native.files["weights"] == FileSpec("denoiser.native.bf16.safetensors", len(weights), digest)
    assert opened.read_engine(native, "program") == b"{}"
    assert opened.map_engine(native, "weights")[:] == weights
    assert native.size == len(weights) + 2
    assert opened.has_engine("tensorrt_rtx", "fp16", "denoiser")
    assert not opened.has_engine("tensorrt_rtx", "fp16", "vae_decoder")
    elsewhere = opened.engine("native", "bf16", "vae_decoder")
    assert (elsewhere.runs_on, elsewhere.files, native.runs_on) == (("onnxruntime", "openvino"), {}, ())
    assert len(manifest.files) == 4 + len(EXTRA_FILES)


def test_what_is_not_there_is_named_with_the_command_that_builds_it(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"expected native int8 denoiser; .* --backends native --precision int8") as caught:
        opened.engine("native", "int8", "denoiser")
    assert "native bf16 denoiser, tensorrt_rtx fp16 denoiser" in str(caught.value)
    with pytest.raises(ArgumentError, match=r"found 'wieghts', expected one of program, weights.*Did you mean 'weights'"):
        opened.read_engine(opened.engine("native", "bf16", "denoiser"), "wieghts")
    with pytest.raises(ArgumentError, match=r"found 'denoiser.bf16', expected one of .*Did you mean 'denoiser.fp16'"):
        opened.read_graph("denoiser.bf16")
    plain = Bundle.open(toy.build_bundle(bundle.parent / "plain"))
    assert plain.read_prior() is None
    with pytest.raises(BundleError, match=r"found the engines 'none', expected native bf16 denoiser"):
        plain.engine("native", "bf16", "denoiser")


REFUSED: list[tuple[str, object, str]] = [
    ("prior", ABSENT, "prior: missing, expected an object or null"),
    ("prior", [], "prior: found [] (list), expected an object"),
    ("prior.kind", "flow", "prior.kind: found 'flow' (str), expected one of 'gaussian_mixture'"),
    ("prior.components", 0, "prior.components: found 0 (int), expected an integer in 1..65536"),
    ("prior.components", True, "prior.components: found True (bool)"),
    ("prior.file", "../p.safetensors", "prior.file: found '../p.safetensors' (str), expected a plain file"),
    ("prior.file", "Denoiser.onnx", "prior.file: found 'Denoiser.onnx' (str), expected a file of its own"),
    ("prior.size", 0, "prior.size: found 0 (int)"),
    ("prior.size", 7, "prior.safetensors: found 250 bytes, expected 7"),
    ("prior.sha256", "0" * 64, "prior.safetensors: found SHA-256"),
    ("prior.sha256", "x", "prior.sha256: found 'x' (str)"),
    ("prior.input", "x", "prior.input: found 'x' (str), expected one of 'z'"),
    ("prior.mean", 1, "prior.mean: found an unknown field"),
    ("engines", ABSENT, "engines: missing, expected a list of engines, which may be empty"),
    ("engines", {}, "engines: found {} (object), expected a list"),
    ("engines.0", 1, "engines[0]: found 1 (int), expected an object"),
    ("engines.0.backend", ABSENT, "engines[0].backend: missing"),
    ("engines.0.backend", "nativ", "engines[0].backend: found 'nativ' (str), expected one of 'native', 'tensorrt_rtx'"),
    ("engines.0.backend", "tensorrt", "engines[0].files.plan: missing, expected an object"),
    ("engines.0.precision", "fp8", "engines[0].precision: found 'fp8' (str), expected one of 'f32', 'bf16', 'fp16', 'int8'"),
    ("engines.0.precision", None, "engines[0].precision: found null"),
    ("engines.0.graph", "decoder", "engines[0].graph: found 'decoder' (str), expected one of '"),
    ("engines.0.files", [], "engines[0].files: found [] (list), expected an object"),
    ("engines.0.files.weights", ABSENT, "engines[0].files.weights: missing, expected an object"),
    ("engines.0.files.more", {}, "engines[0].files.more: found an unknown field, expected only program, weights"),
    ("engines.0.files.weights.file", "a/../../b", "engines[0].files.weights.file: found 'a/../../b' (str), expected a "),
    ("engines.0.files.weights.file", "/etc/passwd", "engines[0].files.weights.file: found '/etc/passwd' (str)"),
    ("engines.0.files.weights.file", "manifest.json", "expected another name than manifest.json"),
    ("engines.0.files.weights.file", "denoiser.native.BF16.json", "expected a file of its own for each entry"),
    ("engines.0.files.weights.file", "absent.bin", "absent.bin: found a file that cannot be read"),
    ("engines.0.files.weights.size", 2**41, "engines[0].files.weights.size: found 2199023255552 (int)"),
    ("engines.0.files.weights.size", 349, "safetensors: found 350 bytes, expected 349"),
    ("engines.0.files.weights.sha256", "1" * 64, "safetensors: found SHA-256"),
    ("engines.0.files.weights.mode", 1, "engines[0].files.weights.mode: found an unknown field"),
    ("engines.0.source_sha256", "1" * 64, "native bf16 denoiser was built from something else"),
    ("engines.1.source_sha256", "0" * 63, "engines[1].source_sha256: found '000"),
    ("engines.0.made_with", None, "engines[0].made_with: found null, expected an object"),
    ("engines.0.made_with.x", 1, "engines[0].made_with.x: found 1 (int)"),
    ("engines.0.targets", "sm86", "engines[0].targets: found 'sm86' (str), expected a list of printable texts"),
    ("engines.0.targets", ["sm86", 8], "engines[0].targets: found ['sm86', 8] (list)"),
    ("engines.0.targets", ["\x1b[31m"], "engines[0].targets: found ['\\x1b[31m'] (list)"),
    ("engines.0.options", [], "engines[0].options: found [] (list), expected an object"),
    ("engines.0.record", ABSENT, "engines[0].record: missing, expected an object"),
    ("engines.0.cache", 1, "engines[0].cache: found an unknown field"),
    ("engines.0.runs_on", ["openvino"], "engines[0].files: found an unknown field, expected only backend, graph, made_with"),
    ("engines.1.runs_on", ["openvino"], "engines[1].runs_on: found ['openvino'] (list), expected a list of 'onnxruntime'"),
    ("engines.2.runs_on", ABSENT, "engines[2].files: missing, expected an object"),
    ("engines.2.runs_on", [], "engines[2].runs_on: found [] (list), expected a list of 'onnxruntime' and 'openvino'"),
    ("engines.2.runs_on", ["openvino", "openvino"], "expected a list of 'onnxruntime' and 'openvino', each at most once"),
    ("engines.2.runs_on", ["native"], "engines[2].runs_on: found ['native'] (list), expected a list of 'onnxruntime' and"),
    ("engines.2.runs_on", [["openvino"]], "engines[2].runs_on: found [['openvino']] (list), expected a list of"),
    ("engines.2.graph", "denoiser", "engines[2].graph: found 'denoiser' (str), expected another graph than denoiser"),
    ("engines.2.graph", "sampler", "engines[2].graph: found 'sampler' (str), expected another graph than sampler, which a "),
    ("graphs.denoiser:fp16.precision", "f32", "graphs.denoiser.fp16.precision: found 'f32' (str), expected one of 'fp16'"),
    ("graphs.denoiser:fp16.inputs.0.dtype", "int64", "graphs.denoiser.fp16: found"),
    ("graphs.denoiser:fp16.file", "denoiser.onnx", "graphs.denoiser.fp16.file: found 'denoiser.onnx' (str), expected a "),
    ("graphs.sampler.inputs.2.shape", ["rows", 9], "graphs.sampler.inputs: found 'coefficients float32[rows, 9]"),
    ("graphs.sampler.outputs.0.dtype", "float32", "graphs.sampler.outputs: found 'images float32[batch, 8, 8, 3]"),
    ("graphs.sampler:int8", {}, "graphs.sampler.int8: found {} (object), expected a graph under NAME or NAME.fp16"),
]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED, ids=[f"{f[:40]}={v!r:.20}" for f, v, _ in REFUSED])
def test_one_wrong_field_is_named(bundle: Path, field: str, value: object, message: str) -> None:
    check_refused(bundle, field, value, message)


def test_an_engine_is_there_once(bundle: Path) -> None:
    edit(bundle, "engines.1.backend", "tensorrt")
    Bundle.open(bundle)
    edit(bundle, "engines.1", read_manifest(bundle)["engines"][0])
    with pytest.raises(BundleError, match=r"engines\[1\]\.graph: found 'denoiser' .*, expected one engine for native, bf16"):
        Bundle.open(bundle)


def test_a_bundle_that_draws_nothing_has_no_prior(tmp_path: Path) -> None:
    path = toy.build_bundle(tmp_path / "b", None)
    edit(path, "prior", {})
    with pytest.raises(BundleError, match=r"prior: found \{\} .*, expected null, since no input is drawn"):
        Bundle.open(path)
    raw = read_manifest(path) | {"prior": None}
    raw["graphs"]["sampler"] = sampler_entry(None) | {"size": 1, "sha256": "0" * 64}
    assert "z" not in [tensor.name for tensor in check_manifest(raw, "x").graphs["sampler"].inputs]


@pytest.mark.parametrize("name", EXTRA_FILES)
def test_a_damaged_file_is_refused_when_opening_and_when_reading(bundle: Path, name: str) -> None:
    opened = Bundle.open(bundle)
    native, plan = opened.engine("native", "bf16", "denoiser"), opened.engine("tensorrt_rtx", "fp16", "denoiser")
    readers = {
        "denoiser.fp16.onnx": lambda: opened.read_graph("denoiser.fp16"),
        "sampler.onnx": lambda: opened.read_graph("sampler"),
        "prior.safetensors": opened.read_prior,
        "denoiser.native.bf16.json": lambda: opened.read_engine(native, "program"),
        "denoiser.native.bf16.safetensors": lambda: opened.map_engine(native, "weights"),
        "denoiser.tensorrt_rtx.fp16.plan": lambda: opened.read_engine(plan, "plan"),
    }
    data = EXTRA_FILES[name]
    for bad in damages(data).values():
        (bundle / name).write_bytes(bad)
        kind = "SHA-256" if len(bad) == len(data) else f"found {len(bad)} bytes, expected {len(data)}"
        for attempt in (lambda: Bundle.open(bundle), readers[name]):
            with pytest.raises(BundleError, match=kind):
                attempt()
    (bundle / name).unlink()
    (bundle / name).symlink_to(bundle / "denoiser.onnx")
    with pytest.raises(BundleError, match=rf"{name}: found \d+ bytes, expected"):
        Bundle.open(bundle)


class TestWriter:
    def parts(self) -> tuple[dict[str, Any], dict[str, bytes | Path]]:
        models = toy.models_of(1, 8, 4, False)
        return full_manifest(models), full_files(models)

    def test_an_engine_of_another_build_is_not_written(self, tmp_path: Path) -> None:
        raw, files = self.parts()
        files["denoiser.fp16.onnx"] = b"another graph"
        with pytest.raises(BundleError, match=r"engines\[1\]\.source_sha256: found .* was built from something else"):
            write_bundle(tmp_path / "a", raw, files)
        assert not (tmp_path / "a").exists()

    @pytest.mark.parametrize("name", EXTRA_FILES)
    def test_every_file_must_be_handed_over(self, tmp_path: Path, name: str) -> None:
        raw, files = self.parts()
        del files[name]
        with pytest.raises(BundleError, match=r"expected exactly those that the manifest names"):
            write_bundle(tmp_path / "a", raw, files)

    @pytest.mark.parametrize(
        ("where", "value"),
        [("engines", 3), ("engines", [3]), ("engines", [{"files": 3}]), ("prior", 3), ("graphs", [])],
    )
    def test_what_has_no_shape_is_refused(self, tmp_path: Path, where: str, value: object) -> None:
        raw, files = self.parts()
        with pytest.raises(BundleError, match=rf"{where}.*: (found|missing)"):
            write_bundle(tmp_path / "a", raw | {where: value}, files)

    def test_an_older_bundle_with_engines_is_replaced(self, bundle: Path) -> None:
        raw, files = self.parts()
        write_bundle(bundle, raw | {"engines": []}, {n: data for n, data in files.items() if ".onnx" in n or "prior" in n})
        assert Bundle.open(bundle).manifest.engines == ()
        assert not (bundle / "denoiser.tensorrt_rtx.fp16.plan").exists()
