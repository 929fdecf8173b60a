from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_stores import SyntheticStore, memory_store, text_store

from slayer.config import DataConfig, SourceConfig, StageConfig
from slayer.data.order.loader import Batch, IndexedSource, Loader, build_loader
from slayer.data.order.packing import Strategy
from slayer.errors import DataError

MakeLoader = Callable[..., Loader]
FIELDS = ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL", "sources_B")
STRATEGIES: tuple[Strategy, ...] = ("best_fit", "concat", "pad")

generator = random.Random(1)
TEXTS = {
    name: [f"{name} {number} " + "é" * int(generator.lognormvariate(3, 1)) for number in range(count)]
    for name, count in (("law", 120), ("general", 40), ("code", 60))
}
"""Documents of 10 to 400 bytes; every third document is held out, which for the loader is only a matter of its number."""
TRAIN = {name: np.array([number for number in range(len(texts)) if number % 3]) for name, texts in TEXTS.items()}


def config_of(roles: Mapping[str, str], **changes: Any) -> DataConfig:
    sources = {name: SourceConfig(role=role, path="x") for name, role in roles.items()}  # type: ignore[arg-type]
    return DataConfig(**{"name": "test", "sources": sources, "replay": 0.25, "sequence_length": 64, **changes})


def small_config(**changes: Any) -> DataConfig:
    config = config_of({"law": "domain", "general": "replay", "code": "domain"})
    heavier = config.sources | {"law": config.sources["law"].model_copy(update={"weight": 2.0})}
    return config.model_copy(update={"sources": heavier, **changes})


@pytest.fixture
def make_loader(tokenizer: Any, own_cache: Path) -> MakeLoader:
    """build_loader on the small texts; keywords replace fields of the data section."""

    def make(seed: int = 3, batch_rows: int = 8, texts: Mapping[str, list[str]] = TEXTS, **changes: Any) -> Loader:
        config = small_config(**changes)
        sources = [
            IndexedSource(name=name, role=source.role, store=text_store(texts[name], tokenizer), documents=TRAIN[name])
            for name, source in config.sources.items()
        ]
        return build_loader(sources, config, seed=seed, batch_rows=batch_rows, pad_id=tokenizer.pad_token_id)

    return make


def equal(one: Batch, two: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)


def joined(batches: list[Batch]) -> Batch:
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in FIELDS})


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


def stored(name: str, tokenizer: Any) -> list[list[int]]:
    """The training documents as tokens, by the tokenizer alone."""
    texts = [TEXTS[name][number] for number in TRAIN[name]]
    return [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_epoch_holds_every_token_of_every_document_once(make_loader: MakeLoader, tokenizer: Any, strategy: Strategy) -> None:
    """The ground truth is put together from the texts, without packing or store; pieces are put together again by their labels."""
    loader = make_loader(batch_rows=1, packing=strategy)
    visits = loader.source_rows(np.arange(3_000))
    for number, report in enumerate(loader.report(0)):
        mine = [step for step, (source, _) in enumerate(visits) if source == number]
        assert report.rows is not None and len(mine) >= 2 * report.rows
        wanted = Counter(token for tokens in stored(report.name, tokenizer) for token in tokens)
        transitions = Counter(pair for tokens in stored(report.name, tokenizer) for pair in pairwise(tokens))
        for epoch in (0, 1):
            seen: Counter[int] = Counter()
            labelled: Counter[tuple[int, int]] = Counter()
            for step in mine[epoch * report.rows : (epoch + 1) * report.rows]:
                for _, tokens, last_label in pieces_of(loader.batch(step), tokenizer.eos_token_id, tokenizer.pad_token_id):
                    seen.update(tokens)
                    labelled.update(zip(tokens, [*tokens[1:], last_label], strict=True))
            ends = {pair: count for pair, count in labelled.items() if pair[1] == -100}
            assert seen == wanted
            assert labelled - Counter(ends) == transitions and set(ends) == {(tokenizer.eos_token_id, -100)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_last_token_of_a_cut_piece_predicts_the_next_piece(make_loader: MakeLoader, tokenizer: Any, strategy: Strategy) -> None:
    loader = make_loader(sequence_length=16, packing=strategy)
    texts = ["".join(f"{token} " for token in tokens) for name in loader.source_names for tokens in stored(name, tokenizer)]
    cut = 0
    for step in range(30):
        for _, tokens, last_label in pieces_of(loader.batch(step), tokenizer.eos_token_id, tokenizer.pad_token_id):
            if tokens[-1] != tokenizer.eos_token_id:
                cut += 1
                goes_on = "".join(f"{token} " for token in (*tokens, last_label))
                assert any(goes_on in text for text in texts)
    assert cut > 50


def test_epochs_visit_each_row_once_and_in_another_order(make_loader: MakeLoader) -> None:
    loader = make_loader()
    visits: dict[int, list[int]] = {}
    for source, row in loader.source_rows(np.arange(4_000)):
        visits.setdefault(source, []).append(row)
    for number, report in enumerate(loader.report(0)):
        assert report.rows is not None
        first, second = visits[number][: report.rows], visits[number][report.rows : 2 * report.rows]
        assert sorted(first) == sorted(second) == list(range(report.rows)) and first != second


def test_the_seed_changes_the_order_and_the_fingerprint(make_loader: MakeLoader) -> None:
    one, two = make_loader(seed=1), make_loader(seed=2)
    assert one.fingerprint != two.fingerprint and not equal(one.batch(0), two.batch(0))


def test_the_fingerprint_knows_text_and_settings(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    fewer = {name: source for name, source in config.sources.items() if name != "code"}
    loaders = [make_loader(), make_loader(sequence_length=32), make_loader(replay=0.5), make_loader(batch_rows=4), make_loader(sources=fewer)]
    loaders += [make_loader(packing="concat"), make_loader(stages=[StageConfig(from_tokens=5_000, replay=0.5)])]
    loaders += [make_loader(texts=TEXTS | {"law": [*TEXTS["law"][:-1], "changed"]})]
    monkeypatch.setitem(TRAIN, "law", TRAIN["law"][:-1])
    loaders += [make_loader()]
    assert len({loader.fingerprint for loader in loaders}) == len(loaders)
    for loader in loaders:
        assert json.loads(json.dumps(loader.identity())) == loader.identity()


def test_adding_a_source_does_not_reorder_the_others(make_loader: MakeLoader) -> None:
    def order(loader: Loader, name: str) -> list[int]:
        number = loader.source_names.index(name)
        return [row for source, row in loader.source_rows(np.arange(2_000)) if source == number][:20]

    fewer = {name: source for name, source in small_config().sources.items() if name != "code"}
    assert order(make_loader(), "law") == order(make_loader(sources=fewer), "law")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_valid_tokens_counts_the_labels(make_loader: MakeLoader, strategy: Strategy) -> None:
    loader = make_loader(sequence_length=24, packing=strategy)
    for step in range(10):
        assert loader.valid_tokens(step) == int((loader.batch(step).labels_BL != -100).sum())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_report_adds_up(make_loader: MakeLoader, tokenizer: Any, strategy: Strategy) -> None:
    loader, steps = make_loader(packing=strategy), 200
    counted = Counter(source for step in range(steps) for source in loader.batch(step).sources_B.tolist())
    for number, report in enumerate(loader.report(steps)):
        documents = stored(report.name, tokenizer)
        assert report.train_documents == len(documents)
        assert report.train_tokens == sum(map(len, documents))
        assert report.labels == report.train_tokens - len(documents)  # the first token of a document is nobody's label
        assert report.rows is not None and report.fill == pytest.approx(report.train_tokens / (report.rows * 64))
        assert report.epochs == pytest.approx(counted[number] / report.rows) == loader.epochs(steps)[report.name]
        assert report.needless_cuts is not None and (report.needless_cuts == 0 or strategy == "concat")
        assert report.planned_share == pytest.approx(report.share, abs=0.01)
    assert [report.share for report in loader.report(1)] == pytest.approx([0.5, 0.25, 0.25])


def measured_shares(loader: Loader, rows: int) -> dict[str, float]:
    """Labels of each source in real batches of the first rows, as shares of all."""
    labels: Counter[str] = Counter()
    for begin in range(0, rows, 500):
        arrays = loader.arrays(np.arange(begin, min(begin + 500, rows)))
        for source, row in zip(arrays.sources_B.tolist(), arrays.labels_BL, strict=True):
            labels[loader.source_names[source]] += int((row != -100).sum())
    return {name: labels[name] / labels.total() for name in loader.source_names}


LENGTHS = st.tuples(st.sampled_from(["lognormal", "uniform", "equal", "bimodal"]), st.integers(3, 200), st.integers(0, 10**6))


def lengths_of(kind: str, mean: int, seed: int) -> np.ndarray[Any, Any]:
    random_lengths = np.random.default_rng(seed)
    drawn = {
        "lognormal": lambda: random_lengths.lognormal(np.log(mean), 1.0, 4_000), "uniform": lambda: random_lengths.uniform(2, 2 * mean, 4_000),
        "equal": lambda: np.full(4_000, mean), "bimodal": lambda: np.where(random_lengths.random(4_000) < 0.9, 3, 20 * mean),
    }[kind]()  # fmt: skip
    return np.clip(drawn, 2, 4_000).astype(np.int64)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(LENGTHS, min_size=2, max_size=4), st.lists(st.integers(1, 30), min_size=4, max_size=4), st.sampled_from([0.05, 0.25, 0.5]),
    st.sampled_from(["best_fit", "concat"]), st.integers(0, 99),
)  # fmt: skip
def test_measured_shares_of_tokens_are_the_asked_ones_within_a_thousandth(
    own_cache: Path, kinds: list[tuple[str, int, int]], weights: list[int], replay: float, strategy: Strategy, seed: int
) -> None:
    names = [f"source{number}" for number in range(len(kinds))]
    config = config_of({name: "replay" if number == 0 else "domain" for number, name in enumerate(names)}, replay=replay, packing=strategy)
    weighted = {name: config.sources[name].model_copy(update={"weight": float(weight)}) for name, weight in zip(names, weights, strict=False)}
    config = config.model_copy(update={"sources": weighted})
    sources = []
    for name, (kind, mean, number) in zip(names, kinds, strict=True):
        store = SyntheticStore(lengths=lengths_of(kind, mean, number), fingerprint=f"{kind}{mean}{number}")
        sources.append(IndexedSource(name=name, role=config.sources[name].role, store=store, documents=np.arange(4_000)))
    loader = build_loader(sources, config, seed=seed, batch_rows=10, pad_id=0)
    measured = measured_shares(loader, 3_000)
    for report in loader.report(300):
        assert measured[report.name] == pytest.approx(report.share, abs=0.001)
        assert measured[report.name] == pytest.approx(report.planned_share, abs=0.001)


def test_a_stage_that_is_never_reached_is_warned_about(make_loader: MakeLoader) -> None:
    loader = make_loader(stages=[StageConfig(from_tokens=100_000, replay=0.6)])
    begins = loader.schedule.stages[1].from_step
    assert [sentence for sentence in loader.warnings(begins) if "from 100,000 tokens on is never reached" in sentence]
    assert not [sentence for sentence in loader.warnings(begins + 1) if "stage" in sentence]


def test_shares_follow_the_stages(make_loader: MakeLoader) -> None:
    stages = [StageConfig(from_tokens=100_000, replay=0.6), StageConfig(from_tokens=150_000, weights={"code": 0.0})]
    loader = make_loader(stages=stages)
    first, second = (stage.from_step for stage in loader.schedule.stages[1:])
    tokens = np.cumsum([0, *(loader.valid_tokens(step) for step in range(second + 1_000))])
    assert abs(tokens[first] - 100_000) < 700 and abs(tokens[second] - 150_000) < 700
    shares = []
    for begin, end in ((0, first), (first, second), (second, second + 1_000)):
        labels: Counter[int] = Counter()
        for step in range(begin, end):
            batch = loader.batch(step)
            for source, row in zip(batch.sources_B.tolist(), batch.labels_BL, strict=True):
                labels[source] += int((row != -100).sum())
        shares.append([labels[number] / labels.total() for number in range(3)])
    assert shares[0] == pytest.approx([0.5, 0.25, 0.25], abs=0.003)  # law, general, code
    assert shares[1] == pytest.approx([0.4 * 2 / 3, 0.6, 0.4 / 3], abs=0.003)
    assert shares[2] == pytest.approx([0.4, 0.6, 0], abs=0.001)


def test_sample_rows_are_the_rows_that_training_sees(make_loader: MakeLoader, tokenizer: Any) -> None:
    loader = make_loader(packing="concat")
    for row in range(40):
        sample, arrays = loader.sample_row(row), loader.arrays(np.array([row]))
        tokens = [token for piece in sample.pieces for token in piece.tokens.tolist()]
        assert arrays.input_ids_BL[0].tolist() == [*tokens, *[tokenizer.pad_token_id] * (64 - len(tokens))]
        assert sample.source == loader.source_names[int(arrays.sources_B[0])]
        for piece in sample.pieces:
            whole = [tokenizer.bos_token_id, *tokenizer(TEXTS[sample.source][piece.document], add_special_tokens=False)["input_ids"]]
            whole.append(tokenizer.eos_token_id)
            assert piece.tokens.tolist() == whole[piece.start : piece.start + len(piece.tokens)]
            assert (piece.starts, piece.ends) == (piece.start == 0, piece.start + len(piece.tokens) == len(whole))


@pytest.mark.parametrize("stages", [[], [StageConfig(from_tokens=300, replay=0.9)]])
def test_a_domain_epoch_is_as_many_rows_as_the_domain_has(make_loader: MakeLoader, stages: list[StageConfig]) -> None:
    loader = make_loader(stages=stages)
    rows = sum(report.rows for report in loader.report(0) if report.role == "domain" and report.rows)
    used = np.cumsum([loader.roles[loader.source_names[source]] == "domain" for source, _ in loader.source_rows(np.arange(20_000))])
    assert loader.steps_per_domain_epoch == -(-(int(np.searchsorted(used, rows)) + 1) // 8)


def test_without_replay_general_text_is_not_served(make_loader: MakeLoader) -> None:
    loader = make_loader(replay=0.0)
    assert loader.roles["general"] == "replay"
    assert 1 not in loader.batch(0).sources_B.tolist() and loader.report(10)[1].epochs == 0


def test_too_many_epochs_are_refused_with_what_fits(make_loader: MakeLoader) -> None:
    capped = {name: source.model_copy(update={"max_epochs": 2.0}) for name, source in small_config().sources.items()}
    loader = make_loader(sources=capped)
    loader.require_epochs(8)
    with pytest.raises(DataError) as caught:
        loader.require_epochs(60)
    lines, fixes = str(caught.value).splitlines()[::2], str(caught.value).splitlines()[1::2]
    assert {line.split(".")[2] for line in lines} == {name for name, epochs in loader.epochs(60).items() if epochs is not None and epochs > 2}
    for line, fix in zip(lines, fixes, strict=True):
        name = line.split(".")[2]
        tokens = int(fix.split("train.max_tokens=")[1].split(",")[0])
        steps = tokens // (8 * 64)
        fitting, too_many = loader.epochs(steps)[name], loader.epochs(steps + 1)[name]
        assert fitting is not None and too_many is not None and fitting <= 2 < too_many
        if f"data.sources.{name}.weight=" in fix:
            weight = float(fix.split(".weight=")[1])
            lighter = capped | {name: capped[name].model_copy(update={"weight": weight})}
            epochs = make_loader(sources=lighter).epochs(60)[name]
            assert epochs is not None and epochs <= 2
        if "data.replay=" in fix:
            epochs = make_loader(sources=capped, replay=float(fix.split("data.replay=")[1])).epochs(60)[name]
            assert epochs is not None and epochs <= 2
        assert f"data.sources.{name}.max_epochs=" in fix


def test_many_epochs_are_warned_about(make_loader: MakeLoader) -> None:
    loader = make_loader(warn_epochs=2.0)
    assert loader.warnings(5) == []
    epochs = loader.epochs(60)
    warned = {sentence.split(" ")[0] for sentence in loader.warnings(60)}
    assert warned == {name for name, read in epochs.items() if read is not None and read > 2} and warned
    assert all("data.warn_epochs=2" in sentence for sentence in loader.warnings(60))


def test_a_single_tiny_source_makes_batches(own_cache: Path) -> None:
    config = config_of({"two": "domain"}, replay=0.0, sequence_length=10)
    store = memory_store([[1, 5, 6, 7, 2], [1, 8, 9, 9, 2]])
    source = IndexedSource(name="two", role="domain", store=store, documents=np.array([1]))
    batch = build_loader([source], config, seed=0, batch_rows=4, pad_id=0).batch(1_000_000)
    assert batch.input_ids_BL.tolist() == [[1, 8, 9, 9, 2, 0, 0, 0, 0, 0]] * 4
    assert batch.labels_BL.tolist() == [[8, 9, 9, 2, -100, -100, -100, -100, -100, -100]] * 4
    assert batch.documents_BL.tolist() == [[0] * 5 + [1] * 5] * 4


def test_a_source_without_text_is_refused_unless_it_is_not_served(own_cache: Path) -> None:
    def build(replay: float) -> Loader:
        config = config_of({"law": "domain", "empty": "replay"}, replay=replay)
        stores = {"law": (memory_store([[1, 2, 3]]), [0]), "empty": (memory_store([[2]]), [0])}
        sources = [
            IndexedSource(name=name, role=config.sources[name].role, store=store, documents=np.array(documents))
            for name, (store, documents) in stores.items()
        ]
        return build_loader(sources, config, seed=0, batch_rows=2, pad_id=0)

    with pytest.raises(DataError, match="empty holds no text"):
        build(0.25)
    assert build(0.0).valid_tokens(3) == 4


def test_packings_are_made_once_and_damage_is_named(make_loader: MakeLoader, own_cache: Path) -> None:
    first = make_loader().batch(3)
    files = {file: file.stat().st_mtime_ns for file in (own_cache / "packing").rglob("*.npy")}
    assert equal(make_loader().batch(3), first)
    assert files == {file: file.stat().st_mtime_ns for file in (own_cache / "packing").rglob("*.npy")}
    damaged = next(iter(files))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(DataError, match=rf"rm -r .*{damaged.parent.name}"):
        make_loader()
