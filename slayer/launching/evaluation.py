"""What evaluate.py does: names become models, models are scored, and the findings are written and shown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from slayer.config import DataConfig, EvaluationConfig, HeldoutConfig, RunConfig, SuiteConfig
from slayer.data.preparation import PreparedText, prepare_text
from slayer.data.storing.parts import Workers
from slayer.errors import ConfigError, Problem
from slayer.evaluation.assess import HeldoutText, Scores, Settings, Subject, assess_benchmarks, assess_shift
from slayer.evaluation.forgetting import forgetting_summary, objective
from slayer.evaluation.harness.scores import Scoring
from slayer.evaluation.harness.tasks import LoadedTask, load_tasks
from slayer.launching.checks import evaluation_problems, suite_of
from slayer.launching.subjects import Named, base_of, find_subject, output_folder
from slayer.reporting.benchmark_scores import benchmark_metrics
from slayer.reporting.benchmark_table import print_benchmarks, print_forgetting
from slayer.reporting.console import open_console, print_finished, print_next, print_results
from slayer.reporting.progress import progress_bar
from slayer.reporting.report import write_report
from slayer.reporting.trackers import track_once
from slayer.results import Results, write_items
from slayer.validation import parse_config


def validate_evaluation(values: Mapping[str, Any], problems: Sequence[Problem] = ()) -> EvaluationConfig:
    """The configuration of one call; ConfigError lists every problem."""
    good, found = parse_config(values, EvaluationConfig)
    known = {problem.key for problem in (*problems, *found)}
    found += [problem for problem in evaluation_problems(good) if problem.key not in known]
    if problems or found:
        raise ConfigError([*problems, *found])
    return EvaluationConfig.model_validate(good)


def run_evaluation(config: EvaluationConfig) -> dict[str, Any]:
    """Score, print, write results.json and the report (of several models: study.json and the page). Returns what was written."""
    from slayer.launching.layers import run_layers
    from slayer.launching.study import run_study

    console = open_console()
    if config.analysis.name == "layers":
        return run_layers(config, console)
    if config.runs:
        return run_study(config, console)
    subject = find_subject(config.checkpoint or "")
    evaluation = Evaluation(config, console)
    folder, values = evaluation.of(subject, base_of(subject, config.base))
    print_finished(write_report(folder), console=console)
    if subject.run is not None and folder == subject.run_dir:
        checkpoint = shlex.quote(subject.typed)
        following = [(f"python evaluate.py checkpoint={checkpoint} heldout.tokens_per_source=50000", "score more text, for narrower intervals")]
        if "benchmarks" not in values:
            following.insert(0, (f"python evaluate.py checkpoint={checkpoint} suite=quick", "what it forgot, on benchmarks"))
        print_next(following, console=console)
    return values


class Evaluation:
    """One call of evaluate.py: what is the same for every model that it scores."""

    def __init__(self, config: EvaluationConfig, console: Console) -> None:
        import torch

        self.config, self.console = config, console
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tasks: dict[str, list[LoadedTask]] = {}
        self._texts: dict[str, PreparedText] = {}

    def of(self, subject: Named, base: Named | None, *, show: bool = True) -> tuple[Path, dict[str, Any]]:
        """Score one model beside its base (or alone) and write results.json. Returns its folder and what stands in it.

        ConfigError when neither text nor benchmarks are there to score it on.
        """
        data = self.config.data or (subject.run.data if subject.run is not None else None)
        suite = suite_of(self.config, data)
        self._require_something(suite, data)
        folder = output_folder(self.config, subject, base)
        results = Results(folder)
        self.console.print(f"[bold]{subject.name}[/]" + (f" beside [bold]{base.name}[/]" if base is not None else ""), soft_wrap=True)
        named = {"run": subject.name, "model": base.name if base is not None else subject.name}
        shift = None
        if suite.heldout and data is not None:
            text = self._text(data, subject.run, subject.folder, base.folder if base is not None else None)
            with progress_bar("scoring", self.console) as on_progress:
                table = text.table(subject.folder, base.folder if base is not None else None, on_progress)
            results.update(**named, heldout=_with_start(table, results["heldout"]) if "heldout" in results else table)
            if base is not None and self.config.shift_tokens:
                with progress_bar("predictions", self.console) as on_progress:
                    shift = assess_shift(text, subject, base, self.config.shift_tokens, on_progress)
                if shift is None:
                    self._note("the two models do not read the same tokens: KL divergence and rank shift are left out")
        scores: Scores = {}
        if suite.tasks:
            section, scores = self._benchmarks(suite, subject, base, folder)
            results.update(**named, benchmarks=section)
        if base is not None and (shift is not None or suite.tasks):
            asked = results["benchmarks"] if suite.tasks else None
            found = forgetting_summary(asked, shift, scores.get("base"), scores.get("result"), self.config.seed)
            unasked = {key for key in found if (shift is None if key == "shift" else not suite.tasks)}
            results.update(forgetting=found | {key: value for key, value in results.values.get("forgetting", {}).items() if key in unasked})
        if show:
            print_results(results.values, console=self.console)
            print_benchmarks(results.values, console=self.console)
            print_forgetting(results.values, console=self.console)
        values, record = self.config.model_dump(), benchmark_metrics(results.values)
        track_once(self.config.tracker, folder, name=subject.name, values=values, record=record)
        return folder, results.values

    def domain_bits_per_byte(self, folder: Path, run: RunConfig) -> float:
        """A model on the held-out domain text of a run, scored as that run scores it: mean over its domain sources."""
        text = self._text(run.data, run, folder, None)
        with progress_bar("scoring", self.console) as on_progress:
            return objective(text.table(folder, None, on_progress), "domain_bits_per_byte")

    def _text(self, data: DataConfig, run: RunConfig | None, folder: Path, base: Path | None) -> HeldoutText:
        config = self.config
        settings = Settings(
            heldout=config.heldout or (run.heldout if run else HeldoutConfig()),
            precision=config.precision or (run.engine.precision if run else "bf16"),
            micro_batch_rows=config.micro_batch_rows or (run.engine.micro_batch_rows if run else 4),
            device=self.device,
        )  # fmt: skip
        key = data.model_dump_json()
        if key not in self._texts:  # many runs of a study share one
            with progress_bar("text", self.console) as on_progress, Workers(data.processes) as workers:
                self._texts[key] = prepare_text(data, workers, on_progress=on_progress)
        return HeldoutText(self._texts[key], folder, base, settings)

    def _benchmarks(self, suite: SuiteConfig, subject: Named, base: Subject | None, folder: Path) -> tuple[dict[str, Any], Scores]:
        config = self.config
        scoring = Scoring(
            precision=config.precision or (subject.run.engine.precision if subject.run else "bf16"),
            device=self.device, backend=config.backend, batch_tokens=config.batch_tokens, decoding=config.decoding,
            apply_chat_template=config.apply_chat_template, confirm_run_unsafe_code=config.confirm_run_unsafe_code,
        )  # fmt: skip
        tasks = self._load(suite)
        if config.decoding.name in ("greedy", "sampling") and not any(task.facts.generates for task in tasks):
            why = f"no task of suite {suite.name} generates text, so there is nothing to decode"
            raise ConfigError([Problem(key="decoding", value=config.decoding.name, why=why, fix="leave out decoding, or tasks=[gsm8k]")])
        with progress_bar("benchmarks", self.console) as on_progress:
            section, scores = assess_benchmarks(suite, tasks, subject, base, scoring, config.seed, on_progress, self._note)
        write_items(folder, scores)
        return section, scores

    def _load(self, suite: SuiteConfig) -> list[LoadedTask]:
        key = suite.model_dump_json()
        if key not in self._tasks:
            config = self.config
            with self.console.status("reading tasks and questions"):
                self._tasks[key] = load_tasks(
                    suite, seed=config.seed, questions=config.questions, include_path=config.include_path, limit=config.limit,
                    num_fewshot=config.num_fewshot, confirm_run_unsafe_code=config.confirm_run_unsafe_code,
                )  # fmt: skip
        return self._tasks[key]

    def _note(self, text: str) -> None:
        self.console.print(f"[yellow]{text}[/]", soft_wrap=True)

    def _require_something(self, suite: SuiteConfig, data: DataConfig | None) -> None:
        if suite.tasks or (suite.heldout and data is not None):
            return
        whose = f"{self.config.checkpoint} is not a run, so it has no text of its own, and suite={suite.name} asks no questions"
        raise ConfigError([Problem(key="data", value=None, why=whose, fix="data=demo base=smollm2_135m, or suite=quick")])


def _with_start(table: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The table with what the run had measured before training, where it is of the same documents: their base scores are the same then."""
    starts = {source: entry["start"] for source, entry in before.items() if source in table and entry["base"] == table[source]["base"]}
    return {source: {**entry, "start": starts.get(source)} for source, entry in table.items()}
