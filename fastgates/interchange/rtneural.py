"""RTNeural's JSON: ``to_rtneural`` and ``from_rtneural``.

RTNeural (https://github.com/jatinchowdhury18/RTNeural) runs small networks in audio plug-ins, a
sample at a time. Its files list layers with Keras's shapes and gate orders: dense layers with an
activation, GRUs with the reset after the product, LSTMs; forward only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._atomic import replacing
from ..dense import Dense
from ..layers import GRU, LSTM, Recurrent
from ._parts import InterchangeError, assemble, gates_in_order, load, parts_of, unsupported_options

__all__ = ["from_rtneural", "to_rtneural"]

_GRU_ORDER = (1, 0, 2)  # z, r, h to r, z, n, and back
_ACTIVATIONS = ("tanh", "relu", "sigmoid", "softmax")


def to_rtneural(model: Any, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return a model as RTNeural's JSON, and write it to a file.

    Parameters
    ----------
    model : LSTM, GRU with ``reset_after=True``, Dense, or a Sequential of these
        Stacked layers become several.
    path : path-like, optional
        Where to write it, whole or not at all.

    Returns
    -------
    dict
        All numbers exact, as JSON.

    Raises
    ------
    InterchangeError
        A ValueError: RTNeural has no such layer or option, which is named.
    """
    parts = parts_of(model)
    layers = [layer for part in parts for layer in _layers_of(part)]
    content = {"in_shape": [None, None, parts[0].input_size], "layers": layers}
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return content


def _entry(kind: str, activation: str, size: int, *weights: np.ndarray) -> dict[str, Any]:
    return {
        "type": kind,
        "activation": activation,
        "shape": [None, None, size],
        "weights": [np.asarray(value, np.float64).tolist() for value in weights],
    }


def _layers_of(part: Any) -> list[dict[str, Any]]:
    if isinstance(part, Dense):
        values = part.parameters
        bias = values.get("bias", np.zeros(part.output_size, np.float32))
        activation = "" if part.activation == "identity" else part.activation
        return [_entry("dense", activation, part.output_size, values["weight"].T, bias)]
    reasons = unsupported_options(part) if isinstance(part, Recurrent) else []
    if isinstance(part, GRU) and not part.reset_after:
        reasons.append("reset_after=False")
    if isinstance(part, Recurrent) and part.bidirectional:
        reasons.append("two directions")
    if reasons or not isinstance(part, GRU | LSTM):
        what = type(part).__name__ + (f" with {', '.join(reasons)}" if reasons else "")
        raise InterchangeError(f"RTNeural has no {what}")
    kind = "gru" if isinstance(part, GRU) else "lstm"
    result = []
    for number in range(part.num_layers):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        zeros = np.zeros(len(part.cell.gates) * part.hidden_size, np.float32)
        values = {n: part.parameters.get(f"{n}_l{number}", zeros) for n in names}
        if kind == "gru":
            values = {n: gates_in_order(v, _GRU_ORDER) for n, v in values.items()}
            bias = np.stack([values["bias_ih"], values["bias_hh"]])
        else:
            bias = values["bias_ih"] + values["bias_hh"]
        arrays = values["weight_ih"].T, values["weight_hh"].T, bias
        result.append(_entry(kind, "tanh", part.hidden_size, *arrays))
    return result


def from_rtneural(source: Mapping[str, Any] | str | os.PathLike[str]) -> Any:
    """Return the model of RTNeural's JSON.

    Parameters
    ----------
    source : mapping or path-like
        Of layers ``dense``, ``time-distributed-dense``, ``gru`` and ``lstm``.

    Returns
    -------
    Recurrent, Dense or Sequential

    Raises
    ------
    InterchangeError
        A ValueError: something in it is not understood, which is named.
    """
    if isinstance(source, str | os.PathLike):
        try:
            with open(source, encoding="utf-8") as file:
                source = json.load(file)
        except ValueError as error:
            raise InterchangeError(f"{source}: not JSON: {error}") from None
    if not isinstance(source, Mapping) or not {"in_shape", "layers"} <= set(source):
        raise InterchangeError("a model of RTNeural must have in_shape and layers")
    parts: list[Any] = []
    try:
        for entry in source["layers"]:
            parts.append(_part_of(entry))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InterchangeError(f"layer {len(parts)} is damaged: {error!r}") from None
    if parts and parts[0].input_size != source["in_shape"][-1]:
        raise InterchangeError(
            f"in_shape must end with the {parts[0].input_size} inputs of the first layer, "
            f"got {source['in_shape']}"
        )
    return assemble(parts)


def _part_of(entry: Mapping[str, Any]) -> Any:
    kind, activation = entry["type"], entry.get("activation", "")
    try:
        arrays = [np.array(value, np.float32) for value in entry["weights"]]
    except ValueError:
        raise InterchangeError(f"the weights of a {kind} are no arrays of numbers") from None
    try:
        if kind in ("dense", "time-distributed-dense"):
            if activation not in ("", *_ACTIVATIONS):
                raise InterchangeError(f"a dense layer with {activation!r} is not supported")
            weight, bias = arrays
            inputs, outputs = weight.shape
            dense = Dense(inputs, outputs, activation or "identity", seed=0)
            return load(dense, weight=weight.T, bias=bias.reshape(-1))
        if kind not in ("gru", "lstm"):
            raise InterchangeError(f"a layer of type {kind!r} is not supported")
        kernel, recurrent, bias = arrays
        values = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
        size = (kernel.shape[0], recurrent.shape[0])
        layer: Any
        if kind == "gru":
            layer = GRU(*size, reset_after=True, seed=0)
            values["bias_ih"], values["bias_hh"] = bias
            values = {n: gates_in_order(v, _GRU_ORDER) for n, v in values.items()}
        else:
            layer = LSTM(*size, seed=0)
            values["bias_ih"], values["bias_hh"] = bias, np.zeros_like(bias)
        return load(layer, **{f"{name}_l0": value for name, value in values.items()})
    except InterchangeError:
        raise
    except ValueError as error:
        raise InterchangeError(f"a {kind} does not fit its weights: {error}") from None
