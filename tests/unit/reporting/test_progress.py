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
    assert "100/100" in terminal.getvalue() and "elapsed" in terminal.getvalue()


def test_a_long_count_tells_how_it_goes_in_a_pipe():
    stream = io.StringIO()
    with progress_bar("text", open_console(stream), every_seconds=0) as tell:
        for done in (20_000, 30_000, 50_000, 50_000):
            tell("tokenising [fr]", done, 50_000)
    first, second, last = stream.getvalue().splitlines()
    assert first == "text · tokenising [fr]: 20,000/50,000 · 0:00 elapsed, ? left", "what was there before says nothing about the speed"
    assert second == "text · tokenising [fr]: 30,000/50,000 · 0:00 elapsed, 0:00 left" and last == "text · tokenising [fr]: 50,000"


def test_remaining_time_is_that_of_the_part_made_here(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("slayer.reporting.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress_bar("text", open_console(stream)) as tell:
        for seconds, done in ((0, 40), (10, 45), (20, 50), (29, 53), (40, 60), (90, 100)):
            now[0] = 100.0 + seconds
            tell("reading", done, 100)
    assert stream.getvalue().splitlines() == [
        "text · reading: 50/100 · 0:20 elapsed, 1:40 left", "text · reading: 60/100 · 0:40 elapsed, 1:20 left", "text · reading: 100 in 1 min 30 s",
    ]  # fmt: skip


def test_a_label_that_starts_over_is_counted_anew():
    stream = io.StringIO()
    with progress_bar("text", open_console(stream)) as tell:
        for done, total in ((10, 10), (0, 20), (20, 20), (20, 20)):
            tell("fr", done, total)
    assert stream.getvalue().splitlines() == ["text · fr: 10", "text · fr: 20"]


def test_labels_are_not_markup_and_counts_may_have_no_end():
    stream = io.StringIO()
    with progress_bar("text", Console(file=stream, force_terminal=True, width=100)) as tell:
        tell("[fr]", 1_234_567, 0)
        tell("[fr]", 2_345_678, 0)
    assert "[fr]" in stream.getvalue() and "2,345,678" in stream.getvalue() and "left" not in stream.getvalue()
