"""Layer tables with plausible numbers: 30 layers under every score on two texts, and a small expanded model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.importance.agreement import agreement
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import LayerTable, Measurement, layer_names
from slayer.surgery.plan import LayerPlan, build_plan

TEXTS = ("wikipedia_fr", "wikipedia_en")
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
FAILED = "the loss without it is not a number"


def cost(layer: int, n_layers: int, noise: random.Random) -> float:
    """What a layer's removal costs in nats per token: a U with a high left arm and a few bumps."""
    middle = 0.03 + 0.22 * (2 * (layer - 0.56 * n_layers) / n_layers) ** 2
    return (middle + 7.6 * math.exp(-1.1 * layer) + 2.1 * math.exp(-1.2 * (n_layers - 1 - layer))) * math.exp(noise.gauss(0, 0.35))


def layers_measurement(
    score: str, source: str | None, n_layers: int, value: Callable[[int], float], relative: float = 0.0, **more: Any
) -> Measurement:
    """A number per layer, with standard errors of `relative` times the number if that is not 0."""
    values = tuple(value(layer) for layer in range(n_layers))
    errors = tuple(abs(relative * each) + 0.002 for each in values) if relative else None
    return Measurement(score=score, source=source, values=values, errors=errors, **more)


def removal(source: str, n_layers: int, noise: random.Random, failed: Sequence[int] = ()) -> Measurement:
    costs = [math.nan if layer in failed else cost(layer, n_layers, noise) for layer in range(n_layers)]
    return layers_measurement(
        "removal", source, n_layers, costs.__getitem__, 0.08, failed=dict.fromkeys(failed, FAILED), details={"whole": -2.614}
    )  # fmt: skip


def shapley(score: str, source: str, n_layers: int, noise: random.Random) -> Measurement:
    values = []
    for layer in range(n_layers):
        whole, part = 1.1 * cost(layer, n_layers, noise), noise.uniform(0.25, 0.6)
        values += [part * whole - 0.02 * noise.random(), (1 - part) * whole]
    positive = [max(0.0, value) for value in values]
    top = sorted(range(2 * n_layers), key=lambda player: -values[player])[:3]
    stones = [{"player": player, "label": f"{player // 2} {('attention', 'mlp')[player % 2]}", "value": values[player]} for player in top]
    details: dict[str, Any] = {
        "v_all": -2.614, "v_none": -11.93 if score == "shapley" else None, "evaluations": 1870 if score == "shapley" else 6 * n_layers - 2,
        "cornerstones": stones, "share": sum(positive[player] for player in top) / sum(positive),
    }  # fmt: skip
    if score == "shapley":
        details |= {"permutations": 48, "truncated_at": None, "left_over": None}
    errors = tuple(0.03 + 0.06 * abs(value) for value in values)
    return Measurement(score=score, source=source, players="halves", values=tuple(values), errors=errors, details=details)


def angular(source: str, n_layers: int, noise: random.Random) -> Measurement:
    steps = [0.05 + 0.02 * cost(layer, n_layers, noise) for layer in range(n_layers)]
    blocks = {
        str(size): [min(0.5, sum(steps[start : start + size]) * size**-0.35) for start in range(n_layers - size + 1)] for size in range(1, n_layers)
    }
    best = {size: {"start": min(range(len(line)), key=line.__getitem__), "distance": min(line)} for size, line in blocks.items()}
    return layers_measurement(
        "angular_distance", source, n_layers, blocks["1"].__getitem__, details={"blocks": blocks, "best": best, "documents": 128}
    )


def windows(source: str, n_layers: int, noise: random.Random) -> Measurement:
    costs = [cost(layer, n_layers, noise) for layer in range(n_layers)]
    lost = {str(size): [sum(costs[start : start + size]) * size**0.3 for start in range(n_layers - size + 1)] for size in range(1, min(9, n_layers))}
    cheapest = {size: {"start": min(range(len(line)), key=line.__getitem__), "lost": min(line)} for size, line in lost.items()}
    means = []
    for layer in range(n_layers):
        around = [
            line[start] / int(size)
            for size, line in lost.items()
            for start in range(max(0, layer - int(size) + 1), min(layer, len(line) - 1) + 1)
        ]  # fmt: skip
        means.append(sum(around) / len(around))
    details = {"whole": -2.614, "windows": lost, "cheapest": cheapest}
    return layers_measurement("window_removal", source, n_layers, means.__getitem__, details=details)


def one_pass(source: str, n_layers: int, noise: random.Random) -> list[Measurement]:
    influence = [0.04 + 0.05 * cost(layer, n_layers, noise) for layer in range(n_layers)]
    outliers = [3 + 4 * math.exp(-layer / 3) + noise.gauss(0, 0.3) for layer in range(n_layers)]
    span = max(outliers) - min(outliers)
    kept = [0.16 * (outlier - min(outliers)) / span for outlier in outliers]
    sparsities = [0.7 - keep + sum(kept) / n_layers for keep in kept]
    owl = {
        "multiple": 5.0, "lambda": 0.08, "sparsity": 0.7, "sparsities": sparsities, "check": {"dense": 2.614, "uniform": 5.93, "owl": 5.02}
    }  # fmt: skip
    return [
        layers_measurement("block_influence", source, n_layers, influence.__getitem__, 0.03),
        layers_measurement("relative_magnitude", source, n_layers, lambda layer: 0.2 + 0.9 * math.sqrt(influence[layer]), 0.02),
        layers_measurement("norm", source, n_layers, lambda layer: 20 * 1.12**layer * (1 + 0.04 * noise.random()), 0.01),
        angular(source, n_layers, noise),
        layers_measurement("outlier_distribution", source, n_layers, outliers.__getitem__, details=owl),
        layers_measurement(
            "dola_divergence", source, n_layers, lambda layer: (8 + noise.gauss(0, 0.2)) * (1 - (layer + 1) / n_layers) ** 0.7, 0.01,
            details={"positions": 16_384, "embedding": 8.7},
        ),
    ]  # fmt: skip


def probe(n_layers: int) -> Measurement:
    def line(best: float, delay: int) -> list[float]:
        return [0.55 + (best - 0.55) / (1 + math.exp(-(layer - delay) / 2)) for layer in range(n_layers)]

    scores = {
        name: {"block": line(best, n_layers // 3), "post_attention_norm": line(best - 0.02, n_layers // 3 - 1)}
        for name, best in (("accuracy", 0.91), ("f1", 0.90), ("auc", 0.96))
    }
    details = {"set": "sentiment", "items": 600, "majority": 0.52, **scores, "embedding": {"accuracy": 0.58, "f1": 0.57, "auc": 0.61}}
    return layers_measurement("probe", "sentiment", n_layers, scores["accuracy"]["block"].__getitem__, 0.03, details=details)


def by_matrix(score: str, source: str | None, key: str, n_layers: int, noise: random.Random) -> Measurement:
    matrices = {name: [abs(noise.gauss(1, 0.2)) * (1 + math.exp(-layer / 6)) for layer in range(n_layers)] for name in MATRICES}
    means = [sum(line[layer] for line in matrices.values()) / len(MATRICES) for layer in range(n_layers)]
    return layers_measurement(score, source, n_layers, means.__getitem__, details={key: matrices})


def learned_mask(source: str, n_layers: int, noise: random.Random) -> Measurement:
    changed = [layer % 4 != 3 for layer in range(n_layers)]
    masks = [noise.uniform(0.1, 1) if is_changed else math.nan for is_changed in changed]
    details = {"steps": 60, "losses": {"start": 2.61, "trained": 2.21, "masked": 2.2}, "changed": changed}
    failed = {layer: "unchanged in training" for layer, is_changed in enumerate(changed) if not is_changed}
    return layers_measurement("learned_mask", source, n_layers, masks.__getitem__, failed=failed, details=details)


def all_measurements(n_layers: int, texts: Sequence[str], noise: random.Random) -> tuple[Measurement, ...]:
    found = [by_matrix("weight_snr", None, "matrices", n_layers, noise), probe(n_layers)]
    for source in texts:
        found += one_pass(source, n_layers, noise)
        found += [
            removal(source, n_layers, noise, failed=[21] if source == TEXTS[1] and n_layers > 21 else []),
            windows(source, n_layers, noise), shapley("shapley", source, n_layers, noise), shapley("shapley_window", source, n_layers, noise),
            layers_measurement("expansion_probe", source, n_layers, lambda layer: 0.6 * cost(layer, n_layers, noise), 0.1, details={"whole": -2.614}),
            layers_measurement("layer_drop", source, n_layers, lambda layer: (9.3 + noise.gauss(0, 0.2)) * (1 - layer / n_layers) ** 0.3, 0.02),
            by_matrix("taylor", source, "units", n_layers, noise), learned_mask(source, n_layers, noise),
        ]  # fmt: skip
    order = list(CATALOGUE)
    return tuple(sorted(found, key=lambda one: order.index(one.score)))


def facts(texts: Sequence[str], n_layers: int) -> dict[str, Any]:
    return {
        "hash": "5f1c0e9a7b3d", "precision": "fp32", "seed": 0, "value": "loss",
        "sources": {
            name: {"kind": "text", "role": "domain" if name == TEXTS[0] else "replay", "tokens": 16_384, "documents": 96, "hash": f"a{place}b2"}
            for place, name in enumerate(texts)
        } | {"sentiment": {"kind": "questions", "role": "domain", "tokens": 14_000, "documents": 600, "hash": "cc01"}},
        "seconds": {f"removal · {name}": 41.0 for name in texts} | {"weight_snr": 12.0},
        "forwards": {name: {"naive": 900 * n_layers, "run": 470 * n_layers} for name in texts},
    }  # fmt: skip


@cache
def sample_table(n_layers: int = 30, texts: tuple[str, ...] = TEXTS, compared: bool = True) -> LayerTable:
    """Every score on each text; on the second one the removal of layer 21 has failed."""
    measurements, names = all_measurements(n_layers, texts, random.Random(0)), layer_names(n_layers, None)
    found = agreement(measurements, names) if compared else {}
    return LayerTable(model="smollm2_135m", layers=names, measurements=measurements, facts=facts(texts, n_layers), agreement=found)


def expanded_plan(n_base: int = 12) -> LayerPlan:
    return build_plan(n_base, ExpansionConfig(strategy="shallow_half"), FreezeConfig(schedule="originals"), prune=2)


def sample_expanded_table(n_base: int = 12) -> LayerTable:
    """Two scores of a model with new blocks, on one text, nothing compared."""
    names = layer_names(expanded_plan(n_base).n_layers, expanded_plan(n_base))
    noise, n_layers = random.Random(1), len(names)
    measurements = (*one_pass(TEXTS[0], n_layers, noise)[:1], removal(TEXTS[0], n_layers, noise))
    return LayerTable(model="smollm2_135m · run 7", layers=names, measurements=measurements, facts=facts(TEXTS[:1], n_layers))


CHOICE: dict[str, Any] = {
    "pruned": [28, 29], "by": "last", "jump": 3.07, "tail": "average",
    "alternatives": [{"by": "removal", "layers": [16, 17], "jump": 0.25}, {"by": "block_influence", "layers": [17, 20], "jump": 0.31}],
    "expanded_after": [1, 3, 5, 7, 9, 11, 13], "least_important": [16, 17, 14, 12, 20, 13, 15, 18, 19, 21, 10, 22], "expanded_mean_rank": 8.2,
    "n_layers": 30, "score": "removal", "tokens": 4096,
}  # fmt: skip
"""What the plan printer is told of a plan and of what the scores say."""
