"""Several models side by side: each scored as it would be alone, then all of them on one page, with the effect of what differs between them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from slayer.config import EvaluationConfig
from slayer.data.cache import write_file
from slayer.errors import ConfigError, Problem
from slayer.evaluation.forgetting import sequence_scores
from slayer.evaluation.studies import entry_of, score_facts, study
from slayer.launching.evaluation import Evaluation
from slayer.launching.subjects import Named, base_of, find_subjects
from slayer.reporting.console import print_finished
from slayer.reporting.study_page import print_study, write_study_page
from slayer.results import Results


def run_study(config: EvaluationConfig, console: Console) -> dict[str, Any]:
    """Score every model of runs=[…] that was not scored this way before, write study.json and the page. Returns what is in study.json."""
    subjects = find_subjects(config.runs)
    if len(subjects) < 2:
        why = f"names {len(subjects)} model, and a comparison needs two"
        raise ConfigError([Problem(key="runs", value=config.runs, why=why, fix="runs=[runs/A,runs/B], or checkpoint=runs/A")])
    evaluation = Evaluation(config, console)
    bases, found = [base_of(subject, config.base) for subject in subjects], []
    for number, (subject, base) in enumerate(zip(subjects, bases, strict=True), 1):
        console.print(f"[dim]{number} of {len(subjects)}[/] ", end="")
        known = _known(config, subject)
        found.append((subject.folder.parent if known else subject.folder, known) if known else evaluation.of(subject, base, show=False))
        if known:
            console.print(f"[bold]{subject.name}[/]: its own results.json", soft_wrap=True)
    entries = [
        entry_of(subject.name, folder, subject.run, values, model_folder=subject.folder)
        for subject, (folder, values) in zip(subjects, found, strict=True)
    ]
    names = {base.name for base in bases if base is not None}
    common = names.pop() if len(names) == 1 and None not in bases else None
    values = study(entries, common, score_facts([results for _, results in found]), config.factors)
    if config.sequence:
        values["sequence"] = _sequence(evaluation, subjects)
    folder = _folder(config, subjects)
    write_file(folder / "study.json", (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    page = write_study_page(folder)
    print_study(values, console=console)
    print_finished(page, console=console)
    return values


def _known(config: EvaluationConfig, subject: Named) -> Mapping[str, Any] | None:
    """What a finished run says of itself, if nothing else is asked for."""
    asks_for_more = config.suite.tasks or config.tasks or config.suite.of_the_text or config.base or config.data or config.heldout
    if asks_for_more or subject.run_dir is None:
        return None
    values = Results(subject.run_dir).values
    return values if "heldout" in values else None


def _folder(config: EvaluationConfig, subjects: Sequence[Named]) -> Path:
    if config.output is not None:
        return Path(config.output)
    typed = Path(config.runs[0])
    if len(config.runs) == 1 and (typed / "points").is_dir():
        return typed / "study"
    together = re.sub(r"[^A-Za-z0-9._-]+", "_", "-and-".join(subject.name for subject in subjects))
    name = together if len(together) <= 80 else f"{together[:60]}-and-more-{len(subjects)}"
    return Path("runs") / "evaluations" / name


def _sequence(evaluation: Evaluation, subjects: Sequence[Named]) -> dict[str, Any]:
    """study.json's `sequence`: R[t][i], bits per byte of the i-th run's domain text after the t-th run, and OP, BWT and FG over it."""
    runs = [subject.run for subject in subjects if subject.run is not None]
    if len(runs) < len(subjects):
        typed = next(subject.typed for subject in subjects if subject.run is None)
        why = f"needs runs, which know their text, and {typed} is none"
        raise ConfigError([Problem(key="sequence", value=True, why=why, fix="leave out sequence")])
    base = base_of(subjects[0], evaluation.config.base)
    matrix = np.array([[evaluation.domain_bits_per_byte(subject.folder, run) for run in runs] for subject in subjects])
    before = np.array([evaluation.domain_bits_per_byte(base.folder, run) for run in runs]) if base is not None else None
    found = sequence_scores(matrix, higher_is_better=False, base_T=before)
    return {"order": [subject.name for subject in subjects], "tasks": [run.data.name for run in runs], "matrix": matrix.tolist(), **found}
