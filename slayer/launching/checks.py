"""What several keys of evaluate.py make impossible together, and which suite they ask for in the end."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from slayer.config import AnalysisConfig, DataConfig, EvaluationConfig, SuiteConfig, TaskConfig
from slayer.data.benchmarks import benchmark_problems
from slayer.data.reading.sources import source_problems
from slayer.errors import ConfigError, Problem
from slayer.importance.analysis import READS
from slayer.importance.catalogue import CATALOGUE, ONE_PASS
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
    checks = (_check_models, _check_text, _check_tasks, _check_decoding, _check_analysis)
    return [problem for check in checks for problem in check(good)]


def asked_scores(scores: Sequence[str]) -> list[str]:
    """The scores of `scores=[…]` by name: those of one forward pass where none is named; `all` stands for every one."""
    if not scores:
        return list(ONE_PASS)
    return list(CATALOGUE) if "all" in scores else list(dict.fromkeys(scores))


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


def reads_text(score: str, value: str) -> bool:
    """True where a score is measured on a text."""
    needs = CATALOGUE[score].needs
    return needs in ("pass", "gradients", "update") or (needs == "values" and value == "loss")


NOT_OF_LAYERS = ("sequence", "factors", "heldout", "shift_tokens", "tracker", "decoding", "confirm_run_unsafe_code", "backend", "batch_tokens")
"""Keys of scoring that measuring layers does not read."""


def _check_analysis(good: Mapping[str, Any]) -> list[Problem]:
    analysis: AnalysisConfig | None = good.get("analysis")
    if analysis is None:
        return []
    scores: list[str] = good.get("scores") or []
    if analysis.name == "none":
        idle = {f"analysis.{name}": value for name, value in analysis.model_dump(exclude_defaults=True).items()}
        idle |= {"scores": scores} if scores else {}
        why = "is about layers, and no analysis is asked for"
        return [Problem(key=key, value=value, why=why, fix=f"analysis=layers, or leave out {key}") for key, value in idle.items()]
    fields = EvaluationConfig.model_fields
    problems = [
        Problem(key=key, value=_shown(good[key]), why="is not read by analysis=layers", fix=f"leave out {key}")
        for key in NOT_OF_LAYERS
        if key in good and good[key] != fields[key].get_default(call_default_factory=True)
    ]
    if good.get("runs"):
        why = "names several models, and layers are measured of one"
        problems.append(Problem(key="runs", value=good["runs"], why=why, fix=f"checkpoint={good['runs'][0]}"))
    unknown = [score for score in scores if score not in CATALOGUE and score != "all"]
    if unknown:
        near = [(difflib.get_close_matches(score, CATALOGUE, n=1, cutoff=0.4) or ["removal"])[0] for score in unknown]
        meant = list(dict.fromkeys(near[unknown.index(score)] if score in unknown else score for score in scores))
        why = f"there is no score {', '.join(unknown)}; there are {', '.join(CATALOGUE)}, and all"
        return [*problems, Problem(key="scores", value=scores, why=why, fix=as_override("scores", meant))]
    if good.get("base") and "learned_mask" not in asked_scores(scores):
        why = "is what a model was trained from, and only learned_mask asks for it"
        problems.append(Problem(key="base", value=good["base"], why=why, fix="scores=[learned_mask], or leave out base"))
    return problems + _check_values(good, analysis, asked_scores(scores)) + _check_idle(good, analysis, asked_scores(scores))


def _check_values(good: Mapping[str, Any], analysis: AnalysisConfig, scores: Sequence[str]) -> list[Problem]:
    """Loss is of a text, accuracy of a suite."""
    suite: SuiteConfig | None = good.get("suite")
    asks = bool(good.get("tasks")) or (suite is not None and bool(suite.tasks or suite.of_the_text))
    needing = [score for score in scores if CATALOGUE[score].needs == "values"]
    if analysis.value == "loss" and asks:
        key, value = ("tasks", good["tasks"]) if good.get("tasks") else ("suite", suite.name if suite is not None else None)
        why = "asks questions, and analysis.value=loss measures the loss on a text"
        return [Problem(key=key, value=value, why=why, fix=f"analysis.value=accuracy, or leave out {key}")]
    if analysis.value == "accuracy" and not asks:
        why = "needs questions, and no suite or tasks are named"
        return [Problem(key="analysis.value", value="accuracy", why=why, fix="analysis.value=accuracy suite=quick, or tasks=[arc_easy]")]
    if analysis.value == "accuracy" and not needing:
        of_values = [name for name, score in CATALOGUE.items() if score.needs == "values"]
        why = f"none of {', '.join(scores)} is read from the accuracy without a layer; {', '.join(of_values)} are"
        return [Problem(key="analysis.value", value="accuracy", why=why, fix="scores=[removal], or leave out analysis.value")]
    return []


def _check_idle(good: Mapping[str, Any], analysis: AnalysisConfig, scores: Sequence[str]) -> list[Problem]:
    """Settings of scores that are not asked for, and text where none is read."""
    typed = analysis.model_dump(exclude_defaults=True)
    readers = {name: score for score, names in READS.items() for name in (*names, *(["probe_set", "probe_path"] if score == "probe" else []))}
    idle = {f"analysis.{name}": (value, readers[name]) for name, value in typed.items() if name in readers and readers[name] not in scores}
    return _idle_text(good, analysis, scores) + [
        Problem(key=key, value=value, why=f"is only read by {score}, which is not asked for", fix=f"scores=[{score}], or leave out {key}")
        for key, (value, score) in idle.items()
    ]


def _idle_text(good: Mapping[str, Any], analysis: AnalysisConfig, scores: Sequence[str]) -> list[Problem]:
    if any(reads_text(score, analysis.value) for score in scores):
        return []
    typed, suite = analysis.model_dump(exclude_defaults=True), good.get("suite")
    about_text = {f"analysis.{name}": typed[name] for name in ("sources", "sample_tokens") if name in typed}
    if good.get("data") and not (suite and suite.of_the_text):
        about_text["data"] = good["data"].name
    why, fix = "is about text, and no score that is asked for reads any", "scores=[block_influence], or leave out "
    return [Problem(key=key, value=value, why=why, fix=fix + key) for key, value in about_text.items()]


def _shown(value: Any) -> Any:
    return getattr(value, "name", None) if hasattr(value, "model_dump") else value
