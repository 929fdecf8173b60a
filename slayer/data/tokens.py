"""Tokens on disk: each source is tokenised once per (text, tokenizer, settings) and memory-mapped by every run after that.

A training document is [BOS, where the tokenizer has one] + text + [EOS], each of the two exactly once, whatever the tokenizer adds by
itself: the text is encoded without any special token, and a string such as "</s>" inside it stays ordinary text.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.data.cache import cache_dir, written_aside
from slayer.data.document import Document
from slayer.errors import DataError

FORMAT = 2
"""Part of every key: raised when stores written before would be read wrongly."""

BATCH_DOCUMENTS = 1_000

Progress = Callable[[str, int, int], None]
"""(label, documents done, documents in all)"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldoutDocument:
    """A document that is only ever evaluated. `tokens` are its text's alone (no BOS, no EOS); `n_bytes` its UTF-8 length."""

    source: str
    id: str
    text: str
    tokens: NDArray[np.int32]
    n_bytes: int


class TokenStore:
    """The tokenised training documents of one source, memory-mapped: opening costs nothing, reading copies nothing."""

    def __init__(self, folder: Path) -> None:
        import datasets
        import pyarrow as pa

        try:
            table = datasets.load_from_disk(str(folder), keep_in_memory=False).data.table
            chunks = table.column("tokens").chunks
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
            raise DataError(f"the token store {folder} is damaged ({error})\n    type: rm -r {folder}   (it is made again)") from error
        self.fingerprint = folder.name
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._first = [0, *accumulate(len(chunk) for chunk in chunks)]
        self.lengths: NDArray[np.int64] = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int64)
        self.n_bytes: int = int(table.column("n_bytes").to_numpy().sum())

    @property
    def n_documents(self) -> int:
        """Documents in the store."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Tokens in the store, BOS and EOS included."""
        return int(self.lengths.sum())

    def document_tokens(self, index: int) -> NDArray[np.int32]:
        """Tokens of one document, a read-only view of the file."""
        chunk = bisect_right(self._first, index) - 1
        offsets, row = self._offsets[chunk], index - self._first[chunk]
        view: NDArray[np.int32] = self._values[chunk][offsets[row] : offsets[row + 1]]
        return view


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


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without special tokens and without reading any into it."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def token_store(documents: Sequence[Document], tokenizer: Any, *, label: str, on_progress: Progress | None = None) -> TokenStore:
    """The store of these documents, in their order; made when it is not in the cache yet.

    Two processes may build the same store at once: each writes aside, the first rename wins. DataError when the tokenizer has
    no EOS token or the stored files are damaged.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no EOS token, so documents cannot be told apart\n    set eos_token in the model's tokenizer_config.json")
    key = _store_key(documents, tokenizer)
    folder = cache_dir() / "tokens" / key
    if not folder.is_dir():
        with written_aside(folder) as scratch:
            _write(scratch, key, documents, tokenizer, label, on_progress)
    elif on_progress is not None:
        on_progress(label, len(documents), len(documents))
    return TokenStore(folder)


def heldout_documents(source: str, documents: Sequence[Document], tokenizer: Any) -> list[HeldoutDocument]:
    """Held-out documents with their tokens, in their order; one without any token is left out."""
    ids = [one for start in range(0, len(documents), BATCH_DOCUMENTS) for one in _encode_batch(tokenizer, documents, start)]
    return [
        HeldoutDocument(source=source, id=doc.id, text=doc.text, tokens=np.array(tokens, dtype=np.int32), n_bytes=len(doc.text.encode()))
        for doc, tokens in zip(documents, ids, strict=True)
        if tokens
    ]


def content_hash(documents: Sequence[Document]) -> str:
    """SHA-256 of the texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        text = document.text.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _store_key(documents: Sequence[Document], tokenizer: Any) -> str:
    parts = f"{FORMAT}/{content_hash(documents)}/{tokenizer_hash(tokenizer)}"
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _encode_batch(tokenizer: Any, documents: Sequence[Document], start: int) -> list[list[int]]:
    return encode(tokenizer, [document.text for document in documents[start : start + BATCH_DOCUMENTS]])


def _write(folder: Path, key: str, documents: Sequence[Document], tokenizer: Any, label: str, on_progress: Progress | None) -> None:
    import datasets
    import pyarrow as pa

    schema = pa.schema({"tokens": pa.list_(pa.int32()), "n_bytes": pa.int64()})
    start = start_token(tokenizer)
    before = [] if start is None else [start]

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, len(documents), BATCH_DOCUMENTS):
            ids = [[*before, *one, tokenizer.eos_token_id] for one in _encode_batch(tokenizer, documents, first)]
            sizes = [len(document.text.encode()) for document in documents[first : first + BATCH_DOCUMENTS]]
            yield pa.record_batch([pa.array(ids, pa.list_(pa.int32())), pa.array(sizes, pa.int64())], schema=schema)
            if on_progress is not None:
                on_progress(label, min(first + BATCH_DOCUMENTS, len(documents)), len(documents))

    table = pa.Table.from_batches(batches(), schema=schema)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint=key).save_to_disk(str(folder))
    finally:
        if shown:
            datasets.enable_progress_bars()
