"""One model on the tasks of a suite. What a finished task gave is remembered, so a call that was killed goes on with the next one."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slayer.config import DecodingConfig
from slayer.data.cache import cache_dir, one_at_a_time, write_file
from slayer.data.storing.tokens import tokenizer_hash
from slayer.errors import ModelError
from slayer.evaluation.harness.tasks import LoadedTask
from slayer.evaluation.items import MetricItems, TaskScores
from slayer.models import load_tokenizer, model_hash_cached

FORMAT = 1
"""Raised when the same model on the same task is remembered in another form, or scored by another rule."""

FEWSHOT_SEED, PYTHON_SEED, NUMPY_SEED, TORCH_SEED = 1234, 0, 1234, 1234
"""lm-eval's own (simple_evaluate): the same examples in the prompt, the same draws."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How a model answers; the same for every model that is compared."""

    precision: str
    device: Any
    backend: str = "shared_prefix"
    batch_tokens: int | None = None
    decoding: DecodingConfig
    apply_chat_template: bool = False
    confirm_run_unsafe_code: bool = False


OpenModel = Callable[[Callable[[int, int], None]], Any]
"""Makes lm-eval's model object around the model at hand; called once, and only if a task has to be scored. It tells its progress."""


def score_folder(
    folder: Path, tasks: Sequence[LoadedTask], scoring: Scoring, open_lm: OpenModel, label: str, on_progress: Progress | None = None
) -> dict[str, TaskScores]:
    """A model folder on every task, from the cache where this very model met this very task before.

    ModelError for a chat template that the tokenizer does not have; DataError as it comes.
    """
    tokenizer = load_tokenizer(folder)
    template = tokenizer.chat_template if scoring.apply_chat_template else None
    if scoring.apply_chat_template and template is None:
        raise ModelError(f"the tokenizer of {folder} has no chat template; leave out apply_chat_template")
    model_key = [FORMAT, model_hash_cached(folder), tokenizer_hash(tokenizer), str(template), str(scoring)]
    files = {one.facts.task: _remembered(model_key, one) for one in tasks}
    scores = {name: found for name, file in files.items() if (found := _read(file)) is not None}
    missing = [one for one in tasks if one.facts.task not in scores]
    lm, done, total = None, len(scores), len(tasks)
    for one in missing:
        name = one.facts.task

        def tell(requests: int, of: int, name: str = name, done: int = done) -> None:
            if on_progress is not None:
                on_progress(f"{label}: {name} ({done + 1} of {total})", requests, of)

        with one_at_a_time(files[name].with_suffix(".lock"), waiting=partial(tell, 0, 1)):
            found_meanwhile = _read(files[name])  # by another process that wanted the same
            if found_meanwhile is None:
                lm = lm if lm is not None else open_lm(tell)
                lm.on_progress = tell
                found_meanwhile = score_task(lm, one, scoring)
                write_file(files[name], json.dumps(_as_json(found_meanwhile)).encode(), durable=True)
        scores[name] = found_meanwhile
        done += 1
    return {one.facts.task: scores[one.facts.task] for one in tasks}


def score_task(lm: Any, loaded: LoadedTask, scoring: Scoring) -> TaskScores:
    """One of lm-eval's model objects on one task. Random states are as they were afterwards: training may go on."""
    from lm_eval.evaluator import evaluate

    name, task = loaded.facts.task, loaded.task
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    generation = _generation(scoring.decoding)
    if loaded.facts.generates and generation:
        task.set_config(key="generation_kwargs", value=generation, update=True)
    started = time.perf_counter()
    with _harness_seeds(), _quiet():
        found = evaluate(
            lm, {"tasks": {name: task}}, samples={name: loaded.indices_N.tolist()}, bootstrap_iters=0, log_samples=True,
            apply_chat_template=scoring.apply_chat_template, confirm_run_unsafe_code=scoring.confirm_run_unsafe_code,
        )  # fmt: skip
    return _scores(loaded, found, time.perf_counter() - started)


def _generation(decoding: DecodingConfig) -> dict[str, Any]:
    """What is asked of `generate` beyond the task's own settings."""
    if decoding.name == "greedy":
        return {"do_sample": False, "temperature": 0.0}
    if decoding.name == "sampling":
        top_k = {} if decoding.top_k is None else {"top_k": decoding.top_k}
        return {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, **top_k}
    return {}


def _scores(loaded: LoadedTask, found: Mapping[str, Any], seconds: float) -> TaskScores:
    name, task = loaded.facts.task, loaded.task
    samples, values = found["samples"][name], found["results"][name]
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    position = {int(item): place for place, item in enumerate(loaded.indices_N)}
    metrics: dict[str, MetricItems] = {}
    for filter_name in filters:
        mine = sorted((sample for sample in samples if sample["filter"] == filter_name), key=lambda sample: position[sample["doc_id"]])
        for metric in mine[0]["metrics"]:
            key = metric if len(filters) == 1 else f"{metric},{filter_name}"
            metrics[key] = _metric(key, metric, [sample[metric] for sample in mine], values[f"{metric},{filter_name}"], task)
    answers = tuple(str(sample["resps"][0][0]) for sample in mine) if loaded.facts.generates else ()
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(sample["arguments"], default=str).encode())
    return TaskScores(task=name, items=loaded.indices_N, prompts=digest.hexdigest(), metrics=metrics, seconds=seconds, answers=answers)


def _metric(key: str, metric: str, items: Sequence[Any], value: float, task: Any) -> MetricItems:
    """A metric of a task by what its aggregation (a function of lm-eval) makes of the items."""
    aggregation = getattr(task.aggregation().get(metric), "__name__", "")
    better = bool(task.higher_is_better().get(metric, True))
    common: dict[str, Any] = {"name": key, "value": float(value), "higher_is_better": better}
    if aggregation == "bits_per_byte":
        nats, n_bytes = np.array(items, dtype=np.float64).T
        return MetricItems(**common, aggregation="ratio", values_N=-nats / np.log(2), weights_N=n_bytes)
    if all(isinstance(item, (bool, int, float, np.number)) for item in items) and aggregation in ("mean", "perplexity"):
        return MetricItems(**common, aggregation="perplexity" if aggregation == "perplexity" else "mean", values_N=np.array(items, dtype=np.float64))
    return MetricItems(**common, aggregation="corpus", values_N=np.full(len(items), np.nan))


def _remembered(model_key: Sequence[Any], loaded: LoadedTask) -> Path:
    key = hashlib.sha256(json.dumps([*model_key, loaded.fingerprint, loaded.indices_N.tolist()], default=str).encode()).hexdigest()
    return cache_dir() / "harness" / "scores" / f"{key}.json"


def _as_json(scores: TaskScores) -> dict[str, Any]:
    metrics = {
        key: {
            "value": one.value, "higher_is_better": one.higher_is_better, "aggregation": one.aggregation,
            "values": one.values_N.tolist() if one.aggregation != "corpus" else None,
            "weights": one.weights_N.tolist() if one.weights_N is not None else None,
        }
        for key, one in scores.metrics.items()
    }  # fmt: skip
    return {
        "task": scores.task, "items": scores.items.tolist(), "prompts": scores.prompts, "seconds": scores.seconds,
        "answers": list(scores.answers), "metrics": metrics,
    }  # fmt: skip


def _read(file: Path) -> TaskScores | None:
    """What was remembered; None when there is nothing or it cannot be read."""
    try:
        stored = json.loads(file.read_bytes())
        n_items = len(stored["items"])
        metrics = {
            key: MetricItems(
                name=key, value=one["value"], higher_is_better=one["higher_is_better"], aggregation=one["aggregation"],
                values_N=np.array(one["values"], dtype=np.float64) if one["values"] is not None else np.full(n_items, np.nan),
                weights_N=np.array(one["weights"], dtype=np.float64) if one["weights"] is not None else None,
            )
            for key, one in stored["metrics"].items()
        }  # fmt: skip
        items = np.array(stored["items"], dtype=np.int64)
        return TaskScores(
            task=stored["task"], items=items, prompts=stored["prompts"], metrics=metrics, seconds=stored["seconds"], answers=tuple(stored["answers"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _harness_seeds() -> Iterator[None]:
    """lm-eval's seeds inside, the states of before afterwards."""
    import random

    import torch

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(PYTHON_SEED)
        np.random.seed(NUMPY_SEED)
        torch.manual_seed(TORCH_SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """No chatter of the harness between our own lines, and no progress bars but ours."""
    import lm_eval.api.task as harness_task

    logger, bar = logging.getLogger("lm_eval"), harness_task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    harness_task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        harness_task.tqdm = bar
