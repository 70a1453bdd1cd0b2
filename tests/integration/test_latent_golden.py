"""Latent diffusion against its reference implementation: from a CompVis checkpoint and its YAML to latents and images.

Every sampler that the vectors of tests/golden_ldm hold, in every runtime, and every network that the native engine has
operations for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler, StepInfo
from engine.backends.native.backend import Native
from engine.backends.native.graph import open_graph
from engine.backends.native.weights import weights_of
from engine.bulk.job import describe
from engine.bulk.maker import Means
from engine.bulk.run import generate
from engine.bundle.reader import Bundle
from engine.feeds import noise_feeds, setting_feeds
from tests import latent_models
from tests.bulk_jobs import samples
from tests.latent_runs import ALL, MODELS, RUNS, TOLERANCE, arrays, check_images, difference, setting, which
from tests.native_models import NEEDS_NATIVE, PATHS
from tests.sampler_graphs import OrtSampler
from tests.samplers import ANY_BACKEND, EACH_BACKEND

# Rounding weights, operands and maps to bf16 costs these random networks up to 1.4e-2, whoever computes: of all that the
# reference was asked of a network together, as single answers of 500 numbers vary by a tenth.
BF16 = 1.5e-2
INT8 = 4e-2  # and to int8, of denoisers with all that is eligible, up to 3.4e-2
Bundles = Callable[..., Path]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """bundles(model): the bundle of a golden model with the whole-sampler graph, and of some native engines."""
    import torch

    from export.graphs.extra import GraphOptions
    from export.native import trajectory

    torch.set_num_threads(1)

    @functools.cache
    def build(model: str) -> Path:
        whole, folder = GraphOptions(whole_sampler=True), tmp_path_factory.mktemp(model)
        native = model in ELSEWHERE and Native.available()[0]
        more = {"backends": ("onnxruntime", "openvino", "native"), "precisions": ("bf16", "int8")} if native else {}
        with pytest.MonkeyPatch.context() as patch:  # few states: what is tested is not the choice of layers
            patch.setattr(trajectory, "STATES", 4)
            patch.setattr(trajectory, "LANES", 1)
            return latent_models.build_latent(model, folder, graph_options=whole, if_fit=True, **more)

    return build


@pytest.fixture(scope="module")
def samplers(bundles: Bundles) -> Iterator[Callable[..., Sampler]]:
    """samplers(backend, model, size): opened once; in another size on the whole of a canvas."""
    opened: dict[Any, Sampler] = {}

    def get(backend: str, model: str, size: tuple[int, int] | None = None) -> Sampler:
        key = (backend, model, size)
        if key not in opened:
            plain = Sampler(bundles(model), backend, "f32", threads=1) if size is None else get(backend, model)
            opened[key] = plain if size is None else plain.resized(size)
        return opened[key]

    yield get
    for sampler in opened.values():
        sampler.close()


@pytest.mark.skipif(not ALL, reason="DIFFUSEVAE_GOLDEN is not all")
@EACH_BACKEND
def test_tiles_equal_the_reference(backend: str, samplers: Callable[..., Sampler]) -> None:
    model, run = "sr_concat", "ddim_uniform_5_eta1_tiled"
    expected, states = latent_models.expected(model), []
    given = {"x_T": expected["x_T_wide"], "noise": expected[f"{run}_noise"], "low_resolution": expected["LR_image_wide"]}
    with samplers(backend, model).resized((48, 64), overlap=0.5) as sampler:
        batch = sampler.sample(2, callback=lambda info: states.append(info.x.copy()), **given, **setting(model, run))
    assert difference(states[0], expected[f"{run}_step1"]) < TOLERANCE
    assert difference(states[1], expected[f"{run}_mid"]) < TOLERANCE
    assert difference(batch.x, expected[run]) < TOLERANCE
    check_images(batch.images, model, run)


@EACH_BACKEND
@pytest.mark.parametrize(("model", "run"), RUNS)
def test_chains_equal_the_reference(backend: str, model: str, run: str, samplers: Callable[..., Sampler]) -> None:
    of, expected, states = latent_models.config(model)["runs"][run], latent_models.expected(model), []

    def keep(info: StepInfo) -> None:
        states.append(info.x.copy())

    sampler = samplers(backend, *which(model, run))
    batch = sampler.sample(2, seed=0, callback=keep, **arrays(model, run), **setting(model, run))
    extra = of["calls"] - of["steps"]  # PLMS begins with two calls
    assert len(batch.timesteps) == of["calls"]
    assert difference(states[extra], expected[f"{run}_step1"]) < TOLERANCE
    assert difference(states[of["steps"] // 2 - 1 + extra], expected[f"{run}_mid"]) < TOLERANCE
    assert difference(batch.x, expected[run]) < TOLERANCE
    check_images(batch.images, model, run)


# ---- any size --------------------------------------------------------------------------------------

OTHER_SIZE = (48, 64)  # of images of 32 x 32


def at_other_size(model: str, bundle: Bundle) -> Iterator[tuple[str, dict[str, np.ndarray], np.ndarray]]:
    """Every graph that works on maps, inputs of that size, and what torch makes of them."""
    from export.graphs.roles import FreeSize, example, with_rows

    resized, found = bundle.resized(OTHER_SIZE, None), roles_of(model)
    assert resized.canvas is not None
    examples = with_rows({"denoiser": (found["timestep_table"], "row")})
    for name, ports in resized.canvas.ports.items():
        if not ports:
            continue
        role = FreeSize(ports, 1, resized.canvas.window).at(found[name], *resized.canvas.whole)
        assert tuple(role.inputs) == resized.spec(name).inputs
        inputs = (examples if name == "denoiser" else example)(role, 2, 3, 7)
        (wanted,) = role(inputs).values()
        yield name, {key: value.contiguous().numpy() for key, value in inputs.items()}, wanted.numpy()


@EACH_BACKEND
@pytest.mark.parametrize("model", MODELS)
def test_networks_of_another_size_equal_torch(backend: str, model: str, samplers: Callable[..., Sampler]) -> None:
    opened = samplers(backend, model, OTHER_SIZE)
    names = []
    for name, inputs, wanted in at_other_size(model, samplers(backend, model).bundle):
        (found,) = opened._pipeline.backend.graph(name)(**inputs).values()
        assert difference(found, wanted) < TOLERANCE, name
        names.append(name)
    assert {"first_stage_encoder", "denoiser", "first_stage_decoder"} <= set(names)


@pytest.mark.parametrize("model", ["class_crossattn_cfg", "text_bert_cfg"])
def test_a_bulk_job_makes_the_bits_of_single_samples(
    model: str, bundles: Bundles, samplers: Callable[..., Sampler], tmp_path: Path
) -> None:
    """A label or a row of token ids for each image."""
    given, bundle = latent_models.given(model), Bundle.open(bundles(model))
    options = {"steps": 2, "guidance": 2.0, "quantize_denoised": bundle.manifest.pipeline.quantize is not None}
    job = describe(bundle, 2, seed=5, shard_size=1, inputs=given, **options)
    generate(job, bundle, tmp_path / "out", Means(ANY_BACKEND, "f32", 1, inputs=given))
    single = [{name: value[i] for name, value in given.items()} for i in range(2)]
    images = [samplers(ANY_BACKEND, model).sample(seed=5 + i, **single[i], **options).images for i in range(2)]
    np.testing.assert_array_equal(samples(tmp_path / "out"), np.concatenate(images))


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_sampler_as_one_graph(model: str, bundles: Bundles) -> None:
    run = next(run for of, run in RUNS if of == model and not run.endswith("qx0"))
    bundle, given = Bundle.open(bundles(model)), arrays(model, run)
    noise, x_T = given.pop("noise"), given.pop("x_T")
    feeds, table = setting_feeds(bundle.manifest, setting(model, run))
    feeds |= noise_feeds(bundle.manifest, table, np.array([0, 1], np.uint64), None, given)
    feeds["x_T"] = x_T
    if noise is not None:
        feeds["noise"] = noise
    found = OrtSampler(bundle.read_graph("sampler"))(feeds)
    assert difference(found["x"], latent_models.expected(model)[run]) < TOLERANCE


# ---- the native engine -----------------------------------------------------------------------------

# Resampling by blocks, scale and shift or a bias; KL and VQ; transformers over one token and several.
NATIVE = latent_models.NAMES if ALL else ("uncond_kl_std", "inpaint_concat", "class_crossattn_cfg", "text_bert_cfg")


@functools.cache
def roles_of(model: str) -> dict[str, Any]:
    """The graphs of a model in torch."""
    from export.families.latent.graphs import roles

    return roles(latent_models.spec(model), *latent_models.networks(model), T=latent_models.config(model)["T"])


@functools.cache
def programs(model: str) -> dict[str, Any]:
    """{graph: its role and its program} of all that the native engine has operations for."""
    from export.native import builder

    found = roles_of(model).values()
    return {role.name: (role, builder.lower(role)) for role in found if builder.unfit_role(role) is None}


def asked(model: str) -> Iterator[tuple[str, dict[str, np.ndarray], np.ndarray]]:
    """A graph, its inputs and what the reference made of them."""
    import torch

    expected, spec, (unet, *_) = latent_models.expected(model), latent_models.spec(model), latent_models.networks(model)
    given = {"cond": expected["cond"]} if "cond" in expected else {}
    if spec.unet.context_dim is not None:
        given = {"keys_values": unet.keys_values(torch.from_numpy(expected["cond"])).numpy()}
    for t, eps in zip(expected["t"], expected["eps"], strict=True):
        row = unet.timestep_rows(torch.tensor([int(t)])).numpy()
        yield "denoiser", {"x": expected["x_T"], "row": row, **given}, eps
    moments = expected.get("fs_moments")
    latent = expected["fs_latent"] if moments is None else moments[:, : spec.latent[0]] * spec.scale
    yield "first_stage_encoder", {"image": expected["img"]}, latent
    found = roles_of(model)
    z = torch.from_numpy(expected["z"])
    coded = found["codebook"]({"latent": z})["codes"] if "codebook" in found else z
    yield "first_stage_decoder", {"latent": coded.numpy()}, expected["z_decode"]
    if "codebook" in found:
        yield "codebook", {"latent": expected["z"]}, coded.numpy()
    if "conditioner" in programs(model):
        yield "conditioner", latent_models.given(model), expected["cond"]
    if "keys_values" in found:
        yield "keys_values", {"context": expected["cond"]}, given["keys_values"]


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", NATIVE)
def test_networks_in_bf16(model: str, path: str, force_isa: Callable[[str], str]) -> None:
    from export.native.measure import open_assembled

    force_isa(path)
    answers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, inputs, wanted in asked(model):
        role, program = programs(model)[name]
        with open_assembled(role, program, role.computes_in("bf16")) as graph:
            (found,) = graph(**inputs).values()
        answers.setdefault(name, []).append((found, wanted))
    assert {"first_stage_encoder", "denoiser", "first_stage_decoder"} <= set(answers)
    for name, pairs in answers.items():
        found, wanted = (np.concatenate(side) for side in zip(*pairs, strict=True))
        assert difference(found, wanted) < BF16, name


@functools.cache
def denoiser_in_int8(model: str) -> Any:
    """The denoiser's program with all that is eligible in int8, calibrated on what the reference was asked."""
    import torch

    from export.native.latent import lower_denoiser
    from export.native.scales import choose_scales
    from export.native.trajectory import States

    torch.set_num_threads(1)
    calls = [inputs for name, inputs, _ in asked(model) if name == "denoiser"]
    rows = max(len(value) for value in calls[0].values())
    given = {
        name: torch.cat([torch.from_numpy(call[name]).expand(rows, *call[name].shape[1:]) for call in calls])
        for name in calls[0]
    }
    role, _ = programs(model)["denoiser"]
    with torch.inference_mode():
        scales = choose_scales(role, States(given, (0,) * rows * len(calls)))
    return lower_denoiser(role, "int8", scales)


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", NATIVE)
def test_denoisers_in_int8(model: str, path: str, force_isa: Callable[[str], str]) -> None:
    from export.native.measure import open_assembled

    force_isa(path)
    with open_assembled(programs(model)["denoiser"][0], denoiser_in_int8(model), "int8") as graph:
        for inputs, wanted in ((inputs, wanted) for name, inputs, wanted in asked(model) if name == "denoiser"):
            (found,) = graph(**inputs).values()
            assert difference(found, wanted) < INT8
            alone = {name: value[-1:] for name, value in inputs.items()}
            np.testing.assert_array_equal(graph(**alone)["eps"], found[-1:], "the bits of a batch")


@NEEDS_NATIVE
@pytest.mark.parametrize("model", MODELS)
def test_networks_of_another_size_in_bf16(model: str, bundles: Bundles) -> None:
    """Over the packed weights of the trained size."""
    bundle, names = Bundle.open(bundles(model)), []
    resized = bundle.resized(OTHER_SIZE, None)
    for name, inputs, wanted in at_other_size(model, bundle):
        if name in programs(model):
            role, packed = programs(model)[name]
            weights, spec, stored = weights_of(packed.weights, name), resized.spec(name), role.computes_in("bf16")
            with open_graph(packed.program, weights, spec, name, stored, 1, name, resized.canvas) as graph:
                (found,) = graph(**inputs).values()
            assert difference(found, wanted) < BF16, name
            names.append(name)
    assert {"first_stage_encoder", "denoiser", "first_stage_decoder"} <= set(names)
    assert ("codebook" in names) == (bundle.manifest.pipeline.quantize is not None)


ELSEWHERE: dict[str, set[str]] = {  # what another runtime runs
    "inpaint_concat": {"conditioner", "composite"},
    "class_crossattn_cfg": set(),
} | ({"text_bert_cfg": set()} if ALL else {})  # one more build, whose networks are tested above in any case


@NEEDS_NATIVE
@pytest.mark.parametrize(("precision", "bound"), [("bf16", BF16), ("int8", INT8)])
@pytest.mark.parametrize("model", ELSEWHERE)
def test_native_chains_and_what_of_them_another_runtime_runs(
    model: str, precision: str, bound: float, bundles: Bundles
) -> None:
    run, bundle, states = next(run for of, run in RUNS if of == model), Bundle.open(bundles(model)), []
    assert {engine.graph for engine in bundle.manifest.engines if engine.runs_on} == ELSEWHERE[model]

    def keep(info: StepInfo) -> None:
        states.append(info.x.copy())

    options = {**arrays(model, run), **setting(model, run)}
    with Sampler(bundle, "native", precision, threads=1) as sampler:
        sampler.sample(2, seed=0, callback=keep, **options)
        alone = sampler.sample(2, seed=0, **options)
    np.testing.assert_array_equal(alone.x, states[-1], "the loop in one call")
    # Guidance multiplies what both lanes round off.
    assert difference(states[0], latent_models.expected(model)[f"{run}_step1"]) < bound * (1 + options["guidance"])
