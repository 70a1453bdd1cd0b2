"""TensorRT is driven and refused as it should be where it is not installed: options, and a fake library of 10.x and 11.x."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli.contents import record_line
from engine.errors import ArgumentError, BackendError, Cancelled, ExportError
from export.build_engines import main
from export.context import Watch
from export.graphs.roles import tensor
from export.tensorrt import engines as tensorrt_engines
from export.tensorrt import library as tensorrt_library
from export.tensorrt.check import check_model
from export.tensorrt.library import Library, device_target, open_library, settle_targets
from export.tensorrt.log import BuildNotes, read_header
from export.tensorrt.options import RTX_DEFAULT_TARGETS, read_options
from export.tensorrt.plan import Plan, build_plan
from tests.fake_tensorrt import CACHE, LAYERS_10, PLAN, Behaviour, fake_tensorrt

INPUTS = (tensor("x", ("batch", 3, 8, 8)), tensor("row", (1, 6)), tensor("timesteps", ("steps",), "int64"))
VERSIONS = ("10.1.0", "10.16.1", "11.4.1.9")


def install(monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour, device: str = "sm89") -> Library:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(behaviour))
    monkeypatch.setattr(tensorrt_library, "device_target", lambda: device)
    return open_library("tensorrt")


def plan_of(library: Library, watch: Watch | None = None, **options: Any) -> Plan:
    return build_plan(library, "denoiser.fp16", b"onnx", INPUTS, read_options("tensorrt", options), watch)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"trt_batch": (1, 8, 4)}, r"--trt-batch: found 1 8 4, expected MIN OPT MAX"),
            ({"trt_batch": (4, 2, 8)}, r"--trt-batch: found 4 2 8"),
            ({"trt_batch": (0, 1, 4)}, r"--trt-batch: found 0 1 4"),
            ({"trt_batch": (1, 4, 4097)}, r"<= 4096"),
            ({"trt_batch": (1, 4)}, r"--trt-batch: found 1 4"),
            ({"trt_level": 6}, r"--trt-level: found 6, expected 0 to 5"),
            ({"trt_workspace": 0}, r"--trt-workspace: found 0, expected 1 to"),
            ({"targets": ("sm90",)}, r"found 'sm90' \(H100, H200\).*need TensorRT proper: build on such a machine"),
            ({"targets": ("sm88",)}, r"found 'sm88', expected one or more of .*Did you mean 'sm8"),
            ({"targets": ("sm86", "86")}, r"found '86'.*Did you mean 'sm86'"),
            ({"targets": ("sm86", "SM_86")}, r"found sm86 SM_86, expected each target once"),
        ],
    )
    def test_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            read_options("tensorrt_rtx", options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"targets": ("sm86", "sm89")}, r"found sm86 sm89, expected one at most: .*--trt-hardware ampere_plus"),
            ({"targets": ("ada",)}, r"found 'ada', expected a compute capability such as"),
            ({"trt_hardware": "ampere"}, r"--trt-hardware: found 'ampere'.*Did you mean 'ampere_plus'"),
        ],
    )
    def test_refused_for_tensorrt_proper(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            read_options("tensorrt", options)

    def test_defaults(self) -> None:
        options = read_options("tensorrt_rtx", {"trt_batch": None, "targets": ()}, steps=10, T=1000)
        assert options.targets == RTX_DEFAULT_TARGETS
        assert options.sizes() == {
            "batch": (1, 4, 16), "steps": (1, 10, 1000), "rows": (1, 10, 1000), "noise_steps": (1, 10, 1000),
            "lanes": (1, 1, 2),
        }  # fmt: skip

    def test_targets_as_people_write_them(self) -> None:
        assert read_options("tensorrt_rtx", {"targets": ("SM89", "8.6", "sm_120")}).targets == ("sm86", "sm89", "sm120")

    def test_each_library_takes_its_own(self, tmp_path: Path) -> None:
        given = {"trt_hardware": "ampere_plus", "trt_timing_cache": tmp_path / "cache"}
        rtx, proper = read_options("tensorrt_rtx", given), read_options("tensorrt", given)
        assert (rtx.hardware, rtx.timing_cache) == ("none", None)
        assert (proper.hardware, proper.timing_cache, proper.targets) == ("ampere_plus", tmp_path / "cache", ())


class TestLibrary:
    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
    def test_missing(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        monkeypatch.setitem(sys.modules, backend, None)
        cure = "--backends tensorrt_rtx builds plans without a GPU" if backend == "tensorrt" else r"\[tensorrt-rtx\]"
        with pytest.raises(BackendError, match=f"backend {backend}: found that .*; install it .*{cure}"):
            open_library(backend)

    def test_a_broken_installation(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        with pytest.raises(BackendError, match=r"cannot be imported \(libnvinfer\.so\.11: cannot open"):
            open_library("tensorrt")

    @pytest.mark.parametrize("version", ["8.6.1", "10.0.1", ""])
    def test_too_old(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        module = ModuleType("tensorrt")
        module.__version__ = version  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        with pytest.raises(BackendError, match=rf"found TensorRT ({version}|without).*, expected 10\.1 or later; upgrade"):
            open_library("tensorrt")

    def test_no_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Any:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(tensorrt_library.ctypes, "CDLL", missing)
        with pytest.raises(BackendError, match=r"found no driver \(.*\), expected the GPU that the plans are for"):
            device_target()

    @pytest.mark.parametrize(("fails", "status"), [("cuInit", 100), ("cuDeviceGet", 101)])
    def test_no_device(self, monkeypatch: pytest.MonkeyPatch, fails: str, status: int) -> None:
        monkeypatch.setattr(tensorrt_library.ctypes, "CDLL", lambda _: FakeDriver(fails))
        with pytest.raises(BackendError, match=f"found that {fails} answers {status}, expected the GPU"):
            device_target()

    def test_the_device_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorrt_library.ctypes, "CDLL", lambda _: FakeDriver())
        assert device_target() == "sm89"


class FakeDriver:
    """The four calls to libcuda, on a device of compute capability 8.9."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def cuInit(self, flags: Any) -> int:
        return 100 if self.fails == "cuInit" else 0

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:
        return 101 if self.fails == "cuDeviceGet" else 0

    def cuDeviceGetAttribute(self, result: Any, attribute: Any, device: Any) -> int:
        result._obj.value = {75: 8, 76: 9}[attribute.value]
        return 0


class TestTargets:
    @pytest.mark.parametrize(
        ("asked", "hardware", "targets"),
        [
            ((), "none", ("sm89",)),
            (("sm89",), "none", ("sm89",)),
            ((), "same_compute_capability", ("sm89",)),
            ((), "ampere_plus", ("sm80+",)),
        ],
    )
    def test_settled(
        self, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], hardware: str, targets: tuple[str, ...]
    ) -> None:
        assert settle_targets(install(monkeypatch, Behaviour()), asked, hardware) == targets

    def test_another_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ArgumentError, match="--targets: found sm90, expected sm89, the GPU of this machine"):
            settle_targets(install(monkeypatch, Behaviour()), ("sm90",), "none")

    def test_too_old_a_device_for_ampere_plus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ArgumentError, match="found sm75 in this machine, expected sm80 or later"):
            settle_targets(install(monkeypatch, Behaviour(), "sm75"), (), "ampere_plus")

    def test_asked_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, Behaviour())
        with pytest.raises(ArgumentError, match="expected sm89"):
            tensorrt_engines.check_request("tensorrt", {"targets": ("sm90",)})


class TestFakeLibrary:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_what_is_set(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        behaviour = Behaviour(version)
        plan = plan_of(install(monkeypatch, behaviour), trt_batch=(1, 2, 8), trt_level=5, trt_workspace=64)
        assert plan.data == PLAN
        assert behaviour.named("create_network") == [(2,)], "strongly typed: the precision is the graph's"
        assert behaviour.named("set_flag") == [], "no flag of weak typing"
        assert behaviour.named("clear_flag") == [("TF32",)]
        assert behaviour.named("builder_optimization_level") == [(5,)]
        assert behaviour.named("set_memory_pool_limit") == [("WORKSPACE", 64 << 20)]
        assert behaviour.named("set_shape") == [
            ("x", (1, 3, 8, 8), (2, 3, 8, 8), (8, 3, 8, 8)),
            ("timesteps", (1,), (10,), (1000,)),
        ], "only tensors with a free dimension"
        assert len(behaviour.named("add_optimization_profile")) == 1
        assert behaviour.named("hardware_compatibility_level") == []
        assert behaviour.named("num_compute_capabilities") == [], "an option of RTX alone"

    @pytest.mark.parametrize(("layers", "major"), [(Behaviour.layers, 11), (LAYERS_10, 10)])
    def test_record(self, monkeypatch: pytest.MonkeyPatch, layers: str, major: int) -> None:
        record = plan_of(install(monkeypatch, Behaviour(f"{major}.4.0", layers=layers))).record
        assert record["fused_layers"] == 2
        assert record["layer_kinds"] == {"gemm": 1, "kgen": 1}
        assert (record["activation_bytes"], record["weight_bytes"]) == (4096, 512)
        assert record["header"] is None, "only RTX plans have a header that is known"

    def test_hardware_compatibility(self, monkeypatch: pytest.MonkeyPatch) -> None:
        behaviour = Behaviour()
        plan_of(install(monkeypatch, behaviour), trt_hardware="same_compute_capability")
        ((level,),) = behaviour.named("hardware_compatibility_level")
        assert level.name == "SAME_COMPUTE_CAPABILITY"

    def test_a_level_that_10_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(BackendError, match=r"TensorRT 10\.1\.0: found no HardwareCompatibilityLevel\.SAME_COMPUTE"):
            plan_of(install(monkeypatch, Behaviour("10.1.0")), trt_hardware="same_compute_capability")

    def test_no_plan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = install(monkeypatch, Behaviour(plan=None))
        with pytest.raises(ExportError, match=r"builds no plan \(a warning; Error Code 10: no implementation for"):
            plan_of(library)

    def test_no_parse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = install(monkeypatch, Behaviour(parses=False))
        with pytest.raises(ExportError, match=r"cannot parse it \(UNSUPPORTED_NODE in Unique 'odd': false\)"):
            plan_of(library)
        assert [str(finding) for finding in check_model(library, "vae_decoder", b"onnx")] == [
            "vae_decoder: node 7, Unique 'odd': unsupported node"
        ]

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = install(monkeypatch, Behaviour(starts=False))
        with pytest.raises(BackendError, match=r"cannot start here \(.*nullptr; CUDA initialization failure"):
            plan_of(library)

    def test_a_profile_that_is_not_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ExportError, match=r"refuses the ranges .*'batch': \(1, 4, 16\).*choose another --trt-batch"):
            plan_of(install(monkeypatch, Behaviour(accepts_profile=False)))


class TestTimingCache:
    def test_written_then_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        behaviour, path = Behaviour(), tmp_path / "timings"
        library = install(monkeypatch, behaviour)
        plan_of(library, trt_timing_cache=path)
        assert path.read_bytes() == CACHE
        plan_of(library, trt_timing_cache=path)
        assert behaviour.named("create_timing_cache") == [(b"",), (CACHE,)]
        assert behaviour.named("set_timing_cache") == [(False,), (False,)], "a mismatch is not ignored"
        assert [file.name for file in tmp_path.iterdir()] == ["timings"], "no temporary file is left"

    def test_of_another_gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        library = install(monkeypatch, Behaviour(accepts_cache=False))
        with pytest.raises(ExportError, match=r"found timings that TensorRT 11\.4\.1\.9 does not accept on this GPU"):
            plan_of(library, trt_timing_cache=tmp_path / "timings")

    def test_a_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="found a file that cannot be read"):
            plan_of(install(monkeypatch, Behaviour()), trt_timing_cache=tmp_path)

    def test_no_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="found that it cannot be written"):
            plan_of(install(monkeypatch, Behaviour()), trt_timing_cache=tmp_path / "absent" / "timings")


class TestCommandLine:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        """A file that is perhaps never read: what is wrong with the options is said first."""
        path = tmp_path / "a.ckpt"
        path.write_bytes(b"no checkpoint")
        return path

    def run(self, checkpoint: Path, *arguments: str) -> Result:
        result = CliRunner().invoke(main, [str(checkpoint), *arguments], prog_name="build_engines.py")
        assert result.exit_code == 1, result.output
        assert "read " not in result.output, "no stage has begun"
        return result

    def test_no_library(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        output = self.run(checkpoint, "--backends", "tensorrt").output
        assert "Error: backend tensorrt: found that" in output
        assert "pip install tensorrt" in output
        assert "--backends tensorrt_rtx builds plans without a GPU" in output

    def test_targets_in_a_row(self, checkpoint: Path) -> None:
        output = self.run(checkpoint, "--backends", "tensorrt_rtx", "--targets", "8.6", "8.9", "sm90").output
        assert "Error: --targets: found 'sm90' (H100, H200)" in output

    def test_a_batch_that_shrinks(self, checkpoint: Path) -> None:
        output = self.run(checkpoint, "--backends", "tensorrt_rtx", "--trt-batch", "1", "8", "4").output
        assert "Error: --trt-batch: found 1 8 4" in output

    @pytest.mark.parametrize(
        ("backends", "option", "needed"),
        [
            (["onnxruntime"], ["--targets", "sm86"], "tensorrt_rtx or tensorrt"),
            (["onnxruntime", "openvino"], ["--trt-batch", "1", "4", "8"], "tensorrt_rtx or tensorrt"),
            (["tensorrt_rtx"], ["--trt-hardware", "ampere_plus"], "tensorrt"),
            (["tensorrt_rtx"], ["--trt-timing-cache", "file"], "tensorrt"),
        ],
    )
    def test_an_option_that_nobody_takes(
        self, checkpoint: Path, backends: list[str], option: list[str], needed: str
    ) -> None:
        output = self.run(checkpoint, "--backends", *backends, *option).output
        assert f"Error: {option[0]}: found it beside --backends {' '.join(backends)}, expected {needed} among them" in output


class Stopping(Watch):
    """Does something at the third report of a build."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action
        self.calls = 0

    def progress(self, phase: str, done: int, total: int) -> None:
        self.calls += 1
        if self.calls == 3:
            self.action()


class TestStopping:
    """The bindings swallow what is raised inside a build; it must come out of it all the same."""

    def test_by_the_watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop() -> None:
            raise Cancelled("asked to stop")

        watch = Stopping(stop)
        with pytest.raises(Cancelled, match="asked to stop"):
            plan_of(install(monkeypatch, Behaviour()), watch)
        assert watch.calls == 3, "nothing is told after it"

    def test_by_ctrl_c(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = signal.getsignal(signal.SIGINT)
        behaviour = Behaviour()
        library = install(monkeypatch, behaviour)
        with pytest.raises(KeyboardInterrupt):
            plan_of(library, Stopping(lambda: signal.raise_signal(signal.SIGINT)))
        assert ("cancelled",) in behaviour.calls, "the builder was told, it did not run to its end"
        assert signal.getsignal(signal.SIGINT) is before

    def test_in_another_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """There Ctrl-C never arrives, and signals cannot be set."""
        library, plans = install(monkeypatch, Behaviour()), []
        thread = threading.Thread(target=lambda: plans.append(plan_of(library)))
        thread.start()
        thread.join()
        assert [plan.data for plan in plans] == [PLAN]


def test_the_last_messages_are_kept_short() -> None:
    notes = BuildNotes()
    for index in range(20):
        notes.hear(1, f"message {index}\n" + "x" * 1000)
    notes.hear(3, "only information")
    assert notes.reasons().startswith("message 14 xxx")
    assert len(notes.reasons()) < 3000
    assert BuildNotes().reasons() == "without a message"


@pytest.mark.parametrize(
    ("options", "record", "line"),
    [
        ({}, {}, ""),
        ({"profile": "batch"}, {"fused_layers": None, "activation_bytes": "many"}, ""),
        ({"profile": {"batch": [1, 4, 16], "odd": 3}}, {"fused_layers": 7}, "batch 1 to 16, 7 fused layers, by rtx 1.7"),
        ({}, {"activation_bytes": 10**6, "weight_bytes": 500_000}, "activations 1.00 MB, weights 0.50 MB, by rtx 1.7"),
    ],
)
def test_what_info_says_of_a_record(options: dict[str, Any], record: dict[str, Any], line: str) -> None:
    """Both objects are the builder's own, so anything may be in them."""
    assert record_line({"options": options, "record": record, "made_with": {"rtx": "1.7"}}) == line


@pytest.mark.parametrize("plan", [b"", b"text", b"vtrt", b"x" * 100])
def test_no_header(plan: bytes) -> None:
    assert read_header(plan) is None
