"""The estimators as kinds of ``fastgates.files``: what ``save`` writes and ``load`` reads.

A file holds the parameters, the fitted attributes, the model's weights with its scaling, the
residuals behind the intervals, and the history by epochs.  What only a training in progress has is
left out: the optimiser's state, callbacks, the checkpoint's name, a schedule given as an object, a
random state that is not an integer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from fastgates import files
from fastgates._modelfile import ModelFileError
from fastgates.estimators._base import SequenceEstimator
from fastgates.estimators._classifier import SequenceClassifier
from fastgates.estimators._clock import Clock
from fastgates.estimators._forecaster import SequenceForecaster, Standard
from fastgates.estimators._regressor import SequenceRegressor
from fastgates.forecasting import Split
from fastgates.losses import Loss
from fastgates.training import History

__all__: list[str] = []

Tensors = dict[str, NDArray[np.float32]]

_LEFT_OUT = ("callbacks", "checkpoint", "device", "resume", "verbose")


# -- What all have ---------------------------------------------------------------------------------


def _to_file(estimator: SequenceEstimator) -> tuple[dict[str, Any], Tensors]:
    check_is_fitted(estimator)
    own = {
        SequenceRegressor: _regressor_header,
        SequenceClassifier: _classifier_header,
        SequenceForecaster: _forecaster_header,
    }
    header = {
        "parameters": _parameters(estimator),
        "model": dict(estimator._shape_),
        "fitted": own[_kind(estimator)](estimator),
        "history": _history(estimator.history_),
        "table": estimator.table_,
    }
    tensors = {f"model.{name}": value for name, value in estimator.model_.state_dict().items()}
    if hasattr(estimator, "residuals_"):
        tensors["residuals"] = estimator.residuals_
    return header, tensors


def _history(history: History) -> dict[str, Any]:
    """Return what a file keeps of the history: epochs, but no steps, which may be many.

    Nor how long they took, so that the same training gives the same bytes.
    """
    result = history.to_dict()
    result["steps"] = {name: [] for name in result["steps"]}
    result["epochs"]["seconds"] = [None] * len(history)
    return result


def _kind(estimator: SequenceEstimator) -> type[SequenceEstimator]:
    for kind in (SequenceRegressor, SequenceClassifier, SequenceForecaster):
        if type(estimator) is kind:
            return kind
    raise TypeError(f"a subclass of the estimators cannot be saved, got {type(estimator).__name__}")


def _parameters(estimator: SequenceEstimator) -> dict[str, Any]:
    parameters = {
        name: value
        for name, value in estimator.get_params(deep=False).items()
        if name not in _LEFT_OUT
    }
    if not isinstance(parameters["schedule"], str):
        parameters["schedule"] = None
    if not isinstance(parameters["random_state"], int | np.integer):
        parameters["random_state"] = None
    if isinstance(parameters.get("loss"), Loss):
        loss = parameters["loss"]
        parameters["loss"], parameters["loss_options"] = loss.name, dict(loss.options)
    weight = parameters.get("class_weight")
    if isinstance(weight, Mapping):  # JSON knows no keys but texts
        parameters["class_weight"] = [[plain(k), plain(v)] for k, v in weight.items()]
    return {name: plain(value) for name, value in parameters.items()}


def plain(value: Any) -> Any:
    """Turn NumPy numbers and arrays, and tuples, into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _from_file(
    cls: type[SequenceEstimator], header: dict[str, Any], tensors: Tensors
) -> SequenceEstimator:
    estimator = _with_parameters(cls, header["parameters"])
    shape = dict(header["model"])
    fitted = header["fitted"]
    if isinstance(estimator, SequenceRegressor):
        _read_regressor(estimator, fitted)
    elif isinstance(estimator, SequenceClassifier):
        _read_classifier(estimator, fitted)
    elif isinstance(estimator, SequenceForecaster):
        _read_forecaster(estimator, fitted, shape)
    _put_model(estimator, shape, files.pop_prefix(tensors, "model."))
    if "residuals" in tensors:
        estimator.residuals_ = tensors.pop("residuals")
    estimator.history_ = History.from_dict(header["history"])
    estimator.n_iter_ = len(estimator.history_["loss"])
    estimator.table_ = header["table"]
    return estimator


def _with_parameters(cls: type[SequenceEstimator], parameters: Mapping[str, Any]) -> Any:
    known = inspect.signature(cls).parameters
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ModelFileError(
            f"{cls.__name__} has no parameter {', '.join(unknown)}: pip install --upgrade fastgates"
        )
    parameters = {
        name: tuple(value) if isinstance(known[name].default, tuple) else value
        for name, value in parameters.items()
    }
    if isinstance(parameters.get("class_weight"), list):
        parameters["class_weight"] = dict(parameters["class_weight"])
    return cls(**parameters)


def _put_model(estimator: SequenceEstimator, shape: dict[str, Any], tensors: Tensors) -> None:
    """Build the model and load its weights.

    The sizes of the file's own tensors are compared first: a damaged header that asks for a huge
    layer must not be obeyed.
    """
    last = f"network.0.weight_hh_l{estimator.num_layers - 1}"
    sizes = {
        "network.0.weight_hh_l0": (1, estimator.hidden_size),
        "network.0.weight_ih_l0": (1, shape["input_size"]),
        last: (1, estimator.hidden_size),
    }
    for name, (axis, size) in sizes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"there is no tensor model.{name}")
        if tensor.ndim != 2 or tensor.shape[axis] != size:
            raise ModelFileError(
                f"tensor model.{name} must have {size} along axis {axis}, got shape {tensor.shape}"
            )
    rows = tensors["network.1.weight"].shape[0]
    if not 0 < shape["output_size"] <= rows:
        raise ModelFileError(
            f"tensor model.network.1.weight must have a row for each of the "
            f"{shape['output_size']} outputs, got {rows}"
        )
    estimator._shape_ = shape
    estimator.model_ = estimator._new_model(shape, estimator._options(), seed=0)
    estimator.model_.load_state_dict(tensors)
    estimator._structure_ = estimator._structure(shape)
    estimator._trainer = None  # that of the training is not in the file


def _example(estimator: SequenceEstimator) -> NDArray[np.float32]:
    """Return a small input of a usual size in the user's units."""
    model = estimator.model_
    x = np.random.default_rng(0).standard_normal((2, 9, model.input_size))
    if model.input_scaling is not None:
        values = model.input_scaling.parameters
        x = x * values["scale"] + values["mean"]
    return x.astype(np.float32)


def _run(estimator: SequenceEstimator, x: NDArray[np.float32]) -> NDArray[np.float32]:
    output: NDArray[np.float32] = estimator.model_.predict(x)
    return output


def _summary(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what it is in a few lines."""
    # Version 1 of the forecaster called them settings.
    settings = header["settings"] if "settings" in header else header["parameters"]
    lines = [("cell", f"{settings['cell']}, {settings['hidden_size']} x {settings['num_layers']}")]
    for name in ("window", "horizon", "loss", "per_step"):
        if settings.get(name):
            lines.append((name.replace("_", " "), str(settings[name])))
    fitted = header.get("fitted", {})
    names = {"classes": "classes", "target_names": "targets", "input_names": "inputs",
             "feature_names": "inputs"}  # fmt: skip
    for name, label in names.items():
        if fitted.get(name):
            lines.append((label, ", ".join(map(str, fitted[name]))))
    return lines


# -- Each of them ----------------------------------------------------------------------------------


def _inputs_header(estimator: Any) -> dict[str, Any]:
    names = getattr(estimator, "feature_names_in_", None)
    return {
        "n_features_in": estimator.n_features_in_,
        "n_inputs": estimator.n_inputs_,
        "on_table": estimator._fitted_on_table,
        "feature_names": None if names is None else names.tolist(),
    }


def _read_inputs_header(estimator: Any, fitted: Mapping[str, Any]) -> None:
    estimator.n_features_in_ = int(fitted["n_features_in"])
    estimator.n_inputs_ = int(fitted["n_inputs"])
    estimator._fitted_on_table = bool(fitted["on_table"])
    if fitted["feature_names"] is not None:
        estimator.feature_names_in_ = np.array(fitted["feature_names"], dtype=object)


def _regressor_header(estimator: Any) -> dict[str, Any]:
    return _inputs_header(estimator) | {"target_dimensions": estimator._target_dimensions}


def _read_regressor(estimator: SequenceRegressor, fitted: Mapping[str, Any]) -> None:
    _read_inputs_header(estimator, fitted)
    estimator._target_dimensions = int(fitted["target_dimensions"])


def _classifier_header(estimator: Any) -> dict[str, Any]:
    classes = estimator.classes_
    if classes.dtype.kind not in "biufUO" or not all(
        isinstance(each, bool | int | float | str) for each in classes.tolist()
    ):
        raise TypeError(
            f"classes must be texts or numbers to be saved, got {classes[0]!r} of {classes.dtype}"
        )
    return _inputs_header(estimator) | {
        "classes": classes.tolist(),
        "classes_dtype": classes.dtype.str,
    }


def _read_classifier(estimator: SequenceClassifier, fitted: Mapping[str, Any]) -> None:
    _read_inputs_header(estimator, fitted)
    dtype = str(fitted["classes_dtype"])
    estimator.classes_ = np.array(fitted["classes"], dtype=object if "O" in dtype else dtype)


def _forecaster_header(estimator: Any) -> dict[str, Any]:
    standard, clock = estimator._standard, estimator._clock
    return {
        "leads": list(estimator.leads_),
        "window": int(estimator.window_),
        "split": list(estimator.split_),
        "ahead": list(estimator._ahead),
        "target_names": list(estimator.target_names_),
        "input_names": list(estimator.input_names_),
        "flat": estimator._flat,
        "named": estimator._named,
        "clock": None if clock is None else list(clock),
        "scaling": {name: value.tolist() for name, value in standard._asdict().items()},
        "last": estimator._last.tolist(),
    }


def _read_forecaster(
    estimator: SequenceForecaster, fitted: Mapping[str, Any], shape: Mapping[str, Any]
) -> None:
    estimator.leads_ = tuple(int(lead) for lead in fitted["leads"])
    if estimator.leads_ != estimator._leads():
        raise ModelFileError(f"its leads {estimator.leads_} do not fit its horizon")
    estimator.window_ = int(fitted.get("window", estimator.window))
    estimator.split_ = Split(*(int(row) for row in fitted["split"]))
    estimator._ahead = tuple(int(column) for column in fitted["ahead"])
    estimator.target_names_ = tuple(str(name) for name in fitted["target_names"])
    estimator.input_names_ = tuple(str(name) for name in fitted["input_names"])
    estimator._flat, estimator._named = bool(fitted["flat"]), bool(fitted["named"])
    clock = fitted["clock"]
    estimator._clock = None if clock is None else Clock(*clock)
    scaling = fitted["scaling"]
    standard = Standard(*(np.array(scaling[name], np.float64) for name in Standard._fields))
    columns = len(estimator.target_names_) + len(estimator.input_names_)
    changes = (len(estimator.leads_), len(estimator.target_names_))
    fits = standard.mean.shape == standard.scale.shape == (columns,) == (shape["input_size"],)
    positive = (standard.scale > 0).all() and (standard.change > 0).all()
    if not (fits and positive and standard.change.shape == changes):
        raise ModelFileError("its scaling does not fit its columns")
    estimator._standard = standard
    last = np.array(fitted["last"], np.float64).reshape(-1, columns)
    estimator._last = last


def _forecaster_from_file(
    header: dict[str, Any], tensors: Tensors, version: int
) -> SequenceEstimator:
    if version == 1:
        header, tensors_now = _from_version_1(header, tensors)
        tensors.clear()
        tensors.update(tensors_now)
    forecaster = _from_file(SequenceForecaster, header, tensors)
    return forecaster


def _from_version_1(header: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Translate what the forecaster's first version wrote, which had one lead and no intervals."""
    settings, scaling, record = header["settings"], header["scaling"], header["training"]
    columns = [str(name) for name in header["columns"]]
    same = ("cell", "cell_options", "hidden_size", "num_layers", "window", "batch_size",
            "learning_rate", "patience")  # fmt: skip
    parameters = {name: settings[name] for name in same} | {
        "horizon": [settings["horizon"]],
        "max_epochs": settings["epochs"],
        "clip_norm": settings["max_norm"],
        "random_state": settings["seed"],
        "calibration_fraction": 0.0,
    }
    end = record["validation_end"]
    epochs = np.array(record["history"], np.float64).reshape(-1, 3)
    now = {
        "parameters": parameters,
        "model": {"input_size": len(columns), "output_size": 1, "return_sequences": False},
        "fitted": {
            "leads": [settings["horizon"]],
            "split": [record["train_end"], end, end],
            "ahead": [],
            "target_names": columns[:1],
            "input_names": columns[1:],
            "flat": True,
            "named": True,
            "clock": None,
            "scaling": {
                "mean": scaling["mean"],
                "scale": scaling["scale"],
                "change": [[scaling["change"]]],
            },
            "last": [],
        },
        "history": _history_of_version_1(epochs, record["best_epoch"]),
        "table": {"task": "forecast", "target": columns[0], "inputs": columns[1:]},
    }
    renamed = {"recurrent": "model.network.0", "readout": "model.network.1"}
    tensors_now = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        tensors_now[f"{renamed.get(part, part)}.{rest}"] = tensor
    return now, tensors_now


def _history_of_version_1(epochs: NDArray[np.float64], best_epoch: int) -> dict[str, Any]:
    """Return the losses and norms that the first version kept, as ``History`` reads them."""
    loss, validation, norm = epochs.T
    unknown = [None] * len(epochs)
    return {
        "epochs": {
            "epoch": list(range(1, len(epochs) + 1)),
            "step": [0] * len(epochs),  # it was not counted
            "loss": loss.tolist(),
            "validation_loss": validation.tolist(),
            "gradient_norm": norm.tolist(),
            "gradient_norm_max": unknown,
            "learning_rate": unknown,
            "seconds": unknown,
        },
        "steps": {"loss": [], "gradient_norm": [], "learning_rate": []},
        "best_epoch": best_epoch,
        "stop_reason": "",
    }


def _reader(cls: type[SequenceEstimator]) -> Any:
    return lambda header, tensors, version: _from_file(cls, header, tensors)


for _name, _cls, _version, _from in (
    ("fastgates.regressor", SequenceRegressor, 1, _reader(SequenceRegressor)),
    ("fastgates.classifier", SequenceClassifier, 1, _reader(SequenceClassifier)),
    ("fastgates.forecaster", SequenceForecaster, 2, _forecaster_from_file),
):
    files.register(
        files.Kind(
            name=_name,
            version=_version,
            type=_cls,
            to_file=_to_file,
            from_file=_from,
            example=_example,
            run=_run,
            summary=_summary,
        )
    )
