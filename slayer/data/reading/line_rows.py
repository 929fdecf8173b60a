"""Rows of formats with a record a line: JSON lines and CSV. What cannot be read becomes a BadRecord in its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from slayer.data.document import BadRecord
from slayer.data.reading.fields import Reading, kind_name, not_utf8, too_long
from slayer.data.reading.files import Slice
from slayer.data.reading.lines import BLOCK_BYTES, BOM, Damage, Line, attempt, guarded, head_of, open_stream, slice_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record with its fields; `raw` is how it begins in the file, where that is text."""

    id: str
    record: int
    offset_bytes: int | None
    fields: Mapping[str, object]
    raw: bytes | None = None


def line_rows(part: Slice, reading: Reading, skip: int) -> Iterator[Row | BadRecord]:
    """JSON objects, one a line; blank lines are not records."""
    file, number, end_bytes, passed = part.file.shown, 0, part.start, 0
    with open_stream(part.file) as stream:
        for line in guarded(slice_lines(stream, part, reading.max_record_bytes)):
            number += 1
            if not isinstance(line, Damage):
                end_bytes = line.offset_bytes + line.size_bytes
                if not line.too_long and not line.content.removeprefix(BOM).strip():
                    continue
            passed += 1
            if passed <= skip:
                continue
            if isinstance(line, Damage):
                yield BadRecord(file=file, record=number, offset_bytes=end_bytes, reason=line.reason)
            else:
                yield _line_row(file, number, line, reading.max_record_bytes)


def _line_row(file: str, number: int, line: Line, max_record_bytes: int) -> Row | BadRecord:
    content, offset_bytes = line.content.removeprefix(BOM), line.offset_bytes
    if line.too_long:
        reason = too_long(line.size_bytes, max_record_bytes)
    else:
        try:
            fields = json.loads(content.decode())
            if isinstance(fields, dict):
                return Row(id=f"{file}@{offset_bytes}", record=number, offset_bytes=offset_bytes, fields=fields, raw=content)
            reason = f"is {kind_name(fields)}, not a JSON object"
        except UnicodeDecodeError as error:
            reason = not_utf8(error, offset_bytes + len(line.content) - len(content))
        except (ValueError, RecursionError) as error:
            seen = f"{error.msg.removesuffix(' at')} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            reason = f"is not JSON: {seen}"
    return BadRecord(file=file, record=number, offset_bytes=offset_bytes, reason=reason, head=head_of(content))


class _TooLong(Exception):  # noqa: N818 (passes through csv.reader to our own loop)
    pass


class _CsvLines:
    """Lines for csv.reader, which asks for more while a quoted field goes on; knows where the record at hand began."""

    def __init__(self, stream: BinaryIO, limit_bytes: int) -> None:
        self._stream, self._limit_bytes = stream, limit_bytes
        self.end_bytes = 0
        self.begin()

    def begin(self) -> None:
        """Forget the record at hand: the next line begins another."""
        self.start_bytes, self.quotes = self.end_bytes, 0
        self.head, self.not_utf8 = b"", ""

    @property
    def size_bytes(self) -> int:
        """Bytes of the record at hand so far."""
        return self.end_bytes - self.start_bytes

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._line()
        while not self.head and not line.strip():  # blank lines between records
            self.begin()
            line = self._line()
        self.head = self.head or line
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.not_utf8 = self.not_utf8 or not_utf8(error, self.end_bytes - len(line))
            return line.decode("utf-8", "replace")

    def drain(self) -> None:
        """Pass over the rest of a record that is too long: up to the line where its quotes pair."""
        while self.quotes % 2 and self._physical_line(keep=False) is not None:
            pass

    def _line(self) -> bytes:
        line = self._physical_line(keep=True)
        if line is None:
            raise StopIteration
        if self.size_bytes > self._limit_bytes:
            self.head = self.head or line
            raise _TooLong
        return line

    def _physical_line(self, *, keep: bool) -> bytes | None:
        """The next line, or what of it fits a record (`keep`), counted in either case; None at the end."""
        kept: list[bytes] = []
        at_start, block = self.end_bytes == 0, b""
        while not block.endswith(b"\n") and (block := self._stream.readline(BLOCK_BYTES)):
            self.end_bytes += len(block)
            self.quotes += block.count(b'"')
            if keep and (self.size_bytes <= self._limit_bytes or not kept):
                kept.append(block)
        line = b"".join(kept)
        return None if not block and not kept else line.removeprefix(BOM) if at_start else line


def csv_rows(part: Slice, reading: Reading) -> Iterator[Row | BadRecord]:
    """Rows behind a header line; the record number counts rows, without header and blank lines."""
    file, names, record = part.file.shown, None, 0
    with open_stream(part.file) as stream:
        lines = _CsvLines(stream, reading.max_record_bytes)
        for found in _csv_records(lines, "\t" if ".tsv" in part.file.path.name.lower() else ",", reading.max_record_bytes):
            if isinstance(found, list):
                if names is None:
                    names = found
                    continue
                record += 1
                if len(found) == len(names):
                    fields = dict(zip(names, found, strict=True))
                    yield Row(id=f"{file}:{record}", record=record, offset_bytes=lines.start_bytes, fields=fields, raw=lines.head)
                    continue
                reason = f"has {len(found)} field{'s' if len(found) != 1 else ''} where the header line has {len(names)}"
            else:
                record, reason = record + 1, found
            yield BadRecord(file=file, record=record, offset_bytes=lines.start_bytes, reason=reason, head=head_of(lines.head))
            if names is None:
                return  # without its header line nothing else in the file can be understood


def _csv_records(lines: _CsvLines, delimiter: str, limit_bytes: int) -> Iterator[list[str] | str]:
    """The values of each record, or why it has none; `lines` tells where it stands."""
    csv.field_size_limit(max(csv.field_size_limit(), limit_bytes + 1))  # of the process; the record's own limit is met first
    rows = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.begin()
        try:
            values = attempt(lambda: next(rows, None))
            if isinstance(values, Damage):
                yield values.reason
                return
            if values is None:
                return
            yield lines.not_utf8 or values
        except _TooLong:
            attempt(lines.drain)  # damage met here is met again by the next read
            yield too_long(lines.size_bytes, limit_bytes)
        except csv.Error as error:
            yield f"is not CSV: {error}"
