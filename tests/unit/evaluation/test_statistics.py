"""Scores against loops, and intervals against data whose truth is known."""

from __future__ import annotations

import math
import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.evaluation.items import Aggregation, MetricItems
from slayer.evaluation.statistics import (
    Estimate,
    bits_per_byte,
    change_percent,
    holm,
    mcnemar_exact,
    metric_estimate,
    metric_stderr,
    metric_value,
    paired_change,
    resampled_values,
    verdict,
)


@given(pairs=st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 10_000)), min_size=1, max_size=20))
def test_bits_per_byte_is_all_bits_over_all_bytes(pairs: list[tuple[float, int]]) -> None:
    bits = n_bytes = 0.0
    for nats, count in pairs:
        bits += nats / math.log(2)
        n_bytes += count
    estimate = bits_per_byte(np.array([nats for nats, _ in pairs]), np.array([count for _, count in pairs]))
    assert estimate.value == pytest.approx(bits / n_bytes, rel=1e-12)
    ratios = [nats / math.log(2) / count for nats, count in pairs]
    tolerance = 1e-9 * max(ratios)
    assert min(ratios) - tolerance <= estimate.low <= estimate.high <= max(ratios) + tolerance


@given(pairs=st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)), min_size=1, max_size=20))
def test_change_is_that_of_the_totals(pairs: list[tuple[float, float]]) -> None:
    before, after = (np.array(values) for values in zip(*pairs, strict=True))
    estimate = change_percent(before, after)
    assert estimate.value == pytest.approx(100 * (sum(after) - sum(before)) / sum(before), rel=1e-9, abs=1e-9)
    n_bytes = np.ones(len(before), np.int64)
    by_bits = 100 * (bits_per_byte(after, n_bytes).value / bits_per_byte(before, n_bytes).value - 1)
    assert estimate.value == pytest.approx(by_bits, rel=1e-9, abs=1e-9)


def documents(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths in bytes, nats of a base of 1 bit per byte on average, nats of a model 5 % better on average."""
    n_bytes = generator.integers(200, 3_000, count)
    hardness = generator.lognormal(0, 0.3, count) / math.exp(0.3**2 / 2)
    base = n_bytes * math.log(2) * hardness
    return n_bytes, base, base * (0.95 + generator.normal(0, 0.03, count))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """120 samples of 60 documents: 95 % intervals may miss a few more than 5 %, as percentile intervals do, but not many more."""
    generator = np.random.default_rng(0)
    hits = changes = 0
    widths = []
    for _ in range(120):
        n_bytes, base, better = documents(generator, 60)
        score, change = bits_per_byte(base, n_bytes), change_percent(base, better)
        hits += score.low <= 1 <= score.high
        changes += change.low <= -5 <= change.high
        widths.append((change.high - change.low, 100 * (score.high - score.low) / score.value))
    assert 106 <= hits <= 119 and 106 <= changes <= 119
    paired, unpaired = np.mean(widths, axis=0)
    assert paired < unpaired / 5, "pairing must take the documents' own spread out"


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(1)
    _, base, better = documents(generator, 40)
    pick = random.Random(0)
    values = []
    for _ in range(4_000):
        drawn = [pick.randrange(40) for _ in range(40)]
        values.append(100 * (sum(better[index] for index in drawn) / sum(base[index] for index in drawn) - 1))
    values.sort()
    estimate = change_percent(base, better)
    assert estimate.low == pytest.approx(values[100], abs=0.1) and estimate.high == pytest.approx(values[3900], abs=0.1)
    assert change_percent(base, better) == estimate, "the same numbers every time"
    assert change_percent(base, better, seed=1) != estimate


def test_more_documents_narrow_the_interval() -> None:
    few, many = (change_percent(*documents(np.random.default_rng(2), count)[1:]) for count in (30, 480))
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 4, rel=0.4)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-5, -1, "learnt"), (1, 5, "forgotten"), (-1, 1, "no change detected"), (0, 5, "no change detected"), (-5, 0, "no change detected")],
)
def test_verdicts(low: float, high: float, word: str) -> None:
    assert verdict(Estimate(value=(low + high) / 2, low=low, high=high)) == word


def test_a_model_compared_with_itself_has_not_changed() -> None:
    _, base, _ = documents(np.random.default_rng(3), 20)
    same = change_percent(base, base)
    assert (same.value, same.low, same.high) == (0, 0, 0) and verdict(same) == "no change detected"


def metric(values: object, aggregation: Aggregation = "mean", weights: object = None) -> MetricItems:
    """A metric with the value that its items make, by the formula written out."""
    values_N = np.asarray(values, np.float64)
    weights_N = None if weights is None else np.asarray(weights, np.float64)
    value = values_N.sum() / (len(values_N) if weights_N is None else weights_N.sum())
    value = math.exp(-value) if aggregation == "perplexity" else value
    return MetricItems(name="score", value=float(value), higher_is_better=True, aggregation=aggregation, values_N=values_N, weights_N=weights_N)


def kinds(items: int, seed: int = 0, shift: float = 0.3) -> dict[str, tuple[MetricItems, MetricItems]]:
    """A pair of models on every kind of metric."""
    generator = np.random.default_rng(seed)
    before, after = generator.normal(2, 1, items), generator.normal(2 + shift, 1, items)
    n_bytes = generator.integers(5, 50, items)
    return {
        "binary": (metric(before > 2), metric(after > 2)),
        "mean": (metric(before), metric(after)),
        "ratio": (metric(before * n_bytes, "ratio", n_bytes), metric(after * n_bytes, "ratio", n_bytes)),
        "perplexity": (metric(-before, "perplexity"), metric(-after, "perplexity")),
    }


def test_mcnemar_counts_what_was_lost_and_gained() -> None:
    before, after = np.array([1] * 7 + [0] * 3 + [1] * 50 + [0] * 40), np.array([0] * 7 + [1] * 3 + [1] * 50 + [0] * 40)
    found = mcnemar_exact(before, after)
    assert (found.lost, found.gained) == (7, 3)
    assert found.p == pytest.approx(2 * sum(math.comb(10, k) for k in range(4)) / 2**10)  # 0.34375
    assert mcnemar_exact(before, before).p == 1.0
    assert mcnemar_exact(np.ones(6), np.zeros(6)).p == pytest.approx(2 / 2**6)


@given(p_values=st.lists(st.floats(0, 1), max_size=12))
@settings(max_examples=25)
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    wanted = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(wanted)


def test_holm_by_hand() -> None:
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])


@pytest.mark.parametrize("kind", ["binary", "mean", "ratio", "perplexity"])
def test_values_and_standard_errors(kind: str) -> None:
    items, _ = kinds(400)[kind]
    assert metric_value(replace(items, value=math.nan)) == pytest.approx(items.value)
    found, stderr = metric_estimate(items), metric_stderr(items)
    assert found is not None and stderr is not None and found.value == items.value
    assert found.high - found.low == pytest.approx(2 * 1.96 * stderr, rel=0.08), "at 400 items all ways agree"
    if items.aggregation == "mean":
        assert stderr == pytest.approx(items.values_N.std(ddof=1) / 20)


def test_right_or_wrong_items_get_wilsons_interval() -> None:
    found, z, n = metric_estimate(metric([1] * 9 + [0])), 1.959964, 10
    centre, half = (0.9 + z * z / 2 / n) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(0.9 * 0.1 / n + z * z / 4 / n / n)
    assert found is not None and (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-5)
    certain = metric_estimate(metric(np.ones(20)))
    assert certain is not None and certain.low < 0.9 and certain.high == 1, "20 of 20 right are no proof of a perfect model"


@pytest.mark.parametrize("kind", ["binary", "mean", "ratio", "perplexity"])
@given(seed=st.integers(0, 1000), items=st.integers(2, 40))
@settings(max_examples=10, deadline=None)
def test_the_order_of_items_and_of_models_does_not_matter(kind: str, seed: int, items: int) -> None:
    before, after = kinds(items, seed)[kind]
    change, back = paired_change(before, after), paired_change(after, before)
    assert change.low is not None and change.high is not None and change.p is not None
    assert (back.value, back.low, back.high, back.p) == (-change.value, -change.high, -change.low, change.p)
    assert (back.lost, back.gained) == (change.gained, change.lost)
    order = np.random.default_rng(seed).permutation(items)
    shuffled = [
        replace(one, values_N=one.values_N[order], weights_N=None if one.weights_N is None else one.weights_N[order]) for one in (before, after)
    ]
    assert paired_change(*shuffled) == change
    assert metric_estimate(shuffled[0]) == metric_estimate(before)


@pytest.mark.parametrize("kind", ["binary", "mean", "ratio", "perplexity"])
def test_a_model_beside_itself_has_not_changed(kind: str) -> None:
    before, _ = kinds(200)[kind]
    same = paired_change(before, before)
    assert same.value == 0 and same.p == 1 and same.low is not None and same.high is not None and same.low <= 0 <= same.high
    widest = 3 / 200 if kind == "binary" else 0
    assert -same.low == same.high <= widest, "right or wrong on 200 items: the rule of three"


def test_items_that_do_not_make_the_value_give_no_interval() -> None:
    bleu = replace(metric([1.0, 2.0]), aggregation="corpus", value=31.0)
    change = paired_change(bleu, replace(bleu, value=33.0))
    assert change.value == 2 and (change.low, change.high, change.p, change.test) == (None, None, None, None)
    assert metric_estimate(bleu) is None and metric_stderr(bleu) is None and resampled_values(bleu, bleu) is None
    assert metric_value(bleu) == 31
    assert metric_estimate(metric([0.3])) is None and paired_change(metric([0.3]), metric([0.5])).p is None


@pytest.mark.parametrize("items", [5, 9])
def test_few_items_are_tested_by_all_ways_to_swap_them(items: int) -> None:
    from scipy.stats import permutation_test

    before, after = kinds(items, shift=1.0)["mean"]
    wanted = permutation_test(
        (after.values_N, before.values_N), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
    )  # fmt: skip
    assert paired_change(before, after).p == pytest.approx(wanted.pvalue)


@pytest.mark.parametrize("kind", ["mean", "ratio", "perplexity"])
def test_many_items_are_tested_about_as_by_students_t(kind: str) -> None:
    from scipy.stats import ttest_rel

    before, after = kinds(150, shift=0.25)[kind]
    # The bytes of a ratio are the same for both models, so its change is that of the summed bits.
    assert paired_change(before, after).p == pytest.approx(ttest_rel(before.values_N, after.values_N).pvalue, abs=0.02)


def test_the_binary_interval_is_bonett_and_prices() -> None:
    """Their closed formula (Statistics in Medicine 31, 2012) with one item more lost and one more gained."""
    n, lost, gained = 300, 14, 5
    before, after = np.array([1] * lost + [0] * (n - lost)), np.array([0] * lost + [1] * gained + [0] * (n - lost - gained))
    p_lost, p_gained = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = 1.959964 * math.sqrt((p_lost + p_gained - (p_gained - p_lost) ** 2) / (n + 2))
    change = paired_change(metric(before), metric(after))
    assert (change.low, change.high) == pytest.approx((p_gained - p_lost - half, p_gained - p_lost + half), abs=0.0035)
    assert change.test == "mcnemar" and (change.lost, change.gained) == (14, 5) and change.standard_error == pytest.approx(half / 1.96, rel=0.03)


def test_paired_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """200 samples: 5 of 100 right answers are lost and 2 gained by the true model; a mean that rises by 0.1."""
    generator = np.random.default_rng(0)
    hits = means = 0
    for _ in range(200):
        luck = generator.random(120)
        before = generator.random(120) < 0.6
        after = np.where(before, luck > 0.05, luck < 0.02 / 0.4)
        change = paired_change(metric(before), metric(after))
        assert change.low is not None and change.high is not None
        hits += change.low <= -0.6 * 0.05 + 0.02 <= change.high
        first = generator.exponential(1, 40)
        change = paired_change(metric(first), metric(first + generator.normal(0.1, 0.3, 40)))
        assert change.low is not None and change.high is not None
        means += change.low <= 0.1 <= change.high
    assert 185 <= hits <= 199 and 180 <= means <= 197


def test_many_items_take_little_memory() -> None:
    before, after = kinds(15_000)["ratio"]
    tracemalloc.start()
    paired_change(before, after)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100 << 20
