"""Secrets in a configuration, which every file of a run would repeat: each is a problem, and none of the problems repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slayer.errors import Problem
from slayer.secrets import REDACTED, find_secret, redacted, where_it_belongs


def secret_problem(key: str, text: str) -> Problem | None:
    """Why a text cannot stand in a configuration: it is or holds a secret."""
    kind = find_secret(text)
    if kind is None:
        return None
    why = f"holds a secret ({kind}), which would be copied into the run folder, to trackers and into reports: {where_it_belongs(kind)}"
    return Problem(key=redacted(key), value=REDACTED, why=why, fix=f"leave out {redacted(key)}")


def secret_problems(values: Mapping[str, Any]) -> list[Problem]:
    """A problem for every key that holds a secret somewhere in its text, or is one: sources and tasks are named by people."""
    found: dict[str, Problem] = {}
    for key, text in _texts(values, ""):
        problem = secret_problem(key, text)
        if problem is not None:
            found.setdefault(problem.key, problem)
    return list(found.values())


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a tree, and of every name in it. Items of a list have the list's key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            dotted = f"{key}.{name}" if key else str(name)
            yield dotted, str(name)
            yield from _texts(inner, dotted)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value
