"""What several keys of evaluate.py make impossible together, and which suite they ask for in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slayer.config import DataConfig, EvaluationConfig, SuiteConfig, TaskConfig
from slayer.data.benchmarks import benchmark_problems
from slayer.data.reading.sources import source_problems
from slayer.errors import ConfigError, Problem
from slayer.launching.commandline import CONF, groups
from slayer.schema import as_override

ABOUT_TASKS = ("num_fewshot", "limit", "include_path", "questions", "apply_chat_template", "confirm_run_unsafe_code", "backend", "batch_tokens")
"""Keys that only benchmark tasks read."""


def named_suite(name: str) -> SuiteConfig:
    """A file of conf/suite."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "suite" / f"{name}.yaml"))
    return SuiteConfig.model_validate(values)


def suite_of(config: EvaluationConfig, data: DataConfig | None) -> SuiteConfig:
    """The suite that is scored: tasks=[…] instead of the suite's own, or those of the suite that the text names. ConfigError where it names none."""
    if config.tasks:
        return SuiteConfig(name="tasks", tasks={name: TaskConfig() for name in config.tasks}, heldout=config.suite.heldout)
    if not config.suite.of_the_text:
        return config.suite
    if data is None or data.suite is None:
        why = "asks about the text's domain, and " + ("there is no text" if data is None else f"the text {data.name} names no suite for it")
        fix = "data=demo, or suite=quick" if data is None else "data.suite=code, or suite=quick"
        raise ConfigError([Problem(key="suite", value=config.suite.name, why=why, fix=fix)])
    return named_suite(data.suite).model_copy(update={"heldout": config.suite.heldout})


def evaluation_problems(good: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the sound sections of a call together; nothing is downloaded and no model is read."""
    checks = (_check_models, _check_text, _check_tasks, _check_decoding)
    return [problem for check in checks for problem in check(good)]


def suite_problems(name: str | None, key: str) -> list[Problem]:
    """A suite named by a text that is not there."""
    known = groups()["suite"]
    if name is None or name in known:
        return []
    return [Problem(key=key, value=name, why=f"there is no such suite; there are {', '.join(known)}", fix=f"{key}=quick")]


def _check_models(good: Mapping[str, Any]) -> list[Problem]:
    checkpoint, runs = good.get("checkpoint"), good.get("runs") or []
    problems = []
    if not checkpoint and not runs and {"checkpoint", "runs"} <= good.keys():
        why = "says what is scored, and is missing: a run folder, a Hugging Face folder, or a name from conf/model"
        problems.append(Problem(key="checkpoint", value=None, why=why, fix="checkpoint=runs/NAME"))
    if checkpoint and runs:
        why = "is one model, and runs names several; only one of the two can be asked for"
        problems.append(Problem(key="checkpoint", value=checkpoint, why=why, fix=as_override("runs", [*runs, checkpoint])))
    if good.get("sequence") and not runs:
        fix = "runs=[runs/FIRST,runs/SECOND] sequence=true"
        problems.append(Problem(key="sequence", value=True, why="is about runs trained one after the other, and runs names none", fix=fix))
    if good.get("factors") and not runs:
        why = "is about many runs, and runs names none"
        problems.append(Problem(key="factors", value=good["factors"], why=why, fix="runs=[runs/sweeps/NAME], or leave out factors"))
    return problems


def _check_text(good: Mapping[str, Any]) -> list[Problem]:
    data: DataConfig | None = good.get("data")
    if data is None:
        return []
    return [*source_problems(data), *benchmark_problems(data.cleaning.decontaminate), *suite_problems(data.suite, "data.suite")]


def _check_tasks(good: Mapping[str, Any]) -> list[Problem]:
    from slayer.evaluation.harness.tasks import task_problems

    suite: SuiteConfig | None = good.get("suite")
    tasks: list[str] = good.get("tasks") or []
    if suite is None:
        return []
    if not suite.tasks and not tasks and not suite.of_the_text:
        fields = EvaluationConfig.model_fields
        idle = [key for key in ABOUT_TASKS if key in good and good[key] != fields[key].get_default(call_default_factory=True)]
        return [
            Problem(key=key, value=good[key], why=f"is about benchmarks, and suite={suite.name} has none", fix=f"suite=quick, or leave out {key}")
            for key in idle
        ]
    asked = SuiteConfig(name="tasks", tasks={name: TaskConfig() for name in tasks}) if tasks else suite
    return task_problems(
        asked, include_path=good.get("include_path"), questions=good.get("questions", "auto"), key="tasks" if tasks else "suite.tasks",
        confirm_run_unsafe_code=good.get("confirm_run_unsafe_code", False),
    )  # fmt: skip


def _check_decoding(good: Mapping[str, Any]) -> list[Problem]:
    decoding, suite = good.get("decoding"), good.get("suite")
    if decoding is None or suite is None:
        return []
    problems = []
    if decoding.name != "task" and not suite.tasks and not good.get("tasks") and not suite.of_the_text:
        why = f"is about benchmarks, and suite={suite.name} has none"
        problems.append(Problem(key="decoding", value=decoding.name, why=why, fix="suite=quick, or leave out decoding"))
    if decoding.name == "dola" and good.get("backend") == "harness":
        why = "scores with lm-eval's own likelihoods, which are not DoLa's"
        problems.append(Problem(key="backend", value="harness", why=why, fix="backend=shared_prefix, or leave out decoding"))
    defaults = type(decoding)()
    readers = {"sampling": ("temperature", "top_p", "top_k"), "dola": ("layers", "half", "alpha", "divergence")}
    for reader, names in readers.items():
        for name in names:
            value = getattr(decoding, name)
            if decoding.name != reader and value != getattr(defaults, name):
                key = f"decoding.{name}"
                fix = f"decoding={reader}, or leave out {key}"
                problems.append(Problem(key=key, value=value, why=f"is only read with decoding={reader}, not {decoding.name}", fix=fix))
    return problems
