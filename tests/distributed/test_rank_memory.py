"""Each of two ranks holds what the estimate says of its ZeRO stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.matrix
def test_two_ranks_hold_what_is_estimated(tmp_path: Path) -> None:
    """Within 10 % by part; stage 2 keeps gradients of tensors that are cut between ranks whole, which the estimate counts under buffers."""
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")
    environment = {**{name: value for name, value in os.environ.items() if name not in ours}, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(TESTS / "distributed" / "memory_worker.py")]
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "found.json")], env=environment, capture_output=True, text=True, timeout=240, check=False,
        cwd=TESTS.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(found) == 4
    for case, parts in found.items():
        for part, (estimated, measured) in parts.items():
            assert measured == pytest.approx(estimated, rel=0.1), (case, part)
