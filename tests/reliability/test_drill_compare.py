"""The eyes of the drills: whatever differs between two runs is seen, and what a clock decides is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drill_compare import ledger_differences, run_differences
from safetensors.numpy import load_file, save_file

Change = Callable[[Path], object]


def write_run(folder: Path) -> Path:
    """What the drills look at of a finished run."""
    checkpoint, model = folder / "checkpoints" / "step-00000004", folder / "model"
    for place in (checkpoint, model):
        place.mkdir(parents=True)
    masters = {"master/a": np.arange(3, dtype=np.float32), "random/0/python": np.arange(2)}
    save_file(masters, checkpoint / "model.safetensors")
    (checkpoint / "state.json").write_text(json.dumps({"run": {"step": 4, "seconds": 1.5}, "updates": {"a": 4}}), encoding="utf-8")
    save_file(masters, model / "model.safetensors")
    lines = [{"step": step, "loss": 5.0 - step, "step_seconds": 0.1} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps({"heldout": {"domain": 7.5}, "training": {"seconds": 1.5}, "command": "a"}), encoding="utf-8")
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def edit_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors["master/a"].view(np.uint8)[0] ^= 1  # the last bit of a weight
    save_file(tensors, path)


STEP = "checkpoints/step-00000004"
SEEN: dict[str, Change] = {
    "a bit of a master": lambda run: edit_tensor(run / STEP / "model.safetensors"),
    "a tensor more": lambda run: save_file({"master/b": np.zeros(1)}, run / STEP / "model-2.safetensors"),
    "a bit of the result": lambda run: edit_tensor(run / "model" / "model.safetensors"),
    "no result": lambda run: (run / "model" / "model.safetensors").unlink(),
    "AdamW steps": lambda run: edit(run / STEP / "state.json", '"a": 4', '"a": 3'),
    "a later checkpoint": lambda run: shutil.copytree(run / STEP, run / "checkpoints" / "step-00000005"),
    "a loss": lambda run: edit(run / "metrics.jsonl", "4.0", "4.1"),
    "a line twice": lambda run: edit(run / "metrics.jsonl", '{"step": 1', '{"step": 0}\n{"step": 1'),
    "a score": lambda run: edit(run / "results.json", "7.5", "7.6"),
    "half a checkpoint": lambda run: shutil.copytree(run / STEP, run / "checkpoints" / "step-00000003.partial"),
    "a file": lambda run: (run / "expanded").write_text("", encoding="utf-8"),
}
UNSEEN: dict[str, Change] = {
    "seconds of a step": lambda run: edit(run / "metrics.jsonl", "0.1", "0.2"),
    "seconds of a run": lambda run: edit(run / "results.json", "1.5", "2.5"),
    "the story": lambda run: (run / "events.jsonl").write_text("{}\n", encoding="utf-8"),
    "an earlier checkpoint": lambda run: shutil.copytree(run / STEP, run / "checkpoints" / "step-00000003"),
}


@pytest.mark.parametrize("change", [*SEEN, *UNSEEN])
def test_runs(tmp_path: Path, change: str) -> None:
    untouched, run = write_run(tmp_path / "untouched"), write_run(tmp_path / "run")
    assert run_differences(run, untouched) == []
    ({**SEEN, **UNSEEN}[change])(run)
    assert bool(run_differences(run, untouched)) == (change in SEEN)


def write_ledger(folder: Path, steps: list[int], **changed: dict[str, object]) -> Path:
    """A rank's ledger; `changed` names what is otherwise in the last line."""
    folder.mkdir()
    lines = [{"step": step, "rank": 0, "world": 1, "micro_batches": [[f"row {step}"]], "drawn": [step / 8]} for step in steps]
    lines[-1].update(changed.get("last", {}))
    (folder / "rank-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("steps", "last", "seen"),
    [
        ([0, 1, 2, 3], {}, []),
        ([0, 1, 2, 1, 2, 3], {}, []),
        ([0, 1, 3], {}, ["rank 0 never took step 2"]),
        ([0, 1, 2, 3], {"micro_batches": [["row 4"]]}, ["rank 0 trained on other rows or numbers in step 3"]),
        ([0, 1, 2, 3, 2], {"micro_batches": [["row 4"]]}, ["rank 0 trained on other rows or numbers in step 2"]),
        ([0, 1, 2, 3], {"drawn": [0.0]}, ["rank 0 trained on other rows or numbers in step 3"]),
    ],
)
def test_ledgers(tmp_path: Path, steps: list[int], last: dict[str, object], seen: list[str]) -> None:
    untouched = write_ledger(tmp_path / "untouched", [0, 1, 2, 3])
    assert ledger_differences(write_ledger(tmp_path / "run", steps, last=last), untouched) == seen
