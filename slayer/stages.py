"""The stages of freeze=staged as they are typed: which parts there are, what is wrong with a list of stages, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from slayer.config import FreezeStageConfig
from slayer.errors import Problem
from slayer.schema import as_override

KEY = "freeze.stages"
WORDS = ("new", "tail", "norms", "head", "embeddings")
PARTS = "new, tail, norms, originals[a:b], head, embeddings"
FIRST_BOUNDARY = 1_000_000
"""Tokens at which a stage might end where nothing typed says so."""

_SLICE = re.compile(r"originals\[(-?\d+)?:(-?\d+)?\]")


def originals(part: str) -> slice | None:
    """The base layers that originals[a:b] names, by Python's rules of slices; None for any other part."""
    found = _SLICE.fullmatch(part)
    return slice(*(int(bound) if bound else None for bound in found.groups())) if found else None


def as_hydra_reads_it(value: str) -> str:
    """Stages as they are typed, with the signs of originals[a:b] escaped: Hydra takes a key that holds brackets in no other way."""
    return re.sub(r"originals\[([^][{}\\]*)\]", lambda match: "originals\\[" + re.sub(r"([:,()= ])", r"\\\1", match[1]) + "\\]", value)


def stages_problem(stages: Sequence[FreezeStageConfig], *, max_tokens: int | None, has_new: bool) -> Problem | None:
    """Everything about the stages that can be seen without a model, with one list that mends all of it. `has_new`: blocks are inserted."""
    if not stages:
        why = "freeze=staged trains what the stages listed here name, and none is listed"
        return Problem(key=KEY, value=[], why=why, fix=as_override(KEY, mended([], max_tokens, has_new=has_new)))
    faults = [fault for number, stage in enumerate(stages, 1) for fault in _part_faults(number, stage.parts)]
    faults += _boundary_faults(stages, max_tokens)
    lacking = [str(number) for number, stage in enumerate(stages, 1) if "new" in stage.parts] if not has_new else []
    if lacking:
        faults.append(f"new of stage {', '.join(lacking)} is nothing: expansion=none inserts no block")
    if not faults:
        return None
    seen = typed_stages(stages)
    fixes = [as_override(KEY, mended(seen, max_tokens, has_new=has_new))]
    late = [stage.until_tokens for stage in stages[:-1] if max_tokens is not None and (stage.until_tokens or 0) >= max_tokens]
    if late and len(faults) == len(late):
        fixes.append(f"train.max_tokens={2 * max(filter(None, late))}")
    if lacking and len(faults) == 1:
        fixes.append("expansion=shallow_half")
    return Problem(key=KEY, value=seen, why="; ".join(faults), fix=", or ".join(fixes))


def typed_stages(stages: Sequence[Any]) -> list[dict[str, Any]]:
    """Stages (of a configuration or a plan) as plain values, in the words of a command line."""
    return [_plain(stage.until_tokens, dict(stage.parts)) for stage in stages]


def _plain(until_tokens: int | None, parts: Mapping[str, float]) -> dict[str, Any]:
    short = {part: int(factor) if float(factor).is_integer() else factor for part, factor in parts.items()}
    return {**({"until_tokens": until_tokens} if until_tokens is not None else {}), "parts": short}


def _part_faults(number: int, parts: Mapping[str, float]) -> list[str]:
    faults = [] if parts else [f"stage {number} names nothing that trains"]
    for part, factor in parts.items():
        if part.startswith("originals") and originals(part) is None:
            faults.append(f"stage {number} names {part}; base layers are named like originals[28:30], originals[-2:] or originals[:]")
        elif part not in WORDS and originals(part) is None:
            meant = _meant_part(part)
            faults.append(f"stage {number} names {part}, and the parts are {PARTS}" + (f" (did you mean {meant}?)" if meant else ""))
        if factor <= 0:
            faults.append(f"stage {number} gives {part} {factor:g} times the learning rate: what is left out is frozen")
    return faults


def _boundary_faults(stages: Sequence[FreezeStageConfig], max_tokens: int | None) -> list[str]:
    faults, before = [], 0
    for number, stage in enumerate(stages[:-1], 1):
        until = stage.until_tokens
        if until is None:
            faults.append(f"stage {number} needs until_tokens, or stage {number + 1} never begins")
            continue
        if until <= before:
            faults.append(f"stage {number} ends at {until} tokens, not after the one before it ({before})")
        if max_tokens is not None and until >= max_tokens:
            faults.append(f"stage {number + 1} would begin at {until} tokens and never does: train.max_tokens={max_tokens}")
        before = max(before, until)
    if stages[-1].until_tokens is not None:
        faults.append(f"stage {len(stages)} is the last one and has until_tokens={stages[-1].until_tokens}: nothing says what trains after it")
    return faults


def mended(typed: object, max_tokens: int | None = None, *, has_new: bool = True) -> list[dict[str, Any]]:
    """The stages that were probably meant by whatever was typed: plain values, free of every fault that can be seen without a model."""
    items = typed if isinstance(typed, list) else [typed]
    if not [item for item in items if item]:
        items = [{"parts": {"new": 1}}, {"parts": {"new": 1, "tail": 1, "norms": 0.5}}]
    parts = [_meant_parts(item, has_new) for item in items]
    boundaries: list[int] = []
    for item in items[:-1]:
        before = boundaries[-1] if boundaries else 0
        until = _meant_until(item)
        boundaries.append(until if until is not None and until > before else 2 * before or FIRST_BOUNDARY)
    boundaries = fitted(boundaries, max_tokens) if max_tokens is not None else boundaries
    ends = [*boundaries, None]
    return [_plain(until, its_parts) for until, its_parts in zip(ends, parts, strict=False)]


def fitted(boundaries: Sequence[int], max_tokens: int) -> list[int]:
    """Ascending boundaries below `max_tokens`: those given where they fit, else drawn together, the last to half of it; fewer if need be."""
    if not boundaries or boundaries[-1] < max_tokens:
        return list(boundaries)
    near: list[int] = []
    for boundary in boundaries:
        near.append(max(boundary * max_tokens // (2 * boundaries[-1]), near[-1] + 1 if near else 1))
    return [boundary for boundary in near if boundary < max_tokens]


def _meant_parts(item: object, has_new: bool) -> dict[str, float]:
    typed = item.get("parts", {}) if isinstance(item, Mapping) else item
    pairs = typed.items() if isinstance(typed, Mapping) else [(part, 1) for part in (typed if isinstance(typed, list) else [typed])]
    parts: dict[str, float] = {}
    for name, factor in pairs:
        part = _meant_part(str(name))
        number = factor if isinstance(factor, (int, float)) and not isinstance(factor, bool) else 1
        if part is not None and number > 0 and (has_new or part != "new"):
            parts.setdefault(part, number)
    return parts or {"new" if has_new else "tail": 1}


def _meant_part(name: str) -> str | None:
    if name in WORDS or originals(name) is not None:
        return name
    if name.startswith("orig"):
        numbers = [int(number) for number in re.findall(r"-?\d+", name)]
        if len(numbers) >= 2:
            return f"originals[{numbers[0]}:{numbers[1]}]"
        if numbers:
            return f"originals[{numbers[0]}:{numbers[0] + 1 or ''}]"
        return "originals[-2:]" if "[" in name else "originals[:]"
    return next(iter(difflib.get_close_matches(name, WORDS, n=1, cutoff=0.5)), None)


def _meant_until(item: object) -> int | None:
    if not isinstance(item, Mapping):
        return None
    close = difflib.get_close_matches("until_tokens", [str(key) for key in item], n=1, cutoff=0.5)
    value = item[close[0]] if close else None
    return round(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value < 2**63 else None


def layers_problem(stages: Sequence[FreezeStageConfig], n_base: int, gone: Collection[int]) -> Problem | None:
    """originals[a:b] that names layers which a base of `n_base` layers does not have, or only such as are pruned (`gone`)."""
    left = [layer for layer in range(n_base) if layer not in gone]
    faults: list[str] = []
    meant: list[dict[str, float]] = []
    for number, stage in enumerate(stages, 1):
        parts: dict[str, float] = {}
        for part, factor in stage.parts.items():
            named, better = originals(part), part
            if named is not None:
                fault, better = _layers_fault(part, named, n_base, left)
                faults += [f"stage {number} names {part}, {fault}"] if fault else []
            parts.setdefault(better, factor)
        meant.append(parts)
    if not faults:
        return None
    fix = [{**stage, "parts": parts} for stage, parts in zip(typed_stages(stages), meant, strict=True)]
    return Problem(key=KEY, value=typed_stages(stages), why="; ".join(faults), fix=as_override(KEY, mended(fix)))


def _layers_fault(part: str, named: slice, n_base: int, left: Sequence[int]) -> tuple[str | None, str]:
    """What is wrong with a slice of base layers, and one that is right."""
    last = f"originals[{left[-2:][0]}:{left[-1] + 1}]" if left else part
    layers = range(n_base)[named]
    kept = [layer for layer in layers if layer in left]
    if any(bound is not None and bound > n_base for bound in (named.start, named.stop)):
        return f"and the model has layers 0 to {n_base - 1}", f"originals[{layers.start}:{n_base}]" if kept else last
    if not layers:
        return f"which is no layer of 0 to {n_base - 1}", last
    return (None, part) if kept else ("and all of these are pruned", last)
