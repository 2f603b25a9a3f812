"""Real series shipped with the package.

Sunspot numbers, yearly means 1700-2008 and monthly means 1749-01 to 2008-12: the international
(Zurich, "version 1") numbers, as published by the National Geophysical Data Center of NOAA,
https://www.ngdc.noaa.gov/stp/solar/solarda3.html, in the form in which statsmodels ships them.
The data are in the public domain.  The monthly value of February 1824 is an interpolation by
the publisher: there were no observations.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgates._tables import read_columns

__all__ = ["Sunspots", "load_sunspots", "sunspots_path"]


class Sunspots(NamedTuple):
    """A sunspot series.

    Attributes
    ----------
    time : ndarray of datetime64, shape (rows,)
        The year (``datetime64[Y]``) or month (``datetime64[M]``) of each value.
    number : ndarray of float64, shape (rows,)
        The mean sunspot number of that year or month.
    """

    time: NDArray[np.datetime64]
    number: NDArray[np.float64]


def sunspots_path(period: str = "yearly") -> Path:
    """Say where the CSV file of the series lies, for ``fastgates fit`` or any other reader.

    Parameters
    ----------
    period : {"yearly", "monthly"}, default "yearly"
        Which series.

    Returns
    -------
    pathlib.Path
        A file with the columns YEAR (or MONTH) and SUNACTIVITY.

    Raises
    ------
    ValueError
        If `period` is another word.
    """
    if period not in ("yearly", "monthly"):
        raise ValueError(f"period must be 'yearly' or 'monthly', got {period!r}")
    return Path(__file__).with_name(f"sunspots_{period}.csv")


def load_sunspots(period: str = "yearly") -> Sunspots:
    """Load the sunspot numbers as arrays.

    Parameters
    ----------
    period : {"yearly", "monthly"}, default "yearly"
        309 yearly means, 1700-2008, or 3120 monthly means, 1749-01 to 2008-12.

    Returns
    -------
    Sunspots
        ``time`` and ``number``, both of shape (rows,).

    Raises
    ------
    ValueError
        If `period` is another word.

    Examples
    --------
    >>> from fastgates.datasets import load_sunspots
    >>> series = load_sunspots()
    >>> str(series.time[0]), float(series.number[0]), series.number.shape
    ('1700', 5.0, (309,))
    """
    table = read_columns(sunspots_path(period), ["SUNACTIVITY"])
    first = np.datetime64("1700" if period == "yearly" else "1749-01")
    return Sunspots(first + np.arange(len(table.values)), table.values[:, 0])
