"""The commands whose code is outside engine/cli: known by a line of help each, imported when one of them is asked for.

`diffusevae --help` and `diffusevae sample` therefore start without torch, which only building needs.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import click

from engine.commands import install_extra
from engine.errors import BackendError

BUILDING = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "sklearn")
SERVING = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class Place:
    """Where a command is: its module and attribute, the line that --help shows, and the packages an extra brings for it."""

    module: str
    attribute: str
    help_line: str
    needs: tuple[str, ...] = ()
    extra: str = ""


ELSEWHERE = {
    "build": Place("export.build_engines", "main", "Build a bundle from trained weights.", BUILDING, "export"),
    "cpp-config": Place(
        "engine.cli.cpp_config", "cpp_config", "Show where the C++ library, its headers and CMake files are."
    ),
    "examples": Place("engine.cli.examples", "examples", "Show where the model that ships with this package is."),
    "fit-directions": Place("export.fit_directions", "main", "Find directions in the latent, and put them into a bundle."),
    "fit-prior": Place(
        "export.fit_latent_prior", "main", "Fit a density to the latents of training images.", BUILDING, "export"
    ),
    "fit-refine": Place("export.fit_refine", "main", "Find where to start refining, by how damaged images look."),
    "fit-setting": Place("export.fit_setting", "main", "Find the best setting for each count of network calls."),
    "serve": Place("engine.http.cli", "serve", "Serve a bundle over HTTP.", SERVING, "serve"),
    "studio": Place("engine.http.cli", "studio", "Serve a bundle with a page to try it on.", SERVING, "serve"),
    "triton-repo": Place("engine.triton.cli", "triton_repo", "Write a model repository for Triton Inference Server."),
}


class Elsewhere(click.Command):
    """A command known by name and one line of help; its module is imported when the command itself is asked for."""

    def __init__(self, name: str, place: Place) -> None:
        super().__init__(name, short_help=place.help_line)
        self.place = place

    def load(self) -> click.Command:
        """The real command."""
        if missing := [package for package in self.place.needs if find_spec(package) is None]:
            raise BackendError(
                f"{self.name}: found no {', '.join(missing)}, expected the packages that this command needs; install them "
                f"with: {install_extra(self.place.extra)}"
            )
        found: click.Command = getattr(importlib.import_module(self.place.module), self.place.attribute)
        return found

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The real command's context: click runs the command that a context names."""
        return self.load().make_context(info_name, args, parent, **extra)


def commands() -> list[click.Command]:
    """All of them, to be added to the group."""
    return [Elsewhere(name, place) for name, place in ELSEWHERE.items()]
