"""From the command line to one frozen RunConfig, or to every problem of it at once.

Hydra stops at the first key it does not know. So keys are passed to it as `++key=value`, which it always takes, and the typed
schema judges them afterwards together with everything else; names of group files are judged here, before Hydra sees them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slayer.config import RunConfig
from slayer.data.sources import source_problems
from slayer.errors import Problem
from slayer.launching.naming import run_name, split_override
from slayer.models import model_problem, resolve_model
from slayer.surgery.families import read_model_config
from slayer.surgery.plan import plan_problems
from slayer.validation import build_config, check_combinations, parse_config

CONF = Path(__file__).resolve().parents[2] / "conf"


def groups(conf: Path = CONF) -> dict[str, list[str]]:
    """Config groups and their options."""
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in sorted(conf.iterdir()) if folder.is_dir()}


def is_override(argument: str) -> bool:
    """True for `key=value` words of a command line."""
    return "=" in argument and not argument.startswith("-")


def tolerant(arguments: Sequence[str], conf: Path = CONF) -> tuple[list[str], list[Problem]]:
    """The command line as Hydra will accept it, and the problems of what had to be left out."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    options = groups(conf)
    accepted: list[str] = []
    problems: list[Problem] = []
    for argument in arguments:
        if not is_override(argument) or argument.lstrip("+~").startswith("hydra"):
            accepted.append(argument)
            continue
        key, value = split_override(argument)
        try:
            parsed = OverridesParser.create().parse_override(argument)
        except HydraException as error:
            why = f"cannot be read: {str(error).splitlines()[0]}"
            problems.append(Problem(key=key, value=value, why=why, fix=f"'{key}=\"{value}\"'"))
            continue
        if key in options:
            names = [str(item) for item in parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [value]
            unknown = [name for name in names if name not in options[key] and name != "null"]
            problems += [_unknown_option(key, name, options[key]) for name in unknown]
            if not unknown:
                accepted.append(argument)
        else:
            accepted.append(argument if argument[0] in "+~" else f"++{argument}")
    return accepted, problems


def _unknown_option(key: str, name: str, options: Sequence[str]) -> Problem:
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.0)
    return Problem(key=key, value=name, why=f"there is no such choice; there are {', '.join(options)}", fix=f"{key}={close[0]}")


def validate(values: Mapping[str, Any], overrides: Sequence[str], problems: Sequence[Problem] = ()) -> RunConfig:
    """The frozen configuration. ConfigError lists every problem: unknown keys, wrong types, impossible combinations, what
    does not fit the model at hand, and text that is not there."""
    values = dict(values)
    if values.get("run") is None:
        values["run"] = run_name(overrides, list(groups()))
    good, found = parse_config(values)
    found = [*problems, *found, *check_combinations(good), *_model_problems(good)]
    if "data" in good and not any(problem.key.startswith("data") for problem in found):
        found += source_problems(good["data"])
    return build_config(good, found)


def _model_problems(good: Mapping[str, Any]) -> list[Problem]:
    model = good.get("model")
    if model is None or not (model.path or model.asset or model.random):
        return []
    error = model_problem(model)
    if error is not None:
        key = "model.path" if model.path else "model"
        return [Problem(key=key, value=model.path or model.name, why=str(error), fix="model=local model.path=DIR")]
    n_base = read_model_config(resolve_model(model))["num_hidden_layers"]
    return plan_problems(
        n_base,
        good.get("expansion"),
        good.get("freeze"),
        prune=good.get("prune"),
        prune_by=good.get("prune_by"),
        prune_layers=good.get("prune_layers"),
    )


def compose(overrides: Sequence[str]) -> RunConfig:
    """Compose and validate without a command line (tests, other programs)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    accepted, problems = tolerant(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra_compose("config", overrides=accepted)
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return validate(values, overrides, problems)


def under_torchrun() -> bool:
    """True when a launcher has already made this process one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
