"""Servers that fork the ranks of runs, shared by all tests of a process: importing everything takes them ten seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from drill_server import RankServers


@pytest.fixture(scope="session")
def servers() -> Iterator[RankServers]:
    with RankServers() as opened:
        yield opened
