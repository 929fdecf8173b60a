"""The table of what was learnt and what was forgotten."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from slayer.evaluation.forgetting import compare, objective
from slayer.evaluation.heldout import HeldoutSet, build_heldout_set

N_BYTES = 100


class Text:
    def __init__(self, name: str) -> None:
        self.id, self.tokens, self.n_bytes = name, np.arange(1, 11), N_BYTES


def heldout(source: str, count: int) -> HeldoutSet:
    return build_heldout_set(source, [Text(f"{source}{number}") for number in range(count)], prefix_token=0, row_tokens=32)


def table(factors: dict[str, float], count: int = 30, noise: float = 0.01) -> dict[str, Any]:
    """Documents of about 1 bit per byte under the base; the result multiplies each source's nats by its factor."""
    generator = np.random.default_rng(0)
    base = {source: N_BYTES * math.log(2) * generator.uniform(0.8, 1.2, count) for source in factors}
    result = {source: base[source] * factor * generator.normal(1, noise, count) for source, factor in factors.items()}
    roles = {source: "replay" if source.startswith("old") else "domain" for source in factors}
    return compare({source: heldout(source, count) for source in factors}, roles, base, result, {source: 2 * base[source] for source in base})


def test_each_source_gets_its_scores_and_its_verdict() -> None:
    found = table({"law": 0.8, "old": 1.02, "old_too": 1.0})
    assert {source: entry["verdict"] for source, entry in found.items()} == {
        "law": "learnt",
        "old": "forgotten",
        "old_too": "no change detected",
    }
    law = found["law"]
    assert (law["role"], law["documents"], law["bytes"], law["tokens"]) == ("domain", 30, 3_000, 300)
    assert law["change_percent"] == pytest.approx(-20, abs=1) and law["change_percent"] == pytest.approx(100 * (law["result"] / law["base"] - 1))
    assert law["start"] == pytest.approx(2 * law["base"]) and law["base"] == pytest.approx(1, abs=0.1)
    for value, interval in (("base", "base_interval"), ("result", "result_interval"), ("change_percent", "change_interval_percent")):
        assert law[interval][0] < law[value] < law[interval][1]
    assert json.loads(json.dumps(found)) == found


def test_one_document_decides_nothing() -> None:
    assert table({"law": 0.5}, count=1)["law"]["verdict"] == "no change detected"
    assert table({"law": 0.5}, count=20, noise=0.0)["law"]["verdict"] == "learnt"


def test_before_training_there_may_be_no_start() -> None:
    base = {"law": np.full(3, 70.0)}
    assert compare({"law": heldout("law", 3)}, {"law": "domain"}, base, base)["law"]["start"] is None


def test_the_objective_of_a_sweep_is_the_mean_over_its_sources() -> None:
    found = table({"law": 0.8, "code": 0.6, "old": 1.2})
    assert objective(found, "domain_bits_per_byte") == pytest.approx((found["law"]["result"] + found["code"]["result"]) / 2)
    assert objective(found, "replay_bits_per_byte") == found["old"]["result"]
    assert objective(found, "mean_bits_per_byte") == pytest.approx(sum(entry["result"] for entry in found.values()) / 3)
    assert objective(table({"law": 1.0}), "replay_bits_per_byte") == math.inf
