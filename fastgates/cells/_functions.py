"""Activation functions that are chosen when the program runs, for :mod:`.general`.

The eleven of ONNX (https://onnx.ai/onnx/operators/onnx__LSTM.html), with their derivatives::

    tanh                                     sigmoid            1 / (1 + exp(-x))
    relu             max(x, 0)               leaky_relu         x if x >= 0 else alpha x
    affine           alpha x + beta          thresholded_relu   x if x >= alpha else 0
    scaled_tanh      alpha tanh(beta x)      hard_sigmoid       min(max(alpha x + beta, 0), 1)
    elu              x if x >= 0 else alpha (exp(x) - 1)
    softsign         x / (1 + |x|)           softplus           log(1 + exp(x))

A layer's *settings* are four float32 numbers for each function: which of :data:`FUNCTIONS` it is,
alpha, beta, and the limit that its argument is clipped to. All lanes take the same branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._jit import helper
from .._simd import absolute, fma, where_less
from .._vecmath import ONE, ZERO, _exp_parts, sigmoid, tanh

__all__ = [
    "FUNCTIONS",
    "apply",
    "checked_functions",
    "complete_function",
    "differentiate",
    "settings_of",
]

#: Each function's defaults of alpha and beta, of those that it has. The order is that of numbers.
FUNCTIONS: dict[str, tuple[float, ...]] = {
    "tanh": (),
    "sigmoid": (),
    "relu": (),
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0,),
    "softsign": (),
    "softplus": (),
}


def complete_function(function: Any) -> tuple[Any, ...]:
    """Return a function, a name or a sequence of a name and numbers, with all its numbers."""
    name, *values = (function,) if isinstance(function, str) else function
    if name not in FUNCTIONS:
        raise ValueError(f"an activation must be one of {', '.join(FUNCTIONS)}, got {name!r}")
    defaults = FUNCTIONS[name]
    numbers = tuple(float(value) for value in values) + defaults[len(values) :]
    if len(values) > len(defaults) or not np.isfinite(numbers).all():
        raise ValueError(
            f"{name} must have at most {len(defaults)} finite numbers (alpha, beta), got {values}"
        )
    return name, *numbers


def checked_functions(
    name: str, functions: Any, count: int, directions: int
) -> tuple[str | tuple[Any, ...], ...]:
    """Return as many functions as a layer has, or as its directions have, complete."""
    if isinstance(functions, str) or not isinstance(functions, Sequence):
        raise TypeError(f"{name} must be a sequence of functions, got {functions!r}")
    sizes = sorted({count, count * directions})
    if len(functions) not in sizes:
        raise ValueError(
            f"{name} must be {' or '.join(map(str, sizes))} functions, got {len(functions)}"
        )
    complete = [complete_function(function) for function in functions]
    return tuple(f[0] if len(f) == 1 else f for f in complete)


def settings_of(clip: float | None, functions: Iterable[Sequence[Any]]) -> np.ndarray:
    """Return the settings of some functions, each a name, alpha and beta as far as it has them.

    The argument of a third one, the h of an LSTM, is not clipped.
    """
    numbers: list[float] = []
    for place, (name, *values) in enumerate(functions):
        limit = np.inf if clip is None or place == 2 else clip
        numbers += [list(FUNCTIONS).index(name), *values, *[0.0] * (2 - len(values)), limit]
    return np.array(numbers, np.float32)


_f = np.float32
TWO = _f(2)
_TANH, _SIGMOID, _RELU, _AFFINE, _LEAKY, _THRESHOLDED, _SCALED, _HARD, _ELU, _SOFTSIGN = (
    _f(number) for number in range(10)
)
_LARGE = _f(88)
# log(1 + e) = 2 artanh(e / (2 + e)), by its series; e is at most 1.
_A1, _A2, _A3, _A4, _A5, _A6, _A7 = (_f(1 / (2 * k + 1)) for k in range(1, 8))


@helper
def _exp_of_negative(t):
    """Return ``exp(-t)`` and ``exp(-t) - 1`` for t of at least 0."""
    power, q = _exp_parts(where_less(_LARGE, t, _LARGE, t))
    return fma(-power, q, power), fma(-power, q, power - ONE)


@helper
def _softplus(x):
    e, _ = _exp_of_negative(absolute(x))
    s = e / (TWO + e)
    z = s * s
    p = fma(fma(fma(fma(fma(fma(z, _A7, _A6), z, _A5), z, _A4), z, _A3), z, _A2), z, _A1)
    return where_less(ZERO, x, x, ZERO) + TWO * fma(s * z, p, s)


@helper
def differentiate(x, settings, place):
    """Return the function whose settings start at `place` of clipped `x`, and its derivative."""
    number, alpha, beta = settings[place], settings[place + 1], settings[place + 2]
    limit = settings[place + 3]
    slope = where_less(limit, absolute(x), ZERO, ONE)
    x = where_less(limit, x, limit, x)
    x = where_less(x, -limit, -limit, x)
    if number == _TANH:
        y = tanh(x)
        slope *= fma(-y, y, ONE)
    elif number == _SIGMOID:
        y = sigmoid(x)
        slope *= y * (ONE - y)
    elif number == _RELU:
        y = where_less(x, ZERO, ZERO, x)
        slope *= where_less(ZERO, x, ONE, ZERO)
    elif number == _AFFINE:
        y = fma(alpha, x, beta)
        slope *= alpha
    elif number == _LEAKY:
        y = where_less(x, ZERO, alpha * x, x)
        slope *= where_less(x, ZERO, alpha, ONE)
    elif number == _THRESHOLDED:
        y = where_less(x, alpha, ZERO, x)
        slope *= where_less(x, alpha, ZERO, ONE)
    elif number == _SCALED:
        t = tanh(beta * x)
        y = alpha * t
        slope *= alpha * beta * fma(-t, t, ONE)
    elif number == _HARD:
        v = fma(alpha, x, beta)
        y = where_less(v, ZERO, ZERO, where_less(ONE, v, ONE, v))
        slope *= where_less(ZERO, v, where_less(v, ONE, alpha, ZERO), ZERO)
    elif number == _ELU:
        e, minus_one = _exp_of_negative(where_less(x, ZERO, -x, ZERO))
        y = where_less(x, ZERO, alpha * minus_one, x)
        slope *= where_less(x, ZERO, alpha * e, ONE)
    elif number == _SOFTSIGN:
        v = ONE + absolute(x)
        y = x / v
        slope *= ONE / (v * v)
    else:
        y = _softplus(x)
        slope *= sigmoid(x)
    return y, slope


@helper
def apply(x, settings, place):
    """Return the function whose settings start at `place` of clipped `x`."""
    return differentiate(x, settings, place)[0]
