"""Is this a program of the native engine? Its JSON, checked field by field, becomes the flat structs that C++ reads.

kernels/native/README.md says what an operation computes. Here every name must resolve, every number lie in its range and
every packed weight have exactly the size that its layer needs, before the library sees anything; the library then checks
shapes and order once more by itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.backends.native.weights import Blob
from engine.bundle.fields import REBUILD, Fields, parse_json, shorten
from engine.bundle.graphs import GraphSpec
from engine.bundle.tensors import TensorSpec
from engine.errors import BundleError
from engine.kernels.native_library import MAX_SOURCES, NONE, Op, Port, Tensor

FORMAT = "diffusevae-native"
VERSION = 1
MAX_PROGRAM_BYTES = 16 * 2**20
PORT_KINDS = {"map": 1, "row": 2, "steps": 3, "table": 4}
ROWS = {"none": 0, "steps": 1, "batch": 2, "pairs": 3}
ACTIVATIONS = {"identity": 0, "silu": 1, "gelu": 2, "sigmoid": 3, "signed_sigmoid": 4}
BLOCK, TILE_OUTPUTS, STEP_BYTES = 32, 16, 1024  # channels of a block, outputs of a tile, bytes of a packed K step
MAX_CHANNELS, MAX_SIDE, MAX_ROW = 2**20, 2**14, 2**24


@dataclass(frozen=True)
class ParsedProgram:
    """A program in the structs' form, with the names of its ports in their order."""

    port_names: tuple[str, ...]
    ports: ctypes.Array[Port]
    tensors: ctypes.Array[Tensor]
    ops: ctypes.Array[Op]
    op_names: tuple[str, ...]
    precision: str


def parse_program(data: bytes, blobs: Mapping[str, Blob], role: str, precision: str, where: str) -> ParsedProgram:
    """Check the bytes of a program against the weights that lie beside it; BundleError names the field."""
    if len(data) > MAX_PROGRAM_BYTES:
        raise BundleError(f"{where}: found {len(data)} bytes, expected at most {MAX_PROGRAM_BYTES}; {REBUILD}")
    top = Fields(parse_json(data, where), where, "")
    top.choice("format", (FORMAT,))
    top.integer("version", VERSION, VERSION)
    top.choice("role", (role,))
    found = top.choice("precision", (precision,))
    reader = _Reader(blobs)
    reader.read_ports(top)
    reader.read_tensors(top)
    ops = [reader.op(fields) for fields in top.objects("ops", "a list of operations")]
    top.done()
    return ParsedProgram(
        tuple(reader.port_index),
        (Port * len(reader.ports))(*reader.ports),
        (Tensor * len(reader.tensors))(*reader.tensors),
        (Op * len(ops))(*ops),
        tuple(reader.op_names),
        found,
    )


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
    elif port.kind == PORT_KINDS["row"]:
        shapes = [(1, port.channels), ("batch", port.channels)]
    elif port.kind == PORT_KINDS["steps"]:
        return tensor.dtype == "int64" and tensor.shape == ("steps",)
    else:
        free = {1: ("steps",), 2: ("batch",), 3: ("steps", "batch")}[port.rows]
        shapes = [(*free, port.channels)]
    return tensor.dtype == "float32" and tensor.shape in shapes


def blocks(channels: int) -> int:
    """Blocks of 32 that a map's channels take."""
    return -(-channels // BLOCK)


class _Reader:
    """Reads ports, tensors and operations in order, and knows by name what there is so far."""

    def __init__(self, blobs: Mapping[str, Blob]) -> None:
        self.blobs = blobs
        self.ports: list[Port] = []
        self.port_index: dict[str, int] = {}
        self.tensors: list[Tensor] = []
        self.tensor_index: dict[str, int] = {}
        self.op_names: list[str] = []
        self.written: set[int] = set()

    def read_ports(self, top: Fields) -> None:
        """The field `ports`."""
        for fields in top.objects("ports", "a list of ports"):
            self._name(fields, self.port_index)
            kind = fields.choice("kind", tuple(PORT_KINDS))
            rows = fields.choice("rows", tuple(ROWS))
            if (kind == "table") != (rows != "none"):
                fields.refuse("rows", "'none' unless the port is a table, and something else if it is")
            sizes = self._sizes(fields)
            self.ports.append(Port(PORT_KINDS[kind], int(fields.boolean("output")), *sizes, ROWS[rows]))
            fields.done()

    def read_tensors(self, top: Fields) -> None:
        """The field `tensors`."""
        for fields in top.objects("tensors", "a list of tensors"):
            self._name(fields, self.tensor_index)
            rows = fields.choice("rows", tuple(ROWS))
            self.tensors.append(Tensor(ROWS[rows], *self._sizes(fields)))
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
        )  # fmt: skip
        read(self, fields, op)
        fields.done()
        if op.output != NONE:
            if op.output in self.written:
                fields.refuse("output", "a tensor that no operation before this one writes")
            self.written.add(op.output)
        return op

    def _name(self, fields: Fields, index: dict[str, int]) -> None:
        name = fields.text("name")
        if name in index:
            fields.refuse("name", "a name of its own")
        index[name] = len(index)

    def _sizes(self, fields: Fields) -> tuple[int, int, int]:
        return (
            fields.integer("channels", 1, MAX_CHANNELS), fields.integer("height", 1, MAX_SIDE),
            fields.integer("width", 1, MAX_SIDE),
        )  # fmt: skip

    # ---- what an operation refers to -------------------------------------------------------------

    def port(self, fields: Fields, key: str) -> int:
        """The number of a port."""
        name = fields.take(key, "the name of a port")
        if type(name) is not str or name not in self.port_index:
            fields.refuse(key, "the name of a port")
        return self.port_index[name]

    def tensor(self, fields: Fields, key: str) -> int:
        """The number of a tensor that an earlier operation writes."""
        return self._earlier(fields, key, fields.take(key, "the name of a tensor"))

    def tensor_list(self, fields: Fields, key: str) -> list[int]:
        """One to MAX_SOURCES tensors that earlier operations write."""
        names = fields.items(key, "a list of tensors")
        if len(names) > MAX_SOURCES:
            fields.refuse(key, f"at most {MAX_SOURCES} tensors")
        return [self._earlier(fields, key, name) for name in names]

    def target(self, fields: Fields, op: Op) -> tuple[int, int]:
        """Read `output` and `output_port`, one of which is null; (channels, channels padded as weights pad them)."""
        if fields.take("output", "the name of a tensor, or null") is None:
            op.output_port = self.port(fields, "output_port")
            channels = int(self.ports[op.output_port].channels)
            return channels, -(-channels // TILE_OUTPUTS) * TILE_OUTPUTS
        if fields.take("output_port", "null, since there is an output") is not None:
            fields.refuse("output_port", "null, since there is an output")
        op.output = self.output(fields)
        channels = int(self.tensors[op.output].channels)
        return channels, blocks(channels) * BLOCK

    def output(self, fields: Fields) -> int:
        """The number of the tensor that this operation writes."""
        name = fields.take("output", "the name of a tensor")
        if type(name) is not str or name not in self.tensor_index:
            fields.refuse("output", "the name of a tensor")
        return self.tensor_index[name]

    def blob(self, fields: Fields, key: str, dtype: str, size: int) -> int:
        """The offset of packed weights of exactly this dtype and size, rounded up to 64 bytes."""
        expected = f"the name of {dtype} weights of {-(-size // 64) * 64} bytes"
        name = fields.take(key, expected)
        found = self.blobs.get(name) if type(name) is str else None
        if found is None or (found.dtype, found.size) != (dtype, -(-size // 64) * 64):
            fields.refuse(key, expected + (f" (these are {found.dtype}, {found.size} bytes)" if found else ""))
        return found.offset

    def _earlier(self, fields: Fields, key: str, name: object) -> int:
        index = self.tensor_index.get(name) if type(name) is str else None
        if index is None or index not in self.written:
            fields.refuse(key, f"names of tensors that operations before this one write (not {shorten(name)})")
        return index


def _optional(fields: Fields, key: str) -> Fields | None:
    """A nested object, or None where it is null."""
    return None if fields.take(key, "an object or null") is None else fields.object(key)


def _optional_row(fields: Fields, key: str) -> int:
    """An offset into the row, or NONE where it is null."""
    return NONE if fields.take(key, "an integer or null") is None else fields.integer(key, 0, MAX_ROW)


def _sources(numbers: list[int]) -> Any:
    return (ctypes.c_int32 * MAX_SOURCES)(*numbers, *[NONE] * (MAX_SOURCES - len(numbers)))


def _input(reader: _Reader, fields: Fields, op: Op) -> None:
    names = fields.items("sources", "a list of ports")
    if len(names) > MAX_SOURCES or any(type(name) is not str or name not in reader.port_index for name in names):
        fields.refuse("sources", f"1 to {MAX_SOURCES} names of ports")
    op.sources = _sources([reader.port_index[name] for name in names])
    op.kernel = _one_of(fields, "kernel", (1, 3))
    op.output = reader.output(fields)


def _conv(reader: _Reader, fields: Fields, op: Op) -> None:
    sources = reader.tensor_list(fields, "sources")
    op.sources = _sources(sources)
    _, padded = reader.target(fields, op)
    op.kernel, op.stride = _one_of(fields, "kernel", (1, 3)), _one_of(fields, "stride", (1, 2))
    op.pad_top, op.pad_left = _one_of(fields, "pad_top", (0, 1)), _one_of(fields, "pad_left", (0, 1))
    op.upsample = int(fields.boolean("upsample"))
    op.activation = ACTIVATIONS[fields.choice("activation", ("identity", "silu", "gelu"))]
    op.output_activation = ACTIVATIONS[fields.choice("output_activation", ("identity", "sigmoid", "signed_sigmoid"))]
    if (norm := _optional(fields, "norm")) is not None:
        _norm(reader, norm, op, sum(reader.tensors[i].channels for i in sources))
    op.bias_row = _optional_row(fields, "bias_row")
    if fields.take("residual", "the name of a tensor, or null") is not None:
        op.residual = reader.tensor(fields, "residual")
    count = sum(blocks(reader.tensors[i].channels) for i in sources)
    phases, taps = (4, 4) if op.upsample else (1, op.kernel**2)
    tiles = phases * (padded // TILE_OUTPUTS)
    if (int8 := _optional(fields, "int8")) is not None:
        op.int8 = 1
        op.zero_point = int8.integer("zero_point", 0, 255)
        op.inverse_scale = int8.number("inverse_scale", 1e-9, 1e9)
        op.multiplier = reader.blob(int8, "multiplier", "F32", 4 * phases * padded)
        int8.done()
        op.weights = reader.blob(fields, "weights", "I8", tiles * -(-count // 2) * taps * STEP_BYTES)
    else:
        op.weights = reader.blob(fields, "weights", "BF16", tiles * count * taps * STEP_BYTES)
    if fields.take("bias", "the name of weights, or null") is not None:
        op.bias = reader.blob(fields, "bias", "F32", 4 * phases * padded)
    if (skip := _optional(fields, "skip")) is not None:
        skips = reader.tensor_list(skip, "sources")
        op.skip_sources = _sources(skips)
        steps = sum(blocks(reader.tensors[i].channels) for i in skips)
        op.skip_weights = reader.blob(skip, "weights", "BF16", padded // TILE_OUTPUTS * steps * STEP_BYTES)
        skip.done()


def _norm(reader: _Reader, fields: Fields, op: Op, channels: int) -> None:
    op.norm_groups = fields.integer("groups", 1, channels)
    op.norm_epsilon = fields.number("epsilon", 1e-12, 1.0)
    op.norm_weight = reader.blob(fields, "weight", "F32", 4 * channels)
    op.norm_bias = reader.blob(fields, "bias", "F32", 4 * channels)
    op.scale_row = _optional_row(fields, "scale_row")
    fields.done()


def _attention(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources = _sources([reader.tensor(fields, "source")])
    op.output = reader.output(fields)
    op.heads = fields.integer("heads", 1, MAX_CHANNELS)
    op.scale = fields.number("scale", 1e-9, 1e9)


def _resample(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources = _sources([reader.tensor(fields, "source")])
    op.output = reader.output(fields)
    op.factor = fields.integer("factor", 2, MAX_SIDE)


def _lookup(reader: _Reader, fields: Fields, op: Op) -> None:
    op.sources = _sources([reader.port(fields, "source")])
    op.output = reader.output(fields)
    op.factor = fields.integer("factor", 1, 1_000_000)
    op.weights = reader.blob(fields, "weights", "F32", 4 * op.factor * reader.tensors[op.output].channels)


def _linear(reader: _Reader, fields: Fields, op: Op) -> None:
    source = reader.tensor(fields, "source")
    op.sources = _sources([source])
    inputs = reader.tensors[source].channels
    channels, _ = reader.target(fields, op)
    tiles = -(-channels // TILE_OUTPUTS)
    op.activation = ACTIVATIONS[fields.choice("activation", ("identity", "silu"))]
    op.weights = reader.blob(fields, "weights", "F32", 4 * tiles * inputs * TILE_OUTPUTS)
    if fields.take("bias", "the name of weights, or null") is not None:
        op.bias = reader.blob(fields, "bias", "F32", 4 * tiles * TILE_OUTPUTS)


def _add(reader: _Reader, fields: Fields, op: Op) -> None:
    numbers = reader.tensor_list(fields, "sources")
    if len(numbers) != 2:
        fields.refuse("sources", "two tensors: rows of steps, and rows of the batch")
    op.sources = _sources(numbers)
    op.output = reader.output(fields)


def _one_of(fields: Fields, key: str, values: tuple[int, ...]) -> int:
    value = fields.integer(key, values[0], values[-1])
    if value not in values:
        fields.refuse(key, f"one of {', '.join(map(str, values))}")
    return value


_OPS: dict[str, tuple[int, Callable[[_Reader, Fields, Op], None]]] = {
    "input": (1, _input),
    "conv": (2, _conv),
    "attention": (3, _attention),
    "pool": (4, _resample),
    "upsample": (5, _resample),
    "lookup": (6, _lookup),
    "linear": (7, _linear),
    "add": (8, _add),
}

_NAMES = {number: name for name, (number, _) in _OPS.items()}


def op_kind(op: Op) -> str:
    """What an operation is, for people: "conv 3x3 up, int8", "attention"."""
    if _NAMES[op.kind] != "conv":
        return _NAMES[op.kind]
    shape = f"conv {op.kernel}x{op.kernel}{' up' if op.upsample else f' /{op.stride}' if op.stride > 1 else ''}"
    return f"{shape}, {'int8' if op.int8 else 'bf16'}"


def op_side(program: ParsedProgram, op: Op) -> int:
    """Height in pixels of what an operation writes; 0 for rows."""
    return int(program.tensors[op.output].height if op.output != NONE else program.ports[op.output_port].height)
