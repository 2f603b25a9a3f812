"""One time step of a whole model: what streams, compiled code of users and C programs call.

A model is a *program*: an int64 array with a header and a record for each of its modules, and a
float32 array of packed weights. :func:`run` interprets it: for each module it calls the kernel of
its kind, whose address the record holds. The kernels of the cells are made of the same equations as
the passes over sequences, and every sum runs in the same order: the results are the same bits.

A *row* is one sequence of a batch. Its floats lie side by side: first its states, padded to whole
vectors, then scratch. The scratch of the first rows of a block serves all blocks, so what a large
batch touches is its states.

Compiled code of users reaches :func:`run` through a table with a name that the linker knows, so it
holds no address and may be cached on disk. Should it hold a program, because a handle was a global
variable when it was compiled, that program has another process's token, and is not run.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import re
import secrets
import zlib
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .._jit import INT0, STAMP, helper, kernel
from .._simd import (
    LANES,
    float_pointer,
    int_p,
    int_pointer,
    load,
    store,
)
from .._vecmath import relu, sigmoid, tanh
from .call import address
from .forward import load_row, store_row
from .linear import softmax_row
from .multiply import call_multiply, multiply_address, multiply_row
from .tuples import load_constants, load_vectors, store_vectors

if TYPE_CHECKING:
    from ..cells import Cell

__all__ = [
    "ACTIVATIONS",
    "ARGUMENTS",
    "FIELDS",
    "HEADER",
    "TOKEN",
    "call_kernel",
    "cell_address",
    "dense_address",
    "prepare",
    "quick_call",
    "quick_step",
    "run",
    "run_address",
    "run_again",
    "run_once",
    "run_rows",
    "scaling_address",
    "table",
]

# The header of a program, and the record of a module behind it. Places count floats.
HEADER = (
    "token",  # of the process that it was made in
    "n_modules",
    "input_size",
    "output_size",
    "row",  # floats of a row
    "n_states",  # floats of its states, which come first
    "size",  # of the program
    "n_weights",
    "multiply",  # address of the kernel that makes products of several rows
)
FIELDS = (
    "kernel",  # its address
    "input",  # place in a row of what the module takes, or -1: the input of the model
    "output",  # of what it gives, or -1: the output of the model, or -2: the state is it
    "input_size",
    "output_size",
    "n_blocks",  # vectors of output_size numbers
    "activation",  # of a dense layer, or 1 for an inverse scaling
    "n_states",
    "state",  # place of the states in a row, [state][Hp]
    "slots",  # place of scratch for the slots, [slot][Hp]
    "source",  # place of scratch for what a second stage multiplies
    "first_input",
    "n_inputs",
    "n_stage",
    "n_stage_2",
    # places in the weights
    "settings",
    "bias",
    "unit_constant",
    "input_panel",
    "panel",
    "panel_2",
)
TOKEN_PLACE, N_MODULES, INPUTS, OUTPUTS, ROW, STATES, SIZE, N_WEIGHTS, MULTIPLY = range(len(HEADER))
(
    KERNEL,
    INPUT,
    OUTPUT,
    INPUT_SIZE,
    OUTPUT_SIZE,
    N_BLOCKS,
    ACTIVATION,
    N_STATES,
    STATE,
    SLOTS,
    SOURCE,
    FIRST_INPUT,
    N_INPUTS,
    N_STAGE,
    N_STAGE_2,
    SETTINGS,
    BIAS,
    UNIT_CONSTANT,
    INPUT_PANEL,
    PANEL,
    PANEL_2,
) = range(len(FIELDS))
N_HEADER, N_RECORD = len(HEADER), len(FIELDS)

ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu", "softmax")
_TANH, _SIGMOID, _RELU, _SOFTMAX = (
    ACTIVATIONS.index(name) for name in ("tanh", "sigmoid", "relu", "softmax")
)
BLOCK_ROWS = 48  # of a batch, which share their scratch: a multiple of the rows of all tiles

# -- The table ------------------------------------------------------------------------------------

# Compiled code finds it by this name, in any process that has imported this module.
TABLE_SYMBOL = "fastgates_table"
TOKEN_AT, RUN_AT = 0, 1
TOKEN = secrets.randbits(62)  # of this process, and of those that it forks
OTHER_PROCESS = 2  # what `run` returns for another one's program


@ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p)
def _no_program(result: Any, failure: Any) -> int:
    """Stand in for `run` where no program was made in this process; it takes what that takes."""
    result[0] = OTHER_PROCESS
    return 0


_table = np.array([TOKEN, ctypes.cast(_no_program, ctypes.c_void_p).value], np.int64)

llvm.add_symbol(TABLE_SYMBOL, address(_table))


def call_address(builder: Any, at: Any, arguments: Any) -> Any:
    """Emit a call of a kernel of int64 arguments by its address; return its int64 result."""
    # Numba's own convention: a status is returned (these kernels cannot fail), and places for the
    # result and for an exception come first.
    integer, place = ir.IntType(64), ir.IntType(8).as_pointer().as_pointer()
    function_type = ir.FunctionType(
        ir.IntType(32), [integer.as_pointer(), place] + [integer] * len(arguments)
    )
    function = builder.inttoptr(at, function_type.as_pointer())
    result = cgutils.alloca_once(builder, integer)
    failure = cgutils.alloca_once(builder, ir.IntType(8).as_pointer())
    builder.call(function, [result, failure, *arguments])
    return builder.load(result)


def table_pointer(builder: Any) -> Any:
    """Emit a pointer to the table, also for code that comes from the disk."""
    found = builder.module.globals.get(TABLE_SYMBOL)
    return found or ir.GlobalVariable(builder.module, ir.IntType(64), TABLE_SYMBOL)


@intrinsic
def call_kernel(typingctx, at, arguments):  # type: ignore[no-untyped-def]
    """Call a kernel of int64 arguments by its address; return its int64 result."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        values = [builder.extract_value(args[1], i) for i in range(sig.args[1].count)]
        return call_address(builder, args[0], values)

    return types.int64(types.int64, arguments), codegen


@intrinsic
def table(typingctx):  # type: ignore[no-untyped-def]
    """Return a pointer to the table."""
    return int_p(), lambda context, builder, sig, args: table_pointer(builder)


# -- Products -------------------------------------------------------------------------------------


@helper
def _multiply_rows(multiply, n_rows, n_vectors, count, a, a_row, b, c, c_row, init, init_row):
    """Multiply rows of numbers with a panel; the sums start from vectors side by side."""
    if n_rows == 1:
        multiply_row(n_vectors, count, a, b, c, init, INT0 + 1, INT0, INT0)
    else:
        call_multiply(
            multiply,
            (n_rows, n_vectors, count),
            (a, INT0, a_row, INT0 + 1),
            (b, INT0),
            (c, INT0, c_row, INT0),
            (init, init_row, INT0 + LANES),
            INT0,
            (INT0 + 1, INT0),
        )


# -- Modules --------------------------------------------------------------------------------------


# What the kernel of a module takes, in one tuple of int64.
MODULE_ARGUMENTS = (
    "record",  # address of the module's record
    "weights",  # of the weights of the program
    "inputs",  # of the inputs
    "input_row",  # how many floats rows of them are apart
    "states",  # the same of the rows of states
    "row",
    "scratch",  # address of the row whose scratch is used first
    "output",  # and of the output, 0 where it is not wanted
    "output_row",
    "n_rows",
    "multiply",  # address of the kernel that makes products of several rows
)
_MODULE = types.UniTuple(types.int64, len(MODULE_ARGUMENTS))


@helper
def step_pass(arguments, equations, first_equations, slots, n_states, constants):
    """Run one step of one layer of a cell, for a block of rows.

    Parameters
    ----------
    arguments : tuple of int
        See MODULE_ARGUMENTS.
    equations, first_equations, slots, n_states, constants
        The cell's, see :func:`fastgates.engine.forward.forward_pass`.
    """
    (
        record,
        weights,
        inputs,
        input_row,
        states,
        row,
        scratch,
        output,
        output_row,
        n_rows,
        multiply,
    ) = arguments
    numbers = int_pointer(record)
    hidden, n_blocks = numbers[OUTPUT_SIZE], numbers[N_BLOCKS]
    width = n_blocks * LANES
    state_at = states + 4 * numbers[STATE]
    slots_at = scratch + 4 * numbers[SLOTS]
    source_at = scratch + 4 * numbers[SOURCE]
    pointer, state, sources = (
        float_pointer(slots_at),
        float_pointer(state_at),
        float_pointer(source_at),
    )
    units = float_pointer(weights + 4 * numbers[UNIT_CONSTANT])
    settings = float_pointer(weights + 4 * numbers[SETTINGS])
    # Slots without a product with the input take their bias, a sum of no terms; then those with;
    # then the stages of the product with the state are added. In a loop, the product is compiled
    # once.
    n_slots, count, a, a_row = numbers[FIRST_INPUT], INT0, inputs, input_row
    c, panel, init, init_row = slots_at, weights, weights + 4 * numbers[BIAS], INT0
    for part in range(4):
        _multiply_rows(
            multiply, n_rows, n_slots * n_blocks, count, a, a_row, panel, c, row, init, init_row
        )
        if part == 0:
            c += 4 * n_slots * width
            init += 4 * n_slots * width
            n_slots, count = numbers[N_INPUTS], numbers[INPUT_SIZE]
            panel = weights + 4 * numbers[INPUT_PANEL]
        elif part == 1:
            c, init, init_row = slots_at, slots_at, row
            n_slots, count, a, a_row = numbers[N_STAGE], hidden, state_at, row
            panel = weights + 4 * numbers[PANEL]
        elif first_equations is None:
            break
        elif part == 2:
            for i in range(n_rows):
                for k in range(0, width, LANES):
                    place = i * row + k
                    source, activated = first_equations(
                        load_vectors((), pointer, place, width, slots),
                        load_vectors((), state, place, width, n_states),
                        load_constants(settings, units, k, width, constants),
                    )
                    store(sources, place, source)
                    store_vectors((), activated, pointer, place, width)
            c = slots_at + 4 * numbers[N_STAGE] * width
            init = c
            n_slots, a = numbers[N_STAGE_2], source_at
            panel = weights + 4 * numbers[PANEL_2]
    result = float_pointer(output)
    for i in range(n_rows):
        for k in range(0, width, LANES):
            place = i * row + k
            new_states, _ = equations(
                load_vectors((), pointer, place, width, slots),
                load_vectors((), state, place, width, n_states),
                load_constants(settings, units, k, width, constants),
            )
            store_vectors((), new_states, state, place, width)
            if output != 0:
                store_row(result, i * output_row, k, hidden, new_states[0])


@kernel
def step_dense(arguments, stamp=STAMP):
    """Run a dense layer."""
    record, weights, inputs, input_row, _, row, scratch, output, output_row, n_rows, multiply = (
        arguments
    )
    numbers = int_pointer(record)
    outputs, n_blocks, activation = numbers[OUTPUT_SIZE], numbers[N_BLOCKS], numbers[ACTIVATION]
    sums = scratch + 4 * numbers[SLOTS]
    _multiply_rows(
        multiply,
        n_rows,
        n_blocks,
        numbers[INPUT_SIZE],
        inputs,
        input_row,
        weights + 4 * numbers[INPUT_PANEL],
        sums,
        row,
        weights + 4 * numbers[BIAS],
        INT0,
    )
    source, result = float_pointer(sums), float_pointer(output)
    for i in range(n_rows):
        if activation == _SOFTMAX:
            softmax_row(source, i * row, outputs)
        for k in range(0, n_blocks * LANES, LANES):
            vector = load(source, i * row + k)
            if activation == _TANH:
                vector = tanh(vector)
            elif activation == _SIGMOID:
                vector = sigmoid(vector)
            elif activation == _RELU:
                vector = relu(vector)
            store_row(result, i * output_row, k, outputs, vector)
    return INT0


@kernel
def step_scaling(arguments, stamp=STAMP):
    """Run a scaling."""
    record, weights, inputs, input_row, _, _, _, output, output_row, n_rows, _ = arguments
    numbers = int_pointer(record)
    size, width = numbers[OUTPUT_SIZE], numbers[N_BLOCKS] * LANES
    mean = float_pointer(weights + 4 * numbers[BIAS])
    scale = float_pointer(weights + 4 * numbers[UNIT_CONSTANT])
    source, result = float_pointer(inputs), float_pointer(output)
    for i in range(n_rows):
        for k in range(0, width, LANES):
            x = load_row(source, i * input_row, k, size)
            if numbers[ACTIVATION] == 1:
                y = x * load(scale, k) + load(mean, k)
            else:
                y = (x - load(mean, k)) / load(scale, k)
            store_row(result, i * output_row, k, size, y)
    return INT0


# -- The kernels of the cells ---------------------------------------------------------------------


def _stamp_of(function: Any) -> int:
    """Return a hash over what a cell's equations are made of: the package, and their own file."""
    digest = hashlib.sha256(STAMP.to_bytes(8, "little"))
    try:
        with open(inspect.getfile(function.py_func), "rb") as file:
            digest.update(file.read())
    except (OSError, TypeError):  # typed into an interpreter
        code = function.py_func.__code__
        digest.update(code.co_code + repr((code.co_names, code.co_consts)).encode())
    return int.from_bytes(digest.digest()[:8], "little") >> 2


def _step_kernel(cell: Cell) -> Any:
    """Make the kernel of a cell from its equations.

    It is a closure, which the disk cache knows by the names of the equations and by its stamp.
    """
    equations, first_equations = cell.equations, cell.first_equations
    slots, n_states = (0,) * len(cell.slots), (0,) * len(cell.states)
    constants = (0,) * max(1, len(cell.unit_weights)) if cell.functions else None

    def step(arguments, stamp):
        step_pass(arguments, equations, first_equations, slots, n_states, constants)
        return INT0

    name = re.sub(r"\W", "_", cell.name)  # it becomes part of a file's name
    if name != cell.name:
        name += f"_{zlib.crc32(cell.name.encode()):x}"
    step.__qualname__ = step.__name__ = f"step_{name}"
    step.__defaults__ = (_stamp_of(equations),)
    return kernel(step)


@lru_cache(maxsize=1)
def prepare() -> int:
    """Compile or load what all programs need; return the address of the multiply kernel."""
    _table[RUN_AT] = run.address(types.UniTuple(types.int64, len(ARGUMENTS)))
    return multiply_address()


def run_address() -> int:
    """Return the address of :func:`run`, after :func:`prepare`."""
    return int(_table[RUN_AT])


@lru_cache(maxsize=1)
def quick_call() -> Any:
    """Return :func:`run_again` as a built-in function of the address and None, for the stamp.

    It is what Numba's dispatcher calls after it has looked at the types, which takes as long as a
    step of a small network.
    """
    return _entry(run_again, types.int64)


@lru_cache(maxsize=1)
def quick_step() -> Any:
    """Return :func:`run_once` in the same way; nothing but its callers checks what it is given."""
    vector = types.Array(types.float32, 1, "A")
    return _entry(run_once, types.int64, vector, vector)


def _entry(compiled_kernel: Any, *arguments: Any) -> Any:
    prepare()
    return compiled_kernel.compiled(*arguments).entry_point


@cache
def cell_address(cell: Cell) -> int:
    """Return the address of the kernel for steps of a cell."""
    return _step_kernel(cell).address(_MODULE)


@lru_cache(maxsize=1)
def dense_address() -> int:
    """Return the address of the kernel for dense layers."""
    return step_dense.address(_MODULE)


@lru_cache(maxsize=1)
def scaling_address() -> int:
    """Return the address of the kernel for scalings."""
    return step_scaling.address(_MODULE)


# -- The interpreter ------------------------------------------------------------------------------


@helper
def _place(place, outside, n_states, states, scratch):
    """Return the address of what is at a place of a row (see FIELDS); 0 where it is not wanted."""
    if place == -1:
        return outside
    if place == -2:
        return INT0
    if place < n_states:
        return states + 4 * place
    return scratch + 4 * place


# What `run` takes, in one tuple of int64.
ARGUMENTS = (
    "version",  # the caller's STAMP
    "token",  # the process's
    "program",  # addresses of both parts of the program
    "weights",
    "inputs",  # the address of the inputs, how many numbers of a row there are,
    "input_size",
    "input_row",  # and how many rows are apart, and steps
    "input_step",
    "states",
    "row",
    "output",
    "output_size",
    "output_row",
    "output_step",
    "n_rows",
    "n_steps",
)


@kernel
def run(arguments, stamp=STAMP):
    """Run a program for rows of a batch and steps of time.

    Returns
    -------
    int
        0, or, where nothing was done, 1 if the caller was compiled by another version of the
        package, 2 if the program is another process's, and 3, 4 or 5 if the inputs, the states or
        the output have the wrong size.
    """
    version, token, program, weights = arguments[:4]
    inputs, input_size, input_row, input_step, states, row = arguments[4:10]
    output, output_size, output_row, output_step, n_rows, n_steps = arguments[10:]
    numbers = int_pointer(program)
    if version != STAMP:
        return INT0 + 1
    if numbers[TOKEN_PLACE] != token:
        return INT0 + OTHER_PROCESS
    if input_size != numbers[INPUTS]:
        return INT0 + 3
    if row != numbers[ROW]:
        return INT0 + 4
    if output_size != numbers[OUTPUTS]:
        return INT0 + 5
    n_modules, n_states, multiply = numbers[N_MODULES], numbers[STATES], numbers[MULTIPLY]
    for begin in range(0, n_rows, BLOCK_ROWS):
        n_block = min(n_rows - begin, INT0 + BLOCK_ROWS)
        block = states + 4 * begin * row
        for step in range(n_steps):
            taken = inputs + 4 * (begin * input_row + step * input_step)
            given = output + 4 * (begin * output_row + step * output_step)
            for module in range(n_modules):
                first = N_HEADER + module * N_RECORD
                source, target = numbers[first + INPUT], numbers[first + OUTPUT]
                arguments = (
                    program + 8 * first,
                    weights,
                    _place(source, taken, n_states, block, states),
                    input_row if source == -1 else row,
                    block,
                    row,
                    states,
                    _place(target, given, n_states, block, states),
                    output_row if target == -1 else row,
                    n_block,
                    multiply,
                )
                call_kernel(numbers[first + KERNEL], arguments)
    return INT0


@kernel
def run_once(arguments, x, out, stamp=STAMP):
    """Call :func:`run` for one row and step from `x` to `out`: from Python, the quickest way.

    Returns
    -------
    int
        0, or -1 where nothing was done, since an array (float32, one axis) is not contiguous.
    """
    if x.strides[0] != 4 or out.strides[0] != 4:
        return INT0 - 1
    n = int_pointer(arguments)
    first = (n[0], n[1], n[2], n[3], x.ctypes.data, n[5], n[6], n[7], n[8], n[9])
    second = (out.ctypes.data, n[11], n[12], n[13], INT0 + 1, INT0 + 1)
    return call_kernel(table()[RUN_AT], (*first, *second))


@kernel
def run_again(arguments, stamp=STAMP):
    """Call :func:`run` with the int64 arguments at this address."""
    n = int_pointer(arguments)
    first, second = (n[0], n[1], n[2], n[3], n[4], n[5]), (n[6], n[7], n[8], n[9], n[10], n[11])
    return call_kernel(table()[RUN_AT], (*first, *second, n[12], n[13], n[14], n[15]))


@kernel
def run_rows(call, begin, end, stamp=STAMP):
    """Call :func:`run` with these int64 arguments, but for the rows begin ... end of the batch."""
    n = int_pointer(call.ctypes.data)
    first = (n[0], n[1], n[2], n[3], n[4] + 4 * begin * n[6], n[5], n[6], n[7])
    second = (n[8] + 4 * begin * n[9], n[9], n[10] + 4 * begin * n[12], n[11], n[12], n[13])
    call_kernel(table()[RUN_AT], (*first, *second, end - begin, n[15]))
