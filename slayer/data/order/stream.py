"""Rows of a source that is not indexed first: its shards are read in order while training, any size, in bounded memory.

A window is the text from some place of the stream on until it makes WINDOW_ROWS rows or WINDOW_RECORDS records; it is packed and
shuffled by itself. So its rows, and the place where the next window begins, are a pure function of (place, seed): a run that stops
and goes on with any number of ranks reads on from the beginning of the window it was in, and sees the very rows it would have seen.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.config import DataConfig
from slayer.data.cleaning.screening import KEPT, REASONS, place_of
from slayer.data.cleaning.selection import KEEPING
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.order.packed_rows import PackedRows, packed_rows
from slayer.data.order.permutation import evenly_permuted, permuted
from slayer.data.reading.shards import Shard
from slayer.data.reading.sources import bad_share_problem
from slayer.data.storing.tokens import Encoder, tokenizer_hash
from slayer.errors import DataError, Problem

WINDOW_ROWS = 256
WINDOW_RECORDS = 2_000
BATCH_RECORDS = 64
BATCH_CHARACTERS = 1 << 20
"""Records are tokenised in batches that end at one of these two; a window ends at the end of a batch."""
KNOWN_PLACES = 4_096
JUDGED_RECORDS = 1_000
"""Before so many records a share of bad ones says little."""
HELDOUT_SEARCH_RECORDS = 200_000

Screen = Callable[[Sequence[str]], NDArray[np.uint8]]
"""Why each text, judged by itself, is left out: codes of screening.REASONS, 0 where it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlace:
    """Where a window begins: `record` records of the `shard`-th shard of the `epoch` are behind it (all from 0), and so are `row`
    rows of this source since the run began, `epoch_row` of them before this epoch; of `records` records read `bad` could not be."""

    epoch: int = 0
    shard: int = 0
    record: int = 0
    row: int = 0
    epoch_row: int = 0
    records: int = 0
    bad: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowTokens:
    """Tokenised documents in memory, as `Tokens`."""

    lengths: NDArray[np.int64]
    documents: Sequence[NDArray[np.int32]]

    def document_tokens(self, index: int) -> NDArray[np.int32]:
        """Tokens of one document, BOS and EOS included."""
        return self.documents[index]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """Packed rows from one place of the stream to the next; `ids` are the documents' names, `removed` counts removed ones by reason.

    Without text it has no rows.
    """

    place: StreamPlace
    following: StreamPlace
    rows: PackedRows | None
    ids: Sequence[str]
    removed: Mapping[str, int]


class Stream:
    """One streamed source. Every rank reads all of it and keeps its own rows."""

    def __init__(self, shards: Sequence[Shard], tokenizer: Any, data: DataConfig, name: str, *, seed: int, screen: Screen) -> None:
        self.name = name
        self._config, self._data, self._seed, self._screen = data.sources[name], data, seed, screen
        self._shards, self._encoder, self._tokenizer = list(shards), Encoder.of(tokenizer), tokenizer_hash(tokenizer)
        self._places = [StreamPlace()]  # in the order of their rows
        self._open: tuple[StreamPlace, Iterator[Document | BadRecord]] | None = None
        self._first_bad: BadRecord | None = None
        self._window = self._read(StreamPlace())
        while self._window.rows is None:
            self._window = self._read(self._window.following)
        self.first_rows: PackedRows = self._window.rows
        self.first_removed = dict(self._window.removed)
        self._first_ids = self._window.ids

    @property
    def labels_per_row(self) -> Fraction:
        """Mean number of places with a label in the rows of the first window: what token shares are reckoned with."""
        return Fraction(self.first_rows.n_labels, self.first_rows.n_rows)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the rows of this source besides seed and row length, JSON-able. The text itself is known by its first window."""
        rows = self.first_rows
        begins = hashlib.sha256(b"".join(rows.tokens.document_tokens(number).tobytes() for number in range(len(self._first_ids))))
        cleaning = self._data.cleaning.model_dump(exclude={"max_bad_share", "near_duplicates"})
        return {
            "streamed": True, "shards": _names_hash([shard.name for shard in self._shards]), "begins": begins.hexdigest(),
            "tokenizer": self._tokenizer, "heldout_share": self._config.heldout_share, "window": [WINDOW_ROWS, WINDOW_RECORDS],
            "cleaning": cleaning,
        }  # fmt: skip

    @property
    def cannot_promise(self) -> tuple[str, ...]:
        """What an indexed source has and this one lacks, in sentences."""
        counts = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in self.first_removed.items()) or "nothing"
        return (
            f"The order is that of its files: it is shuffled only within a window of up to {WINDOW_ROWS} rows or {WINDOW_RECORDS:,} records.",
            "Duplicates are found only where they are exact and stand in one window; near-duplicates are not looked for.",
            f"What is removed is counted beforehand in the first window only: {counts}.",
            "How often it will be read is not known beforehand; at its end it starts over with its files in another order.",
            "Its share of the tokens is exact only as far as later text fills rows like the first window does.",
            "Every rank reads and tokenises all of it.",
        )

    def rows_at(self, index: int) -> tuple[PackedRows, int]:
        """The window's rows that hold row number `index` of this source, and which of them it is.

        Going on is reading on; going back or far ahead starts at the nearest place known. SourceError when too many records are
        bad, nothing is left, or data.sources.NAME.max_epochs is passed.
        """
        window = self._window_at(index)
        assert window.rows is not None
        offset = index - window.place.row
        key = f"{self._seed}/{window.place.epoch}/{window.place.row}/{self.name}"
        return window.rows, int(window.rows.by_labels[evenly_permuted(offset, window.rows.n_rows, key)])

    def document_id(self, index: int, document: int) -> str:
        """Name of a document of the window that holds row `index`."""
        return self._window_at(index).ids[document]

    def epochs(self, index: int) -> int:
        """How many times all of it was read before row `index`."""
        return self._window_at(index).place.epoch

    def position(self, index: int) -> dict[str, int]:
        """The nearest known place before row `index`, JSON-able: where a later run reads on."""
        return asdict(self._nearest(index))

    def restore(self, position: dict[str, int]) -> None:
        """Know a place that `position` gave; nothing is read before a row is asked for. DataError when it is not one."""
        try:
            place = StreamPlace(**{name: int(value) for name, value in position.items()})
        except (TypeError, ValueError) as error:
            raise DataError(f"the saved position of the streamed source {self.name} cannot be read: {position!r}") from error
        self._know(place)

    def _window_at(self, index: int) -> Window:
        while True:
            window = self._window
            if window.place.row <= index < window.following.row:
                return window
            nearest = self._nearest(index)
            goes_on = nearest.row <= window.following.row <= index
            self._window = self._read(window.following if goes_on else nearest)

    def _nearest(self, index: int) -> StreamPlace:
        return self._places[bisect_right(self._places, index, key=lambda place: place.row) - 1]

    def _know(self, place: StreamPlace) -> None:
        """Remember a place; of two with the same row the later one in the stream, which skips what holds no text."""
        at = bisect_right(self._places, place.row, key=lambda known: known.row)
        known = self._places[at - 1] if at else None
        if known is not None and known.row == place.row:
            if at > 1 and (place.epoch, place.shard, place.record) > (known.epoch, known.shard, known.record):
                self._places[at - 1] = place
            return
        self._places.insert(at, place)
        if len(self._places) > KNOWN_PLACES:
            del self._places[1 : KNOWN_PLACES // 2 : 2]

    def _read(self, place: StreamPlace) -> Window:
        """The window that begins at a place."""
        cap = self._config.max_epochs
        if cap is not None and place.epoch >= math.ceil(cap):
            key = f"data.sources.{self.name}.max_epochs"
            why = f"all of this streamed text was read {place.epoch} times, and the run asks for more"
            raise SourceError(Problem(key=key, value=cap, why=why, fix=f"{key}={place.epoch + 1}, or train.max_steps=N with fewer steps"))
        sequence_length = self._data.sequence_length
        texts: list[NDArray[np.int32]] = []
        ids: list[str] = []
        seen: set[bytes] = set()
        removed: Counter[str] = Counter()
        n_tokens, now = 0, place
        while n_tokens < WINDOW_ROWS * sequence_length and now.records - place.records < WINDOW_RECORDS and now.epoch == place.epoch:
            documents, now = self._read_batch(now)
            for document, tokens in self._tokenised(self._sound(documents, seen, removed)):
                texts.append(tokens)
                ids.append(document.id)
                n_tokens += len(tokens)
        rows = None
        if any(len(tokens) > 1 for tokens in texts):  # a lone EOS teaches nothing
            lengths = np.array([len(tokens) for tokens in texts], dtype=np.int64)
            body = WindowTokens(lengths=lengths, documents=texts)
            rows = packed_rows(body, np.arange(len(texts)), sequence_length, self._data.packing)
        following = replace(now, row=place.row + (rows.n_rows if rows else 0))
        if following.epoch > place.epoch:
            if following.row == place.epoch_row:
                self._refuse_empty(following, removed)
            following = replace(following, epoch_row=following.row)
        self._know(following)
        return Window(place=place, following=following, rows=rows, ids=ids, removed=removed)

    def _read_batch(self, place: StreamPlace) -> tuple[list[Document], StreamPlace]:
        """The next records and the place behind them: in the same shard, at the beginning of the next one, or of the next epoch."""
        documents, n_records, n_bad, n_characters = [], 0, 0, 0
        reader = self._reader(place)
        for record in islice(reader, BATCH_RECORDS):
            n_records += 1
            if isinstance(record, BadRecord):
                n_bad += 1
                self._first_bad = self._first_bad or record
            else:
                documents.append(record)
                n_characters += len(record.text)
                if n_characters >= BATCH_CHARACTERS:
                    break
        else:
            if n_records < BATCH_RECORDS:  # the shard is read out
                self._open = None
                last = place.shard + 1 == len(self._shards)
                after = replace(place, shard=0, epoch=place.epoch + 1, record=0) if last else replace(place, shard=place.shard + 1, record=0)
                after = replace(after, records=place.records + n_records, bad=place.bad + n_bad)
                self._judge_bad(after, final=last)
                return documents, after
        after = replace(place, record=place.record + n_records, records=place.records + n_records, bad=place.bad + n_bad)
        self._open = (after, reader)
        self._judge_bad(after, final=False)
        return documents, after

    def _reader(self, place: StreamPlace) -> Iterator[Document | BadRecord]:
        """The records from a place to the end of its shard; goes on where the last batch ended, else seeks within the shard."""
        where = (place.epoch, place.shard, place.record)
        if self._open is not None and (self._open[0].epoch, self._open[0].shard, self._open[0].record) == where:
            return self._open[1]
        shard = permuted(place.shard, len(self._shards), f"{self._seed}/{place.epoch}/{self.name}/shards")
        return iter(self._shards[shard].read(place.record))

    def _sound(self, documents: Sequence[Document], seen: set[bytes], removed: Counter[str]) -> list[Document]:
        """Training documents that nothing is against and that are no copies of earlier ones of the window."""
        kept = []
        reasons = self._screen([document.text for document in documents]).tolist() if documents else []
        for document, reason in zip(documents, reasons, strict=True):
            digest = _digest(document.text)
            if reason != KEPT or (digest in seen and self._data.cleaning.exact_duplicates):
                removed[REASONS[reason] if reason != KEPT else "duplicate"] += 1
            elif not _is_heldout(document, self._config.heldout_share):
                seen.add(digest)
                kept.append(document)
        return kept

    def _tokenised(self, documents: Sequence[Document]) -> Iterator[tuple[Document, NDArray[np.int32]]]:
        encoder = self._encoder
        before = [] if encoder.bos is None else [encoder.bos]
        encoded = encoder.encode([document.text for document in documents]) if documents else []
        for document, ids in zip(documents, encoded, strict=True):
            yield document, np.array([*before, *ids, encoder.eos], dtype=np.int32)

    def _judge_bad(self, place: StreamPlace, *, final: bool) -> None:
        if self._first_bad is not None and (final or place.records >= JUDGED_RECORDS):
            problem = bad_share_problem(self.name, self._config, self._data.cleaning, place.records, place.bad, self._first_bad)
            if problem is not None:
                raise SourceError(problem)

    def _refuse_empty(self, place: StreamPlace, removed: Counter[str]) -> None:
        which = "path" if self._config.path is not None else "hub"
        key, value = f"data.sources.{self.name}.{which}", getattr(self._config, which)
        most = removed.most_common(1)
        why = f"holds no text to train on: {place.records - place.bad:,} readable records, every one held out or removed"
        why += f", most of them as {most[0][0]}" if most else ""
        fix = f"{KEEPING[most[0][0]]}, or {key}=TEXT" if most and most[0][0] in KEEPING else f"{key}=TEXT"
        raise SourceError(Problem(key=key, value=value, why=why, fix=fix))


def heldout_of(shards: Sequence[Shard], heldout_share: float, screen: Screen) -> Iterator[Document]:
    """Held-out documents in the order of the shards, each once, looked for in the first HELDOUT_SEARCH_RECORDS records."""
    records = (record for shard in shards for record in shard.read(0))
    documents = (record for record in islice(records, HELDOUT_SEARCH_RECORDS) if isinstance(record, Document))
    seen: set[bytes] = set()
    for document in documents:
        digest = _digest(document.text)
        if _is_heldout(document, heldout_share) and digest not in seen and int(screen([document.text])[0]) == KEPT:
            seen.add(digest)
            yield document


def _is_heldout(document: Document, heldout_share: float) -> bool:
    """The same split as of indexed sources: a pure function of the document's group."""
    return place_of(document.group or _digest(document.text).hex()) / 2**64 < heldout_share


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _names_hash(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
