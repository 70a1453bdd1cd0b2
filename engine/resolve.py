"""From what a caller gave to a checked `Request`: the setting merged, inputs given or drawn, N settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import checks
from engine.argument_checks import check_name
from engine.bundle.directions import checked_edits
from engine.bundle.guides import ENTROPY
from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.bundle.prior import resolve_prior
from engine.bundle.training import Defaults
from engine.commands import command
from engine.device.arrays import is_on_device
from engine.errors import ArgumentError, did_you_mean
from engine.pipeline import Arrays, Pipeline
from engine.request import Array, Request
from engine.result import F32, Setting
from engine.solver import noise as noises
from engine.solver.guides import BY_ENTROPY
from engine.solver.levels import FIXED_VARIANCES, LEARNED_RANGE
from engine.solver.regulariser import AFTER, BEFORE, OFF
from engine.solver.table import StepTable
from engine.text import replace_text

SETTING_OPTIONS = tuple(checks.SETTING)
REQUEST_OPTIONS = (*SETTING_OPTIONS, "setting", "clip", "seed", "x_T", "noise", "prior", "edits")
SETTINGS = ("fitted", "plain")
KEPT_CHAINS = 16  # of the last settings: enough for a server's few
OPTIONS = (*REQUEST_OPTIONS, "callback", "stop", "progress")


def resolve_request(
    pipeline: Pipeline,
    options: Mapping[str, Any],
    where: str,
    *,
    n: int | None = None,
    start: F32 | None = None,
    given: Arrays | None = None,
    noised_image: bool = False,
) -> Request:
    """Check everything that a caller gave and settle N.

    options: those of OPTIONS, and inputs by name. start: an image to start from. given: values that stand in for the
    pipeline's own. noised_image: without t_start, start from the image noised to T - 1.
    """
    manifest, given = pipeline.manifest, given or {}
    options = taken(pipeline, options, OPTIONS, where)
    inputs = {
        spec.name: _given_input(pipeline, spec, options[spec.name])
        for spec in manifest.inputs
        if options.get(spec.name) is not None
    }
    # What guides alone read is not needed where none runs.
    guided = bool(manifest.pipeline.guides) and setting_of(manifest, options, has_image=start is not None).guide_scale != 0.0
    missing = [spec for spec in pipeline.needed(given, guided=guided) if spec.name not in inputs]
    if lacking := [spec for spec in missing if spec.draw is None]:
        takes = ", ".join(str(spec) for spec in manifest.inputs)
        raise ArgumentError(
            f"{where}: found no {', '.join(spec.name for spec in lacking)}, expected it: this bundle takes {takes}. Pass it "
            "by name."
        )
    draws = manifest.drawn in missing
    prior = choose_prior(manifest, options.get("prior"), draws=draws)
    setting, table = chain_of(pipeline, options, prior, has_image=start is not None, noised_image=noised_image)
    x_T, noise, seed = options.get("x_T"), options.get("noise"), options.get("seed")
    x_T = None if x_T is None else _x_T(pipeline, x_T)
    noise = None if noise is None else checks.step_noise_of(noise, manifest.pipeline.state.shape)
    listed = noises.listed_seeds(seed)
    counts = {
        "n": checks.count_of(n),
        "seed": None if listed is None else len(listed),
        "images": None if start is None else len(start),
        "x_T": None if x_T is None else len(x_T),
        "noise": None if noise is None else noise.shape[1],
        **{name: len(array) for name, array in inputs.items()},
    }
    count = checks.agree_on_count(counts, shared=("x_T", "noise", *inputs)) or 1
    seeds = noises.seeds_for(seed, listed, count)
    inputs = {name: _for_all(array, count) for name, array in inputs.items()}
    if draws:
        inputs |= pipeline.draw(seeds, prior)
    if manifest.fresh in missing:
        inputs |= pipeline.draw_fresh(seeds, len(table))
    if options.get("edits") is not None:
        inputs = _edited(pipeline, inputs, options["edits"])
    if pipeline.free_inputs:
        checks.check_free_dimensions(pipeline.free_inputs, inputs)
        checks.check_each_step(pipeline.free_inputs, inputs, len(table))
    watch, stop = options.get("callback"), options.get("stop")
    request = Request(table, setting, seeds, inputs, given, x_T=x_T, noise=noise, start=start, watch=watch, stop=stop)
    if setting.quantize_denoised:
        request.check_on_host("x0 is quantised")
    if pipeline.bundle.tiling is not None:
        request.check_on_host("tiles are cut")
    if table.takes_guide:
        _check_guides(pipeline, request)
    if setting.regularise != OFF:
        _check_regulariser(pipeline, request)
    return request


def _check_guides(pipeline: Pipeline, request: Request) -> None:
    """Refuse guides where none can run: on a backend without them, in another size, beside a codebook."""
    found = f"guide_scale is {request.setting.guide_scale:g}"
    if not pipeline.backend.GUIDES:
        raise ArgumentError(
            f"{found}, but backend {pipeline.backend.NAME!r} runs no guides yet; pass guide_scale=0, or choose native, "
            "openvino or onnxruntime."
        )
    if (own := _own_size_alone(pipeline)) is not None:
        raise ArgumentError(
            f"{found}, but the bundle's guides take images of {own} alone; pass guide_scale=0, or leave size out."
        )
    if request.setting.quantize_denoised:
        raise ArgumentError(f"{found} beside quantize_denoised, which no row can take both of; leave one of the two out.")
    request.check_on_host("a guide's gradient is taken")


def _check_regulariser(pipeline: Pipeline, request: Request) -> None:
    """Refuse a regulariser where it cannot run: on a backend whose loop has one network, and in another size."""
    found = f"regularise is {request.setting.regularise!r}"
    if not pipeline.backend.REGULARISES:
        raise ArgumentError(
            f"{found}, but backend {pipeline.backend.NAME!r} runs no second network in its loop yet; pass "
            f"regularise={OFF!r}, or choose native, openvino or onnxruntime."
        )
    if (own := _own_size_alone(pipeline)) is not None:
        raise ArgumentError(
            f"{found}, but the bundle's regulariser takes images of {own} alone; pass regularise={OFF!r}, or leave size out."
        )
    request.check_on_host("a second network is called")


def _own_size_alone(pipeline: Pipeline) -> str | None:
    """The bundle's own size where this pipeline is of another, in which not every graph runs; None where it is of that."""
    canvas = pipeline.bundle.canvas
    if canvas is None or canvas.whole == canvas.window:
        return None
    return "{} x {}".format(*canvas.base.pipeline.image_shape[1:])


def taken(pipeline: Pipeline, given: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    """What a caller gave `where`, text as the token ids that it becomes; ArgumentError for a name that is neither one of
    `known` nor an input of the bundle."""
    specs = pipeline.manifest.inputs
    found = replace_text(pipeline.text, given, specs, pipeline.bundle.path)
    checks.check_inputs(found, specs, known, where)
    return found


def chain_of(
    pipeline: Pipeline, options: Mapping[str, Any], prior: str | None, *, has_image: bool = False, noised_image: bool = False
) -> tuple[Setting, StepTable]:
    """The setting that is asked for and its table. Those of the last few are kept: a service is asked for the same again."""
    given, asked = checks.setting_options(options), options.get("setting")
    asked = None if asked is None else check_name("setting", asked)
    key = (*given.items(), asked, bool(options.get("clip", True)), prior, has_image, noised_image)
    found = pipeline.chains.get(key)
    if found is None:
        setting = replace(setting_of(pipeline.manifest, options, has_image=has_image), prior=prior)
        found = pipeline.chains[key] = setting, pipeline.table(setting, noised_image=noised_image)
        if len(pipeline.chains) > KEPT_CHAINS:
            del pipeline.chains[next(iter(pipeline.chains))]
    return found


def choose_prior(manifest: Manifest, asked: str | None, *, draws: bool) -> str | None:
    """What the drawn input comes from, None where none is drawn; ArgumentError for what cannot be."""
    if draws:
        return resolve_prior(asked, manifest.prior is not None)
    if asked is not None:
        raise ArgumentError(
            f"prior is {asked!r}, but no input is drawn here: it is given, or the bundle has none. Leave it out."
        )
    return None


def setting_of(manifest: Manifest, options: Mapping[str, Any], *, has_image: bool = False) -> Setting:
    """The few-step setting, checked for what this bundle cannot have: guidance without nulls, a learned variance
    without a second output, x0 quantised without a codebook, a start without an image."""
    given, recorded = checks.setting_options(options), manifest.defaults
    if fitted := _fitted(manifest, given, options.get("setting")):
        recorded = fitted
        given.pop("steps", None)
    guide = {} if fitted or manifest.guide is None else manifest.guide.options
    if given.get("guide_scale") == 0.0:  # an interval of none says nothing
        guide = {}
    second = {} if fitted or manifest.regularise is None else manifest.regularise.options
    if given.get("regularise") == OFF:  # likewise
        second = {}
    recording = vars(recorded) | guide | second
    setting = checks.resolve_setting(recording, manifest.variance, given, clip=options.get("clip", True))
    _check_guide_options(manifest, setting)
    _check_regulariser_options(manifest, setting)
    if setting.guidance != 0.0 and not manifest.pipeline.guided:
        raise ArgumentError(
            f"guidance is {setting.guidance:g}, but nothing that this bundle's network is fed has a null to be guided by; "
            "expected 0. Leave it out."
        )
    if setting.variance == LEARNED_RANGE and not manifest.pipeline.learns_variance:
        raise ArgumentError(
            f"variance is {setting.variance!r}, but this bundle's network has no second output that would say it; expected "
            f"one of {', '.join(FIXED_VARIANCES)}."
        )
    if setting.quantize_denoised and manifest.pipeline.quantize is None:
        raise ArgumentError(
            "quantize_denoised is given, but this bundle has no codebook in which x0 could be looked up. Leave it out."
        )
    if setting.t_start is not None and not has_image and manifest.pipeline.state.start is None:
        raise ArgumentError(
            f"t_start is {setting.t_start}, but this bundle's pipeline has no start value to start from. Leave it out, or "
            "call refine(images, t_start=...)."
        )
    return setting


def _check_guide_options(manifest: Manifest, setting: Setting) -> None:
    """Refuse options of a guide to a bundle without one, and a mode that one of its guides has no entropy for."""
    guides = manifest.pipeline.guides
    if setting.guide_scale != 0.0 and not guides:
        raise ArgumentError(
            f"guide_scale is {setting.guide_scale:g}, but this bundle has no guide; expected 0. Leave it out, or build the "
            f"bundle with one: {command('build', 'CKPT', '--guide', 'CLASSIFIER')}"
        )
    if setting.guide_mode == BY_ENTROPY and not all(ENTROPY in guide.step.outputs.values() for guide in guides):
        raise ArgumentError(f"guide_mode is {BY_ENTROPY!r}, but not every guide of this bundle gives its entropy.")


def _check_regulariser_options(manifest: Manifest, setting: Setting) -> None:
    """Refuse a regulariser to a bundle without one, and the steps of a learned variance to one that has learned none."""
    regulariser = manifest.pipeline.regulariser
    if setting.regularise == OFF:
        return
    if regulariser is None:
        raise ArgumentError(
            f"regularise is {setting.regularise!r}, but this bundle has no regulariser; expected {OFF!r}. Leave it out, or "
            f"build the bundle with one: {command('build', 'CKPT', '--regulariser', 'UNCONDITIONAL')}"
        )
    if (setting.regularise, setting.variance) == (BEFORE, LEARNED_RANGE) and not regulariser.learns_variance:
        raise ArgumentError(
            f"regularise is {BEFORE!r} with variance {LEARNED_RANGE!r}, but this bundle's regulariser, which takes the "
            f"steps, has no second output that would say it; expected one of {', '.join(FIXED_VARIANCES)}, or "
            f"regularise={AFTER!r}."
        )


def _fitted(manifest: Manifest, given: Mapping[str, Any], asked: str | None) -> Defaults | None:
    """The fitted setting that is meant: of the steps named, or of the recorded ones where nothing of a setting is.

    asked: "fitted" insists on one, "plain" wants none, None takes one where there is one.
    """
    if asked not in (None, *SETTINGS):
        raise ArgumentError(f"setting is {asked!r}; expected one of {', '.join(SETTINGS)}.{did_you_mean(asked, SETTINGS)}")
    others = [name for name in checks.REPLACES_RECORDED if name != "steps" and name in given]
    steps = given.get("steps", manifest.defaults.steps)
    found = None if manifest.fitted is None or others else manifest.fitted.get(steps)
    if asked is None and manifest.guide is not None:  # a fitted setting knows none, and no regulariser
        scale = 0.0 if any(name in given for name in checks.REPLACES_RECORDED) else manifest.guide.scale
        found = None if given.get("guide_scale", scale) != 0.0 else found
    if asked is None and manifest.regularise is not None:
        mode = OFF if any(name in given for name in checks.REPLACES_RECORDED) else manifest.regularise.mode
        found = None if given.get("regularise", mode) != OFF else found
    if asked == "fitted" and found is None:
        there = [] if manifest.fitted is None else [setting.steps for setting in manifest.fitted.settings]
        raise ArgumentError(
            f"setting is 'fitted', but {others[0]} is given, which a fitted setting says itself: leave one of the two out."
            if others
            else f"setting is 'fitted', but this bundle has none of {steps} steps; expected one of those it has: "
            f"{', '.join(map(str, sorted(there))) or 'none yet'}. Fit some with: {command('fit-setting', 'BUNDLE')}"
        )
    return None if asked == "plain" else found


def _given_input(pipeline: Pipeline, spec: InputSpec, value: Any) -> Array:
    """A declared input on the host or on the device, [N or 1, ...]."""
    if not is_on_device(value):
        return checks.input_of(spec, value)
    found = _borrowed(pipeline, value, spec.name)
    checks.check_device_shape(spec.name, found.shape, spec.sample)
    return found


def _x_T(pipeline: Pipeline, value: Any) -> Array:
    """x_T on the host or on the device, float32 [N or 1, C, H, W]."""
    shape = pipeline.spec.state.shape
    if not is_on_device(value):
        return checks.start_noise_of(value, shape)
    found = _borrowed(pipeline, value, "x_T")
    checks.check_device_shape("x_T", found.shape, shape)
    return found


def _edited(pipeline: Pipeline, inputs: dict[str, Array], edits: Any) -> dict[str, Array]:
    """The inputs with the drawn one, drawn or given, moved along the bundle's directions."""
    spec, directions = pipeline.manifest.directions, pipeline.directions
    strengths = checked_edits(spec, edits)
    assert spec and directions, "checked_edits refuses edits without directions"  # noqa: PT018
    name = spec.input
    if name not in inputs:
        raise ArgumentError(f"edits: found some, but this run needs no {name}, which they move. Leave them out.")
    if not isinstance(inputs[name], np.ndarray):
        raise ArgumentError(f"edits: found {name} on a device, expected it on the host; add them there and leave edits out.")
    for direction, listed in strengths.items():
        if isinstance(listed, tuple) and len(listed) != len(inputs[name]):
            raise ArgumentError(
                f"the strength of {direction} is a list of {len(listed)}; expected a number, or one for each of "
                f"{len(inputs[name])} samples."
            )
    return {**inputs, name: directions.move(inputs[name], strengths)}


def _borrowed(pipeline: Pipeline, value: Any, name: str) -> Any:
    if not pipeline.backend.ON_DEVICE:
        raise ArgumentError(
            f"{name} lies on a CUDA device, but backend {pipeline.backend.NAME!r} runs on the CPU: expected an array on the "
            "host; copy it there, or choose a backend on a device, such as tensorrt"
        )
    return pipeline.backend.device_chain().borrow(value, name)


def _for_all(array: Array, count: int) -> Array:
    """One sample repeated for all; arrays of N as they are."""
    if len(array) == count or not isinstance(array, np.ndarray):
        return array
    shared: npt.NDArray[Any] = np.repeat(array, count, axis=0)
    return shared
