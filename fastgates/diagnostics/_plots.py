"""The figures of :mod:`fastgates.diagnostics`, with matplotlib from the extra ``plot``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._extras import require
from .._plots import _CELL_COLOURS, _GREY, _figure, _finish, _tidy, check_picture

if TYPE_CHECKING:
    from .examination import Examination
    from .gates import GateOpenings, LayerGates
    from .jacobians import LayerJacobians, StepJacobians
    from .profile import GradientProfile

__all__ = [
    "examination_picture",
    "gate_picture",
    "jacobian_picture",
    "monitor_picture",
    "profile_picture",
]

Path = str | os.PathLike[str] | None
_PANEL_WIDTH, _PANEL_HEIGHT = 5.5, 3.4
_MOST_LINES = 8  # singular values drawn one by one
_LEAST = 1e-3  # of the largest singular value


def _new(columns: int, rows: int, path: Path) -> tuple[Any, Any]:
    """Return a figure and its panels (rows, columns); look at the path before the work."""
    require("matplotlib", "a figure")
    if path is not None:
        check_picture(path)
    figure = _figure(_PANEL_WIDTH * columns, _PANEL_HEIGHT * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_profile(axes: Any, profile: GradientProfile) -> None:
    smallest = np.inf
    for colour, layer in zip(_colours(len(profile.layers)), profile.layers, strict=True):
        lags = np.arange(layer.by_lag.size)
        drawn = np.where(layer.by_lag > 0, layer.by_lag, np.nan)
        axes.plot(lags, drawn, color=colour, linewidth=1.5, label=f"{layer.name}: {layer.kind}")
        if np.isfinite(drawn).any():
            smallest = min(smallest, np.nanmax(drawn[np.isfinite(drawn)]))
    if np.isfinite(smallest):
        from .profile import RESOLUTION

        axes.set_yscale("log")
        axes.axhline(
            smallest * RESOLUTION, color=_GREY, linewidth=1, linestyle=":",
            label="float32's resolution",
        )  # fmt: skip
    axes.set(
        title="gradient of the loss by the state", xlabel="steps back", ylabel="norm of dL / dh"
    )


def _draw_jacobians(axes: Any, layer: LayerJacobians) -> None:
    values = layer.singular_values
    shown = np.unique(np.linspace(0, values.shape[1] - 1, _MOST_LINES).round().astype(int))
    for place in shown:
        axes.plot(
            layer.steps, values[:, place], color=_CELL_COLOURS[0], linewidth=0.9, alpha=0.6,
            label="singular values" if place == 0 else None,
        )  # fmt: skip
    axes.plot(
        layer.steps, layer.spectral_radius, color=_CELL_COLOURS[1], linewidth=1.6,
        label="spectral radius",
    )  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(title=f"Jacobian of a step, {layer.name}", xlabel="step")
    if values.max() > 0:
        # What is smaller stretches nothing; its logarithm would fill the picture.
        top = max(1.0, float(values.max()))
        axes.set(yscale="log", ylim=(_LEAST * top, 1.5 * top))


def _draw_gates(axes: Any, layer: LayerGates) -> None:
    bins = np.linspace(0, 1, 41)
    for colour, (name, values) in zip(_CELL_COLOURS, layer.openings.items(), strict=False):
        inside = values[~np.isnan(values)]
        weights = np.full(inside.size, 1 / inside.size)
        axes.hist(
            inside, bins, weights=weights, histtype="step", color=colour, linewidth=1.5, label=name
        )
    title = f"gates, {layer.name}"
    if layer.memory is not None:
        title += f"\nunits remember {np.median(layer.memory):.3g} steps (median)"
    axes.set(title=title, xlabel="opening", ylabel="share")
    if not layer.openings:
        axes.text(0.5, 0.5, "no gates", transform=axes.transAxes, ha="center")


def _draw_memory(axes: Any, layer: LayerGates) -> None:
    if layer.memory is None:
        axes.text(0.5, 0.5, "no valve", transform=axes.transAxes, ha="center")
        axes.set(title=f"memory, {layer.name}")
        return
    memory = np.sort(layer.memory)
    finite = np.isfinite(memory)
    axes.plot(np.flatnonzero(finite), memory[finite], "o", color=_CELL_COLOURS[2], markersize=3)
    axes.set(
        title=f"memory, {layer.name}", xlabel="unit, in order", yscale="log",
        ylabel=f"steps, 1 / (1 - {layer.valve})",
    )  # fmt: skip


def _done(figure: Any, path: Path) -> Any:
    for axes in figure.axes:
        axes.title.set_fontsize(10)
    if path is None:
        _tidy(figure, ncols=1)
    else:
        _finish(figure, path, ncols=1)
    return figure


def profile_picture(profile: GradientProfile, path: Path) -> Any:
    """Draw a gradient profile."""
    figure, ((axes,),) = _new(1, 1, path)
    _draw_profile(axes, profile)
    return _done(figure, path)


def jacobian_picture(jacobians: StepJacobians, path: Path) -> Any:
    """Draw singular values and spectral radius, a panel for each layer."""
    figure, panels = _new(len(jacobians.layers), 1, path)
    for axes, layer in zip(panels[0], jacobians.layers, strict=True):
        _draw_jacobians(axes, layer)
    return _done(figure, path)


def gate_picture(gates: GateOpenings, path: Path) -> Any:
    """Draw openings above memory lengths, a column for each layer."""
    figure, panels = _new(len(gates.layers), 2, path)
    for upper, lower, layer in zip(*panels, gates.layers, strict=True):
        _draw_gates(upper, layer)
        _draw_memory(lower, layer)
    return _done(figure, path)


def examination_picture(found: Examination, path: Path) -> Any:
    """Draw the profile, and Jacobians and gates of each layer."""
    count = len(found.gates.layers)
    figure, panels = _new(2, 1 + count, path)
    _draw_profile(panels[0, 0], found.profile)
    words = found.verdict.replace(": the", ":\n  the").replace("; ", ";\n  ")
    panels[0, 1].axis("off")
    panels[0, 1].text(0, 0.95, words, va="top", fontsize=8, wrap=True)
    for row, jacobians, gates in zip(
        panels[1:], found.jacobians.layers, found.gates.layers, strict=True
    ):
        _draw_jacobians(row[0], jacobians)
        _draw_gates(row[1], gates)
    return _done(figure, path)


def monitor_picture(epochs: Sequence[int], profiles: Sequence[GradientProfile], path: Path) -> Any:
    """Draw log10 of the norms over steps back and epoch, a panel for each layer."""
    layers = profiles[-1].layers
    figure, panels = _new(len(layers), 1, path)
    for place, axes in enumerate(panels[0]):
        norms = np.stack([profile.layers[place].by_lag for profile in profiles])
        logarithms = np.full(norms.shape, np.nan)
        known = np.isfinite(norms) & (norms > 0)
        logarithms[known] = np.log10(norms[known])
        lags = np.arange(norms.shape[1])
        image = axes.pcolormesh(lags, np.asarray(epochs), logarithms, shading="nearest")
        figure.colorbar(image, ax=axes, label="log10 of the norm of dL / dh")
        axes.set(title=layers[place].name, xlabel="steps back", ylabel="epoch")
    return _done(figure, path)


def _colours(count: int) -> list[str]:
    return [_CELL_COLOURS[k % len(_CELL_COLOURS)] for k in range(count)]
