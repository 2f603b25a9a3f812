"""Losses for a read-out: each returns the loss and its gradient.

Letters in shape comments: B batch size, T time, K classes.  The loss is computed in float64
and returned as a Python float; the gradient is float32, as ``backward`` of a layer takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["cross_entropy", "mse"]


def mse(prediction: ArrayLike, target: ArrayLike) -> tuple[float, NDArray[np.float32]]:
    """Mean squared error over all entries, and its gradient.

    Parameters
    ----------
    prediction : array_like, any shape
        What the model gave.
    target : array_like, the same shape
        What it should have given.  Shapes are never broadcast.

    Returns
    -------
    loss : float
        ``mean((prediction - target)**2)``.
    d_prediction : ndarray of float32, the shape of `prediction`
        ``2 * (prediction - target) / prediction.size``.

    Raises
    ------
    ValueError
        If the shapes differ or there are no entries.
    TypeError
        If either holds something else than real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgates.losses import mse
    >>> mse(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.], dtype=float32))
    """
    prediction = _real("prediction", prediction)
    target = _real("target", target)
    if prediction.shape != target.shape:
        raise ValueError(
            f"target must have the shape of prediction, {prediction.shape}, got {target.shape}: "
            "reshape one of them, shapes are not broadcast"
        )
    if prediction.size == 0:
        raise ValueError(f"prediction must hold at least one entry, got shape {prediction.shape}")
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged model: inf, without a warning
        difference = np.subtract(prediction, target, dtype=np.float64)
        loss = float(np.mean(np.square(difference)))
        return loss, np.multiply(difference, 2.0 / difference.size).astype(np.float32)


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> tuple[float, NDArray[np.float32]]:
    """Mean cross entropy of softmax(logits) with integer labels, and its gradient.

    The softmax is inside, so the read-out before it must be linear
    (``Dense(..., activation="identity")``), as in ``torch.nn.functional.cross_entropy``.

    Parameters
    ----------
    logits : array_like, shape (..., K)
        Unnormalised log-probabilities, K classes along the last axis.
    labels : array_like of integers, shape (...)
        The right class of each row, 0 to K - 1.

    Returns
    -------
    loss : float
        ``mean(log(sum(exp(logits))) - logits[label])`` over all rows.
    d_logits : ndarray of float32, the shape of `logits`
        ``(softmax(logits) - one_hot(labels)) / number_of_rows``.

    Raises
    ------
    ValueError
        If the shapes do not fit, there are no rows or a label is outside 0 to K - 1.
    TypeError
        If `logits` are not real or `labels` not integers.

    Examples
    --------
    >>> from fastgates.losses import cross_entropy
    >>> loss, d_logits = cross_entropy([[0.0, 0.0]], [1])
    >>> round(loss, 6), d_logits.tolist()
    (0.693147, [[0.5, -0.5]])
    """
    logits = _real("logits", logits)
    labels = np.asarray(labels)
    if logits.ndim == 0 or logits.size == 0:
        raise ValueError(f"logits must have shape (..., classes >= 1), got {logits.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have shape {logits.shape[:-1]}, that of logits {logits.shape} "
            f"without the classes, got {labels.shape}"
        )
    classes = logits.shape[-1]
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        where = tuple(int(k) for k in np.argwhere(outside)[0])
        raise ValueError(
            f"labels must be 0 to {classes - 1} (logits have {classes} classes), "
            f"got {int(labels[where])} at index {where}"
        )
    rows = labels.reshape(-1).astype(np.intp)
    index = np.arange(rows.size)
    shifted = logits.reshape(rows.size, classes).astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf: the loss is then NaN, without a warning
        shifted -= shifted.max(axis=1, keepdims=True)
    probability = np.exp(shifted)
    total = probability.sum(axis=1)
    loss = float(np.mean(np.log(total) - shifted[index, rows]))
    probability /= total[:, None]
    probability[index, rows] -= 1.0
    probability /= rows.size
    return loss, probability.astype(np.float32).reshape(logits.shape)


def _real(name: str, values: ArrayLike) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array
