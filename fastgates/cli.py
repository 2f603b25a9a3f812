"""The command ``fastgates``: forecast a column of a CSV file, look around, measure, compile ahead.

Exit codes: 0 done; 2 the input cannot be used (one line on stderr, nothing is overwritten);
1 training diverged; 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

from fastgates import _extras
from fastgates._atomic import check_writable
from fastgates._modelfile import ModelFileError, require_library
from fastgates._tables import DataError, format_rows, read_columns, write_columns
from fastgates.benchmark import command as benchmark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastgates.baselines import Metrics
    from fastgates.forecasting import Comparison, Forecaster, Progress

__all__ = ["main"]

_CELLS = ("gru", "lstm", "simplified_gru", "rnn")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.  Wrong usage raises ``SystemExit(2)``, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    try:
        result: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nfastgates: interrupted; no file is half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, ModelFileError, _extras.MissingPackageError, OSError, MemoryError) as error:
        print(f"fastgates: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastgates", description="Fast gated recurrent networks: forecast a series."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    fit = commands.add_parser(
        "fit",
        help="fit a forecaster to a column of a CSV file",
        description="Fit a forecaster to a column of a CSV file (comma-separated, names in the "
        "first line, rows in time order at equal steps, no gaps). The first 70 percent of the rows "
        "are for training, the next 15 percent for early stopping, the last 15 percent to test.",
    )
    fit.add_argument("data", metavar="DATA.csv")
    fit.add_argument("--target", required=True, metavar="COLUMN", help="the column to forecast")
    fit.add_argument(
        "--inputs",
        type=_column_list,
        default=[],
        metavar="A,B",
        help="columns to read besides the target's own past",
    )
    fit.add_argument("--cell", choices=_CELLS, default="gru", help="default: %(default)s")
    for name, default, text in (
        ("hidden", 32, "hidden units"),
        ("layers", 1, "recurrent layers"),
        ("window", 64, "rows read for one forecast"),
        ("horizon", 1, "rows ahead of the window that are forecast"),
        ("epochs", 100, "the most passes over the training part"),
        ("patience", 15, "epochs without a better validation loss before stopping"),
        ("batch", 32, "windows in a minibatch"),
    ):
        fit.add_argument(
            f"--{name}", type=_at_least_one, default=default, metavar="N",
            help=f"{text}; default: %(default)s",
        )  # fmt: skip
    fit.add_argument(
        "--learning-rate", type=_positive, default=3e-3, metavar="X", help="default: %(default)s"
    )
    fit.add_argument("--seed", type=_at_least_zero, default=0, metavar="N", help="default: 0")
    fit.add_argument(
        "--out", metavar="MODEL.safetensors", help="save the model with all it takes to use it"
    )
    fit.add_argument("--plot", metavar="FIT.png", help="picture of the test part and the losses")
    fit.set_defaults(run=_fit)

    predict = commands.add_parser(
        "predict",
        help="forecast with a saved model",
        description="Forecast with a model that fit saved. The output has a line for each row "
        "of DATA.csv that can be forecast, and for the rows after its end up to the horizon.",
    )
    predict.add_argument("model", metavar="MODEL.safetensors")
    predict.add_argument("data", metavar="DATA.csv")
    predict.add_argument("--out", metavar="PREDICTIONS.csv", help="default: the standard output")
    predict.set_defaults(run=_predict)

    info = commands.add_parser("info", help="versions, CPU, threads, cache, optional packages")
    info.set_defaults(run=_info)

    bench = commands.add_parser(
        "bench",
        help="measure speed, against this machine's limits and other packages",
        description="Measure fastgates on one core: its share of the peak of fused multiply-adds, "
        "and with --peers the same work in other packages. bench/README.md has the method.",
    )
    benchmark.add_arguments(bench)
    bench.set_defaults(run=benchmark.run)

    demo = commands.add_parser(
        "demo",
        help="the four cells on the sunspot series",
        description="Fit the four cells to the yearly and monthly sunspot numbers that come "
        "with the package, and compare them with persistence and a linear autoregression.",
    )
    demo.add_argument(
        "--plot",
        default="fastgates-demo.png",
        metavar="DEMO.png",
        help="the picture; default: %(default)s, where matplotlib is installed",
    )
    demo.add_argument("--quick", action="store_true", help="one short training for each cell")
    demo.set_defaults(run=_demo)

    warmup = commands.add_parser(
        "warmup",
        help="compile cells into the disk cache, for container images and clusters",
        description="Compile cells now, so that no later process on this type of machine has to. "
        "Exits with 2 when nothing can be kept on disk.",
    )
    warmup.add_argument(
        "--cells", type=_cell_list, metavar="A,B",
        help="names such as gru, gru_reset_after, lstm, simplified_gru, rnn; default: all",
    )  # fmt: skip
    warmup.add_argument(
        "--inference-only", action="store_true", help="leave out what only training needs"
    )
    warmup.set_defaults(run=_warmup)
    return parser


def _fit(arguments: argparse.Namespace) -> int:
    _check_outputs([arguments.data], [arguments.out, arguments.plot])
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
    with _naming(arguments.data):
        split = chronological_split(len(values), model.window, model.horizon)
        test = f"{split.validation_end + 1}-{len(values)}"
        print(
            f"{arguments.data}: {len(values)} rows; training 1-{split.train_end}, "
            f"validation {split.train_end + 1}-{split.validation_end}, test {test}"
        )
        try:
            with _progress_bar(model.cell) as progress:
                model.fit(values, split, columns=names, progress=progress)
        except DivergenceError as error:
            print(f"fastgates: error: {_one_line(error)}", file=sys.stderr)
            return 1
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


def _predict(arguments: argparse.Namespace) -> int:
    _check_outputs([arguments.model, arguments.data], [arguments.out])
    require_library()
    from fastgates.baselines import metrics
    from fastgates.forecasting import Forecaster

    model = Forecaster.load(arguments.model)
    if arguments.out is not None:
        check_writable(arguments.out)
    table = read_columns(arguments.data, model.columns, minimum_rows=model.window)
    with _naming(arguments.data):
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


def _info(arguments: argparse.Namespace) -> int:
    import platform

    from numba.core import config

    import fastgates
    from fastgates import _jit, _simd

    lines = {
        "fastgates": fastgates.__version__,
        "Python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "NumPy": _extras.version("numpy"),
        "Numba": f"{_extras.version('numba')} (llvmlite {_extras.version('llvmlite')})",
        "SciPy": _extras.version("scipy"),
        "CPU": getattr(config, "CPU_NAME", None) or _host_cpu(),
        "SIMD lanes": f"{_simd.LANES} x float32",
        "threads": fastgates.get_num_threads(),
        "cache": _jit.cache_directory() or "none: kernels are compiled again in every process",
    }
    for name, extra in _extras.EXTRAS.items():
        hint = f"not installed: pip install 'fastgates[{extra}]'"
        lines[name] = _extras.version(name) or hint
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _host_cpu() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


def _demo(arguments: argparse.Namespace) -> int:
    from fastgates import _demo

    picture = arguments.plot
    if _extras.version("matplotlib") is None:
        picture = None
    else:
        from fastgates._plots import check_picture

        check_picture(picture)
    result = _demo.run(_demo.QUICK if arguments.quick else _demo.FULL, _progress_bar)
    print(_demo.report(result))
    if picture is None:
        print("\nfor a picture: pip install 'fastgates[plot]'")
    else:
        _demo.draw(result, picture)
        print(f"\npicture: {picture}")
    return 0


def _warmup(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    import fastgates
    from fastgates._compile import WarmupError

    cells = arguments.cells or tuple(fastgates.cells.registered())
    try:
        with tqdm(
            total=len(cells), unit=" cells", leave=False, disable=not sys.stderr.isatty()
        ) as bar:
            bar.set_description("compiling")

            def advance(name: str) -> None:
                bar.set_postfix_str(f"{name} done", refresh=False)
                bar.update()

            done = fastgates.warmup(cells, not arguments.inference_only, progress=advance)
    except (ValueError, WarmupError) as error:
        print(f"fastgates: error: {_one_line(error)}", file=sys.stderr)
        return 2
    what = "inference and training" if done.training else "inference"
    print(
        f"{', '.join(done.cells)}: ready for {what}\n"
        f"{done.compiled} kernels compiled in {done.seconds:.1f} s\n"
        f"cache: {done.directory} ({done.size / 2**20:.1f} MiB)"
    )
    return 0


def _check_outputs(inputs: Sequence[str], outputs: Sequence[str | None]) -> None:
    """No output may be an input or another output."""
    taken = {os.path.realpath(path): path for path in inputs}
    for path in outputs:
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in taken:
            raise OSError(f"cannot write {path}: it is {taken[real]}; give another name")
        taken[real] = path


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the file's name before a DataError that does not know it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


@contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar over all steps of a training, with loss, validation loss and gradient norm."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    with ExitStack() as stack:
        bars: list[tqdm[NoReturn]] = []  # made at the first step, so an early error stays one line

        def show(progress: Progress) -> None:
            total = progress.epochs * progress.steps
            if not bars:
                bar = tqdm(
                    desc=name,
                    total=total,
                    unit=" steps",
                    mininterval=0.1 if terminal else 5.0,
                    dynamic_ncols=terminal,
                    file=sys.stderr,
                )
                bars.append(stack.enter_context(bar))
            (bar,) = bars
            if progress.epoch == progress.step == 1:
                bar.reset(total)  # the next of several trainings
            bar.set_postfix_str(
                f"epoch {progress.epoch}, loss {progress.loss:.4f}, "
                f"validation {progress.validation_loss:.4f}, "
                f"gradient norm {progress.gradient_norm:.3f}",
                refresh=False,
            )
            bar.update()

        yield show


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


def _one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory for a model of this size"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"cannot write {error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _column_list(text: str) -> list[str]:
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not all(names):
        raise argparse.ArgumentTypeError(f"column names separated by commas, got {text!r}")
    return names


def _cell_list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"an integer of at least {least}, got {text!r}")
    return value


def _at_least_one(text: str) -> int:
    return _integer(text, 1)


def _at_least_zero(text: str) -> int:
    return _integer(text, 0)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
