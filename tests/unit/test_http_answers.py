"""Requests over HTTP: what Python's Sampler gives, in every kind of answer, and a sentence for what cannot be."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from engine import ArgumentError, Sampler, memory
from engine.bundle.fitted import as_defaults
from engine.bundle.prior import Prior
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_fitted
from engine.errors import HostMemoryError
from engine.http import axes
from engine.http.app import Options, create_app
from engine.http.limits import Limits
from engine.imaging import grid_bytes, png_bytes
from tests import toy
from tests.http_served import EVENTS, JSON, PNG, Gate, Served, edited, eventually, lone, serving
from tests.toy_family import build_family

PICTURE = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
SENT = base64.b64encode(png_bytes(PICTURE)).decode()
MASK = np.zeros((8, 8, 1), np.uint8)
MASK[2:6, 3:7] = 255
HOLE = base64.b64encode(png_bytes(MASK)).decode()
Z = [[0.5, -1.0, 0.25, 2], [0, 1, 2, 3]]  # whole numbers too, which JSON writes without a point
EDITS = {"glasses": 1.0, "beard": -0.5}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(edited(), max_pixels=10_000, max_body=200_000) as found:
        yield found


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with lone(edited()) as found:
        yield found


REQUESTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "seed": ("sample", {"seed": 7}, lambda s: s.sample(seed=7)),
    "several": ("sample", {"n": 3, "seed": 7}, lambda s: s.sample(3, seed=7)),
    "listed": ("sample", {"seed": [2**64 - 1, 0]}, lambda s: s.sample(seed=[2**64 - 1, 0])),
    "setting": (
        "sample",
        {"seed": 1, "steps": 3, "method": "ddpm", "t_start": 300, "temperature": 0.7, "noise_scale": [1, 0.5, 0.2]},
        lambda s: s.sample(seed=1, steps=3, method="ddpm", t_start=300, temperature=0.7, noise_scale=[1, 0.5, 0.2]),
    ),
    "timesteps": ("sample", {"seed": 1, "timesteps": [400, 90]}, lambda s: s.sample(seed=1, timesteps=[400, 90])),
    "no clip": ("sample", {"seed": 1, "clip": False}, lambda s: s.sample(seed=1, clip=False)),
    "z": ("sample", {"seed": 4, "z": Z}, lambda s: s.sample(seed=4, z=np.array(Z, np.float32))),
    "one z": ("sample", {"seed": 4, "n": 2, "z": Z[0]}, lambda s: s.sample(2, seed=4, z=np.array(Z[0], np.float32))),
    "edits": ("sample", {"seed": 4, "edits": EDITS}, lambda s: s.sample(seed=4, edits=EDITS)),
    "edits of each": (
        "sample", {"n": 2, "seed": 4, "edits": {"beard": [1, -0.5]}},
        lambda s: s.sample(2, seed=4, edits={"beard": [1, -0.5]}),
    ),
    "guidance interval": (
        "sample", {"seed": 4, "steps": 5, "guidance": 1.5, "guidance_interval": [200, 800]},
        lambda s: s.sample(seed=4, steps=5, guidance=1.5, guidance_interval=(200, 800)),
    ),
    "null": ("sample", {"seed": 7, "steps": None}, lambda s: s.sample(seed=7)),
    "reconstruct": ("reconstruct", {"images": SENT, "seed": 2}, lambda s: s.reconstruct(PICTURE, seed=2)),
    "refine": ("refine", {"images": [SENT, SENT], "seed": 2}, lambda s: s.refine(np.stack([PICTURE, PICTURE]), seed=2)),
    "interpolate": ("interpolate", {"a": 3, "b": 9, "n": 5}, lambda s: s.interpolate(3, 9, 5)),
    "slerp": (
        "interpolate", {"a": Z[0], "b": 9, "n": 3, "mode": "slerp", "seed": 1, "edits": EDITS},
        lambda s: s.interpolate(np.array(Z[0], np.float32), 9, 3, mode="slerp", seed=1, edits=EDITS),
    ),
    "edit seeds": ("edit", {"what": [3, 4], "edits": EDITS}, lambda s: s.edit([3, 4], EDITS)),
    "edit kept": ("edit", {"what": 3, "edits": EDITS, "preserve": 0.7}, lambda s: s.edit(3, EDITS, preserve=0.7)),
    "edit z": ("edit", {"what": Z, "edits": EDITS, "seed": 1}, lambda s: s.edit(np.array(Z, np.float32), EDITS, seed=1)),
    "inpaint": (
        "inpaint", {"images": [SENT, SENT], "masks": HOLE, "seed": 1, "t_start": 300},
        lambda s: s.inpaint([PICTURE] * 2, MASK, seed=1, t_start=300),
    ),
    "inpaint whole": (
        "inpaint", {"images": SENT, "masks": [HOLE], "seed": 1, "composite": False},
        lambda s: s.inpaint(PICTURE, MASK, seed=1, composite=False),
    ),
    "edit picture": ("edit", {"what": SENT, "edits": EDITS, "seed": 1}, lambda s: s.edit(PICTURE, EDITS, seed=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_the_images_are_those_of_python(name: str, served: Served, sampler: Sampler) -> None:
    verb, body, alone = REQUESTS[name]
    reply = served.ask(verb, body)
    expected = alone(sampler)
    np.testing.assert_array_equal(reply.array, expected.images)
    assert reply.headers["diffusevae-seeds"] == ",".join(map(str, expected.seeds))
    times = [word.partition(";dur=")[0] for word in reply.headers["server-timing"].split(", ")]
    assert times == ["queue", "network", "rest", "total"]


class TestKinds:
    def test_pictures(self, served: Served, sampler: Sampler) -> None:
        images = sampler.sample(3, seed=0).images
        assert served.ask("sample", {"seed": 0}, PNG).data == png_bytes(images[0])
        assert served.ask("sample", {"seed": 0, "n": 3}, "text/html, image/*;q=0.5").data == grid_bytes(images)
        with Image.open(io.BytesIO(served.ask("sample", {"seed": 0}, "image/webp").data)) as picture:
            assert picture.format == "WEBP"
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), images[0])

    def test_json_has_all_of_it(self, served: Served, sampler: Sampler) -> None:
        found, batch = served.ask("sample", {"seed": 5}, JSON, "?outputs=image,recon,z").json, sampler.sample(seed=5)
        assert np.array_equal(np.array(found["outputs"]["z"], np.float32), batch.values["z"])
        assert found["outputs"]["recon"] == [base64.b64encode(png_bytes(batch.start[0])).decode()]
        assert (found["seeds"], found["timesteps"]) == ([5], batch.timesteps.tolist())
        assert (found["setting"]["t_start"], found["timings"]["batch"]) == (450, 1)

    def test_events_show_each_step(self, served: Served) -> None:
        reply = served.ask("sample", {"seed": [5, 6], "steps": 3}, EVENTS)
        events = [part.split("\ndata: ") for part in reply.data.decode().removesuffix("\n\n").split("\n\n")]
        assert [name for name, _ in events] == ["event: step"] * 3 + ["event: result"]
        steps = [json.loads(data) for _, data in events]
        assert [step["step"] for step in steps[:3]] == [0, 1, 2]
        # Without noise after the last step, its prediction is the result.
        assert steps[2]["images"] == steps[3]["outputs"]["image"]

    @pytest.mark.parametrize(
        ("accept", "query", "status", "said"),
        [
            ("text/html", "", 406, "expected one of image/png"),
            (PNG, "?outputs=z", 400, "found z, which is no picture, in image/png"),
            (PNG, "?outputs=image,recon", 400, "outputs: found 2, expected one in image/png"),
            (PNG, "?outputs=rekon", 400, "Did you mean 'recon'?"),
        ],
    )
    def test_what_a_kind_cannot_hold(self, accept: str, query: str, status: int, said: str, served: Served) -> None:
        found, message = served.ask("sample", {"seed": 0}, accept, query).refusal
        assert (found, said in message) == (status, True), message


def bomb(width: int, height: int) -> str:
    """A small file of many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


ICO = base64.b64encode(b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x68\0\0\0\x16\0\0\0" + bytes(200)).decode()
BAD: dict[str, tuple[str, Any, str]] = {
    "no json": ("sample", b"{", "the body is no JSON"),
    "a list": ("sample", b"[1]", "the body is a list; expected a JSON object"),
    "deep": ("sample", b"[" * 100_000, "nested too deeply"),
    "wide": ("sample", b"[" + b"1," * 60_000 + b"1]", "more than 50,032 values"),
    "no text": ("sample", b'{"method": "\xff"}', "no UTF-8"),
    "NaN": ("sample", b'{"eta": NaN}', "NaN, which is no number of JSON"),
    "digits": ("sample", b'{"seed": 1' + b"0" * 5000 + b"}", "a whole number of 5001 digits"),
    "infinite": ("sample", b'{"temperature": 1e999}', "temperature is inf"),
    "a field": ("sample", {"sed": 1}, "sample has no field 'sed'; it has n, seed"),
    "another verb's": ("sample", {"mode": "lerp"}, "sample has no field 'mode'"),
    "a long name": ("sample", {"x" * 50_000: 1}, "names of at most 100 letters"),
    "needed": ("interpolate", {"a": 1}, "interpolate: found no b, expected it in the body"),
    "n": ("sample", {"n": 9}, "this server takes 1 .. 8 images a request"),
    "no seeds": ("sample", {"seed": []}, "n is 0; this server takes"),
    "seeds and n": ("sample", {"seed": [1, 2], "n": 3}, "n says 3, seed says 2"),
    "a seed": ("sample", {"seed": -1}, "seed is -1; expected 0 .. 2**64 - 1"),
    "steps": ("sample", {"steps": 53}, "steps is 53; this server takes 1 .. 50"),
    "a kind": ("sample", {"steps": True}, "steps is True, a bool"),
    "a name": ("sample", {"method": "dim"}, "Did you mean 'ddim'?"),
    "an object": ("sample", {"eta": {}}, "eta is a dict of another kind"),
    "ragged": ("sample", {"z": [[1], [1, 2]]}, "z is no array"),
    "text": ("sample", {"z": ["a"]}, "z holds something else than numbers"),
    "a shape": ("sample", {"z": [1, 2]}, "z has shape [2]; expected float32 [N, 4]"),
    "an interval": ("sample", {"guidance_interval": [1, 2, 3]}, "guidance_interval lists 3 numbers; expected two timesteps"),
    "no codebook": ("sample", {"quantize_denoised": True}, "sample has no field 'quantize_denoised'"),
    "prior": ("sample", {"prior": "bundle"}, "this bundle holds no fitted prior"),
    "an edit": ("sample", {"edits": {"glases": 1}}, "Did you mean 'glasses'?"),
    "three edits": ("sample", {"n": 2, "edits": {"beard": [1, 2, 3]}}, "lists 3 numbers; expected one, or 2"),
    "two seeds": ("edit", {"what": 1, "seed": 2, "edits": {}}, "edit was given seeds, and seed too"),
    "preserve": ("edit", {"what": 1, "edits": {}, "preserve": 2}, "preserve is 2; expected a number in 0 .. 1"),
    "no picture": ("refine", {"images": "aGVsbG8="}, "images[0] cannot be read as an image: found an unknown format"),
    "no base64": ("refine", {"images": "?"}, "images[0] is no base64"),
    "no pictures": ("refine", {"images": []}, "images holds 0; expected 1 .. 8"),
    "half": ("refine", {"images": SENT[:120]}, "images[0] cannot be read as an image"),
    "a bomb": ("refine", {"images": bomb(9000, 9000)}, "images[0]: found a picture of 9000 x 9000, expected at most 10,000"),
    "a huge bomb": ("refine", {"images": bomb(20_000, 20_000)}, "found more pixels than are safe to decode"),
    "an icon": ("refine", {"images": ICO}, "expected one of the formats PNG, JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_a_sentence(name: str, served: Served) -> None:
    verb, body, said = BAD[name]
    status, message = served.ask(verb, body).refusal
    assert (status, said in message) == (400, True), message


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/sample", {"Content_Type": "text/plain"}, 415),
        ("POST", "/v1/sample", {"Content_Type": JSON, "Content_Length": "999999999"}, 413),
        ("POST", "/v1/sample", {"Content_Type": JSON, "Transfer_Encoding": "chunked"}, 413),
        ("GET", "/v1/sample", {}, 405),
        ("GET", "/v1/none", {}, 404),
    ],
)
def test_other_refusals_are_json_too(method: str, path: str, headers: dict[str, str], status: int, served: Served) -> None:
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (300_000, bytes(300_000)) if "Transfer_Encoding" in headers else None
    found, message = served.send(method, path, chunked, **headers).refusal
    assert found == status
    assert "expected" in message


def test_every_example_of_the_openapi_document_works(served: Served) -> None:
    paths = served.send("GET", "/openapi.json").json["paths"]
    verbs = [path for path in paths if "post" in paths[path]]
    assert verbs == ["/v1/sample", "/v1/reconstruct", "/v1/refine", "/v1/edit", "/v1/interpolate", "/v1/inpaint"]
    for path in verbs:
        content = paths[path]["post"]["requestBody"]["content"][JSON]
        assert set(content["example"]) <= set(content["schema"]["properties"])
        assert served.ask(path.removeprefix("/v1/"), content["example"], PNG).data.startswith(b"\x89PNG")


def test_what_the_server_says_of_itself(served: Served) -> None:
    info = served.send("GET", "/v1/info").json
    assert (info["directions"], info["drawn"]["name"], info["limits"]["max_batch"]) == (["glasses", "beard"], "z", 8)
    assert served.send("GET", "/healthz").data == b"alive\n"
    assert served.send("GET", "/readyz").data == b"ready\n"
    assert served.counted("diffusevae_requests_total", verb="sample", outcome="ok") > 0


def test_pages_load_nothing_from_elsewhere(served: Served) -> None:
    for path in ("/", "/docs", "/static/studio.js", "/static/client.js", "/static/page.css", "/static/docs.js"):
        reply = served.send("GET", path)
        assert reply.status == 200
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert b"https://" not in reply.data


def test_a_label_appears_where_a_bundle_has_one(tmp_path: Path) -> None:
    path = build_family(tmp_path / "family.bundle")
    style = np.zeros(5, np.float32)
    with serving(path) as family, lone(path) as alone:
        body = {"label": 4, "style": style.tolist(), "guidance": 0.5, "seed": 3}
        expected = alone.sample(label=4, style=style, guidance=0.5, seed=3).images
        np.testing.assert_array_equal(family.ask("sample", body).array, expected)
        assert "expected values in 0 .. 10" in family.ask("sample", {**body, "label": 11}).refusal[1]
        assert family.ask("sample", {"seed": 3}).refusal[1].startswith("sample: found no label")
        assert set(family.send("GET", "/openapi.json").json["paths"]) >= {"/v1/sample", "/v1/info"}


def test_a_budget_takes_a_fitted_setting(tmp_path: Path) -> None:
    path = toy.build_bundle(tmp_path / "fitted.bundle")
    write_fitted(path, [as_defaults({"timesteps": chain, "t_start": chain[0]}) for chain in ([400, 90], [300])], {})
    with serving(path, max_batch=2) as fitted, lone(path) as alone:
        found = fitted.ask("sample", {"seed": 3, "budget_ms": 1e6}, JSON).json
        assert (found["deadline"]["kept"], found["deadline"]["calls"]) == (True, 2)
        image = base64.b64encode(png_bytes(alone.sample(seed=3, steps=2).images[0])).decode()
        assert found["outputs"]["image"] == [image]
        status, message = fitted.ask("sample", {"seed": 3, "budget_ms": 1e-3}).refusal
        assert (status, "which no fitted setting keeps here" in message) == (503, True)
        assert fitted.counted("diffusevae_budgets_total", outcome="kept") == 1


def test_the_axes_of_a_prior_are_those_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scale = np.tril(rng.standard_normal((2, 3, 3)))
    scale[:, range(3), range(3)] = np.abs(scale[:, range(3), range(3)]) + 0.1
    prior = Prior(*(a.astype(np.float32) for a in (np.array([0.3, 0.7]), 3 * rng.standard_normal((2, 3)), scale)))
    monkeypatch.setattr(axes, "read_prior", lambda _: prior)
    found = axes.principal_axes(Bundle.open(edited()))
    drawn = prior.draw(np.arange(20_000, dtype=np.uint64))
    np.testing.assert_allclose(found.T @ found, np.cov(drawn.T), rtol=0.04, atol=0.05)
    assert np.all(np.diff(np.linalg.norm(found, axis=1)) < 0)


def test_a_bundle_that_encodes_the_state(tmp_path: Path) -> None:
    """Pictures of the encoder's size; reconstructed without options, refined, and noise that walks."""
    path = build_family(tmp_path / "latent.bundle", encodes=["state_encoder"], draws=False)
    picture = np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8)
    sent, inputs = base64.b64encode(png_bytes(picture)).decode(), {"label": 3, "style": [0.5] * 5}
    with serving(path) as served, lone(path) as alone:
        verbs = json.loads(served.send("GET", "/v1/info").data)["verbs"]
        assert list(verbs) == ["sample", "reconstruct", "refine", "interpolate", "inpaint"]
        assert list(verbs["reconstruct"]) == ["images"]
        asked = {"images": [sent] * 2}
        np.testing.assert_array_equal(served.ask("reconstruct", asked).array, alone.reconstruct([picture] * 2).images)
        options = {"seed": 4, "t_start": 400, "steps": 3, **inputs}
        given = {**options, "style": np.float32([0.5] * 5)}
        refined = served.ask("refine", {**asked, **options}).array
        np.testing.assert_array_equal(refined, alone.refine([picture] * 2, **given).images)
        walk = served.ask("interpolate", {"a": 1, "b": 2, "n": 3, **inputs}).array
        np.testing.assert_array_equal(walk, alone.interpolate(1, 2, 3, label=3, style=given["style"]).images)
        for verb in list(verbs)[1:]:
            example = json.loads(served.send("GET", "/openapi.json").data)["paths"][f"/v1/{verb}"]["post"]["requestBody"]
            assert served.ask(verb, example["content"]["application/json"]["example"]).status == 200
        assert "no field 'steps'; it has images" in served.ask("reconstruct", {**asked, "steps": 3}).refusal[1]


def test_a_server_of_larger_pictures(tmp_path: Path) -> None:
    path = build_family(tmp_path / "b", encodes=["state_encoder"])
    bundle = Bundle.open(path).resized((20, 40), 0.5)
    with serving(bundle) as served, lone(path).resized((20, 40), overlap=0.5) as alone:
        found = served.ask("sample", {"seed": 3, "steps": 4, "label": 2, "style": [0.5] * 5}).array
        given = {"label": 2, "style": np.full(5, 0.5, np.float32)}
        np.testing.assert_array_equal(found, alone.sample(seed=3, steps=4, **given).images)
        assert found.shape == (1, 20, 40, 3)


def test_a_size_a_request_within_the_operator_s_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_family(tmp_path / "b", encodes=["state_encoder"], multiple=2, segments=True, draws=False)
    labels = np.random.default_rng(1).integers(0, 4, (20, 40))
    given = {"label": 2, "style": np.full(5, 0.5, np.float32), "seed": 3}
    sent = given | {"style": [0.5] * 5}
    whole = sent | {"segmentation": labels.tolist(), "size": [20, 40]}
    with serving(path, max_size=(21, 40)) as served, lone(path).resized((20, 40)) as alone:
        assert list(served.app.state.service.sampler._sizes._sized) == [(20, 40)], "the largest is tried first"
        expected = alone.sample(**given, segmentation=labels, steps=4).images
        np.testing.assert_array_equal(served.ask("sample", whole | {"steps": 4}).array, expected)
        own = whole | {"segmentation": labels[:12, :16].tolist(), "size": None, "n": 2}
        assert served.ask("sample", own).array.shape == (2, 12, 16, 3)
        picture = np.random.default_rng(3).integers(0, 256, (20, 40, 3), np.uint8)
        shown = base64.b64encode(png_bytes(picture)).decode()
        found = served.ask("refine", whole | {"images": shown, "t_start": 400, "steps": 3}).array
        expected = alone.refine(picture, **given, segmentation=labels, t_start=400, steps=3).images
        np.testing.assert_array_equal(found, expected)
        again = served.ask("reconstruct", {"images": shown, "size": [20, 40]}).array
        np.testing.assert_array_equal(again, alone.reconstruct(picture).images)
        verbs = served.send("GET", "/v1/info").json["verbs"]
        assert [verb for verb in verbs if "size" in verbs[verb]] == ["sample", "reconstruct", "refine", "inpaint"]
        for size, said in (
            ([24, 40], "size is 24 x 40; this server takes at most 21 x 40"),
            ([18, 40], "height of 18, expected a multiple of 4"),
            ([20], "size lists 1 numbers; expected two, [height, width]"),
            ("20x40", "size is '20x40', a str; expected a list of integers"),
            ([20, 36], "segmentation has shape [20, 40]; expected int64 [N, 20, 36]"),
        ):
            status, message = served.ask("sample", whole | {"size": size}).refusal
            assert (status, said in message) == (400, True), message
        monkeypatch.setattr(memory, "available", lambda: 1000)
        status, message = served.ask("sample", whole).refusal
        assert (status, "which take" in message and "GiB that are free" in message) == (503, True), message
    with serving(path) as served:
        assert "sample has no field 'size'" in served.ask("sample", whole).refusal[1]
    with lone(path) as sampler, pytest.raises(ArgumentError, match="height of 0, expected a multiple of 4 from 4"):
        create_app(sampler, Options(Limits(max_size=(3, 40))))
    with lone(edited()) as sampler, pytest.raises(ArgumentError, match="works in 8 x 8 alone"):
        create_app(sampler, Options(Limits(max_size=(16, 16))))


def test_what_has_no_room_together_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(build_family(tmp_path / "b", encodes=["state_encoder"], multiple=2), max_size=(20, 40)) as served:
        sampler, sizes = served.app.state.service.sampler, []
        run = sampler.sample

        def narrow(**options: Any) -> Any:
            sizes.append(len(options["seed"]))
            if sizes[-1] > 1:
                raise HostMemoryError("no room for two")
            return run(**options)

        monkeypatch.setattr(sampler, "sample", narrow)
        gate = Gate(monkeypatch)
        gate.close()
        body = {"label": 2, "style": [0.5] * 5, "size": [20, 40]}
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(served.ask, "sample", {**body, "seed": seed}) for seed in range(3)]
            eventually(lambda: served.worker.waiting + sum(gate.taken) == 3, "three requests")
            eventually(lambda: len(served.worker._waiting) + sum(gate.taken) == 3, "three that were read")
            gate.open()
            found = [one.result().array for one in asked]
        assert max(sizes) > 1, "none ran together"
        assert sizes.count(1) == 3
        for seed, images in enumerate(found):
            alone = run(label=2, style=np.full(5, 0.5, np.float32), seed=seed, size=(20, 40))
            np.testing.assert_array_equal(images, alone.images)


def test_inputs_that_are_pictures_are_sent_as_such(tmp_path: Path) -> None:
    path = build_family(tmp_path / "pictured", encodes=[], pictures=["photo", "mask"])
    rng = np.random.default_rng(3)
    photo, mask = rng.integers(0, 256, (12, 16, 3), np.uint8), 255 * rng.integers(0, 2, (12, 16, 1), np.uint8)
    body = {"seed": 2, "n": 2, "label": 3, "photo": base64.b64encode(png_bytes(photo)).decode()}
    whole = body | {"mask": [base64.b64encode(png_bytes(mask)).decode()]}
    with serving(path) as served, lone(path) as alone:
        expected = alone.sample(2, seed=2, label=3, photo=photo, mask=mask).images
        np.testing.assert_array_equal(served.ask("sample", whole).array, expected)
        filled = {"images": body["photo"], "masks": whole["mask"], "composite": False, "seed": 2, "label": 3}
        expected = alone.inpaint(photo, mask, composite=False, seed=2, label=3).images
        np.testing.assert_array_equal(served.ask("inpaint", filled).array, expected)
        assert served.ask("inpaint", filled | {"composite": True}).array.shape == (1, 12, 16, 3)
        assert "composite is 1; expected true or false" in served.ask("inpaint", filled | {"composite": 1}).refusal[1]
        assert "inpaint has no field 'photo'" in served.ask("inpaint", filled | {"photo": "abcd"}).refusal[1]
        example = json.loads(served.send("GET", "/openapi.json").data)["paths"]["/v1/sample"]["post"]["requestBody"]
        assert served.ask("sample", example["content"]["application/json"]["example"]).status == 200
        example = json.loads(served.send("GET", "/openapi.json").data)["paths"]["/v1/inpaint"]["post"]["requestBody"]
        assert served.ask("inpaint", example["content"]["application/json"]["example"]).status == 200
        assert "found no mask" in served.ask("sample", body).refusal[1]
        assert "mask[0] is no base64" in served.ask("sample", body | {"mask": "?"}).refusal[1]
        assert "mask[0] cannot be read as an image" in served.ask("sample", body | {"mask": "abcd"}).refusal[1]


def test_a_bundle_of_one_picture_is_upscaled(tmp_path: Path) -> None:
    path = build_family(tmp_path / "pictured", encodes=[], pictures=["photo"], level="int64")
    photo = np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8)
    body = {"images": base64.b64encode(png_bytes(photo)).decode(), "seed": 2, "label": 3}
    with serving(path) as served, lone(path) as alone:
        expected = alone.upscale(photo, seed=2, label=3).images
        np.testing.assert_array_equal(served.ask("upscale", body).array, expected)
        noised = alone.upscale(photo, seed=2, label=3, noise_level=90).images
        np.testing.assert_array_equal(served.ask("upscale", body | {"noise_level": 90}).array, noised)
        assert "expected 0 (none) .. 999" in served.ask("upscale", body | {"noise_level": 1000}).refusal[1]
        example = json.loads(served.send("GET", "/openapi.json").data)["paths"]["/v1/upscale"]["post"]["requestBody"]
        assert served.ask("upscale", example["content"]["application/json"]["example"]).status == 200
