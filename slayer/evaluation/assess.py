"""One model beside another, or alone: on held-out text, on benchmarks, and in what it predicts token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slayer.config import HeldoutConfig, SuiteConfig
from slayer.data.preparation import PreparedText
from slayer.data.storing.tokens import heldout_documents, tokenizer_hash
from slayer.evaluation.comparison import compare_tasks
from slayer.evaluation.forgetting import compare
from slayer.evaluation.harness.opening import decoder_of, open_lm
from slayer.evaluation.harness.scores import Scoring, score_folder
from slayer.evaluation.harness.tasks import LoadedTask
from slayer.evaluation.items import TaskScores
from slayer.evaluation.scorer import HeldoutScorer, Nats, Progress
from slayer.evaluation.shift import shift_problem, token_shift
from slayer.forward import load_model
from slayer.models import load_tokenizer
from slayer.surgery.plan import LayerPlan, load_plan

ALL_TOKENS = 1 << 62

Scores = dict[str, dict[str, TaskScores]]
"""By role (base, result) and task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to score: a Hugging Face folder and what it is called."""

    name: str
    folder: Path

    @property
    def plan(self) -> LayerPlan | None:
        """The layer plan of a model that this project expanded: it lies beside the weights."""
        path = self.folder / "plan.json"
        return load_plan(path) if path.exists() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How held-out text is scored; the same for both models."""

    heldout: HeldoutConfig
    precision: str
    micro_batch_rows: int
    device: Any


class HeldoutText:
    """The chosen held-out documents of a text, packed for each of two tokenizers (one and the same, most of the time)."""

    def __init__(self, text: PreparedText, folder: Path, base: Path | None, settings: Settings) -> None:
        tokenizer, row_tokens = load_tokenizer(folder), text.data.sequence_length
        self.settings, self.roles = settings, {name: source.role for name, source in text.data.sources.items()}
        documents = {name: text.heldout_documents(name, tokenizer) for name in text.data.sources}
        self.scorer = self.base_scorer = HeldoutScorer(documents, tokenizer, settings.heldout, row_tokens)
        base_tokenizer = load_tokenizer(base) if base is not None else tokenizer
        if tokenizer_hash(base_tokenizer) != tokenizer_hash(tokenizer):
            same = {name: heldout_documents(name, chosen, base_tokenizer) for name, chosen in self.scorer.documents.items()}
            everything = settings.heldout.model_copy(update={"tokens_per_source": ALL_TOKENS})
            self.base_scorer = HeldoutScorer(same, base_tokenizer, everything, row_tokens)

    @property
    def same_tokens(self) -> bool:
        """True when both models read the same token ids."""
        return self.scorer is self.base_scorer

    def table(self, result: Path, base: Path | None, on_progress: Progress | None = None) -> dict[str, Any]:
        """The `heldout` part of results.json, on the very same documents of the text."""
        before = self._score(self.base_scorer, base, "base", on_progress) if base is not None else None
        return compare(self.scorer.sets, self.roles, before, self._score(self.scorer, result, "checkpoint", on_progress))

    def _score(self, scorer: HeldoutScorer, folder: Path, label: str, on_progress: Progress | None) -> Nats:
        settings = self.settings
        return scorer.score_folder(
            folder, f"held-out text, {label}", precision=settings.precision, micro_batch_rows=settings.micro_batch_rows, device=settings.device,
            on_progress=on_progress,
        )  # fmt: skip


def assess_benchmarks(
    suite: SuiteConfig,
    tasks: Sequence[LoadedTask],
    result: Subject,
    base: Subject | None,
    scoring: Scoring,
    seed: int = 0,
    on_progress: Progress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], Scores]:
    """The `benchmarks` part of results.json, and the scores behind it by role (base, result) and task."""
    scores: Scores = {}
    scoring = _same_layers(scoring, result)
    for role, subject in (("base", base), ("result", result)):
        if subject is not None:
            opener = open_lm(subject.folder, subject.plan, scoring, on_note)
            scores[role] = score_folder(subject.folder, tasks, scoring, opener, subject.name, on_progress)
    facts = [one.facts for one in tasks]
    compared = compare_tasks(facts, scores.get("base"), scores["result"], seed)
    from lm_eval import __version__

    return {
        "suite": suite.name, "harness": __version__, "backend": scoring.backend, "precision": scoring.precision,
        "decoding": scoring.decoding.name, "chat_template": scoring.apply_chat_template, "seed": seed,
        "seconds": sum(one.seconds for one in scores["result"].values()),
        "base": base.name if base is not None else None, "result": result.name, **compared,
    }, scores  # fmt: skip


def assess_shift(
    text: HeldoutText, result: Subject, base: Subject, tokens_per_source: int, on_progress: Progress | None = None
) -> dict[str, Any] | None:
    """KL divergence to the base and the rank shift of greedy tokens, by source; None where the two models do not read the same tokens."""
    if not text.same_tokens:
        return None
    settings = text.settings
    models = [load_model(subject.folder, settings.precision, settings.device) for subject in (base, result)]
    if shift_problem(*models) is not None:
        return None
    shift: Mapping[str, Any] = token_shift(
        models[0], models[1], text.scorer.sets, tokens_per_source=tokens_per_source, micro_batch_rows=settings.micro_batch_rows,
        device=settings.device, on_progress=on_progress,
    )  # fmt: skip
    return {source: {"role": text.roles[source], **entry} for source, entry in shift.items()}


def _same_layers(scoring: Scoring, result: Subject) -> Scoring:
    """DoLa's candidates chosen once, by the result: what was pruned from it is no candidate in the base either."""
    decoder = decoder_of(result.folder, result.plan, scoring)
    if decoder is None:
        return scoring
    return replace(scoring, decoding=scoring.decoding.model_copy(update={"layers": list(decoder.base_layers)}))
