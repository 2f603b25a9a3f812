"""Adam and SGD against their formulas in float64 and against PyTorch."""

import json
import math
from contextlib import contextmanager

import numpy as np
import pytest

import fastgates as fg
from fastgates.optimizers import SGD, Adam, AdamW, RMSprop

SIZES = (5, 1, 40)


class Gradients:
    def __init__(self, vector):
        self.parameter_vector = np.asarray(vector, dtype=np.float32)


class Parameters:
    def __init__(self, vector):
        self.vector = vector


class Module:
    """As little of a layer as an optimiser needs; counts how often it was edited."""

    def __init__(self, vector):
        self._vector = np.array(vector, dtype=np.float32)
        self.edits = 0

    @property
    def parameter_vector(self):
        view = self._vector.view()
        view.flags.writeable = False
        return view

    @contextmanager
    def edit_parameters(self):
        yield Parameters(self._vector)
        self.edits += 1


def start():
    rng = np.random.default_rng(5)
    return [Module(rng.normal(size=size)) for size in SIZES]


def gradient_run(steps):
    rng = np.random.default_rng(6)
    scales = 10.0 ** rng.uniform(-3, 2, size=steps)
    return [[Gradients(rng.normal(scale=s, size=n)) for n in SIZES] for s in scales]


def adam_by_hand(vector, gradients, lr, betas, eps, weight_decay=0.0, decoupled=False):
    p = vector.astype(np.float64)
    m = np.zeros_like(p)
    v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def adamw_by_hand(vector, gradients, lr, betas, eps, weight_decay):
    return adam_by_hand(vector, gradients, lr, betas, eps, weight_decay, decoupled=True)


def rmsprop_by_hand(vector, gradients, lr, alpha, eps, momentum, centered, weight_decay):
    p = vector.astype(np.float64)
    v, m, b = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for g in gradients:
        g = g + weight_decay * p
        v = alpha * v + (1 - alpha) * g * g
        m = alpha * m + (1 - alpha) * g
        b = momentum * b + g / (np.sqrt(v - (m * m if centered else 0)) + eps)
        p = p - lr * b
    return p


def sgd_by_hand(vector, gradients, lr, momentum, nesterov, weight_decay=0.0):
    p = vector.astype(np.float64)
    b = np.zeros_like(p)
    for g in gradients:
        g = g + weight_decay * p
        b = momentum * b + g
        p = p - lr * (g + momentum * b if nesterov else b)
    return p


ADAM = [
    {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    {"lr": 0.1, "betas": (0.0, 0.9), "eps": 1e-3},
    {"lr": 1e-2, "betas": (0.8, 0.0), "eps": 1e-6},
    {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1},
]
ADAMWS = [{"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.3}]
RMSPROPS = [
    {"lr": 1e-2, "alpha": 0.9, "eps": 1e-6, "momentum": 0.0, "centered": False,
     "weight_decay": 0.0},
    {"lr": 1e-2, "alpha": 0.8, "eps": 1e-2, "momentum": 0.5, "centered": True,
     "weight_decay": 0.1},
]  # fmt: skip
SGDS = [
    {"lr": 0.1, "momentum": 0.0, "nesterov": False},
    {"lr": 1e-2, "momentum": 0.9, "nesterov": False},
    {"lr": 1e-2, "momentum": 0.8, "nesterov": True},
    {"lr": 1e-2, "momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
]
CASES = [
    (kind, options, by_hand)
    for kind, by_hand, settings in (
        (Adam, adam_by_hand, ADAM),
        (AdamW, adamw_by_hand, ADAMWS),
        (RMSprop, rmsprop_by_hand, RMSPROPS),
        (SGD, sgd_by_hand, SGDS),
    )
    for options in settings
]


@pytest.mark.parametrize(("kind", "options", "by_hand"), CASES)
def test_steps_are_the_formula(kind, options, by_hand):
    modules = start()
    before = [module.parameter_vector.copy() for module in modules]
    run = gradient_run(30)
    optimizer = kind(modules, **options)
    for gradients in run:
        optimizer.step(gradients)
    assert optimizer.steps == 30
    for k, module in enumerate(modules):
        history = [gradients[k].parameter_vector.astype(np.float64) for gradients in run]
        expected = by_hand(before[k], history, **options)
        scale = np.abs(expected - before[k]).max()
        np.testing.assert_allclose(module.parameter_vector, expected, rtol=2e-6, atol=2e-6 * scale)
        assert module.edits == 30


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "options", "by_hand"), CASES)
def test_steps_agree_with_torch(kind, options, by_hand):
    torch = pytest.importorskip("torch")
    modules = start()
    leaves = [torch.tensor(m.parameter_vector.copy(), requires_grad=True) for m in modules]
    optimizer = kind(modules, **options)
    reference = getattr(torch.optim, kind.__name__)(leaves, **options)
    for gradients in gradient_run(20):
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = torch.tensor(gradient.parameter_vector)
        reference.step()
        optimizer.step(gradients)
    for module, leaf in zip(modules, leaves, strict=True):
        np.testing.assert_allclose(
            module.parameter_vector, leaf.detach().numpy(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("kind", "options", "by_hand"), CASES)
def test_saved_state_goes_on_with_the_same_bits(kind, options, by_hand):
    run = gradient_run(12)
    whole = start()
    optimizer = kind(whole, **options)
    for gradients in run:
        optimizer.step(gradients)

    parts = start()
    first = kind(parts, **options)
    for gradients in run[:5]:
        first.step(gradients)
    state = first.state_dict()
    first.step(run[-1])  # a state is a copy: this must not reach it
    for module, vector in zip(parts, _replayed(kind, options, run[:5]), strict=True):
        with module.edit_parameters() as parameters:
            parameters.vector[...] = vector
    second = kind(parts, lr=0.5)
    second.load_state_dict(state)
    assert second.steps == 5
    assert second.lr == options["lr"]
    for gradients in run[5:]:
        second.step(gradients)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.parameter_vector, other.parameter_vector)


def _replayed(kind, options, run):
    modules = start()
    optimizer = kind(modules, **options)
    for gradients in run:
        optimizer.step(gradients)
    return [module.parameter_vector.copy() for module in modules]


def test_gradients_are_only_read():
    modules = start()
    (gradients,) = gradient_run(1)
    kept = [g.parameter_vector.copy() for g in gradients]
    Adam(modules).step(gradients)
    SGD(modules, 0.1, momentum=0.9, nesterov=True).step(gradients)
    for gradient, vector in zip(gradients, kept, strict=True):
        np.testing.assert_array_equal(gradient.parameter_vector, vector)


def test_a_single_module_will_do_and_lr_may_change():
    module = Module([1.0, 2.0])
    optimizer = SGD(module, 0.5)
    optimizer.step(Gradients([1.0, 0.0]))
    optimizer.lr = 0.25
    optimizer.step(Gradients([0.0, 1.0]))
    np.testing.assert_array_equal(module.parameter_vector, np.float32([0.5, 1.75]))


@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        ([Gradients(np.zeros(5))], ValueError, "each of the 3 modules.*got 1"),
        ([Gradients(np.zeros(n)) for n in (5, 40, 1)], ValueError, r"gradients\[1\] must have 1 "),
        ([Gradients(np.zeros(5)), 1.0, 2.0], TypeError, r"gradients\[1\].*got float"),
    ],
)
def test_gradients_that_do_not_match_change_nothing(gradients, error, message):
    modules = start()
    before = [module.parameter_vector.copy() for module in modules]
    optimizer = Adam(modules)
    with pytest.raises(error, match=message):
        optimizer.step(gradients)
    assert optimizer.steps == 0
    for module, vector in zip(modules, before, strict=True):
        np.testing.assert_array_equal(module.parameter_vector, vector)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: Adam(m, lr=0.0), ValueError, "lr must be a positive number, got 0.0"),
        (lambda m: Adam(m, lr=math.nan), ValueError, "lr must be a positive number"),
        (lambda m: Adam(m, lr="fast"), ValueError, "lr must be a positive number, got 'fast'"),
        (lambda m: Adam(m, betas=(0.9, 1.0)), ValueError, r"betas .*\[0, 1\)"),
        (lambda m: Adam(m, betas=(0.9,)), ValueError, "betas must be two numbers"),
        (lambda m: Adam(m, eps=0.0), ValueError, "eps must be a positive number"),
        (lambda m: SGD(m, -1.0), ValueError, "lr must be a positive number"),
        (lambda m: SGD(m, 0.1, momentum=1.0), ValueError, "momentum must be in"),
        (lambda m: SGD(m, 0.1, nesterov=True), ValueError, "nesterov needs momentum > 0"),
        (lambda m: SGD(m, 0.1, weight_decay=-1), ValueError, "weight_decay must be a number of at"),
        (lambda m: AdamW(m, weight_decay="a"), ValueError, "weight_decay must be a number"),
        (lambda m: RMSprop(m, alpha=1.0), ValueError, r"alpha must be in \[0, 1\)"),
        (lambda m: RMSprop(m, eps=0), ValueError, "eps must be a positive number"),
        (lambda m: Adam([]), ValueError, "at least one layer"),
        (lambda m: Adam([m[0], m[0]]), ValueError, "same one twice"),
        (lambda m: Adam([m[0].parameter_vector]), TypeError, "got ndarray"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make(start())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("steps"), "lacks steps"),
        (lambda s: s.update(optimizer="SGD"), "of SGD, not of Adam"),
        (lambda s: s.update(settings={"lr": 1.0}), "settings must be lr, weight_decay, betas, eps"),
        (lambda s: s["buffers"].pop(), "of 3 modules, got 2"),
        (lambda s: s["buffers"][0].pop("first_moment"), "buffers of module 0"),
        (lambda s: s["buffers"][2].update(first_moment=np.zeros(4)), r"\(40,\), got \(4,\)"),
    ],
)
def test_a_state_that_does_not_fit(change, message):
    optimizer = Adam(start())
    optimizer.step(gradient_run(1)[0])
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert optimizer.steps == 1


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"lr": -3.0}, "lr must be a number of at least 0, got -3.0"),
        ({"betas": "ab"}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": [0.9, 1.5]}, r"betas must be two numbers in \[0, 1\)"),
        ({"eps": 0}, "eps must be a positive number"),
    ],
)
def test_settings_of_a_state_are_checked_like_arguments(settings, match):
    optimizer = fg.Adam(fg.GRU(2, 3, seed=0))
    state = optimizer.state_dict()
    state["settings"] |= settings
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (1e-3, (0.9, 0.999), 1e-8)


def test_settings_may_come_from_json():
    optimizer = fg.Adam(fg.GRU(2, 3, seed=0), lr=0.1)
    state = optimizer.state_dict()
    optimizer.lr = 0.0  # where a schedule has ended
    state["settings"] = json.loads(json.dumps(state["settings"] | {"lr": 0.0}))
    optimizer.load_state_dict(state)
    assert optimizer.lr == 0.0 and optimizer.betas == (0.9, 0.999)
