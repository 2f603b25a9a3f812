"""The command ``fastgates fit``."""

from __future__ import annotations

import argparse
import math
import os
from typing import TYPE_CHECKING

from fastgates._atomic import check_writable
from fastgates._modelfile import require_library
from fastgates._tables import read_columns
from fastgates.commands._shared import (
    at_least_one,
    at_least_zero,
    check_outputs,
    column_list,
    fail,
    naming,
    positive,
    progress_bar,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastgates.baselines import Metrics
    from fastgates.forecasting import Comparison, Forecaster

__all__ = ["add_parser"]

_CELLS = ("gru", "lstm", "simplified_gru", "rnn")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "fit",
        help="fit a forecaster to a column of a CSV file",
        description="Fit a forecaster to a column of a CSV file (comma-separated, names in the "
        "first line, rows in time order at equal steps, no gaps). The first 70 percent of the rows "
        "are for training, the next 15 percent for early stopping, the last 15 percent to test.",
    )
    parser.add_argument("data", metavar="DATA.csv")
    parser.add_argument("--target", required=True, metavar="COLUMN", help="the column to forecast")
    parser.add_argument(
        "--inputs",
        type=column_list,
        default=[],
        metavar="A,B",
        help="columns to read besides the target's own past",
    )
    parser.add_argument("--cell", choices=_CELLS, default="gru", help="default: %(default)s")
    for name, default, text in (
        ("hidden", 32, "hidden units"),
        ("layers", 1, "recurrent layers"),
        ("window", 64, "rows read for one forecast"),
        ("horizon", 1, "rows ahead of the window that are forecast"),
        ("epochs", 100, "the most passes over the training part"),
        ("patience", 15, "epochs without a better validation loss before stopping"),
        ("batch", 32, "windows in a minibatch"),
    ):
        parser.add_argument(
            f"--{name}", type=at_least_one, default=default, metavar="N",
            help=f"{text}; default: %(default)s",
        )  # fmt: skip
    parser.add_argument(
        "--learning-rate", type=positive, default=3e-3, metavar="X", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=at_least_zero, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--out", metavar="MODEL.safetensors", help="save the model with all it takes to use it"
    )
    parser.add_argument("--plot", metavar="FIT.png", help="picture of the test part and the losses")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_outputs([arguments.data], [arguments.out, arguments.plot])
    if arguments.out is not None:
        require_library()
        check_writable(arguments.out)
    if arguments.plot is not None:
        from fastgates._plots import check_picture

        check_picture(arguments.plot)
    names = list(dict.fromkeys([arguments.target, *arguments.inputs]))
    values = read_columns(arguments.data, names).values

    from fastgates.forecasting import DivergenceError, Forecaster, chronological_split, compare

    model = Forecaster(
        cell=arguments.cell,
        hidden_size=arguments.hidden,
        num_layers=arguments.layers,
        window=arguments.window,
        horizon=arguments.horizon,
        epochs=arguments.epochs,
        patience=arguments.patience,
        batch_size=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    with naming(arguments.data):
        split = chronological_split(len(values), model.window, model.horizon)
        test = f"{split.validation_end + 1}-{len(values)}"
        print(
            f"{arguments.data}: {len(values)} rows; training 1-{split.train_end}, "
            f"validation {split.train_end + 1}-{split.validation_end}, test {test}"
        )
        try:
            with progress_bar(model.cell) as progress:
                model.fit(values, split, columns=names, progress=progress)
        except DivergenceError as error:
            return fail(error, 1)
    print(
        f"{model.parameter_count} parameters; {model.record['epochs_run']} epochs, "
        f"the weights of epoch {model.record['best_epoch']} are kept\n"
    )
    comparison = compare(model, values, split.validation_end)
    _print_metrics(f"test rows {test}", comparison.errors)
    if arguments.out is not None:
        model.record["data"] = os.path.basename(arguments.data)
        model.record["test"] = {
            name: _json_metrics(each) for name, each in comparison.errors.items()
        }
        model.save(arguments.out)
        print(f"\nmodel: {arguments.out}")
    if arguments.plot is not None:
        _draw_fit(arguments, model, values, split.validation_end, comparison)
        print(f"picture: {arguments.plot}")
    return 0


def _draw_fit(
    arguments: argparse.Namespace,
    model: Forecaster,
    values: NDArray[np.float64],
    start: int,
    comparison: Comparison,
) -> None:
    from fastgates._plots import fit_picture

    history = model.record["history"]
    fit_picture(
        arguments.plot,
        f"{arguments.target}, {model.horizon} ahead, in the test part",
        range(start + 1, len(values) + 1),
        values[start:, 0],
        comparison.forecasts,
        [epoch.loss for epoch in history],
        [epoch.validation_loss for epoch in history],
        model.record["best_epoch"],
    )


def _print_metrics(title: str, errors: dict[str, Metrics]) -> None:
    width = max(map(len, (title, *errors)))
    print(f"{title:<{width}}  {'RMSE':>10}  {'MAE':>10}  {'R2':>7}")
    for name, (rmse, mae, r2) in errors.items():
        shown = f"{r2:7.4f}" if math.isfinite(r2) else "    n/a"
        print(f"{name:<{width}}  {rmse:10.5g}  {mae:10.5g}  {shown}")


def _json_metrics(errors: Metrics) -> dict[str, float | None]:
    """JSON has no NaN: an R2 that does not exist is null."""
    return {
        name: value if math.isfinite(value) else None for name, value in errors._asdict().items()
    }
