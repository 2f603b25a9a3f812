"""The tasks: what a batch holds, and that the answer is in it."""

import numpy as np
import pytest

from fastgates.tasks import TASKS, Adding, CopyMemory, DelayedRecall, TemporalOrder


@pytest.fixture(params=TASKS, ids=str)
def task(request):
    return TASKS[request.param]()


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("length", [5, 10, 37])
def test_shapes(task, length):
    batch = task.batch(generator(), 6, length)
    assert batch.x.shape == (6, task.steps(length), task.input_size)
    assert batch.x.dtype == np.float32
    output = np.zeros((6, task.steps_asked, task.output_size), np.float32)
    loss, d_output = task.loss(output, batch.target)
    assert loss > 0 and d_output.shape == output.shape
    assert 0 <= task.error(output, batch.target) <= 2


def test_the_same_seed_gives_the_same_batch(task):
    first, second, other = (task.batch(generator(seed), 4, 20) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.target, second.target)
    assert not np.array_equal(first.x, other.x)


def test_baseline_is_the_error_without_memory(task):
    batch = task.batch(generator(), 20000, 10)
    output = np.ones((20000, task.steps_asked, task.output_size), np.float32)
    assert abs(task.error(output, batch.target) - task.baseline(10)) < 0.02
    assert task.solved_below < task.baseline(10) / 5


def right_answer(task, batch):
    """The output (B, steps asked, output_size) of who has understood the task."""
    x = batch.x
    if isinstance(task, DelayedRecall):
        return x[:, :1]
    if isinstance(task, Adding):
        return (x[..., 0] * x[..., 1]).sum(axis=1)[:, None, None]
    if isinstance(task, TemporalOrder):
        symbols = x.argmax(axis=-1)
        found = np.stack([row[row < 2] for row in symbols])
        assert found.shape[1] == 2
        return np.eye(4)[2 * found[:, 0] + found[:, 1]][:, None]
    return x[:, : task.copied, : task.symbols]


@pytest.mark.parametrize("length", [5, 10, 37, 100])
def test_who_remembers_has_no_error(task, length):
    batch = task.batch(generator(1), 50, length)
    output = right_answer(task, batch)
    assert task.error(output, batch.target) < 1e-9


def test_markers_are_one_in_each_half():
    x = Adding().batch(generator(), 500, 9).x
    assert (x[:, :4, 1].sum(axis=1) == 1).all() and (x[:, 4:, 1].sum(axis=1) == 1).all()
    assert x[:, :4, 1].any(axis=0).all() and x[:, 4:, 1].any(axis=0).all()


def test_places_of_the_symbols_in_order():
    symbols = TemporalOrder().batch(generator(), 2000, 50).x.argmax(axis=-1)
    places = np.unique(np.argwhere(symbols < 2)[:, 1])
    assert places.tolist() == [*range(5, 10), *range(20, 25)]


def test_copy_has_the_form_of_the_literature():
    task = CopyMemory(symbols=8, copied=10)
    x = task.batch(generator(), 3, 100).x.argmax(axis=-1)
    assert x.shape == (3, 120)
    assert (x[:, :10] < 8).all() and (x[:, 109] == 9).all()
    assert (np.delete(x, 109, axis=1)[:, 10:] == 8).all()


@pytest.mark.parametrize(
    "size, length, words",
    [(1, 0, "length"), (0, 10, "size"), (1, 2.5, "length"), (1, 1, "at least 5")],
)
def test_wrong_sizes(size, length, words):
    with pytest.raises(ValueError, match=words):
        TemporalOrder().batch(generator(), size, length)
