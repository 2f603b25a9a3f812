"""Optional packages: which extra of fastgates brings each, and one error when it is absent."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

__all__ = ["EXTRAS", "MissingPackageError", "require", "version"]

EXTRAS = {
    "safetensors": "files",
    "matplotlib": "plot",
}
"""Distribution name -> the extra that installs it."""


class MissingPackageError(ImportError):
    """An optional package is needed here; the message says how to install it."""


def require(name: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Parameters
    ----------
    name : str
        A key of ``EXTRAS``.
    purpose : str
        What it is needed for, the start of the error.

    Returns
    -------
    module
        The imported package.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingPackageError(
            f"{purpose} needs {name}: pip install 'fastgates[{EXTRAS[name]}]'"
        ) from None


def version(name: str) -> str | None:
    """Return the installed version of a distribution without importing it; None if absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
