"""A model repository on disk: each model is written aside and renamed, so that a server sees whole ones only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import __version__
from engine.bundle.links import AllowLinks
from engine.bundle.manifest import Manifest
from engine.bundle.reader import Bundle
from engine.bundle.writer import replacing, write_bundle
from engine.errors import EngineError
from engine.places import check_folder
from engine.stages import followed
from engine.triton.config import model_config
from engine.triton.graph_config import GraphModel, graph_config, graph_model
from engine.triton.pbtxt import Value, quoted, text_of
from engine.triton.serving import GRAPH_SUFFIX, Serving, Settled, settle

CONFIG = "config.pbtxt"
VERSION = "1"
BUNDLE = "bundle"
MODEL_FILE = "model.py"
MARK = "# Written by diffusevae triton-repo"
MODEL_PY = '''"""The model that Triton's Python backend runs here: the bundle beside this file, through `engine`.

The server's Python must have the package diffusevae-engine installed.
"""

from engine.triton.served import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class RepositoryError(EngineError):
    """A model repository cannot be written, or what is there must not be replaced."""


@dataclass(frozen=True)
class Written:
    """What was written: the served model's folder, the stock variant's where the bundle has a whole-sampler graph."""

    settled: Settled
    model: Path
    graph: Path | None
    graph_platform: str | None


def write_repository(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    chosen: Serving | None = None,
    *,
    replace: bool = False,
    allow_links: AllowLinks = False,
) -> Written:
    """Write OUT/NAME, and OUT/NAME_graph where the bundle has a whole-sampler graph.

    Everything is checked before anything is written. A model of that name is replaced only with `replace`, and only when
    this function wrote it. allow_links: as for `Sampler`; what is written holds no links. RepositoryError, BundleError,
    BackendError or ArgumentError otherwise.
    """
    check_folder(out)
    opened, *later = followed(Bundle.open(bundle, allow_links), allow_links)
    settled = settle(opened, chosen or Serving(), later)
    for stage in later:
        _check_stage_name(stage)
    # The graph of a cascade's first bundle is not what the cascade makes.
    stock = None if later else graph_model(opened, settled)
    folder = Path(os.path.realpath(out))
    model, graph = folder / settled.name, folder / (settled.name + GRAPH_SUFFIX)
    for target in (model, graph):
        _check_free(target, replace)
    size = sum(spec.size for stage in (opened, *later) for spec in stage.manifest.files)
    check_folder(out, size + (len(stock.data) if stock else 0))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_model(model, lambda inside: _fill_served(inside, opened, settled, later), replace)
        if stock is not None:
            _write_model(graph, lambda inside: _fill_stock(inside, stock, opened.manifest, settled), replace)
        elif graph.exists():
            shutil.rmtree(graph)  # of an older bundle: it would go on serving other weights under this name
    except OSError as error:
        raise RepositoryError(
            f"{folder}: found that the repository cannot be written ({error.strerror or error}: {error.filename}), expected "
            f"a folder with room and write permission; models that were there are whole"
        ) from error
    return Written(settled, model, graph if stock else None, stock.platform if stock else None)


def _check_stage_name(stage: Bundle) -> None:
    """Refuse a bundle of a name that the model's folder has for something else."""
    if stage.path.name.lower() in (BUNDLE, MODEL_FILE):
        raise RepositoryError(
            f"{stage.path}: found a bundle of this name as a stage after the first, expected another than {BUNDLE} and "
            f"{MODEL_FILE}, which lie beside it in the model; rename it, and name it again with `diffusevae cascade`"
        )


def _check_free(target: Path, replace: bool) -> None:
    """Refuse to replace what is not asked to be replaced, and what triton-repo did not write."""
    if not os.path.lexists(target):
        return
    if not replace:
        raise RepositoryError(
            f"{target}: found a model of this name, expected none; add --replace, or choose another --name or --out"
        )
    try:
        ours = target.is_dir() and not target.is_symlink() and (target / CONFIG).read_text("utf-8").startswith(MARK)
        foreign = sorted({entry.name for entry in os.scandir(target)} - {CONFIG, VERSION}) if ours else []
    except (OSError, UnicodeDecodeError):
        ours, foreign = False, []
    if not ours:
        raise RepositoryError(
            f"{target}: found something that triton-repo did not write, expected one of its models to replace; move it "
            "away, or choose another --name or --out"
        )
    if foreign:
        raise RepositoryError(
            f"{target}: found {foreign[0]!r} beside the model, expected nothing that replacing it would destroy; move it "
            "away, or choose another --name or --out"
        )


def _write_model(target: Path, fill: Callable[[Path], None], replace: bool) -> None:
    with replacing(target) as inside:
        fill(inside)
        _check_free(target, replace)  # again: copying took a while


def _fill_served(inside: Path, opened: Bundle, settled: Settled, later: Sequence[Bundle]) -> None:
    """config.pbtxt, 1/model.py and 1/bundle, a copy whose every hash was checked while it was written; the stages of a
    cascade after it lie beside it, under their own names."""
    version = inside / VERSION
    version.mkdir()
    _copy(opened, version / BUNDLE)
    for stage in later:
        _copy(stage, version / stage.path.name)
    _write(version / MODEL_FILE, MODEL_PY)
    config = model_config(opened.manifest, settled, [stage.manifest for stage in later])
    _write(inside / CONFIG, _config_text(opened.manifest, config))


def _copy(opened: Bundle, to: Path) -> None:
    """A copy of a bundle."""
    write_bundle(to, json.loads(opened.read_manifest()), {spec.file: opened.chunks(spec) for spec in opened.manifest.files})
    if Bundle.open(to).manifest != opened.manifest:
        raise RepositoryError(
            f"{opened.path}: found another bundle than a moment ago, expected it not to be rebuilt while it is copied; "
            "run the command again"
        )


def _fill_stock(inside: Path, stock: GraphModel, manifest: Manifest, settled: Settled) -> None:
    """config.pbtxt and 1/model.onnx, or 1/model.plan."""
    version = inside / VERSION
    version.mkdir()
    _write(version / stock.file, stock.data)
    _write(inside / CONFIG, _config_text(manifest, graph_config(stock, settled)))


def _config_text(manifest: Manifest, config: Mapping[str, Value]) -> str:
    return f"{MARK} {__version__} from the bundle {quoted(manifest.name)}.\n{text_of(config)}"


def _write(path: Path, content: str | bytes) -> None:
    """Write one file and make it durable."""
    with open(path, "xb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
