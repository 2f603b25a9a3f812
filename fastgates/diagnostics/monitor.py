"""The profile again and again during a training."""

from __future__ import annotations

import os
from typing import Any

from .._checks import positive_integer, real_array
from .._sequences import Sequences
from ._runs import Model
from .profile import GradientProfile, gradient_profile

__all__ = ["GradientMonitor"]


class GradientMonitor:
    """A callback of :class:`fastgates.Trainer` that measures the gradient profile as it learns.

    It measures before the first epoch and after every `every` of them, always on the same
    sequences. In a loop of your own, call :meth:`measure`.

    Parameters
    ----------
    x : array_like, shape (batch, time, input_size), or Sequences
        In the user's units, as the model's ``predict`` takes them; a few sequences are enough. The
        loss is that of :func:`gradient_profile`: of an array how far back the last step can feel,
        of :class:`fastgates.Sequences` that of the training.
    lengths : array_like of int, shape (batch,), optional
    every : int
        Epochs from one measurement to the next.

    Attributes
    ----------
    epochs : list of int
        When profiles were measured.
    profiles : list of GradientProfile
    """

    def __init__(self, x: Any, lengths: Any = None, every: int = 1) -> None:
        self.x = x
        if not isinstance(x, Sequences):
            self.x = real_array("x", x, ("batch_size", "time", "input_size"), copy=True)
        self.lengths = lengths
        self.every = positive_integer("every", every)
        self.epochs: list[int] = []
        self.profiles: list[GradientProfile] = []

    def measure(self, model: Model, epoch: int) -> GradientProfile:
        """Measure the profile of `model` now, and keep it as that of `epoch`.

        Parameters
        ----------
        model : Model
            As :func:`gradient_profile` takes it.
        epoch : int
            Epochs trained so far.

        Returns
        -------
        GradientProfile

        Raises
        ------
        ValueError, TypeError
            If the model does not take the sequences.
        """
        profile = gradient_profile(model, self.x, lengths=self.lengths)
        self.epochs.append(int(epoch))
        self.profiles.append(profile)
        return profile

    def on_fit_begin(self, trainer: Any) -> None:
        """Measure the start."""
        if not self.profiles:
            self.measure(trainer.model, 0)

    def on_epoch_end(self, trainer: Any) -> None:
        """Measure where it is time."""
        if trainer.epoch % self.every == 0:
            self.measure(trainer.model, trainer.epoch)

    def text(self) -> str:
        """Return what the first and the last profile say."""
        if not self.profiles:
            return "nothing was measured yet"
        places = (0, len(self.profiles) - 1)[: len(self.profiles)]
        return "\n".join(
            f"after epoch {self.epochs[place]}: {layer.text()}"
            for place in places
            for layer in self.profiles[place].layers
        )

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the norms by steps back and epoch; return the figure, and write it to `path`.

        Raises
        ------
        ValueError
            If nothing was measured yet.
        """
        from ._plots import monitor_picture

        if not self.profiles:
            raise ValueError("nothing was measured yet: train with this callback first")
        return monitor_picture(self.epochs, self.profiles, path)
