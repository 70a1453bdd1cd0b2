"""update and to_uint8 against the formulas of row.h: every size, alignment and alias, with equal bits in C++ and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine import kernels
from engine.kernels import KernelArgumentError
from tests.kernel_choice import SEEDS, use

SHAPES = [(0, 3, 4, 4), (1, 0), (1, 1), (1, 3), (2, 5), (3, 3, 7, 5), (2, 511), (2, 512), (2, 513), (1, 20_003)]


def floats(shape: tuple[int, ...], seed: int, offset: int = 0) -> np.ndarray:
    """Normals in memory that begins `offset` floats after an allocation."""
    flat = np.random.default_rng(seed).standard_normal(math.prod(shape) + offset).astype(np.float32)
    return flat[offset:].reshape(shape)


def row(**fields: float) -> np.ndarray:
    values = dict.fromkeys(kernels.ROW_FIELDS, 0.0) | {"clip": math.inf} | fields
    return np.array([values[name] for name in kernels.ROW_FIELDS], np.float32)


PLAIN = row(p_x=1.3, p_e=-0.8, p_c=-0.4, k_x0=0.6, k_x=0.3, k_e=0.5, k_c=0.7, k_n=0.9, clip=1.0)
FULL = PLAIN + row(
    p_y=0.2, p_h1=-0.3, p_h2=0.1, p_h3=0.25, k_y=0.15, k_h1=-0.2, k_h2=0.35, k_h3=-0.1, k_g=0.45, clip=0.0, q_x0=0.3,
    q_x=-0.6, q_e=0.2, q_c=0.1, q_n=0.4, q_y=0.5, q_h1=-0.15, q_h2=0.05, q_h3=0.6, q_g=-0.7, s_n=0.25,
)  # fmt: skip
LEARNED = PLAIN + row(clip=0.0, s_n=0.6)
ROWS = {"plain": PLAIN, "full": FULL, "learned": LEARNED}
OPERANDS = ("x", "e", "c", "noise", "y", "h1", "h2", "h3", "g", "v")
WEIGHTS = np.array([1.7, -0.7], np.float32)


def operands(shape: tuple[int, ...], offset: int = 0, lanes: int = 1) -> dict[str, np.ndarray]:
    found = {name: floats(shape, i, (offset + i) % 4 if offset else 0) for i, name in enumerate(OPERANDS)}
    if lanes > 1:
        found["e"] = floats((lanes * shape[0], *shape[1:]), 20, offset)
        found["weights"] = np.resize(WEIGHTS, lanes)
    return found


def results(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Room for everything that a row can give."""
    return {name: np.full(shape, 7, np.float32) for name in ("out", "x0_out", "y_out", "push_out")}


def changed(r: np.ndarray, **fields: float) -> np.ndarray:
    r = r.copy()
    for name, value in fields.items():
        r[kernels.ROW_FIELDS.index(name)] = value
    return r


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def all_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


# The update


def expected_update(r: np.ndarray, o: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The formula in float64, term by term."""
    f = {name: float(value) for name, value in zip(kernels.ROW_FIELDS, r, strict=True)}
    v = {name: array.astype(float) for name, array in o.items() if name != "weights"}
    v["n"] = np.exp(f["s_n"] * v["v"]) * v["noise"]
    weights = o.get("weights", np.ones(1))
    v["e"] = np.tensordot(weights.astype(float), v["e"].reshape(weights.size, *v["x"].shape), 1)

    def total(letter: str) -> np.ndarray:
        return sum(f[name] * v[name[2:]] for name in kernels.ROW_FIELDS if name.startswith(f"{letter}_"))

    v["x0"] = np.clip(total("p"), -f["clip"], f["clip"])
    pushed = {1: v["e"], 2: v["x0"]}.get(int(f["push"]), np.full_like(v["x"], 7))
    return {"out": total("k"), "x0_out": v["x0"], "y_out": total("q"), "push_out": pushed}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("push", [0, 1, 2])
def test_update_is_the_formula(each, shape, lanes, push):
    o, got = operands(shape, lanes=lanes), results(shape)
    want = expected_update(changed(FULL, push=push), o)
    assert kernels.update(changed(FULL, push=push), **o, **got)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5, err_msg=name)


def literal(r: np.ndarray, x: np.ndarray, e: np.ndarray, c: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x', x0) of a row without history, operation by operation in numpy: the bits that plain rows must keep."""
    f = dict(zip(kernels.ROW_FIELDS, r, strict=True))
    x0 = f["p_x"] * x + f["p_e"] * e + f["p_c"] * c
    x0 = np.where(x0 < -f["clip"], -f["clip"], x0)
    x0 = np.where(x0 > f["clip"], f["clip"], x0)
    return f["k_x0"] * x0 + f["k_x"] * x + f["k_e"] * e + f["k_c"] * c + f["k_n"] * noise, x0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeroed", [(), ("p_c", "k_c"), ("k_n",), ("p_c", "k_c", "k_x", "k_n")])
def test_a_plain_row_has_the_bits_that_it_had_before_there_were_full_ones(each, shape, zeroed):
    r, o = changed(PLAIN, **dict.fromkeys(zeroed, 0.0)), operands(shape)
    out, x0 = np.empty(shape, np.float32), np.empty(shape, np.float32)
    assert kernels.update(r, **o, out=out, x0_out=x0)
    want, want_x0 = literal(r, o["x"], o["e"], o["c"], o["noise"])
    assert same_bits(out, want)
    assert same_bits(x0, want_x0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_update_has_the_same_bits_in_numpy(monkeypatch, shape, offset, kind, lanes):
    o, push = operands(shape, offset, lanes), lanes % 3
    found = []
    for name in ("compiled", "numpy"):
        use(monkeypatch, name)
        found.append({key: floats(shape, 8 + i, offset * i) for i, key in enumerate(results(shape))})
        kernels.update(changed(ROWS[kind], push=push), **o, **found[-1])
    assert all_same_bits(*found)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("push", [1, 2])
def test_every_result_may_take_the_place_of_any_operand(each, kind, push):
    shape = (2, 3, 9, 7)
    r, o, want = changed(ROWS[kind], push=push), operands(shape), results(shape)
    kernels.update(r, **o, **want)
    for name in OPERANDS:
        for target in want:
            copy = {key: array.copy() for key, array in o.items()}
            got = results(shape) | {target: copy[name]}
            kernels.update(r, **copy, **got)
            if kind != "full" and target == "y_out":
                want["y_out"] = copy[name]  # untouched
            assert same_bits(got[target], want[target]), (name, target)


def test_all_results_at_once_take_the_place_of_operands(each):
    """x, y and the history in place, as a chain runs them: h3 gives way to the newest value after it was read."""
    shape = (2, 600)
    r, o, want = changed(FULL, push=2), operands(shape), results(shape)
    kernels.update(r, **o, **want)
    assert kernels.update(r, **o, y_out=o["y"], push_out=o["h3"])
    assert same_bits(o["x"], want["out"])
    assert same_bits(o["y"], want["y_out"])
    assert same_bits(o["h3"], want["push_out"])


def test_update_without_out_replaces_x(each):
    o = operands((2, 30))
    want = np.empty((2, 30), np.float32)
    kernels.update(PLAIN, **o, out=want)
    kernels.update(PLAIN, **o)
    assert same_bits(o["x"], want)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("absent", OPERANDS[2:])
def test_an_operand_that_no_coefficient_uses_may_be_absent_and_is_not_read(each, kind, absent):
    letters = {f"{letter}_{'n' if absent == 'noise' else absent}": 0.0 for letter in "pkq"} | {"s_n": 0.0}
    r = changed(ROWS[kind], **{name: value for name, value in letters.items() if name in kernels.ROW_FIELDS})
    o = operands((3, 600))
    o[absent][:] = np.nan
    present, missing = results((3, 600)), results((3, 600))
    assert kernels.update(r, **o, **present)
    assert kernels.update(r, **{k: v for k, v in o.items() if k != absent}, **missing)
    assert np.isfinite(present["out"]).all()
    assert all_same_bits(present, missing)


def test_y_and_the_history_are_kept_by_rows_that_do_not_set_them(each):
    got = results((2, 40))
    no_q = {name: 0.0 for name in kernels.ROW_FIELDS if name.startswith("q_")}
    kernels.update(changed(FULL, **no_q), **operands((2, 40)), **got)
    assert (got["y_out"] == 7).all()
    assert (got["push_out"] == 7).all()
    assert (got["out"] != 7).any()


def test_one_more_term_makes_a_row_full_and_changes_nothing_else(each):
    """A y of zeros adds nothing: full and plain rows agree but for the sign of zero."""
    o = operands((2, 100)) | {"y": np.zeros((2, 100), np.float32)}
    plain, full = results((2, 100)), results((2, 100))
    kernels.update(PLAIN, **o, **plain)
    kernels.update(changed(PLAIN, p_y=3.0), **o, **full)
    np.testing.assert_array_equal(plain["out"], full["out"])


# Lanes


@pytest.mark.parametrize("kind", ROWS)
def test_lanes_are_summed_in_order(each, kind):
    o, two, one = operands((2, 700), lanes=3), results((2, 700)), results((2, 700))
    kernels.update(changed(ROWS[kind], push=1), **o, **two)
    w, e = o.pop("weights"), o.pop("e").reshape(3, 2, 700)
    total = w[0] * e[0] + w[1] * e[1] + w[2] * e[2]
    kernels.update(changed(ROWS[kind], push=1), **o, e=total, **one)
    assert all_same_bits(two, one)
    assert same_bits(two["push_out"], total)


@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (0, 1, 0), (1, 0, 0)])
def test_a_lane_of_weight_0_is_not_read(each, weights):
    o, want, got = operands((2, 700), lanes=len(weights)), results((2, 700)), results((2, 700))
    o["weights"] = np.array(weights, np.float32)
    lane = weights.index(1)
    e = o["e"][2 * lane : 2 * lane + 2].copy()
    o["e"][:] = np.nan
    o["e"][2 * lane : 2 * lane + 2] = e
    assert kernels.update(PLAIN, **o, **got)
    kernels.update(PLAIN, **(o | {"e": e, "weights": None}), **want)
    assert all_same_bits(got, want)


def test_one_lane_is_scaled_by_its_weight(each):
    o, got, want = operands((2, 50)), results((2, 50)), results((2, 50))
    kernels.update(PLAIN, **o, weights=np.array([0.3], np.float32), **got)
    kernels.update(PLAIN, **(o | {"e": np.float32(0.3) * o["e"]}), **want)
    assert all_same_bits(got, want)


def test_without_a_lane_e_is_zeros(each):
    o, got, want = operands((2, 50), lanes=2), results((2, 50)), results((2, 50))
    o["weights"][:] = 0
    o["e"][:] = np.nan
    assert kernels.update(PLAIN, **o, **got)
    kernels.update(PLAIN, **(o | {"e": np.zeros((2, 50), np.float32), "weights": None}), **want)
    assert all_same_bits(got, want)


# Noise


@pytest.mark.parametrize("count", [1, 5, 512, 1029])
@pytest.mark.parametrize("kind", ROWS)
def test_generated_noise_is_the_noise_of_normal(each, count, kind):
    shape = (SEEDS.size, count)
    o, given, generated = operands(shape), results(shape), results(shape)
    o["noise"] = kernels.normal(SEEDS, kernels.STREAM_STEP, 6, count)
    kernels.update(ROWS[kind], **o, **given)
    del o["noise"]
    kernels.update(ROWS[kind], **o, seeds=SEEDS, step=6, **generated)
    assert all_same_bits(given, generated)


def test_noise_of_one_sample_is_shared_by_the_batch(each):
    o = operands((3, 3, 9, 9))
    one = o["noise"][:1].copy()
    repeated, shared = np.empty((3, 3, 9, 9), np.float32), np.empty((3, 3, 9, 9), np.float32)
    kernels.update(PLAIN, **(o | {"noise": np.repeat(one, 3, axis=0)}), out=repeated)
    kernels.update(PLAIN, **(o | {"noise": one}), out=shared)
    assert same_bits(repeated, shared)


# The noise that the network scales


def test_the_exponential_is_right_to_1e7_over_all_that_float32_holds(each):
    z = np.concatenate([np.linspace(-87, 88, 40_001), np.linspace(-2, 2, 20_001)]).astype(np.float32)[None]
    out, ones = np.empty_like(z), np.ones_like(z)
    assert kernels.update(row(k_n=1, s_n=1), 0 * z, 0 * z, noise=ones, v=z, out=out)
    np.testing.assert_allclose(out, np.exp(z.astype(float)), rtol=1e-7, atol=0)
    far = np.array([[-1e30, -88, 89, 1e30, 0, -0.0]], np.float32)
    assert kernels.update(row(k_n=1, s_n=1), 0 * far, 0 * far, noise=np.ones_like(far), v=far, out=far)
    assert far.tolist() == [[out[0, 0]] * 2 + [out[0, 40_000]] * 2 + [1, 1]], "the nearer end"


@pytest.mark.parametrize("fields", [{"k_n": 0.7}, {"q_n": 0.7}])
def test_scaled_noise_is_the_noise_of_seeds_times_the_exponential(each, fields):
    shape = (2, 700)
    o, scaled, by_hand = operands(shape), results(shape), results(shape)
    del o["noise"]
    factor, ones = np.empty(shape, np.float32), np.ones(shape, np.float32)
    kernels.update(row(k_n=1, s_n=0.6), 0 * ones, 0 * ones, noise=ones, v=o["v"], out=factor)
    noise = factor * kernels.normal(SEEDS[:2], kernels.STREAM_STEP, 3, 700)
    kernels.update(row(p_x=1, k_x=1, s_n=0.6, **fields), **o, seeds=SEEDS[:2].copy(), step=3, **scaled)
    kernels.update(row(p_x=1, k_x=1, **fields), **o, noise=noise, **by_hand)
    np.testing.assert_array_equal(scaled["out"], by_hand["out"])
    np.testing.assert_array_equal(scaled["y_out"], by_hand["y_out"])


@pytest.mark.parametrize("at", [0, 512, 1036])
@pytest.mark.parametrize("kind", ["full", "learned"])
def test_guard_reports_one_bad_value_of_the_second_output(each, at, kind):
    o = operands((1, 1037))
    o["v"][0, at] = math.nan
    assert not kernels.update(ROWS[kind], **o, **results((1, 1037)))
    assert kernels.update(PLAIN, **o, **results((1, 1037))), "a row without s_n does not read it"


# Limits and the guard


def test_x0_is_limited_to_clip(each):
    x = np.array([[-3, -1, 0.5, 1, 3]], np.float32)
    for clip, want in ((1, [-1, -1, 0.5, 1, 1]), (2, [-2, -1, 0.5, 1, 2]), (math.inf, [-3, -1, 0.5, 1, 3])):
        out = np.empty_like(x)
        kernels.update(row(p_x=1, k_x0=1, clip=clip), x, np.zeros_like(x), out=out)
        assert out.tolist() == [want]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 7, 511, 512, 1024, 1036])
@pytest.mark.parametrize("lane", [0, 1])
@pytest.mark.parametrize("kind", ROWS)
def test_guard_reports_one_bad_network_value_anywhere(each, bad, at, lane, kind):
    o = operands((1, 1037), lanes=2)
    assert kernels.update(ROWS[kind], **o, **results((1, 1037)))
    o["e"][lane, at] = bad
    assert not kernels.update(ROWS[kind], **o, **results((1, 1037)))


def test_nan_stays_nan_and_touches_no_other_element(each):
    o = operands((2, 100))
    o["e"][1, 13] = np.nan
    kernels.update(PLAIN, **o)
    assert np.argwhere(np.isnan(o["x"])).tolist() == [[1, 13]]


@pytest.mark.parametrize("kind", ROWS)
def test_threads_change_no_bit(monkeypatch, kind):
    use(monkeypatch, "compiled")
    shape, r = (3, 1_100_001), changed(ROWS[kind], push=1)
    o, serial, parallel = operands(shape), results(shape), results(shape)
    del o["noise"]
    for threads, got in ((1, serial), (3, parallel)):
        assert kernels.update(r, **o, seeds=SEEDS[:3].copy(), step=1, threads=threads, **got)
    assert all_same_bits(serial, parallel)
    o["e"][2, 1_100_000] = np.nan
    assert not kernels.update(r, **o, seeds=SEEDS[:3].copy(), step=1, threads=3, **parallel)


# Refused arguments


def good() -> dict:
    return {"row": row(k_x=1), "x": floats((2, 8), 0), "e": floats((2, 8), 1)}


READ_ONLY = np.zeros((2, 8), np.float32)
READ_ONLY.setflags(write=False)
BYTES = np.zeros(65, np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": row(k_x=1)[:10]}, r"row is float32 \[10\]; expected C-contiguous, aligned float32 \[31\]"),
        ({"row": row(k_x=math.nan)}, "the row has k_x = nan; expected finite coefficients"),
        ({"row": row(q_g=math.inf)}, "the row has q_g = inf; expected finite coefficients"),
        ({"row": row(c_in=math.nan)}, "the row has c_in = nan; expected finite coefficients"),
        ({"row": row(k_x=1, clip=-1)}, "clip = -1.0; expected clip >= 0, or infinity"),
        ({"row": row(k_x=1, clip=math.nan)}, "clip = nan; expected clip >= 0, or infinity"),
        ({"row": row(k_x=1, push=3)}, r"push = 3.0; expected 0 \(nothing\), 1 \(e\) or 2 \(x0\)"),
        ({"row": row(k_x=1, push=0.5)}, "push = 0.5; expected 0"),
        ({"x": np.float32(1)}, "x is a float32; expected"),
        ({"x": np.zeros((), np.float32)}, "x is a single number"),
        ({"x": np.zeros((2, 8))}, r"x is float64 \[2, 8\]; expected"),
        ({"x": np.zeros((2, 16), np.float32)[:, ::2]}, r"x is non-contiguous float32 \[2, 8\].*np.ascontiguousarray"),
        ({"x": BYTES[1:].view(np.float32).reshape(2, 8)}, "aligned"),
        ({"e": np.zeros((2, 7), np.float32)}, r"e is float32 \[2, 7\]; expected .*\[2, 8\]"),
        ({"e": None}, "e is a NoneType"),
        ({"weights": WEIGHTS}, r"e is float32 \[2, 8\]; expected .*\[4, 8\]"),
        ({"weights": [1.0]}, "weights is a list"),
        ({"weights": np.zeros((1, 1), np.float32)}, r"weights have shape \[1, 1\]; expected \[L\], one weight a lane"),
        ({"weights": np.zeros(0, np.float32)}, r"weights have shape \[0\]; expected \[L\]"),
        ({"c": np.zeros((1, 8), np.float32)}, r"c is float32 \[1, 8\]"),
        ({"h2": np.zeros((2, 8))}, r"h2 is float64 \[2, 8\]"),
        ({"noise": np.zeros((3, 8), np.float32)}, r"noise is float32 \[3, 8\]; expected .*\[2, 8\] or \[1, 8\]"),
        ({"out": np.zeros((2, 9), np.float32)}, r"out is float32 \[2, 9\]"),
        ({"out": READ_ONLY}, "expected writable"),
        ({"y_out": READ_ONLY}, "y_out is .*expected writable"),
        ({"push_out": READ_ONLY}, "push_out is .*expected writable"),
        ({"x0_out": [0.0]}, "x0_out is a list"),
        ({"row": row(p_c=1)}, "p_c = 1.0 but c is absent: pass c"),
        ({"row": row(k_c=2)}, "k_c = 2.0 but c is absent"),
        ({"row": row(p_y=1)}, "p_y = 1.0 but y is absent: pass y"),
        ({"row": row(p_h1=1)}, "p_h1 = 1.0 but h1 is absent: pass h1"),
        ({"row": row(k_h2=1)}, "k_h2 = 1.0 but h2 is absent"),
        ({"row": row(q_h3=1)}, "q_h3 = 1.0 but h3 is absent"),
        ({"row": row(k_g=1)}, "k_g = 1.0 but g is absent"),
        ({"row": row(s_n=0.1)}, "s_n = 0.1.* but v is absent: pass v"),
        ({"row": row(s_n=math.inf)}, "the row has s_n = inf; expected finite coefficients"),
        ({"row": row(q_x=1)}, "q_x = 1.0 but y_out is absent: pass y_out, which may be y"),
        ({"row": row(push=1)}, "push = 1 but push_out is absent: pass push_out, which may be h3"),
        ({"row": row(k_n=0.5)}, "k_n = 0.5 but no noise: pass noise, or seeds and step"),
        ({"seeds": SEEDS[:2].copy()}, "seeds and step go together"),
        ({"step": 1}, "seeds and step go together"),
        ({"seeds": SEEDS.copy(), "step": 1}, r"seeds is uint64 \[4\]; expected .*\[2\]"),
        ({"seeds": np.zeros(2, np.int64), "step": 1}, r"seeds is int64 \[2\]; expected .*uint64"),
        ({"seeds": SEEDS[:2].copy(), "step": -1}, r"step is -1; expected 0 \.\. 2\*\*32 - 1"),
        ({"seeds": SEEDS[:2].copy(), "step": 1, "noise": np.zeros((2, 8), np.float32)}, "noise and seeds are both given"),
    ],
)
def test_update_refuses(each, change, message):
    with pytest.raises(KernelArgumentError, match=message):
        kernels.update(**(good() | change))


def test_update_refuses_partial_overlap(each):
    memory = np.zeros(100, np.float32)
    here, there = memory[:16].reshape(2, 8), memory[8:24].reshape(2, 8)
    with pytest.raises(KernelArgumentError, match="out overlaps x: expected separate memory"):
        kernels.update(**(good() | {"x": here, "out": there}))
    with pytest.raises(KernelArgumentError, match="x0_out overlaps out"):
        kernels.update(**(good() | {"out": here, "x0_out": here}))
    with pytest.raises(KernelArgumentError, match="push_out overlaps h2"):
        kernels.update(**(good() | {"h2": here, "push_out": there}))
    with pytest.raises(KernelArgumentError, match="push_out overlaps y_out"):
        kernels.update(**(good() | {"y_out": here, "push_out": here}))
    e = memory[:32].reshape(4, 8)
    with pytest.raises(KernelArgumentError, match="out overlaps e"):
        kernels.update(**(good() | {"e": e, "weights": WEIGHTS, "out": memory[16:32].reshape(2, 8)}))
    with pytest.raises(KernelArgumentError, match="out overlaps noise"):
        kernels.update(**(good() | {"noise": memory[:8].reshape(1, 8), "out": here}))


# Images


def test_to_uint8_clips_and_rounds_half_up(each):
    values = [-2, -1, -0.9999, 0, 1 / 255, 0.9999, 1, 2, math.nan, math.inf, -math.inf, (100.5 / 127.5) - 1]
    want = [0, 0, 0, 128, 128, 255, 255, 255, 0, 255, 0, 101]
    x = np.array(values, np.float32).reshape(1, 1, 3, 4)
    assert kernels.to_uint8(x).reshape(-1).tolist() == want


def test_to_uint8_returns_every_byte_it_was_made_from(each):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x = np.ascontiguousarray((pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2))
    assert np.array_equal(kernels.to_uint8(x), pixels)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 1, 3, 5), (2, 3, 1, 1), (3, 3, 17, 33), (1, 4, 9, 2), (2, 3, 64, 64)])
def test_to_uint8_has_the_same_bytes_in_numpy(monkeypatch, shape):
    x = floats(shape, 3, offset=1)
    results = []
    for name in ("compiled", "numpy"):
        use(monkeypatch, name)
        results.append(kernels.to_uint8(x))
    assert results[0].shape == (shape[0], *shape[2:], shape[1])
    assert np.array_equal(*results)


def test_to_uint8_refuses(each):
    with pytest.raises(KernelArgumentError, match=r"x has shape \(3, 4\); expected \[N, C, H, W\]"):
        kernels.to_uint8(np.zeros((3, 4), np.float32))
    with pytest.raises(KernelArgumentError, match=r"out is uint8 \[1, 3, 4, 4\]; expected writable .*\[1, 4, 4, 3\]"):
        kernels.to_uint8(np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 3, 4, 4), np.uint8))
