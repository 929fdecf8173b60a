"""The terminal: complete, at most 80 columns wide, plain in a pipe, ASCII where UTF-8 is not spoken."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from sample_run import sample_plan, sample_results, staged_plan

from slayer.config import FreezeConfig
from slayer.errors import ConfigError, Problem
from slayer.reporting.console import (
    MOST_ROWS,
    open_console,
    print_error,
    print_finished,
    print_next,
    print_plan,
    print_proof,
    print_results,
)


class NamedStream(io.StringIO):
    encoding = "ascii"  # type: ignore[assignment]


def printed(show, *arguments, **options) -> str:
    stream = io.StringIO()
    show(*arguments, console=open_console(stream), **options)
    return stream.getvalue()


def test_a_plan_shows_each_layer_once_with_its_fate():
    text = printed(print_plan, sample_plan(), block_parameters=3_540_000, other_parameters=28_300_000)
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    for index in range(35):
        assert len(re.findall(rf"^ *{index}  [░█]", text, re.MULTILINE)) == 1, index
    assert text.count("NEW") == text.count("● trained") == 7
    assert text.count("pruned ") == 3 and re.search(r"××××\s+16\s+pruned", text)
    assert "30 − 2 pruned + 7 new = 35" in text
    assert "24.8 M of 152 M (16.3 %)" in text


@pytest.mark.parametrize("n_base", [32, 48, 80])
def test_a_long_plan_is_folded_but_hides_no_change(n_base):
    plan = sample_plan(n_base=n_base, prune_by="last", prune_scores=None)
    text = printed(print_plan, plan, block_parameters=1_000_000, other_parameters=1)
    assert text.count("NEW") == len(plan.new_indices) and "kept ×" in text
    assert len(text.splitlines()) <= max(MOST_ROWS, 2 * len(plan.new_indices) + 4) + 12
    assert max(map(len, text.splitlines())) <= 80


def test_full_fine_tuning_trains_what_is_outside_the_layers_too():
    text = printed(print_plan, sample_plan(freeze=FreezeConfig(schedule="none")), block_parameters=1_000, other_parameters=50)
    assert "head ● trained" in text and "(100.0 %) · everything" in text and "❄" not in text


def test_a_staged_plan_says_when_what_trains():
    text = printed(
        print_plan, staged_plan(), block_parameters=3_540_000, other_parameters=28_300_000, stage_parameters=[24_780_000, 28_350_000, 31_890_000]
    )
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("● 1–3") == 7 and text.count("◐ 2–3") == 26 and re.search(r"^ *33  ░{6} +26  kept +◐ 2 ● 3", text, re.MULTILINE)
    assert "outside the layers: final norm ● 2–3; the rest ❄ frozen" in text
    plain = " ".join(text.split())
    for piece in (
        "stage 1 until 20,480 tokens: new ● 24.8 M of 152 M (16.3 %) · 7 of 35 layers",
        "stage 2 until 45,056 tokens: new, tail × 0.5, norms × 0.5 ● 28.4 M of 152 M (18.6 %) · 8 of 35 layers and the norms of 27",
        "stage 3 to the end: new, tail × 0.5, norms × 0.5, originals[-4:] × 0.1 ● 31.9 M of 152 M",
    ):
        assert piece in plain, piece
    assert " trained" not in text, "no one number says what trains"


def test_a_terminal_without_utf8_gets_ascii_of_the_same_shape():
    ascii_stream = NamedStream()
    print_plan(sample_plan(), block_parameters=1_000, other_parameters=50, console=open_console(ascii_stream))
    print_plan(staged_plan(), block_parameters=1_000, other_parameters=50, stage_parameters=[1, 2, 3], console=open_console(ascii_stream))
    print_results(sample_results(), console=open_console(ascii_stream))
    text = ascii_stream.getvalue()
    assert text.isascii() and "######" in text and "?" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_scores_stand_beside_each_other_with_verdicts():
    text = printed(print_results, sample_results())
    french, english = text.index("wikipedia_fr"), text.index("wikipedia_en")
    assert french < english, "what is to be learnt comes first"
    assert "−21.3 %" in text and "−22.2 to −20.5" in text and "▼ learnt" in text
    assert max(map(len, text.splitlines())) <= 80


def test_missing_scores_are_dashes():
    assert printed(print_results, {}) == ""
    assert "–" in printed(print_results, {"heldout": {"x": {"role": "domain", "base": 1.5}}})


def test_an_error_is_printed_word_for_word():
    problem = Problem(key="prune", value=40, why="the model has [30] layers", fix="prune=2")
    text = printed(print_error, ConfigError([problem]))
    assert "prune = 40: the model has [30] layers\n     type: prune=2" in text and text.startswith("✖ 1 problem")


def test_commands_are_never_wrapped(tmp_path):
    command = "python evaluate.py checkpoint=" + "long/" * 40
    assert command in printed(print_next, [(command, "score it")])
    assert str(tmp_path) in printed(print_finished, tmp_path)


def test_the_proof_says_zero_exactly():
    text = " ".join(printed(print_proof, sample_results()["proof"]).split())
    assert "0 exactly" in text and "2.79 → 3.02 nats per token (+0.23)" in text
    assert printed(print_proof, {}) == ""


def test_colours_only_on_a_terminal():
    stream = io.StringIO()
    print_plan(sample_plan(), block_parameters=1, other_parameters=1, console=Console(file=stream, force_terminal=True, width=80))
    assert "\x1b[" in stream.getvalue()
