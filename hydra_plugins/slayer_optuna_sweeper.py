"""hydra/sweeper=optuna: what Hydra needs to find slayer.launching.search, and no more. Hydra imports this module at every start."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

KEYS = {"_target_": f"{__name__}.OptunaSweeper", "n_trials": 20, "n_startup_trials": 10, "seed": 0}
"""Below hydra.sweeper. slayer.launching.search says what they mean, and judges them."""

ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=KEYS, provider="slayer")


class OptunaSweeper(Sweeper):
    """Hands the words of a command line, and a way to launch a point, to the search."""

    def __init__(self, **settings: int) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Called by Hydra before `sweep`."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher: Any = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Called by Hydra with the words of the command line that are not about Hydra."""
        from slayer.launching.search import Settings, search

        def run(number: int, overrides: list[str]) -> float:
            (job,) = self.launcher.launch([overrides], initial_job_idx=number)
            return float(job.return_value)

        search(arguments, self.config.hydra.sweep.dir, Settings(**self.settings), run, self.hydra_context.config_loader)
