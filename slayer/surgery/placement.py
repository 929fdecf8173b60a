"""Where new blocks go: each preset as a pure function of the base's layer count.

A placement is a list of (after, source): a new block stands behind base layer `after` (−1: before layer 0; blocks
with the same `after` stack in list order) and starts from base layer `source` and, for averages, the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from slayer.config import ExpansionConfig
from slayer.errors import Problem

Placement = list[tuple[int, int]]


def place(expansion: ExpansionConfig, n_base: int, ranked: Sequence[int] = ()) -> Placement:
    """The placement of a preset for a base of `n_base` layers; call `placement_problems` first. `ranked` are the base's layers, the least
    important first, for the presets that ask for it.

    Sources: shallow_half is the S strategy (arXiv 2410.02330, txchen-USTC/Llama-Slayer), even is LLaMA Pro (2401.02415),
    prefix_stack and suffix_stack its stacked ablations, solar is depth up-scaling (2312.15166), least_important is ADEPT's rule (2510.10071).
    """
    every, count = expansion.every, expansion.count
    match expansion.strategy:
        case "none":
            return []
        case "explicit":
            return [(after, max(after, 0)) for after in sorted(expansion.after or [])]
        case "shallow_half":
            return [(layer, layer) for layer in _shallow(n_base, every or 2)[:count]]
        case "deep_half":
            same_number = len(_shallow(n_base, every or 2))
            strided = _strided(n_base, every or 2)[-same_number:] if same_number else []
            return [(layer, layer) for layer in (strided[-count:] if count else strided)]
        case "even":
            group = every or n_base // (count or max(n_base // 4, 1))
            return [(layer, layer) for layer in _strided(n_base, group)[:count]]
        case "prefix_stack":
            return [(-1, index) for index in range(count or max(n_base // 4, 1))]
        case "suffix_stack":
            blocks = count or max(n_base // 4, 1)
            return [(n_base - 1, n_base - blocks + index) for index in range(blocks)]
        case "least_important" | "most_important":
            ordered = list(ranked) if expansion.strategy == "least_important" else list(reversed(ranked))
            return [(layer, layer) for layer in sorted(ordered[: scored_count(expansion, n_base)])]
        case "solar":
            dropped = (n_base - _solar_count(expansion, n_base)) // 2
            return [(n_base - dropped - 1, source) for source in range(dropped, n_base - dropped)]


def scored_count(expansion: ExpansionConfig, n_base: int) -> int:
    """New blocks of least_important and most_important."""
    return expansion.count or max(n_base // 4, 1)


def placement_problems(expansion: ExpansionConfig, n_base: int) -> list[Problem]:
    """What makes this expansion impossible on a base of `n_base` layers."""
    strategy, count = expansion.strategy, expansion.count
    if strategy == "explicit":
        wrong = [after for after in expansion.after or [] if not -1 <= after < n_base]
        if wrong:
            good = [after for after in expansion.after or [] if after not in wrong] or [min(1, n_base - 1)]
            why = f"{wrong} out of range: the model has layers 0 to {n_base - 1} (-1 stands for before layer 0)"
            return [Problem(key="expansion.after", value=expansion.after, why=why, fix=f"expansion.after={good}".replace(" ", ""))]
        return []
    if strategy == "none":
        return []
    if strategy in ("shallow_half", "deep_half"):
        possible = len(_shallow(n_base, expansion.every or 2))
        if possible == 0:
            why = f"the first half of a {n_base}-layer model has {n_base // 2} layers, so none is a {expansion.every or 2}-th one"
            every = min(2, n_base // 2)
            fix = f"expansion.every={every}" if every else "expansion=explicit expansion.after=[0] expansion.every=null"
            if count is not None and (not every or count > len(_shallow(n_base, every))):
                fix += " expansion.count=null"
            return [Problem(key="expansion.every", value=expansion.every, why=why, fix=fix)]
    elif strategy == "even":
        possible = n_base
        if expansion.every is not None and expansion.every > n_base:
            why = f"the model has only {n_base} layers"
            return [Problem(key="expansion.every", value=expansion.every, why=why, fix=f"expansion.every={max(n_base // 4, 1)}")]
    else:
        possible = n_base
    if count is not None and count > possible:
        why = f"{strategy} has room for {possible} new blocks in a {n_base}-layer model"
        return [Problem(key="expansion.count", value=count, why=why, fix=f"expansion.count={possible}")]
    if strategy == "solar" and (n_base - _solar_count(expansion, n_base)) % 2:
        why = f"solar drops the same number of layers from each copy, so {n_base} − count must be even"
        return [Problem(key="expansion.count", value=count, why=why, fix=f"expansion.count={max((count or 0) - 1, 2 - n_base % 2)}")]
    return []


def _strided(n_base: int, every: int) -> list[int]:
    return [layer for layer in range(n_base) if (layer + 1) % every == 0]


def _shallow(n_base: int, every: int) -> list[int]:
    return [layer for layer in _strided(n_base, every) if layer + 1 <= n_base // 2]


def _solar_count(expansion: ExpansionConfig, n_base: int) -> int:
    return expansion.count or n_base - 2 * (n_base // 4)
