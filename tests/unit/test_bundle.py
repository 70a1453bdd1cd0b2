"""Bundles that are not exactly what they say: each refused with found, expected and the command that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bundle.limits import FORMAT_VERSION, MAX_MANIFEST_BYTES
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, BundleError
from tests import toy
from tests.manifests import ABSENT, check_refused, damages, edit

UNGUIDED = ("timestep_table", "denoiser")
GRAPHS = (*UNGUIDED, "vae_encoder", "vae_decoder")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return toy.build_bundle(tmp_path / "toy.bundle")


@pytest.mark.parametrize(("formulation", "z_conditioned"), [(1, False), (2, True), (None, False)])
def test_a_whole_bundle_opens(tmp_path: Path, formulation: int | None, z_conditioned: bool) -> None:
    path = toy.build_bundle(tmp_path / "b", formulation, z_conditioned=z_conditioned)
    bundle = Bundle.open(str(path))
    pipeline = bundle.manifest.pipeline
    assert pipeline.guided == (formulation is not None)
    assert pipeline.state.centre == ("recon" if formulation == 2 else None)
    assert pipeline.per_sample_rows == z_conditioned
    assert pipeline.image_shape == pipeline.state.shape == (3, 8, 8)
    assert set(bundle.manifest.graphs) == set(UNGUIDED if formulation is None else GRAPHS)
    assert bundle.manifest.schedule.T == 1000
    assert bundle.manifest.defaults.steps == 10
    for role, spec in bundle.manifest.graphs.items():
        assert bundle.read_graph(role) == (path / spec.file).read_bytes() != b""
        assert len(bundle.read_graph(role)) == spec.size
    assert bundle.manifest.graphs["denoiser"].outputs[0].shape == ("batch", 3, 8, 8)


REFUSED = [
    ("format", "zip", "format: found 'zip' (str), expected one of 'diffusevae-bundle'"),
    ("format_version", "1", "format_version: found '1' (str), expected an integer"),
    ("format_version", True, "format_version: found True (bool)"),
    ("format_version", 1.0, "format_version: found 1.0 (float)"),
    ("name", "", "name: found '' (str), expected a text"),
    ("name", "a\x1b[31m", "name: found 'a\\x1b[31m' (str)"),
    ("name", "\ud800", "name: found '\\ud800' (str)"),
    ("family", "a b", "family: found 'a b' (str), expected a label"),
    ("architecture", [], "architecture: found [] (list), expected an object"),
    ("schedule.recipe", "cosin", "schedule.recipe: found 'cosin' (str), expected one of 'linear'"),
    ("schedule.start", 0, "schedule.start: found 0 (int)"),
    ("schedule.end", 1e-5, "schedule.end: found 1e-05 (float), expected at least schedule.start"),
    ("schedule.T", 0, "schedule.T: found 0 (int)"),
    ("schedule.T", 5, "defaults.steps: found 10 (int), expected an integer in 1..5"),
    ("prediction", "noise", "prediction: found 'noise' (str), expected one of 'eps'"),
    ("variance", "learned", "variance: found 'learned' (str), expected one of 'fixedlarge', 'fixedsmall', 'learned_range'"),
    ("variance", "fixedlargo", "(did you mean 'fixedlarge'?)"),
    ("variance", "learned_range", "variance: found 'learned_range' (str), expected 'fixedlarge' or 'fixedsmall', or a "),
    ("defaults.steps", 1001, "defaults.steps: found 1001 (int), expected an integer in 1..1000"),
    ("defaults.method", "euler", "defaults.method: found 'euler' (str), expected one of 'ddim', 'ddim_clipped'"),
    ("defaults.spacing", "even", "defaults.spacing: found 'even' (str)"),
    ("defaults.t_start", 1000, "defaults.t_start: found 1000 (int), expected an integer in 0..999, or null"),
    ("defaults.eta", 1.5, "defaults.eta: found 1.5 (float), expected a number in 0..1, or a list of them, one a step"),
    ("defaults.eta", [0, 1.5], "defaults.eta: found [0, 1.5] (list), expected a number in 0..1"),
    ("defaults.eta", [], "defaults.eta: found [] (list), expected a number in 0..1, or a list of them"),
    ("defaults.noise_scale", [True], "defaults.noise_scale: found [True] (list), expected a number in 0..100"),
    ("defaults.eps_scale", -1, "defaults.eps_scale: found -1 (int)"),
    ("defaults.rho", 0.5, "defaults.rho: found 0.5 (float), expected a number in 1..100"),
    ("defaults.timesteps", [], "defaults.timesteps: found [] (list), expected a falling list of integers in 0..999"),
    ("defaults.timesteps", [5, 5], "defaults.timesteps: found [5, 5] (list), expected a falling list"),
    ("defaults.timesteps", [1000], "defaults.timesteps: found [1000] (list)"),
    ("defaults.temperature", -1, "defaults.temperature: found -1 (int)"),
    ("defaults.guidance", "0", "defaults.guidance: found '0' (str), expected a number"),
    ("source.sha256", "0" * 63, "source.sha256: found '000"),
    ("source.weights", "raw", "source.weights: found 'raw' (str), expected one of 'ema', 'online'"),
    ("source.other_sha256", "0" * 64, "source.other_sha256: found '000"),
    ("source.other_file", "vae.ckpt", "source.other_sha256: found null"),
    ("backends", [], "backends: found [] (list), expected a list of different backend names"),
    ("backends", ["openvino", "openvino"], "backends: found ['openvino', 'openvino']"),
    ("backends", ["../x"], "backends: found ['../x'] (list)"),
    ("built_with", [], "built_with: found [] (list), expected an object"),
    ("built_with.a\x1b[31m", 1, "built_with.'a\\x1b[31m': found 1 (int)"),
    ("built_with.onnx", 1, "built_with.onnx: found 1 (int)"),
    ("graphs", {}, "pipeline.encode[0].graph: found 'vae_encoder' (str), expected one of the bundle's graphs"),
    ("graphs.decoder", {}, "graphs.decoder.file: missing"),
    ("graphs.denoiser.compute", None, "graphs.denoiser.compute: found null, expected an object"),
    ("graphs.denoiser.compute.int8", "int4", "graphs.denoiser.compute.int8: found 'int4' (str), expected one of 'f32'"),
    ("graphs.denoiser.compute.int4", "int8", "graphs.denoiser.compute.int4: found an unknown field"),
    ("graphs.denoiser.size", "12", "graphs.denoiser.size: found '12' (str), expected an integer in 1..2147483647"),
    ("graphs.denoiser.size", 2**31, "graphs.denoiser.size: found 2147483648 (int)"),
    ("graphs.denoiser.sha256", "A" * 64, "graphs.denoiser.sha256: found 'AAA"),
    ("graphs.denoiser.precision", "bf16", "graphs.denoiser.precision: found 'bf16' (str), expected one of 'f32'"),
    ("graphs.denoiser.opset", 0, "graphs.denoiser.opset: found 0 (int)"),
    ("graphs.denoiser.inputs", {}, "graphs.denoiser.inputs: found {} (object), expected a list of tensors"),
    ("graphs.denoiser.inputs.0.name", "y", "pipeline.step.inputs.y: missing, expected the name of a value"),
    ("graphs.denoiser.inputs.0.name", "cond", "graphs.denoiser.inputs: found"),
    ("graphs.denoiser.inputs.0.dtype", "float16", "graphs.denoiser.inputs[0].dtype: found 'float16' (str)"),
    ("graphs.denoiser.inputs.0.shape", [], "graphs.denoiser.inputs[0].shape: found [] (list)"),
    ("graphs.denoiser.inputs.0.shape", ["batch", "3", 8, 8], "inputs[0].shape: found ['batch', '3', 8, 8] (list)"),
    ("graphs.denoiser.inputs.0.shape", ["batch", 3, 8, 9], "pipeline.step.inputs.x: found 'x' (str), expected a value that"),
    ("graphs.denoiser.inputs.0.range", [1, -1], "inputs[0].range: found [1, -1] (list), expected [low, high] with"),
    ("graphs.denoiser.inputs.0.range", "any", "inputs[0].range: found 'any' (str), expected 'unbounded' or"),
    ("graphs.denoiser.outputs.0.name", "v", "pipeline.step.outputs.v: missing, expected the name of a value"),
    ("graphs.denoiser.parity.batches", [0], "graphs.denoiser.parity.batches: found [0] (list)"),
    ("graphs.denoiser.parity.max_relative_error", -1, "parity.max_relative_error: found -1 (int)"),
    ("graphs.denoiser.parity.runtimes.onnxruntime", "good", "parity.runtimes.onnxruntime: found 'good' (str)"),
    ("graphs.denoiser.file", "vae_decoder.onnx", "file: found 'vae_decoder.onnx' (str), expected a file of its own"),
    ("graphs.denoiser:fp16", {}, "graphs.denoiser.fp16.file: missing"),
    ("graphs.denoiser:f32", {}, "graphs.denoiser.f32: found {} (object), expected a graph under NAME or NAME.fp16"),
    ("graphs.Sample", {}, "graphs.Sample: found {} (object), expected a graph under NAME"),
    ("modle", {}, "modle: found an unknown field"),
    ("formta", 1, "(did you mean 'format'?)"),
    ("defaults.step", 5, "defaults.step: found an unknown field"),
    ("x" * 500, 1, "xxx...: found an unknown field"),
]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED, ids=[f"{f[:40]}={v!r:.20}" for f, v, _ in REFUSED])
def test_one_wrong_field_is_named(bundle: Path, field: str, value: object, message: str) -> None:
    check_refused(bundle, field, value, message)


@pytest.mark.parametrize(
    "field",
    ["format", "format_version", "name", "family", "architecture", "inputs", "inputs.0.draw", "inputs.0.null", "pipeline",
     "pipeline.encode", "pipeline.before", "pipeline.rows", "pipeline.step", "pipeline.after", "pipeline.nulls",
     "pipeline.state", "pipeline.state.centre", "pipeline.image", "pipeline.step.inputs", "prediction", "schedule.T",
     "schedule.end", "defaults.spacing", "defaults.timesteps", "defaults.noise_scale", "source.other_file",
     "source.other_sha256", "backends", "prior", "refine", "text",
     "graphs.denoiser.parity", "graphs.denoiser.compute", "graphs.denoiser.inputs.0.range", "built_with"],
)  # fmt: skip
def test_a_missing_field_is_named(bundle: Path, field: str) -> None:
    edit(bundle, field, ABSENT)
    with pytest.raises(BundleError, match=r"missing, expected .*; rebuild") as caught:
        Bundle.open(bundle)
    assert field.rsplit(".", 1)[-1] in str(caught.value)


def test_newer_and_older_formats_have_their_own_cures(bundle: Path) -> None:
    edit(bundle, "format_version", FORMAT_VERSION + 1)
    edit(bundle, "from_the_future", 1)
    with pytest.raises(BundleError, match=r"found 4, expected 3: .* newer engine; upgrade .*diffusevae-engine"):
        Bundle.open(bundle)
    edit(bundle, "format_version", FORMAT_VERSION - 1)
    with pytest.raises(BundleError, match=r"found 2, expected 3: .* older engine; rebuild the bundle with"):
        Bundle.open(bundle)


JSON_TRICKS: list[tuple[str, Callable[[str], str | bytes], str]] = [
    ("empty", lambda text: "", "expected a manifest in JSON"),
    ("text", lambda text: "hello", "expected a manifest in JSON"),
    ("a list", lambda text: "[]", r"top level: found \[\] \(list\), expected an object"),
    ("not UTF-8", lambda text: b"\xff\xfe" + text.encode(), "expected a manifest in JSON"),
    ("duplicate key", lambda text: text.replace('"name"', '"family": "x", "name"', 1), "the key 'family' twice"),
    ("NaN", lambda text: text.replace("0.02", "NaN"), "the number NaN"),
    ("Infinity", lambda text: text.replace("0.02", "-Infinity"), "the number -Infinity"),
    ("1e999", lambda text: text.replace("0.02", "1e999"), "the number 1e999, too large"),
    ("a long integer", lambda text: text.replace("0.02", "9" * 5000), "an integer of 5000 digits"),
    ("deep", lambda text: "[" * 200_000 + "]" * 200_000, "nested too deeply"),
    ("deep object", lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    ("huge", lambda text: text + " " * MAX_MANIFEST_BYTES, f"expected at most {MAX_MANIFEST_BYTES}"),
    ("trailing", lambda text: text + "{}", "expected a manifest in JSON"),
]


@pytest.mark.parametrize(("change", "message"), [t[1:] for t in JSON_TRICKS], ids=[t[0] for t in JSON_TRICKS])
def test_tricky_json_is_refused(bundle: Path, change: Callable[[str], str | bytes], message: str) -> None:
    file = bundle / "manifest.json"
    changed = change(file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "name",
    ["../toy.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "..", ".", "", "C:x.onnx", "a\0b", ".hidden", "manifest.json",
     "MANIFEST.JSON", "ä.onnx", "-o.onnx", "a" * 200, "a b.onnx", "a\n.onnx", 7, None],
)  # fmt: skip
def test_only_plain_file_names_are_taken(bundle: Path, name: object) -> None:
    edit(bundle, "graphs.denoiser.file", name)
    with pytest.raises(BundleError, match=r"graphs\.denoiser\.file: found .*expected (a plain file name|another)"):
        Bundle.open(bundle)


def test_a_link_to_the_whole_bundle_is_fine(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(bundle)
    assert Bundle.open(tmp_path / "latest").manifest.name == "toy"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hang_the_reader(bundle: Path) -> None:
    (bundle / "denoiser.onnx").unlink()
    os.mkfifo(bundle / "denoiser.onnx")
    with pytest.raises(BundleError, match=r"found no regular file, expected one, or a link to one"):
        Bundle.open(bundle)


def test_other_files_in_the_folder_are_ignored(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"x")
    assert Bundle.open(bundle).manifest.name == "toy"


def test_wrong_places_say_what_to_give(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"found a file, expected the folder of a bundle; give the folder: .*toy\.bundle"):
        Bundle.open(bundle / "manifest.json")
    with pytest.raises(BundleError, match=r"found nothing that can be read .*build_engines\.py CKPT"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"found a folder without manifest.json, expected a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match=r"found nothing that can be read"):
        Bundle.open("a\0b")
    with pytest.raises(ArgumentError, match=r"found 'denoise', expected one of .*Did you mean 'denoiser'\?"):
        Bundle.open(bundle).read_graph("denoise")


@pytest.mark.parametrize("role", GRAPHS)
def test_a_damaged_graph_is_refused_before_it_is_parsed(bundle: Path, role: str) -> None:
    opened = Bundle.open(bundle)
    file = bundle / f"{role}.onnx"
    data = file.read_bytes()
    for bad in damages(data).values():
        file.write_bytes(bad)
        kind = "SHA-256" if len(bad) == len(data) else f"found {len(bad)} bytes, expected {len(data)}"
        for attempt in (Bundle.open, lambda _: opened.read_graph(role)):
            with pytest.raises(BundleError, match=kind):
                attempt(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=rf"{role}.onnx: found a file that cannot be read .*No such file"):
        Bundle.open(bundle)


def test_a_damaged_manifest_never_crashes(bundle: Path) -> None:
    """In a child process, so that a crash of the interpreter is an exit code and not the end of the tests."""
    folder = bundle.parent / "damaged"
    folder.mkdir()
    data = (bundle / "manifest.json").read_bytes()
    for i, bad in enumerate(damages(data).values()):
        copy = folder / str(i)
        copy.mkdir()
        for file in bundle.iterdir():
            (copy / file.name).write_bytes(bad if file.name == "manifest.json" else file.read_bytes())
    code = (
        "import sys, pathlib\n"
        "from engine.bundle.reader import Bundle\n"
        "from engine.errors import BundleError\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: print('opened', Bundle.open(path).manifest.name)\n"
        "    except BundleError as error: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    # A flipped bit may turn one letter of a free text (a name, a version) into another: that bundle is still sound.
    assert len(answers) == len(damages(data))
    assert answers.count("refused") >= 13


def test_what_is_parsed_is_what_was_hashed(bundle: Path) -> None:
    """A file that changes after opening is refused by the read that hands it over."""
    opened = Bundle.open(bundle)
    file = bundle / "denoiser.onnx"
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(BundleError, match=r"found SHA-256 .* the file is damaged or of another build"):
        opened.read_graph("denoiser")
