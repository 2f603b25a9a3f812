"""Sequence models: scaling, a recurrent network, a loss, as one module with one flat vector.

A model holds networks (:class:`fastgates.Sequential`) that work in scaled units, learns the scaling
of inputs and outputs from training data, and knows what a batch of :class:`fastgates.Sequences`
means: which targets, which initial state, which steps count. There are three kinds:

- :class:`SequenceModel`: an output for each sequence (many-to-one) or each step (many-to-many);
- :class:`FreeRunModel`: the output is the next input, so that a start makes a whole series
  (one-to-many), with or without further inputs;
- :class:`EncoderDecoder`: one network reads the past, another makes the steps of a horizon.

All have what the training loop asks for: ``check(data)``, errors at the door; ``forward(data)``,
``loss_of(output, data)`` and ``backward(tape, d_output)``, a training step in three parts;
``gradients(data)``, all three; ``predict(...)``, in the user's units.

Letters in shape comments: N sequences, B batch size, T time, C input features, O targets,
Q outputs for each target (quantiles, else 1), E further inputs, H horizon.
"""

from __future__ import annotations

from ._base import LAYERS, Learn, Model, make_layer
from ._feedback import EncoderDecoder, FreeRunModel
from ._sequence import SequenceModel

__all__ = [
    "LAYERS",
    "EncoderDecoder",
    "FreeRunModel",
    "Learn",
    "Model",
    "SequenceModel",
    "make_layer",
]
