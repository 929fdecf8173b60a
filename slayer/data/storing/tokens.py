"""Tokens on disk: each corpus is tokenised once per (text, tokenizer) and memory-mapped by every run after that.

A document is [BOS, where the tokenizer has one] + text + [EOS], each of the two exactly once, whatever the tokenizer adds by itself: the
text is encoded without any special token, and a string such as "</s>" inside it stays ordinary text.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slayer.data.cache import cache_dir
from slayer.data.storing.chunks import Chunk, CorpusChunks
from slayer.data.storing.corpus import Corpus
from slayer.data.storing.parts import Facts, Progress, Workers, build_parts, damaged, is_whole, part_path, read_index
from slayer.errors import DataError

__all__ = ["Encoder", "HeldoutDocument", "Progress", "TokenStore", "encode", "heldout_documents", "start_token", "token_store", "tokenizer_hash"]

FORMAT = 3
"""Part of every key: raised when stores written before would be read wrongly."""

BATCH_TOKENS = 1 << 22
"""A record batch of the store ends behind the document that makes it so large."""

BATCH_DOCUMENTS = 1_000


class NamedText(Protocol):
    """A document, tokenised or not."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def text(self) -> str:
        """What it says."""


class Encoder:
    """A tokenizer's way from text to ids, and nothing else of it. Picklable; for a fast tokenizer a process that has one need not import
    transformers."""

    def __init__(self, state: str | None, whole: Any, bos: int | None, eos: int) -> None:
        self._state, self._whole = state, whole
        self.bos, self.eos = bos, eos

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        """The encoder of a transformers tokenizer; DataError when it has no EOS token."""
        eos = end_token(tokenizer)
        fast = bool(getattr(tokenizer, "is_fast", False))
        state = tokenizer.backend_tokenizer.to_str() if fast else None
        return cls(state, None if fast else tokenizer, start_token(tokenizer), eos)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fast"}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens and without reading any into it."""
        if self._state is None:
            return encode(self._whole, texts)
        return [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def _fast(self) -> Any:
        from tokenizers import Tokenizer

        assert self._state is not None
        fast = Tokenizer.from_str(self._state)
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = True
        return fast


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of everything in a tokenizer that decides which ids a text gets."""
    if getattr(tokenizer, "is_fast", False):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for passing in ("truncation", "padding"):  # set by whoever called the tokenizer last
            state.pop(passing, None)
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "options": repr(sorted(tokenizer.init_kwargs.items()))}
    whole = [state, tokenizer.bos_token_id, tokenizer.eos_token_id, start_token(tokenizer)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def start_token(tokenizer: Any) -> int | None:
    """What every document starts with: BOS, whether or not the tokenizer puts it there by itself; None where there is no BOS.

    Held-out text is scored behind BOS (lm-eval's rule), and a model should be trained the way it is scored: documents that
    start with their own first word leave it unlearnt, and leave the model without the token it attends to when lost.
    """
    return None if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)


def end_token(tokenizer: Any) -> int:
    """What every document ends with; DataError when the tokenizer has no EOS."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no EOS token, so documents cannot be told apart\n    set eos_token in the model's tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text by the tokenizer itself, without special tokens and without reading any into it."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


class TokenStore:
    """The tokens of every document of a corpus, memory-mapped: opening costs little, reading copies nothing."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self.fingerprint = folder.name
        self._values: list[NDArray[np.int32]] = []
        self._offsets: list[NDArray[np.int32]] = []
        self._sizes: list[NDArray[np.int64]] = []
        index = read_index(folder)
        try:
            for number, facts in enumerate(index):
                n_documents = sum(self._map(batch) for batch in _record_batches(part_path(folder, number)))
                if n_documents != facts["n_documents"]:
                    raise ValueError(f"{part_path(folder, number).name} holds {n_documents} documents instead of {facts['n_documents']}")
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise damaged(folder, error) from error
        self._first = [0, *accumulate(len(sizes) for sizes in self._sizes)]
        empty = np.empty(0, dtype=np.int64)
        self.lengths: NDArray[np.int64] = np.concatenate([empty, *(np.diff(offsets) for offsets in self._offsets)])

    def _map(self, batch: Any) -> int:
        tokens = batch.column("tokens")
        self._values.append(tokens.values.to_numpy(zero_copy_only=True))
        self._offsets.append(tokens.offsets.to_numpy(zero_copy_only=True))
        self._sizes.append(batch.column("n_bytes").to_numpy(zero_copy_only=True))
        return int(batch.num_rows)

    @property
    def n_documents(self) -> int:
        """Documents in the store."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Tokens in the store, BOS and EOS included."""
        return int(self.lengths.sum())

    @cached_property
    def sizes_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each document's text, int64 [n_documents]."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._sizes])

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(int(sizes.sum()) for sizes in self._sizes)

    def document_tokens(self, index: int) -> NDArray[np.int32]:
        """Tokens of one document, int32 [length], a read-only view of the file."""
        batch = bisect_right(self._first, index) - 1
        offsets, row = self._offsets[batch], index - self._first[batch]
        return self._values[batch][offsets[row] : offsets[row + 1]]


def token_store(corpus: Corpus, tokenizer: Any, *, label: str, workers: Workers, on_progress: Progress | None = None) -> TokenStore:
    """The tokens of every document of a corpus, in its order; made when they are not in the cache yet.

    DataError when the tokenizer has no EOS token or the stored files are damaged.
    """
    end_token(tokenizer)
    key = hashlib.sha256(f"{FORMAT}/{corpus.fingerprint}/{tokenizer_hash(tokenizer)}".encode()).hexdigest()[:32]
    folder = cache_dir() / "tokens" / key
    if is_whole(folder):
        if on_progress is not None:
            on_progress(label, corpus.n_documents, corpus.n_documents)
        return TokenStore(folder)
    chunks = corpus.batches()
    sizes_bytes, documents = [chunk.n_bytes for chunk in chunks], [chunk.n_documents for chunk in chunks]
    work = _TokenisePart(corpus.chunks, tuple(chunks), Encoder.of(tokenizer))
    build_parts(folder, work, sizes_bytes, label=label, workers=workers, on_progress=on_progress, documents=documents)
    return TokenStore(folder)


@dataclass(frozen=True, slots=True)
class _TokenisePart:
    """Work of build_parts: a chunk of a corpus → its tokens as an Arrow stream, the form of `datasets` (Dataset.from_file reads it)."""

    corpus: CorpusChunks
    chunks: tuple[Chunk, ...]
    encoder: Encoder

    def __call__(self, number: int, target: Path) -> Facts:
        import pyarrow as pa

        schema = pa.schema({"tokens": pa.list_(pa.int32()), "n_bytes": pa.int64()})
        n_documents = n_tokens = 0
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for lengths, values, sizes_bytes in _gathered(self._encoded(number)):
                offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
                columns = [pa.ListArray.from_arrays(offsets, pa.array(values)), pa.array(sizes_bytes)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                n_documents, n_tokens = n_documents + len(lengths), n_tokens + len(values)
        return {"n_documents": n_documents, "n_tokens": n_tokens}

    def _encoded(self, number: int) -> Iterator[_Tokens]:
        """Tokens of one record batch of the corpus after the other."""
        import pyarrow.compute as pc

        before = [] if self.encoder.bos is None else [self.encoder.bos]
        for batch in self.corpus.record_batches(self.chunks[number]):
            ids = [[*before, *one, self.encoder.eos] for one in self.encoder.encode(batch.column("text").to_pylist())]
            lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
            values = np.fromiter((one for document in ids for one in document), dtype=np.int32, count=int(lengths.sum()))
            yield lengths, values, pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False)


_Tokens = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]
"""(tokens of each document, all their tokens, UTF-8 bytes of each text)"""


def _gathered(batches: Iterable[_Tokens]) -> Iterator[_Tokens]:
    """The same in pieces of about BATCH_TOKENS."""
    few: list[_Tokens] = []
    for batch in batches:
        few.append(batch)
        if sum(len(values) for _, values, _ in few) >= BATCH_TOKENS:
            yield _joined(few)
            few = []
    if few:
        yield _joined(few)


def _joined(few: Sequence[_Tokens]) -> _Tokens:
    lengths, values, sizes_bytes = zip(*few, strict=True)
    return np.concatenate(lengths), np.concatenate(values), np.concatenate(sizes_bytes)


def _record_batches(path: Path) -> Iterator[Any]:
    """The batches of an Arrow stream, mapped. They outlive the file's descriptor, of which there are only so many."""
    import pyarrow as pa

    with closing(pa.memory_map(str(path))) as mapped:
        yield from pa.ipc.open_stream(mapped)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldoutDocument:
    """A document that is only ever evaluated. `tokens` are its text's alone (no BOS, no EOS); `n_bytes` its UTF-8 length."""

    source: str
    id: str
    text: str
    tokens: NDArray[np.int32]
    n_bytes: int


def heldout_documents(source: str, documents: Sequence[NamedText], tokenizer: Any) -> list[HeldoutDocument]:
    """Held-out documents with their tokens, in their order; one without any token is left out."""
    ids = [one for start in range(0, len(documents), BATCH_DOCUMENTS) for one in _encode_batch(tokenizer, documents, start)]
    return [
        HeldoutDocument(source=source, id=doc.id, text=doc.text, tokens=np.array(tokens, dtype=np.int32), n_bytes=len(doc.text.encode()))
        for doc, tokens in zip(documents, ids, strict=True)
        if tokens
    ]


def _encode_batch(tokenizer: Any, documents: Sequence[NamedText], start: int) -> list[list[int]]:
    return encode(tokenizer, [document.text for document in documents[start : start + BATCH_DOCUMENTS]])
