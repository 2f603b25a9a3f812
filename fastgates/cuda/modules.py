"""The other modules on a GPU: read-outs, scaling, and whole models without a way over the host.

As layers do, they keep their parameters on the host and a copy on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._parameters import Gradients
from ._arrays import Caller, Memory, stream_number
from ._device import cuda
from ._elementwise import (
    SCALE,
    SCALE_GRADIENT,
    UNSCALE,
    UNSCALE_GRADIENT,
    activate,
    activate_backward,
    add_to_top,
    clear,
    mask_past_end,
    scale,
)
from ._products import Rows, Weights, products
from .recurrent import LayerPasses

__all__ = ["DensePasses", "ScalingPasses", "SequentialPasses"]


def _rows(array: Any) -> Any:
    """Return an array (..., width) as (1, rows, width), on the same memory."""
    *leading, width = array.shape
    return array.reshape(1, math.prod(leading), width)


def _check_not_empty(caller: Caller, x: Any) -> None:
    if 0 in x.shape:
        raise ValueError(f"x must not be empty on device='cuda', got shape {tuple(x.shape)}")


class _Copy:
    """A module's flat vector on the device, as of its last change."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._copy: tuple[int, Any] | None = None
        self._stream: Any = None

    def vector(self, stream: Any) -> Any:
        version = self.module._version
        if self._stream is not None and stream_number(stream) != stream_number(self._stream):
            self._stream.synchronize()
        if self._copy is None or self._copy[0] != version:
            self._stream = stream
            self._copy = version, cuda.to_device(self.module._vector.copy(), stream=stream)
        return self._copy[1]


@dataclass
class DenseCudaTape:
    """What ``Dense.forward`` keeps on the device for ``backward``; good for one use."""

    owner: Any
    version: int
    x: Any
    y: Any
    caller: Caller
    used: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that the tape keeps."""
        return 4 * (math.prod(self.x.shape) + math.prod(self.y.shape))


class DensePasses:
    """The passes of a ``Dense`` on the current device."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._copy = _Copy(module)
        self.memory = Memory()
        self.products = products(self.memory)

    def _take(self, caller: Caller, x: Any) -> Any:
        x = caller.take("x", x, ("...", ("input_size", self.module.input_size)))
        _check_not_empty(caller, x)
        return x

    def call(self, x: Any) -> Any:
        """See ``Dense.__call__``."""
        caller = Caller(x)
        return caller.give(self.map(caller, self._take(caller, x)))

    def forward(self, x: Any) -> tuple[Any, DenseCudaTape]:
        """See ``Dense.forward``."""
        caller = Caller(x)
        y, tape = self.record(caller, self._take(caller, x))
        result = caller.give(y)
        if not caller.on_device:
            result.flags.writeable = False
        return result, tape

    def backward(self, tape: Any, d_output: Any, input_gradient: bool) -> Gradients:
        """See ``Dense.backward``."""
        module = self.module
        self.check(tape)
        caller = tape.caller
        names = tuple((f"axis {n}", int(size)) for n, size in enumerate(tape.y.shape))
        d_y = caller.take("d_output", d_output, names)
        d_x, vector = self.differentiate(tape, d_y, input_gradient)
        d_input = None if d_x is None else caller.give(d_x)
        return Gradients(d_input, None, vector, module._shapes)

    def check(self, tape: Any) -> None:
        """Check that a tape is this module's and can be used."""
        module = self.module
        module._check_tape(tape, DenseCudaTape)

    def map(self, caller: Caller, x: Any) -> Any:
        """Return the map of a device array, there."""
        module, stream = self.module, caller.stream
        vector = self._copy.vector(stream)
        y = caller.empty((*tuple(x.shape)[:-1], module.output_size))
        source, target = _rows(x), _rows(y)
        count = source.shape[1]
        weights = Weights(vector, 0, module.input_size, 1)
        self.products.map_rows(
            Rows(source, 0, count, 0, module.input_size),
            weights,
            Rows(target, 0, count, 0, module.output_size),
            stream,
        )
        bias = module.input_size * module.output_size if module.bias else -1
        activate(module.activation, target, vector, bias, stream)
        return y

    def record(self, caller: Caller, x: Any) -> tuple[Any, DenseCudaTape]:
        """Return the map of a device array, there, and its tape."""
        y = self.map(caller, x)
        return y, DenseCudaTape(self.module, self.module._version, x, y, caller)

    def differentiate(
        self, tape: DenseCudaTape, d_y: Any, input_gradient: bool
    ) -> tuple[Any, np.ndarray]:
        """Use a tape up; return the gradient of the input there, and the parameters' here."""
        module, caller, stream = self.module, tape.caller, tape.caller.stream
        tape.used = True
        inputs, outputs = module.input_size, module.output_size
        x, y = _rows(tape.x), _rows(tape.y)
        count = x.shape[1]
        d_x = None
        with (
            self.memory.scratch(y.shape, stream) as d_z,
            self.memory.scratch((module._vector.size,), stream) as gradients,
        ):
            activate_backward(module.activation, _rows(d_y), y, d_z, stream)
            left, right = Rows(d_z, 0, count, 0, outputs), Rows(x, 0, count, 0, inputs)
            self.products.sum_rows(left, right, gradients, 0, stream, False)
            if module.bias:
                self.products.sum_rows(left, None, gradients, inputs * outputs, stream, False)
            if input_gradient:
                d_x = caller.empty(tape.x.shape)
                weights = Weights(self._copy.vector(stream), 0, 1, inputs)
                target = Rows(_rows(d_x), 0, count, 0, inputs)
                self.products.map_rows(left, weights, target, stream)
            vector: np.ndarray = gradients.copy_to_host(stream=stream)
            stream.synchronize()
        return d_x, vector


class ScalingPasses:
    """The passes of a ``Scaling`` on the current device."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._copy = _Copy(module)

    def call(self, x: Any) -> Any:
        """See ``Scaling.__call__``."""
        caller = Caller(x)
        x = caller.take("x", x, ("...", ("size", self.module.size)))
        _check_not_empty(caller, x)
        return caller.give(self.map(caller, x))

    def map(self, caller: Caller, x: Any) -> Any:
        """Return a device array scaled, there."""
        return self._scaled(caller, x, UNSCALE if self.module.inverse else SCALE)

    def gradient(self, caller: Caller, d_y: Any) -> Any:
        """Return the gradient with respect to the input, there."""
        return self._scaled(
            caller, d_y, UNSCALE_GRADIENT if self.module.inverse else SCALE_GRADIENT
        )

    def _scaled(self, caller: Caller, x: Any, kind: int) -> Any:
        y = caller.empty(x.shape)
        scale(_rows(x), self._copy.vector(caller.stream), _rows(y), kind, caller.stream)
        return y


@dataclass
class SequentialCudaTape:
    """What ``Sequential.forward`` keeps on the device for ``backward``; good for one use."""

    owner: Any
    steps: tuple[Any, ...]
    output: Any
    caller: Caller
    lengths: Any  # on the device, where rows of the output were set to 0; else None
    nbytes: int


class SequentialPasses:
    """The passes of a ``Sequential`` on the current device: one upload, one download.

    Parameters
    ----------
    module : Sequential
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def _take(self, caller: Caller, x: Any) -> Any:
        axes = ("batch_size", "time", ("input_size", self.module.input_size))
        x = caller.take("x", x, axes)
        _check_not_empty(caller, x)
        return x

    def _masked(self, caller: Caller, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Return outputs with 0 past the ends, and the lengths there, None where nothing is."""
        module = self.module
        if lengths is None or not module.return_sequences:
            return x, None
        if module.modules[-1] is module.recurrent[-1]:
            return x, None
        # A layer has checked them by now.
        there = caller.upload(np.asarray(lengths).astype(np.int32))
        y = caller.empty(x.shape)
        mask_past_end(x, there, y, caller.stream)
        return y, there

    def call(
        self, x: Any, initial_state: Sequence[Any] | None, lengths: Any, resets: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """See ``Sequential.__call__``."""
        module, caller = self.module, Caller(x)
        x = self._take(caller, x)
        states = iter(module._for_each_layer("initial_state", initial_state))
        final = []
        for place, part in enumerate(module.modules):
            passes = part._cuda()
            if isinstance(passes, LayerPasses):
                whole = module.return_sequences or place != module._last_recurrent
                x, state = passes.infer(caller, x, next(states), lengths, resets, whole)
                final.append(passes.states_out(caller, state))
            else:
                x = passes.map(caller, x)
        x, _ = self._masked(caller, x, lengths)
        return caller.give(x), tuple(final)

    def forward(
        self,
        x: Any,
        initial_state: Sequence[Any] | None,
        lengths: Any,
        resets: Any,
        training: bool,
        segment: int | None,
    ) -> tuple[Any, tuple[Any, ...], SequentialCudaTape]:
        """See ``Sequential.forward``."""
        module, caller = self.module, Caller(x)
        x = self._take(caller, x)
        states = iter(module._for_each_layer("initial_state", initial_state))
        final, tapes = [], []
        for place, part in enumerate(module.modules):
            passes = part._cuda()
            tape: Any = None
            if isinstance(passes, LayerPasses):
                x, state, tape = passes.record(
                    caller, x, next(states), lengths, resets, training, segment
                )
                final.append(passes.states_out(caller, state))
                if place == module._last_recurrent and not module.return_sequences:
                    x = passes.last_outputs(caller, state)
            elif isinstance(passes, DensePasses):
                x, tape = passes.record(caller, x)
            else:
                x = passes.map(caller, x)
            tapes.append(tape)
        x, there = self._masked(caller, x, lengths)
        nbytes = sum(tape.nbytes for tape in tapes if tape is not None)
        result = caller.give(x)
        if not caller.on_device:
            result.flags.writeable = False
        tape = SequentialCudaTape(module, tuple(tapes), x, caller, there, nbytes)
        return result, tuple(final), tape

    def backward(
        self,
        tape: Any,
        d_output: Any,
        d_final_state: Sequence[Any] | None,
        input_gradient: bool,
        initial_gradient: bool,
    ) -> Gradients:
        """See ``Sequential.backward``."""
        module = self.module
        if not isinstance(tape, SequentialCudaTape):
            raise TypeError(f"tape must be what forward returned last, got {type(tape).__name__}")
        if tape.owner is not module:
            raise ValueError("tape must come from this model's forward, got another one's")
        caller, stream = tape.caller, tape.caller.stream
        for part, step in zip(module.modules, tape.steps, strict=True):
            if step is not None:
                part._cuda().check(step)
        d_states = module._for_each_layer("d_final_state", d_final_state)
        d_x: Any = None
        if d_output is not None:
            names = tuple((f"axis {n}", int(size)) for n, size in enumerate(tape.output.shape))
            d_x = caller.take("d_output", d_output, names)
            if tape.lengths is not None:
                masked = caller.empty(d_x.shape)
                mask_past_end(d_x, tape.lengths, masked, stream)
                d_x = masked
        vectors: list[np.ndarray] = []
        d_initial: list[Any] = []
        for place in reversed(range(len(module.modules))):
            part, step = module.modules[place], tape.steps[place]
            passes = part._cuda()
            wanted = place > 0 or input_gradient
            if isinstance(passes, LayerPasses):
                d_state = passes._states_in(caller, "d_final_state", d_states.pop(), step.data.size)
                if place == module._last_recurrent and not module.return_sequences:
                    if d_x is not None:
                        if d_state is None:
                            d_state = passes.zero_states(step)
                        first = d_state.shape[1] - part.num_directions
                        add_to_top(d_state, d_x, first, stream)
                    d_x = None
                d_x, d_start, by_slot = passes.differentiate(step, d_x, d_state, wanted)
                if initial_gradient:
                    d_initial.append(passes.states_out(caller, d_start))
                vectors.append(passes.download(by_slot, stream))
            elif isinstance(passes, DensePasses):
                if d_x is None:
                    d_x = caller.empty(step.y.shape)
                    clear(d_x, stream)
                d_x, vector = passes.differentiate(step, d_x, wanted)
                vectors.append(vector)
            elif d_x is not None:
                d_x = passes.gradient(caller, d_x)
        vector = np.concatenate(vectors[::-1])
        d_input = caller.give(d_x) if d_x is not None and input_gradient else None
        start = tuple(d_initial[::-1]) if initial_gradient else None
        return Gradients(d_input, start, vector, module._shapes)
