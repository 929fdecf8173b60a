"""Benchmarks in the terminal: one line a task where there is room, two where there is not."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sample_benchmarks import sample_benchmarks, sample_forgetting, sample_tasks, task

from slayer.reporting.benchmark_table import print_benchmarks, print_forgetting
from slayer.reporting.console import open_console


def printed(results, width=80, function=print_benchmarks):
    stream = io.StringIO()
    function(results, console=Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("members", [3, 12])
def test_every_task_stands_there_with_its_numbers_and_its_verdict(width, members):
    text = printed({"benchmarks": sample_benchmarks(members=members)}, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and "…" not in text
    at = next(place for place, line in enumerate(lines) if line.startswith("hellaswag"))
    entry = " ".join(lines[at : at + 2])
    assert all(part in entry for part in ("0.432", "0.371", "−0.061", "−0.090 to −0.032", "0.001", "200 of 10,042", "acc_norm", "forgotten"))
    assert ("mmlu_anatomy" in text) == (members == 3)


def test_wide_terminals_take_one_line_a_task():
    lines = printed({"benchmarks": sample_benchmarks()}, 160).splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("french_exams", "hellaswag"))] == ["learnt", "forgotten"]
    assert "acc, 0-shot" in printed({"benchmarks": sample_benchmarks()}, 80)


def test_what_was_asked_is_said_below():
    text = " ".join(printed({"benchmarks": sample_benchmarks()}).split())
    assert "drawn with seed 0" in text and "embedded question sets" in text and "Noise floor" in text
    assert "0.270*" in text and "* not better than guessing: arc_challenge (chance 0.250)" in text


def test_without_a_base_only_scores_and_intervals():
    text = printed({"benchmarks": sample_benchmarks(compared=False)})
    assert "0.371" in text and "0.311 to 0.431" in text
    assert not any(word in text for word in ("change", "Holm", "verdict", "Noise"))


def test_a_terminal_without_utf8_gets_ascii_of_the_same_shape():
    class Plain(io.StringIO):
        encoding = "latin-1"

    stream = Plain()
    results = {"benchmarks": sample_benchmarks(members=3), "forgetting": sample_forgetting()}
    print_benchmarks(results, console=open_console(stream))
    print_forgetting(results, console=open_console(stream))
    text = stream.getvalue()
    assert text.isascii() and "?" not in text and max(map(len, text.splitlines())) <= 80


def test_long_names_are_cut_and_numbers_are_not():
    tasks = {"a_task_whose_name_is_longer_than_a_terminal_would_like_it_to_be": task(0.5, 0.4), **sample_tasks()}
    text = printed({"benchmarks": {"tasks": tasks, "groups": {}}})
    assert "a_task_whose" in text and "−0.100" in text and max(map(len, text.splitlines())) <= 80


def test_nothing_is_printed_of_nothing():
    for results in ({}, {"benchmarks": None}, {"benchmarks": {"tasks": {}}}, {"forgetting": {"fg_percent": None, "shift": None}}):
        assert printed(results) == printed(results, function=print_forgetting) == ""
