"""The part of the installation beyond pyproject.toml: compiling the kernels, and what a wheel carries beside Python."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SOURCES = ("kernels", "embed")
SOURCE_SUFFIXES = (".c", ".cpp", ".cu", ".h", ".hpp", ".cmake", ".map", ".md", ".txt")
EXAMPLES = ("avatars.ckpt", "latent_prior.safetensors", "directions.safetensors", "settings.json", "starts.json")


class BuildWithSources(build_py):
    """build_py that also copies the C++ and CUDA sources to engine/_sources and the shipped model to engine/_examples.

    A checkout has both where they are, so an editable installation copies nothing.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source in sorted(path for folder in SOURCES for path in (HERE / folder).rglob("*")):
            if source.suffix in SOURCE_SUFFIXES:
                self._take(source, Path("_sources", source.relative_to(HERE)))
        for source in (HERE / "examples" / "avatars" / name for name in EXAMPLES):
            if source.is_file():
                self._take(source, Path("_examples", "avatars", source.name))

    def _take(self, source: Path, place: Path) -> None:
        target = Path(self.build_lib, "engine", place)
        self.mkpath(str(target.parent))
        self.copy_file(str(source), str(target))


def load_kernel_build() -> ModuleType:
    """Load kernels/build.py by path: it is part of no package, and engine.kernels would need the library it builds."""
    spec = importlib.util.spec_from_file_location("kernel_build", HERE / "kernels" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernel_build = load_kernel_build()
setup(ext_modules=kernel_build.extensions(), cmdclass={**kernel_build.commands(), "build_py": BuildWithSources})
