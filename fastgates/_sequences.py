"""Sequences with their targets, as models and the training loop take them.

Letters in shape comments: N sequences, T time, C input features, O targets, H horizon, E inputs
that are known ahead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ._checks import positive_integer
from ._series import batches, windows_of
from ._tables import DataError

__all__ = [
    "Sequences",
    "check_finite",
    "fits_float32",
    "moments",
    "take_state",
    "windows",
    "zeros_past_ends",
]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences, what a model should make of them, and how much each counts.

    Arrays are kept as they are, views too; a minibatch is gathered when it is needed. What a model
    can take, and that all numbers are finite, is checked by ``model.check``.

    Parameters
    ----------
    x : array_like, shape (N, T, C), optional
        Inputs. None only for a free run without inputs.
    y : array_like, optional
        Targets: (N, O) or (N,) for each sequence, (N, T, O) or (N, T) for each step, (N, H, O) for
        the steps of a horizon. Labels are integers of shape (N,) or (N, T).
    lengths : array_like of int, shape (N,), optional
        Steps of each sequence, 1 to T.
    sample_weight : array_like, shape (N,) or (N, T), optional
        How much each sequence or step counts in the loss.
    x_future : array_like, shape (N, H, E), optional
        Inputs of the steps of a horizon.
    initial_state : tuple, optional
        A state for each recurrent layer, as :class:`fastgates.Sequential` takes it, of N sequences.

    Raises
    ------
    DataError
        If the arrays are not of the same number of sequences.
    TypeError
        If they do not hold real numbers.
    """

    x: Any = None
    y: Any = None
    lengths: Any = None
    sample_weight: Any = None
    x_future: Any = None
    initial_state: Any = None

    def __post_init__(self) -> None:
        for name, axes in (("x", 3), ("y", None), ("lengths", 1), ("sample_weight", None),
                           ("x_future", 3)):  # fmt: skip
            value = getattr(self, name)
            if value is None:
                continue
            array = _array(name, value)
            if array.ndim == 0 or (axes is not None and array.ndim != axes):
                shapes = {"x": "(n, time, features)", "lengths": "(n,)"}
                wanted = shapes.get(name, "(n, steps, features)" if axes else "(n, ...)")
                raise DataError(f"{name} must have shape {wanted}, got {array.shape}")
            object.__setattr__(self, name, array)
        if self.x is None and self.y is None:
            raise DataError("sequences must have x or y, got neither")
        counts = {
            name: len(value)
            for name in ("x", "y", "lengths", "sample_weight", "x_future")
            if (value := getattr(self, name)) is not None
        }
        if len(set(counts.values())) != 1:
            found = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise DataError(f"all arrays must be of the same number of sequences, got {found}")
        if self.lengths is not None and self.lengths.dtype.kind not in "iu":
            raise TypeError(f"lengths must be integers, got dtype {self.lengths.dtype}")

    @classmethod
    def from_lists(
        cls, x: Sequence[Any] | None = None, y: Sequence[Any] | None = None, **options: Any
    ) -> Sequences:
        """Pad lists of sequences of unequal length.

        Parameters
        ----------
        x : sequence of array_like, each of shape (time, C) or (time,)
            Lengths may differ, the number of features not.
        y : sequence, optional
            A number, a label, or an array (O,) for each sequence; or arrays (time, O), or (time,)
            of one target or label, as long as those of `x`, for its steps. Arrays (time,) are
            taken for targets of steps where lengths differ.
        **options
            `sample_weight`, `x_future`, `initial_state`.

        Raises
        ------
        DataError
            If features differ, a sequence is empty, or a target is not as long as its sequence.
        """
        if x is None:
            if y is None:
                raise DataError("sequences must have x or y, got neither")
            padded, lengths = _pad("y", y)
            return cls(None, padded, lengths=lengths, **options)
        padded, lengths = _pad("x", x)
        if y is None:
            return cls(padded, None, lengths=lengths, **options)
        if len(y) != len(lengths):
            raise DataError(
                f"all arrays must be of the same number of sequences, got {len(lengths)} of x, "
                f"{len(y)} of y"
            )
        axes = {np.ndim(each) for each in y}
        steps = [len(each) for each in y] if axes == {1} else []
        per_step = 2 in axes or (len(set(steps)) > 1 and steps == lengths.tolist())
        if not per_step:
            try:
                return cls(padded, np.asarray(y), lengths=lengths, **options)
            except ValueError as error:
                raise DataError(f"y must have as many targets for each sequence: {error}") from None
        targets, ends = _pad("y", y)
        wrong = np.flatnonzero(ends != lengths)
        if wrong.size:
            k = int(wrong[0])
            raise DataError(
                f"y[{k}] must have a row for each of the {lengths[k]} steps of x[{k}], "
                f"got {ends[k]}"
            )
        if axes == {1}:
            targets = targets[:, :, 0]
        return cls(padded, targets, lengths=lengths, **options)

    def __len__(self) -> int:
        return len(self.y if self.x is None else self.x)

    def take(self, rows: Any) -> Sequences:
        """Return some of the sequences: a slice as views, an array of numbers as copies."""
        taken = object.__new__(Sequences)  # what was checked once need not be again
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None:
                value = take_state(value, rows) if entry.name == "initial_state" else value[rows]
            object.__setattr__(taken, entry.name, value)
        return taken

    def replace(self, **changes: Any) -> Sequences:
        """Return a copy with other arrays in place of some."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return Sequences(**(values | changes))

    def split(self, fraction: float, seed: int | None = None) -> tuple[Sequences, Sequences]:
        """Cut off a share for validation.

        Parameters
        ----------
        fraction : float
            Between 0 and 1.
        seed : int, optional
            Take random sequences; without one the last are taken, as for windows over a series.

        Returns
        -------
        training, validation : Sequences

        Raises
        ------
        DataError
            If one of the parts would be empty.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction!r}")
        count = max(1, round(fraction * len(self)))
        if count >= len(self):
            raise DataError(f"{len(self)} sequences cannot be split into {fraction} and the rest")
        if seed is None:
            first = len(self) - count
            return self.take(slice(None, first)), self.take(slice(first, None))
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))


def windows(series: Any, length: int, stride: int = 1) -> np.ndarray:
    """Return every window of consecutive rows of a series, as a view: nothing is copied.

    Parameters
    ----------
    series : array_like, shape (rows, C) or (rows,)
    length : int
        Rows of a window.
    stride : int
        Rows from the start of a window to that of the next.

    Returns
    -------
    ndarray, shape (N, length, C)
        Read-only.

    Raises
    ------
    DataError
        If the series is shorter than a window.
    """
    values = _array("series", series)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise DataError(f"series must have shape (rows, columns) or (rows,), got {values.shape}")
    length, stride = positive_integer("length", length), positive_integer("stride", stride)
    if len(values) < length:
        raise DataError(f"series must have at least length={length} rows, got {len(values)}")
    return windows_of(values, length)[::stride]


def check_finite(name: str, values: np.ndarray, lengths: np.ndarray | None = None) -> bool:
    """Raise the error of the first number that counts and that float32 cannot hold, with its index.

    That is NaN, an infinity or what would become one. Return whether there is none past the ends of
    the sequences either.
    """
    everywhere = True
    if values.dtype.kind != "f":
        return everywhere
    for rows in batches(len(values)):
        finite = fits_float32(values[rows])
        if finite.all():
            continue
        everywhere = False
        if lengths is not None:
            finite |= _past_end(values.shape[1], lengths[rows], finite.ndim)
        if not finite.all():
            where = tuple(int(k) for k in np.argwhere(~finite)[0])
            index = (rows.start + where[0], *where[1:])
            if np.isfinite(values[index]):
                raise DataError(
                    f"{name} must be within the range of float32, got {values[index]:g} at index "
                    f"{index}: give it in another unit"
                )
            raise DataError(
                f"{name} must be finite, got {values[index]} at index {index}: fill or leave out "
                "what is missing"
            )
    return everywhere


def fits_float32(values: np.ndarray) -> np.ndarray:
    """Tell which numbers are finite, and stay so as float32."""
    finite: np.ndarray = np.isfinite(values)
    if values.dtype.itemsize > 4:
        finite &= np.abs(values) <= np.finfo(np.float32).max
    return finite


def zeros_past_ends(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a copy with zeros past the ends of the sequences."""
    past = _past_end(values.shape[1], lengths, values.ndim)
    return np.where(past, values.dtype.type(0), values)


def moments(
    name: str, values: np.ndarray, lengths: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation along the last axis, of the steps that count.

    A constant column has a deviation of 1. The pass is by batches: `values` may be a view of
    windows, many times as large as its memory. A column whose changes are lost in float32 beside
    its mean is warned of.
    """

    def parts() -> Iterator[np.ndarray]:
        for rows in batches(len(values)):
            part = values[rows].astype(np.float64)
            if lengths is not None and part.ndim == 3:
                yield part[~_past_end(part.shape[1], lengths[rows], 2)]
            else:
                yield part.reshape(-1, part.shape[-1])

    count, total, squares = 0, np.zeros(values.shape[-1]), np.zeros(values.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):  # too large: whoever takes them says so
        for part in parts():
            count += len(part)
            total += part.sum(axis=0)
        mean = total / count
        for part in parts():
            squares += np.square(part - mean).sum(axis=0)
    scale = np.sqrt(squares / count)
    with np.errstate(over="ignore", invalid="ignore"):
        offset = np.abs(mean)
        lost = (scale < 1e-5 * offset) & (scale > 1e-12 * offset)
    if lost.any():
        k = int(np.argmax(lost))
        warnings.warn(
            f"column {k} of {name} has the mean {mean[k]:g} and a deviation of only "
            f"{scale[k]:.2g}: float32 keeps few digits of its changes. Subtract a constant first",
            UserWarning,
            stacklevel=2,
        )
    return mean, np.where(scale > 1e-7 * offset, scale, 1.0)


def _past_end(time: int, lengths: np.ndarray, axes: int) -> np.ndarray:
    """Return which steps (N, T, 1, ...) lie past the end of their sequence."""
    past: np.ndarray = np.arange(time) >= lengths[:, None]
    return past.reshape(*past.shape, *(1,) * (axes - 2))


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(
            f"{name} must be one array of numbers ({error}): for sequences of unequal length use "
            "Sequences.from_lists"
        ) from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def _pad(name: str, sequences: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, T, features), 0 past the ends, and lengths (N,)."""
    arrays = [_array(f"{name}[{k}]", each) for k, each in enumerate(sequences)]
    if not arrays:
        raise DataError(f"{name} must hold at least one sequence, got none")
    arrays = [each[:, None] if each.ndim == 1 else each for each in arrays]
    for k, each in enumerate(arrays):
        if each.ndim != 2 or len(each) == 0 or each.shape[1] != arrays[0].shape[-1]:
            raise DataError(
                f"{name}[{k}] must have shape (time >= 1, features={arrays[0].shape[-1]}), "
                f"got {each.shape}"
            )
    lengths = np.array([len(each) for each in arrays], np.int64)
    dtype = np.result_type(*{each.dtype for each in arrays})
    padded = np.zeros((len(arrays), lengths.max(), arrays[0].shape[1]), dtype)
    for k, each in enumerate(arrays):
        padded[k, : len(each)] = each
    return padded, lengths


def take_state(states: Any, rows: Any) -> Any:
    """Return some rows of states, whose batch is axis 1."""
    if states is None:
        return None
    if isinstance(states, tuple | list):
        return tuple(take_state(each, rows) for each in states)
    return np.asarray(states)[:, rows]
