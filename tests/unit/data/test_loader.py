from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from slayer.config import DataConfig, SourceConfig
from slayer.data.loader import Batch, Loader, build_loader
from slayer.data.sources import read_source
from slayer.errors import DataError

MakeLoader = Callable[..., Loader]


def equal(one: Batch, two: Batch) -> bool:
    names = ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL", "sources_B")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def joined(batches: list[Batch]) -> Batch:
    names = ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL", "sources_B")
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names})


def pieces_of(batch: Batch, eos: int, pad: int) -> list[tuple[int, tuple[int, ...], int]]:
    """(source, tokens, label of the last token) of every piece of a batch, by a plain loop over its places."""
    pieces = []
    for row, source in enumerate(batch.sources_B.tolist()):
        ids, labels, numbers = batch.input_ids_BL[row].tolist(), batch.labels_BL[row].tolist(), batch.documents_BL[row].tolist()
        for number in dict.fromkeys(numbers):
            places = [place for place, other in enumerate(numbers) if other == number]
            assert places == list(range(places[0], places[-1] + 1))
            assert batch.positions_BL[row, places].tolist() == list(range(len(places)))
            if ids[places[0]] == pad:  # the text holds no pad token
                assert places[-1] == len(ids) - 1 and {labels[place] for place in places} == {-100}
                continue
            for place in places[:-1]:
                assert labels[place] == ids[place + 1]
            assert (labels[places[-1]] == -100) == (ids[places[-1]] == eos)
            pieces.append((source, tuple(ids[place] for place in places), labels[places[-1]]))
    return pieces


def test_the_batch_of_a_step_depends_on_nothing_that_came_before(make_loader: MakeLoader) -> None:
    one, two = make_loader(), make_loader()
    in_order = [one.batch(step) for step in range(12)]
    assert all(equal(two.batch(step), in_order[step]) for step in (11, 3, 7, 3, 0))
    assert one.fingerprint == two.fingerprint


def test_types_and_shapes(make_loader: MakeLoader) -> None:
    batch = make_loader().batch(0)
    for tensor in (batch.input_ids_BL, batch.labels_BL, batch.positions_BL, batch.documents_BL):
        assert tensor.shape == (8, 64) and tensor.dtype == torch.int64
    assert batch.sources_B.shape == (8,) and batch.sources_B.dtype == torch.int64


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 2), (4, 2), (4, 1)])
def test_ranks_together_see_the_global_batch(make_loader: MakeLoader, world: int, micro: int) -> None:
    loader = make_loader()
    for step in (0, 5):
        ranks = [loader.micro_batches(step, rank=rank, world=world, micro_batch_rows=micro) for rank in range(world)]
        order = [ranks[rank][number] for number in range(8 // (world * micro)) for rank in range(world)]
        assert equal(joined(order), loader.batch(step))


def test_rows_that_do_not_divide_among_ranks_are_refused(make_loader: MakeLoader) -> None:
    with pytest.raises(DataError, match=r"train\.batch_rows=6"):
        make_loader().micro_batches(0, rank=0, world=2, micro_batch_rows=3)


def test_an_epoch_holds_every_token_of_every_document_once(make_loader: MakeLoader, data: DataConfig, tokenizer: Any) -> None:
    """The ground truth is put together from the files, without packing or store."""
    loader = make_loader(batch_rows=1)
    steps = range(3 * sum(report.rows for report in loader.report(0)) * 4)
    order = [loader.source_rows(np.array([step]))[0][0] for step in steps]
    for number, report in enumerate(loader.report(0)):
        mine = [step for step in steps if order[step] == number]
        for epoch in (0, 1):
            seen: Counter[tuple[int, ...]] = Counter()
            for step in mine[epoch * report.rows : (epoch + 1) * report.rows]:
                seen.update(tokens for _, tokens, _ in pieces_of(loader.batch(step), tokenizer.eos_token_id, tokenizer.pad_token_id))
            wanted: Counter[tuple[int, ...]] = Counter()
            for document in read_source(report.name, data.sources[report.name]).train:
                ids = [tokenizer.bos_token_id, *tokenizer(document.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                wanted.update(tuple(ids[start : start + 64]) for start in range(0, len(ids), 64))
            assert seen == wanted


def test_the_last_token_of_a_cut_piece_predicts_the_next_piece(make_loader: MakeLoader, data: DataConfig, tokenizer: Any) -> None:
    loader = make_loader(sequence_length=16)
    follows: dict[tuple[int, ...], set[int]] = {}
    for name in loader.source_names:
        for document in read_source(name, data.sources[name]).train:
            ids = [tokenizer.bos_token_id, *tokenizer(document.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for start in range(0, len(ids) - 16, 16):
                follows.setdefault(tuple(ids[start : start + 16]), set()).add(ids[start + 16])
    cut = 0
    for step in range(30):
        for _, tokens, last_label in pieces_of(loader.batch(step), tokenizer.eos_token_id, tokenizer.pad_token_id):
            if tokens[-1] != tokenizer.eos_token_id:
                assert last_label in follows[tokens]
                cut += 1
    assert cut > 50


def test_epochs_visit_each_row_once_and_in_another_order(make_loader: MakeLoader) -> None:
    loader = make_loader()
    visits: dict[int, list[int]] = {}
    for source, row in loader.source_rows(np.arange(4_000)):
        visits.setdefault(source, []).append(row)
    for number, report in enumerate(loader.report(0)):
        first, second = visits[number][: report.rows], visits[number][report.rows : 2 * report.rows]
        assert sorted(first) == sorted(second) == list(range(report.rows)) and first != second


def test_the_seed_changes_the_order_and_the_fingerprint(make_loader: MakeLoader) -> None:
    one, two = make_loader(seed=1), make_loader(seed=2)
    assert one.fingerprint != two.fingerprint and not equal(one.batch(0), two.batch(0))


def test_the_fingerprint_knows_text_and_settings(make_loader: MakeLoader, data: DataConfig) -> None:
    fewer = {name: source for name, source in data.sources.items() if name != "code"}
    other_split = {name: source.model_copy(update={"heldout_share": 0.4}) for name, source in data.sources.items()}
    loaders = [make_loader(), make_loader(sequence_length=32), make_loader(replay=0.5), make_loader(batch_rows=4), make_loader(sources=fewer)]
    loaders.append(make_loader(sources=other_split))
    assert len({loader.fingerprint for loader in loaders}) == len(loaders)


def test_adding_a_source_does_not_reorder_the_others(make_loader: MakeLoader, data: DataConfig) -> None:
    def order(loader: Loader, name: str) -> list[int]:
        number = loader.source_names.index(name)
        return [row for source, row in loader.source_rows(np.arange(2_000)) if source == number][:20]

    fewer = {name: source for name, source in data.sources.items() if name != "code"}
    assert order(make_loader(), "law") == order(make_loader(sources=fewer), "law")


def test_valid_tokens_counts_the_labels(make_loader: MakeLoader) -> None:
    loader = make_loader(sequence_length=24)
    for step in range(10):
        assert loader.valid_tokens(step) == int((loader.batch(step).labels_BL != -100).sum())


def test_report_adds_up(make_loader: MakeLoader, data: DataConfig) -> None:
    loader = make_loader()
    steps = 40
    counted = Counter(source for step in range(steps) for source in loader.batch(step).sources_B.tolist())
    for number, report in enumerate(loader.report(steps)):
        text = read_source(report.name, data.sources[report.name])
        assert (report.train_documents, report.heldout_documents) == (len(text.train), len(text.heldout))
        assert report.train_bytes == sum(len(document.text.encode()) for document in text.train)
        assert report.train_tokens == report.train_bytes + 2 * report.train_documents  # one token a byte, BOS and EOS
        assert report.fill == pytest.approx(report.train_tokens / (report.rows * 64))
        assert report.epochs == pytest.approx(counted[number] / report.rows)
    assert sum(report.share for report in loader.report(1)) == pytest.approx(1)
    assert [report.share for report in loader.report(1)] == pytest.approx([0.5, 0.25, 0.25])


def test_heldout_and_training_text_never_meet(make_loader: MakeLoader, data: DataConfig) -> None:
    loader = make_loader()
    for name, documents in loader.heldout.items():
        train = {document.text for document in read_source(name, data.sources[name]).train}
        assert documents and not train & {document.text for document in documents}


def test_a_domain_epoch_is_as_many_rows_as_the_domain_has(make_loader: MakeLoader) -> None:
    loader = make_loader()
    rows = sum(report.rows for report in loader.report(0) if report.role == "domain")
    assert (loader.steps_per_domain_epoch - 1) * 8 * 0.75 < rows <= loader.steps_per_domain_epoch * 8 * 0.75


def test_without_replay_the_general_text_is_still_held_out(make_loader: MakeLoader) -> None:
    loader = make_loader(replay=0.0)
    assert loader.heldout["general"] and loader.roles["general"] == "replay"
    assert 1 not in loader.batch(0).sources_B.tolist() and loader.report(10)[1].epochs == 0


def test_a_single_tiny_source_makes_batches(tmp_path: Any, tokenizer: Any, own_cache: Any) -> None:
    (tmp_path / "two.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    config = DataConfig(name="two", sources={"two": SourceConfig(role="domain", path=str(tmp_path / "two.jsonl"))}, replay=0.0, sequence_length=10)
    batch = build_loader(config, tokenizer, seed=0, batch_rows=4).batch(1_000_000)
    assert (batch.input_ids_BL[:, 4] == tokenizer.eos_token_id).all() and (batch.documents_BL == torch.tensor([0] * 5 + [1] * 5)).all()
