"""Losses against their formulas in float64, central differences and PyTorch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgates.losses import cross_entropy, mse

SHAPES = [(1,), (7,), (4, 3), (2, 5, 3)]


def central_differences(loss, values, step=1e-6):
    gradient = np.empty_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = loss(values)
        values[index] = kept - step
        gradient[index] = (above - loss(values)) / (2 * step)
        values[index] = kept
    return gradient


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_its_formula(shape):
    rng = np.random.default_rng(1)
    prediction, target = rng.normal(size=(2, *shape))
    loss, gradient = mse(prediction, target)
    assert type(loss) is float
    assert loss == pytest.approx(np.mean((prediction - target) ** 2), rel=1e-14)
    assert gradient.dtype == np.float32
    expected = (2 * (prediction - target) / prediction.size).astype(np.float32)
    np.testing.assert_array_equal(gradient, expected)
    numeric = central_differences(lambda p: mse(p, target)[0], prediction)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_its_formula(shape):
    rng = np.random.default_rng(2)
    logits = rng.normal(scale=3.0, size=shape)
    labels = rng.integers(shape[-1], size=shape[:-1])
    loss, gradient = cross_entropy(logits, labels)
    picked = np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)
    assert type(loss) is float
    assert loss == pytest.approx(-picked.mean(), rel=1e-13, abs=1e-15)
    assert gradient.dtype == np.float32
    assert gradient.shape == shape
    numeric = central_differences(lambda x: cross_entropy(x, labels)[0], logits)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 6),
    classes=st.integers(1, 5),
    shift=st.floats(-1e5, 1e5),
    seed=st.integers(0, 1000),
)
def test_cross_entropy_properties(batch, classes, shift, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, classes))
    labels = rng.integers(classes, size=batch)
    loss, gradient = cross_entropy(logits, labels)
    assert loss >= 0.0
    np.testing.assert_allclose(gradient.sum(axis=1), 0.0, atol=1e-6)
    shifted_loss, _ = cross_entropy(logits + shift, labels)
    assert shifted_loss == pytest.approx(loss, abs=1e-9)


@pytest.mark.parity
def test_losses_agree_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    prediction, target = rng.normal(size=(2, 6, 4)).astype(np.float32)
    leaf = torch.tensor(prediction, requires_grad=True)
    expected = torch.nn.functional.mse_loss(leaf, torch.tensor(target))
    expected.backward()
    loss, gradient = mse(prediction, target)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-6, atol=1e-9)

    labels = rng.integers(4, size=6)
    leaf = torch.tensor(prediction, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(leaf, torch.tensor(labels))
    expected.backward()
    loss, gradient = cross_entropy(prediction, labels)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_cross_entropy_survives_extreme_logits():
    loss, gradient = cross_entropy([[1e6, -1e6], [-1e30, 1e30]], [0, 1])
    assert loss == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
    assert cross_entropy([[1e6, 0.0]], [1])[0] == 1e6
    assert cross_entropy([[0.0, -math.inf]], [0])[0] == 0.0
    assert math.isnan(cross_entropy([[math.inf, math.inf]], [0])[0])
    assert math.isnan(mse([math.nan], [0.0])[0])
    assert math.isnan(mse([math.inf], [math.inf])[0])
    assert mse([1e200], [0.0])[0] == math.inf


def test_arguments_are_not_changed():
    logits = np.array([[1.0, 2.0], [3.0, 1.0]])
    kept = logits.copy()
    cross_entropy(logits, [0, 1])
    mse(logits, kept)
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mse(np.zeros((3, 1)), np.zeros(3)), ValueError, r"target .*\(3, 1\), got \(3,\)"),
        (lambda: mse(np.zeros((0, 2)), np.zeros((0, 2))), ValueError, "at least one entry"),
        (lambda: mse(np.zeros(2, complex), np.zeros(2)), TypeError, "prediction .*complex128"),
        (lambda: mse(np.zeros(2), ["a", "b"]), TypeError, "target must hold real numbers"),
        (lambda: cross_entropy(np.zeros((3, 2)), np.zeros(3)), TypeError, "labels .*float64"),
        (lambda: cross_entropy(np.zeros((3, 2)), [0, 1]), ValueError, r"shape \(3,\).*got \(2,\)"),
        (lambda: cross_entropy(np.zeros((2, 2)), [0, 2]), ValueError, r"got 2 at index \(1,\)"),
        (lambda: cross_entropy(np.zeros((2, 2)), [-1, 0]), ValueError, r"got -1 at index \(0,\)"),
        (lambda: cross_entropy(np.zeros((0, 2)), np.zeros(0, int)), ValueError, "logits must"),
        (lambda: cross_entropy(np.float32(1.0), 0), ValueError, "logits must have shape"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
