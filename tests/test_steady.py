"""The training loop's own way through a network: the same bits as the modules' passes."""

import copy
import itertools
import weakref

import numpy as np
import pytest
from helpers import assert_same_bits

import fastgates as fg
from fastgates._feed import Feed
from fastgates._sequences import windows
from fastgates._steady import SteadyNetwork
from fastgates.models import Model

SIZE, TIME, INPUTS, HIDDEN = 11, 9, 3, 10

CASES = [
    {},
    {"per_step": True},
    {"cell": "lstm", "per_step": True, "outputs": 1},
    {"cell": "rnn", "outputs": 7, "per_step": True},
    {"cell": "gru_reset_after", "time": 300},
    {"per_step": True, "time": 300, "outputs": 4},
    {"cell": "lstm", "cell_options": {"peepholes": True}},
    {"num_layers": 2, "dropout": 0.3},
    {"num_layers": 3, "dropout": 0.3, "variational": True, "per_step": True},
    {"bidirectional": True, "num_layers": 2, "dropout": 0.3},
    {"bidirectional": True, "num_layers": 2, "per_step": True},
    {"loss": "cross_entropy", "outputs": 3},
    {"loss": "quantile", "per_step": True, "washout": 2},
    {"loss": "huber", "weights": True},
    {"initial_state": "given", "cell": "lstm"},
    {"initial_state": "learned"},
    {"initial_state": "estimated", "per_step": True, "estimate_from_targets": True},
    {"initial_state": "estimated", "estimation_steps": 3, "bidirectional": True},
    {"scale_inputs": False, "scale_outputs": False},
]


def make(case):
    """Return a model and checked data for it."""
    case = dict(case)
    per_step, time = case.pop("per_step", False), case.pop("time", TIME)
    outputs, unequal = case.pop("outputs", 2), case.pop("unequal", False)
    weights, cell = case.pop("weights", False), case.pop("cell", "gru")
    random = np.random.default_rng(0)
    x = random.standard_normal((SIZE, time, INPUTS))
    shape = (SIZE, time) if per_step else (SIZE,)
    if case.get("loss") == "cross_entropy":
        y = random.integers(outputs, size=shape)
    else:
        y = random.standard_normal((*shape, outputs))
    more = {}
    if case.get("initial_state") == "given":
        state = random.standard_normal((2, 1, SIZE, HIDDEN))
        more["initial_state"] = (tuple(state) if cell == "lstm" else state[0],)
    if unequal:
        more["lengths"] = random.integers(1, time + 1, SIZE)
        more["lengths"][0] = time
    if weights:
        more["sample_weight"] = random.random(SIZE)
    model = fg.SequenceModel.build(
        cell, INPUTS, outputs, HIDDEN, return_sequences=per_step, seed=0, **case
    )
    data = model.check(fg.Sequences(x, y, **more))
    model.fit_scaling(data)
    return model, data


def step(learn, rows):
    """Return loss, weight and gradients of some rows."""
    loss, vector, weight = learn(rows)
    return loss, weight, vector.copy()


def trained(case, learner, threads=(1,)):
    """Return the losses and gradients of some steps, each with other parameters, and of rows."""
    model, data = make(case)
    learn, optimizer = learner(model, data), fg.Adam([model], lr=0.1)
    results = []
    rows = [np.array([3, 1, 7, 0]), np.array([5, 2, 9, 4]), np.array([8, 6, 10])]
    for (number, some), count in zip(enumerate(rows + rows), itertools.cycle(threads)):
        fg.set_num_threads(count)
        results.append(step(learn, some))
        optimizer._descend((results[-1][2],), 0.5)
        if number == 3:  # parameters change by hand, too
            with model.edit_parameters() as parameters:
                parameters.vector *= np.float32(0.9)
    return results


def assert_same(results, expected):
    for number, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        assert ours[:2] == theirs[:2]
        assert_same_bits(f"gradients of step {number}", ours[2], theirs[2])


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bits_are_those_of_the_modules(case, unequal, restore_threads):
    case = case | {"unequal": unequal}
    assert_same(trained(case, type(make(case)[0])._learner), trained(case, Model._learner))


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
def test_the_number_of_threads_may_change_on_the_way(unequal):
    case = {"per_step": True, "outputs": 7, "unequal": unequal, "time": 40}
    learner = fg.SequenceModel._learner
    assert_same(trained(case, learner, (1, 3, 2)), trained(case, learner))


def test_networks_of_other_modules():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((SIZE, TIME, INPUTS)), random.standard_normal((SIZE, TIME, 5))
    for per_step in (True, False):
        results = []
        for learner in (fg.SequenceModel._learner, Model._learner):
            network = fg.Sequential(
                fg.Dense(INPUTS, 4, "tanh", seed=1),
                fg.GRU(4, 6, seed=2),
                fg.Dense(6, 3, "relu", seed=3),
                fg.LSTM(3, 5, seed=4),
                return_sequences=per_step,
            )
            model = fg.SequenceModel(network)
            data = model.check(fg.Sequences(x, y if per_step else y[:, 0]))
            learn = learner(model, data)
            results.append([step(learn, np.arange(k, k + 4)) for k in range(3)])
        assert_same(*results)


def test_dropout_that_begins_and_ends_on_the_way():
    results = []
    for learner in (fg.SequenceModel._learner, Model._learner):
        model, data = make({"num_layers": 2})
        learn, found = learner(model, data), []
        for dropout in (0.0, 0.4, 0.4, 0.0, 0.4):
            model.recurrent[0].dropout = dropout
            found.append(step(learn, np.arange(5)))
        results.append(found)
    assert_same(*results)


def test_large_arrays_are_for_one_size_at_a_time(monkeypatch):
    made = []

    class Watched(SteadyNetwork):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr("fastgates.models._sequence.SteadyNetwork", Watched)
    case = {"per_step": True, "outputs": 7}
    expected = trained(case, Model._learner)
    assert_same(trained(case, fg.SequenceModel._learner), expected)
    assert len(made) == 2
    monkeypatch.setattr("fastgates.models._sequence._KEPT_BYTES", 1000)
    model, data = make(case)
    learn = model._learner(data)
    for count in (4, 3, 3, 4):
        learn(np.arange(count))
    assert len(made) == 2 + 3 and sum(each() is not None for each in made) == 1
    assert_same(trained(case, fg.SequenceModel._learner), expected)


def test_parameters_that_move_to_another_vector():
    model, data = make({})
    learn = model._learner(data)
    rows = np.arange(4)
    learn(rows)
    vector = model.parameter_vector.copy()
    model._bind(vector)
    with model.edit_parameters() as parameters:
        parameters.vector *= np.float32(1.5)
    assert_same([step(learn, rows)], [step(Model._learner(model, data), rows)])


def test_a_model_that_goes_elsewhere_leaves_the_arrays_of_the_loop(monkeypatch):
    model, data = make({})
    learn = model._learner(data)
    learn(np.arange(4))
    called = []
    monkeypatch.setattr(
        type(model), "_gradients_of", lambda self, part: called.append(part) or 1 / 0
    )
    learn(np.arange(4))
    model._device = "cuda"
    with pytest.raises(ZeroDivisionError):
        learn(np.arange(4))
    assert len(called) == 1


@pytest.mark.parametrize("replaced", ["forward", "loss_of", "gradients", "_forward", "backward"])
def test_methods_of_a_class_of_ones_own_are_called(replaced):
    calls = []

    class Mine(fg.SequenceModel):
        pass

    def mine(self, *arguments, **options):
        calls.append(replaced)
        return getattr(super(Mine, self), replaced)(*arguments, **options)

    setattr(Mine, replaced, mine)
    model, data = make({})
    expected = step(model._learner(data), np.arange(4))
    model.__class__ = Mine
    assert_same([step(model._learner(data), np.arange(4))], [expected])
    assert calls == [replaced]


def test_a_step_of_an_optimizer_of_ones_own_is_called():
    class Mine(fg.SGD):
        def step(self, gradients):
            norms.append(np.linalg.norm(gradients.parameter_vector))
            super().step(gradients)

    norms, vectors = [], []
    for optimizer in (Mine, fg.SGD):
        model, data = make({})
        trainer = fg.Trainer(model, optimizer=optimizer([model], 0.1), max_epochs=1, clip_norm=0.01)
        trainer.fit(data)
        vectors.append(model.parameter_vector.copy())
    assert norms and max(norms) < 0.011
    np.testing.assert_allclose(*vectors, atol=1e-6)


def test_a_scaling_that_changes_is_followed():
    model, data = make({})
    learn, rows = model._learner(data), np.arange(4)
    before = step(learn, rows)
    with model.input_scaling.edit_parameters() as parameters:
        parameters["mean"] += 1
    now = step(learn, rows)
    assert now[0] != before[0]
    assert_same([now], [step(model._learner(data), rows)])


def test_what_lies_past_the_ends_does_not_reach_a_read_out_before_the_layer():
    network = fg.Sequential(
        fg.Dense(3, 4, "tanh", seed=0), fg.GRU(4, 5, seed=1), fg.Dense(5, 1, seed=2),
        return_sequences=False,
    )  # fmt: skip
    x, vectors = np.random.default_rng(0).standard_normal((4, 6, 3)), []
    for filling in (np.nan, 0):
        x[1, 3:] = filling
        model = fg.SequenceModel(copy.deepcopy(network), loss="mse")
        data = model.check(fg.Sequences(x, np.ones(4), lengths=np.array([6, 3, 6, 6])))
        vectors.append(step(model._learner(data), np.arange(4))[2])
    assert np.isfinite(vectors[0]).all() and vectors[0].any()
    assert_same_bits("gradients", *vectors)


# -- Minibatches -----------------------------------------------------------------------------------

RANDOM = np.random.default_rng(3)
ARRAYS = {
    "float32": RANDOM.standard_normal((6, 5, 3)).astype(np.float32),
    "float64": RANDOM.standard_normal((6, 5, 3)),
    "float16": RANDOM.standard_normal((6, 5, 3)).astype(np.float16),
    "integers": RANDOM.integers(-9, 9, (6, 5, 3)),
    "bytes swapped": RANDOM.standard_normal((6, 5, 3)).astype(">f8"),
    "windows": windows(RANDOM.standard_normal((10, 3)), 5),
    "columns": RANDOM.standard_normal((6, 5, 9))[..., ::3],
    "backwards": RANDOM.standard_normal((6, 5, 3))[::-1],
    "reversed in time": RANDOM.standard_normal((6, 5, 3)).astype(np.float32)[:, ::-1],
    "Fortran": np.asfortranarray(RANDOM.standard_normal((6, 5, 3))),
    "unaligned": np.frombuffer(b"." + RANDOM.standard_normal(90).tobytes(), "f8", offset=1).reshape(
        6, 5, 3
    ),
    "wide": RANDOM.standard_normal((6, 40, 7)).astype(np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("scaled", [False, True])
def test_minibatches_are_gathered_and_scaled(name, scaled):
    x, rows = ARRAYS[name], np.array([4, 0, 5])
    size = x.shape[-1]
    scaling = fg.Scaling(RANDOM.random(size), 0.5 + RANDOM.random(size)) if scaled else None
    taken = Feed(fg.Sequences(x), {"x": scaling}).take(rows)
    expected = x[rows].astype(np.float32) if scaling is None else scaling(x[rows])
    assert_same_bits("x", taken.x, np.asarray(expected))
    assert taken.y is None and taken.lengths is None


def test_a_feed_fills_its_arrays_anew():
    feed = Feed(fg.Sequences(ARRAYS["float64"], np.arange(6)), {"x": None})
    assert len(feed) == 6
    first = feed.take(np.array([0, 1]))
    assert first.y.tolist() == [0, 1]
    kept = first.x.copy()
    again = feed.take(np.array([2, 3]))
    assert again.x is first.x and not np.array_equal(again.x, kept)
    assert feed.take(np.array([1])).x is not first.x
