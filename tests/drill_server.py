"""Real ranks of train.py in a tenth of a second: forked from processes that have paid for all imports.

A server is this file as a process of its own. It has one thread, so a fork of it is whole; each has a hash seed of its own, and what comes
to depend on the order of a set differs between starts and between ranks, as it would between processes that began from nothing.
"""

from __future__ import annotations

import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from drill_ledger import recording
from drill_phases import signalling

TESTS = Path(__file__).parent
ROOT = TESTS.parent

POLL_SECONDS = 0.002


@dataclass(frozen=True, kw_only=True)
class _Rank:
    server: subprocess.Popen[str]
    pid: int


class Started:
    """The ranks of one start of a run."""

    def __init__(self, ranks: Sequence[_Rank], log: Path) -> None:
        self._ranks = ranks
        self.log = log
        self.codes: list[int | None] = [None] * len(ranks)
        """Exit code of each rank, negative: the signal that killed it; None while it runs."""

    def poll(self) -> bool:
        """Whether all have ended; brings `codes` up to date."""
        for rank, process in enumerate(self._ranks):
            if self.codes[rank] is None:
                self.codes[rank] = _ask(process.server, {"poll": process.pid})
        return None not in self.codes

    def wait(self, seconds: float) -> bool:
        """Return when all have ended, or when the time is over; whether they have."""
        until = time.monotonic() + seconds
        while not (ended := self.poll()) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return ended

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to all ranks that still run, or to those named."""
        self.poll()
        for rank in range(len(self._ranks)) if ranks is None else ranks:
            if self.codes[rank] is None:
                os.kill(self._ranks[rank].pid, number)  # not yet waited for by the server, so the id is still its own

    def left_over(self) -> list[int]:
        """Processes that the ranks started and left behind: whoever is still in a session of theirs."""
        return [process for rank in self._ranks for process in _in_session(rank.pid)]


class RankServers:
    """Starts train.py as torchrun would: the same words for every rank, and who it is in the environment."""

    def __init__(self, number: int = 2) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
        self._servers = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__))], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
                env={**environment, **settings, "PYTHONHASHSEED": str(seed)},
            )
            for seed in range(1, number + 1)
        ]  # fmt: skip

    def __enter__(self) -> RankServers:
        """Returns when all imports are paid for."""
        for server in self._servers:
            _ask(server, {"poll": 0})
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.communicate()

    def start(self, words: Sequence[str], *, ranks: int = 1, log: Path, chance: random.Random | None = None, **environment: str) -> Started:
        """Run `train.py WORDS` in so many ranks, forked from servers drawn by `chance`. What they print is added to `log`."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        started = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} if ranks > 1 else {}
            server = (chance or random).choice(self._servers)
            pid = _ask(server, {"words": list(words), "environment": {**environment, **own}, "log": str(log)})
            started.append(_Rank(server=server, pid=pid))
        return Started(started, log)

    def run(self, words: Sequence[str], *, seconds: float = 120, ranks: int = 1, log: Path, **environment: str) -> list[int]:
        """Start and wait for the end: the exit codes. TimeoutError when they have not ended by then; they are killed."""
        started = self.start(words, ranks=ranks, log=log, **environment)
        if not started.wait(seconds):
            started.signal(signal.SIGKILL)
            started.wait(10)
            raise TimeoutError(f"{' '.join(words)} has not ended within {seconds:g} s:\n{tail(log)}")
        return [code for code in started.codes if code is not None]


def _ask(server: subprocess.Popen[str], request: dict[str, Any]) -> Any:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    reply = server.stdout.readline()
    if not reply:
        raise RuntimeError(f"the server that forks ranks has ended with exit code {server.wait()}")
    return json.loads(reply)


def _in_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(") ")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(its_session) == session and state != "Z":
            found.append(int(entry.name))
    return found


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of what ranks have printed."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def import_everything() -> None:
    """What the ranks would import one by one. It starts no thread of ours: a fork is whole."""
    import datasets  # noqa: F401
    import datasketch  # noqa: F401
    import deepspeed.module_inject
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import hydra  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import slayer.launching.help
    import slayer.launching.sweep
    import slayer.pipeline  # noqa: F401


def serve(requests: IO[str], replies: IO[str]) -> dict[str, Any] | None:
    """Answer until the other side is gone. In a forked rank: what it was asked to be."""
    codes: dict[int, int] = {}
    while line := requests.readline():
        request = json.loads(line)
        if "poll" in request:
            pid = request["poll"]
            if pid and pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                codes |= {pid: os.waitstatus_to_exitcode(status)} if ended else {}
            answer = codes.get(pid)
        else:
            answer = os.fork()
            if answer == 0:
                return dict(request)
            codes.pop(answer, None)  # numbers of processes come again
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    return None


def become_rank(request: dict[str, Any]) -> None:
    """Run train.py as if this process had just begun, and end with its exit code.

    What the interpreter does after that (two seconds of tearing down what all forks share) is left out.
    """
    import numpy as np
    import torch

    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    random.seed()  # as in any process that begins; a fork would go on with what its server had drawn
    np.random.seed()
    torch.seed()
    sys.argv = ["train.py", *request["words"]]
    with recording(), signalling():
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as ending:
            code = ending.code
        except BaseException:
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import_everything()
    gc.freeze()  # so that collections in the ranks leave the shared memory alone
    asked = serve(sys.stdin, sys.stdout)
    if asked is not None:
        become_rank(asked)
