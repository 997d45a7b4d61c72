"""Progress: the epoch table, the bars, and a terminal that is left as it was found."""

import io
import re
import threading

import keras
import numpy as np
import pytest
from rich.console import Console

from kbaseline.console import bars
from kbaseline.console.format import rate
from kbaseline.console.training import PredictBar, StageTable, SweepBar
from kbaseline.runs.record import Step
from kbaseline.runs.results import accuracy_table

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def log():
    """A console that is no terminal."""
    return Console(file=io.StringIO(), width=80)


@pytest.fixture
def terminal(monkeypatch):
    """A console that is a terminal."""
    for name in ("NO_COLOR", "TERM", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Console(file=io.StringIO(), width=100, force_terminal=True, force_interactive=True, color_system="standard")


def seen(console):
    return console.file.getvalue()


def bars_opened(console):
    """How often the cursor was hidden, having checked that it was shown again as often, and at the end."""
    text = seen(console)
    assert text.count(HIDE) == text.count(SHOW)
    assert text.rfind(SHOW) >= text.rfind(HIDE)
    return text.count(HIDE)


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


@pytest.fixture
def samples(rng):
    return rng.normal(size=(32, 4)).astype("float32"), rng.integers(0, 2, 32)


def begin(callback, steps=10):
    """The callback, as Keras hands it to training."""
    callback.set_params({"epochs": 1, "steps": steps})
    callback.set_model(keras.Sequential())
    callback.model.compile("sgd", "mse")
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    return callback


@pytest.fixture
def time_of(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(bars.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(bars.time, "monotonic", lambda: Clock.now)
    return Clock


def test_log_gets_plain_rows(log, model, samples):
    """Without a terminal: a header and a row an epoch, no control characters, in the promised formats."""
    with StageTable("head", 2, 32, log) as table:
        model.fit(*samples, batch_size=8, epochs=2, validation_data=samples, verbose=0, callbacks=[table])
    title, header, *rows = seen(log).splitlines()
    assert title == "head  2 epochs"
    assert header.split() == ["epoch", "train_loss", "valid_loss", "accuracy", "images/s", "time"]
    assert len(rows) == 2
    for number, row in enumerate(rows, 1):
        assert re.fullmatch(rf" +{number} +\d\.\d{{6}} +\d\.\d{{6}} +\d+\.\d\d % +[\d.,]+ +\d\d:\d\d", row)
        assert len(row) == len(header)
    assert not set(seen(log)) & set("\x1b\r")


def test_rows_agree_with_keras(log, model, samples):
    """The recorded rows hold Keras' own figures, validation's where there are any."""
    with StageTable("head", 2, 32, log) as table:
        fitted = model.fit(*samples, batch_size=8, epochs=2, validation_data=samples, verbose=0, callbacks=[table])
    keys = ["stage", "epoch", "train_loss", "valid_loss", "accuracy", "images_per_s", "seconds"]
    assert [list(row) for row in table.rows] == [keys, keys]
    for key, keras_key in (("train_loss", "loss"), ("valid_loss", "val_loss"), ("accuracy", "val_accuracy")):
        assert [row[key] for row in table.rows] == fitted.history[keras_key]
    assert [(row["stage"], row["epoch"]) for row in table.rows] == [("head", 1), ("head", 2)]


def test_without_validation_accuracy_is_that_of_training(log, model, samples):
    """No validation: its loss is None and a dash, and training's accuracy stands in."""
    with StageTable("head", 1, 32, log) as table:
        fitted = model.fit(*samples, batch_size=8, epochs=1, verbose=0, callbacks=[table])
    assert table.rows[0]["accuracy"] == fitted.history["accuracy"][0]
    assert table.rows[0]["valid_loss"] is None
    assert seen(log).splitlines()[0] == "head  1 epoch"
    assert seen(log).splitlines()[-1].split()[2] == "-"


def test_images_per_second_leave_validation_out(log, time_of):
    """Golden: 500 images in 5 s of training are 100 images/s, though validation takes 20 s more."""
    table = begin(StageTable("head", 1, 500, log))
    time_of.now += 5
    for batch in range(10):
        table.on_train_batch_end(batch)
    table.on_test_begin()
    time_of.now += 20
    table.on_test_batch_end(0)
    table.on_epoch_end(0, {"loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.9456})
    assert (table.rows[0]["images_per_s"], table.rows[0]["seconds"]) == (100.0, 25.0)
    assert seen(log).splitlines()[-1].split() == ["1", "1.000000", "2.000000", "94.56", "%", "100", "00:25"]


def test_an_epoch_cut_short_counts_the_images_it_saw(log, time_of):
    """Golden: 4 of 10 batches of 500 images in 2 s are 100 images/s."""
    table = begin(StageTable("head", 1, 500, log))
    time_of.now += 2
    for batch in range(4):
        table.on_train_batch_end(batch)
    table.on_epoch_end(0, {"loss": float("nan")})
    assert table.rows[0]["images_per_s"] == 100.0


def test_keras_may_run_the_batch_methods_aside(log, terminal, model, samples):
    """The bars let Keras read losses in its threads, so that no step waits for the one before."""
    threads = set()

    class Watched(StageTable):
        def on_train_batch_end(self, batch, logs=None):
            threads.add(threading.current_thread())
            super().on_train_batch_end(batch, logs)

    with Watched("head", 1, 32, terminal) as table:
        model.fit(*samples, batch_size=8, verbose=0, callbacks=[table])
    assert threads
    assert threading.main_thread() not in threads


def test_loss_is_read_rarely(terminal, time_of):
    """Between two readings of the live loss half a second passes, however many batches do."""
    read = []

    class Loss:
        def __float__(self):
            read.append(time_of.now)
            return 1.25

    table = begin(StageTable("head", 1, 100, terminal), steps=200)
    for batch in range(200):
        time_of.now += 0.01
        table.on_train_batch_end(batch, {"loss": Loss()})
    table.close()
    assert 3 <= len(read) <= 4
    assert np.diff(read).min() > 0.49
    assert "loss 1.2500" in seen(terminal)


def test_terminal_gets_a_bar_and_then_the_row(terminal, model, samples):
    """In a terminal a bar of training and one of validation an epoch come and go, and the rows stay."""
    with StageTable("head", 2, 32, terminal) as table:
        model.fit(*samples, batch_size=8, epochs=2, validation_data=samples, verbose=0, callbacks=[table])
    assert bars_opened(terminal) == 4
    assert "head 2/2" in seen(terminal)
    assert "head: validation" in seen(terminal)
    assert table._bar is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_training_gives_the_cursor_back(terminal, model, samples, error):
    """Keras calls nothing after an interruption; leaving the `with` block erases the bar."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                raise error

    with pytest.raises(error), StageTable("head", 1, 32, terminal) as table:
        model.fit(*samples, batch_size=8, verbose=0, callbacks=[table, Stop()])
    assert bars_opened(terminal) == 1
    assert table.rows == []
    table.on_train_batch_end(3, {"loss": 1.0})
    assert bars_opened(terminal) == 1


def test_bars_never_go_back(terminal):
    """Batches reported out of order, as threads may, leave the bar at the furthest."""
    table = begin(StageTable("head", 1, 100, terminal))
    for batch in (0, 4, 2):
        table.on_train_batch_end(batch)
    assert table._bar._progress.tasks[0].completed == 5
    table.on_test_begin()
    table.on_train_batch_end(9)
    assert table._bar._progress.tasks[0].completed == 0
    table.close()


def test_bar_shows_images_per_second(terminal, time_of):
    """The bar's rate is in images: 50 of them a batch, four batches a second."""
    terminal.get_time = lambda: time_of.now
    table = begin(StageTable("head", 1, 500, terminal))
    task = table._bar._progress.tasks[0]
    (column,) = [c for c in table._bar._progress.columns if isinstance(c, bars._Rate)]
    assert column.render(task).plain == ""
    for batch in range(4):
        time_of.now += 0.25
        table.on_train_batch_end(batch)
    assert column.render(task).plain == "200 images/s"
    table.close()


def test_a_stage_name_is_no_markup(log):
    """Square brackets in a name are printed."""
    begin(StageTable("[red]x[/]", 3, 1, log))
    assert seen(log).startswith("[red]x[/]  3 epochs")


def test_rows_are_never_cut():
    """A row stays one line where the terminal or log is narrower."""
    narrow = Console(file=io.StringIO(), width=20)
    table = begin(StageTable("head", 1, 1, narrow))
    table.on_epoch_end(0, {"loss": 1.0})
    assert len(seen(narrow).splitlines()) == 3


def test_evaluate_alone_prints_nothing(terminal, model, samples):
    """The table ignores evaluation that belongs to no epoch."""
    table = StageTable("head", 1, 32, terminal)
    model.evaluate(*samples, verbose=0, callbacks=[table])
    assert seen(terminal) == ""


def test_sweep_bar_counts_over_epochs(terminal, model, samples):
    """A sweep that goes round its images twice is one bar, filled once."""
    ends = []

    class Watched(SweepBar):
        def on_epoch_end(self, epoch, logs=None):
            ends.append(self._bar._progress.tasks[0].completed)

    with Watched(8, terminal) as bar:
        model.fit(*samples, batch_size=8, epochs=2, verbose=0, callbacks=[bar])
    assert ends == [4, 8]
    assert bars_opened(terminal) == 1


def test_predict_bar_goes_over_several_calls(terminal, model, samples):
    """The calls of one long prediction share a bar; a further one begins another."""
    with PredictBar("tta", 8, terminal) as bar:
        model.predict(samples[0], batch_size=8, verbose=0, callbacks=[bar])
        assert bar._bar._progress.tasks[0].completed == 4
        model.predict(samples[0], batch_size=8, verbose=0, callbacks=[bar])
        assert bar._bar is None
        assert bars_opened(terminal) == 1
        model.predict(samples[0], batch_size=8, verbose=0, callbacks=[bar])
        assert bar._bar._progress.tasks[0].completed == 4
    assert bars_opened(terminal) == 2


def test_bars_leave_a_log_alone(log, model, samples):
    """Without a terminal the sweep and prediction print nothing."""
    with SweepBar(4, log) as sweep, PredictBar("tta", 4, log) as predict:
        model.fit(*samples, batch_size=8, verbose=0, callbacks=[sweep])
        model.predict(samples[0], batch_size=8, verbose=0, callbacks=[predict])
    assert seen(log) == ""


def test_accuracy_table(log):
    """Golden: one step a line, a dash where there is no time."""
    steps = [Step("head", 0.9412, 100, 83.0), Step("[tta]", 0.9612, 100)]
    log.print(accuracy_table(steps, steps[0]))
    lines = [line.split() for line in seen(log).splitlines()]
    assert lines == [["step", "accuracy", "time"], ["head", "94.12", "%", "01:23"], ["[tta]", "96.12", "%", "-"]]


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (99.96, "100"), (56.74, "56.7"), (0.12345, "0.123")])
def test_rate(value, text):
    """Golden: three digits, or all of them."""
    assert rate(value) == text
