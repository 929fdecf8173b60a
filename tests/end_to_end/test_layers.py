"""Layers as a person asks for them: of a folder, of a run with new blocks, by accuracy; and plans that follow the scores."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import RunFolder
from small_text import text_overrides
from test_evaluate import composed

from slayer.errors import ConfigError
from slayer.importance.catalogue import CATALOGUE, ONE_PASS
from slayer.importance.removal import window_removal_coalitions
from slayer.importance.table import load_table
from slayer.importance.walk import planned_forwards
from slayer.launching.evaluation import run_evaluation
from slayer.surgery.plan import load_plan

pytestmark = pytest.mark.usefixtures("ranks", "own_cache")


@pytest.fixture(scope="module")
def run(run_here: Callable[..., RunFolder]) -> RunFolder:
    """An expanded and pruned run of a few steps."""
    return run_here("with-layers", "train.max_steps=4", "prune=1", "prune_by=removal")


def layers(*words: str) -> Any:
    run_evaluation(composed(["analysis=layers", *words]))


def test_a_run_is_measured_in_the_layers_of_its_base(run: RunFolder) -> None:
    layers(f"checkpoint={run.path}", "scores=[block_influence,removal,learned_mask]", "analysis.sample_tokens=2000", "analysis.sources=[domain]")
    table = load_table(run.path)
    plan = load_plan(run.path / "plan.json")
    assert [layer.label for layer in table.layers if not layer.new] == [str(base) for base in sorted(plan.index_of_base)]
    assert [layer.index for layer in table.layers if layer.new] == list(plan.new_indices)
    mask = table.find("learned_mask")
    assert mask is not None and {layer for layer in range(plan.n_layers) if layer not in mask.failed} == set(plan.trainable)
    removal = table.find("removal")
    assert removal is not None and all(value == value for value in removal.values)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Which layers matter" in page and "Learnt and forgotten" in page


def test_a_plain_folder_goes_beside_the_runs(run: RunFolder, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layers("checkpoint=tiny", *text_overrides(workspace / "text"), "data.sources.general.heldout_share=0.4", "analysis.sample_tokens=1500")
    folder = tmp_path / "runs" / "evaluations" / "tiny"
    table = load_table(folder)
    sources = {one.source for one in table.measurements}
    assert {one.score for one in table.measurements} == set(ONE_PASS) and sources == set(table.facts["sources"]) and len(sources) == 2
    assert (folder / "layers.parquet").exists() and "Which layers matter" in (folder / "report.html").read_text(encoding="utf-8")
    assert not json.loads((folder / "layers.json").read_text(encoding="utf-8"))["measurements"][0]["failed"]


@pytest.mark.matrix
@pytest.mark.usefixtures("questions")
def test_accuracy_on_a_suite(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layers("checkpoint=tiny", "scores=[removal,shapley_window]", "analysis.value=accuracy", "tasks=[piqa,arc_easy]", "limit=50", "output=out")
    table = load_table(tmp_path / "out")
    assert [(one.score, one.source) for one in table.measurements] == [("removal", "piqa+arc_easy"), ("shapley_window", "piqa+arc_easy")]
    removal = table.measurements[0]
    assert 0 <= removal.details["whole"] <= 1 and all(abs(value) <= 1 for value in removal.values)


@pytest.mark.parametrize(
    ("words", "key", "fix"),
    [
        (["scores=[remowal]"], "scores", "scores=[removal]"),
        (["analysis=none", "scores=[removal]"], "scores", "analysis=layers, or leave out scores"),
        (["suite=quick"], "suite", "analysis.value=accuracy, or leave out suite"),
        (["analysis.value=accuracy", "scores=[removal]"], "analysis.value", "analysis.value=accuracy suite=quick, or tasks=[arc_easy]"),
        (["analysis.value=accuracy", "tasks=[piqa]"], "analysis.value", "scores=[removal], or leave out analysis.value"),
        (["scores=[removal]", "analysis.probe_set=boolq"], "analysis.probe_set", "scores=[probe], or leave out analysis.probe_set"),
        (["analysis.sample_tokens=10"], "analysis.sample_tokens", "analysis.sample_tokens=1000"),
        (["sequence=true", "runs=[a,b]", "checkpoint=null"], "runs", "checkpoint=a"),
        (["decoding=greedy"], "decoding", "leave out decoding"),
        (["base=tiny", "scores=[removal]"], "base", "scores=[learned_mask], or leave out base"),
        (["scores=[weight_snr]", "data=demo"], "data", "scores=[block_influence], or leave out data"),
        (
            ["scores=[probe]", "analysis.sample_tokens=5000"],
            "analysis.sample_tokens",
            "scores=[block_influence], or leave out analysis.sample_tokens",
        ),
        (["scores=[removal]", "limit=20"], "limit", "suite=quick, or leave out limit"),
    ],
)
@pytest.mark.usefixtures("questions")
def test_what_cannot_be_measured_is_one_message(words: list[str], key: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(["analysis=layers", "checkpoint=tiny", *words])
    assert fix in {problem.fix for problem in refused.value.problems if problem.key == key}, refused.value.problems


def test_a_score_places_the_new_blocks_and_prunes(run_here: Callable[..., RunFolder], overrides: list[str]) -> None:
    words = ["expansion=least_important", "expansion.score=block_influence", "expansion.count=2", "prune=1", "prune_by=angular_distance"]
    found = run_here("by-score", *words, "train.max_steps=2")
    plan = load_plan(found.path / "plan.json")
    scores = plan.expansion_scores
    assert scores is not None and scores.score == "block_influence" and scores.tokens > 0 and len(scores.sample) == 64
    assert sorted(entry.after for entry in plan.entries if not hasattr(entry, "base_index")) == sorted(scores.ranked[:2])
    assert plan.prune_scores is not None and plan.pruned == (plan.prune_scores.cheapest_block,)
    choice = found.results["choice"]
    assert choice["pruned"] == list(plan.pruned) and {other["by"] for other in choice["alternatives"]} <= {"removal", "last", "block_influence"}
    assert choice["jump"] == found.results["proof"]["loss_jump"]
    assert set(CATALOGUE) >= {choice["score"]}


def test_a_kill_in_the_middle_costs_no_number(workspace: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """SIGKILL as soon as some readings are written: the same command goes on from them, and ends where an undisturbed one does."""
    from slayer.config import RandomModelConfig
    from slayer.data.random_model import tiny_model

    folder = tiny_model(RandomModelConfig(layers=10))
    words = [
        "evaluate.py", "analysis=layers", f"checkpoint={folder}", "scores=[window_removal,block_influence]", "micro_batch_rows=2",
        "precision=fp32", *text_overrides(workspace / "text"), "analysis.sources=[domain]", "analysis.sample_tokens=1500",
    ]  # fmt: skip
    planned = planned_forwards(window_removal_coalitions(10))
    process = start([*words, f"output={tmp_path / 'killed'}"])
    store = workspace / "cache" / "importance" / "values"
    before = set(store.glob("*.jsonl"))
    lines = 0
    while process.poll() is None and lines < 250:
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in set(store.glob("*.jsonl")) - before)
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "killed" / "layers.json").exists()
    run_evaluation(composed([*words[1:], f"output={tmp_path / 'killed'}"]))
    went_on = load_table(tmp_path / "killed")
    assert went_on.facts["forwards"]["domain"]["run"] < 0.9 * planned
    for file in store.glob("*.jsonl"):
        file.unlink()
    run_evaluation(composed([*words[1:], f"output={tmp_path / 'whole'}"]))
    undisturbed = load_table(tmp_path / "whole")
    assert undisturbed.facts["forwards"]["domain"]["run"] == planned
    assert went_on.measurements == undisturbed.measurements
