"""From composed values to one frozen RunConfig, or to every problem of it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slayer.config import RunConfig
from slayer.data.benchmarks import benchmark_problems
from slayer.data.reading.sources import source_problems
from slayer.errors import ConfigError, Problem
from slayer.launching.checks import named_suite, suite_problems
from slayer.launching.commandline import CONF, groups, tolerant
from slayer.launching.joined import join_problems
from slayer.launching.naming import run_name
from slayer.launching.sbatch import launcher_problems
from slayer.models import model_here, model_problem, resolve_model
from slayer.phases.text import has_work
from slayer.phases.warm_start import unfinished
from slayer.surgery.families import read_model_config
from slayer.surgery.plan import BY_PLACE, plan_problems
from slayer.validation import build_config, check_combinations, parse_config

UNSET_LENGTH_TOKENS = 10_000_000
"""What shares of a run are taken of where its length is not set: a guess, since the text is not counted yet."""


def share_of_tokens(share: float, *, _root_: Any) -> int:
    """What ${share_of_tokens:0.2} means in conf/freeze/staged.yaml: that share of the tokens of the run, as far as its length is set."""

    def number(key: str) -> int | None:
        value = OmegaConf.select(_root_, key)
        return value if isinstance(value, int) and value > 0 else None

    steps, batch_rows, row_tokens = number("train.max_steps"), number("train.batch_rows"), number("data.sequence_length")
    lengths = [number("train.max_tokens"), steps * batch_rows * row_tokens if steps and batch_rows and row_tokens else None]
    return max(round(share * min((length for length in lengths if length), default=UNSET_LENGTH_TOKENS)), 1)


OmegaConf.register_new_resolver("share_of_tokens", share_of_tokens, replace=True)


def resolved(composed: Any) -> tuple[dict[str, Any], list[Problem]]:
    """Plain values of what Hydra composed, and a problem for each ${…} that points nowhere."""
    from omegaconf.errors import OmegaConfBaseException

    problems: list[Problem] = []
    while True:
        try:
            values: Any = OmegaConf.to_container(composed, resolve=True)
            return values, problems
        except OmegaConfBaseException as error:
            key = str(error.full_key).partition("[")[0]
            if any(problem.key == key for problem in problems):
                raise
            why = f"cannot be worked out: {str(error).splitlines()[0]}"
            problems.append(Problem(key=key, value="${…}", why=why, fix=f"leave out {key}"))
            OmegaConf.update(composed, key, None, force_add=True)


def validate(composed: Any, overrides: Sequence[str], problems: Sequence[Problem] = ()) -> RunConfig:
    """The frozen configuration. ConfigError lists every problem: unknown keys, wrong types, impossible combinations, what
    does not fit the model at hand, and text that is not there."""
    values, unresolved = resolved(composed)
    if values.get("run") is None:
        values["run"] = run_name(overrides, list(groups()))
    problems = [*problems, *join_problems(values)]
    good, found = parse_config(values)
    known = {problem.key for problem in (*problems, *unresolved)}
    found = [*problems, *unresolved, *(problem for problem in found if problem.key not in known)]
    found += [problem for problem in check_combinations(good) if problem.key not in known]
    found += launcher_problems(good["launcher"]) if "launcher" in good else []
    if "model" in good and not any(problem.key.startswith("model") for problem in found):
        found += _model_problems(good)
    if "data" in good and not any(problem.key.startswith("data.") for problem in found):
        found += source_problems(good["data"]) + benchmark_problems(good["data"].cleaning.decontaminate)
    if "suite" in good and "data" in good and not any(problem.key.startswith(("suite", "data")) for problem in found):
        found += _suite_problems(good)
    return build_config(good, found + _warm_start_problems(good))


def _warm_start_problems(good: Mapping[str, Any]) -> list[Problem]:
    """Said before text is prepared for minutes. A run that has begun needs the other one no more."""
    other, runs_dir, run = good.get("warm_start"), good.get("runs_dir"), good.get("run")
    if other is None or (isinstance(runs_dir, str) and isinstance(run, str) and has_work(Path(runs_dir) / run)):
        return []
    why = unfinished(Path(other))
    return [Problem(key="warm_start", value=other, why=why, fix="warm_start=runs/NAME, or leave out warm_start")] if why is not None else []


def _suite_problems(good: dict[str, Any]) -> list[Problem]:
    """What is wrong with the benchmarks of a run. suite=domain becomes the suite that the text names."""
    from slayer.evaluation.harness.tasks import task_problems

    suite, data = good["suite"], good["data"]
    found = suite_problems(data.suite, "data.suite")
    if found:
        return found
    if suite.of_the_text:
        if data.suite is None:
            why = f"asks about the text's domain, and the text {data.name} names no suite for it"
            return [Problem(key="suite", value=suite.name, why=why, fix="data.suite=code, or suite=quick")]
        good["suite"] = suite = named_suite(data.suite)
    if not suite.tasks:
        return []
    return task_problems(suite, include_path=None, questions="auto", confirm_run_unsafe_code=False)


def _model_problems(good: Mapping[str, Any]) -> list[Problem]:
    model = good["model"]
    if good.get("dry_run") and model.path is None and (model.hub or model.asset) and model_here(model) is None:
        return _absent_model_problems(good)
    if model.path is None and model.hub is not None:
        return []  # judged when it is here: nothing is downloaded to check a configuration
    problem = model_problem(model)
    if problem is not None:
        return [problem]
    return _plan_problems(good, read_model_config(resolve_model(model))["num_hidden_layers"])


def _absent_model_problems(good: Mapping[str, Any]) -> list[Problem]:
    """What a dry run cannot tell of a model that is not here."""
    model, expansion = good["model"], good.get("expansion")
    if model.shape is None:
        why = f"downloads nothing, {model.name} is not here, and conf/model does not say its sizes (model.shape)"
        return [Problem(key="dry_run", value=True, why=why, fix="dry_run=false")]
    why = f"measures layers, and {model.name} is not here: a dry run downloads nothing"
    problems = _plan_problems(good, model.shape.layers)
    if good.get("prune") and good.get("prune_by") not in (None, *BY_PLACE):
        problems.append(Problem(key="prune_by", value=good["prune_by"], why=why, fix="prune_by=last, or dry_run=false"))
    if expansion is not None and expansion.strategy in ("least_important", "most_important"):
        problems.append(Problem(key="expansion", value=expansion.strategy, why=why, fix="expansion=shallow_half, or dry_run=false"))
    return problems


def _plan_problems(good: Mapping[str, Any], n_base: int) -> list[Problem]:
    expansion, freeze = good.get("expansion"), good.get("freeze")
    return plan_problems(n_base, expansion, freeze, **{key: good.get(key) for key in ("prune", "prune_by", "prune_layers")})


def compose(overrides: Sequence[str]) -> RunConfig:
    """Compose and validate without a command line (tests, other programs)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    accepted, problems = tolerant(overrides, RunConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            composed = hydra_compose("config", overrides=accepted)
        except HydraException as error:
            words = " ".join(overrides)
            raise ConfigError([*problems, Problem(key="overrides", value=words, why=str(error), fix="leave out what it names")]) from error
    return validate(composed, accepted, problems)
