"""A lock in the cache: one process at a time, and no dead or late one that blocks the others for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from slayer.data import cache
from slayer.data.cache import one_at_a_time

fork = multiprocessing.get_context("fork")


def append_slowly(lock: Path, diary: Path, started: object) -> None:
    started.wait()  # type: ignore[attr-defined]
    with one_at_a_time(lock) as alone, diary.open("a", encoding="utf-8") as lines:
        assert alone
        lines.write(f"{os.getpid()}\n")
        lines.flush()
        time.sleep(0.05)
        lines.write(f"{os.getpid()}\n")


def test_processes_come_one_after_the_other(tmp_path: Path) -> None:
    started = fork.Barrier(4)
    processes = [fork.Process(target=append_slowly, args=(tmp_path / "x.lock", tmp_path / "diary", started)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    lines = (tmp_path / "diary").read_text(encoding="utf-8").split()
    assert lines[::2] == lines[1::2] and sorted(set(lines)) == sorted(str(process.pid) for process in processes)


def hold(lock: Path, held: object) -> None:
    with one_at_a_time(lock):
        held.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_killed_owner_blocks_nobody(tmp_path: Path) -> None:
    held = fork.Event()
    owner = fork.Process(target=hold, args=(tmp_path / "x.lock", held))
    owner.start()
    assert held.wait(10) and owner.pid is not None
    told = []

    def waiting() -> None:
        told.append(time.monotonic())
        if len(told) == 2:
            os.kill(owner.pid, signal.SIGKILL)  # type: ignore[arg-type]

    with one_at_a_time(tmp_path / "x.lock", waiting) as alone:
        assert alone and len(told) >= 2
    owner.join(5)


def test_who_waits_may_stop(tmp_path: Path) -> None:
    held = fork.Event()
    owner = fork.Process(target=hold, args=(tmp_path / "x.lock", held))
    owner.start()
    assert held.wait(10)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), one_at_a_time(tmp_path / "x.lock", stop):
        pytest.fail("the lock is another's")
    owner.kill()
    owner.join(5)


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in cache.NO_LOCKS:

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", refuse)
        with one_at_a_time(tmp_path / "x.lock") as alone:
            assert not alone
