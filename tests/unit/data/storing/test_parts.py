"""Parts: what is built, whoever is killed, fails or waits meanwhile. Other processes are real ones."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from slow_work import LARGE, PROBLEM, SlowWork, content

from slayer.data.document import SourceError
from slayer.data.storing.parts import Workers, build_parts, is_whole, part_path, read_index
from slayer.errors import DataError

PARTS = 8
SIZES_BYTES = [1000 * (number + 1) for number in range(PARTS)]
PATIENCE_SECONDS = 20


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "parts"


def start(folder: Path, traces: Path, processes: int, seconds: float) -> subprocess.Popen[str]:
    """A program of its own that builds; it has no `if __name__ == "__main__"`, so its processes must not run it again."""
    program = traces.parent / "program.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport slow_work\nslow_work.build(*map(eval, sys.argv[1:]))\n"
    )
    arguments = [repr(value) for value in (str(folder), str(traces), processes, PARTS, seconds)]
    return subprocess.Popen(
        [sys.executable, str(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def finished(folder: Path) -> dict[str, int]:
    """Inode of every part that is done."""
    return {path.stem: path.with_suffix(".arrow").stat().st_ino for path in folder.glob("part-*.json")}


def made(traces: Path) -> list[int]:
    """Numbers of parts, once for every time one was worked on."""
    return sorted(int(path.name.split(".")[0]) for path in traces.iterdir())


def alive(traces: Path) -> set[int]:
    """Processes that worked and have not ended."""
    found = {int(path.name.split(".")[1]) for path in traces.iterdir()}
    return {pid for pid in found if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()}


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def assert_whole(folder: Path) -> None:
    assert [facts["number"] for facts in read_index(folder)] == list(range(PARTS))
    assert [part_path(folder, number).read_bytes() for number in range(PARTS)] == [content(number) for number in range(PARTS)]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_parts_are_made_once_and_reported_in_documents_or_megabytes(folder: Path, traces: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with Workers(1) as workers:
        build_parts(
            folder,
            SlowWork(traces),
            SIZES_BYTES,
            label="law",
            workers=workers,
            on_progress=lambda *report: seen.append(report),
            documents=[2] * PARTS,
        )
        assert_whole(folder)
        assert seen == [("law", done, 16) for done in range(0, 17, 2)]
        seen.clear()
        sizes_bytes = [1_600_000] * PARTS
        build_parts(folder, SlowWork(traces), sizes_bytes, label="law", workers=workers, on_progress=lambda *report: seen.append(report))
    assert seen == [("law", 13, 13)] and made(traces) == list(range(PARTS))


def test_large_jobs_go_to_processes_that_start_light(folder: Path, traces: Path) -> None:
    with Workers(2) as workers:
        build_parts(folder, SlowWork(traces, 0.05), [LARGE] * PARTS, label="law", workers=workers)
        assert len(alive(traces)) == 2 and os.getpid() not in alive(traces)
    assert_whole(folder)
    assert all(facts["modules"] == [] and facts["threads"] == "1" for facts in read_index(folder))
    assert not alive(traces)


def test_no_parts_at_all(folder: Path, traces: Path) -> None:
    build_parts(folder, SlowWork(traces), [], label="law", workers=Workers(1))
    assert is_whole(folder) and read_index(folder) == []


def test_killed_at_any_moment_the_next_start_goes_on(folder: Path, traces: Path) -> None:
    program = start(folder, traces, processes=2, seconds=0.15)
    until(lambda: len(finished(folder)) >= 3)
    program.kill()
    program.wait()
    until(lambda: not alive(traces))  # its processes end with it
    before = finished(folder)
    assert 3 <= len(before) < PARTS and not is_whole(folder)
    worked = len(made(traces))
    with Workers(1) as workers:
        build_parts(folder, SlowWork(traces), [LARGE] * PARTS, label="law", workers=workers)
    assert_whole(folder)
    assert before.items() <= finished(folder).items()
    assert len(made(traces)) - worked == PARTS - len(before)


def test_of_two_processes_one_builds_and_the_other_takes_over_when_it_dies(folder: Path, traces: Path) -> None:
    first = start(folder, traces, processes=1, seconds=0.1)
    until(lambda: len(finished(folder)) >= 1)
    second = start(folder, traces, processes=1, seconds=0.1)
    until(lambda: len(finished(folder)) >= 4)
    assert len({path.name.split(".")[1] for path in traces.iterdir()}) == 1  # the second one waits
    first.kill()
    first.wait()
    before = finished(folder)
    out, err = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0 and err == ""
    assert_whole(folder)
    assert before.items() <= finished(folder).items()
    reports = [line.split() for line in out.splitlines()]
    assert reports[-1] == ["slow", "8", "8"]
    done = [int(report[1]) for report in reports]
    assert done == sorted(done) and len(set(done)) > 3


def test_two_processes_at_once_make_each_part_once(folder: Path, traces: Path) -> None:
    programs = [start(folder, traces, processes=1, seconds=0.05) for _ in range(2)]
    for program in programs:
        out, err = program.communicate(timeout=PATIENCE_SECONDS)
        assert (program.returncode, err, out.splitlines()[-1]) == (0, "", "slow 8 8")
    assert made(traces) == list(range(PARTS))
    assert_whole(folder)


def test_without_locks_it_is_only_wasteful(folder: Path, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    folder.mkdir(parents=True)
    (folder / ".part-00000.arrow.abc").write_bytes(b"somebody writes this now")
    build_parts(folder, SlowWork(traces), SIZES_BYTES, label="law", workers=Workers(1))
    assert (folder / ".part-00000.arrow.abc").exists()
    (folder / ".part-00000.arrow.abc").unlink()
    assert_whole(folder)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_reaches_the_caller_as_itself(folder: Path, traces: Path, processes: int) -> None:
    with pytest.raises(SourceError) as caught, Workers(processes) as workers:
        build_parts(folder, SlowWork(traces, trouble=(3, "source")), [LARGE] * PARTS, label="law", workers=workers)
    assert caught.value.problem == PROBLEM
    assert not is_whole(folder) and not part_path(folder, 3).exists() and not alive(traces) - {os.getpid()}
    build_parts(folder, SlowWork(traces), [LARGE] * PARTS, label="law", workers=Workers(1))
    assert_whole(folder)


def test_a_full_disk_leaves_no_half_part(folder: Path, traces: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        build_parts(folder, SlowWork(traces, trouble=(3, "disk")), SIZES_BYTES, label="law", workers=Workers(1))
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        *(f"part-0000{number}.{kind}" for number in range(3) for kind in ("arrow", "json")),
    ]


def test_a_killed_worker_is_named_with_what_to_type(folder: Path, traces: Path) -> None:
    work = SlowWork(traces, 0.05, trouble=(5, "killed"))
    with Workers(2) as workers:
        with pytest.raises(DataError, match=r"law: a process .* was killed[\s\S]*data\.processes=1"):
            build_parts(folder, work, [LARGE] * PARTS, label="law", workers=workers)
        assert len(finished(folder)) >= 3
        build_parts(folder, SlowWork(traces), [LARGE] * PARTS, label="law", workers=workers)  # with new processes
    assert_whole(folder)


def test_ctrl_c_leaves_finished_parts_and_nobody_behind(folder: Path, traces: Path) -> None:
    program = start(folder, traces, processes=2, seconds=0.15)
    until(lambda: len(finished(folder)) >= 2)
    os.killpg(program.pid, signal.SIGINT)
    _, err = program.communicate(timeout=PATIENCE_SECONDS)
    assert err.count("Traceback") == 1 and err.splitlines()[-1].startswith("KeyboardInterrupt")
    until(lambda: not group_lives(program.pid))
    assert 2 <= len(finished(folder)) < PARTS


@pytest.mark.parametrize("damage", ["cut", "gone", "no json"])
def test_a_damaged_folder_says_what_to_remove(folder: Path, traces: Path, damage: str) -> None:
    build_parts(folder, SlowWork(traces), SIZES_BYTES, label="law", workers=Workers(1))
    match damage:
        case "cut":
            part_path(folder, 5).write_bytes(content(5)[:-1])
        case "gone":
            part_path(folder, 5).unlink()
        case "no json":
            (folder / "index.json").write_text("{")
    with pytest.raises(DataError, match=f"type: rm -r {folder} "):
        read_index(folder)


@pytest.mark.parametrize("left", [b"", b"{}", b"[]", json.dumps({"file_bytes": 1}).encode()])
def test_what_a_power_cut_left_is_made_again(folder: Path, traces: Path, left: bytes) -> None:
    folder.mkdir(parents=True)
    part_path(folder, 2).write_bytes(b"")
    part_path(folder, 2).with_suffix(".json").write_bytes(left)
    for name in (".part-00004.arrow.abc", ".bad-00004.jsonl.abc"):
        (folder / name).write_bytes(b"half")
    build_parts(folder, SlowWork(traces), SIZES_BYTES, label="law", workers=Workers(1))
    assert_whole(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_stop_a_run_do_not_reach_its_workers(folder: Path, traces: Path, number: signal.Signals) -> None:
    """A terminal and a scheduler send them to every process of a run; what they mean is decided by the parent alone."""
    sent: list[int] = []

    def strike(label: str, done: int, total: int) -> None:
        for process in psutil.Process().children(recursive=True):
            if done < PARTS:
                process.send_signal(number)
                sent.append(process.pid)

    with Workers(2) as workers:
        build_parts(folder, SlowWork(traces, 0.02), [LARGE] * PARTS, label="law", workers=workers, on_progress=strike, documents=[1] * PARTS)
    assert len(set(sent)) >= 3  # two workers, and the process that multiprocessing keeps for their locks
    assert_whole(folder)
