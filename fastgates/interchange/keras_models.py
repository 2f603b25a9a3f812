"""Keras 3: ``from_keras`` and ``to_keras``, and its ``.keras`` and ``.weights.h5`` files.

Keras multiplies from the left, so its matrices are the transposes of ours. Its gate orders are
i, f, c, o of the LSTM, as ours, and z, r, h of the GRU. There is one bias, which becomes our
``bias_ih`` beside a ``bias_hh`` of 0; only a GRU with ``reset_after=True`` has two. Coming in, that
is exact; going out, the two are added.

Files are read without Keras and without executing anything: a configuration in JSON, and arrays.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._atomic import replacing
from .._extras import require
from ..dense import Dense
from ..files import describe
from ..layers import GRU, LSTM, RNN, Recurrent
from ..sequential import Scaling
from ._parts import (
    InterchangeError,
    assemble,
    float32,
    gates_in_order,
    load,
    parts_of,
    returns_sequences,
    unsupported_options,
    with_activation,
)

__all__ = ["from_keras", "to_keras", "write_keras"]

Weights = Sequence[np.ndarray]

# Keras's functions, as ours. See keras.io/api/layers/activations.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "tanh": ("tanh",),
    "sigmoid": ("sigmoid",),
    "relu": ("relu",),
    "linear": ("affine", 1.0, 0.0),
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
    "leaky_relu": ("leaky_relu", 0.2),
    "elu": ("elu", 1.0),
    "softsign": ("softsign",),
    "softplus": ("softplus",),
}
_OF_DENSE = {
    "linear": "identity",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "softmax": "softmax",
}
_RECURRENT = {"SimpleRNN": RNN, "GRU": GRU, "LSTM": LSTM}
_NOTHING_AT_INFERENCE = ("InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "Identity")

# Options that change no output of inference, or that are looked at by name.
_HARMLESS = re.compile(
    r"name|trainable|dtype|seed|units|use_bias|activation|recurrent_activation|reset_after"
    r"|return_sequences|unroll|dropout|recurrent_dropout|unit_forget_bias|zero_output_for_mask"
    r"|implementation|time_major|batch_input_shape|batch_shape|input_shape|input_dim|layer"
    r"|backward_layer|merge_mode|go_backwards|.*_(initializer|regularizer|constraint)"
)
_OTHERS = ("Bidirectional", "TimeDistributed", "Dense", "Activation", "ReLU")
_LOOKED_AT: dict[str, tuple[str, ...]] = {
    "Normalization": ("axis", "invert", "mean", "variance"),
    "Rescaling": ("scale", "offset"),
    "Softmax": ("axis",),
}
_GRU_ORDER = (1, 0, 2)  # z, r, h to r, z, n, and back


# -- In -------------------------------------------------------------------------------------------


def from_keras(source: Any, *, return_sequences: bool = True) -> Any:
    """Return the model with the weights of one of Keras, bit for bit.

    Parameters
    ----------
    source : keras.Model, keras.Layer, or path-like
        Of ``SimpleRNN``, ``GRU``, ``LSTM``, ``Bidirectional`` of these, ``Dense``, ``Activation``
        after it, ``TimeDistributed`` of ``Dense``, ``Normalization``, ``Rescaling``, and what does
        nothing at inference; one after the other, in a ``Sequential`` or a functional model. A path
        is that of a ``.keras`` file, or of a ``.weights.h5`` file, which holds weights only: its
        layers are put in the only order in which they fit, with Keras's default activations.
    return_sequences : bool
        Of a ``.weights.h5`` file: whether there is an output for every step. Models say it
        themselves.

    Returns
    -------
    Recurrent, Dense or Sequential

    Raises
    ------
    InterchangeError
        A ValueError: something in it has no counterpart here, which is named.
    MissingPackageError
        For files, without h5py (``pip install 'fastgates[keras]'``).
    """
    if isinstance(source, str | os.PathLike):
        if os.fspath(source).endswith(".h5"):
            return _from_weights(source, return_sequences)
        return _from_keras_file(source)
    if not hasattr(source, "get_config") or not hasattr(source, "get_weights"):
        raise TypeError(
            f"source must be a model or a layer of Keras, or a path, got {type(source).__name__}"
        )
    if hasattr(source, "layers"):
        _check_call(source)
        layers = {layer.name: layer for layer in source.layers}
        config = {"class_name": type(source).__name__, "config": source.get_config()}
        return _from_config(config, lambda entry: _checked(layers[entry["config"]["name"]]))
    entry = {"class_name": type(source).__name__, "config": source.get_config()}
    return _from_entries([entry], lambda entry: _checked(source))


def _check_call(source: Any) -> None:
    """Raise where a model runs code of its own, which its configuration does not tell."""
    for kind in type(source).__mro__:
        if "call" in vars(kind):
            if not kind.__module__.startswith(("keras.", "tensorflow.", "tf_keras.")):
                raise InterchangeError(
                    f"{type(source).__name__} has a call of its own, which cannot be converted: "
                    "give the model of plain layers that it is made of"
                )
            return


def _checked(layer: Any) -> list[np.ndarray]:
    name = f"weights of {layer.name}"
    # A normalisation also counts, in integers.
    return [float32(name, value) for value in layer.get_weights() if value.dtype.kind != "i"]


def _from_config(model: Mapping[str, Any], weights: Callable[[Any], Weights]) -> Any:
    """Return the model that a configuration describes."""
    config = model["config"]
    if "layers" not in config:
        raise InterchangeError(f"{model['class_name']} is neither a Sequential nor functional")
    entries = config["layers"]
    if "output_layers" in config:
        entries = _in_a_row(config)
    return _from_entries(entries, weights)


def _in_a_row(config: Mapping[str, Any]) -> list[Any]:
    """Return the layers of a functional model in order; each must take the one before alone."""
    layers = {entry["config"]["name"]: entry for entry in config["layers"]}
    ends = [name for name in _flat(config["output_layers"]) if name in layers]
    if len(ends) != 1:
        raise InterchangeError(f"the model must have one output, got those of {ends}")
    row, name = [layers[ends[0]]], ends[0]
    while row[-1]["class_name"] != "InputLayer":
        nodes = row[-1]["inbound_nodes"]
        sources = list(_sources(nodes))
        if len(nodes) != 1 or len(sources) != 1:
            raise InterchangeError(
                f"layer {name} must take the output of one layer, got {sources or 'none'}: layers "
                "that share or join inputs, and initial states, are not supported"
            )
        if isinstance(nodes[0], Mapping) and nodes[0].get("kwargs", {}).get("training"):
            raise InterchangeError(
                f"layer {name} is called with training=True: only inference is supported"
            )
        name = sources[0]
        row.append(layers[name])
    unused = set(layers) - {entry["config"]["name"] for entry in row}
    if unused:
        raise InterchangeError(f"layers must follow one another, got {sorted(unused)} beside them")
    return row[::-1]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _sources(node: Any) -> Iterator[str]:
    """Return the names of the layers whose outputs a node takes."""
    if isinstance(node, Mapping):
        if node.get("class_name") == "__keras_tensor__":
            yield node["config"]["keras_history"][0]
        else:
            for item in node.values():
                yield from _sources(item)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _sources(item)
    elif hasattr(node, "_keras_history"):
        yield node._keras_history.operation.name


def _from_entries(entries: Sequence[Any], weights: Callable[[Any], Weights]) -> Any:
    parts: list[Any] = []
    sequences: list[bool] = []  # of each recurrent layer
    features = None
    for entry in entries:
        kind, config = entry["class_name"], entry["config"]
        if kind == "InputLayer":
            features = (config.get("batch_shape") or config["batch_input_shape"])[-1]
        if kind in _NOTHING_AT_INFERENCE:
            continue
        _check_options(kind, config)
        if parts:
            features = parts[-1].output_size
        inner = config["layer"] if kind in ("Bidirectional", "TimeDistributed") else entry
        if kind in _RECURRENT or kind == "Bidirectional":
            part, whole = _recurrent_part(entry, weights(entry))
            if not all(sequences):
                raise InterchangeError(
                    f"{config['name']} follows a layer of return_sequences=False"
                )
            parts.append(part)
            sequences.append(whole)
        elif inner["class_name"] == "Dense":
            _check_options("Dense", inner["config"])
            parts.append(_dense_part(inner["config"], weights(entry)))
        elif kind in ("Activation", "ReLU", "Softmax"):
            name = config.get("activation", kind.lower())
            with_activation(parts, _dense_activation(name), kind)
        elif kind in ("Normalization", "Rescaling"):
            parts.append(_scaling_part(kind, config, weights(entry), features))
        else:
            raise InterchangeError(f"layer {config['name']}: {kind} has no counterpart here")
    return assemble(parts, all(sequences))


def _check_options(kind: str, config: Mapping[str, Any]) -> None:
    """Refuse options that would change the mathematics."""
    dtype = config.get("dtype")
    if isinstance(dtype, Mapping):
        dtype = dtype["config"].get("name")
    if dtype not in (None, "float32"):
        raise InterchangeError(f"{kind} {config['name']} must be of float32, got {dtype}")
    known = _LOOKED_AT.get(kind, ())
    counterpart = kind in (*_RECURRENT, *_LOOKED_AT, *_OTHERS)
    for name, value in config.items() if counterpart else ():
        if value and name not in known and not _HARMLESS.fullmatch(name):
            raise InterchangeError(f"{kind} {config['name']}: {name}={value!r} is not supported")
    if kind in ("Normalization", "Softmax") and config.get("axis") not in (-1, [-1], (-1,), [2]):
        raise InterchangeError(f"{kind} must be over axis=-1, got {config['axis']!r}")


def _recurrent_part(entry: Mapping[str, Any], weights: Weights) -> tuple[Recurrent, bool]:
    """Return the layer, and whether it returns sequences."""
    kind, config = entry["class_name"], entry["config"]
    if kind != "Bidirectional":
        whole = bool(config["return_sequences"])
        reverse = bool(config.get("go_backwards"))
        if reverse and whole:
            raise InterchangeError(
                f"{kind} {config['name']}: go_backwards with return_sequences turns time around, "
                "which is not supported"
            )
        return _layer(kind, [config], [weights], reverse), whole
    if config["merge_mode"] != "concat":
        raise InterchangeError(
            f"Bidirectional {config['name']}: merge_mode={config['merge_mode']!r} is not supported"
        )
    forward = config["layer"]
    backward = config.get("backward_layer") or {
        **forward,
        "config": forward["config"] | {"go_backwards": True},
    }
    for inner in (forward, backward):
        if inner["class_name"] not in _RECURRENT:
            raise InterchangeError(f"Bidirectional of {inner['class_name']} is not supported")
        _check_options(inner["class_name"], inner["config"])
    configs = [forward["config"], backward["config"]]
    same = ("units", "use_bias", "reset_after", "return_sequences")
    if (
        forward["class_name"] != backward["class_name"]
        or any(configs[0].get(name) != configs[1].get(name) for name in same)
        or [bool(c.get("go_backwards")) for c in configs] != [False, True]
    ):
        raise InterchangeError(
            f"Bidirectional {config['name']}: its layers must be alike, and the second go backwards"
        )
    half = len(weights) // 2
    layer = _layer(forward["class_name"], configs, [weights[:half], weights[half:]], False)
    return layer, bool(configs[0]["return_sequences"])


def _function(config: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    function = config.get(name, "sigmoid" if name.startswith("recurrent") else "tanh")
    function = "linear" if function is None else function
    if not isinstance(function, str) or function not in _FUNCTIONS:
        raise InterchangeError(f"{config['name']}: {name}={function!r} is not supported")
    return _FUNCTIONS[function]


def _layer(
    kind: str,
    configs: Sequence[Mapping[str, Any]],
    weights: Sequence[Weights],
    reverse: bool,
) -> Recurrent:
    """Return the layer of one or two directions."""
    first = configs[0]
    options: dict[str, Any] = {
        "bias": bool(first.get("use_bias", True)),
        "bidirectional": len(configs) == 2,
        "reverse": reverse,
        "seed": 0,
    }
    inner = [_function(config, "activation") for config in configs]
    if kind == "SimpleRNN":
        names = [function[0] for function in inner]
        plain = len(set(inner)) == 1 and names[0] in ("tanh", "relu")
        options["nonlinearity"] = names[0] if plain else inner
    else:
        gates = [_function(config, "recurrent_activation") for config in configs]
        each = 1 if kind == "GRU" else 2
        functions = [
            f for gate, other in zip(gates, inner, strict=True) for f in (gate, *[other] * each)
        ]
        standard = [("sigmoid",), *[("tanh",)] * each] * len(configs)
        if functions != standard:
            options["activations"] = functions
    if kind == "GRU":
        options["reset_after"] = bool(first.get("reset_after", True))
    kernel = weights[0][0]
    layer: Any = _RECURRENT[kind](kernel.shape[0], int(first["units"]), **options)
    values: dict[str, np.ndarray] = {}
    for suffix, arrays in zip(("l0", "l0_reverse"), weights, strict=False):
        values |= {f"{n}_{suffix}": v for n, v in _to_ours(kind, arrays).items()}
    try:
        return load(layer, **values)
    except ValueError as error:
        raise InterchangeError(f"{first['name']}: {error}") from None


def _to_ours(kind: str, arrays: Weights) -> dict[str, np.ndarray]:
    """Return one direction's parameters in our shapes and orders."""
    kernel, recurrent, *biases = arrays
    values = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    if biases:
        bias = biases[0]
        values["bias_ih"], values["bias_hh"] = (
            bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        )
    if kind == "GRU":
        values = {name: gates_in_order(value, _GRU_ORDER) for name, value in values.items()}
    return values


def _dense_activation(name: Any) -> str:
    if not isinstance(name, str) or name not in _OF_DENSE:
        raise InterchangeError(f"a dense layer with the activation {name!r} is not supported")
    return _OF_DENSE[name]


def _dense_part(config: Mapping[str, Any], weights: Weights) -> Dense:
    kernel, *bias = weights
    activation = _dense_activation(config.get("activation") or "linear")
    dense = Dense(kernel.shape[0], kernel.shape[1], activation, bias=bool(bias), seed=0)
    return load(dense, weight=kernel.T, bias=bias[0] if bias else None)


def _numbers(config: Mapping[str, Any], name: str, features: int) -> np.ndarray:
    try:
        values = np.asarray(config[name], np.float32).reshape(-1)
        return np.broadcast_to(values, (features,))
    except (TypeError, ValueError):
        raise InterchangeError(
            f"{config['name']}: {name} must be a number for each of {features} features, "
            f"got {config[name]!r}"
        ) from None


def _scaling_part(
    kind: str, config: Mapping[str, Any], weights: Weights, features: int | None
) -> Scaling:
    if features is None:
        raise InterchangeError(f"{config['name']}: the number of features must be fixed")
    if kind == "Rescaling":
        offset, scale = (_numbers(config, name, features) for name in ("offset", "scale"))
        return Scaling(offset, scale, inverse=True)
    if config.get("mean") is not None:
        mean, variance = (_numbers(config, name, features) for name in ("mean", "variance"))
    else:
        mean, variance = (np.reshape(value, features) for value in weights[:2])
    # Keras divides by no less than its epsilon.
    scale = np.maximum(np.sqrt(variance), np.float32(1e-7))
    return Scaling(mean, scale, inverse=bool(config.get("invert")))


# -- Files ----------------------------------------------------------------------------------------


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _arrays_below(group: Any) -> list[np.ndarray]:
    """Return the arrays of a layer in Keras's order: of its own, then of what is inside."""
    found = []
    if "vars" in group:
        variables = group["vars"]
        found += [
            float32(f"{variables.name}/{name}", variables[name][()])
            for name in sorted(variables, key=int)
            if variables[name].dtype.kind == "f"
        ]
    inside = ("cell", "layer", "forward_layer", "backward_layer")
    for name in inside:
        if name in group:
            found += _arrays_below(group[name])
    return found


def _from_keras_file(path: str | os.PathLike[str]) -> Any:
    h5py = require("h5py", "a file of Keras")
    try:
        with zipfile.ZipFile(path) as file:
            config = json.loads(file.read("config.json"))
            content = io.BytesIO(file.read("model.weights.h5"))
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise InterchangeError(f"{path}: not a .keras file of Keras 3") from None
    with h5py.File(content, "r") as weights:
        groups = weights.get("layers", {})
        used: set[str] = set()
        counts: dict[str, int] = {}
        places: dict[str, str] = {}
        for entry in config["config"].get("layers", ()):
            kind = _snake_case(entry["class_name"])
            counts[kind] = counts.get(kind, -1) + 1
            places[entry["config"]["name"]] = kind + (f"_{counts[kind]}" if counts[kind] else "")

        def of(entry: Any) -> list[np.ndarray]:
            place = places[entry["config"]["name"]]
            used.add(place)
            return _arrays_below(groups[place]) if place in groups else []

        model = _from_config(config, of)
        for name in groups:
            if name not in used and _arrays_below(groups[name]):
                raise InterchangeError(f"{path}: nothing takes the weights of layers/{name}")
        return model


def _from_weights(path: str | os.PathLike[str], return_sequences: bool) -> Any:
    h5py = require("h5py", "a file of Keras")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if not os.path.exists(path):
            raise
        raise InterchangeError(f"{path}: not an HDF5 file: {error}") from None
    with file:
        if "layers" not in file:
            raise InterchangeError(
                f"{path}: not a .weights.h5 file of Keras 3; save the model as .keras"
            )
        layers = file["layers"]
        parts = {}
        for name in sorted(layers, key=lambda n: (n.rstrip("_0123456789"), len(n), n)):
            arrays = _arrays_below(layers[name])
            if arrays:
                parts[name] = _guess(name, layers[name], arrays)
    orders = list(_orders(parts))
    if len(orders) != 1:
        raise InterchangeError(
            f"{path}: its layers {list(parts)} fit in {len(orders)} orders; save the model as "
            ".keras, which says it"
        )
    return assemble([parts[name] for name in orders[0]], return_sequences)


def _guess(name: str, group: Any, arrays: Weights) -> Any:
    """Return the layer that a group of weights must belong to."""
    inner = [key for key in ("forward_layer", "backward_layer") if key in group]
    cells = [group[key] for key in inner] if inner else [group]
    recurrent = all("cell" in cell for cell in cells)
    config: dict[str, Any] = {"name": name, "return_sequences": True}
    if not recurrent:
        if len(arrays) > 2 or arrays[0].ndim != 2:
            raise InterchangeError(f"layers/{name} holds no layer that is known here")
        return _dense_part(config, arrays)
    per_direction = len(arrays) // len(cells)
    units, columns = arrays[1].shape
    kind = {1: "SimpleRNN", 3: "GRU", 4: "LSTM"}.get(columns // units, "")
    if not kind or columns % units:
        raise InterchangeError(f"layers/{name} holds no SimpleRNN, GRU or LSTM")
    config |= {"units": units, "use_bias": per_direction == 3}
    config["reset_after"] = per_direction < 3 or arrays[2].ndim == 2
    split = [arrays[k * per_direction : (k + 1) * per_direction] for k in range(len(cells))]
    return _layer(kind, [config] * len(cells), split, False)


def _orders(parts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the orders in which sizes fit, with layers of one class as they are numbered."""

    def follow(row: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if len(row) == len(parts):
            yield row
        seen = set()
        for name, part in parts.items():
            family = name.rstrip("_0123456789")
            if name in row or family in seen:
                continue
            seen.add(family)  # the others of its class come later
            if not row or parts[row[-1]].output_size == part.input_size:
                yield from follow((*row, name))

    yield from follow(())


# -- Out ------------------------------------------------------------------------------------------


def to_keras(model: Any) -> Any:
    """Return a ``keras.Sequential`` with the weights of a layer or model.

    Parameters
    ----------
    model : RNN, GRU, LSTM, Dense, Scaling, or a Sequential of these

    Returns
    -------
    keras.Sequential
        Stacked layers become several. Where Keras has one bias and we have two, it is their sum.

    Raises
    ------
    InterchangeError
        A ValueError: Keras has no such layer or option, which is named.
    MissingPackageError
        Without Keras (``pip install 'fastgates[keras]'``).
    """
    keras = require("keras", "to_keras")
    parts = parts_of(model)
    recurrent = [part for part in parts if isinstance(part, Recurrent)]
    layers: list[Any] = []
    weights: list[list[np.ndarray]] = []
    for part in parts:
        whole = returns_sequences(model) or part is not recurrent[-1]
        for layer, arrays in _keras_layers(keras.layers, part, whole):
            layers.append(layer)
            weights.append(arrays)
    result = keras.Sequential([keras.Input((None, parts[0].input_size)), *layers])
    for layer, arrays in zip(layers, weights, strict=True):
        if arrays:
            layer.set_weights(arrays)
    return result


def _keras_layers(layers: Any, part: Any, whole: bool) -> Iterator[tuple[Any, list[np.ndarray]]]:
    """Yield the layers of Keras that a module becomes, with their weights."""
    if isinstance(part, Scaling):
        yield _keras_scaling(layers, part), []
    elif isinstance(part, Dense):
        names = {ours: theirs for theirs, ours in _OF_DENSE.items()}
        parameters = part.parameters
        arrays = [parameters["weight"].T] + ([parameters["bias"]] if part.bias else [])
        dense = layers.Dense(part.output_size, names[part.activation], use_bias=part.bias)
        yield dense, arrays
    else:
        yield from _keras_recurrent(layers, part, whole)


def _keras_scaling(layers: Any, part: Scaling) -> Any:
    mean, scale = part.parameters["mean"], part.parameters["scale"]
    if part.inverse:
        return layers.Rescaling(scale.tolist(), mean.tolist())
    if (scale <= 1e-7).any():
        raise InterchangeError(f"Keras scales by numbers above 1e-7 only, got {scale}")
    variance = scale.astype(np.float64) ** 2
    return layers.Normalization(mean=mean.tolist(), variance=variance.tolist())


def _keras_recurrent(
    layers: Any, part: Recurrent, whole: bool
) -> Iterator[tuple[Any, list[np.ndarray]]]:
    allowed = ["activations"]
    if part.reverse and part.num_layers == 1 and not whole:
        allowed.append("reverse")
    reasons = unsupported_options(part, allowed)
    if part.variational and part.dropout and part.num_layers > 1:
        reasons.append("variational dropout")
    kind = next((name for name, ours in _RECURRENT.items() if ours is type(part)), "")
    if reasons or not kind:
        what = type(part).__name__ + (f" with {', '.join(reasons)}" if reasons else "")
        raise InterchangeError(f"Keras has no {what}; to_onnx may have")
    functions = _keras_functions(part, kind)
    for k in range(part.num_layers):
        if k and part.dropout:
            yield layers.Dropout(part.dropout), []
        options: dict[str, Any] = {
            "use_bias": part.bias,
            "return_sequences": whole or k < part.num_layers - 1,
        }
        if isinstance(part, GRU):
            options["reset_after"] = part.reset_after
        each = [
            getattr(layers, kind)(
                part.hidden_size, **options, **functions[d], go_backwards=d == 1 or part.reverse
            )
            for d in range(part.num_directions)
        ]
        arrays = []
        for suffix in (f"l{k}", f"l{k}_reverse")[: part.num_directions]:
            arrays += _to_theirs(part, kind, suffix)
        if part.bidirectional:
            yield layers.Bidirectional(each[0], backward_layer=each[1]), arrays
        else:
            yield each[0], arrays


def _keras_functions(part: Recurrent, kind: str) -> list[dict[str, str]]:
    """Return the activations of each direction as Keras's options."""
    standard: tuple[Any, ...] = ("sigmoid", "tanh", "tanh")
    if isinstance(part, RNN):
        standard = (part.nonlinearity,)
    each = {"SimpleRNN": 1, "GRU": 2, "LSTM": 3}[kind]
    chosen = standard[:each] if part.activations is None else part.activations
    if len(chosen) == each:
        chosen = tuple(chosen) * part.num_directions
    names = {tuple(ours): theirs for theirs, ours in _FUNCTIONS.items()}
    result = []
    for start in range(0, len(chosen), each):
        functions = [(f,) if isinstance(f, str) else tuple(f) for f in chosen[start : start + each]]
        if any(f not in names for f in functions) or len(set(functions[1:])) > 1:
            raise InterchangeError(f"Keras has no {kind} with the activations {functions}")
        options = {"activation": names[functions[-1]]}
        if each > 1:
            options["recurrent_activation"] = names[functions[0]]
        result.append(options)
    return result


def _to_theirs(part: Recurrent, kind: str, suffix: str) -> list[np.ndarray]:
    """Return one direction's parameters in Keras's shapes and orders."""
    values = {
        name: part.parameters[f"{name}_{suffix}"]
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        if f"{name}_{suffix}" in part.parameters
    }
    if kind == "GRU":
        values = {name: gates_in_order(value, _GRU_ORDER) for name, value in values.items()}
    arrays = [values["weight_ih"].T, values["weight_hh"].T]
    if part.bias:
        biases = values["bias_ih"], values["bias_hh"]
        two = isinstance(part, GRU) and part.reset_after
        arrays.append(np.stack(biases) if two else biases[0] + biases[1])
    return arrays


def write_keras(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a model as a ``.keras`` or ``.weights.h5`` file, whole or not at all.

    Raises
    ------
    InterchangeError
        As :func:`to_keras`; also if the weights alone would not make this model again.
    """
    made = to_keras(model)
    weights_only = os.fspath(path).endswith(".h5")
    with replacing(path) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as folder:
        # Keras wants its own suffix.
        place = Path(folder) / ("model.weights.h5" if weights_only else "model.keras")
        if weights_only:
            made.save_weights(place)
            _check_weights_say_all(place, made, returns_sequences(model))
        else:
            made.save(place)
        os.replace(place, temporary)


def _check_weights_say_all(place: Path, made: Any, return_sequences: bool) -> None:
    expected = from_keras(made)
    try:
        found: Any = _from_weights(place, return_sequences)
    except InterchangeError:
        found = None
    same = found is not None and describe(found) == describe(expected)
    if not same or not np.array_equal(found.parameter_vector, expected.parameter_vector):
        raise InterchangeError(
            "a .weights.h5 file holds weights only, which would not make this model again: write "
            "a .keras file"
        )
