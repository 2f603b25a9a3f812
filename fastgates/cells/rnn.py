"""The plain recurrent network (Elman, "Finding structure in time", 1990) and its leaky form.

::

    g = tanh(W h + U x + b)          or relu in place of tanh
    h' = g                           plain
    h' = (1 - leak) g + leak h       leaky: `leak` a fixed number for each unit

A leak of 0 is the plain network, 1 is pure memory. (The course writes W for the weights on h and U
for those on x: our ``weight_hh`` and ``weight_ih``.)
"""

from __future__ import annotations

from .._jit import STAMP, helper, kernel
from .._simd import fma, where_less
from .._vecmath import ONE, ZERO, relu, tanh
from ..engine.backward import backward_pass
from ..engine.forward import forward_pass
from ._cell import Cell, register


@helper
def _tanh_slope(g):
    """Return the derivative of tanh where its value is `g`."""
    return fma(-g, g, ONE)


@helper
def _relu_slope(g):
    """Return the derivative of relu where its value is `g`."""
    return where_less(ZERO, g, ONE, ZERO)


@helper
def step_tanh(slots, states, leak):
    g = tanh(slots[0])
    return (g,), (g,)


@helper
def step_tanh_backward(d_states, saved, states, new_states, leak):
    return (d_states[0] * _tanh_slope(saved[0]),), (ZERO,)


@helper
def step_relu(slots, states, leak):
    g = relu(slots[0])
    return (g,), (g,)


@helper
def step_relu_backward(d_states, saved, states, new_states, leak):
    return (d_states[0] * _relu_slope(saved[0]),), (ZERO,)


@helper
def _leaky(g, states, leak):
    return fma(leak, states[0], (ONE - leak) * g)


@helper
def step_leaky_tanh(slots, states, leak):
    g = tanh(slots[0])
    return (_leaky(g, states, leak),), (g,)


@helper
def step_leaky_tanh_backward(d_states, saved, states, new_states, leak):
    dh = d_states[0]
    return ((ONE - leak) * dh * _tanh_slope(saved[0]),), (leak * dh,)


@helper
def step_leaky_relu(slots, states, leak):
    g = relu(slots[0])
    return (_leaky(g, states, leak),), (g,)


@helper
def step_leaky_relu_backward(d_states, saved, states, new_states, leak):
    dh = d_states[0]
    return ((ONE - leak) * dh * _relu_slope(saved[0]),), (leak * dh,)


@kernel
def forward_tanh(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_tanh, None, (0,), (0,))


@kernel
def backward_tanh(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_tanh_backward, None, (0,), (0,))


@kernel
def forward_relu(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_relu, None, (0,), (0,))


@kernel
def backward_relu(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_relu_backward, None, (0,), (0,))


@kernel
def forward_leaky_tanh(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_leaky_tanh, None, (0,), (0,))


@kernel
def backward_leaky_tanh(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_leaky_tanh_backward, None, (0,), (0,))


@kernel
def forward_leaky_relu(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_leaky_relu, None, (0,), (0,))


@kernel
def backward_leaky_relu(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_leaky_relu_backward, None, (0,), (0,))


def _register(name, forward, backward, equations):
    return register(
        Cell(
            name=name,
            gates=("g",),
            slots=("g",),
            input_slots=(0,),
            recurrent_slots=(0,),
            stages=((0, 1),),
            states=("h",),
            forward=forward,
            backward=backward,
            equations=equations,
        )
    )


RNN_TANH = _register("rnn", forward_tanh, backward_tanh, step_tanh)
RNN_RELU = _register("rnn_relu", forward_relu, backward_relu, step_relu)
LEAKY_TANH = _register("leaky_rnn", forward_leaky_tanh, backward_leaky_tanh, step_leaky_tanh)
LEAKY_RELU = _register("leaky_rnn_relu", forward_leaky_relu, backward_leaky_relu, step_leaky_relu)
