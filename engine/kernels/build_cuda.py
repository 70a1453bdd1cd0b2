"""The CUDA kernels' files, and how they are compiled: one fatbin by nvcc, where there is nvcc.

Standard library only: setup.py comes here by path through build.py, and cuda_module.py at run time, for machines without
nvcc. `python -m engine.kernels.build_cuda` compiles into this folder alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def source_folder() -> Path:
    """Where the kernels' sources lie: kernels/ of a checkout, engine/_sources/kernels of an installed package."""
    packaged = HERE.parent / "_sources" / "kernels"
    return packaged if packaged.is_dir() else HERE.parents[1] / "kernels"


FOLDER = source_folder()
VARIABLE = "DIFFUSEVAE_NVCC"
FATBIN = "_cuda.fatbin"
SOURCE = "cuda/update.cu"
SOURCES = (
    SOURCE, "cuda/access.h", "cuda/control.h", "include/diffusevae/philox.h", "include/diffusevae/row.h",
    "include/diffusevae/rtc.h",
)  # fmt: skip

# Compute capabilities: Turing, Ampere (A100; the rest), Ada, Hopper, Blackwell (data centre; the rest). PTX of the last is
# compiled by the drivers of what comes later.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# The CPU's bits need every float32 operation rounded on its own; square roots and denormals are exact by default.
FLAGS = ("-std=c++17", "--fmad=false")


class CudaBuildError(Exception):
    """The CUDA kernels could not be compiled; the message says what to install or to set."""


def source_hash(folder: Path = FOLDER) -> str:
    """SHA-256 over the names and contents of all sources and the flags: what a compiled module must have come from."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in SOURCES:
        content = (folder / name).read_bytes()
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def sealed_hash(facts: dict[str, Any], code: bytes) -> str:
    """SHA-256 over the facts and the code."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + b"\n" + code).hexdigest()


def seal(path: Path, code: bytes, **facts: Any) -> None:
    """Writes `code` behind one line of JSON with `facts`, size and SHA-256, in one move: a reader sees all or nothing.

    cuda_module.py reads it.
    """
    header = facts | {"size": len(code)}
    header["sha256"] = sealed_hash(header, code)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)  # mkstemp's 0600 would shut out the other users of an installation
            file.write(json.dumps(header, sort_keys=True).encode() + b"\n" + code)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def find_nvcc() -> str | None:
    """The command of nvcc: $DIFFUSEVAE_NVCC ("none": do not compile), on the PATH, or where Linux packages put it."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "none":
        return None
    if chosen:
        if shutil.which(chosen) is None:
            raise CudaBuildError(
                f"{VARIABLE} is {chosen!r}, but there is no such program: expected the path of nvcc, or none, "
                "or the variable unset."
            )
        return chosen
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def supported(nvcc: str) -> list[int]:
    """Those of ARCHITECTURES that this nvcc compiles for."""
    listed = _run([nvcc, "--list-gpu-arch"]).split()
    found = [arch for arch in ARCHITECTURES if f"compute_{arch}" in listed]
    if not found:
        raise CudaBuildError(
            f"{nvcc} compiles for {', '.join(listed) or 'nothing'}; expected one of compute_"
            f"{', compute_'.join(map(str, ARCHITECTURES))}. Install CUDA 12.8 or newer, or set {VARIABLE}=none."
        )
    return found


def command(nvcc: str, output: Path, architectures: list[int], *extra: str) -> list[str]:
    """nvcc's command line for one fatbin: machine code for each architecture, PTX for the last."""
    last = architectures[-1]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    targets.append(f"-gencode=arch=compute_{last},code=compute_{last}")
    return [
        nvcc, "-fatbin", "-O3", *FLAGS, "-Xfatbin=-compress-all", "--threads=0", f"-I{FOLDER / 'include'}", *targets,
        str(FOLDER / SOURCE), "-o", str(output), *extra,
    ]  # fmt: skip


def compile_fatbin(output: Path) -> Path:
    """Compiles the sealed fatbin to `output`, replacing it in one move."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise CudaBuildError(f"There is no nvcc: install the CUDA toolkit or name its nvcc in {VARIABLE}.")
    architectures = supported(nvcc)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / FATBIN
        _run(command(nvcc, built, architectures))
        code = built.read_bytes()
    targets = [*(f"sm_{arch}" for arch in architectures), f"compute_{architectures[-1]}"]
    version = re.findall(r"release \S+ V(\S+)", _run([nvcc, "--version"]))
    made_with = f"nvcc {version[0] if version else 'of unknown version'}"
    seal(output, code, kind="fatbin", sources=source_hash(), targets=targets, made_with=made_with)
    return output


def _run(line: list[str]) -> str:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CudaBuildError(
            f"The CUDA kernels did not compile: `{shlex.join(line)}` ended with {done.returncode}.\n"
            f"{(done.stderr or done.stdout).strip()}\nExpected nvcc of CUDA 12.0 or newer with a host compiler that it "
            f"accepts: name another nvcc in {VARIABLE}, or set {VARIABLE}=none to compile at first use instead."
        )
    return done.stdout


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{compile_fatbin(HERE / FATBIN)}\n")
    except CudaBuildError as error:
        sys.exit(f"error: {error}")
