"""Writing documents to disk: what makes a part of a corpus out of stretches of files, and puts aside the records that are no documents."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slayer.data.document import BadRecord, Document
from slayer.data.reading.files import Slice
from slayer.data.reading.records import Reading, line_count, read_slice
from slayer.data.storing.parts import Facts
from slayer.errors import DataError

BATCH_DOCUMENTS = 1_000
BATCH_CHARACTERS = 1 << 20
"""A record batch ends behind the document that makes it so large."""

QUARANTINE = "quarantine.jsonl"

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPart:
    """Work of build_parts: the slices of a part → its documents (id, text, group), its bad records in a file beside.

    `stamps` are those of each slice's file when its content was hashed.
    """

    parts: tuple[tuple[Slice, ...], ...]
    stamps: tuple[tuple[Stamp, ...], ...]
    reading: Reading

    def __call__(self, number: int, target: Path) -> Facts:
        """Facts: n_bad, batches (documents and bytes of each), lines (file and lines of each slice that is a byte range, else null)."""
        n_bad = 0
        lines: list[tuple[str, int] | None] = []
        with _documents(target) as writer, _bad_records(bad_path(target.parent, number)) as put_aside:
            for place, (piece, stamp) in enumerate(zip(self.parts[number], self.stamps[number], strict=True)):
                for record in read_slice(piece, self.reading):
                    if isinstance(record, BadRecord):
                        put_aside.write(json.dumps({"slice": place, **asdict(record)}) + "\n")
                        n_bad += 1
                    else:
                        writer.add(record)
                ranged = piece.file.kind == "lines" and piece.end > 0
                lines.append((piece.file.shown, line_count(piece)) if ranged else None)
                if stamp_of(piece.file.path) != stamp:
                    raise DataError(f"{piece.file.path} changed while it was read\n    start again when nothing writes to it")
        return {"n_bad": n_bad, "batches": writer.batches, "lines": lines}


@dataclass(frozen=True, slots=True)
class WriteDocuments:
    """Work of build_parts in this process: documents from memory as the one part of a corpus."""

    documents: Iterable[Document]

    def __call__(self, number: int, target: Path) -> Facts:
        """Facts as those of ReadPart."""
        with _documents(target) as writer:
            for document in self.documents:
                writer.add(document)
        return {"n_bad": 0, "batches": writer.batches, "lines": []}


class _DocumentWriter:
    """Gathers documents to record batches. `batches`: documents and UTF-8 bytes of each one written."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self.batches: list[tuple[int, int]] = []
        self._writer, self._schema = writer, schema
        self._gathered: list[Document] = []
        self._characters = 0

    def add(self, document: Document) -> None:
        """One more document."""
        self._gathered.append(document)
        self._characters += len(document.text)
        if len(self._gathered) >= BATCH_DOCUMENTS or self._characters >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self._gathered:
            return
        columns = [[getattr(one, field.name) for one in self._gathered] for field in self._schema]
        batch = pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)], schema=self._schema)
        self._writer.write_batch(batch)
        self.batches.append((batch.num_rows, pc.sum(pc.binary_length(batch.column("text"))).as_py()))
        self._gathered, self._characters = [], 0


@contextmanager
def _documents(target: Path) -> Iterator[_DocumentWriter]:
    """A corpus part that is being written."""
    import pyarrow as pa

    schema = pa.schema({"id": pa.string(), "text": pa.large_string(), "group": pa.string()})
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as arrow:
        writer = _DocumentWriter(arrow, schema)
        yield writer
        writer.flush()


@contextmanager
def _bad_records(target: Path) -> Iterator[Any]:
    """A text file that appears as `target` when the block ends without an error, if anything was written to it."""
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with scratch.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            yield stream
        if scratch.stat().st_size:
            scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def bad_path(folder: Path, number: int) -> Path:
    """Bad records of a part, until all of them are gathered."""
    return folder / f"bad-{number:05d}.jsonl"


def stamp_of(path: Path) -> Stamp:
    """What shows, without reading a file, whether somebody wrote to it."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def gather_quarantine(folder: Path, index: Sequence[Facts]) -> Path:
    """One file with all bad records of a corpus, in order, its line numbers counted from the start of each file.

    Made once; of processes that make it at once any wins, with the same content.
    """
    target = folder / QUARANTINE
    if target.is_file():
        return target
    scratch = folder / f".{QUARANTINE}.{uuid.uuid4().hex}"
    try:
        with scratch.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in _in_files(folder, index))
        scratch.replace(target)
    except FileNotFoundError:
        if not target.is_file():  # else another process gathered them first, and cleared the parts' own
            raise
    finally:
        scratch.unlink(missing_ok=True)
    for number in range(len(index)):
        bad_path(folder, number).unlink(missing_ok=True)
    return target


def _in_files(folder: Path, index: Sequence[Facts]) -> Iterator[BadRecord]:
    """Bad records of all parts; those of byte ranges behind the lines of the ranges before."""
    lines_before: dict[str, int] = {}
    for number, part in enumerate(index):
        before = []  # lines before each slice, null where records are counted from the start of the file anyway
        for ranged in part["lines"]:
            before.append(lines_before.get(ranged[0], 0) if ranged else 0)
            if ranged:
                lines_before[ranged[0]] = before[-1] + ranged[1]
        if not part["n_bad"]:
            continue
        with bad_path(folder, number).open(encoding="utf-8") as stream:
            for line in stream:
                found = json.loads(line)
                place = found.pop("slice")
                record = BadRecord(**found)
                yield replace(record, record=record.record + before[place])
