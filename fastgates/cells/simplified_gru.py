"""SimplifiedGRU: one valve between memory and computation.

The forget valve alone, without a reset gate: equation 10 of Tallec and Ollivier, "Can recurrent
neural networks warp time?", 2018::

    f = sigm(W_hf h + W_if x + b_f)        forget valve: how much memory is kept
    g = tanh(W_hg h + W_ig x + b_g)        computation
    h' = f h + (1 - f) g
"""

from __future__ import annotations

from .._jit import STAMP, helper, kernel
from .._simd import fma
from .._vecmath import ONE, sigmoid, tanh
from ..engine.backward import backward_pass
from ..engine.forward import forward_pass
from ._cell import Cell, register


@helper
def step(slots, states, constant):
    f, g = slots
    h = states[0]
    f, g = sigmoid(f), tanh(g)
    return (fma(f, h - g, g),), (f, g)


@helper
def step_backward(d_states, saved, states, new_states, constant):
    f, g = saved
    h = states[0]
    dh = d_states[0]
    kept = f * dh
    d_f = kept * (h - g) * (ONE - f)
    d_g = (dh - kept) * fma(-g, g, ONE)
    return (d_f, d_g), (kept,)


@kernel
def forward(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step, None, (0, 0), (0,))


@kernel
def backward(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_backward, None, (0, 0), (0,))


SIMPLIFIED_GRU = register(
    Cell(
        name="simplified_gru",
        gates=("f", "g"),
        slots=("f", "g"),
        input_slots=(0, 1),
        recurrent_slots=(0, 1),
        stages=((0, 2),),
        states=("h",),
        forward=forward,
        backward=backward,
        equations=step,
    )
)
