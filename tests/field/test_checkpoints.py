"""Checkpoints as people save them: a table of files, one line each, and which weights must come out or what is said.

Every file is made here from the golden model's tensors, which are also what is compared with, and by nothing of the reader.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import os
import pathlib
import pickle
import shlex
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import ArgumentError, CheckpointError, EngineError
from export.read.checkpoint import Checkpoint, Selection, read_checkpoint
from export.read.parts import Network, Stage, select, split
from tests.checkpoint_files import EMA, ONLINE, State, constants, golden, loose, parameters, renamed, save, under, whole


class Foreign:
    """Makes classes of modules that are gone when the file is read."""

    def __init__(self) -> None:
        self.modules: list[str] = []

    def kind(self, name: str, base: type = object) -> Any:
        module, _, short = name.rpartition(".")
        for part in (module.partition(".")[0], module):
            if part not in sys.modules:
                sys.modules[part] = types.ModuleType(part)
                self.modules.append(part)
        if not hasattr(sys.modules[module], short):
            setattr(sys.modules[module], short, type(short, (base,), {"__module__": module}))
        return getattr(sys.modules[module], short)

    def make(self, name: str, base: type = object, **attributes: Any) -> Any:
        made = self.kind(name, base)()
        made.__dict__.update(attributes)
        return made

    def forget(self) -> None:
        while self.modules:
            del sys.modules[self.modules.pop()]


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    yield (made := Foreign())
    made.forget()


def as_module(state: State, kind: Callable[[], nn.Module] = nn.Module) -> nn.Module:
    """A torch module with this state dict."""
    root = kind()
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]  # type: ignore[assignment]
        if "decoder." in key or key.startswith("vae."):
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    return root


def adam(state: State) -> dict[str, Any]:
    moments = {i: {"step": torch.ones(()), "exp_avg": torch.zeros_like(t)} for i, t in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}


class Colour(enum.Enum):
    RED = 1


# (name, what is saved, what comes out: a network, or the words of the refusal)
WRAPPED = [
    ("nothing", lambda: golden(), EMA),
    ("DDP", lambda: renamed("^", "module."), EMA),
    ("three around all", lambda: renamed("^", "_forward_module.module._orig_mod."), EMA),
    ("compiled UNet", lambda: renamed(r"decoder\.", "decoder._orig_mod."), EMA),
    ("compiled EMA only", lambda: renamed(r"target_network\.decoder\.", "target_network.decoder._orig_mod."), EMA),
    ("DDP of a network", lambda: renamed(r"target_network\.", "target_network.module."), EMA),
    ("FSDP of each block", lambda: renamed(r"(_blocks\.\d+\.\d+)\.", r"\1._fsdp_wrapped_module."), EMA),
    ("checkpointed layers", lambda: renamed(r"(in_layers\.\d)\.", r"\1._checkpoint_wrapped_module."), EMA),
    ("a wrapper of the stem", lambda: renamed(r"(input_blocks\.0)\.0\.", r"\1.my_wrapper.0."), EMA),
    ("unknown names", lambda: renamed(r"^(\w+)\.(enc|dec|decoder)\.", r"lit.\1.Wrapped1.\2._w_."), EMA),
    ("compiled VAE", lambda: renamed(r"^vae\.", "vae._orig_mod."), EMA),
    ("VAE's halves in DDP", lambda: renamed(r"^vae\.(enc|dec)\.", r"vae.\1.module."), EMA),
    ("a wrapper named as a part", lambda: renamed(r"network\.decoder\.", "network.decoder.decoder."), EMA),
    ("a list around all", lambda: renamed("^", "0."), EMA),
    ("AveragedModel's counter", lambda: renamed("^", "module.") | {"n_averaged": torch.tensor(7)}, EMA),
    ("a wrapper between all names", lambda: renamed(r"\.", "._orig_mod.module."), EMA),
    (
        "two that collide",
        lambda: renamed("^", "") | {"target_network.decoder._orig_mod.out.2.bias": torch.ones(3)},
        r"found target_network\.decoder\.out\.2\.bias and target_network\.decoder\._orig_mod\.out\.2\.bias, .*--key",
    ),
    ("a stray", lambda: golden() | {"fid.net.weight": torch.ones(3)}, r"unexpected keys fid\.net\.weight, expected"),
    ("another model's wrapper", lambda: under("target_network.decoder.", renamed("^", "")) and {
        f"model.diffusion_model.{k}": t for k, t in under("target_network.decoder.").items()
    }, "latent-diffusion"),
]  # fmt: skip
CONTAINERS = [
    ("model, ema, opt", lambda: {"model": whole(ONLINE), "ema": whole(EMA), "opt": adam(whole(ONLINE)), "step": 5}, EMA),
    ("ema without constants", lambda: {"model": whole(ONLINE), "ema": parameters(EMA)}, EMA),
    ("ema of the bare UNet", lambda: {"model": whole(ONLINE), "ema": under(f"{EMA}.decoder.")}, EMA),
    ("ema under DDP", lambda: {"m": whole(ONLINE), "ema": {f"module.{k}": t for k, t in whole(EMA).items()}}, EMA),
    ("nested twice", lambda: {"train": {"nets": {"net": whole(ONLINE), "net_ema": whole(EMA)}, "opt": {}}}, EMA),
    ("model alone, nested", lambda: {"state": {"model": golden()}}, EMA),
    ("a tuple of two", lambda: (whole(ONLINE), {"shadow": parameters(EMA)}), EMA),
    ("a list that names nothing", lambda: [whole(ONLINE), whole(EMA)], r"2 sets of weights: 0 \(\d+ tensors\); 1 .*--key 0"),
    ("two names without sign", lambda: {"a": whole(ONLINE), "b": whole(EMA)}, r"2 sets of weights: a .*; b .* --key a"),
    ("shadow_params", lambda: {"model": whole(ONLINE), "ema": {
        "decay": 0.99, "shadow_params": list(parameters(EMA).values()), "collected_params": None}}, EMA),
    ("shadow_params of all", lambda: {"ema": {"shadow_params": [
        t for k, t in (whole(EMA) | {}).items() if k.startswith(("decoder.", "vae."))]}, "net": whole(ONLINE)}, EMA),
    ("a list of named parameters", lambda: {"net": whole(ONLINE), "ema": list(parameters(EMA).items())}, EMA),
    ("an average with its backup", lambda: {"net": whole(ONLINE), "ema": {
        "shadow_params": list(parameters(EMA).values()), "collected_params": list(parameters(ONLINE).values())}}, EMA),
    ("an average under strange names", lambda: {
        "net": whole(ONLINE), "ema": {k.replace(".", ""): t for k, t in whole(EMA).items()}},
     r"found ema, \d+ tensors that should be the average .*--weights online"),
    ("shadow_params alone", lambda: {"shadow_params": list(parameters(EMA).values())}, "a list of .* without names"),
    ("shadow_params of another", lambda: {"model": whole(ONLINE), "ema": [torch.ones(3), torch.ones(4)]}, ONLINE),
    ("networks as dicts", lambda: {n: under(f"{n}.") for n in (ONLINE, EMA)} | {"vae": under("vae.")}, EMA),
    ("flat, each under a name", lambda: {
        f"{n}.{k}": t for n, m in (("online_model", ONLINE), ("ema_model", EMA)) for k, t in whole(m).items()}, EMA),
    ("flat, one of them bare", lambda: whole(ONLINE) | {f"ema.{k}": t for k, t in under(f"{EMA}.").items()}, EMA),
    ("a model and its averaging object", lambda: {"model": whole(ONLINE), "ema": {
        f"{n}.{k}": t for n, m in (("online_model", ONLINE), ("ema_model", EMA)) for k, t in whole(m).items()}}, EMA),
    ("an average in a callback's state", lambda: {
        "state_dict": {k: t for k, t in golden().items() if not k.startswith(EMA)},
        "callbacks": {"EMA": {"weights": list(parameters(EMA).values())}, "Checkpoint": {"best": torch.ones(())}},
        "loops": {"fit_loop": {}}, "optimizer_states": [adam(whole(ONLINE))]}, EMA),
    ("constants at the outermost level", lambda: {"model": loose(), **constants()}, EMA),
    ("constants in an object of their own", lambda: {"model": loose(), "diffusion": constants()}, EMA),
    ("constants as NumPy arrays", lambda: {"model": loose(), "d": {k: t.numpy() for k, t in constants().items()}}, EMA),
    ("constants beside two networks", lambda: {
        "nets": {k: t for k, t in golden().items() if "decoder." in k or k.startswith("vae.")}, **constants()}, EMA),
    ("all in parts", lambda: {"unet": under(f"{EMA}.decoder."), "autoencoder": under("vae."), **constants()}, EMA),
    ("bytes as a key", lambda: {b"a": torch.ones(2)} | golden(), r"found tensor under the key _codecs\.encode, expected"),
    ("a counter in the dict", lambda: golden() | {"epoch": 3}, EMA),
    ("NumPy arrays", lambda: {k: t.numpy() for k, t in golden().items()}, EMA),
    ("parameters, not tensors", lambda: {k: nn.Parameter(t) for k, t in golden().items()}, EMA),
    ("a whole module", lambda: as_module(golden()), EMA),
    ("whole modules", lambda: {"model": as_module(whole(ONLINE)), "ema": as_module(whole(EMA))}, EMA),
    ("no weights", lambda: {"step": 5, "opt": adam({"w": torch.ones(3)})}, "without weights"),
    ("a sparse weight", lambda: {"m": golden() | {f"{EMA}.decoder.out.2.bias": torch.ones(3).to_sparse()}},
     r"made by torch\._utils\._rebuild_sparse_tensor.*python -c"),
]  # fmt: skip


@dataclass(frozen=True)
class Read:
    """What was read, before an architecture is inferred of it."""

    network: Network
    stage: Stage | None
    checkpoint: Checkpoint


def read(path: Path, key: str | None = None, weights: str = "ema") -> Read:
    checkpoint = read_checkpoint(path, Selection(weights, key))
    parts = split(checkpoint)
    return Read(select(parts, weights, path), parts.vae, checkpoint)


def assert_is(found: Read, network: str) -> None:
    """The UNet, its constants and the VAE, number for number."""
    assert found.stage is not None
    for read_here, expected in (
        (found.network.unet, under(f"{network}.decoder.")),
        (found.network.buffers, {k: t for k, t in under(f"{network}.").items() if not k.startswith("decoder.")}),
        (found.stage.tensors, under("vae.")),
    ):
        assert read_here.keys() == expected.keys()
        assert [key for key, tensor in expected.items() if not torch.equal(read_here[key], tensor)] == []


@pytest.mark.parametrize(("content", "expected"), [pytest.param(*row[1:], id=row[0]) for row in (*WRAPPED, *CONTAINERS)])
def test_what_comes_out(tmp_path: Path, content: Callable[[], Any], expected: str) -> None:
    path = save(tmp_path, content())
    if expected in (EMA, ONLINE):
        assert_is(read(path), expected)
        return
    with pytest.raises(EngineError, match=expected):
        read(path)


BOTH = {"step": 1, "model": ONLINE, "ema": {"decay": 0.9, "module": EMA}}


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (BOTH, {"weights": "online"}, ONLINE),
        (BOTH, {"key": "model"}, ONLINE),
        (BOTH, {"key": "ema.module"}, EMA),
        (BOTH, {"key": "ema"}, r"--key: found 'ema', expected one of the sets .*: model, ema\.module"),
        ([ONLINE, EMA], {"key": "1"}, EMA),
        ({"a": ONLINE, "b": EMA, "c": ONLINE}, {"key": "b"}, EMA),
        ({"a": ONLINE, "b": EMA}, {"key": "bb"}, r"found 'bb', expected .*: a, b"),
        ({"ema": EMA}, {"weights": "online"}, r"found 1 set of weights: ema .*--key ema"),
        ({"ema": EMA}, {}, EMA),
        ({"only": ONLINE}, {}, ONLINE),
        ({"ema_fast": EMA, "ema_slow": ONLINE}, {}, r"2 sets of weights: ema_fast"),
    ],
)
def test_which_of_them(tmp_path: Path, content: Any, options: dict[str, Any], expected: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, (dict, list)):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            made = {key: filled(entry) for key, entry in entries}
            return made if isinstance(value, dict) else list(made.values())
        return whole(value) if value in (EMA, ONLINE) else value

    path = save(tmp_path, filled(content))
    if expected in (EMA, ONLINE):
        assert_is(read(path, **options), expected)
        return
    with pytest.raises((CheckpointError, ArgumentError), match=expected):
        read(path, **options)


def test_a_prefix_of_the_keys_is_a_key(tmp_path: Path) -> None:
    flat = {f"{name}.{k}": t for name, net in (("one", ONLINE), ("two", EMA)) for k, t in whole(net).items()}
    with pytest.raises(CheckpointError, match=r"2 sets of weights: state_dict\.one .*; state_dict\.two "):
        read(save(tmp_path, {"state_dict": flat}))
    assert_is(read(save(tmp_path, flat), key="two"), EMA)


FOREIGN: list[tuple[str, Callable[[Foreign], Any]]] = [
    ("argparse.Namespace", lambda f: argparse.Namespace(lr=1e-4, path=pathlib.Path("x"))),
    ("numpy", lambda f: {"a": np.float32(1), "b": np.ones((3, 4)), "c": np.random.default_rng(0), "d": np.dtype("f4")}),
    ("OmegaConf", lambda f: f.make("omegaconf.DictConfig", _content={"a": f.make("omegaconf.nodes.AnyNode", _val=1)})),
    ("a scheduler", lambda f: torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), abs)),
    ("a callback's class as key", lambda f: {f.kind("mine.callbacks.Callback"): {"best": torch.ones(())}}),
    ("a dict of its own", lambda f: f.kind("mine.AttributeDict", dict)(a=1)),
    ("a list of its own", lambda f: f.kind("mine.List", list)([1, 2])),
    ("devices and dtypes", lambda f: [torch.device("cpu"), torch.float16, torch.Size([1]), torch.Generator().get_state()]),
    ("the standard library", lambda f: [
        functools.partial(int, "3"), datetime.datetime(2026, 1, 1), Colour.RED, collections.Counter("aab"),
        collections.defaultdict(list, a=[1]), {1, 2}, frozenset([3]), 1 + 2j,
        b"bytes", slice(1), range(3), 2**70, os.system]),
    ("an EMA object beside", lambda f: f.make("mine.Ema", shadow={"w": torch.ones(1)}, decay=0.9)),
    ("itself", lambda f: (lambda a: a.append(a) or a)([])),  # type: ignore[func-returns-value]
]  # fmt: skip


@pytest.mark.parametrize(
    ("thing", "legacy"), [pytest.param(thing, index % 3 == 1, id=name) for index, (name, thing) in enumerate(FOREIGN)]
)
def test_foreign_objects_beside_the_weights(tmp_path: Path, foreign: Foreign, thing: Any, legacy: bool) -> None:
    hyper = {"n_heads": np.int64(2), "x": thing(foreign)}
    content = {"extra": thing(foreign), "state_dict": golden(), "hyper_parameters": hyper}
    path = save(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    foreign.forget()
    before = set(sys.modules)
    found = read(path)
    assert_is(found, EMA)
    assert found.checkpoint.metadata["n_heads"] == 2
    assert not {name for name in set(sys.modules) - before if name.startswith(("mine", "omegaconf"))}


@pytest.mark.parametrize("protocol", range(1, 6))
def test_every_protocol_of_pickle(tmp_path: Path, foreign: Foreign, protocol: int) -> None:
    ema = foreign.make("mine.EMA", shadow=parameters(EMA), decay=0.9)
    path = save(tmp_path, {"model": whole(ONLINE), "average": ema}, pickle_protocol=protocol)
    foreign.forget()
    assert_is(read(path), EMA)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_nothing_runs(tmp_path: Path, legacy: bool) -> None:
    """Every way in which a pickle can call, at once; the weights beside it are read all the same."""
    canary = tmp_path / "canary"

    class Evil:
        def __init__(self, *call: Any) -> None:
            self.call = call

        def __reduce__(self) -> Any:
            return self.call

    touch = f"open({str(canary)!r}, 'w').close()"
    calls = [
        Evil(os.system, (f"touch {canary}",)),
        Evil(eval, (touch,)),
        Evil(functools.partial(eval, touch), ()),
        Evil(collections.deque, (), {"__class__": eval}, iter([Evil(exec, (touch,))]), iter([("a", Evil(exec, (touch,)))])),
        Evil(pickle.loads, (pickle.dumps(Evil(exec, (touch,))),)),
        Evil(torch.load, (str(canary),)),
        Evil(nn.Parameter, (torch.ones(2),), {"data": Evil(exec, (touch,))}),
    ]
    content = {"state_dict": golden(), "callbacks": calls, "hyper_parameters": {"n_heads": Evil(eval, (touch,))}}
    assert_is(read(save(tmp_path, content, _use_new_zipfile_serialization=not legacy)), EMA)
    assert not canary.exists()


def repacked(path: Path, replace: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in entries.items():
            target.writestr(name, replace.get(name.partition("/")[2], data))
    return path


def nested(depth: int) -> bytes:
    """A tuple of two of itself, so deep that hashing or printing it would never end, as a key of a dict."""
    level = b"h\x00h\x00\x86q\x00"
    return b"\x80\x02}(K\x01q\x00" + level * depth + b"K\x01u."


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (nested(200), "without weights"),
        (b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", "without weights"),
        (b"\x80\x02]q\x00(" + b"h\x00" * 1000 + b"e.", "without weights"),
        (b"\x80\x02\x8e" + (1 << 60).to_bytes(8, "little") + b"x.", "damaged"),
        (b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x.", "damaged"),
        (b"\x80\x02r\xff\xff\xff\xff.", "damaged"),
        (b"\x80\x02(.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02K\x01)R.", "without weights"),
        (b"\x80\x05\x97.", "damaged"),
        (b"I" + b"9" * 10_000 + b"\n.", "damaged"),
        (b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00truetR.", "without weights"),
    ],
)
def test_bombs_in_a_pickle(tmp_path: Path, data: bytes, says: str) -> None:
    path = repacked(save(tmp_path, {"w": torch.ones(1)}), {"data.pkl": data})
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(path)


def test_the_cure_for_weights_that_need_code_works_when_it_is_pasted(tmp_path: Path) -> None:
    key = "target_network.decoder.out.2.bias"
    path = save(tmp_path, {"nets": [{"g": golden() | {key: golden()[key].to_sparse()}}]})
    with pytest.raises(CheckpointError) as refusal:
        read(path)
    _, _, line = str(refusal.value).partition("python -c ")
    subprocess.run([sys.executable, "-c", *shlex.split(line)], cwd=tmp_path, check=True, timeout=120)
    assert_is(read(tmp_path / "plain.pt"), EMA)


def test_the_list_is_cured_by_the_line_it_prints(tmp_path: Path) -> None:
    path = save(tmp_path, {"a b": whole(EMA), "c": whole(ONLINE)})
    with pytest.raises(CheckpointError) as refusal:
        read(path)
    words = shlex.split(str(refusal.value).partition("such as: ")[2])
    assert words[-3:] == [str(path), "--key", "a b"]
    assert_is(read(path, key=words[-1]), EMA)
