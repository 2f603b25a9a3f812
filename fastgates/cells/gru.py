"""GRU, with the reset before the product or after it.

Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014 (reset before, the
default), and the variant of cuDNN and PyTorch (reset after, with a bias of its own inside)::

    r = sigm(W_hr h + W_ir x + b_r)              reset gate
    z = sigm(W_hz h + W_iz x + b_z)              update gate: how much memory is kept
    n = tanh(W_hn (r h) + b_hn + W_in x + b_in)      reset before
    n = tanh(r (W_hn h + b_hn) + W_in x + b_in)      reset after
    h' = z h + (1 - z) n

With the reset before the product, a step has two stages: r must be known for all units before the
product that makes n. With the reset after it, the two products that make n are kept apart, so there
is one slot more than there are gates.
"""

from __future__ import annotations

from .._jit import STAMP, helper, kernel
from .._simd import fma
from .._vecmath import ONE, sigmoid, tanh
from ..engine.backward import backward_pass
from ..engine.forward import forward_pass
from ._cell import Cell, register

# -- Reset before the product ---------------------------------------------------------------------


@helper
def first_step(slots, states, constant):
    r, z, _ = slots
    r, z = sigmoid(r), sigmoid(z)
    return r * states[0], (r, z)


@helper
def step(slots, states, constant):
    r, z, n = slots
    n = tanh(n)
    return (fma(z, states[0] - n, n),), (r, z, n)


@helper
def step_backward(d_states, saved, states, new_states, constant):
    r, z, n = saved
    dh = d_states[0]
    kept = z * dh
    d_z = kept * (states[0] - n) * (ONE - z)
    d_n = (dh - kept) * fma(-n, n, ONE)
    return (r, d_z, d_n), (kept,)


@helper
def first_step_backward(d_source, saved, states, constant):
    r, d_z, _ = saved
    through = d_source * r
    return (through * states[0] * (ONE - r), d_z), through, r * states[0]


@kernel
def forward(calls, begin, end, stamp=STAMP):
    slots = (0, 0, 0)
    forward_pass(calls, begin, end, step, first_step, slots, (0,))


@kernel
def backward(calls, begin, end, stamp=STAMP):
    slots, first = (0, 0, 0), first_step_backward
    backward_pass(calls, begin, end, step_backward, first, slots, (0,))


GRU = register(
    Cell(
        name="gru",
        gates=("r", "z", "n"),
        slots=("r", "z", "n"),
        input_slots=(0, 1, 2),
        recurrent_slots=(0, 1, 2),
        stages=((0, 2), (2, 1)),
        states=("h",),
        forward=forward,
        backward=backward,
        equations=step,
        first_equations=first_step,
    )
)


# -- Reset after the product ----------------------------------------------------------------------


@helper
def open_gates(slots):
    n_h, r, z, n_x = slots
    return n_h, sigmoid(r), sigmoid(z), n_x


@helper
def update(slots, states, constant):
    n_h, r, z, n_x = slots
    n = tanh(fma(r, n_h, n_x))
    return (fma(z, states[0] - n, n),), (n_h, r, z, n)


@helper
def step_after(slots, states, constant):
    return update(open_gates(slots), states, constant)


@helper
def step_after_backward(d_states, saved, states, new_states, constant):
    n_h, r, z, n = saved
    dh = d_states[0]
    kept = z * dh
    d_z = kept * (states[0] - n) * (ONE - z)
    d_n = (dh - kept) * fma(-n, n, ONE)
    d_nh = d_n * r
    return (d_nh, d_nh * n_h * (ONE - r), d_z, d_n), (kept,)


@kernel
def forward_after(calls, begin, end, stamp=STAMP):
    slots = (0, 0, 0, 0)
    forward_pass(calls, begin, end, update, None, slots, (0,), None, open_gates)


@kernel
def backward_after(calls, begin, end, stamp=STAMP):
    slots = (0, 0, 0, 0)
    backward_pass(calls, begin, end, step_after_backward, None, slots, (0,))


GRU_RESET_AFTER = register(
    Cell(
        name="gru_reset_after",
        gates=("r", "z", "n"),
        slots=("n_h", "r", "z", "n_x"),
        input_slots=(1, 2, 3),
        recurrent_slots=(1, 2, 0),
        stages=((0, 3),),
        states=("h",),
        forward=forward_after,
        backward=backward_after,
        equations=step_after,
    )
)
