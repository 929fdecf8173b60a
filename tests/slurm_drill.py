"""python -m tests.slurm_drill [CASE …]: what may happen to a job, on a real SLURM that it starts and takes down; ends with a table.

    python -m tests.slurm_drill
    python -m tests.slurm_drill time_limit preempted_at_once

It takes Debian's packages slurmctld, slurmd, slurm-client and munge, and root. Exit code 0 only when all went as it must.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "slurm")]

from local_cluster import local_cluster, why_not  # noqa: E402
from slurm_cases import CASES  # noqa: E402
from slurm_workspace import Workspace  # noqa: E402

from slayer.reporting.console import open_console  # noqa: E402


def main(arguments: list[str]) -> int:
    """Exit code: 0 when all went as it must, 1 when something did not, 2 where no cluster can be started."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm_drill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(case.name for case in CASES)}; default: all")
    asked = parser.parse_args(arguments)
    unknown = set(asked.cases) - {case.name for case in CASES}
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    reason = why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    console, folder, failed = open_console(), Path(tempfile.mkdtemp(prefix="slurm-drill-")), 0
    print("| what happens | what must come of it | what was seen | seconds |\n| --- | --- | --- | --- |", flush=True)
    with local_cluster() as cluster:
        os.environ.update({name: cluster.environment[name] for name in ("PATH", "SLURM_CONF")})
        work = Workspace(cluster, folder)
        for case in CASES:
            if asked.cases and case.name not in asked.cases:
                continue
            began = time.monotonic()
            try:
                seen = case.run(work)
            except Exception as error:  # whatever it is, the other cases have their turn
                failed += 1
                seen = f"FAILED: {type(error).__name__}: {error}"
                cluster.run("scancel", "--user=root", check=False)
            print(f"| {case.name.replace('_', ' ')} | {case.must} | {seen} | {time.monotonic() - began:.0f} |", flush=True)
    if failed:
        console.print(f"{failed} went wrong; what is left of them is in {folder}", soft_wrap=True)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
