"""The kill drill in short: real runs of one and two ranks, killed at random moments, end as if nobody had touched them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_kill_is_survived() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.drill", "--kills", "6", "--ranks", "1,2", "--steps", "24"], cwd=ROOT, capture_output=True, encoding="utf-8",
        timeout=900, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
    assert re.search(r"[6-9] of 6 kills survived", ended.stdout)
