"""Losses against their formulas in float64, central differences and PyTorch."""

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgates.losses import Loss, cross_entropy, huber, mae, mse, quantile

Z = np.zeros((2, 3, 4))
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


# -- Other losses, and what counts ----------------------------------------------------------------

QUANTILES = (0.1, 0.5, 0.8)
LENGTHS = np.array([4, 1, 3])


def quantile_of(prediction, target, **mask):
    return quantile(prediction, target, QUANTILES, **mask)


REGRESSIONS = {
    "mse": (mse, 1, lambda e: e**2),
    "mae": (mae, 1, np.abs),
    "huber": (
        lambda p, t, **mask: huber(p, t, delta=0.7, **mask),
        1,
        lambda e: np.where(np.abs(e) <= 0.7, e**2 / 2, 0.7 * (np.abs(e) - 0.35)),
    ),
    "quantile": (
        quantile_of,
        3,
        lambda e: np.maximum(-np.array(QUANTILES) * e, (1 - np.array(QUANTILES)) * e),
    ),
}


def regression_data(outputs, shape=(3, 4, 2)):
    rng = np.random.default_rng(4)
    return rng.normal(size=(*shape[:-1], shape[-1] * outputs)), rng.normal(size=shape)


@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_regressions_are_their_formulas(name, masked):
    call, outputs, formula = REGRESSIONS[name]
    prediction, target = regression_data(outputs)
    weight = np.random.default_rng(5).random((3, 4))
    options, counts = {}, np.ones((3, 4))
    if masked:
        options = {"lengths": LENGTHS, "sample_weight": weight, "washout": 1}
        step = np.arange(4)
        counts = weight * ((step >= 1) & (step < LENGTHS[:, None]))
    loss, gradient = call(prediction, target, **options)
    error = prediction.reshape(*target.shape, outputs) - target[..., None]
    each = formula(error)
    weights = np.broadcast_to(counts[..., None, None], each.shape)
    assert type(loss) is float
    assert loss == pytest.approx((each * weights).sum() / weights.sum(), rel=1e-12)
    assert gradient.dtype == np.float32 and gradient.shape == prediction.shape
    numeric = central_differences(lambda p: call(p, target, **options)[0], prediction)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)
    assert not gradient[counts == 0].any()


@pytest.mark.parametrize("name", [*REGRESSIONS, "cross_entropy"])
def test_what_does_not_count_may_hold_anything(name):
    if name == "cross_entropy":
        call = cross_entropy
        prediction = np.random.default_rng(1).normal(size=(3, 4, 2))
        target = np.ones((3, 4), int)
    else:
        call, outputs, _ = REGRESSIONS[name]
        prediction, target = regression_data(outputs)
    loss, gradient = call(prediction, target, lengths=LENGTHS)
    past = np.arange(4) >= LENGTHS[:, None]
    prediction[past], target[past] = math.nan, -7 if name == "cross_entropy" else math.inf
    again, same = call(prediction, target, lengths=LENGTHS)
    assert again == loss
    np.testing.assert_array_equal(same, gradient)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 5), seed=st.integers(0, 1000))
def test_weights_of_whole_numbers_are_repetitions(size, seed):
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 4, size=size)
    count[0] += 1
    rows = np.repeat(np.arange(size), count)
    logits, labels = rng.normal(size=(size, 3)), rng.integers(3, size=size)
    loss, _ = cross_entropy(logits, labels, sample_weight=count)
    assert loss == pytest.approx(cross_entropy(logits[rows], labels[rows])[0], rel=1e-12)
    values, target = rng.normal(size=(2, size, 2))
    for call in (mse, mae, huber):
        loss, _ = call(values, target, sample_weight=count)
        assert loss == pytest.approx(call(values[rows], target[rows])[0], rel=1e-12)


def test_cross_entropy_with_all_weights_is_its_formula():
    rng = np.random.default_rng(6)
    logits, labels = rng.normal(size=(3, 4, 3)), rng.integers(3, size=(3, 4))
    class_weight, weight = np.array([0.5, 2.0, 1.0]), rng.random(3)
    options = {"class_weight": class_weight, "lengths": LENGTHS, "sample_weight": weight}
    loss, gradient = cross_entropy(logits, labels, washout=1, **options)
    picked = -np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    step = np.arange(4)
    counts = (step >= 1) & (step < LENGTHS[:, None])
    counts = counts * weight[:, None] * class_weight[labels]
    assert loss == pytest.approx((picked * counts).sum() / counts.sum(), rel=1e-12)
    numeric = central_differences(
        lambda x: cross_entropy(x, labels, washout=1, **options)[0], logits
    )
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-8)


@pytest.mark.parity
def test_other_losses_agree_with_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(3)
    prediction, target = rng.normal(size=(2, 6, 4)).astype(np.float32)
    labels, weight = rng.integers(4, size=6), np.array([1, 2, 0.5, 3], np.float32)
    cases = [
        (lambda p: functional.l1_loss(p, torch.tensor(target)), lambda: mae(prediction, target)),
        (
            lambda p: functional.huber_loss(p, torch.tensor(target), delta=0.4),
            lambda: huber(prediction, target, delta=0.4),
        ),
        (
            lambda p: functional.cross_entropy(
                p, torch.tensor(labels), weight=torch.tensor(weight)
            ),
            lambda: cross_entropy(prediction, labels, class_weight=weight),
        ),
    ]
    for theirs, ours in cases:
        leaf = torch.tensor(prediction, requires_grad=True)
        expected = theirs(leaf)
        expected.backward()
        loss, gradient = ours()
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_the_least_pinball_loss_is_at_the_quantile():
    target = np.random.default_rng(0).normal(size=(501, 1))
    levels = np.array(QUANTILES)
    at = np.quantile(target, levels)
    best, _ = quantile(np.tile(at, (501, 1)), target, levels)
    for moved in (at + 0.05, at - 0.05):
        assert quantile(np.tile(moved, (501, 1)), target, levels)[0] > best


def test_a_loss_as_an_object():
    prediction, target = regression_data(3)
    loss = Loss("quantile", quantiles=QUANTILES)
    other = pickle.loads(pickle.dumps(loss))
    assert other == loss and hash(other) == hash(loss)
    assert loss(prediction, target)[0] == quantile_of(prediction, target)[0]
    assert (loss.outputs_per_target, loss.point, loss.classifies) == (3, 1, False)
    assert Loss.of("mse") == Loss("mse") != Loss("mae")
    assert json.dumps(dict(Loss("cross_entropy", class_weight=np.ones(2)).options))
    _, _, weight = Loss("mse").weighted(np.zeros((3, 4, 2)), np.zeros((3, 4, 2)), LENGTHS)
    assert weight == 2 * LENGTHS.sum()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mse(np.zeros((2, 3)), np.zeros((2, 3)), lengths=[1, 1]), ValueError, "to be mask"),
        (lambda: mse(Z, Z, lengths=[1]), ValueError, r"batch_size=2,\), got shape \(1,\)"),
        (lambda: mse(Z, Z, lengths=[1, 4]), ValueError, "from 0 to time=3, got 1 to 4"),
        (lambda: mse(Z, Z, lengths=[1.0, 2.0]), ValueError, "lengths must be integers"),
        (lambda: mse(Z, Z, washout=3), ValueError, "nothing counts in the loss: .*washout=3"),
        (lambda: mse(Z, Z, washout=-1), ValueError, "washout must be an integer of at least 0"),
        (lambda: mse(Z, Z, sample_weight=[1.0]), ValueError, r"\(batch_size=2,\) or \(2, time=3\)"),
        (lambda: mse(Z, Z, sample_weight=[1.0, -1.0]), ValueError, "numbers of at least 0"),
        (lambda: mse(Z, Z, sample_weight=[0.0, 0.0]), ValueError, "nothing counts"),
        (lambda: huber(Z, Z, delta=0), ValueError, "delta must be a positive number"),
        (lambda: quantile(Z, Z, (0.5, 1.0)), ValueError, "quantiles must be numbers between"),
        (lambda: quantile(Z, Z), ValueError, r"\(2, 3, 12\) for a target of shape \(2, 3, 4\)"),
        (lambda: cross_entropy(Z, np.zeros((2, 3), int), class_weight=[1, 2]), ValueError, "=4,"),
        (lambda: cross_entropy([[0.0, 1.0]], [0], class_weight=[0, 1]), ValueError, "weigh 0"),
        (lambda: Loss("hinge"), ValueError, "loss must be one of mse, mae, huber"),
        (lambda: Loss("mse", delta=1.0), ValueError, "the options of mse are: none; got delta"),
    ],
)
def test_wrong_masks_and_options(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_weights_of_single_numbers():
    loss, gradient = mse(np.array([1.0, 3.0]), np.zeros(2), sample_weight=[3.0, 1.0])
    assert loss == (3 * 1 + 9) / 4
    np.testing.assert_allclose(gradient, [3 / 4 * 2, 1 / 4 * 6])


def test_a_loss_is_a_name_or_a_loss():
    with pytest.raises(TypeError, match="loss must be a name or a Loss, got int"):
        Loss.of(3)
