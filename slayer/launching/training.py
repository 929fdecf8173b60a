"""What train.py does: its words become a run or the points of a sweep, each is started where it is to run, and their ends become one exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from slayer.config import RunConfig
from slayer.errors import ConfigError, Problem, SlayerError
from slayer.launching.commandline import is_sweep, only_prints, tolerant
from slayer.launching.compose import validate
from slayer.launching.joined import agreed, is_joined, met, share_cores, speaks, sweep_problem, tell_once
from slayer.launching.local import Launched, ended_by, launch
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
from slayer.training.signals import REQUEUE_EXIT_CODE, stopped_at_once


class Training:
    """One call of train.py. Hydra calls `run`, once or for each point of a sweep, between `read` and the end of `carry_out`."""

    def __init__(self) -> None:
        self._refused: list[Problem] = []
        self._sweep_dir: Path | None = None
        self._launches: list[Launched] = []
        self._waited_for: list[RunConfig] = []

    def read(self, typed: Sequence[str]) -> list[str] | None:
        """The words of a command line as Hydra accepts them. None, and a message, for a sweep of which nothing was meant as it reads."""
        from slayer.reporting.console import print_error

        share_cores()
        typed = ["launcher.wait=true" if word == "--wait" else word for word in typed]
        words, self._refused = tolerant(typed, RunConfig)
        self._refused += [*search_problems(typed), *filter(None, [sweep_problem(typed)])]
        if self._refused and (is_sweep(typed) or only_prints(typed)):
            tell_once(lambda: print_error(ConfigError(self._refused)))
            return None
        return [*words, *sweep_folder(words)]

    def run(self, composed: Any, hydra_config: Any) -> float:
        """One run, or one point of a sweep, as Hydra has composed it. Returns the objective for a sweeper."""
        words: Any = OmegaConf.to_container(hydra_config.overrides.task)
        overrides = as_typed(words)
        point = self._point(hydra_config, overrides) if hydra_config.mode == RunMode.MULTIRUN else None
        try:
            config = agreed(lambda: validate(composed, overrides, self._refused))
        except (SlayerError, OSError, RuntimeError) as error:
            launched = refuse(error, point)
        else:
            command = shlex.join(["python", "train.py", *overrides])
            launched = self._launch(config, command, point, sweeper_learns=learns_from_scores(hydra_config.sweeper))
        self._launches.append(launched)
        if point is not None and launched.stopped:
            raise KeyboardInterrupt
        return objective_for_sweeper(launched)

    def _point(self, hydra_config: Any, overrides: Sequence[str]) -> Point:
        point = Point(sweep_dir=Path(hydra_config.sweep.dir), number=hydra_config.job.num, overrides=overrides)
        if self._sweep_dir is None and is_plain_sweep(hydra_config.sweeper):
            # The words of this process: one that a launcher of Hydra has started elsewhere has others, and leaves the page to what was typed.
            announce(point, typed_points(sys.argv[1:], GlobalHydra.instance().config_loader()))
        self._sweep_dir = point.sweep_dir
        return point

    def _launch(self, config: RunConfig, command: str, point: Point | None, *, sweeper_learns: bool) -> Launched:
        if config.launcher.name == "slurm" and not is_joined():
            launched = run_on_slurm(config, command, point, sweeper_learns=sweeper_learns)
            if config.launcher.wait and launched.job is not None:
                self._waited_for.append(config)
            return launched
        return launch(config, command, own_process=False) if point is None else run_point(point, config, command)

    def carry_out(self, hydra_run: Callable[[], object]) -> int:
        """Let Hydra call `run`, wait for the jobs that are to be waited for, and show the sweep. Returns the exit code of train.py."""
        try:
            with stopped_at_once(), met():
                hydra_run()
                self._launches += wait_for_all(self._waited_for)
        except SlayerError as error:
            return ended_by(error).exit_code
        except KeyboardInterrupt:
            if self._launches and self._sweep_dir is None:  # it had ended already: a launcher ends all ranks with the first that does
                return self._launches[-1].exit_code
            if speaks():
                print("stopped; the same command goes on", file=sys.stderr)
            return max(REQUEUE_EXIT_CODE, *(launched.exit_code for launched in self._launches), 0)
        finally:
            if self._sweep_dir is not None:
                self._show_sweep(self._sweep_dir)
        return max((launched.exit_code for launched in self._launches), default=0)

    def _show_sweep(self, sweep_dir: Path) -> None:
        from slayer.reporting.console import print_next
        from slayer.reporting.sweep_table import print_sweep

        print_sweep(sweep_dir)
        if any(launched.job is not None for launched in self._launches):
            print_next([(f"python -m slayer.launching status {shlex.quote(str(sweep_dir))}", "how its jobs stand")])
