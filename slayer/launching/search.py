"""hydra/sweeper=optuna: points that are searched for, each chosen from what the ones before came to.

What is known stands in the sweep's folder (search.log, a journal that optuna reads), so the same command goes on where it stopped, and a larger
hydra.sweeper.n_trials goes further. The values of a trial are a function of the seed, its number and what is known: a search that was stopped
and started again tries what one in a single go would have tried.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from slayer.data.cache import write_file
from slayer.errors import ConfigError, Problem, SlayerError
from slayer.launching.commandline import is_search, is_sweep
from slayer.launching.local import REFUSED_EXIT_CODE
from slayer.launching.naming import split_override
from slayer.launching.spaces import Space, read_words
from slayer.reporting.sweep_points import SEARCH_NAME

JOURNAL = "search.log"
STUDY = "search"
POINT = "point"
"""The attribute of a trial that holds the number of its point."""
SAMPLER = "tpe"
OTHER_SWEEPER = "hydra-optuna-sweeper"
"""A package that takes the same name in Hydra, whichever is found later."""
LEAST = {"n_trials": 1, "n_startup_trials": 0, "seed": 0}
"""The keys below hydra.sweeper, and the least each may be."""

RunPoint = Callable[[int, list[str]], float]
"""(number of the point, its overrides) → its objective; infinite where it failed. KeyboardInterrupt where it was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The keys below hydra.sweeper. `n_trials`: points in all, failed ones too; `n_startup_trials`: those drawn at random before the sampler
    learns from them; `seed`: of the search (that of a run is `seed`)."""

    n_trials: int
    n_startup_trials: int
    seed: int


def search_problems(arguments: Sequence[str]) -> list[Problem]:
    """What is wrong with a command line that asks for a search; nothing where it asks for none."""
    if not is_search(arguments):
        return []
    problems = []
    if not _is_installed("optuna"):
        problems.append(Problem(key="hydra/sweeper", value="optuna", why="needs optuna, which is not installed", fix="pip install 'optuna>=4'"))
    if _is_installed(OTHER_SWEEPER):
        why = f"is taken by the package {OTHER_SWEEPER}, which passes failures on as scores and does not go on where it stopped"
        problems.append(Problem(key="hydra/sweeper", value="optuna", why=why, fix=f"pip uninstall {OTHER_SWEEPER}"))
    if not is_sweep(arguments):
        why = "chooses the points of a sweep, which -m asks for"
        problems.append(Problem(key="hydra/sweeper", value="optuna", why=why, fix="hydra/sweeper=optuna   (python train.py -m …)"))
    for word in arguments:
        key, value = split_override(word)
        name = key.removeprefix("hydra.sweeper.")
        if name == key:
            continue
        if name not in LEAST:
            why = f"there is no such key; of a search there are {', '.join(LEAST)}"
            problems.append(Problem(key=key, value=value, why=why, fix=f"leave out {key}"))
        elif not re.fullmatch(r"\d+", value) or int(value) < LEAST[name]:
            why = f"must be a whole number from {LEAST[name]}"
            problems.append(Problem(key=key, value=value, why=why, fix=f"{key}={max(LEAST[name], 10)}"))
    return problems


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def search(arguments: Sequence[str], sweep_dir: str, settings: Settings, run: RunPoint, config_loader: Any = None) -> None:
    """Ask for values, run them and tell what came of it, until there are n_trials points. Those that failed are tried again, as the same points.

    Ends the process with exit code 2 and a message where there is nothing to search or the folder holds another search.
    """
    from slayer.reporting.console import print_error

    try:
        fixed, space = read_words(arguments, config_loader)
        _record(Path(sweep_dir), settings, space)
        _search(fixed, space, Path(sweep_dir), settings, run)
    except SlayerError as error:
        print_error(error)
        sys.exit(REFUSED_EXIT_CODE)


def _search(fixed: Sequence[str], space: Mapping[str, Space], sweep_dir: Path, settings: Settings, run: RunPoint) -> None:
    from optuna.trial import TrialState

    study = _open_study(sweep_dir)
    last = {trial.user_attrs[POINT]: trial for trial in study.get_trials() if POINT in trial.user_attrs}
    for number in range(settings.n_trials):
        trial = last.get(number)
        known = trial is not None and trial.state == TrialState.COMPLETE
        if trial is None or trial.state in (TrialState.FAIL, TrialState.WAITING):
            trial = _ask(study, space, settings, number, trial)
        words = [*fixed, *(one.word(trial.params[key]) for key, one in space.items())]
        value = run(number, words)
        if known:
            continue
        if math.isfinite(value):
            study.tell(trial.number, value)
        else:  # a failure says nothing of how good its values are
            study.tell(trial.number, state=TrialState.FAIL)


def _open_study(sweep_dir: Path) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(sweep_dir / JOURNAL)))
    return optuna.create_study(storage=storage, study_name=STUDY, direction="minimize", load_if_exists=True)


def _ask(study: Any, space: Mapping[str, Space], settings: Settings, number: int, before: Any) -> Any:
    """A trial for a point: new values, or those with which it has failed."""
    import numpy as np
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    if before is not None and before.state == TrialState.FAIL:
        study.enqueue_trial(before.params, user_attrs={POINT: number})
    draw = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    study.sampler = TPESampler(seed=draw, n_startup_trials=settings.n_startup_trials)
    trial = study.ask({key: one.distribution() for key, one in space.items()})
    trial.set_user_attr(POINT, number)
    return trial


def _record(sweep_dir: Path, settings: Settings, space: Mapping[str, Space]) -> None:
    """Write what is searched beside the points; ConfigError for another space than before, or for none."""
    if not space:
        why = "has nothing to search: no key has a range or several values"
        raise ConfigError([Problem(key="hydra/sweeper", value="optuna", why=why, fix="'train.learning_rate=tag(log,interval(1e-4,1e-2))'")])
    path, plain = sweep_dir / SEARCH_NAME, json.loads(json.dumps({key: asdict(one) for key, one in space.items()}))
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["space"] != plain:
        why = "holds a search over other values"
        raise ConfigError([Problem(key="hydra.sweep.dir", value=str(sweep_dir), why=why, fix="leave out hydra.sweep.dir")])
    write_file(path, (json.dumps({"sampler": SAMPLER, **asdict(settings), "space": plain}, indent=1) + "\n").encode())
