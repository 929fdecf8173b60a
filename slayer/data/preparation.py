"""All text of a configuration, read, cleaned and split: what training and evaluation draw from. Everything found is kept in the cache.

Sources that are streamed are only described here; they are read while training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from slayer.config import CleaningConfig, DataConfig, SourceConfig
from slayer.data.benchmarks import benchmark_items
from slayer.data.cleaning.contamination import index_file, open_index
from slayer.data.cleaning.screening import build_screen, screen_texts
from slayer.data.cleaning.selection import Selection, select
from slayer.data.document import Document
from slayer.data.order.loader import IndexedSource, LoadedSource, Loader, StreamedSource, build_loader
from slayer.data.order.stream import Screen, Stream, heldout_of
from slayer.data.reading.files import matched_files
from slayer.data.reading.shards import Shard, open_shards
from slayer.data.storing.corpus import Corpus, build_corpus
from slayer.data.storing.parts import Workers
from slayer.data.storing.tokens import HeldoutDocument, Progress, heldout_documents, token_store

HELDOUT_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedText:
    """Indexed sources have a corpus and a selection of its documents, streamed ones their shards."""

    data: DataConfig
    corpora: Mapping[str, Corpus]
    selections: Mapping[str, Selection]
    shards: Mapping[str, Sequence[Shard]]

    def heldout(self, name: str) -> Iterator[Document]:
        """Held-out documents of a source, in an order fixed by a hash of their names: a longer sample begins with the shorter one."""
        if name in self.shards:
            yield from heldout_of(self.shards[name], self.data.sources[name].heldout_share, _screen(self.data.cleaning))
            return
        corpus = self.corpora[name]
        indices = self.selections[name].heldout
        names = corpus.ids(indices)
        for place in sorted(range(len(names)), key=lambda number: hashlib.sha256(names[number].encode()).digest()):
            yield corpus.document(int(indices[place]))

    def heldout_documents(self, name: str, tokenizer: Any) -> Iterator[HeldoutDocument]:
        """The same, tokenised a few at a time as they are asked for."""
        documents = self.heldout(name)
        while few := list(islice(documents, HELDOUT_BATCH)):
            yield from heldout_documents(name, few, tokenizer)


def prepare_text(data: DataConfig, workers: Workers, *, on_progress: Progress | None = None) -> PreparedText:
    """Read, clean and split every source that is not streamed.

    Raises SourceError (a DataError that names key and override) for text that is missing, too often unreadable, or of which
    nothing is left; AssetError for an asset that was not fetched.
    """
    indexed = {name: source for name, source in data.sources.items() if not source.stream}
    corpora = {name: build_corpus(name, source, data.cleaning, workers, on_progress) for name, source in indexed.items()}
    items = benchmark_items(data.cleaning.decontaminate)
    screens = {
        name: build_screen(corpus, data.cleaning, items, label=f"{name}: cleaning", workers=workers, on_progress=on_progress)
        for name, corpus in corpora.items()
    }
    shards = {name: open_shards(name, source, data.cleaning) for name, source in data.sources.items() if source.stream}
    return PreparedText(data=data, corpora=corpora, selections=select(data, corpora, screens, on_progress), shards=shards)


def _screen(cleaning: CleaningConfig) -> Screen:
    """Why a text by itself is left out: what is asked of texts that are streamed."""
    items = benchmark_items(cleaning.decontaminate)
    index = open_index(index_file(items)) if items else None
    return lambda texts: screen_texts(texts, index).measures.reasons(cleaning)


def _stream_identity(name: str, source: SourceConfig) -> dict[str, Any]:
    """What is known of a streamed text without reading it: names and sizes of files, or the revision at the hub."""
    files = {file.shown: f"{file.size_bytes} bytes" for file in matched_files(name, source)} if source.path is not None else None
    return {"origin": origin(source), "files": files}


def origin(source: SourceConfig) -> str:
    """Where the text of a source comes from, in words."""
    if source.hub is not None:
        return f"hub {source.hub} @ {source.revision}"
    return f"built-in {source.builtin}" if source.builtin is not None else f"path {source.path}"


def open_loader(text: PreparedText, tokenizer: Any, workers: Workers, *, seed: int, batch_rows: int, on_progress: Progress | None = None) -> Loader:
    """Tokenise (or open the cached tokens of) and pack every source; the streamed ones are opened at their beginning."""
    sources: list[LoadedSource] = []
    for name, config in text.data.sources.items():
        if config.stream:
            stream = Stream(text.shards[name], tokenizer, text.data, name, seed=seed, screen=_screen(text.data.cleaning))
            sources.append(StreamedSource(name=name, role=config.role, stream=stream, identity=_stream_identity(name, config)))
            continue
        corpus = text.corpora[name]
        store = token_store(corpus, tokenizer, label=f"{name}: tokenising", workers=workers, on_progress=on_progress)
        identity = {"origin": origin(config), "files": corpus.files}
        sources.append(IndexedSource(name=name, role=config.role, store=store, documents=text.selections[name].train, identity=identity))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return build_loader(sources, text.data, seed=seed, batch_rows=batch_rows, pad_id=pad_id)
