"""Documents on disk, as Arrow parts in a folder: memory-mapped, reached one by one or in chunks of work.

Chunks are runs of record batches of about equal size, so one huge packed file is as parallel as many small ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.data.document import Document
from slayer.data.storing.parts import damaged, part_path, read_index

PART_BYTES = 8 << 20
SMALLEST_PART_BYTES = 1 << 20
WANTED_PARTS, MOST_PARTS = 64, 4_096
"""A source is cut into about WANTED_PARTS parts, so that many cores end together, but into no smaller ones than SMALLEST_PART_BYTES and
no larger ones than PART_BYTES, unless that were more than MOST_PARTS. Half-built folders depend on it: who changes it raises every FORMAT."""

OPEN_PARTS = 64
"""Files of one corpus that a process keeps mapped."""


def part_bytes(total_bytes: int) -> int:
    """Size of the parts that so much text is cut into."""
    return max(min(PART_BYTES, max(SMALLEST_PART_BYTES, total_bytes // WANTED_PARTS)), -(-total_bytes // MOST_PARTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A run of `n_batches` record batches from `first_batch` on, counted over all parts; `first` is its first document."""

    number: int
    first: int
    n_documents: int
    n_bytes: int
    first_batch: int
    n_batches: int


class CorpusChunks:
    """The documents in a folder. Picklable: what crosses to another process is the folder's name. DataError when it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_index(folder)
        sizes = [(number, place, *size) for number, part in enumerate(index) for place, size in enumerate(part["batches"])]
        table = np.array(sizes, dtype=np.int64).reshape(-1, 4)
        self._parts, self._places = table[:, 0], table[:, 1]
        self._first: NDArray[np.int64] = np.concatenate([[0], np.cumsum(table[:, 2])])
        self._bytes = table[:, 3]
        self.n_documents = int(self._first[-1])
        self.n_bytes = int(self._bytes.sum())
        self._reader = lru_cache(maxsize=OPEN_PARTS)(self._open)

    def __reduce__(self) -> tuple[type[CorpusChunks], tuple[Path]]:
        return CorpusChunks, (self.folder,)

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All chunks, in order: the same ones wherever the corpus is opened."""
        wanted_bytes = part_bytes(self.n_bytes)
        ends = np.cumsum(self._bytes)
        found: list[Chunk] = []
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            end = min(int(np.searchsorted(ends, before + wanted_bytes)) + 1, len(ends))
            first, n_documents = int(self._first[start]), int(self._first[end] - self._first[start])
            n_bytes = int(ends[end - 1]) - before
            found.append(Chunk(number=len(found), first=first, n_documents=n_documents, n_bytes=n_bytes, first_batch=start, n_batches=end - start))
            start = end
        return found

    def record_batches(self, chunk: Chunk) -> Iterator[Any]:
        """Arrow record batches (id, text, group) of a chunk, memory-mapped."""
        return (self._batch(number) for number in range(chunk.first_batch, chunk.first_batch + chunk.n_batches))

    def texts(self, chunk: Chunk) -> list[str]:
        """Texts of a chunk."""
        return self._column(chunk, "text")

    def groups(self, chunk: Chunk) -> list[str]:
        """Groups of a chunk's documents; "" where a text is its own group."""
        return self._column(chunk, "group")

    def documents(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[Document]:
        """Documents by number, in the order asked for."""
        return (self.document(int(index)) for index in indices)

    def document(self, index: int) -> Document:
        """Document `index`, counted from 0; IndexError beyond the last."""
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document {index} of {self.n_documents}")
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        row, batch = index - int(self._first[number]), self._batch(number)
        id, text, group = (batch.column(name)[row].as_py() for name in ("id", "text", "group"))
        return Document(id=id, text=text, group=group)

    def ids(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Ids of documents by number, in the order asked for."""
        found = np.empty(len(indices), dtype=object)
        for places, rows, batch in self._by_batch(np.asarray(indices, dtype=np.int64)):
            found[places] = batch.column("id").take(rows).to_pylist()
        names: list[str] = found.tolist()
        return names

    def size_bytes(self, indices: Sequence[int] | NDArray[np.int64]) -> int:
        """UTF-8 bytes of these documents' texts together."""
        import pyarrow.compute as pc

        total = 0
        for _, rows, batch in self._by_batch(np.asarray(indices, dtype=np.int64)):
            total += pc.sum(pc.binary_length(batch.column("text")).take(rows)).as_py()
        return total

    def _by_batch(self, indices: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Any]]:
        """(places in `indices`, rows in the batch, batch) for every record batch that is touched."""
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < self.n_documents:
            raise IndexError(f"documents {ordered[0]} to {ordered[-1]} of {self.n_documents}")
        edges = np.searchsorted(ordered, self._first)
        for number in np.flatnonzero(np.diff(edges)).tolist():
            here = slice(int(edges[number]), int(edges[number + 1]))
            yield order[here], ordered[here] - self._first[number], self._batch(number)

    def _column(self, chunk: Chunk, name: str) -> list[str]:
        return [value for batch in self.record_batches(chunk) for value in batch.column(name).to_pylist()]

    def _batch(self, number: int) -> Any:
        import pyarrow as pa

        try:
            return self._reader(int(self._parts[number])).get_batch(int(self._places[number]))
        except (OSError, pa.ArrowException) as error:
            raise damaged(self.folder, error) from error

    def _open(self, number: int) -> Any:
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(part_path(self.folder, number))))
