"""Ranks are started together, hear signals, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slayer.launching import processes
from slayer.launching.processes import Ended, most_telling, run_ranks, threads_per_rank

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(code: str, ranks: int) -> Ended:
    return run_ranks(python(code), processes=ranks, port=0, environment=dict(os.environ))


def soon(ready: Callable[[], bool], act: Callable[[], None]) -> None:
    """Do something from beside as soon as it is time."""

    def wait() -> None:
        while not ready():
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_every_rank_knows_its_place(tmp_path: Path) -> None:
    keys = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    code = f"import os; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(' '.join(os.environ[k] for k in {keys}))"
    assert run(code, 3) == Ended(code=0)
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [entry[:2] for entry in told] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert len({entry[2] for entry in told}) == 1 and int(told[0][2]) > 0


def test_one_process_is_not_told_of_ranks(tmp_path: Path) -> None:
    code = "import os, sys; sys.exit('RANK' in os.environ or 'MASTER_PORT' in os.environ)"
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "MASTER_PORT")}
    assert run_ranks(python(code), processes=1, port=0, environment=environment) == Ended(code=0)


def test_the_first_failure_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    code = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    started = time.monotonic()
    assert run(code, 2) == Ended(code=7, rank=1)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("number", STOPS)
def test_each_rank_hears_a_signal_once(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
import os, signal, time
heard = []
signal.signal({int(number)}, lambda *_: heard.append(1))
name = r'{tmp_path}/' + os.environ['RANK']
open(name + '.ready', 'w').close()
signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
while not heard:
    time.sleep(0.01)
time.sleep(0.3)
open(name, 'w').write(str(len(heard)))
"""
    before = signal.getsignal(number)
    soon(lambda: len(list(tmp_path.glob("*.ready"))) == 2, lambda: os.kill(os.getpid(), number))
    assert run(code, 2) == Ended(code=0, signals=(number,))
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["1", "1"] and signal.getsignal(number) == before


def test_a_signal_before_a_rank_listens_is_not_lost(tmp_path: Path) -> None:
    """The ranks take their time until they listen, and one hears it through the launcher before it has even begun."""
    code = f"""
import os, signal, sys, time
open(r'{tmp_path}/' + os.environ['RANK'], 'w').close()
time.sleep(0.3)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
time.sleep(30)
"""
    soon(lambda: len(list(tmp_path.iterdir())) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(code, 2) == Ended(code=75, signals=(signal.SIGTERM,))


def test_a_stopped_rank_is_killed_when_the_others_have_ended() -> None:
    code = "import os, signal, sys, time; os.kill(os.getpid(), signal.SIGSTOP) if os.environ['RANK'] == '1' else (time.sleep(0.5), sys.exit(75))"
    started = time.monotonic()
    assert run(code, 2) == Ended(code=75)
    assert time.monotonic() - started < processes.GRACE_SECONDS


def test_a_rank_that_is_left_alone_is_asked_once_and_may_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.8)
    code = f"""
import os, signal, sys, time
if os.environ['RANK'] == '1':
    os.kill(os.getpid(), signal.SIGKILL)
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
while not heard:
    time.sleep(0.01)
time.sleep(0.4)
open(r'{tmp_path}/heard', 'w').write(str(len(heard)))
sys.exit(75)
"""
    assert run(code, 2) == Ended(code=-signal.SIGKILL, rank=1)
    assert (tmp_path / "heard").read_text() == "1"


def test_a_second_signal_ends_even_what_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "AT_ONCE_SECONDS", 0.3)
    code = f"import os, time; open(r'{tmp_path}/' + os.environ['RANK'], 'w').close(); time.sleep(60)"

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGINT)

    soon(lambda: len(list(tmp_path.iterdir())) == 2, twice)
    started = time.monotonic()
    assert run(code, 2) == Ended(code=128 + signal.SIGINT, signals=(signal.SIGTERM, signal.SIGINT))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], (0, 0)), ([0, 0], (0, 0)), ([75, 2], (2, 1)), ([-9, 75], (-9, 0)), ([75, -6, 1], (1, 2)), ([75, 0], (75, 0)), ([0, 143, 75], (143, 1)),
        ([75, -9, -6], (-9, 1)),
    ],
)  # fmt: skip
def test_the_most_telling_exit_code_is_that_of_the_launch(codes: list[int], expected: tuple[int, int]) -> None:
    assert most_telling(dict(enumerate(codes))) == expected


def test_nobody_outlives_the_launcher_that_fails(tmp_path: Path) -> None:
    code = f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    program = "from slayer.launching.processes import run_ranks\nimport os, sys\n"
    program += f"run_ranks([sys.executable, '-c', {code!r}], processes=1, port=0, environment=dict(os.environ))"
    launcher = subprocess.Popen(python(program), cwd=Path(__file__).parents[3])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    launcher.send_signal(signal.SIGINT)
    launcher.wait(20)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads_per_rank(count) for count in (1, 3, 16)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_per_rank(2) == "5"
