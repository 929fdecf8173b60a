"""What the segments of a training share, on one rank: audit, logs, the record of rewinds, and where to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from slayer.data.cache import write_file
from slayer.errors import CheckpointError, TrainingError
from slayer.models import model_hash_cached
from slayer.phases.benchmarks import RunBenchmarks
from slayer.phases.run import Run
from slayer.reporting.events import Events
from slayer.reporting.progress import TrainingProgress
from slayer.reporting.trackers import Trackers, open_trackers
from slayer.surgery.build import read_hashes
from slayer.surgery.weights import combined_hash
from slayer.training.checkpoint.folder import list_checkpoints, newest_valid, remove, remove_unfinished, step_of
from slayer.training.checkpoint.load import read_run_state
from slayer.training.checkpoint.saver import Saved
from slayer.training.signals import StopRequest
from slayer.training.state import Binding, Rewind, RunState
from slayer.training.watchdog import Watchdog


class Session:
    """One start of a training. The first rank writes metrics, events and rewinds; all ranks come to the same decisions."""

    def __init__(self, run: Run, stop: StopRequest, watchdog: Watchdog, benchmarks: RunBenchmarks, progress: TrainingProgress) -> None:
        self.run, self.stop, self.watchdog, self.benchmarks, self.progress = run, stop, watchdog, benchmarks, progress
        self.built_hashes = read_hashes(run.expanded)
        self.checkpoints = run.folder / "checkpoints"
        self.binding = Binding(model=combined_hash(self.built_hashes), data=run.loader.fingerprint)
        self.facts = {"base": model_hash_cached(run.base), "plan": run.plan.to_dict()} if run.ranks.is_first else {}
        self.is_under_way = False
        """True from the first segment on."""
        self._failing = False
        self.trackers: Trackers | None = None
        self.events: Events | None = None
        if run.ranks.is_first:
            remove_unfinished(self.checkpoints)
            self.trackers = open_trackers(run.config.tracker, run.folder, name=run.config.run, values=run.config.model_dump())
            self.events = Events(run.folder / "events.jsonl")

    def record(self, event: str, step: int | None, **facts: Any) -> None:
        """Keep something unusual in events.jsonl."""
        if self.events is not None:
            self.events.record(event, step, **facts)

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics, to whoever listens."""
        if self.trackers is not None:
            self.trackers.log(record)
            self.progress.update(record)

    def warn(self, sentence: str) -> None:
        """Tell the person, over the progress bar."""
        self.run.console.print(sentence, style="yellow", markup=False)

    def newest(self) -> tuple[Path | None, RunState]:
        """Where to go on: the newest checkpoint that verifies, and the state it holds with every rewind so far. Collective."""
        found: tuple[Path | None, RunState] = self._agreed(self._newest)
        return found

    def _newest(self) -> tuple[Path | None, RunState]:
        recorded, limit = self._rewinds(), None
        while (folder := newest_valid(self.checkpoints, self._tell_damage, before_step=limit)) is not None:
            state = read_run_state(folder)
            # A rewind that a kill kept from clearing away what it left behind.
            left = [rewind.to_step for rewind in recorded[len(state.rewinds) :] if rewind.to_step < state.step]
            if not left:
                return folder, replace(state, rewinds=max(state.rewinds, recorded, key=len))
            limit = min(left)
        return None, RunState(rewinds=recorded)

    def rewind(self, state: RunState, skipped_in_a_row: int) -> None:
        """Go back to the last checkpoint before the steps that were skipped, and past their data. TrainingError when that was done often
        enough. Collective."""
        self._agreed(lambda: self._rewind(state, skipped_in_a_row))

    def _rewind(self, state: RunState, skipped_in_a_row: int) -> None:
        recorded, most = self._rewinds(), self.run.config.guard.max_rewinds
        first_bad = state.step - skipped_in_a_row
        if len(recorded) >= most:
            lines = "".join(f"\n    step {rewind.from_step} back to {rewind.to_step}" for rewind in recorded)
            self.record("gave_up", state.step, first_bad_step=first_bad)
            raise TrainingError(
                f"training does not get past step {first_bad}: {skipped_in_a_row} steps in a row were skipped, and the run went back "
                f"{len(recorded)} times before:{lines}\n    {self.run.folder}/events.jsonl has every one. Type run=NAME with a lower "
                "train.learning_rate, or look at the data of these steps; with guard.max_rewinds=N the same command goes back more often, and with "
                "guard.sigma=null it takes every step that is finite"
            )
        found = newest_valid(self.checkpoints, self._tell_damage, before_step=first_bad)
        if found is None:  # of those that a stop left amid the skipped steps the weights are the same as before them
            found = newest_valid(self.checkpoints, self._tell_damage)
        rewind = Rewind(from_step=state.step, to_step=step_of(found) if found is not None else 0)
        write_file(self._rewinds_file, json.dumps([asdict(one) for one in (*recorded, rewind)]).encode(), durable=True)
        for later in list_checkpoints(self.checkpoints):
            if step_of(later) > rewind.to_step:
                remove(later)
        self.record("rewind", state.step, to_step=rewind.to_step, jump=rewind.jump_steps, skipped=skipped_in_a_row)
        self.warn(
            f"{skipped_in_a_row} steps in a row were skipped: back from step {rewind.from_step} to "
            f"{f'the checkpoint of step {rewind.to_step}' if found else 'the start'}, and past the data of the {rewind.jump_steps} steps between"
        )

    @property
    def _rewinds_file(self) -> Path:
        return self.run.folder / "rewinds.json"

    def _rewinds(self) -> tuple[Rewind, ...]:
        if not self._rewinds_file.exists():
            return ()
        try:
            return tuple(Rewind(**entry) for entry in json.loads(self._rewinds_file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self._rewinds_file} is damaged ({error}): which data was skipped is lost; type run=NAME for a new run"
            ) from error

    def _tell_damage(self, folder: Path, problem: str) -> None:
        self.warn(f"checkpoint {folder.name} is damaged ({problem}) and passed over")
        self.record("damaged_checkpoint", step_of(folder), problem=problem)

    def tell_saved(self, saved: Saved) -> None:
        """What came of a save, from the thread that made it."""
        if saved.problem is not None:
            self.warn(
                f"checkpoint {saved.step} was not saved: {saved.problem}. The last good one is untouched{'' if saved.fatal else '; training goes on'}"
            )
            self.record("failed_save", saved.step, problem=str(saved.problem))
        elif self._failing:
            self.warn(f"checkpoint {saved.step} is saved: saving works again")
            self.record("saved_again", saved.step)
        self._failing = saved.problem is not None

    def _agreed(self, decide: Callable[[], Any]) -> Any:
        """What the first rank decides, or the error it runs into, on every rank."""
        ranks = self.run.ranks
        return ranks.gather(ranks.together(lambda: decide() if ranks.is_first else None))[0]

    def close(self) -> None:
        """Let the trackers finish."""
        if self.trackers is not None:
            self.trackers.finish()
