"""The kernels of a training step around its network: minibatches, losses with their gradients.

Arguments are addresses, sizes and Python's floats. Losses are in float64; predictions and targets
are float32 or float64, which flags tell; weights are float64, one for `group` entries (or rows)
each, or at the address 0 where all are 1. What weighs 0 may hold anything.
"""

from __future__ import annotations

import math

import numpy as np

from ._jit import INT0, STAMP, helper, kernel
from ._simd import LANES, double_pointer, float_pointer, int_pointer
from .engine.forward import load_row, store_row

__all__ = [
    "ABSOLUTE",
    "HUBER",
    "QUANTILE",
    "SQUARED",
    "error_loss",
    "gather_scaled",
    "softmax_loss",
]


@kernel
def gather_scaled(source, is_double, stride, numbers, n_rows, width, mean, scale, target,
                  stamp=STAMP):  # fmt: skip
    """Copy rows of `width` numbers that are `stride` bytes apart, ``(x - mean) / scale``.

    All in float32, each operation rounded once, as :class:`fastgates.Scaling` does it.
    """
    m, s = float_pointer(mean), float_pointer(scale)
    for row in range(n_rows):
        place = source + int_pointer(numbers)[row] * stride
        y = float_pointer(target + 4 * row * width)
        if is_double != 0:
            doubles = double_pointer(place)
            for k in range(width):
                y[k] = np.float32(doubles[k])
            x = y
        else:
            x = float_pointer(place)
        for k in range(INT0, width, LANES):
            value = load_row(x, INT0, k, width) - load_row(m, INT0, k, width)
            store_row(y, INT0, k, width, value / load_row(s, INT0, k, width))


# -- Losses ----------------------------------------------------------------------------------------

SQUARED, ABSOLUTE, HUBER, QUANTILE = range(4)


@helper
def _number(address, k, is_double):
    """Return entry `k` of an array as float64."""
    if is_double != 0:
        return double_pointer(address)[k]
    return np.float64(float_pointer(address)[k])


@helper
def _loss_and_slope(kind, error, option):
    """Return the loss of one error and its derivative; NaN stays NaN."""
    if kind == SQUARED:
        return error * error, 2.0 * error
    if kind == ABSOLUTE:
        slope = 1.0 if error > 0.0 else -1.0 if error < 0.0 else 0.0
        return abs(error), slope if error == error else error
    if kind == HUBER:
        slope = min(max(error, -option), option) if error == error else error
        return slope * (error - 0.5 * slope), slope
    slope = 1.0 - option if error > 0.0 else -option
    return slope * error, 0.0 if error == 0.0 else slope


@kernel
def error_loss(kind, prediction, prediction_is_double, target, target_is_double, size, options,
               n_options, weights, group, total, gradient, stamp=STAMP):  # fmt: skip
    """Return the weighted mean of the losses of errors, and fill its gradient.

    Parameters
    ----------
    options : int
        Address of float64: delta, or the levels of the quantiles, which lie side by side for each
        target.
    n_options : int
        At least 1.
    total : float
        The sum of the weights of all entries.
    """
    per_target = n_options if kind == QUANTILE else INT0 + 1
    d, levels, w = float_pointer(gradient), double_pointer(options), double_pointer(weights)
    loss = 0.0
    weight, share = 1.0, 1.0 / total
    for k in range(size):
        if weights != 0:
            weight = w[k // group]
            share = weight / total
            if weight == 0.0:
                d[k] = np.float32(0.0)
                continue
        place = k // per_target
        error = _number(prediction, k, prediction_is_double)
        error -= _number(target, place, target_is_double)
        value, slope = _loss_and_slope(kind, error, levels[k - place * per_target])
        loss += value * weight
        d[k] = np.float32(slope * share)
    return loss / total


@kernel
def softmax_loss(logits, is_double, labels, n_rows, classes, class_weight, weights, group, gradient,
                 losses, stamp=STAMP):  # fmt: skip
    """Return the sum of the weights, and fill the gradient of the mean cross entropy of rows.

    Parameters
    ----------
    labels : int
        Address of int64. Those of rows that weigh 0 may be anything.
    losses : int
        Address of a float64 for the mean.
    """
    d, of_label, of_class = (
        float_pointer(gradient),
        int_pointer(labels),
        double_pointer(class_weight),
    )
    w = double_pointer(weights)
    total = 0.0
    for row in range(n_rows):
        weight = w[row // group] if weights != 0 else 1.0
        if class_weight != 0 and weight > 0.0:
            weight *= of_class[of_label[row]]
        total += weight
    loss = 0.0
    for row in range(n_rows):
        weight = w[row // group] if weights != 0 else 1.0
        if class_weight != 0 and weight > 0.0:
            weight *= of_class[of_label[row]]
        start = row * classes
        if weight == 0.0:
            for k in range(start, start + classes):
                d[k] = np.float32(0.0)
            continue
        largest = _number(logits, start, is_double)
        for k in range(start, start + classes):
            value = _number(logits, k, is_double)
            # NaN is the largest: then the loss is NaN.
            largest = value if value > largest or value != value else largest
        summed = 0.0
        for k in range(start, start + classes):
            summed += math.exp(_number(logits, k, is_double) - largest)
        label = of_label[row]
        right = _number(logits, start + label, is_double) - largest
        loss += weight * (math.log(summed) - right)
        share = weight / total
        for k in range(start, start + classes):
            probability = math.exp(_number(logits, k, is_double) - largest) / summed
            if k - start == label:
                probability -= 1.0
            d[k] = np.float32(probability * share)
    double_pointer(losses)[0] = loss / total
    return total
