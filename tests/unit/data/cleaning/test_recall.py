"""A small run of benchmarks/cleaning.py: what is planted is found."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from slayer.data.assets import fetch
from slayer.data.benchmarks import benchmark_items
from slayer.data.builtin import wikipedia

SCRIPT = Path(__file__).parents[4] / "benchmarks" / "cleaning.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("cleaning_script", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "cleaning_script", module)
    specification.loader.exec_module(module)
    return module


def test_planted_copies_and_questions_are_found(texts: None, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(["benchmarks"])
    everything, items = wikipedia("en-us")[:800], benchmark_items(["arc_easy", "boolq", "piqa", "hellaswag", "gsm8k"])
    articles, hosts = everything[::2], everything[1::2]
    planted = script.planted(articles, hosts, items, 300, random.Random(1))
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path))
    found = script.measure(articles, planted, items)
    recall = {outcome.kind: outcome.recall for outcome in found.outcomes}
    assert all(outcome.planted > 80 for outcome in found.outcomes)
    for kind, required in script.REQUIRED.items():
        assert recall[kind] >= required, kind
    assert recall[script.TO_KEEP] == 0 and found.false_positives == []
