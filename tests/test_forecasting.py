"""The forecaster: series in and out, with and without pandas, its intervals, and the baselines."""

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

import fastgates as fg
from fastgates._modelfile import ModelFileError
from fastgates._series import windows_of
from fastgates._tables import DataError
from fastgates.baselines import linear_autoregression, metrics, persistence
from fastgates.estimators import SequenceForecaster
from fastgates.estimators._conformal import radius
from fastgates.files import read_header
from fastgates.forecasting import Split, chronological_split, compare
from fastgates.training import DivergenceError

CELLS = ("rnn", "simplified_gru", "gru", "lstm")
SPLIT = Split(80, 100, 100)


def logistic_map(rows=400, start=0.3):
    """Deterministic and chaotic: one step ahead is easy, but not for a linear model."""
    values = [start]
    while len(values) < rows:
        values.append(3.9 * values[-1] * (1.0 - values[-1]))
    return np.array(values)


def driven(rows=300):
    """A target that follows another column with a lag of two rows."""
    rng = np.random.default_rng(8)
    drive = rng.normal(size=rows)
    target = np.zeros(rows)
    target[2:] = 5.0 + 2.0 * drive[:-2]
    return np.column_stack([target, 100.0 * drive + 7.0])


def small(**changes):
    settings = {"hidden_size": 4, "window": 5, "max_epochs": 2, "batch_size": 64, "random_state": 0}
    return SequenceForecaster(**(settings | changes))


def fitted(series, split=SPLIT, **changes):
    return small(**changes).fit(series[:, 0], series[:, 1:], split=split)


def rolling(model, series, lead=0):
    return model.predict_rolling(series[:, 0], series[:, 1:])[:, lead]


def weights(model):
    return model.model_.parameter_vector.copy()


# Metrics and baselines


def test_metrics_are_their_formulas():
    truth, prediction = np.array([1.0, 2.0, 4.0, 5.0]), np.array([1.0, 3.0, 4.0, 3.0])
    rmse, mae, r2 = metrics(prediction, truth)
    assert rmse == pytest.approx(math.sqrt(5 / 4))
    assert mae == pytest.approx(3 / 4)
    assert r2 == pytest.approx(1 - 5 / 10)
    assert metrics(truth, truth) == (0.0, 0.0, 1.0)
    assert math.isnan(metrics([1.0, 2.0], [3.0, 3.0]).r2)
    with pytest.raises(ValueError, match=r"one shape, not empty, got \(2,\) and \(3,\)"):
        metrics([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="not empty"):
        metrics([], [])


def test_persistence_is_the_last_value_of_each_window():
    series = np.arange(10.0)
    np.testing.assert_array_equal(persistence(series, 4), series[3:])


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("rows", [60, 9000])
def test_linear_autoregression_is_least_squares(rows, horizon):
    window, train_end = 3, rows - 20
    series = np.cumsum(np.random.default_rng(9).normal(size=(rows, 2)), axis=0)
    forecast = linear_autoregression(series, window, horizon, train_end)
    inputs = np.array([series[k : k + window].ravel() for k in range(rows - window + 1)])
    design = np.column_stack([inputs, np.ones(len(inputs))])
    count = train_end - window - horizon + 1
    target = series[window + horizon - 1 :][:count, 0]
    expected = design @ np.linalg.lstsq(design[:count], target)[0]
    np.testing.assert_allclose(forecast, expected, rtol=1e-8, atol=1e-8)


def test_linear_autoregression_finds_a_linear_law():
    series = [1.0, 0.5]
    while len(series) < 50:
        series.append(0.3 + 1.2 * series[-1] - 0.7 * series[-2])
    forecast = linear_autoregression(series, 2, 1, 30)
    np.testing.assert_allclose(forecast[:-1], series[2:], atol=1e-12)
    with pytest.raises(DataError, match="at least 3 rows, got 2"):
        linear_autoregression(series, 2, 1, 2)


def test_linear_autoregression_with_more_weights_than_rows_and_constant_columns():
    series = np.column_stack([np.sin(np.arange(30.0)), np.ones(30)])
    forecast = linear_autoregression(series, 12, 1, 20)
    np.testing.assert_allclose(forecast[:-1], series[12:, 0], atol=1e-6)


# Splitting and windows


def test_split_is_in_time_order():
    assert chronological_split(100, 10, test=0.15) == Split(55, 70, 85)
    assert chronological_split(100, 10) == Split(70, 85, 100)
    split = chronological_split(1000, 64, (5,), validation=0.1, calibration=0, test=0.2)
    assert split == Split(700, 800, 800)
    assert chronological_split(30, 1, validation=0.01, calibration=0.01) == Split(19, 21, 30)


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(DataError, match=r"too few rows: 60; a window of 50 .* about \d+") as caught:
        chronological_split(60, 50)
    needed = int(str(caught.value).split("about ")[1].split(":")[0])
    chronological_split(needed, 50)


@pytest.mark.parametrize("leads", [(1,), (3,), (1, 2, 3), (2, 5)])
def test_windows_forecast_rows_of_their_part_only(leads):
    split, window = Split(30, 45, 60), 4
    for part, start, stop in zip(split.windows(window, leads), (0, 30, 45), split, strict=True):
        rows = [k + window - 1 + lead for k in range(part.start, part.stop) for lead in leads]
        assert min(rows) >= start
        assert max(rows) == stop - 1
        assert part.start == max(0, start - leads[0] - window + 1)


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        (Split(100, 90, 100), ValueError, "must have 0 < train_end <= validation_end"),
        (Split(5, 100, 100), DataError, "training part must have at least 7 rows .* got 5"),
        (Split(80, 81, 100), DataError, "validation part must have at least 2 rows"),
        (Split(80, 100, 101), DataError, "calibration part must have at least 2 rows"),
    ],
)
def test_splits_that_cannot_be(split, error, message):
    with pytest.raises(error, match=message):
        split.windows(5, (1, 2))


def test_windows_are_views():
    values = np.arange(24.0).reshape(12, 2)
    windows = windows_of(values, 4)
    assert windows.shape == (9, 4, 2)
    assert np.shares_memory(windows, values)
    np.testing.assert_array_equal(windows[3], values[3:7])


# Training


def test_learns_what_a_linear_model_cannot():
    series = logistic_map()
    model = SequenceForecaster(
        hidden_size=8, window=3, max_epochs=60, patience=60, learning_rate=2e-2, random_state=0
    )
    split = chronological_split(len(series), model.window, test=0.15)
    model.fit(series, split=split)
    truth, forecasts, errors = compare(model, series, split.calibration_end)
    assert list(errors) == ["gru", "linear AR", "persistence"]
    assert errors["gru"].rmse < 0.25 * errors["linear AR"].rmse
    assert errors["linear AR"].rmse < errors["persistence"].rmse
    np.testing.assert_array_equal(truth[:, 0], series[split.calibration_end :])
    for name, error in errors.items():
        assert metrics(forecasts[name].ravel(), truth.ravel()) == error


def test_reads_other_columns_at_all_leads():
    series = driven()
    model = fitted(
        series, Split(200, 250, 250), hidden_size=8, window=4, horizon=2, max_epochs=80,
        patience=80, learning_rate=2e-2,
    )  # fmt: skip
    assert model.leads_ == (1, 2)
    _, _, errors = compare(model, series[:, 0], 250, series[:, 1:])
    assert errors["gru"].r2 > 0.9
    assert errors["linear AR"].r2 > 0.999
    assert model.score(series[:, 0], series[:, 1:]) > 0.9


def test_inputs_that_are_known_ahead_are_read_ahead():
    """The target follows an input at once: without knowing it there is nothing to forecast."""
    rng = np.random.default_rng(3)
    plan, noise = rng.normal(size=400), rng.normal(size=400)
    target = 2.0 * plan
    X = np.column_stack([noise, plan])
    settings = {"hidden_size": 8, "window": 4, "horizon": 2, "max_epochs": 60, "patience": 60,
                "learning_rate": 2e-2}  # fmt: skip
    split = Split(250, 300, 300)
    blind = small(**settings).fit(target, X, split=split)
    knowing = small(**settings, future_inputs=[1]).fit(target, X, split=split)
    assert blind.score(target[300:], X[300:]) < 0.3
    assert knowing.score(target[300:], X[300:]) > 0.95
    forecast = knowing.predict(target[:350], X[:350], future=X[350:352, 1:])
    assert np.abs(forecast - target[350:352]).max() < 0.5
    every = knowing.predict_rolling(target[:350], X[:350], future=X[350:352, 1:])
    assert every.shape == (350 - 4 + 1, 2)
    np.testing.assert_array_equal(every[-1], forecast)
    np.testing.assert_array_equal(knowing.predict_rolling(target[:350], X[:350]), every[:-2])
    with pytest.raises(ValueError, match="future must hold the next 2 rows of x1"):
        knowing.predict(target, X)
    with pytest.raises(DataError, match=r"future must have shape \(horizon=2, future_inputs=1\)"):
        knowing.predict(target, X, future=X[:3, 1:])
    with pytest.raises(ValueError, match="future must be None where the model has no"):
        blind.predict(target, X, future=X[:2, 1:])


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_trains_and_comes_back_from_its_file(cell, tmp_path):
    pytest.importorskip("safetensors")
    series = driven(120)
    model = fitted(series, Split(70, 90, 110), cell=cell, num_layers=2, random_state=3, horizon=2)
    assert model.history_["loss"][-1] < model.history_["loss"][0]
    path = tmp_path / "model.safetensors"
    fg.save(model, path)
    loaded = fg.load(path)
    assert loaded.get_params() == model.get_params() | {"verbose": False}
    np.testing.assert_array_equal(rolling(loaded, series), rolling(model, series))
    np.testing.assert_array_equal(loaded.radius(0.8), model.radius(0.8))
    np.testing.assert_array_equal(loaded.predict(), model.predict())
    np.testing.assert_array_equal(loaded.history_["loss"], model.history_["loss"])
    fg.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    loaded.partial_fit(series[:, 0], series[:, 1:])


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("rnn", {"nonlinearity": "relu"}),
        ("rnn", {"leak": np.array([0.1, 0.5, 0.9, 0.0])}),
        ("gru", {"reset_after": True}),
        ("lstm", {"forget_bias": 2.0}),
    ],
)
def test_cell_options_reach_the_cell_and_the_file(cell, options, tmp_path):
    pytest.importorskip("safetensors")
    series = driven(120)
    model = fitted(series, cell=cell, cell_options=options)
    plain = fitted(series, cell=cell)
    assert not np.array_equal(rolling(model, series), rolling(plain, series))
    fg.save(model, tmp_path / "model")
    np.testing.assert_array_equal(
        rolling(fg.load(tmp_path / "model"), series), rolling(model, series)
    )


def test_later_rows_are_never_looked_at():
    series = driven(120)
    changed = series.copy()
    changed[100:] = 1e9
    one, other = fitted(series), fitted(changed)
    np.testing.assert_array_equal(weights(one), weights(other))
    np.testing.assert_array_equal(one.history_["loss"], other.history_["loss"])


def test_scaling_is_from_the_training_part_only():
    series = driven(120)
    changed = series.copy()
    changed[80:] *= 3.0
    one, other = (fitted(each)._standard for each in (series, changed))
    np.testing.assert_array_equal(one.mean, series[:80].mean(axis=0))
    for mine, its in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_units_do_not_matter():
    series = driven(120)
    scaled = series * 1024.0 + 2.0**20
    one, other = fitted(series), fitted(scaled)
    np.testing.assert_allclose(
        rolling(other, scaled), rolling(one, series) * 1024.0 + 2.0**20, rtol=1e-5
    )


def test_the_seed_decides_every_bit():
    series = driven(120)
    one, same, other = (fitted(series, random_state=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(weights(one), weights(same))
    assert not np.array_equal(weights(one), weights(other))


def test_the_best_epoch_is_kept():
    series, split = logistic_map(200), Split(120, 160, 160)
    model = small(max_epochs=40, patience=3, learning_rate=0.1).fit(series, split=split)
    losses = model.history_["validation_loss"]
    assert model.history_.best_epoch == np.argmin(losses) + 1
    assert model.n_iter_ == len(losses)
    assert len(losses) in (40, model.history_.best_epoch + 3)
    forecast = model.predict_rolling(series)[120 - 5 : 160 - 5, 0]
    error = (forecast - series[120:160]) / model._standard.change[0, 0]
    assert np.mean(error**2) == pytest.approx(min(losses), rel=1e-5)


def test_without_early_stopping_all_epochs_are_run():
    model = small(early_stopping=False, max_epochs=4, calibration_fraction=0).fit(driven(120)[:, 0])
    assert model.split_ == Split(120, 120, 120)
    assert model.n_iter_ == 4
    with pytest.raises(ValueError, match="intervals need rows for calibration"):
        model.predict_interval()


def test_a_forecast_does_not_depend_on_the_others():
    series = driven(120)
    model = fitted(series)
    forecast = rolling(model, series)
    assert forecast.shape == (120 - 5 + 1,)
    for k in (0, 17, 115):
        np.testing.assert_array_equal(rolling(model, series[k : k + 5]), forecast[k : k + 1])
    np.testing.assert_array_equal(model.predict(), forecast[-1:])


def test_warm_start_and_partial_fit_go_on():
    series = driven(120)
    model = fitted(series, max_epochs=5)
    first = model.history_["loss"]
    model.set_params(warm_start=True).fit(series[:, 0], series[:, 1:], split=SPLIT)
    assert model.history_["loss"][0] < first[0]
    before = weights(model)
    model.partial_fit(series[20:, 0], series[20:, 1:])
    assert not np.array_equal(weights(model), before)
    with pytest.raises(ValueError, match="to go on training, hidden_size must be 4 as before"):
        model.set_params(hidden_size=5).fit(series[:, 0], series[:, 1:])


def test_deployed_it_gives_the_same_changes():
    series = driven(120)
    model = fitted(series, horizon=2)
    windows = windows_of(series, 5)
    change, _ = model.to_sequential()(windows)
    expected = model.predict_rolling(series[:, 0], series[:, 1:]) - series[4:, :1]
    np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-4)


def test_copies_forecast_the_same():
    series = driven(120)
    model = fitted(series)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(rolling(twin, series), rolling(model, series))


def test_an_interrupted_fit_leaves_the_model_as_it_was():
    def interrupt(trainer):
        raise KeyboardInterrupt

    series = driven(120)
    model = fitted(series)
    before = rolling(model, series)
    model.set_params(callbacks=(interrupt,))
    with pytest.raises(KeyboardInterrupt):
        model.fit(series[:, 0], series[:, 1:], split=SPLIT)
    np.testing.assert_array_equal(rolling(model, series), before)


def test_divergence_is_an_error():
    with pytest.raises(DivergenceError, match=r"Use a learning rate below 1e.37|validation loss"):
        fitted(driven(120), learning_rate=1e37, max_epochs=50)


def test_grid_search_over_a_series():
    from sklearn.model_selection import GridSearchCV, TimeSeriesSplit

    search = GridSearchCV(
        small(calibration_fraction=0), {"cell": ["rnn", "gru"]}, cv=TimeSeriesSplit(2)
    ).fit(driven(200)[:, 0])
    assert search.best_estimator_.predict().shape == (1,)


def test_scikit_learns_checks_of_its_interface():
    """Not those of X and y, which a forecaster has the other way round, and in order."""
    from sklearn.utils.estimator_checks import check_estimator

    expected = {
        "check_fit_score_takes_y": "the series y comes first, its inputs X second",
        "check_n_features_in_after_fitting": "columns are counted by target_names_, input_names_",
    }
    results = check_estimator(
        small(window=2, calibration_fraction=0), legacy=False, expected_failed_checks=expected
    )
    found = {r["check_name"] for r in results if r["status"] == "xfail"}
    assert found == set(expected)


# Intervals


def test_the_radius_is_the_order_statistic_of_the_theorem():
    scores = np.arange(1.0, 20.0)  # 19 of them
    assert radius(scores, 0.9) == 18
    assert radius(scores, 0.95) == 19
    assert radius(scores, 0.5) == 10
    assert radius(np.arange(1.0, 10.0), 0.9) == 9
    with pytest.raises(ValueError, match=r"coverage=0\.99 needs at least 99 residuals, got 19"):
        radius(scores, 0.99)
    for bad in (0, 1, 1.5, True):
        with pytest.raises(ValueError, match=r"coverage must be in \(0, 1\)"):
            radius(scores, bad)


def test_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=3000)
    series = np.zeros(3000)
    for k in range(1, 3000):
        series[k] = 0.7 * series[k - 1] + noise[k]
    model = small(horizon=2, window=3, max_epochs=3).fit(
        series[:2000], split=Split(800, 1000, 2000)
    )
    width = model.radius(0.9)
    assert width.shape == (2, 1)
    assert width[1, 0] > width[0, 0]
    truth = np.column_stack([series[2003 - 1 + k : 3000 - 2 + k] for k in (1, 2)])
    forecast = model.predict_rolling(series[2000:])[: len(truth)]
    inside = (np.abs(truth - forecast) <= width[:, 0]).mean(axis=0)
    assert (np.abs(inside - 0.9) < 0.03).all()
    prediction, lower, upper = model.predict_interval(series, coverage=0.9)
    np.testing.assert_array_equal(prediction, model.predict(series))
    np.testing.assert_allclose(upper - lower, 2 * width[:, 0])


# pandas in and out


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas")


INDICES = {
    "months": lambda pd: pd.date_range("2001-01-31", periods=120, freq="ME"),
    "hours without a frequency": lambda pd: pd.DatetimeIndex(
        list(pd.date_range("2001-01-01", periods=120, freq="h", tz="Europe/Berlin"))
    ),
    "business days": lambda pd: pd.bdate_range("2024-01-01", periods=120),
    "seven minutes": lambda pd: pd.date_range("2001-01-01", periods=120, freq="7min"),
    "quarters": lambda pd: pd.period_range("1990Q1", periods=120, freq="Q"),
    "seconds": lambda pd: pd.timedelta_range("0s", periods=120, freq="10s"),
    "rows": lambda pd: pd.RangeIndex(120),
    "years": lambda pd: pd.Index(np.arange(1900, 2020), name="year"),
    "tenths": lambda pd: pd.Index(np.arange(120) * 0.1),
}


@pytest.mark.parametrize("name", INDICES)
def test_the_index_goes_on(pandas, name, tmp_path):
    index = INDICES[name](pandas)
    y = pandas.Series(driven(120)[:, 0], index=index, name="level")
    known = y.iloc[:110]
    model = small(horizon=[1, 3]).fit(known)
    forecast = model.predict()
    assert forecast.name == "level"
    wanted = index[[110, 112]]
    if name == "tenths":
        np.testing.assert_allclose(forecast.index, wanted)
    else:
        assert list(forecast.index) == list(wanted)
        assert type(forecast.index) is type(wanted) or name == "rows"
    assert forecast.index.name == index.name
    np.testing.assert_array_equal(forecast, model.predict(known.to_numpy()))
    pytest.importorskip("safetensors")
    fg.save(model, tmp_path / "model")
    pandas.testing.assert_series_equal(fg.load(tmp_path / "model").predict(), forecast)
    later = model.predict(y)
    assert later.index[0] > index[-1]


def test_frames_with_inputs_and_intervals(pandas):
    index = pandas.date_range("2020-01-01", periods=120, freq="D", name="day")
    values = driven(120)
    y = pandas.DataFrame({"a": values[:, 0], "b": -values[:, 0]}, index=index)
    X = pandas.DataFrame({"drive": values[:, 1], "plan": np.roll(values[:, 1], -1)}, index=index)
    model = small(horizon=2, future_inputs=["plan"]).fit(y, X)
    assert model.target_names_ == ("a", "b")
    assert model.input_names_ == ("drive", "plan")
    future = X[["plan"]].tail(2)
    forecast = model.predict(future=future)
    assert list(forecast.columns) == ["a", "b"]
    assert forecast.index.tolist() == list(pandas.date_range("2020-04-30", periods=2))
    assert forecast.index.name == "day"
    intervals = model.predict_interval(y, X, future, coverage=0.8)
    assert intervals.columns.tolist() == [
        (name, part) for name in "ab" for part in ("forecast", "lower", "upper")
    ]
    np.testing.assert_array_equal(intervals["b"]["forecast"], forecast["b"])
    every = model.predict_rolling(y, X)
    assert every.columns.tolist() == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert every.index[0] == index[4]
    assert len(every) == 120 - 5 + 1 - 2
    single = small(horizon=2).fit(y["a"])
    assert list(single.predict_interval().columns) == ["forecast", "lower", "upper"]
    assert single.predict_rolling(y["a"]).columns.tolist() == [1, 2]
    assert isinstance(single.score(y["a"]), float)


def test_pandas_that_cannot_be_used(pandas):
    index = pandas.date_range("2020-01-01", periods=120, freq="D")
    y = pandas.Series(driven(120)[:, 0], index=index, name="level")
    gap = y.copy()
    gap.iloc[7] = np.nan
    cases = [
        (gap, None, DataError, r"got NaN at 2020-01-08 .*\(row 8\), column 'level'"),
        (y.drop(index[5]), None, DataError, "must go up in equal steps, got 2020-01-05 .*row 6"),
        (y[::-1], None, DataError, "must go up in equal steps"),
        (y.set_axis([f"r{k}" for k in range(120)]), None, TypeError, "must hold times or numbers"),
        (y, y.to_frame()[1:], DataError, "X must have the 120 rows of y, got 119"),
        (y, y.to_frame().set_axis(index + index.freq), DataError, "X must have the index of y"),
        (y.astype(object).where(y > 0, "low"), None, TypeError, "y must hold real numbers"),
    ]
    for series, inputs, error, message in cases:
        with pytest.raises(error, match=message):
            small().fit(series, inputs)
    model = small().fit(y)
    with pytest.raises(DataError, match=r"must have the 1 columns level .* got other"):
        model.predict(y.rename("other"))
    with pytest.raises(DataError, match="X must have the 0 columns"):
        model.predict(y, y.to_frame())


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "gated"}, "cell must be one of .*gru.*got 'gated'"),
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"horizon": 0}, "horizon must be a positive integer, got 0"),
        ({"horizon": (3, 1)}, r"horizon must be ascending numbers of rows, got \(3, 1\)"),
        ({"horizon": ()}, "horizon must be ascending"),
        ({"hidden_size": 2.5}, "hidden_size must be a positive integer, got 2.5"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"clip_norm": -1.0}, "clip_norm must be a positive number"),
        ({"max_epochs": 0}, "max_epochs must be a positive integer"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\)"),
        ({"calibration_fraction": 0.9}, "must leave some rows for training"),
        ({"loss": "quantile"}, "loss of a forecaster must be mse, mae or huber"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"future_inputs": ["plan"]}, "future_inputs must be columns of X, x0, got 'plan'"),
        ({"future_inputs": [0], "horizon": 9}, "window must be at least the horizon, 9, with"),
        ({"schedule_options": {"epochs": 3}}, "schedule_options are for a schedule that is named"),
        ({"optimizer": "newton"}, "optimizer must be one of"),
    ],
)
def test_wrong_settings(change, message):
    series = driven(120)
    with pytest.raises(ValueError, match=message):
        small(**change).fit(series[:, 0], series[:, 1:])


def with_entry(value):
    series = driven(120)
    series[7, 0] = value
    return series


@pytest.mark.parametrize(
    ("series", "split", "message"),
    [
        (with_entry(np.nan)[:, 0], SPLIT, r"y must be finite, got NaN at row 8, column 0"),
        (with_entry(-np.inf)[:, 0], SPLIT, r"y must be finite, got inf at row 8, column 0"),
        (np.zeros((3, 2, 1)), Split(1, 2, 2), r"y must have shape .* got \(3, 2, 1\)"),
        (driven(120)[:, 0], Split(5, 100, 100), "training part must have at least 6 rows .* got 5"),
        (driven(120)[:, 0], Split(80, 130, 130), "at least calibration_end=130 rows, got 120"),
        (np.r_[np.ones(90), 2 * np.ones(30)], SPLIT, "never changes in the training part"),
        (1e200 * driven(120)[:, 0], SPLIT, "too large to be standardised"),
        (np.r_[driven(90)[:, 0], 1e60 * np.ones(30)], SPLIT, "too far from the training"),
        (driven(30)[:4, 0], None, "too few rows: 4; a window of 5"),
        (np.empty((30, 0)), None, r"y must have shape .* got \(30, 0\)"),
        ([], None, "too few rows: 0"),
    ],
)
def test_series_that_cannot_be_fitted(series, split, message):
    with pytest.raises(DataError, match=message):
        small().fit(series, split=split)


@pytest.mark.parametrize("kind", ["complex128", "U8", "datetime64[s]"])
def test_series_of_other_kinds(kind):
    with pytest.raises(TypeError, match=r"y must hold real numbers, got dtype"):
        small().fit(np.arange(120).astype(kind))


def test_other_wrong_arguments():
    series = driven(120)
    model = fitted(series)
    with pytest.raises(DataError, match=r"X must have the 1 columns x0 .* got none"):
        model.predict(series[:, 0])
    with pytest.raises(DataError, match=r"y must have the 1 columns y0 .* got y0, y1"):
        model.predict(series)
    with pytest.raises(DataError, match="at least window=5 rows, got 4"):
        model.predict(series[:4, 0], series[:4, 1:])
    with pytest.raises(DataError, match="at least 6 rows"):
        model.partial_fit(series[:5, 0], series[:5, 1:])
    with pytest.raises(DataError, match="at least 7 rows for a score"):
        model.score(series[:6, 0], series[:6, 1:])
    with pytest.raises(ValueError, match="X must come with y"):
        model.predict(X=series[:, 1:])
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        small().predict(series[:, 0])
    pytest.importorskip("safetensors")
    with pytest.raises(NotFittedError):
        fg.save(small(), "nowhere")


# Model files


def test_a_file_of_the_first_version_forecasts_the_same():
    """Written by the forecaster before version 2: a window of 5, 2 ahead, an LSTM of 2 layers."""
    pytest.importorskip("safetensors")
    path = Path(__file__).parent / "files" / "forecaster-v1.safetensors"
    header = read_header(path)
    assert ("window", "5") in header.kind.summary(header.header)
    model = fg.load(path)
    time = np.arange(120.0)
    forecast = model.predict_rolling(3 * np.sin(time / 5) + 10, np.cos(time / 7)[:, None])
    np.testing.assert_allclose(
        forecast[-4:, 0], [7.09287567, 6.93545299, 6.89752082, 6.98068784], rtol=1e-5
    )
    assert model.leads_ == (2,)
    assert (model.target_names_, model.input_names_) == (("level",), ("drive",))
    assert model.history_.best_epoch == 2
    with pytest.raises(ValueError, match="y is needed"):
        model.predict()


def rewritten(path, change):
    """The model file with its tensors and header changed by hand."""
    numpy = pytest.importorskip("safetensors.numpy")
    safe_open = pytest.importorskip("safetensors").safe_open
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["fastgates"])
    tensors = numpy.load_file(path)
    change(tensors, header)
    path.write_bytes(numpy.save(tensors, metadata={"fastgates": json.dumps(header)}))


def set_tensor(name, value):
    return lambda t, h: t.update({name: np.asarray(value, np.float32)})


def set_parameter(**changes):
    return lambda t, h: h["parameters"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.pop("model.network.0.bias_hh_l0"), "bias_hh_l0"),
        (lambda t, h: t.pop("model.network.0.weight_hh_l0"), "no tensor model.network.0.weight_hh"),
        (set_tensor("model.network.0.weight_hh_l1", np.zeros((12, 4))), "weight_hh_l1"),
        (set_tensor("head.weight", [1.0]), "nothing takes the tensors head.weight"),
        (set_tensor("model.network.1.bias", [1.0, 2.0]), "bias"),
        (set_parameter(hidden_size=10**9), "must have 1000000000 along axis 1"),
        (set_parameter(num_layers=10**9), "there is no tensor model.network.0.weight_hh_l9"),
        (lambda t, h: h["model"].update(output_size=10**9), "a row for each of the 1000000000"),
        (set_parameter(cell="lstm"), r"must have shape|weight_ih_l0"),
        (set_parameter(cell="other"), "cell must be"),
        (set_parameter(speed=1), "has no parameter speed: pip install --upgrade fastgates"),
        (set_parameter(window="5"), "window must be"),
        (set_parameter(horizon=4), "its leads .* do not fit its horizon"),
        (lambda t, h: h["fitted"].pop("scaling"), "lacks 'scaling'"),
        (lambda t, h: h["fitted"]["scaling"].update(mean=[0.0]), "scaling does not fit"),
        (lambda t, h: h["fitted"]["scaling"].update(change=[[0.0]]), "scaling does not fit"),
        (lambda t, h: h.pop("history"), "lacks 'history'"),
        (lambda t, h: h.update(format_version=9), "written by a newer fastgates"),
    ],
)
def test_files_that_do_not_fit_together(change, message, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    fg.save(fitted(driven(120)), path)
    rewritten(path, change)
    with pytest.raises(ModelFileError, match=message) as caught:
        fg.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_days_go_on_in_their_time_zone(tmp_path):
    pandas = pytest.importorskip("pandas")
    index = pandas.date_range("2025-08-29", periods=58, freq="D", tz="Europe/Berlin")
    series = pandas.Series(np.sin(np.arange(58.0)), index=index)
    model = small(horizon=3).fit(series)
    forecast = model.predict()
    expected = pandas.date_range("2025-10-26", periods=3, freq="D", tz="Europe/Berlin")
    pandas.testing.assert_index_equal(forecast.index, expected, check_freq=False)
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors").predict()
    pandas.testing.assert_index_equal(again.index, forecast.index, check_freq=False)


def test_a_changed_window_waits_for_the_next_fit():
    series = driven()
    model = fitted(series)
    expected = model.predict(series[:, 0], series[:, 1:])
    model.set_params(window=16)
    np.testing.assert_array_equal(model.predict(series[:, 0], series[:, 1:]), expected)
    model.predict()


def test_a_split_without_validation_trains_to_the_end():
    series = driven()
    model = fitted(series, split=(120, 120, 150), early_stopping=True)
    assert model.n_iter_ == 2 and model.split_ == Split(120, 120, 150)


def test_a_horizon_is_a_number_of_rows():
    with pytest.raises(TypeError, match="horizon must be a number of rows, or several, got 2"):
        small(horizon=2.0).fit(logistic_map())
