"""A program of the native engine as JSON, made into the flat structs that the library reads and judges.

kernels/native/README.md says what an operation computes. Here fields have types, every name resolves and no field is left
over; ranges, shapes, sizes of weights and order are kernels/native/program.cpp's to judge, for C++ and Python alike.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from engine.backends.native.weights import Blob
from engine.bundle.canvas import Canvas
from engine.bundle.fields import REBUILD, Fields, parse_json, shorten
from engine.bundle.graphs import GraphSpec
from engine.bundle.tensors import TensorSpec
from engine.errors import BundleError
from engine.kernels import native_library
from engine.kernels.native_library import MAX_SOURCES, NONE, Op, PackedTensor, Port, Tensor

FORMAT = "diffusevae-native"
VERSION = native_library.VERSION
MAX_PROGRAM_BYTES = 16 * 2**20
PORT_KINDS = {"map": 1, "row": 2, "steps": 3, "table": 4, "tokens": 5, "ids": 6}
ROWS = {"none": 0, "steps": 1, "batch": 2, "pairs": 3}
ACTIVATIONS = {"identity": 0, "silu": 1, "gelu": 2, "sigmoid": 3, "signed_sigmoid": 4, "geglu": 5, "relu": 6}
DTYPES = {"F32": 1, "BF16": 2, "I8": 3}
_INT32, _FLOAT32 = 2**31 - 1, float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ParsedProgram:
    """A program in the structs' form, with the names of its ports in their order."""

    port_names: tuple[str, ...]
    ports: ctypes.Array[Port]
    tensors: ctypes.Array[Tensor]
    ops: ctypes.Array[Op]
    blobs: ctypes.Array[PackedTensor]
    op_names: tuple[str, ...]
    precision: str


def parse_program(data: bytes, blobs: Mapping[str, Blob], graph: str, precision: str, where: str) -> ParsedProgram:
    """The structs of a program and of the weights that lie beside it; BundleError names the field."""
    if len(data) > MAX_PROGRAM_BYTES:
        raise BundleError(f"{where}: found {len(data)} bytes, expected at most {MAX_PROGRAM_BYTES}; {REBUILD}")
    top = Fields(parse_json(data, where), where, "")
    top.choice("format", (FORMAT,))
    top.integer("version", VERSION, VERSION)
    top.choice("graph", (graph,))
    found = top.choice("precision", (precision,))
    reader = _Reader(blobs)
    reader.read_ports(top)
    reader.read_tensors(top)
    ops = [reader.op(fields) for fields in top.objects("ops", "a list of operations")]
    top.done()
    packed = [PackedTensor(blob.offset, blob.size, DTYPES[blob.dtype]) for blob in blobs.values()]
    return ParsedProgram(
        tuple(reader.port_index),
        (Port * len(reader.ports))(*reader.ports),
        (Tensor * len(reader.tensors))(*reader.tensors),
        (Op * len(ops))(*ops),
        (PackedTensor * len(packed))(*packed),
        tuple(reader.op_names),
        found,
    )


def resized(program: ParsedProgram, canvas: Canvas | None, graph: str) -> ParsedProgram:
    """The program for another size of the state: its ports that lie over it, and all maps made of them, grow alike.

    Weights, rows and tokens stay as they are. Whether the result is a program is the library's to judge.
    """
    over = {} if canvas is None or canvas.block is None else canvas.ports.get(graph, {})
    if canvas is None or not over:
        return program
    ports, tensors = copy.copy(program.ports), copy.copy(program.tensors)
    grown = {number for number, name in enumerate(program.port_names) if name in over}
    made: set[int] = set()
    for op in program.ops:
        sources = {number for number in op.sources if number != NONE}
        if op.output != NONE and sources & (grown if op.kind in _OF_PORTS else made):
            made.add(op.output)
    for entry in [*(ports[number] for number in grown), *(tensors[number] for number in made)]:
        entry.height, entry.width = (
            side * whole // own
            for side, whole, own in zip((entry.height, entry.width), canvas.whole, canvas.window, strict=True)
        )
    return dataclasses.replace(program, ports=ports, tensors=tensors)


def check_ports(program: ParsedProgram, spec: GraphSpec, where: str) -> None:
    """Refuse a program whose ports are not the graph's inputs and outputs as the manifest has them."""
    expected = {tensor.name: (tensor, False) for tensor in spec.inputs} | {t.name: (t, True) for t in spec.outputs}
    if set(program.port_names) != set(expected):
        raise BundleError(
            f"{where}, ports: found {shorten(', '.join(program.port_names))}, expected {', '.join(expected)} as the "
            f"manifest says of the graph; {REBUILD}"
        )
    for name, port in zip(program.port_names, program.ports, strict=True):
        tensor, output = expected[name]
        if bool(port.is_output) != output or not _fits(port, tensor):
            sizes = (port.channels, port.height, port.width)
            raise BundleError(
                f"{where}, ports: found {name} as {'output' if port.is_output else 'input'} of {sizes}, expected "
                f"{'output' if output else 'input'} {tensor} as the manifest says of the graph; {REBUILD}"
            )


def _fits(port: Port, tensor: TensorSpec) -> bool:
    """Whether a port takes exactly the arrays of a tensor in the manifest."""
    sizes: tuple[int | str, ...] = (port.channels, port.height, port.width)
    shapes: list[tuple[int | str, ...]]
    if port.kind == PORT_KINDS["map"]:
        flat = port.height == port.width == 1
        shapes = [("batch", *sizes), *([("batch", port.channels)] if flat else [])]
        shapes += [("batch",)] if flat and port.channels == 1 else []
    elif port.kind == PORT_KINDS["row"]:
        shapes = [(1, port.channels), ("batch", port.channels)]
    elif port.kind == PORT_KINDS["tokens"]:
        shapes = [("batch", port.height, port.channels)]
    elif port.kind == PORT_KINDS["steps"]:
        return tensor.dtype == "int64" and tensor.shape == ("steps",)
    elif port.kind == PORT_KINDS["ids"]:
        shapes = [("batch", port.height, port.width)]
        shapes += [("batch", port.height)] if port.width == 1 else []
        shapes += [("batch",)] if port.width == port.height == 1 else []
        return tensor.dtype == "int64" and tensor.shape in shapes
    else:
        free = {1: ("steps",), 2: ("batch",), 3: ("steps", "batch")}
        shapes = [(*free[port.rows], port.channels)] if port.rows in free else []
    return tensor.dtype == "float32" and tensor.shape in shapes


class _Reader:
    """Reads ports, tensors and operations in order; names become numbers, null becomes NONE."""

    def __init__(self, blobs: Mapping[str, Blob]) -> None:
        self.blob_index = {name: number for number, name in enumerate(blobs)}
        self.ports: list[Port] = []
        self.port_index: dict[str, int] = {}
        self.tensors: list[Tensor] = []
        self.tensor_index: dict[str, int] = {}
        self.op_names: list[str] = []

    def read_ports(self, top: Fields) -> None:
        """The field `ports`."""
        for fields in top.objects("ports", "a list of ports"):
            _add_name(fields, self.port_index)
            kind, rows = fields.choice("kind", tuple(PORT_KINDS)), fields.choice("rows", tuple(ROWS))
            self.ports.append(Port(PORT_KINDS[kind], int(fields.boolean("output")), *_sizes(fields), ROWS[rows]))
            fields.done()

    def read_tensors(self, top: Fields) -> None:
        """The field `tensors`."""
        for fields in top.objects("tensors", "a list of tensors, which may be empty", empty=True):
            _add_name(fields, self.tensor_index)
            self.tensors.append(Tensor(ROWS[fields.choice("rows", tuple(ROWS))], *_sizes(fields)))
            fields.done()

    def op(self, fields: Fields) -> Op:
        """One entry of the field `ops`."""
        kind = fields.choice("kind", tuple(_OPS))
        self.op_names.append(fields.text("name"))
        number, read = _OPS[kind]
        none = (NONE,) * MAX_SOURCES
        op = Op(
            kind=number, sources=none, output=NONE, output_port=NONE, norm_weight=NONE, norm_bias=NONE, scale_row=NONE,
            weights=NONE, bias=NONE, bias_row=NONE, residual=NONE, skip_sources=none, skip_weights=NONE, multiplier=NONE,
            labels=NONE, places=NONE, offset=NONE, modulation=NONE,
        )  # fmt: skip
        read(self, fields, op)
        fields.done()
        return op

    def port(self, fields: Fields, key: str) -> int:
        """The number of a port."""
        return _number(fields, key, fields.take(key, "the name of a port"), self.port_index, "the name of a port")

    def tensor(self, fields: Fields, key: str) -> int:
        """The number of a tensor."""
        return _number(fields, key, fields.take(key, "the name of a tensor"), self.tensor_index, "the name of a tensor")

    def weights(self, fields: Fields, key: str) -> int:
        """The number of packed weights."""
        return _number(fields, key, fields.take(key, "the name of weights"), self.blob_index, "the name of weights")

    def port_list(self, fields: Fields, key: str) -> ctypes.Array[ctypes.c_int32]:
        """One to MAX_SOURCES ports."""
        return _list(fields, key, self.port_index, "names of ports")

    def tensor_list(self, fields: Fields, key: str) -> ctypes.Array[ctypes.c_int32]:
        """One to MAX_SOURCES tensors."""
        return _list(fields, key, self.tensor_index, "names of tensors")

    def target(self, fields: Fields, op: Op) -> None:
        """`output` and `output_port`, of which the library demands one."""
        op.output = _or_none(self.tensor, fields, "output")
        op.output_port = _or_none(self.port, fields, "output_port")


def _add_name(fields: Fields, index: dict[str, int]) -> None:
    name = fields.text("name")
    if name in index:
        fields.refuse("name", "a name of its own")
    index[name] = len(index)


def _sizes(fields: Fields) -> tuple[int, int, int]:
    return _integer(fields, "channels"), _integer(fields, "height"), _integer(fields, "width")


def _number(fields: Fields, key: str, name: object, index: Mapping[str, int], expected: str) -> int:
    if type(name) is not str or name not in index:
        fields.refuse(key, f"{expected} (not {shorten(name)})")
    return index[name]


def _list(fields: Fields, key: str, index: Mapping[str, int], expected: str) -> ctypes.Array[ctypes.c_int32]:
    names = fields.items(key, f"1 to {MAX_SOURCES} {expected}")
    if len(names) > MAX_SOURCES:
        fields.refuse(key, f"at most {MAX_SOURCES} {expected}")
    return _sources(*(_number(fields, key, name, index, expected) for name in names))


def _sources(*numbers: int) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * MAX_SOURCES)(*numbers, *[NONE] * (MAX_SOURCES - len(numbers)))


def _integer(fields: Fields, key: str) -> int:
    """What an int32 holds; NONE, a negative number, is not for files."""
    return fields.integer(key, 0, _INT32)


def _real(fields: Fields, key: str) -> float:
    return fields.number(key, -_FLOAT32, _FLOAT32)


def _activation(fields: Fields, key: str) -> int:
    return ACTIVATIONS[fields.choice(key, tuple(ACTIVATIONS))]


def _or_none(read: Callable[[Fields, str], int], fields: Fields, key: str) -> int:
    """What `read` makes of a field, or NONE where it is null."""
    return NONE if fields.take(key, "a value or null") is None else read(fields, key)


def _optional(fields: Fields, key: str) -> Fields | None:
    """A nested object, or None where it is null."""
    return None if fields.take(key, "an object or null") is None else fields.object(key)


def _input(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = reader.port_list(fields, "sources"), reader.tensor(fields, "output")
    op.kernel, op.stride = _integer(fields, "kernel"), _integer(fields, "stride")
    op.factor = _integer(fields, "factor")
    op.offset = _or_none(_integer, fields, "offset")


def _conv(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources = reader.tensor_list(fields, "sources")
    reader.target(fields, op)
    op.kernel, op.stride = _integer(fields, "kernel"), _integer(fields, "stride")
    op.pad_top, op.pad_left = _integer(fields, "pad_top"), _integer(fields, "pad_left")
    op.upsample = int(fields.boolean("upsample"))
    op.activation, op.output_activation = _activation(fields, "activation"), _activation(fields, "output_activation")
    op.weights, op.bias = reader.weights(fields, "weights"), _or_none(reader.weights, fields, "bias")
    op.bias_row, op.residual = _or_none(_integer, fields, "bias_row"), _or_none(reader.tensor, fields, "residual")
    op.residual_scale = _real(fields, "residual_scale")
    if (norm := _optional(fields, "norm")) is not None:
        _norm(reader, norm, op)
    if (int8 := _optional(fields, "int8")) is not None:
        op.int8, op.zero_point, op.inverse_scale = 1, _integer(int8, "zero_point"), _real(int8, "inverse_scale")
        op.multiplier = reader.weights(int8, "multiplier")
        int8.done()
    if (skip := _optional(fields, "skip")) is not None:
        op.skip_sources, op.skip_weights = reader.tensor_list(skip, "sources"), reader.weights(skip, "weights")
        skip.done()


def _norm(reader: _Reader, fields: Fields, op: Op) -> None:
    op.norm_groups, op.norm_layer = _integer(fields, "groups"), int(fields.boolean("layer"))
    op.norm_epsilon = _real(fields, "epsilon")
    op.norm_weight, op.norm_bias = reader.weights(fields, "weight"), reader.weights(fields, "bias")
    op.scale_row = _or_none(_integer, fields, "scale_row")
    fields.done()


def _attention(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = reader.tensor_list(fields, "sources"), reader.tensor(fields, "output")
    op.heads, op.keys, op.scale = _integer(fields, "heads"), _integer(fields, "keys"), _real(fields, "scale")


def _resample(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = _sources(reader.tensor(fields, "source")), reader.tensor(fields, "output")
    op.factor, op.kernel = _integer(fields, "factor"), _integer(fields, "kernel")


def _lookup(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = _sources(reader.port(fields, "source")), reader.tensor(fields, "output")
    op.factor, op.weights = _integer(fields, "factor"), reader.weights(fields, "weights")


def _linear(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources = _sources(reader.tensor(fields, "source"))
    reader.target(fields, op)
    op.activation = _activation(fields, "activation")
    op.weights, op.bias = reader.weights(fields, "weights"), _or_none(reader.weights, fields, "bias")


def _add(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = reader.tensor_list(fields, "sources"), reader.tensor(fields, "output")


def _embed(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources = _sources(reader.port(fields, "source"))
    reader.target(fields, op)
    op.factor, op.stride = _integer(fields, "factor"), _integer(fields, "stride")
    op.weights, op.bias = reader.weights(fields, "weights"), _or_none(reader.weights, fields, "places")


def _nearest(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output_port = _sources(reader.port(fields, "source")), reader.port(fields, "output_port")
    op.factor, op.scale = _integer(fields, "factor"), _real(fields, "scale")
    op.weights, op.bias = reader.weights(fields, "weights"), reader.weights(fields, "halves")


def _norm_gradient(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = reader.tensor_list(fields, "sources"), reader.tensor(fields, "output")
    op.residual, op.factor = _or_none(reader.tensor, fields, "residual"), _integer(fields, "factor")
    op.activation = _activation(fields, "activation")
    _norm(reader, fields.object("norm"), op)


def _attention_gradient(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = reader.tensor_list(fields, "sources"), reader.tensor(fields, "output")
    op.heads, op.scale = _integer(fields, "heads"), _real(fields, "scale")


def _classify(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = _sources(reader.tensor(fields, "source")), reader.tensor(fields, "output")
    op.labels, op.output_port = reader.port(fields, "labels"), reader.port(fields, "output_port")
    op.factor, op.heads, op.scale = _integer(fields, "factor"), _integer(fields, "heads"), _real(fields, "scale")
    op.weights, op.bias = reader.weights(fields, "weights"), reader.weights(fields, "bias")
    op.places = _or_none(reader.weights, fields, "places")


def _activated_norm(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources, op.output = reader.tensor_list(fields, "sources"), reader.tensor(fields, "output")
    op.modulation, op.activation = _or_none(reader.tensor, fields, "modulation"), _activation(fields, "activation")
    _norm(reader, fields.object("norm"), op)


_OPS: dict[str, tuple[int, Callable[[_Reader, Fields, Op], None]]] = {
    "input": (1, _input),
    "conv": (2, _conv),
    "attention": (3, _attention),
    "pool": (4, _resample),
    "upsample": (5, _resample),
    "lookup": (6, _lookup),
    "linear": (7, _linear),
    "add": (8, _add),
    "embed": (9, _embed),
    "nearest": (10, _nearest),
    "norm_gradient": (11, _norm_gradient),
    "attention_gradient": (12, _attention_gradient),
    "classify": (13, _classify),
    "norm": (14, _activated_norm),
}

_NAMES = {number: name for name, (number, _) in _OPS.items()}
_OF_PORTS = {_OPS[name][0] for name in ("input", "lookup", "embed", "nearest")}  # whose sources are ports


def op_kind(op: Op) -> str:
    """What an operation is, for people: "conv 3x3 up, int8", "attention"."""
    if _NAMES[op.kind] != "conv":
        return _NAMES[op.kind]
    shape = f"conv {op.kernel}x{op.kernel}{' up' if op.upsample else f' /{op.stride}' if op.stride > 1 else ''}"
    return f"{shape}, {'int8' if op.int8 else 'bf16'}"


def op_side(program: ParsedProgram, op: Op) -> int:
    """Height in pixels of what an operation writes; 0 for rows."""
    return int(program.tensors[op.output].height if op.output != NONE else program.ports[op.output_port].height)
