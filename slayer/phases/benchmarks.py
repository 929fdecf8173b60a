"""The benchmarks of a run: its base before training, the model in training now and then, the result beside its base at the end."""

from __future__ import annotations

from typing import Any

from slayer.config import DecodingConfig
from slayer.evaluation.assess import Subject, assess_benchmarks
from slayer.evaluation.forgetting import forgetting_summary
from slayer.evaluation.harness.opening import open_lm
from slayer.evaluation.harness.scores import Scoring, score_folder
from slayer.evaluation.harness.tasks import LoadedTask, load_tasks
from slayer.evaluation.in_loop import InLoopTasks
from slayer.phases.run import Run
from slayer.reporting.progress import progress_bar
from slayer.results import write_items
from slayer.training.engine import TrainingEngine

FIELD = "tasks/"
"""Before a task's name in metrics.jsonl."""


class RunBenchmarks:
    """The suite of a run on one rank. The first rank scores folders; the others read the tasks only where all score together, in training."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.suite = run.config.suite
        device = run.scoring_device(run.expanded)  # of folders: the model in training stays where it is
        self.scoring = Scoring(precision=run.config.engine.precision, device=device, decoding=DecodingConfig())
        asked = bool(self.suite.tasks) and (run.ranks.is_first or run.config.train.evaluate_every is not None)
        self.tasks: list[LoadedTask] = (
            load_tasks(self.suite, seed=run.config.seed, questions="auto", include_path=None, confirm_run_unsafe_code=False) if asked else []
        )
        self.in_loop = InLoopTasks(self.tasks, self.suite.in_loop_items)
        self.base = Subject(name=run.config.model.name, folder=run.base)

    def score_before(self) -> None:
        """First rank: the base on the whole suite, remembered for every later run from the same base."""
        if not self.tasks:
            return
        with progress_bar("benchmarks", self.run.console) as on_progress:
            scores = score_folder(self.base.folder, self.tasks, self.scoring, open_lm(self.base.folder, None, self.scoring), "base", on_progress)
        self.run.results.update(before={**self.run.results["before"], "tasks": self.in_loop.part_of(scores)})
        if self.in_loop.left_out and self.run.config.train.evaluate_every is not None:
            self.run.console.print(f"not scored during training, since they generate text: {', '.join(self.in_loop.left_out)}")

    def score_in_training(self, engine: TrainingEngine) -> dict[str, float]:
        """What a log line gets. All ranks call together."""
        if not self.in_loop.tasks:
            return {}
        with engine.scored() as model:
            values = self.in_loop.score(model, self.run.tokenizer, self.scoring)
        return {FIELD + task: value for task, value in values.items()}

    def compare(self) -> tuple[dict[str, Any], dict[str, float]]:
        """First rank: sections of results.json on the exported model beside the base, and what the last log line gets."""
        if not self.tasks:
            return {}, {}
        result = Subject(name=self.run.config.run, folder=self.run.exported)
        with progress_bar("benchmarks", self.run.console) as on_progress:
            section, scores = assess_benchmarks(self.suite, self.tasks, result, self.base, self.scoring, self.run.config.seed, on_progress)
        write_items(self.run.folder, scores)
        last = {FIELD + task: value for task, value in self.in_loop.part_of(scores["result"]).items()}
        return {"benchmarks": section, "forgetting": forgetting_summary(section, None, scores["base"], scores["result"], self.run.config.seed)}, last
