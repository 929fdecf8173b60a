"""Intervals for held-out scores: a paired bootstrap over documents."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float


def _counts(n_documents: int, seed: int) -> NDArray[np.float64]:
    """How often each document is drawn in each resample, [RESAMPLES, documents]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=RESAMPLES).astype(np.float64)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def bits_per_byte(nats: NDArray[np.float64], n_bytes: NDArray[np.int64], seed: int = 0) -> Estimate:
    """Total bits over total bytes, with a percentile bootstrap interval over documents (Efron & Tibshirani 1993, ch. 13)."""
    counts = _counts(len(nats), seed)
    low, high = _interval(counts @ nats / (counts @ n_bytes) / log(2))
    return Estimate(value=float(nats.sum() / n_bytes.sum() / log(2)), low=low, high=high)


def change_percent(before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Relative change of bits per byte in percent, paired: each resample draws the same documents for both models.

    Bytes cancel, so it is the change of total nats.
    """
    counts = _counts(len(before), seed)
    low, high = _interval(100 * (counts @ after / (counts @ before) - 1))
    return Estimate(value=float(100 * (after.sum() / before.sum() - 1)), low=low, high=high)


def verdict(change: Estimate) -> str:
    """learnt, forgotten, or no change detected when the interval holds zero."""
    if change.high < 0:
        return "learnt"
    return "forgotten" if change.low > 0 else "no change detected"
