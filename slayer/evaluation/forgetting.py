"""What was learnt and what was forgotten: each source's held-out score before and after, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.evaluation.heldout import HeldoutSet
from slayer.evaluation.statistics import bits_per_byte, change_percent, verdict

Nats = Mapping[str, NDArray[np.float64]]


def compare(sets: Mapping[str, HeldoutSet], roles: Mapping[str, str], base: Nats, result: Nats, start: Nats | None = None) -> dict[str, Any]:
    """The `heldout` part of results.json: bits per byte of base, start (after surgery, before training) and result, by source."""
    table: dict[str, Any] = {}
    for source, heldout in sets.items():
        before = bits_per_byte(base[source], heldout.n_bytes)
        after = bits_per_byte(result[source], heldout.n_bytes)
        change = change_percent(base[source], result[source])
        table[source] = {
            "role": roles[source],
            "documents": heldout.n_documents,
            "bytes": int(heldout.n_bytes.sum()),
            "tokens": int(heldout.n_tokens.sum()),
            "base": before.value,
            "base_interval": [before.low, before.high],
            "start": bits_per_byte(start[source], heldout.n_bytes).value if start is not None else None,
            "result": after.value,
            "result_interval": [after.low, after.high],
            "change_percent": change.value,
            "change_interval_percent": [change.low, change.high],
            "verdict": verdict(change) if heldout.n_documents > 1 else "no change detected",  # one document has no interval
        }
    return table


def objective(table: Mapping[str, Any], name: str) -> float:
    """The score a sweeper minimises: mean bits per byte of the domain sources, of the replay sources, or of all."""
    role = {"domain_bits_per_byte": ("domain",), "replay_bits_per_byte": ("replay",), "mean_bits_per_byte": ("domain", "replay")}[name]
    values = [entry["result"] for entry in table.values() if entry["role"] in role]
    return float(np.mean(values)) if values else float("inf")
