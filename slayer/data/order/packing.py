"""Documents into rows of a fixed length, by one of three strategies.

best_fit: best-fit-decreasing packing (Ding et al. 2024, arXiv 2404.10830). Only a document longer than a row is cut: into pieces of
exactly one row and a rest. Whole documents and rests are then placed, longest first, into the fullest row that still has room.

concat: documents one after another, cut wherever a row ends (what most pretraining code does). pad: every document starts a row of
its own and the rest of the row stays empty. These two are for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["best_fit", "concat", "pad"]
Pieces = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""(document, start, length) of every piece; both in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packing:
    """Rows as slices of flat piece arrays: row r holds pieces row_offsets[r] to row_offsets[r + 1], in that order.

    Piece p is tokens starts[p] to starts[p] + lengths[p] of document documents[p]. `cut_documents` are those in more than one
    piece, `needless_cuts` those of them that would have fitted into one row.
    """

    sequence_length: int
    row_offsets: NDArray[np.int64]
    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    cut_documents: int
    needless_cuts: int

    @property
    def n_rows(self) -> int:
        """Rows made."""
        return len(self.row_offsets) - 1

    @property
    def fill(self) -> float:
        """Share of the places in all rows that hold a token."""
        return float(self.lengths.sum()) / max(1, self.n_rows * self.sequence_length)


def pack(document_lengths: NDArray[np.int64], sequence_length: int, strategy: Strategy = "best_fit") -> Packing:
    """Pack documents (lengths in tokens) into rows of `sequence_length` tokens; documents of no tokens appear nowhere.

    best_fit takes O(N log N) for sorting the pieces plus a term of the row length alone: pieces of one length and rows with the
    same room left are handled together. The others take O(N).
    """
    document_lengths = np.asarray(document_lengths, dtype=np.int64)
    if strategy == "concat":
        documents, starts, lengths = _cut_at_row_ends(document_lengths, sequence_length)
        ends = np.cumsum(lengths)
        counts = np.bincount((ends - lengths) // sequence_length)
    elif strategy == "pad":
        documents, starts, lengths = _cut_long(document_lengths, sequence_length)
        counts = np.ones(len(lengths), dtype=np.int64)
    else:
        (documents, starts, lengths), counts = _best_fit_rows(document_lengths, sequence_length)
    cut = np.bincount(documents, minlength=len(document_lengths)) > 1
    return Packing(
        sequence_length=sequence_length, row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        documents=documents, starts=starts, lengths=lengths,
        cut_documents=int(cut.sum()), needless_cuts=int((cut & (document_lengths <= sequence_length)).sum()),
    )  # fmt: skip


def _best_fit_rows(document_lengths: NDArray[np.int64], sequence_length: int) -> tuple[Pieces, NDArray[np.int64]]:
    """Pieces by row, and within a row in order of placement; pieces of each row."""
    documents, starts, lengths = _cut_long(document_lengths, sequence_length)
    small = np.uint16 if sequence_length < 1 << 16 else np.uint64  # numpy sorts 16-bit numbers by radix, ten times as fast
    order = np.argsort((sequence_length - lengths).astype(small), kind="stable")
    rows_in_order, n_rows = _best_fit(lengths[order], sequence_length)
    order = order[np.argsort(rows_in_order, kind="stable")]
    return (documents[order], starts[order], lengths[order]), np.bincount(rows_in_order, minlength=n_rows)


def _cut_long(lengths: NDArray[np.int64], sequence_length: int) -> Pieces:
    """Documents longer than a row in pieces of one row and a rest, all others whole."""
    pieces = -(-lengths // sequence_length)
    documents = np.repeat(np.arange(len(lengths), dtype=np.int64), pieces)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = (np.arange(len(documents), dtype=np.int64) - first) * sequence_length
    return documents, starts, np.minimum(lengths[documents] - starts, sequence_length)


def _cut_at_row_ends(lengths: NDArray[np.int64], sequence_length: int) -> Pieces:
    """Documents laid end to end and cut at every multiple of a row."""
    held = np.flatnonzero(lengths)  # a document of no tokens would begin where the next one does
    ends = np.cumsum(lengths[held])
    begins = ends - lengths[held]
    total = int(ends[-1]) if len(ends) else 0
    borders = np.union1d(begins, np.arange(0, total, sequence_length, dtype=np.int64))
    place = np.searchsorted(ends, borders, side="right")
    return held[place].astype(np.int64), borders - begins[place], np.diff(borders, append=total)


def _best_fit(lengths: NDArray[np.int64], sequence_length: int) -> tuple[NDArray[np.int64], int]:
    """Row of each piece, for lengths in descending order, and the number of rows.

    The tightest row with room for a piece of length s stays the tightest for the next piece of length s as long as it has room:
    it takes room // s of them. So all rows of one room are filled by one array operation, exactly as one piece at a time would.
    """
    rows = np.empty(len(lengths), dtype=np.int64)
    by_room: dict[int, list[NDArray[np.int64]]] = {}
    rooms = 0  # bit r is set when some row has r places left; the lowest bit from s on is the best fit for s
    n_rows = 0
    borders = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        length = int(lengths[begin])
        while begin < end:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                open_rows = by_room[room].pop()
                if not by_room[room]:
                    rooms &= ~(1 << room)
            else:
                room = sequence_length
                new = -(-(end - begin) // (room // length))
                open_rows = np.arange(n_rows, n_rows + new, dtype=np.int64)
                n_rows += new
            each = room // length
            whole, rest = divmod(min(end - begin, each * len(open_rows)), each)
            used = np.concatenate([np.repeat(open_rows[:whole], each), np.repeat(open_rows[whole : whole + 1], rest)])
            rows[begin : begin + len(used)] = used
            begin += len(used)
            touched = whole + (rest > 0)
            left = ((room - each * length, open_rows[:whole]), (room - rest * length, open_rows[whole:touched]), (room, open_rows[touched:]))
            for remaining, group in left:
                if remaining > 0 and len(group):
                    by_room.setdefault(remaining, []).append(group)
                    rooms |= 1 << remaining
    return rows, n_rows
