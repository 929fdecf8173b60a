"""python -m slayer.launching status [RUNS …] [--json]: how runs stand, on this machine and in the queue of SLURM."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from slayer.errors import SlayerError
from slayer.launching.local import REFUSED_EXIT_CODE
from slayer.launching.status import status
from slayer.reporting.console import print_error
from slayer.secrets import guard_streams

USAGE = """python -m slayer.launching status [RUNS …] [--json]

  status    pending, running, requeued, stopped, failed or done; step, loss, last change and time left

RUNS are run folders, sweep folders or folders of runs; runs where nothing is typed."""


def main(words: Sequence[str]) -> int:
    """Exit code 0, also when runs have failed; 2 where there is nothing to tell of."""
    options, names = {word for word in words if word.startswith("-")}, [word for word in words if not word.startswith("-")]
    if {"-h", "--help"} & options:
        print(USAGE)
        return 0
    if names[:1] != ["status"] or options - {"--json"}:
        print(USAGE, file=sys.stderr)
        return REFUSED_EXIT_CODE
    try:
        status(names[1:] or ["runs"], as_json="--json" in options)
    except SlayerError as error:
        print_error(error)
        return REFUSED_EXIT_CODE
    return 0


if __name__ == "__main__":
    guard_streams()
    sys.exit(main(sys.argv[1:]))
