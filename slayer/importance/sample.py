"""The text that layers are measured on, and whether there is enough of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slayer.data.preparation import PreparedText
from slayer.errors import ConfigError, DataError, Problem
from slayer.evaluation.heldout import build_heldout_set, choose_documents
from slayer.evaluation.scorer import prefix_token
from slayer.forward import PackedRows

LEAST_TOKENS = 1_000
"""With fewer the order of layers is chance: at 1,000 tokens a layer's loss without it is known to about 0.05 nats."""
LEAST_ROWS = 2
"""Errors are estimated over rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Packed rows of one source. `fingerprint` changes with the text and with how it is packed."""

    source: str
    role: str
    rows: PackedRows
    n_tokens: int
    n_documents: int
    fingerprint: str

    @property
    def facts(self) -> dict[str, Any]:
        """What the table says of it."""
        return {"kind": "text", "role": self.role, "tokens": self.n_tokens, "documents": self.n_documents, "hash": self.fingerprint}


def heldout_samples(text: PreparedText, sources: Sequence[str], tokenizer: Any, sample_tokens: int) -> list[Sample]:
    """Held-out documents of each source, whole ones, until `sample_tokens` are reached. `sources` empty: all.

    ConfigError for a source that is not there, DataError for one that holds out too little: it says how much is needed.
    """
    unknown = [name for name in sources if name not in text.data.sources]
    if unknown:
        known = list(text.data.sources)
        why = f"the text has no source {', '.join(unknown)}; it has {', '.join(known)}"
        raise ConfigError([Problem(key="analysis.sources", value=list(sources), why=why, fix=f"analysis.sources=[{known[0]}]")])
    samples = []
    for name in sources or text.data.sources:
        chosen = choose_documents(text.heldout_documents(name, tokenizer), sample_tokens)
        rows = build_heldout_set(name, chosen, prefix_token=prefix_token(tokenizer), row_tokens=text.data.sequence_length)
        sample = Sample(
            source=name, role=text.data.sources[name].role, rows=rows, n_tokens=int(rows.n_tokens.sum()), n_documents=len(chosen),
            fingerprint=rows.fingerprint,
        )  # fmt: skip
        _require_size(sample, text.data.sources[name].heldout_share)
        samples.append(sample)
    return samples


def sample_of(rows: PackedRows, source: str) -> Sample:
    """Rows that are already packed, as training sees them."""
    tokens = b"".join(tensor.cpu().numpy().tobytes() for tensor in (rows.input_ids_BL, rows.labels_BL, rows.documents_BL))
    pieces = sum(len(documents.unique()) for documents in rows.documents_BL)
    return Sample(
        source=source, role="mixture", rows=rows, n_tokens=int((rows.labels_BL != -100).sum()), n_documents=pieces,
        fingerprint=hashlib.sha256(f"{tuple(rows.input_ids_BL.shape)} ".encode() + tokens).hexdigest(),
    )  # fmt: skip


def _require_size(sample: Sample, heldout_share: float) -> None:
    n_rows = sample.rows.input_ids_BL.shape[0]
    if sample.n_tokens >= LEAST_TOKENS and n_rows >= LEAST_ROWS:
        return
    needed = max(LEAST_TOKENS, LEAST_ROWS * sample.rows.input_ids_BL.shape[1]) if n_rows < LEAST_ROWS else LEAST_TOKENS
    share = min(0.5, round(heldout_share * 2 * needed / max(sample.n_tokens, 1), 2))
    raise DataError(
        f"source {sample.source} holds out {sample.n_tokens} tokens in {sample.n_documents} documents, and measuring layers needs {needed}; "
        f"type data.sources.{sample.source}.heldout_share={share}, analysis.sample_tokens={2 * needed}, or leave it out with analysis.sources"
    )
