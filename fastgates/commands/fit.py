"""The command ``fastgates fit``: train a forecaster, a regressor or a classifier on a table."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastgates._atomic import check_writable
from fastgates._checkpoint import CheckpointError
from fastgates._modelfile import require_library
from fastgates._tables import DataError
from fastgates.commands._samples import (
    TASKS,
    Columns,
    Samples,
    clock_of,
    flatten,
    other_columns,
    read_samples,
    read_series,
)
from fastgates.commands._shared import (
    at_least_one,
    at_least_zero,
    check_outputs,
    column_list,
    fail,
    integer_list,
    naming,
    positive,
    share,
)

if TYPE_CHECKING:
    from fastgates.commands._scores import Scores

__all__ = ["add_parser"]

CELLS = ("gru", "lstm", "simplified_gru", "rnn", "leaky_rnn", "gru_reset_after", "rnn_relu")
_WINDOW = 64
_PARTS = ("training", "validation", "calibration", "test")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "fit",
        help="train a forecaster, a regressor or a classifier on a table",
        description="Train on a table, CSV (comma-separated, names in the first line) or Parquet. "
        "To forecast, rows are in time order at equal steps without gaps. Some rows choose when to "
        "stop, some measure the intervals, and the last ones test.",
    )
    parser.add_argument("data", metavar="DATA", nargs="?", help="a .csv or .parquet file")
    parser.add_argument(
        "--config", metavar="FIT.toml", help="options by their names; those given here come first"
    )
    parser.add_argument("--task", choices=TASKS, default="forecast", help="default: %(default)s")
    parser.add_argument("--target", metavar="COLUMN", help="the column to forecast or predict")
    parser.add_argument(
        "--inputs", type=column_list, metavar="A,B",
        help="columns to read; to forecast besides the target's own past, else all by default",
    )  # fmt: skip
    parser.add_argument(
        "--future-inputs", type=column_list, metavar="A,B",
        help="which of the inputs are known ahead, such as a plan or the calendar",
    )  # fmt: skip
    parser.add_argument(
        "--time", metavar="COLUMN", help="times of the rows to forecast, which must be equal steps"
    )
    parser.add_argument(
        "--sequence", metavar="COLUMN", help="rows with the same entry here are a sequence"
    )
    parser.add_argument(
        "--per-step", action="store_true", help="the target is one of each row, with --sequence"
    )
    parser.add_argument(
        "--window", type=at_least_one, metavar="N",
        help=f"rows read for one forecast (default: {_WINDOW}) or prediction",
    )  # fmt: skip
    ahead = parser.add_mutually_exclusive_group()
    ahead.add_argument(
        "--horizon", type=at_least_one, metavar="N", help="forecast 1 to N rows ahead; default: 1"
    )
    ahead.add_argument(
        "--leads", type=integer_list, metavar="A,B", help="forecast so many rows ahead only"
    )
    _add_model_options(parser.add_argument_group("the network"))
    _add_training_options(parser.add_argument_group("training"))
    parts = parser.add_argument_group("parts of the data")
    for name, default, text in (
        ("validation", 0.15, "choose when to stop"),
        ("calibration", 0.1, "measure the intervals"),
        ("test", 0.15, "test"),
    ):
        parts.add_argument(
            f"--{name}", type=share, default=default, metavar="X",
            help=f"share of the data to {text}; default: %(default)s",
        )  # fmt: skip
    parts.add_argument(
        "--coverage", type=share, default=0.9, metavar="X",
        help="how often the truth is to lie in the intervals; default: %(default)s",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="MODEL.safetensors", help="save the model with all it takes to use it"
    )
    output.add_argument("--plot", metavar="FIT.png", help="picture of the test part and the losses")
    output.add_argument(
        "--resume", action="store_true",
        help="keep a checkpoint beside --out until done, and go on from it if there is one",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _add_model_options(group: Any) -> None:
    group.add_argument("--cell", choices=CELLS, default="gru", help="default: %(default)s")
    for name, default, text in (
        ("hidden", 32, "hidden units"),
        ("layers", 1, "recurrent layers"),
    ):
        group.add_argument(
            f"--{name}", type=at_least_one, default=default, metavar="N",
            help=f"{text}; default: %(default)s",
        )  # fmt: skip
    group.add_argument("--bidirectional", action="store_true", help="read from the end, too")
    group.add_argument(
        "--dropout", type=share, default=0.0, metavar="X", help="between layers; default: 0"
    )
    group.add_argument(
        "--initialization",
        choices=("orthogonal", "xavier", "chrono"),
        help="of the weights; chrono: for memories of up to --window steps",
    )


def _add_training_options(group: Any) -> None:
    for name, default, text in (
        ("epochs", 100, "the most passes over the training part"),
        ("patience", 15, "epochs without a better validation loss before stopping"),
        ("batch", 32, "sequences or windows in a minibatch"),
    ):
        group.add_argument(
            f"--{name}", type=at_least_one, default=default, metavar="N",
            help=f"{text}; default: %(default)s",
        )  # fmt: skip
    group.add_argument(
        "--learning-rate", type=positive, default=3e-3, metavar="X", help="default: %(default)s"
    )
    group.add_argument(
        "--optimizer", choices=("adam", "adamw", "rmsprop", "sgd"), default="adam",
        help="default: %(default)s",
    )  # fmt: skip
    group.add_argument("--weight-decay", type=positive, metavar="X", help="default: none")
    group.add_argument(
        "--schedule", choices=("cosine", "plateau"), help="of the learning rate; default: constant"
    )
    group.add_argument("--loss", choices=("mse", "mae", "huber"), help="of numbers; default: mse")
    group.add_argument("--balanced", action="store_true", help="weigh classes by how rare they are")
    group.add_argument(
        "--clip-norm", type=positive, default=1.0, metavar="X",
        help="the largest norm of a gradient; default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--clip-value", type=positive, metavar="X", help="the largest entry; default: any"
    )
    group.add_argument("--seed", type=at_least_zero, default=0, metavar="N", help="default: 0")


# -- The run ---------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    columns = _columns(arguments)
    check_outputs([arguments.data], [arguments.out, arguments.plot])
    if arguments.out is not None:
        require_library()
        check_writable(arguments.out)
    if arguments.plot is not None:
        from fastgates._plots import check_picture

        check_picture(arguments.plot)

    from fastgates.training import DivergenceError

    try:
        with naming(arguments.data):
            if columns.task == "forecast":
                return _fit_forecaster(arguments, columns)
            return _fit_samples(arguments, columns)
    except DivergenceError as error:
        return fail(error, 1)
    except CheckpointError as error:
        return fail(error, 2)


def _columns(arguments: argparse.Namespace) -> Columns:
    """Check what goes with what, and say which columns are read."""
    for name in ("data", "target"):
        if getattr(arguments, name) is None:
            shown = name.upper() if name == "data" else f"--{name}"
            raise DataError(f"{shown} is needed, on the command line or in the configuration")
    given = {
        "--horizon": arguments.horizon, "--leads": arguments.leads,
        "--future-inputs": arguments.future_inputs, "--time": arguments.time,
    }  # fmt: skip
    if arguments.task == "forecast":
        given = {"--sequence": arguments.sequence, "--per-step": arguments.per_step}
    elif arguments.per_step and arguments.sequence is None:
        raise DataError(
            "--per-step needs --sequence, the column that says which rows belong together"
        )
    elif arguments.sequence is not None and arguments.window is not None:
        raise DataError("--sequence and --window exclude each other: rows or windows are sequences")
    if arguments.task != "classification":
        given["--balanced"] = arguments.balanced
    if arguments.task == "classification":
        given["--loss"] = arguments.loss
    if arguments.out is None:
        given["--resume"] = arguments.resume
    chrono = arguments.initialization == "chrono"
    if chrono and arguments.task != "forecast" and arguments.window is None:
        raise DataError("--initialization chrono needs --window, the steps to remember")
    if arguments.test == 0 and arguments.plot is not None:
        raise DataError("--plot draws the test part, of which --test 0 leaves none")
    for option, value in given.items():
        if value:
            what = "without --out" if option == "--resume" else f"with --task {arguments.task}"
            raise DataError(f"{option} has no meaning {what}")
    inputs = tuple(name for name in arguments.inputs or () if name != arguments.target)
    future = tuple(arguments.future_inputs or ())
    if arguments.task == "forecast":
        inputs += tuple(name for name in future if name not in inputs)
    elif not inputs:
        if os.path.exists(arguments.data) and not os.path.isfile(arguments.data):
            raise DataError(
                f"{arguments.data}: it is no file and can be read only once: name the columns to "
                "read with --inputs"
            )
        inputs = other_columns(arguments.data, arguments.target, arguments.sequence)
    window = arguments.window
    if arguments.task == "forecast" and window is None:
        window = _WINDOW
    return Columns(
        arguments.task, arguments.target, inputs, future, arguments.sequence, window,
        arguments.per_step, arguments.time,
    )  # fmt: skip


def _parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all estimators take."""
    decay = {} if arguments.weight_decay is None else {"weight_decay": arguments.weight_decay}
    return {
        "cell": arguments.cell,
        "hidden_size": arguments.hidden,
        "num_layers": arguments.layers,
        "bidirectional": arguments.bidirectional,
        "dropout": arguments.dropout,
        "initialization": {"chrono": {"longest": arguments.window or _WINDOW}}
        if arguments.initialization == "chrono"
        else arguments.initialization,
        "optimizer": arguments.optimizer,
        "optimizer_options": decay or None,
        "learning_rate": arguments.learning_rate,
        "schedule": arguments.schedule,
        "batch_size": arguments.batch,
        "max_epochs": arguments.epochs,
        "clip_norm": arguments.clip_norm,
        "clip_value": arguments.clip_value,
        "early_stopping": arguments.validation > 0,
        "patience": arguments.patience,
        "checkpoint": f"{arguments.out}.checkpoint" if arguments.resume else None,
        "resume": arguments.resume,
        "random_state": arguments.seed,
        "verbose": True,
    }


def _fit_forecaster(arguments: argparse.Namespace, columns: Columns) -> int:
    series = read_series(arguments.data, columns)

    import numpy as np

    from fastgates.commands._scores import number_scores
    from fastgates.estimators._forecaster import Given, SequenceForecaster
    from fastgates.forecasting import chronological_split, compare

    horizon = arguments.leads or arguments.horizon or 1
    model = SequenceForecaster(
        window=columns.window or _WINDOW,
        horizon=horizon,
        future_inputs=columns.future_inputs,
        loss=arguments.loss or "mse",
        **_parameters(arguments),
    )
    leads = model._leads()
    rows = len(series.target)
    split = chronological_split(
        rows, model.window, leads, validation=arguments.validation,
        calibration=arguments.calibration, test=arguments.test,
    )  # fmt: skip
    calibration = split.windows(model.window, leads)[2]
    _check_coverage(arguments, calibration.stop - calibration.start)
    ends = (0, *split, rows)
    parts = [
        f"{name} {start + 1}-{stop}"
        for name, start, stop in zip(_PARTS, ends[:-1], ends[1:], strict=True)
        if stop > start
    ]
    print(f"{arguments.data}: {rows} rows; {', '.join(parts)}")
    values = series.target[:, None]
    if series.inputs is not None:
        values = np.concatenate([values, series.inputs], axis=1)
    clock = clock_of(columns, series.times)
    given = Given(values, (str(columns.target),), columns.inputs, clock, None, True, True)
    _train(model._fit_given, given, split)
    _print_training(model)
    scores, picture = None, None
    if arguments.test > 0:
        start = split.calibration_end
        comparison = compare(model, series.target, start, series.inputs)
        scores = number_scores(comparison.truth, comparison.forecasts)
        width = model.radius(arguments.coverage)[:, 0] if arguments.calibration > 0 else None
        _report(f"test rows {start + 1}-{rows}", scores)
        forecast = comparison.forecasts[model.cell]
        if width is not None:
            _print_coverage(arguments.coverage, abs(comparison.truth - forecast) <= width)
        first = start + leads[-1] - leads[0] + 1
        picture = {
            "title": f"{columns.target}, {leads[-1]} ahead, in the test part",
            "rows": range(first, first + len(forecast)),
            "truth": comparison.truth[:, -1],
            "predictions": {name: each[:, -1] for name, each in comparison.forecasts.items()},
            "width": None if width is None else width[-1],
            "coverage": arguments.coverage,
            "label": "row",
        }
    return _finish(arguments, columns, model, scores, picture)


def _fit_samples(arguments: argparse.Namespace, columns: Columns) -> int:
    import numpy as np

    from fastgates.commands._scores import class_scores, number_scores
    from fastgates.estimators import SequenceClassifier, SequenceRegressor

    samples = read_samples(arguments.data, columns)
    classes = columns.task == "classification"
    parts = _split(samples, arguments, columns)
    training, validation, calibration, test = (samples.take(rows) for rows in parts)
    if not classes:
        _check_coverage(arguments, len(flatten(calibration.y)) if len(parts[2]) else 0)
    kind = "sequences" if columns.window is None else f"windows of {columns.window} rows"
    counts = [f"{name} {len(p)}" for name, p in zip(_PARTS, parts, strict=True) if len(p)]
    print(f"{arguments.data}: {len(samples.x)} {kind}; {', '.join(counts)}")
    model: Any
    parameters = _parameters(arguments) | {"per_step": columns.per_step}
    if classes:
        weight = "balanced" if arguments.balanced else None
        model = SequenceClassifier(class_weight=weight, **parameters)
    else:
        model = SequenceRegressor(loss=arguments.loss or "mse", **parameters)
    held_back = (validation.x, validation.y) if len(parts[1]) else None
    _train(model.fit, training.x, training.y, validation=held_back)
    _print_training(model)
    if len(parts[2]):
        model.calibrate(calibration.x, calibration.y)
    scores, picture = None, None
    if len(parts[3]):
        truth = flatten(test.y)
        title = f"test {'steps' if columns.per_step else kind}, {len(truth)}"
        if classes:
            labels, counts_of = np.unique(flatten(training.y), return_counts=True)
            probability = flatten(model.predict_proba(test.x))
            usual = labels[counts_of.argmax()]
            scores = class_scores(truth, probability, model.classes_, model.cell, usual)
            _report(title, scores)
            picture = {
                "title": f"{columns.target} of the test part",
                "truth": truth,
                "found": model.classes_[probability.argmax(axis=1)],
                "classes": model.classes_,
            }
        else:
            prediction = flatten(model.predict(test.x))
            mean = np.full(len(truth), flatten(training.y).mean())
            scores = number_scores(truth, {model.cell: prediction, "training mean": mean})
            _report(title, scores)
            width = None
            if len(parts[2]):
                width = float(model.radius(arguments.coverage))
                _print_coverage(arguments.coverage, abs(truth - prediction) <= width)
            picture = {
                "title": f"{columns.target} in the test part",
                "rows": range(1, len(truth) + 1),
                "truth": truth,
                "predictions": {model.cell: prediction},
                "width": width,
                "coverage": arguments.coverage,
                "label": "step" if columns.per_step else kind,
                "connected": columns.per_step or columns.window is not None,
            }
    return _finish(arguments, columns, model, scores, picture)


def _check_coverage(arguments: argparse.Namespace, residuals: int) -> None:
    """Raise before a long training what the intervals would meet after it."""
    from fastgates.estimators._conformal import rank

    if arguments.calibration > 0:
        rank(residuals, arguments.coverage)


def _split(samples: Samples, arguments: argparse.Namespace, columns: Columns) -> list[Any]:
    """Return the numbers of the sequences of each part.

    Windows are cut in the order of time; sequences are drawn, of each class the same share.
    """
    import numpy as np

    count = len(samples.x)
    shares = [arguments.validation, arguments.calibration, arguments.test]
    if columns.task == "classification":
        shares[1] = 0.0
    if sum(shares) >= 1:
        raise DataError(f"the shares must leave some data for training, got {shares}")
    order = np.arange(count)
    if columns.window is None:
        random = np.random.default_rng(arguments.seed)
        order = random.permutation(count)
        if columns.task == "classification" and not columns.per_step:
            order = _spread(order, np.asarray(samples.y))
    fewest = (1, 9, 1)  # 9 residuals are enough for intervals of 90 percent
    sizes = [
        max(least, round(count * each)) if each else 0
        for least, each in zip(fewest, shares, strict=True)
    ]
    training = count - sum(sizes)
    if training < max(2, sum(sizes)) // 2:
        names = ", ".join(
            f"--{name} 0" for name, size in zip(_PARTS[1:], sizes, strict=True) if size
        )
        raise DataError(
            f"too few sequences: of {count}, {max(training, 0)} are left for training: give more "
            f"data, or do without a part ({names})"
        )
    parts = np.split(order, training + np.cumsum([0, *sizes[:-1]]))
    return [np.sort(part) for part in parts]


def _spread(order: Any, labels: Any) -> Any:
    """Put an order so that every stretch of it has about the same share of each class."""
    import numpy as np

    labels = labels[order]
    position = np.empty(len(order))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(position, kind="stable")]


def _train(fit: Any, *data: Any, **options: Any) -> None:
    """Fit; that Ctrl-C ended the training is said at the end."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "training was interrupted", RuntimeWarning)
        fit(*data, **options)


def _print_training(model: Any) -> None:
    history = model.history_
    kept = f"the weights of epoch {history.best_epoch} are kept"
    if not model.early_stopping:
        kept = "the last weights are kept"
    print(f"{model.model_.parameter_vector.size} parameters; {len(history)} epochs, {kept}\n")


def _report(title: str, scores: Scores) -> None:
    from fastgates.commands._scores import print_scores

    print_scores(title, scores)


def _print_coverage(wanted: float, inside: Any) -> None:
    print(f"intervals for {wanted:.0%} hold {inside.mean():.1%} of the test values")


def _finish(
    arguments: argparse.Namespace, columns: Columns, model: Any, scores: Any, picture: Any
) -> int:
    """Save, draw, and say how it ended."""
    import fastgates

    interrupted = model.history_.stop_reason == "interrupted"
    model.table_ = columns.to_dict()
    if arguments.out is not None:
        record = {"data": os.path.basename(arguments.data)}
        if scores is not None:
            record["test"] = scores.to_dict()
        fastgates.save(model, arguments.out, record=record)
        print(f"\nmodel: {arguments.out}")
    if arguments.plot is not None and picture is not None:
        _draw(arguments.plot, model, picture)
        print(f"picture: {arguments.plot}")
    if interrupted:
        hint = "; the same command goes on" if arguments.resume else ""
        print(f"\nfastgates: interrupted; the best weights so far are kept{hint}", file=sys.stderr)
        return 130
    if arguments.resume:
        with suppress(FileNotFoundError):
            os.unlink(f"{arguments.out}.checkpoint")
    return 0


def _draw(path: str, model: Any, picture: dict[str, Any]) -> None:
    from fastgates._plots import Losses, classes_picture, fit_picture

    history = model.history_
    losses = Losses(history["loss"], history["validation_loss"], history.best_epoch)
    if "classes" in picture:
        classes_picture(path, losses=losses, **picture)
    else:
        fit_picture(path, losses=losses, **picture)
