"""Losses for a read-out: each returns the loss and its gradient.

Every loss is a weighted mean over what counts: steps past the end of a sequence (`lengths`) and
the first steps, while the state settles (`washout`), weigh 0; `sample_weight` weighs sequences or
steps, and ``class_weight`` classes. It is ``sum(w * loss) / sum(w)``, as PyTorch's with class
weights.

Letters in shape comments: B batch size, T time, O targets, Q quantiles, K classes. The loss is
computed in float64 and returned as a Python float; the gradient is float32, as ``backward`` of a
layer takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgates._checks import FLOAT32, is_ready, positive_number
from fastgates._training_kernels import (
    ABSOLUTE,
    HUBER,
    QUANTILE,
    SQUARED,
    error_loss,
    softmax_loss,
)
from fastgates.engine.call import address

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Result = tuple[float, NDArray[np.float32]]
    Masks = tuple[ArrayLike | None, ArrayLike | None, int]  # lengths, sample_weight, washout

__all__ = ["Loss", "NothingCountsError", "cross_entropy", "huber", "mae", "mse", "quantile"]


class NothingCountsError(ValueError):
    """All weights are 0, so there is no mean."""


def mse(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    washout: int = 0,
) -> Result:
    """Mean squared error over all entries, and its gradient.

    Parameters
    ----------
    prediction : array_like, any shape
        What the model gave. With a mask its axes are (B, T, ...), or (B, ...) where only
        sequences are weighted.
    target : array_like, the same shape
        What it should have given. Shapes are never broadcast.
    lengths : array_like of int, shape (B,), optional
        Steps of each sequence that count, from the first.
    sample_weight : array_like, shape (B,) or (B, T), optional
        Weights of sequences or of steps, at least 0; not all 0.
    washout : int
        First steps of each sequence that do not count.

    Returns
    -------
    loss : float
        ``mean((prediction - target)**2)``, weighted.
    d_prediction : ndarray of float32, the shape of `prediction`
        ``2 * (prediction - target) / prediction.size``, weighted; 0 where nothing counts.

    Raises
    ------
    ValueError
        If the shapes differ, a mask does not fit, or nothing counts.
    TypeError
        If something else than real numbers is given.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgates.losses import mse
    >>> mse(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.], dtype=float32))
    """
    return Loss("mse")(prediction, target, lengths=lengths, sample_weight=sample_weight,
                       washout=washout)  # fmt: skip


def mae(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    washout: int = 0,
) -> Result:
    """Mean absolute error, and its gradient (0 where the error is 0).

    Parameters and errors are those of :func:`mse`.
    """
    return Loss("mae")(prediction, target, lengths=lengths, sample_weight=sample_weight,
                       washout=washout)  # fmt: skip


def huber(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    delta: float = 1.0,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    washout: int = 0,
) -> Result:
    """Huber's loss: squared for small errors, linear for large ones, and its gradient.

    With the error e it is ``e**2 / 2`` where ``|e| <= delta``, else ``delta (|e| - delta / 2)``
    (Huber, "Robust estimation of a location parameter", 1964; ``torch.nn.functional.huber_loss``).

    Parameters
    ----------
    prediction, target, lengths, sample_weight, washout
        As in :func:`mse`.
    delta : float
        Where the loss turns linear, above 0.
    """
    return Loss("huber", delta=delta)(prediction, target, lengths=lengths,
                                      sample_weight=sample_weight, washout=washout)  # fmt: skip


def quantile(
    prediction: ArrayLike,
    target: ArrayLike,
    quantiles: ArrayLike = (0.1, 0.5, 0.9),
    *,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    washout: int = 0,
) -> Result:
    """Pinball loss of several quantiles, and its gradient.

    With the error e = target - prediction it is ``max(q e, (q - 1) e)``, averaged over quantiles
    and entries (Koenker and Bassett, "Regression quantiles", 1978). Its minimum is where a share q
    of the targets lies below the prediction.

    Parameters
    ----------
    prediction : array_like, shape (..., O * Q)
        For each target its quantiles side by side.
    target : array_like, shape (..., O)
    quantiles : array_like, shape (Q,)
        Each between 0 and 1.
    lengths, sample_weight, washout
        As in :func:`mse`.
    """
    loss = Loss("quantile", quantiles=quantiles)
    return loss(prediction, target, lengths=lengths, sample_weight=sample_weight, washout=washout)


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weight: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    washout: int = 0,
) -> Result:
    """Mean cross entropy of softmax(logits) with integer labels, and its gradient.

    The softmax is inside, so the read-out before it must be linear
    (``Dense(..., activation="identity")``), as in ``torch.nn.functional.cross_entropy``.

    Parameters
    ----------
    logits : array_like, shape (..., K)
        Unnormalised log-probabilities, K classes along the last axis: (B, K) with a label for
        each sequence, (B, T, K) with one for each step.
    labels : array_like of integers, shape (...)
        The right class of each row, 0 to K - 1. Those of steps that do not count may be anything.
    class_weight : array_like, shape (K,), optional
        How much each class weighs, at least 0.
    lengths, sample_weight, washout
        As in :func:`mse`.

    Returns
    -------
    loss : float
        ``mean(log(sum(exp(logits))) - logits[label])`` over all rows, weighted.
    d_logits : ndarray of float32, the shape of `logits`
        ``(softmax(logits) - one_hot(labels)) / number_of_rows``, weighted.

    Raises
    ------
    ValueError
        If the shapes do not fit, nothing counts or a label is outside 0 to K - 1.
    TypeError
        If `logits` are not real or `labels` not integers.

    Examples
    --------
    >>> from fastgates.losses import cross_entropy
    >>> loss, d_logits = cross_entropy([[0.0, 0.0]], [1])
    >>> round(loss, 6), d_logits.tolist()
    (0.693147, [[0.5, -0.5]])
    """
    masks = (lengths, sample_weight, washout)
    return _cross_entropy(logits, labels, class_weight, masks)[:2]


@dataclass(frozen=True)
class Loss:
    """A loss with its options, as one object that models take and files can hold.

    Parameters
    ----------
    name : {"mse", "mae", "huber", "quantile", "cross_entropy"}
    **options
        ``delta`` of huber, ``quantiles`` of quantile, ``class_weight`` of cross_entropy.

    Examples
    --------
    >>> from fastgates.losses import Loss
    >>> Loss("quantile", quantiles=(0.05, 0.5, 0.95)).outputs_per_target
    3
    """

    name: str
    options: Mapping[str, Any]

    def __init__(self, name: str, **options: Any) -> None:
        if name not in _OPTIONS:
            raise ValueError(f"loss must be one of {', '.join(_OPTIONS)}, got {name!r}")
        unknown = [option for option in options if option not in _OPTIONS[name]]
        if unknown:
            allowed = ", ".join(_OPTIONS[name]) or "none"
            raise ValueError(f"the options of {name} are: {allowed}; got {', '.join(unknown)}")
        if name == "quantile":
            quantiles = options.get("quantiles", _QUANTILES)
            options["quantiles"] = tuple(_checked_quantiles(quantiles).tolist())
        elif name == "huber":
            options["delta"] = positive_number("delta", options.get("delta", 1.0))
        elif options.get("class_weight") is not None:
            weight = np.asarray(options["class_weight"], dtype=np.float64)
            options["class_weight"] = tuple(_checked_class_weight(weight, weight.size).tolist())
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", MappingProxyType(options))

    @classmethod
    def of(cls, loss: str | Loss) -> Loss:
        """Return a loss from its name, or as it is."""
        if isinstance(loss, cls):
            return loss
        if not isinstance(loss, str):
            raise TypeError(f"loss must be a name or a Loss, got {type(loss).__name__}")
        return cls(loss)

    def __reduce__(self) -> Any:
        return _make_loss, (self.name, dict(self.options))

    def __hash__(self) -> int:
        return hash((self.name, *self.options.items()))

    @property
    def classifies(self) -> bool:
        """Whether targets are labels."""
        return self.name == "cross_entropy"

    @property
    def outputs_per_target(self) -> int:
        """Outputs that a model must have for each target."""
        return len(self.options["quantiles"]) if self.name == "quantile" else 1

    @property
    def point(self) -> int:
        """Which of the outputs of a target is its point forecast: the quantile next to 1/2."""
        if self.name != "quantile":
            return 0
        return int(np.abs(np.asarray(self.options["quantiles"]) - 0.5).argmin())

    def __call__(
        self,
        prediction: ArrayLike,
        target: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        washout: int = 0,
    ) -> Result:
        """Return the loss and its gradient, see the function of its name."""
        return self.weighted(prediction, target, lengths, sample_weight, washout)[:2]

    def weighted(
        self,
        prediction: ArrayLike,
        target: ArrayLike,
        lengths: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        washout: int = 0,
        out: NDArray[np.float32] | None = None,
    ) -> tuple[float, NDArray[np.float32], float]:
        """Return the loss, its gradient, and the sum of the weights that it is a mean over.

        The gradient is written to `out`, contiguous in the shape of `prediction`, if that is given.
        """
        masks = (lengths, sample_weight, washout)
        if self.name == "cross_entropy":
            weight = self.options.get("class_weight")
            return _cross_entropy(prediction, target, weight, masks, out)
        kind, options = self._kind
        return _of_errors(kind, options, prediction, target, masks, out)

    @cached_property
    def _kind(self) -> tuple[int, NDArray[np.float64]]:
        """Return what the kernel knows the loss by, and its options as numbers."""
        options = self.options.get("quantiles", [self.options.get("delta", 0.0)])
        return _KINDS[self.name], np.array(options, np.float64)


def _make_loss(name: str, options: Mapping[str, Any]) -> Loss:
    return Loss(name, **options)


# -- What the losses are made of -------------------------------------------------------------------

_QUANTILES = (0.1, 0.5, 0.9)
_OPTIONS: dict[str, tuple[str, ...]] = {
    "mse": (),
    "mae": (),
    "huber": ("delta",),
    "quantile": ("quantiles",),
    "cross_entropy": ("class_weight",),
}

_KINDS = {"mse": SQUARED, "mae": ABSOLUTE, "huber": HUBER, "quantile": QUANTILE}


def _of_errors(
    kind: int,
    options: NDArray[np.float64],
    prediction: ArrayLike,
    target: ArrayLike,
    masks: Masks,
    out: NDArray[np.float32] | None,
) -> tuple[float, NDArray[np.float32], float]:
    """Return the weighted mean of the losses of errors, its gradient, the sum of weights."""
    prediction, target = _numbers("prediction", prediction), _numbers("target", target)
    levels = options.size if kind == QUANTILE else 1
    shape = target.shape
    if kind == QUANTILE:
        wanted = (*shape[:-1], shape[-1] * levels) if shape else None
        if prediction.shape != wanted:
            raise ValueError(
                f"prediction must have {levels} quantiles side by side for each target: shape "
                f"{wanted} for a target of shape {shape}, got {prediction.shape}"
            )
    elif prediction.shape != shape:
        raise ValueError(
            f"target must have the shape of prediction, {prediction.shape}, got {shape}: "
            "reshape one of them, shapes are not broadcast"
        )
    size = prediction.size
    if size == 0:
        raise ValueError(f"prediction must hold at least one entry, got shape {prediction.shape}")
    weights = _weights(shape, *masks)
    group = 1 if weights is None else size // weights.size
    total = float(size) if weights is None else float(weights.sum()) * group
    gradient = np.empty(prediction.shape, np.float32) if out is None else out
    loss = error_loss.dispatcher(
        kind, address(prediction), _is_double(prediction), address(target), _is_double(target),
        size, address(options), options.size, address(weights), group, total, address(gradient),
    )  # fmt: skip
    return loss, gradient, total


def _cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    class_weight: ArrayLike | None,
    masks: Masks,
    out: NDArray[np.float32] | None = None,
) -> tuple[float, NDArray[np.float32], float]:
    logits = _numbers("logits", logits)
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
    weights = _weights(logits.shape, *masks)
    if weights is None:
        check_labels(labels, classes)
    else:
        counts = np.broadcast_to(weights[..., 0] > 0, labels.shape)
        check_labels(np.where(counts, labels, labels.dtype.type(0)), classes)
    rows = np.ascontiguousarray(labels, np.int64)
    of_class = None
    if class_weight is not None:
        of_class = _checked_class_weight(np.asarray(class_weight, dtype=np.float64), classes)
    group = 1 if weights is None else rows.size // weights.size
    gradient = np.empty(logits.shape, np.float32) if out is None else out
    loss = np.empty(1)
    total = softmax_loss.dispatcher(
        address(logits), _is_double(logits), address(rows), rows.size, classes, address(of_class),
        address(weights), group, address(gradient), address(loss),
    )  # fmt: skip
    if total == 0:
        raise NothingCountsError("the classes of all labels that count weigh 0")
    return float(loss[0]), gradient, total


def _weights(
    shape: tuple[int, ...],
    lengths: ArrayLike | None,
    sample_weight: ArrayLike | None,
    washout: int,
) -> NDArray[np.float64] | None:
    """Return weights that broadcast to `shape` (B, T, ...) or (B, ...); None where all are 1."""
    if lengths is None and sample_weight is None and not washout:
        return None
    if isinstance(washout, bool) or not isinstance(washout, int | np.integer) or washout < 0:
        raise ValueError(f"washout must be an integer of at least 0, got {washout!r}")
    masked = lengths is not None or washout > 0
    if len(shape) == 1:
        shape = (*shape, 1)
    if len(shape) < (3 if masked else 2):
        axes = "(batch_size, time, ...)" if masked else "(batch_size, ...)"
        raise ValueError(f"prediction must have shape {axes} to be masked, got {shape}")
    size, time = shape[:2]
    weights = np.ones((size, 1))
    if sample_weight is not None:
        given = _real("sample_weight", sample_weight).astype(np.float64)
        per_step = len(shape) > 2 and given.shape == (size, time)
        if given.shape != (size,) and not per_step:
            steps = f" or ({size}, time={time})" if len(shape) > 2 else ""
            raise ValueError(
                f"sample_weight must have shape (batch_size={size},){steps}, got {given.shape}"
            )
        if not (given >= 0).all() or not np.isfinite(given).all():
            raise ValueError("sample_weight must hold finite numbers of at least 0")
        weights = given if per_step else given[:, None]
    if masked:
        step = np.arange(time)
        counts = np.broadcast_to(step >= washout, (size, time))
        if lengths is not None:
            ends = np.asarray(lengths)
            if ends.shape != (size,) or ends.dtype.kind not in "iu":
                raise ValueError(
                    f"lengths must be integers of shape (batch_size={size},), got shape "
                    f"{ends.shape} of dtype {ends.dtype}"
                )
            if size and not (ends.min() >= 0 and ends.max() <= time):
                raise ValueError(
                    f"lengths must be from 0 to time={time}, got {ends.min()} to {ends.max()}"
                )
            counts = counts & (step < ends[:, None])
        weights = weights * counts
    if not weights.any():
        raise NothingCountsError(
            f"nothing counts in the loss: lengths, sample_weight and washout={washout} "
            "leave no step"
        )
    weights = np.ascontiguousarray(weights)
    return weights.reshape(*weights.shape, *(1,) * (len(shape) - 2))


def check_labels(labels: NDArray[Any], classes: int) -> None:
    """Raise the error of a label that is no class."""
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        where = tuple(int(k) for k in np.argwhere(outside)[0])
        raise ValueError(
            f"labels must be 0 to {classes - 1} (logits have {classes} classes), "
            f"got {int(labels[where])} at index {where}"
        )


def _checked_quantiles(quantiles: ArrayLike) -> NDArray[np.float64]:
    levels = np.asarray(quantiles, dtype=np.float64)
    if levels.ndim != 1 or levels.size == 0 or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"quantiles must be numbers between 0 and 1, got {quantiles!r}")
    return levels


def _checked_class_weight(weight: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    if weight.shape != (classes,):
        raise ValueError(f"class_weight must have shape (classes={classes},), got {weight.shape}")
    if not (weight >= 0).all() or not np.isfinite(weight).all() or not weight.any():
        raise ValueError(f"class_weight must hold numbers of at least 0, got {weight}")
    return np.ascontiguousarray(weight)


def _real(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def _numbers(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return contiguous float32 or float64."""
    if is_ready(values):
        return values  # type: ignore[return-value]
    array = _real(name, values)
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.float64
    return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _is_double(array: NDArray[Any]) -> int:
    return 0 if array.dtype is FLOAT32 else int(array.dtype == np.float64)
