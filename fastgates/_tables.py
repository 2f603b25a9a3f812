"""Reading numeric columns of a CSV file, with errors that name the row, and writing one.

Rows are counted as a reader of the file counts them: row 1 is the first line below the names.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgates._atomic import replacing

__all__ = ["DataError", "Table", "read_columns", "write_columns"]

_GAPS = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?"})


class DataError(ValueError):
    """The data cannot be used; the message is one line and says where and why."""


class Table(NamedTuple):
    """Columns of a file.

    Attributes
    ----------
    names : tuple of str
        The columns, in the order asked for.
    values : ndarray of float64, shape (rows, columns)
        Their numbers, all finite.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]


def read_columns(
    path: str | os.PathLike[str], names: Sequence[str], *, minimum_rows: int = 1
) -> Table:
    """Read the named columns of a comma-separated UTF-8 file; other columns may hold anything.

    Parameters
    ----------
    path : path-like
        The file; its first line holds the column names.
    names : sequence of str
        The columns to read.
    minimum_rows : int, default 1
        The fewest rows that are enough.

    Returns
    -------
    Table
        The columns, in the order of `names`.

    Raises
    ------
    DataError
        If the file is missing, empty, not UTF-8 text or not a table; if a column is missing or
        named twice; if a cell of these columns is empty or not a finite number; if there are
        too few rows.  The message is one line with the file, the row and the column.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 text; save the file as CSV UTF-8"
        ) from None
    return _parse(str(path), text, tuple(names), minimum_rows)


def _parse(path: str, text: str, names: tuple[str, ...], minimum_rows: int) -> Table:
    lines = _lines(path, text)
    _, first = next(lines, (0, []))
    header = [cell.strip() for cell in first]
    if not header:
        raise DataError(f"{path}: the file is empty")
    columns = [_locate(path, header, name) for name in names]
    values: list[float] = []
    row = 0
    for row, (line, cells) in enumerate(lines, start=1):
        place = f"row {row} (line {line})"
        if len(cells) != len(header):
            raise DataError(
                f"{path}: {place} has {len(cells)} cells, the first line has {len(header)} names"
            )
        for name, column in zip(names, columns, strict=True):
            values.append(_number(path, place, name, cells[column]))
    if row < minimum_rows:
        raise DataError(f"{path}: at least {minimum_rows} rows are needed, got {row}")
    return Table(names, np.array(values, dtype=np.float64).reshape(row, len(names)))


def _lines(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV ({error})") from None


def _locate(path: str, header: list[str], name: str) -> int:
    places = [k for k, cell in enumerate(header) if cell == name]
    if len(places) == 1:
        return places[0]
    if places:
        raise DataError(
            f"{path}: column {name!r} is named {len(places)} times, as columns "
            f"{', '.join(str(k + 1) for k in places)}; rename all but one"
        )
    if all(_is_number(cell) for cell in header):
        raise DataError(
            f"{path}: no column {name!r}: the first line holds numbers; put the names there"
        )
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise DataError(
                f"{path}: no column {name!r}: the cells are separated by {word}; "
                "save it with commas (and decimal points)"
            )
    raise DataError(f"{path}: no column {name!r}; there are {', '.join(map(repr, header))}")


def _number(path: str, place: str, name: str, cell: str) -> float:
    text = cell.strip()
    if text.lower() in _GAPS:
        shown = f"{text!r}, a gap" if text else "empty, a gap"
        raise DataError(f"{path}: {place}, column {name!r}: {shown}; fill it or cut the series")
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise DataError(f"{path}: {place}, column {name!r}: {shown!r} is not a finite number")
    return value


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def write_columns(
    path: str | os.PathLike[str], names: Sequence[str], columns: Sequence[ArrayLike]
) -> None:
    """Write columns of equal length as CSV, whole or not at all.

    Floats are written with as many digits as bring the same number back; NaN becomes an empty
    cell.

    Parameters
    ----------
    path : path-like
        The file, replaced if it exists.
    names : sequence of str
        The first line.
    columns : sequence of array_like, each of shape (rows,)
        The columns below it.

    Raises
    ------
    ValueError
        If the columns differ in length or from `names` in number.
    OSError
        If the file cannot be written; what was there is left as it was.
    """
    rows = format_rows(names, columns)
    with replacing(path) as temporary, open(temporary, "x", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def format_rows(names: Sequence[str], columns: Sequence[ArrayLike]) -> list[list[str]]:
    """Return the cells that ``write_columns`` writes, the names first."""
    lists = [np.asarray(column).tolist() for column in columns]
    if len(lists) != len(names):
        raise ValueError(f"columns must be {len(names)}, as names, got {len(lists)}")
    return [list(names), *([_cell(value) for value in row] for row in zip(*lists, strict=True))]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return str(value)
