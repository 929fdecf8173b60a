"""What each rank runs: `python -m slayer.launching.worker RUN_FOLDER COMMAND`. Reads the frozen config.yaml of the folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from slayer.config import load_config
from slayer.launching.local import run_here
from slayer.launching.restarts import FAILURE_NAME
from slayer.secrets import guard_streams
from slayer.training.signals import REQUEUE_EXIT_CODE, stopped_at_once


def main(arguments: list[str]) -> int:
    """Run, and leave the reason of a failure for whoever started this process."""
    folder, command = Path(arguments[0]), arguments[1]
    try:
        with stopped_at_once():
            launched = run_here(load_config(folder / "config.yaml"), command)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("stopped before it had begun", file=sys.stderr)
        return REQUEUE_EXIT_CODE
    failure = folder / FAILURE_NAME
    # Ranks that lose the one that failed are not what a person wants to read about.
    if launched.error is not None and (launched.exit_code != REQUEUE_EXIT_CODE or not failure.exists()):
        failure.write_text(launched.error, encoding="utf-8")
    return launched.exit_code


if __name__ == "__main__":
    guard_streams()
    sys.exit(main(sys.argv[1:]))
