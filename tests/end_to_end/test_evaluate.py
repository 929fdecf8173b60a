"""evaluate.py: a run beside its base, any two folders, names; what it refuses, and that it takes nothing from a run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from run_folders import RunFolder
from small_text import text_overrides

from slayer.config import EvaluationConfig, load_config
from slayer.errors import ConfigError, ModelError
from slayer.launching.commandline import CONF, tolerant
from slayer.launching.compose import resolved
from slayer.launching.evaluation import run_evaluation, validate_evaluation
from slayer.models import resolve_model

pytestmark = pytest.mark.usefixtures("ranks", "own_cache")

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(run_here: Callable[..., RunFolder]) -> RunFolder:
    """A run of ten steps that moved its scores."""
    return run_here("evaluated", "train.max_steps=10", "prune=1")


@pytest.fixture
def text(workspace: Path) -> list[str]:
    return text_overrides(workspace / "text")


def composed(words: Sequence[str]) -> EvaluationConfig:
    """What evaluate.py makes of a command line."""
    from hydra import compose, initialize_config_dir

    accepted, problems = tolerant(words, EvaluationConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values, unresolved = resolved(compose("evaluate", overrides=accepted))
    return validate_evaluation(values, [*problems, *unresolved])


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """evaluate("checkpoint=…", …): the same in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_evaluation(composed([*words, "heldout.tokens_per_source=600"]))


def scores(table: dict[str, Any]) -> dict[str, Any]:
    """The table without what only training knows."""
    return {source: {key: value for key, value in entry.items() if key != "start"} for source, entry in table.items()}


def test_a_run_folder_gives_the_numbers_of_the_run(run: RunFolder, evaluate: Evaluate, tmp_path: Path) -> None:
    """Every number again, intervals too; and what else the run had found out is still there."""
    folder = RunFolder(path=Path(shutil.copytree(run.path, tmp_path / "copy")))
    found = evaluate(f"checkpoint={folder.path}")
    assert found["heldout"] == run.results["heldout"]
    assert all(entry["result"] < entry["base"] and entry["start"] is not None for entry in found["heldout"].values())
    assert folder.results == {**run.results, "forgetting": found["forgetting"]}
    for name in ("metrics.jsonl", "plan.json", "config.yaml", "model/model.safetensors"):
        assert (folder.path / name).read_bytes() == (run.path / name).read_bytes()


def test_other_documents_forget_what_was_measured_on_the_first(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(path=Path(shutil.copytree(run.path, tmp_path / "copy")))
    monkeypatch.chdir(tmp_path)
    found = run_evaluation(composed([f"checkpoint={folder.path}", "heldout.tokens_per_source=1200"]))
    for source, entry in found["heldout"].items():
        assert entry["documents"] > run.results["heldout"][source]["documents"] and entry["start"] is None


def test_two_folders_on_any_text(run: RunFolder, evaluate: Evaluate, text: list[str], tmp_path: Path) -> None:
    base = resolve_model(load_config(run.path / "config.yaml").model)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    found = evaluate(f"checkpoint={run.path / 'model'}", f"base={base}", *text)
    assert scores(found["heldout"]) == scores(run.results["heldout"])
    (written,) = (tmp_path / "runs" / "evaluations").iterdir()
    assert written.name.startswith("evaluated-beside-")
    assert json.loads((written / "results.json").read_text(encoding="utf-8"))["heldout"] == found["heldout"]
    assert (written / "report.html").exists()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_names_and_the_other_way_round(run: RunFolder, evaluate: Evaluate, text: list[str], tmp_path: Path) -> None:
    """A name from conf/model as checkpoint, a run as base: the change has the other sign."""
    found = evaluate("checkpoint=tiny", f"base={run.path}", *text, f"output={tmp_path / 'out'}")
    assert (tmp_path / "out" / "results.json").exists() and found["run"] == "tiny" and found["model"] == "evaluated"
    for source, entry in found["heldout"].items():
        mine = run.results["heldout"][source]
        assert (entry["base"], entry["result"]) == (mine["result"], mine["base"])
        assert entry["change_percent"] == pytest.approx(100 * (mine["base"] / mine["result"] - 1))


def test_a_model_beside_itself_has_not_changed(evaluate: Evaluate, text: list[str]) -> None:
    for entry in evaluate("checkpoint=tiny", "base=tiny", *text)["heldout"].values():
        assert entry["change_percent"] == 0 and entry["verdict"] == "no change detected"


def test_a_model_without_a_base_has_scores_and_no_change(run: RunFolder, evaluate: Evaluate, text: list[str]) -> None:
    found = evaluate(f"checkpoint={run.path / 'model'}", *text)
    for source, entry in found["heldout"].items():
        assert entry["result"] == run.results["heldout"][source]["result"]
        assert entry["base"] is None and entry["change_percent"] is None and entry["verdict"] is None
    assert "forgetting" not in found


def test_what_cannot_be_evaluated(run: RunFolder, evaluate: Evaluate, text: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no-such-run is neither a folder nor one of .*tiny.*checkpoint=runs/NAME"):
        evaluate("checkpoint=no-such-run")
    with pytest.raises(ConfigError, match=r"^1 problem(.|\n)*data = null.*no text of its own(.|\n)*data=demo.*suite=quick"):
        evaluate("checkpoint=tiny")
    with pytest.raises(ConfigError, match=r"^1 problem(.|\n)*limit = 3.*suite=heldout has none(.|\n)*suite=quick"):
        evaluate("checkpoint=tiny", "limit=3", *text)
    with pytest.raises(ModelError):
        evaluate(f"checkpoint={tmp_path}", "base=tiny", *text)
    unfinished = shutil.copytree(run.path, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "model")
    with pytest.raises(ModelError, match="has no model yet; finish it with its own command"):
        evaluate(f"checkpoint={unfinished}")
    with pytest.raises(ConfigError) as refused:
        evaluate("chekpoint=x", "precision=fp64")
    assert {problem.key: problem.fix for problem in refused.value.problems} == {
        "chekpoint": "checkpoint=x",
        "checkpoint": "checkpoint=runs/NAME",
        "precision": "precision=fp32",
    }


def test_the_command_itself(run: RunFolder, start: Callable[..., subprocess.Popen[str]]) -> None:
    """A wrong name is one message and exit code 2; a run is scored."""
    wrong = start(["evaluate.py", "checkpoint=no-such-run"])
    right = start(["evaluate.py", f"checkpoint={run.path}", "heldout.tokens_per_source=600"])
    output = wrong.communicate(timeout=200)[0]
    assert wrong.returncode == 2 and "no-such-run is neither a folder nor" in output and "Traceback" not in output, output
    output = right.communicate(timeout=200)[0]
    assert right.returncode == 0 and "report.html" in output and "learnt" in output, output
