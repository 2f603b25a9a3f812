"""One file for the state of a training: arrays and JSON, replaced whole or not at all.

It is NumPy's ``.npz`` (a zip file, with a checksum for each array), so it needs no other package.
The array ``state`` holds JSON; nothing in the file is ever executed.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ._atomic import check_writable, replacing

__all__ = ["CheckpointError", "check_writable", "exists", "read", "write"]

_FORMAT = "fastgates.checkpoint"
_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one line and says why."""


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a checkpoint."""
    return Path(path).exists()


def write(
    path: str | os.PathLike[str], state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a checkpoint; whoever reads `path` at any moment finds the last one or this one."""
    record = {"format": _FORMAT, "version": _VERSION, **state}
    text = json.dumps(record, default=_plain).encode()
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.savez(file, allow_pickle=False, state=np.frombuffer(text, np.uint8), **arrays)
        file.flush()
        os.fsync(file.fileno())  # before the name points to it, also if the machine stops


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a checkpoint, and remove what a writer that was killed left beside it.

    Raises
    ------
    CheckpointError
        If the file is not a whole checkpoint of a version that is known.
    """
    target = Path(os.path.realpath(path))
    try:
        with open(target, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state = json.loads(arrays.pop("state").tobytes())
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint of fastgates ({error})") from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of fastgates")
    if state["version"] > _VERSION:
        raise CheckpointError(
            f"{path}: written by a newer fastgates (version {state['version']} of the format, "
            f"{_VERSION} is known): upgrade fastgates"
        )
    for leftover in target.parent.glob(f".{target.name[:100]}.????????????.tmp"):
        with suppress(OSError):
            leftover.unlink()
    return state, arrays


def _plain(value: Any) -> Any:
    """Turn NumPy numbers and arrays into what JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not for JSON")
