"""What both readers of a manifest agree on, for C++: src/bundle/constants.h and schema.h, written from engine/bundle.

Run from anywhere as `python embed/cpp/generate_schema.py`; a test compares what is committed with what this writes.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "src" / "bundle"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine import deadline, resolve  # noqa: E402
from engine.bundle import (  # noqa: E402
    canvas,
    directions,
    engines,
    fields,
    files,
    fitted,
    following,
    graphs,
    guides,
    inputs,
    limits,
    manifest,
    pipeline,
    regulariser,
    starts,
    tensors,
    training,
    vocabulary,
)
from engine.bundle.schema import Entry, entries  # noqa: E402
from engine.solver import guides as guide_modes  # noqa: E402
from engine.solver import levels, noise, table, timesteps  # noqa: E402
from engine.solver import regulariser as regularise  # noqa: E402

NAMES = {  # numbers, texts, and lists of words
    limits: " ".join(name for name in vars(limits) if name.isupper()), manifest: "FORMAT", files: "MANIFEST_FILE",
    fields: "HEXADECIMAL", tensors: "BATCH STEPS", pipeline: "X X0 E VARIANCE ROWS TIMESTEPS IMAGE",
    graphs: "SAMPLER PRECISIONS", inputs: "RESERVED NORMAL EACH_STEP", table: "METHODS PREDICTIONS",
    levels: "LEARNED_RANGE VARIANCES",
    engines: "SHARED RUNNERS", starts: "MEASURES", resolve: "SETTINGS", deadline: "QUANTILE WINDOW PROBES",
    timesteps: "SPACINGS LEADING RHO LEAST_RHO MOST_RHO", noise: "BLOCK_BITS STREAM_BITS MAX_BLOCKS",
    canvas: "LEAST_WEIGHT MOST_WEIGHT MOST_OVERLAP AT_ONCE", vocabulary: "MAX_WORD CONTINUES",
    following: "OPTIONAL", guides: "G ENTROPY", guide_modes: "MODES CONSTANT BY_ENTROPY BY_NORM LEAST_ENTROPY LEAST_NORM",
    regularise: "REGULARISE OFF AFTER BEFORE",
}  # fmt: skip
SPECS = (
    tensors.TensorSpec, inputs.InputSpec, files.FileSpec, graphs.Parity, graphs.GraphSpec, pipeline.StateSpec,
    training.ScheduleSpec, training.Defaults, training.Source, fitted.Fitted, starts.StartRow, starts.Starts,
    engines.EngineSpec, engines.PriorSpec, directions.DirectionsSpec, vocabulary.TextSpec,
    following.AugmentationSpec, following.NextSpec, guides.GuideDefaults,
    regulariser.RegulariseDefaults,
    manifest.Manifest,
)  # fmt: skip
# What C++ checks and has no use for.
CHECKED = (
    "reference", "max_relative_error", "batches", "runtimes", "opset", "parity", "options", "record", "architecture",
    "built_with", "mean", "spread", "psnr", "kind",
)  # fmt: skip
KINDS = {
    int: "constexpr int64_t", float: "constexpr double", str: "constexpr const char*",
    tuple: "inline const std::vector<std::string>",
}  # fmt: skip
HEADER = """\
// {about} Written by embed/cpp/generate_schema.py from engine/bundle: change it there.
#ifndef DIFFUSEVAE_BUNDLE_{guard}_H
#define DIFFUSEVAE_BUNDLE_{guard}_H

{includes}

namespace diffusevae {{

{body}

}}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_{guard}_H
"""


def constant(name: str) -> str:
    """MAX_RANK as C++ spells it: kMaxRank."""
    return "k" + "".join(word.capitalize() for word in name.split("_"))


def named() -> dict[str, Any]:
    """The constants by name."""
    found = {name: getattr(module, name) for module, names in NAMES.items() for name in names.split()}
    return {name: value if isinstance(value, (int, float, str)) else tuple(value) for name, value in found.items()}


def literal(value: Any) -> str:
    """A number, a text or a list in C++."""
    if isinstance(value, (tuple, list)):
        return "{" + ", ".join(map(literal, value)) + "}"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def definitions() -> Iterator[str]:
    """The lines of constants.h."""
    for name, value in named().items():
        yield f"{KINDS[type(value)]} {constant(name)} = {literal(value)};"
    recipes = [(recipe, name, *ends) for recipe, numbers in training.RECIPES.items() for name, ends in numbers.items()]
    yield "struct RecipeNumber { const char *recipe, *name; double low, high; };"
    yield f"constexpr RecipeNumber kRecipeNumbers[] = {literal(recipes)};"
    labels = [(backend, label) for backend, labels in engines.ENGINE_FILES.items() for label in labels]
    yield "struct EngineFile { const char *backend, *label; };"
    yield f"constexpr EngineFile kEngineFiles[] = {literal(labels)};"


def constants() -> str:
    """The text of constants.h."""
    lines = [textwrap.fill(line, 125, subsequent_indent="    ", break_on_hyphens=False) for line in definitions()]
    includes, about = "#include <cstdint>\n#include <string>\n#include <vector>", "Limits, names and words of a manifest."
    return HEADER.format(about=about, guard="CONSTANTS", includes=includes, body="\n".join(lines))


def argument(value: Any) -> str:
    """What a field is read with: the name of what is handed over or of a list of words, or the value itself."""
    names = [constant(name) for name, words in named().items() if isinstance(value, tuple) and words == value]
    return value if isinstance(value, str) else names[0] if names else literal(value)


def statement(entry: Entry) -> str:
    """The line that reads a field."""
    specs = "".join(f"<{value.__name__}>" for value in entry.arguments if isinstance(value, type))
    arguments = ", ".join([f'"{entry.key}"', *(argument(value) for value in entry.arguments if not isinstance(value, type))])
    method = entry.read.__qualname__.startswith("Fields.")
    call = f"{'fields.' if method else ''}{entry.read.__name__}{specs}({'' if method else 'fields, '}{arguments});"
    there = f'if (!fields.take_null("{entry.key}")) ' if entry.nullable else ""
    return f"    {there}{'' if entry.key in CHECKED else f'into.{entry.key} = '}{call}"


def function(spec: type) -> str:
    """The function that reads the annotated fields of an object."""
    found = entries(spec)
    kinds = {fields.Fields.choice: "const std::vector<std::string>&"}
    named_ones = [(value, entry.read) for entry in found for value in entry.arguments if isinstance(value, str)]
    given = dict.fromkeys(f", {kinds.get(read, 'int64_t')} {value}" for value, read in named_ones)
    into = " into" if any(entry.key not in CHECKED for entry in found) else ""
    head = f"inline void take(Fields& fields, {spec.__name__}&{into}{''.join(given)}) {{"
    return "\n".join([head, *map(statement, found), "}"])


def schema() -> str:
    """The text of schema.h."""
    includes, body = '#include "bundle/manifest.h"', "\n\n".join(map(function, SPECS))
    return HEADER.format(about="How the fields of a manifest are read.", guard="SCHEMA", includes=includes, body=body)


HEADERS = {"constants.h": constants, "schema.h": schema}

if __name__ == "__main__":
    for name, text in HEADERS.items():
        (FOLDER / name).write_text(text(), encoding="utf-8")
