"""The reference: every cell, forward and backward, in float64 NumPy, straight from the equations.

Nothing here is fast and nothing here comes from fastgates. One row of the batch, one direction and
one time step at a time; the backward pass is the chain rule written out by hand.

Notation: ``W`` acts on the state ``h`` (PyTorch's ``weight_hh``), ``U`` on the input ``x``
(``weight_ih``). Parameters come in a dict by PyTorch's names. ``B`` batch, ``T`` time, ``I`` input,
``H`` hidden, ``L`` layers, ``D`` directions.

A cell has ``gates``, the number of rows of its matrices in units of H, ``num_states`` (1, or 2 for
the LSTM's h and c), ``step`` and ``step_backward``. ``step`` returns the new states and what the
chain rule needs; ``step_backward`` turns gradients of the new states into gradients of the input,
of the old states and (added into ``d_p``) of the parameters.
"""

import numpy as np


def sigmoid(a):
    """The logistic function, without overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * a)


def softmax(a):
    """Softmax over the last axis."""
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class RNN:
    """g = tanh(W h + U x) or relu; h' = (1 - leak) g + leak h (leak 0: the plain RNN)."""

    gates = 1
    num_states = 1

    def __init__(self, nonlinearity="tanh", leak=0.0):
        self.nonlinearity = nonlinearity
        self.leak = np.asarray(leak, dtype=np.float32).astype(np.float64)

    def step(self, p, x, states):
        (h,) = states
        a = p.W @ h + p.b_hh + p.U @ x + p.b_ih
        g = np.tanh(a) if self.nonlinearity == "tanh" else np.maximum(a, 0.0)
        return ((1.0 - self.leak) * g + self.leak * h,), (x, h, a, g)

    def step_backward(self, p, saved, d_states, d_p):
        (d_h_new,) = d_states
        x, h, a, g = saved
        d_g = (1.0 - self.leak) * d_h_new
        d_a = d_g * (1.0 - g * g) if self.nonlinearity == "tanh" else d_g * (a > 0.0)
        d_p.W += np.outer(d_a, h)
        d_p.U += np.outer(d_a, x)
        d_p.b_hh += d_a
        d_p.b_ih += d_a
        return p.U.T @ d_a, (p.W.T @ d_a + self.leak * d_h_new,)


class SimplifiedGRU:
    """f = sigm(Wf h + Uf x); g = tanh(Wg h + Ug x); h' = f h + (1 - f) g. Rows: f, g."""

    gates = 2
    num_states = 1

    def step(self, p, x, states):
        (h,) = states
        a_f, a_g = np.split(p.W @ h + p.b_hh + p.U @ x + p.b_ih, 2)
        f = sigmoid(a_f)
        g = np.tanh(a_g)
        return (f * h + (1.0 - f) * g,), (x, h, f, g)

    def step_backward(self, p, saved, d_states, d_p):
        (d_h_new,) = d_states
        x, h, f, g = saved
        d_f = d_h_new * (h - g)
        d_g = d_h_new * (1.0 - f)
        d_a = np.concatenate([d_f * f * (1.0 - f), d_g * (1.0 - g * g)])
        d_p.W += np.outer(d_a, h)
        d_p.U += np.outer(d_a, x)
        d_p.b_hh += d_a
        d_p.b_ih += d_a
        return p.U.T @ d_a, (p.W.T @ d_a + f * d_h_new,)


class GRU:
    """Rows in the order r, z, n.

    r = sigm(Wr h + Ur x); z = sigm(Wz h + Uz x); h' = z h + (1 - z) n, with
    reset before the product:  n = tanh(Wn (r h) + b_hn + Un x + b_in)
    reset after the product:   n = tanh(r (Wn h + b_hn) + Un x + b_in)
    """

    gates = 3
    num_states = 1

    def __init__(self, reset_after=False):
        self.reset_after = reset_after

    def step(self, p, x, states):
        (h,) = states
        W_r, W_z, W_n = np.split(p.W, 3)
        b_hr, b_hz, b_hn = np.split(p.b_hh, 3)
        x_r, x_z, x_n = np.split(p.U @ x + p.b_ih, 3)
        r = sigmoid(W_r @ h + b_hr + x_r)
        z = sigmoid(W_z @ h + b_hz + x_z)
        if self.reset_after:
            q = W_n @ h + b_hn
            n = np.tanh(x_n + r * q)
        else:
            q = r * h
            n = np.tanh(x_n + W_n @ q + b_hn)
        return (z * h + (1.0 - z) * n,), (x, h, r, z, n, q)

    def step_backward(self, p, saved, d_states, d_p):
        (d_h_new,) = d_states
        x, h, r, z, n, q = saved
        W_r, W_z, W_n = np.split(p.W, 3)
        d_W_r, d_W_z, d_W_n = np.split(d_p.W, 3)  # views: += below lands in d_p
        d_b_hr, d_b_hz, d_b_hn = np.split(d_p.b_hh, 3)
        d_z = d_h_new * (h - n)
        d_n = d_h_new * (1.0 - z)
        d_a_n = d_n * (1.0 - n * n)
        d_h = z * d_h_new
        if self.reset_after:
            d_r = d_a_n * q
            d_q = d_a_n * r
            d_W_n += np.outer(d_q, h)
            d_b_hn += d_q
            d_h = d_h + W_n.T @ d_q
        else:
            d_q = W_n.T @ d_a_n
            d_W_n += np.outer(d_a_n, q)
            d_b_hn += d_a_n
            d_r = d_q * h
            d_h = d_h + d_q * r
        d_a_r = d_r * r * (1.0 - r)
        d_a_z = d_z * z * (1.0 - z)
        d_W_r += np.outer(d_a_r, h)
        d_W_z += np.outer(d_a_z, h)
        d_b_hr += d_a_r
        d_b_hz += d_a_z
        d_h = d_h + W_r.T @ d_a_r + W_z.T @ d_a_z
        d_a = np.concatenate([d_a_r, d_a_z, d_a_n])
        d_p.U += np.outer(d_a, x)
        d_p.b_ih += d_a
        return p.U.T @ d_a, (d_h,)


class LSTM:
    """i, f, o = sigm(W h + U x); g = tanh(W h + U x); c' = f c + i g; h' = o tanh(c').

    Rows in the order i, f, g, o; states h and c.
    """

    gates = 4
    num_states = 2

    def step(self, p, x, states):
        h, c = states
        a_i, a_f, a_g, a_o = np.split(p.W @ h + p.b_hh + p.U @ x + p.b_ih, 4)
        i = sigmoid(a_i)
        f = sigmoid(a_f)
        g = np.tanh(a_g)
        o = sigmoid(a_o)
        c_new = f * c + i * g
        return (o * np.tanh(c_new), c_new), (x, h, c, i, f, g, o, c_new)

    def step_backward(self, p, saved, d_states, d_p):
        d_h_new, d_c_new = d_states
        x, h, c, i, f, g, o, c_new = saved
        tanh_c = np.tanh(c_new)
        d_o = d_h_new * tanh_c
        d_c_new = d_c_new + d_h_new * o * (1.0 - tanh_c * tanh_c)
        d_i = d_c_new * g
        d_f = d_c_new * c
        d_g = d_c_new * i
        d_a = np.concatenate(
            [d_i * i * (1.0 - i), d_f * f * (1.0 - f), d_g * (1.0 - g * g), d_o * o * (1.0 - o)]
        )
        d_p.W += np.outer(d_a, h)
        d_p.U += np.outer(d_a, x)
        d_p.b_hh += d_a
        d_p.b_ih += d_a
        return p.U.T @ d_a, (p.W.T @ d_a, d_c_new * f)


# The functions that can be chosen, of x, alpha and beta, and their derivatives.
FUNCTIONS = {
    "tanh": (np.tanh, lambda x: 1.0 - np.tanh(x) ** 2),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "relu": (lambda x: np.maximum(x, 0.0), lambda x: 1.0 * (x > 0.0)),
    "affine": (lambda x, a=1.0, b=0.0: a * x + b, lambda x, a=1.0, b=0.0: a + 0.0 * x),
    "leaky_relu": (
        lambda x, a=0.01: np.where(x >= 0.0, x, a * x),
        lambda x, a=0.01: np.where(x >= 0.0, 1.0, a),
    ),
    "thresholded_relu": (
        lambda x, a=1.0: np.where(x >= a, x, 0.0),
        lambda x, a=1.0: 1.0 * (x >= a),
    ),
    "scaled_tanh": (
        lambda x, a=1.0, b=1.0: a * np.tanh(b * x),
        lambda x, a=1.0, b=1.0: a * b * (1.0 - np.tanh(b * x) ** 2),
    ),
    "hard_sigmoid": (
        lambda x, a=0.2, b=0.5: np.clip(a * x + b, 0.0, 1.0),
        lambda x, a=0.2, b=0.5: a * ((a * x + b > 0.0) & (a * x + b < 1.0)),
    ),
    "elu": (
        lambda x, a=1.0: np.where(x >= 0.0, x, a * np.expm1(np.minimum(x, 0.0))),
        lambda x, a=1.0: np.where(x >= 0.0, 1.0, a * np.exp(np.minimum(x, 0.0))),
    ),
    "softsign": (lambda x: x / (1.0 + np.abs(x)), lambda x: 1.0 / (1.0 + np.abs(x)) ** 2),
    "softplus": (lambda x: np.logaddexp(0.0, x), sigmoid),
}


class General:
    """What the general cells share: functions by name or as (name, alpha, beta), and a clip."""

    def __init__(self, activations, clip=None):
        self.activations = [(f,) if isinstance(f, str) else tuple(f) for f in activations]
        self.clip = np.inf if clip is None else float(np.float32(clip))

    def apply(self, place, x, clip=True):
        """The function of clipped x, and its derivative."""
        name, *numbers = self.activations[place]
        numbers = [float(np.float32(number)) for number in numbers]
        limit = self.clip if clip else np.inf
        value, slope = FUNCTIONS[name]
        inside = np.clip(x, -limit, limit)
        return value(inside, *numbers), slope(inside, *numbers) * (np.abs(x) <= limit)


class GeneralRNN(General):
    """h' = f(W h + U x)."""

    gates = 1
    num_states = 1

    def step(self, p, x, states):
        (h,) = states
        g, slope = self.apply(0, p.W @ h + p.b_hh + p.U @ x + p.b_ih)
        return (g,), (x, h, slope)

    def step_backward(self, p, saved, d_states, d_p):
        x, h, slope = saved
        d_a = d_states[0] * slope
        d_p.W += np.outer(d_a, h)
        d_p.U += np.outer(d_a, x)
        d_p.b_hh += d_a
        d_p.b_ih += d_a
        return p.U.T @ d_a, (p.W.T @ d_a,)


class GeneralGRU(General):
    """As `GRU`, with f for the gates and g for n."""

    gates = 3
    num_states = 1

    def __init__(self, activations=("sigmoid", "tanh"), clip=None, reset_after=False):
        super().__init__(activations, clip)
        self.reset_after = reset_after

    def step(self, p, x, states):
        (h,) = states
        W_r, W_z, W_n = np.split(p.W, 3)
        b_hr, b_hz, b_hn = np.split(p.b_hh, 3)
        x_r, x_z, x_n = np.split(p.U @ x + p.b_ih, 3)
        r, s_r = self.apply(0, W_r @ h + b_hr + x_r)
        z, s_z = self.apply(0, W_z @ h + b_hz + x_z)
        q = W_n @ h + b_hn if self.reset_after else r * h
        n, s_n = self.apply(1, x_n + (r * q if self.reset_after else W_n @ q + b_hn))
        return (z * h + (1.0 - z) * n,), (x, h, r, z, n, q, s_r, s_z, s_n)

    def step_backward(self, p, saved, d_states, d_p):
        (d_h_new,) = d_states
        x, h, r, z, n, q, s_r, s_z, s_n = saved
        W_r, W_z, W_n = np.split(p.W, 3)
        d_W_r, d_W_z, d_W_n = np.split(d_p.W, 3)
        d_b_hr, d_b_hz, d_b_hn = np.split(d_p.b_hh, 3)
        d_a_n = d_h_new * (1.0 - z) * s_n
        d_a_z = d_h_new * (h - n) * s_z
        d_h = z * d_h_new
        if self.reset_after:
            d_q = d_a_n * r
            d_a_r = d_a_n * q * s_r
            d_W_n += np.outer(d_q, h)
            d_b_hn += d_q
            d_h = d_h + W_n.T @ d_q
        else:
            d_q = W_n.T @ d_a_n
            d_a_r = d_q * h * s_r
            d_W_n += np.outer(d_a_n, q)
            d_b_hn += d_a_n
            d_h = d_h + d_q * r
        d_W_r += np.outer(d_a_r, h)
        d_W_z += np.outer(d_a_z, h)
        d_b_hr += d_a_r
        d_b_hz += d_a_z
        d_h = d_h + W_r.T @ d_a_r + W_z.T @ d_a_z
        d_a = np.concatenate([d_a_r, d_a_z, d_a_n])
        d_p.U += np.outer(d_a, x)
        d_p.b_ih += d_a
        return p.U.T @ d_a, (d_h,)


class GeneralLSTM(General):
    """As `LSTM`, with f, g, h, peepholes P (rows i, f, o), or coupled: rows i, g, o, f = 1 - i."""

    num_states = 2

    def __init__(self, activations=("sigmoid", "tanh", "tanh"), clip=None, coupled=False):
        super().__init__(activations, clip)
        self.coupled = coupled
        self.gates = 3 if coupled else 4

    def peepholes(self, P, H):
        if P is None:
            return np.zeros((3, H))
        p = P.reshape(-1, H)
        return (p[0], np.zeros(H), p[1]) if self.coupled else p

    def step(self, p, x, states):
        h, c = states
        p_i, p_f, p_o = self.peepholes(p.P, len(h))
        a = np.split(p.W @ h + p.b_hh + p.U @ x + p.b_ih, self.gates)
        a_i, a_g, a_o = a[0], a[-2], a[-1]
        i, s_i = self.apply(0, a_i + p_i * c)
        f, s_f = (1.0 - i, -s_i) if self.coupled else self.apply(0, a[1] + p_f * c)
        g, s_g = self.apply(1, a_g)
        c_new = f * c + i * g
        o, s_o = self.apply(0, a_o + p_o * c_new)
        q, s_q = self.apply(2, c_new, clip=False)
        return (o * q, c_new), (x, h, c, i, f, g, o, q, c_new, s_i, s_f, s_g, s_o, s_q)

    def step_backward(self, p, saved, d_states, d_p):
        d_h_new, d_c_new = d_states
        x, h, c, i, f, g, o, q, c_new, s_i, s_f, s_g, s_o, s_q = saved
        p_i, p_f, p_o = self.peepholes(p.P, len(h))
        d_a_o = d_h_new * q * s_o
        d_c = d_c_new + d_h_new * o * s_q + d_a_o * p_o
        d_a_i, d_a_f, d_a_g = d_c * g * s_i, d_c * c * s_f, d_c * i * s_g
        if self.coupled:
            d_a_i = d_a_i + d_a_f
            d_a, d_P = [d_a_i, d_a_g, d_a_o], [d_a_i * c, d_a_o * c_new]
        else:
            d_a, d_P = [d_a_i, d_a_f, d_a_g, d_a_o], [d_a_i * c, d_a_f * c, d_a_o * c_new]
        d_a = np.concatenate(d_a)
        d_p.W += np.outer(d_a, h)
        d_p.U += np.outer(d_a, x)
        d_p.b_hh += d_a
        d_p.b_ih += d_a
        if d_p.P is not None:
            d_p.P += np.concatenate(d_P)
        return p.U.T @ d_a, (p.W.T @ d_a, d_c * f + d_a_i * p_i + d_a_f * p_f)


class Parameters:
    """The tensors of one layer and direction: U (G*H, I), W (G*H, H), b_ih and b_hh (G*H,).

    Also P, the peepholes, or None.
    """

    def __init__(self, U, W, b_ih, b_hh, P=None):
        self.U, self.W, self.b_ih, self.b_hh, self.P = U, W, b_ih, b_hh, P


def suffix_of(layer, direction):
    """PyTorch's suffix: ``_l0``, ``_l0_reverse``, ``_l1``, ..."""
    return f"_l{layer}" + ("_reverse" if direction == 1 else "")


def parameters_of(parameters, layer, direction):
    """Float64 tensors of one layer and direction out of the dict; absent biases are zero."""
    suffix = suffix_of(layer, direction)
    W = np.array(parameters["weight_hh" + suffix], dtype=np.float64)
    zeros = np.zeros(W.shape[0])
    P = parameters.get("weight_peephole" + suffix)
    return Parameters(
        np.array(parameters["weight_ih" + suffix], dtype=np.float64),
        W,
        np.array(parameters.get("bias_ih" + suffix, zeros), dtype=np.float64),
        np.array(parameters.get("bias_hh" + suffix, zeros), dtype=np.float64),
        None if P is None else np.array(P, dtype=np.float64),
    )


def order_of_steps(direction, length, resets):
    """The steps in the order one direction visits them, each with "does a piece start here?".

    A reset before step t cuts the series between t - 1 and t, for both directions: the forward
    direction starts afresh at t, the reverse direction at t - 1.
    """
    steps = []
    if direction == 0:
        for t in range(length):
            steps.append((t, t == 0 or bool(resets[t])))
    else:
        for t in reversed(range(length)):
            steps.append((t, t == length - 1 or bool(resets[t + 1])))
    return steps


def as_tuple(state):
    """A state as a tuple of float64 arrays: one array, or the LSTM's pair."""
    if isinstance(state, (tuple, list)):
        return tuple(np.array(part, dtype=np.float64) for part in state)
    return (np.array(state, dtype=np.float64),)


def as_state(parts):
    """The reverse of `as_tuple`: a pair stays a pair, a single array comes out bare."""
    return tuple(parts) if len(parts) > 1 else parts[0]


class Tape:
    """What `forward` leaves for `backward`."""

    def __init__(self, **items):
        self.__dict__.update(items)


def forward(
    cell,
    parameters,
    x,
    *,
    num_layers=1,
    num_directions=1,
    initial_state=None,
    lengths=None,
    resets=None,
    masks=None,
):
    """Run a stack of layers.

    Parameters
    ----------
    cell : one of the cells above
    parameters : dict of arrays by PyTorch's names
    x : (B, T, I)
    initial_state : (L*D, B, H) or a pair of them, zero if None
    lengths : (B,) integers, each 1..T, or None
    resets : (B, T) bool or None
    masks : None, or L - 1 arrays (B, T, D*H) that multiply the input of layers 1, 2, ... (dropout)

    Returns
    -------
    output : (B, T, D*H)
    final_state : as ``initial_state``
    tape : for `backward`
    """
    x = np.array(x, dtype=np.float64)
    B, T, _ = x.shape
    L, D = num_layers, num_directions
    H = parameters["weight_hh_l0"].shape[1]
    if initial_state is None:
        initial = tuple(np.zeros((L * D, B, H)) for _ in range(cell.num_states))
    else:
        initial = as_tuple(initial_state)
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    resets = np.zeros((B, T), dtype=bool) if resets is None else np.asarray(resets)
    final = tuple(np.zeros((L * D, B, H)) for _ in range(cell.num_states))
    saved = {}
    layer_input = x
    for layer in range(L):
        if layer > 0 and masks is not None:
            layer_input = layer_input * masks[layer - 1]
        layer_output = np.zeros((B, T, D * H))
        for direction in range(D):
            index = layer * D + direction
            p = parameters_of(parameters, layer, direction)
            for b in range(B):
                states = tuple(part[index, b] for part in initial)
                for t, starts in order_of_steps(direction, lengths[b], resets[b]):
                    if starts:
                        states = tuple(part[index, b] for part in initial)
                    states, saved[layer, direction, b, t] = cell.step(p, layer_input[b, t], states)
                    layer_output[b, t, direction * H : (direction + 1) * H] = states[0]
                for part, state in zip(final, states, strict=True):
                    part[index, b] = state
        layer_input = layer_output
    tape = Tape(
        cell=cell,
        parameters=parameters,
        shape=(B, T, H, L, D),
        input_size=x.shape[2],
        lengths=lengths,
        resets=resets,
        masks=masks,
        saved=saved,
    )
    return layer_input, as_state(final), tape


def backward(tape, d_output=None, d_final_state=None):
    """Gradients of sum(output * d_output) + sum(final_state * d_final_state).

    Returns
    -------
    d_input : (B, T, I)
    d_initial_state : (L*D, B, H) or a pair; every piece that starts from the initial state adds
    d_parameters : dict with the names of the parameters
        The gradients of the states after every step, (L*D, B, T, H) or a pair, are left in
        ``tape.d_states``.
    """
    cell = tape.cell
    B, T, H, L, D = tape.shape
    if d_output is None:
        d_layer_output = np.zeros((B, T, D * H))
    else:
        d_layer_output = np.array(d_output, dtype=np.float64)
    if d_final_state is None:
        d_final = tuple(np.zeros((L * D, B, H)) for _ in range(cell.num_states))
    else:
        d_final = as_tuple(d_final_state)
    d_initial = tuple(np.zeros((L * D, B, H)) for _ in range(cell.num_states))
    every = tuple(np.zeros((L * D, B, T, H)) for _ in range(cell.num_states))
    d_parameters = {}
    for layer in reversed(range(L)):
        d_layer_input = np.zeros((B, T, tape.input_size if layer == 0 else D * H))
        for direction in range(D):
            index = layer * D + direction
            p = parameters_of(tape.parameters, layer, direction)
            d_p = Parameters(*(np.zeros_like(a) for a in (p.U, p.W, p.b_ih, p.b_hh)))
            d_p.P = None if p.P is None else np.zeros_like(p.P)
            for b in range(B):
                d_states = tuple(part[index, b].copy() for part in d_final)
                steps = order_of_steps(direction, tape.lengths[b], tape.resets[b])
                for t, starts in reversed(steps):
                    d_h = d_states[0] + d_layer_output[b, t, direction * H : (direction + 1) * H]
                    d_states = (d_h, *d_states[1:])
                    for part, d_state in zip(every, d_states, strict=True):
                        part[index, b, t] = d_state
                    d_x, d_states = cell.step_backward(
                        p, tape.saved[layer, direction, b, t], d_states, d_p
                    )
                    d_layer_input[b, t] += d_x
                    if starts:
                        for part, d_state in zip(d_initial, d_states, strict=True):
                            part[index, b] += d_state
                        d_states = tuple(np.zeros(H) for _ in d_states)
            suffix = suffix_of(layer, direction)
            gradients = {"weight_ih": d_p.U, "weight_hh": d_p.W}
            gradients |= {"bias_ih": d_p.b_ih, "bias_hh": d_p.b_hh, "weight_peephole": d_p.P}
            for name, gradient in gradients.items():
                if name + suffix in tape.parameters:
                    d_parameters[name + suffix] = gradient
        if layer > 0 and tape.masks is not None:
            d_layer_input = d_layer_input * tape.masks[layer - 1]
        d_layer_output = d_layer_input
    d_parameters = {name: d_parameters[name] for name in tape.parameters}
    tape.d_states = as_state(every)
    return d_layer_output, as_state(d_initial), d_parameters


def random_parameters(
    cell, rng, input_size, hidden_size, num_layers=1, num_directions=1, bias=True
):
    """Parameters by PyTorch's names, uniform in +-1/sqrt(H), rounded to float32."""
    parameters = {}
    limit = 1.0 / np.sqrt(hidden_size)
    rows = cell.gates * hidden_size
    for layer in range(num_layers):
        columns = input_size if layer == 0 else num_directions * hidden_size
        for direction in range(num_directions):
            shapes = {"weight_ih": (rows, columns), "weight_hh": (rows, hidden_size)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in shapes.items():
                values = rng.uniform(-limit, limit, shape).astype(np.float32)
                parameters[name + suffix_of(layer, direction)] = values
    return parameters


DENSE_ACTIVATIONS = {
    "identity": lambda a: a,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda a: np.maximum(a, 0.0),
    "softmax": softmax,
}


def dense(weight, bias, x, activation):
    """activation(x weight^T + bias)."""
    weight, bias, x = (np.asarray(a, dtype=np.float64) for a in (weight, bias, x))
    return DENSE_ACTIVATIONS[activation](x @ weight.T + bias)


def dense_backward(weight, bias, x, activation, d_output):
    """Gradients of sum(d_output * dense(...)) with respect to x, weight and bias."""
    weight, bias, x, d_y = (np.asarray(a, dtype=np.float64) for a in (weight, bias, x, d_output))
    y = dense(weight, bias, x, activation)
    if activation == "identity":
        d_a = d_y
    elif activation == "tanh":
        d_a = d_y * (1.0 - y * y)
    elif activation == "sigmoid":
        d_a = d_y * y * (1.0 - y)
    elif activation == "relu":
        d_a = d_y * (y > 0.0)
    else:
        d_a = y * (d_y - (d_y * y).sum(axis=-1, keepdims=True))
    rows = d_a.reshape(-1, weight.shape[0])
    columns = x.reshape(-1, weight.shape[1])
    return d_a @ weight, rows.T @ columns, rows.sum(axis=0)


def central_difference(function, array, step=1e-6):
    """Gradient of a scalar function of one float64 array, entry by entry."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        original = array[index]
        array[index] = original + step
        above = function(array)
        array[index] = original - step
        below = function(array)
        array[index] = original
        gradient[index] = (above - below) / (2.0 * step)
    return gradient
