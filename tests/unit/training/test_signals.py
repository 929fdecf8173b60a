"""Stop requests in one process; several are in tests/distributed."""

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

from slayer.training.ranks import Ranks
from slayer.training.signals import STOPS, Heard, Stopped, StopRequest, listen_for_stop, stopped_at_once

LISTENS = """
import os, signal, sys, threading, time
from slayer.training.ranks import Ranks
from slayer.training.signals import listen_for_stop, stopped_at_once
with listen_for_stop(Ranks(rank=0, world=1, device=None)) as stop, stop.deferred():
    print("ready", flush=True)
    {body}
"""


@pytest.mark.parametrize("number", STOPS)
def test_outside_of_training_a_signal_acts_at_once(ranks: Ranks, number: signal.Signals) -> None:
    with listen_for_stop(ranks) as stop:
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), number)
        assert isinstance(caught.value, KeyboardInterrupt) and caught.value.number == number == stop.number
        assert stop.requested and str(caught.value) == number.name


@pytest.mark.parametrize("number", STOPS)
def test_in_training_it_only_asks(ranks: Ranks, number: signal.Signals) -> None:
    with listen_for_stop(ranks) as stop:
        with stop.deferred():
            with stop.deferred():
                assert not stop.requested
                os.kill(os.getpid(), number)
                assert stop.requested and stop.number == number
            time.sleep(0.01)
        assert stop.requested  # for whoever comes next to look at


@pytest.mark.parametrize("number", STOPS)
def test_handlers_are_put_back(ranks: Ranks, number: signal.Signals) -> None:
    before, threads = signal.getsignal(number), threading.active_count()
    with pytest.raises(RuntimeError), listen_for_stop(ranks):
        assert signal.getsignal(number) != before
        raise RuntimeError
    assert signal.getsignal(number) == before and threading.active_count() == threads
    with stopped_at_once():
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before


def test_the_same_signal_delivered_twice_is_one_request(ranks: Ranks) -> None:
    with listen_for_stop(ranks) as stop, stop.deferred():
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        assert stop.requested


def test_what_counts_as_a_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    heard = Heard()
    assert not heard.is_second(signal.SIGINT) and not heard.is_second(signal.SIGINT)
    assert not heard.is_second(signal.SIGTERM)  # by which deepspeed answers a Ctrl-C
    now[0] += 0.9
    assert not heard.is_second(signal.SIGINT)
    assert heard.is_second(signal.SIGTERM)
    now[0] += 0.2
    assert heard.is_second(signal.SIGINT)


def test_a_relay_is_no_second_signal_and_wakes_the_main_thread(ranks: Ranks) -> None:
    with listen_for_stop(ranks) as stop:
        threading.Timer(0.1, stop.relay, (signal.SIGUSR1,)).start()
        started = time.monotonic()
        with pytest.raises(Stopped, match="SIGUSR1"):
            time.sleep(30)
        assert time.monotonic() - started < 10
        stop.relay(signal.SIGUSR1)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)  # the first one from outside
        time.sleep(0.1)


def test_asked_by_another_rank_is_asked(ranks: Ranks) -> None:
    stop = StopRequest()
    assert not stop.agreed(ranks) and not stop.requested
    assert stop.agreed(ranks, halt=True) and stop.requested
    assert stop.agreed(ranks)
    with listen_for_stop(ranks) as heard:
        heard.requested = True
        os.kill(os.getpid(), signal.SIGTERM)  # still on its way when the ranks had agreed: nothing is raised


def run_listener(body: str) -> subprocess.Popen[str]:
    program = subprocess.Popen(
        [sys.executable, "-c", LISTENS.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    return program


@pytest.mark.parametrize(
    ("body", "first", "second"),
    [
        ("time.sleep(60)", signal.SIGTERM, signal.SIGUSR1),
        ("threading.Lock().acquire(); lock = threading.Lock(); lock.acquire(); lock.acquire()", signal.SIGUSR2, signal.SIGINT),
        # A mutex of C that is locked twice: like a collective, nothing interrupts it, and no Python handler runs meanwhile.
        ("import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock; mutex = bytes(64); lock(mutex); lock(mutex)", signal.SIGINT, signal.SIGTERM),
    ],
)
def test_a_second_signal_ends_at_once(body: str, first: signal.Signals, second: signal.Signals) -> None:
    program = run_listener(body)
    program.send_signal(first)
    time.sleep(0.4)
    assert program.poll() is None
    program.send_signal(second)
    out, err = program.communicate(timeout=10)
    assert program.returncode == 128 + second and out == ""
    assert f"{first.name}: finishing the step in hand" in err and f"{second.name} again: ended at once" in err and "Traceback" not in err


def test_signals_held_back_by_a_launcher_arrive_when_somebody_listens() -> None:
    code = "import time\nfrom slayer.training.signals import stopped_at_once\nwith stopped_at_once(): time.sleep(60)"
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        program = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    program.send_signal(signal.SIGUSR2)  # long before it has imported anything
    assert "Stopped: SIGUSR2" in program.communicate(timeout=30)[1] and program.returncode != 0


def test_other_signals_are_none_of_ours(ranks: Ranks) -> None:
    heard: list[int] = []
    before: Callable[..., object] | int | None = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        with listen_for_stop(ranks) as stop:
            os.kill(os.getpid(), signal.SIGALRM)
            os.kill(os.getpid(), signal.SIGALRM)
            time.sleep(0.05)
            assert len(heard) >= 1 and not stop.requested and stop.number == 0
    finally:
        signal.signal(signal.SIGALRM, before)
