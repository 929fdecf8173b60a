"""The batch of any step, as a pure function of (configuration, seed, step): nothing is iterated, so nothing can get out of step.

Shapes: B rows of a batch, L tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from slayer.config import DataConfig
from slayer.data.order.epochs import Repetition, SourceReport, highest_step, refuse_too_many_epochs, warnings_of_epochs
from slayer.data.order.mixture import Schedule, build_schedule, stage_shares
from slayer.data.order.packed_rows import IGNORED, PackedRows, Places, Store, cached_rows, documents_hash
from slayer.data.order.permutation import evenly_permuted
from slayer.data.order.sample import SamplePiece, SampleRow
from slayer.data.order.stream import Stream
from slayer.errors import DataError

if TYPE_CHECKING:
    import torch

ORDER = 2
"""Part of every identity: raised when the same settings would give another order."""

Role = Literal["domain", "replay"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """int64 tensors. Labels are already shifted: the label at t is the token that follows t in its document.

    A place has no label (-100) when it is the last of its document, or padding; padding stands only at the end of a row. Where a
    document was cut, the last place of a piece keeps its label, the first token of the next piece. `positions_BL` restart at 0 with
    every piece. `documents_BL` numbers the pieces of a row: tokens may attend only to their own number. Padding has a number of its
    own.
    """

    input_ids_BL: torch.Tensor
    labels_BL: torch.Tensor
    positions_BL: torch.Tensor
    documents_BL: torch.Tensor
    sources_B: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchArrays:
    """A batch as int64 arrays, for whoever does not need torch."""

    input_ids_BL: Places
    labels_BL: Places
    positions_BL: Places
    documents_BL: Places
    sources_B: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IndexedSource:
    """A source whose tokens are all on disk. `documents` are the numbers of its training documents in the store.

    `identity` is what is known of the text besides, JSON-able (its files, its corpus).
    """

    name: str
    role: Role
    store: Store
    documents: NDArray[np.int64]
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamedSource:
    """A source that is read in order while training. `identity` as above: revision, or names and sizes of files."""

    name: str
    role: Role
    stream: Stream
    identity: Mapping[str, Any] = field(default_factory=dict)


LoadedSource = IndexedSource | StreamedSource


class _PackedSource:
    """One indexed source, packed: any row of any epoch, without reading what came before."""

    def __init__(self, source: IndexedSource, rows: PackedRows, seed: int) -> None:
        self.source, self.rows = source, rows
        self._key = f"{seed}/{{}}/{source.name}"

    @property
    def labels_per_row(self) -> Fraction:
        """Mean number of places with a label, over an epoch."""
        return Fraction(self.rows.n_labels, max(self.rows.n_rows, 1))

    def rows_at(self, index: int) -> tuple[PackedRows, int]:
        """Each epoch holds every row once, in an order of its own."""
        epoch, place = divmod(index, self.rows.n_rows)
        return self.rows, int(self.rows.by_labels[evenly_permuted(place, self.rows.n_rows, self._key.format(epoch))])


class Loader:
    """Batches by step. Sources are numbered in the order of the configuration; steps, rows, ranks count from 0."""

    def __init__(
        self, sources: Sequence[_PackedSource | StreamedSource], schedule: Schedule, data: DataConfig, *, seed: int, batch_rows: int, pad_id: int
    ) -> None:
        described = [source.source if isinstance(source, _PackedSource) else source for source in sources]
        self.source_names = tuple(source.name for source in described)
        self.roles: dict[str, Role] = {source.name: source.role for source in described}
        self.schedule = schedule
        self.batch_rows = batch_rows
        self.sequence_length = data.sequence_length
        self._packed = {number: source for number, source in enumerate(sources) if isinstance(source, _PackedSource)}
        self._streamed = {number: source for number, source in enumerate(sources) if isinstance(source, StreamedSource)}
        self._data, self._seed, self._pad_id = data, seed, pad_id
        self._latest: tuple[int, list[tuple[int, PackedRows, int]]] | None = None
        self._identity = self._describe(described)
        self.fingerprint = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()

    def batch(self, step: int) -> Batch:
        """The global batch of a step: B = batch_rows."""
        return _tensors(self._written(self._step(step)))

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[Batch]:
        """This rank's part of the global batch, on `rank_rows`."""
        places, first = self._step(step), step * self.batch_rows
        rows = self.rank_rows(step, rank=rank, world=world, micro_batch_rows=micro_batch_rows)
        return [_tensors(self._written(places[int(part[0]) - first : int(part[-1]) - first + 1])) for part in rows]

    def rank_rows(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[NDArray[np.int64]]:
        """Global rows of each micro-batch of a rank: micro-batch m of rank r is rows [(m·world + r)·micro, +micro) of the batch.

        DataError when world × micro_batch_rows does not divide batch_rows.
        """
        if self.batch_rows % (world * micro_batch_rows) or not 0 <= rank < world:
            raise DataError(
                f"{self.batch_rows} rows a step cannot be cut into micro-batches of {micro_batch_rows} for rank {rank} of {world}\n"
                f"    type: train.batch_rows={world * micro_batch_rows}"
            )
        first = step * self.batch_rows + rank * micro_batch_rows
        starts = range(first, (step + 1) * self.batch_rows, world * micro_batch_rows)
        return [np.arange(start, start + micro_batch_rows, dtype=np.int64) for start in starts]

    def valid_tokens(self, step: int) -> int:
        """Places with a label in the global batch of a step: what its summed loss is divided by."""
        return sum(int(packed.labels[row]) for _, packed, row in self._step(step))

    def arrays(self, rows: NDArray[np.int64]) -> BatchArrays:
        """These global rows, written out."""
        return self._written(self._chosen(rows))

    def _written(self, places: Sequence[tuple[int, PackedRows, int]]) -> BatchArrays:
        shape = (len(places), self.sequence_length)
        ids, labels = np.full(shape, self._pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        positions, documents = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        sources = np.empty(len(places), dtype=np.int64)
        for place, (source, packed, row) in enumerate(places):
            packed.fill(row, ids[place], labels[place], positions[place], documents[place])
            sources[place] = source
        return BatchArrays(input_ids_BL=ids, labels_BL=labels, positions_BL=positions, documents_BL=documents, sources_B=sources)

    def source_rows(self, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(source, row of that source) of each global row; of a streamed source the row's running number, else the packed row."""
        sources, indices = self.schedule.source_of(rows).tolist(), self.schedule.index_of(rows).tolist()
        return [
            (source, self._packed[source].rows_at(index)[1] if source in self._packed else index)
            for source, index in zip(sources, indices, strict=True)
        ]

    def sample_row(self, row: int) -> SampleRow:
        """What stands in a global row, piece by piece."""
        rows = np.array([row], dtype=np.int64)
        ((source, packed, packed_row),) = self._chosen(rows)
        stream = self._streamed[source].stream if source in self._streamed else None
        index = int(self.schedule.index_of(rows)[0])
        pieces = tuple(
            SamplePiece(
                document=piece.document if stream is None else None,
                document_id=None if stream is None else stream.document_id(index, piece.document), start=piece.start,
                tokens=packed.tokens.document_tokens(piece.document)[piece.start : piece.start + piece.length],
                starts=piece.start == 0, ends=piece.ends,
            )
            for piece in packed.pieces(packed_row)
        )  # fmt: skip
        return SampleRow(source=self.source_names[source], row=row, pieces=pieces)

    def document_lengths(self, name: str) -> NDArray[np.int64]:
        """Tokens of each training document of an indexed source, BOS and EOS included; KeyError of a streamed one."""
        source = self._packed[self.source_names.index(name)].source
        lengths: NDArray[np.int64] = source.store.lengths[source.documents]
        return lengths

    @property
    def steps_per_domain_epoch(self) -> int | None:
        """Steps that use as many domain rows as there are (each once, when there is one domain source); None while one is streamed."""
        domain = [number for number, name in enumerate(self.source_names) if self.roles[name] == "domain"]
        if any(number in self._streamed for number in domain):
            return None
        rows = sum(self._packed[number].rows.n_rows for number in domain)
        return 1 + highest_step(lambda steps: int(self.schedule.counts(steps * self.batch_rows)[domain].sum()) < rows)

    def epochs(self, steps: int) -> dict[str, float | None]:
        """How often so many steps read each source; None of a streamed one."""
        counts = self.schedule.counts(steps * self.batch_rows).tolist()
        packed = self._packed
        return {
            name: counts[number] / max(packed[number].rows.n_rows, 1) if number in packed else None for number, name in enumerate(self.source_names)
        }

    def require_epochs(self, steps: int) -> None:
        """DataError, with what to type, when so many steps read a source more often than its max_epochs."""
        refuse_too_many_epochs(self._repetitions(steps, {name: source.max_epochs for name, source in self._data.sources.items()}), self._data)

    def warnings(self, steps: int) -> list[str]:
        """One sentence for each source that so many steps read more often than data.warn_epochs, and for each stage that they do not reach."""
        unreached = [stage for stage in self.schedule.stages if stage.from_step >= max(steps, 1)]
        return [
            *warnings_of_epochs(self._repetitions(steps, dict.fromkeys(self.source_names, self._data.warn_epochs))),
            *(
                f"the stage from {stage.from_tokens:,} tokens on is never reached: the run ends before step {stage.from_step:,}"
                for stage in unreached
            ),
        ]

    def report(self, steps: int) -> list[SourceReport]:
        """One line a source, with what so many steps use of it."""
        expected = self.schedule.expected_tokens(steps * self.batch_rows)
        planned, epochs = expected / max(expected.sum(), 1), self.epochs(steps)
        lines = []
        for number, name in enumerate(self.source_names):
            stream = self._streamed[number].stream if number in self._streamed else None
            packed = stream.first_rows if stream is not None else self._packed[number].rows
            packing = packed.packing
            lines.append(
                SourceReport(
                    name=name, role=self.roles[name], streamed=stream is not None,
                    train_documents=None if stream else len(self._packed[number].source.documents),
                    train_tokens=None if stream else int(packing.lengths.sum()), labels=None if stream else packed.n_labels,
                    rows=None if stream else packed.n_rows, labels_per_row=packed.n_labels / max(packed.n_rows, 1), fill=packing.fill,
                    cut_documents=None if stream else packing.cut_documents, needless_cuts=None if stream else packing.needless_cuts,
                    share=float(self.schedule.stages[0].token_shares[name]), planned_share=float(planned[number]), epochs=epochs[name],
                    max_epochs=self._data.sources[name].max_epochs, cannot_promise=stream.cannot_promise if stream else (),
                )
            )  # fmt: skip
        return lines

    def identity(self) -> dict[str, Any]:
        """Everything that decides the stream, nested and JSON-able; `fingerprint` is its SHA-256."""
        return self._identity

    def position(self, step: int) -> dict[str, Any]:
        """Where the streamed sources stand before a step, JSON-able: with it `restore` need not read again what came before."""
        counts = self.schedule.counts(step * self.batch_rows).tolist()
        return {source.name: source.stream.position(counts[number]) for number, source in self._streamed.items()}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Know what `position` gave. DataError when it cannot be read. Batches are the same with and without it."""
        for source in self._streamed.values():
            if source.name in position:
                source.stream.restore(position[source.name])

    def _rows_of(self, step: int) -> NDArray[np.int64]:
        return np.arange(step * self.batch_rows, (step + 1) * self.batch_rows, dtype=np.int64)

    def _step(self, step: int) -> list[tuple[int, PackedRows, int]]:
        """`_chosen` of a step's rows. A step asks first how many labels it has, then for its rows: the answer is kept until the next step."""
        if self._latest is None or self._latest[0] != step:
            self._latest = (step, self._chosen(self._rows_of(step)))
        return self._latest[1]

    def _chosen(self, rows: NDArray[np.int64]) -> list[tuple[int, PackedRows, int]]:
        """(source, its packed rows, which of them) of each global row."""
        chosen = []
        for source, index in zip(self.schedule.source_of(rows).tolist(), self.schedule.index_of(rows).tolist(), strict=True):
            place = self._packed[source].rows_at(index) if source in self._packed else self._streamed[source].stream.rows_at(index)
            chosen.append((source, *place))
        return chosen

    def _repetitions(self, steps: int, limits: Mapping[str, float | None]) -> list[Repetition]:
        """Sources that are read more often than their limit."""
        found = []
        epochs = self.epochs(steps)
        for number, name in enumerate(self.source_names):
            read, limit = epochs[name], limits[name]
            if read is None or limit is None or read <= limit:
                continue
            fitting = self._steps_with_rows(number, int(limit * self._packed[number].rows.n_rows))
            tokens = fitting * self.batch_rows * self.sequence_length
            found.append(Repetition(name=name, role=self.roles[name], epochs=read, limit=limit, fitting_tokens=tokens))
        return found

    def _steps_with_rows(self, source: int, rows: int) -> int:
        """The most steps that use no more than so many rows of a source."""
        return highest_step(lambda steps: int(self.schedule.counts(steps * self.batch_rows)[source]) <= rows)

    def _describe(self, sources: Sequence[LoadedSource]) -> dict[str, Any]:
        described = {}
        for number, source in enumerate(sources):
            known: dict[str, Any] = {**source.identity, "role": source.role}
            if isinstance(source, IndexedSource):
                rows = self._packed[number].rows
                known |= {"tokens": source.store.fingerprint, "selection": documents_hash(source.documents), "rows": rows.n_rows}
                known["labels_per_row"] = str(self._packed[number].labels_per_row)
            else:
                known |= source.stream.identity
            described[source.name] = known
        stages = [
            {"from_tokens": stage.from_tokens, "shares": {name: str(share) for name, share in stage.token_shares.items()}}
            for stage in self.schedule.stages
        ]
        settings = {"order": ORDER, "seed": self._seed, "batch_rows": self.batch_rows, "sequence_length": self.sequence_length}
        return {"sources": described, "stages": stages, "packing": self._data.packing, **settings}


def _tensors(arrays: BatchArrays) -> Batch:
    import torch

    return Batch(**{one.name: torch.from_numpy(getattr(arrays, one.name)) for one in fields(arrays)})


def build_loader(sources: Sequence[LoadedSource], data: DataConfig, *, seed: int, batch_rows: int, pad_id: int) -> Loader:
    """Pack (or open the cached packing of) every indexed source and lay out the stages. Sources in the order of `data.sources`.

    DataError for a mixture that cannot be served: no source of a role, no text in a source that has a share.
    """
    asked = stage_shares(data)
    made: list[_PackedSource | StreamedSource] = []
    labels_per_row: dict[str, Fraction] = {}
    for source in sources:
        if isinstance(source, IndexedSource):
            rows = cached_rows(source.store, source.documents, data.sequence_length, data.packing)
            packed = _PackedSource(source, rows, seed)
            labels_per_row[source.name] = packed.labels_per_row
            made.append(packed)
        else:
            labels_per_row[source.name] = source.stream.labels_per_row
            made.append(source)
        if labels_per_row[source.name] == 0 and any(stage.shares[source.name] for stage in asked):
            raise DataError(f"the source {source.name} holds no text to train on\n    type: data.sources.{source.name}.path=TEXT")
    return Loader(made, build_schedule(asked, labels_per_row, batch_rows), data, seed=seed, batch_rows=batch_rows, pad_id=pad_id)
