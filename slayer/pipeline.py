"""A run, from configuration to report: plan → build → prove → train → export → compare → report.

The first rank prepares (text, plan, model, proof) while the others wait; all ranks train; the first exports and compares.
"""

from __future__ import annotations

from slayer.config import RunConfig, config_differences, load_config, save_config
from slayer.errors import CheckpointError
from slayer.models import model_here, resolve_model
from slayer.phases.benchmarks import RunBenchmarks
from slayer.phases.compare import compare_and_report, show_again
from slayer.phases.fit import fit
from slayer.phases.outcome import Outcome
from slayer.phases.planning import preview
from slayer.phases.prepare import prepare
from slayer.phases.run import Run
from slayer.phases.text import has_work
from slayer.results import Results
from slayer.training.ranks import Ranks, open_ranks
from slayer.training.signals import listen_for_stop
from slayer.training.watchdog import Watchdog, watch


def run_pipeline(config: RunConfig, command: str) -> Outcome:
    """Run, or go on with, the run of this configuration. Every SlayerError leaves the run folder as it was or further on."""
    with open_ranks() as ranks, listen_for_stop(ranks) as stop, watch(ranks, stop, config.watchdog, config.folder) as watchdog:
        base = ranks.together(lambda: model_here(config.model) if config.dry_run else resolve_model(config.model))
        if base is None:
            return ranks.together(lambda: _preview(config, command, ranks))
        run = ranks.together(lambda: Run(config, base, ranks, stop))
        if _is_finished(run):
            return ranks.together(lambda: show_again(run) if ranks.is_first else Outcome(objective=None, report=None))
        ranks.together(lambda: _begin(run, command))
        ranks.together(run.read_prepared)
        run.require_same()
        if config.dry_run:
            return Outcome(objective=None, report=config.folder / "report.html")
        benchmarks = ranks.together(lambda: RunBenchmarks(run))
        ranks.together(lambda: benchmarks.score_before() if ranks.is_first else None)
        state, ended = fit(run, stop, watchdog, benchmarks)
        if ended == "stopped":
            return Outcome(objective=None, report=None, stopped_at=state.step)
        return ranks.together(lambda: _compare(run, watchdog, benchmarks))


def _is_finished(run: Run) -> bool:
    """Whether the run of this configuration is over, as the first rank sees it."""

    def look() -> bool:
        if run.ranks.is_first:
            check_run_folder(run.config)
        return "objective" in Results(run.folder).values

    return bool(run.ranks.gather(run.ranks.together(look))[0])


def _preview(config: RunConfig, command: str, ranks: Ranks) -> Outcome:
    if ranks.is_first:
        check_run_folder(config)
        save_config(config, config.folder / "config.yaml")
        preview(config, command, ranks=ranks.world)
    return Outcome(objective=None, report=config.folder / "report.html")


def _begin(run: Run, command: str) -> None:
    if run.ranks.is_first:
        save_config(run.config, run.folder / "config.yaml")
        prepare(run, command)


def _compare(run: Run, watchdog: Watchdog, benchmarks: RunBenchmarks) -> Outcome:
    if not run.ranks.is_first:
        return Outcome(objective=None, report=None)
    with watchdog.paused("compare"):
        return compare_and_report(run, benchmarks)


def check_run_folder(config: RunConfig) -> None:
    """CheckpointError when the folder holds a run of another configuration; nothing in it is touched."""
    saved = config.folder / "config.yaml"
    if not saved.exists():
        return
    differences = config_differences(load_config(saved), config)
    if differences and not has_work(config.folder):  # only planned so far: there is nothing to lose
        for name in ("plan.json", "results.json"):
            (config.folder / name).unlink(missing_ok=True)
    elif differences:
        lines = "\n".join(f"    {key}: the run has {old!r}, you asked for {new!r}" for key, old, new in differences)
        raise CheckpointError(
            f"{config.folder} holds a run made with another configuration:\n{lines}\n    type: run=NAME for a new run, or remove that folder"
        )
