"""Which of several runs is best, how sure that is, and what a run costs on one side for what it gains on the other.

Shape suffixes: R resamples, P runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log, log2

import numpy as np
from numpy.typing import NDArray

from slayer.evaluation.document_scores import SourceDocuments
from slayer.evaluation.forgetting import OBJECTIVE_ROLES
from slayer.evaluation.items import MetricItems
from slayer.evaluation.statistics import CONFIDENCE, holm, paired_change, percentile_interval, resampled_counts

TIED_P = 0.05
"""A difference from the best with a larger p (Holm over all that are compared with it) does not tell a run apart from it."""

Scores = Mapping[str, SourceDocuments]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A run beside the best one. `interval`: of its objective; `behind`: its objective minus the best's on the same documents, with its interval
    and p (Holm). None: there are no scores by document, or not of the same documents. `n_documents`: those that were compared."""

    interval: Interval | None
    n_documents: int = 0
    behind: float | None = None
    behind_interval: Interval | None = None
    p: float | None = None

    @property
    def is_tied(self) -> bool:
        """True where this run cannot be told apart from the best."""
        return self.p is not None and self.p >= TIED_P


def least_documents(n_compared: int) -> int:
    """How few documents could tell any of so many runs apart from the best: of N documents the smallest p is 2 of the 2^N ways to swap them."""
    return ceil(log2(2 * n_compared / TIED_P) + 1e-9)


def standings(runs: Sequence[Scores | None], best: int, objective: str) -> list[Standing]:
    """Each run's place beside the best one (by its position in `runs`), from scores by document.

    Intervals: percentile bootstrap over the documents of each source, the same draws for every run (Efron and Tibshirani 1993). p: permutation test
    over documents, as in `paired_change`, adjusted by Holm for the number of runs compared with the best. Holm does not undo that the
    best was chosen by its score: it is the best of the sweep, not proven to be the best there is.
    """
    chosen = [_of_objective(run, objective) if run is not None else {} for run in runs]
    values = [_resampled(run) if _is_resampled(run) else None for run in chosen]
    found = []
    for place, (run, values_R) in enumerate(zip(chosen, values, strict=True)):
        interval, best_R = percentile_interval(values_R) if values_R is not None else None, values[best]
        if place == best or values_R is None or best_R is None or not _is_same_text(run, chosen[best]):
            found.append(Standing(interval=interval))
            continue
        items, best_items = _as_items(run), _as_items(chosen[best])
        found.append(
            Standing(
                interval=interval, behind=items.value - best_items.value, behind_interval=percentile_interval(values_R - best_R),
                p=paired_change(best_items, items).p, n_documents=len(items.values_N),
            )
        )  # fmt: skip
    compared = [place for place, standing in enumerate(found) if standing.p is not None]
    adjusted = dict(zip(compared, holm([found[place].p or 0.0 for place in compared]), strict=True))
    return [replace(standing, p=adjusted.get(place)) for place, standing in enumerate(found)]


def dominated_by(learnt_percent: Sequence[float], forgotten_percent: Sequence[float]) -> list[int | None]:
    """For each run another that is at least as good on both counts and better on one (lower is better), the best on both together; None: no
    other beats it, it is on the Pareto front."""
    places = range(len(learnt_percent))
    found: list[int | None] = []
    for one in places:
        better = [
            other for other in places
            if learnt_percent[other] <= learnt_percent[one] and forgotten_percent[other] <= forgotten_percent[one]
            and (learnt_percent[other] < learnt_percent[one] or forgotten_percent[other] < forgotten_percent[one])
        ]  # fmt: skip
        found.append(min(better, key=lambda other: learnt_percent[other] + forgotten_percent[other], default=None))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Values of runs that differ in their seed alone: mean, standard deviation, and the 95 % interval of the mean (Student's t)."""

    mean: float
    deviation: float
    interval: Interval


def spread(values: Sequence[float]) -> Spread | None:
    """None for less than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
    return Spread(mean=mean, deviation=deviation, interval=(mean - half, mean + half))


def _of_objective(run: Scores, objective: str) -> Scores:
    """The sources that the objective is the mean of."""
    return {source: documents for source, documents in run.items() if documents.role in OBJECTIVE_ROLES[objective]}


def _is_resampled(run: Scores) -> bool:
    """Each source has documents to draw from: one alone says nothing about others."""
    return bool(run) and all(len(documents.ids) > 1 for documents in run.values())


def _is_same_text(run: Scores, best: Scores) -> bool:
    return run.keys() == best.keys() and all(documents.is_same_text(best[source]) for source, documents in run.items())


def _resampled(run: Scores) -> NDArray[np.float64]:
    """The objective [R] when the documents of each source are drawn anew; the same draws for runs on the same documents."""
    values = []
    for number, source in enumerate(sorted(run)):
        documents = run[source]
        counts = resampled_counts(len(documents.ids), number)
        values.append(counts @ documents.nats / (counts @ documents.n_bytes) / log(2))
    return np.asarray(np.mean(values, axis=0), np.float64)


def _as_items(run: Scores) -> MetricItems:
    """One item per document whose mean is the objective: sources count alike, and within one its bytes."""
    n_documents = sum(len(documents.ids) for documents in run.values())
    scaled = [run[source].nats * n_documents / (len(run) * run[source].n_bytes.sum() * log(2)) for source in sorted(run)]
    values_N = np.concatenate(scaled)
    return MetricItems(name="objective", value=float(values_N.mean()), higher_is_better=False, aggregation="mean", values_N=values_N)
