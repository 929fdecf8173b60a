"""What each rank runs: `python -m slayer.launching.worker RUN_FOLDER COMMAND`. Reads the frozen config.yaml of the folder."""

from __future__ import annotations

import sys
from pathlib import Path

from slayer.config import load_config
from slayer.launching.local import run_here


def main(arguments: list[str]) -> int:
    """Run, and leave the reason of a failure in failure.txt for whoever started this process."""
    folder, command = Path(arguments[0]), arguments[1]
    config = load_config(folder / "config.yaml")
    launched = run_here(config, command)
    if launched.error is not None:
        (folder / "failure.txt").write_text(launched.error, encoding="utf-8")
    return launched.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
