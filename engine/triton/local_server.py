"""A real Triton server on this machine: on loopback, with a deadline, a log that is kept, and a clean end.

    python -m engine.triton.local_server model_repository/ [another/] [--http-port 8000 ...]
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from engine.commands import command
from engine.errors import EngineError
from engine.triton.server_files import ServerError, find_installation

HOST = "127.0.0.1"
STARTS = 3  # another program may take a port between our looking and the server's binding
POLL = 0.05
PATIENCE = 30.0  # seconds for one HTTP exchange
DYING = 10.0  # seconds that killed processes are given to be gone: one that holds much memory takes a moment
UNLOADING = 20.0  # seconds beyond `drain` after which a stopping server is killed
SHARED_MEMORY = Path("/dev/shm")
# Ends the server's process group when its standard input closes: when we die, however we die.
GUARD = 'read _; kill -s TERM -- "-$1" 2>/dev/null; sleep 8; kill -s KILL -- "-$1" 2>/dev/null'


@dataclass(frozen=True)
class Ports:
    """Where the server listens on 127.0.0.1."""

    http: int
    grpc: int
    metrics: int

    @staticmethod
    def free() -> Ports:
        """Three ports that nothing listens on now."""
        sockets = [socket.socket() for _ in range(3)]
        try:
            for each in sockets:
                each.bind((HOST, 0))
            return Ports(*(int(each.getsockname()[1]) for each in sockets))
        finally:
            for each in sockets:
                each.close()


class LocalServer:
    """One tritonserver on loopback; a context manager, or start() and stop().

    repositories  folders of models
    load          None: every model of the repositories, and the server ends when one fails to load. Names: explicit mode,
                  where models are loaded and unloaded on request, these at the start; a failing one stays unavailable
    ports         None for free ones
    options       further arguments of the tritonserver binary
    python        the server's environment: an interpreter or a virtual environment's folder. None: what
                  DIFFUSEVAE_TRITON_PYTHON names, else this one
    deadline      seconds for starting
    drain         seconds that a stopping server waits for requests, and for idle HTTP connections to be closed
    """

    def __init__(
        self,
        *repositories: str | os.PathLike[str],
        load: Sequence[str] | None = None,
        ports: Ports | None = None,
        options: Sequence[str] = (),
        python: str | os.PathLike[str] | None = None,
        deadline: float = 60.0,
        drain: int = 5,
    ) -> None:
        self.repositories = [Path(repository).resolve() for repository in repositories]
        for repository in self.repositories:
            if not repository.is_dir():
                raise ServerError(
                    f"{repository}: found no folder, expected a model repository; make one with: "
                    f"{command('triton-repo', 'BUNDLE', '--out', repository)}"
                )
        self.load = None if load is None else tuple(load)
        self.options = tuple(options)
        self.deadline = deadline
        self.drain = drain
        self._installation = find_installation(python)
        self._asked_ports = ports
        self._ports: Ports | None = None
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._last_log = ""
        self.exit_code: int | None = None

    # ---- life ------------------------------------------------------------------------------------

    def start(self, ready: bool = True) -> LocalServer:
        """Start and wait until the server is ready (every model too), or only live; ServerError quotes the log."""
        if self._process is not None:
            raise ServerError("found that this server runs already, expected one start; stop() it first")
        for _ in range(STARTS - 1):
            try:
                return self._start_once(ready)
            except ServerError:
                if self._asked_ports is not None or "already in use" not in self.log():
                    raise
        return self._start_once(ready)

    def _start_once(self, ready: bool) -> LocalServer:
        self._launch()
        what = "ready" if ready else "live"
        try:
            # Where ports were asked for, the one who answers may be another server that had them before.
            self.wait_until(lambda: self._listens() and self.answers(what), f"{what} server")
        except BaseException:  # an interrupt must not leave a server behind either
            self.stop()
            raise
        return self

    def _launch(self) -> None:
        self._ports = self._asked_ports or Ports.free()
        self._folder = Path(tempfile.mkdtemp(prefix="diffusevae-triton-"))
        self.exit_code = None
        with open(self._folder / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                self._command(self._folder, self._ports),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._installation.environment(),
                start_new_session=True,  # a group of its own: the guard and stop() can end all of it
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self._process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def _command(self, folder: Path, ports: Ports) -> list[str]:
        command = [str(self._installation.binary)]
        command += [f"--model-repository={repository}" for repository in self.repositories]
        command += [
            f"--backend-directory={self._installation.prepare(folder)}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
            f"--http-address={HOST}", f"--http-port={ports.http}",
            f"--grpc-address={HOST}", f"--grpc-port={ports.grpc}",
            f"--metrics-address={HOST}", f"--metrics-port={ports.metrics}",
            f"--exit-timeout-secs={self.drain}",
        ]  # fmt: skip
        if self.load is not None:
            command += ["--model-control-mode=explicit", "--exit-on-error=false"]
            command += [f"--load-model={name}" for name in self.load]
        return [*command, *self.options]

    def stop(self) -> int | None:
        """End the server and everything it started, and return its exit code; harmless when it has ended already.

        The log stays readable.
        """
        if self._process is None:
            return self.exit_code
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self.exit_code = self._process.wait(timeout=self.drain + UNLOADING)
        except subprocess.TimeoutExpired:
            self._signal_group(signal.SIGKILL)
            self.exit_code = self._process.wait()
        finally:
            self._clean_up()
        return self.exit_code

    def _clean_up(self) -> None:
        """What a server leaves behind that crashed or was killed: stubs, shared memory, and our own folder."""
        self._signal_group(signal.SIGKILL)
        if self._process is not None:
            _wait_until_gone(self._process.pid)  # or a stub may still write what is deleted here
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        self._last_log = self.log()
        self._process = self._guard = None
        if self._folder is not None:
            for region in SHARED_MEMORY.glob(f"{self._folder.name}*"):
                region.unlink(missing_ok=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return  # nothing of it is left, which is what was wanted

    def __enter__(self) -> LocalServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listens(self) -> bool:
        return f"Started HTTPService at {self.http}" in self.log()

    # ---- what it says ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The server's process."""
        if self._process is None:
            raise ServerError("found no running server, expected one; start() it first")
        return self._process.pid

    @property
    def shared_memory(self) -> str:
        """What the names of its regions in /dev/shm begin with."""
        if self._folder is None:
            raise ServerError("found no running server, expected one; start() it first")
        return self._folder.name

    @property
    def ports(self) -> Ports:
        """Where it listens; after stop() where it listened."""
        if self._ports is None:
            raise ServerError("found a server that was never started, expected a running one; start() it first")
        return self._ports

    @property
    def http(self) -> str:
        """host:port for HTTP clients."""
        return f"{HOST}:{self.ports.http}"

    @property
    def grpc(self) -> str:
        """host:port for gRPC clients."""
        return f"{HOST}:{self.ports.grpc}"

    def log(self) -> str:
        """Everything it wrote so far."""
        if self._folder is None:
            return self._last_log
        return (self._folder / "server.log").read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, *, metrics: bool = False) -> tuple[int, bytes]:
        """Status and body of a GET; ServerError when no server answers."""
        return self._exchange("GET", path, self.ports.metrics if metrics else self.ports.http)

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of a POST; ServerError when no server answers."""
        return self._exchange("POST", path, self.ports.http, body, headers or {})

    def _exchange(
        self, method: str, path: str, port: int, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"http://{HOST}:{port}{path}: found no answer ({error}), expected one; {self._state()}"
            ) from error
        finally:
            connection.close()

    def answers(self, what: str = "ready", model: str | None = None) -> bool:
        """Whether the health endpoint says yes: "live" or "ready" of the server, or "ready" of one model."""
        path = f"/v2/health/{what}" if model is None else f"/v2/models/{model}/{what}"
        try:
            return self.get(path)[0] == 200
        except ServerError:
            return False

    def wait_until(self, condition: Callable[[], bool], what: str, deadline: float | None = None) -> None:
        """Poll until the condition holds; ServerError when the server ends before, or the deadline passes."""
        patience = self.deadline if deadline is None else deadline
        end = time.monotonic() + patience
        while not condition():
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"found that the server ended, expected {what}; {self._state()}")
            if time.monotonic() > end:
                raise ServerError(f"found no {what} within {patience:g} s; {self._state()}")
            time.sleep(POLL)

    def wait_for_log(self, pattern: str, deadline: float | None = None) -> None:
        """Wait until a line of the log matches a regular expression."""
        self.wait_until(lambda: re.search(pattern, self.log()) is not None, f"line in the log like {pattern!r}", deadline)

    def wait(self) -> int:
        """Block until the server ends by itself."""
        if self._process is not None:
            self._process.wait()
            self.stop()
        return self.exit_code or 0

    def _state(self) -> str:
        """What the log says that helps: its errors, or else its last lines."""
        lines = self.log().strip().splitlines()
        errors = [line for line in lines if re.match(r"E\d{4} |error:", line) and "CudaDriverHelper" not in line]
        return "its log says:\n" + "\n".join(errors[-8:] or lines[-8:] or ["nothing"])


def living(group: int) -> list[str]:
    """The names of a process group's living processes: zombies, which their parent only has to notice, are none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, rest = (entry / "stat").read_text().partition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            state, _, its_group = rest.split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(name.partition("(")[2])
    return found


def _wait_until_gone(group: int) -> None:
    """Return once every killed process of a group has ended, or when waiting no longer helps."""
    end = time.monotonic() + DYING
    while living(group) and time.monotonic() < end:
        time.sleep(POLL)


@click.command(context_settings={"show_default": True})
@click.argument("repositories", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--http-port", type=click.IntRange(1, 65535), default=8000)
@click.option("--grpc-port", type=click.IntRange(1, 65535), default=8001)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8002)
@click.option("--python", type=click.Path(), default=None, help="The server's environment, where it is not this one.")
@click.option("--load", multiple=True, help="Explicit mode, with these models at the start; repeat for several.")
def main(
    repositories: tuple[Path, ...], http_port: int, grpc_port: int, metrics_port: int, python: str | None,
    load: tuple[str, ...],
) -> None:  # fmt: skip
    """Serve model repositories on 127.0.0.1 until Ctrl-C: for trying things, not for production."""
    try:
        ports = Ports(http_port, grpc_port, metrics_port)
        server = LocalServer(*repositories, load=load or None, ports=ports, python=python)
        with server:
            click.echo(f"ready: HTTP {server.http}, gRPC {server.grpc}, metrics http://{HOST}:{metrics_port}/metrics")
            code = server.wait()
    except KeyboardInterrupt:
        click.echo(f"ended with exit code {server.exit_code}")
        return
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    raise click.ClickException(f"the server ended by itself with exit code {code}; its log ends:\n{server.log()[-2000:]}")


if __name__ == "__main__":
    main()
