"""The native kernels against the program format. The C++ selftest on every instruction set that runs here."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from engine.kernels.native_library import ISAS, native_library
from tests.kernel_build import build
from tests.native_models import SOFTWARE_TILES_FLAGS

ROOT = Path(__file__).resolve().parents[2]
SELFTEST = ROOT / "tests" / "unit" / "native_selftest.cpp"
# Parts of names: what the sanitized run takes; the plain run goes through all sizes.
SANITIZED = (
    "hostile", "tables", "maps", "gradient", "int8", "norm", "same bits", "steps", "attention", "patches", "timestep",
    "child", "clones",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the native kernels are for x86-64"
)


def compile_selftest(folder: Path, *flags: str, isas: tuple[str, ...] = ISAS) -> Path:
    """The selftest and the library's sources as one program; `flags` replace the library's optimisation.

    isas: whose kernels are instrumented, where they can run: the others have nothing to be caught at, and take a minute.
    """
    try:
        compiler = build.find_compiler()
    except build.KernelBuildError:
        pytest.skip("no C++ compiler on this machine")
    objects = build.commands_for(compiler, folder, *flags)
    for source in build.TARGET_FLAGS:
        isa = Path(source).stem.removeprefix("target_")
        under = "avx512_bf16" if isa == "amx" and "-DDV_SOFTWARE_TILES" in flags else isa
        if isa not in isas or not native_library().supports(under)[0]:
            line = objects[folder / f"{Path(source).stem}.o"]
            line[:] = [word for word in line if not word.startswith(("-fsanitize", "-fno-sanitize"))]
    own = folder / "selftest.o"
    include = f"-I{ROOT / 'kernels' / 'include'}"
    strict = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror")
    objects[own] = [*compiler, *strict, include, "-c", str(SELFTEST), "-o", str(own), *flags]
    build.run_all(list(objects.values()))
    program = folder / "selftest"
    build.run([*compiler, "-pthread", *map(str, objects), "-o", str(program), *flags])
    return program


def run_selftest(program: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=600, check=False)
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 0, "\n".join([*failures[:20], done.stderr[-4000:]])
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"(\d+) passed, 0 failed", last)
    assert found is not None, last
    return int(found[1]), done.stdout


@pytest.fixture(scope="module")
def selftest(tmp_path_factory) -> Path:
    return compile_selftest(tmp_path_factory.mktemp("selftest"))


def compile_sanitized(folder: Path, *flags: str, checks: str = "address,undefined", isas: tuple[str, ...] = ISAS) -> Path:
    """The same with sanitizers, maps cut into many pieces, and little optimisation, so that functions stay functions."""
    how = (f"-fsanitize={checks}", "-fno-sanitize-recover=all", "-DDV_NO_CLONES", "-DDV_SMALL_PIECES")
    try:
        return compile_selftest(folder, "-O1", "-g1", *how, *flags, isas=isas)
    except build.KernelBuildError as error:
        if any(library in str(error) for library in ("libasan", "libubsan", "libtsan")):
            pytest.skip("the compiler has no sanitizer libraries on this machine")
        raise


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Path:
    return compile_sanitized(tmp_path_factory.mktemp("sanitized"))


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_family_agrees_with_the_scalar_reference(selftest, isa):
    passed, output = run_selftest(selftest, isa)
    if f"skipped {isa}" in output:
        pytest.skip(output.splitlines()[0])
    assert passed > 500


def test_the_amx_kernels_agree_with_the_scalar_reference_over_tiles_in_software(tmp_path):
    """Where the processor has all that they need but tiles; sanitized: no tile reads memory unseen."""
    there, why = native_library().supports("avx512_bf16")
    if not there:
        pytest.skip(f"this machine has not what lies under the tiles: {why}")
    program = compile_sanitized(tmp_path, *SOFTWARE_TILES_FLAGS, isas=("amx",))
    passed, output = run_selftest(program, "amx")
    assert "skipped amx" not in output
    assert passed > 500


@pytest.mark.parametrize("part", SANITIZED)
def test_kernels_and_interpreter_are_clean_under_the_address_and_undefined_behaviour_sanitizers(sanitized, part):
    run_selftest(sanitized, "", part)


def test_threads_that_take_pieces_do_not_race(tmp_path):
    """Thread sanitizer, on the one instruction set that every machine has: how pieces are taken depends on none."""
    program = compile_sanitized(tmp_path, checks="thread", isas=("avx2",))
    for part in ("same bits", "timestep"):  # beside clones in threads and loops, which always run
        run_selftest(program, "avx2", part)


def test_no_file_of_an_instruction_set_leaves_code_that_others_could_be_linked_to(sanitized):
    """A function that two files define is kept once: it might be the one compiled for instructions that are missing."""
    for name in build.TARGET_FLAGS:
        listed = subprocess.run(
            ["nm", "-C", str(sanitized.with_name(name).with_suffix(".o"))], capture_output=True, text=True, check=True
        ).stdout
        merged = [row for row in listed.splitlines() if re.search(r" [WVu] ", row) and "DW.ref" not in row]
        assert merged == [], f"{name}: {merged}"
