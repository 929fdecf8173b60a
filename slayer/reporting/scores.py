"""Held-out scores of a run: one per source, and what learning and forgetting come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slayer.reporting.numbers import fixed, interval, percent

Role = Literal["domain", "replay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScore:
    """Bits per byte on one source's held-out text; lower is better. A score that was not taken is None."""

    source: str
    role: Role
    base: float | None
    start: float | None
    result: float | None
    base_interval: tuple[float, float] | None
    result_interval: tuple[float, float] | None
    change_percent: float | None
    change_interval_percent: tuple[float, float] | None
    verdict: str
    documents: int | None
    bytes: int | None


def source_scores(results: Mapping[str, Any]) -> list[SourceScore]:
    """The scores of results.json, domain sources first."""
    heldout = results.get("heldout")
    if not isinstance(heldout, dict):
        return []
    scores = [_score(source, values) for source, values in heldout.items() if isinstance(values, dict)]
    return sorted(scores, key=lambda score: score.role != "domain")


def _score(source: str, values: Mapping[str, Any]) -> SourceScore:
    return SourceScore(
        source=source, role="replay" if values.get("role") == "replay" else "domain", base=values.get("base"),
        start=values.get("start"), result=values.get("result"), base_interval=_pair(values.get("base_interval")),
        result_interval=_pair(values.get("result_interval")), change_percent=values.get("change_percent"),
        change_interval_percent=_pair(values.get("change_interval_percent")), verdict=str(values.get("verdict") or ""),
        documents=values.get("documents"), bytes=values.get("bytes"),
    )  # fmt: skip


def _pair(value: Any) -> tuple[float, float] | None:
    return (float(value[0]), float(value[1])) if isinstance(value, (list, tuple)) and len(value) == 2 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChange:
    """Mean change over the sources of one role, in percent of the base's bits per byte; negative is better.

    The interval is known only where the role has a single source: those of several sources do not simply add.
    """

    role: Role
    percent: float
    interval_percent: tuple[float, float] | None


def role_change(scores: list[SourceScore], role: Role) -> RoleChange | None:
    """What became of a role's sources together, None when nothing was scored."""
    chosen = [score for score in scores if score.role == role and score.change_percent is not None]
    changes = [score.change_percent for score in chosen if score.change_percent is not None]
    if not changes:
        return None
    bounds = chosen[0].change_interval_percent if len(chosen) == 1 else None
    return RoleChange(role=role, percent=sum(changes) / len(changes), interval_percent=bounds)


def verdict_sentence(score: SourceScore) -> str:
    """One sentence for a person who has never heard of bits per byte."""
    change, bounds = score.change_percent, score.change_interval_percent
    if change is None:
        if score.base is not None:
            return f"{score.source}: the base model scores {fixed(score.base)} bits per byte; the result was not scored."
        return f"{score.source} was not scored."
    if score.verdict == "no change detected":
        span = f" (95 % interval {interval(bounds, unit=' %', signed=True)})" if bounds else ""
        return f"No change detected on unseen {score.source} text: {percent(change)}{span} is within the noise."
    direction = -1 if change < 0 else 1
    sizes = sorted(direction * bound for bound in bounds) if bounds else None
    span = f" (95 % interval {interval(sizes, unit=' %')})" if sizes else ""
    better, fewer = ("better", "fewer") if change < 0 else ("worse", "more")
    size = percent(abs(change), signed=False)
    return f"The model now predicts unseen {score.source} text {better} than its base: it needs {size} {fewer} bits per byte{span}."


def proof_sentences(proof: Mapping[str, Any]) -> list[str]:
    """What was measured between the base and the model before training."""
    sentences = []
    difference, jump = proof.get("identity_max_difference"), proof.get("loss_jump")
    if difference is not None:
        verdict = "the new blocks start as an exact identity" if difference == 0 else "the new blocks do not start as an identity"
        number = "0 exactly" if difference == 0 else f"{difference:.3g}"
        sentences.append(f"Max logit difference to the base after insertion: {number} ({verdict}).")
    if jump is not None:
        losses = f"{fixed(proof.get('base_loss'), 2)} → {fixed(proof.get('start_loss'), 2)} nats per token"
        on = f" on {proof['sample_tokens']:,} tokens" if isinstance(proof.get("sample_tokens"), int) else ""
        sign = "+" if jump >= 0 else ""
        sentences.append(f"Loss before training: {losses} ({sign}{fixed(jump, 2)}){on}; training starts from there.")
    return sentences
