"""Guided diffusion against its reference implementation: from a plain state dict to images, in every runtime.

Two of the four models in the default run, which between them have everything that is not the same in all; with
DIFFUSEVAE_GOLDEN=all the four. And one with a label map, a semantic diffusion model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.backends.native.backend import Native
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError
from engine.feeds import noise_feeds, setting_feeds
from tests import adm_models as golden
from tests.latent_runs import ALL, difference
from tests.native_models import NEEDS_NATIVE, PATHS
from tests.sampler_graphs import OrtSampler
from tests.samplers import ANY_BACKEND, EACH_BACKEND

MODELS = golden.NAMES if ALL else ("cosine_neworder", "upsample")
CHAINS = [(folder, chain) for folder, chain in golden.CHAINS if folder in MODELS]
MAPPED, MAPPED_CHAINS = golden.MAPPED, golden.MAPPED_CHAINS
BF16 = 1.5e-2  # of networks: rounding costs them up to 1.3e-2
INT8 = 4e-2
BF16_CHAIN = 2e-2  # of whole chains: found up to 1.45e-2
Samplers = Callable[..., Sampler]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """bundle(model): with the whole-sampler graph, and native engines where they can be run."""
    import torch

    from export.graphs.extra import GraphOptions

    torch.set_num_threads(1)

    @functools.cache
    def build(folder: str) -> Path:
        backends = ("onnxruntime", "openvino", *(["native"] if Native.available()[0] else []))
        whole = GraphOptions(whole_sampler=True)
        return golden.build_adm(folder, tmp_path_factory.mktemp(folder), backends=backends, graph_options=whole)

    return build


@pytest.fixture(scope="module")
def samplers(bundle: Callable[[str], Path]) -> Iterator[Samplers]:
    """samplers(backend, model, precision): opened once."""
    opened: dict[Any, Sampler] = {}

    def get(backend: str, folder: str, precision: str = "f32") -> Sampler:
        key = (backend, folder, precision)
        if key not in opened:
            opened[key] = Sampler(bundle(folder), backend, precision, threads=1)
        return opened[key]

    yield get
    for sampler in opened.values():
        sampler.close()


def arrays(folder: str, chain: str) -> dict[str, Any]:
    """Start, noise, inputs and setting of a chain."""
    start = {"x_T": golden.expected(folder)["x_T"], "noise": golden.noise(folder, chain)}
    return {**start, **golden.given(folder), **golden.setting(folder, chain)}


@EACH_BACKEND
@pytest.mark.parametrize(("folder", "chain"), CHAINS + MAPPED_CHAINS)
def test_chains_equal_the_reference(backend: str, folder: str, chain: str, samplers: Samplers) -> None:
    """Of three times what float32 costs the reference's own chain, at most; found: up to 1.4 times."""
    found: list[np.ndarray] = []
    batch = samplers(backend, folder).sample(2, callback=lambda info: found.append(info.x.copy()), **arrays(folder, chain))
    for row, expected in golden.states(folder, chain).items():
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=golden.tolerance(folder, chain), err_msg=f"row {row}")
    levels = np.rint(255 * (np.clip(found[-1], -1, 1) + 1) / 2).transpose(0, 2, 3, 1)
    assert np.abs(batch.images.astype(int) - levels).max() <= 1


@pytest.mark.parametrize(("folder", "chain"), CHAINS + [entry for entry in MAPPED_CHAINS if "renorm" not in entry[1]])
def test_the_whole_sampler_as_one_graph(folder: str, chain: str, bundle: Callable[[str], Path]) -> None:
    opened, expected = Bundle.open(bundle(folder)), golden.states(folder, chain)
    feeds, table = setting_feeds(opened.manifest, golden.setting(folder, chain))
    feeds |= noise_feeds(opened.manifest, table, np.array([0, 1], np.uint64), None, golden.given(folder))
    feeds |= {"x_T": golden.expected(folder)["x_T"], "noise": golden.noise(folder, chain)}
    found = OrtSampler(opened.read_graph("sampler"))(feeds)
    np.testing.assert_allclose(found["x"], expected[max(expected)], rtol=0, atol=golden.tolerance(folder, chain))


def test_the_small_image_is_enlarged_as_by_the_reference(samplers: Samplers) -> None:
    arrays = golden.expected("upsample")
    enlarger = samplers(ANY_BACKEND, "upsample")._pipeline.backend.graph("enlarger")
    (found,) = enlarger(low_resolution=arrays["low_res"]).values()
    np.testing.assert_allclose(found, arrays["upsampled"], rtol=0, atol=1e-6)


def test_the_verb_of_upsamplers(samplers: Samplers) -> None:
    """Images in [0, 1] of the small size; the label is an input beside them."""
    sampler, given = samplers(ANY_BACKEND, "upsample"), golden.given("upsample")
    images = np.clip((given["low_resolution"] + 1) / 2, 0, 1)
    label = given["label"]
    found = sampler.upscale(images, label=label, seed=3)
    same = sampler.sample(2, low_resolution=2 * images - 1, label=label, seed=3)
    assert found.images.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(found.images, same.images)
    assert len(found.timesteps) == 25
    with pytest.raises(ArgumentError, match="found no label"):
        sampler.upscale(images)
    with pytest.raises(ArgumentError, match=r"label.* 5"):
        sampler.upscale(images, label=5)


def test_label_maps(samplers: Samplers) -> None:
    """One map for all samples; the recorded guidance; what is not a map of the model's labels is refused."""
    sampler = samplers(ANY_BACKEND, MAPPED)
    labels, instances = (array[:1] for array in golden.given(MAPPED).values())
    options = {"seed": 3, "steps": 2, "instances": instances}
    two = sampler.sample(2, labels=labels, **options)
    assert [str(spec) for spec in sampler.inputs] == ["labels int64[batch, 16, 16]", "instances int64[batch, 16, 16]"]
    np.testing.assert_array_equal(two.x[1:], sampler.sample(1, labels=labels[0], **options | {"seed": 4}).x)
    assert sampler.bundle.manifest.defaults.guidance == 0.5
    assert np.abs(sampler.sample(1, labels=labels, guidance=0.5, **options).x - two.x[:1]).max() > 1e-3
    with pytest.raises(ArgumentError, match=r"labels has shape \[16, 8\]; expected int64 \[N, 16, 16\]"):
        sampler.sample(labels=labels[0, :, :8], **options)
    with pytest.raises(ArgumentError, match=r"labels runs from 5 to 5; expected values in 0 \.\. 4"):
        sampler.sample(labels=np.full((16, 16), 5), **options)
    with pytest.raises(ArgumentError, match="found no instances"):
        sampler.sample(labels=labels)


# ---- the native engine -----------------------------------------------------------------------------


@functools.cache
def program(folder: str) -> tuple[Any, Any]:
    """The denoiser and its program."""
    from export.families.adm import recognise
    from export.native import builder

    role = recognise(golden.held(folder), None, "ema", golden.said(folder)).load().roles["denoiser"]
    return role, builder.lower(role)


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("folder", golden.NAMES)
def test_networks_in_bf16(folder: str, path: str, force_isa: Callable[[str], str]) -> None:
    import torch

    from export.native.measure import open_assembled

    force_isa(path)
    role, assembled = program(folder)
    arrays, process, given = golden.expected(folder), golden.config(folder)["diffusion"], golden.given(folder)
    labels = torch.from_numpy(given["label"]) if "label" in given else None
    with open_assembled(role, assembled, "bf16") as graph:
        for i, t in enumerate(arrays["t"].tolist()):
            rescaled = t * (1000 / process["steps"] if process["rescale_timesteps"] else 1.0)
            unet, times = role.module.unet, torch.full((1 if labels is None else len(labels),), rescaled)
            row = unet.timestep_rows(times, None if labels is None else unet.label_emb(labels)).numpy()
            cond = {"cond": arrays["upsampled"]} if "upsampled" in arrays else {}
            found = graph(x=arrays["x_T"], row=row, **cond)
            for name, key in (("eps", "eps"), ("range", "v")):
                assert difference(found[name], arrays[key][i]) < BF16, (t, name)


def mapped(hoisted: int, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The graphs of the model with a label map, where gamma and beta of maps of up to so many pixels are made before the
    loop."""
    from export.families.sdm import graphs, recognise

    patch.setattr(graphs, "HOISTED", hoisted)
    return recognise(golden.held(MAPPED), None, "ema", golden.said(MAPPED)).load().roles


def mapped_calls(roles: dict[str, Any]) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """What its denoiser is asked, with labels and without, and what the reference made of it: eps and v."""
    import torch

    arrays, denoiser = golden.expected(MAPPED), roles["denoiser"]
    labels = {name: torch.from_numpy(value) for name, value in golden.given(MAPPED).items()}
    (segmap,) = roles["label_map"](labels).values()
    for given, ending in ((segmap, ""), (torch.zeros_like(segmap), "_null")):
        values = {"x": torch.from_numpy(arrays["x_T"]), "segmap": given}
        if "modulation" in roles:
            values |= roles["modulation"]({"segmap": given})
        for i, t in enumerate(arrays["t"].tolist()):
            values["row"] = denoiser.module.unet.timestep_rows(torch.tensor([t]))
            asked = {spec.name: values[spec.name].numpy() for spec in denoiser.inputs}
            yield asked, arrays[f"eps{ending}"][i], arrays[f"v{ending}"][i]


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("hoisted", [4096, 64, 0])
def test_a_network_with_a_label_map_in_bf16(
    hoisted: int, path: str, force_isa: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All gamma and beta out of a row, those of the smaller maps alone, and none."""
    from export.native import builder
    from export.native.measure import open_assembled

    force_isa(path)
    roles = mapped(hoisted, monkeypatch)
    with open_assembled(roles["denoiser"], builder.lower(roles["denoiser"]), "bf16") as graph:
        for asked, eps, variance in mapped_calls(roles):
            found = graph(**asked)
            assert difference(found["eps"], eps) < BF16
            assert difference(found["range"], variance) < BF16
            alone = {name: value[-1:] for name, value in asked.items()}
            np.testing.assert_array_equal(graph(**alone)["eps"], found["eps"][-1:], "the bits of a batch")


@NEEDS_NATIVE
def test_a_network_with_a_label_map_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolutions of all residual blocks but those behind doubling, and what is right behind a norm."""
    import torch

    from export.native.measure import open_assembled
    from export.native.scales import choose_scales
    from export.native.spade import lower_mapped
    from export.native.trajectory import States

    roles = mapped(4096, monkeypatch)
    calls = list(mapped_calls(roles))
    given = {
        name: torch.cat([torch.from_numpy(call[name]).expand(2, *call[name].shape[1:]) for call, *_ in calls])
        for name in calls[0][0]
    }
    with torch.inference_mode():
        scales = choose_scales(roles["denoiser"], States(given, (0,) * 2 * len(calls)))
    blocks = [name for name in scales if name.endswith(("in_layers.1", "out_layers.2"))]
    assert len(blocks) == 13  # of seven blocks with the label map, one of which doubles
    with open_assembled(roles["denoiser"], lower_mapped(roles["denoiser"], "int8", scales), "int8") as graph:
        for asked, eps, _ in calls:
            assert difference(graph(**asked)["eps"], eps) < INT8


@NEEDS_NATIVE
@pytest.mark.parametrize(("folder", "chain"), CHAINS + MAPPED_CHAINS)
def test_chains_on_the_native_engine(folder: str, chain: str, samplers: Samplers) -> None:
    states: list[np.ndarray] = []
    sampler, options = samplers("native", folder, "bf16"), arrays(folder, chain)
    sampler.sample(2, callback=lambda info: states.append(info.x.copy()), **options)
    alone = sampler.sample(2, **options)
    np.testing.assert_array_equal(alone.x, states[-1], "the loop in one call")
    for row, expected in golden.states(folder, chain).items():
        assert difference(states[row], expected) < BF16_CHAIN, row
