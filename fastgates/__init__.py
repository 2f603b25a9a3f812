"""Recurrent networks on a CPU, from pure Python, at the speed of the silicon."""

from __future__ import annotations

import gc as _gc
from typing import Any as _Any

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
    from .layers import GRU, LSTM, RNN, Recurrent, SimplifiedGRU, Tape
    from .losses import cross_entropy, huber, mae, mse, quantile
    from .optimizers import SGD, Adam, AdamW, RMSprop
    from .sequential import Scaling, Sequential
    from .truncation import Piece, truncated_bptt
finally:
    if _collecting:
        _gc.enable()

# What takes long to import, or needs optional packages, is imported when it is first asked for:
# each name, and the submodule that has it. A submodule itself has None.
_LAZY: dict[str, str | None] = {
    "cuda": None,
    "CheckpointError": "_checkpoint",
    "DataError": "_tables",
    "DivergenceError": "training",
    "EncoderDecoder": "models",
    "FreeRunModel": "models",
    "InterchangeError": "interchange._parts",
    "MissingPackageError": "_extras",
    "ModelFileError": "_modelfile",
    "SequenceClassifier": "estimators",
    "SequenceForecaster": "estimators",
    "SequenceModel": "models",
    "SequenceRegressor": "estimators",
    "Sequences": "_sequences",
    "Trainer": "training",
    "diagnostics": None,
    "estimators": None,
    "files": None,
    "from_keras": "interchange.keras_models",
    "from_onnx": "interchange.onnx_import",
    "from_rtneural": "interchange.rtneural",
    "from_torch": "interchange.torch_modules",
    "initialization": None,
    "jit": None,
    "load": "files",
    "models": None,
    "onnx_backend": None,
    "save": "files",
    "schedules": None,
    "tasks": None,
    "to_keras": "interchange.keras_models",
    "to_onnx": "interchange.onnx_export",
    "to_rtneural": "interchange.rtneural",
    "to_torch": "interchange.torch_modules",
    "training": None,
}


def __getattr__(name: str) -> _Any:
    try:
        submodule = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    from importlib import import_module

    value = import_module(f".{submodule or name}", __name__)
    if submodule is not None:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))


__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Dense",
    "Gradients",
    "Piece",
    "RMSprop",
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
    "huber",
    "load",
    "mae",
    "mse",
    "quantile",
    "save",
    "set_num_threads",
    "truncated_bptt",
    "warmup",
]
