"""The picture of a run: speed-up over the fastest peer, and shares of the FMA peak."""

from __future__ import annotations

import os

from fastgates._plots import Shares, bench_picture
from fastgates.benchmark.cases import CELLS, MODES, SHARE_SIZE, share_sizes
from fastgates.benchmark.peers import SUBJECT
from fastgates.benchmark.report import share
from fastgates.benchmark.results import Results

__all__ = ["draw"]


def draw(results: Results, path: str | os.PathLike[str]) -> None:
    """Draw what there is of both panels; without peers or shares a panel says so.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    OSError
        If `path` has another ending than a picture's, or cannot be written.
    """
    speed_ups = {
        mode: [
            (case.product_flops(mode) / 2, ratio)
            for (case, _), ratio in sorted(results.ratios(mode).items(), key=lambda r: r[0][0].size)
        ]
        for mode in MODES
    }
    shares: Shares = {}
    cases = sorted(
        (case for case, _ in results.times if case.size in share_sizes()),
        key=lambda case: case.hidden,
    )
    for cell in CELLS:
        for mode in MODES:
            line = {}
            for case in cases:
                found = share(results, case, mode) if case.cell == cell else None
                if found is not None:
                    products, whole = results.floor(case, mode)
                    line[case.hidden] = (found, products / whole)
            if line:
                shares.setdefault(cell, {})[mode] = [(h, *both) for h, both in line.items()]
    bench_picture(
        path, speed_ups, shares, SUBJECT.name, "batch {}, time {}, input {}".format(*SHARE_SIZE)
    )
