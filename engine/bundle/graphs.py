"""Which graphs may a bundle hold, and what must each take and give? The part `graphs` of a manifest, checked.

A graph is kept under its role (float32) or under ROLE.fp16; the roles of the model are required in float32, everything
else is extra. `sampler` is the whole chain as one graph, decoder to pixels, with the step table as an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from engine.bundle.fields import REBUILD, Fields, shorten
from engine.bundle.files import FileSpec, parse_file
from engine.bundle.model import CONDITIONAL_ROLES, UNCONDITIONAL_ROLES, Model
from engine.errors import BundleError
from engine.kernels import ROW_FIELDS

SAMPLER = "sampler"
GRAPH_PRECISIONS = ("f32", "fp16")  # of the stored weights; a runtime may compute in less when asked to
DTYPES = ("float32", "int64", "uint8")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a text in `shape` is a free dimension; `range` None means unbounded."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    range: tuple[float, float] | None

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Parity:
    """What was measured against the reference when the graph was exported."""

    reference: str
    max_relative_error: float
    batches: tuple[int, ...]
    runtimes: dict[str, float]


@dataclass(frozen=True)
class GraphSpec(FileSpec):
    """One exported graph and the file that holds it."""

    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity


def graph_key(role: str, precision: str = "f32") -> str:
    """The key of a graph in `graphs`: `denoiser`, `denoiser.fp16`, `sampler`, ..."""
    return role if precision == "f32" else f"{role}.{precision}"


def roles_of(model: Model) -> tuple[str, ...]:
    """The graphs that a bundle of this model must hold."""
    return CONDITIONAL_ROLES if model.conditional else UNCONDITIONAL_ROLES


def parse_graphs(fields: Fields, model: Model) -> dict[str, GraphSpec]:
    """The graphs by key: the required ones first, then whatever else this version knows."""
    roles = roles_of(model)
    known = {graph_key(role, p): (role, p) for p in GRAPH_PRECISIONS for role in (*roles, SAMPLER)}
    graphs: dict[str, GraphSpec] = {}
    for key in sorted(known, key=lambda key: key not in roles):
        if key in roles or key in fields:
            graphs[key] = _graph(fields.object(key), *known[key], model)
    fields.done(known)
    return graphs


def _graph(fields: Fields, role: str, precision: str, model: Model) -> GraphSpec:
    file = parse_file(fields)
    graph = GraphSpec(
        file=file.file,
        size=file.size,
        sha256=file.sha256,
        precision=fields.choice("precision", (precision,)),
        opset=fields.integer("opset", 1, 1000),
        inputs=_tensors(fields, "inputs"),
        outputs=_tensors(fields, "outputs"),
        parity=_parity(fields.object("parity")),
    )
    fields.done()
    for direction, expected in zip(("inputs", "outputs"), contract(role, model), strict=True):
        _check_tensors(fields, direction, getattr(graph, direction), expected)
    return graph


def _parity(fields: Fields) -> Parity:
    batches = fields.items("batches", "a list of batch sizes")
    if any(type(n) is not int or n < 1 for n in batches):
        fields.refuse("batches", "a list of batch sizes of at least 1")
    runtimes = fields.object("runtimes")
    parity = Parity(
        reference=fields.text("reference"),
        max_relative_error=fields.number("max_relative_error", 0.0, 1e9),
        batches=tuple(batches),
        runtimes={key: runtimes.number(key, 0.0, 1e9) for key in runtimes},
    )
    fields.done()
    return parity


def _tensors(fields: Fields, key: str) -> tuple[TensorSpec, ...]:
    return tuple(_tensor(tensor) for tensor in fields.objects(key, "a list of tensors"))


def _tensor(fields: Fields) -> TensorSpec:
    dims = fields.items("shape", "a list of dimensions")
    if not all((type(d) is str and d.isidentifier()) or (type(d) is int and 1 <= d <= 2**31) for d in dims):
        fields.refuse("shape", "dimensions that are names or positive integers")
    tensor = TensorSpec(
        name=fields.text("name"),
        dtype=fields.choice("dtype", DTYPES),
        shape=tuple(dims),
        range=_range(fields),
    )
    fields.done()
    return tensor


def _range(fields: Fields) -> tuple[float, float] | None:
    expected = "'unbounded' or [low, high]"
    value = fields.take("range", expected)
    if value == "unbounded":
        return None
    if type(value) is not list or len(value) != 2 or any(type(v) not in (int, float) for v in value):
        fields.refuse("range", expected)
    if not value[0] < value[1]:
        fields.refuse("range", "[low, high] with low < high")
    return float(value[0]), float(value[1])


def contract(role: str, model: Model) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs and outputs, {name: "dtype[shape]"}, that the graph of this role must have, whatever its precision."""
    return _sampler_contract(model) if role == SAMPLER else _role_contract(role, model)


def _role_contract(role: str, model: Model) -> tuple[dict[str, str], dict[str, str]]:
    image = f"float32[batch, {model.channels}, {model.image_size}, {model.image_size}]"
    z = f"float32[batch, {model.z_dim}]"
    if role == "vae_encoder":
        return {"image": image}, {"mu": z, "logvar": z}
    if role == "vae_decoder":
        return {"z": z}, {"image": image}
    by_z = {"z": z} if model.z_conditioned else {}
    if role == "timestep_table":
        rows = f"float32[steps, {'batch, ' if model.z_conditioned else ''}{model.row_width}]"
        return {"timesteps": "int64[steps]", **by_z}, {"rows": rows}
    row = {"row": f"float32[{'batch' if model.z_conditioned else 1}, {model.row_width}]"}
    return {"x": image, **({"cond": image} if model.conditional else {}), **row}, {"eps": image}


def _sampler_contract(model: Model) -> tuple[dict[str, str], dict[str, str]]:
    planes = f"{model.channels}, {model.image_size}, {model.image_size}"
    image = f"float32[batch, {planes}]"
    inputs = {
        "x_T": image,
        "timesteps": "int64[steps]",
        "coefficients": f"float32[steps, {len(ROW_FIELDS)}]",
        "start": "float32[3]",
        "noise": f"float32[noise_steps, batch, {planes}]",
    }
    outputs = {"images": f"uint8[batch, {model.image_size}, {model.image_size}, {model.channels}]", "x": image}
    if model.conditional:
        # One lane [1], or two [1 + w, -w]: whether the network runs with and without its condition is read off a shape.
        inputs |= {"z": f"float32[batch, {model.z_dim}]", "guidance": "float32[lanes]"}
        outputs["recon"] = image
    return inputs, outputs


def _check_tensors(fields: Fields, direction: str, found: tuple[TensorSpec, ...], expected: Mapping[str, str]) -> None:
    have = sorted(str(tensor) for tensor in found)
    want = sorted(f"{name} {kind}" for name, kind in expected.items())
    if have != want:
        _refuse_tensors(fields, direction, have, want)


def _refuse_tensors(fields: Fields, direction: str, have: list[str], want: list[str]) -> NoReturn:
    raise BundleError(
        f"{fields.where}, {fields.name_of(direction)}: found {shorten('; '.join(have))}, expected "
        f"{'; '.join(want)!r} (by model.image_size, channels, z_dim, row_width, formulation); {REBUILD}"
    )
