"""Gradient clipping, in place on the flat gradient vectors.

Both functions return the global norm as it was before clipping, the figure to log while
training.  It is summed in float64 in a fixed order, so it is the same for any thread count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastgates._checks import is_ready
from fastgates._updates import sum_of_squares
from fastgates.engine.call import address

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["clip_grad_norm", "clip_grad_value", "global_norm", "limit_values", "norm_factor"]


class HasParameterVector(Protocol):
    """Gradients (or a module): anything with one flat float32 vector."""

    @property
    def parameter_vector(self) -> NDArray[np.float32]: ...


def clip_grad_norm(
    gradients: HasParameterVector | Sequence[HasParameterVector], max_norm: float
) -> float:
    """Scale all gradients together so that their global norm is at most `max_norm`.

    Parameters
    ----------
    gradients : Gradients or sequence of Gradients
        As given by ``backward``; their ``parameter_vector`` is scaled in place.
    max_norm : float
        The largest norm to let through; ``math.inf`` only measures.

    Returns
    -------
    norm : float
        The Euclidean norm over all of them before clipping.  Where it is not finite the
        gradients are left as they are: test it with ``math.isfinite`` before the step.

    Raises
    ------
    ValueError
        If `max_norm` is not a positive number.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural
       networks", ICML 2013, algorithm 1.
    """
    vectors = _vectors(gradients)
    _require_positive("max_norm", max_norm)
    norm = global_norm(vectors)
    factor = norm_factor(norm, max_norm)
    if factor != 1.0:
        for vector in vectors:
            vector *= np.float32(factor)
    return norm


def clip_grad_value(
    gradients: HasParameterVector | Sequence[HasParameterVector], clip_value: float
) -> float:
    """Limit every entry of the gradients to [-clip_value, clip_value].

    Parameters
    ----------
    gradients : Gradients or sequence of Gradients
        As given by ``backward``; their ``parameter_vector`` is changed in place.
    clip_value : float
        The largest magnitude to let through.

    Returns
    -------
    norm : float
        The Euclidean norm over all of them before clipping.

    Raises
    ------
    ValueError
        If `clip_value` is not a positive number.
    """
    vectors = _vectors(gradients)
    _require_positive("clip_value", clip_value)
    norm = global_norm(vectors)
    limit_values(vectors, clip_value)
    return norm


def norm_factor(norm: float, max_norm: float) -> float:
    """Return what scales gradients down to `max_norm`; 1 where they are less or not finite."""
    return max_norm / norm if max_norm < norm < math.inf else 1.0


def limit_values(vectors: Sequence[NDArray[np.float32]], clip_value: float) -> None:
    """Limit every entry to [-clip_value, clip_value], in place."""
    limit = np.float32(clip_value)
    for vector in vectors:
        np.clip(vector, -limit, limit, out=vector)


def _vectors(
    gradients: HasParameterVector | Sequence[HasParameterVector],
) -> list[NDArray[np.float32]]:
    items = gradients if isinstance(gradients, Sequence) else [gradients]
    vectors = []
    for item in items:
        vector = getattr(item, "parameter_vector", None)
        if not isinstance(vector, np.ndarray):
            raise TypeError(
                "gradients must be the Gradients of a backward call, or a list of them, "
                f"got {type(item).__name__}"
            )
        vectors.append(vector)
    return vectors


def global_norm(vectors: Sequence[NDArray[np.float32]]) -> float:
    """Return the Euclidean norm over all of them."""
    total = 0.0
    for vector in vectors:
        flat = vector if is_ready(vector) else np.ascontiguousarray(vector, np.float32)
        total += sum_of_squares.dispatcher(address(flat), flat.size)
    return math.sqrt(total)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
