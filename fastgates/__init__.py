"""Recurrent networks on a CPU, from pure Python, at the speed of the silicon."""

from __future__ import annotations

import gc as _gc

# What an import makes stays. To look for garbage in it, most of it Numba's, again and again, would
# take a tenth of the time of this one.
_collecting = _gc.isenabled()
_gc.disable()
try:
    from . import cells
    from ._compile import warmup
    from ._parameters import Gradients
    from ._threads import get_num_threads, set_num_threads
    from ._version import __version__
    from .clipping import clip_grad_norm, clip_grad_value
    from .dense import Dense
    from .files import load, save
    from .layers import GRU, LSTM, RNN, Recurrent, SimplifiedGRU, Tape
    from .losses import cross_entropy, mse
    from .optimizers import SGD, Adam
    from .sequential import Scaling, Sequential
    from .truncation import Piece, truncated_bptt
finally:
    if _collecting:
        _gc.enable()

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "Dense",
    "Gradients",
    "Piece",
    "Recurrent",
    "Scaling",
    "Sequential",
    "SimplifiedGRU",
    "Tape",
    "__version__",
    "cells",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "get_num_threads",
    "load",
    "mse",
    "save",
    "set_num_threads",
    "truncated_bptt",
    "warmup",
]
