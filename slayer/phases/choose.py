"""Which layers of the base a run prunes, and behind which it expands, where a score is to decide; measured once per model and text."""

from __future__ import annotations

from collections.abc import Callable

from slayer.config import AnalysisConfig
from slayer.importance.analysis import LayerAnalysis
from slayer.importance.choosing import FIRST_LOOK_SHARE, Chooser, chooser
from slayer.phases.run import Run
from slayer.reporting.progress import progress_bar
from slayer.surgery.families import read_model_config
from slayer.surgery.placement import scored_count
from slayer.surgery.plan import BY_PLACE, LayerScores


def plan_scores(run: Run) -> tuple[LayerScores | None, LayerScores | None]:
    """What chooses the pruned layers, and what the places of the new blocks; None where a rule does."""
    config, prune_scores, expansion_scores = run.config, None, None
    prunes = config.prune > 0 and config.prune_by not in BY_PLACE
    expands = config.expansion.strategy in ("least_important", "most_important")
    if not prunes and not expands:
        return None, None
    with progress_bar("layers", run.console) as on_progress:
        base = plan_chooser(run, on_progress)
        if prunes:
            prune_scores = base.scores(config.prune_by, config.prune, to_prune=True)
        if expands:
            count = scored_count(config.expansion, read_model_config(run.base)["num_hidden_layers"])
            expansion_scores = base.scores(config.expansion.score or "removal", count, most=config.expansion.strategy == "most_important")
    return prune_scores, expansion_scores


def plan_chooser(run: Run, on_progress: Callable[[str, int, int], None] | None) -> Chooser:
    """The base, ready to be measured on the first rows of the training mixture: what is measured must serve domain and replay alike."""
    tokens, config = run.config.score_tokens, run.config
    analysis = LayerAnalysis(
        run.base, None, AnalysisConfig(name="layers"), precision=config.engine.precision, device=run.ranks.device,
        micro_batch_rows=run.micro_batch_rows, seed=config.seed, on_progress=on_progress,
    )  # fmt: skip
    first = tokens // FIRST_LOOK_SHARE
    return chooser(analysis, run.sample_rows(first), run.sample_rows(tokens - first, skip_tokens=first), run.sample_rows(tokens))
