"""Whether a run that was interrupted is, to the last bit, the run that nobody touched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from drill_ledger import read_ledger

CLOCKED = ("tokens_per_second", "mfu", "memory_bytes", "step_seconds", "seconds")
"""What a clock or the machine decides, in metrics.jsonl, results.json and state.json; and the command, which names the folder."""

OF_INTERRUPTIONS = ("events.jsonl", "failure.txt", "watchdog")
"""What only a run that was interrupted leaves."""


def run_differences(run: Path, untouched: Path) -> list[str]:
    """Every way in which two finished run folders differ that is not a clock's, or the story of an interruption."""
    names, expected = (_names(folder) for folder in (run, untouched))
    found = [f"{name} is left over" for name in sorted(names - expected)] + [f"{name} is missing" for name in sorted(expected - names)]
    exported = sorted(name for name in expected if name.startswith("model/") and not name.endswith("README.md"))
    found += [f"{name} has other bytes" for name in exported if name in names and (run / name).read_bytes() != (untouched / name).read_bytes()]
    if timeless_metrics(run) != timeless_metrics(untouched):
        found.append("the loss log (metrics.jsonl) differs")
    found += _json_differences(run / "results.json", untouched / "results.json")
    return found + checkpoint_differences(newest_checkpoint(run), newest_checkpoint(untouched))


def _names(folder: Path) -> set[str]:
    """Files of a run folder, but for checkpoints that are whole: how many are kept depends on how often the run was stopped."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if name.split("/")[0] not in OF_INTERRUPTIONS and not re.match(r"checkpoints/step-\d+/", name)}


def newest_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint of most steps in a run folder."""
    return max((path for path in (run / "checkpoints").glob("step-*") if not path.suffix), default=None)


def checkpoint_differences(one: Path | None, two: Path | None) -> list[str]:
    """Tensors (masters, moments, guard, random generators) that are not the same bits, and values of state.json that differ."""
    if one is None or two is None or one.name != two.name:
        return [f"the newest checkpoint is {one}, and of the untouched run {two}"]
    ours, theirs = load_tensors(one), load_tensors(two)
    found = [f"{name} in {one.name} has other bits" for name in sorted({*ours, *theirs}) if not _same(ours.get(name), theirs.get(name))]
    return found + _json_differences(one / "state.json", two / "state.json")


def load_tensors(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, of all its shards."""
    from safetensors.numpy import load_file

    return {name: tensor for shard in sorted(checkpoint.glob("*.safetensors")) for name, tensor in load_file(shard).items()}


def _same(one: Any, two: Any) -> bool:
    return one is not None and two is not None and (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())


def _json_differences(one: Path, two: Path) -> list[str]:
    values, others = (_flat(json.loads(path.read_bytes())) for path in (one, two))
    differ = [key for key in sorted({*values, *others}) if values.get(key) != others.get(key)]
    return [f"{key} of {one.name} differs" for key in differ if key.rpartition(".")[2] not in (*CLOCKED, "command")]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: inner for name, part in value.items() for key, inner in _flat(part, f"{prefix}.{name}").items()}
    return {prefix: value}


def timeless_metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock or the machine decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines]


def ledger_differences(ledger: Path, untouched: Path) -> list[str]:
    """Steps of any rank, as often as they were taken, whose rows or random numbers are not those of the untouched run; steps left out."""
    expected = {(line.rank, line.step): line for line in read_ledger(untouched)}
    lines = read_ledger(ledger)
    other = sorted({(line.rank, line.step) for line in lines if line != expected.get((line.rank, line.step))})
    found = [f"rank {rank} trained on other rows or numbers in step {step}" for rank, step in other]
    left_out = set(expected) - {(line.rank, line.step) for line in lines}
    return found + [f"rank {rank} never took step {step}" for rank, step in sorted(left_out)]
