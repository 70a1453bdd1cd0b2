"""Do C++ and Python give the same bits? Every array of a run, on the same backend and instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from engine import Sampler, StepInfo
from engine.backends.native import backend as native
from engine.bundle.reader import Bundle
from engine.kernels.native_library import ISAS, native_library
from tests.cpp.capi import Arguments, CBatch, CSampler, Library, Step, looking, open_c
from tests.cpp.changed import changed_bundle
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE

MODELS = ("form1", "form2", "form1_zcond", "uncond")
LAST = 2**64 - 1
Pair = tuple[Sampler, CSampler]

# Guidance, latents and t_start are added where a model has them.
SETTINGS: dict[str, Arguments] = {
    "recorded": {},
    "ddim": {"steps": 5},
    "ddim, eta": {"steps": 4, "spacing": "linspace", "eta": 0.6},
    "ddim, eta 1, quad": {"steps": 5, "spacing": "quad", "eta": 1.0},
    "trailing": {"steps": 3, "spacing": "trailing", "temperature": 0.8},
    "ddpm": {"steps": 5, "method": "ddpm"},
    "ddpm, fixedsmall": {"steps": 4, "method": "ddpm", "spacing": "linspace", "variance": "fixedsmall"},
    "ddpm, truncated, unclipped": {"steps": 3, "method": "ddpm", "spacing": "truncated", "clip": False},
    "temperature 0": {"steps": 2, "temperature": 0.0, "spacing": "linspace"},
    "variance alone": {"variance": "fixedsmall"},
    "guidance alone": {"guidance": 0.3},
    "t_start": {"steps": 4, "t_start": 450, "eta": 1.0},
    "t_start, ddpm": {"steps": 3, "t_start": 300, "method": "ddpm", "temperature": 0.9},
    "one step": {"steps": 1, "spacing": "linspace"},
}


@pytest.fixture(scope="module")
def with_prior(native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first golden model with a mixture of three Gaussians as its latent prior."""
    source = native_bundle("form1")
    width, rng = Bundle.open(source).manifest.model.z_dim or 0, np.random.default_rng(0)
    factors = np.tril(0.3 * rng.standard_normal((3, width, width))).astype(np.float32)
    factors[:, range(width), range(width)] = rng.uniform(0.5, 1.5, (3, width))
    tensors = {
        "weights": np.array([0.2, 0.5, 0.3], np.float32),
        "means": rng.standard_normal((3, width)).astype(np.float32),
        "scale_tril": factors,
    }
    said = {"kind": "gaussian_mixture", "components": 3, "file": "latent_prior.safetensors"}
    target = tmp_path_factory.mktemp("prior") / "prior.bundle"
    return changed_bundle(source, target, {"latent_prior": said}, {"latent_prior.safetensors": save(tensors)})


@pytest.fixture(scope="module")
def pair(library: Library, native_bundle: Callable[..., Path], with_prior: Path) -> Iterator[Callable[..., Pair]]:
    """pair(model, max_batch): the same bundle opened from Python and from C, once."""
    opened: dict[tuple[str, int], Pair] = {}

    def get(model: str, max_batch: int = 64) -> Pair:
        if (model, max_batch) not in opened:
            path = with_prior if model == "prior" else native_bundle(model)
            ours = Sampler(path, "native", "bf16", threads=2, max_batch=max_batch)
            opened[model, max_batch] = ours, open_c(library, path, precision="bf16", max_batch=max_batch)
        return opened[model, max_batch]

    yield get
    for ours, theirs in opened.values():
        ours.close()
        theirs.free()


def assert_same(ours: Any, theirs: CBatch) -> None:
    """Every array, bit for bit, and the setting that was used."""
    for name in ("images", "recon", "z", "x", "seeds", "timesteps"):
        expected, found = getattr(ours, name), getattr(theirs, name)
        assert (expected is None) == (found is None), name
        if expected is not None:
            assert expected.dtype == found.dtype
            assert expected.shape == found.shape, name
            assert expected.tobytes() == found.tobytes(), f"{name} differs"
    setting, used = vars(ours.setting), dict(theirs.setting)
    if setting["spacing"] is None:  # Python reports what was asked for, C what was taken
        used["spacing"] = None
    assert used == setting


def check(pair: Pair, given: Arguments, **more: Any) -> None:
    ours, theirs = pair
    batch = ours.sample(**given, **more)
    assert_same(batch, theirs.sample(room=len(batch), **given, **more))
    assert np.isfinite(batch.x).all()


@pytest.mark.parametrize(
    ("model", "setting"),
    # An unconditional model has neither t_start nor guidance.
    [(m, s) for m in MODELS for s in SETTINGS if m != "uncond" or not {"t_start", "guidance"} & SETTINGS[s].keys()],
)
def test_every_setting(model: str, setting: str, pair: Callable[..., Pair]) -> None:
    for max_batch, n, seed in ((64, 1, 7), (64, 3, LAST), (2, 5, 0)):  # a lone one, a batch, three chunks
        check(pair(model, max_batch), SETTINGS[setting], n=n, seed=seed)


@pytest.mark.parametrize("setting", ["recorded", "ddim", "ddpm", "t_start"])
@pytest.mark.parametrize("model", ["form1", "form2", "form1_zcond"])
def test_guidance(model: str, setting: str, pair: Callable[..., Pair]) -> None:
    for max_batch, n, seed in ((64, 1, 3), (64, 3, LAST - 1), (2, 3, 11), (64, 9, 5)):
        check(pair(model, max_batch), {"guidance": 0.5, **SETTINGS[setting]}, n=n, seed=seed)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, LAST])
def test_seeds(seed: int, pair: Callable[..., Pair]) -> None:
    check(pair("form1"), {"steps": 2, "method": "ddpm"}, n=2, seed=seed)
    check(pair("form1", 2), {"steps": 2}, seed=[seed, 5, LAST, 5])


def test_a_drawn_seed_can_be_used_again(pair: Callable[..., Pair]) -> None:
    ours, theirs = pair("form1")
    first, second = theirs.sample(n=2, steps=2), theirs.sample(n=2, steps=2)
    assert len({*first.seeds.tolist(), *second.seeds.tolist()}) == 4
    assert_same(ours.sample(n=2, steps=2, seed=int(first.seeds[0])), first)


@pytest.mark.parametrize("prior", [None, "bundle", "standard"])
def test_latents_of_a_prior(prior: str | None, pair: Callable[..., Pair]) -> None:
    given = {"steps": 2} if prior is None else {"steps": 2, "prior": prior}
    for max_batch, n, seed in ((64, 1, 0), (64, 6, 100), (2, 5, LAST - 2)):
        check(pair("prior", max_batch), given, n=n, seed=seed)
    _, theirs = pair("prior")
    assert theirs.sample(**given).setting["prior"] == (prior or "bundle")


@pytest.mark.parametrize("model", MODELS)
def test_arrays_that_a_caller_gives(model: str, pair: Callable[..., Pair]) -> None:
    rng = np.random.default_rng(1)
    for max_batch in (64, 2):
        ours, theirs = pair(model, max_batch)
        z_dim, image = theirs.info.z_dim, (theirs.info.channels, *[theirs.info.image_size] * 2)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        for count in (3, 1):  # one for each sample, and shared by all
            given: Arguments = {"x_T": normal(count, *image), "noise": normal(4, count, *image)}
            if z_dim:
                given["z"] = normal(3, z_dim)
            ddpm, ddim = {"method": "ddpm"}, {"eta": 1.0, "guidance": 0.5 * bool(z_dim)}
            for setting in ({"steps": 4, **ddpm}, {"steps": 4, **ddim}):
                check((ours, theirs), {**setting, **given}, n=3, seed=0)
                check((ours, theirs), {**setting, "x_T": given["x_T"]}, n=3, seed=9)


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_what_a_callback_sees(guidance: float, pair: Callable[..., Pair]) -> None:
    for model, max_batch in (("form1", 64), ("form2", 2)):
        ours, theirs = pair(model, max_batch)
        given: Arguments = {"n": 3, "seed": 4, "steps": 4, "method": "ddpm", "guidance": guidance}
        expected: list[tuple[Any, ...]] = []
        found: list[tuple[Any, ...]] = []

        def ours_saw(info: StepInfo, into: list[tuple[Any, ...]] = expected) -> None:
            into.append((info.step, info.steps, info.timestep, info.first, info.x.tobytes(), info.x0.tobytes()))

        def theirs_saw(info: Step, by: CSampler = theirs, into: list[tuple[Any, ...]] = found) -> None:
            into.append((info.step, info.steps, info.timestep, info.first, *(a.tobytes() for a in by.seen(info))))

        batch = ours.sample(**given, callback=ours_saw)
        assert_same(batch, theirs.sample(**given, callback=looking(theirs_saw)))
        assert_same(batch, theirs.sample(**given))
        assert found == expected
        assert len(found) == 4 * (1 if max_batch == 64 else 2)


def test_int8(library: Library, native_bundle: Callable[..., Path]) -> None:
    path = native_bundle("form1", "bf16", "int8")
    with Sampler(path, "native", "int8", threads=1) as ours, open_c(library, path, precision="int8", threads=1) as theirs:
        assert theirs.info.precision == b"int8"
        check((ours, theirs), {"steps": 3, "guidance": 0.5}, n=3, seed=2)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(
    isa: str, library: Library, native_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, why = native_library().supports(isa)
    if not there:
        pytest.skip(f"this machine does not run {isa}: {why}")
    monkeypatch.setenv(native.VARIABLE, isa)
    path = native_bundle("form1")
    with Sampler(path, "native", "bf16", threads=2) as ours, open_c(library, path, precision="bf16") as theirs:
        assert theirs.info.isa.decode() == isa
        check((ours, theirs), {"steps": 3}, n=3, seed=2)


def test_the_precision_of_somebody_who_names_none(library: Library, native_bundle: Callable[..., Path]) -> None:
    for path in (native_bundle("form1"), native_bundle("form1", "bf16", "int8")):
        for given in ({}, {"precision": "auto"}):
            with Sampler(path, "native") as ours, open_c(library, path, **given) as theirs:
                assert theirs.info.precision.decode() == ours.precision


def test_what_is_told_of_a_bundle(pair: Callable[..., Pair]) -> None:
    for model in (*MODELS, "prior"):
        ours, theirs = pair(model, 2)
        manifest, info = ours.bundle.manifest, theirs.info
        known = manifest.model
        assert (info.image_size, info.channels, info.z_dim) == (known.image_size, known.channels, known.z_dim or 0)
        assert (info.formulation, info.timesteps) == (known.formulation or 0, manifest.schedule.T)
        flags = (known.conditional, known.z_conditioned, manifest.latent_prior is not None)
        assert (info.conditional, info.z_conditioned, info.has_prior) == flags
        assert (info.name.decode(), info.backend, info.precision) == (manifest.name, b"native", b"bf16")
        assert (info.isa.decode(), info.threads, info.max_batch) == (native.instruction_set(), 2, 2)
        assert info.weight_bytes > 0
        defaults = info.defaults.values()
        recorded = {name: defaults[name] for name in vars(manifest.defaults)}
        spacing = "linspace" if manifest.defaults.t_start is not None else "uniform"
        assert recorded == vars(manifest.defaults) | {"spacing": manifest.defaults.spacing or spacing}
