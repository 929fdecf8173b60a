"""Requests to stop, from Ctrl-C, a scheduler or another rank: at once where nothing is lost by it, at the end of the step while training.

The first signal asks. A second one ends the process on the spot; a thread of its own sees to that, since Python runs handlers in the
main thread only, which may be inside a collective that never returns.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from slayer.training.ranks import Ranks

REQUEUE_EXIT_CODE = 75
"""Stopped on request and saved, or hung, or a rank was lost: start it again and it goes on (EX_TEMPFAIL of sysexits.h)."""

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers and people stop a run with."""

SAME_SECONDS = 1.0
"""The same signal again within this time is the same request: a terminal and a launcher may both deliver it."""

TURNED_SECONDS = 0.25
"""So is another one: deepspeed's launcher answers a Ctrl-C, which its ranks have heard themselves, with a SIGTERM."""


class Stopped(KeyboardInterrupt):
    """A stop that is acted upon at once. `number`: the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Heard:
    """Signals from outside, counted: the first asks, another ends at once."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def is_second(self, number: int) -> bool:
        """Take note of a signal; whether it is more than the first one delivered twice."""
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
            return False
        return now - self._first[1] > (SAME_SECONDS if number == self._first[0] else TURNED_SECONDS)


class StopRequest:
    """Whether this run is to stop. `requested` becomes true with the first signal, on every rank; `number`: that signal, 0 before."""

    def __init__(self) -> None:
        self.requested = False
        self.number = 0
        self._deferrals = 0
        self._relayed: Counter[int] = Counter()
        self._heard = Heard()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`, which stays set afterwards; outside, it raises Stopped in the main thread."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1

    def agreed(self, ranks: Ranks, *, halt: bool = False) -> bool:
        """Whether any rank is to stop, or says `halt`: the same answer on all of them. Collective.

        From then on every rank counts as asked, so that a signal of another rank that is still on its way here changes nothing.
        """
        answer = ranks.any(self.requested or halt)
        if answer:
            self.requested = True
        return answer

    def relay(self, number: int) -> None:
        """Deliver a signal that another rank has heard to the main thread here, once. For the watchdog's thread."""
        main = threading.main_thread().ident
        if self.requested or self._relayed or main is None:
            return
        self._relayed[number] += 1
        signal.pthread_kill(main, number)  # also wakes it from a sleep or a read

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler of the first signal; what a later one means is decided by the listening thread."""
        if self.requested:
            return
        self.requested, self.number = True, number
        if not self._deferrals:
            raise Stopped(number)

    def listen(self, numbers: socket.socket, *, tells: bool) -> None:
        """Read the numbers of delivered signals until the socket is closed. `tells`: say on the terminal what is going to happen."""
        while delivered := numbers.recv(64):
            for number in delivered:
                if number not in STOPS:
                    continue
                self.number = self.number or number  # for the other ranks, even where our main thread cannot run its handler yet
                if self._relayed[number] > 0:
                    self._relayed[number] -= 1
                elif self._heard.is_second(number):
                    end_at_once(number)
                if tells and self._deferrals:
                    print(
                        f"\n{signal.Signals(number).name}: finishing the step in hand and saving; once more ends at once", file=sys.stderr, flush=True
                    )
                tells = False


def end_at_once(number: int) -> None:
    """End this process without waiting for anything, with the exit code of a second signal."""
    write_last_words(f"\n{signal.Signals(number).name} again: ended at once, without saving\n")
    os._exit(128 + number)


def write_last_words(text: str) -> None:
    """To the terminal, past all buffers and locks, and with the cursor that a progress bar has hidden."""
    os.write(2, (f"\x1b[?25h\n{text}" if os.isatty(2) else text).encode())


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Until a run listens: any of the four signals raises Stopped in the main thread. Those a launcher has held back arrive now."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    with _handled(stop):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        yield


@contextmanager
def listen_for_stop(ranks: Ranks) -> Iterator[StopRequest]:
    """Listen in the main thread while the body runs; the handlers of before are put back afterwards."""
    request = StopRequest()
    here, there = socket.socketpair()
    there.setblocking(False)
    listener = threading.Thread(target=request.listen, args=(here,), kwargs={"tells": ranks.is_first}, name="signals", daemon=True)
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    try:
        listener.start()
        with _handled(request.handle):
            yield request
    finally:
        signal.set_wakeup_fd(before)
        there.close()
        listener.join()
        here.close()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
