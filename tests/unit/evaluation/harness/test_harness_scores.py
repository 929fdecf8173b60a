"""A model on tasks: remembered by what was asked, taken up again, and without a trace in anybody's random state."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slayer.config import DecodingConfig, SuiteConfig, TaskConfig
from slayer.data.assets import fetch
from slayer.data.cache import cache_dir
from slayer.errors import ModelError
from slayer.evaluation.harness.catalogue import task_manager
from slayer.evaluation.harness.opening import open_lm
from slayer.evaluation.harness.scores import Scoring, score_folder, score_task
from slayer.evaluation.harness.tasks import LoadedTask, load_tasks
from slayer.evaluation.in_loop import InLoopTasks
from slayer.forward import load_model
from slayer.models import load_tokenizer

SCORING = Scoring(precision="fp32", device=torch.device("cpu"), decoding=DecodingConfig())


@pytest.fixture(scope="module")
def tasks() -> list[LoadedTask]:
    fetch(["benchmarks"])
    suite = SuiteConfig(name="trial", tasks={name: TaskConfig(limit=8) for name in ("piqa", "lambada_openai", "gsm8k_bpb")})
    return load_tasks(suite, seed=0, questions="local", include_path=None, confirm_run_unsafe_code=False)


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[LoadedTask]) -> Path:
    """Where scores are kept, in a cache of this test."""
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path / "cache"))
    return cache_dir() / "harness" / "scores"


def values(scores: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    return {task: {name: metric.values_N.tolist() for name, metric in one.metrics.items()} for task, one in scores.items()}


def test_a_task_is_scored_once_and_a_damaged_memory_is_scored_anew(
    tiny_folder: Callable[..., Path], tasks: list[LoadedTask], remembered: Path
) -> None:
    folder, opened = tiny_folder(), []

    def opener(on_progress: Callable[[int, int], None]) -> Any:
        opened.append(1)
        return open_lm(folder, None, SCORING)(on_progress)

    first = score_folder(folder, tasks[:2], SCORING, opener, "tiny")
    whole = score_folder(folder, tasks, SCORING, opener, "tiny")
    assert len(opened) == 2 and list(whole) == ["piqa", "lambada_openai", "gsm8k_bpb"] and len(list(remembered.glob("*.json"))) == 3
    assert values(score_folder(folder, tasks, SCORING, opener, "tiny")) == values(whole) and len(opened) == 2
    assert values(first).items() <= values(whole).items()
    next(remembered.glob("*.json")).write_text('{"task": "piq', encoding="utf-8")
    assert values(score_folder(folder, tasks, SCORING, opener, "tiny")) == values(whole) and len(opened) == 3


def test_another_model_or_other_settings_are_not_the_same(tiny_folder: Callable[..., Path], tasks: list[LoadedTask], remembered: Path) -> None:
    for folder, scoring in ((tiny_folder(), SCORING), (tiny_folder(seed=1), SCORING), (tiny_folder(), replace(SCORING, batch_tokens=64))):
        score_folder(folder, tasks[:1], scoring, open_lm(folder, None, scoring), "tiny")
    assert len(list(remembered.glob("*.json"))) == 3


def test_a_chat_template_that_is_not_there_is_told(tiny_folder: Callable[..., Path], tasks: list[LoadedTask], remembered: Path) -> None:
    folder, scoring = tiny_folder(), replace(SCORING, apply_chat_template=True)
    with pytest.raises(ModelError, match="has no chat template; leave out apply_chat_template"):
        score_folder(folder, tasks[:1], scoring, open_lm(folder, None, scoring), "tiny")


def test_metrics_are_what_the_harness_makes_of_their_items(tiny_folder: Callable[..., Path], tasks: list[LoadedTask]) -> None:
    from slayer.evaluation.harness.lm import SharedPrefixLM

    folder = tiny_folder()
    lm = SharedPrefixLM(load_model(folder, "fp32"), load_tokenizer(folder))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    found = {one.facts.task: score_task(lm, one, SCORING).metrics for one in tasks}
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == before
    accuracy, perplexity, bits = found["piqa"]["acc"], found["lambada_openai"]["perplexity"], found["gsm8k_bpb"]["bits_per_byte"]
    assert accuracy.is_binary and accuracy.value == accuracy.values_N.mean()
    assert not perplexity.higher_is_better and perplexity.value == pytest.approx(np.exp(-perplexity.values_N.mean()))
    assert bits.weights_N is not None and bits.value == pytest.approx(bits.values_N.sum() / bits.weights_N.sum())


def test_in_training_some_of_the_items_are_scored(tiny_folder: Callable[..., Path], tasks: list[LoadedTask], remembered: Path) -> None:
    """On the model itself the same values as those items have in the whole scores."""
    folder = tiny_folder()
    in_loop = InLoopTasks(tasks, 3)
    assert [len(one.indices_N) for one in in_loop.tasks] == [3, 3, 3] and in_loop.left_out == []
    assert all(set(few.indices_N) < set(one.indices_N) for few, one in zip(in_loop.tasks, tasks, strict=True))
    now = in_loop.score(load_model(folder, "fp32"), load_tokenizer(folder), SCORING)
    whole = score_folder(folder, tasks, SCORING, open_lm(folder, None, SCORING), "tiny")
    assert now == pytest.approx(in_loop.part_of(whole), rel=1e-5)


def test_the_catalogue_is_read_once_and_a_persons_task_hides_the_harness_own(tmp_path: Path) -> None:
    first, again = task_manager(), task_manager()
    assert first.all_tasks == again.all_tasks and {"arc_easy", "mmlu", "ai2_arc"} <= set(first.all_tasks)
    assert first.task_index["ai2_arc"].tags == {"arc_easy", "arc_challenge"} and "mmlu" in first.all_groups and "arc_easy" in first.all_subtasks
    mine = tmp_path / "piqa.yaml"
    mine.write_text("task: piqa\ndataset_path: mine\n", encoding="utf-8")
    assert task_manager((tmp_path,)).task_index["piqa"].yaml_path == mine
    assert task_manager().task_index["piqa"].yaml_path.name == "piqa.yaml" != mine
