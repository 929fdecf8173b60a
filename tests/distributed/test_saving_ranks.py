"""Two ranks save beside training, each its share: together they write the moment of the save, and come to the same end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from saving_rank import CASES
from small_training import STAGES, names_in_layer, small_model

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
Found = dict[str, Any]
KINDS = ("master", "exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two ranks found."""
    folder, worker = tmp_path_factory.mktemp("saving"), TESTS / "distributed" / "saving_rank.py"
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")
    environment = {**{name: value for name, value in os.environ.items() if name not in ours}, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(worker), str(folder)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False, cwd=TESTS.parent)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_together_they_save_the_moment(both: list[Found], stage: int, precision: str) -> None:
    """Masters, moments, the guard's window and the step counts, of tensors that two ranks cannot cut in equal parts."""
    for found in both:
        case = found["moment"][f"{stage} {precision}"]
        assert (case["problem"], case["wrong"], case["changed"], case["updates"]) == (None, [], True, True)
        assert set(case["files"]) == {
            "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "state.json", "manifest.json",
        }  # fmt: skip
        assert case["random"] == [f"random/{rank}/{name}" for rank in (0, 1) for name in ("numpy", "python", "torch")]
        assert case["loaded"]


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_together_they_keep_what_no_longer_trains(both: list[Found], stage: int, precision: str) -> None:
    expected = [f"master/{name}" for name in names_in_layer(small_model())] + [f"{kind}/model.norm.weight" for kind in KINDS]
    for found in both:
        case = found["moment"][f"{stage} {precision}"]
        assert (case["retired_wrong"], case["retired_names"]) == ([], sorted(expected))


@pytest.mark.parametrize("stage", STAGES)
def test_size_and_shares(both: list[Found], stage: int) -> None:
    """12 bytes for each trained weight and some kilobytes, and neither rank writes much more than the other."""
    case = both[0]["size"][stage]
    assert case == both[1]["size"][stage] and case["trained"] > 1_500_000
    assert 12 * case["trained"] < sum(case["bytes"]) <= 12 * case["trained"] + 100_000
    assert max(case["bytes"]) < 0.7 * sum(case["bytes"])


def test_a_disk_that_refuses_one_rank_refuses_both(both: list[Found]) -> None:
    """And a weight that changed on one of them: both hear of it, nothing half stays, and what was good is there to the end."""
    assert both[0]["refused"] == both[1]["refused"]
    told = both[0]["refused"]["told"]
    good, frozen = "step-00000001", "a weight of rank 1 has changed"
    assert told[0] == [None, False, [good]]
    assert told[1][0].startswith("the disk refuses: File too large") and told[1][1:] == [False, [good]]
    assert told[2:] == [[None, False, [good, "step-00000003"]], [frozen, True, [good, "step-00000003"]]]
    assert both[0]["refused"]["raised"] == frozen
