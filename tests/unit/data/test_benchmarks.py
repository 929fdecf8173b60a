from __future__ import annotations

from pathlib import Path

import pytest

from slayer.data.assets import ASSETS, fetch
from slayer.data.benchmarks import BENCHMARKS, benchmark_items, benchmark_problems, items_hash, rows
from slayer.data.cleaning.contamination import ContaminationIndex
from slayer.data.words import words_in
from slayer.errors import AssetError, DataError

COUNTS = {
    "arc_easy": 570 + 2_376, "arc_challenge": 299 + 1_172, "sciq": 1_000, "piqa": 1_838, "hellaswag": 10_042, "openbookqa": 500 + 500,
    "boolq": 3_270, "winogrande": 1_267, "commonsense_qa": 1_221, "social_iqa": 1_954, "lambada": 5_153, "mmlu": 285 + 1_531 + 14_042,
    "medmcqa": 4_183, "gsm8k": 1_319, "humaneval": 164, "mbpp": 500,
}  # fmt: skip
"""As the sets are published."""


@pytest.fixture(scope="module", autouse=True)
def questions() -> None:
    """The question sets, in the user's cache."""
    fetch(["benchmarks"])


def test_every_question_is_read_once() -> None:
    assert {name: sum(1 for _ in rows(name)) for name in BENCHMARKS} == COUNTS
    assert len({row["subject"] for row in rows("mmlu")}) == 57


def test_items_hold_the_question_and_no_answer_but_where_it_is_short() -> None:
    first = {name: benchmark_items([name])[0] for name in BENCHMARKS}
    assert first["arc_easy"].text == "Which technology was developed most recently? cellular telephone"
    assert first["openbookqa"].text.endswith("which is why they are known as")
    assert first["boolq"].text == "does ethanol take more energy make that produces"
    assert first["lambada"].text.endswith("I don't care about signs")
    assert [item.text for item in benchmark_items(["winogrande"])[:2]] == [
        "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
        "Sarah was a much better surgeon than Maria so Maria always got the easier cases.",
    ]
    assert "def has_close_elements" in first["humaneval"].text and first["humaneval"].name == "humaneval HumanEval/0"
    history = [item for item in benchmark_items(["mmlu"]) if item.id.startswith("high_school_us_history")]
    assert max(len(words_in(item.text)) for item in history) < 120  # the question, not the page before it


def test_nearly_every_question_can_be_found() -> None:
    items = benchmark_items(["all"])
    index = ContaminationIndex.of(items)
    assert 54_000 < len(index.names) <= len(items)
    assert index.n_undecidable < 0.002 * len(index.names)


def test_names_are_chosen_in_one_order() -> None:
    chosen = benchmark_items(["piqa", "arc_easy"])
    assert [chosen[0].benchmark, chosen[-1].benchmark] == ["arc_easy", "piqa"]
    assert chosen == benchmark_items(["arc_easy", "piqa", "piqa"]) and benchmark_items([]) == ()
    assert items_hash(chosen) != items_hash(chosen[1:]) != items_hash(())


def test_a_wrong_name_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match="there is no benchmark 'arc'"):
        benchmark_items(["arc"])
    (problem,) = benchmark_problems(["mmlu", "helaswag"])
    assert problem.value == "helaswag" and problem.fix == "data.cleaning.decontaminate=[mmlu,hellaswag]"
    assert benchmark_problems(["all"]) == benchmark_problems([]) == []


def test_a_missing_asset_names_the_command_and_the_way_without(own_cache: Path) -> None:
    (problem,) = benchmark_problems(["all"])
    assert problem.fix == "python -m slayer.data.assets fetch benchmarks, or data.cleaning.decontaminate=[]"
    assert ASSETS["benchmarks"].what in problem.why and benchmark_problems([]) == []
    with pytest.raises(AssetError, match="fetch benchmarks"):
        benchmark_items(["piqa"])
