"""From composed values to a frozen configuration, with every problem found at once.

Each section is checked by itself, so that one bad value does not hide another; what several keys make impossible together is
checked on the sections that are sound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from slayer.config import DataConfig, ExpansionConfig, FreezeConfig, RunConfig, SourceConfig, StageConfig, TrainConfig
from slayer.errors import ConfigError, Problem
from slayer.leaks import secret_problems
from slayer.schema import accepts, as_override, choices, closest_key, example_for, field_at, inner_section
from slayer.stages import KEY as STAGES_KEY
from slayer.stages import mended, stages_problem, typed_stages

RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""Names of runs: plain folder names that need no quotes in a shell or in an override."""


def parse_config(values: Mapping[str, Any], schema: type[BaseModel] = RunConfig) -> tuple[dict[str, Any], list[Problem]]:
    """Check each section by itself, so that one bad value does not hide another.

    Returns the sections and scalars that are valid, by key, and all problems found in the others. What holds a secret is not valid.
    """
    secrets = {problem.key: problem for problem in secret_problems(values)}
    good, problems = _parse_sections(values, schema)
    told = {key.partition(".")[0] for key in secrets}
    return {key: value for key, value in good.items() if key not in told}, [*secrets.values(), *(one for one in problems if one.key not in secrets)]


def _parse_sections(values: Mapping[str, Any], schema: type[BaseModel]) -> tuple[dict[str, Any], list[Problem]]:
    try:
        config = schema.model_validate(values)
        return {key: getattr(config, key) for key in schema.model_fields}, []
    except ValidationError as error:
        entries: list[Any] = error.errors()
    problems = {problem.key: problem for problem in (_from_pydantic(entry, values, schema) for entry in entries)}
    bad = {str(entry["loc"][0]) for entry in entries}
    good: dict[str, Any] = {}
    for key, field in schema.model_fields.items():
        if key not in bad:
            default = field.get_default(call_default_factory=True) if not field.is_required() else None
            annotation: Any = field.annotation
            good[key] = TypeAdapter(annotation).validate_python(values[key]) if key in values else default
    return good, list(problems.values())


def unknown_key(key: str, value: object, schema: type[BaseModel] = RunConfig) -> Problem:
    """There is no such key; the fix is the key that was probably meant."""
    close = closest_key(key, schema)
    if close is None or isinstance(value, dict):
        return Problem(key=key, value=value, why="there is no such key; --help shows all", fix=f"leave out {key}")
    field = field_at(close, schema)
    meant = value if field is None or accepts(field, value) else example_for(field, value)
    return Problem(key=key, value=value, why=f"there is no such key; did you mean {close}?", fix=as_override(close, meant))


def not_a_group(key: str, value: object, section: type[BaseModel]) -> Problem:
    """A single value, or nothing, where a group of keys belongs."""
    names = ", ".join(f"{key}.{name}" for name in list(section.model_fields)[:3])
    return Problem(key=key, value=value, why=f"must be a group of keys: {names} …", fix=f"leave out {key}")


_KINDS = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number", "bool_type": "true or false", "string_type": "text",
    "list_type": "a list like [1,3,5]", "dict_type": "a group of keys", "model_type": "a group of keys", "model_attributes_type": "a group of keys",
}  # fmt: skip


def _from_pydantic(entry: Any, values: Mapping[str, Any], schema: type[BaseModel]) -> Problem:
    key, value, item = _typed_part(entry["loc"], values)
    if key == STAGES_KEY:
        return Problem(key=key, value=value, why=_mistyped_stage(entry, item), fix=as_override(key, mended(value)))
    if entry["type"] == "extra_forbidden":
        return unknown_key(key, value, schema)
    field = field_at(key, schema)
    if field is None:
        return Problem(key=key, value=value, why=_must_be(entry), fix=f"leave out {key}")
    inner = inner_section(field)
    if inner is not None:
        return not_a_group(key, value, inner[0])
    why = "is required and missing" if entry["type"] == "missing" else _must_be(entry, choices(field), item)
    explained = f"{why} ({field.description})" if field.description and not choices(field) else why
    return Problem(key=key, value=value, why=explained, fix=as_override(key, example_for(field, value)))


def _mistyped_stage(entry: Any, item: int | None) -> str:
    if item is None:
        return "must be a list of stages, each with until_tokens and parts"
    where = ".".join(str(part) for part in entry["loc"][3:] if part != "[key]")
    if entry["type"] == "extra_forbidden":
        return f"stage {item + 1} has a key {where}, and a stage has until_tokens and parts"
    if entry["type"] == "missing":
        return f"stage {item + 1} needs {where}"
    return f"{where or 'it'} of stage {item + 1} {_must_be(entry)}"


def _typed_part(loc: tuple[int | str, ...], values: Any) -> tuple[str, object, int | None]:
    """(key, value, place) of what a person typed: for an item of a list the list's key and value, and which item it is."""
    parts: list[str] = []
    for part in loc:
        if isinstance(values, list):
            return ".".join(parts), values, int(part)
        parts.append(str(part))
        values = values.get(part) if isinstance(values, Mapping) else None
    return ".".join(parts), values, None


def _must_be(entry: Any, options: tuple[str, ...] = (), item: int | None = None) -> str:
    if options:
        return f"must be one of {', '.join(options)}"
    said = entry["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    prefix = "must be " if item is None else f"item {item + 1} must be "
    return f"{prefix}{_KINDS.get(entry['type'], said)}"


def check_combinations(good: Mapping[str, Any]) -> list[Problem]:
    """Problems that only several keys together make and that need neither the model nor the text."""
    checks = (_check_run, _check_expansion, _check_prune, _check_freeze, _check_batch, _check_data, _check_model)
    return [problem for check in checks for problem in check(good)]


def _check_run(good: Mapping[str, Any]) -> list[Problem]:
    run = good.get("run")
    if run is None or RUN_NAME.fullmatch(run):
        return []
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", run).lstrip("._-") or "NAME"
    why = "is not a plain name: letters, digits, . _ and -, not beginning with . or - (folders go into runs_dir)"
    return [Problem(key="run", value=run, why=why, fix=f"run={plain}")]


def _check_expansion(good: Mapping[str, Any]) -> list[Problem]:
    expansion: ExpansionConfig | None = good.get("expansion")
    if expansion is None:
        return []
    problems: list[Problem] = []
    strategy, after, every, count = expansion.strategy, expansion.after, expansion.every, expansion.count
    if strategy == "explicit" and not after:
        why = "expansion=explicit needs the layers to insert after"
        problems.append(Problem(key="expansion.after", value=after, why=why, fix="expansion.after=[1]"))
    if strategy != "explicit" and after:
        why = f"is only read with expansion=explicit, not {strategy}"
        problems.append(Problem(key="expansion.after", value=after, why=why, fix="expansion=explicit, or leave out expansion.after"))
    if every is not None and strategy not in ("shallow_half", "deep_half", "even"):
        problems.append(Problem(key="expansion.every", value=every, why=f"expansion={strategy} has no stride", fix="leave out expansion.every"))
    if count is not None and strategy in ("none", "explicit"):
        why = f"expansion={strategy} does not take a count"
        problems.append(Problem(key="expansion.count", value=count, why=why, fix="leave out expansion.count"))
    if expansion.score is not None and strategy not in ("least_important", "most_important"):
        why = f"expansion={strategy} places blocks by rule, not by a score"
        problems.append(Problem(key="expansion.score", value=expansion.score, why=why, fix="expansion=least_important, or leave out expansion.score"))
    if strategy == "even" and every is not None and count is not None:
        why = f"expansion=even takes a count or every={every}, not both"
        problems.append(Problem(key="expansion.count", value=count, why=why, fix="expansion.every=null, or expansion.count=null"))
    return problems


def _check_prune(good: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    prune, prune_by, layers = good.get("prune"), good.get("prune_by"), good.get("prune_layers")
    if good.get("tail") == "average" and prune == 0:
        why = "prune=0 removes nothing that could be averaged into the last block"
        problems.append(Problem(key="tail", value="average", why=why, fix="tail=auto, or prune=2"))
    if layers is None or prune is None or prune_by is None:
        return problems
    named = len(set(layers))
    if prune_by == "explicit" and named != prune:
        why = f"names {named} {'layer' if named == 1 else 'different layers'} but prune={prune}"
        fix = f"prune={named}" if named else as_override("prune_layers", list(range(1, prune + 1)))
        problems.append(Problem(key="prune_layers", value=layers, why=why, fix=fix))
    if prune_by != "explicit" and layers:
        why = f"is only read with prune_by=explicit, not {prune_by}"
        problems.append(Problem(key="prune_layers", value=layers, why=why, fix=f"prune_by=explicit prune={named}, or leave out prune_layers"))
    return problems


def _check_freeze(good: Mapping[str, Any]) -> list[Problem]:
    freeze: FreezeConfig | None = good.get("freeze")
    expansion: ExpansionConfig | None = good.get("expansion")
    if freeze is None:
        return []
    schedule, has_new = freeze.schedule, expansion is None or expansion.strategy != "none"
    problems = _unread_freeze_keys(freeze)
    if schedule == "existing_layers" and not freeze.train_layers:
        why = "freeze=existing_layers trains the layers listed here, and none is"
        problems.append(Problem(key="freeze.train_layers", value=freeze.train_layers, why=why, fix="freeze.train_layers=[0,1]"))
    if schedule == "staged":
        train: TrainConfig | None = good.get("train")
        problems += filter(None, [stages_problem(freeze.stages, max_tokens=train.max_tokens if train is not None else None, has_new=has_new)])
    removes_last = good.get("prune_by") == "last" and good.get("prune", 0) > 0
    tail_trains = good.get("tail") in ("average", "train") or (good.get("tail") == "auto" and removes_last)
    if schedule == "originals" and not has_new and not tail_trains and not problems:
        why = "nothing would train: there is no new block and the tail is frozen"
        problems.append(Problem(key="freeze", value="originals", why=why, fix="expansion=shallow_half, or freeze=none, or tail=train"))
    return problems


def _unread_freeze_keys(freeze: FreezeConfig) -> list[Problem]:
    """Keys of freeze that its schedule does not read."""
    problems = []
    for name, schedule in (("train_layers", "existing_layers"), ("stages", "staged"), ("warmup_steps", "staged")):
        value, default = getattr(freeze, name), FreezeConfig.model_fields[name].get_default(call_default_factory=True)
        if freeze.schedule != schedule and value != default:
            seen = typed_stages(value) if name == "stages" else value
            why, fix = f"is only read with freeze={schedule}, not {freeze.schedule}", f"freeze={schedule}, or leave out freeze.{name}"
            problems.append(Problem(key=f"freeze.{name}", value=seen, why=why, fix=fix))
    return problems


def _check_batch(good: Mapping[str, Any]) -> list[Problem]:
    engine, train, launcher = good.get("engine"), good.get("train"), good.get("launcher")
    if engine is None or train is None or launcher is None:
        return []
    batch_rows, micro, processes = train.batch_rows, engine.micro_batch_rows, launcher.world
    rows = micro * processes
    if batch_rows % rows:
        fitting = [fewer for fewer in range(micro, 0, -1) if batch_rows % (fewer * processes) == 0]
        larger = f"train.batch_rows={-(-batch_rows // rows) * rows}"
        fix = f"engine.micro_batch_rows={fitting[0]}, or {larger}" if fitting else larger
        why = f"{micro} rows × {processes} {'process' if processes == 1 else 'processes'} = {rows} does not divide train.batch_rows={batch_rows}"
        return [Problem(key="engine.micro_batch_rows", value=micro, why=why, fix=fix)]
    if engine.accumulation is not None and engine.accumulation * rows != batch_rows:
        why = f"{engine.accumulation} × {rows} rows is not train.batch_rows={batch_rows}"
        fix = f"engine.accumulation={batch_rows // rows}, or train.batch_rows={engine.accumulation * rows}"
        return [Problem(key="engine.accumulation", value=engine.accumulation, why=why, fix=fix)]
    return []


def _check_data(good: Mapping[str, Any]) -> list[Problem]:
    data: DataConfig | None = good.get("data")
    if data is None:
        return []
    problems = [problem for name, source in data.sources.items() for problem in _check_source(data, name, source)]
    if data.path is not None and data.path not in {source.path for source in data.sources.values()}:
        why = f"is only read with data=local, not {data.name}"
        problems.append(Problem(key="data.path", value=data.path, why=why, fix="data=local, or leave out data.path"))
    roles = {source.role for source in data.sources.values()}
    if "domain" not in roles:
        first = next(iter(data.sources), None)
        fix = f"data.sources.{first}.role=domain" if first else "leave out data.sources"
        problems.append(
            Problem(key="data.sources", value=sorted(data.sources), why="no source has role=domain, so there is nothing to learn", fix=fix)
        )
    if data.replay > 0 and "replay" not in roles:
        problems.append(Problem(key="data.replay", value=data.replay, why="no source has role=replay", fix="data.replay=0"))
    if good.get("objective") == "replay_bits_per_byte" and "replay" not in roles:
        why = "no source has role=replay that it could be measured on"
        problems.append(Problem(key="objective", value="replay_bits_per_byte", why=why, fix="objective=domain_bits_per_byte"))
    train: TrainConfig | None = good.get("train")
    streamed = [name for name, source in data.sources.items() if source.stream and source.role == "domain"]
    if streamed and train is not None and train.max_steps is None and train.max_tokens is None:
        why = f"the length of {streamed[0]} is not known while it is streamed, so one pass over it cannot be planned"
        problems.append(
            Problem(key="train.max_tokens", value=None, why=why, fix=f"train.max_tokens=1000000, or data.sources.{streamed[0]}.stream=false")
        )
    return problems + _check_stages(data, train)


def _check_source(data: DataConfig, name: str, source: SourceConfig) -> list[Problem]:
    key, problems = f"data.sources.{name}", []
    origins = {kind: value for kind in ("builtin", "path", "hub") if (value := getattr(source, kind)) is not None}
    if len(origins) > 1:
        why = f"names {' and '.join(origins)}, and text comes from one of them"
        fix = ", or ".join(f"{key}.{kind}=null" for kind in origins)
        problems.append(Problem(key=key, value=", ".join(origins.values()), why=why, fix=fix))
    elif not origins:
        local = data.name == "local" and name == "domain"
        why = "is missing: data=local needs your text" if local else "names no text: a path, a built-in one or a dataset of the hub"
        problems.append(Problem(key="data.path" if local else key, value=None, why=why, fix=f"{'data' if local else key}.path=TEXT"))
    for part in ("revision", "subset"):
        value = getattr(source, part)
        if value is not None and source.hub is None:
            why = "is only read with a dataset of the hub"
            problems.append(Problem(key=f"{key}.{part}", value=value, why=why, fix=f"leave out {key}.{part}"))
    return problems


def _check_stages(data: DataConfig, train: TrainConfig | None) -> list[Problem]:
    problems: list[Problem] = []
    before, replay = 0, data.replay
    weights = {name: source.weight for name, source in data.sources.items()}
    for number, stage in enumerate(data.stages, 1):
        replay = replay if stage.replay is None else stage.replay
        weights |= stage.weights
        why, mended = _stage_fault(data, stage, before, replay, weights)
        if why is None and train is not None and train.max_tokens is not None and stage.from_tokens >= train.max_tokens:
            why, mended = f"would never begin: train.max_tokens={train.max_tokens}", {"from_tokens": max(train.max_tokens // 2, 1)}
        if why is not None:
            meant = [one.model_dump(exclude_defaults=True) for one in data.stages]
            meant[number - 1] = {name: value for name, value in (meant[number - 1] | mended).items() if value is not None}
            seen = stage.model_dump(exclude_defaults=True)
            problems.append(Problem(key="data.stages", value=seen, why=f"stage {number} {why}", fix=as_override("data.stages", meant)))
        before = stage.from_tokens
    return problems


def _stage_fault(data: DataConfig, stage: StageConfig, before: int, replay: float, weights: Mapping[str, float]) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a stage, and its keys as they might have been meant (None: left out)."""
    known = {name: weight for name, weight in stage.weights.items() if name in data.sources and weight >= 0}
    if stage.from_tokens <= before:
        return f"begins at {stage.from_tokens} tokens, not after the one before it ({before})", {"from_tokens": 2 * before}
    if known != stage.weights:
        wrong = next(name for name in stage.weights if name not in known)
        why = "has a negative weight" if wrong in data.sources else f"is no source; there are {', '.join(data.sources)}"
        return f"names {wrong}, which {why}", {"weights": known or None}
    for role, share in (("domain", 1 - replay), ("replay", replay)):
        served = [name for name, source in data.sources.items() if source.role == role and weights[name] > 0]
        if share > 0 and not served and (role == "domain" or stage.replay is not None or stage.weights):
            mended = {"replay": 0.0} if role == "replay" else {"weights": None}
            return f"gives {share:.0%} of its tokens to {role} text, and no {role} source has a weight above 0", mended
    return None, {}


def _check_model(good: Mapping[str, Any]) -> list[Problem]:
    model = good.get("model")
    if model is None:
        return []
    if not (model.path or model.hub or model.asset or model.random):
        key = "model.path" if model.name == "local" else "model"
        return [Problem(key=key, value=model.path, why="no model is named", fix="model=local model.path=DIR")]
    shape = model.random
    if shape is not None and shape.hidden_size % (2 * shape.heads):
        why = f"model.random.hidden_size={shape.hidden_size} cannot be cut into {shape.heads} heads of an even size"
        return [
            Problem(
                key="model.random.heads", value=shape.heads, why=why, fix=f"model.random.hidden_size={2 * shape.heads * max(4, 32 // shape.heads)}"
            )
        ]
    return []


def build_config(good: dict[str, Any], problems: list[Problem]) -> RunConfig:
    """The frozen configuration, or all problems at once."""
    if problems:
        raise ConfigError(problems)
    return RunConfig.model_validate(good)
