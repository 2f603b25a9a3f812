"""Schedules against PyTorch's, and their own state."""

import warnings

import numpy as np
import pytest

import fastgates as fg
from fastgates.schedules import (
    Constant,
    Cosine,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    WarmUp,
    make_schedule,
)


def test_factors():
    assert Constant().factor(1e9) == 1.0
    cosine = Cosine(10, minimum=0.2)
    assert [cosine.factor(t) for t in (0, 5, 10, 20)] == pytest.approx([1, 0.6, 0.2, 0.2])
    step = StepDecay(2.5, 0.5)
    assert [step.factor(t) for t in (0, 2.4, 2.5, 5)] == [1, 1, 0.5, 0.25]
    warm = WarmUp(2, StepDecay(1, 0.1), start=0.5)
    assert [warm.factor(t) for t in (0, 1, 1.5, 2, 2.9, 3)] == pytest.approx(
        [0.5, 0.75, 0.875, 1, 1, 0.1]
    )
    assert WarmUp(1).factor(5) == 1.0


LOSSES = [1.0, 0.9, 0.9, 0.91, 0.95, 0.8, 0.8, 0.8, 0.8, 0.79999, 0.5, 0.6]


def test_a_plateau_and_its_state():
    schedule = ReduceOnPlateau(0.5, patience=1, threshold=0.01, minimum=0.2)
    factors = []
    for loss in LOSSES:
        schedule.observe(loss)
        factors.append(schedule.factor(0))
        other = ReduceOnPlateau(0.5, patience=1, threshold=0.01, minimum=0.2)
        other.load_state_dict(schedule.state_dict())
        schedule = other
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]
    with pytest.raises(ValueError, match="state must hold"):
        schedule.load_state_dict({})


@pytest.mark.parity
def test_whole_epochs_agree_with_torch():
    torch = pytest.importorskip("torch")
    rates = torch.optim.lr_scheduler

    def optimizer():
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)

    cases = [
        (Cosine(12, 0.1), lambda o: rates.CosineAnnealingLR(o, 12, eta_min=0.2)),
        (StepDecay(3, 0.3), lambda o: rates.StepLR(o, 3, gamma=0.3)),
        (WarmUp(4, start=0.25), lambda o: rates.LinearLR(o, 0.25, 1.0, total_iters=4)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimiser was not stepped
        for ours, theirs in cases:
            peer = optimizer()
            schedule = theirs(peer)
            for epoch in range(12):
                assert 2.0 * ours.factor(epoch) == pytest.approx(peer.param_groups[0]["lr"])
                schedule.step()
        ours, peer = ReduceOnPlateau(0.5, patience=2), optimizer()
        schedule = rates.ReduceLROnPlateau(peer, factor=0.5, patience=2)
        for loss in np.random.default_rng(0).random(40):
            ours.observe(loss)
            schedule.step(loss)
            assert 2.0 * ours.factor(0) == pytest.approx(peer.param_groups[0]["lr"])


def test_names():
    assert repr(make_schedule("cosine", epochs=3)) == "Cosine(epochs=3.0, minimum=0.0)"
    for name, options in (("constant", {}), ("step", {"every": 1}), ("plateau", {})):
        assert isinstance(make_schedule(name, **options), Schedule)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Cosine(0), ValueError, "epochs must be a positive number, got 0"),
        (lambda: StepDecay(1, 2), ValueError, "reduction must be above 0 and below 1, got 2"),
        (lambda: StepDecay(1, 0.0), ValueError, "reduction must be above 0 and below 1, got 0"),
        (lambda: ReduceOnPlateau(1.0), ValueError, "reduction must be above 0 and below 1"),
        (lambda: WarmUp(1, then=0.1), TypeError, "then must be a schedule, got float"),
        (lambda: ReduceOnPlateau(patience=0), ValueError, "patience must be a positive integer"),
        (lambda: make_schedule("linear"), ValueError, "schedule must be one of constant, cosine"),
        (lambda: Schedule().factor(0), TypeError, "use Constant"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_schedules_by_name():
    model = fg.SequenceModel.build("gru", 1, 1, seed=0)
    assert repr(fg.Trainer(model, schedule="cosine", max_epochs=7).schedule) == repr(Cosine(7))
    with pytest.raises(TypeError, match=r"schedule 'step': .*'every'; give .* or StepDecay\(...\)"):
        fg.Trainer(model, schedule="step")
