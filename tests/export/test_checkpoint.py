"""Files handed over as checkpoints: read safely, or refused with a sentence that helps."""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.errors import ArgumentError, CheckpointError
from export.read.checkpoint import Checkpoint, as_float32, read_checkpoint
from export.read.parts import select, split, vae_stage

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.tensor([1.0, -2.0])}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_is_state(checkpoint: Checkpoint) -> None:
    assert list(checkpoint.tensors) == list(STATE)
    for key, tensor in STATE.items():
        assert torch.equal(checkpoint.tensors[key], tensor)


class TestFormats:
    def test_lightning(self, tmp_path: Path) -> None:
        path = saved(
            tmp_path / "a.ckpt",
            {
                "epoch": 1,
                "state_dict": STATE,
                "hyper_parameters": {"n_heads": 2, "defaults": {"steps": 5, "path": [1, "x"]}, "t": torch.ones(1)},
                "callbacks": {"ModelCheckpoint": {"best_model_path": "/x/y.ckpt", "best_model_score": torch.ones(())}},
                "optimizer_states": [{"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3)}}}],
                "loops": {"fit_loop": {"state_dict": {}}},
            },
        )
        checkpoint = read_checkpoint(path)
        assert_is_state(checkpoint)
        assert checkpoint.metadata == {"n_heads": 2, "defaults": {"steps": 5, "path": [1, "x"]}, "t": None}
        assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_bare_state_dict(self, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(saved(tmp_path / "a.pt", STATE))
        assert_is_state(checkpoint)
        assert checkpoint.metadata == {}

    def test_format_before_torch_1_6(self, tmp_path: Path) -> None:
        assert_is_state(read_checkpoint(saved(tmp_path / "a.pt", STATE, _use_new_zipfile_serialization=False)))

    @pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
    def test_safetensors_by_suffix_and_by_content(self, tmp_path: Path, name: str) -> None:
        save_file(STATE, tmp_path / name, metadata={"n_heads": "4", "name": "x", "defaults": '{"steps": 3}'})
        checkpoint = read_checkpoint(tmp_path / name)
        assert {key: tensor.tolist() for key, tensor in checkpoint.tensors.items()} == {
            key: tensor.tolist() for key, tensor in STATE.items()
        }
        assert checkpoint.metadata == {"n_heads": 4, "name": "x", "defaults": {"steps": 3}}

    def test_lightning_1_4_keys_callbacks_by_class(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reference pins 1.4.9, which pickles its callback classes; nothing of the name is imported here."""
        module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
        parsing = types.ModuleType("pytorch_lightning.utilities.parsing")
        kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
        attributes = type("AttributeDict", (dict,), {"__module__": parsing.__name__})
        setattr(module, "ModelCheckpoint", kind)  # noqa: B010
        setattr(parsing, "AttributeDict", attributes)  # noqa: B010
        with monkeypatch.context() as patch:
            for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.utilities"):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            patch.setitem(sys.modules, module.__name__, module)
            patch.setitem(sys.modules, parsing.__name__, parsing)
            path = saved(
                tmp_path / "a.ckpt",
                {"state_dict": STATE, "callbacks": {kind: {"x": 1}, "k": kind()}, "hyper_parameters": attributes(n_heads=8)},
            )
        checkpoint = read_checkpoint(path)
        assert_is_state(checkpoint)
        assert checkpoint.metadata == {"n_heads": 8}
        assert "pytorch_lightning" not in sys.modules

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_every_float_becomes_float32(self, tmp_path: Path, dtype: torch.dtype) -> None:
        path = saved(tmp_path / "a.pt", {"w": torch.tensor([0.5, -3.0], dtype=dtype)})
        found = as_float32(read_checkpoint(path).tensors, path)["w"]
        assert found.dtype == torch.float32
        assert found.tolist() == [0.5, -3.0]


class Evil:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class TestHostileFiles:
    @pytest.mark.parametrize("new_format", [True, False])
    @pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks"])
    @pytest.mark.parametrize("attack", ["system", "eval", "open", "unpickle"])
    def test_code_does_not_run(self, tmp_path: Path, attack: str, place: str, new_format: bool) -> None:
        canary = tmp_path / "canary"
        evil = {
            "system": Evil(os.system, f"touch {canary}"),
            "eval": Evil(eval, f"open({str(canary)!r}, 'w')"),
            "open": Evil(open, str(canary), "w"),
            "unpickle": Evil(pickle.loads, pickle.dumps(Evil(os.system, f"touch {canary}"))),
        }[attack]
        content = {"state_dict": dict(STATE), "hyper_parameters": {}, "callbacks": {}} | {place: {"x": evil}}
        path = saved(tmp_path / "evil.ckpt", content, _use_new_zipfile_serialization=new_format)
        if place == "state_dict":
            with pytest.raises(CheckpointError, match=r"without weights"):
                read_checkpoint(path)
        else:
            checkpoint = read_checkpoint(path)
            assert_is_state(checkpoint)
            assert checkpoint.metadata == ({"x": None} if place == "hyper_parameters" else {})
        assert not canary.exists()

    @pytest.mark.parametrize(
        ("value", "read"),
        [
            (pathlib.PurePosixPath("x"), None),
            (functools.partial(int), None),
            (np.float64(1.5), 1.5),
            (np.int32(-8), -8),
            (argparse.Namespace(n=np.bool_(True)), {"n": True}),
            (2**2000, None),
        ],
        ids=["path", "partial", "numpy", "numpy int", "namespace", "huge"],
    )
    def test_exotic_hyper_parameters(self, tmp_path: Path, value: Any, read: Any) -> None:
        path = saved(tmp_path / "a.ckpt", {"state_dict": STATE, "hyper_parameters": {"x": value}})
        assert read_checkpoint(path).metadata == {"x": read}

    def test_a_view_may_not_claim_more_than_the_file_holds(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.pt", {"w": torch.zeros(1).expand(10**12)})
        with pytest.raises(CheckpointError, match=r"'w' claiming shape \[1000000000000\] over 4 bytes"):
            read_checkpoint(path)

    def test_an_archive_that_inflates_is_refused(self, tmp_path: Path) -> None:
        plain = saved(tmp_path / "a.pt", {"w": torch.zeros(1_000_000)})
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        with pytest.raises(CheckpointError, match=r"unpacks to more than its own"):
            read_checkpoint(tmp_path / "b.pt")

    def test_sparse_tensors_are_refused(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.pt", {"w": torch.eye(3).to_sparse()})
        with pytest.raises(CheckpointError, match=r"the weight 'w' is made by torch\._utils\._rebuild_sparse_tensor"):
            read_checkpoint(path)


class TestDamagedFiles:
    def write(self, kind: str, folder: Path) -> Path:
        state = {"w": torch.randn(500), "v": torch.randn(20, 30)}
        if kind == "safetensors":
            save_file(state, folder / "a.safetensors")
            return folder / "a.safetensors"
        return saved(folder / "a.ckpt", {"state_dict": state}, _use_new_zipfile_serialization=kind == "zip")

    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    @pytest.mark.parametrize("tenth", range(10))
    def test_truncated(self, tmp_path: Path, kind: str, tenth: int) -> None:
        path = self.write(kind, tmp_path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(CheckpointError, match=rf"{path.name}: found .*expected .*"):
            read_checkpoint(path)

    def test_one_flipped_bit_in_a_weight(self, tmp_path: Path) -> None:
        path = self.write("zip", tmp_path)
        data = bytearray(path.read_bytes())
        weight = torch.load(path, weights_only=True)["state_dict"]["w"].numpy().tobytes()
        data[data.index(weight) + 100] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"damaged or truncated file \(Bad CRC-32 for file"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "an empty file"),
            (b"x", "a file that starts with b'x'"),
            (b"hello, this is text\n" * 20, "starts with b'hello, t'"),
            (b"<!DOCTYPE html><html>Google Drive - Quota exceeded", "a web page; the download failed"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
            (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
            (b"\x80\x04}\x94.", "a pickle that torch.save did not write"),
        ],
    )
    def test_another_kind_of_file(self, tmp_path: Path, content: bytes, says: str) -> None:
        (tmp_path / "a.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"a\.ckpt: found .*{says}"):
            read_checkpoint(tmp_path / "a.ckpt")

    def test_another_kind_of_archive(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, x=np.ones(3))
        (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
        with pytest.raises(CheckpointError, match=r"found a NumPy archive that torch.save did not write"):
            read_checkpoint(tmp_path / "a.ckpt")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nothing to read"):
            read_checkpoint(tmp_path / "absent.ckpt")
        with pytest.raises(CheckpointError, match=r"found a folder, .*; none is inside, check the path"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}, {"state_dict": {}}, 5])
    def test_no_weights(self, tmp_path: Path, content: Any) -> None:
        with pytest.raises(CheckpointError, match=r"without weights"):
            read_checkpoint(saved(tmp_path / "a.ckpt", content))

    def test_something_else_among_the_weights(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"found int under the key 'out\.2\.bias'"):
            read_checkpoint(saved(tmp_path / "a.ckpt", {"state_dict": {"out.2.weight": torch.ones(1), "out.2.bias": 3}}))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, bad: float) -> None:
        with pytest.raises(CheckpointError, match=r"NaN or infinity in 'vae\.w'"):
            as_float32({"w": torch.tensor([1.0, bad])}, Path("a.ckpt"), "vae.")

    def test_weights_that_are_not_floats(self) -> None:
        with pytest.raises(CheckpointError, match=r"dtype torch\.int8 under 'w'"):
            as_float32({"w": torch.ones(2, dtype=torch.int8)}, Path("a.ckpt"))


def checkpoint_of(*keys: str) -> Checkpoint:
    return Checkpoint(Path("a.ckpt"), "0" * 64, {key: torch.ones(1) for key in keys}, {})


class TestKeys:
    @pytest.mark.parametrize("outer", ["", "module.", "_forward_module.", "_orig_mod.module."])
    def test_both_networks_and_the_vae(self, outer: str) -> None:
        keys = [
            "online_network.decoder.out.2.bias",
            "target_network.decoder.out.2.bias",
            "target_network.betas",
            "vae.enc.x",
        ]
        parts = split(checkpoint_of(*(outer + key for key in keys)))
        assert set(parts.networks) == {"ema", "online"}
        ema = select(parts, "ema", Path("a.ckpt"))
        assert ema.prefix == f"{outer}target_network.decoder."
        assert list(ema.unet) == ["out.2.bias"]
        assert list(ema.buffers) == ["betas"]
        assert select(parts, "online", Path("a.ckpt")).prefix == f"{outer}online_network.decoder."
        assert parts.vae is not None
        assert list(parts.vae.tensors) == ["enc.x"]

    def test_a_diffusion_module_of_its_own(self) -> None:
        network = select(split(checkpoint_of("decoder.input_blocks.0.0.weight", "betas")), "ema", Path("a.ckpt"))
        assert (network.prefix, list(network.unet), list(network.buffers)) == (
            "decoder.", ["input_blocks.0.0.weight"], ["betas"],
        )  # fmt: skip

    def test_a_bare_unet(self) -> None:
        network = select(split(checkpoint_of("input_blocks.0.0.weight", "out.2.bias")), "online", Path("a.ckpt"))
        assert (network.prefix, len(network.unet), len(network.buffers)) == ("", 2, 0)

    def test_weights_that_are_not_there(self) -> None:
        parts = split(checkpoint_of("online_network.decoder.out.2.bias"))
        with pytest.raises(CheckpointError, match=r"no key of target_network\..*build with --weights online"):
            select(parts, "ema", Path("a.ckpt"))
        with pytest.raises(ArgumentError, match=r"found 'emma', expected ema or online. Did you mean 'ema'"):
            select(parts, "emma", Path("a.ckpt"))

    def test_strays(self) -> None:
        with pytest.raises(CheckpointError, match=r"unexpected keys fid.weight, expected keys of target_network"):
            split(checkpoint_of("online_network.decoder.out.2.bias", "fid.weight"))
        with pytest.raises(CheckpointError, match=r"unexpected keys target_network\.gammas"):
            split(checkpoint_of("target_network.decoder.out.2.bias", "target_network.gammas"))

    @pytest.mark.parametrize(
        ("keys", "what"),
        [
            (["enc.in_conv.weight", "dec.last_conv.bias"], "first stage .VAE. alone.*with --vae"),
            (["vae.enc.in_conv.weight"], "first stage .VAE. alone.*with --vae"),
            (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "a ResNet classifier"),
            (["model.diffusion_model.x"], "Stable Diffusion"),
            (["down_blocks.0.resnets.0.conv1.weight"], "a diffusers UNet"),
            (["model.map_layer0.weight"], "an EDM network"),
            (["foo.bar"], "another model .keys foo.bar."),
        ],
    )
    def test_another_model(self, keys: list[str], what: str) -> None:
        with pytest.raises(CheckpointError, match=what):
            split(checkpoint_of(*keys))

    @pytest.mark.parametrize("prefix", ["", "vae.", "module."])
    def test_a_vae_of_its_own(self, prefix: str) -> None:
        stage = vae_stage(checkpoint_of(f"{prefix}enc.in_conv.weight"))
        assert (stage.prefix, list(stage.tensors)) == (prefix, ["enc.in_conv.weight"])

    def test_no_vae_where_one_was_promised(self) -> None:
        with pytest.raises(CheckpointError, match=r"no VAE .keys out.weight."):
            vae_stage(checkpoint_of("out.weight"))
