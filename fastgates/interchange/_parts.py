"""What all formats share: models as lists of modules, and the words of a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dense import Dense
from ..layers import GRU, LSTM, RNN, Recurrent, SimplifiedGRU
from ..sequential import Scaling, Sequential, deployed

__all__ = [
    "InterchangeError",
    "assemble",
    "float32",
    "gates_in_order",
    "load",
    "parts_of",
    "returns_sequences",
    "unsupported_options",
    "with_activation",
]


class InterchangeError(ValueError):
    """A model cannot be brought in or handed out; the message says what is in the way."""


def assemble(parts: Sequence[Any], return_sequences: bool = True) -> Any:
    """Return a model of some modules: the module itself if it is one, else a ``Sequential``."""
    if not parts:
        raise InterchangeError("there is no layer in the model")
    if len(parts) == 1 and return_sequences:
        return parts[0]
    try:
        return Sequential(*parts, return_sequences=return_sequences)
    except (ValueError, TypeError) as error:
        raise InterchangeError(f"the layers do not fit each other: {error}") from None


def parts_of(model: Any) -> tuple[Any, ...]:
    """Return the modules of a model, one or several."""
    if isinstance(model, Sequential):
        return model.modules
    if isinstance(model, Recurrent | Dense | Scaling):
        return (model,)
    if hasattr(model, "to_sequential"):
        return parts_of(deployed(model))
    raise TypeError(
        "model must be a recurrent layer, a Dense, a Scaling or a Sequential, "
        f"got {type(model).__name__}"
    )


def returns_sequences(model: Any) -> bool:
    """Tell whether there is an output for every step."""
    if hasattr(model, "to_sequential"):
        return returns_sequences(deployed(model))
    return not isinstance(model, Sequential) or model.return_sequences


def load(module: Any, **values: np.ndarray | None) -> Any:
    """Return a module with these parameters."""
    module.load_state_dict({name: value for name, value in values.items() if value is not None})
    return module


def with_activation(parts: list[Any], activation: str, name: str) -> None:
    """Let the last module, which must be a ``Dense`` without one, have an activation."""
    if activation == "identity":
        return
    last = parts[-1] if parts else None
    if not isinstance(last, Dense) or last.activation != "identity":
        raise InterchangeError(f"{name} is supported after a dense layer only")
    dense = Dense(last.input_size, last.output_size, activation, bias=last.bias, seed=0)
    dense.load_state_dict(last.state_dict())
    parts[-1] = dense


def float32(name: str, value: Any) -> np.ndarray:
    """Return an array whose bits are to be kept, so it must be float32."""
    array = np.asarray(value)
    if array.dtype != np.float32:
        raise InterchangeError(f"{name} must be float32, got {array.dtype}: convert the model")
    return array


def gates_in_order(weight: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return the rows of a matrix or vector with its gates in another order."""
    gates = np.split(weight, len(order))
    return np.concatenate([gates[place] for place in order])


def unsupported_options(layer: Recurrent, allowed: Sequence[str] = ()) -> list[str]:
    """Return the options by which a recurrent layer differs from the plain one of its class."""
    options = {
        "coupled": getattr(layer, "coupled", False),
        "peepholes": layer.peepholes,
        "clip": layer.clip is not None,
        "activations": layer.activations is not None,
        "leak": getattr(layer, "leak", None) is not None,
        "reverse": layer.reverse,
    }
    found = [name for name, there in options.items() if there and name not in allowed]
    if type(layer) not in (RNN, SimplifiedGRU, GRU, LSTM):
        found.append(f"cell {layer.cell.name}")
    return found
