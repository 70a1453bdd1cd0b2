"""The command line: it does what its checked-in help says, answers mistakes in one line, and keeps --json pure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from engine import Sampler
from engine.backends import Choice, available
from engine.bundle.writer import write_bundle
from engine.cli.elsewhere import Elsewhere, Place
from engine.cli.main import cli
from tests import toy
from tests.manifests import full_files, full_manifest
from tests.samplers import ANY_BACKEND, GRAPH_BACKENDS, SIZE, bundle, open_toy
from tests.toy_family import build_family

ROOT = Path(__file__).parents[2]
HELP = ROOT / "tests" / "help"
COMMANDS = [
    "sample", "reconstruct", "refine", "upscale", "inpaint", "interpolate", "edit", "mix", "walk", "steps", "cascade",
    "info", "verify", "cpp-config", "examples", "serve", "studio", "triton-repo",
]  # fmt: skip
# Their help is that of their scripts, checked in tests/export.
BUILDING = ["build", "fit-directions", "fit-prior", "fit-refine", "fit-setting"]
HERE = ["--backend", ANY_BACKEND, "--precision", "f32", "--threads", "2"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="diffusevae")


def succeed(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def expected(**options: Any) -> Any:
    with open_toy() as sampler:
        return sampler.sample(**options)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


class TestHelp:
    @pytest.mark.parametrize("command", ["", *COMMANDS])
    def test_help_is_the_checked_in_text(self, command: str) -> None:
        name = command or "diffusevae"
        found = succeed(*([command] if command else []), "--help").output
        hint = f"update it with: python -m engine {command} --help > tests/help/{name}.txt"
        assert found == (HELP / f"{name}.txt").read_text(), hint

    def test_every_command_has_a_text(self) -> None:
        assert sorted(cli.commands) == sorted([*COMMANDS, *BUILDING])
        texts = ["build_engines", "diffusevae", "fit_directions", "fit_latent_prior", "fit_refine", "fit_setting", *COMMANDS]
        assert sorted(path.stem for path in HELP.glob("*.txt")) == sorted(texts)

    def test_commands_that_live_elsewhere_are_imported_when_asked_for(self) -> None:
        code = (
            "import sys; from click.testing import CliRunner; from engine.cli.main import cli\n"
            "for arguments in (['--help'], ['info', '--help'], ['triton-repo', '--help']):\n"
            "    assert CliRunner().invoke(cli, arguments).exit_code == 0\n"
            "    print('engine.triton.cli' in sys.modules)\n"
        )
        found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert found.split() == ["False", "False", "True"]

    def test_a_command_whose_package_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place = Place("no_such_package.cli", "gone", "Nothing.", ("no_such_package",), "export")
        monkeypatch.setitem(cli.commands, "gone", Elsewhere("gone", place))
        result = run("gone")
        assert (result.exit_code, "Traceback" in result.output) == (1, False)
        assert "gone: found no no_such_package, expected the packages that this command needs" in result.stderr
        assert "pip install 'diffusevae-engine[export]'" in result.stderr

    def test_python_m_engine_is_the_same_program(self) -> None:
        command = [sys.executable, "-m", "engine", "sample", "--help"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert found == (HELP / "sample.txt").read_text()


class TestSample:
    def test_a_grid(self, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "grid.png"
        result = succeed("sample", bundle(), "-n", "5", "--seed", "3", "--out", out, *HERE)
        assert size_of(out) == (3 * (SIZE + 2) + 2, 2 * (SIZE + 2) + 2)
        assert f"toy on {ANY_BACKEND}, f32" in result.output
        assert "10 steps ddim, t 900 to 0" in result.output
        assert "3 to 7" in result.output
        pixels = np.asarray(Image.open(out))
        np.testing.assert_array_equal(pixels[2 : 2 + SIZE, 2 : 2 + SIZE], expected(seed=3).images[0])

    def test_a_grid_with_the_start_image_above(self, tmp_path: Path) -> None:
        out = tmp_path / "grid.png"
        succeed("sample", bundle(), "-n", "3", "--seed", "0", "--with-start", "--out", out, *HERE)
        pixels, batch = np.asarray(Image.open(out)), expected(n=3, seed=0)
        for row, images in enumerate((batch.start, batch.images)):
            for column in range(3):
                top, left = 2 + row * (SIZE + 2), 2 + column * (SIZE + 2)
                np.testing.assert_array_equal(pixels[top : top + SIZE, left : left + SIZE], images[column])

    def test_a_paired_grid_fills_up_its_last_row(self, tmp_path: Path) -> None:
        out = tmp_path / "grid.png"
        succeed("sample", bundle(), "-n", "9", "--seed", "0", "--with-start", "--out", out, *HERE)
        pixels, batch = np.asarray(Image.open(out)), expected(n=9, seed=0)
        assert pixels.shape == (4 * (SIZE + 2) + 2, 8 * (SIZE + 2) + 2, 3)
        for row, image in enumerate((batch.start[0], batch.images[0], batch.start[8], batch.images[8])):
            top = 2 + row * (SIZE + 2)
            np.testing.assert_array_equal(pixels[top : top + SIZE, 2 : 2 + SIZE], image)
        assert (pixels[2 + 2 * (SIZE + 2) :, 2 + SIZE :] == 255).all(), "what is left of the last rows is white"

    def test_arrays_and_options(self, tmp_path: Path) -> None:
        out = tmp_path / "images.npy"
        options = [
            "--steps",
            "5",
            "--method",
            "ddpm",
            "--guidance",
            "0.5",
            "--variance",
            "fixedsmall",
            "--temperature",
            "0.9",
        ]
        succeed("sample", bundle(), "--seed", "7,0", *options, "--batch", "1", "--with-start", "--out", out, *HERE)
        batch = expected(seed=[7, 0], steps=5, method="ddpm", guidance=0.5, variance="fixedsmall", temperature=0.9)
        assert np.abs(np.load(out).astype(int) - batch.images).max() <= 1, "other batch sizes may round otherwise"
        assert np.abs(np.load(tmp_path / "images.start.npy").astype(int) - batch.start).max() <= 1

    def test_json_is_one_object_and_nothing_else(self, tmp_path: Path) -> None:
        out = tmp_path / "folder"
        result = succeed("sample", bundle(), "--seed", f"{2**64 - 1},5", "--json", "--out", out, *HERE)
        report = json.loads(result.stdout)
        assert report["seeds"] == [2**64 - 1, 5]
        assert report["files"] == [str(out / f"00000-seed{2**64 - 1}.png"), str(out / "00001-seed5.png")]
        assert (report["backend"], report["precision"], report["threads"], report["n"]) == (ANY_BACKEND, "f32", 2, 2)
        assert report["timesteps"] == list(range(900, -1, -100))
        assert report["timings"]["network_calls"] == 10
        assert report["setting"]["method"] == "ddim"
        np.testing.assert_array_equal(np.asarray(Image.open(report["files"][1])), expected(seed=5).images[0])

    def test_the_recorded_setting_is_the_default(self, tmp_path: Path) -> None:
        result = succeed("sample", bundle("recorded"), "--json", "--out", tmp_path / "a.png", *HERE)
        setting = json.loads(result.stdout)["setting"]
        assert (setting["steps"], setting["t_start"], setting["guidance"]) == (4, 450, 0.25)


class TestFromImages:
    def test_reconstruct_resizes_with_a_note(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "wide.png")
        Image.fromarray(np.full((SIZE, SIZE, 3), 90, np.uint8)).save(tmp_path / "fits.jpg", quality=100)
        out = tmp_path / "out.npy"
        result = succeed("reconstruct", bundle(), tmp_path, "--seed", "0", "--out", out, *HERE)
        assert "wide.png: 30x20 cropped to 20x20 and resized to 8x8" in result.stderr
        assert "fits.jpg" not in result.stderr
        assert np.load(out).shape == (2, SIZE, SIZE, 3)

    def test_refine_takes_arrays(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
        np.save(tmp_path / "in.npy", pixels)
        options = ["--timesteps", "300,150,20", "--t-start", "300", "--eta", "1,0.5,0", "--noise-scale", "0.84"]
        options += ["--seed", "4", "--with-start", "--out", tmp_path / "out.npy"]
        result = succeed("refine", bundle(), tmp_path / "in.npy", *options, *HERE)
        setting = {"timesteps": [300, 150, 20], "t_start": 300, "eta": [1, 0.5, 0], "noise_scale": 0.84}
        with open_toy() as sampler:
            batch = sampler.refine(pixels, seed=4, **setting)
        assert "3 steps ddim, t 300 to 20, from a noised image, eta 1 0.5 0, noise_scale 0.84" in result.output
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), batch.images)
        np.testing.assert_array_equal(np.load(tmp_path / "out.start.npy"), pixels)

    def test_interpolate(self, tmp_path: Path) -> None:
        out = tmp_path / "path.npy"
        result = succeed("interpolate", bundle(), "3", "8", "-n", "4", "--mode", "slerp", "--out", out, *HERE)
        with open_toy() as sampler:
            batch = sampler.interpolate(3, 8, 4, mode="slerp")
        np.testing.assert_array_equal(np.load(out), batch.images)
        assert "3, for all 4" in result.output


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["smple"], 2, "No such command 'smple'. Did you mean 'sample'?"),
            (["sample"], 2, "Missing argument 'BUNDLE'"),
            (["sample", "{bundle}", "--stepz", "3"], 2, "--steps"),
            (["sample", "{bundle}", "--method", "ddimm"], 2, "'ddimm' is not one of ddim, dd"),
            (["sample", "{bundle}", "--seed", "x"], 2, "'x' is not a whole number from 0 to 2**64 - 1"),
            (["sample", "{bundle}", "--seed", "-1"], 2, "'-1' is not a whole number"),
            (["sample", "{bundle}", "--seed", str(2**64)], 1, "expected 0 .. 2**64 - 1"),
            (["sample", "{bundle}", "--steps", "0"], 1, "steps is 0; expected 1 .. 1000"),
            (["sample", "{bundle}", "--timesteps", "9;3"], 2, "'9;3' is not a list of whole numbers with commas"),
            (["sample", "{bundle}", "--eta", "1,x"], 2, "'1,x' is not a number, or several with commas: 0.84 or"),
            (["sample", "{bundle}", "-n", "0"], 1, "n is 0; expected at least 1 image"),
            (["sample", "{bundle}", "--backend", "openvno"], 1, "Did you mean 'openvino'?"),
            (["sample", "{bundle}", "--out", "grid.jpg"], 1, "grid.jpg ends in .jpg; expected a .png grid"),
            (["sample", "{bundle}", "--out", "/proc/nowhere/a.png"], 1, "Cannot write /proc/nowhere/a.png"),
            (["sample", "no-such.bundle"], 1, "found nothing that can be read"),
            (["verify", "no-such.bundle"], 1, "found nothing that can be read"),
            (["refine", "{bundle}", "no-such.png"], 1, "no-such.png does not exist; expected an image"),
            (["refine", "{bundle}", "{bundle}"], 1, "holds no images; expected files ending in .png"),
            (["refine", "{bundle}", "{bundle}/manifest.json"], 1, "cannot be read as an image"),
        ],
    )
    def test_one_line_no_traceback(self, arguments: list[str], code: int, message: str) -> None:
        result = run(*(argument.format(bundle=bundle()) for argument in arguments))
        assert result.exit_code == code
        assert message in result.stderr
        assert "Traceback" not in result.output
        assert result.stdout == ""

    def test_an_array_of_the_wrong_shape(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 3), np.uint8))
        result = run("refine", bundle(), tmp_path / "a.npy")
        assert (result.exit_code, "holds uint8 [2, 4, 4, 3]; expected uint8 [N, 8, 8, 3]" in result.stderr) == (1, True)

    def test_ctrl_c_says_so_and_returns_130(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Sampler, "sample", interrupt)
        result = run("sample", bundle(), "--out", tmp_path / "a.png", *HERE)
        assert (result.exit_code, "Interrupted" in result.stderr) == (130, True)
        assert list(tmp_path.iterdir()) == []


class TestInfoAndVerify:
    def test_info_without_a_bundle_shows_the_machine(self) -> None:
        output = succeed("info").output
        for word in ("processor", "threads", "kernels", "rule", *available()):
            assert word in output
        machine = json.loads(succeed("info", "--json").stdout)
        assert machine["bundle"] is None
        assert set(machine["machine"]["backends"]) == set(available())

    def test_info_with_a_bundle(self) -> None:
        output = succeed("info", bundle()).output
        for word in ("family toy", "denoiser", "opset", "steps 10", "SHA-256", "auto", "clip 1, start recon"):
            assert word in output
        report = json.loads(succeed("info", bundle(), "--json").stdout)["bundle"]
        with Sampler(bundle()) as sampler:
            assert (report["auto"]["backend"], report["auto"]["precision"]) == (sampler.backend, sampler.precision)
            assert report["auto"]["reason"] == sampler.choice
        assert set(report["graphs"]) == {"vae_encoder", "vae_decoder", "timestep_table", "denoiser"}

    def test_info_shows_engines_and_prior(self, tmp_path: Path) -> None:
        models = toy.models_of(1, 8, 4, False)
        write_bundle(tmp_path / "full", full_manifest(models), full_files(models))
        lines = [line.split() for line in succeed("info", tmp_path / "full").output.splitlines()]
        assert ["native", "bf16", "denoiser", "0.00", "MB", "any", "processor"] in lines
        assert ["tensorrt_rtx", "fp16", "denoiser", "0.00", "MB", "sm86"] in lines
        assert ["native", "bf16", "vae_decoder", "-", "run", "in", "f32"] in [line[:7] for line in lines]
        # What runs it, and in which precision, is the machine's.
        assert any(line[:2] == ["denoiser.fp16", "step"] and line[3:6:2] == ["fp16", "21"] for line in lines), lines
        assert ["prior", "z", "from", "a", "gaussian", "mixture", "of", "4", "components", "(0.00", "MB)"] in lines
        report = json.loads(succeed("info", tmp_path / "full", "--json").stdout)["bundle"]
        assert report["prior"]["components"] == 4
        engine = report["engines"][1]
        assert (engine["backend"], engine["precision"], engine["graph"]) == ("tensorrt_rtx", "fp16", "denoiser")
        assert (engine["size"], engine["targets"], list(engine["files"])) == (200, ["sm86"], ["plan"])
        assert "none: what is drawn comes from N(0, I)" in succeed("info", bundle()).output

    def test_info_shows_what_each_call_is_fed(self, tmp_path: Path) -> None:
        lines = [line.strip() for line in succeed("info", bundle("zcond")).output.splitlines()]
        assert "z float32[batch, 4]: unbounded, drawn from N(0, I), null 0" in lines
        for section, call in (
            ("encode", "vae_encoder(image) -> mu=z, logvar=z_logvar"), ("before", "vae_decoder(z) -> image=recon"),
            ("rows", "timestep_table(timesteps, z) -> rows"), ("image", "x"),
        ):  # fmt: skip
            assert f"{section:<10}{call}" in lines
        step = next(line for line in lines if line.startswith("step "))
        assert "cond=recon" in step
        assert step.endswith("-> eps=e")
        family = succeed("info", build_family(tmp_path / "family")).output
        assert "label int64[batch]: 0 to 10, to be given, null 10" in family
        assert "v, variance fixedsmall" in family
        assert "cosine, T 1000, s 0.008, max_beta 0.999" in family
        assert "none: a seed is all that a sample takes" in succeed("info", bundle("uncond")).output

    def test_info_says_in_what_each_graph_computes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen = Choice("openvino", "bf16", "because")
        monkeypatch.setattr("engine.cli.contents.choose", lambda opened: chosen)
        report = json.loads(succeed("info", bundle(), "--json").stdout)["bundle"]["graphs"]
        assert {name: graph["computes_in"] for name, graph in report.items()} == {
            "vae_encoder": "bf16", "vae_decoder": "bf16", "timestep_table": "f32", "denoiser": "bf16",
        }  # fmt: skip
        assert {name: graph["runs"] for name, graph in report.items()} == {
            "vae_encoder": ["encode"], "vae_decoder": ["before"], "timestep_table": ["rows"], "denoiser": ["step"],
        }  # fmt: skip

    @pytest.mark.parametrize("kind", ["form1", "zcond", "uncond"])
    def test_verify_compares_the_backends(self, kind: str) -> None:
        report = json.loads(succeed("verify", bundle(kind), "--json").stdout)
        there = [name for name in GRAPH_BACKENDS if available()[name][0]]
        assert sorted(name for name, result in report["backends"].items() if result["ok"]) == sorted(there)
        assert len(report["differences"]) == len(there) * (len(there) - 1) // 2
        assert all(pair["max"] < 1e-4 for pair in report["differences"])
        assert "verified" in succeed("verify", bundle(kind)).output

    def test_verify_refuses_one_flipped_bit(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.bundle"
        broken.mkdir()
        for file in bundle().iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        data = bytearray((broken / "denoiser.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (broken / "denoiser.onnx").write_bytes(data)
        result = run("verify", broken)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "denoiser.onnx: found SHA-256" in result.stderr

    def test_verify_reports_a_backend_that_fails(self) -> None:
        result = run("verify", bundle("nan"))
        assert result.exit_code == 1
        assert "returned NaN or infinity at step 7 of 10" in result.output
        assert "NOT verified" in result.output


def test_the_example_runs_and_is_short(tmp_path: Path) -> None:
    example = ROOT / "examples" / "sample.py"
    assert len(example.read_text().splitlines()) < 40
    out = tmp_path / "out.png"
    command = [sys.executable, str(example), str(bundle()), str(out), "4"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "4 images in 10 steps" in result.stdout
    assert size_of(out) == (4 * (SIZE + 2) + 2, 2 * (SIZE + 2) + 2)
