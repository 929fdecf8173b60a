"""Progress: a line now and then in a pipe, a bar on a terminal, never an end without the last step."""

from __future__ import annotations

import io

from rich.console import Console
from sample_run import sample_records

from slayer.reporting.console import open_console
from slayer.reporting.progress import TrainingProgress, progress_bar

RECORDS = sample_records(40)


def test_a_pipe_gets_the_first_and_the_last_line():
    stream = io.StringIO()
    with TrainingProgress(open_console(stream), every_seconds=1000) as progress:
        for record in RECORDS:
            progress.update(record)
    steps = [line for line in stream.getvalue().splitlines() if "loss" in line]
    assert [line.split(" · ")[0] for line in steps] == ["step  1/40", "step 40/40"]
    assert "512 tok/s" in steps[0] and "2:32 left" in steps[0], "39 steps of 3.9 s are left after the first"
    assert stream.getvalue().count("held-out bits per byte") == 5


def test_a_pipe_gets_every_line_without_a_pause():
    stream = io.StringIO()
    with TrainingProgress(open_console(stream), every_seconds=0) as progress:
        for record in RECORDS:
            progress.update(record)
    assert stream.getvalue().count("loss") == 40


def test_a_terminal_gets_a_bar_with_everything_on_it():
    stream = io.StringIO()
    with TrainingProgress(Console(file=stream, force_terminal=True, width=100)) as progress:
        for record in RECORDS:
            progress.update(record)
    text = stream.getvalue()
    assert "40/40" in text and "tok/s" in text and "left" in text


def test_records_without_speed_or_steps_are_shown_too():
    for console in (open_console(io.StringIO()), Console(file=io.StringIO(), force_terminal=True)):
        with TrainingProgress(console) as progress:
            progress.update({"step": 1, "loss": float("nan")})
            progress.update({"step": 2})


def test_counts_are_told_once_in_a_pipe_and_drawn_on_a_terminal():
    pipe, terminal = io.StringIO(), io.StringIO()
    for console in (open_console(pipe), Console(file=terminal, force_terminal=True, width=100)):
        with progress_bar("tokenising", console) as tell:
            for done in range(0, 101, 10):
                tell("wikipedia_fr", done, 100)
    assert pipe.getvalue() == "tokenising · wikipedia_fr: 100\n"
    assert "100/100" in terminal.getvalue()
