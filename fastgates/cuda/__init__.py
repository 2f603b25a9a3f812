"""The optional GPU backend: ``layer.to("cuda")`` (see ``docs/gpu.md``).

Nothing here is imported before it is asked for, and this module itself imports no CUDA: what runs
on the device is in its submodules, of which :mod:`fastgates.cuda.recurrent` and
:mod:`fastgates.cuda.modules` are what layers call.
"""

from __future__ import annotations

import importlib.metadata
import os

from .._extras import MissingPackageError

__all__ = ["check", "device_name", "is_available"]


def _problem() -> Exception | None:
    """Return why no GPU can be used, or None where one can."""
    simulated = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
    if not simulated:
        try:
            importlib.metadata.version("numba-cuda")
        except importlib.metadata.PackageNotFoundError:
            return MissingPackageError(
                "device='cuda' needs numba-cuda: pip install 'fastgates[cuda]' "
                "(drivers of CUDA 12: 'fastgates[cuda12]')"
            )
    from numba import cuda

    try:
        if cuda.is_available():
            return None
        reason = cuda.cuda_error()
    except Exception as error:  # whatever a broken driver says
        reason = error
    text = "" if reason is None else f" ({str(reason).strip().splitlines()[0]})"
    return RuntimeError(
        f"device='cuda' needs an NVIDIA GPU with its driver, none was found{text}: "
        "check nvidia-smi, or use device='cpu'"
    )


def is_available() -> bool:
    """Tell whether ``to("cuda")`` will work: the extra is installed, and there is a GPU."""
    return _problem() is None


def check() -> None:
    """Raise if no GPU can be used.

    Raises
    ------
    MissingPackageError
        If numba-cuda is not installed.
    RuntimeError
        If there is no GPU, or no driver.
    """
    problem = _problem()
    if problem is not None:
        raise problem from None


def device_name() -> str:
    """Return the name of the GPU that is used."""
    check()
    from numba import cuda

    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)
