"""python train.py [KEY=VALUE …]: plan → build → prove → train → export → compare → report. `--help` explains every key."""

from __future__ import annotations

import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

from slayer.launching.commandline import CONF, only_prints
from slayer.launching.help import print_help
from slayer.launching.joined import own_words, speaks
from slayer.launching.local import REFUSED_EXIT_CODE
from slayer.launching.training import Training
from slayer.launching.versions import installation_problem
from slayer.reporting.console import print_error
from slayer.secrets import guard_streams

training = Training()


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run(composed: Any) -> float:
    """One run, or one point of a sweep."""
    return training.run(composed, HydraConfig.get())


def main() -> int:
    """Exit code: 0 all finished, 2 something to mend, 75 stopped on request and saved, hung, or killed: start it again and it goes on."""
    problem = installation_problem()
    if problem is not None:
        print_error(problem)
        return REFUSED_EXIT_CODE
    typed = own_words(sys.argv[1:])
    asks_for_help = bool({"--help", "-h"} & set(typed))
    if not speaks() and (asks_for_help or only_prints(typed)):
        return 0
    if asks_for_help:
        print_help()
        return 0
    words = training.read(typed)
    if words is None:
        return REFUSED_EXIT_CODE
    sys.argv[1:] = words
    return training.carry_out(run)


if __name__ == "__main__":
    guard_streams()
    sys.exit(main())
