"""What is shown while a model trains."""

from __future__ import annotations

import importlib.util
import io
import re

import pytest
from rich.console import Console

from countvi.train import Progress, progress_callback
from countvi.train.progress import BarProgress, PlainProgress


def test_plain_lines_when_there_is_no_terminal(tiny, capsys):
    model = tiny.train(tiny.make(), 20, enable_progress_bar=True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 10
    for line, epoch in zip(lines, range(2, 21, 2), strict=True):
        elbo = -model.history["elbo_validation"].iloc[epoch - 1]
        assert line.startswith(f"epoch {epoch}/20  ELBO (held-out) {elbo:,.1f}  ")
        assert re.search(r"\d+ s, \d+ s left$", line)


@pytest.mark.parametrize(("epochs", "n_lines"), [(1, 1), (3, 3), (25, 13)])
def test_there_is_always_a_last_line(tiny, capsys, epochs, n_lines):
    tiny.train(tiny.make(), epochs, enable_progress_bar=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == n_lines and lines[-1].startswith(f"epoch {epochs}/{epochs} ")


def test_silence_on_request(tiny, capfd):
    tiny.train(tiny.make(), 3)
    assert capfd.readouterr() == ("", "")
    assert progress_callback(False) == []


def test_without_held_out_cells_the_training_elbo_is_shown(tiny, capsys):
    model = tiny.train(tiny.make(), 1, enable_progress_bar=True, train_size=1.0)
    assert f"ELBO (train) {-model.history['elbo_train'].iloc[-1]:,.1f}" in capsys.readouterr().err


def test_which_one(monkeypatch):
    (plain,) = progress_callback(True)
    assert isinstance(plain, PlainProgress)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    (bar,) = progress_callback(True)
    assert isinstance(bar, BarProgress)


def test_the_bar(tiny):
    text = io.StringIO()
    bar = BarProgress(Console(file=text, force_terminal=True, width=120))
    progress = Progress(model=tiny.make().module, max_epochs=4)
    bar.on_train_start(progress)
    progress.row, progress.epochs_done = {"elbo_validation": 1234.56}, 2
    bar.on_epoch_end(progress)
    bar.on_train_end(progress)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "2/4" in shown and "ELBO (held-out) -1,234.6" in shown


@pytest.mark.parametrize(("installed", "kind"), [(False, PlainProgress), (True, BarProgress)])
def test_a_notebook_has_a_bar_where_that_can_be_shown(monkeypatch, installed, kind):
    """Rich shows nothing of a moving bar in a notebook without ipywidgets."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    known = importlib.util.find_spec
    widgets = object() if installed else None
    monkeypatch.setattr(
        "countvi.train.progress.find_spec", lambda name: widgets if name == "ipywidgets" else known(name)
    )
    assert [type(one) for one in progress_callback(True)] == [kind]
