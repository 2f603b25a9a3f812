"""The cells once more, with what ONNX knows of: any functions, a clip, peepholes, coupled gates.

The functions f, g and h of :mod:`._functions` take the place of sigmoid and tanh, and clip their
arguments first (https://onnx.ai/onnx/operators/, RNN, GRU, LSTM; the argument of h is not clipped,
as in onnxruntime). Plain layers take the cells of the other files, whose functions are compiled in:
here they are chosen while the program runs, and back-propagation, which finds the pre-activations,
computes them again::

    RNN     h' = (1 - leak) f(W h + U x + b) + leak h

    GRU     r = f(..), z = f(..), n = g(..) as in the file gru, with the reset before or after
            h' = z h + (1 - z) n

    LSTM    i = f(W_i h + U_i x + p_i c + b_i)          p: peepholes, o means element by element
            j = f(W_f h + U_f x + p_f c + b_f)          the forget gate; coupled: j = 1 - i
            n = g(W_g h + U_g x + b_g)
            c' = j c + i n
            o = f(W_o h + U_o x + p_o c' + b_o)
            h' = o h(c')

Peepholes: Gers and Schmidhuber, "Recurrent nets that time and count", 2000. Coupled gates: CIFG of
Greff et al., "LSTM: a search space odyssey", 2017.
"""

from __future__ import annotations

from .._jit import INT0, STAMP, helper, kernel
from .._simd import fma
from .._vecmath import ONE, ZERO
from ..engine.backward import backward_pass
from ..engine.forward import forward_pass
from ._cell import Cell, register
from ._functions import apply, differentiate

_F, _G, _H = INT0, INT0 + 4, INT0 + 8  # where the settings of the functions start

# -- RNN ------------------------------------------------------------------------------------------


@helper
def step_rnn(slots, states, given):
    settings, (leak,) = given
    g = apply(slots[0], settings, _F)
    return (fma(leak, states[0], (ONE - leak) * g),), slots


@helper
def step_rnn_backward(d_states, saved, states, new_states, given):
    settings, (leak,) = given
    dh = d_states[0]
    _, slope = differentiate(saved[0], settings, _F)
    return ((ONE - leak) * dh * slope,), (leak * dh,)


@kernel
def forward_rnn(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_rnn, None, (0,), (0,), (0,))


@kernel
def backward_rnn(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_rnn_backward, None, (0,), (0,), (0,))


# -- GRU, reset before the product ----------------------------------------------------------------


@helper
def first_step_gru(slots, states, given):
    r = apply(slots[0], given[0], _F)
    return r * states[0], (slots[0], slots[1])


@helper
def step_gru(slots, states, given):
    z, n = apply(slots[1], given[0], _F), apply(slots[2], given[0], _G)
    return (fma(z, states[0] - n, n),), slots


@helper
def step_gru_backward(d_states, saved, states, new_states, given):
    z, z_slope = differentiate(saved[1], given[0], _F)
    n, n_slope = differentiate(saved[2], given[0], _G)
    dh = d_states[0]
    d_z = dh * (states[0] - n) * z_slope
    d_n = dh * (ONE - z) * n_slope
    return (saved[0], d_z, d_n), (z * dh,)


@helper
def first_step_gru_backward(d_source, saved, states, given):
    r, slope = differentiate(saved[0], given[0], _F)
    return (d_source * states[0] * slope, saved[1]), d_source * r, r * states[0]


@kernel
def forward_gru(calls, begin, end, stamp=STAMP):
    slots, first = (0, 0, 0), first_step_gru
    forward_pass(calls, begin, end, step_gru, first, slots, (0,), (0,))


@kernel
def backward_gru(calls, begin, end, stamp=STAMP):
    slots, first = (0, 0, 0), first_step_gru_backward
    backward_pass(calls, begin, end, step_gru_backward, first, slots, (0,), (0,))


# -- GRU, reset after the product -----------------------------------------------------------------


@helper
def step_gru_after(slots, states, given):
    n_h, r, z, n_x = slots
    r, z = apply(r, given[0], _F), apply(z, given[0], _F)
    n = apply(fma(r, n_h, n_x), given[0], _G)
    return (fma(z, states[0] - n, n),), slots


@helper
def step_gru_after_backward(d_states, saved, states, new_states, given):
    n_h, r, z, n_x = saved
    r, r_slope = differentiate(r, given[0], _F)
    z, z_slope = differentiate(z, given[0], _F)
    n, n_slope = differentiate(fma(r, n_h, n_x), given[0], _G)
    dh = d_states[0]
    d_z = dh * (states[0] - n) * z_slope
    d_n = dh * (ONE - z) * n_slope
    return (d_n * r, d_n * n_h * r_slope, d_z, d_n), (z * dh,)


@kernel
def forward_gru_after(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_gru_after, None, (0, 0, 0, 0), (0,), (0,))


@kernel
def backward_gru_after(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_gru_after_backward, None, (0, 0, 0, 0), (0,), (0,))


# -- LSTM -----------------------------------------------------------------------------------------


@helper
def step_lstm(slots, states, given):
    settings, (p_i, p_f, p_o) = given
    i, f, g, o = slots
    _, c = states
    i, f = fma(p_i, c, i), fma(p_f, c, f)
    new_c = fma(
        apply(f, settings, _F),
        c,
        apply(i, settings, _F) * apply(g, settings, _G),
    )
    o = fma(p_o, new_c, o)
    h = apply(o, settings, _F) * apply(new_c, settings, _H)
    return (h, new_c), (i, f, g, o)


@helper
def step_lstm_backward(d_states, saved, states, new_states, given):
    settings, (p_i, p_f, p_o) = given
    i, i_slope = differentiate(saved[0], settings, _F)
    f, f_slope = differentiate(saved[1], settings, _F)
    g, g_slope = differentiate(saved[2], settings, _G)
    o, o_slope = differentiate(saved[3], settings, _F)
    h, h_slope = differentiate(new_states[1], settings, _H)
    _, c = states
    dh, dc = d_states
    d_o = dh * h * o_slope
    dc = fma(d_o, p_o, fma(dh * o, h_slope, dc))
    d_i, d_f, d_g = dc * g * i_slope, dc * c * f_slope, dc * i * g_slope
    return (d_i, d_f, d_g, d_o), (ZERO, fma(d_i, p_i, fma(d_f, p_f, dc * f)))


@helper
def step_coupled(slots, states, given):
    settings, (p_i, p_o) = given
    i, g, o = slots
    _, c = states
    i = fma(p_i, c, i)
    new_g = apply(g, settings, _G)
    new_c = fma(apply(i, settings, _F), new_g - c, c)
    o = fma(p_o, new_c, o)
    h = apply(o, settings, _F) * apply(new_c, settings, _H)
    return (h, new_c), (i, g, o)


@helper
def step_coupled_backward(d_states, saved, states, new_states, given):
    settings, (p_i, p_o) = given
    i, i_slope = differentiate(saved[0], settings, _F)
    g, g_slope = differentiate(saved[1], settings, _G)
    o, o_slope = differentiate(saved[2], settings, _F)
    h, h_slope = differentiate(new_states[1], settings, _H)
    _, c = states
    dh, dc = d_states
    d_o = dh * h * o_slope
    dc = fma(d_o, p_o, fma(dh * o, h_slope, dc))
    d_i, d_g = dc * (g - c) * i_slope, dc * i * g_slope
    return (d_i, d_g, d_o), (ZERO, fma(d_i, p_i, dc - dc * i))


@kernel
def forward_lstm(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_lstm, None, (0, 0, 0, 0), (0, 0), (0, 0, 0))


@kernel
def backward_lstm(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_lstm_backward, None, (0, 0, 0, 0), (0, 0), (0, 0, 0))


@kernel
def forward_coupled(calls, begin, end, stamp=STAMP):
    forward_pass(calls, begin, end, step_coupled, None, (0, 0, 0), (0, 0), (0, 0))


@kernel
def backward_coupled(calls, begin, end, stamp=STAMP):
    backward_pass(calls, begin, end, step_coupled_backward, None, (0, 0, 0), (0, 0), (0, 0))


# -- The cells ------------------------------------------------------------------------------------

RNN = register(
    Cell(
        name="rnn_general",
        gates=("g",),
        slots=("g",),
        input_slots=(0,),
        recurrent_slots=(0,),
        stages=((0, 1),),
        states=("h",),
        forward=forward_rnn,
        backward=backward_rnn,
        equations=step_rnn,
        functions=("tanh",),
    )
)
GRU = register(
    Cell(
        name="gru_general",
        gates=("r", "z", "n"),
        slots=("r", "z", "n"),
        input_slots=(0, 1, 2),
        recurrent_slots=(0, 1, 2),
        stages=((0, 2), (2, 1)),
        states=("h",),
        forward=forward_gru,
        backward=backward_gru,
        equations=step_gru,
        first_equations=first_step_gru,
        functions=("sigmoid", "tanh"),
    )
)
GRU_RESET_AFTER = register(
    Cell(
        name="gru_reset_after_general",
        gates=("r", "z", "n"),
        slots=("n_h", "r", "z", "n_x"),
        input_slots=(1, 2, 3),
        recurrent_slots=(1, 2, 0),
        stages=((0, 3),),
        states=("h",),
        forward=forward_gru_after,
        backward=backward_gru_after,
        equations=step_gru_after,
        functions=("sigmoid", "tanh"),
    )
)
LSTM = register(
    Cell(
        name="lstm_general",
        gates=("i", "f", "g", "o"),
        slots=("i", "f", "g", "o"),
        input_slots=(0, 1, 2, 3),
        recurrent_slots=(0, 1, 2, 3),
        stages=((0, 4),),
        states=("h", "c"),
        forward=forward_lstm,
        backward=backward_lstm,
        equations=step_lstm,
        functions=("sigmoid", "tanh", "tanh"),
        unit_weights=((0, 1, 0), (1, 1, 0), (3, 1, 1)),
    )
)
LSTM_COUPLED = register(
    Cell(
        name="lstm_coupled",
        gates=("i", "g", "o"),
        slots=("i", "g", "o"),
        input_slots=(0, 1, 2),
        recurrent_slots=(0, 1, 2),
        stages=((0, 3),),
        states=("h", "c"),
        forward=forward_coupled,
        backward=backward_coupled,
        equations=step_coupled,
        functions=("sigmoid", "tanh", "tanh"),
        unit_weights=((0, 1, 0), (2, 1, 1)),
    )
)
