"""Several ranks in a fraction of a second: processes forked from one that has paid for all imports."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable

import pytest


def run_forked(function: Callable[..., None], world: int, *arguments: object, seconds: float = 150, preload: str | None = None) -> None:
    """Call `function(*arguments)` in so many ranks of a run and wait for them; fails when one of them does.

    What the module of `function` imports, or the module `preload`, is paid for once.
    """
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        # The fork server has to find what it imports for all.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
        context.set_forkserver_preload([preload or function.__module__])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        ranks = [context.Process(target=_become, args=(function, rank, world, port, arguments), daemon=True) for rank in range(world)]
        for rank in ranks:
            rank.start()
        until = time.monotonic() + seconds
        for rank in ranks:
            rank.join(max(until - time.monotonic(), 0))
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.join()
    assert codes == [0] * world, f"exit codes {codes}; what they said stands above"


def _become(function: Callable[..., None], rank: int, world: int, port: int, arguments: tuple[object, ...]) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    function(*arguments)
