"""Many runs side by side: which of the settings they differ in moves which score, and by how much.

The seed is no factor: runs that differ in nothing but the seed are the replicates that an effect is measured against.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from slayer.config import NOT_PART_OF_A_RUN, RunConfig
from slayer.errors import ModelError
from slayer.evaluation.comparison import top_units
from slayer.evaluation.effects import correct, one_way
from slayer.evaluation.multifaceted import multifaceted
from slayer.surgery.weights import Weights

FORMAT = 1
SEED = "seed"
GROUP_NAMES = {"expansion.strategy": "expansion", "freeze.schedule": "freeze", "model.name": "model", "data.name": "data"}
"""Keys that are chosen by the name of a Hydra group: expansion=even, not expansion.strategy=even."""
LEFT_OUT: dict[str, Any] = {
    **NOT_PART_OF_A_RUN, **dict.fromkeys(("data", "run", "heldout", "suite", "objective"), True),
    "train": {**NOT_PART_OF_A_RUN["train"], **dict.fromkeys(("log_every", "save_every", "evaluate_every"), True)},
}  # fmt: skip
"""Says nothing about how a model was made; data is looked at by itself."""

Score = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model of a study. `scores` as in study.json; `factors` are all keys of its run; `parameters` is its size."""

    name: str
    folder: str
    factors: Mapping[str, Any]
    scores: Mapping[str, Score]
    learnt: Mapping[str, Any] | None = None
    forgotten: Mapping[str, Any] | None = None
    parameters: int | None = None


def entry_of(name: str, folder: Path, config: RunConfig | None, results: Mapping[str, Any], *, model_folder: Path | None = None) -> ModelEntry:
    """A model of a study from its results.json; `config` where it is a run.

    Its size is what the run says, else what the files in `model_folder` hold.
    """
    heldout = results.get("heldout") or {}
    scores = {f"heldout/{source}": _heldout_score(entry) for source, entry in heldout.items()}
    scores |= {unit: _benchmark_score(entry) for unit, entry in _units(results.get("benchmarks")).items()}
    return ModelEntry(
        name=name, folder=str(folder), factors=_factors(config) if config is not None else {}, scores=scores,
        learnt=_role_change(heldout, "domain"), forgotten=_role_change(heldout, "replay"),
        parameters=(results.get("training") or {}).get("total_parameters") or _parameters(model_folder),
    )  # fmt: skip


def score_facts(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The `scores` of study.json that these results.json know together: held-out sources, outermost groups, tasks in no group."""
    facts: dict[str, dict[str, Any]] = {}
    for values in results:
        for source, entry in (values.get("heldout") or {}).items():
            heldout = {"kind": "heldout", "role": entry["role"], "metric": "bits_per_byte", "higher_is_better": False, "chance": None}
            facts.setdefault(f"heldout/{source}", heldout)
        benchmarks = values.get("benchmarks")
        for unit, entry in _units(benchmarks).items():
            kind = "group" if benchmarks is not None and unit in benchmarks["groups"] else "task"
            facts.setdefault(unit, {"kind": kind, **{key: entry.get(key) for key in ("role", "metric", "higher_is_better", "chance")}})
    return facts


def study(models: Sequence[ModelEntry], base: str | None, scores: Mapping[str, Mapping[str, Any]], factors: Sequence[str] = ()) -> dict[str, Any]:
    """study.json of several models. `factors` are keys as they are typed; default: those that differ, but the seed.

    With two factors or more, the first two are also crossed ("a × b"). A score or a factor that some models lack is taken over
    the others. `sequence` is left None: it needs each model's score on the text of every other.
    """
    chosen = [GROUP_NAMES.get(key, key) for key in factors] or differing_factors(models)
    shown = list(dict.fromkeys([*chosen, *([SEED] if len({model.factors.get(SEED) for model in models}) > 1 else [])]))
    values = {name: [_value(model, name) for model in models] for name in scores}
    return {
        "format": FORMAT,
        "base": base,
        "models": [_model_entry(model, shown) for model in models],
        "scores": {name: dict(score) for name, score in scores.items()},
        "factors": factor_effects(models, scores, chosen),
        "multifaceted": multifaceted([model.name for model in models], [model.parameters for model in models], values),
        "sequence": None,
    }


def differing_factors(models: Sequence[ModelEntry]) -> list[str]:
    """Keys that differ between runs, but the seed and but those that only follow another or split the runs as another does."""
    runs = [model.factors for model in models if model.factors]
    keys = list(dict.fromkeys(key for run in runs for key in run if key != SEED))
    split = {key: _split([_level(run[key]) if key in run else None for run in runs]) for key in keys}
    differing = sorted((key for key in keys if len(set(split[key])) > 1), key=lambda key: "." in key)
    chosen: list[str] = []
    for key in differing:
        follows = key.partition(".")[0] in chosen and _follows(split[key], split[key.partition(".")[0]])
        if not follows and all(split[key] != split[other] for other in chosen):
            chosen.append(key)
    return chosen


def factor_effects(models: Sequence[ModelEntry], scores: Mapping[str, Mapping[str, Any]], factors: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The `factors` of study.json: per factor and score one-way ANOVA, Tukey HSD and effect sizes, or why not.

    p-values are corrected after Holm over the scores of a factor.
    """
    names = [*factors, *([f"{factors[0]} × {factors[1]}"] if len(factors) > 1 else [])]
    known = sorted({key for model in models for key in model.factors})
    effects: dict[str, dict[str, Any]] = {}
    for name in names:
        keys = factors[:2] if name not in factors else [name]
        effects[name] = {}
        for score in scores:
            groups = grouped(models, keys, score)
            missing = [key for key in keys if key not in known]
            effects[name][score] = {"why_not": _unknown(missing[0], known)} if missing else one_way(groups, keys)
        correct(effects[name])
    return effects


def grouped(models: Sequence[ModelEntry], keys: Sequence[str], score: str) -> dict[str, list[float]]:
    """Values of a score by level of a factor (of several keys: by cell), over the models that have both."""
    groups: dict[str, list[float]] = {}
    for model in models:
        value = _value(model, score)
        if value is not None and all(key in model.factors for key in keys):
            groups.setdefault(", ".join(_level(model.factors[key]) for key in keys), []).append(value)
    return groups


def _units(benchmarks: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    if benchmarks is None:
        return {}
    return {name: benchmarks["groups"].get(name) or benchmarks["tasks"][name] for name in top_units(benchmarks)}


def _heldout_score(entry: Mapping[str, Any]) -> dict[str, Any]:
    base, bounds = entry["base"], entry["change_interval_percent"]
    return {
        "value": entry["result"], "interval": entry["result_interval"], "change": entry["result"] - base if base is not None else None,
        "change_interval": [base * bound / 100 for bound in bounds] if base is not None and bounds is not None else None,
        "change_percent": entry["change_percent"], "verdict": entry["verdict"],
    }  # fmt: skip


def _benchmark_score(entry: Mapping[str, Any]) -> dict[str, Any]:
    base, change = entry["base"], entry["change"]
    return {
        "value": entry["result"], "interval": entry["result_interval"], "change": change, "change_interval": entry["change_interval"],
        "change_percent": 100 * change / base if base else None, "verdict": entry["verdict"],
    }  # fmt: skip


def _role_change(heldout: Mapping[str, Any], role: str) -> dict[str, Any] | None:
    """Mean change of bits per byte over the sources of a role, below 0 is better; the interval is known of a single source only."""
    chosen = [entry for entry in heldout.values() if entry["role"] == role and entry["change_percent"] is not None]
    if not chosen:
        return None
    interval = chosen[0]["change_interval_percent"] if len(chosen) == 1 else None
    return {"percent": sum(entry["change_percent"] for entry in chosen) / len(chosen), "interval_percent": interval}


def _value(model: ModelEntry, score: str) -> float | None:
    value = model.scores.get(score, {}).get("value")
    return float(value) if value is not None else None


def _parameters(folder: Path | None) -> int | None:
    """Parameters in the safetensors files of a folder, from their headers; None where there are none to read."""
    try:
        infos = Weights(folder).infos.values() if folder is not None else []
    except (ModelError, OSError):
        return None
    return sum(prod(info.shape) for info in infos) or None


def _factors(config: RunConfig) -> dict[str, Any]:
    def flatten(value: Any, key: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {name: one for part, inner in value.items() for name, one in flatten(inner, f"{key}.{part}" if key else part).items()}
        return {GROUP_NAMES.get(key, key): value}

    values = config.model_dump(exclude=LEFT_OUT)
    return flatten({**values, "data": config.data.model_dump(exclude={"processes"})}, "")


def _model_entry(model: ModelEntry, factors: Sequence[str]) -> dict[str, Any]:
    return {
        "name": model.name, "folder": model.folder, "factors": {key: model.factors[key] for key in factors if key in model.factors},
        "scores": {name: dict(score) for name, score in model.scores.items()},
        "learnt": dict(model.learnt) if model.learnt is not None else None,
        "forgotten": dict(model.forgotten) if model.forgotten is not None else None,
    }  # fmt: skip


def _level(value: Any) -> str:
    """A value as it is typed."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _split(levels: Sequence[str | None]) -> tuple[int, ...]:
    """How levels divide the runs, whatever they are called: runs with one number share a level."""
    return tuple(levels.index(level) for level in levels)


def _follows(split: Sequence[int], leader: Sequence[int]) -> bool:
    """True when one level of the leader always comes with one level of this."""
    return len(set(zip(split, leader, strict=True))) == len(set(leader))


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=3)
    return f"no run has the key {key}" + (f"; did you mean {' or '.join(near)}?" if near else "; type factors=[expansion]")
