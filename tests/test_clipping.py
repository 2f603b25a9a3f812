"""Clipping against its formula and PyTorch; the norm returned is the one before clipping."""

import math

import numpy as np
import pytest

from fastgates.clipping import clip_grad_norm, clip_grad_value


class Gradients:
    def __init__(self, *values):
        self.parameter_vector = np.array(values, dtype=np.float32)


def random_gradients(scale=1.0):
    rng = np.random.default_rng(4)
    return [Gradients(*rng.normal(scale=scale, size=size)) for size in (5, 1, 33)]


def global_norm(gradients):
    return np.linalg.norm(np.concatenate([g.parameter_vector for g in gradients]).astype(float))


def test_norm_scales_all_together():
    gradients = [Gradients(3.0, 0.0), Gradients(4.0)]
    assert clip_grad_norm(gradients, 1.0) == 5.0
    np.testing.assert_allclose(gradients[0].parameter_vector, [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(gradients[1].parameter_vector, [0.8], rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 7.0, 100.0, math.inf])
def test_norm_after_clipping(max_norm):
    gradients = random_gradients()
    before = global_norm(gradients)
    kept = [g.parameter_vector.copy() for g in gradients]
    assert clip_grad_norm(gradients, max_norm) == pytest.approx(before, rel=1e-12)
    assert global_norm(gradients) == pytest.approx(min(before, max_norm), rel=1e-6)
    if before <= max_norm:
        for gradient, vector in zip(gradients, kept, strict=True):
            np.testing.assert_array_equal(gradient.parameter_vector, vector)


def test_value_limits_every_entry():
    gradients = random_gradients(scale=3.0)
    kept = [g.parameter_vector.copy() for g in gradients]
    before = global_norm(gradients)
    assert clip_grad_value(gradients, 0.5) == pytest.approx(before, rel=1e-12)
    for gradient, vector in zip(gradients, kept, strict=True):
        np.testing.assert_array_equal(gradient.parameter_vector, np.clip(vector, -0.5, 0.5))


def test_a_single_gradients_object_will_do():
    gradient = Gradients(0.0, 2.0)
    assert clip_grad_norm(gradient, 1.0) == 2.0
    assert clip_grad_value(gradient, 0.25) == pytest.approx(1.0)
    np.testing.assert_array_equal(gradient.parameter_vector, np.float32([0.0, 0.25]))


def test_large_entries_do_not_overflow():
    gradient = Gradients(3e38, 3e38)
    assert clip_grad_norm(gradient, 1.0) == pytest.approx(math.sqrt(2) * 3e38, rel=1e-6)
    np.testing.assert_allclose(gradient.parameter_vector, [math.sqrt(0.5)] * 2, rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_reported_and_left(value):
    gradient = Gradients(1.0, value)
    assert not math.isfinite(clip_grad_norm(gradient, 0.5))
    np.testing.assert_array_equal(gradient.parameter_vector, np.float32([1.0, value]))


@pytest.mark.parity
def test_norm_agrees_with_torch():
    torch = pytest.importorskip("torch")
    gradients = random_gradients()
    leaves = [torch.zeros(g.parameter_vector.size, requires_grad=True) for g in gradients]
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = torch.tensor(gradient.parameter_vector)
    expected = torch.nn.utils.clip_grad_norm_(leaves, 0.7)
    assert clip_grad_norm(gradients, 0.7) == pytest.approx(expected.item(), rel=1e-6)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        np.testing.assert_allclose(gradient.parameter_vector, leaf.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match="max_norm must be a positive number"):
        clip_grad_norm(Gradients(1.0), limit)
    with pytest.raises(ValueError, match="clip_value must be a positive number"):
        clip_grad_value(Gradients(1.0), limit)


def test_something_else_than_gradients():
    with pytest.raises(TypeError, match=r"Gradients of a backward call.*got list"):
        clip_grad_norm([[1.0]], 1.0)
