"""Which run is best and how sure that is, against intervals of one run alone, all ways to swap written out, and every pair looked at."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.evaluation.document_scores import SourceDocuments
from slayer.evaluation.ranking import TIED_P, dominated_by, least_documents, spread, standings
from slayer.evaluation.statistics import bits_per_byte

BYTES = np.array([900, 400, 1500, 700, 250, 1100, 600, 800, 1000, 500], np.int64)


def source(nats: np.ndarray, role: str = "domain", names: str = "d") -> SourceDocuments:
    return SourceDocuments(role=role, ids=tuple(f"{names}{number}" for number in range(len(nats))), n_bytes=BYTES[: len(nats)], nats=nats)


def nats_of(seed: int, n_documents: int = len(BYTES)) -> np.ndarray:
    return BYTES[:n_documents] * np.random.default_rng(seed).uniform(0.8, 1.2, n_documents)


def test_the_interval_of_one_source_is_that_of_the_report() -> None:
    nats = nats_of(0)
    (standing,) = standings([{"fr": source(nats), "en": source(nats_of(1), "replay")}], 0, "domain_bits_per_byte")
    alone = bits_per_byte(nats, BYTES)
    assert standing.interval == (alone.low, alone.high) and standing.behind is None and not standing.is_tied


def test_all_sources_of_the_objective_count_alike() -> None:
    """Mean over the sources, whatever their bytes; the difference from the best is exactly that of the objectives."""
    first = {"fr": source(nats_of(0)), "en": source(nats_of(1, 4), "replay", "e")}
    second = {"fr": source(nats_of(2)), "en": source(nats_of(3, 4), "replay", "e")}

    def value(run: dict[str, SourceDocuments]) -> float:
        return float(np.mean([one.nats.sum() / one.n_bytes.sum() / math.log(2) for one in run.values()]))

    for standing, run in zip(standings([first, second], 0, "mean_bits_per_byte"), (first, second), strict=True):
        assert standing.interval is not None and standing.interval[0] < value(run) < standing.interval[1]
    behind = standings([first, second], 0, "mean_bits_per_byte")[1]
    assert behind.behind == pytest.approx(value(second) - value(first), abs=1e-12)
    assert behind.behind_interval is not None and behind.behind_interval[0] < behind.behind < behind.behind_interval[1]  # type: ignore[operator]


def test_the_p_is_the_share_of_all_ways_to_swap_documents() -> None:
    best, other = nats_of(0, 8), nats_of(5, 8)
    moved = (other - best) / (BYTES[:8].sum() * math.log(2))
    reached = [abs(np.dot(signs, moved)) >= abs(moved.sum()) * (1 - 1e-9) for signs in itertools.product((1, -1), repeat=8)]
    standing = standings([{"fr": source(best)}, {"fr": source(other)}], 0, "domain_bits_per_byte")[1]
    assert standing.p == pytest.approx(np.mean(reached), abs=1e-12)


def test_several_runs_beside_the_best_pay_for_their_number() -> None:
    best, others = nats_of(0, 8), [nats_of(0, 8) * factor + nats_of(9, 8) * 0.02 for factor in (1.001, 1.01)]
    alone = [standings([{"fr": source(best)}, {"fr": source(one)}], 0, "domain_bits_per_byte")[1].p for one in others]
    together = [one.p for one in standings([{"fr": source(best)}, *({"fr": source(one)} for one in others)], 0, "domain_bits_per_byte")[1:]]
    smallest, largest = sorted(alone)  # type: ignore[type-var]
    assert smallest is not None and largest is not None
    assert sorted(together) == pytest.approx([min(1, 2 * smallest), max(min(1, 2 * smallest), largest)])  # type: ignore[type-var]


def test_what_is_the_same_is_tied_and_what_is_worse_on_every_document_is_not() -> None:
    best = nats_of(0)
    runs = [{"fr": source(best)}, {"fr": source(best.copy())}, {"fr": source(best * 1.02)}]
    first, same, worse = standings(runs, 0, "domain_bits_per_byte")
    assert first.p is None and not first.is_tied
    assert same.is_tied and (same.behind, same.p) == (0.0, 1.0)
    assert not worse.is_tied and worse.behind_interval is not None and worse.behind_interval[0] > 0


@pytest.mark.parametrize("n_compared", [1, 2, 4, 5, 20])
def test_so_few_documents_can_tell_nothing_apart(n_compared: int) -> None:
    """Runs that are worse on every document, by as much as one likes: as many as are needed tell them apart, one less does not."""
    needed = least_documents(n_compared)
    for n_documents in (needed - 1, needed):
        best = np.linspace(800, 1200, n_documents)
        size = np.full(n_documents, 1000, np.int64)
        runs = [
            {"fr": SourceDocuments(role="domain", ids=tuple(map(str, range(n_documents))), n_bytes=size, nats=best * (1 + number))}
            for number in range(n_compared + 1)
        ]
        found = standings(runs, 0, "domain_bits_per_byte")[1:]
        assert [standing.is_tied for standing in found] == [n_documents < needed] * n_compared and found[0].n_documents == n_documents
        assert (min(standing.p or 0 for standing in found) < TIED_P) == (n_documents >= needed)


def test_other_documents_are_not_compared() -> None:
    nats = nats_of(0)
    for other in ({"fr": source(nats, names="x")}, {"fr": source(nats[:5])}, {"fr": source(nats), "law": source(nats)}, {"de": source(nats)}, None):
        standing = standings([{"fr": source(nats)}, other], 0, "domain_bits_per_byte")[1]
        assert standing.behind is None and standing.p is None and not standing.is_tied
        assert (standing.interval is None) == (other is None)


def test_one_document_has_no_interval() -> None:
    (standing,) = standings([{"fr": source(nats_of(0, 1))}], 0, "domain_bits_per_byte")
    assert standing.interval is None


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=8))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    found = dominated_by([learnt for learnt, _ in pairs], [forgotten for _, forgotten in pairs])
    for pair, place in zip(pairs, found, strict=True):
        assert (place is None) == (not any(beats(other, pair) for other in pairs))
        assert place is None or beats(pairs[place], pair)


def test_spread_over_seeds() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found is not None and (found.mean, found.deviation) == (2.0, 1.0)
    half = 4.302653 / math.sqrt(3)  # Student's t at 97.5 % with two degrees of freedom
    assert found.interval == pytest.approx((2 - half, 2 + half), abs=1e-6)
    assert spread([1.0]) is None
