"""The training loop: what it records, when it stops, and that a break changes no bit."""

import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from training_job import fingerprint, sequences, train, trainer

import fastgates as fg
from fastgates._checkpoint import CheckpointError
from fastgates._tables import DataError
from fastgates.training import DivergenceError, History


def model(**options):
    return fg.SequenceModel.build("gru", 2, 1, 5, seed=0, **options)


def fit(validation=None, data=None, epochs=3, **options):
    job = fg.Trainer(model(), **({"batch_size": 16, "max_epochs": epochs} | options))
    job.fit(sequences() if data is None else data, validation)
    return job


# -- The loop --------------------------------------------------------------------------------------


def test_a_fit_is_the_loop_that_one_would_write():
    data = sequences()
    job = fit(clip_norm=0.3, learning_rate=0.01, seed=5)
    byhand = model()
    byhand.fit_scaling(data)
    optimizer = fg.Adam([byhand], lr=0.01)
    norms = []
    for epoch in (1, 2, 3):
        order = np.random.default_rng([5, epoch]).permutation(40)
        for start in range(0, 40, 16):
            batch = byhand.check(data.take(order[start : start + 16]))
            _, gradients, _ = byhand.gradients(batch)
            norms.append(fg.clip_grad_norm(gradients, 0.3))
            optimizer.step(gradients)
    assert np.array_equal(job.model.parameter_vector, byhand.parameter_vector)
    assert np.array_equal(job.history.steps["gradient_norm"], norms)
    assert job.history.stop_reason == "max_epochs"
    assert (job.epoch, job.step, job.steps_per_epoch) == (3, 9, 3)


def test_the_history():
    data, validation = sequences().split(0.2)
    job = fit(validation, data, schedule=fg.schedules.StepDecay(1, 0.5), learning_rate=0.1)
    history = job.history
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["step"].tolist() == [2, 4, 6]
    assert history["learning_rate"].tolist() == [0.1, 0.05, 0.025]
    steps = history.steps
    assert np.allclose(history["loss"], steps["loss"].reshape(3, 2).mean(axis=1))
    assert np.allclose(history["gradient_norm"], steps["gradient_norm"].reshape(3, 2).mean(axis=1))
    assert (history["gradient_norm_max"] == steps["gradient_norm"].reshape(3, 2).max(axis=1)).all()
    best = int(np.argmin(history["validation_loss"]))
    assert history.best_epoch == best + 1
    assert job.model.evaluate(validation) == history["validation_loss"][best]
    again = History.from_dict(json.loads(json.dumps(history.to_dict())))
    assert again.to_dict() == history.to_dict()
    with pytest.raises(KeyError, match="history has the columns epoch, step, loss"):
        history["accuracy"]


def test_a_history_as_a_table():
    pandas = pytest.importorskip("pandas")
    frame = fit().history.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 3 and np.isnan(frame["validation_loss"]).all()


def test_early_stopping_keeps_the_best_weights():
    data, validation = sequences().split(0.5)
    job = fit(validation, data, epochs=200, learning_rate=0.3, patience=3)
    assert job.history.stop_reason == "patience"
    assert job.epoch == job.history.best_epoch + 3
    assert job.model.evaluate(validation) == job.best_loss == min(job.history["validation_loss"])


def test_another_fit_goes_on():
    once, twice = fit(epochs=4), fit(epochs=2)
    twice.fit(sequences(), epochs=2)
    assert fingerprint(twice) == fingerprint(once)
    assert len(twice.history) == 4


@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits_for_any_number_of_threads(threads):
    fg.set_num_threads(threads)
    job = fit()
    fg.set_num_threads(2)
    assert fingerprint(job) == fingerprint(fit())


def test_clipping_by_value_then_by_norm():
    values, both = fit(clip_value=1e-3), fit(clip_value=1e-3, clip_norm=1e-4)
    assert not np.array_equal(values.model.parameter_vector, both.model.parameter_vector)
    assert values.history.steps["gradient_norm"].min() > 1e-2  # recorded before clipping


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw"])
def test_every_optimizer_lowers_the_loss(optimizer):
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    job = fit(epochs=15, optimizer=optimizer, learning_rate=0.02, optimizer_options=options)
    assert job.history["loss"][-1] < 0.5 * job.history["loss"][0]


def test_callbacks():
    seen = []

    class All(fg.training.Callback):
        def on_fit_begin(self, trainer):
            seen.append("begin")

        def on_step_end(self, trainer):
            seen.append((trainer.epoch, trainer.step, len(trainer.batch)))
            assert trainer.loss == trainer.history.steps["loss"][-1]

        def on_epoch_end(self, trainer):
            seen.append(trainer.epoch)

        def on_fit_end(self, trainer):
            seen.append("end")

    def stop(trainer):
        if trainer.epoch == 2:
            trainer.stop("enough")

    job = fit(epochs=5, callbacks=[All(), stop])
    first, second = ([(e, 3 * e - 3 + k, n) for k, n in ((1, 16), (2, 16), (3, 8))] for e in (1, 2))
    assert seen == ["begin", *first, 1, *second, 2, "end"]
    assert job.history.stop_reason == "enough"


def test_the_minibatch_of_a_step():
    data, seen = sequences(), []

    class Watch(fg.training.Callback):
        def on_step_end(self, trainer):
            seen.append(trainer.batch)

    job = fg.Trainer(model(), batch_size=16, max_epochs=1, seed=5, callbacks=[Watch()])
    assert job.batch is None
    job.fit(data)
    order = np.random.default_rng([5, 1]).permutation(40)
    for number, batch in enumerate(seen):
        rows = order[16 * number : 16 * (number + 1)]
        assert np.array_equal(batch.x, data.x[rows]) and np.array_equal(batch.y, data.y[rows])
    # After the fit it is all that the trainer holds of the data.
    assert np.array_equal(job.batch.x, seen[-1].x)
    assert not np.shares_memory(job.batch.x, data.x) and len(job._data) == 8


def test_progress(capsys):
    data, validation = sequences().split(0.2)
    fit(validation, data, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 3" in shown
    for figure in ("6/6", "loss=", "norm=", "rate=0.001", "validation="):
        assert figure in shown


def test_windows_are_views_and_are_gathered_by_batch():
    series = np.arange(40.0).reshape(20, 2)
    views = fg.training.windows(series, 5, stride=2)
    assert views.shape == (8, 5, 2)
    assert np.shares_memory(views, series)
    assert np.array_equal(views[3], series[6:11])
    data = fg.Sequences(views, series[4::2, :1])
    assert np.shares_memory(data.x, series)
    fit(data=data)


# -- Breaks ----------------------------------------------------------------------------------------


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    path = tmp_path / "run.npz"
    job = [sys.executable, str(Path(__file__).with_name("training_job.py")), str(path)]
    expected = fingerprint(train())
    taken = []
    for kill_after in (2, 9, None):
        lines = []
        with subprocess.Popen(job, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                lines.append(line.strip())
                if len(lines) == kill_after:
                    process.kill()
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
        taken.append([int(line) for line in lines if len(line) < 10])
    # Each process went on from where the one before was killed, at most a few steps back.
    assert taken[1][0] > 1 and taken[2][0] > taken[1][0]
    assert lines[-1] == expected
    assert fingerprint(train(path, resume=True)) == expected  # finished: nothing left to do
    assert [each.name for each in tmp_path.iterdir()] == ["run.npz"]


class StopAt(fg.training.Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop()


@pytest.mark.parametrize("step", [1, 5, 6, 29])
def test_resuming_after_any_step(tmp_path, step):
    """A step in an epoch, at the end of one (the fifth), and before the last."""
    path = tmp_path / "run.npz"
    train(path, callbacks=[StopAt(step)])
    resumed = train(path, resume=True)
    assert fingerprint(resumed) == fingerprint(train())
    assert resumed.history.stop_reason == "max_epochs"


def test_early_stopping_over_a_break(tmp_path):
    path = tmp_path / "run.npz"
    options = {"patience": 2, "learning_rate": 0.3, "epochs": 50, "checkpoint_steps": None}
    whole = train(**options)
    assert whole.history.stop_reason == "patience"
    train(path, callbacks=[StopAt(whole.step - 7)], **options)
    resumed = train(path, resume=True, **options)
    assert fingerprint(resumed) == fingerprint(whole)
    assert fingerprint(train(path, resume=True, **options)) == fingerprint(whole)


def test_more_epochs_after_the_end(tmp_path):
    path = tmp_path / "run.npz"
    train(path, epochs=3)
    assert fingerprint(train(path, resume=True, epochs=6)) == fingerprint(train(epochs=6))


def test_ctrl_c_ends_the_step_and_keeps_the_best(tmp_path):
    path = tmp_path / "run.npz"

    class Interrupt(fg.training.Callback):
        def on_step_end(self, trainer):
            if trainer.step == 13:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.warns(RuntimeWarning, match=r"interrupted in epoch 3 of 6; the model has the best"):
        job = train(path, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is before
    assert job.history.stop_reason == "interrupted"
    assert job.step == 13
    assert job.model.evaluate(sequences().split(0.25)[1]) == job.best_loss
    assert fingerprint(train(path, resume=True)) == fingerprint(train())


def test_a_second_ctrl_c_raises_and_keeps_the_best():
    class Impatient(fg.training.Callback):
        def on_step_end(self, trainer):
            if trainer.step == 13:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    job = trainer(callbacks=[Impatient()])
    data, validation = sequences().split(0.25)
    with pytest.raises(KeyboardInterrupt):
        job.fit(data, validation)
    assert job.model.evaluate(validation) == job.best_loss
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_signals_are_left_alone():
    jobs = []
    thread = threading.Thread(target=lambda: jobs.append(fit()))
    thread.start()
    thread.join()
    assert fingerprint(jobs[0]) == fingerprint(fit())


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    train(path, epochs=1)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        train(path, epochs=2)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["run.npz"]


def newer(path):
    arrays = dict(np.load(path))
    state = json.loads(arrays["state"].tobytes()) | {"version": 99}
    np.savez(path, **arrays | {"state": np.frombuffer(json.dumps(state).encode(), np.uint8)})


def array_file():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def without_weights(path):
    arrays = {name: value for name, value in np.load(path).items() if "moment" not in name}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a whole checkpoint"),
        (lambda path: path.write_bytes(b""), "not a whole checkpoint"),
        (lambda path: path.write_text("hello"), "not a whole checkpoint"),
        (lambda path: np.savez(path, x=np.zeros(3)), "not a whole checkpoint"),
        (lambda path: path.write_bytes(array_file()), "not a whole checkpoint"),
        (newer, "written by a newer fastgates .version 99"),
        (without_weights, "it is damaged: .*buffers"),
    ],
)
def test_damaged_checkpoints(tmp_path, damage, match):
    path = tmp_path / "run.npz"
    train(path, epochs=1)
    damage(path)
    with pytest.raises(CheckpointError, match=match):
        train(path, resume=True)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"batch_size": 8}, "batch_size was 7, is 8"),
        ({"seed": 4}, "seed was 3, is 4"),
        ({"optimizer": "adam"}, r"optimizer was \"AdamW .* is \"Adam "),
        ({"schedule": "constant"}, "schedule was 'WarmUp"),
    ],
)
def test_a_checkpoint_of_another_training(tmp_path, options, match):
    path = tmp_path / "run.npz"
    train(path, epochs=1)
    with pytest.raises(CheckpointError, match=match):
        train(path, resume=True, **options)


def test_a_checkpoint_of_other_data(tmp_path):
    path = tmp_path / "run.npz"
    train(path, epochs=1)
    with pytest.raises(CheckpointError, match="data was"):
        trainer(path).fit(sequences(41).split(0.25)[0], sequences().split(0.25)[1], resume=True)


def test_trainers_can_be_pickled():
    job = fit(epochs=2)
    other = pickle.loads(pickle.dumps(job))
    job.fit(sequences(), epochs=2)
    other.fit(sequences(), epochs=2)
    assert fingerprint(other) == fingerprint(job)
    assert other.optimizer._modules[0] is other.model


# -- Divergence ------------------------------------------------------------------------------------


class Poison(fg.training.Callback):
    """Make the gradients of a later step infinite, as a learning rate that is too high would."""

    def __init__(self, step):
        self.step = step
        self.weights = []

    def on_step_end(self, trainer):
        self.weights.append(trainer._good)
        if trainer.step == self.step:
            with trainer.model.edit_parameters() as parameters:
                parameters.vector[...] = np.inf


def test_divergence_says_where_and_keeps_the_last_good_weights():
    poison = Poison(5)
    job = fg.Trainer(model(), batch_size=16, max_epochs=3, learning_rate=0.01, callbacks=[poison])
    with pytest.raises(
        DivergenceError,
        match=r"diverged in epoch 2 at step 6: loss (inf|nan), .* norms before: .*below 0.01, or "
        r"clip gradients \(clip_norm=1.0\); the model has the last weights with a finite loss",
    ) as caught:
        job.fit(sequences())
    error = caught.value
    assert (error.epoch, error.step) == (2, 6)
    assert not math.isfinite(error.loss)
    assert np.array_equal(error.gradient_norms[:-1], job.history.steps["gradient_norm"])
    assert np.array_equal(job.model.parameter_vector, poison.weights[-1])
    assert np.isfinite(job.model.predict(sequences().x)).all()
    assert pickle.loads(pickle.dumps(error)).step == 6


def test_divergence_keeps_the_best_weights_of_validation():
    data, validation = sequences().split(0.2)
    job = fg.Trainer(model(), batch_size=16, max_epochs=3, callbacks=[Poison(5)])
    with pytest.raises(DivergenceError, match="the model has the weights of epoch 2"):
        job.fit(data, validation)
    assert job.model.evaluate(validation) == job.best_loss


def test_divergence_in_the_first_step_leaves_the_weights():
    data = sequences()
    job = fg.Trainer(model())
    with job.model.edit_parameters() as parameters:
        parameters.vector[...] = 3e38
    before = job.model.parameter_vector.copy()
    with pytest.raises(
        DivergenceError,
        match=r"step 1: loss .*, gradient norm nan; .*before: none\..*the weights it had",
    ):
        job.fit(data)
    assert np.array_equal(job.model.parameter_vector, before)


def test_divergence_of_the_validation():
    data, validation = sequences().split(0.2)
    job = fg.Trainer(model(), batch_size=16, callbacks=[Poison(2)])
    with pytest.raises(DivergenceError, match=r"epoch 1 .*validation loss"):
        job.fit(data, validation)
    assert np.isfinite(job.model.predict(sequences().x)).all()


def test_a_minibatch_in_which_nothing_counts_has_no_say():
    x = np.random.default_rng(0).standard_normal((12, 6, 2))
    lengths = np.array([2, 6] * 6)
    data = fg.Sequences(x, x[..., :1], lengths=lengths)
    build = {"return_sequences": True, "washout": 3}
    job = fg.Trainer(model(**build), batch_size=1, max_epochs=1, shuffle=False)
    job.fit(data)
    rest = fg.Trainer(model(**build), batch_size=1, max_epochs=1, shuffle=False, fit_scaling=False)
    rest.model.fit_scaling(data)
    rest.fit(data.take(slice(1, None, 2)))
    assert np.array_equal(job.model.parameter_vector, rest.model.parameter_vector)
    assert job.history["loss"][0] == rest.history["loss"][0]
    with pytest.raises(DataError, match=r"nothing counts in the loss: .*washout=3"):
        job.fit(data.take(slice(0, None, 2)))


# -- Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"optimizer": "lbfgs"}, ValueError, "optimizer must be one of adam, adamw, rmsprop, sgd"),
        ({"optimizer_options": {"beta": 1}}, TypeError, "options of adam are weight_decay, betas"),
        ({"optimizer": fg.Adam([fg.GRU(1, 1)])}, ValueError, "one of this model"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be a positive number"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of constant, cosine"),
        ({"schedule": 0.1}, TypeError, "schedule must be a schedule"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"max_epochs": 1.5}, ValueError, "max_epochs must be a positive integer"),
        ({"patience": 0}, ValueError, "patience must be a positive integer"),
        ({"min_delta": -1}, ValueError, "min_delta must be a number of at least 0"),
        ({"clip_norm": "1"}, ValueError, "clip_norm must be a positive number"),
        ({"clip_value": -1}, ValueError, "clip_value must be a positive number"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
        ({"callbacks": [3]}, TypeError, "callbacks must have one of on_fit_begin"),
        ({"checkpoint_steps": 0}, ValueError, "checkpoint_steps must be a positive integer"),
    ],
)
def test_bad_settings(options, error, match):
    with pytest.raises(error, match=match):
        fg.Trainer(model(), **options)


def test_bad_fits(tmp_path):
    with pytest.raises(TypeError, match="model must be a SequenceModel"):
        fg.Trainer(fg.GRU(1, 1))
    with pytest.raises(ValueError, match="patience needs validation data"):
        fg.Trainer(model(), patience=3).fit(sequences())
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        fg.Trainer(model()).fit(sequences(), resume=True)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fg.Trainer(model(), checkpoint=tmp_path / "no" / "run.npz").fit(sequences())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
def test_a_training_can_be_resumed_any_number_of_times(tmp_path, optimizer):
    def job(checkpoint=tmp_path / "c"):
        return fg.Trainer(
            model(), optimizer=optimizer, max_epochs=1, batch_size=20, checkpoint=checkpoint
        )

    whole = job(None)
    whole.fit(sequences(), epochs=3)
    job().fit(sequences())
    trainer = job()
    for epochs in (2, 3):
        trainer.fit(sequences(), resume=True, epochs=epochs)
    job().fit(sequences(), resume=True, epochs=4)
    assert fingerprint(trainer) == fingerprint(whole)


def test_a_training_that_ended_by_patience_goes_on_with_more_of_it(tmp_path):
    data, validation = sequences().split(0.5)

    def job(patience):
        return fg.Trainer(
            model(), learning_rate=0.3, batch_size=20, max_epochs=60, patience=patience,
            checkpoint=tmp_path / "c",
        )  # fmt: skip

    ended = job(3).fit(data, validation)
    again = job(3).fit(data, validation, resume=True)
    assert again.to_dict() == ended.to_dict() and again.stop_reason == "patience"
    more = job(5).fit(data, validation, resume=True)
    assert len(more) == len(ended) + 2 and more.stop_reason == "patience"


@pytest.mark.parametrize("name", ["x", "y"])
def test_a_checkpoint_knows_all_of_its_data(tmp_path, name):
    data = sequences()
    job = fg.Trainer(model(), max_epochs=1, checkpoint=tmp_path / "c")
    job.fit(data)
    changed = getattr(data, name).copy()
    changed[7] += 1
    with pytest.raises(CheckpointError, match="data was"):
        job.fit(data.replace(**{name: changed}), resume=True)
