"""A cascade over HTTP: Python's bits, the fields of its stages, and what is refused before any of them runs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from click.testing import CliRunner

from engine import Cascade
from engine.cli.main import cli
from engine.imaging import png_bytes
from engine.stages import name_next
from tests import toy
from tests.http_served import EVENTS, JSON, PNG, Served, serving
from tests.samplers import ANY_BACKEND
from tests.toy_family import build_family


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 8 x 8 images that names one of 12 x 16, which is told the noise level."""
    folder = tmp_path_factory.mktemp("cascade")
    toy.build_bundle(folder / "low.bundle")
    build_family(folder / "high.bundle", pictures=("photo",), encodes=("state_encoder",), level="int64")
    name_next(folder / "low.bundle", folder / "high.bundle", steps=4, noise_level=30)
    return folder / "low.bundle"


@pytest.fixture(scope="module")
def served(first: Path) -> Iterator[Served]:
    with serving(first, cascade=True) as found:
        yield found


@pytest.fixture(scope="module")
def cascade(first: Path) -> Iterator[Cascade]:
    with Cascade(first, ANY_BACKEND, "f32", 1) as found:
        yield found


LATER = {"steps": 3, "noise_level": 100, "guidance": 0.5, "eta": [0.5, 0.4, 0.3]}
REQUESTS: dict[str, dict[str, Any]] = {
    "one": {"seed": 7, "label": 3},
    "several": {"n": 3, "seed": 7, "label": [3, 4, 5], "steps": 5, "eta": 1.0},
    "a stage": {"seed": [7, 2**64 - 1], "label": 3, "stages": [LATER]},
    "z": {"seed": 4, "label": 1, "z": [0.5, -1.0, 0.25, 2.0], "stages": [{}]},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_images_are_those_of_python(name: str, served: Served, cascade: Cascade) -> None:
    body = REQUESTS[name]
    given = body | ({"z": np.float32(body["z"])} if "z" in body else {})
    expected = cascade.sample(**given)
    reply = served.ask("sample", body)
    np.testing.assert_array_equal(reply.array, expected.images)
    assert reply.headers["diffusevae-seeds"] == ",".join(map(str, expected.seeds))
    both = served.ask("sample", body, JSON, "?outputs=image,image_1").json["outputs"]
    for key, images in (("image", expected.images), ("image_1", expected.stages[0].images)):
        assert both[key] == [base64.b64encode(png_bytes(image)).decode() for image in images]


def test_events_say_which_stage_they_are_of(served: Served, cascade: Cascade) -> None:
    reply = served.ask("sample", {"seed": 5, "label": 1, "steps": 2, "stages": [{"steps": 3}]}, EVENTS)
    events = [part.split("\ndata: ") for part in reply.data.decode().removesuffix("\n\n").split("\n\n")]
    steps = [json.loads(data) for name, data in events if name == "event: step"]
    assert [(step["stage"], step["step"]) for step in steps] == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert steps[-1]["images"] == json.loads(events[-1][1])["outputs"]["image"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"seed": 1}, "sample: found no label"),
        ({"label": 11}, "label runs from 11 to 11"),
        ({"label": 1, "photo": "x"}, "sample has no field 'photo'"),
        ({"label": 1, "budget_ms": 5}, "sample has no field 'budget_ms'"),
        ({"label": 1, "size": [8, 8]}, "sample has no field 'size'"),
        ({"label": 1, "stages": [{}, {}]}, "expected a list of 1 objects, the options of each stage after the first"),
        ({"label": 1, "stages": {}}, "stages is {}; expected a list of 1 objects"),
        ({"label": 1, "stages": [{"noise_level": 1000}]}, "stage 2: noise_level is 1000; expected 0 (none) .. 999"),
        ({"label": 1, "stages": [{"steps": 53}]}, "stage 2: steps is 53; this server takes 1 .. 50"),
        ({"label": 1, "stages": [{"stepps": 5}]}, "stage 2 has no field 'stepps'"),
        ({"label": 1, "steps": 53}, "steps is 53; this server takes 1 .. 50"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(body: dict[str, Any], said: str, served: Served) -> None:
    status, message = served.ask("sample", body).refusal
    assert (status, said in message) == (400, True), message


def test_what_the_server_says_of_itself(served: Served) -> None:
    info = served.send("GET", "/v1/info").json
    assert list(info["verbs"]) == ["sample"]
    assert (info["image"]["height"], len(info["stages"]), info["outputs"]) == (12, 2, ["image", "image_1"])
    assert {"noise_level", "steps", "guidance"} < set(info["verbs"]["sample"]["stages"]["prefixItems"][0]["properties"])
    post = served.send("GET", "/openapi.json").json["paths"]["/v1/sample"]["post"]
    assert served.ask("sample", post["requestBody"]["content"][JSON]["example"], PNG).data.startswith(b"\x89PNG")
    assert served.send("POST", "/v1/refine", b"{}", Content_Type=JSON).status == 404


def test_a_server_that_cannot_be(first: Path, tmp_path: Path) -> None:
    for words, said in (
        ([str(first.with_name("high.bundle")), "--cascade"], "found a cascade of 1 bundles, expected 2 .. 8"),
        ([str(first), "--cascade", "--max-size", "16", "16"], "cascade: found it with another size"),
        ([str(first), "--cascade", "--max-steps", "3"], "max_steps: found 3, expected"),
    ):
        done = CliRunner().invoke(cli, ["serve", *words, "--port", "0"])
        assert done.exit_code == 1
        assert said in done.output
    toy.build_bundle(tmp_path / "low.bundle")
    high = build_family(tmp_path / "high.bundle", encodes=("state_encoder",))
    name_next(tmp_path / "low.bundle", high, steps=4)
    done = CliRunner().invoke(cli, ["serve", str(tmp_path / "low.bundle"), "--cascade"])
    assert "records no t_start for high.bundle" in done.output
