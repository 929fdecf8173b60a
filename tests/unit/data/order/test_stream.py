from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_stores import memory_store

import slayer.data.order.stream as stream_module
from slayer.config import CleaningConfig, DataConfig, SourceConfig
from slayer.data.cleaning.screening import screen_texts
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.order.loader import IndexedSource, Loader, StreamedSource, build_loader
from slayer.data.order.stream import Stream, heldout_of
from slayer.data.reading.shards import file_shards
from slayer.errors import DataError

CLEANING = CleaningConfig(decontaminate=[], min_characters=3, max_bad_share=0.2)


@dataclass
class ListShard:
    """Records in memory; `opened` lists where it was read from, `handed` counts the records it gave."""

    name: str
    records: Sequence[Document | BadRecord]
    opened: list[int] = field(default_factory=list)
    handed: int = 0

    def read(self, skip: int) -> Iterator[Document | BadRecord]:
        self.opened.append(skip)
        for record in self.records[skip:]:
            self.handed += 1
            yield record


def screen(texts: Sequence[str]) -> NDArray[np.uint8]:
    return screen_texts(texts, None).measures.reasons(CLEANING)


def shards_of(sizes: Sequence[int], *, bad_every: int = 17) -> list[ListShard]:
    """Shards of so many records of 5 to 105 bytes, some of them bad."""
    shards = []
    for number, size in enumerate(sizes):
        records: list[Document | BadRecord] = []
        for record in range(size):
            if record % bad_every == 5:
                records.append(BadRecord(file=f"s{number}", record=record + 1, offset_bytes=None, reason="is empty"))
            else:
                text = f"{number}/{record} " + "wort " * (int(hashlib.sha256(f"{number}/{record}".encode()).hexdigest(), 16) % 20)
                records.append(Document(id=f"s{number}@{record}", text=text))
        shards.append(ListShard(f"s{number}", records))
    return shards


def config(**changes: Any) -> DataConfig:
    source = SourceConfig(role="domain", path="x", stream=True, heldout_share=0.1, **changes.pop("source", {}))
    return DataConfig(**{"name": "t", "sources": {"web": source}, "replay": 0.0, "sequence_length": 64, "cleaning": CLEANING, **changes})


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few batches of four records."""
    for name, value in (("WINDOW_ROWS", 8), ("WINDOW_RECORDS", 24), ("BATCH_RECORDS", 4)):
        monkeypatch.setattr(stream_module, name, value)


Open = Callable[..., Stream]


@pytest.fixture
def open_stream(tokenizer: Any, small_windows: None) -> Open:
    def opened(shards: Sequence[ListShard], seed: int = 0, **changes: Any) -> Stream:
        return Stream(shards, tokenizer, config(**changes), "web", seed=seed, screen=screen)

    return opened


def row_of(stream: Stream, index: int) -> list[tuple[str, int, bytes]]:
    """(document, start, tokens) of the pieces of one row of the source."""
    rows, row = stream.rows_at(index)
    pieces = []
    for piece in rows.pieces(row):
        tokens = rows.tokens.document_tokens(piece.document)[piece.start : piece.start + piece.length]
        pieces.append((stream.document_id(index, piece.document), piece.start, tokens.tobytes()))
    return pieces


def held_out(document: Document, share: float = 0.1) -> bool:
    """The split as the documentation states it."""
    group = document.group or hashlib.sha256(document.text.encode()).hexdigest()
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64 < share


def epoch_rows(stream: Stream, epoch: int, start: int = 0) -> Iterator[int]:
    index = start
    while stream.epochs(index) < epoch:
        index += 1
    while stream.epochs(index) == epoch:
        yield index
        index += 1


def test_an_epoch_holds_every_training_document_once(open_stream: Open, tokenizer: Any) -> None:
    shards = shards_of([70, 3, 41, 120, 0, 1])
    stream = open_stream(shards)
    documents = [record for shard in shards for record in shard.records if isinstance(record, Document) and not held_out(record)]
    wanted = Counter()
    for document in documents:
        ids = [tokenizer.bos_token_id, *tokenizer(document.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        wanted.update((document.id, start, np.array(ids[start : start + 64], np.int32).tobytes()) for start in range(0, len(ids), 64))
    orders = []
    for epoch in (0, 1, 2):
        seen = [piece for index in epoch_rows(stream, epoch) for piece in row_of(stream, index)]
        assert Counter(seen) == wanted
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    assert len(documents) < sum(isinstance(record, Document) for shard in shards for record in shard.records)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 30),
    st.lists(st.integers(0, 120), min_size=1, max_size=12),
    st.integers(0, 9),
)
def test_any_row_in_any_order_is_the_same_row(open_stream: Open, sizes: list[int], visits: list[int], seed: int) -> None:
    in_order = open_stream(shards_of(sizes), seed)
    truth = [row_of(in_order, index) for index in range(121)]
    wandering = open_stream(shards_of(sizes), seed)
    for index in visits:
        assert row_of(wandering, index) == truth[index]
        position = json.loads(json.dumps(wandering.position(index)))
        resumed = open_stream(shards_of(sizes), seed)
        resumed.restore(position)
        assert [row_of(resumed, later) for later in range(index, min(index + 9, 121))] == truth[index : index + 9]
        assert row_of(resumed, 0) == truth[0]


def test_going_on_from_a_position_reads_nothing_that_came_before(open_stream: Open) -> None:
    sizes = [400, 400, 400]
    stream = open_stream(shards_of(sizes))
    position = [stream.position(index) for index in range(300) if row_of(stream, index)][-1]
    shards = shards_of(sizes)
    resumed = open_stream(shards)
    first = sum(shard.handed for shard in shards)
    resumed.restore(position)
    row_of(resumed, 299)
    assert first <= 24 and sum(shard.handed for shard in shards) - first <= 24
    assert all(shard.opened in ([], [0], [position["record"]], [0, position["record"]]) for shard in shards)


def test_reading_on_never_opens_a_shard_twice(open_stream: Open) -> None:
    shards = shards_of([100, 100])
    stream = open_stream(shards)
    for index in epoch_rows(stream, 0):
        row_of(stream, index)
    assert sorted(shard.opened for shard in shards) == [[0], [0, 0]]  # the second time for the first window of the next epoch


def test_few_places_are_remembered_and_all_rows_still_found(open_stream: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "KNOWN_PLACES", 8)
    stream = open_stream(shards_of([300, 200]))
    truth = [row_of(stream, index) for index in range(400)]
    for index in (399, 3, 120, 119, 60, 250, 0, 398):
        assert row_of(stream, index) == truth[index]
        assert len(stream._places) <= 8


def test_seeds_read_shards_in_other_orders(open_stream: Open) -> None:
    firsts = {row_of(open_stream(shards_of([30] * 12), seed), 0)[0][0].split("@")[0] for seed in range(12)}
    assert len(firsts) > 3


def test_copies_in_a_window_and_rubbish_are_left_out(open_stream: Open) -> None:
    texts = ["the same text", "the same text", "x", "\x01\x02\x03 not text \x04\x05\x06", "another text", "the same text"]
    shard = ListShard("s", [Document(id=str(number), text=text, group=f"group {number + 20}") for number, text in enumerate(texts)])
    assert not any(held_out(record) for record in shard.records if isinstance(record, Document))
    stream = open_stream([shard])
    assert {piece[0] for index in epoch_rows(stream, 0) for piece in row_of(stream, index)} == {"0", "4"}
    assert stream.first_removed == {"duplicate": 2, "too_short": 1, "not_text": 1}
    assert any("1 too short" in sentence for sentence in stream.cannot_promise)
    kept = open_stream([shard], cleaning=CLEANING.model_copy(update={"exact_duplicates": False}))
    assert {piece[0] for index in epoch_rows(kept, 0) for piece in row_of(kept, index)} == {"0", "1", "4", "5"}


def test_held_out_documents_are_those_never_trained_on(open_stream: Open) -> None:
    shards = shards_of([200, 100])
    found = list(heldout_of(shards, 0.1, screen))
    assert [document.id for document in found] == [
        record.id for shard in shards for record in shard.records if isinstance(record, Document) and held_out(record)
    ]
    stream = open_stream(shards)
    trained = {piece[0] for index in epoch_rows(stream, 0) for piece in row_of(stream, index)}
    assert len(found) > 10 and not trained & {document.id for document in found}


def test_too_many_bad_records_stop_the_reading(open_stream: Open) -> None:
    stream = open_stream(shards_of([5_000], bad_every=4), cleaning=CLEANING.model_copy(update={"max_bad_share": 0.3}))
    row_of(stream, 500)
    strict = CLEANING.model_copy(update={"max_bad_share": 0.1})
    stream = open_stream(shards_of([5_000], bad_every=6), cleaning=strict)
    with pytest.raises(SourceError, match=r"data\.cleaning\.max_bad_share"):
        row_of(stream, 2_000)
    with pytest.raises(SourceError, match=r"data\.cleaning\.max_bad_share"):
        open_stream(shards_of([12], bad_every=6), cleaning=strict)  # at the end all are judged


def test_nothing_to_train_on_is_refused(open_stream: Open) -> None:
    with pytest.raises(SourceError, match=r"data\.sources\.web\.path.*no text to train on: 2 .* as too_short\n.*min_characters=0"):
        open_stream([ListShard("s", [Document(id="1", text="x"), Document(id="2", text="y")])])


def test_reading_it_too_often_is_refused(open_stream: Open) -> None:
    stream = open_stream(shards_of([60]), source={"max_epochs": 2.0})
    index = 0
    with pytest.raises(SourceError, match=r"data\.sources\.web\.max_epochs = 2\.0: .* read 2 times"):
        while True:
            row_of(stream, index)
            index += 1
    assert stream.epochs(index - 1) == 1


def test_a_position_that_cannot_be_read_is_refused(open_stream: Open) -> None:
    with pytest.raises(DataError, match="saved position of the streamed source web"):
        open_stream(shards_of([30])).restore({"epoch": 0, "place": 3})


def test_the_identity_knows_text_shards_and_settings(open_stream: Open) -> None:
    streams = [
        open_stream(shards_of([60, 40])), open_stream(shards_of([60, 41])), open_stream(shards_of([60, 40, 0])),
        open_stream(shards_of([60, 40]), cleaning=CLEANING.model_copy(update={"min_characters": 2})), open_stream(shards_of([60, 40], bad_every=6)),
    ]  # fmt: skip
    identities = [json.dumps(stream.identity) for stream in streams]
    assert identities[0] == json.dumps(open_stream(shards_of([60, 40])).identity)
    assert len({identities[0], *identities[2:]}) == 4


@pytest.fixture
def make_loader(tokenizer: Any, own_cache: Path, tmp_path: Path, small_windows: None) -> Callable[[], Loader]:
    """A streamed source of real files beside an indexed one."""
    for number in range(3):
        lines = [json.dumps({"text": f"{number} {line} " + "mot " * (line % 13)}) for line in range(90)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def make() -> Loader:
        web = SourceConfig(role="domain", path=str(tmp_path / "*.jsonl"), stream=True)
        settings = config(replay=0.4, sources={"web": web, "general": SourceConfig(role="replay", path="x")})
        stream = Stream(file_shards("web", web, CLEANING), tokenizer, settings, "web", seed=5, screen=screen)
        store = memory_store([[1, *range(5, 5 + length), 2] for length in range(3, 90)])
        general = IndexedSource(name="general", role="replay", store=store, documents=np.arange(87))
        sources = [StreamedSource(name="web", role="domain", stream=stream), general]
        return build_loader(sources, settings, seed=5, batch_rows=4, pad_id=0)

    return make


def test_streamed_and_indexed_sources_make_one_stream(make_loader: Callable[[], Loader]) -> None:
    one, two = make_loader(), make_loader()
    rows = [one.arrays(np.arange(4 * step, 4 * step + 4)).input_ids_BL for step in range(60)]
    assert one.fingerprint == two.fingerprint
    two.restore(json.loads(json.dumps(one.position(40))))
    for step in (40, 41, 59, 12):
        assert (two.arrays(np.arange(4 * step, 4 * step + 4)).input_ids_BL == rows[step]).all()
        assert two.valid_tokens(step) == int((two.batch(step).labels_BL != -100).sum())
    assert one.steps_per_domain_epoch is None and one.epochs(60)["web"] is None
    report = {line.name: line for line in one.report(60)}
    assert report["web"].streamed and report["web"].cannot_promise and report["web"].rows is None
    assert report["web"].planned_share == pytest.approx(0.6, abs=0.01)
    labels = Counter()
    for step in range(300):
        arrays = one.arrays(np.arange(4 * step, 4 * step + 4))
        for source, row in zip(arrays.sources_B.tolist(), arrays.labels_BL, strict=True):
            labels[source] += int((row != -100).sum())
    assert labels[0] / labels.total() == pytest.approx(0.6, abs=0.02)
    sample = next(sample for row in range(20) if (sample := one.sample_row(row)).source == "web")
    assert sample.pieces[0].document is None and ".jsonl@" in str(sample.pieces[0].document_id)
