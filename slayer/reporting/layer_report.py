"""Layer scores on a page: what they say, the heat map, curves, agreement, groups of depth, each score by itself, and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import LayerTable, Measurement
from slayer.reporting.benchmark_scores import number
from slayer.reporting.document import Block, Bullets, Code, Details, Heading, Paragraph, Picture, Table
from slayer.reporting.figures import Figure
from slayer.reporting.layer_detail_figures import (
    MATRICES,
    PROFILES,
    TRIANGLES,
    matrices_figure,
    probe_figure,
    profile_figure,
    shapley_figure,
    sparsity_figure,
    triangle_figure,
)
from slayer.reporting.layer_figures import FEW_COLUMNS, agreement_columns, agreement_figure, curves_figure, group_figure, heat_figure
from slayer.reporting.layer_scores import GROUPS, group_of, groups_of, layer_margins, listed, ordering, ranks, score_words, three_figures, title_of
from slayer.reporting.layer_words import choice_sentences, failed_sentences, layer_sentences, measured_sentences
from slayer.reporting.numbers import MISSING, count
from slayer.reporting.picture import picture
from slayer.reporting.study_scores import mapping

HEAT_NOTE = (
    "Each row is one score on one text, each column a layer. Darker is more important by the ranks within the row, whatever the score's own unit; "
    "1, 2 and 3 are its most important layers. Scores that only describe a profile over depth have no row."
)
CURVE_NOTE = (
    "Bands are 95 % intervals over the rows of the text, of sampled Shapley values over the orders. The axis is logarithmic where a few layers "
    "dwarf the others. Of a Shapley value the line is the sum of attention and MLP; its band is the widest that the errors of the two allow."
)
AGREEMENT_NOTE = (
    "Spearman's correlation of the rankings, turned so that more important is always higher. Scores stand in the order of a clustering: those "
    "that agree are neighbours. Where two scores disagree, neither is wrong: they measure different things."
)
GROUP_NOTE = (
    "A dot is a layer, the line the mean of its group. p: one-way ANOVA over the groups, after Holm over all scores; in bold below 0.05. A few "
    "extreme layers in a group can make its mean large without the groups being told apart. Neighbours are alike and no independent draws: p is on "
    "the small side."
)


def layer_blocks(table: LayerTable, folder: Path) -> list[Block]:
    """The section on which layers matter; figures are saved in the folder on the way. Empty when nothing was measured."""
    if not table.measurements:
        return []
    parts = (
        ("", _overview_blocks), ("Over depth", _curve_blocks), ("How scores agree", _agreement_blocks), ("Shallow, middle, deep", _group_blocks),
        ("", _single_blocks), ("Numbers", _number_blocks), ("What the scores mean", _meaning_blocks), ("How it was measured", _measured_blocks),
        ("Next", _next_blocks),
    )  # fmt: skip
    blocks: list[Block] = []
    for title, blocks_of in parts:
        found = blocks_of(table, folder)
        blocks += [*([Heading(text=title)] if title and found else []), *found]
    return blocks


def choice_blocks(choice: Mapping[str, Any]) -> list[Block]:
    """What a plan's own choice of layers costs, beside what the scores would choose; empty where nothing is known."""
    sentences = choice_sentences(choice)
    return [Heading(text="What the scores would choose"), Bullets(items=tuple(sentences))] if sentences else []


def _overview_blocks(table: LayerTable, folder: Path) -> list[Block]:
    new = sum(layer.new for layer in table.layers)
    blocks_behind = f", {new} of them new blocks; +7 is the one behind base layer 7" if new else ""
    lead = f"{table.model}: {len(table.layers)} layers{blocks_behind}. Layers have the numbers of the base model." if new else ""
    sentences, failed = layer_sentences(table), failed_sentences(table)
    blocks: list[Block] = [Paragraph(text=lead)] if lead else []
    blocks += [Bullets(items=tuple(sentences))] if sentences else []
    blocks += [Bullets(items=tuple(failed), warn=True)] if failed else []
    if ordering(table):
        shown = picture(heat_figure(table), folder, "layers_heat", "Heat map: how important every layer is by every score")
        blocks += [shown, Paragraph(text=HEAT_NOTE, quiet=True)]
    return blocks


def _curve_blocks(table: LayerTable, folder: Path) -> list[Block]:
    chosen = ordering(table)
    parts = (
        ("What layers are worth, measured by leaving them out", [one for one in chosen if group_of(one.score) in GROUPS[:2]]),
        ("What stands in for it: one pass, weights, gradients", [one for one in chosen if group_of(one.score) not in GROUPS[:2]]),
    )
    blocks: list[Block] = [
        picture(curves_figure(table, measurements, title), folder, f"layers_curves_{place}", f"{title}: curves over depth")
        for place, (title, measurements) in enumerate(parts)
        if measurements
    ]
    return [*blocks, Paragraph(text=CURVE_NOTE, quiet=True)] if blocks else []


def _agreement_blocks(table: LayerTable, folder: Path) -> list[Block]:
    columns = table.agreement.get("columns") or []
    if len(columns) < 2 or not table.agreement.get("spearman"):
        return []
    sources = list(dict.fromkeys(column["source"] for column in columns if column["source"]))
    apart = len(columns) > FEW_COLUMNS and len(sources) > 1
    shown: list[str | None] = [source for source in sources if len(agreement_columns(table, source)) > 1] if apart else [None]
    figures: list[Block] = [
        picture(
            agreement_figure(table, source), folder, f"layers_agreement_{place}", f"Rank correlation of scores{f' on {source}' if source else ''}"
        )
        for place, source in enumerate(shown)
    ]
    return [*figures, Paragraph(text=AGREEMENT_NOTE, quiet=True), Details(title="Kendall's tau-b", text=kendall_text(table))]


def _group_blocks(table: LayerTable, folder: Path) -> list[Block]:
    if len(groups_of(table)) < 2:
        return []
    sources = list(dict.fromkeys(one.source for one in ordering(table)))
    named: list[str | None] = [source for source in sources if source is not None] or sources
    figures: list[Block] = [
        picture(group_figure(table, source), folder, f"layers_groups_{place}", f"Scores by group of depth{f' on {source}' if source else ''}")
        for place, source in enumerate(named)
    ]
    members = "; ".join(f"{name}: {_run(table, layers)}" for name, layers in groups_of(table).items())
    tests = depth_tests_text(table)
    details = [Details(title="ANOVA and Tukey's HSD, pair by pair", text=tests)] if tests else []
    return [*figures, Paragraph(text=f"{members}. {GROUP_NOTE}", quiet=True), *details] if figures else []


def kendall_text(table: LayerTable) -> str:
    """Kendall's tau-b between all scores: a triangle of numbers, each row under its name."""
    named = [(score_words(column["score"]), column["source"]) for column in table.agreement["columns"]]
    names = [" · ".join(filter(None, one)) for one in named]
    wide = max(map(len, names))
    lines = [" " * (wide + 4) + "".join(f"{place:>6}" for place in range(1, len(names)))]
    for place, (name, row) in enumerate(zip(names, table.agreement["kendall"], strict=True)):
        cells = (MISSING if value is None else f"{value:.2f}".replace("-", "−") for value in row[:place])
        lines.append(f"{place + 1:>2}  {name:{wide}}" + "".join(cell.rjust(6) for cell in cells))
    return "\n".join(lines)


def depth_tests_text(table: LayerTable) -> str:
    """What depth does to every score: ANOVA (p after Holm over scores), and each pair of groups by Tukey's HSD with its 95 % interval."""
    lines = []
    for name, effect in mapping(table.agreement.get("effects")).items():
        anova = effect.get("anova")
        if not anova:
            lines.append(f"{name}: not tested, {effect.get('why_not', '')}")
            continue
        freedom = f"F({anova['df_between']}, {anova['df_within']})"
        lines.append(f"{name}: {freedom} = {three_figures(anova['f'])}, p = {anova['p_holm']:.3f}, eta² = {anova['eta_squared']:.2f}")
        for pair in effect.get("tukey", ()):
            low, difference, high = (three_figures(float(pair[key])) for key in ("low", "difference", "high"))
            lines.append(f"    {pair['b']} − {pair['a']}: {difference} [{low}, {high}], p = {pair['p']:.3f}")
    return "\n".join(lines)


def _run(table: LayerTable, layers: Sequence[int]) -> str:
    first, last = table.layers[min(layers)].label, table.layers[max(layers)].label
    return f"layers {first} to {last}" if len(layers) > 1 else f"layer {first}"


def _single_blocks(table: LayerTable, folder: Path) -> list[Block]:
    blocks: list[Block] = []
    for score in dict.fromkeys(one.score for one in table.measurements if one.score in CATALOGUE):
        found = _figures_of(table, score, folder)
        notes = [note for one in table.measurements if one.score == score and (note := _detail_note(one))]
        if found or notes:
            title = score_words(score)
            blocks += [Heading(text=title[0].upper() + title[1:]), *found, *(Paragraph(text=note, quiet=True) for note in notes)]
    return blocks


def _figures_of(table: LayerTable, score: str, folder: Path) -> list[Picture]:
    measurements = [one for one in table.measurements if one.score == score and any(map(math.isfinite, one.values))]
    if not measurements:
        return []
    if score in PROFILES or score == "probe":
        figure = probe_figure(table) if score == "probe" else profile_figure(table, score)
        return [picture(figure, folder, f"layers_{score}", f"{score_words(score)} over depth")]
    draw: Callable[[LayerTable, Measurement], Figure] | None = None
    if score.startswith("shapley"):
        draw = shapley_figure
    elif score in TRIANGLES:
        draw, measurements = triangle_figure, [one for one in measurements if len(mapping(one.details.get(TRIANGLES[score][0]))) > 1]
    elif score in MATRICES:
        draw, measurements = matrices_figure, [one for one in measurements if mapping(one.details.get(MATRICES[score]))]
    elif score == "outlier_distribution":
        draw, measurements = sparsity_figure, [one for one in measurements if one.details.get("sparsities")]
    if draw is None:
        return []
    return [picture(draw(table, one), folder, f"layers_{score}_{place}", title_of(one)) for place, one in enumerate(measurements)]


def _detail_note(one: Measurement) -> str:
    """What was measured beside the numbers per layer; empty where there is nothing to add."""
    details, where = one.details, f"On {one.source}: " if one.source else ""
    if one.score.startswith("shapley"):
        told = [f"{count(details[key])} {key}" for key in ("evaluations", "permutations") if details.get(key) is not None]
        known = [
            f"{words} {three_figures(value)}"
            for key, words in (("v_all", "all parts"), ("v_none", "no part"))
            if (value := number(details.get(key))) is not None
        ]
        cut = (
            f"; cut after {details['truncated_at']} removals, which leaves {_share(details.get('left_over'))} of v(all) − v(none)"
            if details.get("truncated_at")
            else ""
        )
        return f"{where}{', '.join(told)}; value with {listed(known)}{cut}." if told and known else ""
    if one.score == "learned_mask":
        losses = mapping(details.get("losses"))
        told = [f"{three_figures(value)} {words}" for key, words in _MASK_WORDS.items() if (value := number(losses.get(key))) is not None]
        changed = sum(map(bool, details.get("changed") or []))
        return f"{where}{count(number(details.get('steps')))} steps, {changed} layers changed in training; loss {listed(told)}." if told else ""
    return ""


_MASK_WORDS = {"start": "of the base", "trained": "after training", "masked": "with the learned mask"}


def _share(value: Any) -> str:
    known = number(value)
    return MISSING if known is None else f"{100 * known:.1f} %"


def _number_blocks(table: LayerTable, folder: Path) -> list[Block]:
    names = [score for score in CATALOGUE if any(one.score == score for one in table.measurements)]
    return [Details(title=score_words(score), text=values_text(table, [one for one in table.measurements if one.score == score])) for score in names]


def values_text(table: LayerTable, measurements: Sequence[Measurement]) -> str:
    """The numbers of a score as a table of text: value, half width of its 95 % interval and rank, source by source; halves by themselves too."""
    columns = [["", "layer", *(layer.label for layer in table.layers)]]
    for one in measurements:
        margins, above = layer_margins(one), one.source or ""
        if one.players == "halves":
            columns += [[above, name, *map(_exact, one.values[half::2])] for half, name in enumerate(("attention", "MLP"))]
        columns.append(["" if one.players == "halves" else above, "value", *map(_exact, one.by_layer)])
        if margins is not None:
            columns.append(["", "±" if one.players == "layers" else "± at most", *map(_exact, margins)])
        if CATALOGUE[one.score].high_is_important is not None:
            columns.append(["", "rank", *(f"{rank:g}" if math.isfinite(rank) else MISSING for rank in ranks(one))])
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*([cell.rjust(width) for cell in column] for column, width in zip(columns, widths, strict=True)), strict=True)
    return "\n".join("  ".join(line).rstrip() for line in lines if "".join(line).strip())


def _exact(value: float) -> str:
    return f"{value:.5g}".replace("-", "−") if math.isfinite(value) else MISSING


def _meaning_blocks(table: LayerTable, folder: Path) -> list[Block]:
    scores = [score for score in CATALOGUE.values() if any(one.score == score.name for one in table.measurements)]
    rows = tuple((score_words(score.name), score.high_means, score.source) for score in scores)
    return [Table(head=("score", "a high value means", "source"), rows=rows)] if rows else []


def _measured_blocks(table: LayerTable, folder: Path) -> list[Block]:
    sentences = measured_sentences(table)
    return [Bullets(items=tuple(sentences))] if sentences else []


def _next_blocks(table: LayerTable, folder: Path) -> list[Block]:
    commands = [(str(command), str(purpose)) for command, purpose in table.facts.get("next") or []]
    return [Code(text="\n".join(f"# {purpose}\n{command}" for command, purpose in commands))] if commands else []
