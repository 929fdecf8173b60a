"""One rank and two ranks do the same: the same tokens in the same order, the same losses, each other's checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small_text import run_overrides, write_text
from small_training import BINDING, STAGES, RandomRows, difference, open_engine, recorded_batches, run_config, train_steps

from slayer.config import load_config, save_config
from slayer.launching.compose import compose
from slayer.pipeline import run_pipeline
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.ranks import Ranks

TESTS = Path(__file__).parents[1]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def one_rank(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Found], Found]:
    """Four steps at every stage with a checkpoint after two, and a run of the pipeline, in this process alone."""
    folder = tmp_path_factory.mktemp("ranks")
    found = []
    for stage in STAGES:
        config = run_config(stage, micro_batch_rows=1, save_every=2)
        engine, loader = open_engine(ranks, config), RandomRows(4)
        try:
            _, diary = train_steps(engine, config, 4, loader=loader, checkpoints=folder / f"one-rank-{stage}")
            logits = engine.logits(RandomRows(4).batch(9)).flatten()[:200].tolist()
        finally:
            engine.close()
        found.append({"records": diary.timeless, "consumed": loader.consumed, "logits": logits})
    with pytest.MonkeyPatch.context() as patch, recorded_batches() as batches:
        patch.setenv("SLAYER_CACHE", str(folder / "cache"))
        settings = ["engine.precision=fp32", "engine.micro_batch_rows=1", "engine=zero3", "train.max_steps=4", "train.evaluate_every=2", "prune=1"]
        overrides = [*run_overrides(write_text(folder / "text"), folder), *settings]
        (folder / "overrides.json").write_text(json.dumps(overrides), encoding="utf-8")
        for name in ("one-rank", "two-ranks"):
            save_config(compose([*overrides, f"run={name}"]), folder / f"{name}.yaml")
        run_pipeline(load_config(folder / "one-rank.yaml"), "python train.py")
    return folder, found, {"pipeline_batches": batches}


def start_apart(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with nothing of this process's group."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {**inherited, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "SLAYER_CACHE": str(folder / "cache")}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=400, check=False, cwd=TESTS.parent)


@pytest.fixture(scope="module")
def two_ranks(one_rank: tuple[Path, list[Found], Found]) -> list[Found]:
    """What each of two ranks found."""
    folder = one_rank[0]
    worker = TESTS / "distributed" / "two_ranks_worker.py"
    ended = start_apart(folder, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(worker), str(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_they_know_of_each_other(two_ranks: list[Found]) -> None:
    for rank, found in enumerate(two_ranks):
        assert (found["rank"], found["world"], found["gathered"], found["sum"]) == (rank, 2, [0, 10], 2.0)


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_tokens_in_the_same_order(one_rank: tuple[Path, list[Found], Found], two_ranks: list[Found], stage: int) -> None:
    alone = [[step, rows] for step, rows in one_rank[1][stage]["consumed"]]
    taken = [found["fp32"][stage]["consumed"] for found in two_ranks]
    assert len(taken[0]) == len(taken[1]) == 8
    assert [batch for pair in zip(*taken, strict=True) for batch in pair] == alone


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_losses(one_rank: tuple[Path, list[Found], Found], two_ranks: list[Found], stage: int) -> None:
    """Losses, per-source losses, tokens, gradient norms: all that a record says but for the clock."""
    for found in two_ranks:
        for record, alone in zip(found["fp32"][stage]["records"], one_rank[1][stage]["records"], strict=True):
            assert record == pytest.approx(alone, abs=1e-5, rel=1e-5)
        assert found["fp32"][stage]["logits"] == pytest.approx(one_rank[1][stage]["logits"], abs=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_go_on_bit_identically(two_ranks: list[Found], stage: int) -> None:
    for found in two_ranks:
        assert found["fp32"][stage]["own_is_identical"] and found["bf16"][stage]["identical"]
        assert found["fp32"][stage]["after_own"] == found["fp32"][stage]["records"][2:]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_go_on_from_the_checkpoint_of_one(two_ranks: list[Found], stage: int) -> None:
    """It was saved at another stage, too."""
    for found in two_ranks:
        for record, whole in zip(found["fp32"][stage]["after_one_rank"], found["fp32"][stage]["records"][2:], strict=True):
            assert record == pytest.approx(whole, abs=1e-5, rel=1e-5)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(("saved_at", "stage"), [(2, 3), (3, 1), (1, 0), (0, 2), (2, 2)])
def test_one_rank_goes_on_from_the_checkpoint_of_two(one_rank: tuple[Path, list[Found], Found], ranks: Ranks, saved_at: int, stage: int) -> None:
    config = run_config(stage, micro_batch_rows=1)
    engine = open_engine(ranks, config)
    try:
        state = load_checkpoint(checkpoint_folder(one_rank[0] / f"two-ranks-{saved_at}", 2), engine, BINDING)
        _, rest = train_steps(engine, config, 2, state=state)
    finally:
        engine.close()
    for record, alone in zip(rest.timeless, one_rank[1][stage]["records"][2:], strict=True):
        assert record == pytest.approx(alone, abs=1e-5, rel=1e-5)


def test_a_stop_that_one_rank_hears_stops_both(two_ranks: list[Found]) -> None:
    for found in two_ranks:
        assert found["stop"] == {"step": 1, "events": [["log", 1], ["save", 1]]}


def test_a_whole_run_on_two_ranks_is_the_run_on_one(one_rank: tuple[Path, list[Found], Found], two_ranks: list[Found]) -> None:
    """The real loader and the real text at ZeRO-3, with held-out scores in between, export and comparison."""
    folder = one_rank[0]
    alone = one_rank[2]["pipeline_batches"]
    taken = [found["pipeline_batches"] for found in two_ranks]
    assert len(alone) == 16 and [batch for pair in zip(*taken, strict=True) for batch in pair] == alone
    texts = [(folder / name / "metrics.jsonl").read_text(encoding="utf-8") for name in ("one-rank", "two-ranks")]
    lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert len(lines[0]) == 7
    clocked = ("tokens_per_second", "mfu", "memory_bytes", "step_seconds")
    for one, two in zip(*lines, strict=True):
        plain = [{key: value for key, value in line.items() if key not in clocked} for line in (one, two)]
        assert plain[1] == pytest.approx(plain[0], abs=1e-5, rel=1e-5)
    results = [json.loads((folder / name / "results.json").read_text(encoding="utf-8")) for name in ("one-rank", "two-ranks")]
    assert results[1]["training"]["export_max_difference"] == 0 and results[1]["training"]["ranks"] == 2
    assert two_ranks[0]["objective"] == pytest.approx(results[0]["objective"]["value"], abs=1e-4) and two_ranks[1]["objective"] is None
    models = [load_file(folder / name / "model" / "model.safetensors") for name in ("one-rank", "two-ranks")]
    assert difference(*models) < 1e-4


@pytest.mark.usefixtures("two_ranks")
def test_a_finished_run_on_two_ranks_is_only_shown_again(one_rank: tuple[Path, list[Found], Found]) -> None:
    folder = one_rank[0]
    overrides = json.loads((folder / "overrides.json").read_text(encoding="utf-8"))
    ended = start_apart(folder, "train.py", *overrides, "run=two-ranks", "launcher.processes=2")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "is finished; nothing to do" in ended.stdout
