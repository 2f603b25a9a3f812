"""PyTorch: ``from_torch`` and ``to_torch``, and ``.pt`` files of weights.

The names, shapes and gate orders of parameters are PyTorch's own, so tensors are only copied. What
differs: here batches always come first (``batch_first`` is a matter of the call, not of weights),
and PyTorch's GRU is ours with ``reset_after=True``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._atomic import replacing
from .._extras import require
from ..dense import Dense
from ..layers import GRU, LSTM, RNN, Recurrent
from ..sequential import Scaling
from ._parts import (
    InterchangeError,
    assemble,
    float32,
    load,
    parts_of,
    returns_sequences,
    unsupported_options,
    with_activation,
)

torch: Any = require("torch", "a model of PyTorch")
nn: Any = torch.nn

__all__ = ["Stack", "from_torch", "read_pt", "to_torch", "write_pt"]

_ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
_LAYERS = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
_CELLS = {nn.RNNCell: RNN, nn.GRUCell: GRU, nn.LSTMCell: LSTM}
# Whose weights these are, by the rows of weight_ih in units of the hidden size.
_BY_GATES = {1: RNN, 3: GRU, 4: LSTM}


class Scale(nn.Module):  # type: ignore[misc]
    """``(x - mean) / scale``, or its inverse ``x * factor + offset``; not trained."""

    def __init__(self, mean: Any, scale: Any, inverse: bool) -> None:
        super().__init__()
        self.inverse = inverse
        self.register_buffer("offset" if inverse else "mean", mean)
        self.register_buffer("factor" if inverse else "scale", scale)

    def forward(self, x: Any) -> Any:
        """Return `x` scaled."""
        return x * self.factor + self.offset if self.inverse else (x - self.mean) / self.scale


class Stack(nn.Module):  # type: ignore[misc]
    """Modules in a row, recurrent ones among them: what ``to_torch`` makes of a ``Sequential``.

    Called with `x` (batch, time, features) and optionally a list with a state for each recurrent
    module, it returns the output and the list of their final states.
    """

    def __init__(self, *parts: Any, return_sequences: bool = True) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.return_sequences = return_sequences

    def forward(self, x: Any, states: Any = None) -> tuple[Any, list[Any]]:
        """Return the output and the final states."""
        recurrent = [part for part in self.parts if isinstance(part, nn.RNNBase)]
        given = iter(states if states is not None else [None] * len(recurrent))
        final = []
        for part in self.parts:
            if not isinstance(part, nn.RNNBase):
                x = part(x)
                continue
            x, state = part(x, next(given))
            final.append(state)
            if part is recurrent[-1] and not self.return_sequences:
                hidden = state[0] if isinstance(state, tuple) else state
                x = torch.cat(list(hidden[-(2 if part.bidirectional else 1) :]), dim=-1)
        return x, final


# -- In -------------------------------------------------------------------------------------------


def from_torch(
    source: Any, *, nonlinearity: str = "tanh", return_sequences: bool | None = None
) -> Any:
    """Return the layer or model with the weights of a module of PyTorch, bit for bit.

    Parameters
    ----------
    source : torch.nn.Module, list of modules, mapping, or path-like
        ``RNN``, ``GRU``, ``LSTM``, their ``Cell`` classes, ``Linear``; a ``Sequential``,
        ``ModuleList`` or list of these, also with ``Tanh``, ``Sigmoid``, ``ReLU`` or ``Softmax``
        after a ``Linear``, ``Identity``, and ``Dropout``, which does nothing at inference; or what
        :func:`to_torch` returned. A ``state_dict``, or a ``.pt`` file that holds one, must list its
        modules in the order in which they run; activations are not in it.
    nonlinearity : {"tanh", "relu"}
        Of ``RNN`` weights in a ``state_dict``, which does not say it.
    return_sequences : bool, optional
        Whether a stack gives an output for every step (the default) or for the last one.

    Returns
    -------
    RNN, GRU, LSTM, Dense or Sequential
        PyTorch's GRU becomes one with ``reset_after=True``.

    Raises
    ------
    InterchangeError
        A ValueError: something in it has no counterpart here, which is named.
    MissingPackageError
        Without PyTorch (``pip install 'fastgates[torch]'``).

    Examples
    --------
    >>> import torch, fastgates as fg
    >>> fg.from_torch([torch.nn.LSTM(3, 8, batch_first=True), torch.nn.Linear(8, 2)])
    Sequential(LSTM(3, 8), Dense(8, 2, 'identity'))
    """
    if isinstance(source, str | os.PathLike):
        source = read_pt(source)
    if isinstance(source, Mapping):
        return _from_state_dict(source, nonlinearity, return_sequences is not False)
    if isinstance(source, Stack):
        if return_sequences is None:
            return_sequences = source.return_sequences
        source = list(source.parts)
    if isinstance(source, nn.Sequential):
        _check_plain(source, nn.Sequential)
    if isinstance(source, nn.Sequential | nn.ModuleList):
        source = list(source)
    modules = source if isinstance(source, list | tuple) else [source]
    parts: list[Any] = []
    for module in modules:
        _add_part(parts, module)
    return assemble(parts, return_sequences is not False)


def _check_plain(module: Any, kind: Any) -> None:
    """Raise where more runs than the forward of a kind of PyTorch's."""
    name = type(module).__name__
    if type(module).forward is not kind.forward:
        raise InterchangeError(
            f"{name} has a forward of its own: give the list of its parts in the order in which "
            "they run, or export it with torch.onnx and use from_onnx"
        )
    if nn.utils.parametrize.is_parametrized(module):
        raise InterchangeError(
            f"{name} has parametrizations, which cannot be converted: make them permanent with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise InterchangeError(
            f"{name} has forward hooks (weight or spectral normalisation, say), which cannot be "
            "converted: remove them, so that the weights are plain parameters"
        )


def _add_part(parts: list[Any], module: Any) -> None:
    name = type(module).__name__
    if isinstance(module, nn.Module):
        kinds = (nn.Sequential, nn.Identity, nn.Dropout, type(module))
        _check_plain(module, next(kind for kind in kinds if isinstance(module, kind)))
    for kind, activation in ((kind, name) for name, kind in _ACTIVATIONS.items()):
        if type(module) is kind:
            with_activation(parts, activation, name)
            return
    if type(module) is nn.Softmax:
        if module.dim != -1:
            raise InterchangeError(f"Softmax must be over dim=-1, got dim={module.dim}")
        with_activation(parts, "softmax", name)
    elif type(module) is nn.Linear:
        parts.append(_dense(_numpy(module.state_dict(), name)))
    elif type(module) in _LAYERS:
        parts.append(_layer(module))
    elif type(module) in _CELLS:
        values = _numpy(module.state_dict(), name)
        nonlinearity = getattr(module, "nonlinearity", "tanh")
        parts.append(_recurrent({f"{n}_l0": v for n, v in values.items()}, nonlinearity))
    elif isinstance(module, Scale):
        mean, scale = _numpy(module.state_dict(), name).values()
        parts.append(Scaling(mean, scale, inverse=module.inverse))
    elif isinstance(module, nn.Sequential):
        for inner in module:
            _add_part(parts, inner)
    elif not isinstance(module, nn.Identity | nn.Dropout):
        raise InterchangeError(
            f"{name} has no counterpart here. Of a module of your own, give the list of its parts "
            "in the order in which they run, or export it with torch.onnx and use from_onnx"
        )


def _numpy(state_dict: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    found = {}
    for key, value in state_dict.items():
        try:
            array = value.detach().cpu().numpy()
        except (TypeError, NotImplementedError) as error:  # bfloat16, or no storage at all
            raise InterchangeError(f"{key} of {name} cannot be read: {error}") from None
        found[key] = float32(f"{key} of {name}", array)
    return found


def _layer(module: Any) -> Recurrent:
    name = type(module).__name__
    if module.proj_size:
        raise InterchangeError(
            f"{name} has proj_size={module.proj_size}: projections of the state are not supported"
        )
    options = {
        "bias": module.bias,
        "dropout": module.dropout,
        "bidirectional": module.bidirectional,
    }
    if name == "RNN":
        options["nonlinearity"] = module.nonlinearity
    if name == "GRU":
        options["reset_after"] = True
    layer: Any = _LAYERS[type(module)]
    result = layer(module.input_size, module.hidden_size, module.num_layers, seed=0, **options)
    return load(result, **_numpy(module.state_dict(), name))


def _dense(values: Mapping[str, np.ndarray]) -> Dense:
    outputs, inputs = values["weight"].shape
    dense = Dense(inputs, outputs, bias="bias" in values, seed=0)
    return load(dense, **values)


def _recurrent(values: Mapping[str, np.ndarray], nonlinearity: str) -> Recurrent:
    """Return the layer whose parameters these are."""
    for key in ("weight_hh_l0", "weight_ih_l0"):
        if key not in values or values[key].ndim != 2:
            raise InterchangeError(f"{key} must be a matrix, of an RNN, GRU or LSTM")
    rows, hidden = values["weight_hh_l0"].shape
    layer: Any = _BY_GATES.get(rows // hidden) if rows % hidden == 0 else None
    if layer is None:
        raise InterchangeError(f"weight_hh of shape {(rows, hidden)} is of no RNN, GRU or LSTM")
    options: dict[str, Any] = {
        "num_layers": 1 + max(int(name.split("_l")[1].split("_")[0]) for name in values),
        "bias": "bias_ih_l0" in values,
        "bidirectional": "weight_ih_l0_reverse" in values,
    }
    if layer is RNN:
        options["nonlinearity"] = nonlinearity
    if layer is GRU:
        options["reset_after"] = True
    try:
        return load(layer(values["weight_ih_l0"].shape[1], hidden, seed=0, **options), **values)
    except ValueError as error:
        raise InterchangeError(str(error)) from None


_PARAMETER = re.compile(r"(.*?)((?:weight|bias)_(?:ih|hh))(_l\d+(?:_reverse)?)?")
_OTHER = re.compile(r"(.*?)(weight|bias|mean|scale|offset|factor)")


def _from_state_dict(state_dict: Mapping[str, Any], nonlinearity: str, sequences: bool) -> Any:
    groups: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for key, value in state_dict.items():
        recurrent, other = _PARAMETER.fullmatch(str(key)), _OTHER.fullmatch(str(key))
        if not isinstance(value, torch.Tensor) or not (recurrent or other):
            raise InterchangeError(f"{key!r} is no parameter of an RNN, GRU, LSTM or Linear")
        array = _numpy({key: value}, "the state_dict")[key]
        if recurrent:
            prefix, name, suffix = recurrent.groups()
            groups.setdefault((prefix, "recurrent"), {})[name + (suffix or "_l0")] = array
        elif other:
            groups.setdefault((other[1], "other"), {})[other[2]] = array
    parts: list[Any] = []
    for (prefix, kind), values in groups.items():
        if kind == "recurrent" and {"weight_ih_l0", "weight_hh_l0"} <= set(values):
            parts.append(_recurrent(values, nonlinearity))
        elif set(values) in ({"weight"}, {"weight", "bias"}) and values["weight"].ndim == 2:
            parts.append(_dense(values))
        elif set(values) == {"mean", "scale"}:
            parts.append(Scaling(values["mean"], values["scale"]))
        elif set(values) == {"offset", "factor"}:
            parts.append(Scaling(values["offset"], values["factor"], inverse=True))
        else:
            raise InterchangeError(
                f"{[prefix + name for name in values]} are no parameters of an RNN, GRU, LSTM or "
                "Linear"
            )
    return assemble(parts, sequences)


def read_pt(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the ``state_dict`` of a ``.pt`` file, which is read as weights only.

    Raises
    ------
    InterchangeError
        If it holds anything but tensors in mappings, which would have to be executed.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InterchangeError(
            f"{path}: not a file of weights (torch.save(model.state_dict(), ...)): {reason}"
        ) from None
    for name in ("state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise InterchangeError(f"{path}: must hold a state_dict, got {type(content).__name__}")
    return content


# -- Out ------------------------------------------------------------------------------------------


def to_torch(model: Any) -> Any:
    """Return a module of PyTorch with the weights of a layer or model, bit for bit.

    Parameters
    ----------
    model : RNN, GRU with ``reset_after=True``, LSTM, Dense, Scaling, or a Sequential of these

    Returns
    -------
    torch.nn.Module
        ``RNN``, ``GRU`` or ``LSTM`` with ``batch_first=True``, ``Linear``; of a ``Sequential`` a
        :class:`Stack`.

    Raises
    ------
    InterchangeError
        A ValueError: PyTorch has no such layer or option, which is named.
    MissingPackageError
        Without PyTorch (``pip install 'fastgates[torch]'``).
    """
    parts = [_torch_part(part) for part in parts_of(model)]
    sequences = returns_sequences(model)
    if len(parts) == 1 and sequences:
        return parts[0]
    return Stack(*parts, return_sequences=sequences)


def _torch_part(part: Any) -> Any:
    if isinstance(part, Scaling):
        mean, scale = (torch.tensor(value) for value in part.parameters.values())
        return Scale(mean, scale, part.inverse)
    values = {name: torch.from_numpy(value) for name, value in part.state_dict().items()}
    if isinstance(part, Dense):
        linear = nn.Linear(part.input_size, part.output_size, bias=part.bias)
        linear.load_state_dict(values)
        if part.activation == "identity":
            return linear
        softmax = part.activation == "softmax"
        last = nn.Softmax(dim=-1) if softmax else _ACTIVATIONS[part.activation]()
        return nn.Sequential(linear, last)
    reasons = unsupported_options(part)
    if isinstance(part, GRU) and not part.reset_after:
        reasons.append("reset_after=False")
    if part.variational and part.dropout:
        reasons.append("variational dropout")
    kinds = {RNN: nn.RNN, GRU: nn.GRU, LSTM: nn.LSTM}
    if reasons or type(part) not in kinds:
        what = type(part).__name__ + (f" with {', '.join(reasons)}" if reasons else "")
        raise InterchangeError(f"PyTorch has no {what}; to_onnx may have")
    options = {"nonlinearity": part.nonlinearity} if isinstance(part, RNN) else {}
    module = kinds[type(part)](
        part.input_size,
        part.hidden_size,
        part.num_layers,
        bias=part.bias,
        batch_first=True,
        dropout=part.dropout,
        bidirectional=part.bidirectional,
        **options,
    )
    module.load_state_dict(values)
    return module


def write_pt(model: Any, path: str | os.PathLike[str]) -> None:
    """Write the ``state_dict`` of :func:`to_torch` to a ``.pt`` file, whole or not at all.

    Raises
    ------
    InterchangeError
        As :func:`to_torch`; also if the file could not say what the model is: it holds weights, but
        neither activations nor ``return_sequences=False``.
    """
    for part in parts_of(model):
        lost = getattr(part, "activation", "identity")
        if lost != "identity":
            raise InterchangeError(
                f"a .pt file holds weights only and would lose the activation {lost!r} of {part!r}"
            )
        if getattr(part, "nonlinearity", "tanh") != "tanh":
            raise InterchangeError(
                "a .pt file holds weights only and would lose the nonlinearity "
                f"{part.nonlinearity!r} of {part!r}"
            )
    if not returns_sequences(model):
        raise InterchangeError(
            "a .pt file holds weights only and would lose return_sequences=False"
        )
    state_dict = to_torch(model).state_dict()
    with replacing(path) as temporary:
        torch.save(state_dict, temporary)
