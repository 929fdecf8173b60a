"""What the layer scores of a model say, in sentences: the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from slayer.importance.agreement import importance
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import LayerTable, Measurement
from slayer.reporting.benchmark_scores import number, with_relation
from slayer.reporting.layer_scores import (
    by_importance,
    failed_layers,
    groups_of,
    labels,
    layer_interval,
    listed,
    main_first,
    ordering,
    ranks,
    score_words,
    sources_of,
    three_figures,
    title_of,
    unit_of,
)
from slayer.reporting.numbers import count, duration, fixed
from slayer.reporting.study_scores import mapping

NAMED = 3
"""Layers named at either end."""


def layer_sentences(table: LayerTable) -> list[str]:
    """What was found: the cheapest and dearest layers on every text, the last two, shallow ones, how well scores agree."""
    chosen = ordering(table)
    if not chosen:
        return profile_sentences(table)
    score = main_first(chosen)[0].score
    main = [one for one in chosen if one.score == score]
    return [
        *(_ends_sentence(table, one) for one in main[:2]),
        *filter(None, (last_two_sentence(table, main[0]), shallow_sentence(table), agreement_sentence(table))),
        *profile_sentences(table),
    ]


def profile_sentences(table: LayerTable) -> list[str]:
    """From where to where the scores go that describe depth and do not order layers."""
    sentences = []
    for one in table.measurements:
        known = [layer for layer, value in enumerate(one.by_layer) if math.isfinite(value)]
        if CATALOGUE[one.score].high_is_important is None and known:
            highest = max(known, key=one.by_layer.__getitem__)
            first, top, last = (
                f"{three_figures(one.by_layer[layer])} at layer {table.layers[layer].label}" for layer in (known[0], highest, known[-1])
            )
            majority = number(one.details.get("majority"))
            chance = f"; the larger class is {three_figures(majority)} of the sentences" if majority is not None else ""
            peak = f", highest {top}" if highest not in (known[0], known[-1]) else ""
            sentences.append(f"{title_of(one)[0].upper()}{title_of(one)[1:]} goes from {first} to {last}{peak} ({unit_of(table, one)}{chance}).")
    return sentences


def _ends_sentence(table: LayerTable, one: Measurement) -> str:
    order = by_importance(one)
    n_named = min(NAMED, len(order) // 2)
    lowest, highest = order[:n_named], order[::-1][:n_named]
    where = f" on {one.source}" if one.source else ""
    is_lost = CATALOGUE[one.score].unit == "lost"
    single = len(highest) == 1
    least, most = ("cheapest to lose", "costs most" if single else "cost most") if is_lost else ("least important", "most important")
    verb = "" if is_lost else "is " if single else "are "
    return (
        f"By {score_words(one.score)}{where}, {_layers(lowest)} {labels(table.layers, lowest)} {'is' if len(lowest) == 1 else 'are'} {least} "
        f"({_numbers(one, lowest)} {unit_of(table, one)}{_rivals(table, one, lowest, order)}); "
        f"{labels(table.layers, highest)} {verb}{most} ({_numbers(one, highest)}{_rivals(table, one, highest, order[::-1])})."
    )


def _layers(chosen: Sequence[int]) -> str:
    return "layer" if len(chosen) == 1 else "layers"


def _numbers(one: Measurement, layers: Sequence[int]) -> str:
    return listed([three_figures(one.by_layer[layer]) for layer in layers])


def _rivals(table: LayerTable, one: Measurement, named: Sequence[int], order: Sequence[int]) -> str:
    # Layers that are not named, but whose intervals reach into that of the last one named.
    edge = layer_interval(one, named[-1])
    if edge is None:
        return ""
    bounds = {layer: layer_interval(one, layer) for layer in order if layer not in named}
    near = [layer for layer, span in bounds.items() if span is not None and span[0] <= edge[1] and edge[0] <= span[1]]
    if not near:
        return ""
    which = f"{_layers(near)} {labels(table.layers, near)}" if len(near) <= NAMED else f"{len(near)} more layers"
    return f"; {which} may be as {'low' if named[0] == by_importance(one)[0] else 'high'}, their 95 % intervals overlap"


def last_two_sentence(table: LayerTable, one: Measurement) -> str:
    """Whether the last two layers can go, beside the median layer; empty where they have no numbers."""
    last = [layer for layer in range(len(table.layers))][-2:]
    values = one.by_layer
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 5 or not all(math.isfinite(values[layer]) for layer in last):
        return ""
    middle, its_ranks = median(known), ranks(one)
    sides = [_side(one, layer, middle) for layer in last]
    told = f"{three_figures(values[last[0]])} and {three_figures(values[last[1]])}, the median layer {three_figures(middle)} {unit_of(table, one)}"
    places = f"{listed([f'{its_ranks[layer]:.0f}' for layer in last])} of {len(known)}"
    if CATALOGUE[one.score].high_is_important is False:
        sides = [-side for side in sides]
    words = {
        (1, 1): "are not free: both matter more than the median layer", (-1, -1): "are cheap: both matter less than the median layer",
        (0, 0): "cannot be told from the median layer",
    }  # fmt: skip
    mixed = " and ".join(f"{table.layers[layer].label} {_SIDES[side]}" for layer, side in zip(last, sides, strict=True))
    verdict = words.get((sides[0], sides[1]), f"differ: {mixed}")
    return f"The last two layers, {labels(table.layers, last)}, {verdict} ({told}; ranks {places}){_together(table, one)}."


_SIDES = {1: "matters more than the median layer", -1: "matters less than it", 0: "cannot be told from it"}


def _side(one: Measurement, layer: int, middle: float) -> int:
    """1 above the median layer, −1 below, 0 where the interval holds it."""
    low, high = layer_interval(one, layer) or (one.by_layer[layer], one.by_layer[layer])
    return 1 if low > middle else -1 if high < middle else 0


def _together(table: LayerTable, one: Measurement) -> str:
    windows = table.find("window_removal", one.source)
    pairs = mapping(windows.details.get("windows")).get("2") if windows is not None else None
    lost = number(pairs[-1]) if pairs else None
    return f"; together they cost {three_figures(lost)}" if lost is not None else ""


def shallow_sentence(table: LayerTable) -> str:
    """Whether shallow layers matter most, by the means of the groups of depth; empty where there are no groups."""
    groups, chosen = groups_of(table), main_first(ordering(table))
    if "shallow" not in groups or len(groups) < 2 or not chosen:
        return ""
    firsts: dict[str, int] = {}
    for one in chosen:
        means = _group_means(importance(one).tolist(), groups)
        if len(means) > 1:
            best = max(means, key=lambda name: means[name])
            firsts[best] = firsts.get(best, 0) + 1
    n_scores, shallow = sum(firsts.values()), firsts.get("shallow", 0)
    others = listed([f"{name} ones by {times}" for name, times in sorted(firsts.items(), key=lambda item: -item[1]) if name != "shallow"])
    if n_scores == 1:
        counted = f"{'Shallow' if shallow else next(iter(firsts)).capitalize()} layers matter most on average"
    elif shallow:
        counted = f"Shallow layers matter most on average by {'all' if shallow == n_scores else shallow} of {n_scores} rankings" + (
            f", {others}" if shallow < n_scores else ""
        )
    else:
        counted = f"Shallow layers matter most by none of {n_scores} rankings ({others})"
    main = chosen[0]
    means = _group_means(main.by_layer, groups)
    told = ", ".join(f"{name} {three_figures(mean)}" for name, mean in sorted(means.items(), key=lambda item: -item[1]))
    return f"{counted}; mean {title_of(main)}: {told} ({_told_apart(table, main)})."


def _group_means(values: Sequence[float], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    known = {name: [values[layer] for layer in members if math.isfinite(values[layer])] for name, members in groups.items()}
    return {name: sum(its_values) / len(its_values) for name, its_values in known.items() if its_values}


def _told_apart(table: LayerTable, one: Measurement) -> str:
    p = number(mapping(mapping(mapping(table.agreement.get("effects")).get(one.key)).get("anova")).get("p_holm"))
    if p is None:
        return "not tested"
    return f"the groups differ, {with_relation(p)}" if p < 0.05 else f"layers within a group differ as much, {with_relation(p)}"


def agreement_sentence(table: LayerTable) -> str:
    """The lowest and the highest rank correlation of two scores on the same text, and how far a score changes from text to text."""
    columns, matrix = table.agreement.get("columns") or [], table.agreement.get("spearman") or []
    pairs: list[tuple[float, int, int]] = []
    across: list[float] = []
    for first, one in enumerate(columns):
        for second in range(first):
            other, value = columns[second], number(matrix[first][second])
            if value is None:
                continue
            if one["score"] == other["score"]:
                across.append(value)
            elif one["source"] == other["source"] or None in (one["source"], other["source"]):
                pairs.append((value, second, first))
    if not pairs:
        return f"The same score ranks the layers of two texts with a Spearman correlation of {fixed(min(across), 2)}." if across else ""
    low, high = min(pairs), max(pairs)
    p = _p_of(table, low)
    doubt = ", no relation that could be detected" if p is not None and p >= 0.05 else ""
    if len(pairs) == 1:
        return f"{_pair_words(columns, low).capitalize()} rank the layers with a Spearman correlation of {fixed(low[0], 2)}{doubt}."
    texts = f" From text to text the same score agrees by {fixed(min(across), 2)} or more." if across else ""
    return (
        f"Scores agree by a Spearman correlation from {fixed(low[0], 2)} ({_pair_words(columns, low)}{doubt}) to {fixed(high[0], 2)} "
        f"({_pair_words(columns, high)}), median {fixed(median(value for value, *_ in pairs), 2)}.{texts}"
    )


def _pair_words(columns: Sequence[Mapping[str, Any]], pair: tuple[float, int, int]) -> str:
    first, second = (columns[place] for place in pair[1:])
    source = first["source"] or second["source"]
    return f"{score_words(first['score'])} and {score_words(second['score'])}{f' on {source}' if source else ''}"


def _p_of(table: LayerTable, pair: tuple[float, int, int]) -> float | None:
    matrix = table.agreement.get("spearman_p") or []
    return number(matrix[pair[2]][pair[1]]) if matrix else None


def failed_sentences(table: LayerTable) -> list[str]:
    """Which layers have no number by which score, and why."""
    sentences = []
    for one in table.measurements:
        reasons: dict[str, list[int]] = {}
        changed = one.details.get("changed") or ()
        for layer, why in failed_layers(one).items():
            if layer < len(changed) and not changed[layer]:
                continue  # a layer that training left alone: nothing failed
            reasons.setdefault(why, []).append(layer)
        for why, layers in reasons.items():
            sentences.append(f"{title_of(one)} has no number for {_these_or_all(table, sorted(layers))}: {why}.")
    return sentences


def _these_or_all(table: LayerTable, layers: Sequence[int]) -> str:
    return "any layer" if len(layers) == len(table.layers) else f"{_layers(layers)} {labels(table.layers, layers)}"


def measured_sentences(table: LayerTable) -> list[str]:
    """How it was measured: texts, precision, seed, time, and forward passes saved."""
    facts, sentences = table.facts, []
    used = {source for source in sources_of(table.measurements) if source is not None}
    for name, source in mapping(facts.get("sources")).items():
        if name in used:
            parts = [f"{count(number(source.get(key)))} {key}" for key in ("tokens", "documents") if number(source.get(key)) is not None]
            role = f", {source['role']}" if source.get("role") else ""
            sentences.append(
                f"{name} ({source.get('kind', 'text')}{role}): {', '.join(parts)}." if parts else f"{name} ({source.get('kind', 'text')})."
            )
    settings = [f"precision {facts['precision']}"] if facts.get("precision") else []
    settings += [f"seed {facts['seed']}"] if facts.get("seed") is not None else []
    seconds = [value for each in mapping(facts.get("seconds")).values() if (value := number(each)) is not None]
    settings += [f"{duration(sum(seconds))} in all"] if seconds else []
    if settings:
        sentences.append(f"{', '.join(settings).capitalize()}.")
    for name, forwards in mapping(facts.get("forwards")).items():
        naive, run = number(mapping(forwards).get("naive")), number(mapping(forwards).get("run"))
        if naive and run:
            sentences.append(
                f"Models without some layers on {name}: {count(run)} block-forwards instead of {count(naive)}, {naive / run:.2f}× fewer."
            )
    return sentences


def choice_sentences(choice: Mapping[str, Any]) -> list[str]:
    """What a plan removes and expands, beside what the scores of this model would choose; empty where nothing is known."""
    return list(filter(None, (_prune_sentence(choice), _expand_sentence(choice))))


def _prune_sentence(choice: Mapping[str, Any]) -> str:
    jump, pruned = number(choice.get("jump")), list(choice.get("pruned") or [])
    if jump is None or not pruned:
        return ""
    tail = f", tail={choice['tail']}" if choice.get("tail") not in (None, "frozen") else ""
    same, other = [], []
    for one in choice.get("alternatives") or []:
        its_jump = number(one.get("jump"))
        if sorted(one["layers"]) == sorted(pruned):
            same.append(f"prune_by={one['by']}")
        elif its_jump is not None:
            other.append(f"prune_by={one['by']} ({_these(one['layers'])}) would cost {_jump(its_jump)}")
    ends = [*other, f"{listed(same)} would choose the same layers"] if same else other
    costs = f"prune_by={choice.get('by')} ({_these(pruned)}{tail}) costs {_jump(jump)} nats per token here"
    return "; ".join([costs, *ends]) + "."


def _jump(nats: float) -> str:
    return f"{nats:+.2f}".replace("-", "−")


def _these(layers: Sequence[int]) -> str:
    return f"layer{'' if len(layers) == 1 else 's'} {', '.join(map(str, layers))}"


def _expand_sentence(choice: Mapping[str, Any]) -> str:
    after, rank, n_layers = list(choice.get("expanded_after") or []), number(choice.get("expanded_mean_rank")), choice.get("n_layers")
    if not after or rank is None or not n_layers:
        return ""
    place = rank / (int(n_layers) + 1)
    matter = "matter" if place < 0.4 else "matter little" if place > 0.6 else "matter neither more nor less than others"
    blocks = f"The {len(after)} new blocks stand behind layers" if len(after) > 1 else "The new block stands behind a layer"
    matter = matter if len(after) > 1 else matter.replace("matter", "matters", 1)
    tokens = number(choice.get("tokens"))
    sample = f" on {count(tokens)} tokens" if tokens else ""
    told = f"{blocks} that {matter}: mean rank {rank:.1f} of {n_layers} by {score_words(str(choice.get('score')))}{sample} (1: most important)"
    least = list(choice.get("least_important") or [])[: len(after)]
    if not least:
        return f"{told}."
    chosen = "takes these" if sorted(least) == sorted(after) else f"would take {', '.join(map(str, least))}"
    return f"{told}; expansion=least_important {chosen}."
