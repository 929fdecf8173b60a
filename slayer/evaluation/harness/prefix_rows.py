"""Token sequences that share beginnings, laid out so that no shared beginning is computed twice.

The sequences form a tree: a node is one token behind everything that led to it, so a beginning that many sequences share is there
once. Nodes are numbered depth first; then the nodes below node j are j + 1 … ends[j] − 1, and node i sees exactly those j with
j ≤ i < ends[j]: its own path. That one comparison is the whole attention mask.

The list of nodes is cut into rows of any size, at any place. What a row sees of the rows before it is the path to its first node, whose
keys and values are carried over from row to row. So a few-shot prompt, a passage or a question is computed once however many rows hang
below it, a sequence may be longer than a row, rows are always full, and nothing is padded.

Shape suffixes: N nodes of the tree, K nodes carried over to a row, T nodes of a row, S = K + T, L tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTree:
    """All beginnings of some sequences, depth first.

    `tails` gives, for each sequence in the order they were handed in, the nodes of its last tokens (as many as were asked for).
    """

    tokens_N: NDArray[np.int64]
    depths_N: NDArray[np.int64]
    ends_N: NDArray[np.int64]
    tails: tuple[NDArray[np.int64], ...]

    @property
    def n_nodes(self) -> int:
        """Tokens to be computed."""
        return len(self.tokens_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Nodes `start` to `stop` of a tree, computed in one forward pass that also sees `carried_K`.

    `places_K` says where the carried nodes lie among the nodes of the row before (its `nodes_S`).
    """

    start: int
    stop: int
    carried_K: NDArray[np.int64]
    places_K: NDArray[np.int64]

    @property
    def nodes_S(self) -> NDArray[np.int64]:
        """Everything the row can see, in the order of its keys: what is carried over, then the row itself."""
        return np.concatenate([self.carried_K, np.arange(self.start, self.stop)])

    def shortened(self, row_tokens: int) -> Row:
        """The same row with at most so many nodes."""
        return replace(self, stop=min(self.stop, self.start + row_tokens))


def prefix_tree(sequences: Sequence[Sequence[int]], tail_tokens: Sequence[int]) -> PrefixTree:
    """The tree of token sequences (at least one token each; equal ones share all their nodes). Independent of their order, but for `tails`."""
    arrays, order, shared = _sorted(sequences)
    n_nodes = sum(len(arrays[index]) - common for index, common in zip(order, shared, strict=True))
    tokens_N, depths_N, ends_N = (np.empty(n_nodes, np.int64) for _ in range(3))
    tails: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(arrays)
    path_L = np.empty(max(map(len, arrays), default=0), np.int64)
    at = path_tokens = 0
    for index, common in zip(order, shared, strict=True):
        length = len(arrays[index])
        ends_N[path_L[common:path_tokens]] = at
        stop = at + length - common
        tokens_N[at:stop] = arrays[index][common:]
        depths_N[at:stop] = np.arange(common, length)
        path_L[common:length] = np.arange(at, stop)
        tails[index] = path_L[length - tail_tokens[index] : length].copy()
        at, path_tokens = stop, length
    ends_N[path_L[:path_tokens]] = at
    return PrefixTree(tokens_N=tokens_N, depths_N=depths_N, ends_N=ends_N, tails=tuple(tails))


def groups_for_rows(sequences: Sequence[Sequence[int]], row_tokens: int) -> list[list[int]]:
    """Sequences by number, in groups whose tree is one row each: neighbours in the order of the tree, while it has at most `row_tokens` nodes.

    More, but no more than twice the row's first sequence, where a sequence shares more than it adds: what is long and shared, an example
    prompt say, would else be computed again in the next row. A longer sequence that shares nothing is a row of its own.
    """
    arrays, order, shared = _sorted(sequences)
    groups: list[list[int]] = []
    n_nodes = first_tokens = 0
    for index, common in zip(order, shared, strict=True):
        added = len(arrays[index]) - common
        if groups and (n_nodes + added <= row_tokens or (added < common and n_nodes + added <= 2 * first_tokens)):
            groups[-1].append(index)
            n_nodes += added
        else:
            groups.append([index])
            n_nodes = first_tokens = len(arrays[index])
    return groups


def _sorted(sequences: Sequence[Sequence[int]]) -> tuple[list[NDArray[Any]], list[int], list[int]]:
    """Sequences as arrays, their numbers in the order of the tree, and in that order how many tokens each shares with the one before."""
    arrays = [np.asarray(sequence, dtype=">u4") for sequence in sequences]  # big-endian, so that bytes sort as tokens do
    keys = [array.tobytes() for array in arrays]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return arrays, order, [0] + [_shared_tokens(arrays[one], arrays[other]) for one, other in pairwise(order)]


def _shared_tokens(one_L: NDArray[Any], other_L: NDArray[Any]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    length = min(len(one_L), len(other_L))
    different_L = one_L[:length] != other_L[:length]
    first = int(different_L.argmax())
    return first if different_L[first] else length


def next_row(tree: PrefixTree, previous: Row | None, row_tokens: int) -> Row | None:
    """The row behind `previous` (None: the first), with at most `row_tokens` nodes of its own; None when the tree is done."""
    start = previous.stop if previous else 0
    if start == tree.n_nodes:
        return None
    seen_S = previous.nodes_S if previous else np.empty(0, np.int64)
    # Later nodes of the row see nothing else of earlier rows: whoever spans such a node from before `start` spans `start` too.
    places_K = np.flatnonzero(tree.ends_N[seen_S] > start)
    return Row(start=start, stop=min(start + row_tokens, tree.n_nodes), carried_K=seen_S[places_K], places_K=places_K)


def sees_TS(nodes_T: Any, nodes_S: Any, ends_S: Any) -> Any:
    """Which nodes (columns) each node (row) may look at: those on its path. Takes numpy arrays or torch tensors alike."""
    return (nodes_S[None, :] <= nodes_T[:, None]) & (nodes_T[:, None] < ends_S[None, :])
