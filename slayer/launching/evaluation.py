"""What evaluate.py does: names become folders, two models are scored, and the findings are written and shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.config import EvaluationConfig, HeldoutConfig, ModelConfig, RunConfig, load_config
from slayer.data.benchmarks import benchmark_problems
from slayer.data.preparation import prepare_text
from slayer.data.reading.sources import source_problems
from slayer.data.storing.parts import Workers
from slayer.errors import ConfigError, ModelError, Problem
from slayer.evaluation.assess import Settings, assess
from slayer.launching.commandline import CONF, groups
from slayer.models import resolve_model
from slayer.reporting.console import open_console, print_finished, print_next, print_results
from slayer.reporting.progress import progress_bar
from slayer.reporting.report import write_report
from slayer.results import Results
from slayer.validation import parse_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to score. `run` is the configuration of the run it came from, if it is one."""

    name: str
    folder: Path
    run: RunConfig | None = None


def validate_evaluation(values: Mapping[str, Any], problems: Sequence[Problem] = ()) -> EvaluationConfig:
    """The configuration of one call; ConfigError lists every problem."""
    values = {key: value for key, value in values.items() if not (key == "checkpoint" and value is None)}
    good, found = parse_config(values, EvaluationConfig)
    if good.get("data") is not None:
        found += source_problems(good["data"]) + benchmark_problems(good["data"].cleaning.decontaminate)
    if problems or found:
        raise ConfigError([*problems, *found])
    return EvaluationConfig.model_validate(good)


def find_subject(name: str) -> Subject:
    """A run folder, a Hugging Face folder, or a name from conf/model; ModelError when it is none of them."""
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        run = load_config(folder / "config.yaml")
        if not (folder / "model" / "config.json").is_file():
            raise ModelError(f"{folder} has no model yet; finish it with its own command, or type checkpoint=ANOTHER_RUN")
        return Subject(name=run.run, folder=folder / "model", run=run)
    if folder.is_dir():
        resolved = folder.resolve()
        named = resolved.parent.name if resolved.name == "model" else resolved.name  # a run's model/ is told apart by its run
        return Subject(name=named, folder=resolve_model(ModelConfig(name=name, path=str(folder))))
    if name in groups()["model"]:
        return Subject(name=name, folder=resolve_model(_model_of(name)))
    raise ModelError(f"{name} is neither a folder nor one of {', '.join(groups()['model'])}; type checkpoint=runs/NAME")


def _model_of(name: str) -> ModelConfig:
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    return ModelConfig.model_validate(values.get("model", values))


def run_evaluation(config: EvaluationConfig) -> dict[str, Any]:
    """Score, print, write results.json and the report. Returns what was written."""
    import torch

    subject = find_subject(config.checkpoint)
    base, data = _base_of(config, subject), config.data or (subject.run.data if subject.run is not None else None)
    if base is None or data is None:
        whose = f"{config.checkpoint} is not a run, so it has no"
        missing = [Problem(key="base", value=None, why=f"{whose} base of its own", fix="base=smollm2_135m")] if base is None else []
        missing += [Problem(key="data", value=None, why=f"{whose} text of its own", fix="data=demo")] if data is None else []
        raise ConfigError(missing)
    run = subject.run
    settings = Settings(
        heldout=config.heldout or (run.heldout if run else HeldoutConfig()),
        precision=config.precision or (run.engine.precision if run else "bf16"),
        micro_batch_rows=config.micro_batch_rows or (run.engine.micro_batch_rows if run else 4),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )  # fmt: skip
    console = open_console()
    console.print(f"[bold]{subject.name}[/] beside [bold]{base.name}[/] on the held-out documents of {data.name}", soft_wrap=True)
    with progress_bar("text", console) as on_progress, Workers(data.processes) as workers:
        text = prepare_text(data, workers, on_progress=on_progress)
    with progress_bar("scoring", console) as on_progress:
        table = assess(subject.folder, base.folder, text, settings, on_progress)
    own_run = subject.run is not None and config.base is None and config.data is None and config.output is None
    folder = subject.folder.parent if own_run else Path(config.output or f"runs/evaluations/{_plain(subject.name)}-beside-{_plain(base.name)}")
    results = Results(folder)
    if own_run and "heldout" in results:
        table = _with_start(table, results["heldout"])
    results.update(run=subject.name, model=base.name, heldout=table)
    print_results(results.values, console=console)
    print_finished(write_report(folder), console=console)
    if own_run:
        again = f"python evaluate.py checkpoint={shlex.quote(config.checkpoint)} heldout.tokens_per_source=50000"
        print_next([(again, "score more documents, for narrower intervals")])
    return results.values


def _with_start(table: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The table with what the run had measured before training, where it is of the same documents: their base scores are the same then."""
    starts = {source: entry["start"] for source, entry in before.items() if source in table and entry["base"] == table[source]["base"]}
    return {source: {**entry, "start": starts.get(source)} for source, entry in table.items()}


def _base_of(config: EvaluationConfig, subject: Subject) -> Subject | None:
    if config.base is not None:
        return find_subject(config.base)
    return Subject(name=subject.run.model.name, folder=resolve_model(subject.run.model)) if subject.run is not None else None


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)
