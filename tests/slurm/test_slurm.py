"""Jobs on a real SLURM of two nodes; `python -m tests.slurm_drill` has the cases that are left out here."""

from __future__ import annotations

import json

import pytest
from slurm_cases import CASES, Case
from slurm_workspace import Workspace

MARKS: dict[str, list[pytest.MarkDecorator]] = {"test": [], "matrix": [pytest.mark.matrix]}


@pytest.mark.parametrize("case", [pytest.param(case, marks=MARKS[case.part], id=case.name) for case in CASES if case.part in MARKS])
def test_what_happens_to_a_job(case: Case, workspace: Workspace) -> None:
    assert case.run(workspace)


@pytest.mark.matrix
def test_hydras_own_launcher(workspace: Workspace) -> None:
    """hydra-submitit-launcher, for those who have it: an array of one element a point; the page tells how they ended.

    One after the other, the failing one first: those that come later leave alone what is told of it.
    """
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    words = [word for word in workspace.words if not word.startswith(("launcher", "runs_dir="))]
    runs = workspace.folder / "submitit"
    asked = ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.array_parallelism=1", *words, f"runs_dir={runs}", "dry_run=true", "prune=9,0"]
    done = workspace.cluster.python("train.py", *asked)
    points = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("sweeps/*/points/*.json"))]
    assert [point["status"] for point in points] == ["failed", "finished"] and done.returncode == 0, done.stdout
