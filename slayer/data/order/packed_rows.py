"""Packed rows of one body of tokenised documents: which pieces stand in a row, and the row written out for a model.

L is the number of places in a row.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slayer.data.cache import cache_dir, written_aside
from slayer.data.order.packing import Packing, Strategy, pack
from slayer.errors import DataError

FORMAT = 1
"""Part of every key: raised when packings written before would be read wrongly."""

IGNORED = -100
"""Label of a place that carries no loss."""

Places = NDArray[np.int64]


class Tokens(Protocol):
    """Tokenised documents by number: a token store, or a window of a stream."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        ...

    def document_tokens(self, index: int) -> NDArray[np.int32]:
        """Tokens of one document, BOS and EOS included."""
        ...


class Store(Tokens, Protocol):
    """Tokens on disk; the fingerprint says which they are."""

    @property
    def fingerprint(self) -> str:
        """A hash of texts and tokenizer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of one document in a row: tokens `start` to `start` + `length` of document number `document`; `ends`: its last ones."""

    document: int
    start: int
    length: int
    ends: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """`packing.documents` are numbers of `tokens`. `labels[r]` counts the places of row r that carry a loss, `by_labels` are the
    rows in ascending order of that."""

    tokens: Tokens
    packing: Packing
    labels: NDArray[np.int64]
    by_labels: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Rows there are."""
        return self.packing.n_rows

    @cached_property
    def n_labels(self) -> int:
        """Places of all rows that carry a loss."""
        return int(self.labels.sum())

    def pieces(self, row: int) -> list[Piece]:
        """What stands in a row, from left to right."""
        packing, lengths = self.packing, self.tokens.lengths
        part = slice(int(packing.row_offsets[row]), int(packing.row_offsets[row + 1]))
        columns = (packing.documents[part].tolist(), packing.starts[part].tolist(), packing.lengths[part].tolist())
        return [
            Piece(document=document, start=start, length=length, ends=start + length == int(lengths[document]))
            for document, start, length in zip(*columns, strict=True)
        ]

    def fill(self, row: int, ids_L: Places, labels_L: Places, positions_L: Places, documents_L: Places) -> None:
        """Write one row in place. `ids_L` must hold the padding and `labels_L` IGNORED.

        The last label of a piece that does not end its document is the document's next token, wherever that stands.
        """
        packing, tokens = self.packing, self.tokens
        part = slice(int(packing.row_offsets[row]), int(packing.row_offsets[row + 1]))
        lengths = packing.lengths[part]
        ends = np.cumsum(lengths)
        following = []
        begin = 0
        for document, start, end in zip(packing.documents[part].tolist(), packing.starts[part].tolist(), ends.tolist(), strict=True):
            length = end - begin
            piece = tokens.document_tokens(document)[start : start + length + 1]
            ids_L[begin:end] = piece[:length]
            following.append(int(piece[length]) if len(piece) > length else IGNORED)
            begin = end
        labels_L[: begin - 1] = ids_L[1:begin]
        labels_L[ends - 1] = following
        numbers = np.repeat(np.arange(len(ends)), lengths)
        documents_L[:begin], documents_L[begin:] = numbers, len(ends)
        positions_L[:begin] = np.arange(begin) - (ends - lengths)[numbers]
        positions_L[begin:] = np.arange(len(ids_L) - begin)


def packed_rows(tokens: Tokens, documents: NDArray[np.int64], sequence_length: int, strategy: Strategy) -> PackedRows:
    """Pack the chosen documents of a body of tokens."""
    documents = np.asarray(documents, dtype=np.int64)
    lengths = tokens.lengths[documents]
    packing = pack(lengths, sequence_length, strategy)
    unlabelled = packing.starts + packing.lengths == lengths[packing.documents]  # the last token of a document has no label
    total = np.concatenate([[0], np.cumsum(packing.lengths - unlabelled)])
    labels = total[packing.row_offsets[1:]] - total[packing.row_offsets[:-1]]
    chosen = Packing(
        sequence_length=sequence_length, row_offsets=packing.row_offsets, documents=documents[packing.documents], starts=packing.starts,
        lengths=packing.lengths, cut_documents=packing.cut_documents, needless_cuts=packing.needless_cuts,
    )  # fmt: skip
    return PackedRows(tokens=tokens, packing=chosen, labels=labels, by_labels=np.argsort(labels, kind="stable"))


def documents_hash(documents: NDArray[np.int64]) -> str:
    """SHA-256 of a choice of documents."""
    return hashlib.sha256(np.ascontiguousarray(documents, dtype="<i8").tobytes()).hexdigest()


def cached_rows(tokens: Store, documents: NDArray[np.int64], sequence_length: int, strategy: Strategy) -> PackedRows:
    """The same from the cache, memory-mapped, so that the ranks of a machine share one copy; packed when it is not there yet.

    DataError when the cached files are damaged.
    """
    parts = f"{FORMAT}/{tokens.fingerprint}/{documents_hash(documents)}/{sequence_length}/{strategy}"
    folder = cache_dir() / "packing" / hashlib.sha256(parts.encode()).hexdigest()[:32]
    if not folder.is_dir():
        with written_aside(folder) as scratch:
            _save(packed_rows(tokens, documents, sequence_length, strategy), scratch)
    try:
        return _load(tokens, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the packing {folder} is damaged ({error})\n    type: rm -r {folder}   (it is made again)") from error


def _save(rows: PackedRows, folder: Path) -> None:
    packing = rows.packing
    arrays = {"row_offsets": packing.row_offsets, "documents": packing.documents, "starts": packing.starts, "lengths": packing.lengths}
    for name, array in {**arrays, "labels": rows.labels, "by_labels": rows.by_labels}.items():
        np.save(folder / f"{name}.npy", array.astype("<i8"))
    counts = {"sequence_length": packing.sequence_length, "cut_documents": packing.cut_documents, "needless_cuts": packing.needless_cuts}
    (folder / "packing.json").write_text(json.dumps({"counts": counts, "pieces": len(packing.documents), "rows": packing.n_rows}), encoding="utf-8")


def _load(tokens: Tokens, folder: Path) -> PackedRows:
    saved = json.loads((folder / "packing.json").read_text(encoding="utf-8"))
    expected = {"row_offsets": saved["rows"] + 1, "labels": saved["rows"], "by_labels": saved["rows"]}
    arrays: dict[str, Any] = {}
    for name in ("row_offsets", "documents", "starts", "lengths", "labels", "by_labels"):
        length = expected.get(name, saved["pieces"])
        array = np.load(folder / f"{name}.npy", mmap_mode="r" if length else None)
        if array.shape != (length,):
            raise ValueError(f"{name} has {array.shape} entries, not {length}")
        arrays[name] = np.asarray(array)  # a plain view: np.memmap's own indexing is slow
    labels, by_labels = arrays.pop("labels"), arrays.pop("by_labels")
    return PackedRows(tokens=tokens, packing=Packing(**arrays, **saved["counts"]), labels=labels, by_labels=by_labels)
