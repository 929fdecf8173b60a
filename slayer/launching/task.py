"""python -m slayer.launching.task COMMAND …: what srun starts once for each rank. It takes its place from SLURM and becomes the command.

It imports little: until the signals of a stop are held back, one of them would end the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
FIRST_PORT, PORTS, STARTS = 15_000, 16_384, 16
"""Rendezvous ports lie below those that systems give to clients; each start of a job has its own, so that a rank which a lost node has left
behind meets nobody."""
PR_SET_PDEATHSIG = 1


def place(slurm: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would set, from those that srun sets in each task. KeyError outside a job step."""
    local, start = int(slurm["SLURM_LOCALID"]), int(slurm.get("SLURM_RESTART_COUNT", "0"))
    devices = slurm.get("CUDA_VISIBLE_DEVICES")
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": str(local % len(devices.split(","))) if devices else str(local),  # --gpus-per-task shows each rank its own device as 0
        # The node on which the script runs srun, where rank 0 is; the address by which the other nodes were reached from it.
        "MASTER_ADDR": slurm.get("MASTER_ADDR") or slurm["SLURM_LAUNCH_NODE_IPADDR"],
        "MASTER_PORT": slurm.get("MASTER_PORT") or str(FIRST_PORT + (int(slurm["SLURM_JOB_ID"]) * STARTS + start % STARTS) % PORTS),
    }


def main(command: list[str]) -> int:
    """Become `command`; returns only where that is impossible."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # whoever listens unblocks them, and hears what has come meanwhile
    # Without the daemon that started it a rank can no longer be ended by SLURM, which starts the job anew: it saves and leaves.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        environment = {**os.environ, **place(os.environ)}
    except KeyError as missing:
        print(f"{missing.args[0]} is not set: type this behind srun, in a job of SLURM", file=sys.stderr)
        return 2
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
