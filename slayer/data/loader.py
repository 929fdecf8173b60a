"""The batch of any step, as a pure function of (configuration, seed, step): nothing is iterated, so nothing can get out of step.

Shapes: B rows of a batch, L tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from slayer.config import DataConfig
from slayer.data.mixture import Mixture, build_mixture, source_shares
from slayer.data.packing import Packing, pack
from slayer.data.permutation import permuted
from slayer.data.sources import read_source
from slayer.data.tokens import HeldoutDocument, Progress, TokenStore, heldout_documents, token_store
from slayer.errors import DataError

if TYPE_CHECKING:
    import torch

Row = NDArray[np.int64]

IGNORED = -100
"""Label of a place that carries no loss."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """int64 tensors. Labels are already shifted: the label at t is the token that follows t in its document.

    A place has no label (-100) when it is the last of its document, or padding; padding stands only at the end of a row. Where a
    long document was cut, the last place of a piece keeps its label, the first token of the next piece. `positions_BL` restart at
    0 with every piece. `documents_BL` numbers the pieces of a row: tokens may attend only to their own number. Padding has a
    number of its own.
    """

    input_ids_BL: torch.Tensor
    labels_BL: torch.Tensor
    positions_BL: torch.Tensor
    documents_BL: torch.Tensor
    sources_B: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What one source holds and how much of it a run uses. `share` is asked, of all rows; `epochs` are planned."""

    name: str
    role: Literal["domain", "replay"]
    train_documents: int
    heldout_documents: int
    train_tokens: int
    train_bytes: int
    rows: int
    fill: float
    share: float
    epochs: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedSource:
    """One source, tokenised and packed. `labels_per_row[r]` counts the places of row r that carry a loss."""

    name: str
    role: Literal["domain", "replay"]
    share: float
    store: TokenStore
    packing: Packing
    labels_per_row: NDArray[np.int64]


class Loader:
    """Batches by step. Sources are numbered in the order of the configuration; steps, rows, ranks count from 0."""

    def __init__(
        self,
        sources: list[PackedSource],
        mixture: Mixture,
        heldout: dict[str, list[HeldoutDocument]],
        *,
        seed: int,
        batch_rows: int,
        sequence_length: int,
        pad_id: int,
    ) -> None:
        self.source_names = tuple(source.name for source in sources)
        self.roles = {source.name: source.role for source in sources}
        self.heldout = heldout
        self.batch_rows = batch_rows
        self.sequence_length = sequence_length
        self._sources = sources
        self._mixture = mixture
        self._seed = seed
        self._pad_id = pad_id
        settings = [(source.name, source.role, source.share, source.store.fingerprint) for source in sources]
        text = json.dumps([settings, seed, batch_rows, sequence_length, mixture.period_rows])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def batch(self, step: int) -> Batch:
        """The global batch of a step: B = batch_rows."""
        return self._rows(np.arange(step * self.batch_rows, (step + 1) * self.batch_rows, dtype=np.int64))

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[Batch]:
        """This rank's part of the global batch: micro-batch m of rank r is its rows [(m·world + r)·micro, +micro).

        DataError when world × micro_batch_rows does not divide batch_rows.
        """
        if self.batch_rows % (world * micro_batch_rows) or not 0 <= rank < world:
            raise DataError(
                f"{self.batch_rows} rows a step cannot be cut into micro-batches of {micro_batch_rows} for rank {rank} of {world}\n"
                f"    type: train.batch_rows={world * micro_batch_rows}"
            )
        first = step * self.batch_rows + rank * micro_batch_rows
        starts = range(first, (step + 1) * self.batch_rows, world * micro_batch_rows)
        return [self._rows(np.arange(start, start + micro_batch_rows, dtype=np.int64)) for start in starts]

    def valid_tokens(self, step: int) -> int:
        """Places with a label in the global batch of a step: what its summed loss is divided by. Reads no token."""
        rows = np.arange(step * self.batch_rows, (step + 1) * self.batch_rows, dtype=np.int64)
        return sum(int(self._sources[source].labels_per_row[row]) for source, row in self.source_rows(rows))

    def source_rows(self, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(source, packed row of that source) of each global row: where the stream's order is decided."""
        chosen = []
        for source, index in zip(self._mixture.source_of(rows).tolist(), self._mixture.index_of(rows).tolist(), strict=True):
            n_rows = self._sources[source].packing.n_rows
            epoch, place = divmod(index, n_rows)
            chosen.append((source, permuted(place, n_rows, f"{self._seed}/{epoch}/{self.source_names[source]}")))
        return chosen

    @property
    def steps_per_domain_epoch(self) -> int:
        """Steps that use as many domain rows as there are (each domain row once, when there is one domain source)."""
        domain = [source for source in self._sources if source.role == "domain"]
        rows = sum(source.packing.n_rows for source in domain)
        return math.ceil(rows / (sum(source.share for source in domain) * self.batch_rows))

    def report(self, steps: int) -> list[SourceReport]:
        """One line a source, with the epochs that so many steps make."""
        planned = self._mixture.counts(steps * self.batch_rows)
        return [
            SourceReport(
                name=source.name, role=source.role, train_documents=source.store.n_documents, heldout_documents=len(self.heldout[source.name]),
                train_tokens=source.store.n_tokens, train_bytes=source.store.n_bytes, rows=source.packing.n_rows, fill=source.packing.fill,
                share=source.share, epochs=int(planned[number]) / source.packing.n_rows,
            )
            for number, source in enumerate(self._sources)
        ]  # fmt: skip

    def _rows(self, rows: NDArray[np.int64]) -> Batch:
        import torch

        shape = (len(rows), self.sequence_length)
        input_ids, labels = np.full(shape, self._pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        positions, documents = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        chosen = self.source_rows(rows)
        for place, (source, row) in enumerate(chosen):
            _fill_row(self._sources[source], row, input_ids[place], labels[place], positions[place], documents[place])
        return Batch(
            input_ids_BL=torch.from_numpy(input_ids), labels_BL=torch.from_numpy(labels), positions_BL=torch.from_numpy(positions),
            documents_BL=torch.from_numpy(documents), sources_B=torch.tensor([source for source, _ in chosen], dtype=torch.int64),
        )  # fmt: skip


def _fill_row(source: PackedSource, row: int, ids_L: Row, labels_L: Row, positions_L: Row, documents_L: Row) -> None:
    """Write one row in place. A piece that does not end its document fills its whole row, so at most one label comes from outside."""
    packing = source.packing
    pieces = slice(int(packing.row_offsets[row]), int(packing.row_offsets[row + 1]))
    lengths = packing.lengths[pieces]
    ends = np.cumsum(lengths)
    begin, beyond = 0, IGNORED
    for document, start, end in zip(packing.documents[pieces].tolist(), packing.starts[pieces].tolist(), ends.tolist(), strict=True):
        tokens = source.store.document_tokens(document)[start : start + len(ids_L) + 1]
        ids_L[begin:end] = tokens[: end - begin]
        begin = end
        if len(tokens) > len(ids_L):
            beyond = int(tokens[-1])
    labels_L[: begin - 1] = ids_L[1:begin]
    labels_L[ends - 1] = IGNORED
    if beyond != IGNORED:
        labels_L[-1] = beyond
    numbers = np.repeat(np.arange(len(ends)), lengths)
    documents_L[:begin], documents_L[begin:] = numbers, len(ends)
    positions_L[:begin] = np.arange(begin) - (ends - lengths)[numbers]
    positions_L[begin:] = np.arange(len(ids_L) - begin)


def _labels_per_row(packing: Packing, document_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every token but the last of a document has a label."""
    ends = packing.starts + packing.lengths == document_lengths[packing.documents]
    total = np.concatenate([[0], np.cumsum(packing.lengths - ends)])
    labels: NDArray[np.int64] = total[packing.row_offsets[1:]] - total[packing.row_offsets[:-1]]
    return labels


def build_loader(data: DataConfig, tokenizer: Any, *, seed: int, batch_rows: int, on_progress: Progress | None = None) -> Loader:
    """Read, split, tokenise (or open the cached tokens of) and pack every source.

    Raises DataError (SourceError names the key and the override) or AssetError.
    """
    shares = source_shares(data)
    sources, heldout = [], {}
    for name, config in data.sources.items():
        text = read_source(name, config)
        store = token_store(text.train, tokenizer, label=name, on_progress=on_progress)
        heldout[name] = heldout_documents(name, text.heldout, tokenizer)
        packing = pack(store.lengths, data.sequence_length)
        sources.append(
            PackedSource(
                name=name, role=text.role, share=float(shares[name]), store=store, packing=packing,
                labels_per_row=_labels_per_row(packing, store.lengths),
            )
        )  # fmt: skip
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Loader(
        sources, build_mixture(shares), heldout,
        seed=seed, batch_rows=batch_rows, sequence_length=data.sequence_length, pad_id=pad_id,
    )  # fmt: skip
