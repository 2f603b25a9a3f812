"""The operators RNN, GRU and LSTM of ONNX as layers, and back.

After https://onnx.ai/onnx/operators/ (versions 7, 14 and 22). Gates are in the order z, r, h of the
GRU and i, o, f, c of the LSTM, peepholes i, o, f; the biases of input and state stand one after the
other. Where the standard is silent, onnxruntime is followed: coupled gates mean ``f = 1 - i``, and
the argument of h is not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cells._functions import FUNCTIONS, complete_function
from ..layers import GRU, LSTM, RNN, Recurrent, SimplifiedGRU
from ._parts import InterchangeError, float32, gates_in_order, load

__all__ = ["INPUTS", "Node", "attributes_of", "tensors_of"]

#: The inputs of an LSTM; the others have the first ones.
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")

_NAMES = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "hard_sigmoid": "HardSigmoid",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
_BY_NAME = {theirs.lower(): ours for ours, theirs in _NAMES.items()}
_STANDARD = {
    "RNN": ("tanh",),
    "GRU": ("sigmoid", "tanh"),
    "LSTM": ("sigmoid", "tanh", "tanh"),
}
# Where our gates are among theirs: r, z, n; i, f, g, o; and i, g, o of coupled gates.
_TO_OURS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
_TO_THEIRS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
_COUPLED = (0, 3, 1)
_PEEPHOLES = (0, 2, 1)  # both ways
_ATTRIBUTES = [
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "input_forget",
    "layout",
    "linear_before_reset",
]
_NO_CLIP = 1e38  # what is as good as infinite
_ALWAYS_OPEN = 100.0  # the bias of a gate that is 1: sigm(100) = 1 in float32


@dataclass(frozen=True)
class Node:
    """The attributes of a node, checked.

    Attributes
    ----------
    kind : {"RNN", "GRU", "LSTM"}
    name : str
        For errors.
    directions : tuple of bool
        Whether each of one or two directions is the reverse one.
    batch_first : bool
        Whether X, Y and the states have the batch first.
    functions : tuple
        Those of all directions.
    """

    kind: str
    name: str
    hidden_size: int | None
    directions: tuple[bool, ...]
    batch_first: bool
    functions: tuple[Any, ...]
    clip: float | None
    coupled: bool
    reset_after: bool

    @classmethod
    def of(cls, kind: str, name: str, attributes: Mapping[str, Any]) -> Node:
        """Check the attributes of a node of ONNX."""

        def refuse(reason: str) -> InterchangeError:
            return InterchangeError(f"node {name!r} ({kind}): {reason}")

        unknown = [key for key in attributes if key not in _ATTRIBUTES]
        if unknown:
            raise refuse(f"attributes {unknown} are not supported")
        direction = _text(attributes.get("direction", "forward"))
        directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        if direction not in directions:
            raise refuse(f"direction must be one of {', '.join(directions)}, got {direction!r}")
        count = len(directions[direction])
        try:
            functions = _functions(kind, attributes, count)
        except ValueError as error:
            raise refuse(str(error)) from None
        clip = attributes.get("clip")
        if clip is not None and not clip > 0:
            raise refuse(f"clip must be above 0, got {clip}")
        clip = None if clip is None or clip > _NO_CLIP else float(clip)
        return cls(
            kind,
            name,
            attributes.get("hidden_size"),
            directions[direction],
            attributes.get("layout", 0) == 1,
            functions,
            clip,
            bool(attributes.get("input_forget", 0)),
            bool(attributes.get("linear_before_reset", 0)),
        )

    def layer(self, W: Any, R: Any, B: Any = None, P: Any = None) -> Recurrent:
        """Return the layer with these weights, in ONNX's shapes and orders."""
        gates, count = len(_TO_OURS[self.kind]), len(self.directions)
        W, R = float32(f"W of {self.name}", W), float32(f"R of {self.name}", R)
        if R.ndim != 3 or R.shape[:2] != (count, gates * R.shape[2]):
            raise InterchangeError(
                f"node {self.name!r}: R must have shape (directions={count}, {gates} * hidden, "
                f"hidden), got {R.shape}"
            )
        hidden = R.shape[2]
        if self.hidden_size not in (None, hidden):
            raise InterchangeError(
                f"node {self.name!r}: R must have hidden_size={self.hidden_size} columns, "
                f"got {hidden}"
            )
        shapes = {
            "W": (W, (count, gates * hidden, W.shape[-1])),
            "B": (B, (count, 2 * gates * hidden)),
            "P": (P, (count, 3 * hidden)),
        }
        for name, (value, shape) in shapes.items():
            if value is not None and float32(name, value).shape != shape:
                raise InterchangeError(
                    f"node {self.name!r}: {name} must have shape {shape}, got {value.shape}"
                )
        layer: Any = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}[self.kind]
        options = self._options(P is not None)
        result: Recurrent = layer(W.shape[2], hidden, bias=B is not None, seed=0, **options)
        values: dict[str, np.ndarray] = {}
        order = _COUPLED if self.coupled else _TO_OURS[self.kind]
        for d, suffix in enumerate(("l0", "l0_reverse")[:count]):
            parts = {"weight_ih": W[d], "weight_hh": R[d]}
            if B is not None:
                parts["bias_ih"], parts["bias_hh"] = np.split(B[d], 2)
            for name, value in parts.items():
                split = np.split(value, gates)
                values[f"{name}_{suffix}"] = np.concatenate([split[place] for place in order])
            if P is not None:
                peepholes = gates_in_order(P[d], _PEEPHOLES)  # i, f, o
                if self.coupled:
                    peepholes = np.concatenate([peepholes[:hidden], peepholes[2 * hidden :]])
                values[f"weight_peephole_{suffix}"] = peepholes
        return load(result, **values)  # type: ignore[no-any-return]

    def _options(self, peepholes: bool) -> dict[str, Any]:
        count = len(self.directions)
        options: dict[str, Any] = {
            "bidirectional": count == 2,
            "reverse": self.directions == (True,),
            "clip": self.clip,
        }
        standard = _STANDARD[self.kind] * count
        if self.kind == "RNN":
            plain = len(set(self.functions)) == 1 and self.functions[0] in ("tanh", "relu")
            options["nonlinearity"] = self.functions[0] if plain else list(self.functions)
        elif self.functions != standard:
            options["activations"] = self.functions
        if self.kind == "GRU":
            options["reset_after"] = self.reset_after
        if self.kind == "LSTM":
            options |= {"coupled": self.coupled, "peepholes": peepholes}
        return options


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _functions(kind: str, attributes: Mapping[str, Any], count: int) -> tuple[Any, ...]:
    """Return the functions of all directions, with their numbers where they have any."""
    names = [_text(name) for name in attributes.get("activations", ())]
    standard = [_NAMES[name] for name in _STANDARD[kind]] * count
    names = names or standard
    if len(names) != len(standard):
        raise ValueError(f"activations must be {len(standard)}, got {names}")
    chosen = []
    for name in names:
        if name.lower() not in _BY_NAME:
            raise ValueError(f"activations must be among {list(_NAMES.values())}, got {name!r}")
        chosen.append(_BY_NAME[name.lower()])
    numbers: list[list[float]] = [list(FUNCTIONS[name]) for name in chosen]
    for place, key in enumerate(("activation_alpha", "activation_beta")):
        given = [float(value) for value in attributes.get(key, ())]
        takers = [k for k, name in enumerate(chosen) if len(FUNCTIONS[name]) > place]
        if len(given) == len(chosen) > len(takers):  # a value for each, of those that take none too
            given = [given[k] for k in takers]
        if len(given) > len(takers):
            raise ValueError(f"{key} has {len(given)} values for {len(takers)} functions")
        for k, value in zip(takers, given, strict=False):
            numbers[k][place] = value
    return tuple(
        (name, *values) if values else name for name, values in zip(chosen, numbers, strict=True)
    )


# -- Back -----------------------------------------------------------------------------------------


def attributes_of(layer: Recurrent) -> tuple[str, dict[str, Any]]:
    """Return the operator that runs a layer, and its attributes.

    ONNX has neither a leak nor a SimplifiedGRU: both are GRUs whose reset gate is always open.

    Raises
    ------
    InterchangeError
        If ONNX has none.
    """
    kind = _kind_of(layer)
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
    if layer.bidirectional or layer.reverse:
        attributes["direction"] = "bidirectional" if layer.bidirectional else "reverse"
    functions = _functions_of(layer, kind)
    if functions != _STANDARD[kind] * layer.num_directions:
        complete = [complete_function(function) for function in functions]
        attributes["activations"] = [_NAMES[name] for name, *_ in complete]
        for place, key in enumerate(("activation_alpha", "activation_beta")):
            numbers = [values[place] for _, *values in complete if len(values) > place]
            if numbers:
                attributes[key] = numbers
    if layer.clip is not None:
        attributes["clip"] = layer.clip
    if kind == "GRU":
        after = getattr(layer, "reset_after", True)
        attributes["linear_before_reset"] = int(after)
    if getattr(layer, "coupled", False):
        attributes["input_forget"] = 1
    return kind, attributes


def _leak_of(layer: Recurrent) -> np.ndarray | None:
    leak: np.ndarray | None = getattr(layer, "leak", None)
    return leak


def _kind_of(layer: Recurrent) -> str:
    if isinstance(layer, RNN) and _leak_of(layer) is not None:
        if layer.clip is not None:
            raise InterchangeError(f"ONNX cannot say a leak with a clip: {layer!r}")
        return "GRU"
    kinds: dict[type, str] = {RNN: "RNN", GRU: "GRU", SimplifiedGRU: "GRU", LSTM: "LSTM"}
    if type(layer) not in kinds:
        raise InterchangeError(f"ONNX has no cell {layer.cell.name!r}")
    return kinds[type(layer)]


def _functions_of(layer: Recurrent, kind: str) -> tuple[Any, ...]:
    functions: tuple[Any, ...] = _STANDARD[kind]
    if isinstance(layer, RNN):
        functions = (layer.nonlinearity,)
        if layer.activations is not None:
            functions = tuple(layer.activations)
        if kind == "GRU":  # one with a leak
            functions = tuple(f for function in functions for f in ("sigmoid", function))
    elif layer.activations is not None:
        functions = tuple(layer.activations)
    count = len(_STANDARD[kind]) * layer.num_directions
    return functions * (count // len(functions))


def tensors_of(layer: Recurrent, number: int) -> dict[str, np.ndarray]:
    """Return W, R, and where there are any B and P, of one of the stacked layers."""
    kind = _kind_of(layer)
    hidden = layer.hidden_size
    tensors: dict[str, list[np.ndarray]] = {"W": [], "R": [], "B": [], "P": []}
    for suffix in (f"l{number}", f"l{number}_reverse")[: layer.num_directions]:
        values = {
            name: layer.parameters[f"{name}_{suffix}"]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
            if f"{name}_{suffix}" in layer.parameters
        }
        peepholes = values.pop("weight_peephole", None)
        if isinstance(layer, SimplifiedGRU) or _leak_of(layer) is not None:
            values = _with_open_reset(layer, values)
        order = _TO_THEIRS[kind]
        if getattr(layer, "coupled", False):  # i, g, o to i, o, f, c; nothing reads those of f
            values = {
                name: np.concatenate([value, np.zeros_like(value[:hidden])])
                for name, value in values.items()
            }
            order = (0, 2, 3, 1)
            if peepholes is not None:
                nothing = np.zeros(hidden, np.float32)
                peepholes = np.concatenate([peepholes[:hidden], nothing, peepholes[hidden:]])
        values = {name: gates_in_order(value, order) for name, value in values.items()}
        tensors["W"].append(values["weight_ih"])
        tensors["R"].append(values["weight_hh"])
        if "bias_ih" in values:
            tensors["B"].append(np.concatenate([values["bias_ih"], values["bias_hh"]]))
        if peepholes is not None:
            tensors["P"].append(gates_in_order(peepholes, _PEEPHOLES))
    return {name: np.stack(parts) for name, parts in tensors.items() if parts}


def _with_open_reset(layer: Recurrent, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parameters of a GRU that computes the same, with r = 1."""
    hidden = layer.hidden_size
    shapes: dict[str, Sequence[int]] = {
        "weight_ih": (hidden, values["weight_ih"].shape[1]),
        "weight_hh": (hidden, hidden),
        "bias_ih": (hidden,),
        "bias_hh": (hidden,),
    }
    leak = _leak_of(layer)
    result = {}
    for name, shape in shapes.items():
        nothing = np.zeros(shape, np.float32)
        reset = np.full(shape, _ALWAYS_OPEN, np.float32) if name == "bias_ih" else nothing
        default = np.zeros((len(layer.cell.gates) * hidden, *shape[1:]), np.float32)
        own = values.get(name, default)
        if leak is None:
            result[name] = np.concatenate([reset, own])
        else:
            update = nothing
            if name == "bias_ih":
                with np.errstate(divide="ignore"):
                    logit = np.log(leak.astype(np.float64)) - np.log1p(-leak.astype(np.float64))
                update = np.clip(logit, -_ALWAYS_OPEN, _ALWAYS_OPEN).astype(np.float32)
            result[name] = np.concatenate([reset, update, own])
    return result
