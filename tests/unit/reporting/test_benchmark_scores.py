"""Rows of the benchmark table: their order, what is folded, what is told from chance, and what they say in words."""

from __future__ import annotations

import pytest
from sample_benchmarks import sample_benchmarks, sample_forgetting, task
from sample_run import sample_results

from slayer.reporting.benchmark_scores import asked, benchmark_metrics, probability, score, span, task_rows
from slayer.reporting.benchmark_words import (
    chance_sentence,
    forgetting_sentences,
    noise_sentence,
    sampling_sentence,
    source_sentence,
    verdict_sentences,
)


def rows_of(tasks, groups=None, **more):
    return task_rows({"benchmarks": {"tasks": tasks, "groups": groups or {}, **more}})


def test_domain_tasks_come_first_and_members_follow_their_group():
    rows = task_rows({"benchmarks": sample_benchmarks(members=3)})
    assert rows[0].name == "french_exams" and rows[0].role == "domain"
    place = [row.name for row in rows].index("mmlu")
    assert [row.depth for row in rows[place : place + 4]] == [0, 1, 1, 1]


def test_many_members_are_folded_and_the_groups_items_are_added_up():
    group = task_rows({"benchmarks": sample_benchmarks(members=12)})[-1]
    assert (group.name, group.tasks, group.num_fewshot, group.source) == ("mmlu", 12, 5, "wheel")
    assert (group.items, group.available) == (240, sum(100 + place for place in range(12)))


def test_groups_within_groups_are_indented_twice():
    inner = {"mmlu_stem": task(0.3, 0.3), "mmlu": task(0.3, 0.3)}
    rows = rows_of({f"t{place}": task(0.3, 0.3, groups=["mmlu", "mmlu_stem"]) for place in range(2)}, inner)
    assert [(row.name, row.depth) for row in rows] == [("mmlu", 0), ("mmlu_stem", 1), ("t0", 2), ("t1", 2)]


def test_a_group_without_a_row_of_its_own_does_not_hide_its_tasks():
    assert [row.name for row in rows_of({"a": task(0.3, 0.3, groups=["not_there"])})] == ["a"]


@pytest.mark.parametrize(
    "result, bounds, chance, higher, at_chance",
    [
        (0.26, [0.2, 0.32], 0.25, True, True),
        (0.4, [0.34, 0.46], 0.25, True, False),
        (0.1, [0.05, 0.15], 0.25, True, True),  # worse than guessing
        (0.4, [0.34, 0.46], None, True, False),
        (0.9, [0.8, 1.1], 1.0, False, True),
    ],
)
def test_a_result_is_at_chance_unless_its_interval_is_better(result, bounds, chance, higher, at_chance):
    row = rows_of({"a": task(0.5, result, result_interval=bounds, chance=chance, higher_is_better=higher)})[0]
    assert row.at_chance is at_chance
    assert bool(chance_sentence([row])) is at_chance


def test_verdicts_in_words_name_what_changed():
    assert verdict_sentences(task_rows({"benchmarks": sample_benchmarks()})) == [
        "Of 7 general benchmarks 1 got worse (hellaswag 0.432 → 0.371); the other 6 did not change detectably.",
        "The one domain benchmark got better: french_exams 0.312 → 0.402.",
    ]
    assert verdict_sentences(rows_of({"a": task(0.5, 0.49), "b": task(0.5, 0.5)})) == ["Of 2 general benchmarks none changed detectably."]
    assert verdict_sentences(task_rows({"benchmarks": sample_benchmarks(compared=False)})) == []


def test_a_change_without_a_test_is_not_called_no_change():
    row = rows_of({"bleu": task(12.0, 13.0, p=None, p_holm=None, change_interval=None, noise_floor=None)})[0]
    assert row.verdict == "not tested" and verdict_sentences([row]) == []


def test_sub_sampling_is_always_said():
    whole, part = task(0.5, 0.5, items=10, available=10), task(0.5, 0.5, items=10, available=50)
    results = {"benchmarks": {"tasks": {}, "seed": 7}}
    assert "every item of every task" in sampling_sentence(results, rows_of({"a": whole}))
    assert "of every task only some items were asked, drawn with seed 7" in sampling_sentence(results, rows_of({"a": part}))
    assert "of every task but a only" in sampling_sentence(results, rows_of({"a": whole, "b": part}))
    assert (asked(rows_of({"a": whole})[0]), asked(rows_of({"b": part})[0])) == ("all 10", "10 of 50")


def test_the_noise_floor_and_the_source_of_the_questions():
    results = {"benchmarks": {"tasks": {"a": task(0.5, 0.5, half=0.02), "b": task(0.5, 0.5, half=0.1, source="hub")}}}
    assert noise_sentence(task_rows(results)).endswith("0.020 (a) to 0.100 (b).")
    assert source_sentence(results) == "Questions from the embedded question sets (a) and the Hugging Face hub (b)."


def test_forgetting_in_words():
    sentences = forgetting_sentences({"forgetting": sample_forgetting()})
    assert sentences[0].endswith("lost 2.9 % of its base's score over 6 general tasks (95 % interval −0.4 to +6.2 %: not told from zero).")
    assert any("wikipedia_en: 91.4 % of its first choices" in sentence and "7.3 %" in sentence and "1.3 %" in sentence for sentence in sentences)
    assert forgetting_sentences({"forgetting": {"fg_percent": None, "shift": None}}) == forgetting_sentences({}) == []
    assert "gained 1.5 %" in forgetting_sentences({"forgetting": {"fg_percent": -1.5}})[0]


def test_numbers_have_three_decimals_and_no_sign_at_zero():
    assert [score(value) for value in (0.5, 12.3456, 345.678, None)] == ["0.500", "12.35", "345.7", "–"]
    assert score(-0.0001, signed=True) == "0.000" and score(-0.02, signed=True) == "−0.020" and score(0.02, signed=True) == "+0.020"
    assert span((-0.05, 0.01), signed=True) == "−0.050 to +0.010" and span(None) == "–"
    assert [probability(p) for p in (0.0001, 0.034, 1.0, None)] == ["< 0.001", "0.034", "1.000", "–"]


def test_flat_numbers_for_trackers():
    flat = benchmark_metrics({**sample_results(), "benchmarks": sample_benchmarks(), "forgetting": sample_forgetting()})
    assert flat["eval/hellaswag/acc_norm"] == 0.371 and flat["eval/hellaswag/change"] == pytest.approx(-0.061)
    assert flat["eval/mmlu/acc"] == 0.294 and flat["heldout/wikipedia_fr"] == pytest.approx(1.6 * 0.787)
    assert flat["forgetting/wikipedia_en/kl_nats"] == 0.0312 and all(isinstance(value, float) for value in flat.values())
    assert "eval/hellaswag/change" not in benchmark_metrics({"benchmarks": sample_benchmarks(compared=False)})
    assert benchmark_metrics({}) == {}
