"""A coupled-gate LSTM: the forget gate f also says how much is written, by 1 - f.

The variant CIFG of Greff et al., "LSTM: a search space odyssey", 2017, without peepholes::

    f = sigm(W_hf h + W_if x + b_f)        what is kept, and what is not is written anew
    g = tanh(W_hg h + W_ig x + b_g)        candidate
    o = sigm(W_ho h + W_io x + b_o)        output gate
    c' = f c + (1 - f) g
    h' = o tanh(c')
"""

import numpy as np

from fastgates.cells import (
    STAMP,
    ZERO,
    Cell,
    backward_pass,
    fma,
    forward_pass,
    helper,
    kernel,
    register,
    sigmoid,
    tanh,
)

ONE = np.float32(1)


@helper
def step(slots, states, constant):
    f, g, o = slots
    _, c = states
    f, g, o = sigmoid(f), tanh(g), sigmoid(o)
    c = fma(f, c - g, g)
    return (o * tanh(c), c), (f, g, o)


@helper
def step_backward(d_states, saved, states, new_states, constant):
    f, g, o = saved
    _, c = states
    tanh_c = tanh(new_states[1])
    dh, dc = d_states
    dc = fma(dh * o, ONE - tanh_c * tanh_c, dc)
    d_f = dc * (c - g) * f * (ONE - f)
    d_g = dc * (ONE - f) * (ONE - g * g)
    d_o = dh * tanh_c * o * (ONE - o)
    return (d_f, d_g, d_o), (ZERO, dc * f)


@kernel
def forward(calls, begin, end, stamp=STAMP):
    gates = (0, 0, 0)
    forward_pass(calls, begin, end, step, None, gates, (0, 0))


@kernel
def backward(calls, begin, end, stamp=STAMP):
    gates = (0, 0, 0)
    backward_pass(calls, begin, end, step_backward, None, gates, (0, 0))


COUPLED_LSTM = register(
    Cell(
        name="coupled_lstm",
        gates=("f", "g", "o"),
        slots=("f", "g", "o"),
        input_slots=(0, 1, 2),
        recurrent_slots=(0, 1, 2),
        stages=((0, 3),),
        states=("h", "c"),
        forward=forward,
        backward=backward,
        equations=step,
    )
)
