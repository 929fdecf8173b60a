"""The guard leaves ordinary training alone: warm-up, noise of a small batch, other mixtures and freeze stages on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dying_ranks import train
from small_text import run_overrides, write_text

from slayer.reporting.events import read_events
from slayer.reporting.json_lines import read_json_lines

STEPS, WINDOW_STEPS = 400, 128


def furthest_deviation(values: list[float]) -> float:
    """By how many sample deviations a step lay above the mean of up to 128 before it, at most."""
    windows = [(value, np.array(values[max(step - WINDOW_STEPS, 0) : step])) for step, value in enumerate(values)]
    return max(float((value - window.mean()) / window.std(ddof=1)) for value, window in windows if len(window) >= WINDOW_STEPS // 2)


@pytest.mark.slow
@pytest.mark.matrix
def test_four_hundred_ordinary_steps_are_all_taken(tmp_path: Path) -> None:
    mixtures = "[{from_tokens:20000,replay:0.9},{from_tokens:35000,replay:0.0}]"
    words = [*run_overrides(write_text(tmp_path / "text"), tmp_path / "runs"), "freeze=staged", "prune=1", f"data.stages={mixtures}", "run=ordinary"]
    words += [f"train.max_steps={STEPS}", "train.batch_rows=2", "engine.micro_batch_rows=2", "train.evaluate_every=150"]
    train(words, tmp_path / "log", SLAYER_CACHE=str(tmp_path / "cache"))
    run = tmp_path / "runs" / "ordinary"
    lines = [line for line in read_json_lines(run / "metrics.jsonl") if "lr" in line]
    assert read_events(run / "events.jsonl") == [] and len(lines) == STEPS
    assert {line["stage"] for line in lines} == {1, 2, 3} and not any("skipped_steps" in line for line in lines)
    # Had the guard known of no freeze stage, the gradients of what joins would have been spikes.
    norms = [line["grad_norm"] for line in lines]
    assert furthest_deviation(norms) > 6
