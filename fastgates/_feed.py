"""Minibatches as networks take them: gathered, brought to float32 and scaled, in one pass.

The arrays are made once and filled anew for each minibatch, since memory and a pass over it are a
good part of a training step of a small network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ._checks import FLOAT32
from ._sequences import Sequences, take_state
from ._training_kernels import gather_scaled
from .engine.call import address, aligned_empty
from .sequential import Scaling

__all__ = ["Feed"]

_FLOAT64 = np.dtype(np.float64)


class Feed:
    """Checked data, ready to be taken in minibatches in a network's units.

    Parameters
    ----------
    data : Sequences
        As ``model.check`` returns it.
    scalings : mapping of str to Scaling or None
        For the fields whose numbers become contiguous float32, how they are scaled; None leaves
        the values. Other fields are taken as they are.
    """

    def __init__(self, data: Sequences, scalings: Mapping[str, Scaling | None]) -> None:
        self.data = data
        given = [entry.name for entry in fields(data) if getattr(data, entry.name) is not None]
        self._scaled = {
            name: _Numbers(getattr(data, name), scalings[name])
            for name in given
            if name in scalings
        }
        self._plain = [name for name in given if name not in scalings]

    def __len__(self) -> int:
        return len(self.data)

    def forget(self) -> None:
        """Let go of the arrays that were filled, which belong to those who took them."""
        for numbers in self._scaled.values():
            numbers.targets.clear()

    def take(self, rows: np.ndarray) -> Sequences:
        """Return some of the sequences; what was taken before in this number is overwritten.

        Parameters
        ----------
        rows : ndarray of int
        """
        rows = np.ascontiguousarray(rows, np.int64)
        taken = object.__new__(Sequences)  # what was checked once need not be again
        values = taken.__dict__
        values.update(_NOTHING)
        for name, numbers in self._scaled.items():
            values[name] = numbers.take(rows)
        for name in self._plain:
            value = getattr(self.data, name)
            values[name] = take_state(value, rows) if name == "initial_state" else value[rows]
        return taken


_NOTHING: dict[str, Any] = {entry.name: None for entry in fields(Sequences)}


class _Numbers:
    """One array of the data, its scaling, and the arrays that its rows are gathered into."""

    def __init__(self, values: np.ndarray, scaling: Scaling | None) -> None:
        self._values = values
        shape = values.shape[1:]
        self._shape, self._width = shape, int(np.prod(shape))
        self._scaling, self._version = scaling, -1
        self._mean, self._scale = np.zeros(self._width, FLOAT32), np.ones(self._width, FLOAT32)
        # Rows are read where they lie, be they those of windows, if each is one stretch of memory.
        self._readable = (
            values.dtype in (FLOAT32, _FLOAT64)
            and values.flags.aligned
            and (len(values) == 0 or values[0].flags.c_contiguous)
        )
        is_double = int(self._readable and values.dtype == _FLOAT64)
        self._where = (address(values), is_double, values.strides[0])
        self.targets: dict[int, np.ndarray] = {}

    def _follow_scaling(self) -> None:
        """Repeat its numbers for each step, again when they have changed."""
        scaling = self._scaling
        if scaling is not None and scaling._version != self._version and self._width:
            self._version, repeats = scaling._version, self._width // scaling.size
            self._mean[:] = np.tile(scaling.parameters["mean"], repeats)
            self._scale[:] = np.tile(scaling.parameters["scale"], repeats)

    def take(self, rows: np.ndarray) -> np.ndarray:
        self._follow_scaling()
        count = len(rows)
        target = self.targets.get(count)
        if target is None:
            target = self.targets[count] = aligned_empty((count, *self._shape))
        where, numbers = self._where, rows
        how = (self._width, address(self._mean), address(self._scale))
        if not self._readable:
            source = np.ascontiguousarray(self._values[rows], FLOAT32)
            where, numbers = (address(source), 0, source.strides[0]), np.arange(count)
        gather_scaled.dispatcher(*where, address(numbers), count, *how, address(target))
        return target
