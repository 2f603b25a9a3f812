"""Products over all steps at once: of inputs with weights, and the gradients of weights.

With CuPy they are cuBLAS's; without it, tiled kernels of our own. Both add in an order that depends
on the sizes only, so results repeat bit for bit.

Arrays have three axes, (B, T, width). A *block of rows* is ``array[:, begin : begin + steps, column
: column + width]``; weights are a stretch of a flat array, with a stride for each of their axes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32

from ._arrays import stream_number, without_stream
from ._device import SIMULATED, cuda, fma, launch

__all__ = ["CuPyProducts", "Rows", "TiledProducts", "Weights", "products"]

ZERO, ONE = np.float32(0), np.float32(1)

_MICRO = 4  # a thread's tile is so many rows by so many columns
_SIDE = 2 if SIMULATED else 16  # threads along a side of a block: the simulator starts them all
_TILE = _SIDE * _MICRO
_DEPTH = 4 if SIMULATED else 16  # of the inner sum that a block holds at a time
_THREADS = _SIDE * _SIDE
_WISHED_BLOCKS = 264
_FEWEST_ROWS = 8 if SIMULATED else 512  # of a part of a long sum


class Rows(NamedTuple):
    """A block of rows of an array (B, T, width)."""

    array: Any
    begin: int
    steps: int
    column: int
    width: int

    @property
    def count(self) -> int:
        """Rows of all sequences together."""
        return int(self.array.shape[0]) * self.steps


class Weights(NamedTuple):
    """A matrix (outputs, inputs) in a flat array."""

    array: Any
    begin: int
    output_stride: int
    input_stride: int


# -- Own kernels ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def map_rows_kernel() -> Any:
    """Return the kernel of ``target = source @ weights.T``, row by row, or that added to it."""

    def map_rows(  # type: ignore[no-untyped-def]
        source,
        source_begin,
        source_column,
        weights,
        weights_begin,
        output_stride,
        input_stride,
        target,
        target_begin,
        target_column,
        steps,
        inputs,
        outputs,
        add,
    ):
        left = cuda.shared.array((_DEPTH, _TILE), float32)
        right = cuda.shared.array((_DEPTH, _TILE), float32)
        sums = cuda.local.array((_MICRO, _MICRO), float32)
        thread = cuda.threadIdx.x
        down, across = thread // _SIDE, thread % _SIDE
        first_row, first_output = cuda.blockIdx.x * _TILE, cuda.blockIdx.y * _TILE
        rows = source.shape[0] * steps
        for i in range(_MICRO):
            for j in range(_MICRO):
                sums[i, j] = ZERO
        for first in range(0, inputs, _DEPTH):
            for n in range(thread, _DEPTH * _TILE, _THREADS):
                # Neighbours in a warp read neighbours in memory: k runs fastest in the rows.
                r, k = n // _DEPTH, n % _DEPTH
                row, inner = first_row + r, first + k
                value = ZERO
                if row < rows and inner < inputs:
                    b = row // steps
                    t = row - b * steps
                    value = source[b, source_begin + t, source_column + inner]
                left[k, r] = value
                output = first_output + r
                value = ZERO
                if output < outputs and inner < inputs:
                    place = weights_begin + output * output_stride + inner * input_stride
                    value = weights[place]
                right[k, r] = value
            cuda.syncthreads()
            for k in range(_DEPTH):
                for i in range(_MICRO):
                    a = left[k, down + i * _SIDE]
                    for j in range(_MICRO):
                        sums[i, j] = fma(a, right[k, across + j * _SIDE], sums[i, j])
            cuda.syncthreads()
        for i in range(_MICRO):
            row = first_row + down + i * _SIDE
            if row < rows:
                b = row // steps
                t = row - b * steps
                for j in range(_MICRO):
                    output = first_output + across + j * _SIDE
                    if output < outputs:
                        value = sums[i, j]
                        if add:
                            value += target[b, target_begin + t, target_column + output]
                        target[b, target_begin + t, target_column + output] = value

    return cuda.jit(map_rows)


@lru_cache(maxsize=1)
def sum_rows_kernel() -> Any:
    """Return the kernel of ``left.T @ right`` over parts of the rows; without right, of sums."""

    def sum_rows(  # type: ignore[no-untyped-def]
        left,
        left_begin,
        left_column,
        right,
        right_begin,
        right_column,
        has_right,
        partial,
        steps,
        rows_of_part,
        outputs,
        inputs,
    ):
        first_tile = cuda.shared.array((_DEPTH, _TILE), float32)
        second_tile = cuda.shared.array((_DEPTH, _TILE), float32)
        sums = cuda.local.array((_MICRO, _MICRO), float32)
        thread = cuda.threadIdx.x
        down, across = thread // _SIDE, thread % _SIDE
        first_output, first_input = cuda.blockIdx.x * _TILE, cuda.blockIdx.y * _TILE
        part = cuda.blockIdx.z
        rows = left.shape[0] * steps
        begin = part * rows_of_part
        end = min(rows, begin + rows_of_part)
        for i in range(_MICRO):
            for j in range(_MICRO):
                sums[i, j] = ZERO
        for first in range(begin, end, _DEPTH):
            for n in range(thread, _DEPTH * _TILE, _THREADS):
                k = n // _TILE
                m = n - k * _TILE
                row = first + k
                one, other = ZERO, ZERO
                if row < end:
                    b = row // steps
                    t = row - b * steps
                    if first_output + m < outputs:
                        one = left[b, left_begin + t, left_column + first_output + m]
                    if first_input + m < inputs:
                        other = ONE
                        if has_right:
                            other = right[b, right_begin + t, right_column + first_input + m]
                first_tile[k, m] = one
                second_tile[k, m] = other
            cuda.syncthreads()
            for k in range(_DEPTH):
                for i in range(_MICRO):
                    a = first_tile[k, down + i * _SIDE]
                    for j in range(_MICRO):
                        sums[i, j] = fma(a, second_tile[k, across + j * _SIDE], sums[i, j])
            cuda.syncthreads()
        for i in range(_MICRO):
            output = first_output + down + i * _SIDE
            if output < outputs:
                for j in range(_MICRO):
                    number = first_input + across + j * _SIDE
                    if number < inputs:
                        partial[(part * outputs + output) * inputs + number] = sums[i, j]

    return cuda.jit(sum_rows)


@lru_cache(maxsize=1)
def add_parts_kernel() -> Any:
    """Return the kernel that adds the parts of a sum in their order."""

    def add_parts(partial, parts, size, target, begin, add):  # type: ignore[no-untyped-def]
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if i < size:
            total = partial[i]
            for part in range(1, parts):
                total += partial[part * size + i]
            if add:
                total += target[begin + i]
            target[begin + i] = total

    return cuda.jit(add_parts)


class TiledProducts:
    """The products by kernels of our own.

    Parameters
    ----------
    memory : Memory
        Where scratch comes from.
    """

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def map_rows(
        self, source: Rows, weights: Weights, target: Rows, stream: Any, add: bool = False
    ) -> None:
        """Write ``source @ weights.T`` to `target`, or add it to what is there."""
        grid = (-(-source.count // _TILE), -(-target.width // _TILE))
        launch(
            map_rows_kernel(),
            grid,
            _THREADS,
            stream,
            source.array,
            source.begin,
            source.column,
            weights.array,
            weights.begin,
            weights.output_stride,
            weights.input_stride,
            target.array,
            target.begin,
            target.column,
            source.steps,
            source.width,
            target.width,
            int(add),
        )

    def sum_rows(
        self, left: Rows, right: Rows | None, target: Any, begin: int, stream: Any, add: bool
    ) -> None:
        """Write ``left.T @ right``, or the sums of `left`, from ``target[begin]`` on, or add it."""
        inputs = 1 if right is None else right.width
        size = left.width * inputs
        tiles = -(-left.width // _TILE), -(-inputs // _TILE)
        parts = max(1, min(_WISHED_BLOCKS // (tiles[0] * tiles[1]), left.count // _FEWEST_ROWS))
        rows_of_part = -(-left.count // parts)
        parts = -(-left.count // rows_of_part)
        other = left if right is None else right
        with self._memory.scratch((parts * size,), stream) as partial:
            launch(
                sum_rows_kernel(),
                (*tiles, parts),
                _THREADS,
                stream,
                left.array,
                left.begin,
                left.column,
                other.array,
                other.begin,
                other.column,
                int(right is not None),
                partial,
                left.steps,
                rows_of_part,
                left.width,
                inputs,
            )
            threads = _THREADS if SIMULATED else 128
            blocks = -(-size // threads)
            arguments = (partial, parts, size, target, begin, int(add))
            launch(add_parts_kernel(), blocks, threads, stream, *arguments)


class CuPyProducts:
    """The products by cuBLAS, through CuPy.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._ones: Any = None

    def _view(self, rows: Rows) -> Any:
        array = self._cupy.asarray(without_stream(rows.array))
        return array[
            :, rows.begin : rows.begin + rows.steps, rows.column : rows.column + rows.width
        ]

    def _matrix(self, rows: Rows) -> Any:
        """Return a block of rows as one matrix, a view where its steps are all there are."""
        array = self._cupy.asarray(without_stream(rows.array))
        if rows.steps != array.shape[1]:
            array = self._cupy.ascontiguousarray(array[:, rows.begin : rows.begin + rows.steps])
        flat = array.reshape(-1, array.shape[2])
        return flat[:, rows.column : rows.column + rows.width]

    def _on(self, stream: Any) -> Any:
        return self._cupy.cuda.ExternalStream(stream_number(stream))

    def map_rows(
        self, source: Rows, weights: Weights, target: Rows, stream: Any, add: bool = False
    ) -> None:
        """Write ``source @ weights.T`` to `target`, or add it to what is there."""
        with self._on(stream):
            size = target.width * source.width
            flat = self._cupy.asarray(without_stream(weights.array))[
                weights.begin : weights.begin + size
            ]
            if weights.input_stride == 1:
                matrix = flat.reshape(target.width, source.width).T
            else:
                matrix = flat.reshape(source.width, target.width)
            view = self._view(target)
            if not add and view.flags.c_contiguous:
                self._cupy.matmul(self._matrix(source), matrix, out=view.reshape(-1, target.width))
                return
            result = self._matrix(source) @ matrix
            if add:
                view += result.reshape(view.shape)
            else:
                view[...] = result.reshape(view.shape)

    def sum_rows(
        self, left: Rows, right: Rows | None, target: Any, begin: int, stream: Any, add: bool
    ) -> None:
        """Write ``left.T @ right``, or the sums of `left`, from ``target[begin]`` on, or add it."""
        with self._on(stream):
            one = self._matrix(left)
            if right is None:
                count = one.shape[0]
                if self._ones is None or self._ones.shape[1] < count:
                    self._ones = self._cupy.ones((1, count), np.float32)
                result = self._ones[:, :count] @ one
            else:
                result = one.T @ self._matrix(right)
            view = self._cupy.asarray(without_stream(target))[begin : begin + result.size]
            if add:
                view += result.ravel()
            else:
                view[...] = result.ravel()


def products(memory: Any) -> TiledProducts | CuPyProducts:
    """Return the products by cuBLAS where CuPy is installed, else our own."""
    if not SIMULATED:
        try:
            import cupy
        except ImportError:
            pass
        else:
            return CuPyProducts(cupy)
    return TiledProducts(memory)
