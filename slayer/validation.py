"""From composed values to a frozen configuration, with every problem found at once.

Each section is checked by itself, so that one bad value does not hide another; what several keys make impossible together is
checked on the sections that are sound.
"""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from slayer.config import ExpansionConfig, RunConfig
from slayer.errors import ConfigError, Problem


def schema_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the schema, for suggestions."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += schema_keys(inner, f"{prefix}{name}.")
    return keys


def parse_config(values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Check each section by itself, so that one bad value does not hide another.

    Returns the sections and scalars that are valid, by key, and all problems found in the others.
    """
    try:
        config = RunConfig.model_validate(values)
        return {key: getattr(config, key) for key in RunConfig.model_fields}, []
    except ValidationError as error:
        problems = [_from_pydantic(entry) for entry in error.errors()]
        bad = {str(entry["loc"][0]) for entry in error.errors()}
    good: dict[str, Any] = {}
    for key, field in RunConfig.model_fields.items():
        if key not in bad:
            default = field.get_default(call_default_factory=True) if not field.is_required() else None
            annotation: Any = field.annotation
            good[key] = TypeAdapter(annotation).validate_python(values[key]) if key in values else default
    return good, problems


def _unknown(key: str, value: object) -> Problem:
    close = difflib.get_close_matches(key, schema_keys(), n=1, cutoff=0.5)
    fix = f"{close[0]}={_as_override(value)}" if close else "leave it out, or see `python train.py --help`"
    return Problem(key=key, value=value, why="there is no such key" + (f"; did you mean {close[0]}?" if close else ""), fix=fix)


def _as_override(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_as_override(item) for item in value) + "]"
    return "null" if value is None else "true" if value is True else "false" if value is False else str(value)


def _from_pydantic(entry: Any) -> Problem:
    key = ".".join(str(part) for part in entry["loc"])
    value = entry["input"]
    if entry["type"] == "extra_forbidden":
        return _unknown(key, value)
    if entry["type"] == "missing":
        return Problem(key=key, value=None, why="is required and missing", fix=f"{key}=…")
    field = _field_at(key)
    help_line = f" ({field.description})" if field is not None and field.description else ""
    options = get_args(field.annotation) if field is not None else ()
    context = entry.get("ctx", {})
    bound = next((context[name] for name in ("ge", "gt", "le", "lt") if name in context), None)
    if entry["type"] == "literal_error" and options:
        close = difflib.get_close_matches(str(value), [str(option) for option in options], n=1, cutoff=0.0)
        return Problem(key=key, value=value, why=f"must be one of {', '.join(map(str, options))}", fix=f"{key}={close[0] if close else options[0]}")
    example = _as_override(bound if bound is not None and entry["type"].endswith("equal") else _example(field))
    return Problem(key=key, value=value, why=f"{entry['msg'][0].lower()}{entry['msg'][1:]}{help_line}", fix=f"{key}={example}")


def _field_at(key: str) -> Any:
    section: type[BaseModel] = RunConfig
    field = None
    for part in key.split("."):
        if part not in section.model_fields:
            continue
        field = section.model_fields[part]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
    return field


def _example(field: Any) -> object:
    if field is None:
        return "…"
    if not field.is_required() and field.default is not None:
        return field.get_default(call_default_factory=True)
    kinds = {int: 1, float: 0.1, bool: True, str: "NAME"}
    annotation = str(field.annotation)
    return next((example for kind, example in kinds.items() if kind.__name__ in annotation), "…")


def check_combinations(good: dict[str, Any]) -> list[Problem]:
    """Problems that only several keys together make and that need neither the model nor the text."""
    problems: list[Problem] = []
    expansion, prune, prune_by = good.get("expansion"), good.get("prune"), good.get("prune_by")
    if expansion is not None:
        problems += _check_expansion(expansion)
    if good.get("tail") == "average" and prune == 0:
        problems.append(
            Problem(
                key="tail",
                value="average",
                why="prune=0 removes nothing that could be averaged into the last block",
                fix="prune=2 tail=average, or tail=auto",
            )
        )
    layers = good.get("prune_layers")
    if prune_by == "explicit" and layers is not None and prune is not None and len(set(layers)) != prune:
        problems.append(
            Problem(key="prune_layers", value=layers, why=f"names {len(set(layers))} layers but prune={prune}", fix=f"prune={len(set(layers))}")
        )
    if prune_by not in (None, "explicit") and layers:
        problems.append(
            Problem(
                key="prune_layers",
                value=layers,
                why=f"is only read with prune_by=explicit, not {prune_by}",
                fix=f"prune_by=explicit prune={len(set(layers))}",
            )
        )
    problems += _check_freeze(good) + _check_batch(good) + _check_data(good) + _check_model(good)
    return problems


def _check_expansion(expansion: ExpansionConfig) -> list[Problem]:
    problems: list[Problem] = []
    strategy = expansion.strategy
    if strategy == "explicit" and not expansion.after:
        problems.append(
            Problem(
                key="expansion.after",
                value=expansion.after,
                why="expansion=explicit needs the layers to insert after",
                fix="expansion.after=[1,3,5]",
            )
        )
    if strategy != "explicit" and expansion.after:
        problems.append(
            Problem(
                key="expansion.after",
                value=expansion.after,
                why=f"is only read with expansion=explicit, not {strategy}",
                fix="expansion=explicit",
            )
        )
    if expansion.every is not None and strategy not in ("shallow_half", "deep_half", "even"):
        problems.append(Problem(key="expansion.every", value=expansion.every, why=f"expansion={strategy} has no stride", fix="expansion.every=null"))
    if expansion.count is not None and strategy in ("none", "explicit"):
        problems.append(
            Problem(key="expansion.count", value=expansion.count, why=f"expansion={strategy} does not take a count", fix="expansion.count=null")
        )
    if strategy == "even" and expansion.every is not None and expansion.count is not None:
        problems.append(
            Problem(
                key="expansion.count",
                value=expansion.count,
                why=f"expansion=even takes a count or every={expansion.every}, not both",
                fix="expansion.every=null",
            )
        )
    return problems


def _check_freeze(good: dict[str, Any]) -> list[Problem]:
    freeze, expansion = good.get("freeze"), good.get("expansion")
    if freeze is None:
        return []
    if freeze.schedule == "existing_layers" and not freeze.train_layers:
        return [
            Problem(
                key="freeze.train_layers",
                value=[],
                why="freeze=existing_layers trains the layers listed here, and none is",
                fix="freeze.train_layers=[1,3,5]",
            )
        ]
    if freeze.schedule != "existing_layers" and freeze.train_layers:
        return [
            Problem(
                key="freeze.train_layers",
                value=freeze.train_layers,
                why=f"is only read with freeze=existing_layers, not {freeze.schedule}",
                fix="freeze=existing_layers",
            )
        ]
    tail_trains = good.get("tail") in ("average", "train") or (
        good.get("tail") == "auto" and good.get("prune_by") == "last" and good.get("prune", 0) > 0
    )
    if freeze.schedule == "originals" and expansion is not None and expansion.strategy == "none" and not tail_trains:
        return [
            Problem(
                key="freeze",
                value="originals",
                why="nothing would train: there is no new block and the tail is frozen",
                fix="expansion=shallow_half, or freeze=none",
            )
        ]
    return []


def _check_batch(good: dict[str, Any]) -> list[Problem]:
    engine, train, launcher = good.get("engine"), good.get("train"), good.get("launcher")
    if engine is None or train is None or launcher is None:
        return []
    rows = engine.micro_batch_rows * launcher.processes
    if train.batch_rows % rows:
        return [
            Problem(
                key="engine.micro_batch_rows",
                value=engine.micro_batch_rows,
                why=f"{engine.micro_batch_rows} rows × {launcher.processes} processes = {rows} does not divide train.batch_rows={train.batch_rows}",
                fix=f"train.batch_rows={-(-train.batch_rows // rows) * rows}",
            )
        ]
    if engine.accumulation is not None and engine.accumulation * rows != train.batch_rows:
        return [
            Problem(
                key="engine.accumulation",
                value=engine.accumulation,
                why=f"{engine.accumulation} × {rows} rows is not train.batch_rows={train.batch_rows}",
                fix=f"engine.accumulation={train.batch_rows // rows}",
            )
        ]
    return []


def _check_data(good: dict[str, Any]) -> list[Problem]:
    data = good.get("data")
    if data is None:
        return []
    problems: list[Problem] = []
    for name, source in data.sources.items():
        if (source.builtin is None) == (source.path is None):
            seen = "both" if source.builtin else "neither"
            problems.append(
                Problem(
                    key=f"data.sources.{name}",
                    value=seen,
                    why="needs exactly one of path and builtin",
                    fix="data=local data.path=TEXT" if name == "domain" else f"data.sources.{name}.path=TEXT",
                )
            )
    roles = {source.role for source in data.sources.values()}
    if "domain" not in roles:
        problems.append(Problem(key="data.sources", value=sorted(data.sources), why="no source has role=domain", fix="data.sources.NAME.role=domain"))
    if data.replay > 0 and "replay" not in roles:
        problems.append(Problem(key="data.replay", value=data.replay, why="no source has role=replay", fix="data.replay=0"))
    return problems


def _check_model(good: dict[str, Any]) -> list[Problem]:
    model = good.get("model")
    if model is None:
        return []
    if not (model.path or model.hub or model.asset or model.random):
        return [Problem(key="model.path", value=None, why="no model is named", fix="model=local model.path=DIR")]
    if model.random is not None and model.random.hidden_size % model.random.heads:
        return [
            Problem(
                key="model.random.heads",
                value=model.random.heads,
                why=f"does not divide model.random.hidden_size={model.random.hidden_size}",
                fix="model.random.heads=4",
            )
        ]
    return []


def build_config(good: dict[str, Any], problems: list[Problem]) -> RunConfig:
    """The frozen configuration, or all problems at once."""
    if problems:
        raise ConfigError(problems)
    return RunConfig.model_validate(good)
