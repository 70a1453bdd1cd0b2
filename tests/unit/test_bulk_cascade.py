"""Bulk jobs of a cascade: Python's images, the stages as part of the job, and what cannot be one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engine import ArgumentError, Bundle, Cascade, CascadeError
from engine.bulk.job import Job, describe
from engine.bulk.maker import Maker, pack, unpack
from engine.bulk.run import generate
from engine.cli.main import cli
from engine.errors import BulkError
from engine.stages import name_next
from tests import toy
from tests.bulk_jobs import MEANS, samples, whole_hash
from tests.samplers import ANY_BACKEND
from tests.toy_family import build_family

LATER = {"steps": 3, "noise_level": 100}
GIVEN = replace(MEANS, inputs={"label": list(range(5))})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """8 x 8 images, and 12 x 16 of a picture."""
    folder = tmp_path_factory.mktemp("stages")
    toy.build_bundle(folder / "low.bundle")
    build_family(folder / "high.bundle", pictures=("photo",), encodes=("state_encoder",))
    name_next(folder / "low.bundle", folder / "high.bundle", steps=4, noise_level=30)
    return [Bundle.open(folder / name) for name in ("low.bundle", "high.bundle")]


def job_of(bundles: list[Bundle], **options: Any) -> Job:
    first, *later = bundles
    inputs = options.pop("inputs", GIVEN.inputs)
    return describe(first, 5, seed=7, shard_size=3, batch=2, steps=2, inputs=inputs, later=later, **options)


def expected(bundles: list[Bundle], given: list[dict[str, Any]] | None) -> np.ndarray:
    with Cascade(bundles, ANY_BACKEND, "f32", 2, max_batch=2) as cascade:
        return cascade.sample(5, seed=7, label=list(range(5)), steps=2, stages=given).images


@pytest.mark.parametrize("given", [None, [LATER]])
def test_samples_are_the_cascades(bundles: list[Bundle], given: list[dict[str, Any]] | None, tmp_path: Path) -> None:
    job = job_of(bundles, stages=given)
    result = generate(job, bundles[0], tmp_path / "out", GIVEN, later=bundles[1:])
    np.testing.assert_array_equal(samples(tmp_path / "out"), expected(bundles, given))
    (stage,) = result.manifest["job"]["stages"]
    assert (stage["noise_level"], stage["setting"]["steps"]) == ((100, 3) if given else (30, 4))
    assert stage["bundle"] == bundles[1].digest
    again = generate(job, bundles[0], tmp_path / "out", GIVEN, later=bundles[1:])
    assert again.shards_made == 0
    other = job_of(bundles, stages=[{"steps": 5}])
    with pytest.raises(BulkError, match=r"job\.stages: found"):
        generate(other, bundles[0], tmp_path / "out", GIVEN, later=bundles[1:])


def test_a_worker_elsewhere_makes_the_same(bundles: list[Bundle], tmp_path: Path) -> None:
    """From packed bundles, as a machine without the folders gets them."""
    job = job_of(bundles)
    packed = []
    for index, bundle in enumerate(bundles):
        (tmp_path / str(index)).mkdir()
        packed.append(unpack(pack(bundle), tmp_path / str(index)))
    makers = [Maker(job, one, GIVEN) for one in (bundles, packed)]
    assert makers[0].make(job.shard(1)) == makers[1].make(job.shard(1))
    assert makers[0].origin == makers[1].origin
    assert makers[0].origin["backend"] == ANY_BACKEND
    for maker in makers:
        maker.close()
    with pytest.raises(BulkError, match="bundles: found 1, expected 2 as in the job"):
        Maker(job, bundles[0], GIVEN)
    with pytest.raises(BulkError, match=r"high\.bundle: found the bundle"):
        Maker(job, bundles[::-1], GIVEN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": [{"noise_level": 1000}]}, r"stage 2: noise_level is 1000"),
        ({"stages": [{"steps": 0}]}, r"stage 2: steps is 0"),
        ({"stages": [{"label": 3}]}, r"stage 2: found label of a bulk job, .* an input is one for all stages"),
        ({"stages": []}, r"stages: found 0, expected 1"),
        ({"inputs": {}}, r"label: found nothing, expected label int64"),
        ({"inputs": {"label": 1, "photo": 2}}, r"a bulk job has no option 'photo'"),
    ],
)
def test_refusals(bundles: list[Bundle], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        job_of(bundles, **options)


def test_stages_that_cannot_be(bundles: list[Bundle], tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="a cascade enlarges"):
        job_of(bundles[::-1])
    latent = Bundle.open(build_family(tmp_path / "latent", encodes=("state_encoder",)))
    with pytest.raises(ArgumentError, match="stage 2: found no t_start, expected one, as it starts from an image"):
        job_of([bundles[0], latent])


def test_a_bundle_alone_has_the_job_that_it_had(bundles: list[Bundle]) -> None:
    assert describe(bundles[0], 5, seed=7).as_dict()["stages"] is None


class TestCommand:
    def run(self, bundle: Bundle, out: Path, *words: str) -> Result:
        common = ["sample", str(bundle.path), "-n", "5", "--seed", "7", "--backend", ANY_BACKEND, "--precision", "f32"]
        return CliRunner().invoke(cli, [*common, "--batch", "2", "--out", str(out), *words])

    def test_shards_of_a_cascade(self, bundles: list[Bundle], tmp_path: Path) -> None:
        np.save(tmp_path / "labels.npy", np.arange(5))
        words = ["--cascade", "--stage", "steps=3,noise_level=100", "--steps", "2"]
        words += ["--input", f"label={tmp_path}/labels.npy"]
        done = self.run(bundles[0], tmp_path / "out", *words, "--shard-size", "3")
        assert done.exit_code == 0, done.output
        np.testing.assert_array_equal(samples(tmp_path / "out"), expected(bundles, [LATER]))
        again = self.run(bundles[0], tmp_path / "out", *words, "--shard-size", "3", "--json")
        assert json.loads(again.stdout)["sha256"] == whole_hash(tmp_path / "out")

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--stage", "steps=3,label=4"], "an input is one for all stages"),
            (["--stage", "steps=3", "--stage", "steps=3"], "found options of 2 stages, expected those of the 1 after"),
            (["--size", "16", "16"], "cascade: found it with --first, --size or a budget"),
        ],
    )
    def test_refusals(self, bundles: list[Bundle], tmp_path: Path, words: list[str], said: str) -> None:
        done = self.run(bundles[0], tmp_path / "out", "--cascade", *words, "--input", "label=1", "--shard-size", "3")
        assert done.exit_code != 0
        assert said in done.output

    def test_a_bundle_that_names_none(self, bundles: list[Bundle], tmp_path: Path) -> None:
        done = self.run(bundles[1], tmp_path / "out", "--cascade", "--input", "label=1", "--shard-size", "3")
        assert "found a cascade of 1 bundles, expected 2 .. 8" in done.output
