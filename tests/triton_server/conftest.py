"""The server that the integration tests talk to: the real one, from the wheel; what is missing for it is named.

The folder is not called triton: pytest puts its parent on sys.path, and torch would take it for the package of that name.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Bundle, Sampler
from engine.backends.native.backend import Native
from engine.bundle.directions import Directions
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_directions, write_fitted
from engine.stages import name_next
from engine.triton.local_server import LocalServer
from engine.triton.repository import write_repository
from engine.triton.server_files import ServerError, find_installation
from tests import guided_toy, toy, toy_family
from tests.samplers import Z_DIM
from tests.triton_server.served import SERVED, SHARED

REQUIRED = os.environ.get("DIFFUSEVAE_TRITON") == "required"  # `make test-triton`: what would be skipped fails instead


def missing_server() -> str | None:
    """What this machine lacks for a server, in one sentence, or None."""
    try:
        find_installation()
    except ServerError as error:
        return str(error)
    ready, reason = Native.available()
    return None if ready else f"backend native: {reason}"


NO_CLIENT = None
absent = [name for name in ("tritonclient", "grpc", "geventhttpclient") if importlib.util.find_spec(name) is None]
if absent:
    NO_CLIENT = f"found no package {absent[0]}, expected it; pip install 'tritonclient[http,grpc]'"
    collect_ignore_glob = ["test_*.py"]  # they could not even be imported
LACKING = NO_CLIENT or missing_server()
if LACKING and REQUIRED:
    raise pytest.UsageError(f"tests/triton_server: {LACKING}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist hands on what it asked of its servers."""
    if not NO_CLIENT and hasattr(session.config, "workeroutput"):
        from tests.triton_server.client import counted

        session.config.workeroutput["asked"] = counted()


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_testnodedown(node: Any) -> None:
    """What a worker asked is counted here too; one that crashed has said nothing."""
    for name, number in getattr(node, "workeroutput", {}).get("asked", {}).items():
        from tests.triton_server.client import count

        count(name, number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was asked of the servers in this run."""
    terminalreporter.section("tests/triton_server: requests to tritonserver")
    if NO_CLIENT:
        terminalreporter.write_line(f"left out: {NO_CLIENT}")
        return
    from tests.triton_server.client import counted

    for name, number in counted().items():
        terminalreporter.write_line(f"{number:7d} {name}")


@pytest.fixture(scope="session")
def installed() -> None:
    """Skip what needs a server where there is none."""
    if LACKING:
        pytest.skip(LACKING)


@pytest.fixture(scope="session")
def bundles(native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles behind the models: a tiny real network, toys with and without inputs, another family, two stages,
    two guides, one of NaN."""
    folder = tmp_path_factory.mktemp("bundles")
    ort = ("onnxruntime",)
    fitted = toy.build_bundle(folder / "toy.bundle", backends=ort)
    write_fitted(fitted, [as_defaults({"timesteps": steps}) for steps in ([900, 700, 300, 100, 20], [400, 150, 25])], {})
    vectors = np.random.default_rng(5).standard_normal((2, Z_DIM)).astype(np.float32)
    write_directions(Bundle.open(fitted), Directions(("glasses", "beard"), vectors), {})
    high = toy_family.build_family(
        folder / "high.bundle", ort, pictures=("photo",), encodes=("state_encoder",), level="int64"
    )
    low = toy.build_bundle(folder / "low.bundle", backends=ort)
    name_next(low, high, steps=4, noise_level=30)
    return {
        "cascade": low,
        "faces": native_bundle("form1", "bf16"),
        "toy": fitted,
        "plain": toy.build_bundle(folder / "plain.bundle", formulation=None, backends=ort),
        "latents": toy_family.build_family(folder / "latents.bundle", backends=ort),
        "guided": guided_toy.build(folder / "guided.bundle", 2, ort),
        "nan": toy.build_bundle(folder / "nan.bundle", backends=ort, nan=True),
    }


@pytest.fixture(scope="session")
def repository(installed: None, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with every model; in explicit mode only those that a test asks for are loaded."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    for name, serving in SERVED.items():
        write_repository(bundles[SHARED.get(name, name)], folder, serving)
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[LocalServer]:
    """The server that most tests share, with every model that can run."""
    names = ("faces", "toy", "plain", "latents", "narrow", "streams", "cascade", "guided")
    with LocalServer(repository, load=names) as running:
        yield running


@pytest.fixture(scope="session")
def samplers(bundles: dict[str, Path]) -> Iterator[dict[str, Sampler]]:
    """What the answers must equal: a Sampler of each served bundle in this process, set as the server's is."""
    made = {
        name: Sampler(bundles[name], SERVED[name].backend or "auto", SERVED[name].precision, threads=1)
        for name in ("faces", "toy", "plain", "latents", "guided")
    }
    yield made
    for sampler in made.values():
        sampler.close()
