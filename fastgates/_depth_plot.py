"""The picture of ``fastgates depth``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ._depth import CELLS, Results, Series, series_label
from ._plots import _figure, _finish
from .tasks import TASKS

__all__ = ["depth_picture"]

_TITLES = {
    "recall": "delayed recall",
    "adding": "adding problem",
    "order": "temporal order",
    "copy": "copy memory (pause)",
}


def depth_picture(results: Results, path: str | os.PathLike[str]) -> Any:
    """Draw the share of trainings that solved each task, by cell and length.

    Parameters
    ----------
    results : Results
    path : path-like
        The picture; its ending is the format.
    """
    present = {r.series.task for r in results.runs}
    tasks = [task for task in TASKS if task in present]
    pairs = sorted(
        {(r.series.cell, r.series.optimizer) for r in results.runs},
        key=lambda each: (each[1], list(CELLS).index(each[0])),
    )
    height = 1.1 + 0.28 * len(pairs)
    figure = _figure(1.4 + 2.4 * len(tasks), 2 * height)
    figure.set_facecolor("white")
    panels = figure.subplots(2, len(tasks), squeeze=False, sharey=True)
    for row, clipped in zip(panels, (True, False), strict=True):
        for axes, task in zip(row, tasks, strict=True):
            _draw(axes, results, task, pairs, clipped)
        word = f"clipped to norm {results.settings.clip_norm:g}" if clipped else "not clipped"
        row[0].set_ylabel(word)
    for axes, task in zip(panels[0], tasks, strict=True):
        axes.set_title(_TITLES[task], fontsize=10)
    for axes in panels[1]:
        axes.set_xlabel("length")
    figure.suptitle(
        f"which share of {results.settings.seeds} trainings solved the task, by sequence length",
        fontsize=11,
    )
    _finish(figure, path)
    return figure


def _draw(
    axes: Any, results: Results, task: str, pairs: list[tuple[str, str]], clipped: bool
) -> None:
    lengths = results.settings.lengths
    shares = np.full((len(pairs), len(lengths)), np.nan)
    for i, (cell, optimizer) in enumerate(pairs):
        for j, length in enumerate(lengths):
            found = results.solved(Series(task, cell, optimizer, clipped), length)
            if found is not None:
                shares[i, j] = found[0] / found[1]
                dark = shares[i, j] > 0.5
                axes.text(
                    j, i, f"{found[0]}/{found[1]}", ha="center", va="center", fontsize=7,
                    color="white" if dark else "#555555",
                )  # fmt: skip
            else:
                axes.text(j, i, "·", ha="center", va="center", color="#aaaaaa")
    axes.imshow(shares, cmap="GnBu", vmin=0, vmax=1.15, aspect="auto")
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths], fontsize=8)
    labels = [series_label(task, cell, optimizer) for cell, optimizer in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
