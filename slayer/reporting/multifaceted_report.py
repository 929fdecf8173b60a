"""The multifaceted assessment of arXiv 2403.15250 over the models of a study: size classes, curves over size, correlations, a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slayer.reporting.benchmark_scores import number, probability
from slayer.reporting.document import Block, Bullets, Heading, Paragraph, Table
from slayer.reporting.numbers import count, fixed, percent
from slayer.reporting.picture import picture
from slayer.reporting.study_factors import factor_blocks, sentence
from slayer.reporting.study_figures import map_figure, matrix_figure, size_curves_figure
from slayer.reporting.study_scores import Study, level_of, mapping

SIZE = "model size"
MOST_NAMES = 8
CURVE_NOTE = (
    "A generalised additive model: log(score) as a smooth function of log(parameters), the band is the 95 % interval of the mean. Degrees of "
    "freedom near 1: a power law. p: the curve against a flat line, corrected after Holm."
)
CORRELATION_NOTE = (
    "Pearson's r between scores over the models: 1, both rise together; −1, one falls as the other rises. Of bits per byte lower is better, so "
    "a negative r with an accuracy means that both get better together."
)
MAP_NOTE = (
    "t-SNE of the standardised scores: models stand near each other where their scores are alike. Directions and distances far apart mean nothing."
)


def multifaceted_blocks(study: Study, folder: Path) -> list[Block]:
    """The section on how scores, models and sizes go together; what could not be looked at says why."""
    found = study.multifaceted
    if not found or len(study.models) < 3:
        return []
    if found.get("why_not"):
        return [Paragraph(text=sentence(f"not looked at: {found['why_not']}"), quiet=True)]
    parts = (("correlation", _correlation_blocks), ("map", _map_blocks), ("gam", _curve_blocks), ("sizes", _size_blocks))
    return [block for name, blocks_of in parts if mapping(found.get(name)) for block in blocks_of(study, mapping(found[name]), folder)]


def _why_not(title: str, part: Mapping[str, Any]) -> list[Block]:
    return [Heading(text=title), Paragraph(text=sentence(str(part["why_not"])), quiet=True)]


def _correlation_blocks(study: Study, part: Mapping[str, Any], folder: Path) -> list[Block]:
    title = "Scores that go together"
    if part.get("why_not"):
        return _why_not(title, part)
    names = [str(name).removeprefix("heldout/") for name in part.get("scores") or []]
    matrix = [[number(value) for value in line] for line in part.get("matrix") or []]
    if not matrix:
        return []
    figure = matrix_figure(matrix, names, names, "Correlation of scores over the models", signed=True)
    return [
        Heading(text=title),
        picture(figure, folder, "correlation", "Correlation of every two scores"),
        Paragraph(text=CORRELATION_NOTE, quiet=True),
    ]


def _map_blocks(study: Study, part: Mapping[str, Any], folder: Path) -> list[Block]:
    title = "Models that are alike"
    if part.get("why_not"):
        return _why_not(title, part)
    places = {model.name: place for place, model in enumerate(study.models, start=1)}
    known = {model.name: model for model in study.models}
    factor = next(iter(study.factors), "")
    points = []
    for name, point in zip(part.get("models") or [], part.get("points") or [], strict=False):
        level = level_of(known[name], factor) if factor and name in known else None
        label = str(name) if len(study.models) <= MOST_NAMES else str(places.get(name, name))
        points.append((label, float(point[0]), float(point[1]), f"{factor}={level}" if level is not None else ""))
    if not points:
        return []
    figure = map_figure(points, "Models by their scores")
    numbers = " Numbers are those of the models in the table." if len(study.models) > MOST_NAMES else ""
    return [Heading(text=title), picture(figure, folder, "map", "Map of the models by their scores"), Paragraph(text=MAP_NOTE + numbers, quiet=True)]


def _curve_blocks(study: Study, part: Mapping[str, Any], folder: Path) -> list[Block]:
    facts = {score.name: score for score in study.scores}
    fitted = {name: entry for name, entry in part.items() if name in facts and mapping(entry).get("curve")}
    blocks: list[Block] = [Heading(text="Score against size")]
    if fitted:
        blocks.append(picture(size_curves_figure(fitted, facts), folder, "size_curves", "Scores against the number of parameters"))
        rows = tuple(
            (facts[name].label, count(entry.get("models")), fixed(number(entry.get("edf")), 1), probability(number(entry.get("p"))),
             probability(number(entry.get("p_holm"))), percent(_hundredfold(entry.get("deviance_explained")), signed=False))
            for name, entry in fitted.items()
        )  # fmt: skip
        head = ("score", "models#", "degrees of freedom#", "p#", "p (Holm)#", "explained#")
        blocks += [Table(head=head, rows=rows), Paragraph(text=CURVE_NOTE, quiet=True)]
    reasons: dict[str, list[str]] = {}
    for name, entry in part.items():
        if why := mapping(entry).get("why_not"):
            reasons.setdefault(sentence(str(why)), []).append(str(name).removeprefix("heldout/"))
    alone = len(reasons) == 1 and not fitted
    if reasons:
        blocks.append(Bullets(items=tuple(why if alone else f"No curve for {', '.join(names)}: {why}" for why, names in reasons.items())))
    return blocks


def _hundredfold(share: Any) -> float | None:
    value = number(share)
    return None if value is None else 100 * value


def _size_blocks(study: Study, part: Mapping[str, Any], folder: Path) -> list[Block]:
    return [Heading(text="Classes of size"), *factor_blocks(replace(study, factors={SIZE: part}), SIZE, None)]
