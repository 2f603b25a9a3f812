"""The SIMD value type, its widths and CPUs, and the accuracy of tanh and sigmoid."""

import numba
import numpy as np
import pytest
from helpers import first, run_python

from fastgates import _simd, _vecmath

EDGES = np.array(
    [
        0.0,
        1e-45,
        1.1754942e-38,
        1.1754944e-38,
        1e-30,
        0.625,
        8.34,
        16.68,
        88.0,
        3.4028235e38,
        np.inf,
    ],
    dtype=np.float32,
)
ULPS = 5.0
ABSOLUTE = 3.5e-7


def positive_sample():
    """Sorted non-negative float32: runs of neighbours at every exponent, random ones, edges."""
    rng = np.random.default_rng(0)
    starts = (np.arange(256, dtype=np.uint32) << 23)[:, None]  # 0 and the denormals, ..., inf
    inside = starts + rng.integers(0, 2**23, (256, 300), dtype=np.uint32)
    runs = starts + rng.integers(0, 2**23 - 64, (256, 1), dtype=np.uint32)
    runs = runs + np.arange(64, dtype=np.uint32)
    dense = np.linspace(0.0, 20.0, 200_000, dtype=np.float32).view(np.uint32)
    around = EDGES.view(np.uint32)[:, None].astype(np.int64) + np.arange(-8, 9)
    bits = np.concatenate(
        [starts.ravel(), inside.ravel(), runs.ravel(), dense, around.clip(0).ravel()]
    )
    return np.unique(bits[bits <= 0x7F800000]).astype(np.uint32).view(np.float32)


def exact_tanh(x):
    return np.tanh(x.astype(np.float64))


def exact_sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x.astype(np.float64))


def check_tanh(x):
    """`x` sorted and non-negative."""
    y = _vecmath.tanh_array(x)
    exact = exact_tanh(x)
    error = np.abs(y - exact)
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    for name, bad in {
        "ulp": error > ULPS * unit,
        "absolute": error > ABSOLUTE,
        "bound": np.abs(y) > 1.0,
        "order": np.maximum.accumulate(y) - y > np.spacing(y),
        "odd": -_vecmath.tanh_array(-x) != y,
    }.items():
        assert not bad.any(), f"{name} at x = {x[first(bad)]!r}: {y[first(bad)]!r}"
    return y


def check_sigmoid(x):
    """`x` sorted."""
    y = _vecmath.sigmoid_array(x)
    for name, bad in {
        "absolute": np.abs(y - exact_sigmoid(x)) > ABSOLUTE,
        "bound": (y < 0.0) | (y > 1.0),
        "order": np.maximum.accumulate(y) - y > np.float32(2.0**-24),  # one unit below 1
    }.items():
        assert not bad.any(), f"{name} at x = {x[first(bad)]!r}: {y[first(bad)]!r}"
    return y


def test_tanh_on_a_sample():
    check_tanh(positive_sample())


def test_sigmoid_on_a_sample():
    x = positive_sample()
    check_sigmoid(np.concatenate([-x[::-1], x]))


def test_special_values():
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 100.0, -100.0], dtype=np.float32)
    y = _vecmath.tanh_array(x)
    np.testing.assert_array_equal(y, [0.0, 0.0, 1.0, -1.0, np.nan, 1.0, -1.0])
    np.testing.assert_array_equal(np.signbit(y[:2]), [False, True])
    y = _vecmath.sigmoid_array(x)
    np.testing.assert_array_equal(y, [0.5, 0.5, 1.0, 0.0, np.nan, 1.0, 0.0])
    small = np.array([1e-45, -1e-45, 1e-20], dtype=np.float32)
    np.testing.assert_array_equal(_vecmath.tanh_array(small), small)


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33])
def test_any_number_of_elements(count):
    """Full registers and the rest go the same way: the value does not depend on the place."""
    x = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    for function in (_vecmath.tanh_array, _vecmath.sigmoid_array):
        one_by_one = [function(x[i : i + 1])[0] for i in range(count)]
        np.testing.assert_array_equal(function(x), np.array(one_by_one, dtype=np.float32))


@pytest.mark.slow
def test_tanh_on_every_float32():
    chunk = 2**22
    highest = np.float32(0.0)
    for start in range(0, 0x7F800000, chunk):
        bits = np.arange(start, min(start + chunk, 0x7F800001), dtype=np.uint32)
        y = check_tanh(bits.view(np.float32))
        assert y[0] >= highest - np.spacing(highest)
        highest = max(highest, y.max())
    for sign in (0, 0x80000000):
        for start in range(0x7F800001, 0x80000000, chunk):
            bits = np.arange(start, min(start + chunk, 0x80000000), dtype=np.uint32)
            assert np.isnan(_vecmath.tanh_array((bits | np.uint32(sign)).view(np.float32))).all()


@pytest.mark.slow
def test_sigmoid_on_every_float32():
    chunk = 2**22
    for start in range(0, 0x7F800001, chunk):
        bits = np.arange(start, min(start + chunk, 0x7F800001), dtype=np.uint32)
        x = bits.view(np.float32)
        check_sigmoid(x)
        check_sigmoid(-x[::-1])
    for sign in (0, 0x80000000):
        for start in range(0x7F800001, 0x80000000, chunk):
            bits = np.arange(start, min(start + chunk, 0x80000000), dtype=np.uint32)
            assert np.isnan(_vecmath.sigmoid_array((bits | np.uint32(sign)).view(np.float32))).all()


LANES = _simd.LANES


@numba.njit(error_model="numpy")
def every_operation(a, b, c, number, out, count):
    p, q, r = _simd.float_pointer(a), _simd.float_pointer(b), _simd.float_pointer(c)
    o = _simd.float_pointer(out)
    x, y, z = _simd.load(p, 0), _simd.load(q, 0), _simd.load(r, 0)
    _simd.store(o, 0 * LANES, x + y)
    _simd.store(o, 1 * LANES, x - y)
    _simd.store(o, 2 * LANES, x * y)
    _simd.store(o, 3 * LANES, x / y)
    _simd.store(o, 4 * LANES, -x)
    _simd.store(o, 5 * LANES, number - x)
    _simd.store(o, 6 * LANES, x / number)
    _simd.store(o, 7 * LANES, _simd.splat(number))
    _simd.store(o, 8 * LANES, _simd.fma(x, y, z))
    _simd.store(o, 9 * LANES, _simd.fma(x, number, z))
    _simd.store(o, 10 * LANES, _simd.where_less(x, y, z, number))
    _simd.store(o, 11 * LANES, _simd.load_first(p, 0, count))
    _simd.store_first(o, 12 * LANES, count, x)
    x += y
    x *= number
    _simd.store(o, 13 * LANES, x)


@pytest.mark.parametrize("count", [0, 1, LANES - 1, LANES])
def test_operations_of_the_type(count):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(LANES).astype(np.float32) for _ in range(3))
    number = np.float32(0.7)
    out = np.full((14, LANES), 7.0, dtype=np.float32)
    every_operation(a.ctypes.data, b.ctypes.data, c.ctypes.data, number, out.ctypes.data, count)
    first_lanes = np.arange(LANES) < count
    exact = [
        a + b,
        a - b,
        a * b,
        a / b,
        -a,
        number - a,
        a / number,
        np.full(LANES, number),
        None,
        None,
        np.where(a < b, c, number),
        np.where(first_lanes, a, np.float32(0.0)),
        np.where(first_lanes, a, np.float32(7.0)),
        (a + b) * number,
    ]
    for row, expected in zip(out, exact, strict=True):
        if expected is not None:
            np.testing.assert_array_equal(row, expected)
    a, b, c = (v.astype(np.float64) for v in (a, b, c))
    for row, expected in ((out[8], a * b + c), (out[9], a * np.float64(number) + c)):
        if _simd.HAS_FMA:  # one rounding; float64 holds the product of two float32 exactly
            np.testing.assert_allclose(row, expected, rtol=1e-7)
        np.testing.assert_allclose(row, expected, rtol=0, atol=4e-7)


@pytest.mark.slow
def test_kernels_do_not_compute_in_float64():
    """A bare 1.0 in an equation would turn float32 into float64.

    Numba shows the instructions of what it compiled only, not of what came from the cache.
    """
    code = """
        from fastgates import _jit
        from helpers import CELLS, make_problem

        for case in CELLS:
            make_problem(case).check()
        kernels = {name: k for name, k in _jit.kernels().items() if k.signatures}
        assert kernels
        for name, kernel in kernels.items():
            for assembly in kernel.inspect_asm().values():
                for instruction in ("cvtss2sd", "cvtps2pd", "fcvt\\td"):
                    assert instruction not in assembly, f"{instruction} in {name}"
        print("done")
    """
    assert run_python(code, env={"FASTGATES_CACHE": "0"}).stdout.strip() == "done"


MINI_SUITE = """
    import sys
    import numpy as np
    import fastgates
    from fastgates import _simd
    from helpers import CELLS, make_problem
    import test_simd

    lanes, has_fma = sys.argv[1:]
    assert _simd.LANES == int(lanes), _simd.LANES
    if has_fma != "any":
        assert _simd.HAS_FMA == (has_fma == "fma")
    test_simd.test_tanh_on_a_sample()
    test_simd.test_sigmoid_on_a_sample()
    test_simd.test_special_values()
    for count in (1, 7, 17):
        test_simd.test_any_number_of_elements(count)
    test_simd.test_operations_of_the_type(3)
    cases = {case.id: case for case in CELLS}
    for name in ("gru", "lstm"):
        for hidden_size in (1, 15, 16, 33):
            make_problem(
                cases[name], batch=5, time=4, input_size=9, hidden_size=hidden_size
            ).check()
        make_problem(
            cases[name], batch=3, hidden_size=9, num_layers=2, bidirectional=True, lengths=True,
            resets=True,
        ).check()
    print("done")
"""


slow = pytest.mark.slow  # each compiles its own kernels; these repeat what the others cover


NO_FEATURES = {"NUMBA_CPU_FEATURES": ""}  # beyond those of the name; else this CPU's are taken


@pytest.mark.parametrize(
    ("lanes", "fma", "env"),
    [
        pytest.param(8, "fma", {"NUMBA_CPU_NAME": "haswell"} | NO_FEATURES, id="haswell"),
        pytest.param(4, "no-fma", {"NUMBA_CPU_NAME": "x86-64"} | NO_FEATURES, id="x86-64"),
        pytest.param(
            8, "no-fma", {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx"}, id="avx"
        ),
        pytest.param(4, "any", {"NUMBA_CPU_NAME": "generic"}, id="generic", marks=slow),
        pytest.param(16, "any", {"FASTGATES_LANES": "16"}, id="16-lanes"),
        pytest.param(8, "any", {"FASTGATES_LANES": "8"}, id="8-lanes", marks=slow),
        pytest.param(4, "any", {"FASTGATES_LANES": "4"}, id="4-lanes", marks=slow),
    ],
)
def test_other_widths_and_processors(lanes, fma, env):
    if "NUMBA_CPU_NAME" in env:
        skip_unless_this_cpu_has("avx2", "fma")
    assert run_python(MINI_SUITE, lanes, fma, env=CLEAN | env).stdout.strip() == "done"


CLEAN = dict.fromkeys(
    ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX", "FASTGATES_LANES")
)


def skip_unless_this_cpu_has(*names):
    import platform

    from llvmlite import binding

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the names are those of x86-64")
    features = binding.get_host_cpu_features()
    for name in names:
        if not features.get(name):
            pytest.skip(f"this CPU has no {name}")


# However a target is asked for, the width is that of the registers in the code that Numba makes.
LANES_AND_CODE = """
    from fastgates import _simd, _vecmath

    _vecmath.tanh_array([0.5])
    (assembly,) = _vecmath._tanh_kernel.inspect_asm().values()
    lanes = 16 if "%zmm" in assembly else 8 if "%ymm" in assembly else 4
    print(_simd.LANES, lanes, _simd.HAS_FMA, "vfmadd" in assembly)
"""


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        (None, None, None),
        ("haswell", None, None),  # Numba adds the features of this CPU
        ("haswell", "", "8 8 True True"),
        ("haswell", "+avx,+avx2,+fma", "8 8 True True"),
        ("haswell", "-fma", "8 8 False False"),
        ("x86-64", "+avx2,+fma", "8 8 True True"),  # AVX2 implies AVX
        (None, "-avx512f", "8 8 True True"),  # of the CPU's name, the rest stays
        ("x86-64", "+sse4.2", "4 4 False False"),
        ("generic", None, "4 4 False False"),
    ],
)
def test_lanes_are_those_of_the_code(name, features, expected):
    skip_unless_this_cpu_has("avx2", "fma")
    env = CLEAN | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "FASTGATES_CACHE": "0"}
    found = run_python(LANES_AND_CODE, env=env).stdout.strip()
    lanes, of_code, has_fma, fma_in_code = found.split()
    assert lanes == of_code
    assert has_fma == fma_in_code
    assert expected in (None, found)


def test_lanes_without_avx():
    """Numba's own switch."""
    skip_unless_this_cpu_has("avx2", "fma")
    env = CLEAN | {"NUMBA_ENABLE_AVX": "0", "FASTGATES_CACHE": "0"}
    lanes, of_code, has_fma, fma_in_code = run_python(LANES_AND_CODE, env=env).stdout.split()
    assert (lanes, has_fma) == (of_code, fma_in_code)


def test_unknown_width_is_an_error():
    result = run_python("import fastgates", env={"FASTGATES_LANES": "5"}, expect=1)
    assert "FASTGATES_LANES must be 4, 8 or 16, got '5'" in result.stderr
