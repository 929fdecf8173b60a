"""One document of a source, a record that could not be one, and the error that says which key of the configuration a bad one comes from."""

from __future__ import annotations

from dataclasses import dataclass

from slayer.errors import DataError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with a name. Documents of equal `group` (title, file, near-duplicate cluster) are never split apart; "" stands for its own text."""

    id: str
    text: str
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record that could not be read: put aside, counted and shown.

    `offset_bytes` counts in the (unpacked) file where that is known, `record` from 1 (lines, rows); `head` is how it begins, as text.
    """

    file: str
    record: int
    offset_bytes: int | None
    reason: str
    head: str = ""


class SourceError(DataError):
    """A source of text that cannot be used, with the key and the override that mends it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))

    def __reduce__(self) -> tuple[type[SourceError], tuple[Problem]]:
        return SourceError, (self.problem,)  # a worker's error reaches the process that asked
