"""Reading and writing CSV: every kind of bad input, and files that are whole or not there."""

import os
import stat

import numpy as np
import pytest

from fastgates import _tables
from fastgates._atomic import check_writable, replacing
from fastgates._tables import DataError, read_columns, write_columns
from fastgates.datasets import load_sunspots, sunspots_path


def write(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@pytest.fixture
def table(tmp_path):
    return lambda text, encoding="utf-8": write(tmp_path / "data.csv", text, encoding)


GOOD = {
    "plain": "t,a,b\nx,1,2\ny,3,-4.5e1\n",
    "other columns hold anything": "t,a,b,c\n2020-01-01,1,2,\nnan,3,-45,None\n",
    "byte order mark": "\ufefft,a,b\nx,1,2\ny,3,-45\n",
    "Windows line ends": "t,a,b\r\nx,1,2\r\ny,3,-45\r\n",
    "no line end at the end": "t,a,b\nx,1,2\ny,3,-45",
    "blank lines": "t,a,b\n\nx,1,2\n\ny,3,-45\n\n",
    "quotes and blanks": '"t"," a ",b\n"x, y","1", 2\ny,3 ,"-45"\n',
    "unused names twice": "t,a,b,t,,\nx,1,2,,,\ny,3,-45,,,\n",
    "line break in a cell": 't,a,b\n"x\ny",1,2\nz,3,-45\n',
}


@pytest.mark.parametrize("name", GOOD)
def test_good_tables(table, name):
    result = read_columns(table(GOOD[name]), ["b", "a"])
    assert result.names == ("b", "a")
    assert result.values.dtype == np.float64
    np.testing.assert_array_equal(result.values, [[2.0, 1.0], [-45.0, 3.0]])


BAD = {
    "missing column": ("t,b\n1,2\n", "no column 'a'; there are 't', 'b'"),
    "name twice": ("a,b,a\n1,2,3\n", "column 'a' is named 2 times, as columns 1, 3; rename"),
    "no names": ("1,2\n3,4\n", "no column 'a': the first line holds numbers; put the names there"),
    "semicolons": ("a;b\n1;2\n", "the cells are separated by semicolons; save it with commas"),
    "tabs": ("a\tb\n1\t2\n", "the cells are separated by tabs"),
    "word": ("t,a\n1,2\n2,high\n", r"row 2 \(line 3\), column 'a': 'high' is not a finite number"),
    "underscore": ("a\n1_000\n", r"row 1 \(line 2\), column 'a': '1_000' is not a finite number"),
    "decimal comma": ('a\n"1,5"\n', r"row 1 \(line 2\), column 'a': '1,5' is not a finite number"),
    "infinite": ("a\n1\n-inf\n", r"row 2 \(line 3\), column 'a': '-inf' is not a finite number"),
    "overflow": ("a\n1e999\n", "'1e999' is not a finite number"),
    "long cell": (f"a\n{'x' * 500}\n", r"'x{37}\.\.\.' is not a finite number"),
    "empty cell": ("a,b\n1,2\n,3\n", r"row 2 \(line 3\), column 'a': empty, a gap; fill it or cut"),
    "NaN": ("a\n1\n\n NaN\n", r"row 2 \(line 4\), column 'a': 'NaN', a gap"),
    "NA": ("a\nNA\n", "'NA', a gap"),
    "short row": ("a,b\n1,2\n3\n", r"row 2 \(line 3\) has 1 cells, the first line has 2 names"),
    "long row": ("a,b\n1,2,3\n", r"row 1 \(line 2\) has 3 cells, the first line has 2 names"),
    "too few rows": ("a\n1\n2\n", "at least 3 rows are needed, got 2"),
    "names only": ("a\n", "at least 3 rows are needed, got 0"),
    "empty file": ("", "the file is empty"),
    "blank file": ("\n\n\n", "the file is empty"),
    "open quote": ('a\n1\n"2\n', r"line \d is not CSV"),
    "not UTF-8": (b"a\n1\n2\xb5\n", "line 3 is not UTF-8 text; save the file as CSV UTF-8"),
    "UTF-16": ("a\n1\n2\n".encode("utf-16"), "line 1 is not UTF-8 text"),
    "null bytes": (b"a\n1\n\x00\x00\n", "row 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(table, name):
    text, message = BAD[name]
    path = table(text)
    with pytest.raises(DataError, match=message) as caught:
        read_columns(path, ["a"], minimum_rows=3)
    shown = str(caught.value)
    assert shown.startswith(f"{path}: ")
    assert "\n" not in shown


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_columns(tmp_path / "absent.csv", ["a"])
    with pytest.raises(DataError, match="cannot be read"):
        read_columns(tmp_path, ["a"])


def test_written_columns_come_back_with_the_same_bits(tmp_path):
    path = tmp_path / "out.csv"
    values = np.array([0.1, -1e-300, 1 / 3, 2.0**60])
    write_columns(path, ["k", "value, scaled"], [[1, 2, 3, 4], values])
    result = read_columns(path, ["value, scaled", "k"])
    np.testing.assert_array_equal(result.values[:, 0], values)
    assert path.read_text().splitlines()[:2] == ['k,"value, scaled"', "1,0.1"]


def test_nan_is_written_as_an_empty_cell(tmp_path):
    write_columns(tmp_path / "out.csv", ["a", "b"], [[1.5, np.nan], [1, 2]])
    assert (tmp_path / "out.csv").read_text() == "a,b\n1.5,1\n,2\n"


def test_columns_must_fit(tmp_path):
    with pytest.raises(ValueError, match="columns must be 2, as names, got 1"):
        write_columns(tmp_path / "out.csv", ["a", "b"], [[1.0]])
    with pytest.raises(ValueError, match="shorter"):
        write_columns(tmp_path / "out.csv", ["a", "b"], [[1.0, 2.0], [1.0]])
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    path.write_text("before")

    class Broken:
        def __init__(self, *_, **__):
            pass

        def writerows(self, rows):
            raise OSError("disk full")

    monkeypatch.setattr(_tables.csv, "writer", Broken)
    with pytest.raises(OSError, match="disk full"):
        write_columns(path, ["a"], [[1.0]])
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with replacing(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")
def test_mode_and_links(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "out.csv"
    target.write_text("before")
    link = tmp_path / "link.csv"
    link.symlink_to(target)
    mask = os.umask(0o027)
    try:
        write_columns(link, ["a"], [[1]])
    finally:
        os.umask(mask)
    assert link.is_symlink()
    assert target.read_text() == "a\n1\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OSError, match="there is no folder"):
        check_writable(tmp_path / "absent" / "out.csv")
    if os.path.exists(os.devnull) and os.name == "posix":
        with pytest.raises(OSError, match="not a regular file"):
            check_writable(os.devnull)
        reading, writing = os.pipe()
        not_a_file = pytest.raises(OSError, match="not a regular file")
        with os.fdopen(reading), os.fdopen(writing, "w"), not_a_file:
            check_writable(f"/dev/fd/{writing}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="is read-only"):
        check_writable(tmp_path / "out.csv")


def test_sunspots():
    yearly, monthly = load_sunspots(), load_sunspots("monthly")
    assert (str(yearly.time[0]), str(yearly.time[-1])) == ("1700", "2008")
    assert (str(monthly.time[0]), str(monthly.time[-1])) == ("1749-01", "2008-12")
    assert (yearly.number.shape, monthly.number.shape) == ((309,), (3120,))
    assert (yearly.number[-1], monthly.number[-1]) == (2.9, 0.8)
    means = monthly.number.reshape(-1, 12).mean(axis=1)
    assert np.abs(means - yearly.number[49:]).max() < 0.5
    header, *_, last = sunspots_path("monthly").read_text().splitlines()
    assert header == "MONTH,SUNACTIVITY"
    assert last.startswith("2008-12,")
    assert sunspots_path().read_text().splitlines()[1] == "1700,5"
    with pytest.raises(ValueError, match="period must be 'yearly' or 'monthly', got 'daily'"):
        load_sunspots("daily")
