from __future__ import annotations

import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slayer.config import SourceConfig
from slayer.data.document import SourceError
from slayer.data.reading.files import REMEMBERED_BYTES, Slice, file_hash, kind_of, matched_files, plan_slices, text_file


def matched(path: Path | str, **more: object) -> list[str]:
    return [file.shown for file in matched_files("law", SourceConfig(role="domain", path=str(path), **more))]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def test_the_name_says_what_a_file_holds() -> None:
    held = {
        "a.txt": "text", "b.TXT": "text", "c.md.gz": "text", "d.text.zst": "text", "e.jsonl": "lines", "f.ndjson.gz": "lines", "g.csv": "csv",
        "h.tsv.zst": "csv", "i.parquet": "parquet", "j.arrow": "arrow", "k.parquet.gz": None, "l.json": None, "m.gz": None, "n": None, "txt": None,
    }  # fmt: skip
    assert {name: kind_of(name) for name in held} == held


def test_folders_are_read_to_the_bottom_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "a.md.gz", "deep/er/c.text", ".hidden.txt", ".git/d.txt", "e.bin", "deep/f.tsv")
    assert matched(tmp_path) == ["a.md.gz", "b.txt", "deep/er/c.text", "deep/f.tsv"]


def test_a_name_that_is_not_unicode_is_shown_as_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    assert [name.encode() for name in matched(tmp_path)] == [b"caf\\udce9.txt"]


def test_globs_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "x1.jsonl", "x2.jsonl.gz", "y.jsonl", "d/x3.jsonl")
    assert matched(tmp_path / "x*.jsonl*") == ["x1.jsonl", "x2.jsonl.gz"]
    assert matched(tmp_path / "**" / "x*") == ["d/x3.jsonl", "x1.jsonl", "x2.jsonl.gz"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert matched("~/y.jsonl") == ["y.jsonl"]


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_dict({"text": [f"document {number}" for number in range(10)]})
    one.save_to_disk(str(tmp_path / "one"), num_shards=3)
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(str(tmp_path / "two"))
    (tmp_path / "one" / "data-00009-of-00009.arrow").write_bytes(b"left over by somebody")
    assert matched(tmp_path / "one") == [f"data-0000{number}-of-00003.arrow" for number in range(3)]
    assert matched(tmp_path / "two", split="test") == ["data-00000-of-00001.arrow"]
    with pytest.raises(SourceError, match=r"data\.sources\.law\.split = 'dev'.*train, test"):
        matched(tmp_path / "two", split="dev")


def test_a_path_without_text_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "d/a.bin")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    said = {
        "nope.txt": "does not exist (seen from",
        "no*.txt": "matches no file",
        "d": "holds 1 file (a.bin …), but none ends in .txt",
        "empty": "without any file",
    }
    for path, words in said.items():
        with pytest.raises(SourceError) as caught:
            matched(path)
        assert words in str(caught.value) and "data.sources.law.path=TEXT" in str(caught.value)


def test_hash_is_of_the_content_and_remembered(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "big.txt"
    content = os.urandom(REMEMBERED_BYTES)
    path.write_bytes(content)
    assert file_hash(path) == hashlib.sha256(content).hexdigest()
    assert not list(own_cache.rglob("*")), "changed just now, it may change again unseen"
    os.utime(path, ns=(10**18, 10**18))
    assert file_hash(path) == hashlib.sha256(content).hexdigest()
    (remembered,) = (own_cache / "hashes").iterdir()
    remembered.write_text("as remembered")
    assert file_hash(path) == "as remembered"
    path.write_bytes(content[::-1])
    assert file_hash(path) == hashlib.sha256(content[::-1]).hexdigest()


def test_parts_hold_every_byte_once_in_order(tmp_path: Path) -> None:
    sizes = {"a.txt": 30, "b.txt": 30, "c.jsonl": 1000, "d.jsonl.gz": 500, "e.txt": 0, "f.txt": 90, "g.jsonl": 10}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    files = [text_file(tmp_path / name, name) for name in sizes]
    parts = plan_slices(files, 100)
    pieces = [piece for part in parts for piece in part]
    assert [part[0].file.shown for part in parts] == ["a.txt", *["c.jsonl"] * 10, "d.jsonl.gz", "e.txt"]
    assert list(dict.fromkeys(piece.file.shown for piece in pieces)) == list(sizes)
    cut = [piece for piece in pieces if piece.file.shown == "c.jsonl"]
    assert cut[0].start == 0 and cut[-1].end == 1000 and all(one.end == two.start for one, two in pairwise(cut))
    assert plan_slices(files, 100) == parts and plan_slices([], 100) == []


def test_columnar_files_are_cut_between_groups(tmp_path: Path) -> None:
    table = pa.table({"text": [os.urandom(50).hex() for _ in range(100)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10)
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    for name in ("t.parquet", "t.arrow"):
        file = text_file(tmp_path / name, name)
        parts = plan_slices([file], file.size_bytes // 4)
        assert [(piece.start, piece.end, piece.first_row) for (piece,) in parts] == [(0, 2, 0), (2, 4, 20), (4, 6, 40), (6, 8, 60), (8, 10, 80)]
        assert plan_slices([file], 1 << 30) == [(Slice(file=file),)]
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not at all" * 99)
    broken = text_file(tmp_path / "t.parquet", "t.parquet")
    assert plan_slices([broken], 10) == [(Slice(file=broken),)]


def test_a_state_file_of_somebody_else_is_no_dataset(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "state.json").write_text(json.dumps({"step": 3}))
    assert matched(tmp_path) == ["a.txt"]
