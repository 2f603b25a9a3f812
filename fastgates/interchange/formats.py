"""Files of models by their suffix, for the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .._modelfile import ModelFileError
from ..files import load, save
from ._parts import InterchangeError

__all__ = ["SUFFIXES", "read", "write"]

Path = str | os.PathLike[str]


def _read_torch(path: Path, **options: Any) -> Any:
    from .torch_modules import from_torch

    return from_torch(path, **options)


def _write_torch(model: Any, path: Path) -> None:
    from .torch_modules import write_pt

    write_pt(model, path)


def _read_keras(path: Path, **options: Any) -> Any:
    from .keras_models import from_keras

    return from_keras(path, **options)


def _write_keras(model: Any, path: Path) -> None:
    from .keras_models import write_keras

    write_keras(model, path)


def _read_onnx(path: Path) -> Any:
    from .onnx_import import from_onnx

    return from_onnx(path)


def _write_onnx(model: Any, path: Path, **options: Any) -> None:
    from .onnx_export import to_onnx

    to_onnx(model, path, **options)


def _read_rtneural(path: Path) -> Any:
    from .rtneural import from_rtneural

    return from_rtneural(path)


def _write_rtneural(model: Any, path: Path) -> None:
    from .rtneural import to_rtneural

    to_rtneural(model, path)


_READING = {"nonlinearity": "--nonlinearity", "return_sequences": "--last"}
_FORMATS: dict[str, tuple[Callable[..., Any], Callable[..., None], tuple[str, ...]]] = {
    ".safetensors": (load, save, ()),
    ".pt": (_read_torch, _write_torch, ("nonlinearity", "return_sequences")),
    ".pth": (_read_torch, _write_torch, ("nonlinearity", "return_sequences")),
    ".keras": (_read_keras, _write_keras, ()),
    ".weights.h5": (_read_keras, _write_keras, ("return_sequences",)),
    ".onnx": (_read_onnx, _write_onnx, ()),
    ".json": (_read_rtneural, _write_rtneural, ()),
}
SUFFIXES = tuple(_FORMATS)


def _format_of(path: Path) -> tuple[Callable[..., Any], Callable[..., None], tuple[str, ...]]:
    for suffix, found in _FORMATS.items():
        if os.fspath(path).endswith(suffix):
            return found
    raise ModelFileError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")


def read(path: Path, **options: Any) -> Any:
    """Read a model from a file of any format.

    Parameters
    ----------
    path : path-like
    **options
        ``nonlinearity`` and ``return_sequences``, of files that hold weights only.

    Raises
    ------
    ModelFileError
        If it cannot be used, or an option says what the file says itself.
    """
    reader, _, known = _format_of(path)
    for name in options:
        if name not in known:
            raise ModelFileError(f"{path}: {_READING[name]} is for files that do not say it")
    if not os.path.isfile(path):
        raise ModelFileError(f"{path}: no such file")
    try:
        return reader(path, **options)
    except InterchangeError as error:
        raise _with_path(path, error) from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelFileError(f"{path}: it is damaged, or no such model: {error!r}") from None


def write(model: Any, path: Path, **options: Any) -> None:
    """Write a model to a file of any format, whole or not at all.

    Parameters
    ----------
    model : Recurrent, Dense, Scaling, Sequential, or what has a ``to_sequential``
    path : path-like
    **options
        ``streaming``, of ONNX files.
    """
    _, writer, _ = _format_of(path)
    if options and writer is not _write_onnx:
        raise ModelFileError(f"{path}: --streaming is for .onnx files")
    try:
        writer(model, path, **options)
    except (ValueError, TypeError) as error:
        raise _with_path(path, error) from None


def _with_path(path: Path, error: Exception) -> ModelFileError:
    message = str(error)
    return ModelFileError(message if message.startswith(f"{path}: ") else f"{path}: {message}")
