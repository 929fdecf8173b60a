"""Names of runs and sweeps, made from what a person typed: the same on every rank and at every restart."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from slayer.schema import schema_keys

LONGEST = 80
SILENT = ("run", "runs_dir", "dry_run", "launcher", "tracker", "objective", "estimate")
"""Overrides that do not change what is computed leave no trace in the name."""
LOST = r"[^A-Za-z0-9._,=\n\[\]'\"-]"
"""Signs that a name cannot hold and that may well be all that tells two texts apart."""
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
    told = {key: last[key] for key in sorted(last) if key.partition(".")[0] not in SILENT and not re.match(r"hydra\b", key)}
    parts = [_part(key, value, key in groups and value not in AMBIGUOUS) for key, value in told.items()]
    whole = "-".join(parts) or "default"
    typed = "\n".join(f"{key}={value}" for key, value in told.items())
    if len(whole) <= LONGEST and not re.search(LOST, typed):
        return whole
    return f"{whole[: LONGEST - 9].rstrip('_.-')}-{hashlib.sha256(typed.encode()).hexdigest()[:8]}"


def _part(key: str, value: str, says_enough: bool) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", value.rstrip("/").rpartition("/")[2]).strip("_.")
    return plain.lstrip("-") if says_enough and plain.strip("-") else f"{_short(key)}_{plain}".rstrip("_")


def _short(key: str) -> str:
    """The last word of a key where it says everything, else the last two: prune, learning_rate, random_seed."""
    words = key.split(".")
    return words[-1] if _leaves()[words[-1]] == 1 and "sources" not in words[:-1] else "_".join(words[-2:])


@cache
def _leaves() -> Counter[str]:
    return Counter(key.rpartition(".")[2] for key in schema_keys() if "." not in key or key.partition(".")[0] not in SILENT)
