"""Named parameters in one flat vector, the base of everything that can be trained."""

from __future__ import annotations

import copy
import itertools
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from .embedding.c_source import CSource
    from .embedding.callbacks import CFunction
    from .embedding.streaming import Stream
    from .jit import JitHandle

__all__ = ["EditableParameters", "Gradients", "Module", "Shapes", "split", "starts_of"]

Shapes = Mapping[str, tuple[int, ...]]


def starts_of(shapes: Shapes) -> list[int]:
    """Return where each parameter starts in the flat vector, and at last its size."""
    return list(itertools.accumulate(map(math.prod, shapes.values()), initial=0))


def split(vector: np.ndarray, shapes: Shapes) -> dict[str, np.ndarray]:
    """Return views of `vector` by name, one after the other."""
    bounds = itertools.pairwise(starts_of(shapes))
    return {
        name: vector[start:end].reshape(shape)
        for (name, shape), (start, end) in zip(shapes.items(), bounds, strict=True)
    }


class Gradients:
    """The gradients that a backward pass gives.

    Attributes
    ----------
    input : ndarray or None
        With respect to the input, in its shape; None where it was not asked for.
    initial_state : ndarray, pair of ndarray, or None
        With respect to the initial state, in its structure and shape; None for layers without.
    parameters : mapping of str to ndarray
        With respect to each parameter: views of `parameter_vector`.
    parameter_vector : ndarray
        All of them in one flat float32 vector, in the order of the module's own.
    states : ndarray, pair of ndarray, or None
        With respect to the state after each step, (layers * directions, batch, time, hidden_size)
        each; None where it was not asked for.
    """

    __slots__ = ("_shapes", "_views", "initial_state", "input", "parameter_vector", "states")

    def __init__(
        self,
        input: np.ndarray | None,
        initial_state: Any,
        parameter_vector: np.ndarray,
        shapes: Shapes,
        states: Any = None,
    ) -> None:
        self.input = input
        self.initial_state = initial_state
        self.parameter_vector = parameter_vector
        self.states = states
        self._shapes = shapes
        self._views: dict[str, np.ndarray] | None = None

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """With respect to each parameter: views of :attr:`parameter_vector`."""
        if self._views is None:  # optimisers never ask for them
            self._views = split(self.parameter_vector, self._shapes)
        return self._views


class EditableParameters(dict[str, np.ndarray]):
    """Writable views of a module's parameters by name; `vector` is the flat vector behind them."""

    def __init__(self, vector: np.ndarray, shapes: Shapes) -> None:
        super().__init__(split(vector, shapes))
        self.vector = vector


class Module:
    """Parameters by name in one flat vector, with the doors through which they change.

    Parameters
    ----------
    shapes : mapping of str to tuple
        The shape of each parameter, in order.
    """

    #: Whether optimisers change the parameters.
    trainable = True
    _program: Any = None  # see fastgates.embedding.program

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = dict(shapes)
        self._vector = np.zeros(sum(math.prod(s) for s in shapes.values()), np.float32)
        self._version = 0  # counts changes, so that packed weights know when they are stale
        self._device = "cpu"
        self._on_device: Any = None  # what the device's backend keeps of the module
        self._owner: Any = None  # a weak reference to the module whose vector this one's is part of

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_on_device": None, "_program": None, "_owner": None}

    def __copy__(self) -> Self:
        # One that shared the vector would not learn of changes through the other.
        return copy.deepcopy(self)

    def _belong_to(self, owner: Module, vector: np.ndarray) -> None:
        """Let the parameters be a part of the owner's vector from now on."""
        self._bind(vector)
        self._owner = weakref.ref(owner)

    def _check_parts(self, parts: Iterable[Module]) -> None:
        """Raise where a part was given to another module since: this one would not change it."""
        for part in parts:
            owner = part._owner()
            if owner is not self:
                another = "module" if owner is None else type(owner).__name__
                raise RuntimeError(
                    f"{part!r} was given to another {another} since, and is no longer part of this "
                    f"{type(self).__name__}: give each its own, by copy.deepcopy(...)"
                )

    @property
    def device(self) -> str:
        """Where the passes run: "cpu" or "cuda"."""
        return self._device

    def _followers(self) -> Iterable[Module]:
        """Return the modules that go to a device with this one."""
        return ()

    def to(self, device: str) -> Self:
        """Run the passes on another device from now on.

        The parameters stay where they are, so ``state_dict``, files and optimisers go on as before;
        a GPU gets a copy after each change.

        Parameters
        ----------
        device : {"cpu", "cuda"}

        Returns
        -------
        Module
            This module, as in PyTorch.

        Raises
        ------
        ValueError
            If there is no such device.
        MissingPackageError, RuntimeError
            If a package or a GPU that it needs is absent; the message says what to install.
        """
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
        if device == "cuda":
            from . import cuda

            cuda.check()
        for module in self._followers():
            module.to(device)
        self._device, self._on_device = device, None
        return self

    def _bind(self, vector: np.ndarray) -> None:
        """Let the parameters live in `vector`, which holds their values."""
        self._vector = vector
        self._changed()

    def _changed(self) -> None:
        """Take note that parameters have changed."""
        self._version += 1

    def _check_tape(self, tape: Any, kind: type[Any]) -> None:
        """Check that a tape is this module's, was not used before, and fits the parameters."""
        if not isinstance(tape, kind):
            raise TypeError(f"tape must be what forward returned last, got {type(tape).__name__}")
        if tape.owner is not self:
            raise ValueError(f"tape must come from this layer's forward, got one of {tape.owner!r}")
        if tape.used:
            raise RuntimeError("this tape was used before: call forward again for a new one")
        if tape.version != self._version:
            raise RuntimeError(
                "parameters changed since the forward pass: call forward again for a new tape"
            )

    @property
    def parameter_vector(self) -> np.ndarray:
        """The flat float32 vector of all parameters, read-only."""
        view = self._vector.view()
        view.flags.writeable = False
        return view

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """The parameters by name, as read-only views of :attr:`parameter_vector`."""
        return MappingProxyType(split(self.parameter_vector, self._shapes))

    @contextmanager
    def edit_parameters(self) -> Iterator[EditableParameters]:
        """Open the parameters for changes by hand; they take effect when the block ends.

        Yields
        ------
        EditableParameters
            A dict of writable views by name, with the flat vector as its attribute ``vector``.

        Examples
        --------
        >>> import fastgates as fg
        >>> layer = fg.GRU(3, 8, seed=0)
        >>> with layer.edit_parameters() as parameters:
        ...     parameters["bias_hh_l0"][8:16] = 1.0
        """
        # Views of a view, so that they can be closed when the block ends.
        parameters = EditableParameters(self._vector.view(), self._shapes)
        try:
            yield parameters
        finally:
            for view in (parameters.vector, *parameters.values()):
                view.flags.writeable = False
            self._changed()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters by name."""
        return {name: value.copy() for name, value in self.parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set all parameters from a mapping of names to arrays (or tensors on the CPU).

        Parameters
        ----------
        state_dict : mapping of str to array_like
            An entry for each parameter, in its shape; converted to float32.

        Raises
        ------
        ValueError, TypeError
            If entries are missing or unknown, or an entry's shape or dtype is wrong. Nothing is
            changed.
        """
        missing = [name for name in self._shapes if name not in state_dict]
        unknown = [name for name in state_dict if name not in self._shapes]
        if missing or unknown:
            raise ValueError(
                f"state_dict must hold exactly {list(self._shapes)}: missing {missing}, "
                f"unknown {unknown}"
            )
        values = {}
        for name, shape in self._shapes.items():
            value = np.asarray(state_dict[name])
            if value.dtype.kind not in "fiub":
                raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}")
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
            values[name] = value
        with self.edit_parameters() as parameters:
            for name, value in values.items():
                parameters[name][...] = value

    # -- Inside other programs --------------------------------------------------------------------

    def stream(self, batch_size: int = 1) -> Stream:
        """Return a stream: the model fed one step of time after the other.

        Parameters
        ----------
        batch_size : int
            Sequences that advance together.

        Returns
        -------
        Stream
            With the parameters as they are now.

        Raises
        ------
        ValueError, TypeError
            If a layer is bidirectional or goes in reverse, an initial state of the
            model's own would be lost, or `batch_size` is not a positive integer.
        """
        from .embedding.program import program_of
        from .embedding.streaming import Stream

        return Stream(program_of(self), batch_size)

    def jit_handle(self) -> JitHandle:
        """Return the model as plain data for ``@njit`` code, see :mod:`fastgates.jit`.

        Returns
        -------
        JitHandle
            With the parameters as they are now.

        Raises
        ------
        ValueError
            If a layer is bidirectional or goes in reverse, or an initial state of the model's own
            would be lost.
        """
        from .jit import handle_of

        return handle_of(self)

    def cfunc(self) -> CFunction:
        """Return the model as a C function pointer with its user data, and callbacks for SciPy.

        Returns
        -------
        CFunction
            With the parameters as they are now.

        Raises
        ------
        ValueError
            If a layer is bidirectional or goes in reverse, or an initial state of the model's own
            would be lost.
        """
        from .embedding.callbacks import CFunction
        from .embedding.program import program_of

        return CFunction(program_of(self))

    def to_c(self, name: str = "model", *, scalar: bool = False) -> CSource:
        """Return the model as C99 source: two files without malloc, globals or libm.

        Results differ from those of the model in the last digits only, by less than 1e-6 of the
        largest output.

        Parameters
        ----------
        name : str
            What the files and all public names begin with.
        scalar : bool
            Whether to write plain C99 for any compiler, without padding. By default GCC's vector
            extension is used, which clang knows too: far faster.

        Returns
        -------
        CSource
            With ``files``, ``report``, and ``write(directory)``.

        Raises
        ------
        ValueError
            If a layer is bidirectional or goes in reverse, an initial state of the
            model's own would be lost, a parameter is not finite, or `name` no C identifier.
        """
        from .embedding.c_source import to_c

        return to_c(self, name, scalar=scalar)
