from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.config import CleaningConfig, DataConfig, SourceConfig
from slayer.data.benchmarks import Item
from slayer.data.cleaning import selection as module
from slayer.data.cleaning.screening import Screen, build_screen, screen_texts
from slayer.data.cleaning.selection import Selection, select, selection_key, split
from slayer.data.document import Document, SourceError
from slayer.data.storing.corpus import Corpus, corpus_of
from slayer.data.storing.parts import Workers

QUESTION = "Which gas do plants take in from the air when they make sugar out of sunlight and water?"


def prose(seed: int, n_words: int = 60) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 9))) for _ in range(n_words))


def data_of(names: list[str], heldout_share: float = 0.3, **cleaning: object) -> DataConfig:
    sources = {name: SourceConfig(role="domain", path=f"{name}.jsonl", heldout_share=heldout_share) for name in names}
    return DataConfig(name="test", sources=sources, cleaning=CleaningConfig(**cleaning))  # type: ignore[arg-type]


def opened(texts: Mapping[str, list[str | Document]], data: DataConfig) -> tuple[dict[str, Corpus], dict[str, Screen]]:
    items = [Item(benchmark="quiz", id="#7", text=QUESTION)]
    corpora, screens = {}, {}
    with Workers(1) as workers:
        for name, values in texts.items():
            documents = [value if isinstance(value, Document) else Document(id=f"{name}{number}", text=value) for number, value in enumerate(values)]
            corpora[name] = corpus_of(documents, repr(documents))
            screens[name] = build_screen(corpora[name], data.cleaning, items, label=name, workers=workers)
    return corpora, screens


def cleaned(texts: Mapping[str, list[str | Document]], **cleaning: object) -> dict[str, Selection]:
    data = data_of(list(texts), **cleaning)
    return select(data, *opened(texts, data))


def summary(selection: Selection) -> dict[str, int]:
    return {removal.reason: removal.documents for removal in selection.removed}


def test_every_reason_is_counted_with_examples_and_the_first_copy_stays(own_cache: Path) -> None:
    similar = prose(1, 100).split()
    similar[50] = "changed"
    general = [prose(1, 100), prose(2), f"{prose(3)} {QUESTION}", "tiny", prose(4), *map(prose, range(40, 50))]
    special = [prose(2), " ".join(similar), "\x00\x01\x02 no text \x03", "buy now! " * 300, prose(5), prose(5), *map(prose, range(60, 70))]
    found = cleaned({"general": general, "special": special})
    assert summary(found["general"]) == {"too_short": 1, "contaminated": 1}
    assert summary(found["special"]) == {"not_text": 1, "repetitive": 1, "duplicate": 2, "near_duplicate": 1}
    by_reason = {removal.reason: removal for one in found.values() for removal in one.removed}
    assert by_reason["contaminated"].examples[0].because.startswith("100 % of quiz #7: Which gas do plants")
    assert [example.because for example in by_reason["duplicate"].examples] == ["repeats general: general1", "repeats special: special4"]
    assert by_reason["near_duplicate"].examples[0].because == "90 % like general: general0"  # 91 of 101 runs of five words
    assert by_reason["too_short"].examples[0].because == "4 characters" and by_reason["too_short"].n_bytes == 4
    assert "no text" in by_reason["not_text"].examples[0].excerpt and "\x00" not in by_reason["not_text"].examples[0].excerpt
    kept = {*found["special"].train.tolist(), *found["special"].heldout.tolist()}
    assert kept == {4, *range(6, 16)} and not set(found["special"].train) & set(found["special"].heldout)
    sizes = [len(text.encode()) for text in special]
    assert found["special"].train_bytes == sum(sizes[index] for index in found["special"].train)


def test_the_order_of_sources_decides_which_copy_stays(own_cache: Path) -> None:
    one, two = [prose(1), prose(2), prose(3)], [prose(1), prose(4), prose(5)]
    assert summary(cleaned({"one": one, "two": two})["two"]) == {"duplicate": 1}
    assert summary(cleaned({"two": two, "one": one})["one"]) == {"duplicate": 1}


def test_each_filter_can_be_left_out(own_cache: Path) -> None:
    similar = prose(1, 100).replace(" ", "  ", 1)
    texts = {"one": [prose(1, 100), similar, prose(2), prose(2), QUESTION, "x"]}
    assert summary(cleaned(texts)["one"]) == {"too_short": 1, "contaminated": 1, "duplicate": 1, "near_duplicate": 1}
    assert summary(cleaned(texts, near_duplicates=None)["one"]) == {"too_short": 1, "contaminated": 1, "duplicate": 1}
    assert summary(cleaned(texts, exact_duplicates=False)["one"]) == {"too_short": 1, "contaminated": 1, "near_duplicate": 2}
    nothing = {"exact_duplicates": False, "near_duplicates": None, "decontaminate": [], "min_characters": 0}
    assert summary(cleaned(texts, **nothing)["one"]) == {}


def test_a_selection_is_made_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"one": [prose(1), prose(1), "tiny", *map(prose, range(2, 9))]}
    first = cleaned(texts)["one"]
    monkeypatch.setattr(module, "exact_duplicates", None)  # would fail if it were called again
    again = cleaned(texts)["one"]
    assert (again.reasons == first.reasons).all() and (again.is_heldout == first.is_heldout).all()
    assert (again.removed, again.fingerprint, again.train_bytes) == (first.removed, first.fingerprint, first.train_bytes)
    (file,) = (own_cache / "selections").glob("*.npz")
    file.write_bytes(b"damaged")
    monkeypatch.undo()
    monkeypatch.setenv("SLAYER_CACHE", str(own_cache))
    assert (cleaned(texts)["one"].reasons == first.reasons).all()


def test_what_decides_a_selection_is_in_its_key() -> None:
    key = selection_key(data_of(["a"]), {"a": "screen"})
    assert key == selection_key(data_of(["a"], max_bad_share=0.5), {"a": "screen"})
    others = [data_of(["a"], max_overlap=0.4), data_of(["a"], near_duplicates=None), data_of(["a"], heldout_share=0.2)]
    keys = {key, selection_key(data_of(["a"]), {"a": "other"}), *(selection_key(other, {"a": "screen"}) for other in others)}
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["only one document here"], "there is only one document; nothing could be held out"),
        (["the same text", "the same text"], r"of 2 documents 1 were removed \(1 duplicate\) and only one document is left"),
        (["x", "y", "z"], r"of 3 documents 3 were removed \(3 too short\) and no document is left(.|\n)*type: data.cleaning.min_characters=0, or "),
        ([Document(id="a", text=prose(1), group="g"), Document(id="b", text=prose(2), group="g")], "all 2 documents are the same text or group"),
    ],
)
def test_a_source_that_cannot_be_split_is_an_error_that_names_the_key(own_cache: Path, texts: list[str | Document], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        cleaned({"mine": texts})
    assert caught.value.problem.key == "data.sources.mine" and "data.sources.mine.path=" in caught.value.problem.fix


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_documents_never_change_sides_because_others_come_or_go(groups: list[int], share: float, seed: int) -> None:
    def sides(chosen: list[int]) -> dict[int, bool]:
        measures = screen_texts([f"text {number}" for number in chosen], None, groups=[f"g{groups[number]}" for number in chosen]).measures
        return dict(zip(chosen, split(measures, measures.places >= 0, share).tolist(), strict=True))

    everything = list(range(len(groups)))
    if len(set(groups)) < 2:
        with pytest.raises(ValueError):
            sides(everything)
        return
    whole = sides(everything)
    assert 0 < sum(whole.values()) < len(whole)
    for group in set(groups):
        assert len({whole[number] for number in everything if groups[number] == group}) == 1
    some = [number for number in everything if random.Random(f"{seed}/{number}").random() < 0.7]
    if len({groups[number] for number in some}) > 1:
        fewer = sides(some)
        by_hash = {number for number in some if screen_texts([""], None, groups=[f"g{groups[number]}"]).measures.heldout(share)[0]}
        if 0 < len(by_hash) < len(some) and sum(whole.values()) > 0:
            assert {number for number in some if fewer[number]} == by_hash
