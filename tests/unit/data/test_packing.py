from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.data.packing import Packing, pack


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


@settings(max_examples=200, deadline=None)
@given(lengths_and_row)
def test_every_token_once_no_row_too_long_and_no_avoidable_cut(case: tuple[list[int], int]) -> None:
    lengths, sequence_length = case
    packing = pack(np.array(lengths, dtype=np.int64), sequence_length)
    seen = [(document, start + token) for row in rows_of(packing) for document, start, length in row for token in range(length)]
    assert sorted(seen) == [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    assert all(0 < sum(length for _, _, length in row) <= sequence_length for row in rows_of(packing))
    pieces = np.bincount(packing.documents, minlength=len(lengths)) if len(lengths) else np.zeros(0)
    assert pieces.tolist() == [-(-length // sequence_length) for length in lengths]


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


def test_nothing_makes_no_rows() -> None:
    assert pack(np.array([], dtype=np.int64), 16).n_rows == 0
    assert pack(np.array([0, 0]), 16).n_rows == 0
