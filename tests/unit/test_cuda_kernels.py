"""Do the CUDA kernels compute what the CPU kernels do, bit for bit? Their source, run on the host thread by thread:
every size, alignment, launch shape and order of threads."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from engine import kernels
from engine.kernels import cuda_module
from tests import cuda_host
from tests.cuda_host import F32, GUIDANCE, HostKernels, Run, at, floats, row
from tests.kernel_choice import SEEDS

SIZES = [(0, 0), (0, 5), (1, 0), (1, 1), (1, 3), (2, 4), (2, 5), (3, 8), (3, 511), (2, 512), (2, 513), (1, 100_003)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    return HostKernels(tmp_path_factory.mktemp("cuda_on_host"))


def same_bits(a: F32, b: F32) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


# One step


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_update_has_the_bits_of_the_cpu_kernel(host, shape, offset):
    run = Run(host, shape, row(), offset)
    want, want_x0 = run.expected()
    run.step()
    assert same_bits(run.x, want)
    assert same_bits(run.x_copy, want)
    assert same_bits(run.x0, want_x0)
    assert run.control[:4].tolist() == [1, 0, 0, 1]


def test_update_has_the_bits_of_the_cpu_kernel_on_a_million_elements(host):
    run = Run(host, (1, 1_048_583), row())
    want, want_x0 = run.expected()
    run.step(grid=(64, 1, 1))  # each thread goes round its loop 32 times
    assert same_bits(run.x, want)
    assert same_bits(run.x0, want_x0)


def test_arrays_end_where_they_end(host):
    """Nothing beyond an array's last element is written, nor before its first."""
    for count in range(1, 14):
        run = Run(host, (2, count), row())
        memory = {name: np.full(2 * count + 32, 7, np.float32) for name in ("x", "x_copy", "x0")}
        for name, whole in memory.items():
            whole[16 : 16 + 2 * count] = getattr(run, name).ravel()
            setattr(run, name, whole[16 : 16 + 2 * count].reshape(2, count))
        want, _ = run.expected()
        run.step()
        assert same_bits(run.x, want)
        for whole in memory.values():
            assert (whole[:16] == 7).all()
            assert (whole[16 + 2 * count :] == 7).all()


@pytest.mark.parametrize("noise", ["given", "shared", "absent"])
@pytest.mark.parametrize("count", [8, 13, 515])
def test_noise_may_be_given(host, noise, count):
    array = floats((2, 1 if noise == "shared" else 3, count), 8)
    strides = (count, 0) if noise == "shared" else (3 * count, count)
    given = {"noise": None, "seeds": None} if noise == "absent" else {"noise": array, "strides": strides}
    fields = {"sigma": 0.0} if noise == "absent" else {}
    run = Run(host, (3, count), np.stack([row(**fields), row(**fields)]), **given)
    for step in range(2):
        want, _ = run.expected(step)
        run.step()
        assert same_bits(run.x, want)


@pytest.mark.parametrize(
    ("fields", "unread"),
    [
        ({"p_cond": 0, "k_cond": 0}, "cond"),
        ({"k_prev": 0}, "x0"),
        ({"sigma": 0}, "noise"),
        ({}, "eps_uncond"),
    ],
)
def test_an_operand_that_no_coefficient_uses_is_not_read(host, fields, unread):
    given = {"noise": floats((1, 2, 70), 8), "strides": (140, 70)}
    run = Run(host, (2, 70), row(**fields), **given)
    guidance = 0.0 if unread == "eps_uncond" else GUIDANCE
    run.upload(guidance)
    want, want_x0 = run.expected(guidance=guidance)
    getattr(run, unread)[:] = np.nan
    run.step()
    assert same_bits(run.x, want)
    assert same_bits(run.x0, want_x0)
    assert run.bad == 0


def test_absent_operands_count_as_zeros(host):
    run = Run(host, (2, 70), row(p_cond=0, k_cond=0, k_prev=0, sigma=0))
    run.upload(0.0)
    want, _ = run.expected(guidance=0.0)
    run.cond = run.x0 = run.seeds = run.eps_uncond = run.x_copy = None
    run.step()
    assert same_bits(run.x, want)


def test_one_coefficient_at_a_time_reads_the_operand(host):
    for fields in ({"p_cond": 0}, {"k_cond": 0}, {"k_prev": -0.5}, {"clip": math.inf}):
        run = Run(host, (2, 9), row(**fields))
        want, _ = run.expected()
        run.step()
        assert same_bits(run.x, want)


# Half eps


def test_every_half_becomes_its_float(host):
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 65536)
    for offset in (0, 1):
        memory = np.empty(65537, np.float16)
        eps = memory[offset : offset + 65536].reshape(1, 65536)
        eps[:] = halves
        only_eps = dict.fromkeys(kernels.ROW_FIELDS, 0.0) | {"p_eps": 1.0, "clip": math.inf}
        run = Run(host, (1, 65536), row(**only_eps), eps=eps, eps_uncond=None, seeds=None)
        run.upload(0.0)
        run.x[:] = 0
        run.step(grid=(16, 1, 1))
        want = halves.astype(np.float32)
        want[np.isinf(want)] = np.nan  # guidance, eps + w (eps - eps), makes NaN of infinity on the CPU as well
        np.testing.assert_array_equal(run.x0, want)
        assert run.bad == 1, "infinities and NaN among the halves are seen"


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("offset", [0, 1])
def test_half_eps_is_as_if_converted_before(host, shape, offset):
    halves = {name: floats(shape, seed, offset, np.float16) for seed, name in enumerate(("eps", "eps_uncond"))}
    run = Run(host, shape, row(), offset, **halves)
    want, want_x0 = run.expected()
    run.step()
    assert same_bits(run.x, want)
    assert same_bits(run.x0, want_x0)


# Launch shapes, orders, the step counter


def shapes() -> Iterator[tuple[tuple[int, int, int], int]]:
    yield from (((1, 1, 1), 1), ((1, 1, 1), 128), ((3, 2, 1), 32), ((7, 3, 1), 5), ((2, 9, 1), 97), ((5, 1, 1), 128))


@pytest.mark.parametrize(("grid", "block"), list(shapes()))
@pytest.mark.parametrize("order", [0, 1, 2])
def test_any_launch_shape_and_any_order_of_threads_gives_the_same_bits(host, grid, block, order):
    table = floats((3, 77), 11)
    run = Run(host, (3, 203), np.stack([row(), row(sigma=0.1), row(k_prev=0.4)]), table=table, table_row=np.zeros(77, "f4"))
    for step in range(3):
        want, want_x0 = run.expected(step)
        run.step(grid, block, order)
        assert same_bits(run.x, want)
        assert same_bits(run.x0, want_x0)
        assert run.control[:3].tolist() == [step + 1, 0, 0]
        assert same_bits(run.table_row, table[min(step + 1, 2)]), "the next step's row, kept after the last"


def chain(run: Run) -> list[F32]:
    """Three steps of the same launch, eps changing between them as a network's would."""
    states = []
    for step in range(3):
        run.eps[:] = floats((2, 61), 20 + step)
        run.step(order=step)
        states.append(run.x.copy())
    return states


def test_a_replay_after_an_upload_is_the_same_run_and_another_table_another(host):
    rows = np.stack([row(), row(sigma=0.2, p_x=0.9), row(k_x0=1, sigma=0)])
    run = Run(host, (2, 61), rows)
    begin, begin_x0 = run.x.copy(), run.x0.copy()
    first = chain(run)
    for replay in range(2):
        run.x[:], run.x0[:] = begin, begin_x0
        run.upload()
        assert all(same_bits(a, b) for a, b in zip(chain(run), first, strict=True)), f"replay {replay}"
    run.rows[:] = run.rows[::-1].copy()
    run.seeds[:] = run.seeds[::-1].copy()
    run.x[:], run.x0[:] = begin, begin_x0
    run.upload(guidance=0.0)
    for step in range(3):
        run.eps[:] = floats((2, 61), 20 + step)
        want, _ = run.expected(step, guidance=0.0)
        run.step()
        assert same_bits(run.x, want)


def test_a_step_beyond_the_table_changes_nothing_and_is_reported(host):
    run = Run(host, (2, 61), row(), table=floats((1, 5), 1), table_row=np.zeros(5, np.float32))
    run.step()
    before = run.x.copy()
    run.step()
    run.step()
    assert same_bits(run.x, before)
    assert run.control[:4].tolist() == [1, 0, cuda_module.BAD_OVERRUN, 1]


# Guards


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["eps", "eps_uncond"])
@pytest.mark.parametrize("where", [0, 7, 511, 512, 1036, 2073])
def test_the_guard_names_the_first_bad_step(host, bad, name, where):
    run = Run(host, (2, 1037), np.stack([row()] * 4))
    run.step()
    assert run.bad == 0
    getattr(run, name).ravel()[where] = bad
    run.step(order=1)
    assert run.bad == 2
    assert np.flatnonzero(~np.isfinite(run.x)).tolist() == [where], "no other element is touched"
    run.step()
    assert run.bad == 2, "the first finding stays"


def test_a_bad_row_of_the_timestep_table_is_reported(host):
    table = floats((2, 37), 1)
    table[1, 36] = np.inf
    run = Run(host, (1, 8), np.stack([row()] * 2), table=table, table_row=np.zeros(37, np.float32))
    run.step()
    assert run.bad == cuda_module.BAD_TABLE


# The other kernels


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("given", ["seeds", "x_T", "shared"])
@pytest.mark.parametrize("k", [(0.8, 0.3, 0.7), (1.0, 0.0, 0.0), (0.5, 0.0, 1.0)])
def test_start_has_the_bits_of_the_cpu(host, shape, offset, given, k):
    run = Run(host, shape, row(), offset, table=floats((1, 9), 2), table_row=np.zeros(9, np.float32))
    run.upload(start=k)
    samples, count = shape
    x_T = {"seeds": None, "x_T": floats(shape, 5, offset), "shared": floats((1, count), 5, offset)}[given]
    noise = kernels.normal(run.seeds, kernels.STREAM_X_T, 0, count) if x_T is None else x_T
    want = np.broadcast_to(noise * np.float32(k[0]), shape).copy()
    for coefficient, term in ((k[1], run.eps), (k[2], run.cond)):
        if coefficient != 0:
            want += np.float32(coefficient) * term
    if k[1] == 0:
        run.eps[:] = np.nan  # stands for the image, which is not read
    words = [
        at(run.control), at(run.seeds), at(x_T), 0 if given == "shared" else count, at(run.eps), at(run.cond), at(run.x),
        at(run.x_copy), at(run.table), at(run.table_row), 9, samples, count,
    ]  # fmt: skip
    host.launch("dv_start", cuda_module.launch_grid(count, samples), cuda_module.BLOCK, words, order=offset)
    assert same_bits(run.x, want)
    assert same_bits(run.x_copy, want)
    assert same_bits(run.table_row, run.table[0])
    assert run.control[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 512, 4099])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("stream", [kernels.STREAM_Z, kernels.STREAM_STEP])
def test_normals_have_the_bits_of_the_cpu(host, count, offset, stream):
    out = floats((3, SEEDS.size, count), 0, offset)
    words = [at(SEEDS), stream, 2**32 - 2, 3, SEEDS.size, count, at(out)]
    host.launch("dv_normal", cuda_module.launch_grid(count, SEEDS.size, 3), cuda_module.BLOCK, words, order=1)
    for i, step in enumerate((2**32 - 2, 2**32 - 1, 0)):
        assert same_bits(out[i], kernels.normal(SEEDS, stream, step, count))


@pytest.mark.parametrize("total", [0, 1, 5, 512, 1003])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("in_place", [False, True])
def test_cond_has_the_bits_of_numpy_and_guards(host, total, offset, in_place):
    image, cond = floats((total,), 1, offset), floats((total,), 2)
    out = image if in_place else cond
    want = image * np.float32(2) - np.float32(1)
    control = np.zeros(8, np.uint32)
    words = [at(control), at(image), at(out), total]
    host.launch("dv_cond", cuda_module.launch_grid(total), cuda_module.BLOCK, words)
    assert same_bits(out, want)
    assert not control.any()
    if total:
        image[-1] = np.nan
        host.launch("dv_cond", cuda_module.launch_grid(total), cuda_module.BLOCK, words)
        assert control.tolist() == [0, 0, cuda_module.BAD_IMAGE, 0, 0, 0, 0, 0]


IMAGES = [(0, 3, 4, 4), (2, 1, 3, 5), (2, 3, 1, 1), (3, 3, 17, 33), (1, 4, 9, 2), (2, 3, 64, 64), (2, 3, 6, 6), (1, 5, 2, 2)]


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("byte", [0, 1])
def test_to_uint8_has_the_bytes_of_the_cpu(host, shape, offset, byte):
    samples, channels, height, width = shape
    x = floats(shape, 3, offset)
    if x.size > 4:
        x.ravel()[:5] = [np.nan, np.inf, -np.inf, -1, 1]
    memory = np.full(x.size + 8, 77, np.uint8)
    out = memory[byte : byte + x.size].reshape(samples, height, width, channels)
    words = [at(x), at(out), samples, channels, height * width]
    host.launch("dv_to_uint8", cuda_module.launch_grid(height * width, samples), cuda_module.BLOCK, words, order=1)
    assert np.array_equal(out, kernels.to_uint8(x))
    assert (memory[:byte] == 77).all()
    assert (memory[byte + x.size :] == 77).all()


def test_the_host_run_refuses_what_a_gpu_would(host):
    with pytest.raises(AssertionError, match="no kernel of that name with that many arguments"):
        host.launch("dv_cond", (1, 1, 1), 128, [0, 0, 0])
    with pytest.raises(AssertionError, match="launch shape"):
        host.launch("dv_cond", (1, 1, 1), 256, [0, 0, 0, 0])


def test_kernels_are_clean_under_the_address_and_undefined_behaviour_sanitizers(tmp_path):
    sanitize = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    line = cuda_host.compile_command(tmp_path / "sanitize", *sanitize, str(cuda_host.HERE / "sanitize.cpp"))
    built = subprocess.run(line, capture_output=True, text=True, timeout=300)
    if "libasan" in built.stderr or "libubsan" in built.stderr:
        pytest.skip("the compiler has no sanitizer libraries on this machine")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([tmp_path / "sanitize"], capture_output=True, text=True, timeout=300)
    # The fibres: ASan says once that it follows them with less certainty.
    said = [line for line in done.stderr.splitlines() if "makecontext/swapcontext" not in line]
    assert (done.returncode, done.stdout, said) == (0, "clean\n", [])
