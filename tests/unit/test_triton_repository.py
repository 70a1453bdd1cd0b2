"""`diffusevae triton-repo`: it writes what Triton can read, whole or not at all, and destroys nothing."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.bundle.examples import example_inputs
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.cli.main import cli
from engine.errors import ArgumentError, BackendError, BundleError
from engine.triton import repository
from engine.triton.config import model_config
from engine.triton.pbtxt import Word, quoted, text_of
from engine.triton.repository import RepositoryError, write_repository
from engine.triton.serving import Serving, settle
from engine.triton.tensors import declared_of
from tests import guided_toy, regularised_toy, toy
from tests.fake_triton import as_json
from tests.manifests import edit, full_files, full_manifest
from tests.samplers import bundle
from tests.toy_family import build_family


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with native and TensorRT engines and a whole-sampler graph; none of them can run."""
    models = toy.models_of(1, 8, 4, False)
    path = tmp_path_factory.mktemp("full") / "full.bundle"
    write_bundle(path, full_manifest(models), full_files(models))
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["triton-repo", *map(str, arguments)], prog_name="diffusevae")


def parsed(config: Path) -> Any:
    """config.pbtxt as Triton's own message; ParseError for a field or a value that Triton does not know."""
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    from google.protobuf import text_format

    return text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())


def as_dict(config: Path) -> dict[str, Any]:
    """The same as Triton's JSON, with numbers for the 64-bit integers that protobuf's JSON has as text."""
    message = parsed(config)
    from google.protobuf import json_format

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numbers(one) if key != "string_value" else one for key, one in value.items()}
        if isinstance(value, list):
            return [numbers(one) for one in value]
        return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value

    return dict(numbers(json_format.MessageToDict(message, preserving_proto_field_name=True)))


SETTING = ("steps", "setting", "timesteps", "spacing", "rho", "method", "eta", "temperature", "noise_scale", "eps_scale")
LISTS = ("timesteps", "eta", "noise_scale", "eps_scale")


class TestConfig:
    @pytest.mark.parametrize("kind", ["form1", "form2", "zcond", "uncond", "recorded"])
    def test_triton_reads_back_what_was_meant(self, kind: str, tmp_path: Path) -> None:
        written = write_repository(bundle(kind), tmp_path / "repo", Serving(name=kind))
        manifest = Bundle.open(bundle(kind)).manifest
        found = as_dict(written.model / "config.pbtxt")
        assert found == as_json(model_config(manifest, written.settled)) | {"name": kind}

    def test_a_model_with_an_input_and_a_start(self, tmp_path: Path) -> None:
        config = parsed(write_repository(bundle(), tmp_path).model / "config.pbtxt")
        assert (config.name, config.backend, config.max_batch_size) == ("toy", "python", 16)
        names = {tensor.name: list(tensor.dims) for tensor in config.input}
        one = ("seed", "steps", "setting", "spacing", "rho", "method", "temperature", "t_start", "guidance")
        assert names == {"z": [4]} | {name: [1] for name in one} | {name: [-1] for name in LISTS} | {
            "guidance_interval": [2]
        }
        assert [tensor.name for tensor in config.input if not tensor.optional] == ["seed"]
        assert {tensor.name: list(tensor.dims) for tensor in config.output} == {
            "image": [8, 8, 3], "recon": [8, 8, 3], "z": [4],
        }  # fmt: skip
        assert config.dynamic_batching.max_queue_delay_microseconds == 2000
        assert list(config.dynamic_batching.preferred_batch_size) == []
        assert not config.dynamic_batching.HasField("default_queue_policy")
        samples = [(sample.name, sample.batch_size) for sample in config.model_warmup]
        assert samples == [("one sample", 1), ("full batch", 16)]
        assert all(sample.inputs["seed"].zero_data for sample in config.model_warmup)
        assert config.version_policy.latest.num_versions == 1
        assert [(group.count, group.Kind.Name(group.kind)) for group in config.instance_group] == [(1, "KIND_CPU")]
        values = {key: value.string_value for key, value in config.parameters.items()}
        assert values == {"backend": "openvino", "precision": "auto", "threads": "auto", "max_steps": "100"}
        assert not config.response_cache.enable

    def test_a_model_without_inputs(self, tmp_path: Path) -> None:
        config = parsed(write_repository(bundle("uncond"), tmp_path).model / "config.pbtxt")
        assert [tensor.name for tensor in config.input] == ["seed", *SETTING]
        assert [tensor.name for tensor in config.output] == ["image"]

    def test_another_family(self, tmp_path: Path) -> None:
        """An input that must be given is no optional tensor, a single number is [1], and the warm-up sends it too."""
        path = build_family(tmp_path / "latents.bundle")
        config_file = write_repository(path, tmp_path / "repo").model / "config.pbtxt"
        config = parsed(config_file)
        own = ["seed", "label", "style"]
        assert [tensor.name for tensor in config.input] == [*own, *SETTING, "guidance", "guidance_interval"]
        assert [tensor.name for tensor in config.input if not tensor.optional] == ["seed", "label"]
        kinds = {tensor["name"]: (tensor["data_type"], tensor["dims"]) for tensor in as_dict(config_file)["input"]}
        assert (kinds["label"], kinds["style"]) == (("TYPE_INT64", [1]), ("TYPE_FP32", [5]))
        assert {tensor.name: list(tensor.dims) for tensor in config.output} == {"image": [12, 16, 3], "style": [5]}
        for sample in config.model_warmup:
            assert sorted(sample.inputs) == ["label", "seed"]
            assert all(tensor.zero_data for tensor in sample.inputs.values())

    def test_guides(self, tmp_path: Path) -> None:
        """Their options are inputs, and what they alone read can be left out."""
        path = guided_toy.build(tmp_path / "guided.bundle")
        config = parsed(write_repository(path, tmp_path / "repo").model / "config.pbtxt")
        options = ["guide_scale", "guide_mode", "guide_interval"]
        assert [tensor.name for tensor in config.input] == ["seed", "label", *SETTING, *options]
        assert [tensor.name for tensor in config.input if not tensor.optional] == ["seed"]
        for sample in config.model_warmup:
            assert sorted(sample.inputs) == ["label", "seed"]

    def test_a_regulariser(self, tmp_path: Path) -> None:
        path = regularised_toy.build(tmp_path / "regularised.bundle")
        config = parsed(write_repository(path, tmp_path / "repo").model / "config.pbtxt")
        found = [tensor.name for tensor in config.input if tensor.name.startswith("regularise")]
        assert found == ["regularise", "regularise_interval"]

    def test_zeros_that_are_out_of_range_warm_nothing_up(self, tmp_path: Path) -> None:
        """Triton fills a warm-up's tensors with zeros; the model's own warm-up takes the nearest number there is."""
        path = build_family(tmp_path / "latents.bundle")
        edit(path, "inputs.0.range", [1, 10])
        manifest = Bundle.open(path).manifest
        assert model_config(manifest, settle(Bundle.open(path), Serving()))["model_warmup"] == []
        assert example_inputs(manifest)["label"].tolist() == 1

    def test_free_dimensions_are_minus_one(self, tmp_path: Path) -> None:
        opened = Bundle.open(build_family(tmp_path / "latents.bundle"))
        free = dataclasses.replace(opened.manifest.inputs[1], shape=("batch", "tokens", 5), draw=None)
        manifest = dataclasses.replace(opened.manifest, inputs=(opened.manifest.inputs[0], free))
        (tensor,) = (tensor for tensor in declared_of(manifest) if tensor.name == "style")
        assert (tensor.dims, tensor.optional) == ((-1, 5), False)
        assert tensor.fits((2, 77, 5), 2)
        assert not tensor.fits((2, 77, 6), 2)
        assert not tensor.fits((3, 77, 5), 2)
        assert example_inputs(manifest) is None, "which sizes the network takes is not known here"

    def test_one_sample_at_a_time_needs_no_batcher_but_for_a_bounded_queue(self, tmp_path: Path) -> None:
        plain = parsed(write_repository(bundle(), tmp_path, Serving(max_batch=1)).model / "config.pbtxt")
        assert not plain.HasField("dynamic_batching")
        bounded = write_repository(bundle(), tmp_path, Serving(max_batch=1, max_queue=4), replace=True)
        assert parsed(bounded.model / "config.pbtxt").dynamic_batching.default_queue_policy.max_queue_size == 4

    def test_every_choice_is_written(self, tmp_path: Path) -> None:
        chosen = Serving(
            name="faces", max_batch=8, delay_us=0, instances=2, threads=3, backend="onnxruntime", precision="f32",
            max_steps=50, max_queue=64,
        )  # fmt: skip
        config = parsed(write_repository(bundle(), tmp_path, chosen).model / "config.pbtxt")
        assert (config.name, config.max_batch_size, config.instance_group[0].count) == ("faces", 8, 2)
        assert config.dynamic_batching.max_queue_delay_microseconds == 0
        assert config.dynamic_batching.default_queue_policy.max_queue_size == 64
        assert not config.dynamic_batching.default_queue_policy.allow_timeout_override
        assert config.model_warmup[1].batch_size == 8
        values = {key: value.string_value for key, value in config.parameters.items()}
        assert values == {"backend": "onnxruntime", "precision": "f32", "threads": "3", "max_steps": "50"}

    def test_a_batch_of_one_does_not_wait(self, tmp_path: Path) -> None:
        config = parsed(write_repository(bundle(), tmp_path, Serving(max_batch=1)).model / "config.pbtxt")
        assert (config.max_batch_size, config.dynamic_batching.max_queue_delay_microseconds) == (1, 0)
        assert [sample.name for sample in config.model_warmup] == ["one sample"]

    def test_a_gpu(self, full: Path, tmp_path: Path) -> None:
        config = parsed(write_repository(full, tmp_path, Serving(kind="gpu", instances=2)).model / "config.pbtxt")
        assert config.parameters["backend"].string_value == "tensorrt_rtx"
        group = config.instance_group[0]
        assert (group.count, group.Kind.Name(group.kind), list(group.gpus)) == (2, "KIND_GPU", [])

    def test_a_plan_says_which_batches_are_worth_not_waiting_beyond(self, full: Path) -> None:
        opened = Bundle.open(full)
        opened.manifest.engines[1].options["profile"] = {"batch": [1, 4, 16]}

        def preferred(**chosen: Any) -> Any:
            config: Any = model_config(opened.manifest, settle(opened, Serving(**chosen)))
            return config["dynamic_batching"].get("preferred_batch_size")

        assert preferred(kind="gpu") == [4, 16]
        assert preferred(kind="gpu", max_batch=8) == [4]
        assert preferred(kind="cpu") is None

    def test_onnxruntime_on_a_gpu_is_opened_on_the_first(self) -> None:
        opened = Bundle.open(bundle())
        settled = settle(opened, Serving())
        gpu = settled.__class__(**(vars(settled) | {"kind": "gpu", "backend": "onnxruntime-cuda"}))
        config: Any = model_config(opened.manifest, gpu)
        assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "gpus": [0]}]

    def test_the_bundle_beside_it_is_the_same(self, tmp_path: Path) -> None:
        written = write_repository(bundle(), tmp_path)
        assert Bundle.open(written.model / "1" / "bundle").manifest == Bundle.open(bundle()).manifest
        source = (written.model / "1" / "model.py").read_text()
        assert "from engine.triton.served import TritonPythonModel" in source
        compile(source, "model.py", "exec")


class TestText:
    def test_any_text_survives(self) -> None:
        model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
        from google.protobuf import text_format

        nasty = 'a "quote" \\ back\nline\r\ttab \x00\x07\x7f é 日本 } # {'
        text = text_of({"name": nasty, "max_batch_size": 3, "parameters": {"key": nasty, "value": {"string_value": nasty}}})
        found = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert (found.name, found.max_batch_size, found.parameters[nasty].string_value) == (nasty, 3, nasty)
        assert text.isascii()

    def test_lists_words_and_flags(self) -> None:
        text = text_of({"a": [1, 2], "b": [], "c": {"d": True, "e": Word("KIND_CPU")}, "f": [{"g": "x"}, {"g": "y"}]})
        assert text == 'a: [1, 2]\nc {\n  d: true\n  e: KIND_CPU\n}\nf {\n  g: "x"\n}\nf {\n  g: "y"\n}\n'

    def test_a_bundle_name_cannot_leave_its_comment(self, tmp_path: Path) -> None:
        models = toy.models_of(1, 8, 4, False)
        raw = toy.manifest_of(models, 1, 8, 4, False, ["onnxruntime"]) | {"name": 'évil"}{'}
        write_bundle(tmp_path / "a", raw, {f"{role}.onnx": model.SerializeToString() for role, model in models.items()})
        written = write_repository(tmp_path / "a", tmp_path / "repo")
        assert written.model.name == "vil"
        assert quoted('évil"}{') in (written.model / "config.pbtxt").read_text("ascii").splitlines()[0]
        assert parsed(written.model / "config.pbtxt").name == "vil"


class TestChoices:
    @pytest.mark.parametrize(
        ("chosen", "error", "message"),
        [
            ({"name": "a/b"}, ArgumentError, r"name: found 'a/b', expected letters, digits"),
            ({"name": ".."}, ArgumentError, r"name: found '\.\.'"),
            ({"name": ""}, ArgumentError, "name: found ''"),
            ({"name": "faces_graph"}, ArgumentError, "found 'faces_graph', expected one that does not end in _graph"),
            ({"name": "x" * 101}, ArgumentError, "at most 100"),
            ({"max_batch": 0}, ArgumentError, "max_batch: found 0, expected 1 to 4096; choose another --max-batch"),
            ({"delay_us": -1}, ArgumentError, "delay_us: found -1"),
            ({"instances": 0}, ArgumentError, "instances: found 0"),
            ({"threads": 0}, ArgumentError, "threads: found 0"),
            ({"max_queue": -1}, ArgumentError, "max_queue: found -1"),
            ({"max_steps": 9}, ArgumentError, "max_steps: found 9, expected 10 .the calls of what the bundle records"),
            ({"max_steps": 1001}, ArgumentError, "to 1000, the timesteps"),
            ({"kind": "gpus"}, ArgumentError, "kind: found 'gpus', expected one of cpu, gpu. Did you mean 'gpu'?"),
            ({"kind": "gpu"}, BackendError, "found a bundle for onnxruntime, openvino, expected one for --kind gpu"),
            ({"kind": "gpu", "backend": "openvino"}, ArgumentError, "'openvino' with --kind gpu, expected one of tensorrt"),
            ({"backend": "openvno"}, ArgumentError, "Did you mean 'openvino'?"),
            ({"backend": "native"}, BackendError, "found 'native', expected one that the bundle was built for: openvino,"),
            ({"precision": "bf61"}, ArgumentError, "precision: found 'bf61'.* Did you mean 'bf16'?"),
        ],
    )
    def test_refused_before_anything_is_written(
        self, chosen: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(error, match=message):
            write_repository(bundle(), tmp_path / "repo", Serving(**chosen))
        assert list(tmp_path.iterdir()) == []

    def test_an_engine_that_was_not_built(self, full: Path, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="expected native int8 denoiser; rebuild"):
            write_repository(full, tmp_path / "repo", Serving(precision="int8"))

    def test_native_comes_first(self, full: Path) -> None:
        assert settle(Bundle.open(full), Serving()).backend == "native"
        assert settle(Bundle.open(bundle()), Serving()).backend == "openvino"

    def test_a_backend_that_is_listed_but_has_no_engine(self, tmp_path: Path) -> None:
        path = toy.build_bundle(tmp_path / "a", backends=["native", "onnxruntime"])
        assert settle(Bundle.open(path), Serving()).backend == "onnxruntime"
        with pytest.raises(BackendError, match="found 'native', expected one that the bundle was built for: onnxruntime"):
            settle(Bundle.open(path), Serving(backend="native"))

    def test_the_limit_of_steps_holds_what_is_recorded(self, tmp_path: Path) -> None:
        for T, recorded, expected in ((1000, 10, 100), (50, 10, 50), (1000, 250, 250)):
            path = toy.build_bundle(tmp_path / f"{T}-{recorded}", T=T, defaults={"steps": recorded})
            assert settle(Bundle.open(path), Serving()).max_steps == expected


class TestWholeSampler:
    def test_a_model_for_stock_servers(self, full: Path, tmp_path: Path) -> None:
        written = write_repository(full, tmp_path, Serving(name="faces", threads=2))
        assert written.graph == tmp_path / "faces_graph"
        config = parsed(written.graph / "config.pbtxt")
        assert (config.name, config.platform, config.max_batch_size) == ("faces_graph", "onnxruntime_onnx", 0)
        assert config.default_model_filename == "model.onnx"
        inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
        assert inputs["x_T"] == [-1, 3, 8, 8]
        assert inputs["noise"] == [-1, -1, 3, 8, 8]
        assert inputs["start"] == [3]
        assert {tensor.name: list(tensor.dims) for tensor in config.output}["images"] == [-1, 8, 8, 3]
        assert config.parameters["intra_op_thread_count"].string_value == "2"
        assert (written.graph / "1" / "model.onnx").read_bytes() == (full / "sampler.onnx").read_bytes()

    def test_a_plan_of_tensorrt_proper_on_a_gpu(self, tmp_path: Path) -> None:
        models = toy.models_of(1, 8, 4, False)
        raw = full_manifest(models) | {"backends": ["onnxruntime", "tensorrt"]}
        plan = next(engine for engine in raw["engines"] if engine["backend"] == "tensorrt_rtx")
        whole = plan | {"graph": "sampler", "files": {"plan": {"file": "sampler.plan"}}, "backend": "tensorrt"}
        raw["engines"] = [plan | {"backend": "tensorrt"}, whole]
        files = {name: data for name, data in full_files(models).items() if "native" not in name} | {"sampler.plan": b"all"}
        write_bundle(tmp_path / "a", raw, files)
        written = write_repository(tmp_path / "a", tmp_path / "repo", Serving(kind="gpu", instances=2))
        assert (written.settled.backend, written.graph_platform) == ("tensorrt", "tensorrt_plan")
        assert written.graph is not None
        config = parsed(written.graph / "config.pbtxt")
        assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
        assert config.instance_group[0].Kind.Name(config.instance_group[0].kind) == "KIND_GPU"
        assert (written.graph / "1" / "model.plan").read_bytes() == b"all"
        cpu = write_repository(tmp_path / "a", tmp_path / "cpu")
        assert (cpu.settled.backend, cpu.graph_platform) == ("onnxruntime", "onnxruntime_onnx")

    def test_none_where_the_bundle_has_none(self, tmp_path: Path) -> None:
        assert write_repository(bundle(), tmp_path).graph is None
        assert [entry.name for entry in tmp_path.iterdir()] == ["toy"]

    def test_an_older_one_does_not_go_on_with_other_weights(self, full: Path, tmp_path: Path) -> None:
        write_repository(full, tmp_path)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["toy", "toy_graph"]
        write_repository(bundle(), tmp_path, replace=True)
        assert [entry.name for entry in tmp_path.iterdir()] == ["toy"]


class TestReplacing:
    def test_only_when_asked(self, tmp_path: Path) -> None:
        model = write_repository(bundle(), tmp_path).model
        before = (model / "config.pbtxt").stat().st_ino
        with pytest.raises(RepositoryError, match="found a model of this name, expected none; add --replace"):
            write_repository(bundle(), tmp_path)
        assert (model / "config.pbtxt").stat().st_ino == before
        write_repository(bundle("form2"), tmp_path, Serving(max_batch=4), replace=True)
        assert Bundle.open(model / "1" / "bundle").manifest.pipeline.state.centre == "recon"
        assert "max_batch_size: 4" in (model / "config.pbtxt").read_text()
        assert [entry.name for entry in tmp_path.iterdir()] == ["toy"]

    @pytest.mark.parametrize("what", ["folder", "file", "link", "config"])
    def test_nothing_that_it_did_not_write(self, what: str, tmp_path: Path) -> None:
        target = tmp_path / "repo" / "toy"
        target.parent.mkdir()
        if what == "file":
            target.write_text("mine")
        elif what == "link":
            (tmp_path / "elsewhere").mkdir()
            target.symlink_to(tmp_path / "elsewhere")
        else:
            target.mkdir()
            (target / ("config.pbtxt" if what == "config" else "notes")).write_text('name: "toy"\n')
        with pytest.raises(RepositoryError, match="found something that triton-repo did not write"):
            write_repository(bundle(), tmp_path / "repo", replace=True)
        assert os.path.lexists(target)

    def test_a_second_version_is_kept(self, tmp_path: Path) -> None:
        model = write_repository(bundle(), tmp_path).model
        (model / "2").mkdir()
        with pytest.raises(RepositoryError, match="found '2' beside the model, expected nothing"):
            write_repository(bundle(), tmp_path, replace=True)
        assert (model / "1" / "model.py").exists()

    def test_a_failure_leaves_the_old_model_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = write_repository(bundle(), tmp_path).model
        before = (model / "config.pbtxt").read_bytes()

        def full_disk(*_: Any) -> None:
            raise OSError(28, "No space left on device", str(model / "1" / "bundle"))

        monkeypatch.setattr(repository, "_write", full_disk)
        with pytest.raises(RepositoryError, match=r"cannot be written .No space left on device"):
            write_repository(bundle("form2"), tmp_path, Serving(max_batch=4), replace=True)
        assert (model / "config.pbtxt").read_bytes() == before
        assert Bundle.open(model / "1" / "bundle").manifest.pipeline.state.centre is None
        assert [entry.name for entry in tmp_path.iterdir()] == ["toy"]

    def test_other_models_stay(self, tmp_path: Path) -> None:
        (tmp_path / "other" / "1").mkdir(parents=True)
        write_repository(bundle(), tmp_path)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "toy"]

    def test_a_broken_bundle_is_never_copied(self, tmp_path: Path) -> None:
        broken = toy.build_bundle(tmp_path / "broken")
        data = bytearray((broken / "denoiser.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (broken / "denoiser.onnx").write_bytes(data)
        with pytest.raises(BundleError, match=r"denoiser.onnx: found SHA-256"):
            write_repository(broken, tmp_path / "repo")
        assert not (tmp_path / "repo").exists()

    def test_a_bundle_rebuilt_meanwhile_is_not_mixed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = toy.build_bundle(tmp_path / "a")

        def swapped(*arguments: Any) -> Any:
            toy.build_bundle(path, formulation=2)
            return settle(*arguments)

        monkeypatch.setattr(repository, "settle", swapped)
        with pytest.raises(RepositoryError, match="found another bundle than a moment ago"):
            write_repository(path, tmp_path / "repo")
        assert list((tmp_path / "repo").iterdir()) == []


class TestCommand:
    def test_says_what_it_wrote(self, tmp_path: Path) -> None:
        result = run(bundle(), "--out", tmp_path, "--name", "faces", "--max-batch", "4", "--threads", "2")
        assert result.exit_code == 0, result.output
        assert f"{tmp_path / 'faces'}: backend openvino, precision auto, 1 x cpu with 2 threads, batches of up to 4" in (
            result.stdout
        )
        assert f"tritonserver --model-repository {tmp_path}" in result.stdout
        assert "note: with openvino the batch around a sample may change" in result.stderr

    def test_the_whole_sampler_is_mentioned(self, full: Path, tmp_path: Path) -> None:
        result = run(full, "--out", tmp_path)
        assert f"{tmp_path / 'toy_graph'}: the whole sampler as onnxruntime_onnx" in result.stdout
        assert "backend native" in result.stdout
        assert result.stderr == ""

    def test_a_mistake_is_one_line(self, tmp_path: Path) -> None:
        result = run(bundle(), "--out", tmp_path, "--name", "a b")
        assert (result.exit_code, "Traceback" in result.output) == (1, False)
        assert "name: found 'a b', expected letters, digits" in result.stderr
        assert run(bundle()).exit_code == 2
