"""Pipelines that do not hold together: each refused on opening, with the field's name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.lanes import KEPT_SHAPES, Bindings
from engine.bundle.pipeline import CallSpec, PipelineSpec, StateSpec
from engine.bundle.reader import Bundle
from engine.bundle.tensors import parse_null
from engine.errors import BundleError
from tests import toy
from tests.manifests import ABSENT, check_refused, edit

CALL = {"graph": "vae_decoder", "inputs": {"z": "z"}, "outputs": {"image": "recon"}}
Z = {
    "name": "z", "dtype": "float32", "shape": ["batch", 4], "range": "unbounded", "draw": "normal", "picture": None,
    "null": None,
}  # fmt: skip
FRESH = Z | {"name": "w", "shape": ["batch", "steps", 4], "draw": "each_step"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return toy.build_bundle(tmp_path / "toy.bundle")


def call(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(CALL) | changes


REFUSED: list[tuple[str, object, str]] = [
    # inputs
    ("inputs", {}, "inputs: found {} (object), expected a list of inputs"),
    ("inputs.0.name", "x_T", "inputs[0].name: found 'x_T' (str), expected an identifier, and none of"),
    ("inputs.0.name", "a b", "inputs[0].name: found 'a b' (str), expected an identifier"),
    ("inputs.0.dtype", "uint8", "inputs[0].dtype: found 'uint8' (str), expected one of 'float32', 'int64'"),
    ("inputs.0.shape", [4, "batch"], "inputs[0].shape: found [4, 'batch'] (list), expected 'batch' as the first dimension"),
    ("inputs.0.shape", ["batch", "width"], "inputs[0].draw: found 'normal' (str), expected null, unless the input is floa"),
    ("inputs.0.range", [0, 1], "inputs[0].draw: found 'normal' (str), expected null, unless"),
    ("inputs.0.draw", "prior", "inputs[0].draw: found 'prior' (str), expected one of 'normal'"),
    ("inputs.0.picture", "photo", "inputs[0].picture: found 'photo' (str), expected one of 'image', 'mask'"),
    ("inputs.0.picture", "image", "inputs[0].picture: found 'image' (str), expected null, unless the input is float"),
    ("inputs", [Z | {"picture": "mask", "draw": None, "shape": ["batch", 3, 8, 8], "range": [0, 1]}],
     "inputs[0].picture: found 'mask' (str), expected null, unless the input is float32[batch, 1, H, W] in [0, 1]"),
    ("inputs", [Z | {"picture": "image", "draw": None, "shape": ["batch", 3, 8, "W"], "range": [-1, 1]}],
     "inputs[0].picture: found 'image' (str), expected null, unless"),
    ("inputs", [Z | {"picture": "image", "draw": None, "shape": ["batch", 3, 8, 8], "range": [0, 1]}],
     "inputs[0].picture: found 'image' (str), expected null, unless"),
    ("inputs.0.null", "zero", "inputs[0].null: found 'zero' (str), expected numbers of float32"),
    ("inputs.0.null", [0.0, 0.0], "inputs[0].null: found [0.0, 0.0] (list), expected a number, or a list of shape [4]"),
    ("inputs.0.null", [[0.0] * 4], "expected a number, or a list of shape [4]"),
    ("inputs.0.null", [0.0, 0.0, [0.0], 0.0], "expected a number, or a list of shape [4]"),
    ("inputs.0.null", 1e39, "inputs[0].null: found 1e+39 (float), expected numbers of float32"),
    ("inputs.0.null", True, "inputs[0].null: found True (bool), expected numbers of float32"),
    ("inputs.0.more", 1, "inputs[0].more: found an unknown field"),
    ("inputs", [Z, Z], "inputs[1].name: found 'z' (str), expected a name of its own"),
    ("inputs", [Z, Z | {"name": "w"}], "inputs[1].draw: found 'normal' (str), expected null: one input is drawn already"),
    ("inputs.0.draw", "each_step", "inputs[0].draw: found 'each_step' (str), expected null, unless the input is float32, "
     "unbounded and of fixed dimensions, but for 'steps' behind 'batch'"),
    ("inputs", [Z, FRESH | {"shape": ["batch", "steps", "width"]}], "inputs[1].draw: found 'each_step' (str), expected"),
    ("inputs", [Z, FRESH | {"shape": ["batch", 4, "steps"]}], "inputs[1].draw: found 'each_step' (str), expected"),
    ("inputs", [Z, FRESH, FRESH | {"name": "v"}], "inputs[2].draw: found 'each_step' (str), expected null: one input is"),
    ("inputs", [], "pipeline.encode: found"),
    # calls
    ("pipeline.before", {}, "pipeline.before: found {} (object), expected a list of calls"),
    ("pipeline.before.0", call(graph="decoder"), "pipeline.before[0].graph: found 'decoder' (str), expected one of the bu"),
    ("pipeline.before.0.inputs.z", "y", "pipeline.before[0].inputs.z: found 'y' (str), expected a value that something ma"),
    ("pipeline.before.0.inputs.z", "recon", "pipeline.before[0].inputs.z: found 'recon' (str), expected a value that is t"),
    ("pipeline.before.0.inputs", {}, "pipeline.before[0].inputs.z: missing, expected the name of a value: the graph has z"),
    ("pipeline.before.0.inputs.w", "z", "pipeline.before[0].inputs.w: found an unknown field, expected only z"),
    ("pipeline.before.0.outputs", {}, "pipeline.before[0].outputs.image: missing, expected the name of a value"),
    ("pipeline.before.0.outputs.image", "z", "pipeline.before[0].outputs.image: found 'z' (str), expected a new name"),
    ("pipeline.before.0.outputs.image", "image", "pipeline.before[0].outputs.image: found 'image' (str), expected a new n"),
    ("pipeline.before", [call(), call()], "pipeline.before[1].outputs.image: found 'recon' (str), expected a new name"),
    ("pipeline.before.0.outputs.image", "other", "pipeline.state.centre"),
    ("graphs.vae_decoder.outputs.0.shape", ["batch", "k", 8, 8],
     "pipeline.before[0].outputs.image: found 'recon' (str), expected an output whose sizes follow from the inputs: 'k' of"),
    ("graphs.vae_decoder.outputs.0.shape", [2, 3, 8, 8],
     "pipeline.before[0].outputs.image: found 'recon' (str), expected a value with 'batch' as the first dimension"),
    ("graphs.vae_decoder.outputs.0.shape", ["batch", "batch", 8, 8], "pipeline.before[0].outputs.image: found 'recon'"),
    # rows and step
    ("pipeline.rows.inputs.timesteps", "z", "pipeline.rows.inputs.timesteps: found 'z' (str), expected a value that fits"),
    ("pipeline.rows.outputs.rows", "table", "pipeline.rows.outputs: found {'rows': 'table'} (object), expected one output"),
    ("pipeline.rows.graph", "denoiser", "pipeline.rows.inputs.x: missing"),
    ("pipeline.step.inputs.x", "recon", "pipeline.step: found"),
    ("pipeline.step.inputs.row", "z", "pipeline.step.inputs.row: found 'z' (str), expected a value that fits row float32["),
    ("pipeline.step.inputs.cond", "z", "pipeline.step.inputs.cond: found 'z' (str), expected a value that fits cond"),
    ("pipeline.step.inputs.cond", "z_logvar", "pipeline.step.inputs.cond: found 'z_logvar' (str), expected a value that s"),
    ("pipeline.step.outputs.eps", "eps", "pipeline.step.outputs: found {'eps': 'eps'} (object), expected one output, whic"),
    ("pipeline.step.outputs.eps", "variance", "pipeline.step.outputs: found {'eps': 'variance'} (object), expected one out"),
    # encode
    ("pipeline.encode.0.outputs.mu", "mu", "pipeline.encode: found"),
    ("pipeline.encode.0.outputs.mu", "x", "pipeline.encode[0].outputs.mu: found 'x' (str), expected another name"),
    ("pipeline.encode.0.inputs.image", "z", "pipeline.encode[0].inputs.image: found 'z' (str), expected a value that some"),
    # state, nulls, image
    ("pipeline.state.height", 9, "pipeline.state.centre: found 'recon' (str), expected a value of float32[batch, 3, 9, 8]"),
    ("pipeline.state.channels", 0, "pipeline.state.channels: found 0 (int)"),
    ("pipeline.state.clip", 0, "pipeline.state.clip: found 0 (int), expected a number in 1e-06..1e+06"),
    ("pipeline.state.centre", "y", "pipeline.state.centre: found 'y' (str), expected an input or a value that `before` ma"),
    ("pipeline.state.centre", "z", "pipeline.state.centre: found 'z' (str), expected a value of float32[batch, 3, 8, 8]"),
    ("pipeline.nulls.z", 0.0, "pipeline.nulls.z: found 0.0 (float), expected a null of a value that `before` makes: recon"),
    ("pipeline.nulls.recon", None, "pipeline.nulls.recon: found null, expected a number or a nested list"),
    ("pipeline.nulls.recon", [1.0], "pipeline.nulls.recon: found [1.0] (list), expected a number, or a list of shape [3"),
    ("pipeline.image", "recon", "pipeline.image: found 'recon' (str), expected one of 'x'"),
    ("pipeline.loop", [], "pipeline.loop: found an unknown field"),
    ("pipeline.quantize", ABSENT, "pipeline.quantize: missing, expected"),
    ("pipeline.quantize", call(), "pipeline.quantize.inputs.z: found 'z' (str), expected a value that something makes"),
    ("pipeline.quantize", call(inputs={"z": "x0"}), "pipeline.quantize.inputs.z: found 'x0' (str), expected a value that"),
    # maps: the encoder makes z of a picture, and the decoder a picture of z
    ("pipeline.maps", ABSENT, "pipeline.maps: missing, expected null, or a list of different inputs that lie over the st"),
    ("pipeline.maps", {}, "pipeline.maps: found {} (object), expected null, or a list of different inputs"),
    ("pipeline.maps", ["recon"], "pipeline.maps: found ['recon'] (list), expected null, or a list of different inputs"),
    ("pipeline.maps", [["z"]], "expected null, or a list of different inputs"),
    ("pipeline.maps", ["z", "z"], "expected null, or a list of different inputs"),
    ("pipeline.maps", ["z"], "expected null, as z is float32[batch, 4], which is no whole multiple of the state's 8 x 8"),
    ("pipeline.maps", [], "pipeline.maps: found [] (list), expected null, as z is float32[batch, 4], which is no whole"),
    ("pipeline.multiple", ABSENT, "pipeline.multiple: missing, expected an integer in 1..65536, or null"),
    ("pipeline.multiple", 2.0, "pipeline.multiple: found 2.0 (float), expected an integer in 1..65536, or null"),
    ("pipeline.multiple", 8, "pipeline.multiple: found 8 (int), expected null where maps is null"),
    ("pipeline.after", [call()], "pipeline.after[0].outputs.image: found 'recon' (str), expected a new name"),
]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED, ids=[f"{f[:40]}={v!r:.20}" for f, v, _ in REFUSED])
def test_one_wrong_field_is_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    bundle = toy.build_bundle(tmp_path / "toy.bundle", 2)
    check_refused(bundle, field, value, message)


def test_what_lies_over_the_state_is_a_matter_of_the_calls(tmp_path: Path) -> None:
    """Without an encoder the chain would still start from what is made of no map."""
    bundle = toy.build_bundle(tmp_path / "toy.bundle", 2)
    edit(bundle, "pipeline.encode", [])
    edit(bundle, "graphs.vae_encoder", ABSENT)
    check_refused(bundle, "pipeline.maps", [], "expected null, as recon does not lie over the state")
    alone = toy.build_bundle(tmp_path / "alone.bundle", None)
    assert Bundle.open(alone).manifest.pipeline.maps == {"x": 1, "x0": 1, "e": 1, "variance": 1}
    check_refused(alone, "pipeline.multiple", 3, "pipeline.multiple: found 3 (int), expected a divisor of the state's 8 x 8")


def test_a_cycle_is_called_one(bundle: Path) -> None:
    first, second = call(outputs={"image": "one"}), call(outputs={"image": "recon"})
    first["inputs"] = {"z": "recon"}
    edit(bundle, "pipeline.before", [first, second])
    check_refused(bundle, "name", "toy", "pipeline.before[0].inputs.z: found 'recon' (str), expected a value that is there")
    with pytest.raises(BundleError, match="a cycle"):
        Bundle.open(bundle)


def test_a_free_dimension_is_one_size(bundle: Path) -> None:
    """Two inputs of one graph share a free dimension there, but are 4 and 5 wide in the manifest."""
    edit(bundle, "inputs", [Z, Z | {"name": "w", "shape": ["batch", 5], "draw": None}])
    raw = json.loads((bundle / "manifest.json").read_text())
    tensors = raw["graphs"]["vae_decoder"]["inputs"]
    tensors[0]["shape"] = ["batch", "width"]
    edit(bundle, "graphs.vae_decoder.inputs", [*tensors, tensors[0] | {"name": "w"}])
    edit(bundle, "pipeline.before.0.inputs", {"z": "z", "w": "w"})
    check_refused(bundle, "name", "toy", "pipeline.before[0].inputs.w: found 'w' (str), expected a value that fits w")
    with pytest.raises(BundleError, match=r"its dimension 'width' is 4 already"):
        Bundle.open(bundle)


def test_a_graph_that_the_pipeline_never_runs_is_refused(bundle: Path) -> None:
    edit(bundle, "pipeline.encode", [])
    check_refused(bundle, "name", "toy", "graphs.vae_encoder: found")


def test_versions_and_families_do_not_matter_to_the_engine(bundle: Path) -> None:
    edit(bundle, "family", "something-else")
    assert Bundle.open(bundle).manifest.family == "something-else"


def test_which_values_have_a_null(tmp_path: Path) -> None:
    def pipeline(**kind: Any) -> PipelineSpec:
        return Bundle.open(toy.build_bundle(tmp_path / "b", **kind)).manifest.pipeline

    plain, by_z, without = pipeline(), pipeline(z_conditioned=True), pipeline(formulation=None)
    assert (plain.guided, by_z.guided, without.guided) == (True, True, False)
    assert plain.has_null("recon")
    assert not plain.has_null("z")
    assert by_z.has_null("z")
    assert not by_z.null_is_computed("recon"), "a null of its own comes first"
    edit(tmp_path / "b", "pipeline", ABSENT)
    toy.build_bundle(tmp_path / "c", z_conditioned=True)
    edit(tmp_path / "c", "pipeline.nulls", {})
    assert Bundle.open(tmp_path / "c").manifest.pipeline.null_is_computed("recon"), "made by the decoder from z's null"


NOT_UINT8 = [300, -1, 256, 0.5, [[0]], True, "0"]


def with_mask(bundle: Path, null: Any) -> None:
    """Let the decoder make a uint8 value too, of which this is the null."""
    outputs = json.loads((bundle / "manifest.json").read_text())["graphs"]["vae_decoder"]["outputs"]
    mask = {"name": "mask", "dtype": "uint8", "shape": ["batch", 2], "range": "unbounded"}
    edit(bundle, "graphs.vae_decoder.outputs", [outputs[0], mask])
    edit(bundle, "pipeline.before.0.outputs.mask", "mask")
    edit(bundle, "pipeline.nulls.mask", null)


def test_the_null_of_a_value_of_uint8(bundle: Path) -> None:
    for null in (255, [0, 255]):
        with_mask(bundle, null)
        assert Bundle.open(bundle).manifest.pipeline.nulls["mask"].tolist() == null
    for null in NOT_UINT8:
        with_mask(bundle, null)
        with pytest.raises(BundleError, match=r"pipeline\.nulls\.mask: found .*(integers of uint8|or a list)"):
            Bundle.open(bundle)


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "expected"),
    [(0, "int64", (), np.array(0)), (1000, "int64", (2,), np.array(1000)), ([1, 2], "float32", (2,), np.float32([1, 2])),
     ([[1], [2]], "int64", (2, 1), np.array([[1], [2]]))],
)  # fmt: skip
def test_nulls_are_numbers_or_whole_samples(value: Any, dtype: str, shape: tuple[int, ...], expected: Any) -> None:
    from engine.bundle.fields import Fields

    null = parse_null(Fields({"null": value}, "x", ""), "null", shape, dtype, None)
    np.testing.assert_array_equal(null, expected)
    assert null is not None
    assert null.dtype == dtype


def test_nulls_are_made_once_and_kept_of_a_few_shapes() -> None:
    """What a call makes of nulls alone is the same for every request; of free sizes the last few are kept."""
    made: list[int] = []

    def encode(_: CallSpec, values: dict[str, Any]) -> dict[str, Any]:
        made.append(values["tokens"].shape[1])
        return {"context": np.float32([values["tokens"]])}

    encoder = CallSpec("encoder", {"tokens": "tokens"}, {"context": "context"})
    state = StateSpec(1, 1, 1, None, None, None)
    step = CallSpec("denoiser", {"x": "x", "context": "context"}, {"e": "e"})
    spec = PipelineSpec((), (encoder,), step, step, None, (), {"tokens": np.int64(7)}, state, "x", {})
    bindings = Bindings(spec, encode)
    for length in (3, 3, 4, 3, *range(5, 5 + KEPT_SHAPES), 3):
        values = {"tokens": np.zeros((2, length), np.int64), "context": np.zeros((2, length), np.float32)}
        assert bindings.null("context", values).shape[-1] == length
    assert made == [3, 4, *range(5, 5 + KEPT_SHAPES), 3]
