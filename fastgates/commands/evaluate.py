"""The command ``fastgates evaluate``: measure a saved model on a table whose targets are known."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fastgates._atomic import check_writable, replacing
from fastgates._modelfile import require_library
from fastgates._tables import DataError
from fastgates.commands._models import add_column_options, columns_of, load_model
from fastgates.commands._samples import Columns, flatten, read_samples, read_series
from fastgates.commands._shared import at_least_one, check_outputs, naming, share

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a saved model on a table",
        description="Measure a model on a table whose targets are known: errors, and how often the "
        "truth lies in the intervals. A forecaster is compared with the baselines.",
    )
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("data", metavar="DATA", help="a .csv or .parquet file")
    parser.add_argument(
        "--first-row", type=at_least_one, metavar="N",
        help="forecasts of rows from here on only (from 1); the baseline is fitted on those before",
    )  # fmt: skip
    parser.add_argument(
        "--coverage", type=share, default=0.9, metavar="X",
        help="how often the truth is to lie in the intervals; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--json", metavar="SCORES.json", help="write the figures")
    add_column_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_outputs([arguments.model, arguments.data], [arguments.json])
    require_library()
    if arguments.json is not None:
        check_writable(arguments.json)
    model = load_model(arguments.model)
    if type(model).__name__ == "Sequential":
        raise DataError(
            f"{arguments.model}: evaluate needs an estimator, which knows what its outputs mean"
        )
    columns = columns_of(model, arguments)
    if columns.target is None:
        raise DataError("--target is needed: the model does not know the name of its target")
    with naming(arguments.data):
        if columns.task == "forecast":
            title, scores, inside = _forecaster(arguments, model, columns)
        elif arguments.first_row is not None:
            raise DataError("--first-row is for forecasters")
        else:
            title, scores, inside = _samples(arguments, model, columns)
    from fastgates.commands._scores import print_scores

    print_scores(title, scores)
    result: dict[str, Any] = {"scores": scores.to_dict()}
    if inside is not None:
        result["intervals"] = {"wanted": arguments.coverage, "found": float(inside.mean())}
        print(f"intervals for {arguments.coverage:.0%} hold {inside.mean():.1%} of the values")
    if arguments.json is not None:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _forecaster(
    arguments: argparse.Namespace, model: Any, columns: Columns
) -> tuple[str, Any, Any]:
    from fastgates.commands._scores import number_scores
    from fastgates.forecasting import compare

    series = read_series(arguments.data, columns, model.window_)
    fewest = model.window_ + model.leads_[-1]
    start = fewest if arguments.first_row is None else arguments.first_row - 1
    if not fewest <= start < len(series.target):
        raise DataError(
            f"rows {fewest + 1} to {len(series.target)} can be compared, the baselines need those "
            f"before: --first-row {start + 1}"
        )
    comparison = compare(model, series.target, start, series.inputs)
    scores = number_scores(comparison.truth, comparison.forecasts)
    inside = None
    if hasattr(model, "residuals_"):
        width = model.radius(arguments.coverage)[:, 0]
        inside = abs(comparison.truth - comparison.forecasts[model.cell]) <= width
    return f"rows {start + 1}-{len(series.target)}", scores, inside


def _samples(arguments: argparse.Namespace, model: Any, columns: Columns) -> tuple[str, Any, Any]:
    import numpy as np

    from fastgates.commands._scores import class_scores, number_scores

    samples = read_samples(arguments.data, columns)

    truth = flatten(samples.y)
    title = f"{len(truth)} {'steps' if columns.per_step else 'sequences'}"
    if columns.task == "classification":
        probability = flatten(model.predict_proba(samples.x))
        if model.classes_.dtype.kind != "U":
            truth = truth.astype(model.classes_.dtype)
        unknown = ~np.isin(truth, model.classes_)
        if unknown.any():
            print(
                f"fastgates: {unknown.sum()} of the {len(truth)} labels are none that the model "
                f"knows, such as {truth[unknown][0]}: they count as wrong",
                file=sys.stderr,
            )
        return title, class_scores(truth, probability, model.classes_, model.cell, None), None
    prediction = flatten(model.predict(samples.x))
    scores = number_scores(truth, {model.cell: prediction})
    inside = None
    if hasattr(model, "residuals_"):
        inside = abs(truth - prediction) <= float(model.radius(arguments.coverage))
    return title, scores, inside
