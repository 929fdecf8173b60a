"""From what a person typed to models on this machine: runs, folders, names of conf/model, sweeps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.config import EvaluationConfig, ModelConfig, RunConfig, load_config
from slayer.errors import ModelError
from slayer.evaluation.assess import Subject
from slayer.launching.commandline import CONF, groups
from slayer.models import resolve_model
from slayer.reporting.sweep_points import found_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Subject):
    """A model to score, as it was typed. `run` is the configuration of the run it came from, `run_dir` its folder, if it is one."""

    typed: str
    run: RunConfig | None = None
    run_dir: Path | None = None


def find_subject(name: str, key: str = "checkpoint") -> Named:
    """A run folder, a Hugging Face folder, or a name from conf/model; ModelError when it is none of them."""
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        run = load_config(folder / "config.yaml")
        if not (folder / "model" / "config.json").is_file():
            raise ModelError(f"{folder} has no model yet; finish it with its own command, or type {key}=ANOTHER_RUN")
        return Named(name=run.run, folder=resolve_model(ModelConfig(name=run.run, path=str(folder / "model"))), typed=name, run=run, run_dir=folder)
    if folder.is_dir():
        resolved = folder.resolve()
        named = resolved.parent.name if resolved.name == "model" else resolved.name  # a run's model/ is told apart by its run
        return Named(name=named, folder=resolve_model(ModelConfig(name=name, path=str(folder)), any_family=True), typed=name)
    if name in groups()["model"]:
        return Named(name=name, folder=resolve_model(_model_of(name)), typed=name)
    raise ModelError(f"{name} is neither a folder nor one of {', '.join(groups()['model'])}; type {key}=runs/NAME")


def base_of(subject: Named, base: str | None) -> Named | None:
    """What a model is compared with: what was asked for, else the base that its run started from, else nothing."""
    if base is not None:
        return find_subject(base, "base")
    if subject.run is None:
        return None
    return Named(name=subject.run.model.name, folder=resolve_model(subject.run.model), typed=subject.run.model.name)


def output_folder(config: EvaluationConfig, subject: Named, base: Subject | None) -> Path:
    """Where findings go: a run's own folder, as long as it is asked about its own base and text; else one beside the runs."""
    if subject.run_dir is not None and config.base is None and config.data is None and (config.output is None or config.runs):
        return subject.run_dir
    name = _plain(subject.name) + (f"-beside-{_plain(base.name)}" if base is not None else "")
    if config.output is not None:
        return Path(config.output) / name if config.runs else Path(config.output)
    return Path("runs") / "evaluations" / name


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def find_subjects(names: Sequence[str]) -> list[Named]:
    """The models of `runs=[…]`, each once. A sweep folder stands for its finished runs."""
    found: dict[Path, Named] = {}
    for name in names:
        for one in _runs_of_sweep(Path(name).expanduser()) or [name]:
            subject = find_subject(one, "runs")
            found.setdefault(subject.folder.resolve(), subject)
    return list(found.values())


def _runs_of_sweep(folder: Path) -> list[str]:
    points = sorted((folder / "points").glob("*.json"))
    values: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in points]
    finished = [Path(value["run_dir"]) for value in values if value.get("status") == "finished"]
    if points and not finished:
        raise ModelError(f"{folder} is a sweep without a finished run; finish it first, or type runs=[runs/NAME]")
    return [str(found_run(run_dir, folder)) for run_dir in finished]


def _model_of(name: str) -> ModelConfig:
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    return ModelConfig.model_validate(values.get("model", values))
