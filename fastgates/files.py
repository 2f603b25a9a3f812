"""One file for whatever can be saved: ``save`` and ``load``, and the kinds that they know.

A file is safetensors: weights under PyTorch's names, and a JSON header that says how to build the
object again. Nothing in it is ever executed, and no name in it is ever imported: a file says
"kind X", and which code reads kind X is a table of this package (:class:`Kind`,
:func:`register`).

A file proves itself: a small reference input and the object's output for it are stored with the
weights, and ``load`` compares. A tensor that is missing, left over or of the wrong shape is an
error.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import layers
from ._modelfile import ModelFileError, check_version, read_any, write_model
from ._parameters import Module
from .dense import Dense
from .sequential import Scaling, Sequential

__all__ = [
    "Header",
    "Kind",
    "ModelFileError",
    "Row",
    "describe",
    "digest",
    "load",
    "pop_prefix",
    "read_header",
    "rebuild",
    "register",
    "save",
    "summarize",
]

Tensors = dict[str, np.ndarray]

_INPUT, _OUTPUT = "reference.input", "reference.output"
_TOLERANCE = 1e-5  # of the output's scale: machines differ in rounding, nothing else does


# -- Modules --------------------------------------------------------------------------------------

_MODULES: dict[str, type[Module]] = {
    cls.__name__: cls
    for cls in (
        layers.RNN,
        layers.SimplifiedGRU,
        layers.GRU,
        layers.LSTM,
        layers.Recurrent,
        Dense,
        Scaling,
        Sequential,
    )
}


def _options(cls: type) -> tuple[str, ...]:
    """Return the names of a module's constructor arguments that its parameters do not hold."""
    signature = inspect.signature(cls).parameters
    names = [n for n, p in signature.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        # Named layers hand the options that all layers have on to Recurrent.
        names += layers.COMMON_OPTIONS
    return tuple(n for n in names if n not in ("seed", "mean", "scale"))


def _jsonable(value: Any) -> Any:
    """Return an option's value as JSON holds it; float32 numbers survive exactly."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def describe(module: Module) -> dict[str, Any]:
    """Return all that makes a module but its parameters, as JSON can hold it.

    Parameters
    ----------
    module : Recurrent, Dense, Scaling or Sequential

    Returns
    -------
    dict
        ``kind``, and the options of the constructor by name; of a ``Sequential`` the descriptions
        of its modules in ``modules``.

    Raises
    ------
    TypeError
        If it is something else, or a subclass, of which the file could not say what it is.
    """
    kind = type(module).__name__
    if _MODULES.get(kind) is not type(module):
        way_out = "; save its to_sequential()" if hasattr(module, "to_sequential") else ""
        raise TypeError(
            f"module must be one of {', '.join(_MODULES)}, got {type(module).__module__}.{kind}"
            f"{way_out}"
        )
    result: dict[str, Any] = {"kind": kind}
    if isinstance(module, Sequential):
        result["modules"] = [describe(inner) for inner in module.modules]
    for name in _options(type(module)):
        if name == "cell":
            result[name] = module.cell.name  # type: ignore[attr-defined]
        elif name == "unit_constant":
            result[name] = _jsonable(module._unit_constant)  # type: ignore[attr-defined]
        else:
            result[name] = _jsonable(getattr(module, name))
    return result


def rebuild(description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Any:
    """Build the module that :func:`describe` described, with these parameters.

    Parameters
    ----------
    description : mapping
    tensors : mapping of str to ndarray
        As from ``state_dict()`` of the module: all of them, and no others.

    Returns
    -------
    Recurrent, Dense, Scaling or Sequential

    Raises
    ------
    ModelFileError
        If the two do not fit each other, or the description has kinds, options or values that
        this version does not know.
    """
    try:
        options = dict(description)
        kind = options.pop("kind")
        cls = _MODULES[kind]
    except (KeyError, TypeError, ValueError):
        raise ModelFileError(
            f"a module must be described by a kind among {', '.join(_MODULES)}, got {description!r}"
        ) from None
    rest = dict(tensors)
    inner = options.pop("modules", None) if cls is Sequential else ()
    known = _options(cls)
    unknown = [name for name in options if name not in known]
    if unknown or inner is None:
        raise ModelFileError(
            f"{kind} has no option {', '.join(unknown)}: pip install --upgrade fastgates"
            if unknown
            else f"{kind} must list its modules, got {sorted(description)}"
        )
    try:
        if cls is Sequential:
            parts = [
                rebuild(part, pop_prefix(rest, f"{place}.")) for place, part in enumerate(inner)
            ]
            if rest:
                raise ValueError(f"no module takes the tensors {sorted(rest)}")
            return Sequential(*parts, **options)
        if cls is Scaling:
            module: Module = Scaling(rest["mean"], rest["scale"], **options)
        else:
            module = cls(**options, seed=0)  # type: ignore[call-arg]
        module.load_state_dict(rest)
    except KeyError as error:
        raise ModelFileError(f"{kind}: there is no tensor {error}") from None
    except ModelFileError:
        raise
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{kind}: {error}") from None
    return module


def _example_of_module(module: Any) -> np.ndarray:
    """Return a small input of a usual size, the same for the same module."""
    leading = (2, 9) if isinstance(module, layers.Recurrent | Sequential) else (4,)
    x = np.random.default_rng(0).standard_normal((*leading, module.input_size)).astype(np.float32)
    first = module.modules[0] if isinstance(module, Sequential) else module
    if isinstance(first, Scaling) and not first.inverse:
        x = x * first.parameters["scale"] + first.parameters["mean"]
    return x


def _run_module(module: Any, x: np.ndarray) -> np.ndarray:
    result = module(x)
    output: np.ndarray = result[0] if isinstance(result, tuple) else result
    return output


# -- Kinds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of object that ``save`` and ``load`` know.

    Parameters
    ----------
    name : str
        What the file calls it.
    version : int
        The newest version of its format; raised when an older reader would misread the file.
    type : type
        Whose instances are saved so.
    to_file : callable
        From an object to its header, a mapping that goes through JSON, and its tensors, a mapping
        of names to float32 arrays.
    from_file : callable
        From header, tensors and the version of the file to the object. It takes out of the dict
        of tensors what it uses (:func:`pop_prefix`): what is left over is an error.
    example, run : callable, optional
        From an object to a small reference input, or None; from an object and an input to the
        output, a float32 array.
    summary : callable, optional
        From the header to pairs of texts that ``fastgates inspect`` shows.
    """

    name: str
    version: int
    type: type
    to_file: Callable[[Any], tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]
    from_file: Callable[[dict[str, Any], Tensors, int], Any]
    example: Callable[[Any], np.ndarray | None] | None = None
    run: Callable[[Any, np.ndarray], np.ndarray] | None = None
    summary: Callable[[Mapping[str, Any]], list[tuple[str, str]]] | None = None


_kinds: dict[str, Kind] = {}

# Kinds whose module is imported, and registers them, when a file asks for one.
_ELSEWHERE: dict[str, str] = {
    "fastgates.classifier": "fastgates.estimators",
    "fastgates.forecaster": "fastgates.estimators",
    "fastgates.regressor": "fastgates.estimators",
}


def register(kind: Kind) -> Kind:
    """Add a kind and return it; a name is taken once."""
    if kind.name in _kinds:
        raise ValueError(f"a kind named {kind.name!r} is registered already")
    _kinds[kind.name] = kind
    return kind


def _kind_of(obj: Any) -> Kind:
    for kind in _kinds.values():
        if isinstance(obj, kind.type):
            return kind
    known = ", ".join(kind.type.__name__ for kind in _kinds.values())
    raise TypeError(f"only objects of {known} can be saved, got {type(obj).__name__}")


def _kind_named(path: str | os.PathLike[str], name: str) -> Kind:
    if name not in _kinds and name in _ELSEWHERE:
        importlib.import_module(_ELSEWHERE[name])
    try:
        return _kinds[name]
    except KeyError:
        known = ", ".join(sorted({*_kinds, *_ELSEWHERE}))
        raise ModelFileError(
            f"{path}: holds a {name!r}, which this fastgates does not know; it knows {known}"
        ) from None


register(
    Kind(
        name="fastgates.module",
        version=1,
        type=Module,
        to_file=lambda module: ({"model": describe(module)}, module.state_dict()),
        from_file=lambda header, tensors, version: rebuild(
            header["model"], pop_prefix(tensors, "")
        ),
        example=_example_of_module,
        run=_run_module,
    )
)


# -- Files ----------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What a file says of itself.

    Attributes
    ----------
    kind : Kind
    version : int
        Of the kind's format.
    header : dict
        What the kind wrote, and ``record`` if there is one.
    tensors : dict of str to ndarray of float32
        The weights, without the reference.
    reference : pair of ndarray, or None
        The reference input and output.
    """

    kind: Kind
    version: int
    header: dict[str, Any]
    tensors: Tensors
    reference: tuple[np.ndarray, np.ndarray] | None


def save(obj: Any, path: str | os.PathLike[str], record: Mapping[str, Any] | None = None) -> None:
    """Write a layer, a model or anything else of a registered kind to one file.

    Parameters
    ----------
    obj : Recurrent, Dense, Scaling, Sequential, an estimator, or of a kind that was registered
        Of a :class:`fastgates.SequenceModel` its ``to_sequential()``.
    path : path-like
        The file, by custom ``*.safetensors``; replaced if it exists, whole or not at all.
    record : mapping, optional
        Anything that goes through JSON and should stay with the model, such as how it was trained.

    Raises
    ------
    TypeError
        If the object is of no such kind, or the record is not JSON.
    ValueError
        If a weight is NaN or infinite: such a file would not be read.
    MissingPackageError
        Without safetensors (``pip install 'fastgates[files]'``).
    OSError
        If the file cannot be written; what was there is left as it was.
    """
    kind = _kind_of(obj)
    header, tensors = kind.to_file(obj)
    header, tensors = dict(header), dict(tensors)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite to be saved, got NaN or infinite weights")
    if record is not None:
        if not isinstance(record, Mapping):
            raise TypeError(f"record must be a mapping, got {type(record).__name__}")
        header["record"] = dict(record)
    if kind.example is not None and kind.run is not None:
        x = kind.example(obj)
        if x is not None:
            output = kind.run(obj, x)
            # Where even a usual input overflows there is nothing that could be compared.
            if np.isfinite(output).all():
                tensors[_INPUT], tensors[_OUTPUT] = x, output
    write_model(path, kind.name, kind.version, tensors, header)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read a file without building what it holds.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Header

    Raises
    ------
    MissingPackageError
        Without safetensors.
    ModelFileError
        If the file is missing, damaged, of an unknown kind or of a newer version.
    """
    name, version, (tensors, header) = read_any(path)
    kind = _kind_named(path, name)
    check_version(path, version, kind.version)
    reference = [tensors.pop(name) for name in (_INPUT, _OUTPUT) if name in tensors]
    if len(reference) == 1:
        raise ModelFileError(f"{path}: must hold both of {_INPUT} and {_OUTPUT}, or neither")
    pair = (reference[0], reference[1]) if reference else None
    return Header(kind, version, header, tensors, pair)


def load(path: str | os.PathLike[str], verify: bool = True) -> Any:
    """Read what :func:`save` wrote.

    Parameters
    ----------
    path : path-like
    verify : bool
        Whether to run the reference input that the file holds, and compare with the output that it
        holds: within 1e-5 of the output's largest entry, since machines round differently.

    Returns
    -------
    object
        With the same bits in all weights as what was saved.

    Raises
    ------
    MissingPackageError
        Without safetensors (``pip install 'fastgates[files]'``).
    ModelFileError
        If the file is missing, damaged, of an unknown kind, of a newer version, if its tensors
        are not those that its header asks for, or the output is another one.

    Examples
    --------
    >>> import fastgates as fg
    >>> model = fg.Sequential(fg.LSTM(3, 8, seed=0), fg.Dense(8, 1, seed=1))
    >>> fg.save(model, "model.safetensors", record={"epochs": 20})   # doctest: +SKIP
    >>> fg.load("model.safetensors")                                 # doctest: +SKIP
    Sequential(LSTM(3, 8), Dense(8, 1, 'identity'))
    """
    found = read_header(path)
    tensors = dict(found.tensors)
    try:
        obj = found.kind.from_file(dict(found.header), tensors, found.version)
    except KeyError as error:
        raise ModelFileError(f"{path}: it lacks {error}") from None
    except (ValueError, TypeError) as error:
        message = str(error)
        prefix = "" if message.startswith(f"{path}: ") else f"{path}: "
        raise ModelFileError(f"{prefix}{message}") from None
    if tensors:
        raise ModelFileError(f"{path}: nothing takes the tensors {', '.join(sorted(tensors))}")
    if verify and found.reference is not None and found.kind.run is not None:
        _verify(path, found.kind.run, obj, *found.reference)
    return obj


def _verify(
    path: str | os.PathLike[str],
    run: Callable[[Any, np.ndarray], np.ndarray],
    obj: Any,
    x: np.ndarray,
    expected: np.ndarray,
) -> None:
    try:
        output = run(obj, x)
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: its reference input cannot be run: {error}") from None
    if output.shape != expected.shape:
        raise ModelFileError(
            f"{path}: its reference output has shape {expected.shape}, the model's {output.shape}"
        )
    if not expected.size:
        return
    scale = float(np.abs(expected).max())
    off = float(np.abs(output.astype(np.float64) - expected).max())
    if not off <= _TOLERANCE * scale:
        raise ModelFileError(
            f"{path}: the model does not give the output that was saved with it: off by {off:.3g} "
            f"of {scale:.3g} (the file was changed, or it shows a bug; verify=False loads it)"
        )


def pop_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Take out of a dict what has this prefix; return it without the prefix."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name[len(prefix) :]: tensors.pop(name) for name in names}


def digest(tensors: Mapping[str, np.ndarray], description: Any) -> str:
    """Return the SHA-256 of a description and float32 tensors, in any order of either."""
    result = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name], "<f4")
        result.update(f"\0{name}\0{value.shape}\0".encode())
        result.update(value.tobytes())
    return result.hexdigest()


class Row(NamedTuple):
    """A line of a summary.

    Attributes
    ----------
    kind : str
        Of the module, or the cell of one of no named class.
    input_size, output_size, parameters : int
    options : str
        Those that differ from the constructor's defaults.
    """

    kind: str
    input_size: int
    output_size: int
    parameters: int
    options: str


_IN_OTHER_COLUMNS = ("kind", "cell", "input_size", "output_size", "size")


def summarize(module: Any) -> list[Row]:
    """Return a line for each module of a model."""
    rows = []
    for part in module.modules if isinstance(module, Sequential) else (module,):
        description = describe(part)
        signature = inspect.signature(layers.Recurrent).parameters | dict(
            inspect.signature(type(part)).parameters
        )
        options = [
            f"{name}={_short(value)}"
            for name, value in description.items()
            if name not in _IN_OTHER_COLUMNS and value != signature[name].default
        ]
        kind = description.get("cell", description["kind"])
        count = sum(value.size for value in part.parameters.values())
        rows.append(Row(kind, part.input_size, part.output_size, count, ", ".join(options)))
    return rows


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"[{len(value)} numbers]"
    return str(value)
