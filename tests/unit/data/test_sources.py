from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.config import DataConfig, SourceConfig
from slayer.data.document import Document
from slayer.data.files import PARAGRAPHS_CHARACTERS, _document, _paragraphs
from slayer.data.sources import read_source, source_problems, split
from slayer.errors import DataError


def source(path: Path | str, **more: Any) -> SourceConfig:
    return SourceConfig(role="domain", path=str(path), **more)


def read(path: Path | str, **more: Any) -> list[Document]:
    text = read_source("law", source(path, **more))
    return sorted([*text.train, *text.heldout], key=lambda document: document.id)


def documents(texts: list[str]) -> list[Document]:
    return [Document(id=text, text=text, group=text) for text in texts]


def test_a_folder_gives_one_document_a_file(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "deep/er/c.text", ".hidden.txt", ".git/d.txt", "e.parquet", "blank.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(" \n" if name == "blank.txt" else f"text of {name}")
    assert {document.id: document.text for document in read(tmp_path)} == {name: f"text of {name}" for name in ("b.txt", "a.md", "deep/er/c.text")}


def test_a_glob_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "x1.jsonl").write_text('\ufeff{"body": "one"}\n\n{"body": "tw\\u2028o", "n": 1}\r\n{"body": " "}\n', encoding="utf-8")
    (tmp_path / "x2.jsonl.gz").write_bytes(gzip.compress('{"body": "trois é"}'.encode()))
    (tmp_path / "y.jsonl").write_text('{"body": "not this"}')
    found = read(tmp_path / "x*.jsonl*", text_field="body")
    assert {document.id: document.text for document in found} == {"x1.jsonl:1": "one", "x1.jsonl:3": "tw\u2028o", "x2.jsonl.gz:1": "trois é"}


@settings(deadline=None)
@given(st.text(alphabet="ab \n\t", max_size=400), st.integers(1, 40))
def test_a_single_text_is_cut_at_blank_lines_and_nothing_is_lost(text: str, repeat: int) -> None:
    whole = (text + "\n\n") * repeat
    parts = _paragraphs(_document("book.txt", whole))
    assert "".join(part.text for part in parts).split() == whole.split()
    assert all(part.text.endswith("\n") and len(part.text) >= PARAGRAPHS_CHARACTERS for part in parts[:-1])


def test_a_single_text_file_becomes_several_documents(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(f"{number} " + "word " * 100 for number in range(100)))
    parts = read(tmp_path / "book.txt")
    assert 20 < len(parts) < 30 and all(2_000 <= len(part.text) < 2_600 for part in sorted(parts, key=lambda part: int(part.id.split("#")[1]))[:-1])


def test_a_document_stays_on_its_side_when_others_come(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number}"}) for number in range(200)]
    (tmp_path / "one.jsonl").write_text("\n".join(lines))
    (tmp_path / "two.jsonl").write_text("\n".join(["", *(json.dumps({"text": f"new {number}"}) for number in range(300)), *reversed(lines)]))
    one, two = read_source("x", source(tmp_path / "one.jsonl")), read_source("x", source(tmp_path / "two.jsonl"))
    assert {document.text for document in one.heldout} <= {document.text for document in two.heldout}
    assert {document.text for document in one.train} <= {document.text for document in two.train}


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abc", max_size=3), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_split_sides(texts: list[str], share: float) -> None:
    if len(set(texts)) < 2:
        with pytest.raises(DataError):
            split(documents(texts), share)
        return
    train, heldout = split(documents(texts), share)
    assert train and heldout and not {one.text for one in train} & {one.text for one in heldout}
    assert sorted([one.text for one in train + heldout]) == sorted(texts)


def test_split_share_is_about_right() -> None:
    _, heldout = split(documents([str(number) for number in range(20_000)]), 0.05)
    assert 900 < len(heldout) < 1_100


BAD: dict[str, tuple[dict[str, bytes], str, list[str]]] = {
    "missing": ({}, "nope.txt", ["does not exist", "data.sources.law.path=TEXT"]),
    "nothing matched": ({}, "no*.txt", ["matches no file"]),
    "other formats": ({"d/a.parquet": b"x"}, "d", ["holds 1 file (a.parquet …)", ".jsonl"]),
    "empty file": ({"a.txt": b""}, "a.txt", ["a.txt"]),
    "only blanks": ({"a.txt": b" \n \n"}, "a.txt", ["no text at all"]),
    "one document": ({"a.txt": b"hello"}, "a.txt", ["only one document", "held out"]),
    "all the same": ({"d/a.txt": b"hello", "d/b.txt": b"hello"}, "d", ["all 2 documents are the same text"]),
    "not UTF-8": ({"a.txt": b"caf\xe9 noir"}, "a.txt", ["a.txt", "byte 3 is 0xe9", "iconv"]),
    "not UTF-8 in a line": ({"a.jsonl": b'{"text": "x"}\n{"text": "\xff"}\n'}, "a.jsonl", ["byte 24 is 0xff"]),
    "not JSON": ({"a.jsonl": b'{"text": "x"}\n{"text": \n'}, "a.jsonl", ["a.jsonl:2", "is not JSON"]),
    "not an object": ({"a.jsonl": b"[1]\n"}, "a.jsonl", ["a.jsonl:1", "is a list"]),
    "no such field": ({"a.jsonl": b'{"n": "1", "body": "long"}\n'}, "a.jsonl", ["a.jsonl:1", "it has n, body", "data.sources.law.text_field=body"]),
    "field of another type": ({"a.jsonl": b'{"text": 3}\n'}, "a.jsonl", ["a.jsonl:1", "a number"]),
    "half a surrogate": ({"a.jsonl": b'{"text": "\\ud800"}\n'}, "a.jsonl", ["a.jsonl:1", "surrogate"]),
    "truncated gzip": ({"a.txt.gz": gzip.compress(b"hello " * 99)[:-12]}, "a.txt.gz", ["a.txt.gz", "cannot be read"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    files, path, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_source("law", source(path))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    (problem,) = source_problems(DataConfig(name="bad", sources={"law": source(path)}))
    assert problem.key.startswith("data.sources.law") and problem.fix


def test_all_problems_are_found_together(tmp_path: Path, own_cache: Path) -> None:
    missing = str(tmp_path / "missing")
    sources = {
        "domain": source(missing),
        "spelling": SourceConfig(role="domain", builtin="wikipedia_dr"),
        "english": SourceConfig(role="replay", builtin="wikipedia_en"),
        "neither": SourceConfig(role="domain"),
    }
    problems = source_problems(DataConfig(name="bad", path=missing, sources=sources))
    assert [problem.key for problem in problems] == ["data.path", "data.sources.spelling.builtin", "data.sources.english.builtin"]
    assert problems[0].fix.startswith("data.path=") and problems[1].fix == "data.sources.spelling.builtin=wikipedia_fr"
    assert problems[2].fix == "python -m slayer.data.assets fetch wikipedia"


def test_a_big_source_is_only_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.jsonl").write_text('{"text": "fine"}\nbroken\n')
    config = DataConfig(name="big", sources={"law": source(tmp_path / "big.jsonl")})
    assert len(source_problems(config)) == 1
    monkeypatch.setattr("slayer.data.sources.SMALL_BYTES", 3)
    assert source_problems(config) == []
