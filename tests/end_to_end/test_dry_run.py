"""A dry run tells plan and cost, also of a model that is not here, and downloads nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_runs import train
from run_folders import RunFolder

from slayer.errors import ConfigError
from slayer.launching.compose import compose
from slayer.pipeline import run_pipeline
from slayer.training.ranks import Ranks

EIGHT_BILLION = ["model=llama3_8b", "expansion=shallow_half", "prune=2", "dry_run=true"]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Calls that ask for a repository of the hub; its cache is empty."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append({"repository": repository, **options})
        raise LocalEntryNotFoundError(f"{repository} is not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_model_that_is_not_here_is_planned_and_estimated_by_its_sizes(
    overrides: list[str], own_cache: None, ranks: Ranks, no_hub: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose([*overrides, *EIGHT_BILLION, "data.sequence_length=4096", "train.max_steps=100", "run=planned"])
    outcome = run_pipeline(config, "python train.py")
    assert outcome.report == config.folder / "report.html" and no_hub and all(call["local_files_only"] for call in no_hub)
    out = capsys.readouterr().out
    for piece in (
        "32 base layers → 38 layers",
        "9.34 B",
        "What it costs",
        "llama3_8b is not here, and a dry run downloads nothing: the text was not",
    ):
        assert piece in " ".join(out.split()), piece
    run = RunFolder(path=config.folder)
    assert {path.name for path in run.path.iterdir()} - {"figures"} == {"config.yaml", "plan.json", "results.json", "report.html", "report.md"}
    found = run.results["estimate"]
    assert found["parameters"]["total"] == 8_030_261_248 + 6 * 218_112_000 and found["tokens"] == 100 * 64 * 4096
    assert found["flops_per_token"]["total"] == pytest.approx((41.56 + 0.436) * 1e9, rel=1e-3)
    assert json.loads((run.path / "plan.json").read_text(encoding="utf-8"))["n_layers"] == 38
    assert "What it costs" in (run.path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "key", "fix"),
    [
        (["prune_by=removal"], "prune_by", "prune_by=last, or dry_run=false"),
        (["expansion=least_important"], "expansion", "expansion=shallow_half, or dry_run=false"),
        (["model=local", "model.hub=someone/model"], "dry_run", "dry_run=false"),
        (["prune=32"], "prune", "prune=2"),
    ],
)
def test_what_takes_the_model_itself_is_refused_at_once(
    words: list[str], key: str, fix: str, overrides: list[str], no_hub: list[dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([*overrides, *EIGHT_BILLION, *words, "run=refused"])
    assert [(problem.key, problem.fix) for problem in caught.value.problems] == [(key, fix)]


def test_a_model_that_is_here_is_estimated_by_its_files_and_its_text(run_here: Callable[..., RunFolder]) -> None:
    run = run_here("tiny", "dry_run=true", "expansion=even", "train.max_steps=7", "estimate.devices=[H100]", "estimate.gpus=2")
    found = run.results["estimate"]
    assert found["tokens_known"] and found["tokens"] == 7 * 4 * 64 and found["gpus"] == 2 and found["here"]["ranks"] == 1
    assert [device["name"] for device in found["devices"]] == ["H100"] and found["here"]["device"] == "CPU"


def test_what_is_recommended_can_be_typed(overrides: list[str], run_here: Callable[..., RunFolder]) -> None:
    words = ["dry_run=true", "engine=zero3", "engine.activation_checkpointing=true", "estimate.gpus=3", "train.batch_rows=4"]
    best = run_here("typed", *words).results["estimate"]["devices"][0]["recommended"]
    config = compose([*overrides, *words, *shlex.split(best["override"]), "run=typed"])
    assert (config.engine.zero_stage, config.engine.micro_batch_rows) == (best["zero_stage"], best["micro_batch_rows"])
    assert config.engine.activation_checkpointing is best["activation_checkpointing"] is False
    assert config.train.batch_rows == best["micro_batch_rows"] * best["accumulation"] * 3 == 6


def test_the_estimate_is_no_part_of_a_run(run_here: Callable[..., RunFolder]) -> None:
    """A run goes on under other assumptions, and says what it costs under these."""
    done = run_here("goes_on", "train.max_steps=0")
    again = run_here("goes_on", "train.max_steps=0", "estimate.mfu=0.5")
    assert done.path == again.path and "objective" in again.results


def test_as_it_is_typed(overrides: list[str], tmp_path: Path) -> None:
    words = [*(word for word in overrides if not word.startswith(("runs_dir", "model="))), f"runs_dir={tmp_path}"]
    done = train(*words, *EIGHT_BILLION, HF_HOME=str(tmp_path / "hub"), SLAYER_CACHE=str(tmp_path / "cache"))
    assert done.code == 0 and "Traceback" not in done.out, done.out
    assert "train this plan" in done.out and "What it costs" in done.out
    assert "python train.py" in done.out and "dry_run=true" not in done.out.rpartition("train this plan")[2]
