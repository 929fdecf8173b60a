from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.config import CleaningConfig, DataConfig, SourceConfig
from slayer.data.document import BadRecord
from slayer.data.reading.sources import bad_share_problem, source_problems
from slayer.errors import Problem


def source(path: Path | str, **more: Any) -> SourceConfig:
    return SourceConfig(role="domain", path=str(path), **more)


def problems(one: SourceConfig, **cleaning: Any) -> list[Problem]:
    return source_problems(DataConfig(name="text", sources={"law": one}, cleaning=CleaningConfig(**cleaning)))


def lines(texts: list[Any], field: str = "text") -> bytes:
    return "".join(json.dumps({field: text}) + "\n" for text in texts).encode()


BAD: dict[str, tuple[dict[str, bytes], str, dict[str, Any], str, list[str]]] = {
    # name: (files, path, more of the source, key, words of the message)
    "missing": ({}, "nope.txt", {}, "path", ["does not exist", "data.sources.law.path=TEXT"]),
    "nothing matched": ({}, "no*.txt", {}, "path", ["matches no file"]),
    "other formats": ({"d/a.bin": b"x"}, "d", {}, "path", ["holds 1 file (a.bin …)", ".jsonl"]),
    "empty file": ({"a.txt": b""}, "a.txt", {}, "path", ["matches 1 file, and it is empty"]),
    "empty files": ({"d/a.txt": b"", "d/b.csv": b""}, "d", {}, "path", ["matches 2 files, and every one is empty"]),
    "only blanks": ({"a.txt": b" \n \n"}, "a.txt", {}, "path", ["a.txt:1 is empty"]),
    "only blank lines": ({"a.jsonl": b" \n \n"}, "a.jsonl", {}, "path", ["no text at all"]),
    "one document": ({"a.txt": b"hello"}, "a.txt", {}, "path", ["only one document", "held out"]),
    "all the same": ({"d/a.txt": b"hello", "d/b.txt": b"hello"}, "d", {}, "path", ["all 2 documents are the same text"]),
    "not UTF-8": ({"a.txt": b"caf\xe9 noir"}, "a.txt", {}, "path", ["a.txt", "byte 3 is 0xe9", "iconv", "data.sources.law.path=utf8.txt"]),
    "not JSON": ({"a.jsonl": lines(["x", "y"]) + b"{\n"}, "a.jsonl", {}, "path", ["1 of 3 records", "a.jsonl:3", "is not JSON", "share=0.35"]),
    "first record": ({"a.jsonl": b"{\n"}, "a.jsonl", {}, "path", ["its only record", "a.jsonl:1 is not JSON"]),
    "no such field": ({"a.jsonl": b'{"n": "1", "body": "long"}'}, "a.jsonl", {}, "text_field", ["it has n, body", "law.text_field=body"]),
    "no such column": ({"a.csv": b"title,body\na,b\n"}, "a.csv", {}, "text_field", ["it has title, body", "text_field="]),
    "no such field in it": ({"a.jsonl": lines(["x"])}, "a.jsonl", {"template": "{title}: {text}"}, "template", ["no field title; it has text"]),
    "another type": ({"a.jsonl": lines([3, 4])}, "a.jsonl", {}, "path", ["2 of 2 records", "a number"]),
    "truncated gzip": ({"a.txt.gz": gzip.compress(b"hello " * 99)[:-12]}, "a.txt.gz", {}, "path", ["a.txt.gz", "cannot be read"]),
    "malformed template": ({"a.jsonl": lines(["x", "y"])}, "a.jsonl", {"template": "text"}, "template", ["names no field"]),
    "template for plain text": ({"a.txt": b"x"}, "a.txt", {"template": "{text}"}, "template", ["plain text has no fields"]),
    "some other text with the bad": ({"a.jsonl": b"{\n" + lines(["x"])}, "a.jsonl", {}, "path", ["1 of 2 records"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    files, path, more, key, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    (problem,) = problems(source(path, **more))
    assert problem.key == f"data.sources.law.{key}" and problem.fix
    assert all(word in str(problem) for word in words), str(problem)


def test_all_problems_are_found_together(tmp_path: Path, own_cache: Path) -> None:
    missing = str(tmp_path / "missing")
    sources = {
        "domain": source(missing),
        "spelling": SourceConfig(role="domain", builtin="wikipedia_dr", stream=True),
        "english": SourceConfig(role="replay", builtin="wikipedia_en"),
        "hub": SourceConfig(role="replay", hub="somebody/something", template="{"),
        "neither": SourceConfig(role="domain"),
    }
    found = source_problems(DataConfig(name="bad", path=missing, sources=sources))
    assert [problem.key.removeprefix("data.sources.") for problem in found] == [
        "data.path", "spelling.stream", "spelling.builtin", "english.builtin", "hub.template", "hub.revision"
    ]  # fmt: skip
    fixes = {problem.key: problem.fix for problem in found}
    assert fixes["data.path"].startswith("data.path=") and fixes["data.sources.spelling.builtin"] == "data.sources.spelling.builtin=wikipedia_fr"
    assert fixes["data.sources.english.builtin"] == "python -m slayer.data.assets fetch wikipedia"
    assert fixes["data.sources.hub.revision"] == "data.sources.hub.revision=COMMIT"


def test_few_bad_records_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n" + lines([f"text {number}" for number in range(99)]))
    assert problems(source(path)) == []
    (problem,) = problems(source(path), max_bad_share=0.005)
    assert "1 of 100 records" in problem.why and "data.cleaning.max_bad_share=0.01" in problem.fix
    assert problems(source(path), max_bad_share=0.01) == []


@given(st.integers(0, 1_000), st.integers(0, 1_000), st.sampled_from([0.0, 0.01, 0.25, 1.0]))
def test_the_limit_is_a_share_of_all_records_and_the_fix_passes_it(n_good: int, n_bad: int, limit: float) -> None:
    first = BadRecord(file="a.jsonl", record=3, offset_bytes=12, reason="is empty")
    asked = source("a.jsonl")
    problem = bad_share_problem("law", asked, CleaningConfig(max_bad_share=limit), n_good + n_bad, n_bad, first)
    assert (problem is None) == (n_bad <= limit * (n_good + n_bad))
    if problem is not None and n_good:
        mended = float(problem.fix.split("max_bad_share=")[1].split()[0])
        assert bad_share_problem("law", asked, CleaningConfig(max_bad_share=mended), n_good + n_bad, n_bad, first) is None


def test_a_big_source_is_only_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.jsonl").write_bytes(b"broken\n" + lines(["fine"]) + b"broken\n")
    assert len(problems(source(tmp_path / "big.jsonl"))) == 1
    monkeypatch.setattr("slayer.data.reading.sources.SMALL_BYTES", 3)
    assert problems(source(tmp_path / "big.jsonl")) == []
    (tmp_path / "big.jsonl").write_bytes(b"broken\n" * 200 + lines(["fine"]))
    (problem,) = problems(source(tmp_path / "big.jsonl"))
    assert "100 of 100 records" in problem.why
    (tmp_path / "big.jsonl").write_bytes(lines(["fine"], "body"))
    assert [one.key for one in problems(source(tmp_path / "big.jsonl"))] == ["data.sources.law.text_field"]


def test_good_sources_have_no_problem(tmp_path: Path) -> None:
    pq.write_table(pa.table({"meta": [{"title": "a"}, {"title": "b"}]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(lines(["one", "two"], "body"))
    assert problems(source(tmp_path / "a.parquet", template="On {meta.title}")) == []
    assert problems(source(tmp_path / "a.jsonl", text_field="body", stream=True)) == []
    assert problems(SourceConfig(role="domain", builtin="python_stdlib")) == []
