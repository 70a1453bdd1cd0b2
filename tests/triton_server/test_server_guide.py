"""docs/serving.md holds: its requests are answered, its probes exist, its commands are accepted."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from engine import Sampler
from engine.cli.main import cli
from engine.triton.local_server import HOST, LocalServer
from tests.triton_server.client import count

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def test_the_python_client_runs(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    names = run_client(blocks("python")[0], "faces", server)
    np.testing.assert_array_equal(names["images"], samplers["faces"].sample(seed=[7, 0, 1, 2], steps=10).images)


def run_client(code: str, model: str, server: LocalServer) -> dict[str, Any]:
    assert '"localhost:8001"' in code
    names: dict[str, Any] = {}
    exec(code.replace("localhost:8001", server.grpc).replace('"avatars"', f'"{model}"'), names)
    count("grpc requests")
    return names


def test_the_client_of_previews_runs(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    frames = run_client(blocks("python")[1], "streams", server)["frames"]
    expected: list[np.ndarray] = []
    samplers["toy"].sample(seed=[7], callback=lambda info: expected.append(info.images()[0]))
    np.testing.assert_array_equal(frames, expected)


def test_the_curl_command_is_answered(server: LocalServer) -> None:
    (command,) = (text for text in blocks("") if text.startswith("curl"))
    program, address, option, body = shlex.split(command)
    assert (program, address, option) == ("curl", "localhost:8000/v2/models/avatars/infer", "-d")
    status, answer = server.post("/v2/models/faces/infer", body.encode())
    count("http requests")
    assert status == 200
    assert json.loads(answer)["outputs"][0]["shape"] == [1, 16, 16, 3]


def test_the_probes_are_answered(server: LocalServer) -> None:
    paths = re.findall(r"path: (\S+),", blocks("yaml")[0])
    assert len(paths) == 3
    for path in paths:
        assert server.get(path)[0] == 200, path


def test_every_metric_is_there(server: LocalServer) -> None:
    _, body = server.get("/metrics", metrics=True)
    names = set(re.findall(r"`((?:nv|diffusevae)_\w+)", GUIDE))
    assert len(names) >= 6
    for name in names:
        assert f"\n{name}{{" in body.decode(), name


def test_commands_are_accepted(bundles: dict[str, Path], tmp_path: Path) -> None:
    lines = [line for text in blocks("") for line in text.splitlines() if line.startswith("diffusevae triton-repo")]
    assert lines
    for line in lines:
        line = line.replace("out/avatars.bundle", str(bundles["toy"])).replace("model_repository", str(tmp_path))
        result = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output


def test_ports_are_the_launcher_s(server: LocalServer) -> None:
    assert server.http.startswith(HOST)
    assert "127.0.0.1:8000, gRPC 8001, metrics 8002" in GUIDE
