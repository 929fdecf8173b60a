"""Runs on text that is streamed, staged, changed and looked at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import RunFolder

from slayer.errors import CheckpointError
from slayer.launching.compose import compose
from slayer.pipeline import run_pipeline

pytestmark = pytest.mark.usefixtures("ranks", "own_cache")

RunHere = Callable[..., RunFolder]

LONG = ["train.max_steps=24", "train.save_every=10", "train.keep_checkpoints=5", "train.log_every=5", "train.batch_rows=8"]
STREAMED = [*LONG, "train.batch_rows=16", "train.log_every=1", "data.sources.domain.stream=true", "data.stages=[{from_tokens:8000,replay:0.5}]"]


def stopped_at(step: int, run: RunFolder, folder: Path) -> RunFolder:
    """A copy of a finished run as it stood after the checkpoint of a step."""
    copy = Path(shutil.copytree(run.path, folder / run.path.name))
    shutil.rmtree(copy / "model")
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    results = run.results
    for section in ("training", "objective", "samples"):
        results.pop(section)
    (copy / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return RunFolder(path=copy)


def go_on(run: RunFolder, overrides: list[str], settings: list[str]) -> None:
    run_pipeline(compose([*overrides, *settings, f"run={run.path.name}", f"runs_dir={run.path.parent}"]), "python train.py")


def test_a_streamed_and_staged_run_goes_on_where_it_was(run_here: RunHere, overrides: list[str], tmp_path: Path) -> None:
    whole = run_here("streamed", *STREAMED)
    again = stopped_at(20, whole, tmp_path)
    state = json.loads((again.path / "checkpoints" / "step-00000020" / "state.json").read_text(encoding="utf-8"))
    assert state["run"]["position"]["domain"]["row"] > 0
    go_on(again, overrides, STREAMED)
    assert again.timeless == whole.timeless
    assert (again.path / "model" / "model.safetensors").read_bytes() == (whole.path / "model" / "model.safetensors").read_bytes()
    page = (whole.path / "data_report.html").read_text(encoding="utf-8")
    assert "streamed" in page and "Every rank reads and tokenises all of it" in page


def test_measured_shares_are_the_asked_ones_in_both_stages(run_here: RunHere) -> None:
    lines = [line for line in run_here("streamed", *STREAMED).metrics if "loss" in line]
    tokens: dict[bool, dict[str, int]] = {False: {"domain": 0, "general": 0}, True: {"domain": 0, "general": 0}}
    for line in lines:
        for name in ("domain", "general"):
            tokens[line["tokens"] > 9_500][name] += line[f"tokens/{name}"]  # the step at the border, of about 980 tokens, is counted before it
    before, after = (stage["general"] / sum(stage.values()) for stage in (tokens[False], tokens[True]))
    assert before == pytest.approx(0.25, abs=0.05) and after == pytest.approx(0.5, abs=0.03)


def test_a_run_does_not_go_on_with_other_text(run_here: RunHere, overrides: list[str], workspace: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.jsonl"
    lines = (workspace / "text" / "domain.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    text.write_text("".join(lines), encoding="utf-8")
    settings = [*LONG, f"data.path={text}"]
    begun = stopped_at(10, run_here("changed", *settings), tmp_path)
    before = {path: path.read_bytes() for path in begun.path.rglob("*") if path.is_file() and path.name != "config.yaml"}

    text.write_text("".join(lines[:-1]) + json.dumps({"text": "quite another document than the one before"}) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"(?s)was begun on other text:\n    source domain: mine\.jsonl has changed .*run=NAME"):
        go_on(begun, overrides, settings)
    after = {path: path.read_bytes() for path in begun.path.rglob("*") if path.is_file() and path.name != "config.yaml"}
    assert after == before

    text.write_text("".join(lines), encoding="utf-8")
    go_on(begun, overrides, settings)
    assert "objective" in begun.results


def test_the_text_is_shown_without_training(start: Callable[..., Any], overrides: list[str], workspace: Path) -> None:
    process = start(["-m", "slayer.data", *overrides, "run=looked_at"])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in said, said
    assert "domain" in said and "train.py" in said and "data_report.html" in said
    assert {path.name for path in (workspace / "runs" / "looked_at").iterdir()} == {"data_report.html", "data_report.md", "figures"}
