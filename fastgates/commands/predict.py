"""The command ``fastgates predict``."""

from __future__ import annotations

import argparse
import csv
import math
import sys

from fastgates._atomic import check_writable
from fastgates._modelfile import require_library
from fastgates._tables import format_rows, read_columns, write_columns
from fastgates.commands._shared import check_outputs, naming

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "predict",
        help="forecast with a saved model",
        description="Forecast with a model that fit saved. The output has a line for each row "
        "of DATA.csv that can be forecast, and for the rows after its end up to the horizon.",
    )
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("data", metavar="DATA.csv")
    parser.add_argument("--out", metavar="PREDICTIONS.csv", help="default: the standard output")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_outputs([arguments.model, arguments.data], [arguments.out])
    require_library()
    from fastgates.baselines import metrics
    from fastgates.forecasting import Forecaster

    model = Forecaster.load(arguments.model)
    if arguments.out is not None:
        check_writable(arguments.out)
    table = read_columns(arguments.data, model.columns, minimum_rows=model.window)
    with naming(arguments.data):
        forecast = model.predict(table.values)
    actual = table.values[model.first_row :, 0]
    unknown = len(forecast) - len(actual)
    names = ("row", "actual", "forecast")
    columns = (
        range(model.first_row + 1, model.first_row + 1 + len(forecast)),
        [*actual.tolist(), *[math.nan] * unknown],
        forecast,
    )
    if arguments.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(format_rows(names, columns))
        return 0
    write_columns(arguments.out, names, columns)
    print(f"{arguments.out}: {len(forecast)} forecasts of {model.columns[0]}")
    if len(actual):
        rmse, mae, _ = metrics(forecast[: len(actual)], actual)
        print(f"RMSE {rmse:.6g}, MAE {mae:.6g} on the {len(actual)} rows whose value is known")
    return 0
