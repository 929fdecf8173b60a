"""Where text comes from: files of the user and built-in corpora, split once into training and held-out documents.

The split is a pure function of each document (its text, title or file), so a document never changes sides because others
come or go.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slayer.config import DataConfig, SourceConfig
from slayer.data.builtin import BUILTINS
from slayer.data.document import Document, SourceError
from slayer.data.files import matched_files, probe_file, read_files
from slayer.errors import AssetError, DataError, Problem

__all__ = ["Document", "SourceError", "SourceText", "read_source", "source_problems", "split"]

SMALL_BYTES = 16 << 20
"""Sources up to this size are read whole before a run starts, so that every bad record in them is reported at once with the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """The documents of one source, in reading order, on the two sides of the split."""

    name: str
    role: Literal["domain", "replay"]
    train: list[Document]
    heldout: list[Document]


def read_source(name: str, source: SourceConfig) -> SourceText:
    """Read and split one source.

    Raises SourceError (a DataError) for text that is missing, empty, not UTF-8 or malformed, AssetError for an asset that was
    not fetched.
    """
    documents = _documents(name, source)
    key = f"data.sources.{name}"
    if not documents:
        raise SourceError(Problem(key=key, value=_origin(source), why="holds no text at all", fix=f"{key}.path=TEXT"))
    try:
        train, heldout = split(documents, source.heldout_share)
    except DataError as error:
        why = f"{error}; nothing could be held out to measure what was learnt"
        fix = f"{key}.path=TEXT   (at least two different documents: files, or lines of a .jsonl)"
        raise SourceError(Problem(key=key, value=_origin(source), why=why, fix=fix)) from error
    return SourceText(name=name, role=source.role, train=train, heldout=heldout)


def split(documents: Sequence[Document], heldout_share: float) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, by a hash of each document's `group`: all of a group lands on one side.

    Where the share leaves a side empty, the group nearest to the border moves there. DataError when there is just one group.
    """
    places = {group: _place(group) for group in dict.fromkeys(document.group for document in documents)}
    if len(places) < 2:
        raise DataError("there is only one document" if len(documents) == 1 else f"all {len(documents)} documents are the same text")
    ordered = sorted(places, key=lambda group: (places[group], group))
    heldout = {group for group in ordered if places[group] < heldout_share} or {ordered[0]}
    if len(heldout) == len(ordered):
        heldout.remove(ordered[-1])
    return [doc for doc in documents if doc.group not in heldout], [doc for doc in documents if doc.group in heldout]


def _place(group: str) -> float:
    """A number in [0, 1) that depends on nothing but the group."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _documents(name: str, source: SourceConfig) -> list[Document]:
    if source.builtin is not None:
        if source.builtin not in BUILTINS:
            raise SourceError(_unknown_builtin(name, source.builtin))
        return BUILTINS[source.builtin].read()
    return read_files(name, source)


def _origin(source: SourceConfig) -> str | None:
    return source.builtin or source.path


def source_problems(data: DataConfig) -> list[Problem]:
    """Everything that is wrong with the sources and can be seen in a second: nothing matched, empty files, an asset that was not
    fetched, a first record that cannot be read; a source of up to SMALL_BYTES is read whole."""
    problems: list[Problem] = []
    for name, source in data.sources.items():
        if (source.builtin is None) == (source.path is None):
            continue  # the schema reports this one
        try:
            _probe(name, source)
        except SourceError as error:
            problem = error.problem
            if source.path is not None and source.path == data.path:  # data=local: the short key is the one people typed
                long = f"data.sources.{name}.path"
                problem = Problem(
                    key=problem.key.replace(long, "data.path"), value=problem.value, why=problem.why, fix=problem.fix.replace(long, "data.path")
                )  # fmt: skip
            problems.append(problem)
    return problems


def _probe(name: str, source: SourceConfig) -> None:
    key = f"data.sources.{name}"
    if source.builtin is None:
        files = matched_files(name, source)
        sizes_bytes = [file.stat().st_size for file in files]
        if not any(sizes_bytes):
            raise SourceError(Problem(key=f"{key}.path", value=source.path, why=f"{_count(files)} and every one is empty", fix=f"{key}.path=TEXT"))
        if sum(sizes_bytes) <= SMALL_BYTES:
            read_source(name, source)
        else:
            probe_file(name, source, next(file for file, size_bytes in zip(files, sizes_bytes, strict=True) if size_bytes))
        return
    if source.builtin not in BUILTINS:
        raise SourceError(_unknown_builtin(name, source.builtin))
    try:
        BUILTINS[source.builtin].check()
    except AssetError as error:
        why, _, fix = str(error).rpartition("\n    type: ")
        raise SourceError(Problem(key=f"{key}.builtin", value=source.builtin, why=why, fix=fix)) from error


def _count(files: Sequence[Path]) -> str:
    return "matches 1 file" if len(files) == 1 else f"matches {len(files)} files"


def _unknown_builtin(name: str, value: str) -> Problem:
    close = difflib.get_close_matches(value, list(BUILTINS), n=1, cutoff=0.0)
    return Problem(
        key=f"data.sources.{name}.builtin", value=value, why=f"is no built-in text; there are {', '.join(BUILTINS)}",
        fix=f"data.sources.{name}.builtin={close[0]}",
    )  # fmt: skip
