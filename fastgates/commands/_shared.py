"""What several commands need: kinds of options, checks of file names, progress, errors."""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

from fastgates._tables import DataError

if TYPE_CHECKING:
    from tqdm import tqdm

    from fastgates.forecasting import Progress

__all__ = [
    "at_least_one",
    "at_least_zero",
    "check_outputs",
    "column_list",
    "fail",
    "naming",
    "one_line",
    "positive",
    "progress_bar",
]


def check_outputs(inputs: Sequence[str], outputs: Sequence[str | None]) -> None:
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
def naming(path: str) -> Iterator[None]:
    """Put the file's name before a DataError that does not know it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[Progress], None]]:
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


def one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory for a model of this size"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"cannot write {error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def column_list(text: str) -> list[str]:
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not all(names):
        raise argparse.ArgumentTypeError(f"column names separated by commas, got {text!r}")
    return names


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"an integer of at least {least}, got {text!r}")
    return value


def at_least_one(text: str) -> int:
    return _integer(text, 1)


def at_least_zero(text: str) -> int:
    return _integer(text, 0)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number, got {text!r}")
    return value


def fail(error: BaseException, code: int) -> int:
    """Write an error as one line; return the exit code."""
    print(f"fastgates: error: {one_line(error)}", file=sys.stderr)
    return code
