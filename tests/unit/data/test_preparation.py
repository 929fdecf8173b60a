"""The whole path on small files: reading, cleaning, splitting, tokens, batches, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slayer.config import CleaningConfig, DataConfig, SourceConfig
from slayer.data.facts import histogram, text_facts
from slayer.data.preparation import PreparedText, open_loader, prepare_text
from slayer.data.storing.parts import Workers
from slayer.errors import DataError

NO_BENCHMARKS = CleaningConfig(decontaminate=[])


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(1) as workers:
        yield workers


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[..., DataConfig]:
    """mixed(stream=True): 200 documents of law and 100 of web in JSONL, some of law twice, one broken line in 300."""

    def make(stream: bool = False, **changes: Any) -> DataConfig:
        law = [
            json.dumps({"title": f"§ {number}", "body": f"law number {number} says " + f"word{number} " * (number % 40 + 3)}) for number in range(200)
        ]
        web = [json.dumps({"text": f"web page {number} tells of " + f"thing{number} " * (number % 30 + 3)}) for number in range(100)]
        (tmp_path / "law.jsonl").write_text("\n".join([*law, *law[:20], '{"title": broken']) + "\n", encoding="utf-8")
        (tmp_path / "web.jsonl").write_text("\n".join(web) + "\n", encoding="utf-8")
        sources = {
            "law": SourceConfig(role="domain", path=str(tmp_path / "law.jsonl"), template="{title}\\n{body}", heldout_share=0.1),
            "web": SourceConfig(role="replay", path=str(tmp_path / "web.jsonl"), heldout_share=0.1, stream=stream),
        }
        settings = {"name": "mixed", "sources": sources, "replay": 0.25, "sequence_length": 64, "cleaning": NO_BENCHMARKS}
        return DataConfig(**{**settings, **changes})

    return make


def test_every_document_is_trained_on_or_held_out_or_removed(mixed: Callable[..., DataConfig], workers: Workers, own_cache: Path) -> None:
    text = prepare_text(mixed(), workers)
    selection, corpus = text.selections["law"], text.corpora["law"]
    removed = {removal.reason: removal.documents for removal in selection.removed}
    assert corpus.n_documents == 220 and corpus.n_bad == 1 and removed == {"duplicate": 20}
    assert len(selection.train) + len(selection.heldout) + 20 == 220
    heldout, trained = {document.text for document in text.heldout("law")}, {corpus.document(int(index)).text for index in selection.train}
    assert not heldout & trained and len(heldout | trained) == 200
    assert "§ 7\nlaw number 7 says" in next(one for one in heldout | trained if one.startswith("§ 7\n"))


def test_a_longer_heldout_sample_begins_with_the_shorter_one_and_new_text_does_not_disturb_it(
    mixed: Callable[..., DataConfig], tokenizer: Any, workers: Workers, own_cache: Path, tmp_path: Path
) -> None:
    data = mixed()
    before = [document.id for document in prepare_text(data, workers).heldout_documents("web", tokenizer)]
    with (tmp_path / "web.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": f"another page {number} " + f"other{number} " * 9}) + "\n" for number in range(100))
    after = [document.id for document in prepare_text(data, workers).heldout_documents("web", tokenizer)]
    assert len(before) > 3 and [name for name in after if name in before] == before and len(after) > len(before)
    assert before != sorted(before, key=lambda name: int(name.split("@")[1])), "the choice must not follow the order of the file"


@pytest.mark.parametrize("stream", [False, True])
def test_the_facts_tell_what_the_batches_hold(
    mixed: Callable[..., DataConfig], tokenizer: Any, workers: Workers, own_cache: Path, stream: bool
) -> None:
    text = prepare_text(mixed(stream), workers)
    loader = open_loader(text, tokenizer, workers, seed=0, batch_rows=4)
    facts = json.loads(json.dumps(text_facts(text, loader, tokenizer, 100)))
    law, web = facts["sources"]
    assert (law["name"], law["read_documents"], law["cut_documents"] > 0, law["needless_cuts"]) == ("law", 220, True, 0)
    assert sum(law["lengths"]["documents"]) == law["train_documents"]
    assert web["streamed"] is stream and bool(web["cannot_promise"]) is stream
    counted = {"law": 0, "web": 0}
    for step in range(100):
        batch = loader.batch(step)
        for number, labels in zip(batch.sources_B.tolist(), batch.labels_BL, strict=True):
            counted[loader.source_names[number]] += int((labels != -100).sum())
    measured = counted["web"] / sum(counted.values())
    assert web["share"] == 0.25 and abs(measured - web["planned_share"]) < 0.02 and abs(facts["tokens"] / sum(counted.values()) - 1) < 0.05
    first = {sample["source"]: sample for sample in reversed(facts["samples"])}
    row = loader.batch(first["law"]["row"] // 4).input_ids_BL[first["law"]["row"] % 4]
    written = "".join(piece["text"] for piece in first["law"]["pieces"])
    assert tokenizer.decode(row[: sum(piece["tokens"] for piece in first["law"]["pieces"])]) == written
    assert facts["quarantine"][0]["bad"] == 1 and facts["quarantine"][0]["examples"][0]["record"] == 221


def test_other_cleaning_does_not_tokenise_again(mixed: Callable[..., DataConfig], tokenizer: Any, workers: Workers, own_cache: Path) -> None:
    def open_with(cleaning: CleaningConfig) -> PreparedText:
        text = prepare_text(mixed(cleaning=cleaning), workers)
        open_loader(text, tokenizer, workers, seed=0, batch_rows=4)
        return text

    one = open_with(NO_BENCHMARKS)
    stores = sorted((own_cache / "tokens").iterdir())
    other = open_with(NO_BENCHMARKS.model_copy(update={"exact_duplicates": False, "near_duplicates": None}))
    assert sorted((own_cache / "tokens").iterdir()) == stores
    assert len(other.selections["law"].train) > len(one.selections["law"].train)


def test_too_many_bad_records_stop_it_and_a_raised_limit_does_not(mixed: Callable[..., DataConfig], workers: Workers, own_cache: Path) -> None:
    with pytest.raises(DataError, match=r"law\.jsonl.*221.*data\.cleaning\.max_bad_share") as caught:
        prepare_text(mixed(cleaning=CleaningConfig(decontaminate=[], max_bad_share=0.001)), workers)
    assert "is not JSON" in str(caught.value)
    prepare_text(mixed(cleaning=CleaningConfig(decontaminate=[], max_bad_share=0.01)), workers)


def test_histogram() -> None:
    import numpy as np

    bins = histogram(np.array([1, 5, 5, 100, 1000]))
    assert sum(bins["documents"]) == 5 and len(bins["edges_tokens"]) == len(bins["documents"]) + 1
    for low, high, n in zip(bins["edges_tokens"], bins["edges_tokens"][1:], bins["documents"], strict=False):
        assert sum(low <= length < high for length in (1, 5, 5, 100, 1000)) == n
    assert histogram(np.array([], dtype=np.int64)) == {"edges_tokens": [], "documents": []}
