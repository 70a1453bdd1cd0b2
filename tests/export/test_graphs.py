"""Exported graphs are what a bundle promises: named tensors, free batch, no weight twice, nothing of the builder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engine.bundle.onnx_file import PAGE, Onnx, with_weights
from engine.bundle.reader import Bundle
from engine.errors import ExportError
from export.families.diffusevae.graphs import roles
from export.graphs import onnx_export
from export.graphs.onnx_export import OPSET, export_onnx, fixed
from export.graphs.parity import LOADERS, load_onnxruntime, measure, relative_error
from export.graphs.roles import OTHER_SEEDS, FreeSize, Role, entry_of, example, tensor, with_rows
from export.models.graphs import TimestepTable
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec

GoldenBundle = Callable[[str], Path]
VAE_SPEC = VAESpec(4, "4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1", "4:64,1:8", "4:64,1:8")
T = 20


@pytest.fixture(scope="module")
def wanted() -> dict[str, Role]:
    """The roles of a model so small that its export takes a second."""
    torch.manual_seed(0)
    unet = UNet(UNetSpec("openai", 4, 6, 3, 32, (1,), 1, (), 2, z_dim=8, scale_shift=True))
    return roles(unet.eval(), VAE(VAE_SPEC).eval(), T)


@pytest.fixture(scope="module")
def decoder(wanted: dict[str, Role]) -> bytes:
    return export_onnx(wanted["vae_decoder"]).data


def table_of(wanted: dict[str, Role]) -> TimestepTable:
    table = wanted["timestep_table"].module
    assert isinstance(table, TimestepTable)
    return table


@pytest.fixture(scope="module")
def small() -> Role:
    """A denoiser of two levels with attention, made for 8 x 8."""
    torch.manual_seed(0)
    return roles(UNet(UNetSpec("openai", 8, 3, 3, 32, (1, 1), 1, (1,), 2)).eval(), None, T)["denoiser"]


FREE = FreeSize({"x": 1, "eps": 1}, 2, (8, 8))


@pytest.fixture(scope="module")
def loose(small: Role) -> bytes:
    return export_onnx(small, FREE).data


class TestFreeSize:
    def test_the_file_takes_any_size(self, small: Role, loose: bytes) -> None:
        shapes = [[d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim] for info in (
            onnx.load_from_string(loose).graph.input[0], onnx.load_from_string(loose).graph.output[0],
        )]  # fmt: skip
        assert shapes == 2 * [["batch", 3, "height", "width"]]
        for height, width in ((8, 8), (2, 2), (6, 14)):
            other = FREE.at(small, height, width)
            inputs = example(other, 2, 3, 0)
            run = load_onnxruntime(loose, other, dataclasses.replace(FREE, own=(height, width)))
            found = run({name: value.numpy() for name, value in inputs.items()})["eps"]
            assert relative_error(found, other(inputs)["eps"].numpy()) <= 1e-5

    def test_a_size_that_is_settled_is_as_if_there_were_no_other(self, small: Role, loose: bytes) -> None:
        """Its bits, and next to none of the nodes that sizes are computed with."""
        alone, settled = export_onnx(small).data, fixed(loose, small, FREE)
        nodes, plain = (onnx.load_from_string(data).graph.node for data in (settled, alone))
        assert len(nodes) <= len(plain) + 6
        assert sum(node.op_type == "Shape" for node in nodes) <= sum(node.op_type == "Shape" for node in plain) + 1
        assert fixed(loose, small, FREE) == settled
        inputs = {name: value.numpy() for name, value in example(small, 2, 3, 0).items()}
        for load in LOADERS.values():
            expected = load(alone)(inputs)["eps"]
            np.testing.assert_array_equal(load(loose, small, FREE)(inputs)["eps"], expected)
            np.testing.assert_array_equal(load(settled)(inputs)["eps"], expected)


class TestExport:
    def test_the_same_weights_give_the_same_bytes(self, wanted: dict[str, Role], decoder: bytes) -> None:
        assert export_onnx(wanted["vae_decoder"]) == Onnx(decoder)

    def test_z_conditioned_table(self, wanted: dict[str, Role]) -> None:
        role = wanted["timestep_table"]
        errors = measure(role, export_onnx(role), ["onnxruntime", "openvino"])
        assert max(errors.values()) <= 1e-5
        rows = role.module(**example(role, batch=3, steps=4, seed=1))
        assert rows.shape == (4, 3, wanted["denoiser"].inputs[-1].shape[1])

    def test_any_batch(self, wanted: dict[str, Role], decoder: bytes) -> None:
        z = example(wanted["vae_decoder"], batch=7, steps=1, seed=3)
        expected = wanted["vae_decoder"].module(**z).detach().numpy()
        for load in LOADERS.values():
            found = load(decoder)({"z": z["z"].numpy()})["image"]
            assert relative_error(found, expected) <= 1e-5

    def test_weights_that_do_not_fit_into_a_file_lie_outside(
        self, wanted: dict[str, Role], decoder: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_export, "INSIDE", 10_000)
        role, found = wanted["vae_decoder"], export_onnx(wanted["vae_decoder"])
        sizes = {name: array.nbytes for name, array in found.weights.items()}
        assert min(sizes.values()) >= PAGE
        assert len(found.data) + sum(sizes.values()) < len(decoder) + 10_000
        packed = bytearray(b"".join(found.pieces()))
        again = with_weights(found.data, "here", "vae_decoder.weights", memoryview(packed))
        assert all(np.array_equal(again.weights[name], array) for name, array in found.weights.items())
        assert measure(role, again, list(LOADERS)) == measure(role, decoder, list(LOADERS))
        labels = {entry.key: entry.value for entry in onnx.load_from_string(found.data).metadata_props}
        assert labels["weights_sha256"] == hashlib.sha256(packed).hexdigest()

    def test_the_signature_is_checked(self, wanted: dict[str, Role]) -> None:
        role = wanted["vae_decoder"]
        other = Role(role.name, role.module, role.inputs, (role.inputs[0],))
        with pytest.raises(ExportError, match=r"graph vae_decoder: found the outputs .*expected.*pip install"):
            export_onnx(other)


class TestGoldenGraphs:
    def test_nothing_of_the_builder_is_in_a_file(self, golden_bundle: GoldenBundle) -> None:
        bundle = Bundle.open(golden_bundle("form1"))
        for key in bundle.manifest.graphs:
            data = bundle.read_graph(key)
            for trace in (b"site-packages", b"stack_trace", b".py", b"/home", b"fx_node", str(Path.cwd()).encode()):
                assert trace not in data, (key, trace)

    def test_what_a_file_says_about_itself(self, golden_bundle: GoldenBundle) -> None:
        bundle = Bundle.open(golden_bundle("form1"))
        for key, spec in bundle.manifest.graphs.items():
            model = onnx.load_from_string(bundle.read_graph(key))
            labels = {prop.key: prop.value for prop in model.metadata_props}
            assert (labels["format"], labels["graph"], labels["precision"]) == ("diffusevae-graph", key, "f32")
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
            assert spec.opset == OPSET
            names = [tensor["name"] for tensor in json.loads(labels["inputs"])]
            assert names == [info.name for info in model.graph.input] == [tensor.name for tensor in spec.inputs]
            assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        ranges = {tensor.name: tensor.range for tensor in bundle.manifest.graphs["denoiser"].inputs}
        assert ranges == {"x": None, "cond": (-1.0, 1.0), "row": None}
        assert bundle.manifest.graphs["timestep_table"].inputs[0].range == (0.0, 999.0)
        assert bundle.manifest.graphs["vae_encoder"].inputs[0].range == (0.0, 1.0)
        assert bundle.manifest.graphs["vae_decoder"].outputs[0].range == (-1.0, 1.0)

    def test_no_weight_is_stored_twice(self, golden_bundle: GoldenBundle) -> None:
        bundle = Bundle.open(golden_bundle("form1"))
        fields = bundle.manifest.architecture["unet"]
        spec = UNetSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        with torch.device("meta"):
            weights = {key: tensor.numel() for key, tensor in UNet(spec).state_dict().items()}
        embedding = sum(n for key, n in weights.items() if key.startswith("time_mlp") or ".emb." in key)
        torso = sum(weights.values()) - embedding
        stored = {
            key: sum(int(np.prod(t.dims)) for t in onnx.load_from_string(bundle.read_graph(key)).graph.initializer)
            for key in ("timestep_table", "denoiser")
        }
        assert torso <= stored["denoiser"] <= torso * 1.01
        sinusoids = 1000 * spec.model_channels
        assert embedding + sinusoids <= stored["timestep_table"] <= (embedding + sinusoids) * 1.01


class TestParity:
    def test_a_wrong_weight_is_noticed_by_every_runtime(self, wanted: dict[str, Role], decoder: bytes) -> None:
        model = onnx.load_from_string(decoder)
        weight = next(t for t in model.graph.initializer if t.name.endswith("last_conv.weight"))
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 1e-2
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        for name in LOADERS:
            message = rf"graph vae_decoder: found a relative error of \S+ in {name} against torch, expected at most 5e-05"
            with pytest.raises(ExportError, match=message):
                measure(wanted["vae_decoder"], model.SerializeToString(), [name])

    @pytest.mark.parametrize("name", LOADERS)
    def test_a_graph_that_does_not_load(self, wanted: dict[str, Role], decoder: bytes, name: str) -> None:
        with pytest.raises(ExportError, match=f"graph vae_decoder: found that {name} cannot run it"):
            measure(wanted["vae_decoder"], decoder[: len(decoder) // 2], [name])

    def test_relative_error(self) -> None:
        ones = np.ones((2, 2), np.float32)
        assert relative_error(ones, ones) == 0
        assert relative_error(ones * 1.5, ones * 2) == 0.25
        assert relative_error(ones[:1], ones) == float("inf")
        assert relative_error(ones * 0, ones * 0) == 0
        assert np.isnan(relative_error(ones * np.nan, ones))

    def test_inputs_are_those_of_sampling(self, wanted: dict[str, Role]) -> None:
        last = T - 1
        examples = with_rows({"denoiser": (wanted["timestep_table"], "row")})
        times = [example(wanted["timestep_table"], 1, steps, 0)["timesteps"].tolist() for steps in (1, 3)]
        assert times == [[last], [last, round(last / 2), 0]]
        inputs = examples(wanted["denoiser"], 5, 1, 0)
        others = examples(wanted["denoiser"], 5, 1, 1)
        assert inputs["row"].shape == (5, wanted["denoiser"].inputs[-1].shape[1])
        table = table_of(wanted)
        z = example(wanted["timestep_table"], 5, 3, 1 + OTHER_SEEDS)["z"]
        assert torch.equal(others["row"], table(torch.tensor([round(last / 2)]), z)[0]), "one timestep a seed"
        assert inputs["cond"].min() < -0.9
        assert inputs["cond"].abs().max() <= 1
        image = example(wanted["vae_encoder"], 5, 1, 0)["image"]
        assert 0 <= image.min() < image.max() <= 1


def test_a_signature_is_said_once(wanted: dict[str, Role]) -> None:
    role = wanted["timestep_table"]
    spec = role.spec()
    assert (spec.inputs, spec.outputs, spec.precision) == (role.inputs, role.outputs, "f32")
    assert [spec.computes_in(asked) for asked in ("f32", "bf16", "fp16", "int8")] == ["f32"] * 4
    assert wanted["vae_decoder"].spec().computes_in("int8") == "bf16"
    assert wanted["denoiser"].spec().computes_in("int8") == "int8"
    assert entry_of(tensor("tokens", ("batch", "words"), "int64", (0.0, 9.0))) == {
        "name": "tokens", "dtype": "int64", "shape": ["batch", "words"], "range": [0.0, 9.0],
    }  # fmt: skip


def test_examples_of_any_input() -> None:
    takes = (tensor("tokens", ("batch", "words"), "int64", (2.0, 5.0)), tensor("x", ("batch", 2)))
    role = Role("text_encoder", torch.nn.Identity(), takes, takes)
    inputs = example(role, 50, 1, 0)
    assert set(inputs["tokens"].flatten().tolist()) == {2, 3, 4, 5}
    assert inputs["tokens"].shape[0] == inputs["x"].shape[0] == 50
