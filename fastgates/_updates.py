"""The kernels behind optimisers and clipping: one pass over a flat vector and its buffers.

Each rule is written once, for values: whole vectors in the body of a loop, and its last lanes, give
the same bits. Arguments are addresses, a size, and Python's floats, which a call takes in fastest;
they are rounded to float32 at once. `factor` scales the gradient, so clipping takes no pass.
"""

from __future__ import annotations

import numpy as np

from ._jit import INT0, STAMP, kernel
from ._simd import LANES, float_pointer, fma, square_root
from .engine.forward import load_row, store_row

__all__ = ["adam", "rmsprop", "sgd", "sum_of_squares"]


@kernel
def sgd(parameter, gradient, momentum_buffer, size, factor, lr, decay, momentum, ahead_g, ahead_b,
        stamp=STAMP):  # fmt: skip
    """Descend along ``ahead_g g + ahead_b b``."""
    p, g, b = float_pointer(parameter), float_pointer(gradient), float_pointer(momentum_buffer)
    lr, decay, momentum = np.float32(lr), np.float32(decay), np.float32(momentum)
    ahead_g, ahead_b = np.float32(ahead_g), np.float32(ahead_b)
    factor = np.float32(factor)
    for k in range(INT0, size, LANES):
        old = load_row(p, INT0, k, size)
        slope = load_row(g, INT0, k, size) * factor + decay * old
        buffer = fma(momentum, load_row(b, INT0, k, size), slope)
        store_row(b, INT0, k, size, buffer)
        store_row(p, INT0, k, size, old - lr * fma(ahead_b, buffer, ahead_g * slope))


@kernel
def rmsprop(parameter, gradient, mean_square, mean, momentum_buffer, size, factor, lr, decay, alpha,
            new_square, new_mean, eps, momentum, stamp=STAMP):  # fmt: skip
    """Descend along the gradient over the root of its running variance or mean square."""
    p, g = float_pointer(parameter), float_pointer(gradient)
    v, m, b = float_pointer(mean_square), float_pointer(mean), float_pointer(momentum_buffer)
    lr, decay, alpha, eps = np.float32(lr), np.float32(decay), np.float32(alpha), np.float32(eps)
    new_square, new_mean = np.float32(new_square), np.float32(new_mean)
    momentum = np.float32(momentum)
    factor = np.float32(factor)
    for k in range(INT0, size, LANES):
        old = load_row(p, INT0, k, size)
        slope = load_row(g, INT0, k, size) * factor + decay * old
        square = fma(new_square, slope * slope, alpha * load_row(v, INT0, k, size))
        average = load_row(m, INT0, k, size)
        average = fma(new_mean, slope - average, average)
        root = square_root(square - average * average) + eps
        buffer = fma(momentum, load_row(b, INT0, k, size), slope / root)
        store_row(v, INT0, k, size, square)
        store_row(m, INT0, k, size, average)
        store_row(b, INT0, k, size, buffer)
        store_row(p, INT0, k, size, old - lr * buffer)


@kernel
def adam(parameter, gradient, first_moment, second_moment, size, factor, lr, kept, decay, new_first,
         beta2, new_second, correction, eps, stamp=STAMP):  # fmt: skip
    """Descend along the first moment over the root of the second."""
    p, g = float_pointer(parameter), float_pointer(gradient)
    m, v = float_pointer(first_moment), float_pointer(second_moment)
    lr, kept, decay, eps = np.float32(lr), np.float32(kept), np.float32(decay), np.float32(eps)
    new_first, beta2, new_second = np.float32(new_first), np.float32(beta2), np.float32(new_second)
    correction = np.float32(correction)
    factor = np.float32(factor)
    for k in range(INT0, size, LANES):
        old = load_row(p, INT0, k, size) * kept
        slope = load_row(g, INT0, k, size) * factor + decay * old
        first = load_row(m, INT0, k, size)
        first = fma(new_first, slope - first, first)
        second = fma(new_second, slope * slope, beta2 * load_row(v, INT0, k, size))
        store_row(m, INT0, k, size, first)
        store_row(v, INT0, k, size, second)
        root = fma(square_root(second), correction, eps)
        store_row(p, INT0, k, size, old - lr * (first / root))


@kernel
def sum_of_squares(address, size, stamp=STAMP):
    """Return the sum of the squares in float64, in four chains whose order is fixed."""
    values = float_pointer(address)
    a = b = c = d = 0.0
    whole = size - size % 4
    for k in range(INT0, whole, 4):
        a += np.float64(values[k]) * np.float64(values[k])
        b += np.float64(values[k + 1]) * np.float64(values[k + 1])
        c += np.float64(values[k + 2]) * np.float64(values[k + 2])
        d += np.float64(values[k + 3]) * np.float64(values[k + 3])
    for k in range(whole, size):
        a += np.float64(values[k]) * np.float64(values[k])
    return (a + b) + (c + d)
