"""A training as a process of its own, which tests interrupt: ``training_job.py CHECKPOINT``.

It says each step that it has taken, and at the end the hash of the weights.
"""

import hashlib
import sys

import numpy as np

import fastgates as fg


def sequences(count=40):
    x = np.random.default_rng(0).standard_normal((count, 6, 2))
    return fg.Sequences(x, x.sum(axis=1)[:, :1])


def trainer(checkpoint=None, epochs=6, **options):
    """Dropout, a schedule with a memory and a validation: all that a checkpoint must hold."""
    model = fg.SequenceModel.build("gru", 2, 1, 5, 2, dropout=0.3, seed=0, initial_state="learned")
    settings = {
        "optimizer": "adamw",
        "learning_rate": 0.02,
        "schedule": fg.schedules.WarmUp(1, fg.schedules.ReduceOnPlateau(0.5, patience=1)),
        "batch_size": 7,
        "max_epochs": epochs,
        "clip_norm": 0.5,
        "seed": 3,
        "checkpoint": checkpoint,
        "checkpoint_steps": 1,
    }
    return fg.Trainer(model, **(settings | options))


def train(checkpoint=None, resume=False, **options):
    """Return the trainer after a fit."""
    job = trainer(checkpoint, **options)
    data, validation = sequences().split(0.25)
    job.fit(data, validation, resume=resume)
    return job


def fingerprint(job):
    """All that two trainings must have in common to be called the same."""
    digest = hashlib.sha256(job.model.parameter_vector.tobytes())
    for buffers in job.optimizer.state_dict()["buffers"]:
        for buffer in buffers.values():
            digest.update(buffer.tobytes())
    for columns in (job.history.epochs, job.history.steps):
        for name, column in columns.items():
            if name != "seconds":
                digest.update(column.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":

    class Say(fg.training.Callback):
        def on_step_end(self, trainer):
            print(trainer.step, flush=True)

    print(fingerprint(train(sys.argv[1], resume=True, callbacks=[Say()])), flush=True)
