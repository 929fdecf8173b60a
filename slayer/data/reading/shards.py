"""Shards of a source that is streamed: what can be read by itself, from any record on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from slayer.config import CleaningConfig, SourceConfig
from slayer.data.document import BadRecord, Document
from slayer.data.reading.fields import Reading, reading_of
from slayer.data.reading.files import Slice, matched_files, plan_slices
from slayer.data.reading.records import read_slice

SHARD_BYTES = 64 << 20
"""Larger files are cut where their format allows it, smaller ones are read as one shard: going on within a shard reads what comes before."""


class Shard(Protocol):
    """A stretch of a streamed source. Picklable."""

    @property
    def name(self) -> str:
        """Unique within the source, the same wherever and whenever it is opened."""

    def read(self, skip: int) -> Iterator[Document | BadRecord]:
        """Documents and bad records behind the first `skip`, always in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileShard:
    """Slices of files, one after the other."""

    name: str
    part: tuple[Slice, ...]
    reading: Reading

    def read(self, skip: int) -> Iterator[Document | BadRecord]:
        """Records behind the first `skip`; a shard of one slice passes over lines without parsing them."""
        alone = len(self.part) == 1
        for piece in self.part:
            for record in read_slice(piece, self.reading, skip if alone else 0):
                if skip and not alone:
                    skip -= 1
                elif piece.start and isinstance(record, BadRecord) and record.offset_bytes is not None:
                    yield replace(record, file=f"{record.file}@{piece.start}")  # lines are counted from there
                else:
                    yield record


def open_shards(name: str, source: SourceConfig, cleaning: CleaningConfig) -> Sequence[Shard]:
    """The shards of a source with stream=true, in order; SourceError when there is nothing to read."""
    if source.hub is not None:
        from slayer.data.reading.hub import hub_shards

        return hub_shards(name, source, reading_of(source, cleaning, []))
    return file_shards(name, source, cleaning)


def file_shards(name: str, source: SourceConfig, cleaning: CleaningConfig) -> list[FileShard]:
    """Shards of about SHARD_BYTES of files; SourceError when nothing matches."""
    files = matched_files(name, source)
    reading = reading_of(source, cleaning, files)
    return [FileShard(name=_part_name(part), part=part, reading=reading) for part in plan_slices(files, SHARD_BYTES)]


def _part_name(part: Sequence[Slice]) -> str:
    first, more = part[0], len(part) - 1
    return first.file.shown + (f"@{first.start}" if first.start else "") + (f" and {more} more" if more else "")
