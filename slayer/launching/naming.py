"""Names of runs and sweeps, made from what a person typed: the same on every rank and at every restart."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from slayer.schema import schema_keys

LONGEST = 80
SILENT = ("run", "runs_dir", "dry_run", "launcher", "tracker", "objective")
"""Overrides that do not change what is computed leave no trace in the name."""
AMBIGUOUS = ("none", "local", "explicit")
"""Values that several groups share: the group's name is put in front of them."""


def split_override(override: str) -> tuple[str, str]:
    """(key, value) of `key=value`, without Hydra's + and ~ in front."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def run_name(overrides: Sequence[str], groups: Sequence[str]) -> str:
    """`expansion=even prune=2` → `even-prune_2`; `default` without overrides.

    Names need no quotes in a shell or in an override (letters, digits, . _ - only). What was typed in another order gives the same
    name, what was typed twice counts as it was typed last. Long names, and names of texts that had to lose letters, end in a hash.
    """
    last = dict(split_override(override) for override in overrides)
    told = {key: value for key, value in last.items() if key.partition(".")[0] not in SILENT and not re.match(r"hydra\b", key)}
    parts = []
    for key in sorted(told):
        value = told[key].strip("'\"")
        named = value if key in groups and value not in AMBIGUOUS else f"{_short(key)}_{value}"
        parts.append(re.sub(r"[^A-Za-z0-9._-]+", "_", named).strip("_.-"))
    whole = "-".join(filter(None, parts)) or "default"
    faithful = not any(re.search(r"[^A-Za-z0-9._,/\[\]'\"-]", f"{key}{value}") for key, value in told.items())
    if len(whole) <= LONGEST and faithful and len(parts) == whole.count("-") + 1 - sum(part.count("-") for part in parts):
        return whole
    digest = hashlib.sha256("\n".join(f"{key}={told[key]}" for key in sorted(told)).encode()).hexdigest()[:8]
    return f"{whole[: LONGEST - 9].rstrip('_.-')}-{digest}"


def _short(key: str) -> str:
    """The last word of a key where it says everything, else the last two: prune, learning_rate, random_seed."""
    words = key.split(".")
    return words[-1] if _leaves()[words[-1]] == 1 and "sources" not in words[:-1] else "_".join(words[-2:])


@cache
def _leaves() -> Counter[str]:
    return Counter(key.rpartition(".")[2] for key in schema_keys() if "." not in key or key.partition(".")[0] not in SILENT)
