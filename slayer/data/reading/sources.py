"""What is wrong with the sources of a configuration, as far as it can be seen in a second, and when bad records are too many."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from slayer.config import CleaningConfig, DataConfig, SourceConfig
from slayer.data.builtin import BUILTINS
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.reading.fields import NO_FIELD, NOT_UTF8, likely_field, missing_field, template_problem
from slayer.data.reading.files import Slice, TextFile, matched_files
from slayer.data.reading.hub import revision_problem
from slayer.data.reading.records import Reading, first_fields, read_slice, reading_of
from slayer.errors import AssetError, DataError, Problem

__all__ = ["bad_share_problem", "source_problems"]

SMALL_BYTES = 16 << 20
"""Sources up to this size are read whole before a run starts, so that all their bad records are known at once with the other problems."""

PACKED = 4
"""A packed file is taken to hold so many times its size."""

FIRST_RECORDS = 100
"""A larger source is refused at once when none of its first records can be read."""


def source_problems(data: DataConfig) -> list[Problem]:
    """Everything that is wrong with the sources and can be seen in a second, all together.

    A path that matches nothing or only empty files, an unknown built-in text, an asset that was not fetched, a hub dataset without its
    commit, a malformed template, a field that the first record lacks; in sources of up to SMALL_BYTES also too many bad records, and
    texts of which nothing could be held out.
    """
    problems: list[Problem] = []
    for name, source in data.sources.items():
        if [source.builtin, source.path, source.hub].count(None) != 2:
            continue  # the schema reports this one
        for problem in _problems(name, source, data.cleaning):
            if source.path is not None and source.path == data.path:  # data=local: the short key is the one people typed
                long = f"data.sources.{name}.path"
                problem = Problem(
                    key=problem.key.replace(long, "data.path"), value=problem.value, why=problem.why, fix=problem.fix.replace(long, "data.path")
                )  # fmt: skip
            problems.append(problem)
    return problems


def bad_share_problem(name: str, source: SourceConfig, cleaning: CleaningConfig, n_records: int, n_bad: int, first: BadRecord) -> Problem | None:
    """The one rule for bad records: more than data.cleaning.max_bad_share of all records, good and bad, is too many.

    `first` is the first of them; None when there are few enough.
    """
    if n_bad <= cleaning.max_bad_share * n_records:
        return None
    key = f"data.sources.{name}.{'hub' if source.hub is not None else 'path'}"
    place = f"{first.file}:{first.record}" + (f" (byte {first.offset_bytes})" if first.offset_bytes else "")
    head = f", it begins with {first.head!r}" if first.head else ""
    if n_records == 1:
        why = f"its only record cannot be used: {place} {first.reason}{head}"
    else:
        limit = f"more than data.cleaning.max_bad_share={cleaning.max_bad_share}"
        why = f"{n_bad:,} of {n_records:,} records cannot be used, {limit}; the first: {place} {first.reason}{head}"
    return Problem(key=key, value=source.hub or source.path, why=why, fix=_mend(name, source, n_records, n_bad, first))


def _mend(name: str, source: SourceConfig, n_records: int, n_bad: int, first: BadRecord) -> str:
    """What to type about bad records."""
    key = f"data.sources.{name}.{'hub' if source.hub is not None else 'path'}"
    share = min(1.0, float(f"{n_bad / n_records * 1.05:.2g}") or 1.0)
    anyway = [] if n_bad == n_records else [f"data.cleaning.max_bad_share={share}   (goes on without them)"]
    if first.reason.startswith(NOT_UTF8):
        first_choice = f"iconv -f LATIN1 -t UTF-8 {first.file} > utf8.txt (if it is Latin-1), then {key}=utf8.txt"
    elif first.reason.startswith(NO_FIELD):
        first_choice = f"data.sources.{name}.{'text_field=FIELD' if source.template is None else 'template=TEMPLATE'}"
    else:
        first_choice = f"{key}=TEXT   (mended)"
    return ", or ".join([first_choice, *anyway])


def _problems(name: str, source: SourceConfig, cleaning: CleaningConfig) -> Iterator[Problem]:
    key = f"data.sources.{name}"
    malformed = None if source.template is None else template_problem(f"{key}.template", source.template)
    if malformed is not None:
        yield malformed
    if source.builtin is not None:
        yield from _builtin_problems(key, source)
    elif source.hub is not None:
        if source.revision is None:
            yield revision_problem(name)
    else:
        try:
            files = matched_files(name, source)
            if not any(file.size_bytes for file in files):
                count = "matches 1 file, and it" if len(files) == 1 else f"matches {len(files)} files, and every one"
                yield Problem(key=f"{key}.path", value=source.path, why=f"{count} is empty", fix=f"{key}.path=TEXT")
            elif malformed is None:
                yield from _content_problems(name, source, cleaning, files)
        except SourceError as error:
            yield error.problem
        except DataError as error:  # a disk error, no permission
            yield Problem(key=f"{key}.path", value=source.path, why=str(error), fix=f"{key}.path=TEXT")


def _builtin_problems(key: str, source: SourceConfig) -> Iterator[Problem]:
    if source.stream:
        yield Problem(key=f"{key}.stream", value=True, why="a built-in text is small and is always indexed first", fix=f"{key}.stream=false")
    assert source.builtin is not None
    if source.builtin not in BUILTINS:
        close = difflib.get_close_matches(source.builtin, list(BUILTINS), n=1, cutoff=0.0)
        why = f"is no built-in text; there are {', '.join(BUILTINS)}"
        yield Problem(key=f"{key}.builtin", value=source.builtin, why=why, fix=f"{key}.builtin={close[0]}")
        return
    try:
        BUILTINS[source.builtin].check()
    except AssetError as error:
        why, _, fix = str(error).rpartition("\n    type: ")
        yield Problem(key=f"{key}.builtin", value=source.builtin, why=why, fix=fix)


def _content_problems(name: str, source: SourceConfig, cleaning: CleaningConfig, files: Sequence[TextFile]) -> Iterator[Problem]:
    """What shows when files are opened: the first record, and all of them in a small source."""
    key = f"data.sources.{name}"
    reading = reading_of(source, cleaning, files)
    if source.template is not None and all(file.kind == "text" for file in files):
        yield Problem(key=f"{key}.template", value=source.template, why="plain text has no fields", fix=f"{key}.template=null")
        return
    wrong_key = _wrong_key(key, source, reading, files)
    if wrong_key is not None:
        yield wrong_key
        return
    small = sum(file.size_bytes * (PACKED if file.compression or file.kind == "parquet" else 1) for file in files) <= SMALL_BYTES
    n_records = n_bad = 0
    first_bad: BadRecord | None = None
    first_text: str | None = None
    several = False
    for record in (record for file in files for record in read_slice(Slice(file=file), reading)):
        n_records += 1
        if isinstance(record, Document):
            several = several or (first_text is not None and record.text != first_text)
            first_text = first_text or record.text
        else:
            n_bad += 1
            first_bad = first_bad or record
        if not small and (first_text is not None or n_records == FIRST_RECORDS):
            break
    if small or n_bad == n_records:
        yield from _count_problems(name, source, cleaning, n_records, n_bad, first_bad, several)


def _count_problems(
    name: str, source: SourceConfig, cleaning: CleaningConfig, n_records: int, n_bad: int, first_bad: BadRecord | None, several: bool
) -> Iterator[Problem]:
    key = f"data.sources.{name}.path"
    too_many = None if first_bad is None else bad_share_problem(name, source, cleaning, n_records, n_bad, first_bad)
    if too_many is not None:
        yield too_many
    elif n_bad == n_records:
        yield Problem(key=key, value=source.path, why="holds no text at all", fix=f"{key}=TEXT")
    elif not several:
        n_documents = n_records - n_bad
        seen = "there is only one document" if n_documents == 1 else f"all {n_documents} documents are the same text"
        fix = f"{key}=TEXT   (at least two different documents: files, or lines of a .jsonl)"
        yield Problem(key=key, value=source.path, why=f"{seen}; nothing could be held out to measure what was learnt", fix=fix)


def _wrong_key(key: str, source: SourceConfig, reading: Reading, files: Sequence[TextFile]) -> Problem | None:
    """A field that the first record lacks: surely the key is wrong, not the record."""
    for file in files:
        fields = first_fields(Slice(file=file), reading)
        if fields is None:
            continue
        missing = missing_field(fields, reading)
        if missing is None:
            return None
        there = ", ".join(map(str, fields)) or "none at all"
        likely = likely_field(fields)
        if source.template is None:
            why = f"the first record of {file.path} has no such field; it has {there}"
            return Problem(key=f"{key}.text_field", value=missing, why=why, fix=f"{key}.text_field={likely or 'FIELD'}")
        why = f"the first record of {file.path} has no field {missing}; it has {there}"
        return Problem(key=f"{key}.template", value=source.template, why=why, fix=f"{key}.template='{{{likely or 'FIELD'}}}'")
    return None
