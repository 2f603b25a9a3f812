"""The scikit-learn estimators: checks, forms of input, going on, copies, files, errors."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import fastgates as fg
from fastgates.estimators import SequenceClassifier, SequenceRegressor
from fastgates.files import read_header
from fastgates.models import LAYERS
from fastgates.training import Callback, DivergenceError

QUICK = {"hidden_size": 6, "max_epochs": 15, "learning_rate": 2e-2, "random_state": 0}


def regressor(**changes):
    return SequenceRegressor(**(QUICK | changes))


def classifier(**changes):
    return SequenceClassifier(**(QUICK | changes))


def weights(estimator):
    return estimator.model_.parameter_vector.copy()


def sequences(count=40, time=8, features=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, time, features))


def runs(count=40, features=2, seed=0):
    """Sequences of 3 to 9 steps."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3 + k % 7, features)) for k in range(count)]


X = sequences()
Y = X[:, :, 0].mean(axis=1)
LABELS = np.where(Y > 0, "up", "down")
RUNS = runs()
RUN_Y = np.array([run[:, 0].mean() for run in RUNS])
RUN_LABELS = np.where(RUN_Y > 0, "up", "down")


# scikit-learn's own checks

WEIGHTS = (
    "a weight of k and a sequence that is there k times differ: the minibatches and their order "
    "are others, and the scaling counts sequences, not weights"
)
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": WEIGHTS}


@pytest.mark.parametrize(
    "estimator", [regressor(max_epochs=40), classifier(max_epochs=40)], ids=str
)
def test_scikit_learns_checks(estimator):
    results = check_estimator(
        estimator, expected_failed_checks=EXPECTED, on_skip=None, on_fail="raise"
    )
    status = {result["check_name"]: result["status"] for result in results}
    assert {name for name, each in status.items() if each == "xfail"} == set(EXPECTED)
    # Only where the environment variable SCIPY_ARRAY_API is not set.
    assert {n for n, each in status.items() if each == "skipped"} <= {"check_array_api_input"}
    assert len(results) > 50


def test_names_are_lazy():
    from helpers import run_python

    result = run_python("""
        import sys
        import fastgates
        assert "sklearn" not in sys.modules
        assert "SequenceRegressor" in dir(fastgates)
        fastgates.SequenceRegressor
        assert "sklearn" in sys.modules
        print("done")
    """)
    assert result.stdout.strip() == "done"


def test_without_scikit_learn():
    from helpers import run_python

    result = run_python("""
        import sys
        sys.modules["sklearn"] = None
        import fastgates
        try:
            fastgates.SequenceRegressor
        except ImportError as error:
            print(error)
    """)
    wanted = "an estimator needs scikit-learn: pip install 'fastgates[sklearn]'"
    assert result.stdout.strip() == wanted


# Forms of input


def test_all_forms_of_the_same_sequences_give_the_same_model():
    x = X[:, :, :1]
    array, table, listed = x, x[:, :, 0], list(x)
    flat = [each[:, 0] for each in x]
    models = [regressor().fit(form, Y) for form in (array, table, listed, flat)]
    for model in models:
        np.testing.assert_array_equal(weights(model), weights(models[0]))
        for form in (array, table, listed, flat):
            np.testing.assert_array_equal(model.predict(form), models[0].predict(array))
    assert [model.n_features_in_ for model in models] == [1, 8, 1, 1]


def test_padding_of_unequal_sequences_changes_nothing():
    model = regressor().fit(RUNS, RUN_Y)
    together = model.predict(RUNS)
    for k in (0, 5, 6):
        np.testing.assert_array_equal(model.predict([RUNS[k]]), together[k : k + 1])
        np.testing.assert_array_equal(model.predict(RUNS[k][None]), together[k : k + 1])
    as_lists = [run.tolist() for run in RUNS]
    np.testing.assert_array_equal(model.predict(as_lists), together)
    as_objects = np.empty(len(RUNS), dtype=object)
    as_objects[:] = RUNS
    np.testing.assert_array_equal(model.predict(as_objects), together)


def test_frames_in_a_list_have_names():
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(run, columns=["a", "b"]) for run in RUNS]
    model = regressor().fit(frames, RUN_Y)
    assert model.feature_names_in_.tolist() == ["a", "b"]
    np.testing.assert_array_equal(model.predict(frames), regressor().fit(RUNS, RUN_Y).predict(RUNS))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict([frame.rename(columns={"a": "c"}) for frame in frames])


def test_windows_of_a_series_are_views():
    series = np.random.default_rng(0).normal(size=(60, 2))
    windows = fg.training.windows(series, 10)
    model = regressor().fit(windows, series[9:, 0])
    np.testing.assert_array_equal(model.predict(windows), model.predict(windows.copy()))


@pytest.mark.parametrize("cell", LAYERS)
def test_every_cell_learns(cell):
    assert regressor(cell=cell, max_epochs=40).fit(X, Y).score(X, Y) > 0.5
    assert classifier(cell=cell, max_epochs=40).fit(X, LABELS).score(X, LABELS) > 0.8


def test_more_than_one_target():
    y = np.column_stack([Y, -2 * Y, X[:, -1, 1]])
    model = regressor(max_epochs=40).fit(X, y)
    assert model.predict(X).shape == (40, 3)
    assert model.score(X, y) > 0.5
    assert regressor().fit(X, Y[:, None]).predict(X).shape == (40, 1)


def test_targets_of_every_step():
    y = np.cumsum(X[:, :, 0], axis=1)
    model = regressor(per_step=True, washout=2, max_epochs=40).fit(X, y)
    assert model.predict(X).shape == y.shape
    assert model.score(X, y) > 0.8
    several = regressor(per_step=True).fit(X, np.stack([y, -y], axis=2))
    assert several.predict(X).shape == (40, 8, 2)
    listed = [np.cumsum(run[:, 0]) for run in RUNS]
    model = regressor(per_step=True, max_epochs=40).fit(RUNS, listed)
    prediction = model.predict(RUNS)
    assert [each.shape for each in prediction] == [each.shape for each in listed]
    assert model.score(RUNS, listed) > 0.7
    assert model.score(RUNS, listed, sample_weight=np.ones(40)) == model.score(RUNS, listed)


def test_labels_of_every_step():
    y = np.where(np.cumsum(X[:, :, 0], axis=1) > 0, 1, -1)
    model = classifier(per_step=True, max_epochs=40).fit(X, y)
    assert model.predict_proba(X).shape == (40, 8, 2)
    assert model.score(X, y) > 0.8
    assert (model.predict(X) == y).mean() == pytest.approx(model.score(X, y))
    listed = [np.where(np.cumsum(run[:, 0]) > 0, "up", "down") for run in RUNS]
    model = classifier(per_step=True, max_epochs=40, early_stopping=True).fit(RUNS, listed)
    assert [len(each) for each in model.predict(RUNS)] == [len(run) for run in RUNS]
    assert model.score(RUNS, listed, np.ones(40)) == model.score(RUNS, listed)


def test_large_offsets_do_not_drown_the_signal():
    shifted = regressor().fit(X + 1000.0, Y + 1000.0)
    plain = regressor().fit(X, Y)
    np.testing.assert_allclose(shifted.predict(X + 1000.0) - 1000.0, plain.predict(X), atol=2e-2)


# Losses and intervals


@pytest.mark.parametrize("loss", ["mae", "huber", fg.losses.Loss("huber", delta=0.5)], ids=str)
def test_other_losses(loss):
    assert regressor(loss=loss, max_epochs=40).fit(X, Y).score(X, Y) > 0.5


def test_quantiles():
    rng = np.random.default_rng(1)
    x = sequences(400)
    y = x[:, -1, 0] + rng.normal(size=400)
    model = regressor(
        loss="quantile", loss_options={"quantiles": (0.1, 0.5, 0.9)}, max_epochs=60
    ).fit(x[:300], y[:300])
    found = model.predict_quantiles(x)
    assert found.shape == (400, 3)
    np.testing.assert_array_equal(model.predict(x), found[:, 1])
    assert ((y < found[:, 0]).mean(), (y < found[:, 2]).mean()) == pytest.approx(
        (0.1, 0.9), abs=0.1
    )
    with pytest.raises(ValueError, match="predict_quantiles needs loss='quantile', got 'mse'"):
        regressor().fit(X, Y).predict_quantiles(X)


def test_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(2)
    x = sequences(1500, time=4)
    y = x[:, -1, 0] + rng.normal(size=1500)
    model = regressor(max_epochs=3).fit(x[:300], y[:300]).calibrate(x[300:900], y[300:900])
    prediction, lower, upper = model.predict_interval(x[900:], coverage=0.8)
    np.testing.assert_array_equal(prediction, model.predict(x[900:]))
    inside = (lower <= y[900:]) & (y[900:] <= upper)
    assert inside.mean() == pytest.approx(0.8, abs=0.05)
    listed = [np.cumsum(run[:, 0]) for run in RUNS]
    steps = regressor(per_step=True, washout=1).fit(RUNS, listed).calibrate(RUNS, listed)
    lower = steps.predict_interval(RUNS).lower
    assert [len(each) for each in lower] == [len(run) for run in RUNS]
    with pytest.raises(ValueError, match="intervals need calibrate"):
        regressor().fit(X, Y).predict_interval(X)


# The same bits, and going on


@pytest.mark.parametrize("make", [regressor, classifier], ids=["regressor", "classifier"])
def test_the_random_state_decides_every_bit(make, restore_threads):
    y = Y if make is regressor else LABELS
    options = {"num_layers": 2, "dropout": 0.3, "early_stopping": True, "bidirectional": True}
    first = make(**options).fit(X, y)
    fg.set_num_threads(3)
    again = clone(first).fit(X, y)
    np.testing.assert_array_equal(weights(again), weights(first))
    other = make(**(options | {"random_state": 1}))
    assert not np.array_equal(weights(other.fit(X, y)), weights(first))
    state = np.random.RandomState(3)
    one = make(random_state=state).fit(X, y)
    assert not np.array_equal(weights(one), weights(make(random_state=state).fit(X, y)))


def test_early_stopping_keeps_the_best_epoch():
    model = classifier(early_stopping=True, validation_fraction=0.25, patience=3, max_epochs=200)
    model.fit(X, LABELS)
    assert model.history_.stop_reason == "patience"
    assert model.n_iter_ == model.history_.best_epoch + 3
    given = regressor(max_epochs=5).fit(X[:30], Y[:30], validation=(X[30:], Y[30:]))
    assert np.isfinite(given.history_["validation_loss"]).all()


def test_warm_start_goes_on():
    model = regressor(warm_start=True, max_epochs=5).fit(X, Y)
    first = model.history_["loss"]
    model.fit(X, Y)
    assert model.history_["loss"][0] < first[0]
    cold = regressor(max_epochs=5).fit(X, Y).fit(X, Y)
    np.testing.assert_array_equal(cold.history_["loss"], first)
    with pytest.raises(ValueError, match="to go on training, hidden_size must be 6 as before"):
        model.set_params(hidden_size=7).fit(X, Y)


def test_partial_fit_goes_on():
    model = regressor()
    for _ in range(15):
        model.partial_fit(X, Y)
    whole = regressor().fit(X, Y)
    np.testing.assert_array_equal(weights(model), weights(whole))
    whole.partial_fit(X, Y)
    model.partial_fit(X, Y)
    np.testing.assert_array_equal(weights(model), weights(whole))
    assert model.n_iter_ == 16


def test_partial_fit_of_a_classifier_knows_all_classes_from_the_start():
    model = classifier().partial_fit(X[:10], LABELS[:10], classes=["down", "sideways", "up"])
    model.partial_fit(X[10:], LABELS[10:])
    assert model.predict_proba(X).shape == (40, 3)
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(X, LABELS, classes=["down", "up"])
    with pytest.raises(ValueError, match="classes must be given at the first call"):
        classifier().partial_fit(X, LABELS)
    with pytest.raises(ValueError, match="'balanced' cannot be used with partial_fit"):
        classifier(class_weight="balanced").partial_fit(X, LABELS, classes=["down", "up"])


def test_sample_weights_are_relative_and_zero_leaves_out():
    weight = np.where(np.arange(40) < 20, 1.0, 0.0)
    x, y = X.copy(), Y.copy()
    y[20:] = -5.0 * y[:20]
    model = regressor(max_epochs=60, batch_size=40).fit(x, y, weight)
    assert model.score(x[:20], y[:20]) > 0.8 > model.score(x[20:], y[20:])
    scaled = regressor(max_epochs=60, batch_size=40).fit(x, y, 4 * weight)
    np.testing.assert_allclose(scaled.predict(x), model.predict(x), rtol=1e-4, atol=1e-4)
    per_step = regressor(per_step=True).fit(X, X[:, :, 0], np.ones((40, 8)))
    plain = regressor(per_step=True).fit(X, X[:, :, 0])
    np.testing.assert_allclose(per_step.predict(X), plain.predict(X), atol=1e-4)


def test_class_weights_move_the_decision():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 4, 1))
    y = (x[:, -1, 0] + rng.normal(size=200) > 1.5).astype(int)
    plain = classifier(max_epochs=20).fit(x, y)
    balanced = classifier(max_epochs=20, class_weight="balanced").fit(x, y)
    assert balanced.predict(x).mean() > plain.predict(x).mean()
    heavy = classifier(max_epochs=20, class_weight={0: 1e-3, 1: 1e3}).fit(x, y)
    assert heavy.predict(x).mean() > 0.9


def test_callbacks_see_the_training():
    seen = []

    class Recorder(Callback):
        def on_epoch_end(self, trainer):
            seen.append(trainer.epoch)
            if trainer.epoch == 3:
                trainer.stop()

    model = regressor(callbacks=(Recorder(),)).fit(X, Y)
    assert seen == [1, 2, 3]
    assert model.history_.stop_reason == "callback"


def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path):
    def stop(trainer):
        if trainer.epoch == 4:
            raise KeyboardInterrupt

    options = {"early_stopping": True, "num_layers": 2, "dropout": 0.2}
    whole = regressor(**options).fit(X, Y)
    broken = regressor(**options, checkpoint=tmp_path / "c", resume=True, callbacks=(stop,))
    with pytest.raises(KeyboardInterrupt):
        broken.fit(X, Y)
    resumed = broken.set_params(callbacks=()).fit(X, Y)
    np.testing.assert_array_equal(weights(resumed), weights(whole))
    with pytest.raises(ValueError, match="is of is another"):
        regressor(checkpoint=tmp_path / "c", resume=True, batch_size=7).fit(X, Y)


@pytest.mark.parametrize(
    "schedule", ["cosine", "plateau", fg.schedules.ReduceOnPlateau(patience=2)], ids=str
)
def test_schedules_begin_anew_at_each_fit(schedule):
    model = regressor(schedule=schedule)
    first = weights(model.fit(X, Y))
    np.testing.assert_array_equal(weights(model.fit(X, Y)), first)


# Copies and files


@pytest.mark.parametrize(
    ("make", "y"), [(regressor, Y), (classifier, LABELS)], ids=["regressor", "classifier"]
)
def test_copies_and_files_predict_the_same(make, y, tmp_path):
    joblib = pytest.importorskip("joblib")
    model = make().fit(X, y)
    stream = io.BytesIO()
    joblib.dump(model, stream)
    stream.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), joblib.load(stream)]
    for twin in twins:
        np.testing.assert_array_equal(twin.predict(X), model.predict(X))
        twin.partial_fit(X, y)
    np.testing.assert_array_equal(weights(twins[0]), weights(twins[1]))
    model.partial_fit(X, y)
    np.testing.assert_array_equal(weights(twins[0]), weights(model))


FILED = {
    "regressor": lambda: regressor().fit(X, Y).calibrate(X, Y),
    "of steps": lambda: regressor(per_step=True, washout=1).fit(X, X[:, :, 0]),
    "several targets": lambda: regressor(initial_state="learned").fit(X, X[:, -1]),
    "quantiles": lambda: regressor(loss=fg.losses.Loss("quantile", quantiles=(0.2, 0.5))).fit(X, Y),
    "table": lambda: regressor(schedule="cosine").fit(X[:, :, 0], Y),
    "texts": lambda: classifier().fit(RUNS, RUN_LABELS),
    "numbers": lambda: classifier(class_weight={-1: 2.0, 1: 1.0}).fit(X, np.where(Y > 0, 1, -1)),
    "objects": lambda: classifier(bidirectional=True).fit(X, LABELS.astype(object)),
    "truths": lambda: classifier(class_weight="balanced", num_layers=2).fit(X, Y > 0),
}


@pytest.mark.parametrize("name", FILED)
def test_files(name, tmp_path):
    pytest.importorskip("safetensors")
    model = FILED[name]()
    x = {"table": X[:, :, 0], "texts": RUNS}.get(name, X)
    fg.save(model, tmp_path / "model", record={"note": "kept"})
    loaded = fg.load(tmp_path / "model")
    assert type(loaded) is type(model)
    header = read_header(tmp_path / "model")
    summary = dict(header.kind.summary(header.header))
    assert summary["cell"] == f"gru, 6 x {model.num_layers}"
    if hasattr(model, "classes_"):
        assert summary["classes"] == ", ".join(map(str, model.classes_))
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    if hasattr(model, "classes_"):
        np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
        assert loaded.classes_.dtype == model.classes_.dtype
    if hasattr(model, "residuals_"):
        np.testing.assert_array_equal(loaded.radius(), model.radius())
    assert clone(loaded).get_params().keys() == model.get_params().keys()
    fg.save(loaded, tmp_path / "again", record={"note": "kept"})
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    deployed, output = loaded.to_sequential(), None
    if name not in ("table", "texts", "several targets"):
        output = deployed(x)[0]
        wanted = model.predict_proba(x) if hasattr(model, "classes_") else model.predict(x)
        if name == "quantiles":
            wanted = model.predict_quantiles(x)
        np.testing.assert_allclose(output.reshape(wanted.shape), wanted, atol=1e-5)


def test_what_cannot_be_saved(tmp_path):
    pytest.importorskip("safetensors")

    class Mine(SequenceRegressor):
        pass

    with pytest.raises(TypeError, match="a subclass of the estimators cannot be saved, got Mine"):
        fg.save(Mine(**QUICK).fit(X, Y), tmp_path / "model")


# Among scikit-learn's tools


def test_pipeline_and_grid_search_in_two_processes():
    pipeline = make_pipeline(StandardScaler(), classifier(max_epochs=5))
    search = GridSearchCV(
        pipeline,
        {"sequenceclassifier__cell": ["gru", "rnn"], "sequenceclassifier__hidden_size": [4]},
        cv=2,
        n_jobs=2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib's, of the machine
        search.fit(X[:, :, 0], LABELS)
    assert set(search.best_params_) == set(search.param_grid)
    assert search.predict(X[:, :, 0]).shape == (40,)


def test_cross_validation_over_lists():
    scores = cross_val_score(classifier(max_epochs=5), RUNS, RUN_LABELS, cv=KFold(2))
    assert scores.shape == (2,)


# Bad input


def with_entry(value, place=(3, 5, 1)):
    x = X.copy()
    x[place] = value
    return x


def with_run(k, change):
    changed = list(RUNS)
    changed[k] = change(changed[k])
    return changed


def nan_run(run):
    run = run.copy()
    run[1, 0] = np.nan
    return run


BAD = {
    "NaN": (
        with_entry(np.nan),
        Y,
        ValueError,
        r"X must be finite, got NaN at sequence 3, step 5, fea",
    ),
    "infinite": (with_entry(-np.inf), Y, ValueError, "X must be finite, got inf at sequence 3"),
    "NaN in a table": (with_entry(np.nan)[:, :, 1], Y, ValueError, "got NaN at sequence 3, step 5"),
    "NaN in a list": (
        with_run(4, nan_run),
        RUN_Y,
        ValueError,
        r"X\[4\] .* NaN at step 1, feature 0",
    ),
    "unequal features": (
        with_run(2, lambda run: run[:, :1]),
        RUN_Y,
        ValueError,
        r"X\[2\] must have shape \(time, features=2\) as X\[0\], got \(5, 1\)",
    ),
    "an empty sequence": (
        with_run(2, lambda run: run[:0]),
        RUN_Y,
        ValueError,
        r"X\[2\] must have at least one step",
    ),
    "texts in a list": (
        with_run(2, lambda run: run.astype(str)),
        RUN_Y,
        TypeError,
        r"X\[2\] must hold real numbers",
    ),
    "four axes": (X[None], Y, ValueError, "dim 4|4 dim|shape"),
    "no steps": (
        X[:, :0],
        Y,
        ValueError,
        r"at least one step and one feature, got shape \(40, 0, 2\)",
    ),
    "no sequences": (X[:0], Y[:0], ValueError, "0 sample|minimum of 1|at least one sequence"),
    "an empty list": ([], [], ValueError, "Expected 2D array|at least one|0 sample"),
    "complex numbers": (X + 1j, Y, ValueError, "Complex data not supported"),
    "texts": (
        X[:, :, 0].astype(str).astype(object) + "a",
        Y,
        ValueError,
        "could not convert string",
    ),
    "other lengths": (X, Y[:-1], ValueError, r"inconsistent numbers of samples: \[40, 39\]"),
    "no targets": (X, None, ValueError, "requires y to be passed"),
    "NaN in the targets": (
        X,
        np.where(Y > 0, Y, np.nan),
        ValueError,
        "y must be finite, got NaN at",
    ),
    "targets of steps": (X, X[:, :, :1], ValueError, r"y must have shape \(n,\) or \(n, targets\)"),
    "texts as targets": (X, LABELS, ValueError, "could not convert string"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_of_a_regressor(name):
    x, y, error, message = BAD[name]
    with pytest.raises(error, match=message):
        regressor().fit(x, y)


STEPS = X[:, :, 0]
BAD_STEPS = {
    "one a sequence": (X, Y, r"y must have shape \(n=40, time=8\)"),
    "too few steps": (X, STEPS[:, 1:], r"a target for every step, got \(40, 7\)"),
    "a list too short": (
        RUNS,
        [run[1:, 0] for run in RUNS],
        r"y\[0\] must have the 3 steps of X\[0\]",
    ),
    "too few lists": (RUNS, [run[:, 0] for run in RUNS[1:]], "y must be a list of 40 arrays"),
    "unequal targets": (
        RUNS,
        [run if k else run[:, :1] for k, run in enumerate(RUNS)],
        r"y\[1\] must have the targets of y\[0\]",
    ),
    "NaN": (X, np.where(STEPS > 0, STEPS, np.nan), "y must be finite, got NaN at sequence 0, step"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_targets_of_steps(name):
    x, y, message = BAD_STEPS[name]
    with pytest.raises(ValueError, match=message):
        regressor(per_step=True).fit(x, y)


BAD_LABELS = {
    "one class": (X, np.ones(40, int), "at least 2 classes, got 1 class: 1"),
    "numbers": (X, Y, "Unknown label type: continuous"),
    "two columns": (X, np.stack([LABELS, LABELS], 1), "y should be a 1d array"),
    "NaN": (X, np.where(Y > 0, 1.0, np.nan), "Input y contains NaN"),
    "too few": (X, LABELS[:-1], "inconsistent numbers of samples"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels(name):
    x, y, message = BAD_LABELS[name]
    with pytest.raises(ValueError, match=message):
        classifier().fit(x, y)


def test_labels_outside_the_classes():
    model = classifier(warm_start=True).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"y must hold the classes \['down', 'up'\], got .*side"):
        model.fit(X, np.where(Y > 0, "up", "side"))
    with pytest.raises(ValueError, match="y must hold the classes"):
        classifier().fit(X, LABELS, validation=(X[:2], ["up", "side"]))


BAD_WEIGHTS = {
    "negative": (-np.ones(40), "sample_weight must be finite and not negative"),
    "NaN": (np.full(40, np.nan), "sample_weight must be finite"),
    "zero": (np.zeros(40), "sample_weight must not be zero everywhere"),
    "too few": (np.ones(39), r"sample_weight must have shape \(40,\), got \(39,\)"),
    "of steps": (np.ones((40, 8)), r"sample_weight must have shape \(40,\), got \(40, 8\)"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(name):
    weight, message = BAD_WEIGHTS[name]
    for make, y in ((regressor, Y), (classifier, LABELS)):
        with pytest.raises(ValueError, match=message):
            make().fit(X, y, weight)


BAD_PREDICTIONS = {
    "features": (X[:, :, :1], "X has 1 features, but SequenceRegressor is expecting 2 features"),
    "a table": (X[:, :, 0], r"X must have shape \(n, time, features=2\) or be a list"),
    "a list": (
        [run[:, :1] for run in RUNS],
        "X has 1 features, but SequenceRegressor is expecting 2",
    ),
    "NaN": (with_entry(np.nan), "got NaN at sequence 3"),
}


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_bad_input_of_a_prediction(name):
    x, message = BAD_PREDICTIONS[name]
    with pytest.raises(ValueError, match=message):
        regressor(max_epochs=1).fit(X, Y).predict(x)


def test_a_table_stays_as_long_as_it_was():
    model = regressor(max_epochs=1).fit(X[:, :, 0], Y)
    with pytest.raises(ValueError, match="X has 7 features, but SequenceRegressor is expecting 8"):
        model.predict(X[:, :7, 0])
    assert model.predict(X[:, :7, :1]).shape == (40,)
    with pytest.raises(ValueError, match="is expecting 1 feature"):
        model.predict(X)


BAD_PARAMETERS = [
    ({"cell": "gated"}, ValueError, "cell must be one of"),
    ({"cell_options": {"leak": 0.5}}, TypeError, "leak"),
    ({"hidden_size": 0}, ValueError, "hidden_size must be a positive integer, got 0"),
    ({"dropout": 1.0}, ValueError, "dropout must be in"),
    ({"initial_state": "given"}, ValueError, "initial_state must be zero, learned or estimated"),
    ({"optimizer": "newton"}, ValueError, "optimizer must be one of"),
    ({"schedule": "linear"}, ValueError, "schedule must be one of"),
    ({"learning_rate": -1.0}, ValueError, "learning_rate must be a positive number"),
    ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
    ({"early_stopping": True, "patience": 0}, ValueError, "patience must be a positive integer"),
    ({"early_stopping": True, "validation_fraction": 1.0}, ValueError, "fraction must be between"),
    ({"resume": True}, ValueError, "resume needs a checkpoint"),
    ({"loss": "cross_entropy"}, ValueError, "loss of a regressor must not be cross_entropy"),
    ({"loss": "hinge"}, ValueError, "loss must be one of"),
    ({"loss_options": {"delta": 1.0}}, ValueError, "the options of mse are: none; got delta"),
    ({"washout": 2}, ValueError, "washout"),
    ({"callbacks": (3,)}, TypeError, "callbacks must have one of"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_PARAMETERS, ids=lambda case: str(case))
def test_bad_parameters(change, error, message):
    with pytest.raises(error, match=message):
        regressor(**change).fit(X, Y)


def test_constant_columns_are_no_obstacle():
    x = X.copy()
    x[:, :, 1] = 7.0
    model = regressor(max_epochs=40).fit(x, Y)
    assert model.score(x, Y) > 0.5
    assert np.isfinite(regressor().fit(x, np.full(40, 3.0)).predict(x)).all()


def test_divergence_keeps_the_model_before():
    model = regressor().fit(X, Y)
    before = model.predict(X)
    with pytest.raises(DivergenceError, match="diverged in epoch"):
        model.set_params(learning_rate=1e37, clip_norm=None).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), before)


def test_intervals_need_a_calibration_of_the_same_model():
    model = regressor().fit(X, Y).calibrate(X, Y)
    model.radius()
    for train in (model.fit, model.partial_fit):
        train(X, Y)
        with pytest.raises(ValueError, match="intervals need calibrate"):
            model.radius()
        model.calibrate(X, Y)


FAILING = {
    "other labels, negative weights": (
        classifier, LABELS, lambda m: m.fit(X, ["p", "q"] * 20, -np.ones(40)),
    ),
    "one label": (classifier, LABELS, lambda m: m.fit(X, ["p"] * 40)),
    "other features, NaN": (regressor, Y, lambda m: m.fit(X[:, :, :1], np.full(40, np.nan))),
    "more targets, weights": (regressor, Y, lambda m: m.fit(X, np.c_[Y, Y], -np.ones(40))),
    "in training": (
        regressor, Y, lambda m: m.set_params(warm_start=True, callbacks=(failing,)).fit(X, 2 * Y),
    ),
}  # fmt: skip


def failing(trainer):
    raise RuntimeError("callback")


@pytest.mark.parametrize("name", FAILING)
def test_a_fit_that_fails_leaves_the_estimator_as_it_was(name):
    make, y, fail = FAILING[name]
    model = make().fit(X, y)
    before = model.predict(X)
    with pytest.raises((ValueError, RuntimeError)):
        fail(model)
    np.testing.assert_array_equal(model.predict(X), before)


def test_a_first_fit_that_fails_leaves_nothing():
    model = classifier()
    with pytest.raises(ValueError, match="must hold the classes"):
        model.partial_fit(X, LABELS, classes=["p", "q"])
    assert not [name for name in vars(model) if name.endswith("_")]


def test_a_warm_start_takes_changed_parameters():
    model = regressor(warm_start=True, num_layers=2).fit(X, Y)
    model.set_params(loss="mae", dropout=0.3).fit(X, Y)
    assert model.model_.loss.name == "mae"
    assert [layer.dropout for layer in model.model_.recurrent] == [0.3]
    with pytest.raises(ValueError, match="the loss must have 1 outputs for a target as before"):
        model.set_params(loss="quantile").fit(X, Y)
    assert model.model_.loss.name == "mae"
    with pytest.raises(ValueError, match=r"cell_options must be \{\} as before"):
        model.set_params(loss="mse", cell_options={"reset_after": True}).fit(X, Y)


def test_partial_fit_takes_changed_parameters():
    model = regressor().partial_fit(X, Y)
    before = weights(model)
    model.set_params(learning_rate=1e-9).partial_fit(X, Y)
    assert 0 < np.abs(weights(model) - before).max() < 1e-6
    assert model.n_iter_ == 2


def test_scores_of_steps_take_what_fit_takes():
    pandas = pytest.importorskip("pandas")
    table, labels = pandas.DataFrame(X[:, :, 0]), (X[:, :, 0] > 0).astype(int)
    model = regressor(per_step=True).fit(table, table)
    assert model.score(table, table) == model.score(X[:, :, :1], X[:, :, 0])
    model.calibrate(table, table)
    judge = classifier(per_step=True).fit(X, labels)
    assert judge.score(X, pandas.DataFrame(labels)) == judge.score(X, labels)
    for y in (labels[:, 0], labels[:, :1]):
        with pytest.raises(ValueError, match="y must have"):
            judge.score(X, y)
    with pytest.raises(ValueError, match="nothing counts"):
        judge.set_params(washout=8).score(X, labels)


def test_all_frames_of_a_list_have_the_columns_of_the_first():
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(run, columns=["u", "v"]) for run in RUNS]
    model = regressor().fit(frames, RUN_Y)
    frames[3] = frames[3][["v", "u"]]
    with pytest.raises(ValueError, match=r"X\[3\] must have the columns of X\[0\]"):
        model.predict(frames)


def test_numbers_beyond_float32_are_refused():
    model = regressor().fit(X, Y)
    with pytest.raises(ValueError, match=r"X must be within the range of float32, got .*at "):
        model.predict(X * 1e300)


def test_validation_is_a_pair():
    with pytest.raises(TypeError, match=r"validation must be a pair \(X, y\), got 3 entries"):
        regressor().fit(X, Y, validation=(X, Y, Y))
