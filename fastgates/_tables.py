"""Reading columns of a CSV or Parquet file, with errors that name the row, and writing one.

Rows are counted as a reader of the file counts them: row 1 is the first line below the names.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgates._atomic import replacing
from fastgates._extras import require

__all__ = [
    "DataError",
    "Table",
    "column_names",
    "format_rows",
    "read_columns",
    "write_columns",
]

_GAPS = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?"})


class DataError(ValueError):
    """The data cannot be used; the message is one line and says where and why."""


class Table(NamedTuple):
    """Columns of a file.

    Attributes
    ----------
    names : tuple of str
        The columns of numbers, in the order asked for.
    values : ndarray of float64, shape (rows, columns)
        Their numbers, all finite, but for gaps that were allowed.
    labels : tuple of ndarray of str, each of shape (rows,)
        The columns of labels, in the order asked for.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    labels: tuple[NDArray[np.str_], ...] = ()


def read_columns(
    path: str | os.PathLike[str],
    names: Sequence[str],
    *,
    labels: Sequence[str] = (),
    gaps: bool = False,
    minimum_rows: int = 1,
) -> Table:
    """Read the named columns of a comma-separated UTF-8 file, or of a Parquet file.

    Other columns may hold anything.  A name that ends in .parquet or .pq is a Parquet file.

    Parameters
    ----------
    path : path-like
        The file; the first line of a CSV file holds the column names.
    names : sequence of str
        The columns of numbers to read.
    labels : sequence of str, default ()
        The columns to read as text.
    gaps : bool, default False
        Whether numbers may be missing; they are NaN then.
    minimum_rows : int, default 1
        The fewest rows that are enough.

    Returns
    -------
    Table
        The columns, in the order of `names` and `labels`.

    Raises
    ------
    DataError
        If the file is missing, empty, not UTF-8 text or not a table; if a column is missing or
        named twice; if a cell of these columns is empty or not a finite number; if there are
        too few rows.  The message is one line with the file, the row and the column.
    MissingPackageError
        If it is a Parquet file and pyarrow is not installed.
    """
    names, labels = tuple(names), tuple(labels)
    if _is_parquet(path):
        table = _read_parquet(path, names, labels, gaps)
    else:
        table = _parse(str(path), _text(path), names, labels, gaps)
    rows = len(table.values)
    if rows < minimum_rows:
        raise DataError(f"{path}: at least {minimum_rows} rows are needed, got {rows}")
    return table


def column_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of all columns of a CSV or Parquet file.

    Raises
    ------
    DataError, MissingPackageError
        As from :func:`read_columns`.
    """
    if _is_parquet(path):
        with _parquet(path) as file:
            return tuple(file.schema_arrow.names)
    return tuple(_header(str(path), _lines(str(path), _text(path))))


def _text(path: str | os.PathLike[str]) -> str:
    raw = _bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 text; save the file as CSV UTF-8"
        ) from None


def _bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _parse(
    path: str, text: str, names: tuple[str, ...], labels: tuple[str, ...], gaps: bool
) -> Table:
    lines = _lines(path, text)
    header = _header(path, lines)
    columns = [_locate(path, header, name) for name in names]
    label_columns = [_locate(path, header, name) for name in labels]
    values: list[float] = []
    texts: list[list[str]] = [[] for _ in labels]
    row = 0
    for row, (line, cells) in enumerate(lines, start=1):
        place = f"row {row} (line {line})"
        if len(cells) != len(header):
            raise DataError(
                f"{path}: {place} has {len(cells)} cells, the first line has {len(header)} names"
            )
        for name, column in zip(names, columns, strict=True):
            values.append(_number(path, place, name, cells[column], gaps))
        for name, column, found in zip(labels, label_columns, texts, strict=True):
            found.append(_label(path, place, name, cells[column]))
    numbers = np.array(values, dtype=np.float64).reshape(row, len(names))
    return Table(names, numbers, tuple(np.array(each, dtype=np.str_) for each in texts))


def _header(path: str, lines: Iterator[tuple[int, list[str]]]) -> list[str]:
    _, first = next(lines, (0, []))
    if not first:
        raise DataError(f"{path}: the file is empty")
    return [cell.strip() for cell in first]


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


def _label(path: str, place: str, name: str, cell: str) -> str:
    text = cell.strip()
    if not text:
        raise DataError(f"{path}: {place}, column {name!r}: empty, a label is needed")
    return text


def _number(path: str, place: str, name: str, cell: str, gaps: bool) -> float:
    text = cell.strip()
    if text.lower() in _GAPS:
        if gaps:
            return math.nan
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


# -- Parquet ---------------------------------------------------------------------------------------


def _is_parquet(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() in (".parquet", ".pq")


@contextmanager
def _parquet(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a Parquet file; what pyarrow finds wrong with it becomes one line."""
    require("pyarrow", "a Parquet file")
    import pyarrow
    from pyarrow import parquet

    try:
        with open(path, "rb") as file:
            yield parquet.ParquetFile(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as Parquet ({reason})") from None


def _read_parquet(
    path: str | os.PathLike[str], names: tuple[str, ...], labels: tuple[str, ...], gaps: bool
) -> Table:
    with _parquet(path) as file:
        header = list(file.schema_arrow.names)
        for name in (*names, *labels):
            _locate(str(path), header, name)
        table = file.read(columns=list(dict.fromkeys((*names, *labels))))
    columns = [_parquet_numbers(path, name, table.column(name), gaps) for name in names]
    values = np.stack(columns, axis=1) if columns else np.empty((len(table), 0))
    texts = tuple(_parquet_labels(path, name, table.column(name)) for name in labels)
    return Table(names, values, texts)


def _parquet_numbers(
    path: str | os.PathLike[str], name: str, column: Any, gaps: bool
) -> NDArray[np.float64]:
    from pyarrow import types

    kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise DataError(f"{path}: column {name!r} must hold numbers, got {kind}")
    # Missing ones must not meet NumPy as something else than NaN, so they are put in by hand.
    missing = np.asarray(column.is_null())
    filled = column.fill_null(False if types.is_boolean(kind) else 0)
    values = np.asarray(filled).astype(np.float64)
    values[missing] = np.nan
    wrong = ~np.isfinite(values) & ~(np.isnan(values) if gaps else False)
    if wrong.any():
        row = int(np.argmax(wrong))
        if np.isnan(values[row]):
            raise DataError(
                f"{path}: row {row + 1}, column {name!r}: empty, a gap; fill it or cut the series"
            )
        raise DataError(
            f"{path}: row {row + 1}, column {name!r}: {values[row]} is not a finite number"
        )
    return values


def _parquet_labels(path: str | os.PathLike[str], name: str, column: Any) -> NDArray[np.str_]:
    texts = ["" if value is None else str(value).strip() for value in column.to_pylist()]
    if "" in texts:
        raise DataError(
            f"{path}: row {texts.index('') + 1}, column {name!r}: empty, a label is needed"
        )
    return np.array(texts, dtype=np.str_)


def _write_parquet(
    path: str | os.PathLike[str], names: Sequence[str], columns: Sequence[ArrayLike]
) -> None:
    require("pyarrow", "a Parquet file")
    import pyarrow
    from pyarrow import parquet

    arrays = [pyarrow.array(np.asarray(column), from_pandas=True) for column in columns]
    with replacing(path) as temporary:
        parquet.write_table(pyarrow.table(arrays, names=list(names)), temporary)


# -- Writing ---------------------------------------------------------------------------------------


def write_columns(
    path: str | os.PathLike[str], names: Sequence[str], columns: Sequence[ArrayLike]
) -> None:
    """Write columns of equal length as CSV or Parquet, whole or not at all.

    A name that ends in .parquet or .pq gives a Parquet file.  In CSV floats are written with as
    many digits as bring the same number back, and NaN becomes an empty cell; in Parquet, null.

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
    if _is_parquet(path):
        _write_parquet(path, names, columns)
        return
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
