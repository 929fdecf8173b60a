"""Scores one model beside another on held-out text, each through its own tokenizer: bits per byte need no common one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.config import DataConfig, HeldoutConfig
from slayer.data.document import Document
from slayer.data.sources import read_source
from slayer.data.tokens import heldout_documents, tokenizer_hash
from slayer.evaluation.forgetting import compare
from slayer.evaluation.scorer import HeldoutScorer, Nats, Progress

ALL_TOKENS = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How held-out text is scored; the same for both models."""

    data: DataConfig
    heldout: HeldoutConfig
    precision: str
    micro_batch_rows: int
    device: Any


def assess(result: Path, base: Path, settings: Settings, on_progress: Progress | None = None) -> dict[str, Any]:
    """The `heldout` part of results.json for two model folders, on the very same documents."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result, local_files_only=True)
    base_tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    texts = {name: read_source(name, source).heldout for name, source in settings.data.sources.items()}
    scorer = _scorer(texts, tokenizer, settings, settings.heldout)
    base_scorer = scorer
    if tokenizer_hash(base_tokenizer) != tokenizer_hash(tokenizer):
        chosen = {name: {document.id for document in documents} for name, documents in scorer.documents.items()}
        same = {name: [document for document in documents if document.id in chosen[name]] for name, documents in texts.items()}
        base_scorer = _scorer(same, base_tokenizer, settings, settings.heldout.model_copy(update={"tokens_per_source": ALL_TOKENS}))
    roles = {name: source.role for name, source in settings.data.sources.items()}
    before = _score(base_scorer, base, "base", settings, on_progress)
    after = _score(scorer, result, "checkpoint", settings, on_progress)
    return compare(scorer.sets, roles, before, after)


def _scorer(texts: Mapping[str, list[Document]], tokenizer: Any, settings: Settings, heldout: HeldoutConfig) -> HeldoutScorer:
    documents = {name: heldout_documents(name, listed, tokenizer) for name, listed in texts.items()}
    return HeldoutScorer(documents, tokenizer, heldout, settings.data.sequence_length)


def _score(scorer: HeldoutScorer, folder: Path, label: str, settings: Settings, on_progress: Progress | None) -> Nats:
    return scorer.score_folder(
        folder, f"held-out text, {label}", precision=settings.precision, micro_batch_rows=settings.micro_batch_rows, device=settings.device,
        on_progress=on_progress,
    )  # fmt: skip
