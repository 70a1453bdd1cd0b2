"""The CUDA kernels compute what the CPU kernels do, bit for bit: their source, run on the host thread by thread, at every
size, alignment, launch shape and order of threads."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from engine import kernels
from engine.kernels import cuda_module
from tests import cuda_host
from tests.cuda_host import F32, FULL, HostKernels, Run, at, floats, full_row, row

SIZES = [(0, 0), (0, 5), (1, 0), (1, 1), (1, 3), (2, 4), (2, 5), (3, 8), (3, 511), (2, 512), (2, 513), (1, 100_003)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    return HostKernels(tmp_path_factory.mktemp("cuda_on_host"))


def same_bits(a: F32, b: F32) -> bool:
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def check(run: Run, want: dict[str, F32]) -> None:
    """Every array is what the CPU kernel makes of it; those that were taken away count as right."""
    for name, array in want.items():
        found = getattr(run, name)
        assert found is None or same_bits(found, array), name


def take(run: Run, step: int = 0, **launch: object) -> None:
    """One launch, checked."""
    want = run.expected(step)
    run.step(**launch)  # type: ignore[arg-type]
    check(run, want)


# One row


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [row(), full_row(push=1)], ids=["plain", "full"])
def test_update_has_the_bits_of_the_cpu_kernel(host, shape, offset, rows):
    run = Run(host, shape, rows, offset)
    take(run)
    assert run.control[:5].tolist() == [1, 0, 0, 1, int(rows[-1])]


@pytest.mark.parametrize("rows", [row(push=2), full_row()], ids=["plain", "full"])
def test_update_has_the_bits_of_the_cpu_kernel_on_a_million_elements(host, rows):
    run = Run(host, (1, 1_048_583), rows)
    take(run, grid=(64, 1, 1))  # each thread goes round its loop 32 times


@pytest.mark.parametrize("rows", [row(push=1), full_row(push=2)], ids=["plain", "full"])
def test_arrays_end_where_they_end(host, rows):
    """Nothing beyond an array's last element is written, nor before its first."""
    for count in range(1, 14):
        run = Run(host, (2, count), rows)
        memory = {}
        for name in ("x", "x_in", "x0", "y", "h"):
            values = getattr(run, name)
            whole = memory[name] = np.full(values.size + 32, 7, np.float32)
            whole[16 : 16 + values.size] = values.ravel()
            setattr(run, name, whole[16 : 16 + values.size].reshape(values.shape))
        take(run)
        for whole in memory.values():
            assert (whole[:16] == 7).all()
            assert (whole[-16:] == 7).all()


@pytest.mark.parametrize("noise", ["given", "shared", "absent"])
@pytest.mark.parametrize("count", [8, 13, 515])
def test_noise_may_be_given(host, noise, count):
    array = floats((2, 1 if noise == "shared" else 3, count), 8)
    strides = (count, 0) if noise == "shared" else (3 * count, count)
    given = {"noise": None, "seeds": None} if noise == "absent" else {"noise": array, "strides": strides}
    fields = {"k_n": 0.0} if noise == "absent" else {}
    run = Run(host, (3, count), np.stack([row(**fields), row(**fields)]), **given)
    for step in range(2):
        take(run, step)


ABSENT = {name: dict.fromkeys((key for key in FULL if key[1:] == f"_{name}"), 0.0) for name in ("y", "g", "h1", "h2", "h3")}
ABSENT["v"] = {"s_n": 0.0}


@pytest.mark.parametrize(
    ("fields", "unread"),
    [
        ({"p_c": 0, "k_c": 0, "q_c": 0}, "c"),
        ({"k_n": 0, "q_n": 0}, "noise"),
        (ABSENT["g"], "g"),
        (ABSENT["v"], "v"),
        (ABSENT["y"] | {name: 0.0 for name in FULL if name.startswith("q_")}, "y"),
        (ABSENT["h1"], 1),
        (ABSENT["h2"], 2),
        (ABSENT["h3"], 3),
    ],
    ids=["c", "noise", "g", "v", "y", "h1", "h2", "h3"],
)
@pytest.mark.parametrize("full", [False, True])
def test_an_operand_that_no_coefficient_uses_is_not_read(host, fields, unread, full):
    given = {"noise": floats((1, 2, 70), 8), "strides": (140, 70)}
    run = Run(host, (2, 70), full_row(**fields) if full else row(**fields), **given)
    want = run.expected()
    target = run.history(unread) if isinstance(unread, int) else getattr(run, unread)
    target[:] = np.nan
    run.step()
    for name in ("x", "x0"):
        assert same_bits(getattr(run, name), want[name]), name
    if full and unread != "y":
        assert same_bits(run.y, want["y"])
    assert np.isnan(target).all(), "nor written"
    assert run.bad == 0


def test_absent_operands_count_as_zeros(host):
    run = Run(host, (2, 70), row(p_c=0, k_c=0, k_n=0), lanes=1)
    want = run.expected()
    run.c = run.x0 = run.seeds = run.x_in = run.h = run.y = run.g = run.v = None
    run.step()
    assert same_bits(run.x, want["x"])


@pytest.mark.parametrize("name", [*(f for f in kernels.ROW_FIELDS[:27]), "clip", "s_n"])
def test_one_coefficient_at_a_time_reads_its_operand(host, name):
    values = dict.fromkeys(FULL, 0.0) | {"k_x": 1.0}
    run = Run(host, (2, 9), full_row(**{**values, "p_e": -0.8, name: math.inf if name == "clip" else 0.4}))
    take(run)


# Lanes and the network's input


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 8), (2, 5), (1, 513)])
def test_lanes_are_summed_by_their_rows_weights(host, lanes, shape):
    rows = np.stack([row(c_in=0.5), row(c_in=1.0), row(c_in=0.25)])
    run = Run(host, shape, rows, lanes=lanes)
    run.weights[1, 1:] = 0.0
    run.weights[2] = np.linspace(-1, 2, lanes)
    for step in range(3):
        take(run, step)


@pytest.mark.parametrize("weights", [[0, 2], [1, 0], [0, 0]])
def test_a_lane_without_weight_is_not_read(host, weights):
    run = Run(host, (2, 70), row())
    run.weights[:] = weights
    want = run.expected()
    for lane in np.flatnonzero(np.array(weights) == 0):
        run.e[lane] = np.nan
    run.step()
    check(run, want)
    assert run.bad == 0


def test_the_input_of_a_single_unscaled_lane_is_x_itself(host):
    run = Run(host, (2, 70), row(), lanes=1, x_in=None)
    before = run.x.copy()
    take(run)
    assert not same_bits(run.x, before)


# The history


@pytest.mark.parametrize("shape", [(2, 61), (1, 512), (3, 4)])
def test_the_history_is_a_ring(host, shape):
    """Seven rows that push, or do not, in any order: h1 is always what was pushed last."""
    pushes = [1, 2, 0, 2, 1, 1, 2]
    run = Run(host, shape, np.stack([full_row(push=push, k_x=0.4) for push in pushes]))
    pushed = [run.history(3).copy(), run.history(2).copy(), run.history(1).copy()]
    for step, push in enumerate(pushes):
        run.e[:] = floats(run.e.shape, 20 + step)
        e = (run.weights[step][0] * run.e[0] + run.weights[step][1] * run.e[1]).astype(np.float32)
        take(run, step, order=step)
        if push:
            pushed.append(run.x0.copy() if push == 2 else e)
        for age in (1, 2, 3):
            assert same_bits(run.history(age), pushed[-age]), (step, age)
    assert run.control[4] == 6


def test_a_plain_rows_kernel_refuses_a_full_row(host):
    run = Run(host, (2, 61), np.stack([row(), full_row()]))
    run.full = False
    take(run)
    before = run.x.copy()
    run.step()
    assert same_bits(run.x, before)
    assert run.control[:4].tolist() == [1, 0, cuda_module.BAD_FULL_ROW, 2]


def test_both_kernels_agree_on_plain_rows(host):
    runs = [Run(host, (2, 61), np.stack([row(push=2), row()])) for _ in range(2)]
    runs[1].full = True
    for run in runs:
        take(run)
        take(run, 1)
    assert same_bits(runs[0].x, runs[1].x)


# Launch shapes, orders, the row counter


def shapes() -> Iterator[tuple[tuple[int, int, int], int]]:
    yield from (((1, 1, 1), 1), ((1, 1, 1), 128), ((3, 2, 1), 32), ((7, 3, 1), 5), ((2, 9, 1), 97), ((5, 1, 1), 128))


@pytest.mark.parametrize(("grid", "block"), list(shapes()))
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("full", [False, True])
def test_any_launch_shape_and_any_order_of_threads_gives_the_same_bits(host, grid, block, order, full):
    table = floats((3, 77), 11)
    kind = full_row if full else row
    rows = np.stack([kind(push=1), kind(k_n=0.1, c_in=0.5), kind(push=2)])
    run = Run(host, (3, 203), rows, table=table, table_row=np.zeros(77, "f4"))
    for step in range(3):
        take(run, step, grid=grid, block=block, order=order)
        assert run.control[:3].tolist() == [step + 1, 0, 0]
        assert same_bits(run.table_row, table[min(step + 1, 2)]), "the next step's row, kept after the last"


def chain(run: Run) -> list[F32]:
    """Three rows of the same launch, e changing between them as a network's would."""
    states = []
    for step in range(3):
        run.e[:] = floats(run.e.shape, 20 + step)
        run.step(order=step)
        states.append(run.x.copy())
    return states


def test_a_replay_after_an_upload_is_the_same_run_and_another_table_another(host):
    run = Run(host, (2, 61), np.stack([full_row(push=1), full_row(k_n=0.2, p_x=0.9, push=1), row(k_x0=1, k_n=0)]))
    begin = {name: getattr(run, name).copy() for name in ("x", "y", "h")}

    def again() -> None:
        for name, values in begin.items():
            getattr(run, name)[:] = values
        run.upload()

    first = chain(run)
    for replay in range(2):
        again()
        assert all(same_bits(a, b) for a, b in zip(chain(run), first, strict=True)), f"replay {replay}"
    run.rows[:] = run.rows[::-1].copy()
    run.weights[:] = [[1, 0], [2, -1], [0.5, 0.5]]
    run.seeds[:] = run.seeds[::-1].copy()
    again()
    for step in range(3):
        run.e[:] = floats(run.e.shape, 20 + step)
        take(run, step)


def test_a_row_beyond_the_table_changes_nothing_and_is_reported(host):
    run = Run(host, (2, 61), row(push=1), table=floats((1, 5), 1), table_row=np.zeros(5, np.float32))
    run.step()
    before = run.x.copy()
    run.step()
    run.step()
    assert same_bits(run.x, before)
    assert run.control[:5].tolist() == [1, 0, cuda_module.BAD_OVERRUN, 1, 1]


# Guards


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("lane", [0, 1])
@pytest.mark.parametrize("where", [0, 7, 511, 512, 1036, 2073])
def test_the_guard_names_the_first_bad_row(host, bad, lane, where):
    run = Run(host, (2, 1037), np.stack([row()] * 4))
    run.step()
    assert run.bad == 0
    run.e[lane].ravel()[where] = bad
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
    assert run.bad == cuda_module.BAD_ROWS


@pytest.mark.parametrize("total", [0, 1, 5, 512, 1003])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_guard_of_calls_outside_the_loop_names_the_call(host, total, offset):
    values, control = floats((total,), 1, offset), np.zeros(8, np.uint32)
    words = [at(control), at(values), total, cuda_module.BAD_CALL + 3]
    before = values.copy()
    host.launch("dv_finite", cuda_module.launch_grid(total), cuda_module.BLOCK, words)
    assert not control.any()
    assert same_bits(values, before)
    for bad in (math.nan, -math.inf) if total else ():
        values[-1] = bad
        control[:] = 0
        host.launch("dv_finite", cuda_module.launch_grid(total), cuda_module.BLOCK, words, order=1)
        assert control.tolist() == [0, 0, cuda_module.BAD_CALL + 3, 0, 0, 0, 0, 0]


# The other kernels


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("given", ["seeds", "x_T", "shared"])
@pytest.mark.parametrize("k", [(0.8, 0.3, 0.7), (1.0, 0.0, 0.0), (0.5, 0.0, 1.0)])
def test_start_has_the_bits_of_the_cpu(host, shape, offset, given, k):
    run = Run(host, shape, row(c_in=0.5), offset, table=floats((1, 9), 2), table_row=np.zeros(9, np.float32))
    run.upload(start=k)
    samples, count = shape
    x_T = {"seeds": None, "x_T": floats(shape, 5, offset), "shared": floats((1, count), 5, offset)}[given]
    noise = kernels.normal(run.seeds, kernels.STREAM_X_T, 0, count) if x_T is None else x_T
    start = run.g
    want = np.broadcast_to(noise * np.float32(k[0]), shape).copy()
    for coefficient, term in ((k[1], start), (k[2], run.c)):
        if coefficient != 0:
            want += np.float32(coefficient) * term
    if k[1] == 0:
        start[:] = np.nan  # not read
    words = [
        at(run.control), at(run.rows), at(run.seeds), at(x_T), 0 if given == "shared" else count, at(start), at(run.c),
        at(run.x), at(run.x_in), 2, at(run.table), at(run.table_row), 9, samples, count,
    ]  # fmt: skip
    host.launch("dv_start", cuda_module.launch_grid(count, samples), cuda_module.BLOCK, words, order=offset)
    assert same_bits(run.x, want)
    assert same_bits(run.x_in, np.broadcast_to(np.float32(0.5) * want, run.x_in.shape))
    assert same_bits(run.table_row, run.table[0])
    assert run.control[:3].tolist() == [0, 0, 0]


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
        host.launch("dv_finite", (1, 1, 1), 128, [0, 0, 0])
    with pytest.raises(AssertionError, match="launch shape"):
        host.launch("dv_finite", (1, 1, 1), 256, [0, 0, 0, 0])


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
