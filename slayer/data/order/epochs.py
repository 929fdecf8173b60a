"""What a run uses of each source, how often it reads it, and what to type when that is too often."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from slayer.config import DataConfig
from slayer.errors import DataError


def highest_step(fits: Callable[[int], bool], limit: int = 1 << 40) -> int:
    """The largest number of steps up to `limit` that fits, where fewer steps fit too; 0 when not even one does."""
    low, high = 0, 1
    while high < limit and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What one source holds and how much of it a run uses; None where that is not known of a streamed one.

    `share` is asked, of trained tokens in the first stage; `planned_share` is expected over the run. `labels` are the places that
    carry a loss. `fill` and `labels_per_row` of a streamed source are those of its first window.
    """

    name: str
    role: Literal["domain", "replay"]
    streamed: bool
    train_documents: int | None
    train_tokens: int | None
    labels: int | None
    rows: int | None
    labels_per_row: float
    fill: float
    cut_documents: int | None
    needless_cuts: int | None
    share: float
    planned_share: float
    epochs: float | None
    max_epochs: float | None
    cannot_promise: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """How often a run reads one source, and how many tokens it may be long so that `limit` is kept."""

    name: str
    role: Literal["domain", "replay"]
    epochs: float
    limit: float
    fitting_tokens: int


def refuse_too_many_epochs(repetitions: list[Repetition], data: DataConfig) -> None:
    """DataError that names every source read more often than its max_epochs, and what mends it. `limit` is that cap."""
    sentences = []
    for repetition in repetitions:
        key = f"data.sources.{repetition.name}.max_epochs"
        fixes = [f"train.max_tokens={repetition.fitting_tokens}"] if repetition.fitting_tokens else []
        fixes += [f"{key}={math.ceil(repetition.epochs * 10) / 10:g}", *_smaller_share(repetition, data)]
        sentences.append(
            f"{key}={repetition.limit:g}, but this run would read {repetition.name} {repetition.epochs:.2f} times\n    type: {', or '.join(fixes)}"
        )
    if sentences:
        raise DataError("\n".join(sentences))


def _smaller_share(repetition: Repetition, data: DataConfig) -> list[str]:
    """The override that gives a source just as many tokens as its cap allows; none where stages set the shares or nothing could fill in."""
    if data.stages:
        return []
    weights: Mapping[str, float] = {name: source.weight for name, source in data.sources.items() if source.role == repetition.role}
    others = sum(weights.values()) - weights[repetition.name]
    factor = repetition.limit / repetition.epochs
    if others:
        share = weights[repetition.name] / (weights[repetition.name] + others) * factor
        return [f"data.sources.{repetition.name}.weight={_rounded_down(others * share / (1 - share))}"]
    return [f"data.replay={_rounded_down(data.replay * factor)}"] if repetition.role == "replay" else []


def _rounded_down(value: float) -> str:
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.floor(value / unit) * unit:.2g}"


def warnings_of_epochs(repetitions: list[Repetition]) -> list[str]:
    """One sentence for each source that is read more often than `limit`, data.warn_epochs (Muennighoff et al. 2023, arXiv 2305.16264)."""
    sentences = []
    for repetition in repetitions:
        fits = f" (up to train.max_tokens={repetition.fitting_tokens})" if repetition.fitting_tokens else ""
        sentences.append(
            f"{repetition.name} is read {repetition.epochs:.1f} times, more than data.warn_epochs={repetition.limit:g}: text teaches less each "
            f"time it comes again; add text, give it a smaller share, or train shorter{fits}"
        )
    return sentences
