"""The polygraphy script compares what it says, as far as ONNX Runtime goes; TensorRT's half needs a GPU."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("polygraphy", reason="polygraphy is not installed; pip install 'diffusevae-engine[polygraphy]'")

from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.errors import ArgumentError, BackendError
from export.compare_polygraphy import compare, inputs_of, inspect, main
from tests import toy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy with a half denoiser that is 0.1 % off."""
    models = toy.models_of(1, 8, 4, False)
    manifest = toy.manifest_of(models, 1, 8, 4, False, ["onnxruntime"])
    half = toy.denoiser(8, True, False)
    weight = next(tensor for tensor in half.graph.initializer if tensor.name == "a")
    weight.CopyFrom(toy.numpy_helper.from_array(np.float32(0.1001), "a"))
    entry = toy.graph_entry("denoiser", half)
    manifest["graphs"]["denoiser.fp16"] = entry | {"file": "denoiser.fp16.onnx", "precision": "fp16"}
    files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    path = tmp_path_factory.mktemp("polygraphy") / "toy.bundle"
    write_bundle(path, manifest, files | {"denoiser.fp16.onnx": half.SerializeToString()})
    return Bundle.open(path)


def test_a_graph_against_its_float32_twin(bundle: Bundle) -> None:
    found = compare(bundle, "denoiser.fp16", batch=3)
    assert list(found) == ["onnxruntime denoiser.fp16"]
    assert 1e-5 < found["onnxruntime denoiser.fp16"]["eps"] < 1e-3


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder", "timestep_table", "denoiser"])
def test_every_graph_gets_inputs_and_equals_itself(bundle: Bundle, name: str) -> None:
    feeds = inputs_of(bundle, name, batch=3)
    assert list(feeds) == [tensor.name for tensor in bundle.spec(name).inputs]
    errors = compare(bundle, name, batch=3)[f"onnxruntime {name}"]
    assert set(errors.values()) == {0.0}


def test_inspect(bundle: Bundle) -> None:
    text = inspect(bundle, "denoiser.fp16")
    assert "denoiser" in text
    assert "'batch', 3, 8, 8" in text


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    for file in bundle.path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    run = CliRunner().invoke(main, [str(tmp_path), "--allow-links", str(bundle.path), "--inspect"])
    assert run.exit_code == 0, run.output
    assert "onnxruntime denoiser.fp16" in run.output, "the half graphs are compared unless others are named"
    assert "within 0.005: largest relative error" in run.output
    strict = CliRunner().invoke(main, [str(bundle.path), "--graph", "denoiser.fp16", "--tolerance", "1e-6"])
    assert strict.exit_code == 1
    assert "NOT within 1e-06" in strict.output


def test_an_unknown_graph(bundle: Bundle) -> None:
    with pytest.raises(ArgumentError, match=r"found 'denoiser.fp61', expected one of .*Did you mean 'denoiser.fp16'"):
        compare(bundle, "denoiser.fp61")


def test_without_polygraphy(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(BackendError, match=r"polygraphy: found that it cannot be imported .*pip install .diffusevae-eng"):
        compare(bundle, "denoiser")
    result = CliRunner().invoke(main, [str(bundle.path)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: polygraphy: found")


def test_without_tensorrt(bundle: Bundle) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(BackendError, match=r"--tensorrt: found that TensorRT cannot be imported .*install tensorrt, or"):
        compare(bundle, "denoiser", tensorrt=True)


def test_a_place_that_is_no_bundle(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "expected a bundle" in result.output
