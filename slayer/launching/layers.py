"""python evaluate.py analysis=layers: which layers of a model matter, on its own text or another, by the scores asked for."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from slayer.config import DataConfig, EvaluationConfig
from slayer.data.preparation import prepare_text
from slayer.data.storing.parts import Workers
from slayer.errors import ConfigError, Problem
from slayer.importance.analysis import LayerAnalysis, MakeValue
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.sample import Sample, heldout_samples
from slayer.launching.checks import asked_scores, reads_text, suite_of
from slayer.launching.commandline import CONF
from slayer.launching.subjects import Named, base_of, find_subject, output_folder
from slayer.models import load_tokenizer
from slayer.reporting.console import print_finished, print_next
from slayer.reporting.layer_table import print_layers
from slayer.reporting.progress import progress_bar
from slayer.reporting.report import write_report
from slayer.surgery.build import build_expanded
from slayer.surgery.families import read_model_config

DEFAULT_TEXT = "demo"
"""What a model is measured on that is no run and for which no text is named."""


def run_layers(config: EvaluationConfig, console: Console) -> dict[str, Any]:
    """Measure, print, write layers.json, layers.parquet and the report. Returns what is in layers.json under `facts`."""
    import torch

    subject = find_subject(config.checkpoint or "")
    read_model_config(subject.folder)
    scores = asked_scores(config.scores)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="slayer-start-") as scratch:
        start = _start(subject, config.base, Path(scratch))
        if start is None and "all" in config.scores:
            scores.remove("learned_mask")
        engine = subject.run.engine if subject.run is not None else None
        analysis = LayerAnalysis(
            subject.folder, subject.plan, config.analysis, precision=config.precision or (engine.precision if engine else "bf16"), device=device,
            micro_batch_rows=config.micro_batch_rows or (engine.micro_batch_rows if engine else 4), seed=config.seed, start=start,
        )  # fmt: skip
        if analysis.streamed and "all" in config.scores:
            scores = [score for score in scores if CATALOGUE[score].needs not in ("gradients", "update")]
        samples, suites = _samples(config, subject, scores, console), _suites(config, subject)
        with progress_bar("layers", console) as analysis.on_progress:
            measured = analysis.measure(scores, samples, suites=suites)
        sources: dict[str, Any] = {sample.source: sample.facts for sample in samples}
        sources |= {name: {"kind": "suite"} for name in suites or {}}
        following = _next(config, subject, scores)
        table = analysis.table(
            subject.name, measured, {"sources": sources, "value": config.analysis.value, "next": [list(pair) for pair in following]}
        )
    folder = output_folder(config, subject, None)
    table.save(folder)
    print_layers(table, console=console)
    print_finished(write_report(folder), console=console)
    print_next(following, console=console)
    return dict(table.facts)


def _samples(config: EvaluationConfig, subject: Named, scores: list[str], console: Console) -> list[Sample]:
    """Held-out text of the run, of data=…, or of the default; none where no score reads a text."""
    if not any(reads_text(score, config.analysis.value) for score in scores):
        return []
    data = config.data or (subject.run.data if subject.run is not None else None)
    if data is None:
        data = _default_text()
        console.print(f"[dim]no text is named: measured on data={DEFAULT_TEXT}[/]", soft_wrap=True)
    with progress_bar("text", console) as on_progress, Workers(data.processes) as workers:
        text = prepare_text(data, workers, on_progress=on_progress)
    return heldout_samples(text, config.analysis.sources, load_tokenizer(subject.folder), config.analysis.sample_tokens)


def _default_text() -> DataConfig:
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{DEFAULT_TEXT}.yaml"))
    return DataConfig.model_validate(values)


def _suites(config: EvaluationConfig, subject: Named) -> Mapping[str, MakeValue] | None:
    """The suite as a value function, where accuracy is asked for."""
    if config.analysis.value != "accuracy":
        return None
    from slayer.evaluation.harness.tasks import load_tasks
    from slayer.importance.task_value import TaskValue

    suite = suite_of(config, config.data or (subject.run.data if subject.run is not None else None))
    tasks = load_tasks(
        suite, seed=config.seed, questions=config.questions, include_path=config.include_path, limit=config.limit,
        num_fewshot=config.num_fewshot, confirm_run_unsafe_code=False,
    )  # fmt: skip
    name = suite.name if not config.tasks else "+".join(config.tasks)
    tokenizer, template = load_tokenizer(subject.folder), config.apply_chat_template
    return {name: lambda decoder: TaskValue(decoder, tokenizer, tasks, name=name, apply_chat_template=template)}


def _start(subject: Named, base: str | None, scratch: Path) -> Callable[[], Path] | None:
    """The folder a model was trained from: what a run built before training, or a base of the same shapes; None where neither is known."""
    compared = base_of(subject, base)
    if compared is None:
        return None
    plan = subject.plan
    if plan is None:
        n_layers, n_base = (read_model_config(one.folder)["num_hidden_layers"] for one in (subject, compared))
        if n_layers != n_base:
            why = f"has {n_base} layers and {subject.name} {n_layers}, so one was not trained from the other"
            raise ConfigError([Problem(key="base", value=base, why=why, fix="leave out base")])
        return lambda: compared.folder
    built = scratch / "start"

    def build() -> Path:
        if not built.exists():
            build_expanded(compared.folder, plan, built, seed=subject.run.seed if subject.run is not None else 0)
        return built

    return build


def _next(config: EvaluationConfig, subject: Named, scores: list[str]) -> list[tuple[str, str]]:
    """What to type with what was found."""
    checkpoint = shlex.quote(subject.typed)
    commands = []
    if "removal" not in scores:
        more = f"python evaluate.py analysis=layers scores=[removal,block_influence] checkpoint={checkpoint}"
        commands.append((more, "what is lost without each layer"))
    if subject.plan is None:
        model = subject.typed if not Path(subject.typed).exists() else f"local model.path={checkpoint}"
        commands.append((f"python train.py model={model} expansion=least_important prune=2 prune_by=removal", "a plan that follows the scores"))
    if config.analysis.value == "loss":
        commands.append((
            f"python evaluate.py analysis=layers scores=[removal] analysis.value=accuracy suite=quick checkpoint={checkpoint}",
            "the same by accuracy on questions: loss and accuracy often disagree",
        ))  # fmt: skip
    return commands
