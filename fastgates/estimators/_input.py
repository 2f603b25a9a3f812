"""What users give as X and y, as the models take it: (N, T, F) with lengths, and targets beside it.

X may be (n, time, features), (n, time) for one feature, or a list of (time_k, features) or
(time_k,) arrays of unequal length.  Letters: N sequences, T time, F features, O targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from fastgates._sequences import Sequences, fits_float32
from fastgates._tables import DataError

__all__ = [
    "Inputs",
    "read_inputs",
    "read_pair",
    "read_step_targets",
    "read_targets",
    "read_weights",
]

_FLOATS = [np.float64, np.float32]


class Inputs(NamedTuple):
    """Sequences as one array.

    Attributes
    ----------
    x : ndarray of float64 or float32, shape (N, T, F)
        Finite; 0 past the end of a sequence.
    lengths : ndarray of int64, shape (N,), or None
        Steps of each sequence; None where all have T.
    form : {"array", "table", "list"}
        What came: (n, time, features), (n, time), or a list.
    """

    x: NDArray[Any]
    lengths: NDArray[np.int64] | None
    form: str

    @property
    def steps(self) -> NDArray[np.int64]:
        """Steps of each sequence."""
        count, time = self.x.shape[:2]
        return np.full(count, time) if self.lengths is None else self.lengths

    def cut(self, output: NDArray[Any]) -> Any:
        """Return outputs (N, T, ...) as X came: for a list one of arrays (time_k, ...)."""
        if self.form != "list":
            return output
        return [row[:length] for row, length in zip(output, self.steps, strict=True)]


def read_inputs(estimator: Any, values: Any, *, reset: bool) -> Inputs:
    """Check X, and set or compare the estimator's ``n_features_in_`` and ``feature_names_in_``.

    Parameters
    ----------
    estimator : BaseEstimator
        Whose input it is.
    values : array_like or list of array_like
        What the user gave.
    reset : bool
        Whether the estimator learns the number of features now, or must know it.

    Returns
    -------
    Inputs

    Raises
    ------
    ValueError, TypeError
        If it has another shape or dtype, is empty, is not finite, or has other features than the
        estimator was fitted with.
    """
    if _is_list_of_sequences(values):
        inputs = _read_list(estimator, values, reset)
    else:
        dimensions = values.ndim if hasattr(values, "ndim") else np.asarray(values).ndim
        if dimensions == 3:
            inputs = _read_array(estimator, values, reset)
        else:
            inputs = _read_table(estimator, values, reset)
    if reset:
        estimator._fitted_on_table = inputs.form == "table"
        estimator.n_inputs_ = inputs.x.shape[2]
    return inputs


def _is_list_of_sequences(values: Any) -> bool:
    """Tell a list of arrays, or of lists of unequal length, from rows of numbers."""
    if isinstance(values, np.ndarray):
        if values.dtype != object or values.ndim != 1:
            return False
    elif not isinstance(values, list | tuple):
        return False
    if not len(values):
        return False
    if all(getattr(each, "ndim", 0) for each in values):
        return True
    lists = [isinstance(each, list | tuple) for each in values]
    return all(lists) and len({len(each) for each in values}) > 1


def _read_list(estimator: Any, values: Sequence[Any], reset: bool) -> Inputs:
    first = _as_steps(values[0], "X[0]")
    _check_features(estimator, first, reset)
    sequences = []
    for k, each in enumerate(values):
        steps = _as_steps(each, f"X[{k}]")
        features = first.shape[1]
        if steps.ndim != 2 or steps.shape[1] != features:
            raise DataError(
                f"X[{k}] must have shape (time, features={features}) as X[0], got {steps.shape}"
            )
        columns, wanted = getattr(each, "columns", None), getattr(first, "columns", None)
        if columns is not None and wanted is not None and list(columns) != list(wanted):
            raise DataError(
                f"X[{k}] must have the columns of X[0], {list(wanted)}, got {list(columns)}"
            )
        array = np.asarray(steps)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"X[{k}] must hold real numbers, got dtype {array.dtype}")
        if not len(array):
            raise DataError(f"X[{k}] must have at least one step, got shape {array.shape}")
        _check_finite(array, f"X[{k}]", ("step", "feature"))
        sequences.append(array)
    padded = Sequences.from_lists(sequences)
    return Inputs(padded.x, padded.lengths, "list")


def _as_steps(values: Any, name: str) -> Any:
    """(time, features), a table as it is: its names of columns count."""
    if hasattr(values, "columns"):
        return values
    array = np.asarray(values)
    if array.ndim not in (1, 2):
        raise DataError(f"{name} must have shape (time, features) or (time,), got {array.shape}")
    return array[:, None] if array.ndim == 1 else array


def _read_array(estimator: Any, values: Any, reset: bool) -> Inputs:
    x = check_array(
        values, dtype=_FLOATS, allow_nd=True, ensure_all_finite=False, input_name="X",
        estimator=estimator,
    )  # fmt: skip
    if not all(x.shape[1:]):
        raise DataError(f"X must have at least one step and one feature, got shape {x.shape}")
    _check_features(estimator, x[0], reset)
    _check_finite(x, "X", ("sequence", "step", "feature"))
    return Inputs(x, None, "array")


def _read_table(estimator: Any, values: Any, reset: bool) -> Inputs:
    if not reset and not estimator._fitted_on_table:
        x = check_array(values, dtype=_FLOATS, ensure_all_finite=False, input_name="X")
        _check_one_feature(estimator, x.shape)
    else:
        x = validate_data(
            estimator, values, reset=reset, dtype=_FLOATS, ensure_all_finite=False,
        )  # fmt: skip
    _check_finite(x, "X", ("sequence", "step"))
    return Inputs(x[:, :, None], None, "table")


def _check_features(estimator: Any, steps: Any, reset: bool) -> None:
    """Set or compare the features of one sequence (time, features)."""
    if not reset and estimator._fitted_on_table:
        if steps.shape[1] != 1:
            raise ValueError(
                f"X has {steps.shape[1]} features, but {type(estimator).__name__} was fitted on X "
                f"of shape (n, time={estimator.n_features_in_}) and is expecting 1 feature"
            )
        return
    validate_data(estimator, steps, reset=reset, skip_check_array=True)


def _check_one_feature(estimator: Any, shape: tuple[int, ...]) -> None:
    if estimator.n_inputs_ != 1:
        raise ValueError(
            f"X must have shape (n, time, features={estimator.n_inputs_}) or be a list of "
            f"(time, features) arrays, as {type(estimator).__name__} was fitted on, got {shape}"
        )


def _check_finite(values: NDArray[Any], name: str, axes: tuple[str, ...]) -> None:
    """Raise where a number is NaN, infinite or beyond float32; say where it stands."""
    finite = fits_float32(values)
    if finite.all():
        return
    place = tuple(int(k) for k in np.argwhere(~finite)[0])
    where = ", ".join(f"{axis} {k}" for axis, k in zip(axes, place, strict=False))
    count = int(finite.size - np.count_nonzero(finite))
    if np.isfinite(values[place]):
        raise DataError(
            f"{name} must be within the range of float32, got {values[place]:g} at {where} "
            f"({count} such numbers in all): give it in another unit"
        )
    found = "NaN" if np.isnan(values[place]) else "inf"
    raise DataError(
        f"{name} must be finite, got {found} at {where} ({count} such numbers in all): "
        "fill the gaps or leave those sequences out"
    )


def read_targets(y: Any, x: NDArray[Any], estimator: Any) -> NDArray[np.float64]:
    """Check numeric targets of whole sequences: (N,) or (N, O)."""
    _check_given(y, estimator)
    array = check_array(
        y, dtype=np.float64, ensure_2d=False, allow_nd=True, ensure_all_finite=False,
        input_name="y",
    )  # fmt: skip
    if array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise DataError(f"y must have shape (n,) or (n, targets), got {array.shape}")
    check_consistent_length(x, array)
    _check_finite(array, "y", ("sequence", "target"))
    return array


def read_step_targets(y: Any, inputs: Inputs, estimator: Any) -> NDArray[Any]:
    """Check targets or labels of every step: (N, T), (N, T, O), or a list of unequal length."""
    _check_given(y, estimator)
    x, lengths, _ = inputs
    if lengths is not None or _is_list_of_sequences(y):
        if not isinstance(y, list | tuple | np.ndarray) or len(y) != len(x):
            raise DataError(f"y must be a list of {len(x)} arrays, one for each sequence of X")
        arrays = [np.asarray(each) for each in y]
        steps = inputs.steps
        for k, (array, length) in enumerate(zip(arrays, steps, strict=True)):
            if array.ndim not in (1, 2) or len(array) != length:
                raise DataError(
                    f"y[{k}] must have the {length} steps of X[{k}], got shape {array.shape}"
                )
            if array.ndim != arrays[0].ndim or array.shape[1:] != arrays[0].shape[1:]:
                raise DataError(
                    f"y[{k}] must have the targets of y[0], shape (time, "
                    f"{', '.join(map(str, arrays[0].shape[1:]))}), got {array.shape}"
                )
            if array.dtype.kind == "f":
                _check_finite(array, f"y[{k}]", ("step", "target"))
        return _pad_labels(arrays)
    array = np.asarray(y)
    if array.ndim not in (2, 3) or array.shape[:2] != x.shape[:2]:
        raise DataError(
            f"y must have shape (n={x.shape[0]}, time={x.shape[1]}) or (n, time, targets), "
            f"a target for every step, got {array.shape}"
        )
    if array.dtype.kind == "f":
        _check_finite(array, "y", ("sequence", "step", "target"))
    return array


def _pad_labels(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Lay arrays side by side, numbers or labels: the padding repeats a sequence's last entry."""
    time = max(map(len, arrays))
    return np.stack([each[np.minimum(np.arange(time), len(each) - 1)] for each in arrays])


def _check_given(y: Any, estimator: Any) -> None:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y "
            "is None."
        )


def read_pair(validation: Any) -> tuple[Any, Any]:
    """Return X and y of data to validate on."""
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise TypeError(
            "validation must be a pair (X, y), got "
            + (f"{len(validation)} entries" if isinstance(validation, tuple | list)
               else type(validation).__name__)
        )  # fmt: skip
    return validation[0], validation[1]


def read_weights(sample_weight: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Check weights of sequences (N,), or of steps (N, T) where there is a target for each.

    Parameters
    ----------
    sample_weight : array_like or None
        Finite, none negative, not all 0.
    shape : tuple
        (N,), or (N, T) where the weights may have either.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, np.float64)
    if weights.shape not in (shape, shape[:1]):
        allowed = f"{shape[:1]}" if len(shape) == 1 else f"{shape[:1]} or {shape}"
        raise ValueError(f"sample_weight must have shape {allowed}, got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("sample_weight must be finite and not negative")
    if not weights.any():
        raise ValueError("sample_weight must not be zero everywhere: at least one must be above 0")
    return weights
