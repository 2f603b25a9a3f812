"""Sequences: padding, parts, windows and the moments of what counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastgates as fg
from fastgates._sequences import moments
from fastgates._tables import DataError

sizes = st.integers(1, 9)


@given(rows=sizes, columns=st.integers(1, 3), length=sizes, stride=st.integers(1, 4))
def test_windows_are_slices(rows, columns, length, stride):
    series = np.arange(rows * columns).reshape(rows, columns)
    if rows < length:
        with pytest.raises(DataError, match="at least length="):
            fg.training.windows(series, length, stride)
        return
    views = fg.training.windows(series, length, stride)
    expected = [series[k : k + length] for k in range(0, rows - length + 1, stride)]
    assert np.array_equal(views, expected)
    assert np.shares_memory(views, series) and not views.flags.writeable


@given(ends=st.lists(sizes, min_size=1, max_size=600), seed=st.integers(0, 99))
def test_moments_are_those_of_the_steps_that_count(ends, seed):
    random = np.random.default_rng(seed)
    runs = [random.normal(3, 2, (end, 2)) for end in ends]
    data = fg.Sequences.from_lists(runs)
    assert np.array_equal(data.lengths, ends)
    rows = np.concatenate(runs)
    mean, scale = moments(data.x, data.lengths)
    assert np.allclose(mean, rows.mean(axis=0), rtol=1e-12)
    expected = rows.std(axis=0)
    assert np.allclose(scale, np.where(expected > 0, expected, 1), rtol=1e-12)


def test_parts():
    x = np.arange(24.0).reshape(6, 2, 2)
    state = ((np.arange(6.0).reshape(1, 6, 1), np.zeros((1, 6, 1))),)
    data = fg.Sequences(x, np.arange(6), sample_weight=np.ones(6), initial_state=state)
    first, last = data.split(1 / 3)
    assert np.shares_memory(first.x, x) and first.y.tolist() == [0, 1, 2, 3]
    assert last.y.tolist() == [4, 5] and last.initial_state[0][0].ravel().tolist() == [4, 5]
    one, other = data.split(0.5, seed=3)
    assert sorted([*one.y, *other.y]) == list(range(6)) and len(other) == 3
    assert data.split(0.5, seed=3)[1].y.tolist() == other.y.tolist()
    taken = data.take(np.array([5, 0]))
    assert np.array_equal(taken.x, x[[5, 0]]) and taken.lengths is None
    for wrong in (0, 1, -1):
        with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
            data.split(wrong)
    with pytest.raises(DataError, match="cannot be split"):
        data.split(0.99)


def test_lists_of_targets():
    runs = [np.ones((n, 1)) for n in (3, 1)]
    per_step = fg.Sequences.from_lists(runs, [np.ones((3, 2)), np.ones((1, 2))])
    assert per_step.y.shape == (2, 3, 2) and not per_step.y[1, 1:].any()
    assert fg.Sequences.from_lists(runs, [1.5, 2.5]).y.shape == (2,)
    assert fg.Sequences.from_lists(runs, [[1, 2], [3, 4]]).y.shape == (2, 2)
    series = fg.Sequences.from_lists(None, runs)
    assert series.x is None and series.lengths.tolist() == [3, 1]
    with pytest.raises(DataError, match="2 of x, 1 of y"):
        fg.Sequences.from_lists(runs, [1.0])
    with pytest.raises(DataError, match="as many targets for each"):
        fg.Sequences.from_lists(runs, [[1, 2], [3]])
