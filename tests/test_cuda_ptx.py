"""The GPU kernels compiled without a GPU, for an A100 and an H100, and what came out.

Needs the extra `ptx`: numba-cuda with NVVM, and ptxas for the count of registers.
"""

import re

import pytest

pytest.importorskip("numba_cuda", reason="the extra ptx brings numba-cuda")

import ptx
from ptx import ARCHITECTURES, BACKWARD, FLAT, FORWARD, INT, ROWS, compile_kernel

from fastgates import cells
from fastgates.cuda import _elementwise, _products
from fastgates.cuda._kernels import backward_kernel, forward_kernel
from fastgates.cuda._plans import plan_pass

pytestmark = pytest.mark.parity

# The largest that one block has alone, each kind of cell; and sizes that several blocks share.
ALONE = [("lstm", 128, 1), ("lstm", 128, 512), ("gru", 128, 1), ("gru_reset_after", 64, 132)]
SHARED = [("lstm", 256, 512), ("gru", 256, 32)]
SMALL = [(name, 16, 1) for name in ("rnn", "rnn_relu", "leaky_rnn", "leaky_rnn_relu")]
SMALL += [("simplified_gru", 32, 8), ("lstm_general", 32, 8), ("gru_general", 32, 8)]


@pytest.fixture(params=ARCHITECTURES, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
def architecture(request):
    return request.param


def compile_pass(name, hidden, batch, transposed, architecture):
    cell = cells.get(name)
    plan = plan_pass(
        hidden,
        tuple(count for _, count in cell.stages),
        len(cell.states),
        transposed=transposed,
        batch=batch,
        processors=132 if architecture == (9, 0) else 108,
        unit_weights=len(cell.unit_weights),
    )
    if transposed:
        kernel = backward_kernel(cell, hidden, plan, len(cell.unit_weights))
        signature = BACKWARD
    else:
        kernel, signature = forward_kernel(cell, hidden, plan, True), FORWARD
    return plan, compile_kernel(kernel, signature, architecture, plan.registers)


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("name", "hidden", "batch"),
    [pytest.param(*size, id="-".join(map(str, size))) for size in [ALONE[0], SHARED[1], SMALL[0]]]
    + [
        pytest.param(*size, id="-".join(map(str, size)), marks=pytest.mark.slow)
        for size in [*ALONE[1:], SHARED[0], *SMALL[1:]]
    ],
)
def test_recurrent_kernels(name, hidden, batch, transposed, architecture):
    """Weights in registers, no float64, nothing in local memory, no atomics, two barriers."""
    plan, compiled = compile_pass(name, hidden, batch, transposed, architecture)
    compiled.check(plan.registers)
    instructions = compiled.instructions
    assert not [i for i in instructions if i.startswith(("atom", "red."))]
    # Products are multiply-adds on vectors that come four numbers at a time.
    assert sum(i == "fma.rn.f32" for i in instructions) >= sum(
        plan.rows * 4 * stage.held * stage.columns for stage in plan.stages
    )
    loads = sum(i == "ld.shared.v4.f32" for i in instructions)
    assert loads >= sum(plan.rows * stage.held for stage in plan.stages)
    barriers = sum(i == "bar.sync" for i in instructions)
    if not plan.together:
        before = 2 - transposed  # the step loop
        assert barriers == before + 2 * len(plan.stages)
    else:
        assert sum(i == "ld.acquire.gpu.global.b32" for i in instructions) >= 1
        assert sum(i == "st.release.gpu.global.b32" for i in instructions) == len(plan.stages)


def test_blocks_that_wait_for_each_other_are_linked_for_a_cooperative_launch():
    cell = cells.get("lstm")
    plan = plan_pass(256, (4,), 2, transposed=False, batch=32, processors=132)
    kernel = forward_kernel(cell, 256, plan, False)
    machine_code = ptx.link(kernel, FORWARD, (9, 0), plan.registers)
    assert len(bytes(machine_code.code)) > 10_000


def small_kernels():
    """Every other kernel with its signature."""
    flat, rows, states = FLAT, ROWS, ptx.STATES
    yield (
        "map_rows",
        _products.map_rows_kernel(),
        ((rows, INT, INT, flat, INT, INT, INT, rows, *[INT] * 5, INT)),
    )
    yield (
        "sum_rows",
        _products.sum_rows_kernel(),
        ((rows, INT, INT, rows, INT, INT, INT, flat, *[INT] * 4)),
    )
    yield "add_parts", _products.add_parts_kernel(), (flat, INT, INT, flat, INT, INT)
    yield "gather", _elementwise.gather_kernel(), (flat, ptx.MAPS, flat)
    yield "clear", _elementwise.clear_kernel(), (flat,)
    yield "clear counters", _elementwise.clear_kernel(), (ptx.COUNTERS,)
    yield "mask", _elementwise.mask_kernel(), (rows, ptx.LENGTHS, rows)
    yield "weigh", _elementwise.weigh_kernel(), (rows, rows, rows)
    for add in (False, True):
        yield f"top {add}", _elementwise.top_kernel(add), (states, ptx.OUTPUTS, INT)
    yield "states", _elementwise.states_kernel(), (rows, INT, rows, INT, states, INT)
    for name in _elementwise.ACTIVATIONS:
        yield name, _elementwise.activate_kernel(name), (rows, flat, INT, INT)
        yield f"{name} back", _elementwise.activate_backward_kernel(name), (rows, rows, rows)
    yield "softmax", _elementwise.softmax_kernel(), (rows,)
    yield "softmax back", _elementwise.softmax_backward_kernel(), (rows, rows, rows)
    yield "scale", _elementwise.scale_kernel(), (rows, flat, rows, INT)


@pytest.mark.parametrize("kernel", list(small_kernels()), ids=lambda kernel: kernel[0])
def test_other_kernels(kernel):
    _, function, signature = kernel
    compile_kernel(function, signature, (8, 0)).check(128)


def test_the_equations_are_the_only_ones():
    """No file of the backend holds an equation of a cell: they come from `fastgates/cells`."""
    from pathlib import Path

    import fastgates.cuda

    for path in Path(fastgates.cuda.__file__).parent.glob("*.py"):
        text = path.read_text()
        for name in cells.registered():
            assert not re.search(rf"\b{name}\b", text), (path.name, name)
