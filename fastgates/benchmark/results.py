"""What a run has measured, and its JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any

from fastgates._atomic import replacing
from fastgates.benchmark.cases import Case
from fastgates.benchmark.peers import SUBJECT

__all__ = ["Results", "Times"]

#: Microseconds of one case and mode, by contender.
Times = dict[str, float]


_SAME = ("cpu", "numba_target", "system", "python", "lanes", "fma", "clock")


def _check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise where the headers of two runs are not of one machine, version and clock."""
    pairs = [(name, one.get(name), other.get(name)) for name in _SAME]
    versions, others = one["versions"], other["versions"]
    pairs += [(name, versions[name], others[name]) for name in versions if name in others]
    for name, value, found in pairs:
        if value != found:
            raise ValueError(f"runs cannot be merged: {name} is {value} of one, {found} of another")


def _least(section: str, one: Any, other: Any) -> Any:
    """Return the lesser of all times of a section of two runs; what is no time must be equal."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {name: _least(section, one[name], other[name]) for name in one}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_least(section, a, b) for a, b in zip(one, other, strict=True)]
    if isinstance(one, float) and isinstance(other, float):
        return min(one, other)
    if one != other:
        raise ValueError(f"runs cannot be merged: their sections {section} are of other cases")
    return one


@dataclasses.dataclass
class Results:
    """One run.

    Attributes
    ----------
    header : dict
        `machine.describe()`, with ``lanes``, ``fma`` and the limits ``peak_gflops``, ``tanh_ns``
        and ``sigmoid_ns`` measured during the run, and the options of the run.
    times : dict
        From (case, mode) to the microseconds of each contender.
    extras : dict
        What `fastgates.benchmark.extras` returned, by the name of the section.
    failures : list of str
        A line for each contender that failed or disagreed with fastgates, and was not timed there.
    """

    header: dict[str, Any]
    times: dict[tuple[Case, str], Times] = dataclasses.field(default_factory=dict)
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, case: Case, mode: str, contender: str, microseconds: float) -> None:
        """Keep a time if it is the fastest so far."""
        row = self.times.setdefault((case, mode), {})
        row[contender] = min(row.get(contender, math.inf), microseconds)

    def floor(self, case: Case, mode: str) -> tuple[float, float]:
        """Return the microseconds of the products at the FMA peak, and with the gate functions."""
        products = case.product_flops(mode) / self.header["peak_gflops"] * 1e-3
        tanhs, sigmoids = case.activations()
        gates = tanhs * self.header["tanh_ns"] + sigmoids * self.header["sigmoid_ns"]
        return products, products + gates * 1e-3

    def best_peer(self, case: Case, mode: str) -> str | None:
        """Return the name of the fastest peer; None where there is none."""
        row = self.times[case, mode]
        return min(
            (name for name in row if name != SUBJECT.name), key=row.__getitem__, default=None
        )

    def ratio(self, case: Case, mode: str) -> float | None:
        """Return the best peer's time divided by fastgates'; None where either is missing."""
        row, best = self.times[case, mode], self.best_peer(case, mode)
        return row[best] / row[SUBJECT.name] if best is not None and SUBJECT.name in row else None

    def ratios(self, mode: str | None = None) -> dict[tuple[Case, str], float]:
        """Return every ratio there is, of one mode or of both."""
        found = {key: self.ratio(*key) for key in self.times if mode in (None, key[1])}
        return {key: ratio for key, ratio in found.items() if ratio is not None}

    @classmethod
    def merged(cls, runs: Sequence[Results]) -> Results:
        """Return runs of one machine and version as one: of each time the fastest stands.

        Raises
        ------
        ValueError
            If they are of different machines, versions or clocks, or a section of different cases.
        """
        first, *others = runs
        if not others:
            return first
        result = cls(dict(first.header), failures=list(first.failures))
        commands: list[str] = []
        for run in runs:
            _check_same(first.header, run.header)
            for name, better in (("peak_gflops", max), ("tanh_ns", min), ("sigmoid_ns", min)):
                result.header[name] = better(result.header[name], run.header[name])
            command = run.header.get("command", [])
            commands += [command] if isinstance(command, str) else command
            for (case, mode), row in run.times.items():
                for contender, microseconds in row.items():
                    result.add(case, mode, contender, microseconds)
            for section, found in run.extras.items():
                known = result.extras.get(section)
                result.extras[section] = found if known is None else _least(section, known, found)
            result.failures += [line for line in run.failures if line not in result.failures]
        result.header["command"] = commands
        result.header["minutes"] = sum(run.header.get("minutes", 0) for run in runs)
        return result

    def to_json(self) -> str:
        """Return the run as JSON text, one record for each time."""
        records = [
            {**dataclasses.asdict(case), "mode": mode, "contender": name, "microseconds": value}
            for (case, mode), row in self.times.items()
            for name, value in row.items()
        ]
        lines = ",\n  ".join(map(json.dumps, records))
        rest = {"header": self.header, "extras": self.extras, "failures": self.failures}
        return f'{json.dumps(rest, indent=1)[:-2]},\n "times": [\n  {lines}\n ]\n}}\n'

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what `to_json` or ``pytest bench/ --benchmark-json`` wrote.

        Raises
        ------
        ValueError
            If the text is neither.
        """
        try:
            content = json.loads(text)
            if "benchmarks" in content:
                results = cls(content["machine_info"]["fastgates_bench"])
                records = [
                    {**benchmark["extra_info"], "microseconds": benchmark["stats"]["min"] * 1e6}
                    for benchmark in content["benchmarks"]
                ]
            else:
                results = cls(
                    content["header"], extras=content["extras"], failures=content["failures"]
                )
                records = content["times"]
            for record in records:
                sizes = (int(record[name]) for name in ("batch", "time", "input", "hidden"))
                case = Case(record["cell"], *sizes)
                results.add(case, record["mode"], record["contender"], record["microseconds"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                "the file must come from fastgates bench --json or from pytest bench/ "
                f"--benchmark-json; {type(error).__name__}: {error}"
            ) from None
        return results
