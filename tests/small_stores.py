"""Token stores in memory for tests of order: the documents are given, what the loader makes of them is what is tested."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryStore:
    """Documents as arrays of tokens."""

    documents: Sequence[NDArray[np.int32]]
    lengths: NDArray[np.int64]
    fingerprint: str

    def document_tokens(self, index: int) -> NDArray[np.int32]:
        return self.documents[index]


def memory_store(documents: Sequence[Sequence[int]]) -> MemoryStore:
    arrays = [np.array(document, dtype=np.int32) for document in documents]
    digest = hashlib.sha256(b"|".join(array.tobytes() for array in arrays)).hexdigest()
    return MemoryStore(documents=arrays, lengths=np.array([len(array) for array in arrays], dtype=np.int64), fingerprint=digest)


def text_store(texts: Sequence[str], tokenizer: Any) -> MemoryStore:
    """[BOS] + text + [EOS] of each text."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return memory_store([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encoded])


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticStore:
    """Any number of documents of which only the lengths are kept: document d is d, d + 1, d + 2, … modulo 30,000."""

    lengths: NDArray[np.int64]
    fingerprint: str

    def document_tokens(self, index: int) -> NDArray[np.int32]:
        return np.arange(index, index + self.lengths[index], dtype=np.int64).astype(np.int32) % 30_000
