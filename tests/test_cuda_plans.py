"""How layers are laid on a GPU, worked out in plain Python: nothing here needs CUDA."""

import numpy as np
import pytest

from fastgates import cells
from fastgates.cuda._packing import Packing, Sources
from fastgates.cuda._plans import (
    REGISTERS_OF_A_BLOCK,
    SHARED_FLOATS,
    plan_pass,
)

CELLS = ["rnn", "simplified_gru", "gru", "gru_reset_after", "lstm"]
SIZES = [1, 2, 3, 7, 16, 17, 31, 64, 100, 127, 128, 129, 200, 256, 300, 512, 1000, 1024]


def plan_of(name, hidden, transposed, batch=32, processors=132):
    cell = cells.get(name)
    counts = tuple(count for _, count in cell.stages)
    return plan_pass(
        hidden,
        counts,
        len(cell.states),
        transposed=transposed,
        batch=batch,
        processors=processors,
    )


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", CELLS)
def test_every_size_fits_a_multiprocessor(name, transposed):
    for hidden in SIZES:
        for batch in (1, 132, 512, 4096):
            for processors in (20, 108, 132):
                plan = plan_of(name, hidden, transposed, batch, processors)
                assert plan.units * plan.slices >= hidden > plan.units * (plan.slices - 1)
                assert plan.slices <= processors
                assert plan.slices == 1 or hidden > 128
                assert plan.rows * plan.units <= plan.threads <= 1024
                assert plan.threads * plan.registers <= REGISTERS_OF_A_BLOCK
                assert plan.shared <= SHARED_FLOATS
                for stage in plan.stages:
                    assert stage.columns * stage.lanes >= plan.units or not transposed
                    assert stage.vector >= stage.inner
                    assert stage.threads == plan.threads
                    assert 0 <= stage.held <= stage.quads


def test_the_weights_of_most_layers_stay_in_registers():
    for name, hidden in (("rnn", 128), ("lstm", 64), ("gru", 64), ("simplified_gru", 64)):
        for transposed in (False, True):
            for stage in plan_of(name, hidden, transposed).stages:
                assert stage.held == stage.quads, (name, hidden, transposed)
    for name in ("gru", "lstm"):  # 48 K and 64 K weights, beside all else that registers hold
        stages = plan_of(name, 128, False).stages
        held = sum(stage.held * stage.columns for stage in stages)
        assert held > 0.6 * sum(stage.quads * stage.columns for stage in stages)


def test_more_sequences_than_multiprocessors_share_blocks():
    assert plan_of("lstm", 128, False, batch=132).rows == 1
    assert plan_of("lstm", 128, False, batch=512).rows == 2
    assert plan_of("lstm", 16, False, batch=512).rows == 1  # several blocks run on each
    assert plan_of("lstm", 256, False, batch=1).rows == 1
    assert plan_of("lstm", 256, False, batch=512).rows == 4


def test_a_size_beyond_shared_memory_is_an_error():
    with pytest.raises(ValueError, match="hidden_size must fit"):
        plan_of("lstm", 20000, True)


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("hidden", [3, 18, 150])
@pytest.mark.parametrize("name", CELLS)
def test_packed_weights_are_all_weights_once(name, hidden, transposed):
    cell, size = cells.get(name), 2
    gates = len(cell.gates)
    sizes = [gates * hidden * size, gates * hidden * hidden, gates * hidden, gates * hidden]
    starts = np.cumsum([0, *sizes])
    plan = plan_of(name, hidden, transposed)
    given = starts[4] + np.arange(hidden)
    packing = Packing(cell, size, hidden, Sources(*map(int, starts[:4])), given)
    one, other = packing.recurrent(plan, transposed)
    _, biases, constants = Packing.offsets(plan, hidden, len(cell.slots))
    weights = np.sort(one[:biases])
    assert np.array_equal(weights[weights >= 0], np.arange(starts[1], starts[2]))
    assert (other[:biases] == -1).all()
    used = np.concatenate([one[biases:constants], other[biases:constants]])
    assert np.array_equal(np.sort(used[used >= 0]), np.arange(starts[2], starts[4]))
    assert np.array_equal(one[constants:], given)
    assert np.array_equal(np.sort(packing.inputs()), np.arange(starts[1]))


@pytest.mark.parametrize("name", CELLS)
def test_gradients_find_their_way_back(name):
    cell, size, hidden = cells.get(name), 2, 3
    gates = len(cell.gates)
    sizes = [gates * hidden * size, gates * hidden * hidden, gates * hidden, gates * hidden]
    starts = np.cumsum([0, *sizes])
    packing = Packing(cell, size, hidden, Sources(*map(int, starts[:4])), np.full(hidden, -1))
    target = np.full(starts[4], -1)
    packing.gradients(10, target)
    assert (target >= 10).all() and target.max() < 10 + sum(packing.gradient_sizes)
    for begin, end in ((0, 1), (1, 2)):  # weights come from places of their own
        places = target[starts[begin] : starts[end]]
        assert len(set(places)) == len(places)
