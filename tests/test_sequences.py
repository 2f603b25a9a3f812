"""Sequences: padding, parts, windows and the moments of what counts."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastgates as fg
from fastgates._sequences import check_finite, moments
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
    mean, scale = moments("x", data.x, data.lengths)
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


def test_lists_of_labels_of_steps():
    runs = [np.ones((n, 1)) for n in (3, 1)]
    data = fg.Sequences.from_lists(runs, [np.array([0, 1, 1]), np.array([1])])
    assert data.y.tolist() == [[0, 1, 1], [1, 0, 0]] and data.y.dtype.kind == "i"
    columns = fg.Sequences.from_lists(runs, [np.zeros((3, 1), int), np.ones((1, 1), int)])
    model = fg.SequenceModel.build(
        "gru", 1, 2, 3, loss="cross_entropy", return_sequences=True, seed=0
    )
    assert model.check(columns).y.shape == (2, 3)


def test_numbers_beyond_float32():
    values = np.array([[1.0, 2.0], [3.0, 1e39]])
    with pytest.raises(DataError, match=r"within the range of float32, got 1e\+39 at .*\(1, 1\)"):
        check_finite("x", values)
    assert check_finite("x", values, np.array([2, 1])) is False


@pytest.mark.parametrize("offset, warns", [(0.0, False), (1e3, False), (1e7, True)])
def test_changes_that_float32_loses_beside_their_mean(offset, warns):
    values = np.random.default_rng(0).standard_normal((20, 5, 2))
    values[..., 1] += offset
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        moments("x", values, None)
    assert len(caught) == warns
    if warns:
        assert "column 1 of x has the mean 1e+07" in str(caught[0].message)


def test_a_constant_column_is_no_change_that_is_lost():
    moments("x", np.full((20, 5, 2), 0.1) + 1e7, None)
