"""Benchmarks as a person asks for them: beside a base and alone, killed half-way, in the middle of training, over many models."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import RunFolder
from test_evaluate import composed

from slayer.errors import ConfigError
from slayer.launching.evaluation import run_evaluation
from slayer.launching.subjects import find_subject

pytestmark = pytest.mark.usefixtures("ranks", "questions")

SUITE = ["suite=quick", "limit=12", "tasks=[piqa,arc_easy,gsm8k_bpb]"]


@pytest.fixture(scope="module")
def run(questions: None, own_cache: None, run_here: Callable[..., RunFolder]) -> RunFolder:
    """A run of six steps that scores two small benchmarks on the way."""
    suite = ["+suite.tasks={piqa:{limit:10},gsm8k_bpb:{limit:6}}", "suite.in_loop_items=4"]
    return run_here("benchmarked", "train.max_steps=6", "train.evaluate_every=2", *suite)


def evaluated(*words: str) -> dict[str, Any]:
    return run_evaluation(composed([*words, "heldout.tokens_per_source=600"]))


def test_a_run_scores_its_suite_before_during_and_after(run: RunFolder) -> None:
    lines = [line for line in run.metrics if "tasks/piqa" in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    table = run.results["benchmarks"]["tasks"]
    assert {name: entry["items"] for name, entry in table.items()} == {"piqa": 10, "gsm8k_bpb": 6}
    bits = [line["tasks/gsm8k_bpb"] for line in lines]
    assert bits[-1] != bits[0] and table["gsm8k_bpb"]["result"] != table["gsm8k_bpb"]["base"]
    assert run.results["before"]["tasks"].keys() == table.keys()
    items = [json.loads(line) for line in (run.path / "items" / "gsm8k_bpb.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(items) == 6 and all(item["base"].keys() == item["result"].keys() for item in items)
    assert "Benchmarks" in (run.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.matrix
def test_two_ranks_under_zero3_score_as_one_does(
    run_here: Callable[..., RunFolder], own_cache: None, overrides: list[str], workspace: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Frozen and trained weights are partitioned then, and every forward pass gathers them on all ranks together."""
    asked = ["+suite.tasks={piqa:{limit:6},gsm8k_bpb:{limit:4}}", "train.evaluate_every=1", "train.batch_rows=4", "engine.precision=fp32"]
    process = start(["train.py", *overrides, *asked, "engine=zero3", "launcher.processes=2", "engine.micro_batch_rows=2", "run=apart"])
    one = run_here("alone", *asked)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    both = [[line for line in folder.metrics if "tasks/piqa" in line] for folder in (one, RunFolder(path=workspace / "runs" / "apart"))]
    assert [line["step"] for line in both[0]] == [line["step"] for line in both[1]] == [0, 1, 2]
    for mine, theirs in zip(*both, strict=True):
        assert theirs["tasks/gsm8k_bpb"] == pytest.approx(mine["tasks/gsm8k_bpb"], rel=1e-4) and theirs["tasks/piqa"] == mine["tasks/piqa"]


def test_the_same_suite_afterwards_gives_the_same_numbers(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(path=Path(shutil.copytree(run.path, tmp_path / "copy")))
    found = evaluated(f"checkpoint={folder.path}", "+suite.tasks={piqa:{limit:10},gsm8k_bpb:{limit:6}}")
    for name, entry in found["benchmarks"]["tasks"].items():
        before = run.results["benchmarks"]["tasks"][name]
        assert {key: entry[key] for key in ("base", "result", "p", "change_interval")} == {
            key: before[key] for key in ("base", "result", "p", "change_interval")
        }


def test_a_folder_that_this_project_did_not_make(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run folder, no text, no base: scores with intervals. Then beside a base, the same scores again from the cache."""
    monkeypatch.chdir(tmp_path)
    plain = Path(shutil.copytree(find_subject("tiny").folder, tmp_path / "plain"))
    alone = evaluated(f"checkpoint={plain}", *SUITE)["benchmarks"]
    assert alone["base"] is None
    beside = evaluated(f"checkpoint={plain}", "base=tiny", *SUITE)["benchmarks"]
    for name, entry in beside["tasks"].items():
        assert entry["result"] == alone["tasks"][name]["result"] and alone["tasks"][name]["change"] is None
        assert entry["change"] == 0 and entry["p"] == 1 and entry["verdict"] == "no change detected"


def test_killed_half_way_it_goes_on_from_finished_tasks(
    workspace: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLAYER_CACHE", str(workspace / "cache"))
    scores = workspace / "cache" / "harness" / "scores"
    before = set(scores.glob("*.json"))
    words = ["evaluate.py", "checkpoint=tiny", "tasks=[openbookqa,sciq,hellaswag]", "limit=60", f"output={tmp_path / 'killed'}"]
    process = start(words)
    deadline = time.monotonic() + 120
    while len(set(scores.glob("*.json")) - before) < 1 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in set(scores.glob("*.json")) - before}
    assert 1 <= len(finished) < 3 and process.returncode == -signal.SIGKILL
    again = start(words)
    output = again.communicate(timeout=200)[0]
    assert again.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in finished} == finished and len(set(scores.glob("*.json")) - before) == 3
    resumed = json.loads((tmp_path / "killed" / "results.json").read_text(encoding="utf-8"))["benchmarks"]["tasks"]
    for path in set(scores.glob("*.json")) - before:
        path.unlink()
    monkeypatch.chdir(tmp_path)
    whole = evaluated("checkpoint=tiny", "tasks=[openbookqa,sciq,hellaswag]", "limit=60")["benchmarks"]["tasks"]
    assert resumed == whole


@pytest.mark.matrix
def test_dola_and_the_harness_own_backend(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, few = f"checkpoint={run.path / 'model'}", ["suite=quick", "limit=4", "tasks=[piqa,gsm8k_bpb]"]
    fast = evaluated(model, *few, "precision=fp32")["benchmarks"]["tasks"]
    harness = evaluated(model, *few, "precision=fp32", "backend=harness")["benchmarks"]["tasks"]
    dola = evaluated(model, *few, "precision=fp32", "decoding=dola", "base=tiny")["benchmarks"]
    for name, entry in fast.items():
        assert harness[name]["result"] == pytest.approx(entry["result"], abs=1e-6)
    assert dola["decoding"] == "dola" and dola["tasks"]["gsm8k_bpb"]["result"] != fast["gsm8k_bpb"]["result"]
    with pytest.raises(ConfigError, match=r"backend = 'harness'.*not DoLa's"):
        composed([model, *few, "decoding=dola", "backend=harness"])
    with pytest.raises(ConfigError, match=r"no task of suite tasks generates text"):
        evaluated(model, *few, "decoding=greedy")


def test_many_models_make_a_page(run: RunFolder, run_here: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two placements with two seeds each: the effect of the placement is tested, and the page is written."""
    others = [run_here(f"study-{place}-{seed}", f"expansion={place}", f"seed={seed}") for place in ("even", "deep_half") for seed in (1, 2)]
    monkeypatch.chdir(tmp_path)
    values = run_evaluation(composed([f"runs=[{','.join(str(one.path) for one in others)}]"]))
    assert [one["name"] for one in values["models"]] == [one.path.name for one in others]
    effect = values["factors"]["expansion"]["heldout/domain"]
    assert effect["anova"]["df_between"] == 1 and effect["anova"]["df_within"] == 2 and effect["tukey"][0]["a"] != effect["tukey"][0]["b"]
    page = next((tmp_path / "runs" / "evaluations").iterdir())
    assert (page / "report.html").exists() and json.loads((page / "study.json").read_text(encoding="utf-8")) == values


def test_a_sequence_of_domains(
    run: RunFolder, run_here: Callable[..., RunFolder], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run starts from the first one's model and learns another text: R, OP and BWT."""
    domain, general = (workspace / "text" / f"{name}.jsonl" for name in ("domain", "general"))
    text = [f"data.path={general}", f"data.sources.general.path={domain}", "data.replay=0", "data.name=second"]
    second = run_here("second", "model=local", f"model.path={run.path / 'model'}", "train.max_steps=3", *text)
    monkeypatch.chdir(tmp_path)
    found = run_evaluation(composed([f"runs=[{run.path},{second.path}]", "sequence=true", "heldout.tokens_per_source=600"]))["sequence"]
    matrix = found["matrix"]
    assert len(matrix) == 2 and all(len(row) == 2 for row in matrix)
    assert found["op"] == pytest.approx(sum(matrix[1]) / 2)
    assert found["bwt"] == pytest.approx(-(matrix[1][0] - matrix[0][0]))
