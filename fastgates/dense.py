"""The read-out: an affine map of the last axis and an activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import positive_integer, real_array
from ._parameters import Gradients, Module, split
from ._threads import is_small
from ._vecmath import sigmoid_array, tanh_array
from .engine.call import address
from .engine.linear import (
    NARROW,
    SMALL_MAP,
    SMALL_ROWS,
    affine,
    affine_gradients,
    small_affine,
    small_affine_gradients,
    softmax_rows,
)
from .engine.pack import pack_affine

__all__ = ["ACTIVATIONS", "Dense", "DenseTape"]


def _softmax_backward(d_y: np.ndarray, y: np.ndarray) -> np.ndarray:
    return y * (d_y - (d_y * y).sum(axis=-1, keepdims=True))


_Activation = Callable[[np.ndarray], np.ndarray]
_Derivative = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Each activation, and the gradient of its argument from that of its value and the value.
ACTIVATIONS: dict[str, tuple[_Activation, _Derivative]] = {
    "identity": (lambda z: z, lambda d_y, y: d_y),
    "tanh": (tanh_array, lambda d_y, y: d_y * (1 - y * y)),
    "sigmoid": (sigmoid_array, lambda d_y, y: d_y * y * (1 - y)),
    "relu": (lambda z: np.maximum(z, 0), lambda d_y, y: d_y * (y > 0)),
    "softmax": (softmax_rows, _softmax_backward),
}


@dataclass
class DenseTape:
    """What :meth:`Dense.forward` keeps for :meth:`Dense.backward`; good for one use."""

    owner: Dense
    version: int
    x: np.ndarray
    y: np.ndarray
    used: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that the tape keeps."""
        return self.x.nbytes + self.y.nbytes


class Dense(Module):
    """``y = activation(weight x + bias)`` on the last axis, for any leading axes.

    Parameters
    ----------
    input_size, output_size : int
        Features of the last axis of the input, and of the output; at least 1.
    activation : {"identity", "tanh", "sigmoid", "relu", "softmax"}
        To train a classifier take "identity" and :func:`fastgates.cross_entropy`, which applies
        the softmax itself.
    bias : bool
    seed : int, Generator or None
        Of the initial parameters, uniform in ``+-1 / sqrt(input_size)``.

    Raises
    ------
    ValueError
        If a size is no positive integer, or there is no such activation.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        activation: str = "identity",
        *,
        bias: bool = True,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.input_size = positive_integer("input_size", input_size)
        self.output_size = positive_integer("output_size", output_size)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        self.bias = bool(bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.output_size, self.input_size)}
        if self.bias:
            shapes["bias"] = (self.output_size,)
        super().__init__(shapes)
        self._packed: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None
        bound = 1 / np.sqrt(self.input_size)
        self._vector[:] = np.random.default_rng(seed).uniform(-bound, bound, self._vector.size)

    def __repr__(self) -> str:
        return f"Dense({self.input_size}, {self.output_size}, {self.activation!r})"

    def _cuda(self) -> Any:
        """Return the passes on the GPU."""
        if self._on_device is None:
            from .cuda.modules import DensePasses

            self._on_device = DensePasses(self)
        return self._on_device

    def __call__(self, x: Any) -> np.ndarray:
        """Return the map of `x` (..., input_size), float32 of shape (..., output_size)."""
        if self._device != "cpu":
            return self._cuda().call(x)
        return self._map(real_array("x", x, self._shape_of_x()))

    def forward(self, x: Any, copy: bool = True) -> tuple[np.ndarray, DenseTape]:
        """Return the map of `x` and the tape that :meth:`backward` needs.

        Parameters
        ----------
        x : array_like, shape (..., input_size)
        copy : bool
            Whether the tape keeps a copy of `x`. Without, contiguous float32 arrays must not change
            before :meth:`backward`.

        Returns
        -------
        y : ndarray of float32, shape (..., output_size)
            Read-only, since the tape needs it.
        tape : DenseTape
        """
        if self._device != "cpu":
            return self._cuda().forward(x)
        x = real_array("x", x, self._shape_of_x(), copy=copy)
        y = self._map(x)
        y.flags.writeable = False
        return y, DenseTape(self, self._version, x, y)

    def backward(self, tape: DenseTape, d_output: Any, input_gradient: bool = True) -> Gradients:
        """Return the gradients, from that with respect to the output.

        Parameters
        ----------
        tape : DenseTape
            From :meth:`forward`; used up.
        d_output : array_like, shape (..., output_size)
        input_gradient : bool
            Whether the gradient with respect to `x` is wanted.

        Raises
        ------
        RuntimeError
            If the tape was used before, or the parameters have changed since.
        """
        if self._device != "cpu":
            return self._cuda().backward(tape, d_output, input_gradient)
        self._check_tape(tape, DenseTape)
        shape = [(f"axis {i}", size) for i, size in enumerate(tape.y.shape)]
        d_y = real_array("d_output", d_output, shape)
        tape.used = True
        d_z = np.ascontiguousarray(ACTIVATIONS[self.activation][1](d_y, tape.y), np.float32)
        d_z = d_z.reshape(-1, self.output_size)
        x = tape.x.reshape(-1, self.input_size)
        vector = np.empty_like(self._vector)
        d_weight = address(vector)
        d_bias = d_weight + 4 * self.output_size * self.input_size if self.bias else 0
        d_x = None
        if self._is_small(len(x)):
            d_x = np.empty_like(tape.x) if input_gradient else None
            sizes = (len(x), self.input_size, self.output_size)
            small_affine_gradients.dispatcher(
                address(x), address(d_z), address(self._vector), d_weight, d_bias, address(d_x),
                *sizes,
            )  # fmt: skip
            return Gradients(d_x, None, vector, self._shapes)
        affine_gradients(x, d_z, d_weight, d_bias)
        if input_gradient:
            weight = self.parameters["weight"]
            panel, zero = pack_affine(weight.T, None)
            d_x = affine(d_z, panel, zero, self.input_size).reshape(tape.x.shape)
        return Gradients(d_x, None, vector, self._shapes)

    def _shape_of_x(self) -> tuple[str, tuple[str, int]]:
        return "...", ("input_size", self.input_size)

    def _is_small(self, rows: int) -> bool:
        work = rows * self.input_size * self.output_size
        if self.output_size <= NARROW:
            return is_small(work)
        return rows <= SMALL_ROWS and work <= SMALL_MAP

    def _map(self, x: np.ndarray) -> np.ndarray:
        shape = (*x.shape[:-1], self.output_size)
        rows = math.prod(shape[:-1])
        if self._is_small(rows):
            z = np.empty((rows, self.output_size), np.float32)
            weight = address(self._vector)
            bias = weight + 4 * self.output_size * self.input_size if self.bias else 0
            small_affine.dispatcher(
                address(x), weight, bias, address(z), rows, self.input_size, self.output_size
            )
        else:
            z = self._large_map(x)
        y = ACTIVATIONS[self.activation][0](z) if z.size else z
        return np.ascontiguousarray(y, np.float32).reshape(shape)

    def _large_map(self, x: np.ndarray) -> np.ndarray:
        packed, version = self._packed, self._version
        if packed is None or packed[0] != version:
            values = split(self._vector, self._shapes)
            packed = self._packed = (version, pack_affine(values["weight"], values.get("bias")))
        return affine(x.reshape(-1, self.input_size), *packed[1], self.output_size)
