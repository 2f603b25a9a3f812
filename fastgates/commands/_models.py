"""Model files on the command line: which columns of a table a loaded model reads."""

from __future__ import annotations

import argparse
from typing import Any

from fastgates._tables import DataError
from fastgates.commands._samples import Columns
from fastgates.commands._shared import at_least_one, column_list

__all__ = ["add_column_options", "columns_of", "load_model"]


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for models that were saved in Python and know no columns."""
    group = parser.add_argument_group(
        "columns", "Models that `fit` saved know them; these are for others, or in their place."
    )
    group.add_argument("--target", metavar="COLUMN", help="the column that is predicted")
    group.add_argument("--inputs", type=column_list, metavar="A,B", help="the columns to read")
    group.add_argument(
        "--sequence", metavar="COLUMN", help="rows with the same entry here are a sequence"
    )
    group.add_argument(
        "--window", type=at_least_one, metavar="N", help="each stretch of N rows is a sequence"
    )


def load_model(path: str) -> Any:
    """Load what `fastgates.save` wrote; a layer alone becomes a Sequential."""
    import fastgates

    model = fastgates.load(path)
    if isinstance(model, fastgates.Recurrent):
        return fastgates.Sequential(model)
    known = (
        "SequenceRegressor", "SequenceClassifier", "SequenceForecaster", "Sequential",
    )  # fmt: skip
    if type(model).__name__ not in known:
        raise DataError(f"{path}: a {type(model).__name__} reads no sequences, so no tables")
    return model


def columns_of(model: Any, arguments: argparse.Namespace) -> Columns:
    """Return the columns that a model reads: its own, or those that the options name."""
    kind = type(model).__name__
    task = {
        "SequenceForecaster": "forecast", "SequenceClassifier": "classification",
    }.get(kind, "regression")  # fmt: skip
    table = getattr(model, "table_", None)
    own = Columns(task, None) if table is None else Columns.from_dict(table | {"task": task})
    inputs = own.inputs
    target, future = own.target, own.future_inputs
    if table is None and task == "forecast":
        if len(model.target_names_) != 1:
            raise DataError("a forecaster of several targets cannot be run on the command line")
        target, inputs = model.target_names_[0], model.input_names_
        names = (target, *inputs)
        future = tuple(names[k] for k in model._ahead)
    elif table is None and getattr(model, "feature_names_in_", None) is not None:
        inputs = tuple(map(str, model.feature_names_in_))
    if arguments.inputs is not None:
        if task == "forecast" and len(arguments.inputs) == len(inputs):
            future = tuple(arguments.inputs[inputs.index(name)] for name in future)
        inputs = tuple(arguments.inputs)
    sequence, window = own.sequence, own.window
    if task == "forecast":
        for option, value in (("--sequence", arguments.sequence), ("--window", arguments.window)):
            if value is not None:
                raise DataError(f"{option} has no meaning with a forecaster, whose windows are set")
    if arguments.sequence is not None or arguments.window is not None:
        sequence, window = arguments.sequence, arguments.window
    result = Columns(
        task, arguments.target or target, inputs, future, sequence, window,
        bool(getattr(model, "per_step", own.per_step)), own.time,
    )  # fmt: skip
    _check(model, result)
    return result


def _check(model: Any, columns: Columns) -> None:
    """Raise where the columns cannot be what the model reads."""
    if columns.task == "forecast":
        if len(columns.inputs) != len(model.input_names_):
            raise DataError(
                f"--inputs must name {len(model.input_names_)} columns, got {len(columns.inputs)}"
            )
        return
    if not columns.inputs:
        raise DataError("--inputs is needed: the model does not know the names of its columns")
    on_table = getattr(model, "_fitted_on_table", False)
    if columns.sequence is not None or columns.window is not None or not on_table:
        size = model.n_inputs_ if hasattr(model, "n_inputs_") else model.input_size
    else:
        size = model.n_features_in_
    if len(columns.inputs) != size:
        raise DataError(f"--inputs must name {size} columns, got {len(columns.inputs)}")
