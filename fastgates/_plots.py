"""Pictures of the command line, with matplotlib from the extra ``plot``; files only, no window."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgates._atomic import check_writable, replacing
from fastgates._extras import require

__all__ = [
    "Losses",
    "Shares",
    "bench_picture",
    "check_picture",
    "classes_picture",
    "demo_picture",
    "fit_picture",
]

_FORMATS = ("png", "svg", "pdf", "jpg")
_GREY = "#8a8a8a"
_COLOURS = ("#0b6e99", "#c8553d", "#588157", "#7b5ea7")
_CELL_COLOURS = (*_COLOURS, "#c79a1e", "#5b4636", "#d17ba5")
_STYLES = {"inference": "-", "training": "--"}

Shares = dict[str, dict[str, list[tuple[int, float, float]]]]
"""From cell and mode to (hidden size, share of the FMA peak, the share at the floor)."""


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise now what writing this picture would meet: no matplotlib, a bad name, a bad place.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    OSError
        If the name has another ending than png, svg, pdf or jpg, or cannot be written.
    """
    require("matplotlib", "a picture")
    if _format(path) not in _FORMATS:
        raise OSError(f"cannot write {path}: a picture must end in .{', .'.join(_FORMATS)}")
    check_writable(path)


class Losses(NamedTuple):
    """Losses by epoch, and which epoch was kept.

    Attributes
    ----------
    training, validation : array_like, shape (epochs,)
        The latter NaN where there was none.
    best_epoch : int
        Counted from 1.
    """

    training: ArrayLike
    validation: ArrayLike
    best_epoch: int


def fit_picture(
    path: str | os.PathLike[str],
    title: str,
    rows: ArrayLike,
    truth: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    losses: Losses,
    width: float | None = None,
    coverage: float = 0.9,
    label: str = "row",
    connected: bool = True,
) -> None:
    """Draw the test part with its predictions and intervals, and the losses of every epoch.

    Parameters
    ----------
    path : path-like
        The picture; its ending is the format.
    title : str
        Above the upper panel.
    rows, truth : array_like, shape (rows,)
        Row numbers of the test part and its values.
    predictions : mapping of str to array_like, shape (rows,)
        By name; the first is drawn strongest.
    losses : Losses
    width : float, optional
        Half of that of the intervals around the first.
    coverage : float
        What they are for.
    label : str
        What the rows are.
    connected : bool
        Whether a row follows on the one before.
    """
    figure = _figure(9.0, 6.0)
    upper, lower = figure.subplots(2, 1, gridspec_kw={"height_ratios": (3, 2)})
    style = {"linewidth": 1.2} if connected else {"linestyle": "none", "marker": "o"}
    upper.plot(rows, truth, color="black", label="measured", **style)
    for colour, (name, values) in zip(_COLOURS, predictions.items(), strict=False):
        upper.plot(rows, values, color=colour, label=name, **style)
    middle = np.asarray(next(iter(predictions.values())))
    if width is not None and not connected:
        upper.errorbar(
            rows, middle, width, fmt="none", ecolor=_COLOURS[0], alpha=0.5,
            label=f"{coverage:.0%} interval",
        )  # fmt: skip
    elif width is not None:
        upper.fill_between(
            rows, middle - width, middle + width, color=_COLOURS[0], alpha=0.18, linewidth=0,
            label=f"{coverage:.0%} interval",
        )  # fmt: skip
    upper.set(title=title, xlabel=label)
    _draw_losses(lower, losses)
    _finish(figure, path)


def classes_picture(
    path: str | os.PathLike[str],
    title: str,
    truth: ArrayLike,
    found: ArrayLike,
    classes: ArrayLike,
    losses: Losses,
) -> None:
    """Draw which class was taken for which, and the losses of every epoch.

    Parameters
    ----------
    path : path-like
        The picture; its ending is the format.
    title : str
        Above the matrix.
    truth, found : array_like, shape (n,)
        Labels.
    classes : array_like, shape (classes,)
        All labels, in order.
    losses : Losses
    """
    names = [str(label) for label in np.asarray(classes)]
    pairs = [np.asarray(found)[np.asarray(truth) == label] for label in np.asarray(classes)]
    counts = np.array([[np.sum(each == label) for label in np.asarray(classes)] for each in pairs])
    figure = _figure(9.0, 4.5)
    left, right = figure.subplots(1, 2)
    left.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            dark = count > 0.5 * counts[row].sum()
            colour = "white" if dark else "black"
            left.text(column, row, str(count), ha="center", va="center", color=colour)
    places = range(len(names))
    left.set_xticks(places, names, rotation=45 if len("".join(names)) > 20 else 0)
    left.set_yticks(places, names)
    left.set(title=title, xlabel="predicted", ylabel="true")
    _draw_losses(right, losses)
    _finish(figure, path)


def _draw_losses(axes: Any, losses: Losses) -> None:
    from matplotlib.ticker import MaxNLocator

    training, validation = np.asarray(losses.training), np.asarray(losses.validation)
    epochs = range(1, len(training) + 1)
    axes.plot(epochs, training, color=_GREY, label="training")
    if np.isfinite(validation).any():
        axes.plot(epochs, validation, color=_COLOURS[0], label="validation")
        axes.axvline(losses.best_epoch, color="black", linewidth=0.8, linestyle=":", label="kept")
    axes.set(xlabel="epoch", ylabel="loss")
    if (training > 0).all():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def demo_picture(
    path: str | os.PathLike[str],
    yearly: tuple[NDArray[Any], NDArray[Any]],
    forecasts: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    errors: Mapping[str, Sequence[float]],
    periods: Sequence[tuple[int, int]],
) -> None:
    """Draw yearly sunspots with one-step forecasts, and the errors by period.

    Parameters
    ----------
    path : path-like
        The picture; its ending is the format.
    yearly : (years, values)
        The series.
    forecasts : mapping of str to (years, values)
        One-step forecasts by cell.
    errors : mapping of str to sequence of float
        Mean squared error / 1535 for each period, by method.
    periods : sequence of (first year, last year)
        The test periods.
    """
    figure = _figure(10.0, 7.0)
    upper, lower = figure.subplots(2, 1, gridspec_kw={"height_ratios": (3, 2)})
    years, values = yearly
    upper.plot(years, values, color="black", linewidth=1.3, label="measured")
    for colour, (name, (when, forecast)) in zip(_COLOURS, forecasts.items(), strict=True):
        upper.plot(when, forecast, color=colour, linewidth=1.0, label=name)
    for first, last in periods:
        upper.axvspan(first - 0.5, last + 0.5, color="#f2efe6", zorder=0)
        upper.axvline(first - 0.5, color=_GREY, linewidth=0.6)
    upper.set(
        title="Yearly sunspot number, forecast one year ahead (fitted on 1700-1920)",
        xlim=(min(first for first, _ in periods) - 21, years[-1] + 1),
        ylim=(0, None),
    )
    width = 0.8 / len(errors)
    colours = (*_COLOURS, *("#b9b9b9", "#dddddd")[: len(errors) - len(forecasts)])
    for k, (colour, (name, each)) in enumerate(zip(colours, errors.items(), strict=True)):
        places = [p - 0.4 + (k + 0.5) * width for p in range(len(periods))]
        lower.bar(places, each, width=0.9 * width, color=colour, label=name)
    lower.set_xticks(range(len(periods)), [f"{first}-{last}" for first, last in periods])
    lower.set_ylabel("mean squared error / 1535")
    _finish(figure, path)


def bench_picture(
    path: str | os.PathLike[str],
    speed_ups: Mapping[str, Sequence[tuple[float, float]]],
    shares: Shares,
    subject: str,
    share_title: str,
) -> None:
    """Draw speed-ups over the fastest peer against the work, and shares against the hidden size.

    Parameters
    ----------
    path : path-like
        The picture; its ending is the format.
    speed_ups : mapping of str to sequence of (multiply-adds of a call, speed-up)
        For each of the modes inference and training.
    shares : Shares
        What the gate functions leave possible is drawn where it is lowest of all cells.
    subject : str
        Whose speed-ups they are.
    share_title : str
        What is the same at all hidden sizes.
    """
    figure = _figure(9.25, 3.85)
    figure.set_facecolor("white")
    left, right = figure.subplots(1, 2)
    for colour, marker, (mode, points) in zip(_COLOURS, "o^", speed_ups.items(), strict=False):
        if points:
            work, ratio = zip(*points, strict=True)
            left.plot(
                work, ratio, marker, color=colour, markersize=3.5, alpha=0.55, markeredgewidth=0,
                label=mode,
            )  # fmt: skip
    left.axhline(1, color="black", linewidth=1)
    if any(speed_ups.values()):
        left.set(xscale="log", yscale="log")
        left.yaxis.set_major_locator(_fixed_ticks(speed_ups))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.minorticks_off()
    else:
        left.text(0.5, 0.6, "no peer was measured", transform=left.transAxes, ha="center")
    left.set(
        title=f"{subject}: times as fast as the fastest peer",
        xlabel="multiply-adds of a call",
    )
    _draw_shares(right, shares)
    right.set(title=f"share of the FMA peak, {share_title}", xlabel="hidden size", ylim=(0, 1))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes in (left, right):
        axes.title.set_fontsize(10)
    _finish(figure, path)


def _draw_shares(axes: Any, shares: Shares) -> None:
    hidden = sorted({h for each in shares.values() for line in each.values() for h, _, _ in line})
    for colour, (cell, modes) in zip(_CELL_COLOURS, shares.items(), strict=False):
        for mode, line in modes.items():
            style = _STYLES[mode]
            sizes, values, _ = zip(*line, strict=True)
            axes.plot(
                sizes, values, style, color=colour, linewidth=1.4, marker="o", markersize=2.5,
                label=cell if mode == next(iter(modes)) else None,
            )  # fmt: skip
    if not hidden:
        axes.text(0.5, 0.6, "no shares were measured", transform=axes.transAxes, ha="center")
        return
    for mode, style in _STYLES.items():
        floors = [modes[mode] for modes in shares.values() if mode in modes]
        lowest = [
            min((f for line in floors for size, _, f in line if size == h), default=None)
            for h in hidden
        ]
        if floors and None not in lowest:
            axes.plot(
                hidden, lowest, style, color=_GREY, linewidth=1.0,
                label="possible" if mode == "inference" else None,
            )  # fmt: skip
    axes.plot([], [], "--", color=_GREY, linewidth=1.4, label="dashed: training")
    axes.set_xscale("log", base=2)
    axes.set_xticks(hidden, [str(h) for h in hidden])
    axes.xaxis.minorticks_off()


def _fixed_ticks(speed_ups: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    from matplotlib.ticker import FixedLocator

    most = max(ratio for points in speed_ups.values() for _, ratio in points)
    return FixedLocator(
        [tick for tick in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if tick <= most]
    )


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(figure: Any, ncols: int = 3) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, ncols=ncols, fontsize="small")


def _finish(figure: Any, path: str | os.PathLike[str], ncols: int = 3) -> None:
    _tidy(figure, ncols)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=_format(path), dpi=130)


def _format(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.lower().removeprefix(".")
