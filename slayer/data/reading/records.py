"""Documents out of files: every format read in order, in bounded memory; a record that cannot be read is put aside with its place and reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from slayer.data.document import BadRecord, Document
from slayer.data.reading.fields import EMPTY, NoText, Reading, not_utf8, reading_of, text_of, too_long
from slayer.data.reading.files import Slice, TextFile
from slayer.data.reading.line_rows import Row, csv_rows, line_rows
from slayer.data.reading.lines import BOM, Damage, Line, blocks, bounded_lines, guarded, head_of, line_count, open_stream

__all__ = ["PIECE_CHARACTERS", "Reading", "document_of", "first_fields", "line_count", "read_slice", "reading_of"]

PIECE_CHARACTERS = 2_000
"""A text that is cut at blank lines gives documents of at least so many characters."""


def read_slice(part: Slice, reading: Reading, skip: int = 0) -> Iterator[Document | BadRecord]:
    """Documents and bad records of a slice, in order, behind the first `skip` of them.

    Ids: NAME for a text file, NAME#3 for its third piece, NAME@OFFSET for lines, NAME:ROW (from 1) for CSV, Parquet and Arrow.
    BadRecord.record counts rows and pieces from the start of the file; lines from the start of the slice (`line_count` of the slices
    before it is to be added). Raises DataError when the machine, not the file, is why reading fails.
    """
    if part.file.kind == "text":
        return islice(_text_records(part.file, reading), skip, None)
    return (item if isinstance(item, BadRecord) else document_of(item, part.file.shown, reading) for item in _read_rows(part, reading, skip))


def document_of(row: Row, file: str, reading: Reading) -> Document | BadRecord:
    """The document of a row, or why there is none."""
    try:
        return Document(id=row.id, text=text_of(row.fields, reading))
    except NoText as reason:
        shown = row.raw if row.raw is not None else next((value for value in row.fields.values() if isinstance(value, str | bytes)), "")
        return BadRecord(file=file, record=row.record, offset_bytes=row.offset_bytes, reason=str(reason), head=head_of(shown))


def first_fields(part: Slice, reading: Reading) -> Mapping[str, object] | None:
    """The fields of a slice's first record; None when it has none or cannot be read."""
    first = None if part.file.kind == "text" else next(_read_rows(part, reading), None)
    return first.fields if isinstance(first, Row) else None


def _text_records(file: TextFile, reading: Reading) -> Iterator[Document | BadRecord]:
    """A text file as one document, or as pieces where that is asked for or it is longer than a record may be."""
    if reading.paragraphs:
        yield from _pieces(file, reading)
        return
    read: list[bytes] = []
    size_bytes, damage = 0, None
    with open_stream(file) as stream:
        for block in guarded(blocks(stream)):
            if isinstance(block, Damage):
                damage = block.reason
                break
            read.append(block)
            size_bytes += len(block)
            if size_bytes > reading.max_record_bytes:
                break
    if damage is not None:
        yield BadRecord(file=file.shown, record=1, offset_bytes=size_bytes, reason=damage, head=head_of(b"".join(read[:1])))
    elif size_bytes > reading.max_record_bytes:
        read.clear()
        yield from _pieces(file, reading)
    else:
        yield _text_document(file.shown, file.shown, 1, 0, b"".join(read))


def _text_document(id: str, file: str, record: int, offset_bytes: int, raw: bytes) -> Document | BadRecord:
    mark_bytes = len(BOM) if offset_bytes == 0 and raw.startswith(BOM) else 0
    try:
        text = raw[mark_bytes:].decode()
    except UnicodeDecodeError as error:
        reason = not_utf8(error, offset_bytes + mark_bytes)
    else:
        if text.strip():
            return Document(id=id, text=text)
        reason = EMPTY
    return BadRecord(file=file, record=record, offset_bytes=offset_bytes, reason=reason, head=head_of(raw))


@dataclass(slots=True)
class _Piece:
    """Lines gathered so far."""

    lines: list[Line] = field(default_factory=list)
    size_bytes: int = 0
    characters: int = 0
    has_text: bool = False
    ends_blank: bool = False

    def ends_before(self, line: Line, blank: bool, limit_bytes: int) -> bool:
        """Whether this line belongs to the next piece: a paragraph begins and enough is gathered, or no more may be."""
        if not self.lines:
            return False
        if line.too_long or self.size_bytes + line.size_bytes > limit_bytes:
            return True
        return not blank and self.ends_blank and self.has_text and self.characters >= PIECE_CHARACTERS

    def add(self, line: Line, text: str) -> None:
        """One more line."""
        self.lines.append(line)
        self.size_bytes += line.size_bytes
        self.characters += len(text)
        self.ends_blank = not text.strip()
        self.has_text = self.has_text or not self.ends_blank


def _pieces(file: TextFile, reading: Reading) -> Iterator[Document | BadRecord]:
    """A text cut in front of paragraphs, into documents that give the text back when put together; see `_gathered`."""
    name = file.shown
    number = 0
    for number, found in enumerate(_gathered(file, reading.max_record_bytes), 1):
        if isinstance(found, BadRecord):
            yield BadRecord(file=name, record=number, offset_bytes=found.offset_bytes, reason=found.reason, head=found.head)
        else:
            raw = b"".join(line.content for line in found)
            yield _text_document(f"{name}#{number}", name, number, found[0].offset_bytes, raw)
    if number == 0:
        yield BadRecord(file=name, record=1, offset_bytes=0, reason=EMPTY)


def _gathered(file: TextFile, limit_bytes: int) -> Iterator[list[Line] | BadRecord]:
    """The lines of each piece, PIECE_CHARACTERS characters and more, cut where a paragraph begins.

    Where none begins before a piece holds `limit_bytes`, it is cut at the end of a line; a line longer than that is put aside.
    """
    piece = _Piece()
    with open_stream(file) as stream:
        for line in guarded(bounded_lines(stream, 0, limit_bytes)):
            if isinstance(line, Damage):
                at_bytes = piece.lines[0].offset_bytes if piece.lines else None  # a piece that is not whole is not given
                head = head_of(b"".join(one.content for one in piece.lines[:5]))
                yield BadRecord(file=file.shown, record=0, offset_bytes=at_bytes, reason=line.reason, head=head)
                return
            text = line.content.decode("utf-8", "replace")
            if piece.ends_before(line, not text.strip(), limit_bytes):
                yield piece.lines
                piece = _Piece()
            if line.too_long:
                reason = too_long(line.size_bytes, limit_bytes)
                yield BadRecord(file=file.shown, record=0, offset_bytes=line.offset_bytes, reason=reason, head=head_of(line.content))
            else:
                piece.add(line, text)
    if piece.lines:
        yield piece.lines


def _read_rows(part: Slice, reading: Reading, skip: int = 0) -> Iterator[Row | BadRecord]:
    """Rows of a slice behind the first `skip` (good or bad), in order."""
    if part.file.kind == "lines":
        return line_rows(part, reading, skip)  # passes over lines without parsing them
    if part.file.kind == "csv":
        return islice(csv_rows(part, reading), skip, None)
    from slayer.data.reading.columns import arrow_rows, parquet_rows

    read = parquet_rows if part.file.kind == "parquet" else arrow_rows
    return islice(read(part, reading), skip, None)
