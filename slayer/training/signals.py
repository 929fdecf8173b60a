"""A request to stop, from Ctrl-C or a scheduler, that lets the step in hand be finished and saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Becomes true on the first SIGINT or SIGTERM; the second one acts at once."""

    def __init__(self) -> None:
        self.requested = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Listen while the body runs; the handlers of before are put back afterwards."""
    request = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request._hear) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
