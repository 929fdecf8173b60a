"""Four ranks train as one does, at every ZeRO stage; and under ZeRO-3 none of them ever holds the whole model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_ranks import run_forked
from four_ranks_worker import CASES, PARTS, STAGED, STEPS, WORLD, all_cases, main, memory_of_ranks

from slayer.training.ranks import Ranks

pytestmark = [pytest.mark.slow, pytest.mark.matrix]

Found = dict[str, Any]
NEAR = {"fp32": 1e-5, "bf16": 2e-3}
"""Most that a loss may differ: the order of sums, in the type that is computed in (measured: docs/results/many_ranks.md)."""
ODD = {"hidden_size": 15, "intermediate_size": 23, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
"""Tensors that four ranks cannot cut in equal parts."""
LARGE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096}


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path]) -> dict[str, Path]:
    return {
        "odd": make_model("qwen2", layers=3, sharded=True, **ODD), "tied": make_model("llama", layers=3, dtype="bfloat16", tie_word_embeddings=True),
        "large": make_model("llama", layers=12, **LARGE),
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one rank does, in this process."""
    return all_cases(ranks, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def four(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of four does."""
    folder = tmp_path_factory.mktemp("four")
    run_forked(main, WORLD, folder, models, seconds=400)
    return [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(WORLD)]


def largest_difference(ours: list[Found], theirs: list[Found]) -> float:
    assert [(one["step"], one["tokens"]) for one in ours] == [(one["step"], one["tokens"]) for one in theirs]
    return max(abs(one["loss"] - other["loss"]) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_one_rank(alone: Found, four: list[Found], case: str) -> None:
    precision = case.split()[1]
    for found in four:
        assert largest_difference(found["plain"][case], alone["plain"][case]) <= NEAR[precision]
    losses = [record["loss"] for record in alone["plain"][case]]
    assert len(losses) == STEPS and max(losses) - min(losses) > 100 * NEAR["fp32"], "it learns nothing: any loss would be near"


@pytest.mark.parametrize("stage", STAGED)
def test_a_staged_training(alone: Found, four: list[Found], stage: int) -> None:
    for found in four:
        assert largest_difference(found["staged"][str(stage)], alone["staged"][str(stage)]) <= NEAR["fp32"]


def test_what_one_rank_cannot_do_none_goes_on_after(four: list[Found]) -> None:
    """The first one tells it, whoever it was; of the others none speaks."""
    for rank, found in enumerate(four):
        told = found["agreements"]
        assert told["nobody"] == told["nobody again"] == str(rank)
        kinds = [told[case].partition(":")[0] for case in ("third", "all")]
        assert kinds == (["EngineError", "ConfigError"] if rank == 0 else ["ToldError", "ToldError"])
        assert "prune = 2" in told["third"] and "prune = 0" in told["all"]
    assert re.search(r"rank 2 on \S+ cannot go on: 1 problem", four[0]["agreements"]["third"])


def test_each_rank_can_make_a_model_in_a_cache_of_its_own(four: list[Found]) -> None:
    for found in four:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found["model"])


@pytest.mark.parametrize("name", PARTS)
def test_each_rank_reads_its_part(four: list[Found], name: str) -> None:
    """Bit for bit what the files hold, once gathered; padding included a rank holds a quarter; and the steps are those of the old way."""
    for found in four:
        case = found["parts"][name]
        held, whole = case["held"]
        assert case["is_the_files_own"] and whole / WORLD <= held <= whole / WORLD + 40
        assert case["parts"] == case["whole"] and len(case["parts"]) == 3


def test_no_rank_holds_the_whole(models: dict[str, Path], tmp_path: Path) -> None:
    """While it is opened and makes steps it holds a quarter, the layers in hand, and what trains with its gradients, master and moments."""
    whole_bytes = sum(path.stat().st_size for path in models["large"].glob("*.safetensors"))
    layer_bytes = whole_bytes / 14  # of twelve layers, embeddings and head
    found = {}
    for way in ("parts", "whole"):
        run_forked(memory_of_ranks, WORLD, tmp_path, models["large"], way, int(2 * layer_bytes / 4), seconds=400)
        found[way] = json.loads((tmp_path / f"memory-{way}-{WORLD}.json").read_text(encoding="utf-8"))
    for ours, theirs in zip(found["parts"], found["whole"], strict=True):
        assert max(ours["opening"], ours["steps"]) < whole_bytes / WORLD + 8 * layer_bytes < whole_bytes
        assert ours["losses"] == theirs["losses"]
