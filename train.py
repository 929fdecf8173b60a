"""python train.py [KEY=VALUE …]: plan → build → prove → train → export → compare → report. `--help` explains every key."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from slayer.errors import ConfigError, Problem
from slayer.launching.compose import CONF, groups, is_override, tolerant, validate
from slayer.launching.help import print_help
from slayer.launching.local import STOPPED_EXIT_CODE, Launched, launch
from slayer.launching.naming import run_name, split_override
from slayer.launching.sweep import objective_for_sweeper, record_refused, run_point
from slayer.reporting.console import print_error
from slayer.reporting.sweep_page import print_sweep

typed: list[str] = []
refused: list[Problem] = []
launches: list[Launched] = []
sweep_dirs: list[Path] = []


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run(composed: Any) -> float:
    """One run, or one point of a sweep. Returns the objective for a sweeper."""
    hydra_config = HydraConfig.get()
    overrides = ["=".join(split_override(override)) for override in hydra_config.overrides.task]
    command = shlex.join(["python", "train.py", *overrides])
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    sweep_dir = Path(hydra_config.sweep.dir)
    if in_sweep and sweep_dir not in sweep_dirs:
        sweep_dirs.append(sweep_dir)
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True)
        config = validate(values, overrides, refused)
    except ConfigError as error:
        print_error(error)
        launches.append(Launched(exit_code=2, objective=None, error=str(error)))
        if in_sweep:
            record_refused(sweep_dir, hydra_config.job.num, overrides, run_name(overrides, list(groups())), str(error))
        return objective_for_sweeper(launches[-1])
    if in_sweep:
        launches.append(run_point(sweep_dir, hydra_config.job.num, overrides, config, command))
    else:
        launches.append(launch(config, command, own_process=False))
    if in_sweep and launches[-1].exit_code == STOPPED_EXIT_CODE:
        raise KeyboardInterrupt
    return objective_for_sweeper(launches[-1])


def main() -> int:
    """Exit code: 0 all finished, 2 something to mend, 130 stopped on request and saved."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print_help()
        return 0
    arguments, problems = tolerant(sys.argv[1:])
    typed[:], refused[:] = sys.argv[1:], problems
    OmegaConf.register_new_resolver("sweep_name", lambda: run_name([word for word in typed if is_override(word)], list(groups())))
    sys.argv[1:] = arguments
    try:
        run()
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return STOPPED_EXIT_CODE
    finally:
        for sweep_dir in sweep_dirs:
            print_sweep(sweep_dir)
    return max((launched.exit_code for launched in launches), default=0)


if __name__ == "__main__":
    sys.exit(main())
