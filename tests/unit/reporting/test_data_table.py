"""The text on the terminal: at most 80 columns, warnings stand out, whatever is missing is a dash or no line."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sample_run import sample_facts

from slayer.reporting.console import open_console
from slayer.reporting.data_table import BARS, print_data, print_inspection, sparkline


class NamedStream(io.StringIO):
    encoding = "ascii"  # type: ignore[assignment]


def printed(show, *arguments, **options) -> str:
    stream = io.StringIO()
    show(*arguments, console=open_console(stream), **options)
    return stream.getvalue()


def test_the_table_says_what_a_run_reads(tmp_path):
    report = tmp_path / ("long" * 30) / "data_report.html"
    text = printed(print_data, sample_facts(), report=report)
    lines = [line for line in text.splitlines() if str(report) not in line]
    assert max(map(len, lines)) <= 80 and str(report) in text, "a path is copied from the terminal: never wrapped"
    french, best, web = (next(line.split() for line in lines if line.startswith(name)) for name in ("wikipedia_fr", "best_of_it", "web"))
    assert french == ["wikipedia_fr", "domain", "9,258", "103", "498", "1.42", "M", "100.0", "%", "75.0", "%", "0.06"]
    assert best[2:4] == ["112", "0"] and web[2:6] == ["streamed", "–", "–", "–"]
    plain = " ".join(text.split())
    assert "cleaning removed 103 of 10,075 documents (1.02 %): 100 near-duplicates, 3 contaminated (arc_easy)" in plain
    assert "put aside 1 of 121 records of best_of_it could not be read; the first: part-1.jsonl, record 17 (is not JSON)" in plain
    assert "warning best_of_it is read 5.4 times" in plain


def test_warnings_and_too_many_epochs_are_yellow():
    stream = io.StringIO()
    print_data(sample_facts(), console=Console(file=stream, force_terminal=True, width=100))
    yellow = [line for line in stream.getvalue().splitlines() if "\x1b[1;33m" in line or "\x1b[33m" in line]
    assert "\x1b[1;33m  5.40\x1b[0m" in "\n".join(yellow) or any("5.40" in line and "\x1b[1;33m" in line for line in yellow)
    assert any("5.4 times" in line for line in yellow) and not any("wikipedia_fr" in line and "0.06" in line for line in yellow)


@pytest.mark.parametrize("facts", [{}, {"sources": [{"name": "x"}]}, {"sources": [{"name": "x", "role": "domain", "streamed": True}], "removed": []}])
def test_what_is_missing_is_a_dash(facts):
    text = printed(print_data, facts) + printed(print_inspection, facts)
    assert ("–" in text) is bool(facts) and ", row" not in text and "Stages" not in text and "warning" not in text


def test_the_inspection_shows_stages_lengths_and_a_row_of_each_source():
    facts = sample_facts()
    facts["samples"].append({**facts["samples"][0], "row": 99})
    facts["samples"][0]["pieces"][0]["text"] = "[bold]" + "many words " * 500
    text = printed(print_inspection, facts)
    assert max(map(len, text.splitlines())) <= 80
    assert "70.0 %" in text and "32 to 64" in text and "≤ 4,096" in text
    assert text.count("wikipedia_fr, row") == 1 and "[bold]many words" in text and "[…]" in text, "text is shown as it is, its middle left out"
    assert text.count("▏") == 2 and "Le Rhône est un fleuve …" in text and "… se jette dans la Méditerranée. ■" in text
    assert "padding, 6 places" in text


def test_a_terminal_without_utf8_gets_ascii():
    stream = NamedStream()
    facts = sample_facts()
    facts["samples"][0]["pieces"] = [{"text": "plain", "document": "x", "starts": True, "ends": True, "tokens": 3}]
    print_data(facts, console=open_console(stream))
    print_inspection(facts, console=open_console(stream))
    assert stream.getvalue().isascii() and "?" not in stream.getvalue()


@given(st.lists(st.integers(0, 10**9), max_size=80))
def test_a_sparkline_hides_nothing(counts):
    bars = sparkline(counts)
    assert len(bars) <= 30 and set(bars) <= set(BARS)
    if len(counts) <= 30:
        assert [bar == " " for bar in bars] == [number == 0 for number in counts]
        order = sorted(range(len(counts)), key=counts.__getitem__)
        heights = [BARS.index(bars[place]) for place in order]
        assert heights == sorted(heights) and (not any(counts) or heights[-1] == len(BARS) - 1)
