"""What becomes of a task of SLURM: its place, its signals, and its end with the daemon that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.launching.task import FIRST_PORT, PORTS, STOPS, place
from slayer.training import signals

SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}


def started(code: str, environment: Mapping[str, str] = SLURM) -> subprocess.Popen[str]:
    """A rank that is a small program."""
    words = [sys.executable, "-m", "slayer.launching.task", sys.executable, "-c", code]
    return subprocess.Popen(words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


def test_its_place_is_what_torchrun_would_say() -> None:
    assert place(SLURM) == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": str(FIRST_PORT + 12 * 16)}


def test_the_owner_may_name_the_meeting_place() -> None:
    own = place({**SLURM, "MASTER_ADDR": "ib-node7", "MASTER_PORT": "29500"})
    assert (own["MASTER_ADDR"], own["MASTER_PORT"]) == ("ib-node7", "29500")


@pytest.mark.parametrize(("devices", "local"), [("0,1,2,3", "1"), ("0", "0"), ("3", "0"), ("", "1"), (None, "1")])
def test_a_rank_that_sees_one_device_uses_it(devices: str | None, local: str) -> None:
    assert place({**SLURM, **({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})})["LOCAL_RANK"] == local


@given(st.integers(1, 10**8), st.integers(0, 200))
def test_starts_of_a_job_and_jobs_beside_each_other_do_not_meet(job: int, start: int) -> None:
    def port(job: int, start: int) -> int:
        return int(place({**SLURM, "SLURM_JOB_ID": str(job), "SLURM_RESTART_COUNT": str(start)})["MASTER_PORT"])

    assert FIRST_PORT <= port(job, start) < FIRST_PORT + PORTS <= 32_768  # below the ports that Linux gives to clients
    near = [port(job, start + more) for more in range(1, 15)] + [port(job + more, other) for more in range(1, 30) for other in range(16)]
    assert port(job, start) not in near


def test_it_holds_back_what_the_ranks_listen_to() -> None:
    assert STOPS == signals.STOPS


def test_signals_that_come_early_are_heard_late() -> None:
    code = """
import signal, time
print("up", flush=True)
time.sleep(1)
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
"""
    rank = started(code)
    assert rank.stdout is not None and rank.stdout.readline() == "up\n"
    rank.send_signal(signal.SIGUSR1)
    assert rank.stdout.read() == "heard\n" and rank.wait(20) == 0


def test_a_rank_whose_daemon_is_killed_is_told_to_stop() -> None:
    code = """
import signal, sys, time, os
def leave(*_):
    os.write(1, b"told\\n"); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print(os.getpid(), flush=True)
time.sleep(60)
"""
    words = [sys.executable, "-m", "slayer.launching.task", sys.executable, "-c", code]
    parent = f"import subprocess, time; subprocess.Popen({words!r}); time.sleep(60)"
    daemon = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, **SLURM}, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    rank = psutil.Process(int(daemon.stdout.readline()))
    daemon.kill()
    assert daemon.stdout.read() == "told\n"
    until = time.monotonic() + 20
    while rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE


def test_outside_a_job_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slayer.launching.task", "true"], env={name: value for name, value in os.environ.items() if "SLURM" not in name},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "SLURM_LOCALID is not set: type this behind srun" in done.stderr
