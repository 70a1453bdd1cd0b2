"""The fields of a manifest that name the next bundle of a cascade and the input that hears of its noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import Bundle
from tests.manifests import ABSENT, NEXT, check_refused, edit
from tests.toy_family import build_family

NAMES = ("../b.bundle", "/b", "a/b", "", ".", "..", "b\0c", "~", "b\\c", "\N{FULLWIDTH FULL STOP}", "x" * 129, 3, None)
REFUSED: list[tuple[str, object, str]] = [
    ("next", [], "next: found [] (list), expected an object"),
    ("next", {"bundle": "b"}, "next.source: missing"),
    ("next.bundles", "c", "next.bundles: found an unknown field"),
    *(("next.bundle", name, "expected the name of a folder beside this bundle") for name in NAMES),
    ("next.source", "0" * 63, "next.source: found"),
    ("next.steps", 0, "next.steps: found 0 (int), expected an integer in 1..1000000, or null"),
    ("next.t_start", -1, "next.t_start: found -1"),
    ("next.noise_level", 1.0, "next.noise_level: found 1.0 (float), expected an integer in 0..999999, or null"),
    ("next.guidance", "2", "next.guidance: found '2' (str), expected a number in -100..100"),
    ("augmentation", "level", "augmentation: found 'level' (str), expected an object"),
    ("augmentation.input", "photo", "augmentation.input: found 'photo' (str), expected an input of one number a sample"),
    ("augmentation.input", "none", "augmentation.input: found 'none' (str), expected an input of one number a sample"),
    ("augmentation.level", 1, "augmentation.level: found an unknown field"),
]


def build_cases(path: Path, backends: tuple[str, ...] = ("onnxruntime", "openvino")) -> Path:
    """A bundle with both fields."""
    build_family(path, backends, pictures=("photo",), encodes=("state_encoder",), level="int64")
    edit(path, "next", NEXT)
    return path


@pytest.mark.parametrize(("field", "value", "message"), REFUSED)
def test_one_wrong_field_is_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    check_refused(build_cases(tmp_path / "a.bundle"), field, value, message)


def test_a_bundle_without_the_fields_is_one_with_nulls(tmp_path: Path) -> None:
    path = build_cases(tmp_path / "a.bundle")
    assert Bundle.open(path).manifest.next is not None
    for value in (None, ABSENT):
        for field in ("next", "augmentation"):
            edit(path, field, value)
        manifest = Bundle.open(path).manifest
        assert manifest.next is None
        assert manifest.augmentation is None
