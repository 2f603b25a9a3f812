"""What several commands need: kinds of options, checks of file names, progress, errors."""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastgates._checkpoint import CheckpointError
from fastgates._tables import DataError

__all__ = [
    "at_least_one",
    "at_least_zero",
    "check_outputs",
    "column_list",
    "fail",
    "integer_list",
    "naming",
    "one_line",
    "positive",
    "share",
    "with_configuration",
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
    """Put the file's name before an error about data that does not know it."""
    try:
        yield
    except CheckpointError:  # it names a file of its own
        raise
    except ValueError as error:
        text = str(error)
        raise DataError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None


def with_configuration(
    parser: argparse.ArgumentParser, argv: Sequence[str], arguments: argparse.Namespace
) -> argparse.Namespace:
    """Parse the command line again, with the entries of the file ``--config`` before it.

    An entry is an option under its name, ``learning-rate = 0.01`` or ``learning_rate``; what the
    command line has too counts.

    Raises
    ------
    DataError
        If the file is missing, is not TOML, or has an entry that is no option of the command.
    """
    import tomllib

    path = arguments.config
    try:
        with open(path, "rb") as file:
            entries = tomllib.load(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    words: list[str] = []
    for key, value in entries.items():
        name = key.replace("-", "_")
        if name in ("config", "run") or not hasattr(arguments, name):
            raise DataError(f"{path}: {key!r} is no option of this command")
        if name == "data":
            if arguments.data is None:
                arguments.data = value
                words.append(str(value))
        elif isinstance(value, bool):
            if not isinstance(getattr(arguments, name), bool):
                raise DataError(f"{path}: {key!r} must have a value, got {value}")
            words += [f"--{key.replace('_', '-')}"] * value
        elif isinstance(value, str | int | float | list):
            words.append(f"--{key.replace('_', '-')}={_as_word(path, key, value)}")
        else:
            raise DataError(
                f"{path}: {key!r} must be a text, a number, true or a list, got {value!r}"
            )
    command, *rest = argv
    return parser.parse_args([command, *words, *rest])


def _as_word(path: str, key: str, value: object) -> str:
    """Return an entry as the command line has it; a list as a line of CSV."""
    if not isinstance(value, list):
        return str(value)
    if any(not isinstance(each, str | int) for each in value):
        raise DataError(f"{path}: {key!r} must be a list of names or integers, got {value}")
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(value)
    return line.getvalue()


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


def integer_list(text: str) -> list[int]:
    """Kind of option: positive integers separated by commas."""
    return [at_least_one(each) for each in text.split(",")]


def share(text: str) -> float:
    """Kind of option: a number in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"a number of at least 0 and below 1, got {text!r}")
    return value


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
