"""A fault on one rank of two: both come to the same verdict, and neither lets it through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bad_steps import FAULTS, STEPS, VERDICTS
from small_training import PRECISIONS, STAGES

TESTS = Path(__file__).parents[1]
Found = list[dict[str, Any]]


ALL = [[stage, precision, rows] for stage in STAGES for precision in PRECISIONS for rows in (2, 1)]
SOME = [[0, "fp32", 2], [2, "bf16", 1], [3, "bf16", 2]]
"""ZeRO stage, precision, rows of a micro-batch."""


def two_ranks(folder: Path, cases: list[list[Any]]) -> list[Found]:
    """What each of them found. A bad step that changes anything ends the worker with an AssertionError."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")
    environment = {**{name: value for name, value in os.environ.items() if name not in ours}, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*torchrun, str(TESTS / "distributed" / "bad_steps_worker.py"), str(folder), json.dumps(cases)]
    ended = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=400, check=False, cwd=TESTS.parent)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"bad-steps-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [SOME, pytest.param(ALL, marks=pytest.mark.matrix)], ids=("some", "all"))
def test_both_ranks_leave_the_step_out(tmp_path: Path, cases: list[list[Any]]) -> None:
    for found in two_ranks(tmp_path, cases):
        assert [one["case"] for one in found] == cases
        for one in found:
            assert one["verdicts"] == VERDICTS and one["untroubled"] == [0] * (STEPS - len(FAULTS)), one["case"]
            assert one["same"], one["case"]
