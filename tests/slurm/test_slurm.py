"""Jobs on a real SLURM of two nodes: the quick cases; `python -m tests.slurm_drill` has the others."""

from __future__ import annotations

import pytest
from slurm_cases import CASES, Case, Workspace


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_what_happens_to_a_job(case: Case, workspace: Workspace) -> None:
    assert case.run(workspace)
