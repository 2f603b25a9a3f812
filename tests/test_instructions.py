"""What the hot loops are made of: full registers, fused multiply-adds, nothing else.

A change of Numba, of LLVM or of a helper that makes products slow shows here, where no clock is
needed: see `assembly.py` for what is looked for.
"""

import math
import os
import platform
import re

import assembly
import numba
import numpy as np
import pytest
from helpers import CELLS, make_problem

from fastgates import _jit, _simd, cells
from fastgates.engine import multiply

pytestmark = [
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"),
        reason="the instructions are those of x86-64",
    ),
    pytest.mark.skipif(
        not _simd.HAS_FMA, reason="the target has no fused multiply-add to look for"
    ),
    pytest.mark.skipif(
        bool(os.environ.get("FASTGATES_LANES")), reason="tiles are made for the registers there are"
    ),
]

LANES = _simd.LANES
WIDTH = {4: "x", 8: "y", 16: "z"}[LANES]
# Filling scratch with zeros and copying rows; the product, through its address; and the table that
# steps of models go through.
KNOWN_CALLS = ("memset", "memcpy", "*", "fastgates_table")
# Maps so small that to pack their weights would take longer than to multiply number by number.
NUMBER_BY_NUMBER = ("small_affine", "small_affine_gradients")


def code_of(kernel):
    """The lines of a kernel itself, without the wrapper that Python calls."""
    (compiled,) = kernel.overloads.values()
    return assembly.functions(assembly.assembly_of(compiled))[compiled.fndesc.llvm_func_name]


def check(name, lines):
    """Nothing wrong with a kernel."""
    wrong = assembly.faults(lines, WIDTH, KNOWN_CALLS)
    assert not wrong, f"{name}: " + "\n".join(wrong[:20])


def check_products(name, lines):
    """Nothing wrong, and a tile that uses the registers well."""
    check(name, lines)
    products = [loop for loop in assembly.innermost_loops(lines) if loop.is_product]
    print(f"\n{name}", *assembly.report(lines), sep="\n    ")
    largest = max((len(loop.sums) for loop in products), default=0)
    assert largest >= _simd.REGISTERS // 2, f"{name}: the largest tile has {largest} sums"


def test_the_product():
    """All products of all cells and of Dense are made by one kernel."""
    multiply.multiply_address()
    check_products("multiply", code_of(multiply.multiply))


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_passes(case, which):
    make_problem(case).run()
    kernel = getattr(cells.registered()[case.registered], which)
    check(f"{case} {which}", code_of(kernel))


def test_steps(case):
    """A step of one sequence: its products are a row of numbers by vectors, in registers too."""
    case.build(3, 5, seed=0).stream()
    name = f"step_{case.registered}"
    (kernel,) = (k for n, k in _jit.kernels().items() if n.rsplit(".")[-1] == name)
    check(name, code_of(kernel))


def test_kernels_of_all_cells():
    """Weight gradients and whatever else is called from Python."""
    import fastgates as fg

    make_problem(CELLS[-1]).run()
    dense = fg.Dense(3, 20, seed=0)  # too wide for NUMBER_BY_NUMBER
    output, tape = dense.forward(np.ones((600, 3), np.float32))
    dense.backward(tape, output)
    ran = {n: k for n, k in _jit.kernels().items() if k.overloads and ".engine." in n}
    assert {"weight_gradients", "affine_rows"} <= {name.rsplit(".")[-1] for name in ran}
    for name, kernel in ran.items():
        if name.rsplit(".")[-1] not in NUMBER_BY_NUMBER:
            check(name, code_of(kernel))


# -- The checker itself: kernels that are bad on purpose -------------------------------------------

_many = 2 * multiply.GROUP - 1
_group, _wide = (0,) * multiply.GROUP, (0,) * _many
multiply._ROWS[_many] = (_simd.REGISTERS // 4,)  # a tile of far more sums than there are registers


def _arguments(a, b, c, count):
    zero = _jit.INT0
    group = zero + 4 * LANES
    b_ = (b, group, zero)
    return (count, a, zero, count, zero + 1, *b_, c, zero, group, c, group, zero + LANES, zero)


_arguments = numba.njit(_arguments)


@numba.njit(error_model="numpy")
def good(a, b, c, count):
    """The tiles of a whole group."""
    multiply._cover(_group, count, _arguments(a, b, c, count))


@numba.njit(error_model="numpy")
def spilling(a, b, c, count):
    """Far more sums than there are registers."""
    multiply._cover(_wide, count, _arguments(a, b, c, count))


@numba.njit(error_model="numpy")
def in_float64(a, c, count):
    """A constant that is not float32."""
    source, target = _simd.float_pointer(a), _simd.float_pointer(c)
    for k in range(count):
        target[k] = np.float32(source[k] * 0.1)


@numba.njit(error_model="numpy")
def calling(a, c, count):
    """A function of the C library."""
    source, target = _simd.float_pointer(a), _simd.float_pointer(c)
    for k in range(count):
        target[k] = math.tanh(source[k])


@numba.njit(error_model="numpy")
def one_by_one(a, b, c, count):
    """A sum of numbers instead of vectors."""
    a, b, c = _simd.float_pointer(a), _simd.float_pointer(b), _simd.float_pointer(c)
    total = np.float32(0.0)
    for k in range(count):
        total = _simd.fma(a[k], b[k], total)
    c[0] = total


def test_a_good_kernel_has_no_faults():
    good.compile((numba.int64,) * 4)
    check_products("good", code_of(good))


@pytest.mark.parametrize(
    ("function", "arguments", "pattern"),
    [
        (spilling, 4, "spill in a product: vmov"),
        (in_float64, 3, "float64: vmul[sp]d"),
        (in_float64, 3, "float64: vcvt"),
        (calling, 3, "call: .*tanhf?"),
        (one_by_one, 4, f"product is not in {WIDTH}mm: vfmadd"),
    ],
)
def test_bad_kernels_are_found(function, arguments, pattern):
    function.compile((numba.int64,) * arguments)
    found = assembly.faults(code_of(function), WIDTH, KNOWN_CALLS)
    assert any(re.match(pattern, fault) for fault in found), found


def test_a_narrow_product_is_found():
    """Full registers are asked for: in half of them the same loop is a fault."""
    good.compile((numba.int64,) * 4)
    narrower = {"z": "y", "y": "x", "x": "y"}[WIDTH]
    found = assembly.faults(code_of(good), narrower, KNOWN_CALLS)
    assert any(f.startswith(f"product is not in {narrower}mm") for f in found), found
