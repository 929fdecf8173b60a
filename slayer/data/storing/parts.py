"""Big work cut into parts, a file each: done on all cores, gone on with after a kill, shared by processes that want the same.

A folder of parts holds part-00000.arrow, part-00001.arrow, … each beside a part-00000.json of facts about it that is written last, and at the
very end index.json with all facts: the folder is whole if and only if that file exists.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

from slayer.data.cache import STALE_SECONDS, fsync, one_at_a_time, write_file
from slayer.errors import DataError

Progress = Callable[[str, int, int], None]
"""(label, done, in all): documents, or megabytes while files are read. Comes last with done == in all."""

Facts = dict[str, Any]
"""What is known of a part, small and JSON-able."""

Work = Callable[[int, Path], Facts]
"""(number of the part, file to write) → its facts. Picklable; the same number gives the same file, whoever does it."""

SMALL_JOB_BYTES = 16 << 20
"""Less than this is done in this process, before others have even started."""

POLL_SECONDS = 0.5
"""Progress is reported at least so often, even where there is none: whoever is told may want to stop."""

QUEUED = 4
"""Parts handed out per process: enough that none waits for the next one."""

INDEX = "index.json"
LOCK = ".lock"

SHIELDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that stop a run: its own to answer, not its workers', to which a terminal or a scheduler sends them too."""

SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""A process per core is parallel enough."""


class Workers:
    """Processes that make parts; they start with the first job that is worth it and end with this process, however it ends.

    `processes`: how many; None: one for each core this process may use.
    """

    def __init__(self, processes: int | None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.processes = cores if processes is None else processes
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close(at_once=kind is not None)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a module-level function in one of the processes."""
        if self._pool is None:
            held, self._lifeline = multiprocessing.Pipe(duplex=False)
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads (torch, MPI) may hang
            self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_begin, initargs=(held,))
        with _bare_start():
            return self._pool.submit(function, *arguments)

    def close(self, *, at_once: bool) -> None:
        """End the processes; `at_once`: in the middle of their work, which is done again when it is next asked for."""
        pool, lifeline = self._pool, self._lifeline
        self._pool = self._lifeline = None
        if pool is None or lifeline is None:
            return
        if at_once:
            lifeline.close()
        pool.shutdown(wait=True)
        lifeline.close()


def _begin(lifeline: Connection) -> None:
    """First thing a worker does: a stop is the parent's to answer, one thread is enough, and nobody outlives the parent."""
    for number in SHIELDED:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(SINGLE_THREADED)
    Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()


def _end_with_parent(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent: this returns when the other end is closed, by a kill too
    os._exit(1)


@contextmanager
def _bare_start() -> Iterator[None]:
    """While processes start: keep stops from their first moments, and the caller's main module out of them.

    A spawned process imports the main module of its parent again. Ours need nothing from it, and it may import torch, lack the
    `if __name__ == "__main__"` guard, or be a notebook.
    """
    main = sys.modules["__main__"]
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


class _Meter:
    """Reports how much of a job is done. `amounts` of all parts, shown in multiples of `unit`."""

    def __init__(self, label: str, amounts: Sequence[int], unit: int, on_progress: Progress | None) -> None:
        self.label, self._amounts, self._unit, self._on_progress = label, amounts, unit, on_progress
        self._total = math.ceil(sum(amounts) / unit)
        self._finished: set[int] = set()
        self._shown = -1

    def finished(self, numbers: Sequence[int]) -> None:
        """These parts are done, besides those known before."""
        self._finished.update(numbers)
        whole = len(self._finished) == len(self._amounts)
        done = self._total if whole else sum(self._amounts[number] for number in self._finished) // self._unit
        if done > self._shown:
            self._shown = done
            self.report()

    def report(self) -> None:
        """Say how much is done."""
        if self._on_progress is not None and self._total:
            self._on_progress(self.label, max(0, self._shown), self._total)


def part_path(folder: Path, number: int) -> Path:
    """File of a part."""
    return folder / f"part-{number:05d}.arrow"


def is_whole(folder: Path) -> bool:
    """Whether all parts are there."""
    return (folder / INDEX).is_file()


def damaged(folder: Path, why: object) -> DataError:
    """What to say of a folder of the cache that cannot be used."""
    return DataError(f"{folder} is damaged ({why})\n    type: rm -r {folder}   (it is made again)")


def read_index(folder: Path) -> list[Facts]:
    """Facts of every part, in order; DataError when a file is missing or was cut short."""
    try:
        index: list[Facts] = json.loads((folder / INDEX).read_bytes())["parts"]
        for number, facts in enumerate(index):
            size_bytes = part_path(folder, number).stat().st_size
            if size_bytes != facts["file_bytes"]:
                raise ValueError(f"{part_path(folder, number).name} has {size_bytes} bytes instead of {facts['file_bytes']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from error
    return index


def build_parts(
    folder: Path,
    work: Work,
    sizes_bytes: Sequence[int],
    *,
    label: str,
    workers: Workers,
    on_progress: Progress | None = None,
    documents: Sequence[int] | None = None,
) -> None:
    """Make the folder whole: do the parts that nobody has done yet, on all of `workers`.

    `sizes_bytes`: about how much work each part is. Progress counts `documents` of each part where they are given, else megabytes.
    Of several processes that want the same folder one builds and the others wait, showing its progress; when it dies another takes
    over. Whatever is killed, finished parts stay. An error of `work` (a full disk too) reaches the caller as itself.
    """
    meter = _Meter(label, sizes_bytes, 1_000_000, on_progress) if documents is None else _Meter(label, documents, 1, on_progress)
    everything = range(len(sizes_bytes))
    if is_whole(folder):
        meter.finished(everything)
        return
    folder.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        meter.finished(_present(folder, len(sizes_bytes)))
        meter.report()

    with one_at_a_time(folder / LOCK, waiting) as alone:
        if is_whole(folder):
            meter.finished(everything)
            return
        _clear_scratch(folder, 0 if alone else STALE_SECONDS)
        facts = _done_before(folder, len(sizes_bytes))
        meter.finished(list(facts))
        missing = [number for number in everything if number not in facts]
        if sum(sizes_bytes[number] for number in missing) < SMALL_JOB_BYTES:
            finished: Iterator[tuple[int, Facts]] = ((number, _make_part(work, folder, number)) for number in missing)
        else:
            finished = _make_elsewhere(folder, work, missing, workers, meter)
        for number, made in finished:
            facts[number] = made
            meter.finished([number])
        write_file(folder / INDEX, json.dumps({"parts": [facts[number] for number in everything]}).encode(), durable=True)


def _make_elsewhere(folder: Path, work: Work, missing: Sequence[int], workers: Workers, meter: _Meter) -> Iterator[tuple[int, Facts]]:
    """(number, facts) of each part as it is finished by one of the workers, in any order."""
    # Sent once for each worker instead of once for each part, since it may hold a vocabulary; in a file that only this user can read or write.
    descriptor, name = tempfile.mkstemp(prefix="slayer-work-")
    sent = Path(name)
    waiting, running = iter(missing), dict[Future[Facts], int]()
    try:
        with os.fdopen(descriptor, "wb") as stream:
            pickle.dump(work, stream)
        while True:
            for number in islice(waiting, QUEUED * workers.processes - len(running)):
                running[workers.submit(_make_part_of, str(sent), str(folder), number)] = number
            if not running:
                return
            finished, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            if not finished:
                meter.report()
            for future in finished:
                yield running.pop(future), future.result()
    except BaseException as error:  # an error of the work, or Ctrl-C: nobody wants the rest
        workers.close(at_once=True)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise DataError(
            f"{meter.label}: a process that worked on it was killed, perhaps for want of memory\n"
            f"    type: the same command with data.processes={max(1, workers.processes // 2)}   (what was finished is kept)"
        ) from error
    finally:
        sent.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _received(sent: str) -> Work:
    work: Work = pickle.loads(Path(sent).read_bytes())
    return work


def _make_part_of(sent: str, folder: str, number: int) -> Facts:
    return _make_part(_received(sent), Path(folder), number)


def _make_part(work: Work, folder: Path, number: int) -> Facts:
    target = part_path(folder, number)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        facts = work(number, scratch)
        fsync(scratch)
        facts = {**facts, "file_bytes": scratch.stat().st_size}
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    write_file(target.with_suffix(".json"), json.dumps(facts).encode(), durable=True)
    return facts


def _present(folder: Path, n_parts: int) -> list[int]:
    """Parts that seem done, at a glance."""
    names = {entry.name for entry in os.scandir(folder)}
    return [number for number in range(n_parts) if part_path(folder, number).with_suffix(".json").name in names]


def _done_before(folder: Path, n_parts: int) -> dict[int, Facts]:
    """Facts of the parts that are there and whole."""
    done = {}
    for number in _present(folder, n_parts):
        path = part_path(folder, number)
        try:
            facts = json.loads(path.with_suffix(".json").read_bytes())
            if path.stat().st_size == facts["file_bytes"]:
                done[number] = facts
        except (OSError, ValueError, KeyError, TypeError):  # what a power cut leaves; it is made again
            continue
    return done


def _clear_scratch(folder: Path, age_seconds: int) -> None:
    """Remove what killed builders left half-written."""
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and entry.name != LOCK:
            try:
                if time.time() - entry.stat().st_mtime >= age_seconds:
                    os.unlink(entry.path)
            except FileNotFoundError:
                continue
