"""Processes of a run, as far as one process can show; two of them are in tests/distributed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from slayer.errors import EngineError
from slayer.training.ranks import LostRankError, Ranks, interface_towards, is_lost_rank, open_ranks, require_free_port


def test_one_process_is_first_of_one(ranks: Ranks) -> None:
    assert (ranks.rank, ranks.world, ranks.is_first) == (0, 1, True)
    assert ranks.gather({"any": "thing"}) == ranks.gather_aside({"any": "thing"}) == [{"any": "thing"}]
    assert torch.equal(ranks.sum(torch.tensor([2.0])), torch.tensor([2.0]))
    assert ranks.any(True) and not ranks.any(False)
    ranks.wait()


def test_an_open_group_is_used_and_left_open(ranks: Ranks) -> None:
    with open_ranks() as inner:
        assert inner is ranks
    assert dist.is_initialized()


def test_a_group_is_closed_and_can_be_opened_again() -> None:
    code = """
import torch.distributed as dist
from slayer.training.ranks import open_ranks
for number in range(3):
    try:
        with open_ranks() as ranks:
            assert dist.is_initialized() and ranks.world == 1
            if number == 1:
                raise ValueError
    except ValueError:
        pass
    assert not dist.is_initialized()
"""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_port_in_use_is_one_clear_message() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=rf"launcher\.port={port} .*launcher\.port=0"):
            require_free_port(port)
    require_free_port(port)
    require_free_port(0)


def test_ranks_that_cannot_meet_are_told_why() -> None:
    """A rank of two without an address to meet at."""
    code = "from slayer.training.ranks import open_ranks\nwith open_ranks(): pass"
    hidden = ("MASTER_ADDR", "MASTER_PORT")
    environment = {**{key: value for key, value in os.environ.items() if key not in hidden}, "RANK": "1", "WORLD_SIZE": "2"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    assert "EngineError: the 2 ranks could not meet" in ended.stderr and "MASTER_ADDR" in ended.stderr


@pytest.mark.parametrize(
    "error",
    [
        LostRankError("rank 0, through which the ranks meet, is gone"),
        RuntimeError("[/src/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:6018."),
        RuntimeError("[/src/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete"),
        dist.DistNetworkError("Connection reset by peer"),
        dist.DistStoreError("wait timeout after 1000ms"),
        dist.DistBackendError("NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"),
    ],
)
def test_a_lost_rank_is_known_by_its_error(error: Exception) -> None:
    assert is_lost_rank(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("[enforce fail at /src/gloo/gloo/allreduce.cc:32] opts.elements > 0"),
        RuntimeError("Invalid scalar type"),
        dist.DistBackendError("NCCL error: ncclInvalidUsage: Duplicate GPU detected"),
        EngineError("no such device"),
        ValueError("gloo/transport/"),
        MemoryError(),
    ],
)
def test_a_fault_of_ours_is_not_taken_for_a_lost_rank(error: Exception) -> None:
    assert not is_lost_rank(error)


def test_a_rank_that_waits_for_the_others_to_come_hears_signals() -> None:
    code = "from slayer.training.ranks import open_ranks\nfrom slayer.training.signals import stopped_at_once\nimport torch\n"
    code += "with stopped_at_once():\n    print(flush=True)\n    with open_ranks(): pass"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    program = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **meeting}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "\n"
    time.sleep(0.5)
    program.send_signal(signal.SIGTERM)
    assert "Stopped: SIGTERM" in program.communicate(timeout=20)[1]


def test_alone_everything_is_agreed_on(ranks: Ranks) -> None:
    assert ranks.together(lambda: 7) == 7
    ranks.agree_on(None)
    problem = EngineError("as it is")
    with pytest.raises(EngineError) as caught:
        ranks.agree_on(problem)
    assert caught.value is problem


def test_gloo_is_told_of_an_interface_only_where_another_host_is_meant() -> None:
    """The others are in tests/reliability/test_two_hosts.py."""
    assert [interface_towards(address) for address in ("127.0.0.1", "localhost", "::1", "")] == [None] * 4


def test_a_port_that_is_taken_in_a_job_is_a_loss() -> None:
    """The next start of the job takes another port; anywhere else a person must choose."""
    program = """
from slayer.errors import EngineError
from slayer.training.ranks import is_lost_rank, open_ranks
try:
    with open_ranks():
        pass
except EngineError as error:
    print(is_lost_rank(error), error)
"""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        own = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for job, told in (({}, "False the 2 ranks could not meet"), ({"SLURM_JOB_ID": "7"}, "True port ")):
            environment = {**{name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}, **own, **job}
            done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert done.stdout.startswith(told), done.stdout + done.stderr
