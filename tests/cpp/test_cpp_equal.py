"""C++ and Python side by side: every array of a run, bit for bit, on the same backend and instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from engine import BackendError, Sampler, StepInfo
from engine.backends.native.isa import VARIABLE, instruction_set
from engine.bundle.reader import Bundle
from engine.kernels.native_library import ISAS, native_library
from tests.cpp.capi import UNSET, Arguments, CBatch, CSampler, Failed, Library, Step, looking, open_c
from tests.cpp.changed import changed_bundle
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE

MODELS = ("form1", "form2", "form1_zcond", "uncond")
LAST = 2**64 - 1
Pair = tuple[Sampler, CSampler]

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
    "2M": {"steps": 5, "method": "dpmpp_2m"},
    "UniPC, karras": {"steps": 4, "method": "unipc_2", "spacing": "karras", "clip": False},
    "PLMS": {"steps": 6, "method": "plms", "spacing": "linspace"},
    "PLMS, two steps": {"steps": 2, "method": "plms"},
    "variance alone": {"variance": "fixedsmall"},
    "guidance alone": {"guidance": 0.3},
    "t_start": {"steps": 4, "t_start": 450, "eta": 1.0},
    "t_start, 2M": {"steps": 4, "t_start": 450, "method": "sde_dpmpp_2m"},
    "lists": {
        "timesteps": [400, 150, 25], "t_start": 400, "eta": [1.0, 0.5, 0.0], "noise_scale": 0.84, "eps_scale": [1, 1, 1.1],
    },
    "t_start, PLMS": {"steps": 4, "t_start": 450, "method": "plms"},
    "t_start, ddpm": {"steps": 3, "t_start": 300, "method": "ddpm", "temperature": 0.9},
    "one step": {"steps": 1, "spacing": "linspace"},
}


@pytest.fixture(scope="module")
def with_prior(native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first golden model with a mixture of three Gaussians as the density of its latents."""
    source = native_bundle("form1")
    (drawn,) = Bundle.open(source).manifest.inputs
    width, rng = int(drawn.shape[1]), np.random.default_rng(0)
    factors = np.tril(0.3 * rng.standard_normal((3, width, width))).astype(np.float32)
    factors[:, range(width), range(width)] = rng.uniform(0.5, 1.5, (3, width))
    tensors = {
        "weights": np.array([0.2, 0.5, 0.3], np.float32),
        "means": rng.standard_normal((3, width)).astype(np.float32),
        "scale_tril": factors,
    }
    said = {"input": drawn.name, "kind": "gaussian_mixture", "components": 3, "file": "prior.safetensors"}
    target = tmp_path_factory.mktemp("prior") / "prior.bundle"
    return changed_bundle(source, target, {"prior": said}, {"prior.safetensors": save(tensors)})


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


@pytest.mark.parametrize("setting", ["recorded", "ddim, eta", "ddpm", "PLMS"])
def test_a_whole_canvas(setting: str, library: Library, native_bundle: Callable[..., Path]) -> None:
    """Its noise is laid out in blocks, over the packed weights of the trained size."""
    path, options = native_bundle("uncond"), SETTINGS[setting] | {"seed": 5}
    height, width = Bundle.open(path).manifest.pipeline.image_shape[1:]
    size = {"height": 2 * height, "width": width + height // 2}
    python = Sampler(path, "native", "bf16", threads=2, size=(size["height"], size["width"]))
    with python, open_c(library, path, precision="bf16", **size) as c:
        assert_same(python.sample(3, **options), c.sample(3, **options))
    with pytest.raises(BackendError) as expected:
        Sampler(path, "native", "bf16", threads=2, size=(1024, 1024))
    with pytest.raises(Failed) as caught:
        open_c(library, path, precision="bf16", height=1024, width=1024)
    assert str(expected.value) in str(caught.value)


def assert_same(ours: Any, theirs: CBatch) -> None:
    """Every array, bit for bit, and the setting that was used."""
    arrays = {name: (getattr(ours, name), getattr(theirs, name)) for name in ("images", "x", "seeds", "timesteps")}
    arrays |= {name: (value, theirs.values[name]) for name, value in ours.values.items()}
    if ours.start_name is not None:
        arrays["pixels of start"] = ours.start, theirs.pixels[ours.start_name]
    for name, (expected, found) in arrays.items():
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
        state = theirs.info.state

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        for count in (3, 1):  # one for each sample, and shared by all
            given: Arguments = {"x_T": normal(count, *state), "noise": normal(4, count, *state)}
            given |= {spec.name: normal(count, *map(int, spec.sample)) for spec in ours.inputs}
            ddpm, ddim = {"method": "ddpm"}, {"eta": 1.0, "guidance": 0.5 * theirs.info.guided}
            for setting in ({"steps": 4, **ddpm}, {"steps": 4, **ddim}):
                check((ours, theirs), {**setting, **given}, n=3, seed=0)
                check((ours, theirs), {**setting, "x_T": given["x_T"]}, n=3, seed=9)


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_what_a_callback_sees(guidance: float, pair: Callable[..., Pair]) -> None:
    for model, max_batch in (("form1", 64), ("form2", 2)):
        ours, theirs = pair(model, max_batch)
        method = "ddpm" if model == "form1" else "plms"
        given: Arguments = {"n": 3, "seed": 4, "steps": 4, "method": method, "guidance": guidance}
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
        assert len(found) == (4 if model == "form1" else 2 * 5)


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
    monkeypatch.setenv(VARIABLE, isa)
    path = native_bundle("form1")
    with Sampler(path, "native", "bf16", threads=2) as ours, open_c(library, path, precision="bf16") as theirs:
        assert theirs.info.isa.decode() == isa
        check((ours, theirs), {"steps": 3}, n=3, seed=2)


@pytest.mark.parametrize("isa", [None, *ISAS])
def test_defaults(
    isa: str | None, library: Library, native_bundle: Callable[..., Path], with_prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who names nothing is given the same precision, setting, prior, threads and images in both languages."""
    if isa is not None:
        there, why = native_library().supports(isa)
        if not there:
            pytest.skip(f"this machine does not run {isa}: {why}")
        monkeypatch.setenv(VARIABLE, isa)
    for path in (native_bundle("form1"), native_bundle("form1", "bf16", "int8"), with_prior):
        with Sampler(path, "native") as ours, open_c(library, path, threads=UNSET) as theirs:
            found = theirs.info.precision.decode(), theirs.info.isa.decode(), theirs.info.threads, theirs.info.max_batch
            assert found == (ours.precision, instruction_set(), ours.threads, ours.max_batch)
            assert_same(ours.sample(seed=5), theirs.sample(seed=5))


def test_int8_alone_is_taken(library: Library, native_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """A bundle without bf16 of its step: the other precision, in both languages."""
    source = native_bundle("form1", "bf16", "int8")
    engines = Bundle.open(source).manifest.engines
    kept = [i for i, engine in enumerate(engines) if (engine.graph, engine.precision) != ("denoiser", "bf16")]
    path = changed_bundle(source, tmp_path / "int8.bundle", {"engines": lambda raw: [raw[i] for i in kept]})
    with Sampler(path, "native", threads=1) as ours, open_c(library, path, threads=1) as theirs:
        assert ours.precision == theirs.info.precision.decode() == "int8"


def test_what_is_said_of_a_bundle(pair: Callable[..., Pair]) -> None:
    for model in (*MODELS, "prior"):
        ours, theirs = pair(model, 2)
        manifest, info = ours.bundle.manifest, theirs.info
        spec = manifest.pipeline
        assert (info.image_channels, info.image_height, info.image_width) == spec.image_shape
        assert (info.state, info.timesteps) == (spec.state.shape, manifest.schedule.T)
        start = None if info.start is None else info.start.decode()
        flags = (spec.guided, spec.state.start is not None, manifest.prior is not None)
        assert ((info.guided, info.has_start, info.has_prior), start) == (flags, spec.state.start)
        names = (info.name.decode(), info.family.decode(), info.backend, info.precision)
        assert names == (manifest.name, manifest.family, b"native", b"bf16")
        assert (info.isa.decode(), info.threads, info.max_batch) == (instruction_set(), 2, 2)
        assert info.weight_bytes > 0
        assert [entry.text for entry in theirs.inputs.values()] == [str(entry) for entry in manifest.inputs]
        assert {"images", "x", "seeds", "timesteps", "step_ms"} <= theirs.outputs.keys()
        defaults = info.defaults.values()
        recorded = {name: defaults[name] for name in vars(manifest.defaults)}
        spacing = "linspace" if manifest.defaults.t_start is not None else "uniform"
        assert recorded == vars(manifest.defaults) | {"spacing": manifest.defaults.spacing or spacing}
