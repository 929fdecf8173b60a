"""The engine against plain PyTorch, and what it may and may not move, at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from small_training import (
    PRECISIONS,
    STAGES,
    VOCABULARY,
    RandomRows,
    difference,
    names_in_layer,
    open_engine,
    run_config,
    same,
    small_model,
    state_of,
    train_steps,
    weights_of,
)

from slayer.config import ExpansionConfig, FreezeConfig, RunConfig, TrainConfig
from slayer.data.order.loader import Batch
from slayer.forward import load_model, logits_of
from slayer.launching.commandline import CONF
from slayer.surgery.build import build_expanded
from slayer.surgery.freeze import trainable_names
from slayer.surgery.plan import LayerPlan, build_plan
from slayer.surgery.weights import Weights
from slayer.training.engine import TrainingEngine
from slayer.training.optim import learning_rate
from slayer.training.ranks import Ranks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def expanded(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LayerPlan]:
    """A random base of four layers, and the model that shallow_half makes of it: one new block, index 2."""
    base, folder = tiny_folder(), tmp_path_factory.mktemp("expanded") / "model"
    plan = build_plan(4, ExpansionConfig(strategy="shallow_half"), FreezeConfig(schedule="originals"))
    assert plan.new_indices == (2,) == plan.trainable
    build_expanded(base, plan, folder, seed=0)
    return base, folder, plan


def base_name(name: str, plan: LayerPlan) -> str:
    """The base's name of a kept tensor."""
    if not name.startswith("model.layers."):
        return name
    index, inner = name.removeprefix("model.layers.").split(".", 1)
    return f"model.layers.{plan.entries[int(index)].base_index}.{inner}"  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_only_new_blocks_move_and_at_first_only_their_zeroed_projections(
    expanded: tuple[Path, Path, LayerPlan], ranks: Ranks, stage: int, precision: str
) -> None:
    base_folder, folder, plan = expanded
    dtype = DTYPES[precision]
    base = {name: Weights(base_folder)[name].to(dtype) for name in Weights(base_folder).infos}
    model = load_model(folder, precision)
    names = trainable_names(plan, [name for name, _ in model.named_parameters()])
    # The defaults of a run, weight decay among them.
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))["train"]  # type: ignore[index, call-overload]
    assert defaults["weight_decay"] == TrainConfig().weight_decay == 0.1
    config = run_config(stage, precision, **{key: value for key, value in defaults.items() if key != "batch_rows"})
    engine = open_engine(ranks, config, model, names)
    try:
        before = weights_of(engine)
        assert all(torch.equal(before[name], Weights(folder)[name].to(dtype)) for name in before)
        state, _ = train_steps(engine, config, 1, total=3)
        first = weights_of(engine)
        moved = {name for name in before if not torch.equal(first[name], before[name])}
        assert moved == {"model.layers.2.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"}
        masters = {name: engine.state_of(name, "master") for name in names}
        assert {name for name in names if not torch.equal(masters[name], Weights(folder)[name].to(dtype).float())} == moved
        train_steps(engine, config, 2, state=state)
        after = weights_of(engine)
        frozen = [name for name in after if name not in names]
        assert len(frozen) == len(after) - 9 and len(names) == 9
        assert all(torch.equal(after[name], base[base_name(name, plan)]) for name in frozen)
        assert not [name for name in names if torch.equal(engine.state_of(name, "master"), Weights(folder)[name].to(dtype).float())]
        # A norm near one moves by less than a bf16 can hold in two steps; matrices show it.
        assert not [name for name in names if before[name].dim() > 1 and torch.equal(after[name], before[name])]
        # What is computed with is the master, rounded.
        assert all(torch.equal(after[name], engine.state_of(name, "master").to(dtype)) for name in names)
    finally:
        engine.close()


def by_hand(model: Any, trained: list[str], config: RunConfig, steps: int) -> tuple[list[float], list[float]]:
    """The same training in plain PyTorch: one batch a step, mean loss over its labels, clip, AdamW. Returns losses and gradient norms."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = config.train
    groups = [{"params": [p for p in parameters if p.dim() > 1]}, {"params": [p for p in parameters if p.dim() == 1]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(settings.beta1, settings.beta2), fused=False, foreach=False)
    losses, norms = [], []
    for step in range(steps):
        batch = RandomRows(settings.batch_rows).batch(step)
        documents, length = batch.documents_BL, batch.documents_BL.shape[1]
        allowed = torch.zeros((len(documents), 1, length, length), dtype=torch.bool)
        for row in range(len(documents)):
            for query in range(length):
                for key in range(query + 1):
                    allowed[row, 0, query, key] = documents[row, query] == documents[row, key]
        logits = model(input_ids=batch.input_ids_BL, attention_mask=allowed, position_ids=batch.positions_BL).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), batch.labels_BL.reshape(-1), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings)
        optimizer.param_groups[0]["weight_decay"] = settings.weight_decay if step else 0.0
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms


@pytest.mark.parametrize("trained", ["one block", "everything"])
def test_three_steps_equal_a_plain_pytorch_loop(ranks: Ranks, trained: str) -> None:
    """Accumulation over two micro-batches with different numbers of labels, clipping that bites, weight decay, norms without it."""
    reference = small_model(zeroed=(1,) if trained == "one block" else ())
    names = names_in_layer(reference) if trained == "one block" else [name for name, _ in reference.named_parameters()]
    config = run_config(0, micro_batch_rows=2, batch_rows=4, clip_norm=0.2, weight_decay=0.5, learning_rate=3e-3)
    losses, norms = by_hand(reference, names, config, 3)
    assert max(norms) > 0.2
    expected = {name: parameter.detach() for name, parameter in reference.named_parameters() if name in names}
    for stage in STAGES:
        staged = run_config(stage, micro_batch_rows=2, batch_rows=4, clip_norm=0.2, weight_decay=0.5, learning_rate=3e-3)
        engine = open_engine(ranks, staged, small_model(zeroed=(1,) if trained == "one block" else ()), names)
        try:
            assert engine.accumulation == 2
            _, diary = train_steps(engine, staged, 3)
            masters = {name: engine.state_of(name, "master") for name in names}
        finally:
            engine.close()
        assert diary.losses == pytest.approx(losses, abs=1e-6)
        assert [record["grad_norm"] for record in diary.records] == pytest.approx(norms, rel=1e-5)
        assert difference(masters, expected) < 1e-6, stage


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_is_the_same_as_a_larger_micro_batch(ranks: Ranks, stage: int) -> None:
    """The loss is divided by all labels of the step, not by those of each micro-batch: the rows differ in how many they have."""
    rows = RandomRows(4).batch(0)
    counts = (rows.labels_BL != -100).sum(1).tolist()
    assert sum(counts[:2]) != sum(counts[2:])
    found = []
    for micro_batch_rows in (4, 2, 1):
        config = run_config(stage, micro_batch_rows=micro_batch_rows, batch_rows=4)
        engine = open_engine(ranks, config)
        try:
            assert engine.accumulation == 4 // micro_batch_rows
            _, diary = train_steps(engine, config, 3)
            found.append((diary.losses, {name: engine.state_of(name, "master") for name in engine.trainable}))
        finally:
            engine.close()
    for losses, masters in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-6)
        assert difference(masters, found[0][1]) < 1e-6


def without_labels(batch: Batch) -> Batch:
    """The rows with no loss anywhere: every gradient is zero."""
    fields = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    return Batch(**{**fields, "labels_BL": torch.full_like(batch.labels_BL, -100)})


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_decay_shrinks_trained_matrices_alone(ranks: Ranks, stage: int, precision: str) -> None:
    """Without gradients AdamW only decays: matrices shrink by rate × decay, norms and frozen tensors keep every bit."""
    model = small_model(precision)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = run_config(stage, precision, micro_batch_rows=4)
    engine = open_engine(ranks, config, model)
    try:
        for _ in range(2):
            engine.forward_backward(without_labels(RandomRows(4).batch(0)), 1)
            engine.update(1, 0.01, 0.5)
        assert engine.gradient_norm() == 0
        after = weights_of(engine)
        for name, before in start.items():
            if name not in engine.trainable or before.dim() == 1:
                assert torch.equal(after[name], before), name
            if name in engine.trainable:
                factor = (1 - 0.01 * 0.5) ** 2 if before.dim() > 1 else 1.0
                torch.testing.assert_close(engine.state_of(name, "master"), before.float() * factor, rtol=1e-6, atol=0)
    finally:
        engine.close()


@pytest.mark.parametrize("stage", (0, 3))
def test_recomputed_activations_change_nothing(ranks: Ranks, stage: int) -> None:
    found = []
    for activation_checkpointing in (False, True):
        config = run_config(stage, activation_checkpointing=activation_checkpointing)
        engine = open_engine(ranks, config)
        try:
            found.append((train_steps(engine, config, 3)[1].losses, state_of(engine)))
        finally:
            engine.close()
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert difference(found[0][1], found[1][1]) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_evaluating_in_between_disturbs_nothing(ranks: Ranks, stage: int) -> None:
    """Logits equal the plain model's, and training goes on as if nobody had asked."""
    config, found = run_config(stage), []
    for asked in (False, True):
        engine = open_engine(ranks, config)
        try:
            if asked:
                batch = RandomRows().batch(7)
                plain = small_model(zeroed=(1,)).eval()
                with torch.no_grad():
                    assert torch.equal(engine.logits(batch), logits_of(plain, batch))
            state, _ = train_steps(engine, config, 1, total=3)
            if asked:
                assert not engine.logits(batch).requires_grad
            train_steps(engine, config, 2, state=state)
            found.append(state_of(engine))
        finally:
            engine.close()
    assert same(*found)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_stage_computes_the_same(ranks: Ranks, precision: str) -> None:
    found = []
    for stage in STAGES:
        config = run_config(stage, precision)
        engine: TrainingEngine = open_engine(ranks, config)
        try:
            _, diary = train_steps(engine, config, 4)
            found.append((diary, state_of(engine)))
        finally:
            engine.close()
    for diary, state in found[1:]:
        assert diary.losses == pytest.approx(found[0][0].losses, abs=1e-6 if precision == "fp32" else 1e-3)
        norms = [[record["grad_norm"] for record in one.records] for one in (diary, found[0][0])]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5 if precision == "fp32" else 2e-2)
        assert difference(state, found[0][1]) < (1e-6 if precision == "fp32" else 5e-3)
