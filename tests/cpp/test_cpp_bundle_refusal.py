"""The refusals of the C++ library: those of the Python engine, for the same field or file."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.bundle.reader import Bundle
from tests import guided_toy, regularised_toy
from tests.cpp import capi
from tests.cpp.building import SOURCE
from tests.cpp.capi import Library
from tests.cpp.refusals import NO_ENGINES, ask_both, ask_cpp, ask_python, build_toy, check_same_refusal
from tests.manifests import ABSENT, edit
from tests.native_models import NEEDS_NATIVE
from tests.toy_family import build_family
from tests.unit import test_bundle as bundles
from tests.unit import test_bundle_engines as engines
from tests.unit import test_cascade_manifest as cascades
from tests.unit import test_fitted as fitted
from tests.unit import test_guides as guides
from tests.unit import test_pipeline as pipelines
from tests.unit import test_prior as priors
from tests.unit import test_regulariser as regularisers
from tests.unit import test_starts as starts
from tests.unit import test_text as texts

pytestmark = NEEDS_NATIVE


# ---- one field of the manifest ---------------------------------------------------------------------

HALF = "\ud800"  # of a surrogate pair: no JSON for C++, a text that is refused for Python


def cases(module: Any) -> list[Any]:
    return [pytest.param(*case, id=f"{case[0][:40]}={case[1]!r:.20}") for case in module.REFUSED if case[1] != HALF]


# Beside those of the unit tests, what only a reader in another language could get wrong.
REGULARISERS: list[tuple[str, object, str]] = [
    ("regularise", 3, "found 3 (int), expected an object"),
    ("regularise", {"mode": "after", "interval": [True, 6]}, "the lower one first"),
    ("regularise", {"mode": "after", "interval": [1, 10**19]}, "two timesteps of 0 .. 999"),
    ("pipeline.regulariser", {}, "rows: missing"),
    ("pipeline.regulariser", None, "expected an object"),
    ("pipeline.regulariser.prediction", ABSENT, "prediction: missing"),
    ("pipeline.regulariser.step", ABSENT, "step: missing"),
    ("pipeline.regulariser.step.outputs", {"x0": "variance"}, "one output, which is called 'e'"),
    ("pipeline.regulariser.rows.graph", "denoiser", "missing, expected the name of a value"),
]
GUIDES = [
    ("guide", 3, "found 3 (int), expected an object"),
    ("guide.scale", "1", "expected a number in"),
    ("guide.scale", 10**7, "expected a number in"),
    ("guide.mode", "norms", "did you mean 'norm'?"),
    ("guide.interval", [5], "the lower one first"),
    ("guide.interval", [5.0, 6], "the lower one first"),
    ("guide.interval", [True, 6], "the lower one first"),
    ("guide.interval", [-1, 6], "the lower one first"),
    ("guide.interval", [1, 10**19], "two timesteps of 0 .. 999"),
    ("guide.extra", 1, "an unknown field"),
    ("pipeline.guides", {}, "expected a list of guides, which is left out where it would be empty"),
    ("pipeline.guides", None, "expected a list of guides"),
    ("pipeline.guides", [1], "expected an object"),
    ("pipeline.guides", [{}] * 17, "at most 16 guides"),
    ("pipeline.guides.0", {}, "rows: missing"),
    ("pipeline.guides.0.classes", ABSENT, "classes: missing"),
    ("pipeline.guides.0.classes", 2**24 + 1, "an integer in 2.."),
    ("pipeline.guides.0.timesteps", ABSENT, "timesteps: missing"),
    ("pipeline.guides.0.timesteps", [0], "the lower one first"),
    ("pipeline.guides.0.rows.outputs.rows", "row", "which is called 'rows'"),
    ("pipeline.guides.0.rows.graph", "guide_0", "missing, expected the name of a value"),
    ("pipeline.guides.0.rows.graph", "guide_2", "one of the bundle's graphs"),
    ("pipeline.guides.0.step.outputs.entropy", "g", "a name of its own for each output"),
    ("pipeline.guides.0.step.outputs.entropy", "doubt", "perhaps 'entropy', float32[batch]"),
    ("pipeline.guides.1.rows", {"graph": "guide_table", "inputs": {"timesteps": "timesteps"}, "outputs": {"rows": "rows"}},
     "where the guide makes them"),
    ("pipeline.guides.1.step.graph", "guide_0", "missing"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "message"), cases(bundles))
def test_one_wrong_field_is_named(library: Library, plain: Path, field: str, value: object, message: str) -> None:
    edit(plain, field, value)
    assert message in check_same_refusal(library, plain)


@pytest.mark.parametrize(("field", "value", "message"), cases(engines))
def test_one_wrong_field_of_an_engine_is_named(
    library: Library, full: Path, field: str, value: object, message: str
) -> None:
    edit(full, field, value)
    assert message in check_same_refusal(library, full)


@pytest.mark.parametrize(("field", "value", "message"), cases(pipelines))
def test_one_wrong_field_of_a_pipeline_is_named(
    library: Library, plain: Path, field: str, value: object, message: str
) -> None:
    build_toy(plain, 2)
    edit(plain, field, value)
    assert message in check_same_refusal(library, plain)


@pytest.mark.parametrize(("change", "words"), fitted.REFUSED)
def test_fitted_settings_that_mean_nothing_are_refused(
    library: Library, tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    path = fitted.make(tmp_path / "a.bundle", fitted.THREE, fitted.FIVE, backends=("onnxruntime", "native"))
    fitted.spoil(path, change)
    assert re.search(words, check_same_refusal(library, path))


@pytest.mark.parametrize(("change", "words"), starts.REFUSED)
def test_a_table_of_starts_that_means_nothing_is_refused(
    library: Library, tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    path = starts.make(tmp_path / "a.bundle", backends=("onnxruntime", "native"))
    starts.spoil(path, change)
    assert re.search(words, check_same_refusal(library, path))


@pytest.mark.parametrize(("field", "value", "message"), cases(texts))
def test_one_wrong_field_of_a_text_is_named(
    library: Library, tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = build_family(tmp_path / "a.bundle", ("onnxruntime", "native"), vocabulary=texts.VOCABULARY)
    assert NO_ENGINES in ask_cpp(library, path).text
    edit(path, field, value)
    assert message in check_same_refusal(library, path)


@pytest.mark.parametrize(("field", "value", "message"), cases(cascades))
def test_one_wrong_field_of_a_cascade_is_named(
    library: Library, tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = cascades.build_cases(tmp_path / "a.bundle", ("onnxruntime", "native"))
    assert NO_ENGINES in ask_cpp(library, path).text
    edit(path, field, value)
    assert message in check_same_refusal(library, path)


@pytest.mark.parametrize(("field", "value", "message"), cases(guides) + GUIDES)
def test_one_wrong_field_of_guides_is_named(
    library: Library, tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = guided_toy.build(tmp_path / "a.bundle", 2, ("onnxruntime", "native"))
    assert NO_ENGINES in ask_cpp(library, path).text
    edit(path, field, value)
    assert message in check_same_refusal(library, path)


@pytest.mark.parametrize(("field", "value", "message"), cases(regularisers) + REGULARISERS)
def test_one_wrong_field_of_a_regulariser_is_named(
    library: Library, tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = regularised_toy.build(tmp_path / "a.bundle", backends=("onnxruntime", "native"))
    assert NO_ENGINES in ask_cpp(library, path).text
    edit(path, field, value)
    assert message in check_same_refusal(library, path)


def test_guides_are_not_in_every_bundle(library: Library, plain: Path) -> None:
    edit(plain, "guide", {"scale": 1.0, "mode": "constant", "interval": None})
    assert "expected null, as the pipeline has no guides" in check_same_refusal(library, plain)
    edit(plain, "guide", None)
    assert NO_ENGINES in ask_cpp(library, plain).text


@pytest.mark.parametrize(("data", "words"), texts.NO_VOCABULARIES)
def test_a_file_that_is_no_vocabulary_is_refused(library: Library, tmp_path: Path, data: bytes, words: str) -> None:
    path = build_family(tmp_path / "a.bundle", ("onnxruntime", "native"), vocabulary=data)
    text = check_same_refusal(library, path)
    assert re.search(rf"vocab\.txt: {words}.*; give the vocabulary that .*, --vocabulary vocab\.txt, and rebuild", text)
    assert text.rpartition("; ")[0] == ask_python(path).text.rpartition("; ")[0]


def test_a_cycle_is_called_one(library: Library, plain: Path) -> None:
    first, second = pipelines.call(outputs={"image": "one"}), pipelines.call(outputs={"image": "recon"})
    first["inputs"] = {"z": "recon"}
    edit(plain, "pipeline.before", [first, second])
    assert "comes no earlier than this one, which is a cycle" in check_same_refusal(library, plain)


def test_a_free_dimension_is_one_size(library: Library, plain: Path) -> None:
    edit(plain, "inputs", [pipelines.Z, pipelines.Z | {"name": "w", "shape": ["batch", 5], "draw": None}])
    tensors = json.loads((plain / "manifest.json").read_text())["graphs"]["vae_decoder"]["inputs"]
    tensors[0]["shape"] = ["batch", "width"]
    edit(plain, "graphs.vae_decoder.inputs", [*tensors, tensors[0] | {"name": "w"}])
    edit(plain, "pipeline.before.0.inputs", {"z": "z", "w": "w"})
    text = check_same_refusal(library, plain)
    assert "pipeline.before[0].inputs.w: found 'w' (str), expected a value that fits w" in text
    assert "its dimension 'width' is 4 already" in text


def test_a_graph_that_the_pipeline_never_runs_is_refused(library: Library, plain: Path) -> None:
    edit(plain, "pipeline.encode", [])
    assert "graphs.vae_encoder: found" in check_same_refusal(library, plain)


def test_fields_and_limits_are_those_of_python() -> None:
    """The headers with the fields of a manifest, their limits and words are what generate_schema.py writes."""
    for name, text in runpy.run_path(str(SOURCE / "generate_schema.py"))["HEADERS"].items():
        assert (SOURCE / "src" / "bundle" / name).read_text() == text(), "python embed/cpp/generate_schema.py"


@pytest.mark.parametrize("field", ["name", "architecture"])
def test_half_of_a_surrogate_pair_is_no_text(library: Library, plain: Path, field: str) -> None:
    edit(plain, field, HALF if field == "name" else {"layout": HALF})
    ours, theirs = ask_both(library, plain)
    assert "manifest.json: found half of a surrogate pair before byte " in theirs.text
    assert (NO_ENGINES in ours.text) == (field == "architecture"), "what is free is not read in Python"


def test_what_is_sound_gets_as_far_as_the_engines(library: Library, plain: Path, full: Path) -> None:
    for formulation, z_conditioned in [(1, False), (2, True), (None, False)]:
        build_toy(plain, formulation, z_conditioned=z_conditioned)
        ours, theirs = ask_both(library, plain)
        assert NO_ENGINES + "'none', expected native" in theirs.text, ours
    assert "prior.safetensors: found" in check_same_refusal(library, full)
    edit(full, "prior", None)
    *own, shared = Bundle.open(full).manifest.engines
    assert shared.runs_on[-1] == "openvino", "which this library was built without"
    edit(full, f"engines.{len(own)}", ABSENT)
    assert NO_ENGINES + "'native bf16 denoiser, tensorrt_rtx fp16 denoiser', expected" in ask_both(library, full)[1].text


@pytest.mark.parametrize("field", [
    "format", "format_version", "name", "architecture", "inputs", "inputs.0.null", "inputs.0.draw", "pipeline",
    "pipeline.before", "pipeline.step", "pipeline.nulls", "pipeline.state", "pipeline.state.centre", "pipeline.image",
    "schedule.T", "prediction", "defaults.spacing", "defaults.t_start", "source.other_file", "source.other_sha256",
    "backends", "graphs.denoiser.compute", "graphs.denoiser.parity", "graphs.denoiser.inputs.0.range", "prior", "text",
    "built_with",
])  # fmt: skip
def test_a_missing_field_is_named(library: Library, plain: Path, field: str) -> None:
    edit(plain, field, ABSENT)
    assert f"{field.rsplit('.', 1)[-1]}: missing, expected " in check_same_refusal(library, plain)


def test_newer_and_older_formats_have_their_own_cures(library: Library, plain: Path) -> None:
    edit(plain, "format_version", 4)
    edit(plain, "from_the_future", 1)
    assert "found 4, expected 3: the bundle was written by a newer engine; upgrade" in check_same_refusal(library, plain)
    edit(plain, "format_version", 2)
    assert "found 2, expected 3: the bundle was written by an older engine; rebuild" in check_same_refusal(library, plain)


def test_a_prior_needs_an_input_that_is_drawn(library: Library, plain: Path) -> None:
    build_toy(plain, None)
    edit(plain, "prior", {})
    assert "prior: found {} (object), expected null, since no input is drawn" in check_same_refusal(library, plain)


def test_a_text_needs_an_input_of_tokens(library: Library, plain: Path) -> None:
    edit(plain, "text", {})
    assert "text: found {} (object), expected null, since no input is int64" in check_same_refusal(library, plain)


@pytest.mark.parametrize(("change", "message"), [pytest.param(*t[1:], id=t[0]) for t in bundles.JSON_TRICKS])
def test_tricky_json_is_refused(library: Library, plain: Path, change: Callable[[str], str | bytes], message: str) -> None:
    file = plain / "manifest.json"
    changed = change(file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    assert re.search(message, check_same_refusal(library, plain))


MORE_TRICKS = {
    "byte order mark": (lambda text: "\ufeff" + text, "a byte order mark"),
    "zero byte": (lambda text: text + "\0more", "a zero byte"),
    "comment": (lambda text: text.replace("{", "{ /* x */ ", 1), "no JSON at byte"),
    "trailing comma": (lambda text: text[:-2] + ",}", "no JSON at byte"),
    "more levels than Python has": (lambda text: text.replace('"kind": "toy"', '"a": ' + "[" * 2000 + "]" * 2000), "nested"),
    "escaped twin of a key": (lambda text: text.replace('"name"', '"n\\u0061me": "x", "name"', 1), "the key 'name' twice"),
    "twins in others' objects": (lambda text: text.replace('"kind": "toy"', '"a": 1, "a": 2', 1), "the key 'a' twice"),
    "long integer in others' objects": (lambda text: text.replace('"toy"', "9" * 21, 1), "an integer of 21 digits"),
    "an overlong UTF-8 character": (lambda text: text.encode().replace(b"toy", b"\xc0\xae"), "no JSON at byte"),
    "a surrogate in UTF-8": (lambda text: text.encode().replace(b"toy", b"\xed\xa0\x80"), "no JSON at byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", MORE_TRICKS)
def test_what_one_of_the_parsers_would_let_pass(library: Library, plain: Path, case: str) -> None:
    change, message = MORE_TRICKS[case]
    file = plain / "manifest.json"
    changed = change(file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    assert message in check_same_refusal(library, plain)


def test_numbers_at_the_limits_are_read_alike(library: Library, plain: Path) -> None:
    for field, value, sound in [
        ("defaults.eta", 1, True), ("defaults.eta", -0.0, True), ("defaults.eta", 1.0000000000000002, False),
        ("graphs.denoiser.inputs.0.range", [0, 99999999999999999999], True),
        ("graphs.denoiser.inputs.0.range", [9007199254740992, 9007199254740993], True),
        ("graphs.denoiser.inputs.0.range", [0.5, 0.5], False),
        ("graphs.denoiser.parity.batches", [99999999999999999999], True),
        ("graphs.denoiser.parity.batches", [-99999999999999999999], False),
        ("graphs.denoiser.opset", 18446744073709551615, False), ("graphs.denoiser.opset", -9223372036854775808, False),
        ("name", "é" * 200, True), ("name", "é" * 201, False), ("name", "日本", True), ("name", "a\u200bb", False),
        ("name", "a\u00a0b", False), ("name", "\ue000", False), ("name", "😀", True),
    ]:  # fmt: skip
        build_toy(plain)
        edit(plain, field, value)
        ours, theirs = ask_both(library, plain)
        assert (NO_ENGINES in ours.text, NO_ENGINES in theirs.text) == (sound, sound), (field, value, theirs.text)


def test_the_null_of_a_value_of_uint8(library: Library, plain: Path) -> None:
    for null in (255, [0, 255]):
        pipelines.with_mask(plain, null)
        assert NO_ENGINES in ask_both(library, plain)[1].text
    for null in pipelines.NOT_UINT8:
        pipelines.with_mask(plain, null)
        assert "pipeline.nulls.mask: found " in check_same_refusal(library, plain)


# ---- the prior -------------------------------------------------------------------------------------


# What Python's safetensors library lets through to the engine, C++ finds in the header.
WORDED_OTHERWISE = ("a tensor too few", "a tensor too many", "float64")


@pytest.mark.parametrize("case", [name for name, (data, _) in priors.REFUSED.items() if data])
def test_what_is_no_mixture(library: Library, tmp_path: Path, case: str) -> None:
    data, message = priors.REFUSED[case]
    theirs = ask_both(library, priors.build_bundle(tmp_path / "bad.bundle", data))[1]
    assert "prior.safetensors" in theirs.where
    assert theirs.status == capi.BUNDLE
    assert "fit it again with: diffusevae fit-prior" in theirs.text
    if message.startswith("found") and case not in WORDED_OTHERWISE:
        assert re.search(message, theirs.text)


def test_what_the_manifest_says_otherwise(library: Library, tmp_path: Path) -> None:
    path = priors.build_bundle(tmp_path / "a", priors.content(priors.mixture()), components=4)
    assert "found 3 components, expected 4, as the manifest says" in check_same_refusal(library, path)
    path = priors.build_bundle(tmp_path / "b", priors.content(priors.mixture(width=5)))
    assert "found a prior of width 5, expected 4, the input's" in check_same_refusal(library, path)
