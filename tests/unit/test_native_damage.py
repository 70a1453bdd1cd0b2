"""Backend `native`: programs and weights that are damaged are refused by field, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.backends.native import graph as native
from engine.backends.native.weights import Weights, weights_of
from engine.bundle.reader import Bundle
from engine.errors import BundleError
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE


@pytest.fixture(scope="module")
def bundle(native_bundle: Callable[..., Path]) -> Bundle:
    return Bundle.open(native_bundle("form1", "bf16", "int8"))


def files(bundle: Bundle, name: str = "denoiser", precision: str = "bf16") -> tuple[bytes, bytes]:
    entry = bundle.engine("native", precision, name)
    return bundle.read_engine(entry, "program"), bundle.read_engine(entry, "weights")


def open_changed(bundle: Bundle, change: Callable[[dict[str, Any]], None], precision: str = "bf16") -> None:
    program, weights = files(bundle, precision=precision)
    raw = json.loads(program)
    change(raw)
    text, spec = json.dumps(raw).encode(), bundle.spec("denoiser")
    native.open_graph(text, weights_of(weights, "weights"), spec, "denoiser", precision, 1, "program").close()


def conv(raw: dict[str, Any], **where: Any) -> dict[str, Any]:
    """The first convolution with these properties."""
    convs = (op for op in raw["ops"] if op["kind"] == "conv")
    return next(op for op in convs if all(bool(op[key]) == value for key, value in where.items()))


def kind(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The first operation of a kind."""
    return next(op for op in raw["ops"] if op["kind"] == name)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "version": (lambda raw: raw.update(version=1), r"version: found 1"),
    "graph": (lambda raw: raw.update(graph="vae_decoder"), r"graph: found 'vae_decoder'"),
    "precision": (lambda raw: raw.update(precision="f32"), r"precision: found 'f32'"),
    "unknown field": (lambda raw: raw["ops"][1].update(strde=2), r"ops\[1\]\.strde: found an unknown field"),
    "unknown kind": (lambda raw: raw["ops"][1].update(kind="convolve"), r"ops\[1\]\.kind: found 'convolve'"),
    "missing field": (lambda raw: raw["ops"][1].pop("stride"), r"ops\[1\]\.stride: missing"),
    "boolean for integer": (lambda raw: raw["ops"][1].update(stride=True), r"ops\[1\]\.stride: found True"),
    "later tensor": (lambda raw: raw["ops"][1].update(sources=["out_conv"]), r"ops\[1\]\.sources: .*names of tensors"),
    "five sources": (lambda raw: raw["ops"][1].update(sources=["input"] * 5), r"sources: .*at most 4 names of tensors"),
    "written twice": (lambda raw: raw["ops"].insert(1, raw["ops"][0]), r"ops\[1\]\.output \(input\): .*no operation before"),
    "two outputs": (lambda raw: raw["ops"][1].update(output_port="eps"), r"output_port \(conv\): .*null, since"),
    "channels": (lambda raw: raw["tensors"][1].update(channels=33), r"found"),
    "size": (lambda raw: raw["tensors"][1].update(height=3), r"found"),
    "port size": (lambda raw: raw["ports"][0].update(width=9), r"ports: found x as input of \(3, 16, 9\), expected input x"),
    "port direction": (lambda raw: raw["ports"][0].update(output=True), r"ports: found x as output"),
    "port name": (lambda raw: raw["ports"][0].update(name="y"), r"ops\[0\]\.sources: .*names of ports"),
    "weights": (lambda raw: raw["ops"][1].update(weights="nothing"), r"weights: found 'nothing'.*name of weights"),
    "weights of another layer": (
        lambda raw: raw["ops"][1].update(weights="out_conv.weights"),
        r"weights \(conv\): found BF16 of \d+ bytes, expected BF16 weights of \d+ bytes",
    ),
    "bias for weights": (lambda raw: raw["ops"][1].update(weights="stem.bias"), r"weights \(conv\): found F32 of \d+ bytes"),
    "groups": (lambda raw: conv(raw, norm=True)["norm"].update(groups=7), r"found"),
    "epsilon": (lambda raw: conv(raw, norm=True)["norm"].update(epsilon=-1), r"norm\.epsilon \(conv\): found -1"),
    "row outside": (lambda raw: conv(raw, norm=True).update(bias_row=10**6), r"found"),
    "residual of another size": (lambda raw: conv(raw, residual=True).update(residual="input"), r"found"),
    "no groups": (lambda raw: conv(raw, norm=True)["norm"].update(groups=0), r"norm\.groups \(conv\): found 0, expected 1"),
    "groups that do not divide": (lambda raw: conv(raw, norm=True)["norm"].update(groups=5), r"found 5, expected a divisor"),
    "a negative place": (lambda raw: conv(raw, norm=True).update(bias_row=-1), r"bias_row: found -1"),
    "a number beyond 32 bits": (lambda raw: raw["ops"][1].update(kernel=2**31), r"ops\[1\]\.kernel: found 2147483648"),
    "kernel": (lambda raw: raw["ops"][1].update(kernel=2), r"ops\[1\]\.kernel \(conv\): found 2, expected 1, 3 or 6"),
    "kernel of an input": (
        lambda raw: raw["ops"][0].update(kernel=5),
        r"ops\[0\]\.kernel \(input\): found 5, expected 1 or 3",
    ),
    "stride of an input": (
        lambda raw: raw["ops"][0].update(stride=3), r"ops\[0\]\.stride \(input\): found 3, expected a divisor of",
    ),
    "a slice of images": (lambda raw: raw["ops"][0].update(offset=0), r"ops\[0\]\.sources \(input\): found 2 of them"),
    "a residual times too much": (
        lambda raw: conv(raw, residual=True).update(residual_scale=1e30),
        r"residual_scale \(conv\): found 1e\+30, expected -1e\+09..1e\+09",
    ),
    "stride": (lambda raw: raw["ops"][1].update(stride=3), r"stride \(conv\): found 3, expected 1, or 2 with kernel 3"),
    "padding": (lambda raw: conv(raw, norm=True).update(pad_left=3), r"pad_left \(conv\): found 3, expected 1"),
    "a sigmoid inside": (
        lambda raw: raw["ops"][1].update(activation="sigmoid"),
        r"activation \(conv\): found sigmoid, expected",
    ),
    "a sigmoid to a map": (
        lambda raw: raw["ops"][1].update(output_activation="signed_sigmoid"),
        r"output_activation \(conv\): found signed_sigmoid, expected one of identity",
    ),
    "an unknown activation": (lambda raw: raw["ops"][1].update(activation="mish"), r"activation: found 'mish'"),
    "heads": (lambda raw: kind(raw, "attention").update(heads=7), r"heads \(attention\): found 7, expected a divisor"),
    "keys of its own": (lambda raw: kind(raw, "attention").update(keys=1), r"keys \(attention\): found 1, expected 0"),
    "a layer norm of patches": (
        lambda raw: conv(raw, norm=True)["norm"].update(groups=0, layer=True, scale_row=None),
        r"norm\.layer \(conv\): found true, expected another where the kernel is not 1",
    ),
    "a gate behind a norm": (
        lambda raw: conv(raw, norm=True).update(activation="geglu"),
        r"activation \(conv\): found geglu behind a norm, expected one without",
    ),
    "a gate in int8 over parts of blocks": (
        lambda raw: conv(raw, norm=False).update(
            activation="geglu", int8={"zero_point": 0, "inverse_scale": 1.0, "multiplier": conv(raw, norm=False)["bias"]}
        ),
        r"sources \(conv\): found 81 channels, expected a multiple of 64",
    ),
    "scale": (lambda raw: kind(raw, "attention").update(scale=0.0), r"scale \(attention\): found 0, expected"),
    "rows of a map": (lambda raw: raw["ports"][0].update(rows="batch"), r"ports\[0\]\.rows: found 2, expected 0"),
    "a map of another kind": (lambda raw: raw["tensors"][1].update(rows="batch", height=1, width=1), r"of another kind"),
    "a side": (
        lambda raw: raw["tensors"][1].update(height=2**20),
        r"tensors\[1\]\.height: found 1048576, expected 1\.\.1024",
    ),
    "no output": (lambda raw: raw["ops"][1].update(output=None), r"output_port \(conv\): found null, expected a port"),
    "weights left out": (
        lambda raw: raw["ops"][1].update(weights=None),
        r"weights: found null, expected the name of weights",
    ),
    "no operations": (lambda raw: raw.update(ops=[]), r"ops: found \[\]"),
    "output never written": (lambda raw: raw["ops"].pop(), r"found"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_a_damaged_program_is_refused_by_field(bundle: Bundle, case: str) -> None:
    change, message = CHANGES[case]
    with pytest.raises(BundleError, match=message):
        open_changed(bundle, change)


def test_int8_fields_are_checked(bundle: Bundle) -> None:
    changes = {"zero_point": 256, "inverse_scale": float(10**30), "multiplier": "stem.weights"}
    for key, value in changes.items():
        with pytest.raises(BundleError, match=rf"int8\.{key} \(conv\): found"):
            open_changed(bundle, lambda raw, k=key, v=value: conv(raw, int8=True)["int8"].update({k: v}), "int8")


def damaged_header(weights: bytes, change: Callable[[dict[str, Any]], None]) -> Weights:
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return weights_of(len(text).to_bytes(8, "little") + text + weights[8 + length :], "weights")


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "dtype": (lambda h: h["stem.bias"].update(dtype="F64"), r"stem\.bias\.dtype: found 'F64'"),
    "shape": (lambda h: h["stem.bias"].update(shape=[7]), r"data_offsets: .*28 bytes apart"),
    "negative": (lambda h: h["stem.bias"].update(data_offsets=[-64, 64]), r"data_offsets"),
    "gap": (lambda h: h.pop("stem.bias"), r"from \d+ on, where the last one ends"),
    "short": (lambda h: h.pop("out_conv.bias"), r"found"),
    "extra": (lambda h: h["stem.bias"].update(more=1), r"more: found an unknown field"),
    "metadata": (lambda h: h.update(__metadata__={"format": "pt"}), r"__metadata__"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_weights_are_refused_by_field(bundle: Bundle, case: str) -> None:
    change, message = HEADERS[case]
    with pytest.raises(BundleError, match=message):
        damaged_header(files(bundle)[1], change)


def test_truncated_weights_are_refused(bundle: Bundle) -> None:
    weights = files(bundle)[1]
    for tenth in range(1, 10):
        with pytest.raises(BundleError, match="found"):
            weights_of(weights[: len(weights) * tenth // 10], "weights")
    with pytest.raises(BundleError, match="bytes of data, expected the"):
        weights_of(weights + b"\0" * 64, "weights")


def test_what_is_mapped_is_what_was_hashed(bundle: Bundle, tmp_path: Path) -> None:
    """A file that is replaced under its name after it was verified is never the one that runs."""
    copied = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))
    entry = copied.engine("native", "bf16", "denoiser")
    mapped = copied.map_engine(entry, "weights")
    file = copied.path / entry.files["weights"].file
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(bytes(len(data)))
    assert mapped[:] == data
    with pytest.raises(BundleError, match="SHA-256"):
        copied.map_engine(entry, "weights")
