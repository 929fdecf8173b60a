"""Corpora: the truth is what json and plain Python read from the same files."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slayer.config import CleaningConfig, SourceConfig
from slayer.data.builtin import BUILTINS, Builtin
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.reading.files import Slice, text_file
from slayer.data.reading.records import Reading
from slayer.data.storing import chunks, ingest, parts
from slayer.data.storing import corpus as corpus_module
from slayer.data.storing.chunks import CorpusChunks, part_bytes
from slayer.data.storing.corpus import Corpus, build_corpus, content_hash, corpus_of
from slayer.data.storing.ingest import ReadPart, stamp_of
from slayer.data.storing.parts import Workers, part_path
from slayer.errors import DataError

CLEANING = CleaningConfig(max_bad_share=1.0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a kilobyte and batches of a few documents, so that a small text is cut as a large one is."""
    monkeypatch.setattr(chunks, "SMALLEST_PART_BYTES", 1_000)
    monkeypatch.setattr(chunks, "PART_BYTES", 1_000)
    monkeypatch.setattr(ingest, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(ingest, "BATCH_CHARACTERS", 300)


def read(path: Path, workers: Workers | None = None, cleaning: CleaningConfig = CLEANING, **source: Any) -> Corpus:
    return build_corpus("law", SourceConfig(role="domain", path=str(path), **source), cleaning, workers or Workers(1))


def everything(corpus: Corpus) -> list[Document]:
    return [corpus.document(number) for number in range(corpus.n_documents)]


def inodes(corpus: Corpus) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in corpus.folder.glob("part-*")}


def mixed_lines(count: int) -> tuple[bytes, list[Document], list[tuple[int, int]]]:
    """JSON lines good, bad and blank; the documents they hold, and (line from 1, offset) of the bad ones."""
    generator = random.Random(5)
    content, documents, bad = b"", [], []
    for number in range(1, count + 1):
        kind = generator.random()
        text = f"{number} é日🎉 " + "word " * generator.randrange(40)
        line = json.dumps({"text": text}, ensure_ascii=kind > 0.5).encode() if kind < 0.8 else b'{"text": 3}' if kind < 0.9 else b" "
        if kind < 0.8:
            documents.append(Document(id=f"law.jsonl@{len(content)}", text=text))
        elif kind < 0.9:
            bad.append((number, len(content)))
        content += line + (b"\r\n" if generator.random() < 0.3 else b"\n")
    return content.rstrip(b"\r\n"), documents, bad


@pytest.fixture
def lines(tmp_path: Path) -> tuple[Path, list[Document], list[tuple[int, int]]]:
    content, documents, bad = mixed_lines(400)
    path = tmp_path / "law.jsonl"
    path.write_bytes(content)
    return path, documents, bad


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, max_size=60), data=st.data())
def test_documents_come_back_as_they_went_in(own_cache: Path, small_parts: None, texts: list[str], data: st.DataObject) -> None:
    documents = [Document(id=f"é{number}", text=text, group=f"g{number % 3}" if number % 4 else "") for number, text in enumerate(texts)]
    corpus = corpus_of(iter(documents), content_hash(documents))
    assert everything(corpus) == documents
    assert corpus.n_documents == corpus.n_records == len(texts) and corpus.n_bytes == sum(len(text.encode()) for text in texts)
    found, position = corpus.batches(), 0
    for number, chunk in enumerate(found):
        assert (chunk.number, chunk.first) == (number, position)
        expected = documents[position : position + chunk.n_documents]
        assert corpus.texts(chunk) == [document.text for document in expected]
        assert corpus.groups(chunk) == [document.group for document in expected]
        assert chunk.n_bytes == sum(len(document.text.encode()) for document in expected)
        position += chunk.n_documents
    assert position == len(texts)
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=20)) if texts else []
    assert corpus.ids(chosen) == [documents[number].id for number in chosen]
    assert corpus.size_bytes(np.array(chosen, dtype=np.int64)) == sum(len(texts[number].encode()) for number in chosen)


def test_a_number_beyond_the_last_is_an_error(own_cache: Path) -> None:
    corpus = corpus_of([Document(id="a", text="b")], "one")
    for call in (lambda: corpus.document(1), lambda: corpus.document(-1), lambda: corpus.ids([1]), lambda: corpus.size_bytes([-1])):
        with pytest.raises(IndexError):
            call()


def test_any_size_is_cut_into_parts_that_keep_many_cores_busy() -> None:
    mib = 1 << 20
    assert [part_bytes(size * mib) // mib for size in (0, 1, 64, 128, 512, 1 << 12, 1 << 15, 1 << 16)] == [1, 1, 1, 2, 8, 8, 8, 16]
    assert all(-(-size // part_bytes(size)) <= chunks.MOST_PARTS for size in (10**8, 10**10, 10**12, 10**14))


@pytest.mark.usefixtures("small_parts")
def test_lines_in_many_parts_are_what_they_are_in_one_file(own_cache: Path, lines: Any) -> None:
    path, documents, bad = lines
    corpus = read(path)
    assert len(inodes(corpus)) // 2 > 20 and len(corpus.batches()) > 20
    assert everything(corpus) == documents
    assert (corpus.n_records, corpus.n_bad) == (len(documents) + len(bad), len(bad))
    assert [(record.record, record.offset_bytes) for record in corpus.bad] == bad
    assert all(record.file == "law.jsonl" and "a number" in record.reason for record in corpus.bad)
    stored = (corpus.folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert [BadRecord(**json.loads(line)) for line in stored] == corpus.bad
    assert not list(corpus.folder.glob("bad-*"))
    assert corpus.files == {"law.jsonl": corpus_module.file_hash(path)}


@pytest.mark.usefixtures("small_parts")
def test_line_numbers_of_several_files_do_not_mix(own_cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    expected = []
    for number, name in enumerate(("a.jsonl", "b.jsonl", "c.csv", "d.txt")):
        if name.endswith("jsonl"):
            content, _, bad = mixed_lines(60 + 90 * number)
            (folder / name).write_bytes(content)
            expected += [(name, line) for line, _ in bad]
    (folder / "c.csv").write_text('text\ngood\n""\ngood\n')
    (folder / "d.txt").write_text(" \n")
    expected += [("c.csv", 2), ("d.txt", 1)]
    assert [(record.file, record.record) for record in read(folder).bad] == expected


@pytest.mark.usefixtures("small_parts")
def test_real_processes_read_the_same(own_cache: Path, lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, documents, bad = lines
    monkeypatch.setattr(parts, "SMALL_JOB_BYTES", 0)
    seen: list[tuple[str, int, int]] = []
    source = SourceConfig(role="domain", path=str(path))
    with Workers(2) as workers:
        corpus = build_corpus("law", source, CLEANING, workers, lambda *report: seen.append(report))
    assert everything(corpus) == documents and [record.record for record in corpus.bad] == [line for line, _ in bad]
    assert seen[-1] == ("law: reading", 1, 1)


def test_is_read_once(own_cache: Path, lines: Any, tmp_path: Path) -> None:
    path, _, _ = lines
    corpus = read(path)
    before = inodes(corpus)
    moved = tmp_path / "elsewhere" / "law.jsonl"
    moved.parent.mkdir()
    path.rename(moved)
    assert read(moved).fingerprint == corpus.fingerprint and inodes(corpus) == before
    others = [read(moved, template="{text}!"), read(moved, cleaning=CLEANING.model_copy(update={"max_record_bytes": 1_000}))]
    moved.write_bytes(moved.read_bytes() + b'\n{"text": "one more"}\n')
    others.append(read(moved))
    assert others[-1].n_documents == corpus.n_documents + 1
    assert len({corpus.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_too_many_bad_records_stop_and_a_raised_limit_costs_nothing(own_cache: Path, lines: Any) -> None:
    path, documents, bad = lines
    n_records = len(documents) + len(bad)
    with pytest.raises(SourceError) as caught:
        read(path, cleaning=CleaningConfig(max_bad_share=0.05))
    assert f"{len(bad)} of {n_records} records" in str(caught.value) and f"law.jsonl:{bad[0][0]}" in str(caught.value)
    assert caught.value.problem.key == "data.sources.law.path"
    (folder,) = (own_cache / "corpora").iterdir()
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    corpus = read(path, cleaning=CleaningConfig(max_bad_share=0.2))
    assert {file.name: file.stat().st_ino for file in corpus.folder.iterdir()} == before


def test_no_text_at_all_is_an_error(own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(SourceError, match="holds no text at all"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(SourceError, match="holds no text at all"):
        read(tmp_path / "a.jsonl")


@pytest.mark.usefixtures("small_parts")
def test_one_packed_file_is_one_part_and_many_chunks(own_cache: Path, lines: Any, tmp_path: Path) -> None:
    path, documents, _ = lines
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    corpus = read(packed)
    assert [document.text for document in everything(corpus)] == [document.text for document in documents]
    assert len(inodes(corpus)) == 2 and len(corpus.batches()) > 20


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("gathering", ["not begun", "half done", "by another"])
def test_the_quarantine_is_gathered_whenever_a_kill_came(own_cache: Path, lines: Any, monkeypatch: pytest.MonkeyPatch, gathering: str) -> None:
    path, _, bad = lines

    def killed(*_: Any) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(corpus_module, "gather_quarantine", killed)
        read(path)
    (folder,) = (own_cache / "corpora").iterdir()
    if gathering == "half done":
        (folder / ".quarantine.jsonl.abc").write_text("half")
    if gathering == "by another":  # which has cleared the parts' own records already
        Corpus(folder)
    assert [record.record for record in read(path).bad] == [line for line, _ in bad]


def test_a_file_that_changes_while_it_is_read_is_refused(own_cache: Path, lines: Any, tmp_path: Path) -> None:
    path, _, _ = lines
    reading = Reading(text_field="text", template=None, max_record_bytes=10_000, paragraphs=False)
    size_bytes, changed_ns = stamp_of(path)
    work = ReadPart(parts=((Slice(file=text_file(path, "law.jsonl")),),), stamps=(((size_bytes, changed_ns - 1),),), reading=reading)
    with pytest.raises(DataError, match="changed while it was read"):
        work(0, tmp_path / "part")
    assert not list(tmp_path.glob("bad-*"))
    replace(work, stamps=(((size_bytes, changed_ns),),))(0, tmp_path / "part")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(os.urandom(path.stat().st_size)), lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_corpus_says_what_to_remove(own_cache: Path, lines: Any, damage: Callable[[Path], Any]) -> None:
    path, _, _ = lines
    corpus = read(path)
    damage(part_path(corpus.folder, 0))
    with pytest.raises(DataError, match=f"type: rm -r {corpus.folder} "):
        read(path).document(0)


def test_a_handle_crosses_to_other_processes_as_a_name(own_cache: Path) -> None:
    import pickle

    corpus = corpus_of([Document(id="a", text="b" * 10_000)], "one")
    sent = pickle.dumps(corpus.chunks)
    received = pickle.loads(sent)
    assert isinstance(received, CorpusChunks) and len(sent) < 1_000 and received.document(0) == corpus.document(0)


def test_a_builtin_is_read_once_and_named_by_its_content(own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel, reads = tmp_path / "texts.whl", []
    wheel.write_text("one")

    def documents() -> list[Document]:
        reads.append(wheel.read_text())
        return [Document(id="a", text=wheel.read_text()[:3], group="g"), Document(id="b", text="two", group="g")]

    monkeypatch.setitem(BUILTINS, "two_texts", Builtin(read=documents, check=lambda: wheel))
    source = SourceConfig(role="domain", builtin="two_texts")
    corpora = [build_corpus("law", source, CLEANING, Workers(1)) for _ in range(2)]
    assert reads == ["one"] and everything(corpora[1]) == documents() and corpora[1].files is None
    wheel.write_text("one in another wheel")
    assert build_corpus("law", source, CLEANING, Workers(1)).fingerprint == corpora[0].fingerprint
    wheel.write_text("1")
    assert build_corpus("law", source, CLEANING, Workers(1)).fingerprint != corpora[0].fingerprint


def test_the_standard_library_is_read_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceConfig(role="domain", builtin="python_stdlib")
    corpus = build_corpus("code", source, CLEANING, Workers(1))
    assert corpus.n_documents > 500 and "json/decoder.py" in corpus.ids(range(corpus.n_documents))

    def again() -> list[Document]:
        raise AssertionError("read again")

    monkeypatch.setitem(BUILTINS, "python_stdlib", replace(BUILTINS["python_stdlib"], read=again))
    assert build_corpus("code", source, CLEANING, Workers(1)).fingerprint == corpus.fingerprint
