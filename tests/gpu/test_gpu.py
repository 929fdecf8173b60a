"""What only a GPU can show: the same proofs as on a CPU, at every ZeRO stage. `make gpu` runs these."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import BINDING, STAGES, RandomRows, open_engine, run_config, small_model, state_of, train_steps

from slayer.forward import logits_of
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.ranks import Ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch sees none")]

RunHere = Callable[..., Path]


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_proves_itself(run_here: RunHere, stage: int) -> None:
    """Identity after insertion, frozen bytes at start, save and export, and an export that computes what was trained."""
    folder = run_here(f"zero{stage}", f"engine=zero{stage}", "train.max_steps=4", "train.save_every=2", "train.evaluate_every=2", "prune=1")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["proof"]["identity_max_difference"] == 0
    assert results["training"]["export_max_difference"] == 0 and results["training"]["frozen_tensors_checked"] == 20
    assert results["training"]["device"] == torch.cuda.get_device_name()
    records = metrics(folder)
    assert len(records) == 4 and all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
    assert 0 < records[-1]["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory


def test_stages_agree(run_here: RunHere) -> None:
    losses = [[record["loss"] for record in metrics(run_here(f"agree{stage}", f"engine=zero{stage}", "train.max_steps=3"))] for stage in STAGES]
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], abs=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_going_on_from_a_checkpoint(ranks: Ranks, tmp_path: Path, stage: int, precision: str) -> None:
    """What is loaded is what was saved, to the bit; what follows agrees as far as the GPU's own sums do."""
    config = run_config(stage, precision, save_every=3)
    engine = open_engine(ranks, config, small_model(precision, zeroed=(1,)).to(ranks.device))
    try:
        _, whole = train_steps(engine, config, 6, checkpoints=tmp_path)
        expected = state_of(engine)
    finally:
        engine.close()
    engine = open_engine(ranks, config, small_model(precision, zeroed=(1,)).to(ranks.device))
    try:
        state = load_checkpoint(checkpoint_folder(tmp_path, 6), engine, BINDING)
        assert state.step == 6 and all(torch.equal(value, expected[name]) for name, value in state_of(engine).items())
    finally:
        engine.close()
    engine = open_engine(ranks, config, small_model(precision, zeroed=(1,)).to(ranks.device))
    try:
        _, rest = train_steps(engine, config, 3, state=load_checkpoint(checkpoint_folder(tmp_path, 3), engine, BINDING))
        assert rest.losses == pytest.approx(whole.losses[3:], abs=1e-5 if precision == "fp32" else 5e-3)
    finally:
        engine.close()


def test_the_gpu_computes_what_the_cpu_does(ranks: Ranks) -> None:
    batch = RandomRows(4).batch(0)
    engine = open_engine(ranks, run_config(0), small_model(zeroed=(1,)).to(ranks.device))
    try:
        moved = type(batch)(**{name: getattr(batch, name).to(ranks.device) for name in type(batch).__dataclass_fields__})
        with torch.no_grad():
            expected = logits_of(small_model(zeroed=(1,)).eval(), batch)
        torch.testing.assert_close(engine.logits(moved).cpu(), expected, atol=1e-3, rtol=1e-3)
    finally:
        engine.close()


def test_steps_that_do_not_log_wait_for_nothing(ranks: Ranks) -> None:
    """CUDA itself tells of every synchronisation in the loop's own operations: summing losses into their sources."""
    from slayer.training.loop import _Window

    engine = open_engine(ranks, run_config(0), small_model(zeroed=(1,)).to(ranks.device))
    try:
        window = _Window(engine, ("law", "general"))
        batch = RandomRows(4).batch(0)
        moved = type(batch)(**{name: getattr(batch, name).to(ranks.device) for name in type(batch).__dataclass_fields__})
        nats_BL = torch.ones(moved.labels_BL.shape, device=ranks.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            window.add(moved, nats_BL)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    finally:
        engine.close()


def test_benchmark_scores_are_the_harness_own(tiny_folder: Callable[..., Path]) -> None:
    """Shared beginnings on a GPU: the same log-likelihoods as lm-eval's own backend, and rows that are halved when memory runs out."""
    from lm_eval.api.instance import Instance
    from transformers import AutoTokenizer

    from slayer.evaluation.harness.lm import SharedPrefixLM, plain_lm
    from slayer.forward import load_model

    folder = tiny_folder()
    model, tokenizer = load_model(folder, "fp32", "cuda"), AutoTokenizer.from_pretrained(folder)
    pairs = [(f"one beginning for all of them, and question {number}:", f" answer {choice}") for number in range(40) for choice in "abcd"]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    expected = plain_lm(model, tokenizer, batch_size=16).loglikelihood(requests)
    for batch_tokens in (None, 64):
        found = SharedPrefixLM(model, tokenizer, batch_tokens=batch_tokens).loglikelihood(requests)
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-2)


def test_layers_are_measured_on_the_gpu_as_on_a_cpu(make_model: Callable[..., Path], pack: Any, random_documents: Any) -> None:
    """In fp32, in memory and read layer by layer, with states of several coalitions in one batch."""
    from slayer.importance.decoder import open_decoder
    from slayer.importance.one_pass import measure_pass
    from slayer.importance.removal import window_removal_coalitions
    from slayer.importance.text_value import TextValue
    from slayer.importance.walk import run_coalitions

    rows = pack([[document] for document in random_documents([16] * 10)], 16)
    found = []
    for device, streamed in (("cpu", False), ("cuda", False), ("cuda", True)):
        decoder = open_decoder(make_model("qwen3", layers=6), "fp32", device, streamed=streamed)
        values, _ = run_coalitions(decoder, TextValue(decoder, rows, source="text", micro_batch_rows=5), window_removal_coalitions(6))
        passed = measure_pass(decoder, rows, ["block_influence", "angular_distance", "dola_divergence"], source="text", micro_batch_rows=5)
        found.append(
            [*(gain for one in sorted(values.gains) for gain in values.gains[one].tolist()), *(value for one in passed for value in one.values)]
        )
    assert found[1] == pytest.approx(found[0], abs=1e-3) and found[2] == pytest.approx(found[0], abs=1e-3)
