"""A run as Markdown: the worst first, then means, then tables; and its place in a document."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fastgates._atomic import replacing
from fastgates.benchmark.cases import CELLS, LATENCY_SIZES, MODES, Case, share_sizes
from fastgates.benchmark.peers import CONTENDERS, SUBJECT
from fastgates.benchmark.results import Results

__all__ = ["BLOCKS", "geometric_mean", "markdown", "share", "write_between_markers"]

#: Longer tables of times are folded in a document, and left out of what is printed.
_LONG = 40


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table whose columns are aligned in plain text too.

    Parameters
    ----------
    titles : sequence of str
        Of the columns.
    rows : sequence of sequence of str
        One field for each column.
    left : int
        So many columns are aligned to the left, the others to the right.
    """
    widths = [max(3, *map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(fields: Sequence[str]) -> str:
        parts = [
            f"{field:<{width}}" if k < left else f"{field:>{width}}"
            for k, (field, width) in enumerate(zip(fields, widths, strict=True))
        ]
        return f"| {' | '.join(parts)} |"

    rule = ["-" * width if k < left else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    return "\n".join(map(line, (titles, rule, *rows)))


def markdown(results: Results, *, short: bool = False) -> str:
    """Return everything that a run has measured.

    Parameters
    ----------
    results : Results
        The run.
    short : bool
        Whether long tables of times are left out, and a line says so.
    """
    parts = [verdict(results), summary(results), header(results)]
    for title, make in (
        ("Share of the FMA peak", shares),
        ("Latency of a step", latency),
        ("Unequal lengths", _lengths),
        ("Threads", _threads),
        ("Cold start", _cold),
    ):
        text = make(results)
        if text:
            parts.append(f"### {title}\n\n{text}")
    for mode in MODES:
        text = times(results, mode)
        if not text:
            continue
        rows = text.count("\n") - 1
        if rows > _LONG and short:
            text = f"{rows} rows: --json or --markdown writes them."
        elif rows > _LONG:
            text = f"<details><summary>{rows} rows</summary>\n\n{text}\n\n</details>"
        parts.append(f"### {mode.capitalize()}\n\n{text}")
    return "\n\n".join(filter(None, parts))


# -- Against the peers --------------------------------------------------------------------------


def verdict(results: Results) -> str:
    """Return the worst ratio, how many are below 1, the means, and everything that is below 1."""
    ratios = results.ratios()
    if not ratios:
        return _failures(results)
    worst = min(ratios, key=ratios.__getitem__)
    below = sorted((key for key in ratios if ratios[key] < 1), key=ratios.__getitem__)
    means = ", ".join(
        f"{geometric_mean(each.values()):.2f} in {mode} ({len(each)} points)"
        for mode in MODES
        if (each := results.ratios(mode))
    )
    text = (
        f"**Worst: {ratios[worst]:.2f}** times as fast as the fastest peer, "
        f"{_where(results, worst)}.\n**Geometric mean: {means}.**\n"
    )
    if not below:
        text += f"fastgates is the fastest at all {len(ratios)} points."
    else:
        text += f"A peer is faster at {len(below)} of {len(ratios)} points:\n\n" + table(
            ("cell", "batch,time,input,hidden", "mode", "peer", "ratio"),
            [(*_named(results, case, mode), f"{ratios[case, mode]:.3f}") for case, mode in below],
            left=4,
        )
    return "\n\n".join(filter(None, (text, _failures(results))))


def _where(results: Results, key: tuple[Case, str]) -> str:
    return "{} {}, {}, against {}".format(*_named(results, *key))


def _named(results: Results, case: Case, mode: str) -> tuple[str, str, str, str]:
    return case.cell, case.size_text, mode, str(results.best_peer(case, mode))


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    lines = "\n".join(f"- {line}" for line in results.failures)
    return f"Not timed, since they failed or disagreed with fastgates:\n\n{lines}"


def summary(results: Results) -> str:
    """Return the means and the worst ratio by cell, by time and over all; empty without peers."""
    ratios = results.ratios()
    if not ratios:
        return ""
    cells = {case.cell for case, _ in ratios}
    times = sorted({case.time for case, _ in ratios})
    groups: list[tuple[str, Callable[[Case], bool]]] = [
        *((name, lambda case, name=name: case.cell == name) for name in CELLS if name in cells),
        *((f"time {each}", lambda case, each=each: case.time == each) for each in times),
        ("**all**", lambda case: True),
    ]
    rows = []
    for label, belongs in groups:
        fields = [label]
        for mode in MODES:
            mine = {key: r for key, r in results.ratios(mode).items() if belongs(key[0])}
            if not mine:
                fields += ["", "", "", ""]
                continue
            (case, _), worst = min(mine.items(), key=lambda item: item[1])
            below = sum(ratio < 1 for ratio in mine.values())
            fields += [f"{geometric_mean(mine.values()):.2f}", f"{worst:.2f}"]
            fields += [f"{case.cell} {case.size_text}", f"{below} of {len(mine)}"]
        rows.append(fields)
    titles = ["fastest peer's time / fastgates'"]
    for mode in MODES:
        titles += [f"{mode}: mean", "worst", "at", "below 1"]
    return table(titles, rows)


def short_table(results: Results) -> str:
    """Return the table of a README: a row a cell, against the fastest peer, and the shares."""
    present = [name for name in CELLS if any(case.cell == name for case, _ in results.ratios())]
    rows = []
    for label, cells in (*((name, [name]) for name in present), ("**all**", present)):
        fields = [label]
        for mode in MODES:
            mine = [r for (case, _), r in results.ratios(mode).items() if case.cell in cells]
            fields += [f"{geometric_mean(mine):.2f}", f"{min(mine):.2f}"] if mine else ["", ""]
        rows.append(fields)
    titles = ["times as fast as the fastest peer"]
    for mode in MODES:
        titles += [f"{mode}: geometric mean", "worst"]
    return table(titles, rows)


def sentence(results: Results) -> str:
    """Return what was measured and where, and how much of it is lost to a peer, in a sentence."""
    ratios = results.ratios()
    below = [case for (case, _), ratio in ratios.items() if ratio < 1]
    peers = [c.name for c in CONTENDERS[1:] if any(c.name in row for row in results.times.values())]
    outcome = "fastgates is the fastest at all of them"
    if below:
        outcome = f"a peer is faster at {len(below)} of them"
        steps = sum(case.time == 1 for case in below)
        outcome += f", {steps} of which are calls of a single time step" if steps else ""
    return textwrap.fill(
        f"{len(ratios)} points (cell, batch, time, input, hidden, inference or training) against "
        f"the fastest of {', '.join(peers)}, on one core of {results.header['cpu']}: {outcome}. "
        "Below 1 fastgates is slower.",
        100,
    )


# -- Against the machine ------------------------------------------------------------------------


def header(results: Results) -> str:
    """Return the machine, the versions and the limits."""
    facts = results.header
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    fma = "with" if facts["fma"] else "without"
    minutes = f" It took {facts['minutes']:.0f} minutes." if facts.get("minutes", 0) >= 2 else ""
    options = _commands(facts.get("command", []))
    return (
        f"Measured {facts['date']} on one core of {facts['cpu']}, Numba target "
        f"{facts['numba_target']}, {facts['lanes']} lanes {fma} fused multiply-add, "
        f"{facts['system']}, Python {facts['python']}; {versions}.\n"
        f"FMA peak of that core, in the same run: {facts['peak_gflops']:.1f} GFLOP/s; fastgates' "
        f"tanh {facts['tanh_ns']:.3f} ns and sigmoid {facts['sigmoid_ns']:.3f} ns a value.\n"
        f"Times in microseconds of {'processor' if facts.get('clock') == 'cpu' else 'wall'} time."
        f"{options}{minutes}"
    )


def _commands(given: str | list[str]) -> str:
    """Return how the figures were measured: the command, or those of the runs that were merged."""
    if isinstance(given, str):
        return f" Command: `{given}`."
    if not given:
        return ""
    counts = Counter(given)
    each = [
        f"`{command}`" + (f" ({count} times)" if count > 1 else "")
        for command, count in counts.items()
    ]
    return f" Of {len(given)} runs, the fastest time of each contender: {'; '.join(each)}."


def share(results: Results, case: Case, mode: str, contender: str = SUBJECT.name) -> float | None:
    """Return a contender's share of the FMA peak; None where it was not measured."""
    row = results.times.get((case, mode), {})
    if contender not in row:
        return None
    return results.floor(case, mode)[0] / row[contender]


def shares(results: Results) -> str:
    """Return the shares of the peak and of the floor over hidden sizes; empty if not measured."""
    cases = sorted(
        {case for case, _ in results.times if case.size in share_sizes()},
        key=lambda case: (list(CELLS).index(case.cell), case.hidden),
    )
    peers = any(results.best_peer(case, mode) for case, mode in results.times)
    rows = []
    for case in cases:
        fields = [case.cell, str(case.hidden)]
        for mode in MODES:
            row = results.times.get((case, mode), {})
            if SUBJECT.name not in row:
                fields += [""] * (3 if peers else 2)
                continue
            fields += [f"{floor / row[SUBJECT.name]:.0%}" for floor in results.floor(case, mode)]
            if peers:
                best = results.best_peer(case, mode)
                of_best = share(results, case, mode, best) if best else None
                fields.append(f"{of_best:.0%} ({best})" if of_best is not None else "")
        rows.append(fields)
    titles = ["cell", "hidden"]
    for mode in MODES:
        titles += [f"{mode}: of peak", "of floor", *["best peer: of peak"] * peers]
    batch, time, inputs, _ = share_sizes()[0]
    head = f"Batch {batch}, time {time}, input {inputs}.\n\n"
    return head + table(titles, rows) if rows else ""


def latency(results: Results) -> str:
    """Return the microseconds a step of one long sequence; empty if not measured."""
    rows = [
        (case, row)
        for (case, mode), row in results.times.items()
        if mode == "inference" and case.size in LATENCY_SIZES
    ]
    if not rows:
        return ""
    names = _columns(row for _, row in rows)
    rows.sort(key=lambda item: (list(CELLS).index(item[0].cell), item[0].hidden))
    lines = [
        [case.cell, str(case.input), str(case.hidden)]
        + [f"{row[name] / case.time:.3f}" if name in row else "" for name in names]
        for case, row in rows
    ]
    head = f"One sequence of {LATENCY_SIZES[0][1]} steps, microseconds a step, inference.\n\n"
    return head + table(("cell", "input", "hidden", *names), lines)


# -- fastgates alone ----------------------------------------------------------------------------


def _lengths(results: Results) -> str:
    found = results.extras.get("lengths")
    if not found:
        return ""
    rows = [
        (
            row["cell"],
            row["mode"],
            _microseconds(row["full"]),
            _microseconds(row["unequal"]),
            f"{row['unequal'] / row['full']:.2f}",
            f"{row['unequal'] / (row['full'] * found['share']):.2f}",
        )
        for row in found["rows"]
    ]
    sizes = ",".join(map(str, found["size"]))
    return (
        f"{sizes} with lengths 20 to 100 in random order, {found['share']:.0%} of the steps of "
        "full lengths. The last column would be 1 if a step that is not there cost nothing.\n\n"
    ) + table(("cell", "mode", "full", "unequal", "unequal / full", "/ share"), rows, left=2)


def _threads(results: Results) -> str:
    found = results.extras.get("threads")
    if not found:
        return ""
    if "left_out" in found:
        return f"Left out: {found['left_out']}."
    counts = found["threads"]
    rows = []
    for row in found["rows"]:
        first, *others = row["microseconds"]
        fields = [",".join(map(str, row["size"])), row["mode"], _microseconds(first)]
        for value in others:
            fields += [_microseconds(value), f"{first / value:.2f}"]
        rows.append(fields)
    titles = ["batch,time,input,hidden", "mode", "1 thread"]
    for count in counts[1:]:
        titles += [f"{count} threads", "speed-up"]
    return f"{found['cell']}, wall time.\n\n" + table(titles, rows, left=2)


def _cold(results: Results) -> str:
    found = results.extras.get("cold")
    if not found:
        return ""
    rows = [
        ("`import numba`", f"{found['import_numba'] * 1e3:.0f} ms"),
        ("`import fastgates`, Numba included", f"{found['import_fastgates'] * 1e3:.0f} ms"),
    ]
    for mode in MODES:
        each = found[mode]
        rows += [
            (f"{mode}: first call ever, compiled", f"{each['compiled']:.1f} s"),
            (f"{mode}: first call of a later process", f"{each['cached'] * 1e3:.1f} ms"),
            (f"{mode}: the call after it", f"{each['after'] * 1e3:.2f} ms"),
        ]
    return table((found["cell"], "time"), rows)


# -- Times --------------------------------------------------------------------------------------


def times(results: Results, mode: str) -> str:
    """Return the table of one mode; empty if nothing was measured."""
    rows = [(case, row) for (case, other), row in results.times.items() if other == mode]
    if not rows:
        return ""
    names = _columns(row for _, row in rows)
    rows.sort(key=lambda item: (list(CELLS).index(item[0].cell), item[0].size))
    lines = []
    for case, row in rows:
        fields = [case.cell, case.size_text]
        fields += [_microseconds(row[name]) if name in row else "" for name in names]
        if len(names) > 1:
            ratio = results.ratio(case, mode)
            fields.append("" if ratio is None else f"{ratio:.2f}")
        for floor in results.floor(case, mode):
            fields.append(f"{floor / row[SUBJECT.name]:.0%}" if SUBJECT.name in row else "")
        lines.append(fields)
    titles = ["cell", "batch,time,input,hidden", *names, *["ratio"] * (len(names) > 1)]
    return table([*titles, "of FMA peak", "of floor"], lines, left=2)


def _columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of the contenders that are in any of the rows, in their order."""
    present = {name for row in rows for name in row}
    return [contender.name for contender in CONTENDERS if contender.name in present]


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


# -- Documents ----------------------------------------------------------------------------------

#: What may stand between ``<!-- bench:NAME -->`` and ``<!-- bench:end -->`` in a document.
BLOCKS: dict[str, Callable[[Results], str]] = {
    "report": markdown,
    "table": short_table,
    "sentence": sentence,
}

_BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)


def check_markers(path: str | os.PathLike[str]) -> str:
    """Return the text of a document that has places for what `BLOCKS` names.

    Raises
    ------
    ValueError
        If there is none, or one with an unknown name.
    """
    content = Path(path).read_text(encoding="utf-8")
    names = [name for _, name, _ in _BLOCK.findall(content)]
    if not names or not set(names) <= BLOCKS.keys():
        known = ", ".join(f"<!-- bench:{name} -->" for name in BLOCKS)
        raise ValueError(
            f"{path} must have lines {known} (one of them at least), each followed by a line "
            f"<!-- bench:end -->; it has {', '.join(names) or 'none'}"
        )
    return content


def write_between_markers(path: str | os.PathLike[str], results: Results) -> None:
    """Write what is asked for between each pair of markers of a document.

    Raises
    ------
    ValueError
        If there are no markers, or unknown ones.
    """

    def filled(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return f"{begin}\n{BLOCKS[name](results)}\n\n{end}"

    content = _BLOCK.sub(filled, check_markers(path))
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
