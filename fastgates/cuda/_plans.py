"""How a recurrent layer is laid on the multiprocessors of a GPU: sizes, worked out in plain Python.

A *block* owns all slots of `units` hidden units for some sequences, over all time steps. Up to a
hidden size of 128 it owns all units, and no two blocks ever wait for each other. Above, `slices`
blocks share the units of a *group* of sequences and meet once a step at a barrier of the grid.

A product of a step multiplies a vector (the state, or the gradients of the slots on the way back)
with a matrix whose columns lie on the chip. Threads are `parts` x `lanes`: a thread holds
`columns` columns that lie `lanes` apart, for the part of the inner sum that falls to it, in *quads*
of four numbers dealt out in turn, so that one load of 16 bytes from shared memory serves
4 x `columns` multiply-adds of each sequence. The first quads of a thread live in its registers
from the first step to the last; what does not fit is read through the first-level cache. The
sums of the parts meet in shared memory, where they are added in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LARGEST_ON_ONE_BLOCK", "Plan", "Product", "plan_pass"]

LARGEST_ON_ONE_BLOCK = 128  # hidden units

REGISTERS_OF_A_BLOCK = 65536  # of every architecture from sm_70 on
MOST_REGISTERS = 255  # of a thread
SHARED_FLOATS = 48 * 1024 // 4 - 64  # what a block may have without asking, and a little air

# Registers that a thread needs for anything but weights and sums, as ptxas counted them: a block on
# its own, of one stage and of two, and blocks that wait for each other.
_OTHER_REGISTERS = ((84, 104), (140, 170))
_WISHED_WEIGHTS = 64  # of a thread: more parts than that takes would only cost additions
_MOST_WEIGHTS = 160  # of a thread, where units are shared out so that all weights fit
_WISHED_THREADS = 256


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@dataclass(frozen=True)
class Product:
    """One product of a step: `inner` numbers times ``columns * lanes`` columns.

    Attributes
    ----------
    inner : int
        Numbers of the vector.
    columns, lanes, parts : int
        Columns of a thread, and the threads of a block as ``parts * lanes``.
    quads, held : int
        Quads of the inner sum that are a thread's, and how many of them stay in registers.
    """

    inner: int
    columns: int
    lanes: int
    parts: int
    quads: int
    held: int

    @property
    def vector(self) -> int:
        """Numbers of the padded vector."""
        return 4 * self.quads * self.parts

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.lanes * self.parts

    @property
    def weights(self) -> int:
        """Weights of a thread."""
        return 4 * self.quads * self.columns

    @property
    def block_weights(self) -> int:
        """Packed weights of a block."""
        return self.weights * self.threads


@dataclass(frozen=True)
class Plan:
    """How one pass of one layer is laid out.

    Attributes
    ----------
    units, slices : int
        Hidden units of a block, and the blocks that share all of them.
    rows : int
        Sequences that a block takes through a step at once.
    most_tiles : int
        How many times `rows` sequences a block may own at most.
    stages : tuple of Product
        The products of a step, in the order in which they run.
    threads, registers : int
        Of a block, and the limit of a thread.
    shared : int
        Floats of shared memory of a block with `most_tiles`.
    kept : int
        Floats of shared memory for each sequence and unit of a block.
    together : bool
        Whether blocks wait for each other at each step: as soon as there are several slices.
    """

    units: int
    slices: int
    rows: int
    most_tiles: int
    stages: tuple[Product, ...]
    threads: int
    registers: int
    shared: int
    kept: int
    together: bool

    @property
    def largest_vector(self) -> int:
        """Numbers of the longest padded vector."""
        return max(stage.vector for stage in self.stages)

    @property
    def partials(self) -> int:
        """Floats of shared memory for the sums of the parts."""
        return self.rows * self.threads * max(stage.columns for stage in self.stages)


def _product(inner: int, columns: int, lanes: int, parts: int) -> Product:
    quads = -(-inner // (4 * parts))
    return Product(inner, columns, lanes, parts, quads, 0)


def _held(
    stages: tuple[Product, ...], rows: int, registers: int, together: bool
) -> tuple[Product, ...]:
    """Share the registers for weights out among the products, the first ones first."""
    sums = rows * max(stage.columns for stage in stages)
    free = registers - _OTHER_REGISTERS[together][len(stages) - 1] - sums
    result = []
    for stage in stages:
        held = max(0, min(stage.quads, free // (4 * stage.columns)))
        free -= 4 * stage.columns * held
        result.append(
            Product(stage.inner, stage.columns, stage.lanes, stage.parts, stage.quads, held)
        )
    return tuple(result)


def plan_pass(
    hidden: int,
    stages: tuple[int, ...],
    states: int,
    *,
    transposed: bool,
    batch: int,
    processors: int,
    one_block: bool = False,
    unit_weights: int = 0,
) -> Plan:
    """Choose how a pass of one direction of a layer runs.

    Parameters
    ----------
    hidden : int
        Hidden size.
    stages : tuple of int
        Slots of each stage, in the order of the forward pass.
    states : int
        State variables.
    transposed : bool
        Whether it is the way back, whose products take the gradients of the slots and give those
        of the units.
    batch, processors : int
        Sequences, and the multiprocessors of the device.
    one_block : bool
        Whether a block must own all units, whatever the hidden size (in Numba's simulator one
        block runs after the other).

    unit_weights : int
        Weights of each unit on its own states, whose gradients are collected on the way back.

    Raises
    ------
    ValueError
        If the hidden size is too large for a block's shared memory.
    """
    slots = sum(stages)
    kept = 2 * states if transposed else states
    if len(stages) == 2:  # slots wait for the second stage, on the way back old states too
        kept += slots + states if transposed else slots
    if transposed:
        kept += unit_weights
    single = one_block or hidden <= LARGEST_ON_ONE_BLOCK
    units = hidden if single else _shared_units(hidden, stages, processors)
    plan = None
    for rows in (1, 2, 4):
        wider = _lay(hidden, units, stages, rows, kept, transposed)
        if wider is None or (plan is not None and wider.threads > _WISHED_THREADS):
            break
        plan = wider
        at_once = processors * _blocks_at_once(plan) if single else processors // plan.slices
        if batch <= rows * at_once:
            break
    if plan is None:
        raise ValueError(
            f"hidden_size must fit the shared memory of a multiprocessor, got {hidden}: "
            "use device='cpu'"
        )
    return plan


def _blocks_at_once(plan: Plan) -> int:
    """Return how many blocks run on one multiprocessor at the same time, cautiously."""
    registers = min(plan.registers, 200)
    return max(1, min(8, REGISTERS_OF_A_BLOCK // (registers * _up(plan.threads, 32))))


def _shared_units(hidden: int, stages: tuple[int, ...], processors: int) -> int:
    """Return how many units a block owns where several share them: all weights in registers."""
    slots = sum(stages)
    units = 64
    while units > 8 and units * slots * hidden > _MOST_WEIGHTS * _WISHED_THREADS:
        units //= 2
    return max(units, _up(-(-hidden // processors), 4))


def _lay(
    hidden: int,
    units: int,
    stages: tuple[int, ...],
    rows: int,
    kept: int,
    transposed: bool,
) -> Plan | None:
    """Return the plan for so many units and rows of a block, or None if they do not fit."""
    slices = -(-hidden // units)
    if transposed:
        # Each thread takes a few units, so that a load of the vector serves several columns.
        columns = 4 if units >= 16 else 2 if units >= 4 else 1
        lanes = -(-units // columns)
        shapes = [(count * hidden, columns) for count in reversed(stages)]
    else:
        lanes = units
        shapes = [(hidden, count) for count in stages]
    parts = _parts(shapes, lanes, rows * units)
    if parts is None:
        return None
    threads = parts * lanes
    registers = min(MOST_REGISTERS, REGISTERS_OF_A_BLOCK // _up(threads, 32) // 8 * 8)
    products = tuple(_product(inner, count, lanes, parts) for inner, count in shapes)
    products = _held(products, rows, registers, slices > 1)
    plan = Plan(units, slices, rows, 1, products, threads, registers, 0, kept, slices > 1)
    fixed = len(stages) * rows * plan.largest_vector + plan.partials
    tile = rows * units * kept
    if fixed + tile > SHARED_FLOATS:
        return None
    tiles = 1 if slices == 1 else max(1, min(16, (SHARED_FLOATS - fixed) // tile))
    shared = fixed + tiles * tile
    return Plan(units, slices, rows, tiles, products, threads, registers, shared, kept, slices > 1)


def _parts(shapes: list[tuple[int, int]], lanes: int, roles: int) -> int | None:
    """Return into how many parts the inner sums are cut, a power of two.

    There must be a thread for each of the `roles`, the units of all rows of a block.
    """
    best = None
    parts = 1
    while parts * lanes <= 1024:
        threads = parts * lanes
        if threads >= roles:
            weights = sum(4 * -(-inner // (4 * parts)) * columns for inner, columns in shapes)
            useful = 4 * parts <= max(inner for inner, _ in shapes)
            if best is not None and (threads > _WISHED_THREADS or not useful):
                break
            best = parts
            if weights <= _WISHED_WEIGHTS:
                break
        parts *= 2
    return best
