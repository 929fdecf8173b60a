"""The tree of beginnings and its rows, against what a causal model must see: every token its own beginning, and nothing else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slayer.evaluation.harness.prefix_rows import PrefixTree, Row, next_row, prefix_tree, sees_TS

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


def rows_of(tree: PrefixTree, row_tokens: int) -> list[Row]:
    rows: list[Row] = []
    while (row := next_row(tree, rows[-1] if rows else None, row_tokens)) is not None:
        rows.append(row)
    return rows


def beginnings(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(sequence[: length + 1]) for sequence in sequences for length in range(len(sequence))}


def seen_by_each(tree: PrefixTree, row: Row) -> list[tuple[int, ...]]:
    """For each node of a row, the tokens it can see, in the order of their positions."""
    nodes_S = row.nodes_S
    mask = sees_TS(np.arange(row.start, row.stop), nodes_S, tree.ends_N[nodes_S])
    contexts = []
    for visible in mask:
        nodes = nodes_S[visible]
        depths = tree.depths_N[nodes]
        assert sorted(depths) == list(range(len(nodes))), "one token at each position, none missing"
        contexts.append(tuple(int(token) for token in tree.tokens_N[nodes[np.argsort(depths)]]))
    return contexts


@given(SEQUENCES, st.integers(1, 14))
def test_every_token_sees_its_own_beginning_and_every_beginning_is_computed_once(sequences: list[list[int]], row_tokens: int) -> None:
    tree = prefix_tree(sequences, [0] * len(sequences))
    contexts = [context for row in rows_of(tree, row_tokens) for context in seen_by_each(tree, row)]
    assert len(contexts) == len(set(contexts)) == tree.n_nodes <= sum(map(len, sequences))
    assert set(contexts) == beginnings(sequences)


@given(SEQUENCES, st.integers(1, 14))
def test_a_node_sees_itself_last_at_its_own_depth(sequences: list[list[int]], row_tokens: int) -> None:
    tree = prefix_tree(sequences, [0] * len(sequences))
    for row in rows_of(tree, row_tokens):
        for node, context in zip(range(row.start, row.stop), seen_by_each(tree, row), strict=True):
            assert (len(context), context[-1]) == (tree.depths_N[node] + 1, tree.tokens_N[node])


@given(SEQUENCES, st.data())
def test_tails_are_the_nodes_of_the_last_tokens(sequences: list[list[int]], data: st.DataObject) -> None:
    tail_tokens = [data.draw(st.integers(0, len(sequence))) for sequence in sequences]
    tree = prefix_tree(sequences, tail_tokens)
    context_of = dict(enumerate(seen_by_each(tree, rows_of(tree, tree.n_nodes)[0])))
    for sequence, count, tail in zip(sequences, tail_tokens, tree.tails, strict=True):
        assert [context_of[int(node)] for node in tail] == [tuple(sequence[: length + 1]) for length in range(len(sequence) - count, len(sequence))]


@given(SEQUENCES, st.integers(1, 14))
def test_rows_are_full_and_carry_over_what_the_row_before_had(sequences: list[list[int]], row_tokens: int) -> None:
    tree = prefix_tree(sequences, [0] * len(sequences))
    rows = rows_of(tree, row_tokens)
    assert [row.start for row in rows] == list(range(0, tree.n_nodes, row_tokens)) and rows[-1].stop == tree.n_nodes
    assert len(rows[0].carried_K) == 0
    for before, row in pairwise(rows):
        assert (before.nodes_S[row.places_K] == row.carried_K).all()


@given(SEQUENCES, st.randoms())
def test_the_tree_does_not_depend_on_the_order(sequences: list[list[int]], random: object) -> None:
    shuffled = list(sequences)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = prefix_tree(sequences, [1] * len(sequences)), prefix_tree(shuffled, [1] * len(sequences))
    for name in ("tokens_N", "depths_N", "ends_N"):
        assert (getattr(one, name) == getattr(other, name)).all()


def test_a_row_cut_shorter_goes_on_where_it_was_cut() -> None:
    sequences = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 8], [1, 9, 9]]
    tree = prefix_tree(sequences, [1, 1, 1])
    first = next_row(tree, None, 100)
    assert first is not None
    short = first.shortened(5)
    rest = next_row(tree, short, 100)
    assert rest is not None
    assert set(seen_by_each(tree, short) + seen_by_each(tree, rest)) == beginnings(sequences)
    assert tree.n_nodes == 10


def test_a_shared_prompt_is_there_once_and_large_token_ids_keep_their_order() -> None:
    prompt = list(range(300, 400))
    tree = prefix_tree([[*prompt, 70_000, 5], [*prompt, 255, 6], [*prompt, 256]], [2, 2, 1])
    assert tree.tokens_N.tolist() == [*prompt, 255, 6, 256, 70_000, 5]
    assert [tail.tolist() for tail in tree.tails] == [[103, 104], [100, 101], [102]]
