"""The product that everything is made of: every shape, every way to address its arguments."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgates._simd import LANES
from fastgates.engine.call import address, aligned, aligned_empty
from fastgates.engine.multiply import _BLOCK, GROUP, multiply, multiply_row

few_examples = settings(max_examples=60, deadline=None)
ZEROS = aligned(np.zeros(LANES, np.float32))


def random(seed, *shape):
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return aligned(values)


def as_panel(b):
    """(k, vectors, lanes) in groups, as the packed weights lie."""
    groups = [b[:, first : first + GROUP] for first in range(0, b.shape[1], GROUP)]
    return aligned(np.concatenate([group.ravel() for group in groups]))


def product(a, b, init=None, *, join=None):
    """(rows, k) times (k, vectors, lanes) by the kernel, all in plain order."""
    n_rows, count = a.shape
    n_vectors = b.shape[1]
    width = n_vectors * LANES
    c = aligned_empty((n_rows, n_vectors, LANES))
    c[...] = np.nan if join is None else join
    panel = as_panel(b)
    start = (address(ZEROS), 0, 0) if init is None else (address(init), 0, LANES)
    joins = int(join is not None)
    multiply(
        *(n_rows, n_vectors, count),
        *(address(a), 0, count, 1),
        *(address(panel), 0),
        *(address(c), 0, width, 0),
        *start,
        *(joins, 1, 0),
    )
    return c


def expected(a, b):
    return np.einsum("rk,kvl->rvl", a.astype(np.float64), b.astype(np.float64))


def tolerance(a, b):
    return 1e-6 * (1 + np.einsum("rk,kvl->rvl", np.abs(a), np.abs(b)).max())


SIZES = {
    "n_rows": st.integers(1, 21),
    "n_vectors": st.integers(1, 3 * GROUP),
    "count": st.integers(0, 40),
}


@few_examples
@given(**SIZES)
def test_any_size(n_rows, n_vectors, count):
    a, b = random(0, n_rows, count), random(1, count, n_vectors, LANES)
    bias = random(2, n_vectors, LANES)
    np.testing.assert_allclose(product(a, b), expected(a, b), rtol=0, atol=tolerance(a, b))
    with_bias = product(a, b, bias)
    np.testing.assert_allclose(with_bias, expected(a, b) + bias, rtol=0, atol=tolerance(a, b))
    joined = product(a, b, join=2.5)
    np.testing.assert_array_equal(joined, product(a, b) + np.float32(2.5))


@pytest.mark.parametrize("count", [_BLOCK - 1, _BLOCK + _BLOCK // 2 + 1, 3 * _BLOCK + 5])
def test_a_row_has_the_same_bits_in_any_company(count):
    """Alone, in tiles of any shape, and where the sum is cut to keep the panel in the cache."""
    a, b = random(0, 23, count), random(1, count, 2 * GROUP + 3, LANES)
    together = product(a, b)
    np.testing.assert_allclose(together, expected(a, b), rtol=0, atol=tolerance(a, b))
    for row in range(len(a)):
        np.testing.assert_array_equal(product(aligned(a[row : row + 1]), b)[0], together[row])
    for n_rows in range(2, 23):
        np.testing.assert_array_equal(product(aligned(a[:n_rows]), b), together[:n_rows])
    for first in range(b.shape[1]):
        few = aligned(b[:, first : first + 3])
        np.testing.assert_array_equal(product(a, few), together[:, first : first + 3])


@numba.njit
def row_product(n_vectors, count, a, b, c, init, parts, a_part, backwards):
    multiply_row(n_vectors, count, a, b, c, init, parts, a_part, backwards)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("n_vectors", range(1, 5 * GROUP))
def test_a_row_in_the_code_of_the_caller_has_the_same_bits(n_vectors, parts):
    count, between = 37, 5
    a = random(0, parts, count + between)
    b, init = random(1, parts * count, n_vectors, LANES), random(2, n_vectors, LANES)
    panel, c = as_panel(b), aligned_empty((n_vectors + 1, LANES))
    expected = product(aligned(a[:, :count].reshape(1, -1)), b, init)[0]
    for backwards in (0, 1):
        c[...] = 7
        addresses = [address(array) for array in (a, panel, c, init)]
        row_product(n_vectors, count, *addresses, parts, count + between, backwards)
        np.testing.assert_array_equal(c[:-1], expected)
        np.testing.assert_array_equal(c[-1], 7)


@few_examples
@given(**SIZES)
def test_numbered_rows_plain_vectors_and_groups_apart(n_rows, n_vectors, count):
    """As the weight gradients use it: columns for rows, vectors in plain rows, groups apart."""
    a, b = random(0, count, n_rows), random(1, count, n_vectors, LANES)
    groups = -(-n_vectors // GROUP)
    c = aligned_empty((groups, n_rows, GROUP, LANES))
    c[...] = 7
    multiply(
        *(n_rows, n_vectors, count),
        *(address(a), 0, 1, n_rows),
        *(address(b), n_vectors * LANES),
        *(address(c), 0, GROUP * LANES, n_rows * GROUP * LANES),
        *(address(ZEROS), 0, 0, 0, 1, 0),
    )
    plain = c.transpose(1, 0, 2, 3).reshape(n_rows, -1, LANES)
    np.testing.assert_array_equal(plain[:, :n_vectors], product(aligned(a.T), b))
    assert (plain[:, n_vectors:] == 7).all(), "the rest of a narrow group is left alone"


@few_examples
@given(parts=st.integers(1, 4), padding=st.integers(0, 3), **SIZES)
def test_parts_and_tables(parts, padding, n_rows, n_vectors, count):
    """As back-propagation uses it: a row in parts with padding between them, rows by number."""
    count = max(count, 1)
    random_order = np.random.default_rng(3)
    a_rows = random_order.permutation(n_rows + 4)[:n_rows]
    c_rows = random_order.permutation(n_rows + 2)[:n_rows]
    a = random(0, n_rows + 4, parts, count + padding)
    b = random(1, parts * count, n_vectors, LANES)
    c = aligned_empty((n_rows + 2, n_vectors, LANES))
    c[...] = 7
    panel = as_panel(b)
    multiply(
        *(n_rows, n_vectors, count),
        *(address(a), address(a_rows), parts * (count + padding), 1),
        *(address(panel), 0),
        *(address(c), address(c_rows), n_vectors * LANES, 0),
        *(address(ZEROS), 0, 0, 0, parts, count + padding),
    )
    whole = aligned(a[a_rows, :, :count].reshape(n_rows, -1))
    np.testing.assert_array_equal(c[c_rows], product(whole, b))
    others = np.setdiff1d(np.arange(n_rows + 2), c_rows)
    assert (c[others] == 7).all(), "rows that are not named are left alone"
