"""Truncated back-propagation through time, over series of any length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import positive_integer, real_array
from ._parameters import Gradients
from .layers import Recurrent, State, Tape

__all__ = ["Piece", "truncated_bptt"]


@dataclass
class Piece:
    """The latest steps of a series, as :func:`truncated_bptt` yields them.

    Attributes
    ----------
    start, stop : int
        The steps of this piece in the series.
    window_start : int
        The step that gradients reach back to.
    output : ndarray of float32, shape (batch, stop - start, hidden_size)
        Of the layer at these steps; read-only.
    state : ndarray or tuple
        After the last of them.
    """

    start: int
    stop: int
    window_start: int
    output: np.ndarray
    state: State
    _layer: Recurrent
    _tape: Tape

    def backward(
        self, d_output: Any = None, d_state: State = None, input_gradient: bool = False
    ) -> Gradients:
        """Propagate the gradients of this piece's loss back to `window_start`. Works once.

        Parameters
        ----------
        d_output : array_like, shape (batch, stop - start, hidden_size), optional
            Gradient of the loss with respect to `output`; zero by default.
        d_state : array_like or tuple, optional
            Gradient with respect to `state`; zero by default.
        input_gradient : bool
            Whether the gradient with respect to the input is wanted, of all steps from
            `window_start` to `stop`.

        Returns
        -------
        Gradients
            That of the initial state comes through the start of the series and through resets; the
            state that the window begins with is taken as a constant.

        Raises
        ------
        RuntimeError
            If it was called before, or the parameters have changed since the piece came.
        ValueError, TypeError
            If a gradient has the wrong shape or dtype.
        """
        if d_output is not None:
            batch, steps, size = self.output.shape
            shape = (("batch_size", batch), ("stop - start", steps), ("hidden_size", size))
            d_output = real_array("d_output", d_output, shape)
            before = self.start - self.window_start
            if before:
                whole = np.zeros((batch, before + steps, size), np.float32)
                whole[:, before:] = d_output
                d_output = whole
        return self._layer.backward(self._tape, d_output, d_state, input_gradient)


def truncated_bptt(
    layer: Recurrent,
    x: Any,
    k1: int,
    k2: int | None = None,
    *,
    initial_state: State = None,
    resets: Any = None,
    training: bool = False,
) -> Iterator[Piece]:
    """Run a layer over a series in pieces of `k1` steps, to train on each as it comes.

    Each piece's gradients reach `k2` steps back from its end: BPTT(k2; k1) of Williams and Peng,
    1990, with the names of Sutskever, 2013. The state is carried on without its gradient, and the
    memory does not depend on the length of the series.

    In detail: piece j has the steps from ``j k1`` to ``(j + 1) k1`` (the last one may be shorter),
    its *window* begins at ``max(0, (j + 1) k1 - k2)``. The whole window is run with the parameters
    of that moment, from the state in which it begins; the loss is that of the piece's own outputs,
    and its exact gradient is taken over the window. The state in which the next window begins is
    the one that this window passed through. So parameters may change between two pieces, and each
    gradient is that of one set of parameters. With `k1` and `k2` at least the number of steps, it
    is plain back-propagation through time, bit for bit.

    A step is computed ``k2 / k1`` times: `k1` equal to `k2` costs the least, `k1` of 1 gives each
    loss the same reach.

    Parameters
    ----------
    layer : Recurrent
        One that runs forward only, of any depth.
    x : array_like of shape (batch, time, input_size), or iterable
        Anything with a shape that can be sliced (an array, a memory map) is read piece by piece.
        An iterable yields chunks ``(batch, any number of steps, input_size)`` of one series,
        however long, or pairs of such a chunk and its resets; they are cut to `k1` steps anew.
    k1 : int
        Steps from one piece to the next.
    k2 : int, optional
        Steps of a window, at least `k1`, which is the default.
    initial_state : array_like or tuple, optional
        As in a call of the layer.
    resets : array_like of bool, shape (batch, time), optional
        As in a call of the layer; not with an iterable, which brings its own.
    training : bool
        Whether dropout is applied between stacked layers.

    Yields
    ------
    Piece
        Its ``output`` is what to take a loss of, its ``backward`` turns the gradient of that into
        those of the parameters. A piece without use for its gradients needs no ``backward``.

    Raises
    ------
    ValueError, TypeError
        If an argument or a chunk has the wrong shape, dtype or range.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be a recurrent layer, got {type(layer).__name__}")
    if layer.bidirectional or layer.reverse:
        option = "bidirectional" if layer.bidirectional else "reverse"
        raise ValueError(
            f"layer must run forward only, got one with {option}=True: its reverse direction "
            "would need the end of the series first"
        )
    k1 = positive_integer("k1", k1)
    k2 = k1 if k2 is None else positive_integer("k2", k2)
    if k2 < k1:
        raise ValueError(f"k2 must be at least k1={k1}, the steps between two losses, got {k2}")
    if hasattr(x, "shape"):
        chunks = _slices(layer, x, resets, k1)
    elif resets is not None:
        raise TypeError("with an iterable x, resets must come with the chunks, as pairs with them")
    elif isinstance(x, Iterable):
        chunks = _cut(layer, x, k1)
    else:
        raise TypeError(f"x must be an array or an iterable of chunks, got {type(x).__name__}")
    return _pieces(layer, chunks, k1, k2, initial_state, training)


_Chunk = tuple[np.ndarray, np.ndarray | None]  # x and resets


def _slices(layer: Recurrent, x: Any, resets: Any, k1: int) -> Iterator[_Chunk]:
    """Return an array in chunks of `k1` steps."""
    shape = tuple(x.shape)
    if len(shape) != 3 or shape[2] != layer.input_size:
        raise ValueError(
            f"x must have shape (batch_size, time, input_size={layer.input_size}), got {shape}"
        )
    if resets is not None:
        resets = _checked_resets(resets, shape[:2])

    def chunks() -> Iterator[_Chunk]:
        for first in range(0, shape[1], k1):
            steps = slice(first, first + k1)
            yield _checked_chunk(layer, x[:, steps]), None if resets is None else resets[:, steps]

    return chunks()


def _cut(layer: Recurrent, source: Iterable[Any], k1: int) -> Iterator[_Chunk]:
    """Cut a stream of chunks of any number of steps into chunks of `k1`."""
    waiting: list[_Chunk] = []
    count = 0
    for item in source:
        x, resets = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        x = _checked_chunk(layer, x, copy=True)  # a source may use its buffer again
        if waiting and len(x) != len(waiting[0][0]):
            raise ValueError(
                f"all chunks must have the batch_size={len(waiting[0][0])} of the first, "
                f"got {len(x)}"
            )
        if resets is not None:
            resets = _checked_resets(resets, x.shape[:2])
        waiting.append((x, resets))
        count += x.shape[1]
        if count < k1:
            continue
        whole, marks = _joined(waiting)
        for first in range(0, count - count % k1, k1):
            steps = slice(first, first + k1)
            yield whole[:, steps], None if marks is None else marks[:, steps]
        rest = slice(count - count % k1, None)
        waiting = [(whole[:, rest].copy(), None if marks is None else marks[:, rest].copy())]
        count %= k1
    if count:
        yield _joined(waiting)


def _joined(chunks: list[_Chunk]) -> _Chunk:
    """Return chunks as one, with resets where any has some."""
    if len(chunks) == 1:
        return chunks[0]
    x = np.concatenate([each for each, _ in chunks], axis=1)
    if all(resets is None for _, resets in chunks):
        return x, None
    marks = [np.zeros(x.shape[:2], bool) if r is None else r for x, r in chunks]
    return x, np.concatenate(marks, axis=1)


def _checked_chunk(layer: Recurrent, x: Any, copy: bool = False) -> np.ndarray:
    axes = ("batch_size", "time", ("input_size", layer.input_size))
    return real_array("x", x, axes, copy=copy)


def _checked_resets(resets: Any, shape: tuple[int, ...]) -> np.ndarray:
    resets = np.asarray(resets)
    if resets.shape != shape or resets.dtype != np.bool_:
        raise ValueError(
            f"resets must be bool of shape (batch_size={shape[0]}, time={shape[1]}), got shape "
            f"{resets.shape} of dtype {resets.dtype}"
        )
    return resets


def _pieces(
    layer: Recurrent,
    chunks: Iterator[_Chunk],
    k1: int,
    k2: int,
    initial_state: State,
    training: bool,
) -> Iterator[Piece]:
    held: list[_Chunk] = []  # from the start of the window on
    begin = stop = 0
    carried = None
    for chunk in chunks:
        start, stop = stop, stop + chunk[0].shape[1]
        window = _joined([*held, chunk])
        output, state, tape = layer._forward_carried(
            window[0], initial_state, window[1], carried, training
        )
        # Taken before the caller uses up the tape and changes the parameters.
        next_begin = max(0, start + 2 * k1 - k2)
        skip = next_begin - begin
        if 0 < skip <= stop - begin:
            carried = layer._states_after(tape, skip)
        piece = Piece(start, stop, begin, output[:, start - begin :], state, layer, tape)
        x, resets = window
        held = [(x[:, skip:].copy(), None if resets is None else resets[:, skip:].copy())]
        begin = next_begin
        del output, tape, window, x, resets, chunk  # what the caller lets go is free
        yield piece
        del piece
