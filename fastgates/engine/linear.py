"""Affine maps of rows, ``y = x A^T + b``, on the same kernel as all products."""

from __future__ import annotations

import numpy as np

from .._jit import INT0, STAMP, helper, kernel
from .._simd import (
    LANES,
    float_pointer,
    fma,
    load,
    load_first,
    splat,
    store_first,
    where_less,
)
from .._threads import Tasks, threads_for
from .._vecmath import ZERO, exp_of_minus
from .call import N_FIELDS, Calls, Scratch, address, make_call, nothing, record
from .forward import load_row, store_row
from .gradients import GradientPlan
from .multiply import call_multiply, multiply_address
from .pack import n_blocks_of

__all__ = [
    "NARROW",
    "SMALL_MAP",
    "SMALL_ROWS",
    "AffineGradients",
    "AffineMap",
    "affine",
    "affine_gradients",
    "small_affine",
    "small_affine_gradients",
    "softmax_row",
    "softmax_rows",
]

_ROWS = 256  # a range, where threads share them
_WORKSPACE = 32 * 1024  # floats of a range of one thread
SMALL_ROWS = 512
NARROW = LANES // 4  # outputs up to which a product would mostly multiply padding
_CHUNK = 96  # rows that are summed at a time
SMALL_MAP = 16 * 1024  # multiplications below which packing and planning take longer than these


# -- Small maps ------------------------------------------------------------------------------------
# The read-out of a minibatch has a thousand multiplications, that of each step one or two outputs
# for many rows. One call for them, on the weights as they lie; each sum has the order, and so the
# bits, of the product for large maps.


@kernel
def small_affine(x, weight, bias, y, n_rows, n_inputs, n_outputs, stamp=STAMP):
    """Map rows, all at addresses, without packing; `bias` may be 0."""
    x_p, w_p, y_p = float_pointer(x), float_pointer(weight), float_pointer(y)
    b_p = float_pointer(bias)
    row = INT0
    while row + 8 <= n_rows:  # so many sums at once, or each waits for its last addition
        for output in range(n_outputs):
            a = b_p[output] if bias != 0 else ZERO
            b = c = d = e = f = g = h = a
            at = row * n_inputs
            for k in range(n_inputs):
                w = w_p[output * n_inputs + k]
                a = fma(x_p[at + k], w, a)
                b = fma(x_p[at + n_inputs + k], w, b)
                c = fma(x_p[at + 2 * n_inputs + k], w, c)
                d = fma(x_p[at + 3 * n_inputs + k], w, d)
                e = fma(x_p[at + 4 * n_inputs + k], w, e)
                f = fma(x_p[at + 5 * n_inputs + k], w, f)
                g = fma(x_p[at + 6 * n_inputs + k], w, g)
                h = fma(x_p[at + 7 * n_inputs + k], w, h)
            to = row * n_outputs + output
            y_p[to], y_p[to + n_outputs] = a, b
            y_p[to + 2 * n_outputs], y_p[to + 3 * n_outputs] = c, d
            y_p[to + 4 * n_outputs], y_p[to + 5 * n_outputs] = e, f
            y_p[to + 6 * n_outputs], y_p[to + 7 * n_outputs] = g, h
        row += 8
    while row < n_rows:
        for output in range(n_outputs):
            total = b_p[output] if bias != 0 else ZERO
            for k in range(n_inputs):
                total = fma(x_p[row * n_inputs + k], w_p[output * n_inputs + k], total)
            y_p[row * n_outputs + output] = total
        row += 1


@helper
def _sum_rows(x, d_y, first, end, output, n_inputs, n_outputs, d_weight, d_bias, joins):
    """Add what some rows give to the gradients of one output, from the last row to the first."""
    x_p, dy_p = float_pointer(x), float_pointer(d_y)
    dw_p, db_p = float_pointer(d_weight), float_pointer(d_bias)
    for k in range(INT0, n_inputs, LANES):
        n = min(LANES, n_inputs - k)
        total = splat(ZERO)
        if n == LANES:
            for row in range(end - 1, first - 1, -1):
                d = splat(dy_p[row * n_outputs + output])
                total = fma(d, load(x_p, row * n_inputs + k), total)
        else:
            for row in range(end - 1, first - 1, -1):
                d = splat(dy_p[row * n_outputs + output])
                total = fma(d, load_first(x_p, row * n_inputs + k, n), total)
        if joins != 0:
            total = load_first(dw_p, output * n_inputs + k, n) + total
        store_first(dw_p, output * n_inputs + k, n, total)
    if d_bias != 0:
        sum_of_rows = ZERO
        for row in range(end - 1, first - 1, -1):
            sum_of_rows += dy_p[row * n_outputs + output]
        db_p[output] = db_p[output] + sum_of_rows if joins != 0 else sum_of_rows


@kernel
def small_affine_gradients(
    x, d_y, weight, d_weight, d_bias, d_x, n_rows, n_inputs, n_outputs, stamp=STAMP
):
    """Fill all gradients of a small map at their addresses; `d_bias` and `d_x` may be 0.

    Rows are summed in chunks, from the last to the first: that keeps the rounding of many small,
    and the rows in the cache.
    """
    dy_p, w_p, dx_p = float_pointer(d_y), float_pointer(weight), float_pointer(d_x)
    end, joins = n_rows, INT0
    while True:
        first = max(INT0, end - _CHUNK)
        for output in range(n_outputs):
            _sum_rows(x, d_y, first, end, output, n_inputs, n_outputs, d_weight, d_bias, joins)
        if d_x != 0:
            for row in range(first, end):
                for k in range(INT0, n_inputs, LANES):
                    total = splat(ZERO)
                    for output in range(n_outputs):
                        part = load_row(w_p, output * n_inputs, k, n_inputs)
                        total = fma(splat(dy_p[row * n_outputs + output]), part, total)
                    store_row(dx_p, row * n_inputs, k, n_inputs, total)
        end, joins = first, INT0 + 1
        if end == 0:
            break


# -- Maps of any size ------------------------------------------------------------------------------


@kernel
def affine_rows(calls, begin, end, stamp=STAMP):
    """Map the rows begin ... end, which the workspace holds padded on the way."""
    call = record(calls)
    outputs, inputs = call.n_units, call.input_size
    n_blocks = (outputs + LANES - 1) // LANES
    width = n_blocks * LANES
    call_multiply(
        call.multiply,
        (end - begin, n_blocks, inputs),
        (call.x + 4 * begin * inputs, 0, inputs, 1),
        (call.panel, 0),
        (call.workspace, 0, width, 0),
        (call.bias, 0, LANES),
        0,
        (1, 0),
    )
    result, output = float_pointer(call.workspace), float_pointer(call.output)
    for row in range(end - begin):
        for k in range(0, width, LANES):
            store_row(output, (begin + row) * outputs, k, outputs, load(result, row * width + k))


class AffineMap:
    """The map of rows (N, inputs) to rows (N, outputs), as a call that may run repeatedly.

    Parameters
    ----------
    x, y : ndarray
        Contiguous float32.
    panel, bias : ndarray
        From :func:`fastgates.engine.pack.pack_affine`.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, panel: np.ndarray, bias: np.ndarray) -> None:
        self._arrays = (x, y, panel, bias)  # kept alive
        (n_rows, n_inputs), n_outputs = x.shape, y.shape[1]
        self._call = make_call(
            x=address(x),
            output=address(y),
            panel=address(panel),
            bias=address(bias),
            input_size=n_inputs,
            n_units=n_outputs,
            multiply=multiply_address(),
            nothing=nothing(LANES),
        )
        self._n_rows, self._work = n_rows, n_rows * n_inputs * n_outputs
        self._rows = max(_ROWS, _WORKSPACE // bias.size)  # of a range of one thread
        self._scratch = Scratch({"workspace": min(n_rows, self._rows) * bias.size})
        self._plans: dict[int, tuple[Calls, Tasks]] = {}

    def run(self) -> None:
        """Fill `y`."""
        threads = threads_for(self._work)
        plan = self._plans.get(threads)
        if plan is None:
            bounds = [*range(0, self._n_rows, self._rows if threads == 1 else _ROWS), self._n_rows]
            calls = Calls(self._call, threads, self._scratch)
            plan = self._plans[threads] = calls, Tasks(affine_rows, bounds, threads, N_FIELDS)
        calls, tasks = plan
        tasks.run(calls.new())


def affine(x: np.ndarray, panel: np.ndarray, bias: np.ndarray, n_outputs: int) -> np.ndarray:
    """Return the map of rows (N, inputs), float32 of shape (N, outputs)."""
    y = np.empty((len(x), n_outputs), np.float32)
    AffineMap(x, y, panel, bias).run()
    return y


@helper
def softmax_row(pointer, start, size):
    """Put the softmax of `size` numbers in their place."""
    largest = pointer[start]
    for i in range(size):
        largest = where_less(largest, pointer[start + i], pointer[start + i], largest)
    for k in range(0, size, LANES):
        z = load_row(pointer, start, k, size)
        store_row(pointer, start, k, size, exp_of_minus(largest - z))
    total = ZERO
    for i in range(size):
        total += pointer[start + i]
    for k in range(0, size, LANES):
        store_row(pointer, start, k, size, load_row(pointer, start, k, size) / total)


@kernel
def _softmax_rows(at, n_rows, size, stamp=STAMP):
    for row in range(n_rows):
        softmax_row(float_pointer(at), row * size, INT0 + size)


def softmax_rows(z: np.ndarray) -> np.ndarray:
    """Put the softmax of each row of contiguous float32 (N, size) in its place; return `z`."""
    _softmax_rows(address(z), *z.shape)
    return z


class AffineGradients:
    """The gradients of an affine map's parameters, as a call that may run repeatedly.

    Parameters
    ----------
    x, d_y : ndarray, shapes (N, inputs), (N, outputs)
        Contiguous float32.
    d_weight, d_bias : int
        Addresses of the results, (outputs, inputs) and (outputs,); the latter may be 0.
    """

    def __init__(self, x: np.ndarray, d_y: np.ndarray, d_weight: int, d_bias: int) -> None:
        (n_rows, n_inputs), n_outputs = x.shape, d_y.shape[1]
        n_blocks = n_blocks_of(n_outputs)
        self._d_y, self._padded = d_y, np.zeros((n_rows, n_blocks * LANES), np.float32)
        order, lengths = np.zeros(1, np.int64), np.full(1, n_rows)
        self._arrays = (x, order, lengths)  # kept alive
        self._call = make_call(
            time=n_rows,
            end_step=n_rows,
            batch=1 if n_rows else 0,
            input_size=n_inputs,
            n_units=n_outputs,
            multiply=multiply_address(),
            nothing=nothing(LANES),
            n_blocks=n_blocks,
            n_slots=1,
            slot_row=n_blocks * LANES,
            n_inputs=1,
            order=address(order),
            lengths=address(lengths),
            input_slots=address(order),
            x=address(x),
            saved=address(self._padded),
            d_weight_ih=d_weight,
            d_bias_ih=d_bias,
        )
        self._work = n_rows * n_inputs * n_outputs
        self._plans: dict[int, tuple[Calls, GradientPlan]] = {}

    def run(self) -> None:
        """Fill the gradients."""
        threads = threads_for(self._work)
        plan = self._plans.get(threads)
        if plan is None:
            gradients = GradientPlan(self._call, threads)
            calls = Calls(self._call, gradients.threads, gradients.scratch)
            plan = self._plans[threads] = calls, gradients
        calls, gradients = plan
        self._padded[:, : self._d_y.shape[1]] = self._d_y
        gradients.sum(calls.new())


def affine_gradients(x: np.ndarray, d_y: np.ndarray, d_weight: int, d_bias: int) -> None:
    """Fill the gradients of the weight (outputs, inputs) and of the bias (outputs,) or 0."""
    AffineGradients(x, d_y, d_weight, d_bias).run()
