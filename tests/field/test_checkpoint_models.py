"""What the weights in a checkpoint cannot tell is said: heads, rounding, channels; and what is not needed is not read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from engine import Sampler
from engine.cli.main import cli
from engine.errors import CheckpointError, EngineError
from export.build import Request, recognise
from export.build_engines import main
from export.families.diffusevae.model import Found
from export.families.diffusevae.presets import PRESETS
from export.models.layouts import expected_shapes, to_checkpoint
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec
from export.read.checkpoint import read_checkpoint
from tests.checkpoint_files import EMA, ONLINE, constants, flat, golden, loose, save, under

BETAS = torch.linspace(1e-4, 0.02, 1000).double()


def found_in(path: Path, **options: Any) -> Found:
    found = recognise(Request(path, options={"heads": 2} | options))
    assert isinstance(found, Found)
    return found


def notes(path: Path, **options: Any) -> str:
    return "\n".join(found_in(path, **options).notes())


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"a": 1.0, "b": 1.1}, "found no betas, expected"),  # two that disagree are none
        ({"optimizer": None}, "found no betas, expected"),  # Adam's
    ],
)
def test_constants_that_are_not_taken(tmp_path: Path, others: dict[str, float | None], says: str) -> None:
    places = {k: {"betas": constants()["betas"] * f if f else torch.tensor([0.9, 0.999])} for k, f in others.items()}
    with pytest.raises(CheckpointError, match=says):
        recognise(Request(save(tmp_path, {"model": loose(), **places}), options={"heads": 2}))


@pytest.mark.parametrize("weights", ["ema", "online"])
def test_a_file_with_two_networks_is_its_own_first_stage(tmp_path: Path, weights: str) -> None:
    path = save(tmp_path, flat() | {k: t for k, t in golden().items() if k.startswith("vae.")})
    found = recognise(Request(path, other=path, weights=weights, options={"heads": 2}))
    expected = under(f"{EMA if weights == 'ema' else ONLINE}.decoder.")
    assert [key for key, t in expected.items() if not torch.equal(found.network.unet[key], t)] == []


def test_numbers_of_numpy_in_float32_are_what_they_print(tmp_path: Path) -> None:
    hyper = {"n_heads": np.int32(2), "beta1": np.float32(1e-4), "beta2": np.float32(0.02), "n_timesteps": np.int64(1000)}
    found = recognise(Request(save(tmp_path, {"state_dict": golden(), "hyper_parameters": hyper})))
    assert found.architecture.schedule.numbers == {"start": 1e-4, "end": 0.02}


class TestRounding:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
    def test_is_said(self, tmp_path: Path, dtype: torch.dtype) -> None:
        name = str(dtype).removeprefix("torch.")
        state = {key: tensor.to(dtype) for key, tensor in golden().items()}
        path = save(tmp_path, state)
        found = found_in(path)
        unet, _ = found.networks()
        expected = UNet(unet.spec).state_dict()
        assert unet.stem.weight.dtype == torch.float32
        assert torch.equal(unet.stem.weight, golden()[f"{EMA}.decoder.input_blocks.0.0.weight"].to(dtype).float())
        assert expected.keys() == unet.state_dict().keys()
        assert found.architecture.schedule.numbers == {"start": 1e-4, "end": 0.02}
        assert f"the weights are stored in {name}: rounded" in notes(path)
        assert f"betas rounded to {name}; if it was another, name it with --schedule" in notes(path)
        assert found.lines()["schedule"].endswith(f"[weights, rounded to {name}]")

    @pytest.mark.parametrize(
        ("dtype", "metadata", "flag", "end", "says"),
        [
            (torch.bfloat16, None, (1e-4, 0.02, 1000), 0.02, ""),
            (torch.bfloat16, None, (1e-4, 0.0200001, 1000), 0.0200001, ""),
            (torch.float16, (1e-4, 0.0200001, 1000), None, 0.0200001, ""),
            (torch.float16, None, (1e-4, 0.03, 1000), 0.03, "from --schedule; the file's betas, rounded to float16, are"),
            (torch.float16, None, (1e-4, 0.02, 500), None, "T = 1000 in the weights but .*T = 500 from --schedule"),
            (torch.float64, (1e-4, 0.03, 1000), None, None, "0.03, T = 1000 from metadata, .*name the right one with --sch"),
            (torch.float64, (1e-4, 0.03, 1000), (1e-4, 0.03, 1000), 0.03, "from --schedule; the betas in the file say"),
            (torch.float64, (1e-4, 0.03, 1000), (1e-4, 0.02, 1000), 0.02, "its hyper-parameters linear, .* 0.03"),
            (torch.float64, None, (1e-4, 0.03, 1000), None, "in the weights but .* 0.03, T = 1000 from --schedule"),
        ],
    )
    def test_schedule_decides(
        self, tmp_path: Path, dtype: torch.dtype, metadata: Any, flag: Any, end: float | None, says: str
    ) -> None:
        hyper = dict(zip(("beta1", "beta2", "n_timesteps"), metadata or (), strict=False))
        state = {key: t.to(dtype) if key.endswith("betas") else t for key, t in golden().items()}
        path = save(tmp_path, {"state_dict": state, "hyper_parameters": hyper})
        if end is None:
            with pytest.raises(EngineError, match=says):
                found_in(path, schedule=flag)
            return
        assert found_in(path, schedule=flag).architecture.schedule.numbers["end"] == end
        assert any(says.partition(" .*")[0] in note for note in ("", *found_in(path, schedule=flag).notes()))

    def test_betas_that_rounding_has_destroyed(self, tmp_path: Path) -> None:
        betas = torch.linspace(1e-8, 0.02, 1000).half()
        path = save(tmp_path, golden() | {f"{EMA}.betas": betas})
        with pytest.raises(CheckpointError, match=r"found 0 as target_network\.betas\[0\]"):
            found_in(path)
        assert found_in(path, schedule=(1e-8, 0.02, 1000)).architecture.schedule.numbers["start"] == 1e-8


class TestHeads:
    def published(self, name: str, conditional: bool = True) -> dict[str, torch.Tensor]:
        known = PRESETS[name]
        channels = 6 if conditional else 3
        levels = known.attention_levels("openai")
        spec = UNetSpec("openai", known.image_size, channels, 3, 128, known.channel_mult, 2, levels, 8)
        with torch.device("meta"):
            shapes = expected_shapes(UNet(spec))
            vae = {f"vae.{key}": tuple(t.shape) for key, t in VAE(known.vae).state_dict().items()} if conditional else {}
        state = {f"decoder.{key}": shape for key, shape in shapes.items()} | vae
        return {key: torch.zeros(shape, dtype=torch.float16) for key, shape in state.items()} | {"betas": BETAS}

    def test_presets_that_would_disagree_are_named(self, tmp_path: Path) -> None:
        path = save(tmp_path, self.published("cifar10"))
        assert "1 attention heads are from --heads and not from the file" in notes(path, heads=1)
        assert "preset cifar10 has 8 (which these weights fit)" in notes(path, heads=1)
        assert "no published conditional configuration of this shape has another" in notes(path, heads=8)

    def test_another_shape_names_the_kind(self, tmp_path: Path) -> None:
        assert "preset cifar10 has 8, celeba64 has 8" in notes(save(tmp_path, golden()))

    def test_nothing_is_said_of_what_the_file_says(self, tmp_path: Path) -> None:
        path = save(tmp_path, {"state_dict": golden(), "hyper_parameters": {"n_heads": 2}})
        assert notes(path, heads=None) == notes(path, heads=2) == ""


def tiny(channels: int, conditional: bool) -> dict[str, torch.Tensor]:
    """A model of one level at 4 pixels for images of so many channels."""
    torch.manual_seed(0)
    width = channels * (2 if conditional else 1)
    net = UNet(UNetSpec("openai", 4, width, channels, 32, (1,), 1, (), 2))
    vae = VAE(VAESpec(4, "4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1", "4:64,1:8", "4:64,1:8", channels)).state_dict()
    state = {f"decoder.{key}": t for key, t in to_checkpoint(net, net.state_dict()).items()} | {"betas": BETAS}
    return state | ({f"vae.{key}": t for key, t in vae.items()} if conditional else {})


class TestChannels:
    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
    def test_from_the_file_to_the_picture(self, tmp_path: Path, channels: int, mode: str) -> None:
        path, out = save(tmp_path, tiny(channels, False)), tmp_path / "a.bundle"
        arguments = [path, "--heads", "2", "--out", out, "--backends", "onnxruntime", "--image-size", "4"]
        built = CliRunner().invoke(main, list(map(str, arguments)))
        assert built.exit_code == 0, built.output
        assert "Note: 2 attention heads are from --heads and not from the file" in built.output
        shown = CliRunner().invoke(cli, ["info", str(out)]).output
        assert "2 attention heads are from --heads and not from the file" in " ".join(shown.split())
        samples = ["sample", out, "-n", "2", "--steps", "2", "--seed", "0", "--out", tmp_path / "out"]
        assert CliRunner().invoke(cli, list(map(str, samples))).exit_code == 0
        pictures = [Image.open(file) for file in sorted((tmp_path / "out").iterdir())]
        assert [(picture.format, picture.mode, picture.size) for picture in pictures] == [("PNG", mode, (4, 4))] * 2
        with Sampler(out) as sampler:
            images = sampler.sample(2, steps=2, seed=0).images
        assert images.shape == (2, 4, 4, channels)
        assert [np.asarray(picture).reshape(images[0].shape).tolist() for picture in pictures] == images.tolist()
        assert len(np.unique(images)) > 2

    @pytest.mark.parametrize(("channels", "conditional"), [(1, True), (4, True), (4, False)])
    def test_every_graph_has_the_images_channels(self, tmp_path: Path, channels: int, conditional: bool) -> None:
        options = {} if conditional else {"image_size": 4}
        model = found_in(save(tmp_path, tiny(channels, conditional)), **options).load()
        assert model.wiring.image_shape == (channels, 4, 4)
        x = torch.zeros(1, channels, 4, 4)
        rows = model.roles["timestep_table"].module(torch.tensor([5]))
        cond = [model.roles["vae_decoder"].module(torch.zeros(1, 8))] if conditional else []
        assert model.roles["denoiser"].module(x, *cond, rows).shape == x.shape

    def test_what_does_not_go_together(self, tmp_path: Path) -> None:
        state = tiny(4, True) | {key: t for key, t in tiny(1, True).items() if key.startswith("vae.")}
        with pytest.raises(CheckpointError, match="for images of 4 channels and a VAE for 1, expected the VAE"):
            found_in(save(tmp_path, state))


class TestShards:
    def write(self, folder: Path, **changes: Any) -> Path:
        keys = list(golden())
        halves = {f"m-0000{i}-of-00002.safetensors": keys[i - 1 :: 2] for i in (1, 2)}
        for name, part in halves.items():
            save_file({key: golden()[key] for key in part}, folder / name)
        places = {key: name for name, part in halves.items() for key in part} | changes
        path = folder / "m.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
        return path

    def test_are_one_checkpoint(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        found = found_in(path)
        assert found.network.unet.keys() == under(f"{EMA}.decoder.").keys()
        assert all(torch.equal(t, found.network.unet[key]) for key, t in under(f"{EMA}.decoder.").items())
        before = found.source.checkpoint.sha256
        first, *others = list(golden())[::2]
        changed = {key: golden()[key] for key in others} | {first: golden()[first] + 1}
        save_file(changed, tmp_path / "m-00001-of-00002.safetensors")
        assert read_checkpoint(path).sha256 != before, "the bundle's source is every byte of the shards"

    def test_the_folder_instead(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"found a folder, .* such as .*/m\.safetensors\.index\.json$"):
            read_checkpoint(self.write(tmp_path).parent)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("../m.safetensors", "found the shard '../m.safetensors', expected the name of a file beside the index"),
            ("/etc/passwd", "the shard '/etc/passwd'"),
            ("a\\b", "the shard"),
            ("m.safetensors.index.json", "the shard 'm.safetensors.index.json'"),
            (5, "the shard '5'"),
            ("m-3.safetensors", "found no m-3.safetensors beside it, expected all 3 shards"),
            ("m-00002-of-00002.safetensors", "found no 'betas9' in m-00002-of-00002.safetensors"),
        ],
    )
    def test_an_index_that_lies(self, tmp_path: Path, name: Any, says: str) -> None:
        with pytest.raises(CheckpointError, match=says):
            read_checkpoint(self.write(tmp_path, betas9=name))

    @pytest.mark.parametrize(("text", "says"), [("{", "no JSON"), ("[]", "without a weight_map"), ("[" * 99999, "no JSON")])
    def test_no_index(self, tmp_path: Path, text: str, says: str) -> None:
        (tmp_path / "m.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=says):
            read_checkpoint(tmp_path / "m.index.json")


CHILD = """
import resource, sys
from pathlib import Path
from export.read.checkpoint import read_checkpoint, as_float32
read_checkpoint(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = read_checkpoint(sys.argv[2]).tensors
as_float32(tensors, Path("x"))
sys.stdout.write(str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read as Linux counts it")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_an_optimizer_beside_the_weights_stays_on_the_disk(tmp_path: Path, legacy: bool) -> None:
    """Weights of 6 MB beside 100: the peak grows by the weights alone, in a process that has read a small file before."""
    moments = {i: {"exp_avg": torch.zeros(3_000_000)} for i in range(8)}
    content = {"opt": {"state": moments, "param_groups": []}, "loose": moments, "model": golden()}
    path = save(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    small = tmp_path / "small.ckpt"
    torch.save({"decoder.out.2.bias": torch.ones(3)}, small)
    command = [sys.executable, "-c", CHILD, small, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    weights = sum(t.nbytes for t in golden().values())
    assert path.stat().st_size > 15 * weights
    assert int(done.stdout) < 3 * weights
