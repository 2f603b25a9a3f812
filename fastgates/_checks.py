"""Checks at the door: each says what was expected, what came, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "FLOAT32",
    "check_shape",
    "is_ready",
    "not_negative",
    "positive_integer",
    "positive_number",
    "probability",
    "real_array",
]

FLOAT32 = np.dtype(np.float32)


def positive_integer(name: str, value: Any) -> int:
    """Return `value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """Return `value` as a finite float above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (is_number and 0 <= value < np.inf):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return float(value)


def probability(name: str, value: Any) -> float:
    """Return `value` as a float of at least 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    return float(value)


def is_ready(value: Any) -> bool:
    """Tell whether `value` is a C-contiguous float32 array, as no conversion is needed for."""
    return (
        value.__class__ is np.ndarray and value.dtype is FLOAT32 and bool(value.flags.c_contiguous)
    )


Axis = str | tuple[str, int]


def real_array(name: str, value: Any, shape: Sequence[Axis], *, copy: bool = False) -> np.ndarray:
    """Return `value` as a C-contiguous float32 array.

    Parameters
    ----------
    name : str
        What to call it in an error.
    value : array_like
        Of any real dtype and strides.
    shape : sequence
        For each axis its name, where any size is allowed, or a pair of name and size. The first
        may be "...", for any number of axes.
    copy : bool
        Whether the result must not share memory with `value`.
    """
    try:
        array = np.asarray(value)
        if array.dtype.hasobject and array is not value and hasattr(value, "__dlpack__"):
            array = np.from_dlpack(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from None
    except (TypeError, RuntimeError, BufferError) as error:
        # What tensors of other packages say that are on a device, of a dtype that NumPy does not
        # know, or that would need a gradient.
        raise TypeError(f"{name} must be an array, or a tensor on the CPU: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    check_shape(name, array.shape, shape)
    if copy:
        return np.array(array, dtype=np.float32, order="C")
    return np.ascontiguousarray(array, dtype=np.float32)


def check_shape(name: str, sizes: tuple[int, ...], shape: Sequence[Axis]) -> None:
    """Check the shape of an array, see :func:`real_array`."""
    got, axes = sizes, shape
    if axes[0] == "...":
        axes = axes[1:]
        sizes = sizes[max(0, len(sizes) - len(axes)) :]
    fits = len(sizes) == len(axes)
    if fits:
        for axis, size in zip(axes, sizes, strict=True):
            if axis.__class__ is not str and axis[1] != size:
                fits = False
    if not fits:
        parts = [axis if isinstance(axis, str) else f"{axis[0]}={axis[1]}" for axis in shape]
        wanted = ", ".join(parts) + ("," if len(parts) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {got}")
