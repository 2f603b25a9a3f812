"""The command ``fastgates predict``: run a saved model on a table."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from typing import Any

from fastgates._atomic import check_writable
from fastgates._modelfile import require_library
from fastgates._tables import DataError, format_rows, write_columns
from fastgates.commands._models import add_column_options, columns_of, load_model
from fastgates.commands._samples import (
    Columns,
    Samples,
    clock_of,
    flatten,
    read_samples,
    read_series,
)
from fastgates.commands._shared import at_least_one, check_outputs, naming, share

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "predict",
        help="forecast or predict with a saved model",
        description="Run a model that fit or fastgates.save wrote. A forecaster gives a line for "
        "each row of DATA that can be forecast, and for the rows after its end up to the horizon; "
        "other models give a line for each sequence, or for each step.",
    )
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("data", metavar="DATA", help="a .csv or .parquet file")
    parser.add_argument(
        "--out", metavar="PREDICTIONS.csv", help="or .parquet; default: the standard output"
    )
    parser.add_argument(
        "--next", action="store_true", help="forecast only what comes after the end, at all leads"
    )
    parser.add_argument(
        "--lead", type=at_least_one, metavar="N",
        help="which of several leads to forecast each row at; default: the furthest",
    )  # fmt: skip
    parser.add_argument(
        "--coverage", type=share, default=0.9, metavar="X",
        help="how often the truth is to lie in the intervals; default: %(default)s",
    )  # fmt: skip
    add_column_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_outputs([arguments.model, arguments.data], [arguments.out])
    require_library()
    if arguments.out is not None:
        check_writable(arguments.out)
    model = load_model(arguments.model)
    columns = columns_of(model, arguments)
    if columns.task != "forecast" and (arguments.next or arguments.lead):
        raise DataError("--next and --lead are for forecasters")
    if arguments.next and arguments.lead:
        raise DataError("--next and --lead exclude each other: --next gives all leads")
    with naming(arguments.data):
        if columns.task == "forecast":
            return _forecast(arguments, model, columns)
        samples = read_samples(arguments.data, columns, with_target=False)
        if type(model).__name__ == "Sequential":
            return _run_module(arguments, model, columns, samples)
        return _predict(arguments, model, columns, samples)


def _write(
    arguments: argparse.Namespace, table: dict[str, Any], what: str, errors: str = ""
) -> int:
    names, columns = list(table), list(table.values())
    if arguments.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(format_rows(names, columns))
        return 0
    write_columns(arguments.out, names, columns)
    print(f"{arguments.out}: {len(columns[0])} {what}")
    if errors:
        print(errors)
    return 0


def _forecast(arguments: argparse.Namespace, model: Any, columns: Columns) -> int:
    from fastgates.baselines import metrics

    series = read_series(arguments.data, columns, model.window_)
    target, rows = series.target, len(series.target)
    future = series.future
    if future is not None:
        if len(future) < max(model.leads_):
            raise DataError(
                f"{max(model.leads_)} rows after the last known {columns.target} are needed, or "
                f"none, got {len(future)}"
            )
        future = future[: max(model.leads_)]
    width = model.radius(arguments.coverage)[:, 0] if hasattr(model, "residuals_") else None
    if arguments.next:
        if model._ahead and future is None:
            raise DataError(
                f"--next needs {max(model.leads_)} rows after the last known {columns.target}, "
                f"with {', '.join(columns.future_inputs)}"
            )
        forecast = model.predict(target, series.inputs, future)
        table: dict[str, Any] = {"row": [rows + lead for lead in model.leads_]}
        _add_times(table, columns, series.times, rows)
        table["forecast"] = forecast
        _add_bounds(table, forecast, width)
        return _write(arguments, table, f"forecasts of {columns.target}")
    lead = arguments.lead or model.leads_[-1]
    if lead not in model.leads_:
        raise DataError(f"--lead must be one of {', '.join(map(str, model.leads_))}, got {lead}")
    place = model.leads_.index(lead)
    forecast = model.predict_rolling(target, series.inputs, future)[:, place]
    first = model.window_ + lead - 1
    actual = target[first:]
    known = min(len(actual), len(forecast))
    table = {"row": range(first + 1, first + 1 + len(forecast))}
    _add_times(table, columns, series.times, rows)
    table["actual"] = [*actual[:known].tolist(), *[math.nan] * (len(forecast) - known)]
    table["forecast"] = forecast
    _add_bounds(table, forecast, None if width is None else width[place])
    errors = ""
    if known:
        rmse, mae, _ = metrics(forecast[:known], actual[:known])
        errors = f"RMSE {rmse:.6g}, MAE {mae:.6g} on the {known} rows whose value is known"
    return _write(arguments, table, f"forecasts of {columns.target}", errors)


def _add_times(table: dict[str, Any], columns: Columns, times: Any, known: int) -> None:
    """Label the rows with their times, where the model knows the column of them."""
    clock = clock_of(columns, times)
    if clock is None:
        return
    after = clock.after(range(1, max(1, table["row"][-1] - known) + 1))
    as_given = clock.kind == "datetime" and "T" in str(times[-1])
    later = [label.isoformat() if as_given else str(label) for label in after]
    if clock.kind == "datetime" and all(label[10:] == " 00:00:00" for label in later):
        later = [label[:10] for label in later]
    every = [*times.tolist(), *later]
    table[str(columns.time)] = [every[row - 1] for row in table["row"]]


def _add_bounds(table: dict[str, Any], middle: Any, width: Any) -> None:
    if width is not None:
        table["lower"], table["upper"] = middle - width, middle + width


def _predict(arguments: argparse.Namespace, model: Any, columns: Columns, samples: Samples) -> int:
    import numpy as np

    target = columns.target or "target"
    prediction = model.predict(samples.x)
    table = _places(columns, samples)
    if columns.task == "classification":
        probability = flatten(model.predict_proba(samples.x))
        table[target] = flatten(prediction)
        for place, label in enumerate(model.classes_):
            table[f"probability {label}"] = probability[:, place].astype(np.float64)
    else:
        flat = flatten(prediction)
        if flat.ndim == 2 and flat.shape[1] > 1:
            table |= {f"{target} {k}": flat[:, k] for k in range(flat.shape[1])}
        else:
            table[target] = flat = flat.reshape(len(flat))
            if hasattr(model, "residuals_"):
                _add_bounds(table, flat, float(model.radius(arguments.coverage)))
    what = "labels" if columns.task == "classification" else "predictions"
    return _write(arguments, table, f"{what} of {target}")


def _run_module(
    arguments: argparse.Namespace, model: Any, columns: Columns, samples: Samples
) -> int:
    """Run a Sequential on whole sequences: its outputs as they are."""
    import numpy as np

    x: Any = samples.x
    if columns.sequence is None and columns.window is None:
        x = [np.asarray(x)]  # all rows are one sequence
        samples = Samples(x, None, ["1"], [np.arange(1, len(x[0]) + 1)])
    outputs = [model(np.asarray(each)[None])[0][0] for each in x]
    if not model.return_sequences:
        table = _places(columns, samples)
        values = np.stack(outputs)
    else:
        table = _steps(columns, samples)
        values = np.concatenate(outputs)
    table |= {f"output {k}": values[:, k].astype(np.float64) for k in range(values.shape[1])}
    return _write(arguments, table, "outputs")


def _places(columns: Columns, samples: Samples) -> dict[str, Any]:
    """Return the first columns of the output: which sequence, and which row of it."""
    if columns.per_step:
        return _steps(columns, samples)
    if columns.sequence is not None:
        return {columns.sequence: samples.names}
    return {"row": [int(rows[-1]) for rows in samples.rows]}


def _steps(columns: Columns, samples: Samples) -> dict[str, Any]:
    import numpy as np

    table: dict[str, Any] = {}
    if columns.sequence is not None:
        names: Sequence[str] = samples.names
        table[columns.sequence] = np.repeat(names, [len(rows) for rows in samples.rows])
    table["row"] = np.concatenate(samples.rows)
    return table
