"""The measurements of a layer table as they are shown: turned so that more is more important, ranked, named, coloured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slayer.errors import DataError
from slayer.importance.agreement import importance
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import LayerName, LayerTable, Measurement, load_table
from slayer.reporting.figures import MUTED, source_colours
from slayer.reporting.numbers import MISSING
from slayer.reporting.study_scores import mapping

GROUPS = ("layers left out", "Shapley values", "one forward pass", "weights alone", "gradients and updates")
"""Kinds of scores, in the order in which they are shown: what was measured by its consequences stands above what stands in for it."""
_GROUP_OF_NEEDS = {"values": GROUPS[0], "pass": GROUPS[2], "weights": GROUPS[3], "gradients": GROUPS[4], "update": GROUPS[4]}
_WORDS = {
    "weight_snr": "weight SNR", "dola_divergence": "DoLa divergence", "shapley": "Shapley", "shapley_window": "Shapley, windows", "taylor": "Taylor",
}  # fmt: skip
_MAIN = ("removal", "shapley", "block_influence", "window_removal", "shapley_window", "angular_distance", "expansion_probe", "taylor")
"""Scores that are shown first where there is no room for all; the others follow as in the catalogue."""


def read_layers(folder: Path) -> LayerTable | None:
    """The layers.json of a folder; None where there is none that can be read."""
    try:
        return load_table(folder)
    except DataError:
        return None


def score_words(score: str) -> str:
    """A score's name for people: block influence."""
    return _WORDS.get(score, score.replace("_", " "))


def title_of(one: Measurement) -> str:
    """removal · wikipedia_fr, or the score alone where it is of the weights."""
    return f"{score_words(one.score)} · {one.source}" if one.source else score_words(one.score)


def group_of(score: str) -> str:
    """The group of a score that orders layers."""
    return GROUPS[1] if score.startswith("shapley") else _GROUP_OF_NEEDS[CATALOGUE[score].needs]


def ordering(table: LayerTable) -> list[Measurement]:
    """The measurements that order layers by importance, group by group, each with at least two numbers."""
    chosen = [
        one
        for one in table.measurements
        if one.score in CATALOGUE and CATALOGUE[one.score].high_is_important is not None and sum(map(math.isfinite, one.by_layer)) > 1
    ]
    names = list(CATALOGUE)
    return sorted(chosen, key=lambda one: (GROUPS.index(group_of(one.score)), names.index(one.score)))


def main_first(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The same with the scores first that are shown where there is little room."""
    return sorted(measurements, key=lambda one: _MAIN.index(one.score) if one.score in _MAIN else len(_MAIN))


def ranks(one: Measurement) -> tuple[float, ...]:
    """1 is the most important layer; equal ones share the mean of their ranks; NaN where there is no number."""
    values = importance(one).tolist()
    known = [value for value in values if math.isfinite(value)]
    return tuple(
        sum(other > value for other in known) + (1 + sum(other == value for other in known)) / 2 if math.isfinite(value) else math.nan
        for value in values
    )


def by_importance(one: Measurement) -> list[int]:
    """Indices of the layers that have a number, the least important first."""
    values = importance(one).tolist()
    return sorted((layer for layer, value in enumerate(values) if math.isfinite(value)), key=lambda layer: values[layer])


def layer_margins(one: Measurement) -> tuple[float, ...] | None:
    """Half widths of the 95 % intervals by layer. Of two halves their sum, which that of the sum cannot exceed however the halves vary together."""
    if one.errors is None:
        return None
    margins = one.margins
    return margins if one.players == "layers" else tuple(first + second for first, second in zip(margins[::2], margins[1::2], strict=True))


def layer_interval(one: Measurement, layer: int) -> tuple[float, float] | None:
    """95 % interval of a layer's number; None where its error is not known."""
    margins = layer_margins(one)
    if margins is None or not math.isfinite(margins[layer]):
        return None
    return one.by_layer[layer] - margins[layer], one.by_layer[layer] + margins[layer]


def failed_layers(one: Measurement) -> dict[int, str]:
    """Why a layer has no number, by its index; of halves with the half's name."""
    if one.players == "layers":
        return dict(one.failed)
    return {player // 2: f"{('attention', 'MLP')[player % 2]}: {why}" for player, why in one.failed.items()}


def unit_of(table: LayerTable, one: Measurement) -> str:
    """The unit of a score's numbers: what is lost is lost in nats per token, or in accuracy."""
    unit = CATALOGUE[one.score].unit
    if unit not in ("lost", "value"):
        return unit.replace("π", "pi")  # terminals without UTF-8 have no sign for it
    measured = "accuracy" if is_accuracy(table, one.source) else "nats per token"
    return f"{measured} lost" if unit == "lost" else measured


def is_accuracy(table: LayerTable, source: str | None) -> bool:
    """What is lost on this source is accuracy, not nats."""
    kind = mapping(mapping(table.facts.get("sources")).get(source or "")).get("kind")
    return kind == "suite" or (kind != "text" and table.facts.get("value") == "accuracy")


def sources_of(measurements: Sequence[Measurement]) -> list[str | None]:
    """The sources of these measurements, each once, in order."""
    return list(dict.fromkeys(one.source for one in measurements))


def colours_of(table: LayerTable) -> dict[str | None, str]:
    """A colour per source: blues for what is to be learnt, oranges for the rest, grey for the weights alone."""
    known = mapping(table.facts.get("sources"))
    names = [source for source in sources_of(table.measurements) if source is not None]
    roles = {name: "domain" if mapping(known.get(name)).get("role") == "domain" else "replay" for name in names}
    colours: dict[str | None, str] = {None: MUTED}
    colours.update(source_colours(roles))
    return colours


def three_figures(value: float) -> str:
    """About three figures, as many decimals as that takes but no more than four: 8.12, 0.251, 0.0204, 412."""
    if not math.isfinite(value):
        return MISSING
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{digits}f}".replace("-", "−")


def labels(layers: Sequence[LayerName], chosen: Sequence[int]) -> str:
    """17, 16 and +7."""
    return listed([layers[layer].label for layer in chosen])


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else MISSING


def groups_of(table: LayerTable) -> dict[str, list[int]]:
    """Depth groups (shallow, middle, deep, final) as the agreement of the table has them: indices of layers."""
    found: dict[str, Any] = mapping(table.agreement.get("groups"))
    return {name: [layer for layer in layers if layer < len(table.layers)] for name, layers in found.items() if layers}
