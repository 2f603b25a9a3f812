"""tanh, sigmoid and relu for SIMD values and float32 numbers alike.

Both functions come from one exponential, ``exp(t) = 2**k exp(r)`` with ``|r| <= log(2) / 2``, where
``expm1(r) = r + r^2 P(r)`` with our own minimax fit P of degree 4, and one division::

    tanh(|x|) = (1 - e) / (1 + e)   with e = exp(-2 |x|)
    sigmoid(x) = 1 / (1 + e)        with e = exp(-x)

Against float64, over all float32 arguments, tanh is off by at most 2.1 units in the last place
(1.1e-7 absolute), and sigmoid by 2.5 (8.9e-8 absolute; where it is below 1e-38 it may be 0). Both
never decrease and stay within their limits; tanh is odd and exact at 0. NaN stays NaN, and
infinities give the limits exactly. Without fused multiply-add the same holds.

Constants are float32: a bare ``1.0`` would turn the arithmetic of numbers into float64.
"""

from __future__ import annotations

import numpy as np

from ._jit import STAMP, helper, kernel
from ._simd import (
    LANES,
    ROUNDER,
    absolute,
    float_pointer,
    fma,
    load,
    load_first,
    power_of_two,
    store,
    store_first,
    where_less,
    with_sign_of,
)

__all__ = ["relu", "sigmoid", "sigmoid_array", "tanh", "tanh_array"]

_f = np.float32

ZERO = _f(0.0)
ONE = _f(1.0)

_LOG2_E = _f(1.44269504)
# log(2) in two parts, the first so short that its product with k is exact.
_LOG_2_HIGH, _LOG_2_LOW = _f(0.693359375), _f(-2.12194440e-4)
_P0, _P1, _P2, _P3, _P4 = (
    _f(0.5),
    _f(0.16666542),
    _f(0.041666277),
    _f(0.008366756),
    _f(0.0013946745),
)


@helper
def _exp_parts(t):
    """Return ``2**k`` and ``expm1(r)`` with ``exp(t) = 2**k * (1 + expm1(r))``; NaN gives NaN."""
    rounded = fma(t, _LOG2_E, ROUNDER)
    k = rounded - ROUNDER
    r = fma(k, -_LOG_2_LOW, fma(k, -_LOG_2_HIGH, t))
    p = fma(fma(fma(fma(r, _P4, _P3), r, _P2), r, _P1), r, _P0)
    return power_of_two(rounded), fma(r * r, p, r)


_TANH_LIMIT = _f(-18.1)  # of -2 |x|: here tanh is 1 already
_SIGMOID_LOW, _SIGMOID_HIGH = _f(-88.8), _f(88.0)  # here 2**k is infinity and 0


@helper
def tanh(x):
    """Return the hyperbolic tangent (see the module's docstring)."""
    t = -absolute(x + x)
    t = where_less(t, _TANH_LIMIT, _TANH_LIMIT, t)
    power, q = _exp_parts(t)
    return with_sign_of(fma(power, q, power - ONE) / fma(power, q, power + ONE), x)


@helper
def sigmoid(x):
    """Return the logistic function ``1 / (1 + exp(-x))`` (see the module's docstring)."""
    x = where_less(x, _SIGMOID_LOW, _SIGMOID_LOW, where_less(_SIGMOID_HIGH, x, _SIGMOID_HIGH, x))
    power, q = _exp_parts(-x)
    return ONE / fma(power, q + ONE, ONE)


@helper
def relu(x):
    """Return ``max(x, 0)``; NaN stays NaN."""
    return where_less(x, ZERO, ZERO, x)


@helper
def _apply(function, source, target, count):
    """Write `function` of `count` numbers through the SIMD path."""
    i = 0
    while i + LANES <= count:
        store(target, i, function(load(source, i)))
        i += LANES
    if i < count:
        store_first(target, i, count - i, function(load_first(source, i, count - i)))


@kernel
def _tanh_kernel(source, target, count, stamp=STAMP):
    _apply(tanh, float_pointer(source), float_pointer(target), count)


@kernel
def _sigmoid_kernel(source, target, count, stamp=STAMP):
    _apply(sigmoid, float_pointer(source), float_pointer(target), count)


def _elementwise(kernel_, x):
    source = np.ascontiguousarray(x, dtype=np.float32)
    target = np.empty_like(source)
    kernel_(source.ctypes.data, target.ctypes.data, source.size)
    return target


def tanh_array(x: np.ndarray) -> np.ndarray:
    """Return the package's tanh of an array, as float32 of the same shape."""
    return _elementwise(_tanh_kernel, x)


def sigmoid_array(x: np.ndarray) -> np.ndarray:
    """Return the package's sigmoid of an array, as float32 of the same shape."""
    return _elementwise(_sigmoid_kernel, x)
