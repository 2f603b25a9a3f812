"""The forecaster and the baselines it is measured against."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fastgates._modelfile import ModelFileError
from fastgates._series import windows_of
from fastgates._tables import DataError
from fastgates.baselines import linear_autoregression, metrics, persistence
from fastgates.forecasting import (
    CELLS,
    DivergenceError,
    Forecaster,
    Split,
    chronological_split,
    compare,
)


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
    settings = {"hidden_size": 4, "window": 5, "epochs": 2, "batch_size": 64}
    return Forecaster(**(settings | changes))


def weights(model):
    return np.concatenate([m.parameter_vector for m in model._fitted.network])


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
    assert chronological_split(100, 10) == Split(70, 85)
    assert chronological_split(1000, 64, 5, validation=0.1, test=0.2) == Split(700, 800)
    train_end, validation_end = chronological_split(15, 1)
    assert (train_end, validation_end) == (11, 13)


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(DataError, match=r"too few rows: 60; a window of 50 .* about \d+") as caught:
        chronological_split(60, 50)
    needed = int(str(caught.value).split("about ")[1].split(":")[0])
    chronological_split(needed, 50)


def test_windows_are_views():
    values = np.arange(24.0).reshape(12, 2)
    windows = windows_of(values, 4)
    assert windows.shape == (9, 4, 2)
    assert np.shares_memory(windows, values)
    np.testing.assert_array_equal(windows[3], values[3:7])


# Training


def test_learns_what_a_linear_model_cannot():
    series = logistic_map()
    model = Forecaster(hidden_size=8, window=3, epochs=60, patience=60, learning_rate=2e-2)
    split = chronological_split(len(series), model.window)
    model.fit(series, split)
    forecasts, errors = compare(model, series, split.validation_end)
    assert list(errors) == ["gru", "linear AR", "persistence"]
    assert errors["gru"].rmse < 0.25 * errors["linear AR"].rmse
    assert errors["linear AR"].rmse < errors["persistence"].rmse
    truth = series[split.validation_end :]
    for name, error in errors.items():
        assert metrics(forecasts[name], truth) == error


def test_reads_other_columns_and_far_horizons():
    series = driven()
    model = Forecaster(
        hidden_size=8, window=4, horizon=2, epochs=60, patience=60, learning_rate=2e-2
    )
    model.fit(series, Split(200, 250), columns=["level", "drive"])
    assert model.columns == ("level", "drive")
    assert model.first_row == 5
    _, errors = compare(model, series, 250)
    assert errors["gru"].r2 > 0.9
    assert errors["linear AR"].r2 > 0.999


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_trains_and_comes_back_from_its_file(cell, tmp_path):
    pytest.importorskip("safetensors")
    series = driven(120)
    model = small(cell=cell, num_layers=2, seed=3).fit(series, Split(80, 100))
    losses = [epoch.loss for epoch in model.record["history"]]
    assert losses[-1] < losses[0]
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = Forecaster.load(path)
    assert loaded == model
    assert loaded.columns == model.columns
    assert loaded.record == model.record
    assert loaded.parameter_count == weights(model).size
    np.testing.assert_array_equal(loaded.predict(series), model.predict(series))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


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
    model = small(cell=cell, cell_options=options).fit(series, Split(80, 100))
    plain = small(cell=cell).fit(series, Split(80, 100))
    assert not np.array_equal(model.predict(series), plain.predict(series))
    model.save(tmp_path / "model")
    loaded = Forecaster.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(series), model.predict(series))


def test_the_test_part_is_never_looked_at():
    series, split = driven(120), Split(80, 100)
    changed = series.copy()
    changed[100:] = 1e9
    one, other = small().fit(series, split), small().fit(changed, split)
    np.testing.assert_array_equal(weights(one), weights(other))
    assert one.record == other.record


def test_scaling_is_from_the_training_part_only():
    series, split = driven(120), Split(80, 100)
    changed = series.copy()
    changed[80:] *= 3.0
    one, other = (small().fit(each, split)._fitted.scaling for each in (series, changed))
    np.testing.assert_array_equal(one.mean, series[:80].mean(axis=0))
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.scale, other.scale)
    assert one.change == other.change


def test_units_do_not_matter():
    series, split = driven(120), Split(80, 100)
    scaled = series * 1024.0 + 2.0**20
    one, other = small().fit(series, split), small().fit(scaled, split)
    np.testing.assert_allclose(
        other.predict(scaled), one.predict(series) * 1024.0 + 2.0**20, rtol=1e-5
    )


def test_the_seed_decides_every_bit():
    series, split = driven(120), Split(80, 100)
    one, same, other = (small(seed=seed).fit(series, split) for seed in (1, 1, 2))
    np.testing.assert_array_equal(weights(one), weights(same))
    assert not np.array_equal(weights(one), weights(other))


def test_the_best_epoch_is_kept():
    series, split = logistic_map(200), Split(120, 160)
    model = small(epochs=40, patience=3, learning_rate=0.1).fit(series, split)
    losses = [epoch.validation_loss for epoch in model.record["history"]]
    assert model.record["best_epoch"] == np.argmin(losses) + 1
    assert model.record["epochs_run"] == len(losses)
    assert len(losses) in (40, model.record["best_epoch"] + 3)
    forecast = model.predict(series)[120 - model.first_row : 160 - model.first_row]
    error = (forecast - series[120:160]) / model._fitted.scaling.change
    assert np.mean(error**2) == pytest.approx(min(losses), rel=1e-5)


def test_a_forecast_does_not_depend_on_the_others():
    series = driven(120)
    model = small().fit(series, Split(80, 100))
    forecast = model.predict(series)
    assert forecast.shape == (120 - 5 + 1,)
    for k in (0, 17, 115):
        np.testing.assert_array_equal(model.predict(series[k : k + 5]), forecast[k : k + 1])


def test_progress_sees_every_step():
    seen = []
    model = small(epochs=3, batch_size=16).fit(driven(120), Split(80, 100), progress=seen.append)
    steps = math.ceil((80 - model.first_row) / 16)
    assert [(p.epoch, p.step) for p in seen] == [
        (epoch, step) for epoch in (1, 2, 3) for step in range(1, steps + 1)
    ]
    assert all((p.epochs, p.steps) == (3, steps) for p in seen)
    assert all(p.loss > 0 and p.gradient_norm > 0 for p in seen)
    history = model.record["history"]
    assert math.isnan(seen[0].validation_loss)
    assert seen[-1].validation_loss == history[1].validation_loss
    norms = [p.gradient_norm for p in seen if p.epoch == 2]
    assert history[1].gradient_norm == pytest.approx(np.mean(norms))


def test_an_interrupted_fit_leaves_the_model_as_it_was():
    def interrupt(progress):
        raise KeyboardInterrupt

    series, split = driven(120), Split(80, 100)
    model = small().fit(series, split)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        model.fit(series, split, progress=interrupt)
    np.testing.assert_array_equal(weights(model), before)
    fresh = small()
    with pytest.raises(KeyboardInterrupt):
        fresh.fit(series, split, progress=interrupt)
    with pytest.raises(RuntimeError, match="not fitted: call fit or load first"):
        fresh.predict(series)


def test_divergence_is_an_error():
    model = small(learning_rate=1e37, epochs=50)
    with pytest.raises(DivergenceError, match=r"use a learning rate below 1e.37|validation loss"):
        model.fit(driven(120), Split(80, 100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "gated"}, "cell must be one of rnn, simplified_gru, gru, lstm, got 'gated'"),
        ({"cell_options": {"leak": 0.5}}, "cell_options of gru may hold reset_after, got leak"),
        (
            {"cell": "simplified_gru", "cell_options": {"bias": False}},
            "cell_options of simplified_gru may hold nothing, got bias",
        ),
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"hidden_size": 2.5}, "hidden_size must be an integer of at least 1, got 2.5"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"max_norm": -1.0}, "max_norm must be a positive number"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(small(), **change).fit(driven(120), Split(80, 100))


def with_entry(value):
    series = driven(120)
    series[7, 1] = value
    return series


@pytest.mark.parametrize(
    ("series", "split", "message"),
    [
        (with_entry(np.nan), Split(80, 100), r"series must be finite, got nan at \(7, 1\)"),
        (np.zeros((3, 2, 1)), Split(1, 2), r"series must have shape .* got \(3, 2, 1\)"),
        (driven(120), Split(5, 100), "training part must have at least 6 rows .* got 5"),
        (driven(120), Split(80, 130), "at least validation_end=130 rows, got 120"),
        (np.r_[np.ones(90), 2 * np.ones(30)], Split(80, 100), "never changes in the training part"),
        (1e200 * driven(120), Split(80, 100), "too large to be standardised"),
        (np.r_[driven(90)[:, 0], 1e60 * np.ones(30)], Split(80, 100), "too far from the training"),
    ],
)
def test_series_that_cannot_be_fitted(series, split, message):
    with pytest.raises(DataError, match=message):
        small().fit(series, split)


def test_other_wrong_arguments():
    series = driven(120)
    with pytest.raises(ValueError, match="0 < train_end < validation_end, got"):
        small().fit(series, Split(100, 100))
    with pytest.raises(ValueError, match="columns must name the series' 2 columns, got 1 names"):
        small().fit(series, Split(80, 100), columns=["a"])
    model = small().fit(series, Split(80, 100), columns=["a", "b"])
    with pytest.raises(DataError, match="must have the 2 columns a, b, got 1"):
        model.predict(series[:, 0])
    with pytest.raises(DataError, match="at least window=5 rows, got 4"):
        model.predict(series[:4])
    with pytest.raises(ValueError, match=r"5 < start < stop <= 120, got 100 and 121"):
        compare(model, series, 100, 121)
    with pytest.raises(RuntimeError, match="not fitted"):
        small().save("nowhere")


# Model files


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.pop("recurrent.bias_hh_l0"), "bias_hh_l0"),
        (lambda t, h: t.pop("recurrent.weight_hh_l0"), "no tensor recurrent.weight_hh_l0"),
        (set_tensor("recurrent.weight_hh_l1", np.zeros((12, 4))), "weight_hh_l1"),
        (set_tensor("head.weight", [1.0]), "unknown tensors head.weight"),
        (set_tensor("readout.bias", [1.0, 2.0]), "bias"),
        (set_tensor("readout.weight", np.zeros((2, 4))), r"readout.weight .*got shape \(2, 4\)"),
        (set_tensor("recurrent.weight_ih_l0", np.zeros((12, 3))), "must have 2 along axis 1"),
        (lambda t, h: h["settings"].update(hidden_size=10**9), "must have 1000000000 along axis 1"),
        (lambda t, h: h["settings"].update(num_layers=10**9), "no tensors for num_layers"),
        (lambda t, h: h["settings"].update(cell="lstm"), r"must have shape|weight_ih_l0"),
        (lambda t, h: h["settings"].update(cell="other"), "header does not fit: cell must be"),
        (lambda t, h: h["settings"].update(speed=1), "header does not fit: .*speed"),
        (lambda t, h: h["settings"].update(window="5"), "header does not fit: window must be"),
        (lambda t, h: h.pop("scaling"), "header lacks 'scaling'"),
        (lambda t, h: h["scaling"].update(mean=[0.0]), "scaling does not fit its columns"),
        (lambda t, h: h["scaling"].update(change=0.0), "scaling does not fit its columns"),
        (lambda t, h: h["training"].update(history=[[1.0]]), "header does not fit"),
    ],
)
def test_files_that_do_not_fit_together(change, message, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    small().fit(driven(120), Split(80, 100)).save(path)
    rewritten(path, change)
    with pytest.raises(ModelFileError, match=message) as caught:
        Forecaster.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
