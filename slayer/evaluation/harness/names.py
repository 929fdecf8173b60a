"""What a name stands for: one of lm-eval's tasks, groups or tags, a pattern over them, or a task file; and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slayer.errors import Problem

DEFINITIONS = Path(__file__).with_name("definitions")
SUITES = ("quick", "general", "domain", "code", "law", "medicine", "french", "paper", "heldout")
"""The files of conf/suite: a suite's name in place of a task's is a likely slip."""

EMBEDDED_SUITES = ("quick", "general", "code", "law", "medicine", "french")
"""Those with tasks that need no hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One task behind a name: its definition as it stands in the file, functions by name. `file` is None where there is none."""

    name: str
    config: Mapping[str, Any]
    file: Path | None


def harness_version() -> str:
    """Version of lm-eval."""
    return version("lm_eval")


def task_index(include_path: str | None) -> Any:
    """A TaskManager over lm-eval's tasks, ours, and the user's folder, which hides others of the same name."""
    from slayer.evaluation.harness.catalogue import task_manager

    return _default_index() if include_path is None else task_manager((DEFINITIONS, Path(include_path).expanduser()))


@lru_cache(maxsize=1)
def _default_index() -> Any:
    from slayer.evaluation.harness.catalogue import task_manager

    return task_manager((DEFINITIONS,))


def known(manager: Any, name: str) -> list[str]:
    """What a name of a suite stands for: itself, a pattern's matches (without members of a group or tag that matches), or nothing."""
    if name in manager.task_index or is_task_file(name):
        return [name]
    if not any(sign in name for sign in "*?["):
        return []
    matched = manager.match_tasks([name])
    inside = {member for one in matched for member in _members(manager, one)}
    return [one for one in matched if one not in inside]


def is_task_file(name: str) -> bool:
    """Whether a name is the path of a YAML file that is there."""
    return name.endswith((".yaml", ".yml")) and Path(name).expanduser().is_file()


def leaves(manager: Any, name: str, overrides: Mapping[str, Any] | None = None) -> Iterator[Leaf]:
    """The tasks behind a task, group, tag or file."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index.get(name)
    file = entry.yaml_path if entry is not None else Path(name).expanduser()
    if entry is not None and file is None:
        for member in sorted(entry.tags):
            yield from leaves(manager, member, overrides)
        return
    config = {**load_yaml(file, resolve_func=False), **(overrides or {})}
    if "group" not in config:
        yield Leaf(name=str(config.get("task", name)), config=config, file=file)
        return
    for member in config.get("task") or ():
        inner = member if isinstance(member, dict) else {}
        called = str(inner.get("group") or inner.get("task") if inner else member)
        if called in manager.task_index:
            yield from leaves(manager, called, {key: value for key, value in inner.items() if key not in ("task", "group")})
        elif inner:
            yield Leaf(name=f"{config['group']}::{called}", config=inner, file=file)


def _members(manager: Any, name: str) -> Iterator[str]:
    """Names of everything below a group or tag, without reading the definitions of its tasks."""
    from lm_eval.tasks._index import Kind
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[name]
    below: list[Any] = []
    if entry.kind is Kind.TAG:
        below = sorted(entry.tags)
    elif entry.kind is Kind.GROUP:
        below = [
            one if isinstance(one, str) else one.get("group") or one.get("task") for one in load_yaml(entry.yaml_path, resolve_func=False)["task"]
        ]
    for one in below:
        if one in manager.task_index:
            yield one
            yield from _members(manager, one)


def near_names(manager: Any, name: str) -> list[str]:
    """Up to three names that were probably meant, the likeliest first."""
    lowered = {one.lower(): one for one in manager.all_tasks}
    return [lowered[one] for one in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]


def folder_problems(include_path: str) -> list[Problem]:
    """What is wrong with a folder of task files: not there, nothing in it, or files that are no YAML. Functions are not imported yet."""
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(include_path).expanduser()
    if not folder.is_dir():
        return [Problem(key="include_path", value=include_path, why="is not a folder", fix="include_path=FOLDER, or leave out include_path")]
    files = sorted(folder.rglob("*.yaml"))
    problems = []
    for file in files:
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # a user's file may fail in any way the YAML library or an include can
            what = " ".join(str(error).split())
            why = f"{file} is not a task file that lm-eval can read: {what}"
            problems.append(Problem(key="include_path", value=include_path, why=why, fix=f"include_path={include_path}   (once the file is mended)"))
    if not files:
        why = "holds no .yaml file: task files of lm-eval are looked for there"
        problems.append(Problem(key="include_path", value=include_path, why=why, fix="include_path=FOLDER, or leave out include_path"))
    return problems
