"""The CUDA kernels' own source and the golden vectors in the GPU runtime: launches run on the host, plans in mocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import golden as gpu_golden
from engine import Sampler
from engine.bundle.reader import Bundle
from engine.errors import NumericsError
from tests.cuda_host import HostKernels
from tests.integration.test_gpu_runtime_mock import KINDS, bundles, mock, same, settings
from tests.mock_tensorrt import Mock, build_bundle, with_plans

__all__ = ["bundles", "mock"]  # fixtures


@pytest.fixture(scope="module")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    return HostKernels(tmp_path_factory.mktemp("kernels"))


def test_the_kernels_source_gives_the_same_images(
    bundles: dict[str, Bundle], mock: Mock, host_kernels: HostKernels
) -> None:
    """kernels/cuda/update.cu itself, compiled for the host, does every launch that the runtime makes."""
    mock.cuda.launcher = host_kernels.launch
    for kind in KINDS:
        with Sampler(bundles[kind], "onnxruntime", "f32", 1) as cpu, Sampler(bundles[kind], "tensorrt_rtx") as gpu:
            for _, options in settings(kind):
                expected = cpu.sample(3, seed=11, **options)
                for _ in range(2):
                    same(gpu.sample(3, seed=11, **options), expected)
    assert mock.leaks() == {}


@pytest.mark.parametrize(
    ("graph", "when"), [("denoiser", "at step 1 of 3"), ("vae_decoder", "outside"), ("timestep_table", "outside")]
)
def test_the_kernels_source_finds_nan_where_it_arises(
    mock: Mock, host_kernels: HostKernels, tmp_path: Path, graph: str, when: str
) -> None:
    mock.cuda.launcher = host_kernels.launch
    with Sampler(build_bundle(tmp_path / "b", nan_at=graph), "tensorrt_rtx") as gpu:
        for callback in (None, None, lambda info: None):
            with pytest.raises(NumericsError, match=rf"graph '{graph}' \(tensorrt_rtx, .*returned NaN .*{when}"):
                gpu.sample(2, steps=3, seed=0, callback=callback)
    assert mock.leaks() == {}


@pytest.fixture(params=["form2", "form1_zcond"])
def golden(
    request: pytest.FixtureRequest, golden_bundle: Callable[[str], Path]
) -> tuple[Path, dict[str, np.ndarray]]:
    """A golden model's bundle and vectors. Made before the mock is there: torch looks at the driver's bindings."""
    pytest.importorskip("torch")
    from tests.golden_models import expected

    return golden_bundle(request.param), expected(request.param)


def test_golden_vectors_come_out_of_the_gpu_runtime(
    golden: tuple[Path, dict[str, np.ndarray]], mock: Mock, tmp_path: Path
) -> None:
    """What `make gpu-check` does on a GPU, with the golden models' float32 graphs in the mock's plans."""
    bundle, stored = golden
    found = [gpu_golden.CHAIN.fullmatch(key) for key in sorted(stored)]
    chains = [match[0] for match in found if match is not None and int(match[3]) <= 10]
    assert len(chains) > 1, found
    with Sampler(with_plans(bundle, tmp_path / "b"), "tensorrt_rtx") as gpu:
        for chain in chains:
            row = gpu_golden.compare(gpu, chain, stored)
            assert row["ok"], (chain, row)
            assert row["mean"] <= 2e-4, (chain, row)  # float32: far inside the tolerance of half
    assert mock.leaks() == {}
