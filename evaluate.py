"""python evaluate.py checkpoint=RUN [base=…] [suite=NAME]: what a model learnt and what it forgot. `--help` explains each key."""

from __future__ import annotations

import sys
from typing import Any

import hydra

from slayer.config import EvaluationConfig
from slayer.errors import Problem, SlayerError
from slayer.launching.commandline import CONF, tolerant
from slayer.launching.compose import resolved
from slayer.launching.evaluation import run_evaluation, validate_evaluation
from slayer.launching.help import print_evaluation_help
from slayer.launching.local import as_message
from slayer.launching.versions import installation_problem
from slayer.reporting.console import print_error
from slayer.secrets import guard_streams

refused: list[Problem] = []
exit_codes: list[int] = []


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
def run(composed: Any) -> None:
    """One evaluation."""
    try:
        values, unresolved = resolved(composed)
        run_evaluation(validate_evaluation(values, [*refused, *unresolved]))
        exit_codes.append(0)
    except (SlayerError, OSError) as error:
        print_error(as_message(error))
        exit_codes.append(2)


def main() -> int:
    """Exit code: 0 evaluated, 2 something to mend, 130 interrupted."""
    problem = installation_problem()
    if problem is not None:
        print_error(problem)
        return 2
    if {"--help", "-h"} & set(sys.argv[1:]):
        print_evaluation_help()
        return 0
    sys.argv[1:], refused[:] = tolerant(sys.argv[1:], EvaluationConfig)
    try:
        run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the tasks that were finished", file=sys.stderr)
        return 130
    return max(exit_codes, default=0)


if __name__ == "__main__":
    guard_streams()
    sys.exit(main())
