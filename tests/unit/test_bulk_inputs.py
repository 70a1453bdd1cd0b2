"""Bulk jobs of a bundle whose label must be given (tests/toy_family.py): inputs are part of the job, and sliced by shard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Bundle, Sampler
from engine.bulk.job import Job, describe
from engine.bulk.run import generate
from engine.errors import BulkError
from tests.bulk_jobs import MEANS, samples
from tests.toy_family import build_family


class TestInputs:
    @pytest.fixture
    def family(self, tmp_path: Path) -> Bundle:
        return Bundle.open(build_family(tmp_path / "family", quantizes=True))

    def job(self, family: Bundle, setting: dict[str, Any] | None = None, **inputs: Any) -> Job:
        return describe(family, 7, seed=3, shard_size=3, batch=2, steps=2, inputs=inputs, **(setting or {}))

    @pytest.mark.parametrize(("label", "setting"), [(4, {}), (list(range(7)), {"quantize_denoised": True, "guidance": 1.0})])
    def test_samples_are_the_samplers(self, family: Bundle, label: Any, setting: dict[str, Any], tmp_path: Path) -> None:
        means = replace(MEANS, inputs={"label": label})
        generate(self.job(family, setting, label=label), family, tmp_path / "out", means)
        with Sampler(family, MEANS.backend, MEANS.precision, 2, max_batch=2) as sampler:
            labels, seeds = np.broadcast_to(label, 7), range(3, 10)
            parts, setting = [slice(i, i + 3) for i in (0, 3, 6)], {"steps": 2, **setting}
            expected = [sampler.sample(seed=seeds[part], label=labels[part], **setting).images for part in parts]
        np.testing.assert_array_equal(samples(tmp_path / "out"), np.concatenate(expected))

    def test_the_job_says_what_was_given(self, family: Bundle) -> None:
        style = np.zeros((1, 5), np.float32)
        assert self.job(family, label=4).inputs == {"label": 4}
        assert self.job(family, label=[4]).inputs == {"label": 4}
        inputs = self.job(family, label=range(7), style=style).inputs
        assert list(inputs) == ["label", "style"]
        assert str(inputs["label"]).startswith("int64 [7] SHA-256 ")
        assert inputs["style"] == self.job(family, label=1, style=style.astype(np.float64)[0]).inputs["style"]
        assert inputs["style"] != self.job(family, label=1, style=style + 1).inputs["style"]
        assert self.job(family, label=1).setting.prior == "standard"
        assert self.job(family, label=1, style=style).setting.prior is None, "nothing is drawn"

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, r"label: found nothing, expected label int64\[batch\]; say it with --input label=VALUE"),
            ({"label": 11}, r"label runs from 11 to 11"),
            ({"label": [1, 2]}, r"label: found 2 samples, expected one, which all share, or 7, one an image"),
            ({"label": 1, "z": 2}, r"a bulk job has no option 'z', and this bundle has no such input"),
        ],
    )
    def test_refusals(self, family: Bundle, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            self.job(family, **inputs)

    def test_others_than_the_jobs(self, family: Bundle, tmp_path: Path) -> None:
        job = self.job(family, label=4)
        with pytest.raises(BulkError, match=r"inputs: found \{'label': 5\}, expected \{'label': 4\} as in the job"):
            generate(job, family, tmp_path / "out", replace(MEANS, inputs={"label": 5}))
        generate(job, family, tmp_path / "out", replace(MEANS, inputs={"label": 4}))
        with pytest.raises(BulkError, match=r"job\.inputs\.label: found 4 in the folder's job, expected 5 as in this run"):
            generate(self.job(family, label=5), family, tmp_path / "out", replace(MEANS, inputs={"label": 5}))
