"""One document of a source, and the error that says which key of the configuration a bad one comes from."""

from __future__ import annotations

from dataclasses import dataclass

from slayer.errors import DataError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with a name. Documents of equal `group` (same text, title, file or near-duplicate cluster) are never split apart."""

    id: str
    text: str
    group: str


class SourceError(DataError):
    """A source of text that cannot be used, with the key and the override that mends it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))
