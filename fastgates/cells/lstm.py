"""LSTM: a memory cell c behind three gates, and the output as a gated look at it.

Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers,
Schmidhuber and Cummins, "Learning to forget", 2000::

    i = sigm(W_hi h + W_ii x + b_i)        input gate
    f = sigm(W_hf h + W_if x + b_f)        forget gate
    g = tanh(W_hg h + W_ig x + b_g)        candidate
    o = sigm(W_ho h + W_io x + b_o)        output gate
    c' = f c + i g
    h' = o tanh(c')
"""

from __future__ import annotations

from .._jit import STAMP, helper, kernel
from .._simd import fma
from .._vecmath import ONE, ZERO, sigmoid, tanh
from ..engine.backward import backward_pass
from ..engine.forward import forward_pass
from ._cell import Cell, register


@helper
def activate(slots):
    i, f, g, o = slots
    return sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)


@helper
def remember(gates, states, constant):
    i, f, g, o = gates
    _, c = states
    c = fma(f, c, i * g)
    return (o * tanh(c), c), gates


@helper
def step(slots, states, constant):
    return remember(activate(slots), states, constant)


@helper
def step_backward(d_states, saved, states, new_states, constant):
    i, f, g, o = saved
    _, c = states
    tanh_c = tanh(new_states[1])
    dh, dc = d_states
    dc = fma(dh * o, ONE - tanh_c * tanh_c, dc)
    d_i = dc * g * i * (ONE - i)
    d_f = dc * c * f * (ONE - f)
    d_g = dc * i * (ONE - g * g)
    d_o = dh * tanh_c * o * (ONE - o)
    return (d_i, d_f, d_g, d_o), (ZERO, dc * f)


@kernel
def forward(calls, begin, end, stamp=STAMP):
    gates = (0, 0, 0, 0)
    forward_pass(calls, begin, end, remember, None, gates, (0, 0), None, activate)


@kernel
def backward(calls, begin, end, stamp=STAMP):
    gates = (0, 0, 0, 0)
    backward_pass(calls, begin, end, step_backward, None, gates, (0, 0))


LSTM = register(
    Cell(
        name="lstm",
        gates=("i", "f", "g", "o"),
        slots=("i", "f", "g", "o"),
        input_slots=(0, 1, 2, 3),
        recurrent_slots=(0, 1, 2, 3),
        stages=((0, 4),),
        states=("h", "c"),
        forward=forward,
        backward=backward,
        equations=step,
    )
)
