"""A study.json as data: many models, their scores, and the factors in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.reporting.benchmark_scores import Bounds, bounds, number
from slayer.reporting.run_folder import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFacts:
    """One column of a study. `kind` is task, group or heldout; held-out scores are bits per byte."""

    name: str
    kind: str
    role: str
    metric: str
    higher_is_better: bool
    chance: float | None

    @property
    def label(self) -> str:
        """The name without the word for its kind."""
        return self.name.removeprefix("heldout/")

    @property
    def is_domain(self) -> bool:
        """It is about what was to be learnt."""
        return self.role == "domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScore:
    """One model's score, in the unit of the metric."""

    value: float
    interval: Bounds | None
    change: float | None
    change_interval: Bounds | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What a model learnt, or forgot: change of held-out bits per byte in percent of the base's; negative is better."""

    percent: float
    interval_percent: Bounds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyModel:
    """One row of a study."""

    name: str
    folder: str
    factors: Mapping[str, Any]
    scores: Mapping[str, ModelScore]
    learnt: Balance | None
    forgotten: Balance | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What study.json holds; `factors` and the two last parts stay as they are in the file."""

    base: str | None
    models: tuple[StudyModel, ...]
    scores: tuple[ScoreFacts, ...]
    factors: Mapping[str, Mapping[str, Mapping[str, Any]]]
    multifaceted: Mapping[str, Any]
    sequence: Mapping[str, Any]

    def best(self, score: ScoreFacts) -> set[str]:
        """Names of the models with the best value; empty where there is nothing to choose between."""
        values = {model.name: model.scores[score.name].value for model in self.models if score.name in model.scores}
        if len(values) < 2:
            return set()
        best = (max if score.higher_is_better else min)(values.values())
        return {name for name, value in values.items() if value == best}


def study_of(values: Mapping[str, Any]) -> Study:
    """Read the dictionary of a study.json with patience: what is missing or of the wrong shape is left out."""
    facts = tuple(_facts(name, entry) for name, entry in mapping(values.get("scores")).items())
    models = values.get("models")
    return Study(
        base=str(values["base"]) if values.get("base") else None, scores=facts,
        models=tuple(_model(entry) for entry in models if isinstance(entry, dict)) if isinstance(models, list) else (),
        factors={factor: {name: effect for name, effect in mapping(effects).items() if isinstance(effect, dict)}
                 for factor, effects in mapping(values.get("factors")).items()},
        multifaceted=mapping(values.get("multifaceted")), sequence=mapping(values.get("sequence")),
    )  # fmt: skip


def read_study(folder: Path) -> Study:
    """The study.json of a folder."""
    return study_of(read_json(folder / "study.json"))


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a dictionary, else an empty one."""
    return value if isinstance(value, dict) else {}


def _facts(name: str, entry: Any) -> ScoreFacts:
    values = mapping(entry)
    return ScoreFacts(
        name=name, kind=str(values.get("kind") or "task"), role=str(values.get("role") or "general"), metric=str(values.get("metric") or ""),
        higher_is_better=values.get("higher_is_better") is not False, chance=number(values.get("chance")),
    )  # fmt: skip


def _model(entry: Mapping[str, Any]) -> StudyModel:
    scores = {name: _score(value) for name, value in mapping(entry.get("scores")).items() if number(mapping(value).get("value")) is not None}
    return StudyModel(
        name=str(entry.get("name") or ""), folder=str(entry.get("folder") or ""), factors=mapping(entry.get("factors")), scores=scores,
        learnt=_balance(entry.get("learnt")), forgotten=_balance(entry.get("forgotten")),
    )  # fmt: skip


def _score(entry: Mapping[str, Any]) -> ModelScore:
    return ModelScore(
        value=float(entry["value"]), interval=bounds(entry.get("interval")), change=number(entry.get("change")),
        change_interval=bounds(entry.get("change_interval")), verdict=str(entry.get("verdict") or ""),
    )  # fmt: skip


def _balance(entry: Any) -> Balance | None:
    value = number(mapping(entry).get("percent"))
    return None if value is None else Balance(percent=value, interval_percent=bounds(mapping(entry).get("interval_percent")))


def differing_factors(models: Sequence[StudyModel]) -> list[str]:
    """Factors that are not the same in all models, in order of first appearance."""
    names = dict.fromkeys(name for model in models for name in model.factors)
    return [name for name in names if len({level_of(model, name) for model in models}) > 1]


CROSSED = " × "


def level_of(model: StudyModel, factor: str) -> str | None:
    """A model's level of a factor as it is typed, None where it has none; of crossed factors ("a × b") the levels together."""
    keys = factor.split(CROSSED)
    if any(key not in model.factors for key in keys):
        return None
    return ", ".join(_typed(model.factors[key]) for key in keys)


def _typed(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
