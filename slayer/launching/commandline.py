"""The words of a command line as Hydra will accept them, and what is wrong with the others.

Hydra stops at the first key it does not know and at the first word it cannot read. So both are judged here, before it sees them;
what is left is passed on as `++key=value`, which Hydra always takes, for the typed schema to judge together with everything else.
Words that name code or hold a secret (refusals) never reach it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from slayer.config import RunConfig
from slayer.errors import Problem
from slayer.launching.naming import split_override
from slayer.launching.refusals import is_hydras, option_problem, word_problem
from slayer.launching.spaces import interval_problem
from slayer.schema import accepts, as_override, example_for, field_at, holds_list, holds_text, inner_section
from slayer.stages import KEY as STAGES_KEY
from slayer.stages import as_hydra_reads_it
from slayer.validation import not_a_group, unknown_key

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIONS_WITH_A_VALUE = {
    "-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "--experimental-rerun",
}  # fmt: skip
PRINTING = ("-c", "--cfg", "-i", "--info")
"""Options that make Hydra print instead of run."""


def groups(conf: Path = CONF) -> dict[str, list[str]]:
    """Config groups and their options."""
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in sorted(conf.iterdir()) if folder.is_dir()}


def is_override(argument: str) -> bool:
    """True for `key=value` words of a command line."""
    return "=" in argument and not argument.startswith("-")


def only_prints(arguments: Sequence[str]) -> bool:
    """True when Hydra is asked to show the configuration and not to run."""
    return any(argument.partition("=")[0] in PRINTING for argument in arguments)


def is_sweep(arguments: Sequence[str]) -> bool:
    """True when several values per key are welcome."""
    return bool({"-m", "--multirun"} & set(arguments))


def is_search(arguments: Sequence[str]) -> bool:
    """True when the points of a sweep are chosen by what the ones before came to."""
    return any(split_override(word) == ("hydra/sweeper", "optuna") for word in arguments)


def tolerant(arguments: Sequence[str], schema: type[BaseModel], conf: Path = CONF) -> tuple[list[str], list[Problem]]:
    """The command line as Hydra will accept it, and the problems of what had to be left out. Of a key typed twice the last counts."""
    options = {group: names for group, names in groups(conf).items() if group in schema.model_fields or (group, schema) == ("experiment", RunConfig)}
    sweep, searches = is_sweep(arguments), is_sweep(arguments) and is_search(arguments)
    kept: list[str] = []
    accepted: dict[str, str] = {}
    problems: list[Problem] = []
    words = iter(arguments)
    for word in words:
        if word.startswith("-"):
            option, attached, value = word.partition("=")
            read = [word, *([value] if not attached and option in OPTIONS_WITH_A_VALUE and (value := next(words, "")) else [])]
            refused = option_problem(option, value or None)
            kept += [] if refused else read
            problems += [refused] if refused else []
            continue
        refused = word_problem(word)
        if refused is not None:
            problems.append(refused)
            continue
        if is_hydras(word):
            kept.append(word)
            continue
        key = split_override(word)[0]
        judged = _judge_choice(word, options[key], field_at(key, schema), sweep) if key in options else _judge_value(word, schema, sweep, searches)
        if isinstance(judged, Problem):
            problems.append(judged)
            continue
        accepted.pop(key, None)
        if judged is not None:
            accepted[key] = judged
    return [*kept, *accepted.values()], problems


def _judge_choice(word: str, options: Sequence[str], field: FieldInfo | None, sweep: bool) -> str | Problem | None:
    """`group=choice` as it is passed on, why it cannot be, or None where no choice is asked for and none is needed."""
    key, value = split_override(word)
    if word.startswith("~") or value == "null":
        if field is None or accepts(field, None):
            return None
        return Problem(key=key, value=None, why=f"cannot be taken away; there are {', '.join(options)}", fix=f"leave out {key}")
    parsed = _parse(key, value)
    names = [value] if isinstance(parsed, str) or not parsed.is_sweep_override() else _swept(parsed, options)
    unknown = [name for name in names if name.strip("'\"") not in options]
    if unknown or not names:
        seen = unknown[0] if unknown else value
        close = difflib.get_close_matches(seen, options, n=1, cutoff=0.0)
        return Problem(key=key, value=seen, why=f"there is no such choice; there are {', '.join(options)}", fix=f"{key}={close[0]}")
    return f"{key}={value}" if len(names) == 1 or sweep else _needs_sweep(key, value, names)


def _judge_value(word: str, schema: type[BaseModel], sweep: bool, searches: bool) -> str | Problem:
    """`key=value` as it is passed on, or why it cannot be."""
    key, value = split_override(word)
    value = as_hydra_reads_it(value) if key == STAGES_KEY else value
    field = field_at(key, schema)
    if word.startswith("~"):
        if field is not None and key.startswith("data.sources.") and key.count(".") == 2:
            return word
        return Problem(key=key, value=None, why="cannot be taken away, only sources of text can", fix=f"leave out {key}")
    if "=" not in word or not key:
        fix = as_override(key, example_for(field)) if field is not None and inner_section(field) is None else f"leave out {word}"
        return Problem(key=word, value=None, why="is not of the form KEY=VALUE", fix=fix)
    parsed = _parse(key, value)
    if field is None:
        return unknown_key(key, value if isinstance(parsed, str) or parsed.is_sweep_override() else parsed.value(), schema)
    if isinstance(parsed, str):
        if holds_text(field):
            return _as_text(key, value)
        return Problem(key=key, value=value, why=f"cannot be read: {parsed}", fix=as_override(key, example_for(field, value)))
    if parsed.is_sweep_override():
        if holds_text(field) and not sweep:
            return _as_text(key, value)
        if parsed.is_interval_sweep():
            return interval_problem(key, value, field, searches=searches) or f"++{key}={value}"
        names = _swept(parsed)
        if not names:
            return Problem(key=key, value=value, why="gives no value at all", fix=as_override(key, example_for(field)))
        if not sweep:
            return _needs_sweep(key, value, names)
        return _lists_problem(key, value, names, field) or f"++{key}={value}"
    plain, inner = parsed.value(), inner_section(field)
    if sweep and isinstance(plain, list) and plain and not accepts(field, plain) and all(accepts(field, item) for item in plain):
        why = "is one value, a list of lists; the values of a sweep stand side by side"
        return Problem(key=key, value=value, why=why, fix=as_override(key, plain)[:-1].replace("=[", "=", 1))
    if inner is not None and not isinstance(plain, dict):
        return not_a_group(key, value, inner[0])
    return _as_text(key, value) if holds_text(field) and isinstance(plain, (bool, int, float)) else f"++{key}={value}"


def _swept(parsed: Any, options: Sequence[str] = ()) -> list[str]:
    """The values of a sweep; glob(…) chooses among `options`."""
    from hydra.core.override_parser.types import Glob

    values = parsed.value()
    if parsed.is_interval_sweep():
        return []  # a range of numbers is no list of choices
    return list(values.filter(list(options))) if isinstance(values, Glob) else list(parsed.sweep_string_iterator())


def _lists_problem(key: str, value: str, names: Sequence[str], field: FieldInfo) -> Problem | None:
    """expansion.after=1,3 where each value of the sweep is a list of its own."""
    if not holds_list(field) or all(name.startswith("[") or name == "null" for name in names):
        return None
    why = "takes lists, and each value of a sweep is one"
    return Problem(key=key, value=value, why=why, fix=f"{key}={','.join(f'[{name}]' for name in names)}, or {key}=[{','.join(names)}]")


def _needs_sweep(key: str, value: str, names: Sequence[str]) -> Problem:
    why = "several values make a sweep, which -m asks for"
    return Problem(key=key, value=value, why=why, fix=f"{key}={names[0]}   (or all of them: python train.py -m …)")


def _parse(key: str, value: str) -> Any:
    """Hydra's reading of an override, or what it says when it cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException as error:
        return str(error).splitlines()[0]


def _as_text(key: str, value: str) -> str:
    """A name or path taken as it was typed, brackets, commas and all."""
    # Hydra halves the backslashes that stand before a quote, and only those.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"++{key}='{escaped}'"
