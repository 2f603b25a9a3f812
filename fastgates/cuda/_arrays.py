"""Arrays across the border: whose they are, on which stream, and scratch that is used again.

NumPy in gives NumPy out. An array of a GPU library (anything with ``__cuda_array_interface__`` or
DLPack on a CUDA device) is used where it lies, and results are arrays of the same library, made by
its own allocator where that is CuPy or PyTorch, and computed on its current stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._checks import Axis, check_shape, real_array
from ._device import SIMULATED, cuda, default_stream

__all__ = ["Caller", "Memory", "is_device_array", "stream_number", "without_stream"]

_CUDA_DEVICES = (2, 13)  # kDLCUDA and kDLCUDAManaged


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def is_device_array(value: Any) -> bool:
    """Tell whether `value` lies on a CUDA device."""
    if value is None or isinstance(value, np.ndarray | list | tuple | float | int):
        return False
    if _library(value) == "torch":
        return bool(value.is_cuda)
    if hasattr(value, "__cuda_array_interface__") or hasattr(value, "__cuda_ndarray__"):
        return True
    place = getattr(value, "__dlpack_device__", None)
    return place is not None and int(place()[0]) in _CUDA_DEVICES


class _View:
    """A foreign array by its address; keeps the owner alive."""

    def __init__(self, interface: dict[str, Any], owner: Any) -> None:
        self.__cuda_array_interface__ = interface
        self.owner = owner


def without_stream(array: Any) -> Any:
    """Return a view of a device array that names no stream, for whom works on the same one.

    A library that is told a stream waits for all that was started on it.
    """
    if SIMULATED:
        return array
    return _View(dict(array.__cuda_array_interface__, stream=None), array)


def _from_dlpack(value: Any) -> _View:
    """Return a view of an array that has DLPack only."""
    from cuda.core.utils import StridedMemoryView

    # 1 is the legacy default stream, on which the work is going to run.
    view = StridedMemoryView.from_dlpack(value, stream_ptr=1)
    strides = view.strides
    dtype = np.dtype(view.dtype)
    interface = {
        "shape": tuple(view.shape),
        "typestr": dtype.str,
        "data": (int(view.ptr), bool(view.readonly)),
        "strides": None if strides is None else tuple(s * dtype.itemsize for s in strides),
        "version": 3,
    }
    return _View(interface, view)


class Caller:
    """Whose arrays a call takes and returns.

    Parameters
    ----------
    like : object
        The input of the call.
    """

    def __init__(self, like: Any) -> None:
        self.on_device = is_device_array(like)
        self.library = _library(like) if self.on_device else "numpy"
        self._place: Any = None  # PyTorch's word for the device
        if self.library == "torch":
            self._place = like.device
            current = 0 if SIMULATED else cuda.get_current_device().id
            if like.device.index != current:
                raise ValueError(
                    f"x must be on the current device cuda:{current}, got {like.device}: choose it "
                    "by numba.cuda.select_device before the first use"
                )
        self.stream = self._stream_of(like)

    def _stream_of(self, like: Any) -> Any:
        pointer = 0
        if not self.on_device or SIMULATED:
            return default_stream()
        if self.library == "torch":
            torch = sys.modules["torch"]
            pointer = torch.cuda.current_stream(like.device).cuda_stream
        elif self.library == "cupy":
            pointer = sys.modules["cupy"].cuda.get_current_stream().ptr
        elif hasattr(like, "__cuda_array_interface__"):
            pointer = like.__cuda_array_interface__.get("stream") or 0
        # 0, 1 and 2 name default streams, of which the first two are the same one.
        if pointer == 2:
            return cuda.per_thread_default_stream()
        return cuda.external_stream(pointer) if pointer > 2 else default_stream()

    def take(self, name: str, value: Any, shape: Sequence[Axis]) -> Any:
        """Return an array of the caller's on the device, float32, without a copy if it is there.

        Raises
        ------
        ValueError, TypeError
            If it has the wrong shape or dtype, or lies on the device but not contiguous.
        """
        if not is_device_array(value):
            return self.upload(real_array(name, value, shape))
        if _library(value) == "torch":
            value = value.detach()
        if hasattr(value, "__cuda_ndarray__"):
            array = value
        elif hasattr(value, "__cuda_array_interface__"):
            array = cuda.as_cuda_array(value, sync=False)
        else:
            array = cuda.as_cuda_array(_from_dlpack(value), sync=False)
        if array.dtype != np.float32:
            raise TypeError(
                f"{name} must hold float32 on the device, got {array.dtype}: convert it there"
            )
        check_shape(name, tuple(array.shape), shape)
        if not array.is_c_contiguous():
            raise ValueError(
                f"{name} must be C-contiguous on the device, got strides {array.strides}: copy it "
                "there (x.contiguous() in PyTorch)"
            )
        return array

    def upload(self, array: np.ndarray) -> Any:
        """Return a copy on the device; an array without elements stands for itself."""
        with _out_of_memory(array.nbytes):
            if array.size == 0:
                return array
            return cuda.to_device(array, stream=self.stream)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Return a new device array that can be given to the caller."""
        with _out_of_memory(4 * int(np.prod(shape))):
            if self.library == "torch":
                made = sys.modules["torch"].empty(shape, device=self._place)
            elif self.library == "cupy":
                made = sys.modules["cupy"].empty(shape, np.float32)
            else:
                return cuda.device_array(shape, np.float32, stream=self.stream)
            return cuda.as_cuda_array(made, sync=False)

    def give(self, array: Any) -> Any:
        """Return a device array as the caller's own kind."""
        if not self.on_device:
            if isinstance(array, np.ndarray):
                return array
            host = array.copy_to_host(stream=self.stream)
            self.stream.synchronize()
            return host
        if self.library == "torch":
            return sys.modules["torch"].as_tensor(array, device=self._place)
        if self.library == "cupy":
            return sys.modules["cupy"].asarray(without_stream(array))
        return array


@contextmanager
def _out_of_memory(nbytes: int) -> Iterator[None]:
    """Turn the device's lack of memory into a ``MemoryError`` that says how much was asked for."""
    try:
        yield
    except Exception as error:
        if "OUT_OF_MEMORY" not in str(error).upper().replace(" ", "_"):
            raise
        raise MemoryError(
            f"the GPU has no {nbytes / 2**20:.0f} MiB left: use smaller batches, shorter pieces "
            "(segment=...), or device='cpu'"
        ) from error


class Memory:
    """Scratch arrays on the device, used again by what asks for the same shape.

    To allocate takes the driver longer than a small layer takes to run. Arrays are kept apart by
    stream, on which uses follow each other in order.
    """

    _MOST = 64  # arrays that wait

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[Any, ...], Any]] = []

    def take(self, shape: tuple[int, ...], stream: Any, dtype: Any = np.float32) -> Any:
        """Return an array that is nobody's, with any content."""
        key = (tuple(shape), np.dtype(dtype).str, stream_number(stream))
        for place, (other, array) in enumerate(self._waiting):
            if other == key:
                del self._waiting[place]
                return array
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            with _out_of_memory(nbytes):
                return cuda.device_array(shape, dtype, stream=stream)
        except MemoryError:
            if not self._waiting:
                raise
            self._waiting.clear()
        with _out_of_memory(nbytes):
            return cuda.device_array(shape, dtype, stream=stream)

    def give_back(self, array: Any, stream: Any) -> None:
        """Let the next use on the same stream have an array."""
        key = (tuple(array.shape), np.dtype(array.dtype).str, stream_number(stream))
        self._waiting.append((key, array))
        del self._waiting[: -self._MOST]

    @contextmanager
    def scratch(
        self, shape: tuple[int, ...], stream: Any, dtype: Any = np.float32
    ) -> Iterator[Any]:
        """Lend an array for the time of a block."""
        array = self.take(shape, stream, dtype)
        try:
            yield array
        finally:
            self.give_back(array, stream)


def stream_number(stream: Any) -> int:
    """Return the driver's number of a stream; 0 is the default one."""
    handle = getattr(stream, "handle", 0)
    return int(getattr(handle, "value", handle) or 0)
