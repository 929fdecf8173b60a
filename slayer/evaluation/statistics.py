"""How sure we are: intervals by a bootstrap over documents or items, paired tests, and Holm's correction.

Shape suffixes: N items or documents, R resamples, C columns that are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slayer.evaluation.items import MetricItems

RESAMPLES = 2_000
BINARY_RESAMPLES = 20_000  # of right and wrong answers only their numbers are drawn, so many are cheap
SWAPS = 9_999
EXACT_ITEMS = 12  # up to so many differing items all ways to swap them are gone through
BLOCK_ITEMS = 1 << 20  # items drawn at a time: bounds the memory
CONFIDENCE = 0.95

Floats = NDArray[np.float64]
Test = Literal["mcnemar", "permutation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Items that are right only before (lost) or only after (gained), and how likely so uneven a split is by chance."""

    lost: int
    gained: int
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedChange:
    """after − before on the same items, in the metric's unit. Interval, p and standard error are None where items cannot give them."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    standard_error: float | None
    test: Test | None
    lost: int | None = None
    gained: int | None = None


def resampled_counts(n_documents: int, seed: int) -> Floats:
    """How often each document is drawn in each resample, [RESAMPLES, documents]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=RESAMPLES).astype(np.float64)


def percentile_interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def bits_per_byte(nats: Floats, n_bytes: NDArray[np.int64], seed: int = 0) -> Estimate:
    """Total bits over total bytes, with a percentile bootstrap interval over documents (Efron & Tibshirani 1993, ch. 13)."""
    counts = resampled_counts(len(nats), seed)
    low, high = percentile_interval(counts @ nats / (counts @ n_bytes) / log(2))
    return Estimate(value=float(nats.sum() / n_bytes.sum() / log(2)), low=low, high=high)


def change_percent(before: Floats, after: Floats, seed: int = 0) -> Estimate:
    """Relative change of bits per byte in percent, paired: each resample draws the same documents for both models.

    Bytes cancel, so it is the change of total nats.
    """
    counts = resampled_counts(len(before), seed)
    low, high = percentile_interval(100 * (counts @ after / (counts @ before) - 1))
    return Estimate(value=float(100 * (after.sum() / before.sum() - 1)), low=low, high=high)


def verdict(change: Estimate) -> str:
    """learnt, forgotten, or no change detected when the interval holds zero."""
    if change.high < 0:
        return "learnt"
    return "forgotten" if change.low > 0 else "no change detected"


def mcnemar_exact(before_N: NDArray[np.generic], after_N: NDArray[np.generic]) -> McNemar:
    """Exact two-sided McNemar test: are items lost as often as gained? 0 or 1 per item; p is 1 when none differ (McNemar 1947)."""
    from scipy.stats import binomtest

    before, after = np.asarray(before_N, bool), np.asarray(after_N, bool)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost=lost, gained=gained, p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, step by step from the smallest (Holm 1979); in the order given."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def metric_value(items: MetricItems) -> float:
    """The metric made from its items; the harness' own value where only the task can make it."""
    if items.aggregation == "corpus" or not len(items.values_N):
        return items.value
    return float(_value_of(_columns(items).sum(0)[None], items)[0])


def metric_stderr(items: MetricItems) -> float | None:
    """Standard error of a metric: of a mean s / √N as in lm-eval; of ratio and perplexity by the delta method. None for less than 2 items."""
    n_items = len(items.values_N)
    if items.aggregation == "corpus" or n_items < 2:
        return None
    columns_NC = _columns(items)
    values_N, weights_N = columns_NC[:, 0], columns_NC[:, 1]
    rate = values_N.sum() / weights_N.sum()
    spread = sqrt(float(((values_N - rate * weights_N) ** 2).sum()) * n_items / (n_items - 1)) / float(weights_N.sum())
    return spread * metric_value(items) if items.aggregation == "perplexity" else spread


def metric_estimate(items: MetricItems, seed: int = 0) -> Estimate | None:
    """One model's value with its 95 % interval; None where items cannot give one (made by the task alone, or less than 2 items).

    Right-or-wrong items get Wilson's score interval (1927), which does not shrink to nothing when all are right;
    others a percentile bootstrap over items.
    """
    n_items = len(items.values_N)
    if items.is_binary and n_items:
        from scipy.stats import binomtest

        found = binomtest(int(items.values_N.sum()), n_items).proportion_ci(CONFIDENCE, method="wilson")
        return Estimate(value=items.value, low=float(found.low), high=float(found.high))
    if items.aggregation == "corpus" or n_items < 2:
        return None
    columns_NC = _columns(items)
    low, high = percentile_interval(_value_of(_resampled_sums(columns_NC[np.lexsort(columns_NC.T)], seed), items))
    return Estimate(value=items.value, low=low, high=high)


def paired_change(before: MetricItems, after: MetricItems, seed: int = 0) -> PairedChange:
    """after − before on the same items in the same order, with a paired bootstrap interval over items and a paired test.

    Right-or-wrong items: exact McNemar test; the resamples draw from the items and one lost and one gained item more (Bonett & Price
    2012), without which a few differing items would give far too narrow an interval, and none at all one of width 0.
    Others: a permutation test that swaps the two models' answers to an item. Under "no change" it holds its level for any
    distribution and any N, which a p-value read off a bootstrap does not. Equal scores give 0 and p = 1; the order of the items
    changes nothing; swapping the models flips the signs.
    """
    value = after.value - before.value
    if before.is_binary and after.is_binary and len(before.values_N):
        return _binary_change(value, before.values_N, after.values_N, seed)
    if "corpus" in (before.aggregation, after.aggregation) or len(before.values_N) < 2:
        return PairedChange(value=value, low=None, high=None, p=None, standard_error=None, test=None)
    first, second, turned = _in_one_order(_columns(before), _columns(after))
    sums = _resampled_sums(np.hstack([first, second]), seed)
    changes = _value_of(sums[:, 2:], after) - _value_of(sums[:, :2], before)
    low, high = _turned(percentile_interval(changes), turned)
    return PairedChange(
        value=value, low=low, high=high, p=_swap_p(first, second, seed), standard_error=float(changes.std(ddof=1)), test="permutation"
    )  # fmt: skip


def resampled_values(before: MetricItems, after: MetricItems, seed: int = 0) -> tuple[Floats, Floats] | None:
    """Both models' value [RESAMPLES] on the same resampled items; None where items cannot give one."""
    if "corpus" in (before.aggregation, after.aggregation) or len(before.values_N) < 2:
        return None
    sums = _resampled_sums(np.hstack([_columns(before), _columns(after)]), seed)
    return _value_of(sums[:, :2], before), _value_of(sums[:, 2:], after)


def _binary_change(value: float, before_N: Floats, after_N: Floats, seed: int) -> PairedChange:
    found, n_items = mcnemar_exact(before_N, after_N), len(before_N)
    more, fewer = max(found.lost, found.gained) + 1, min(found.lost, found.gained) + 1
    cells = np.array([more, fewer, n_items + 2 - more - fewer], np.float64)
    drawn = np.random.default_rng(seed).multinomial(n_items + 2, cells / cells.sum(), size=BINARY_RESAMPLES)
    changes = (drawn[:, 0] - drawn[:, 1]) / (n_items + 2)
    turned = None if found.lost == found.gained else found.lost > found.gained
    low, high = _turned(percentile_interval(changes), turned)
    return PairedChange(
        value=value, low=low, high=high, p=found.p, standard_error=float(changes.std(ddof=1)), test="mcnemar", lost=found.lost, gained=found.gained
    )  # fmt: skip


def _columns(items: MetricItems) -> Floats:
    """Value and weight of each item, [N, 2]: every aggregation is a function of the two sums."""
    weights_N = np.ones(len(items.values_N)) if items.weights_N is None else items.weights_N
    return np.stack([items.values_N, weights_N], axis=1).astype(np.float64)


def _value_of(sums_RC: Floats, items: MetricItems) -> Floats:
    rates_R: Floats = sums_RC[:, 0] / sums_RC[:, 1]
    return np.exp(-rates_R) if items.aggregation == "perplexity" else rates_R


def _resampled_sums(columns_NC: Floats, seed: int) -> Floats:
    """Sums over N items drawn with replacement, [RESAMPLES, C]."""
    generator, n_items = np.random.default_rng(seed), len(columns_NC)
    sums_RC = np.empty((RESAMPLES, columns_NC.shape[1]))
    block = max(1, BLOCK_ITEMS // n_items)
    for start in range(0, RESAMPLES, block):
        drawn = generator.integers(n_items, size=(min(block, RESAMPLES - start), n_items))
        for column in range(columns_NC.shape[1]):
            sums_RC[start : start + block, column] = columns_NC[:, column][drawn].sum(1)
    return sums_RC


def _in_one_order(before_NC: Floats, after_NC: Floats) -> tuple[Floats, Floats, bool | None]:
    """The pair sorted, and turned round if that comes first: one result for any order of items, and opposite ones for swapped models.

    The third value says whether the pair was turned; None when both ways are the same.
    """

    def ordered(pair_NC: Floats) -> Floats:
        return pair_NC[np.lexsort(pair_NC.T[::-1])]

    straight, turned = ordered(np.hstack([before_NC, after_NC])), ordered(np.hstack([after_NC, before_NC]))
    differing = np.flatnonzero(straight.ravel() != turned.ravel())
    if not len(differing):
        return straight[:, :2], straight[:, 2:], None
    swap = bool(straight.ravel()[differing[0]] > turned.ravel()[differing[0]])
    chosen = turned if swap else straight
    return chosen[:, :2], chosen[:, 2:], swap


def _turned(interval: tuple[float, float], turned: bool | None) -> tuple[float, float]:
    low, high = interval
    if turned is None:
        half = (high - low) / 2
        return -half, half
    return (-high, -low) if turned else (low, high)


def _swap_p(before_NC: Floats, after_NC: Floats, seed: int) -> float:
    """Share of the ways to swap the two answers to items under which the change is at least as large (Good 2005, ch. 3)."""
    moved_NC = after_NC - before_NC
    moved_NC = moved_NC[(moved_NC != 0).any(1)]
    n_items = len(moved_NC)
    before, after = before_NC.sum(0), after_NC.sum(0)
    observed = abs(after[0] / after[1] - before[0] / before[1])
    enough = observed * (1 - 1e-9) - 1e-12 * float(np.abs(moved_NC[:, 0]).sum()) / min(before[1], after[1])

    def reached(swaps_RN: Floats) -> int:
        swapped_RC = swaps_RN @ moved_NC
        first, second = before + swapped_RC, after - swapped_RC
        return int((np.abs(second[:, 0] / second[:, 1] - first[:, 0] / first[:, 1]) >= enough).sum())

    if n_items <= EXACT_ITEMS:
        ways = np.arange(2**n_items)[:, None] >> np.arange(n_items) & 1
        return reached(ways.astype(np.float64)) / len(ways)
    generator, block, count = np.random.default_rng(seed), max(1, BLOCK_ITEMS // n_items), 0
    for start in range(0, SWAPS, block):
        rows = min(block, SWAPS - start)
        bits = np.frombuffer(generator.bytes(rows * ((n_items + 7) // 8)), np.uint8).reshape(rows, -1)
        count += reached(np.unpackbits(bits, axis=1, count=n_items).astype(np.float64))
    return (1 + count) / (1 + SWAPS)
