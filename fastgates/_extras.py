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
    "scikit-learn": "sklearn",
    "pandas": "pandas",
    "pyarrow": "parquet",
    "torch": "torch",
    "keras": "keras",
    "h5py": "keras",
    "onnx": "onnx",
}
"""Distribution name -> the extra that installs it."""

_MODULES = {"scikit-learn": "sklearn"}  # where it is imported by another name


class MissingPackageError(ImportError):
    """An optional package is needed here; the message says how to install it."""


def require(name: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Parameters
    ----------
    name : str
        A key of ``EXTRAS``, the distribution's name.
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
    module = _MODULES.get(name, name)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name not in (None, module):  # it is there, but lacks something itself
            raise MissingPackageError(
                f"{purpose} needs {name}, which cannot be imported: {error}"
            ) from None
        raise MissingPackageError(
            f"{purpose} needs {name}: pip install 'fastgates[{EXTRAS[name]}]'"
        ) from None


def version(name: str) -> str | None:
    """Return the installed version of a distribution without importing it; None if absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
