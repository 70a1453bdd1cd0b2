"""The launcher: it says what is missing before a server starts, and ends one that does not behave. With stand-ins only."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engine.triton import local_server, server_files
from engine.triton.local_server import LocalServer, Ports
from engine.triton.server_files import PYTHON_VARIABLE, STUB, ServerError, find_installation


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Environment:
    """A folder that looks like an environment with the wheel in it; its Python prints these facts and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages = folder / "site-packages"
        self.server = self.packages / "pytriton" / "tritonserver"
        self.facts: dict[str, Any] = {
            "executable": str(folder / "bin" / "python"),
            "base": str(folder),
            "version": "3.11",
            "libraries": str(folder / "lib"),
            "multiarch": "",
            "numpy": "1.26.4",
            "places": {name: str(self.packages / name / "__init__.py") for name in ("pytriton", "engine", "numpy")},
        }
        for file in (
            self.server / "backends" / "python" / "libtriton_python.so",
            self.server / "python_backend_stubs" / "3.11" / STUB,
            self.packages / "nvidia_pytriton.libs" / "libtritonserver.so",
            folder / "lib" / "libpython3.11.so.1.0",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        self.binary("exit 1")
        self.say()

    def say(self, **changes: Any) -> None:
        python = script(self.folder / "bin" / "python", f"echo '{json.dumps(self.facts | changes)}'")
        link = python.with_name("python3")
        if not link.exists():
            link.symlink_to(python)

    def binary(self, text: str) -> None:
        script(self.server / "bin" / "tritonserver", text)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


class TestInstallation:
    def test_a_whole_one(self, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/usr/bin")
        monkeypatch.setenv("PYTHONHOME", "/nowhere")
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
        found = find_installation(environment.folder)
        told = found.environment()
        assert told["PATH"] == f"{environment.folder}/bin:/usr/bin"
        assert told["LD_LIBRARY_PATH"] == f"{environment.packages}/nvidia_pytriton.libs:{environment.folder}/lib"
        assert "PYTHONHOME" not in told
        backends = found.prepare(tmp_path / "run")
        assert sorted(file.name for file in (backends / "python").iterdir()) == ["libtriton_python.so", STUB]
        assert all(file.exists() for file in (backends / "python").iterdir())

    def test_the_variable_names_another_environment(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(PYTHON_VARIABLE, str(environment.folder / "bin" / "python"))
        assert find_installation().binary == environment.server / "bin" / "tritonserver"

    @pytest.mark.parametrize(
        ("place", "package"), [("pytriton", "nvidia-pytriton"), ("engine", "diffusevae-engine"), ("numpy", "numpy")]
    )
    def test_a_missing_package(self, environment: Environment, place: str, package: str) -> None:
        environment.say(places=environment.facts["places"] | {place: None})
        with pytest.raises(ServerError, match=f"found no package {package}, expected .* run pip install --no-deps"):
            find_installation(environment.folder)

    def test_numpy_2(self, environment: Environment) -> None:
        environment.say(numpy="2.1.0")
        with pytest.raises(ServerError, match=r"found numpy 2\.1\.0, expected numpy 1: .* pip install 'numpy<2'"):
            find_installation(environment.folder)

    def test_a_python_without_a_stub(self, environment: Environment) -> None:
        environment.say(version="3.99")
        with pytest.raises(ServerError, match=r"found Python 3\.99, expected one .* has a stub for \(3\.11\)"):
            find_installation(environment.folder)

    def test_no_shared_libpython(self, environment: Environment) -> None:
        (environment.folder / "lib" / "libpython3.11.so.1.0").unlink()
        with pytest.raises(ServerError, match=r"found no libpython3\.11\.so\.1\.0 in .*apt-get install libpython3\.11"):
            find_installation(environment.folder)

    def test_a_python_that_is_not_called_python3(self, environment: Environment) -> None:
        (environment.folder / "bin" / "python3").unlink()
        with pytest.raises(ServerError, match=r"found no link to .*, expected one.* use a virtual environment"):
            find_installation(environment.folder)

    def test_half_a_wheel(self, environment: Environment) -> None:
        (environment.server / "bin" / "tritonserver").unlink()
        with pytest.raises(ServerError, match=r"bin/tritonserver: found nothing there.*--force-reinstall"):
            find_installation(environment.folder)

    def test_no_interpreter(self, tmp_path: Path) -> None:
        with pytest.raises(ServerError, match=f"found no interpreter, expected .* or correct {PYTHON_VARIABLE}"):
            find_installation(tmp_path / "nothing")

    def test_an_interpreter_that_does_not_work(self, environment: Environment) -> None:
        script(environment.folder / "bin" / "python", "echo hello")
        with pytest.raises(ServerError, match=r"found that it does not work .*, expected a Python 3"):
            find_installation(environment.folder)
        script(environment.folder / "bin" / "python", "exit 3")
        with pytest.raises(ServerError, match="exit status 3"):
            find_installation(environment.folder)

    def test_this_interpreter_tells_about_itself(self) -> None:
        facts = server_files._ask(Path(sys.executable))
        assert facts["version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
        assert Path(facts["executable"]).samefile(sys.executable)


class TestServer:
    def test_no_repository(self, environment: Environment, tmp_path: Path) -> None:
        with pytest.raises(ServerError, match=r"none: found no folder, expected a model repository.*triton-repo"):
            LocalServer(tmp_path / "none", python=environment.folder)

    def test_its_command_line(self, environment: Environment, repository: Path) -> None:
        environment.binary('echo "$@"; exit 1')
        server = LocalServer(repository, load=("a", "b"), options=["--log-verbose=1"], python=environment.folder)
        with pytest.raises(ServerError, match="found that the server ended, expected ready server"):
            server.start()
        said = server.log()
        for option in (
            f"--model-repository={repository}", "--model-control-mode=explicit", "--load-model=a", "--load-model=b",
            f"--http-port={server.ports.http}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
            "--metrics-address=127.0.0.1", "--exit-timeout-secs=5", "--log-verbose=1",
        ):  # fmt: skip
            assert option in said

    def test_the_error_quotes_the_log(self, environment: Environment, repository: Path) -> None:
        environment.binary("echo I1122 fine; echo 'E1122 18:00:00 model.cc:1] \"the reason\"'; echo more; exit 1")
        server = LocalServer(repository, python=environment.folder)
        with pytest.raises(ServerError, match=r'its log says:\nE1122 18:00:00 model\.cc:1\] "the reason"$'):
            server.start()
        assert server.exit_code == 1

    def test_a_port_that_was_taken_is_tried_again(
        self, environment: Environment, repository: Path, tmp_path: Path
    ) -> None:
        environment.binary(f"echo x >> {tmp_path}/tries; echo \"error: Socket '127.0.0.1:1' already in use\"; exit 1")
        with pytest.raises(ServerError, match="already in use"):
            LocalServer(repository, python=environment.folder).start()
        assert (tmp_path / "tries").read_text().count("x") == local_server.STARTS
        with pytest.raises(ServerError, match="already in use"):
            LocalServer(repository, ports=Ports(1, 2, 3), python=environment.folder).start()
        assert (tmp_path / "tries").read_text().count("x") == local_server.STARTS + 1

    def test_one_that_never_answers_and_does_not_end_is_killed(
        self, environment: Environment, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local_server, "UNLOADING", 0.2)
        environment.binary("trap '' TERM; sleep 60 & wait; sleep 60")
        started = time.monotonic()
        server = LocalServer(repository, python=environment.folder, deadline=0.5, drain=0)
        with pytest.raises(ServerError, match=r"found no ready server within 0\.5 s"):
            server.start()
        assert time.monotonic() - started < 20
        assert server.exit_code == -9
        assert server.stop() == -9

    def test_the_server_ends_when_its_owner_dies(self, environment: Environment, repository: Path, tmp_path: Path) -> None:
        environment.binary(f"echo $$ > {tmp_path}/pid; sleep 60 & wait")
        code = (
            "import os, sys, time\n"
            "from engine.triton.local_server import LocalServer\n"
            "server = LocalServer(sys.argv[1], python=sys.argv[2])\n"
            "server._launch()\n"
            "while not os.path.exists(sys.argv[3]) or not open(sys.argv[3]).read(): time.sleep(0.01)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        arguments = [code, str(repository), str(environment.folder), str(tmp_path / "pid")]
        surroundings = {"PYTHONPATH": str(Path(local_server.__file__).parents[2]), "TMPDIR": str(tmp_path)}
        assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", *arguments], surroundings) == -9
        pid = int((tmp_path / "pid").read_text())
        for _ in range(200):
            if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
                return
            time.sleep(0.05)
        raise AssertionError("the server lives on after its owner's death")

    def test_nothing_runs_yet(self, environment: Environment, repository: Path) -> None:
        server = LocalServer(repository, python=environment.folder)
        assert server.stop() is None
        for ask in (lambda: server.pid, lambda: server.http, lambda: server.shared_memory):
            with pytest.raises(ServerError, match="start\\(\\) it first"):
                ask()

    def test_by_hand(self, environment: Environment, repository: Path) -> None:
        result = CliRunner().invoke(local_server.main, [str(repository), "--python", str(environment.folder)])
        assert result.exit_code == 1
        assert "found that the server ended, expected ready server" in result.output
