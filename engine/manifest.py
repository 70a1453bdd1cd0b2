"""What does a bundle say about itself? The manifest as typed values, and every reason for which one is refused.

Unknown keys are refused at every level but the ones that belong to somebody else (`model.unet`, `model.vae`,
`built_with`), so that a misspelt field is never taken for an absent one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.errors import BundleError
from engine.fields import FILE_NAME, REBUILD, SHA256, Fields, parse_json, refuse, shorten
from engine.schedule import SPACINGS
from engine.steps import METHODS, VARIANCES

FORMAT = "diffusevae-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_GRAPH_BYTES = 2**31 - 1  # a protobuf message, and so an ONNX file, ends below 2 GiB
FAMILIES = ("diffusevae",)
PRECISIONS = ("f32",)  # of the stored weights; a runtime may compute in less when asked to
UNCONDITIONAL_ROLES = ("timestep_table", "denoiser")
CONDITIONAL_ROLES = ("vae_encoder", "vae_decoder", *UNCONDITIONAL_ROLES)


@dataclass(frozen=True)
class Model:
    """What was trained. Unconditional: formulation, z_dim and vae are None, z_conditioned False."""

    formulation: int | None
    image_size: int
    channels: int
    z_dim: int | None
    z_conditioned: bool
    row_width: int
    unet: dict[str, Any]
    vae: dict[str, Any] | None

    @property
    def conditional(self) -> bool:
        """Whether the denoiser is conditioned on a VAE reconstruction."""
        return self.formulation is not None


@dataclass(frozen=True)
class ScheduleSpec:
    """The recipe of the betas that the model was trained with."""

    recipe: str
    beta_1: float
    beta_T: float
    T: int


@dataclass(frozen=True)
class Defaults:
    """The sampling options that a caller gets who names none."""

    steps: int
    method: str
    spacing: str | None
    t_start: int | None
    eta: float
    temperature: float
    guidance: float


@dataclass(frozen=True)
class Source:
    """Which checkpoint the bundle was built from."""

    file: str
    sha256: str
    weights: str
    vae_file: str | None
    vae_sha256: str | None


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
class GraphSpec:
    """One exported graph and the file that holds it."""

    file: str
    size: int
    sha256: str
    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity


@dataclass(frozen=True)
class Manifest:
    """A manifest that passed every check; `graphs` is keyed by role."""

    name: str
    family: str
    model: Model
    schedule: ScheduleSpec
    variance: str
    defaults: Defaults
    source: Source
    backends: tuple[str, ...]
    graphs: dict[str, GraphSpec]
    built_with: dict[str, str]

    @property
    def roles(self) -> tuple[str, ...]:
        """The graphs that this kind of model has."""
        return roles_of(self.model)


def roles_of(model: Model) -> tuple[str, ...]:
    """The graphs that a bundle of this model must hold."""
    return CONDITIONAL_ROLES if model.conditional else UNCONDITIONAL_ROLES


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Check the bytes of a manifest.json; BundleError names the field, what was found and what was expected."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{where}: found a manifest of {len(data)} bytes or more, expected at most {MAX_MANIFEST_BYTES}; {REBUILD}"
        )
    return check_manifest(parse_json(data, where), where)


def check_manifest(raw: object, where: str) -> Manifest:
    """Check a manifest that is already parsed. The version is looked at before any field whose meaning it decides."""
    top = Fields(raw, where, "")
    top.choice("format", (FORMAT,))
    _check_version(top.integer("format_version", 0, 2**31), where)
    model = _model(top.object("model"))
    schedule = _schedule(top.object("schedule"))
    manifest = Manifest(
        name=top.text("name"),
        family=top.choice("family", FAMILIES),
        model=model,
        schedule=schedule,
        variance=top.choice("variance", VARIANCES),
        defaults=_defaults(top.object("defaults"), schedule.T),
        source=_source(top.object("source")),
        backends=_backends(top),
        graphs=_graphs(top.object("graphs"), model),
        built_with=_versions(top.object("built_with")),
    )
    top.done()
    return manifest


def _check_version(version: int, where: str) -> None:
    if version == FORMAT_VERSION:
        return
    newer = version > FORMAT_VERSION
    cure = "upgrade the engine with: pip install --upgrade diffusevae-engine" if newer else REBUILD
    raise BundleError(
        f"{where}, format_version: found {version}, expected {FORMAT_VERSION}: the bundle was written by "
        f"{'a newer' if newer else 'an older'} engine; {cure}"
    )


def _model(fields: Fields) -> Model:
    formulation = _nullable_integer(fields, "formulation", 1, 2)
    model = Model(
        formulation=formulation,
        image_size=fields.integer("image_size", 1, 4096),
        channels=fields.integer("channels", 1, 64),
        z_dim=_nullable_integer(fields, "z_dim", 1, 2**20),
        z_conditioned=fields.boolean("z_conditioned"),
        row_width=fields.integer("row_width", 1, 2**24),
        unet=fields.free("unet"),
        vae=None if fields.is_null("vae") else fields.free("vae"),
    )
    fields.take("vae", "an object or null")
    if model.conditional:
        for key in ("z_dim", "vae"):
            if fields.is_null(key):
                fields.refuse(key, f"a value, since model.formulation is {formulation}")
    else:
        for key, value in (
            ("z_dim", model.z_dim),
            ("vae", model.vae),
            ("z_conditioned", model.z_conditioned),
        ):
            if value not in (None, False):
                fields.refuse(key, "nothing of a VAE, since model.formulation is null (unconditional)")
    fields.done()
    return model


def _schedule(fields: Fields) -> ScheduleSpec:
    schedule = ScheduleSpec(
        recipe=fields.choice("recipe", ("linear",)),
        beta_1=fields.number("beta_1", 1e-12, 0.999999),
        beta_T=fields.number("beta_T", 1e-12, 0.999999),
        T=fields.integer("T", 1, 1_000_000),
    )
    if schedule.beta_T < schedule.beta_1:
        fields.refuse("beta_T", f"at least schedule.beta_1 = {schedule.beta_1:g}")
    fields.done()
    return schedule


def _defaults(fields: Fields, T: int) -> Defaults:
    defaults = Defaults(
        steps=fields.integer("steps", 1, T),
        method=fields.choice("method", tuple(METHODS)),
        spacing=None if fields.is_null("spacing") else fields.choice("spacing", tuple(SPACINGS)),
        t_start=_nullable_integer(fields, "t_start", 0, T - 1),
        eta=fields.number("eta", 0.0, 1.0),
        temperature=fields.number("temperature", 0.0, 100.0),
        guidance=fields.number("guidance", -100.0, 100.0),
    )
    fields.take("spacing", "a spacing or null")
    fields.done()
    return defaults


def _source(fields: Fields) -> Source:
    hexadecimal = "a SHA-256 of 64 lower-case hexadecimal digits"
    has_vae = not fields.is_null("vae_file")
    source = Source(
        file=fields.text("file"),
        sha256=fields.matching("sha256", SHA256, hexadecimal),
        weights=fields.choice("weights", ("ema", "online")),
        vae_file=fields.text("vae_file") if has_vae else None,
        vae_sha256=fields.matching("vae_sha256", SHA256, hexadecimal) if has_vae else None,
    )
    fields.take("vae_file", "a file name or null")
    if fields.take("vae_sha256", f"{hexadecimal}, or null") is not None and not has_vae:
        fields.refuse("vae_sha256", "null, since source.vae_file is null")
    fields.done()
    return source


def _backends(top: Fields) -> tuple[str, ...]:
    expected = "a list of different backend names"
    names = top.items("backends", expected)
    # Any name is let through, not only those of this engine: a bundle may hold graphs for a runtime that a
    # later engine, or the C++ one, knows.
    if any(type(name) is not str or not FILE_NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
        top.refuse("backends", expected)
    return tuple(names)


def _versions(fields: Fields) -> dict[str, str]:
    versions = {key: fields.text(key) for key in fields}
    fields.done()
    return versions


def _graphs(fields: Fields, model: Model) -> dict[str, GraphSpec]:
    roles = roles_of(model)
    graphs: dict[str, GraphSpec] = {}
    for role in roles:
        graph = fields.object(role)
        graphs[role] = _graph(graph)
        for direction, expected in zip(("inputs", "outputs"), contract(role, model), strict=True):
            _check_tensors(graph, direction, getattr(graphs[role], direction), expected)
    fields.done()
    files = [graph.file.lower() for graph in graphs.values()]
    for role in roles:
        if files.count(graphs[role].file.lower()) > 1:
            fields.object(role).refuse("file", "a file of its own for each graph")
    return graphs


def _graph(fields: Fields) -> GraphSpec:
    graph = GraphSpec(
        file=fields.matching("file", FILE_NAME, "a plain file name inside the bundle (letters, digits, '.', '_', '-')"),
        size=fields.integer("size", 1, MAX_GRAPH_BYTES),
        sha256=fields.matching("sha256", SHA256, "a SHA-256 of 64 lower-case hexadecimal digits"),
        precision=fields.choice("precision", PRECISIONS),
        opset=fields.integer("opset", 1, 1000),
        inputs=_tensors(fields, "inputs"),
        outputs=_tensors(fields, "outputs"),
        parity=_parity(fields.object("parity")),
    )
    if graph.file.lower() == MANIFEST_FILE:
        fields.refuse("file", f"another name than {MANIFEST_FILE}")
    fields.done()
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
    entries = fields.items(key, "a list of tensors")
    name = fields.name_of(key)
    return tuple(_tensor(Fields(entry, fields.where, f"{name}[{i}]")) for i, entry in enumerate(entries))


def _tensor(fields: Fields) -> TensorSpec:
    dims = fields.items("shape", "a list of dimensions")
    if not all((type(d) is str and d.isidentifier()) or (type(d) is int and 1 <= d <= 2**31) for d in dims):
        fields.refuse("shape", "dimensions that are names or positive integers")
    tensor = TensorSpec(
        name=fields.text("name"),
        dtype=fields.choice("dtype", ("float32", "int64")),
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
    """The inputs and outputs, {name: "dtype[shape]"}, that the graph of this role must have."""
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


def _nullable_integer(fields: Fields, key: str, low: int, high: int) -> int | None:
    expected = f"an integer in {low}..{high}, or null"
    value = fields.take(key, expected)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        refuse(fields.where, fields.name_of(key), value, expected)
    return int(value)
