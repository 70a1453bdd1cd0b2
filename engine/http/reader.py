"""Bodies of requests as checked samples: JSON whose fields are the keyword arguments of the Sampler's verbs."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from copy import copy
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from engine import checks, resolve
from engine.abilities import picture_shape, upscaled_input
from engine.argument_checks import check_number, check_pair
from engine.bundle.directions import Edits, checked_edits
from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.cascade import Cascade
from engine.deadline import Budget
from engine.errors import ArgumentError, did_you_mean
from engine.http.fields import (
    IMAGES,
    MASKS,
    SIZE,
    STAGES,
    WHOLE,
    Field,
    fields_of,
    fields_of_cascade,
    noised,
    outputs_of,
    pictures_of,
    pictures_of_cascade,
    setting_names,
    stage_fields,
    verbs_of,
)
from engine.http.limits import Limits
from engine.imaging import decode_images
from engine.inpaint import picture_shape as inpainted_shape
from engine.sampler import Sampler
from engine.serving.asks import Ask, Options, Settings, StageSettings
from engine.solver import noise as noises
from engine.text import TEXT, TextEncoder

MAX_NAME = 100
MAX_FIELDS = 64
MAX_DIGITS = 20  # 2**64 has as many; int() of a long text is quadratic
BROUGHT = (IMAGES, MASKS, "what")  # arguments of verbs beside the bundle's inputs
DATA_URL = re.compile(r"data:[^,;]*;base64,")


class Reader:
    """Reads the requests to one Sampler, or Cascade, which has the verb `sample` alone; in any thread."""

    def __init__(self, sampler: Sampler | Cascade, limits: Limits) -> None:
        self.sampler, self.limits = sampler, limits
        self.manifest = sampler.bundle.manifest
        bundles = [one.bundle for one in sampler.samplers] if isinstance(sampler, Cascade) else [sampler.bundle]
        stages = [bundle.manifest for bundle in bundles]
        self.fields: dict[str, dict[str, Field]]
        if len(stages) > 1:
            self.outputs = self.pictures = pictures_of_cascade(len(stages))
            self.fields = {"sample": fields_of_cascade(stages, limits)}
        else:
            self.outputs, self.pictures = outputs_of(self.manifest), pictures_of(self.manifest)
            self.fields = {verb: fields_of(self.manifest, verb, limits) for verb in verbs_of(self.manifest)}
        self.verbs = tuple(self.fields)
        self._options = {verb: setting_names(self.manifest, verb, limits) for verb in self.verbs}
        cure = "have it started with another --max-steps."
        self._settings = Settings(self.manifest, limits.max_steps, cure)
        self._stages = tuple(
            StageReader(StageSettings(*both, index, limits.max_steps, cure), limits)
            for index, both in enumerate(pairwise(stages), 2)
        )
        self._values = limits.values(self.manifest, self.inputs)
        self._text = next((text for text in map(TextEncoder.of, bundles) if text is not None), None)
        if self._text is not None:
            self._text.encode("")  # a missing library is said at the start
        self._settings.settle(())  # refuses limits that the bundle's own setting does not keep
        for stage in self._stages:
            stage.read({})

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What requests have by name: what the bundle declares, or what the stages of a cascade do."""
        return self.sampler.inputs if self._stages else self.manifest.inputs

    def read(self, verb: str, body: bytes, query: Mapping[str, str]) -> Ask:
        """The samples that a request asks for; ArgumentError with the sentence for its client.

        query: outputs (names with commas between them), and fit and background of pictures.
        """
        given = self._parse(body)
        reader = self._at(given[SIZE]) if SIZE in given and SIZE in self.fields[verb] else self
        return reader._read(verb, given, query)

    def _at(self, given: Any) -> Reader:
        """A reader of requests of another size, whose pictures and maps are of that size."""
        most, size = self.limits.max_size, check_pair(SIZE, given, "two, [height, width]")
        if most is None or size[0] > most[0] or size[1] > most[1]:
            there = "its own size alone" if most is None else f"at most {most[0]} x {most[1]}"
            raise ArgumentError(
                f"size is {size[0]} x {size[1]}; this server takes {there}. Ask for less, or have it started with another "
                "--max-size."
            )
        bundle, other = self.sampler.bundle, copy(self)
        other.manifest = bundle.resized(size, bundle.resizing[1]).manifest
        return other

    def _read(self, verb: str, given: dict[str, Any], query: Mapping[str, str]) -> Ask:
        """The samples of a parsed body."""
        fields = self.fields[verb]
        for name in given:
            if name not in fields:
                raise ArgumentError(f"{verb} has no field {name!r}; it has {', '.join(fields)}.{did_you_mean(name, fields)}")
        if self._text is not None and TEXT in given:
            given = self._text.replace(given)
        if missing := [field for field in fields.values() if field.needed and field.name not in given]:
            names = ", ".join(f"{field.name} or {field.instead}" if field.instead else field.name for field in missing)
            raise ArgumentError(f"{verb}: found no {names}, expected it in the body. Send it too.")
        wanted = self._wanted(query.get("outputs"))
        inputs = {
            spec.name: self._input(spec, given[spec.name], query) for spec in self.inputs if spec.name in given
        }
        if IMAGES in fields:
            inputs[IMAGES] = self._images(given[IMAGES], query, shape=picture_of(self.manifest, verb))
        if MASKS in fields:
            _, *size = inputs[IMAGES].shape[:3]
            inputs[MASKS] = self._images(given[MASKS], query, MASKS, (1, *size))
        if "edits" in given:
            given["edits"] = checked_edits(self.manifest.directions, given["edits"])
        if "preserve" in given:
            check_number("preserve", given["preserve"], 0.0, 1.0)
        options, budget = self._settle(verb, given, noised(self.manifest, verb)) if "steps" in fields else ((), None)
        if WHOLE in given:
            if not isinstance(given[WHOLE], bool):
                raise ArgumentError(f"{WHOLE} is {str(given[WHOLE])[:MAX_NAME]}; expected true or false. Correct it.")
            options = (*options, (WHOLE, given[WHOLE]))
        if SIZE in given:
            options = (*options, (SIZE, check_pair(SIZE, given[SIZE], "two, [height, width]")))
        if self._stages:
            options = (*options, (STAGES, self._each_stage(given.get(STAGES))))
        if verb == "edit":
            verb, options, given = self._edit(given, inputs, query)
        if verb == "interpolate":
            seeds, moved = self._path(given)
            inputs |= moved
            options = tuple(option for option in options if option[0] != "prior")  # the path was drawn from it
            verb = "sample"
        else:
            seeds = self._seeds(given, inputs)
        checks.check_free_dimensions(self.inputs, {k: v for k, v in inputs.items() if k not in BROUGHT})
        inputs = {name: _for_all(array, len(seeds)) for name, array in inputs.items()}
        n = len(seeds)
        edits = _each(given.get("edits", {}), n)
        return Ask(seeds, (options,) * n, (budget,) * n if budget else (), inputs, wanted, verb, edits)

    def _each_stage(self, given: Any) -> tuple[Options, ...]:
        """The options of the stages after the first."""
        count = len(self._stages)
        listed = [{}] * count if given is None else given
        if not isinstance(listed, list) or len(listed) != count or not all(isinstance(one, dict) for one in listed):
            raise ArgumentError(
                f"{STAGES} is {str(given)[:MAX_NAME]}; expected a list of {count} objects, the options of "
                "each stage after the first. Correct it."
            )
        return tuple(stage.read(own) for stage, own in zip(self._stages, listed, strict=True))

    def _parse(self, body: bytes) -> dict[str, Any]:
        """The body's object; its size in numbers is looked at first, for parsing cannot be interrupted."""
        if body.count(b",") > self._values:
            raise ArgumentError(f"the body holds more than {self._values:,} values; expected fewer. Send several requests.")
        try:
            found = json.loads(body or b"{}", parse_int=_whole, parse_constant=_no_number)
        except RecursionError as error:
            raise ArgumentError("the body is nested too deeply; expected a JSON object of fields. Correct it.") from error
        except UnicodeDecodeError as error:
            raise ArgumentError("the body is no UTF-8; expected a JSON object. Encode it so.") from error
        except json.JSONDecodeError as error:
            raise ArgumentError(f"the body is no JSON ({error}); expected an object of fields. Correct it.") from error
        if not isinstance(found, dict):
            raise ArgumentError(f"the body is a {type(found).__name__}; expected a JSON object of fields. Correct it.")
        if len(found) > MAX_FIELDS or any(len(name) > MAX_NAME for name in found):
            raise ArgumentError(
                f"the body has {len(found)} fields; expected at most {MAX_FIELDS}, and names of at most {MAX_NAME} letters."
            )
        return {name: value for name, value in found.items() if value is not None}

    def _wanted(self, listed: str | None) -> frozenset[str]:
        names = (listed or "image").split(",")
        for name in names:
            if name not in self.outputs:
                raise ArgumentError(
                    f"outputs: found {name[:MAX_NAME]!r}, expected some of {','.join(self.outputs)}, with commas."
                    f"{did_you_mean(name[:MAX_NAME], self.outputs)}"
                )
        return frozenset(names)

    def _settle(self, verb: str, given: Mapping[str, Any], has_image: bool) -> tuple[Options, Budget | None]:
        """The options, settled; `prior` stands only where something is drawn from it."""
        options = tuple((name, _option(name, given[name])) for name in self._options[verb] if name in given)
        if "prior" in given:
            drawn = self.manifest.drawn is not None and self.manifest.drawn.name not in given
            resolve.choose_prior(self.manifest, given["prior"], draws=drawn)
        return self._settings.settle(options, has_image)

    def _input(self, spec: InputSpec, value: Any, query: Mapping[str, str]) -> npt.NDArray[Any]:
        if spec.picture is not None:
            return checks.input_of(spec, self._images(value, query, spec.name, spec.picture_shape))
        return checks.input_of(spec, _array(spec.name, value, spec.dtype))

    def _edit(
        self, given: dict[str, Any], inputs: dict[str, npt.NDArray[Any]], query: Mapping[str, str]
    ) -> tuple[str, Options, dict[str, Any]]:
        """Adds what is edited to the inputs. Seeds and latents without `preserve` are samples that move, as in Python."""
        what, drawn = given["what"], self.manifest.drawn
        assert drawn is not None, "a bundle with directions has an input that is drawn"
        listed = what if isinstance(what, list) else [what]
        keep = "preserve" in given
        names = (*self._options["edit"], "preserve")
        options = {name: _option(name, given[name]) for name in names if name in given}
        if all(isinstance(one, str) for one in listed):
            inputs["what"] = self._images(what, query)
        elif all(isinstance(one, int) for one in listed):
            if "seed" in given:
                raise ArgumentError("edit was given seeds, and seed too; expected one of the two. Leave seed out.")
            given = {**given, "seed": what}
            inputs |= {"what": self._seeds(given, {})} if keep else {}
        else:
            inputs["what" if keep else drawn.name] = self._input(drawn, what, query)
            options.pop("prior", None)
        if "what" in inputs:
            return "edit", tuple(options.items()), given
        return "sample", self._settings.settle(tuple(options.items()))[0], given

    def _images(
        self, value: Any, query: Mapping[str, str], name: str = IMAGES, shape: tuple[int, int, int] | None = None
    ) -> npt.NDArray[np.uint8]:
        files: list[Any] = value if isinstance(value, list) else [value]
        if not 1 <= len(files) <= self.limits.max_batch:
            raise ArgumentError(f"{name} holds {len(files)}; expected 1 .. {self.limits.max_batch}. Send several requests.")
        reading = {option: query[option][:MAX_NAME] for option in ("fit", "background") if option in query}
        decoded = [_from_base64(f"{name}[{i}]", file) for i, file in enumerate(files)]
        shape = picture_shape(self.manifest) if shape is None else shape
        return decode_images(decoded, shape, max_pixels=self.limits.max_pixels, what=name, **reading).images

    def _seeds(self, given: Mapping[str, Any], inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint64]:
        seed, n = given.get("seed"), checks.count_of(given.get("n"))
        counts: dict[str, int | None] = {"n": n, "seed": len(seed) if isinstance(seed, list) else None}
        counts |= {name: len(array) for name, array in inputs.items()}
        agreed = checks.agree_on_count(counts, shared=[name for name in inputs if name not in (IMAGES, "what")])
        count = 1 if agreed is None else agreed
        self._check_count(count)
        return noises.resolve_seeds(seed, None if isinstance(seed, list) else count)

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.limits.max_batch:
            raise ArgumentError(
                f"n is {count}; this server takes 1 .. {self.limits.max_batch} images a request. Send several, or have it "
                "started with another --max-batch."
            )

    def _path(self, given: Mapping[str, Any]) -> tuple[npt.NDArray[np.uint64], dict[str, npt.NDArray[Any]]]:
        """Seeds and the drawn input of an interpolation."""
        n = checks.count_of(given.get("n", 8)) or 1
        self._check_count(n)
        ends = [self._end(name, given[name]) for name in ("a", "b")]
        how = {name: given[name] for name in ("mode", "seed", "prior") if name in given}
        if not isinstance(how.get("mode", "lerp"), str) or isinstance(how.get("seed"), list):
            raise ArgumentError("interpolate takes one mode, 'lerp' or 'slerp', and one seed for all images. Correct them.")
        assert isinstance(self.sampler, Sampler), "a cascade has no such verb"
        path = self.sampler.path(ends[0], ends[1], n, **how)
        return path.pop("seed"), path

    def _end(self, name: str, value: Any) -> Any:
        return _array(name, value, "float32") if isinstance(value, list) else value


class StageReader:
    """Reads the options of a cascade's stage after the first."""

    def __init__(self, settings: StageSettings, limits: Limits) -> None:
        self._settings, self._fields = settings, stage_fields(settings.manifest, limits)

    def read(self, given: Mapping[str, Any]) -> Options:
        """Those of a request; ArgumentError says which stage it is of."""
        for name in given:
            if name not in self._fields:
                raise ArgumentError(
                    f"stage {self._settings.stage} has no field {name[:MAX_NAME]!r}; it has {', '.join(self._fields)}."
                    f"{did_you_mean(name[:MAX_NAME], self._fields)}"
                )
        return self._settings.settle({name: _option(name, value) for name, value in given.items() if value is not None})


def picture_of(manifest: Manifest, verb: str) -> tuple[int, int, int]:
    """[C, H, W] of the images that a verb takes."""
    if verb == "upscale":
        return upscaled_input(manifest, verb).picture_shape
    return inpainted_shape(manifest) if verb == "inpaint" else picture_shape(manifest)


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS + 1:
        raise ArgumentError(f"the body holds a whole number of {len(text)} digits; expected numbers of at most 64 bits.")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ArgumentError(f"the body holds {text}, which is no number of JSON; expected finite numbers. Correct it.")


def _option(name: str, value: Any) -> Any:
    """A setting's value as something that can be compared and remembered: lists become tuples."""
    if isinstance(value, list) and all(isinstance(one, (int, float)) for one in value):
        return tuple(value)
    if isinstance(value, (list, dict)) or (isinstance(value, str) and len(value) > MAX_NAME):
        raise ArgumentError(f"{name} is a {type(value).__name__} of another kind; expected a number, a name, or numbers.")
    return value


def _array(name: str, value: Any, dtype: str) -> npt.NDArray[Any]:
    """Nested lists of numbers as an array; JSON does not tell 1 from 1.0."""
    try:
        found = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise ArgumentError(f"{name} is no array: {error}. Expected lists of equal lengths.") from error
    if found.dtype.kind not in "fiu":
        raise ArgumentError(f"{name} holds something else than numbers; expected {dtype}. Correct it.")
    return found.astype(np.float64) if dtype == "float32" else found


def _from_base64(name: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise ArgumentError(f"{name} is a {type(text).__name__}; expected a picture file as base64. Encode it so.")
    head = DATA_URL.match(text[: 2 * MAX_NAME])
    try:
        return base64.b64decode(text[head.end() :] if head else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArgumentError(f"{name} is no base64 ({error}); expected a picture file as base64. Encode it so.") from error


def _each(edits: Edits, n: int) -> tuple[Edits, ...]:
    """The strengths of each sample; none where nothing is edited."""
    for name, strength in edits.items():
        if isinstance(strength, tuple) and len(strength) != n:
            raise ArgumentError(f"the strength of {name} lists {len(strength)} numbers; expected one, or {n}, one a sample.")
    one = [{name: s[i] if isinstance(s, tuple) else s for name, s in edits.items()} for i in range(n)]
    return tuple(one) if edits else ()


def _for_all(array: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """One sample repeated for all."""
    shared: npt.NDArray[Any] = array if len(array) == count else np.repeat(array, count, axis=0)
    return shared
