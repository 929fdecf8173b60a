"""python train.py [KEY=VALUE …]: plan → build → prove → train → export → compare → report. `--help` explains every key."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from slayer.config import RunConfig
from slayer.errors import ConfigError, Problem, SlayerError
from slayer.launching.commandline import CONF, is_sweep, only_prints, tolerant
from slayer.launching.compose import validate
from slayer.launching.help import print_help
from slayer.launching.joined import agreed, is_joined, met, own_words, share_cores, speaks, sweep_problem, tell_once
from slayer.launching.local import REFUSED_EXIT_CODE, Launched, as_message, launch
from slayer.launching.search import search_problems
from slayer.launching.slurm import run_on_slurm, wait_for_all
from slayer.launching.sweep import (
    Point,
    announce,
    as_typed,
    is_plain_sweep,
    learns_from_scores,
    objective_for_sweeper,
    refuse,
    run_point,
    sweep_folder,
    typed_points,
)
from slayer.launching.versions import installation_problem
from slayer.reporting.console import print_error, print_next
from slayer.reporting.sweep_table import print_sweep
from slayer.secrets import guard_streams
from slayer.training.signals import REQUEUE_EXIT_CODE, stopped_at_once

refused: list[Problem] = []
launches: list[Launched] = []
sweep_dirs: list[Path] = []
waited_for: list[RunConfig] = []


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run(composed: Any) -> float:
    """One run, or one point of a sweep. Returns the objective for a sweeper."""
    hydra_config = HydraConfig.get()
    words: Any = OmegaConf.to_container(hydra_config.overrides.task)
    overrides = as_typed(words)
    point = None
    if hydra_config.mode == RunMode.MULTIRUN:
        point = Point(sweep_dir=Path(hydra_config.sweep.dir), number=hydra_config.job.num, overrides=overrides)
        if not sweep_dirs and is_plain_sweep(hydra_config.sweeper):
            announce(point, typed_points(sys.argv[1:], GlobalHydra.instance().config_loader()))
        sweep_dirs[:] = [point.sweep_dir]
    try:
        config = agreed(lambda: validate(composed, overrides, refused))
    except (SlayerError, OSError) as error:
        launched = refuse(as_message(error), point)
    else:
        command = shlex.join(["python", "train.py", *overrides])
        if config.launcher.name == "slurm" and not is_joined():
            launched = run_on_slurm(config, command, point, sweeper_learns=learns_from_scores(hydra_config.sweeper))
            waited_for.extend([config] if config.launcher.wait and launched.job is not None else [])
        else:
            launched = launch(config, command, own_process=False) if point is None else run_point(point, config, command)
    launches.append(launched)
    if point is not None and launched.stopped:
        raise KeyboardInterrupt
    return objective_for_sweeper(launched)


def main() -> int:
    """Exit code: 0 all finished, 2 something to mend, 75 stopped on request and saved, hung, or killed: start it again and it goes on."""
    problem = installation_problem()
    if problem is not None:
        print_error(problem)
        return 2
    typed = ["launcher.wait=true" if word == "--wait" else word for word in own_words(sys.argv[1:])]
    if not speaks() and ({"--help", "-h"} & set(typed) or only_prints(typed)):
        return 0
    if {"--help", "-h"} & set(typed):
        print_help()
        return 0
    share_cores()
    arguments, refused[:] = tolerant(typed, RunConfig)
    refused.extend([*search_problems(typed), *filter(None, [sweep_problem(typed)])])
    if refused and (is_sweep(typed) or only_prints(typed)):  # nothing of this sweep was meant as it reads
        tell_once(lambda: print_error(ConfigError(refused)))
        return 2
    sys.argv[1:] = [*arguments, *sweep_folder(arguments)]
    try:
        with stopped_at_once(), met():
            run()
            launches.extend(wait_for_all(waited_for))
    except SlayerError as error:
        print_error(error)
        return REFUSED_EXIT_CODE
    except KeyboardInterrupt:
        if launches and not sweep_dirs:  # it had ended already: a launcher ends all ranks with the first that does
            return launches[-1].exit_code
        if speaks():
            print("stopped; the same command goes on", file=sys.stderr)
        return max(REQUEUE_EXIT_CODE, *(launched.exit_code for launched in launches), 0)
    finally:
        for sweep_dir in sweep_dirs:
            print_sweep(sweep_dir)
            if any(launched.job is not None for launched in launches):
                print_next([(f"python -m slayer.launching status {shlex.quote(str(sweep_dir))}", "how its jobs stand")])
    return max((launched.exit_code for launched in launches), default=0)


if __name__ == "__main__":
    guard_streams()
    sys.exit(main())
