"""Processes of a run, as far as one process can show; two of them are in tests/distributed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from slayer.errors import EngineError
from slayer.training.ranks import Ranks, open_ranks, require_free_port


def test_one_process_is_first_of_one(ranks: Ranks) -> None:
    assert (ranks.rank, ranks.world, ranks.is_first) == (0, 1, True)
    assert ranks.gather({"any": "thing"}) == [{"any": "thing"}]
    assert torch.equal(ranks.sum(torch.tensor([2.0])), torch.tensor([2.0]))
    ranks.wait()


def test_an_open_group_is_used_and_left_open(ranks: Ranks) -> None:
    with open_ranks() as inner:
        assert inner == ranks
    assert torch.distributed.is_initialized()


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
