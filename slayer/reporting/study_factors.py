"""What the factors of a study explain: analysis of variance, the levels that differ, and both in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.reporting.benchmark_scores import Bounds, bounds, number, probability, score, span, with_relation
from slayer.reporting.document import Block, Bullets, Cell, Heading, Noted, Paragraph, Table
from slayer.reporting.numbers import MISSING, fixed, percent
from slayer.reporting.picture import picture
from slayer.reporting.study_figures import level_figure
from slayer.reporting.study_scores import ScoreFacts, Study, mapping

SIGNIFICANT = 0.05
MOST_SENTENCES = 4
METHOD = (
    "One-way analysis of variance per score over the levels of one factor, all other factors mixed (as in arXiv 2403.15250). F compares the "
    "spread between levels with the spread within them; p (Holm) is corrected for the number of scores. η² is the share of the scores' variance "
    "that the levels explain in these models; ω² is the same without its upward bias in small samples. Pairs of levels: Tukey's honestly "
    "significant difference, whose intervals and p hold for all pairs together; d is Cohen's d, the difference in standard deviations."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two levels that differ, the better one first; `difference` is positive."""

    better: str
    worse: str
    difference: float
    interval: Bounds | None
    p: float
    cohens_d: float | None


def differing_pairs(effect: Mapping[str, Any], *, higher_is_better: bool) -> list[Pair]:
    """The pairs of levels that Tukey's test tells apart, largest difference first."""
    means = {name: number(mapping(level).get("mean")) for name, level in mapping(effect.get("levels")).items()}
    pairs = []
    for entry in effect.get("tukey") or []:
        p, difference = number(entry.get("p")), number(entry.get("difference"))
        first, second = means.get(str(entry.get("a"))), means.get(str(entry.get("b")))
        if p is None or difference is None or first is None or second is None or p >= SIGNIFICANT:
            continue
        a_is_better = (first > second) == higher_is_better
        better, worse = (str(entry["a"]), str(entry["b"])) if a_is_better else (str(entry["b"]), str(entry["a"]))
        low_high = bounds((entry.get("low"), entry.get("high")))
        if low_high is not None and difference < 0:
            low_high = (-low_high[1], -low_high[0])
        distance = number(entry.get("cohens_d"))
        pairs.append(
            Pair(
                better=better,
                worse=worse,
                difference=abs(difference),
                interval=low_high,
                p=p,
                cohens_d=abs(distance) if distance is not None else None,
            )
        )
    return sorted(pairs, key=lambda pair: -pair.difference)


def factor_sentences(study: Study, factor: str) -> list[str]:
    """What one factor explains, strongest first, for a person who does not read tables."""
    found = []
    for facts, effect in _tested(study, factor):
        anova = mapping(effect.get("anova"))
        p, eta = number(anova.get("p_holm")), number(anova.get("eta_squared"))
        if p is None or eta is None or not _is_significant(effect):
            continue
        pairs = differing_pairs(effect, higher_is_better=facts.higher_is_better)
        known = f" (95 % interval {span(pairs[0].interval)}, {with_relation(pairs[0].p)})" if pairs else ""
        which = f"; {pairs[0].better} is better than {pairs[0].worse} by {score(pairs[0].difference)}{known}" if pairs else ""
        explained = percent(100 * eta, signed=False, digits=0)
        found.append((eta, f"{factor} explains {explained} of the variance of {_called(facts)} ({with_relation(p)} after Holm){which}."))
    return [text for _, text in sorted(found, key=lambda pair: -pair[0])]


def _is_significant(effect: Mapping[str, Any]) -> bool:
    p = number(mapping(effect.get("anova")).get("p_holm"))
    return p is not None and p < SIGNIFICANT


def _called(facts: ScoreFacts) -> str:
    return f"held-out {facts.label}" if facts.kind == "heldout" else facts.label


def _tested(study: Study, factor: str) -> list[tuple[ScoreFacts, Mapping[str, Any]]]:
    effects = study.factors.get(factor, {})
    return [(facts, effects[facts.name]) for facts in study.scores if mapping(effects.get(facts.name)).get("anova")]


def factor_blocks(study: Study, factor: str, folder: Path | None) -> list[Block]:
    """The section of one factor: sentences, every model by level (given a folder for the figure), the tests and the pairs that differ."""
    effects, tested = study.factors.get(factor, {}), _tested(study, factor)
    sentences = factor_sentences(study, factor)
    blocks: list[Block] = []
    if sentences:
        more = len(sentences) - MOST_SENTENCES
        rest = (f"… and of {more} more score{'s' if more > 1 else ''}, in the table below.",) if more > 0 else ()
        blocks.append(Bullets(items=(*sentences[:MOST_SENTENCES], *rest)))
    elif tested:
        blocks.append(Paragraph(text=f"No score differs detectably between the levels of {factor}."))
    if tested and folder is not None:
        shown = [facts for facts, _ in tested]
        name = f"levels_{''.join(letter if letter.isalnum() else '_' for letter in factor)}"
        blocks.append(picture(level_figure(factor, shown, study.models, effects), folder, name, f"Scores of every model by {factor}"))
        blocks.append(
            Paragraph(text="A dot is a model; the bar is the mean of its level, the line across it one standard error to either side.", quiet=True)
        )
    if tested:
        blocks.append(_anova_table(tested))
        pairs = [
            (facts, pair) for facts, effect in tested if _is_significant(effect)
            for pair in differing_pairs(effect, higher_is_better=facts.higher_is_better)
        ]  # fmt: skip
        if pairs:
            blocks += [Heading(text="Levels that differ"), _pairs_table(pairs)]
    return [*blocks, *_untested(study, effects)]


def _untested(study: Study, effects: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    reasons: dict[str, list[str]] = {}
    for facts in study.scores:
        if why := effects.get(facts.name, {}).get("why_not"):
            reasons.setdefault(sentence(str(why)), []).append(_called(facts))
    if not reasons:
        return []
    everything = len(reasons) == 1 and not any(mapping(effect).get("anova") for effect in effects.values())
    items = tuple(why if everything else f"Not tested for {', '.join(names)}: {why}" for why, names in reasons.items())
    return [Bullets(items=items)]


def sentence(text: str) -> str:
    """The text as a sentence: with a capital at its beginning and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", ")")) else ".")


def _anova_table(tested: Sequence[tuple[ScoreFacts, Mapping[str, Any]]]) -> Table:
    levels = list(dict.fromkeys(level for _, effect in tested for level in mapping(effect.get("levels"))))
    means = levels if len(levels) <= 4 else []
    head = ("score", *(f"{level}#" for level in means), "F#", "p#", "p (Holm)#", "η²#", "ω²#")
    rows, strong = [], set()
    for place, (facts, effect) in enumerate(tested):
        anova = mapping(effect.get("anova"))
        p = number(anova.get("p_holm"))
        if _is_significant(effect):
            strong.add(place)
        freedom = f"df {anova.get('df_between', MISSING):g}, {anova.get('df_within', MISSING):g}" if "df_between" in anova else ""
        rows.append((
            Noted(text=facts.label, note=f"{facts.metric}{'' if facts.higher_is_better else ', lower is better'}"),
            *(_level_cell(mapping(mapping(effect.get("levels")).get(level))) for level in means),
            Noted(text=fixed(number(anova.get("f")), 2), note=freedom), probability(number(anova.get("p"))), probability(p),
            fixed(number(anova.get("eta_squared")), 2), fixed(number(anova.get("omega_squared")), 2),
        ))  # fmt: skip
    return Table(head=head, rows=tuple(rows), strong=frozenset(strong))


def _level_cell(level: Mapping[str, Any]) -> Cell:
    spread = number(level.get("sd"))
    if not level:
        return MISSING
    return Noted(text=score(number(level.get("mean"))), note=f"n {level.get('n')}" + (f", sd {spread:.3f}" if spread is not None else ""))


def _pairs_table(pairs: Sequence[tuple[ScoreFacts, Pair]]) -> Table:
    rows = tuple(
        (facts.label, pair.better, pair.worse, Noted(text=score(pair.difference), note=span(pair.interval)), probability(pair.p),
         fixed(pair.cohens_d, 1))
        for facts, pair in pairs
    )  # fmt: skip
    return Table(head=("score", "better", "than", "by#", "p#", "d#"), rows=rows)
