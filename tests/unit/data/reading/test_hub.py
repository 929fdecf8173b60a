from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slayer.config import SourceConfig
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.reading.fields import Reading
from slayer.data.reading.files import Slice
from slayer.data.reading.hub import hub_files, hub_shards
from slayer.data.reading.records import read_slice

HOW = Reading(text_field="text", template=None, max_record_bytes=1_000, paragraphs=False)
TEXTS = [[f"document {number} of shard {shard}" for number in range(30)] for shard in range(3)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub holds them: three Parquet files of training text with an odd record each, one of test text."""
    folder = tmp_path_factory.mktemp("hub") / "texts"
    folder.mkdir()
    for shard, texts in enumerate(TEXTS):
        table = pa.table({"text": [*texts, None], "n": list(range(31))})
        pq.write_table(table, folder / f"train-{shard:05d}-of-00003.parquet", row_group_size=10)
    pq.write_table(pa.table({"text": ["held back"], "n": [0]}), folder / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def source(folder: Path | str, **more: Any) -> SourceConfig:
    return SourceConfig(**{"role": "domain", "hub": str(folder), "revision": "main"} | more)


def texts(records: list[Document | BadRecord]) -> list[str]:
    return [record.text if isinstance(record, Document) else record.reason for record in records]


def test_a_whole_dataset_is_read_from_its_arrow_files(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = hub_files("law", source(dataset))
    records = [record for file in files for record in read_slice(Slice(file=file), HOW)]
    odd = "holds null in the field text, not text"
    assert texts(records) == [text for shard in TEXTS for text in [*shard, odd]]
    assert all(file.kind == "arrow" for file in files) and files == hub_files("law", source(dataset))
    assert [text for file in hub_files("law", source(dataset, split="test")) for text in texts(list(read_slice(Slice(file=file), HOW)))] == [
        "held back"
    ]
    assert capfd.readouterr().err == "", "no progress bars of the library"


def test_a_streamed_dataset_is_read_from_any_record(dataset: Path) -> None:
    shards = hub_shards("law", source(dataset, stream=True), HOW)
    whole = [list(shard.read(0)) for shard in shards]
    assert [texts(records)[:-1] for records in whole] == TEXTS
    assert (
        len({shard.name for shard in shards}) == 3
        and len({record.id for records in whole for record in records if isinstance(record, Document)}) == 90
    )
    for shard, records in zip(shards, whole, strict=True):
        for skip in (0, 1, 9, 10, 29, 30, 31, 40):
            assert list(pickle.loads(pickle.dumps(shard)).read(skip)) == records[skip:]
    first = list(itertools.islice(shards[1].read(5), 4))  # two stops, each goes on where the one before ended
    second = list(itertools.islice(shards[1].read(9), 6))
    assert first + second + list(shards[1].read(15)) == whole[1][5:]


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_file_of_a_dataset_stops_with_the_way_out(dataset: Path, tmp_path: Path, stream: bool) -> None:
    content = bytearray((dataset / "train-00000-of-00003.parquet").read_bytes())
    start = pq.ParquetFile(dataset / "train-00000-of-00003.parquet").metadata.row_group(2).column(0).data_page_offset
    content[start : start + 60] = b"\xff" * 60
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(content)
    asked = source(tmp_path / "broken", stream=stream)
    with pytest.raises(SourceError, match=r"data\.sources\.law\.path=FOLDER after hf download"):
        list(hub_shards("law", asked, HOW)[0].read(0)) if stream else hub_files("law", asked)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"hub": "nobody/nothing"}, "hub", "nobody/nothing"),
        ({"split": "dev"}, "split", "train"),
        ({"subset": "fr"}, "subset", "fr"),
        ({"revision": None}, "revision", "is required with hub"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_loaded_names_its_key(dataset: Path, changes: dict[str, Any], key: str, words: str, stream: bool) -> None:
    asked = source(dataset, stream=stream, **changes) if "hub" not in changes else source(changes["hub"], stream=stream)
    with pytest.raises(SourceError) as caught:
        if stream:
            hub_shards("law", asked, HOW)
        else:
            hub_files("law", asked)
    problem = caught.value.problem
    assert problem.key == f"data.sources.law.{key}" and words in problem.why and problem.fix.startswith(problem.key)


def test_a_part_of_a_split_is_refused(dataset: Path) -> None:
    with pytest.raises(SourceError, match=r"10 of 93 records"):
        hub_files("law", source(dataset, split="train[:10]"))
