"""The time index of a pandas series: whether its steps are equal, and how it goes on.

Nothing here imports pandas before a pandas index has come in, or a model file that had one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastgates._extras import require
from fastgates._tables import DataError

__all__ = ["Clock"]


class Clock(NamedTuple):
    """Where an index ends and how far it is to the next row; JSON can hold it.

    Attributes
    ----------
    kind : {"datetime", "period", "timedelta", "number"}
    last : str, int or float
        The last label.
    step : str, int or float
        A frequency of pandas for the first two kinds, else a difference.
    name : str or None
        Of the index.
    zone : str or None
        Of times of a day, in which days may have 23 or 25 hours.
    """

    kind: str
    last: Any
    step: Any
    name: str | None
    zone: str | None = None

    @classmethod
    def of(cls, index: Any, name: str = "y") -> Clock:
        """Read an index.

        Parameters
        ----------
        index : pandas.Index
            In order, with equal steps.
        name : str
            What to call its owner in an error.

        Raises
        ------
        DataError
            If the steps are not equal, or there are less than two rows.
        TypeError
            If the labels are neither times nor numbers.
        """
        pandas = require("pandas", "a time index")
        if len(index) < 2:
            raise DataError(f"{name} must have at least 2 rows, got {len(index)}")
        label = None if index.name is None else str(index.name)
        if isinstance(index, pandas.DatetimeIndex):
            if not index.is_monotonic_increasing:
                _equal_steps(index.asi8, index, name)  # it says where
            frequency = index.freqstr or _inferred(pandas, index, name)
            zone = None if index.tz is None else str(index.tz)
            return cls("datetime", index[-1].isoformat(), frequency, label, zone)
        if isinstance(index, pandas.PeriodIndex):
            _equal_steps(index.asi8, index, name, 1)
            return cls("period", str(index[-1]), index.freqstr, label)
        if isinstance(index, pandas.TimedeltaIndex):
            step = _equal_steps(index.asi8, index, name)
            unit = pandas.Timedelta(int(step), unit=index.unit)
            return cls("timedelta", str(index[-1]), str(unit), label)
        if isinstance(index, pandas.MultiIndex) or index.dtype.kind not in "iuf":
            raise TypeError(
                f"the index of {name} must hold times or numbers at equal steps, got dtype "
                f"{index.dtype}: set the time as index, or use reset_index(drop=True)"
            )
        numbers = index.to_numpy()
        step = _equal_steps(numbers, index, name)
        return cls("number", numbers[-1].item(), step, label)

    def after(self, leads: Sequence[int]) -> Any:
        """Return the index of the rows so many steps after the last, a pandas index."""
        pandas = require("pandas", "a time index")
        if self.kind == "datetime":
            last = pandas.Timestamp(self.last)
            if self.zone is not None:  # the text has an offset only
                last = last.tz_convert(self.zone)
            index = pandas.date_range(last, periods=max(leads) + 1, freq=self.step)
            if index[0] != last:  # a frequency whose ticks the last label does not lie on
                index = index.insert(0, last)
            return index[list(leads)].rename(self.name)
        if self.kind == "period":
            last = pandas.Period(self.last, freq=self.step)
            return pandas.PeriodIndex([last + lead for lead in leads], name=self.name)
        if self.kind == "timedelta":
            last, step = pandas.Timedelta(self.last), pandas.Timedelta(self.step)
            return pandas.TimedeltaIndex([last + lead * step for lead in leads], name=self.name)
        return pandas.Index([self.last + lead * self.step for lead in leads], name=self.name)


def _inferred(pandas: Any, index: Any, name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that later versions return an object
        frequency = pandas.infer_freq(index) if len(index) > 2 else None
    if frequency is not None:
        return str(getattr(frequency, "freqstr", frequency))
    step = _equal_steps(index.asi8, index, name)
    return str(
        pandas.tseries.frequencies.to_offset(pandas.Timedelta(int(step), unit=index.unit)).freqstr
    )


def _equal_steps(numbers: Any, index: Any, name: str, wanted: Any = None) -> Any:
    """Return the step between labels, one for all."""
    steps = np.diff(numbers)
    first = steps[0] if wanted is None else wanted
    if numbers.dtype.kind == "f":
        equal = np.isclose(steps, first, rtol=1e-6, atol=0)
    else:
        equal = steps == first
    equal &= steps > 0
    if not equal.all():
        k = int(np.argmin(equal))
        raise DataError(
            f"the index of {name} must go up in equal steps, got {index[k]} then {index[k + 1]} "
            f"(row {k + 2}): sort it, fill the missing rows (asfreq) or resample"
        )
    return first.item() if hasattr(first, "item") else first
