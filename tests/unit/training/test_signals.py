"""Stop requests."""

from __future__ import annotations

import os
import signal

import pytest

from slayer.training.signals import listen_for_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_the_second_interrupts(number: int) -> None:
    with listen_for_stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(RuntimeError), listen_for_stop():
        assert signal.getsignal(number) != before
        raise RuntimeError
    assert signal.getsignal(number) == before
