"""From scores to a plan: the measurement that orders a base's layers, and what other choices would have cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slayer.errors import DataError
from slayer.importance.agreement import cheapest_block
from slayer.importance.analysis import LayerAnalysis
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.sample import Sample, sample_of
from slayer.importance.values import whole, without
from slayer.surgery.plan import LayerPlan, LayerScores, New

SPARE_CANDIDATES = 3
"""Layers that get a closer look beyond those that are chosen."""
FIRST_LOOK_SHARE = 4
"""Removal is measured for every layer on a quarter of the sample, then for the candidates on the rest: the order of the cheapest is what counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """Scores of a base on the training mixture: a first quarter of the sample, the rest of it, and both together."""

    analysis: LayerAnalysis
    first: Sample
    rest: Sample
    everything: Sample

    def scores(self, score: str, count: int, *, most: bool = False, to_prune: bool = False) -> LayerScores:
        """One number per layer of the base. `count` layers are to be chosen, the least (or `most`) important ones; by angular_distance those
        `to_prune` are a block of neighbours.

        Removal of the candidates is measured on the whole sample, of the other layers on its first quarter: among the cheapest, a short
        sample decides by chance. DataError where too few layers could be measured.
        """
        block = None
        n_layers = self.analysis.n_layers
        if score == "removal":
            values: Sequence[float] = self._removal(count + SPARE_CANDIDATES, most)
        else:
            measured = self.analysis.measure([score], [self.everything])[0]
            values = measured.by_layer
            block = cheapest_block(measured, count) if score == "angular_distance" and to_prune else None
        n_measured = sum(map(math.isfinite, values))
        if n_measured < min(count, n_layers):
            raise DataError(f"only {n_measured} of {n_layers} layers have a {score}, and {count} are to be chosen: the model gives no finite numbers")
        return LayerScores(
            score=score, values=tuple(value if math.isfinite(value) else None for value in values), tokens=self.everything.n_tokens,
            high_is_important=CATALOGUE[score].high_is_important is not False, sample=self.everything.fingerprint, seed=self.analysis.seed,
            cheapest_block=block,
        )  # fmt: skip

    def jumps(self, choices: Sequence[Sequence[int]]) -> list[float]:
        """What the base loses without all of these layers together, in nats per token, on the first quarter of the sample."""
        n_layers = self.analysis.n_layers
        values = self.analysis.losses(self.first, [whole(n_layers), *(without(n_layers, layers) for layers in choices)])
        return [values.difference(whole(n_layers), without(n_layers, layers))[0] for layers in choices]

    def _removal(self, n_candidates: int, most: bool) -> list[float]:
        n_layers = self.analysis.n_layers
        short = self.analysis.measure(["removal"], [self.first])[0].values
        measured = [layer for layer in range(n_layers) if math.isfinite(short[layer])]
        order = sorted(measured, key=lambda layer: (-short[layer] if most else short[layer], layer))
        candidates = sorted(order[:n_candidates])
        values = self.analysis.losses(self.rest, [whole(n_layers), *(without(n_layers, [layer]) for layer in candidates)])
        merged = list(short)
        for layer in candidates:
            longer = values.difference(whole(n_layers), without(n_layers, [layer]))[0]
            merged[layer] = (short[layer] * self.first.n_tokens + longer * self.rest.n_tokens) / (self.first.n_tokens + self.rest.n_tokens)
        return merged


def chooser(analysis: LayerAnalysis, first: Any, rest: Any, everything: Any) -> Chooser:
    """From packed rows of the training mixture: a first quarter, the rest, and both."""
    named = [sample_of(rows, "training mixture") for rows in (first, rest, everything)]
    return Chooser(analysis=analysis, first=named[0], rest=named[1], everything=named[2])


def compared_choice(chooser: Chooser, plan: LayerPlan, jump: float) -> dict[str, Any]:
    """The plan beside what scores say of this base: what other prunings would cost, and how much the layers matter behind which new blocks stand.

    `jump` is what this plan costs before training, measured with its tail; the alternatives are measured without one.
    """
    n_layers, n_pruned = plan.n_base, len(plan.pruned)
    known = [scores for scores in (plan.prune_scores, plan.expansion_scores) if scores is not None and scores.score == "removal"]
    by_removal = known[0] if known else chooser.scores("removal", n_pruned)
    ways = {"removal": by_removal.ranked[:n_pruned], "last": tuple(range(n_layers - n_pruned, n_layers))}
    if n_pruned:
        influence = chooser.analysis.measure(["block_influence"], [chooser.first])[0].values
        ways["block_influence"] = tuple(sorted(range(n_layers), key=lambda layer: (influence[layer], layer))[:n_pruned])
    others = {by: sorted(layers) for by, layers in ways.items() if n_pruned and set(layers) != set(plan.pruned) and by != plan.prune_by}
    jumps = chooser.jumps(list(others.values()))
    importance = {layer: place for place, layer in enumerate(reversed(by_removal.ranked), 1)}
    behind = sorted({entry.after for entry in plan.entries if isinstance(entry, New) and entry.after >= 0})
    ranks = [importance[layer] for layer in behind if layer in importance]
    return {
        "pruned": list(plan.pruned), "by": plan.prune_by, "jump": jump, "tail": plan.tail,
        "alternatives": [{"by": by, "layers": layers, "jump": cost} for (by, layers), cost in zip(others.items(), jumps, strict=True)],
        "expanded_after": behind, "least_important": list(by_removal.ranked), "n_layers": n_layers, "score": "removal",
        "tokens": chooser.first.n_tokens,
        "expanded_mean_rank": sum(ranks) / len(ranks) if ranks else None,
    }  # fmt: skip
