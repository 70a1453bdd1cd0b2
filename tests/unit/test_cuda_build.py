"""The CUDA kernels compiled for every architecture, within their registers, with the CPU's roundings; and the code that a
device gets: the installed fatbin or NVRTC's, verified, cached, or refused with the cure."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.kernels import KernelLoadError, build_cuda, cuda_module
from tests.kernel_build import build

ROOT = Path(__file__).resolve().parents[2]
REGISTERS = {"dv_update_full": 128}  # of 65536 a multiprocessor: four blocks of 128 threads
OTHERS = 64  # eight blocks
KERNELS = sorted(cuda_module.KERNELS)


def nvcc_or_skip() -> str:
    nvcc = build_cuda.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    return nvcc


def nvrtc_or_skip() -> None:
    try:
        cuda_module._nvrtc_version(cuda_module._nvrtc())
    except KernelLoadError as error:
        pytest.skip(f"no NVRTC on this machine: {error}")


def fake_nvcc(folder: Path, code: str = "cubins", listed: str = "compute_75 compute_120") -> Path:
    """A program that answers as nvcc does and writes `code` to its -o."""
    path = folder / "nvcc"
    path.write_text(
        f"""#!/bin/sh
case "$*" in
--list-gpu-arch) echo {listed}; exit 0;;
--version) echo "Cuda compilation tools, release 12.8, V12.8.93"; echo "Build x"; exit 0;;
esac
for last; do case "$before" in -o) printf '%s' '{code}' > "$last";; esac; before="$last"; done
"""
    )
    path.chmod(0o755)
    return path


# nvcc


def report(text: str) -> dict[tuple[str, str], tuple[int, int]]:
    """ptxas -v: {(architecture, kernel): (registers, bytes of stack and spills)}."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    kernel, memory = ("", ""), 0
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for '(sm_\d+)'", line):
            kernel = match[2], match[1]
        elif "bytes stack frame" in line:
            memory = sum(int(number) for number in re.findall(r"(\d+) bytes", line))
        elif match := re.search(r"Used (\d+) registers", line):
            found[kernel] = int(match[1]), memory
    return found


def test_every_architecture_compiles_without_spills_and_within_its_registers(tmp_path, record_property):
    nvcc = nvcc_or_skip()
    architectures = build_cuda.supported(nvcc)
    line = build_cuda.command(nvcc, tmp_path / "all.fatbin", architectures, "-Xptxas=-v", "-Werror=all-warnings")
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    used = report(done.stderr)
    assert sorted(used) == sorted((f"sm_{arch}", kernel) for arch in architectures for kernel in KERNELS)
    record_property("registers", {f"{arch} {kernel}": registers for (arch, kernel), (registers, _) in used.items()})
    assert {key: memory for key, (_, memory) in used.items() if memory} == {}, "bytes of stack or spills"
    assert {key: n for key, (n, _) in used.items() if n > REGISTERS.get(key[1], OTHERS)} == {}
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60).stdout
    readme = (ROOT / "kernels/cuda/README.md").read_text()
    recorded = re.search(r"## Registers, nvcc (\S+)\n", readme)
    assert recorded is not None
    if f"V{recorded[1]}\n" in version:
        for kernel in KERNELS:
            row = " | ".join(str(used[f"sm_{arch}", kernel][0]) for arch in architectures)
            assert f"| `{kernel}` | {row} |" in readme, "record the new numbers"


def test_every_float_operation_is_rounded_on_its_own(tmp_path):
    """No fused multiply-add, approximate root or flushed denormal, in a form that no driver may fuse later: .rn says so."""
    nvcc = nvcc_or_skip()
    last = build_cuda.supported(nvcc)[-1]
    output = tmp_path / "update.ptx"
    line = [nvcc, "-ptx", f"-arch=compute_{last}", *build_cuda.FLAGS, f"-I{ROOT / 'kernels/include'}"]
    done = subprocess.run(
        [*line, str(ROOT / "kernels" / build_cuda.SOURCE), "-o", str(output)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    operations = set(re.findall(r"^\s+(?:@%p\d+ )?([a-z]\S*)", output.read_text(), re.MULTILINE))
    arithmetic = {name for name in operations if re.match(r"(add|sub|mul|div|fma|mad|sqrt|rsqrt)\..*f(16|32|64)", name)}
    assert arithmetic == {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "sqrt.rn.f32"}
    assert not [name for name in operations if "ftz" in name or "approx" in name or ".local" in name]
    assert {"ld.global.v4.f32", "st.global.v4.f32"} <= operations, "16 bytes at a time"
    assert not [name for name in operations if name.startswith("ld.global.nc")], "x and the counter change while read"


def test_the_readme_lists_every_argument():
    """Names, order and number of the kernels' arguments, in the source, in cuda_module.KERNELS and in the README."""
    source = (ROOT / "kernels" / build_cuda.SOURCE).read_text()
    readme = (ROOT / "kernels/cuda/README.md").read_text()
    found = re.findall(r"^DV_KERNEL\(\d\) (\w+)\((.*?)\) \{", source, re.MULTILINE | re.DOTALL)
    arguments = {name: [re.split(r"[ *]", word.strip())[-1] for word in listed.split(",")] for name, listed in found}
    assert {name: len(names) for name, names in arguments.items()} == cuda_module.KERNELS
    table = re.findall(r"^\| (\d+) \| `(\w+)`", readme, re.MULTILINE)
    numbered = [name for number, name in sorted(table, key=lambda entry: int(entry[0]))]
    assert numbered == arguments["dv_update_full"]
    assert numbered[:-3] == arguments["dv_update_plain"]
    for name in ("dv_start", "dv_finite", "dv_to_uint8"):
        text = readme.split(f"### `{name}`", 1)[1].split("\n\n")[1]
        listed = [word for word in re.findall(r"`(\w+)`", text) if word in arguments[name]]
        assert list(dict.fromkeys(listed)) == arguments[name], name


# Installing


def test_which_nvcc_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv(build_cuda.VARIABLE, "none")
    assert build_cuda.find_nvcc() is None
    assert [extension.name for extension in build.extensions()] == ["engine.kernels._kernels"]
    monkeypatch.setenv(build_cuda.VARIABLE, str(fake_nvcc(tmp_path)))
    assert build_cuda.find_nvcc() == str(tmp_path / "nvcc")
    _, fatbin = build.extensions()
    assert fatbin.name == build.CUDA_EXTENSION
    assert sorted([*fatbin.sources, *fatbin.depends]) == sorted(f"kernels/{name}" for name in build_cuda.SOURCES)
    monkeypatch.setenv(build_cuda.VARIABLE, "/no/such/nvcc")
    with pytest.raises(build.KernelBuildError, match=r"is '/no/such/nvcc', but there is no such program: expected the path"):
        build.extensions()


def test_setuptools_builds_the_fatbin_where_there_is_nvcc(monkeypatch, tmp_path):
    from setuptools import Distribution

    monkeypatch.delenv(build.VARIABLE, raising=False)
    monkeypatch.setenv(build_cuda.VARIABLE, str(fake_nvcc(tmp_path)))
    monkeypatch.chdir(ROOT)
    fatbin_only = build.extensions()[1:]
    distribution = Distribution({"name": "test", "ext_modules": fatbin_only, "cmdclass": build.commands()})
    command = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    command.run()
    built = tmp_path / "lib" / "engine" / "kernels" / "_cuda.fatbin"
    assert command.get_outputs() == [str(built)]
    monkeypatch.setattr(cuda_module, "FATBIN", built)
    assert cuda_module.fatbin() == b"cubins"
    assert cuda_module.describe() == {
        "source": "fatbin", "targets": "sm_75 sm_120 compute_120", "made_with": "nvcc 12.8.93", "path": str(built)
    }  # fmt: skip


def test_a_failing_nvcc_is_quoted_and_leaves_the_old_fatbin(monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    monkeypatch.setenv(build_cuda.VARIABLE, str(nvcc))
    fake_nvcc(tmp_path, listed="compute_50 compute_60")
    with pytest.raises(build_cuda.CudaBuildError, match=r"compiles for compute_50, compute_60; expected one of compute_75"):
        build_cuda.compile_fatbin(tmp_path / "_cuda.fatbin")
    failing = "#!/bin/sh\n[ $1 = --list-gpu-arch ] && echo compute_80 && exit\necho 'unsupported GNU version' >&2\nexit 3\n"
    nvcc.write_text(failing)
    (tmp_path / "_cuda.fatbin").write_bytes(b"old")
    with pytest.raises(build_cuda.CudaBuildError, match=r"(?s)ended with 3.*unsupported GNU version.*DIFFUSEVAE_NVCC=none"):
        build_cuda.compile_fatbin(tmp_path / "_cuda.fatbin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_cuda.fatbin", "nvcc"]
    assert (tmp_path / "_cuda.fatbin").read_bytes() == b"old"
    monkeypatch.setenv(build_cuda.VARIABLE, "none")
    with pytest.raises(build_cuda.CudaBuildError, match="There is no nvcc: install the CUDA toolkit"):
        build_cuda.compile_fatbin(tmp_path / "_cuda.fatbin")


# The fatbin that is loaded


@pytest.fixture
def installed(monkeypatch, tmp_path) -> Path:
    """A fatbin of these sources for sm_75, sm_86 and later by PTX 12.0."""
    path = tmp_path / "_cuda.fatbin"
    targets = ["sm_75", "sm_86", "compute_120"]
    build_cuda.seal(path, b"cubins", kind="fatbin", sources=build_cuda.source_hash(), targets=targets, made_with="nvcc 13.0")
    monkeypatch.setattr(cuda_module, "FATBIN", path)
    return path


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv(cuda_module.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "cuda"


@pytest.fixture
def compiler(monkeypatch) -> list[str]:
    """NVRTC 13.5, as far as the cache sees it; the list of what it compiled."""
    compiled: list[str] = []

    def compile_(nvrtc: object, arch: str) -> bytes:
        compiled.append(arch)
        return f"code for {arch}".encode() * 40

    monkeypatch.setattr(cuda_module, "_nvrtc", lambda: None)
    monkeypatch.setattr(cuda_module, "_nvrtc_version", lambda nvrtc: "13.5")
    monkeypatch.setattr(cuda_module, "_compile", compile_)
    return compiled


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        ("sm_75", "fatbin"),
        ("sm_80", "cubin"),  # sm_86 code does not run on 8.0, nor PTX 12.0 on anything older
        ("sm_86", "fatbin"),
        ("sm_89", "fatbin"),
        ("sm_90", "cubin"),
        ("sm_120", "fatbin"),
        ("sm_121", "fatbin"),
        ("sm_130", "fatbin"),
    ],
)
def test_a_device_gets_the_fatbin_where_it_covers_it(installed, cache, compiler, arch, kind):
    code = cuda_module.code(arch)
    assert code.kind == kind
    assert code.code == (b"cubins" if kind == "fatbin" else f"code for {arch}".encode() * 40)
    assert code.made_with == ("nvcc 13.0" if kind == "fatbin" else "nvrtc 13.5")


def test_without_a_fatbin_every_device_gets_a_cubin(monkeypatch, tmp_path, cache, compiler):
    monkeypatch.setattr(cuda_module, "FATBIN", tmp_path / "absent.fatbin")
    assert cuda_module.code("sm_86").kind == "cubin"
    assert cuda_module.describe() == {"source": "nvrtc", "made_with": "nvrtc 13.5", "path": str(cache)}
    with pytest.raises(KernelLoadError, match=r"were not compiled at installation: .*absent.fatbin does not exist.*nvcc"):
        cuda_module.fatbin()


def damages(content: bytes) -> list[bytes]:
    flips = [content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :] for i in range(len(content))]
    cut = [content[:i] for i in range(0, len(content), 9)]
    return [b"", b"x", b"text\n", b"[1]\n", b"{}\n", content + b"x", *cut, *flips]


def test_a_damaged_fatbin_is_refused(installed):
    for damaged in damages(installed.read_bytes()):
        installed.write_bytes(damaged)
        with pytest.raises(KernelLoadError, match=r"is unreadable or damaged: .*engine.kernels.build_cuda"):
            cuda_module.fatbin()


def test_a_fatbin_of_other_sources_is_refused(installed):
    build_cuda.seal(installed, b"cubins", kind="fatbin", sources="0" * 64, targets=["sm_75"], made_with="nvcc 13.0")
    with pytest.raises(KernelLoadError, match=r"found 0{12}, expected \w{12}\. Run `.*engine\.kernels\.build_cuda`"):
        cuda_module.code("sm_75")


def test_sources_are_all_files_of_the_kernels_and_decide_the_hash(tmp_path):
    on_disk = {f"cuda/{path.name}" for path in (ROOT / "kernels/cuda").iterdir() if path.suffix in (".cu", ".h")}
    assert on_disk == {name for name in build_cuda.SOURCES if name.startswith("cuda/")}
    for name in build_cuda.SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / "kernels" / name).read_bytes())
    assert build_cuda.source_hash(tmp_path) == build_cuda.source_hash()
    for name in build_cuda.SOURCES:
        included = set(re.findall(r'#include "(.+)"', (tmp_path / name).read_text()))
        assert {path.split("/")[-1] for path in included} <= {path.split("/")[-1] for path in build_cuda.SOURCES}
        before = build_cuda.source_hash(tmp_path)
        (tmp_path / name).write_text("// changed")
        assert build_cuda.source_hash(tmp_path) != before


@pytest.mark.parametrize("arch", ["sm86", "86", "sm_8x", "", "sm_61"])
def test_an_unknown_or_too_old_architecture_is_refused(cache, compiler, arch):
    for function in (cuda_module.code, cuda_module.cubin):
        with pytest.raises(KernelLoadError, match=r"expected 'sm_' and a compute capability|expected sm_75 \(Turing\)"):
            function(arch)
    assert compiler == []


# NVRTC


@pytest.mark.parametrize("arch", [build_cuda.ARCHITECTURES[0], build_cuda.ARCHITECTURES[-1]])
def test_nvrtc_compiles_all_kernels_and_keeps_them(cache, monkeypatch, arch):
    nvrtc_or_skip()
    cubin = cuda_module.cubin(f"sm_{arch}")
    assert cubin.startswith(b"\x7fELF")
    assert [kernel for kernel in KERNELS if f".text.{kernel}\0".encode() not in cubin] == []
    monkeypatch.setattr(cuda_module, "_compile", lambda *given: pytest.fail("compiled again"))
    assert cuda_module.cubin(f"sm_{arch}") == cubin


def test_nvrtc_says_what_it_cannot_compile_for(cache):
    nvrtc_or_skip()
    with pytest.raises(KernelLoadError, match=r"(?s)did not compile the CUDA kernels for sm_999: .*It knows sm_75.*pip"):
        cuda_module.cubin("sm_999")
    assert not cache.exists()


def test_a_cubin_is_kept_per_architecture_and_sources(cache, compiler, monkeypatch):
    for _ in range(2):
        assert cuda_module.cubin("sm_80") != cuda_module.cubin("sm_86")
    assert compiler == ["sm_80", "sm_86"]
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(build_cuda, "source_hash", lambda: "other")
    cuda_module.cubin("sm_80")
    monkeypatch.setattr(cuda_module, "_nvrtc_version", lambda nvrtc: "13.6")
    cuda_module.cubin("sm_80")
    assert compiler == ["sm_80", "sm_86", "sm_80", "sm_80"]


def test_a_damaged_cache_entry_is_compiled_again(cache, compiler):
    good = cuda_module.cubin("sm_80")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    every = [damaged for damaged in damages(whole)[::7] if damaged != whole]
    for damaged in every:
        path.write_bytes(damaged)
        assert cuda_module.cubin("sm_80") == good
        assert path.read_bytes() == whole
    assert len(compiler) == 1 + len(every)


def test_an_entry_under_another_name_is_not_taken(cache, compiler):
    cuda_module.cubin("sm_80")
    cuda_module.cubin("sm_86")
    first, second = sorted(cache.iterdir())
    second.write_bytes(first.read_bytes())
    assert cuda_module.cubin("sm_86").startswith(b"code for sm_86")


def test_threads_that_compile_at_once_leave_one_whole_entry(cache, compiler):
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(cuda_module.cubin("sm_80"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(list(cache.iterdir())) == 1, "no temporary file is left"


def test_a_cache_that_cannot_be_written_is_warned_of(cache, compiler):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match=r"could not be kept in .*: .*name a writable folder in DIFFUSEVAE_CACHE"):
        assert cuda_module.cubin("sm_80").startswith(b"code for sm_80")


def test_a_failing_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_cuda.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        build_cuda.seal(tmp_path / "x.cubin", b"code")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv(cuda_module.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cuda_module.cache_folder() == tmp_path / "diffusevae" / "cuda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cuda_module.cache_folder() == Path("/home/someone/.cache/diffusevae/cuda")


def test_missing_wheels_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_module, "FATBIN", tmp_path / "absent")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for function in (cuda_module.code, cuda_module.cubin, lambda arch: cuda_module.describe()):
        with pytest.raises(KernelLoadError, match=r"nor NVRTC.*pip install 'diffusevae-engine\[cuda\]'.*nvcc"):
            function("sm_86")


def test_a_missing_nvrtc_library_is_named():
    class Absent:
        def nvrtc_version(self) -> None:
            raise RuntimeError("Failure finding libnvrtc.so")

        nvrtcVersion = nvrtc_version

    with pytest.raises(KernelLoadError, match=r"library cannot be loaded: Failure finding libnvrtc.so. Install NVRTC with"):
        cuda_module._nvrtc_version(Absent())


def test_importing_the_module_loads_nothing_of_cuda():
    code = "import sys, engine.kernels.cuda_module; print([name for name in sys.modules if name.split('.')[0] == 'cuda'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_launch_grid_covers_every_element_and_stays_within_limits():
    assert cuda_module.launch_grid(0, 0) == (1, 1, 1)
    assert cuda_module.launch_grid(512, 3) == (1, 3, 1)
    assert cuda_module.launch_grid(513) == (2, 1, 1)
    assert cuda_module.launch_grid(2**40, 2**20) == (65535, 65535, 1)
