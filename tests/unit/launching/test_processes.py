"""Ranks are started together, hear signals, and end together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from slayer.launching import processes
from slayer.launching.processes import run_ranks, threads_per_rank


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_every_rank_knows_its_place(tmp_path: Path) -> None:
    keys = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    code = f"import os; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(' '.join(os.environ[k] for k in {keys}))"
    assert run_ranks(python(code), processes=3, port=0, environment=dict(os.environ)) == 0
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [entry[:2] for entry in told] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert len({entry[2] for entry in told}) == 1 and int(told[0][2]) > 0


def test_one_process_is_not_told_of_ranks(tmp_path: Path) -> None:
    code = "import os, sys; sys.exit('RANK' in os.environ or 'MASTER_PORT' in os.environ)"
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "MASTER_PORT")}
    assert run_ranks(python(code), processes=1, port=0, environment=environment) == 0


def test_the_first_failure_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    code = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    started = time.monotonic()
    assert run_ranks(python(code), processes=2, port=0, environment=dict(os.environ)) == 7
    assert time.monotonic() - started < 20


def test_each_rank_hears_a_signal_once(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
name = r'{tmp_path}/' + os.environ['RANK']
open(name + '.ready', 'w').close()
while not heard:
    time.sleep(0.01)
time.sleep(0.5)
open(name, 'w').write(str(len(heard)))
"""

    def interrupt() -> None:
        while len(list(tmp_path.glob("*.ready"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run_ranks(python(code), processes=2, port=0, environment=dict(os.environ)) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["1", "1"]


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads_per_rank(count) for count in (1, 3, 16)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_per_rank(2) == "5"
