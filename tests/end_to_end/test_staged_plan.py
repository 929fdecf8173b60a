"""A staged run before it trains: what the model at hand cannot do is refused, what the run is too short for is told, and the plan says it all."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable

import pytest
from run_folders import RunFolder

from slayer.errors import ConfigError
from slayer.surgery.plan import load_plan


def test_a_part_that_this_model_lacks_is_refused_before_anything_is_built(run_here: Callable[..., RunFolder]) -> None:
    """The tiny model's head is its embedding: only its tensors tell. What is suggested instead is planned."""
    stages = "freeze.stages=[{until_tokens:100,parts:{new:1}},{parts:{new:1,head:0.5}}]"
    with pytest.raises(ConfigError) as refused:
        run_here("no_head", "freeze=staged", stages, "dry_run=true")
    (problem,) = refused.value.problems
    assert problem.key == "freeze.stages" and "embeddings trains both" in problem.why
    run = run_here("no_head", "freeze=staged", *shlex.split(problem.fix), "dry_run=true")
    assert [dict(stage.parts) for stage in load_plan(run.path / "plan.json").stages] == [{"new": 1.0}, {"new": 1.0, "embeddings": 0.5}]


def test_the_plan_shows_every_stage_and_the_report_its_parameters(run_here: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = run_here("planned", "freeze=staged", "dry_run=true")
    said = " ".join(capsys.readouterr().out.split())
    plan = load_plan(run.path / "plan.json")
    trained = [row["trained_parameters"] for row in json.loads((run.path / "results.json").read_text(encoding="utf-8"))["stages"]]
    assert plan.n_stages == 3 and trained[0] < trained[1] < trained[2]
    assert (
        re.search(r"stage 1 until [\d,]+ tokens: new ● ", said) and "stage 3 to the end: new, tail × 0.5, norms × 0.5, originals[-4:] × 0.1" in said
    )
    assert "What trains when" in (run.path / "report.html").read_text(encoding="utf-8")


def test_a_run_that_ends_before_a_stage_begins_says_which_stages_would_fit(
    run_here: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    stages = "freeze.stages=[{until_tokens:60,parts:{new:1}},{until_tokens:900_000,parts:{tail:1}},{parts:{norms:1}}]"
    run_here("too_short", "freeze=staged", stages, "train.max_tokens=null", "dry_run=true")
    said = capsys.readouterr().out
    assert "stage 3 of the freeze schedule begins at 900,000 tokens" in said and "it never begins" in said
    (suggested,) = re.findall(r"stages that fit: (.*)", said)
    run_here("long_enough", "freeze=staged", *shlex.split(suggested), "train.max_tokens=null", "dry_run=true")
    assert "never begins" not in capsys.readouterr().out
