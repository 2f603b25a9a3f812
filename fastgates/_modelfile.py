"""One safetensors file for one model: weights as tensors, all else as JSON in its header.

The tensors have PyTorch's names behind a prefix that says whose they are
(``recurrent.weight_ih_l0``, ``readout.weight``), so other tools can read them.  The header holds
one metadata entry, ``fastgates``: JSON with ``format``, ``format_version`` and what the kind of
model needs.  No time stamp goes in: the same model always gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgates._atomic import replacing
from fastgates._extras import require

__all__ = [
    "ModelFile",
    "ModelFileError",
    "check_version",
    "read_any",
    "read_model",
    "require_library",
    "write_model",
]

_ENTRY = "fastgates"


class ModelFileError(ValueError):
    """A model file cannot be used; the message is one line and says why."""


class ModelFile(NamedTuple):
    """What a model file holds.

    Attributes
    ----------
    tensors : dict of str to ndarray of float32
        The weights, by prefixed name.
    header : dict
        The JSON of the header, without ``format`` and ``format_version``.
    """

    tensors: dict[str, NDArray[np.float32]]
    header: dict[str, Any]


def require_library() -> None:
    """Raise ``MissingPackageError`` now, rather than after an hour of training.

    Raises
    ------
    MissingPackageError
        If safetensors is not installed.
    """
    require("safetensors", "a model file")


def write_model(
    path: str | os.PathLike[str],
    kind: str,
    format_version: int,
    tensors: Mapping[str, NDArray[np.float32]],
    header: Mapping[str, Any],
) -> None:
    """Write a model, whole or not at all.

    Parameters
    ----------
    path : path-like
        The file, replaced if it exists.
    kind : str
        The kind of model, for example ``fastgates.forecaster``.
    format_version : int
        Raised when an older reader would misread the file.
    tensors : mapping of str to ndarray of float32
        The weights.
    header : mapping
        Everything else; must go through JSON.

    Raises
    ------
    MissingPackageError
        If safetensors is not installed.
    OSError
        If the file cannot be written; what was there is left as it was.
    """
    require_library()
    from safetensors.numpy import save

    record = {"format": kind, "format_version": format_version, **header}
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    data = save(arrays, metadata={_ENTRY: text})
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(data)


def read_any(path: str | os.PathLike[str]) -> tuple[str, Any, ModelFile]:
    """Read a model of any kind and version.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    kind : str
    format_version : object
        As it stands in the file: see :func:`check_version`.
    ModelFile
        Tensors and header.

    Raises
    ------
    MissingPackageError
        If safetensors is not installed.
    ModelFileError
        If the file is missing, is not safetensors, is cut short, is not of fastgates, or holds
        tensors that are not finite float32 numbers.
    """
    require_library()
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"), safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file") from None
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path}: not a safetensors file, or cut short ({reason})") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (TypeError, AttributeError, ValueError):
        raise ModelFileError(f"{path}: holds tensors of types that NumPy does not know") from None
    kind, number, header = _header(path, metadata)
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ModelFileError(f"{path}: tensor {name} must be float32, got {tensor.dtype}")
        if not np.isfinite(tensor).all():
            raise ModelFileError(f"{path}: tensor {name} holds NaN or infinite weights")
    return kind, number, ModelFile(tensors, header)


def read_model(path: str | os.PathLike[str], kind: str, format_version: int) -> ModelFile:
    """Read a model of one kind that ``write_model`` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    kind : str
        The kind of model that is expected.
    format_version : int
        The newest version this reader knows.

    Returns
    -------
    ModelFile
        Tensors and header.

    Raises
    ------
    MissingPackageError
        If safetensors is not installed.
    ModelFileError
        As :func:`read_any`; also if the file is not of this kind, or was written by a newer
        format.
    """
    found, number, model = read_any(path)
    if found != kind:
        raise ModelFileError(f"{path}: holds a {found!r}, not a {kind!r}")
    check_version(path, number, format_version)
    return model


def check_version(path: str | os.PathLike[str], number: Any, newest: int) -> None:
    """Raise ``ModelFileError`` unless `number` is a version from 1 to `newest`."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ModelFileError(f"{path}: format_version must be 1 to {newest}, got {number!r}")
    if number > newest:
        raise ModelFileError(
            f"{path}: written by a newer fastgates (format {number}, this one reads up to "
            f"{newest}): pip install --upgrade fastgates"
        )


def _header(
    path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> tuple[str, Any, dict[str, Any]]:
    if _ENTRY not in metadata:
        raise ModelFileError(f"{path}: a safetensors file, but not written by fastgates")
    try:
        header = json.loads(metadata[_ENTRY])
        return str(header.pop("format")), header.pop("format_version"), dict(header)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelFileError(f"{path}: the fastgates entry of its header is damaged") from None
