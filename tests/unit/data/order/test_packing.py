from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.data.order.packing import Packing, Strategy, pack


def rows_of(packing: Packing) -> list[list[tuple[int, int, int]]]:
    pieces = list(zip(packing.documents.tolist(), packing.starts.tolist(), packing.lengths.tolist(), strict=True))
    return [pieces[begin:end] for begin, end in zip(packing.row_offsets[:-1], packing.row_offsets[1:], strict=True)]


def best_fit_one_by_one(lengths: list[int], sequence_length: int) -> list[list[tuple[int, int, int]]]:
    """Best-fit decreasing as textbooks state it: one piece at a time, into the fullest row that has room."""
    pieces = []
    for document, length in enumerate(lengths):
        for start in range(0, length, sequence_length):
            pieces.append((document, start, min(sequence_length, length - start)))
    rows: list[list[tuple[int, int, int]]] = []
    for piece in sorted(pieces, key=lambda piece: -piece[2]):
        rooms = [sequence_length - sum(other[2] for other in row) for row in rows]
        fitting = [(room, number) for number, room in enumerate(rooms) if room >= piece[2]]
        if fitting:
            rows[min(fitting)[1]].append(piece)
        else:
            rows.append([piece])
    return rows


lengths_and_row = st.tuples(st.lists(st.integers(0, 70), max_size=60), st.integers(1, 24))
strategies = st.sampled_from(["best_fit", "concat", "pad"])


@settings(max_examples=300, deadline=None)
@given(lengths_and_row, strategies)
def test_every_token_once_and_no_row_too_long(case: tuple[list[int], int], strategy: Strategy) -> None:
    lengths, sequence_length = case
    packing = pack(np.array(lengths, dtype=np.int64), sequence_length, strategy)
    seen = [(document, start + token) for row in rows_of(packing) for document, start, length in row for token in range(length)]
    assert sorted(seen) == [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    assert all(0 < sum(length for _, _, length in row) <= sequence_length for row in rows_of(packing))
    assert packing.fill == pytest.approx(sum(lengths) / max(1, packing.n_rows * sequence_length))


@settings(max_examples=200, deadline=None)
@given(lengths_and_row, strategies)
def test_counts_cut_documents(case: tuple[list[int], int], strategy: Strategy) -> None:
    lengths, sequence_length = case
    packing = pack(np.array(lengths, dtype=np.int64), sequence_length, strategy)
    pieces = Counter(document for row in rows_of(packing) for document, _, _ in row)
    assert packing.cut_documents == sum(count > 1 for count in pieces.values())
    assert packing.needless_cuts == sum(count > 1 and lengths[document] <= sequence_length for document, count in pieces.items())


@settings(max_examples=200, deadline=None)
@given(lengths_and_row)
def test_best_fit_and_pad_cut_only_what_is_longer_than_a_row(case: tuple[list[int], int]) -> None:
    lengths, sequence_length = case
    for strategy in ("best_fit", "pad"):
        packing = pack(np.array(lengths, dtype=np.int64), sequence_length, strategy)  # type: ignore[arg-type]
        pieces = Counter(packing.documents.tolist())
        assert [pieces[document] for document in range(len(lengths))] == [-(-length // sequence_length) for length in lengths]
        assert packing.needless_cuts == 0


@settings(max_examples=200, deadline=None)
@given(lengths_and_row)
def test_concat_is_one_text_cut_at_every_row(case: tuple[list[int], int]) -> None:
    lengths, sequence_length = case
    text = [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    packing = pack(np.array(lengths, dtype=np.int64), sequence_length, "concat")
    laid = [[(document, start + token) for document, start, length in row for token in range(length)] for row in rows_of(packing)]
    assert laid == [text[start : start + sequence_length] for start in range(0, len(text), sequence_length)]


def test_pad_gives_every_document_a_row() -> None:
    assert rows_of(pack(np.array([3, 0, 9, 4]), 4, "pad")) == [[(0, 0, 3)], [(2, 0, 4)], [(2, 4, 4)], [(2, 8, 1)], [(3, 0, 4)]]


def test_rows_longer_than_sixteen_bits() -> None:
    lengths = np.array([70_000, 5, 100_000, 69_990, 5, 30_000])
    packing = pack(lengths, 70_000)
    assert sorted(sorted(row) for row in rows_of(packing)) == [
        [(0, 0, 70_000)],
        [(1, 0, 5), (3, 0, 69_990), (4, 0, 5)],
        [(2, 0, 70_000)],
        [(2, 70_000, 30_000), (5, 0, 30_000)],
    ]


@settings(max_examples=200, deadline=None)
@given(lengths_and_row)
def test_fills_rows_as_well_as_one_piece_at_a_time(case: tuple[list[int], int]) -> None:
    lengths, sequence_length = case

    def filled(rows: list[list[tuple[int, int, int]]]) -> list[int]:
        return sorted(sum(length for _, _, length in row) for row in rows)  # which of two equally full rows is taken is free

    assert filled(rows_of(pack(np.array(lengths, dtype=np.int64), sequence_length))) == filled(best_fit_one_by_one(lengths, sequence_length))


@pytest.mark.parametrize("sequence_length", [512, 4096])
def test_web_like_lengths_fill_rows_quickly(sequence_length: int) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1.2, 200_000).astype(np.int64), 8, None)
    started = time.process_time()
    packing = pack(lengths, sequence_length)
    assert packing.fill >= 0.999
    assert len(lengths) / (time.process_time() - started) > 200_000  # about 2 to 7 million a second on an idle core


def test_is_deterministic() -> None:
    lengths = np.random.default_rng(1).integers(1, 900, 5_000)
    one, two = pack(lengths, 256), pack(lengths.copy(), 256)
    assert one.documents.tolist() == two.documents.tolist() and one.row_offsets.tolist() == two.row_offsets.tolist()


@pytest.mark.parametrize("strategy", ["best_fit", "concat", "pad"])
def test_nothing_makes_no_rows(strategy: Strategy) -> None:
    for lengths in ([], [0, 0]):
        packing = pack(np.array(lengths, dtype=np.int64), 16, strategy)
        assert (packing.n_rows, packing.cut_documents, packing.fill) == (0, 0, 0)
