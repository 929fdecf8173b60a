"""What is known of the text of a run, as plain data for tables and pages."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.data.benchmarks import ALL, BENCHMARKS, benchmark_items
from slayer.data.cleaning.contamination import index_file, open_index
from slayer.data.order.loader import Loader
from slayer.data.order.sample import SampleRow
from slayer.data.preparation import PreparedText, origin

SAMPLE_ROWS = 2
"""Rows of each source that a report shows as text."""
SEARCHED_ROWS = 4_096
"""Among so many rows at the beginning of the run they are looked for."""
PIECE_CHARACTERS = 700
SHOWN_BAD = 20


def text_facts(text: PreparedText, loader: Loader, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Everything a report of the data shows, JSON-able; shares, epochs and warnings are those of so many steps."""
    data = text.data
    items = benchmark_items(data.cleaning.decontaminate)
    names = list(BENCHMARKS) if ALL in data.cleaning.decontaminate else list(data.cleaning.decontaminate)
    return {
        "name": data.name, "sequence_length": data.sequence_length, "packing": data.packing, "batch_rows": loader.batch_rows, "steps": steps,
        "tokens": int(loader.schedule.expected_tokens(steps * loader.batch_rows).sum()), "fingerprint": loader.fingerprint,
        "sources": _sources(text, loader, steps),
        "stages": [
            {"from_tokens": stage.from_tokens, "from_step": stage.from_step, "shares": {name: float(one) for name, one in stage.token_shares.items()}}
            for stage in loader.schedule.stages
        ],
        "warn_epochs": data.warn_epochs, "warnings": loader.warnings(steps), "cleaning": data.cleaning.model_dump(), "benchmarks": names,
        "undecidable_items": open_index(index_file(items)).n_undecidable if items else 0,
        "removed": [
            {
                "source": name, "reason": removal.reason, "documents": removal.documents, "bytes": removal.n_bytes,
                "examples": [asdict(example) for example in removal.examples],
            }
            for name, selection in text.selections.items()
            for removal in selection.removed
        ],
        "quarantine": [
            {
                "source": name, "records": corpus.n_records, "bad": corpus.n_bad, "limit": data.cleaning.max_bad_share,
                "examples": [asdict(record) for record in corpus.bad[:SHOWN_BAD]],
            }
            for name, corpus in text.corpora.items()
        ],
        "samples": _samples(text, loader, tokenizer, steps),
    }  # fmt: skip


def _sources(text: PreparedText, loader: Loader, steps: int) -> list[dict[str, Any]]:
    found = []
    for report in loader.report(steps):
        entry = {**asdict(report), "origin": origin(text.data.sources[report.name])}
        if report.name in text.corpora:
            corpus, selection = text.corpora[report.name], text.selections[report.name]
            entry |= {
                "read_documents": corpus.n_documents, "read_bytes": corpus.n_bytes, "heldout_documents": len(selection.heldout),
                "train_bytes": selection.train_bytes, "lengths": histogram(loader.document_lengths(report.name)),
            }  # fmt: skip
        found.append(entry)
    return found


def histogram(lengths_tokens: NDArray[np.int64]) -> dict[str, list[int]]:
    """Documents by length, in bins of half a power of two: {"edges_tokens": [n + 1], "documents": [n]}."""
    if not len(lengths_tokens):
        return {"edges_tokens": [], "documents": []}
    highest = int(np.ceil(2 * np.log2(max(int(lengths_tokens.max()), 2) + 1)))
    edges = np.unique(np.round(2 ** (np.arange(highest + 1) / 2)).astype(np.int64))
    counts, _ = np.histogram(lengths_tokens, bins=edges)
    first = int(np.flatnonzero(counts)[0])
    return {"edges_tokens": edges[first:].tolist(), "documents": counts[first:].tolist()}


def _samples(text: PreparedText, loader: Loader, tokenizer: Any, steps: int) -> list[dict[str, Any]]:
    """The first rows of each source that the run trains on, as text."""
    rows = np.arange(min(steps * loader.batch_rows, SEARCHED_ROWS), dtype=np.int64)
    sources = loader.schedule.source_of(rows)
    chosen = [int(row) for number in range(len(loader.source_names)) for row in rows[sources == number][:SAMPLE_ROWS]]
    return [_sample(text, loader.sample_row(row), tokenizer) for row in chosen]


def _sample(text: PreparedText, sample: SampleRow, tokenizer: Any) -> dict[str, Any]:
    pieces = []
    for piece in sample.pieces:
        document = piece.document_id if piece.document is None else text.corpora[sample.source].ids(np.array([piece.document]))[0]
        shown = tokenizer.decode(piece.tokens.tolist(), skip_special_tokens=False)
        if len(shown) > PIECE_CHARACTERS:
            shown = f"{shown[: PIECE_CHARACTERS // 2]} […] {shown[-PIECE_CHARACTERS // 2 :]}"
        pieces.append({"text": shown, "document": document, "starts": piece.starts, "ends": piece.ends, "tokens": len(piece.tokens)})
    return {"source": sample.source, "row": sample.row, "pieces": pieces}
