from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from slayer.config import CleaningConfig, SourceConfig
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.reading.shards import file_shards, open_shards

CLEANING = CleaningConfig()


def source(path: Path, **more: Any) -> SourceConfig:
    return SourceConfig(role="replay", path=str(path), stream=True, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"line {number}"}) for number in range(200)]
    lines[150:150] = ["", "{"]
    (tmp_path / "big.jsonl").write_text("\n".join(lines) + "\n")
    for number in range(9):
        (tmp_path / f"small{number}.txt").write_text(f"small text {number}" * (number != 4))
    return tmp_path


def test_shards_can_be_read_from_any_record_and_hold_everything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slayer.data.reading.shards.SHARD_BYTES", 1_000)
    shards = file_shards("law", source(folder), CLEANING)
    whole = [list(shard.read(0)) for shard in shards]
    assert len(shards) > 4 and len({shard.name for shard in shards}) == len(shards)
    assert shards[0].name == "big.jsonl" and shards[-1].name.startswith("big.jsonl@") and shards[-1].name.endswith(" and 9 more")
    texts = [record.text for records in whole for record in records if isinstance(record, Document)]
    assert texts == [f"line {number}" for number in range(200)] + [f"small text {number}" for number in range(9) if number != 4]
    broken, blank = [record for records in whole for record in records if isinstance(record, BadRecord)]
    start = int(broken.file.removeprefix("big.jsonl@"))
    content = (folder / "big.jsonl").read_bytes()
    assert broken.offset_bytes == content.index(b"{\n") and blank.file == "small4.txt"
    assert broken.record == content[: broken.offset_bytes].count(b"\n") - content[:start].count(b"\n") + (
        start > 0 and content[start - 1 : start] == b"\n"
    )
    for shard, records in zip(shards, whole, strict=True):
        for skip in range(len(records) + 2):
            assert list(pickle.loads(pickle.dumps(shard)).read(skip)) == records[skip:]


def test_paths_and_datasets_are_opened_alike(folder: Path) -> None:
    assert open_shards("law", source(folder), CLEANING) == file_shards("law", source(folder), CLEANING)
    with pytest.raises(SourceError):
        open_shards("law", source(folder / "none"), CLEANING)
    with pytest.raises(SourceError, match="revision"):
        open_shards("law", SourceConfig(role="replay", hub="somebody/something", stream=True), CLEANING)
