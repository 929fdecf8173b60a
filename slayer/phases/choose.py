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
from slayer.surgery.plan import LayerScores

BY_PLACE = ("last", "last_but_final", "explicit")


def plan_chooser(run: Run, on_progress: Callable[[str, int, int], None] | None) -> Chooser:
    """The base, ready to be measured on the first rows of the training mixture: what is measured must serve domain and replay alike."""
    tokens, config = run.config.score_tokens, run.config
    analysis = LayerAnalysis(
        run.base, None, AnalysisConfig(name="layers"), precision=config.engine.precision, device=run.ranks.device,
        micro_batch_rows=run.micro_batch_rows, seed=config.seed, on_progress=on_progress,
    )  # fmt: skip
    first = tokens // FIRST_LOOK_SHARE
    return chooser(analysis, run.sample_rows(first), run.sample_rows(tokens - first, skip_tokens=first), run.sample_rows(tokens))


def prune_scores(run: Run) -> LayerScores | None:
    """What chooses the pruned layers; None where their place does, or none is pruned."""
    if run.config.prune == 0 or run.config.prune_by in BY_PLACE:
        return None
    with progress_bar("layers", run.console) as on_progress:
        return plan_chooser(run, on_progress).scores(run.config.prune_by, run.config.prune)


def expansion_scores(run: Run) -> LayerScores | None:
    """What chooses the places of the new blocks; None where a rule does."""
    expansion = run.config.expansion
    if expansion.strategy not in ("least_important", "most_important"):
        return None
    n_base: int = read_model_config(run.base)["num_hidden_layers"]
    with progress_bar("layers", run.console) as on_progress:
        found = plan_chooser(run, on_progress)
        return found.scores(expansion.score or "removal", scored_count(expansion, n_base), most=expansion.strategy == "most_important")
