"""What a run's models needed for each held-out document: what runs are compared by, document by document.

Kept in items/heldout.jsonl of the run folder, a line per document, in the order in which it was scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slayer.data.cache import write_file
from slayer.evaluation.heldout import HeldoutDocument

Nats = Mapping[str, NDArray[np.float64]]

FILE_NAME = "items/heldout.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceDocuments:
    """The held-out documents of one source: names, UTF-8 bytes and a result's total nats of each, [documents]."""

    role: str
    ids: tuple[str, ...]
    n_bytes: NDArray[np.int64]
    nats: NDArray[np.float64]

    def is_same_text(self, other: SourceDocuments) -> bool:
        """The same documents, in the same order: what a paired comparison needs."""
        return self.role == other.role and self.ids == other.ids and np.array_equal(self.n_bytes, other.n_bytes)


def write_document_scores(
    folder: Path, documents: Mapping[str, Sequence[HeldoutDocument]], roles: Mapping[str, str], scores: Mapping[str, Nats]
) -> None:
    """items/heldout.jsonl of a run folder. `scores` maps a role of a model (base, start, result) to nats by source and document."""
    lines = [
        json.dumps(
            {"source": source, "role": roles[source], "document": document.id, "bytes": document.n_bytes}
            | {model: float(nats[source][place]) for model, nats in scores.items()},
            ensure_ascii=False,
        )
        for source, chosen in documents.items()
        for place, document in enumerate(chosen)
    ]
    write_file(folder / FILE_NAME, ("\n".join(lines) + "\n").encode())


def read_document_scores(folder: Path) -> dict[str, SourceDocuments] | None:
    """The result of a run on the documents of each source; None where the run has not written them, or not whole."""
    found: dict[str, list[tuple[str, str, int, float]]] = {}
    try:
        for line in (folder / FILE_NAME).read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            found.setdefault(str(one["source"]), []).append((str(one["role"]), str(one["document"]), int(one["bytes"]), float(one["result"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {
        source: SourceDocuments(
            role=rows[0][0], ids=tuple(row[1] for row in rows), n_bytes=np.array([row[2] for row in rows], np.int64),
            nats=np.array([row[3] for row in rows], np.float64),
        )
        for source, rows in found.items()
    }  # fmt: skip
