"""Questions about the schema: which keys there are, what each may hold, which one a person meant, how a value is typed."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from slayer.config import RunConfig

REQUIRED_EXAMPLES: dict[type, object] = {bool: True, int: 1, float: 0.1, str: "NAME", list: [1], dict: {"new": 1}}


def inner_section(field: FieldInfo) -> tuple[type[BaseModel], bool] | None:
    """The section a field holds, and whether it holds several by name (data.sources); None for a value, also for a list of groups (data.stages)."""
    if get_origin(field.annotation) is list:
        return None
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind, get_origin(field.annotation) is dict
    return None


def schema_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys that hold a value; NAME stands where a person chooses a name (data.sources.NAME.path)."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        inner = inner_section(field)
        keys += [prefix + name] if inner is None else schema_keys(inner[0], f"{prefix}{name}.{'NAME.' if inner[1] else ''}")
    return keys


def field_at(key: str, schema: type[BaseModel] = RunConfig) -> FieldInfo | None:
    """The field of a dotted key, section or value; None when there is no such key. A named source itself has its container's field."""
    section: type[BaseModel] | None = schema
    field: FieldInfo | None = None
    parts = iter(key.split("."))
    for part in parts:
        if section is None or part not in section.model_fields:
            return None
        field = section.model_fields[part]
        inner = inner_section(field)
        section = inner[0] if inner else None
        if inner is not None and inner[1]:
            next(parts, None)  # the name, which a person chooses
    return field


def holds_text(field: FieldInfo) -> bool:
    """True for keys whose value is any text: names, folders, files."""
    return str in (field.annotation, *get_args(field.annotation)) and get_origin(field.annotation) in (None, Union, UnionType)


def holds_list(field: FieldInfo) -> bool:
    """True for keys whose value is a list."""
    return any(get_origin(kind) is list for kind in (field.annotation, *get_args(field.annotation)))


def number_kind(field: FieldInfo | None) -> type[int] | type[float] | None:
    """Whether a field holds whole numbers or any numbers; None for other kinds of value."""
    kinds = (
        () if field is None else (field.annotation, *get_args(field.annotation)) if get_origin(field.annotation) in (None, Union, UnionType) else ()
    )
    return float if float in kinds else int if int in kinds else None


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words a field may hold (besides null, where that is allowed); empty for other kinds of value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((tuple(str(choice) for choice in get_args(kind)) for kind in kinds if get_origin(kind) is Literal), ())


def accepts(field: FieldInfo, value: object) -> bool:
    """True when a value passes the field's own checks."""
    try:
        kind: Any = Annotated[field.annotation, field]
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def example_for(field: FieldInfo, value: object = None) -> object:
    """A value that the field takes: what `value` was meant to be where that can be seen, else the default, else a plain example."""
    options = choices(field)
    if options:
        words = value if isinstance(value, list) and value else [value]
        near = [(difflib.get_close_matches(str(word), options, n=1, cutoff=0.0) or options)[0] for word in words]
        return list(dict.fromkeys(near)) if get_origin(field.annotation) is list else near[0]
    bounds = {name: getattr(limit, name) for limit in field.metadata for name in ("ge", "le") if hasattr(limit, name)}
    kinds = [get_origin(kind) or kind for kind in (field.annotation, *get_args(field.annotation))]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    candidates = [
        *_meant(value, bounds.get("ge", -math.inf), bounds.get("le", math.inf)),
        *([] if default is None else [default]),
        *(REQUIRED_EXAMPLES[kind] for kind in kinds if kind in REQUIRED_EXAMPLES),
        *([_least(kind)] for kind in get_args(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)),
    ]
    return next((candidate for candidate in candidates if candidate != [] and accepts(field, candidate)), bounds.get("ge", default))


def _least(section: type[BaseModel]) -> dict[str, object]:
    """The keys that a group of a list (data.stages, freeze.stages) cannot do without."""
    return {name: example_for(field) for name, field in section.model_fields.items() if field.is_required()}


def _meant(value: object, least: float, most: float) -> list[object]:
    """Readings of a wrong value, likeliest first: 1e3 as 1000, "[1" as 1, 3 as [3], removal as [removal], 7 as the bound that it oversteps."""
    if isinstance(value, str):
        text = value.strip("[](){}'\" _")
        value = float(text) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?", text) else [text]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        overstepped = [least] if value < least else [most] if value > most else []
        return [round(value), value, [round(value)], *overstepped, bool(value)]
    if isinstance(value, list):
        return [value, [item for item in value if isinstance(item, int) and not isinstance(item, bool)], *value[:1]]
    return []


def closest_key(key: str, schema: type[BaseModel] = RunConfig) -> str | None:
    """The key a person probably meant: same last word elsewhere, its initials (lr), or similar letters."""
    keys = schema_keys(schema)
    section, _, leaf = key.rpartition(".")
    if section in keys:  # prune.layers: the key above it holds a value
        return section
    if key.startswith("data.sources.") and key.count(".") == 3:
        keys = [one.replace("NAME", key.split(".")[2]) for one in keys if "NAME" in one]
        section = key.rpartition(".")[0]
    known = any(one.startswith(f"{section}.") for one in keys)
    for pool in ([one for one in keys if one.startswith(f"{section}.")], [one for one in keys if "NAME" not in one]):
        leaves = {one.rpartition(".")[2]: one for one in reversed(pool)}
        same = leaves.get(leaf) or next((one for last, one in leaves.items() if leaf and _initials(last) == leaf), None)
        near = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6 if known else 0.7)
        if same or near:
            return same or leaves[near[0]]
        if known:  # a section that is right is not left for a word that is only similar
            elsewhere = [one for one in keys if one.rpartition(".")[2] == leaf]
            return elsewhere[0] if elsewhere else None
    whole = difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
    return whole[0] if whole else None


def _initials(words: str) -> str:
    return "".join(word[0] for word in words.split("_")) if "_" in words else ""


def as_override(key: str, value: object) -> str:
    """`key=value` as it is typed in a shell."""
    text = f"{key}={value_text(value)}"
    return text if isinstance(value, list) and not set('{"') & set(text) else shlex.quote(text)


def _item_text(item: object) -> str:
    """An item of a list; in quotes where the grammar of overrides could not read it without."""
    text = value_text(item)
    return f'"{text}"' if isinstance(item, str) and not re.fullmatch(r"[\w./+:%@?|*$ \\-]*", text) else text


def value_text(value: object) -> str:
    """A value in the grammar of overrides: null, true, [1,2], text as it is."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_item_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{value_text(item)}" for name, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
