"""Scores one model beside another on held-out text, each through its own tokenizer: bits per byte need no common one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.config import HeldoutConfig
from slayer.data.preparation import PreparedText
from slayer.data.storing.tokens import heldout_documents, tokenizer_hash
from slayer.evaluation.forgetting import compare
from slayer.evaluation.scorer import HeldoutScorer, Nats, Progress

ALL_TOKENS = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How held-out text is scored; the same for both models."""

    heldout: HeldoutConfig
    precision: str
    micro_batch_rows: int
    device: Any


def assess(result: Path, base: Path, text: PreparedText, settings: Settings, on_progress: Progress | None = None) -> dict[str, Any]:
    """The `heldout` part of results.json for two model folders, on the very same documents of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result, local_files_only=True)
    base_tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    sources, row_tokens = text.data.sources, text.data.sequence_length
    documents = {name: text.heldout_documents(name, tokenizer) for name in sources}
    scorer = HeldoutScorer(documents, tokenizer, settings.heldout, row_tokens)
    base_scorer = scorer
    if tokenizer_hash(base_tokenizer) != tokenizer_hash(tokenizer):
        same = {name: heldout_documents(name, chosen, base_tokenizer) for name, chosen in scorer.documents.items()}
        everything = settings.heldout.model_copy(update={"tokens_per_source": ALL_TOKENS})
        base_scorer = HeldoutScorer(same, base_tokenizer, everything, row_tokens)
    roles = {name: source.role for name, source in sources.items()}
    before = _score(base_scorer, base, "base", settings, on_progress)
    after = _score(scorer, result, "checkpoint", settings, on_progress)
    return compare(scorer.sets, roles, before, after)


def _score(scorer: HeldoutScorer, folder: Path, label: str, settings: Settings, on_progress: Progress | None) -> Nats:
    return scorer.score_folder(
        folder, f"held-out text, {label}", precision=settings.precision, micro_batch_rows=settings.micro_batch_rows, device=settings.device,
        on_progress=on_progress,
    )  # fmt: skip
