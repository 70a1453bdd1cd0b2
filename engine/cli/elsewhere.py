"""Which commands live outside engine, and how does --help list them without importing what they need?"""

from __future__ import annotations

import importlib
from typing import Any

import click

from engine.errors import BackendError

# name: (module, attribute, the line that --help shows)
ELSEWHERE = {
    "cpp-config": ("engine.cli.cpp_config", "cpp_config", "Show where the C++ library, its headers and CMake files are."),
    "triton-repo": ("engine.triton.cli", "triton_repo", "Write a model repository for Triton Inference Server."),
}


class Elsewhere(click.Command):
    """A command known by name and one line of help; its module is imported when the command itself is asked for."""

    def __init__(self, name: str, module: str, attribute: str, help_line: str) -> None:
        super().__init__(name, short_help=help_line)
        self.module = module
        self.attribute = attribute

    def load(self) -> click.Command:
        """The real command."""
        package = self.module.partition(".")[0]
        try:
            found: click.Command = getattr(importlib.import_module(self.module), self.attribute)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != package:
                raise
            raise BackendError(
                f"The command {self.name} is in the package {package}, which was not found beside engine; expected both "
                "from one installation. Install the project again: python -m pip install --force-reinstall ."
            ) from error
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
    return [Elsewhere(name, *where) for name, where in ELSEWHERE.items()]
