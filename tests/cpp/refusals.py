"""What Python and C++ say of a folder. Each opens what backend native samples with; their answers, side by side."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from engine import backends
from engine.backends.native.graph import NAME
from engine.bundle.fields import parse_json
from engine.bundle.manifest import Manifest
from engine.bundle.prior import read_prior
from engine.bundle.reader import Bundle
from engine.bundle.vocabulary import read_vocabulary
from engine.errors import BundleError, EngineError
from tests import toy
from tests.cpp import capi
from tests.cpp.capi import Failed, Library, open_c

PRECISION = "bf16"
MOST_TEXT = 2000
NO_ENGINES = ": found the engines "  # how a toy bundle is refused whose manifest and files are sound


@dataclass(frozen=True)
class Answer:
    """status: of diffusevae.h, and what a Python exception of the same meaning has; text: of the refusal."""

    status: int
    text: str = ""

    @property
    def where(self) -> str:
        """The file, and the field in it, that a refusal names."""
        found = re.match(r"(.*?): (found|missing)", self.text) or re.match(r"(.*?), expected", self.text)
        return "" if found is None else found[1]


def ask_python(path: Path) -> Answer:
    """What the Python engine says."""
    try:
        bundle = Bundle.open(path)
        bundle.manifest.schedule.schedule()
        read_prior(bundle)
        read_vocabulary(bundle)
        backends.choose(bundle, NAME, PRECISION)
        backend = backends.open_backend(bundle, NAME, PRECISION, threads=1)
        try:
            for name in loaded_graphs(bundle.manifest):
                backend.graph(name)
        finally:
            backend.close()
    except BundleError as error:
        return Answer(capi.BUNDLE, str(error))
    except EngineError as error:
        return Answer(capi.BACKEND, str(error))
    return Answer(capi.OK)


def loaded_graphs(manifest: Manifest) -> tuple[str, ...]:
    """The graphs that every sample needs, in the order in which they are loaded."""
    spec = manifest.pipeline
    return tuple(dict.fromkeys(call.graph for call in (*spec.before, spec.rows, spec.step, *spec.after)))


def ask_cpp(library: Library, path: Path) -> Answer:
    """What the C++ library says; a refusal must be fit for a terminal, and never a defect of the library."""
    try:
        open_c(library, path, precision=PRECISION, threads=1).free()
        return Answer(capi.OK)
    except Failed as error:
        answer = Answer(error.status, library.c.diffusevae_error().decode())
    assert answer.status != capi.INTERNAL, answer
    assert answer.text.isprintable(), answer
    assert 20 < len(answer.text) < MOST_TEXT
    return answer


def ask_both(library: Library, path: Path) -> tuple[Answer, Answer]:
    """(Python's answer, C++'s): both open the folder or both refuse it, C++ as a bundle where Python does so."""
    ours, theirs = ask_python(path), ask_cpp(library, path)
    shown = f"Python: {ours}\nC++: {theirs}"
    if ours.status == capi.OK:
        assert theirs.status == capi.OK or not strict(path), shown
    else:
        assert theirs.status != capi.OK, shown
        assert (theirs.status == capi.BUNDLE) == (ours.status == capi.BUNDLE), shown
    return ours, theirs


def strict(path: Path) -> bool:
    """Whether every JSON text in a bundle is of the kind that C++ takes everywhere, Python where it reads it itself.

    Half of a surrogate pair is no character: Python's parser keeps it, and the engine refuses it in every text that it
    reads, but not inside objects that belong to others. And the prior's header is read by the safetensors library
    in Python, which lets a key come twice and knows no limits.
    """
    texts = [file.read_bytes() for file in path.glob("*.json")]
    for file in path.glob("*.safetensors"):
        data = file.read_bytes()
        texts.append(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for text in texts:
        try:
            json.dumps(parse_json(text, ""), ensure_ascii=False).encode()
        except (BundleError, UnicodeEncodeError):
            return False
    return True


def build_toy(path: Path, formulation: int | None = 1, *, z_conditioned: bool = False) -> Path:
    """A bundle that lists backend native and has no engine of it."""
    return toy.build_bundle(path, formulation, z_conditioned=z_conditioned, backends=["onnxruntime", "native"])


def check_same_refusal(library: Library, path: Path) -> str:
    """Both refuse the folder, naming the same file and field, and a field in the same words but for the cure, which may be a
    command of Python; what C++ says. Of a file that cannot be parsed each has its own parser's words."""
    ours, theirs = ask_both(library, path)
    assert theirs.status == capi.BUNDLE, f"Python: {ours}"
    assert theirs.where == ours.where != "", f"Python: {ours.text}\nC++: {theirs.text}"
    if "manifest.json, " in ours.where:
        assert theirs.text.rpartition("; ")[0] == ours.text.rpartition("; ")[0]
    assert NO_ENGINES not in theirs.text
    assert "; " in theirs.text, "what to do"
    return theirs.text
