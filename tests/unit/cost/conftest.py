"""One process group for all engines of these tests: DeepSpeed remembers the first one of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slayer.training.ranks import Ranks, open_ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    with open_ranks() as opened:
        yield opened
