"""Names of runs and sweeps, made from what a person typed: the same on every rank and at every restart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

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
    """`expansion=even prune=2` → `even-prune_2`; `default` without overrides; long names are cut and end in a hash."""
    parts = []
    for key, value in sorted(split_override(override) for override in overrides):
        if key.split(".")[0] in SILENT or key.startswith("hydra"):
            continue
        short = value if key in groups and value not in AMBIGUOUS else f"{key.rpartition('.')[2]}_{value}"
        parts.append(re.sub(r"[^A-Za-z0-9._]+", "_", short).strip("_"))
    whole = "-".join(parts) or "default"
    if len(whole) <= LONGEST:
        return whole
    return f"{whole[: LONGEST - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
