from __future__ import annotations

import ast

import pytest

from slayer.config import SourceConfig
from slayer.data.builtin import NEAR_DUPLICATE, near_duplicate_groups, shingles
from slayer.data.sources import SourceText, read_source


def read(name: str) -> SourceText:
    return read_source(name, SourceConfig(role="domain", builtin=name))


@pytest.mark.parametrize(("name", "language"), [("wikipedia_fr", "fr"), ("wikipedia_en", "en")])
def test_wikipedia(texts: None, name: str, language: str) -> None:
    text = read(name)
    assert 9_400 < len(text.train) < 9_700 and 440 < len(text.heldout) < 560
    assert not {one.text for one in text.train} & {one.text for one in text.heldout}
    words = " ".join(one.text for one in text.heldout).lower().split()
    assert (words.count("les") > 20 * words.count("the")) == (language == "fr")


def test_standard_library_is_whole_python_files() -> None:
    text = read("python_stdlib")
    assert {"ast.py", "json/decoder.py"} <= {one.id for one in text.train + text.heldout}
    assert not any("test" in one.id.split("/")[:-1] for one in text.train + text.heldout)
    for one in text.heldout[:20]:
        ast.parse(one.text)


@pytest.mark.slow
def test_no_heldout_licence_has_a_near_duplicate_in_training(texts: None) -> None:
    """Checked against all pairs, without sketches."""
    text = read("licences")
    assert 0.02 < len(text.heldout) / len(text.train) < 0.15
    assert not any(one.text.startswith("---\nkey:") or "\nshort_name: " in one.text for one in text.train + text.heldout)
    holders: dict[int, list[int]] = {}
    train = [shingles(one.text) for one in text.train]
    for number, members in enumerate(train):
        for member in members:
            holders.setdefault(member, []).append(number)
    for one in text.heldout:
        members = shingles(one.text)
        shared: dict[int, int] = {}
        for member in members:
            for number in holders.get(member, ()):
                shared[number] = shared.get(number, 0) + 1
        closest = max((count / (len(members) + len(train[number]) - count) for number, count in shared.items()), default=0.0)
        assert closest < NEAR_DUPLICATE, one.id


def test_clusters_join_through_chains_and_keep_strangers_apart() -> None:
    words = [f"w{number}" for number in range(400)]
    one, two, three = " ".join(words[:200]), " ".join(words[50:250]), " ".join(words[100:300])
    stranger = " ".join(f"x{number}" for number in range(200))
    assert near_duplicate_groups([one, stranger, three, two, stranger + " end"]) == [0, 1, 0, 0, 1]
