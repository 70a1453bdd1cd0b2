"""A checkpoint becomes a bundle that computes what the reference computed, and the command says what it does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from engine import backends
from engine.bundle.onnx_file import Onnx
from engine.bundle.reader import Bundle
from engine.commands import command
from engine.errors import ArgumentError, BackendError, BundleError, CheckpointError, ExportError
from export import build as building
from export import plan as planning
from export.build import Request, build, recognise
from export.build_engines import main, spread
from export.context import Watch
from export.engines import ENGINE_BUILDERS, BuildContext, BuiltEngine
from export.graphs.parity import relative_error
from export.graphs.roles import FreeSize, Role
from export.models.layouts import to_checkpoint
from export.models.unet import UNet, UNetSpec
from export.plan import BUILDABLE, check_backends, default_backends, plan_precisions
from export.read.schedule import linear
from tests import golden_models

ROOT = Path(__file__).resolve().parents[2]
GoldenBundle = Callable[[str], Path]
CONDITIONAL = [name for name in golden_models.NAMES if name != "uncond"]
BOUND = 1e-5


@pytest.fixture(scope="module", params=("onnxruntime", "openvino"))
def backend(request: pytest.FixtureRequest) -> str:
    ready, reason = backends.available()[request.param]
    if not ready:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The form1 checkpoint, for what goes wrong before any export."""
    return golden_models.write_checkpoint("form1", tmp_path_factory.mktemp("ckpt") / "form1.ckpt")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def tiny_checkpoint(path: Path) -> Path:
    """An unconditional model of one level, whose graphs export in a second or two."""
    torch.manual_seed(0)
    net = UNet(UNetSpec("openai", 4, 3, 3, 32, (1,), 1, (), 2))
    weights = to_checkpoint(net, net.state_dict())
    torch.save(
        {f"decoder.{key}": t for key, t in weights.items()} | {"betas": torch.linspace(1e-4, 0.02, 1000).double()}, path
    )
    return path


class TestGoldenParity:
    @pytest.mark.parametrize("name", golden_models.NAMES)
    @pytest.mark.parametrize(("weights", "key"), [("ema", "eps"), ("online", "eps_online")])
    def test_torch(self, name: str, weights: str, key: str, tmp_path: Path) -> None:
        """Both sets of weights, through the reader and our modules."""
        path = golden_models.write_checkpoint(name, tmp_path / "a.ckpt")
        request = Request(path, weights=weights, options=golden_models.build_options(name))
        unet, _ = recognise(request).networks()  # type: ignore[attr-defined]
        known = {k: torch.from_numpy(v) for k, v in golden_models.expected(name).items()}
        cond = 2 * known["vae_decode"] - 1 if "vae_decode" in known else None
        z = known["z"].flatten(1) if unet.spec.z_dim else None
        with torch.inference_mode():
            eps = unet(known["x_T"], cond, known["t"], z)
        assert relative_error(eps.numpy(), known[key].numpy()) <= BOUND

    @pytest.mark.parametrize("name", golden_models.NAMES)
    def test_denoiser(self, name: str, backend: str, golden_bundle: GoldenBundle) -> None:
        bundle, known = Bundle.open(golden_bundle(name)), golden_models.expected(name)
        times = {"timesteps": known["t"].astype(np.int64)}
        if bundle.manifest.pipeline.per_sample_rows:
            times["z"] = known["z"][:, :, 0, 0]
        with backends.load(bundle, "timestep_table", backend=backend) as table:
            rows = table(**times)["rows"].copy()
        found = []
        with backends.load(bundle, "denoiser", backend=backend) as denoiser:
            for i in range(len(known["t"])):
                inputs = {"x": known["x_T"][i : i + 1], "row": rows[i, i : i + 1] if rows.ndim == 3 else rows[i : i + 1]}
                if "vae_decode" in known:
                    inputs["cond"] = 2 * known["vae_decode"][i : i + 1] - 1
                found.append(denoiser(**inputs)["eps"].copy())
        assert relative_error(np.concatenate(found), known["eps"]) <= BOUND

    @pytest.mark.parametrize("name", CONDITIONAL)
    def test_vae(self, name: str, backend: str, golden_bundle: GoldenBundle) -> None:
        bundle, known = Bundle.open(golden_bundle(name)), golden_models.expected(name)
        with backends.load(bundle, "vae_encoder", backend=backend) as encoder:
            moments = encoder(image=known["img"])
            for key in ("mu", "logvar"):
                assert relative_error(moments[key], known[f"vae_{key}"][:, :, 0, 0]) <= BOUND
        with backends.load(bundle, "vae_decoder", backend=backend) as decoder:
            image = decoder(z=known["z"][:, :, 0, 0])["image"]
            assert relative_error((image + 1) / 2, known["vae_decode"]) <= BOUND


class TestManifest:
    def test_records_what_was_built(self, golden_bundle: GoldenBundle) -> None:
        path = golden_bundle("form1_zcond")
        manifest = Bundle.open(path).manifest
        cfg = golden_models.config("form1_zcond")
        assert (manifest.family, manifest.architecture["formulation"]) == ("diffusevae", 1)
        assert manifest.pipeline.state.shape == manifest.pipeline.image_shape == (3, cfg["res"], cfg["res"])
        assert [(spec.name, spec.shape, spec.draw) for spec in manifest.inputs] == [("z", ("batch", cfg["z_dim"]), "normal")]
        assert manifest.schedule == linear(1e-4, 0.02, 1000)
        assert manifest.prediction == "eps"
        assert (manifest.name, manifest.variance, manifest.backends) == (
            "form1_zcond", cfg["variance"], ("onnxruntime", "openvino"),
        )  # fmt: skip
        file = path.parent / "form1_zcond.ckpt"
        assert (manifest.source.file, manifest.source.weights) == ("form1_zcond.ckpt", "ema")
        assert manifest.source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        for graph in manifest.graphs.values():
            assert set(graph.parity.runtimes) == {"onnxruntime", "openvino"}
            assert 0 <= graph.parity.max_relative_error == max(graph.parity.runtimes.values()) <= BOUND
            assert graph.parity.batches == (1, 2, 5)
            assert graph.parity.reference == f"torch {torch.__version__} float32"
        assert manifest.built_with["torch"] and manifest.built_with["diffusevae-engine"]  # noqa: PT018


def test_a_model_whose_graphs_have_one_size_alone(
    golden_bundle: GoldenBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built for that one, with a note; the other size's graphs are those of a build that could."""
    old, notes = Bundle.open(golden_bundle("uncond")), []
    assert old.manifest.pipeline.multiple == 2  # it halves once

    def export(role: Role, free: FreeSize | None) -> Onnx:
        if free is not None:
            raise ExportError(f"graph {role.name}: found a constant")
        return Onnx(old.read_graph(role.name))

    class Heard(Watch):
        def note(self, text: str) -> None:
            notes.append(text)

    monkeypatch.setattr(building, "export_onnx", export)
    path = golden_models.write_checkpoint("uncond", tmp_path / "uncond.ckpt")
    request = Request(path, out=tmp_path / "b", backends=("onnxruntime",), options=golden_models.build_options("uncond"))
    assert Bundle.open(build(request, Heard()).path).manifest.pipeline.multiple is None
    assert [note for note in notes if "images of one size" in note and "found a constant" in note]


class TestRefusals:
    def test_an_old_bundle_survives_a_build_that_fails(
        self, checkpoint: Path, golden_bundle: GoldenBundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = golden_bundle("uncond")
        before = (old / "manifest.json").read_bytes()
        monkeypatch.setattr(building, "export_onnx", lambda role, free: Onnx(b"not a graph"))
        result = run(checkpoint, "--heads", "2", "--out", old)
        assert result.exit_code == 1
        assert "graph vae_encoder: found that onnxruntime cannot run it" in result.output
        assert (old / "manifest.json").read_bytes() == before
        Bundle.open(old)

    def test_a_place_that_is_taken(self, checkpoint: Path) -> None:
        with pytest.raises(BundleError, match="found a folder that is not a bundle"):
            build(Request(checkpoint, out=checkpoint.parent, options={"heads": 2}))
        with pytest.raises(ArgumentError, match=r"out .*form1.ckpt: found a file"):
            build(Request(checkpoint, out=checkpoint, options={"heads": 2}))

    def test_a_disk_that_is_too_small(self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(building, "export_graphs", lambda *_: pytest.fail("the work began"))
        monkeypatch.setattr("engine.places.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(ArgumentError, match=r"0\.0 MB free, expected about"):
            build(Request(checkpoint, out=tmp_path / "a.bundle", options={"heads": 2}))

    def test_defaults_that_cannot_be_sampled(self, tmp_path: Path) -> None:
        content = {
            "state_dict": golden_models.state_dict("form1"),
            "hyper_parameters": {"n_heads": 2, "defaults": {"steps": 2000}},
        }
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match=r"default sampling settings that cannot be used \(steps is 2000"):
            build(Request(tmp_path / "a.ckpt"))

    def test_backends(self) -> None:
        assert check_backends(["openvino"]) == ["onnxruntime", "openvino"]
        with pytest.raises(ArgumentError, match=r"--backends: found 'opnvino', expected .*Did you mean 'openvino'"):
            check_backends(["opnvino"])
        assert check_backends(["native", "tensorrt"]) == ["onnxruntime"], "graphs are checked in what runs graphs"
        with pytest.raises(ArgumentError, match=r"--backends: found 'cuda', expected one or more of .*native.*tensorrt"):
            check_backends(["cuda"])
        with pytest.raises(ArgumentError, match=r"expected different names"):
            check_backends(["openvino", "openvino"])

    def test_a_backend_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = {"onnxruntime": (True, ""), "openvino": (False, "not installed; install it with: pip install openvino")}
        monkeypatch.setattr(planning, "available", lambda: gone)
        with pytest.raises(BackendError, match=r"backend openvino: found that it is not installed; install it with"):
            check_backends(["openvino"])

    def test_two_stages_in_two_files(self, tmp_path: Path) -> None:
        state = golden_models.state_dict("form1")
        vae = {key.removeprefix("vae."): tensor for key, tensor in state.items() if key.startswith("vae.")}
        strings = dict(zip(("input_res", "enc_block_str", "dec_block_str", "enc_channel_str", "dec_channel_str"),
                           golden_models.config("form1")["vae"].values(), strict=True))  # fmt: skip
        torch.save({"state_dict": vae, "hyper_parameters": strings | {"lr": 1e-4, "alpha": 1.0}}, tmp_path / "vae.ckpt")
        save_file({key: t.clone() for key, t in state.items() if not key.startswith("vae.")}, tmp_path / "ddpm.safetensors")
        found = recognise(Request(tmp_path / "ddpm.safetensors", other=tmp_path / "vae.ckpt", options={"heads": 2}))
        assert found.lines()["VAE encoder"].endswith("[metadata]")
        model = found.load()
        manifest = building.manifest_of(model, found.source, [], ["onnxruntime"])
        sha256 = hashlib.sha256((tmp_path / "vae.ckpt").read_bytes()).hexdigest()
        assert manifest["source"]["other_file"] == "vae.ckpt"
        assert manifest["source"]["other_sha256"] == sha256
        assert model.encoder is not None
        assert model.encoder.sha256 == sha256, "a prior belongs to the VAE's file"
        with pytest.raises(CheckpointError, match=r"--vae FILE"):
            recognise(Request(tmp_path / "ddpm.safetensors", options={"heads": 2}))
        with pytest.raises(CheckpointError, match=r"first stage \(VAE\) alone"):
            recognise(Request(tmp_path / "vae.ckpt"))


class TestCommand:
    def test_help_is_the_checked_in_text(self) -> None:
        hint = "update it with: python export/build_engines.py --help > tests/help/build_engines.txt"
        found = run("--help").output.replace("Usage: main ", "Usage: build_engines.py ")
        assert found == (ROOT / "tests/help/build_engines.txt").read_text(), hint

    def test_from_a_checkout_in_any_folder(self, checkpoint: Path, tmp_path: Path) -> None:
        """As a script, with nothing installed; the error of a missing flag, without a traceback."""
        command = [sys.executable, "-I", str(ROOT / "export/build_engines.py"), str(checkpoint)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert "Error: " in done.stderr
        assert "name it with --heads N (possible: 1, 2, 4, 8, 16, 32, 64)" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (["--backends", "openvin", "--heads", "2"], 1, "Did you mean 'openvino'?"),
            (["--backends", "onnxruntime", "cuda", "--heads", "2"], 1, "found 'cuda', expected one or more of"),
            (["--backends", "onnxruntime", "--precision", "bf16"], 1, "'bf16' and no backend that is built in it"),
            (["--precision", "f32", "bf61"], 2, "Did you mean 'bf16'?"),
            (["--precision", "f32", "--precision", "f32"], 1, "expected different names of f32, bf16, fp16, int8"),
            (["--weights", "emaa"], 2, "Did you mean 'ema'?"),
            (["--variance", "fixed_large"], 2, "Did you mean 'fixedlarge'?"),
            (["--preset", "celeba"], 1, "Did you mean 'celeba64'?"),
            (["--preset", "celeba64"], 1, "image size: found 16"),
            (["--heads", "0"], 2, "0 is not in the range"),
            (["--heads", "5"], 1, "expected a divisor of the attention widths [64]"),
            (["--vae", "absent.ckpt"], 1, "absent.ckpt: found nothing to read"),
        ],
    )
    def test_errors_are_one_sentence(self, checkpoint: Path, arguments: list[str], code: int, says: str) -> None:
        result = run(checkpoint, *arguments)
        assert (result.exit_code, says in result.output) == (code, True), result.output
        assert "Traceback" not in result.output

    def test_what_is_printed(self, tmp_path: Path) -> None:
        path = tiny_checkpoint(tmp_path / "plain.ckpt")
        out = tmp_path / "deep" / "plain.bundle"
        result = run("--heads", "2", "--image-size", "4", "--out", out, "--backends", "openvino", "onnxruntime", path)
        assert result.exit_code == 0, result.output
        for line in (
            "name        plain  [the file's name]",
            "weights     ema (the only network in the file)  [decoder.*]",
            "model       unconditional  [weights]",
            "heads       2  [--heads]",
            "variance    fixedlarge  [assumed; --variance]",
            "schedule    linear, beta 0.0001 to 0.02, T = 1000  [weights]",
            "prediction  eps  [assumed; --prediction]",
            "export denoiser",
            f"Wrote {out}. Next:",
            command("sample", out, "-n", "16", "--out", "grid.png"),
        ):
            assert line in result.output, f"missing {line!r} in:\n{result.output}"
        table = [line.split() for line in result.output.splitlines() if ".onnx" in line]
        assert [row[0] for row in table] == ["timestep_table", "denoiser"]
        assert all(float(error) <= BOUND for row in table for error in row[-2:])
        assert Bundle.open(out).manifest.backends == ("openvino", "onnxruntime")

    @pytest.mark.parametrize(
        ("typed", "meant"),
        [
            ("c.pt --backends a b --heads 2", "c.pt --backends a --backends b --heads 2"),
            ("--backends native openvino c.pt", "--backends native --backends openvino c.pt"),
            ("--backends a --backends b c.pt", "--backends a --backends b c.pt"),
            ("--backends onnxruntime openvino c.pt", "--backends onnxruntime --backends openvino c.pt"),
            ("--backends onnxruntime opnvino c.pt", "--backends onnxruntime --backends opnvino c.pt"),
            ("--heads 2 c.pt", "--heads 2 c.pt"),
        ],
    )
    def test_backends_in_one_go(self, typed: str, meant: str) -> None:
        assert spread(typed.split(), "--backends", BUILDABLE) == meant.split()


class FakeBuilder:
    """Stands in for the module export/native/builder.py; its int8 table is the bf16 one, as the real one's is."""

    PRECISIONS = ("bf16", "int8")

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], Bundle | None]] = []

    def check(self, options: dict[str, Any]) -> None:
        self.checked = options

    def unfit(self, model: Any) -> None:
        """It runs any."""

    def build(self, context: BuildContext, precision: str, options: dict[str, Any]) -> list[BuiltEngine]:
        self.asked.append((precision, options, context.previous))
        return [self.engine(context, "denoiser", precision), self.engine(context, "timestep_table", "f32")]

    def engine(self, context: BuildContext, graph: str, precision: str) -> BuiltEngine:
        stem = f"{graph}.native.{precision}"
        files = {"program": {"file": f"{stem}.json"}, "weights": {"file": f"{stem}.safetensors"}}
        entry = {
            "backend": "native", "precision": precision, "graph": graph, "files": files,
            "source_sha256": context.graph(graph).sha256, "made_with": {}, "targets": [], "options": {}, "record": {},
        }  # fmt: skip
        return BuiltEngine(entry, {file["file"]: stem.encode() for file in files.values()})


class TestEngines:
    def test_they_enter_the_bundle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake, out = FakeBuilder(), tmp_path / "a.bundle"
        monkeypatch.setattr(building, "load_builder", lambda name: fake)
        path = tiny_checkpoint(tmp_path / "a.ckpt")
        wanted = ("--heads", "2", "--image-size", "4", "--out", out, "--backends", "onnxruntime", "native")
        result = run(path, *wanted, "--precision", "f32", "int8", "bf16")
        assert result.exit_code == 0, result.output
        bundle = Bundle.open(out)
        assert bundle.manifest.backends == ("onnxruntime", "native")
        assert [(e.graph, e.precision) for e in bundle.manifest.engines] == [
            ("denoiser", "int8"), ("timestep_table", "f32"), ("denoiser", "bf16"),
        ]  # fmt: skip
        assert bundle.read_engine(bundle.engine("native", "int8", "denoiser"), "weights") == b"denoiser.native.int8"
        assert "denoiser.native.bf16.safetensors" in result.output
        assert "build native int8" in result.output
        assert [(precision, previous) for precision, _, previous in fake.asked] == [("int8", None), ("bf16", None)]
        assert fake.asked[0][1]["int8_budget"] is None

        options = {"heads": 2, "image_size": 4}
        request = Request(path, out=out, backends=("native",), options=options, engine_options={"a": 1})
        built = build(request, Watch())
        precision, told, previous = fake.asked[-1]
        assert (precision, told) == ("bf16", {"a": 1}), "without --precision what the builder names first"
        assert previous == bundle
        assert fake.checked == {"a": 1}, "before any work is done"
        assert [engine.entry["precision"] for engine in built.engines] == ["bf16", "f32"]

    def test_two_results_for_one_engine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake, context = FakeBuilder(), BuildContext(None, (), Watch())  # type: ignore[arg-type]
        same = BuiltEngine({"backend": "native", "precision": "f32", "graph": "denoiser"}, {"a": b"1"})
        results = iter([[same], [BuiltEngine(same.entry, {"a": b"2"})]])
        monkeypatch.setattr(FakeBuilder, "build", lambda *_: next(results))
        with pytest.raises(ExportError, match=r"engine native f32 denoiser: found that it was built twice with different"):
            building.build_engines(context, [("native", "bf16"), ("native", "int8")], {"native": fake}, {})

    def test_which_precisions(self) -> None:
        native, rtx = FakeBuilder(), FakeBuilder()
        rtx.PRECISIONS = ("fp16",)
        assert plan_precisions((), {}).graphs == ("f32",)
        assert plan_precisions((), {}).engines == ()
        assert plan_precisions(("fp16",), {}).graphs == ("f32", "fp16")
        plan = plan_precisions((), {"native": native, "tensorrt_rtx": rtx})
        assert (plan.graphs, plan.engines) == (("f32", "fp16"), (("native", "bf16"), ("tensorrt_rtx", "fp16")))
        both = plan_precisions(("f32", "int8", "bf16"), {"native": native})
        assert both.engines == (("native", "int8"), ("native", "bf16"))
        with pytest.raises(ArgumentError, match=r"found f32, expected at least one that backend native is built in: bf16"):
            plan_precisions(("f32",), {"native": native})
        with pytest.raises(ArgumentError, match=r"found 'bf16' and no backend that is built in it"):
            plan_precisions(("fp16", "bf16"), {"tensorrt_rtx": rtx})
        with pytest.raises(ArgumentError, match=r"--precision: found 'int4', expected .*Did you mean 'int8'"):
            plan_precisions(("int4",), {})

    def test_a_builder_whose_needs_are_missing(self, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
        monkeypatch.setitem(ENGINE_BUILDERS, "native", "export.engines.not_there")
        with pytest.raises(BackendError, match=r"backend native: found no module export.engines.not_there, .* --backends"):
            build(Request(checkpoint, backends=("native",)))

    def test_a_graph_that_was_not_exported(self) -> None:
        context = BuildContext(None, (), Watch())  # type: ignore[arg-type]
        with pytest.raises(ExportError, match=r"graph denoiser.fp16: found only none, expected it .* --precision fp16"):
            context.graph("denoiser", "fp16")


def test_native_is_built_by_default_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for runs, asked, expected in (
        (True, (), ("onnxruntime", "openvino", "native")),
        (True, ("f32", "int8"), ("onnxruntime", "openvino", "native")),
        (True, ("f32", "fp16"), ("onnxruntime", "openvino")),
        (False, (), ("onnxruntime", "openvino")),
    ):
        monkeypatch.setattr(planning, "available", lambda runs=runs: {"native": (runs, "why")})
        assert default_backends(asked) == expected


def test_options_reach_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []

    def stop(request: Request, watch: Any) -> None:
        seen.append(request)
        raise CheckpointError("stop here")

    monkeypatch.setattr("export.build_engines.build", stop)
    said = ("--schedule", "0.001", "0.02", "50", "--formulation", "2", "--prediction", "v", "--name", "x")
    result = run("c.pt", *said, "--weights", "online", "--latent-prior", "p")
    assert result.output.endswith("Error: stop here\n")
    options = {"schedule": (0.001, 0.02, 50), "formulation": 2, "name": "x", "prediction": "v"}
    backends = default_backends(())  # where none are named
    expected = Request(Path("c.pt"), weights="online", backends=backends, latent_prior=Path("p"), if_fit=True)
    assert [replace(request, engine_options={}, options={}) for request in seen] == [expected]
    assert {name: value for name, value in seen[0].options.items() if value is not None} == options
    assert not any(seen[0].engine_options.values()), "options that were not given"
