"""From modules to a program: what streams, compiled code and C callbacks share.

See :mod:`fastgates.engine.step` for what a program is. It holds the parameters as they are when it
is made; a model keeps its program until its parameters change, so that all streams, handles and
callbacks made of the same parameters share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import cells
from .._jit import STAMP
from .._parameters import Module
from .._simd import LANES
from ..dense import Dense
from ..engine import step
from ..engine.call import address, aligned, aligned_empty
from ..engine.pack import n_blocks_of, pack_affine
from ..layers import Recurrent
from ..sequential import Scaling, Sequential, deployed

__all__ = ["LayerPlace", "Program", "flat_modules", "program_of", "round_up"]

_LINE = 16  # floats of a cache line
_PACKED = ("bias", "unit_constant", "input_panel", "panel", "panel_2")


class LayerPlace(NamedTuple):
    """Where the states of one layer lie in a row: state n at ``place + n * width``."""

    place: int
    width: int


@dataclass(frozen=True, eq=False)
class Program:
    """A model as :func:`fastgates.engine.step.run` interprets it.

    Attributes
    ----------
    numbers : ndarray of int64
        Header and records.
    weights : ndarray of float32
        Packed, from a cache line on.
    recurrent : tuple of Recurrent
        The recurrent layers, in order.
    layers : tuple of tuple of LayerPlace
        For each of them where the states of its stacked layers are.
    is_sequential : bool
        Whether states are a tuple with an entry for each recurrent layer.
    work : int
        Multiply-adds of a step of one row.
    kinds : tuple of str
        Of each module, for :func:`kernel_address`.
    """

    numbers: np.ndarray
    weights: np.ndarray
    recurrent: tuple[Recurrent, ...]
    layers: tuple[tuple[LayerPlace, ...], ...]
    is_sequential: bool
    work: int
    kinds: tuple[str, ...]

    def __reduce__(self) -> Any:
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return _rebuild, (STAMP, LANES, *values)

    def __deepcopy__(self, memo: Any) -> Program:
        return self  # nothing in it changes

    @property
    def input_size(self) -> int:
        """Features of the input."""
        return int(self.numbers[step.INPUTS])

    @property
    def output_size(self) -> int:
        """Features of the output."""
        return int(self.numbers[step.OUTPUTS])

    @property
    def row(self) -> int:
        """Floats of a row of states and scratch."""
        return int(self.numbers[step.ROW])

    def new_rows(self, n_rows: int) -> np.ndarray:
        """Return rows in which all states are 0."""
        rows = aligned_empty((n_rows, self.row))
        rows[...] = 0
        return rows

    def write_state(self, state: Any, rows: np.ndarray) -> None:
        """Put a state, as the model takes it, into rows; None stands for zeros.

        Raises
        ------
        ValueError, TypeError
            If it has the wrong structure, shape or dtype.
        """
        if not self.is_sequential:
            states = [state] * len(self.recurrent)
        elif state is None:
            states = [None] * len(self.recurrent)
        elif isinstance(state, list | tuple) and len(state) == len(self.recurrent):
            states = list(state)
        else:
            raise ValueError(
                f"state must be a list of {len(self.recurrent)} states, one for each recurrent "
                f"layer, got {type(state).__name__}"
            )
        checked = [
            layer._states_in("state", part, len(rows))
            for layer, part in zip(self.recurrent, states, strict=True)
        ]
        rows[...] = 0
        for layer, places, part in zip(self.recurrent, self.layers, checked, strict=True):
            if part is None:
                continue
            for index, (place, width) in enumerate(places):
                for n in range(len(part)):
                    start = place + n * width
                    rows[:, start : start + layer.hidden_size] = part[n, index]

    def read_state(self, rows: np.ndarray) -> Any:
        """Return the state that rows hold, as the model gives it: copies."""
        states = []
        for layer, places in zip(self.recurrent, self.layers, strict=True):
            shape = (len(layer.cell.states), len(places), len(rows), layer.hidden_size)
            stacked = np.empty(shape, np.float32)
            for index, (place, width) in enumerate(places):
                for n in range(len(stacked)):
                    start = place + n * width
                    stacked[n, index] = rows[:, start : start + layer.hidden_size]
            states.append(layer._states_out(stacked))
        if self.is_sequential:
            return tuple(states)
        return states[0] if states else None


def kernel_address(kind: str) -> int:
    """Return the address of the kernel for a kind of module.

    Raises
    ------
    ValueError
        If it is a cell that is not registered.
    """
    if kind == "dense":
        return step.dense_address()
    if kind == "scaling":
        return step.scaling_address()
    return step.cell_address(cells.get(kind.removeprefix(_CELL)))


_CELL = "cell "


def rebound(numbers: np.ndarray, kinds: tuple[str, ...]) -> np.ndarray:
    """Return the numbers of a program of another process with this process's addresses."""
    numbers = numbers.copy()
    numbers[step.TOKEN_PLACE] = step.TOKEN
    numbers[step.MULTIPLY] = step.prepare()
    kernels = numbers[step.N_HEADER + step.KERNEL :: step.N_RECORD]
    kernels[...] = [kernel_address(kind) for kind in kinds]
    numbers.flags.writeable = False
    return numbers


def check_origin(stamp: int, lanes: int) -> None:
    """Raise where packed weights were made by other sources, or for another width."""
    if (stamp, lanes) != (STAMP, LANES):
        raise RuntimeError(
            "what was pickled holds weights packed by another version of fastgates or for another "
            f"SIMD width ({lanes} lanes, here {LANES}): pickle the model and make it anew"
        )


def _rebuild(stamp: int, lanes: int, numbers: np.ndarray, weights: np.ndarray, *rest: Any) -> Any:
    check_origin(stamp, lanes)
    weights = aligned(weights)
    weights.flags.writeable = False
    return Program(rebound(numbers, rest[-1]), weights, *rest)


def flat_modules(model: Module) -> tuple[Any, ...]:
    """Return the modules of a model in order: layers, dense layers, scalings.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If it has a direction that runs from the end, or a cell that is not registered.
    """
    modules = model.modules if isinstance(model, Sequential) else (model,)
    for module in modules:
        if not isinstance(module, Recurrent | Dense | Scaling):
            raise TypeError(
                "model must be a recurrent layer, a Dense, a Scaling or a Sequential, got "
                f"{type(module).__name__}"
            )
        if not isinstance(module, Recurrent):
            continue
        if module.bidirectional:
            raise ValueError(
                f"{module!r} is bidirectional: its second direction starts at the end of a "
                "sequence, which a step at a time does not know. Train it with "
                "bidirectional=False, or call it on whole sequences"
            )
        if module.reverse:
            raise ValueError(
                f"{module!r} runs from the end of a sequence, which a step at a time does not "
                "know. Call it on whole sequences"
            )
        if cells.registered().get(module.cell.name) is not module.cell:
            raise ValueError(
                f"the cell {module.cell.name!r} must be registered: fastgates.cells.register(cell)"
            )
    return modules


def program_of(model: Module) -> Program:
    """Return the program of a model's parameters as they are now.

    Raises
    ------
    TypeError, ValueError
        See :func:`flat_modules`.
    """
    model = deployed(model)
    modules = flat_modules(model)
    versions = tuple(module._version for module in modules)
    known = model._program
    if known is None or known[0] != versions:
        known = (versions, _Builder(modules).build(isinstance(model, Sequential)))
        model._program = known
    program: Program = known[1]
    return program


def round_up(size: int, unit: int) -> int:
    """Return the next multiple of a unit."""
    return -(-size // unit) * unit


class _Builder:
    """Collects records and weights, and gives out places in a row."""

    def __init__(self, modules: tuple[Any, ...]) -> None:
        self._modules = modules
        self._weights: list[np.ndarray] = []
        self._n_weights = 0
        self._records: list[dict[str, Any]] = []
        self._work = 0

    def _add(self, *arrays: np.ndarray) -> list[int]:
        """Add arrays to the weights, each at a cache line; return their places."""
        places = []
        for array in arrays:
            places.append(self._n_weights)
            padded = np.zeros(round_up(array.size, _LINE), np.float32)
            padded[: array.size] = array.ravel()
            self._weights.append(padded)
            self._n_weights += padded.size
        return places

    def _layers(self, module: Recurrent) -> Iterator[dict[str, Any]]:
        cell = module.cell
        stages = [count for _, count in cell.stages]
        for direction, prepared in zip(module._directions, module._prepared(), strict=True):
            # The weights as the layer itself has packed them: addresses become places.
            packed, *others = prepared.arrays
            arrays = [packed[: direction.forward_floats], *others]  # not what BPTT needs
            addresses = dict(zip(_PACKED, prepared.addresses, strict=False))
            if direction.settings is not None:
                arrays.append(direction.settings)
                addresses["settings"] = address(direction.settings)
            places = {}
            for array, place in zip(arrays, self._add(*arrays), strict=True):
                for name, at in addresses.items():
                    offset = at - address(array)
                    if 0 <= offset < array.nbytes:
                        places[name] = place + offset // 4
            self._work += (
                len(cell.gates) * module.hidden_size * (direction.input_size + module.hidden_size)
            )
            yield {
                "kind": _CELL + cell.name,
                "input_size": direction.input_size,
                "output_size": module.hidden_size,
                "n_blocks": direction.n_blocks,
                "n_states": len(cell.states),
                "first_input": cell.first_input_slot,
                "n_inputs": len(cell.gates),
                "n_stage": stages[0],
                "n_stage_2": sum(stages[1:]),
                "slots": len(cell.slots),  # how many; their place follows
                **places,
            }

    def _dense(self, module: Dense) -> dict[str, Any]:
        values = module.parameters
        panel, bias = pack_affine(values["weight"], values.get("bias"))
        panel_at, bias_at = self._add(panel, bias)
        self._work += module.input_size * module.output_size
        return {
            "kind": "dense",
            "input_size": module.input_size,
            "output_size": module.output_size,
            "n_blocks": n_blocks_of(module.output_size),
            "activation": step.ACTIVATIONS.index(module.activation),
            "slots": 1,
            "bias": bias_at,
            "input_panel": panel_at,
        }

    def _scaling(self, module: Scaling) -> dict[str, Any]:
        values = module.parameters
        width = round_up(module.size, LANES)
        mean, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
        mean[: module.size], scale[: module.size] = values["mean"], values["scale"]
        mean_at, scale_at = self._add(mean, scale)
        return {
            "kind": "scaling",
            "input_size": module.size,
            "output_size": module.size,
            "n_blocks": n_blocks_of(module.size),
            "activation": int(module.inverse),
            "slots": 0,
            "bias": mean_at,
            "unit_constant": scale_at,
        }

    def build(self, is_sequential: bool) -> Program:
        recurrent, layers = [], []
        end = 0  # of the states
        for module in self._modules:
            if isinstance(module, Recurrent):
                places = []
                for record in self._layers(module):
                    width = record["n_blocks"] * LANES
                    record["state"] = end
                    places.append(LayerPlace(end, width))
                    end += round_up(len(module.cell.states) * width, _LINE)
                    self._records.append(record)
                recurrent.append(module)
                layers.append(tuple(places))
            else:
                add = self._dense if isinstance(module, Dense) else self._scaling
                self._records.append(add(module))
        n_states = end
        # Scratch: one for the slots of all modules, one for sources, and the outputs of modules
        # that are not states.
        slots_at = n_states
        widths = [record["n_blocks"] * LANES for record in self._records]
        n_slots = (r["slots"] * width for r, width in zip(self._records, widths, strict=True))
        source_at = slots_at + round_up(max(n_slots), _LINE)
        end = source_at + round_up(max(widths), _LINE)
        place = -1
        for record, width in zip(self._records, widths, strict=True):
            record["slots"], record["source"], record["input"] = slots_at, source_at, place
            if record is self._records[-1]:
                record["output"] = -1
            elif "state" in record:
                place, record["output"] = record["state"], -2
            else:
                place = record["output"] = end
                end += round_up(width, _LINE)
        # Rows at multiples of 1 KiB would share few sets of the cache.
        row = end + _LINE if end % 256 == 0 else end
        size = step.N_HEADER + len(self._records) * step.N_RECORD
        header = (
            step.TOKEN,
            len(self._records),
            self._modules[0].input_size,
            self._modules[-1].output_size,
            row,
            n_states,
            size,
            self._n_weights,
            step.prepare(),
        )
        for record in self._records:
            record["kernel"] = kernel_address(record["kind"])
        numbers = np.array(
            [*header, *(r.get(name, 0) for r in self._records for name in step.FIELDS)], np.int64
        )
        kinds = tuple(record["kind"] for record in self._records)
        weights = aligned(np.concatenate(self._weights))
        numbers.flags.writeable = weights.flags.writeable = False
        return Program(
            numbers, weights, tuple(recurrent), tuple(layers), is_sequential, self._work, kinds
        )
