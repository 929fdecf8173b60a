"""A freeze schedule through engine, loop and checkpoints, against AdamW written out: what a boundary carries over, and what starts clean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from small_training import BINDING, PACE, PRECISIONS, STAGES, Diary, RandomRows, names_in_layer, run_config, same, small_model, weights_of

from slayer.config import RunConfig
from slayer.forward import logits_of, nll_BL
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.engine import KINDS, TrainingEngine
from slayer.training.loop import Course, train
from slayer.training.optim import learning_rate, trained_groups, weight_decay
from slayer.training.ranks import Ranks
from slayer.training.signals import StopRequest
from slayer.training.state import RunState

TOTAL_STEPS, WARMUP_STEPS = 11, 2
BOUNDARIES = (3, 6, 8)
FIRST, MIDDLE, LAST = (names_in_layer(small_model(), layer) for layer in range(3))
NORMS = [name for name in FIRST if name.endswith("norm.weight")]
MLP = [name for name in FIRST if ".mlp." in name]
FACTORS: list[dict[str, float]] = [
    dict.fromkeys(MIDDLE, 1.0),
    {**dict.fromkeys(NORMS, 0.5), **dict.fromkeys(MIDDLE, 1.0), **dict.fromkeys(LAST, 0.5)},
    {**dict.fromkeys(MLP, 0.1), **dict.fromkeys(LAST, 0.5)},  # the middle layer pauses, the norms of the first are done
    {**dict.fromkeys(MLP, 0.1), **dict.fromkeys(MIDDLE, 1.0), **dict.fromkeys(LAST, 0.25)},
]
Tensors = dict[str, torch.Tensor]


def staged_config(stage: int, precision: str = "fp32") -> RunConfig:
    return run_config(stage, precision, micro_batch_rows=2, save_every=100, learning_rate=5e-3, weight_decay=0.3, clip_norm=0.5, warmup_share=0.0)


def course(stage: int) -> Course:
    loader = RandomRows(4)
    ends = [sum(loader.valid_tokens(step) for step in range(boundary)) for boundary in BOUNDARIES]
    return Course(total_steps=TOTAL_STEPS, stage_ends_at_tokens=tuple(ends[stage:]), stage_warmup_steps=WARMUP_STEPS)


@dataclass
class Held:
    """What an engine held at one moment: masters and moments by kind and name, AdamW's counts, and all weights."""

    state: Tensors
    updates: dict[str, int]
    weights: Tensors
    losses: list[float] = field(default_factory=list)


def held(engine: TrainingEngine) -> Held:
    state = {f"{kind}/{name}": engine.state_of(name, kind).clone() for name in engine.changed for kind in engine.kinds(name)}
    return Held(state=state, updates=engine.updates, weights=weights_of(engine))


def segments(ranks: Ranks, config: RunConfig, folder: Path) -> Iterator[tuple[int, Held, Held]]:
    """Train as a run does, each stage in an engine of its own: the stage, what was held at its beginning and at its end."""
    state = RunState()
    while state.step < TOTAL_STEPS:
        stage, diary = state.stage, Diary()
        engine = TrainingEngine(small_model(config.engine.precision), trained_groups(FACTORS, state.stage_steps), config, ranks)
        try:
            if state.step:
                assert load_checkpoint(checkpoint_folder(folder, state.step), engine, BINDING).stage_steps == state.stage_steps
            first = held(engine)
            state, ended = train(
                engine, RandomRows(4), state, course(stage), config.train, diary.callbacks(engine, folder), PACE, StopRequest()
            )  # fmt: skip
            last = held(engine)
            last.losses = diary.losses
            assert ended == ("stage" if state.step < TOTAL_STEPS else "finished")
        finally:
            engine.close()
        yield stage, first, last


def by_hand(config: RunConfig) -> tuple[Tensors, list[float]]:
    """The same run: one model, autograd, and AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) tensor by tensor."""
    settings, model = config.train, small_model()
    parameters = dict(model.named_parameters())
    moments: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}
    joined: dict[str, int] = {}
    losses = []
    for step in range(TOTAL_STEPS):
        factors = FACTORS[sum(step >= boundary for boundary in BOUNDARIES)]
        for name in parameters:
            if name not in factors:
                joined.pop(name, None)
            elif name not in joined:
                joined[name] = step
                moments[name] = (torch.zeros_like(parameters[name]), torch.zeros_like(parameters[name]), 0)
        batch = RandomRows(4).batch(step)
        nats_BL = nll_BL(logits_of(model, batch), batch.labels_BL)
        loss = nats_BL.sum() / int((batch.labels_BL != -100).sum())
        gradients = dict(zip(factors, torch.autograd.grad(loss, [parameters[name] for name in factors]), strict=True))
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        scale = min(settings.clip_norm / (float(norm) + 1e-6), 1.0)
        losses.append(float(loss.detach()))
        for name, gradient in gradients.items():
            since = joined[name]
            rising = min((step - since + 1) / (WARMUP_STEPS + 1), 1.0) if since else 1.0
            rate = learning_rate(step, TOTAL_STEPS, settings) * factors[name] * rising
            decay = weight_decay(step, settings) if gradient.dim() > 1 else 0.0
            mean, square, taken = moments[name]
            mean = settings.beta1 * mean + (1 - settings.beta1) * gradient * scale
            square = settings.beta2 * square + (1 - settings.beta2) * (gradient * scale) ** 2
            moments[name] = (mean, square, taken + 1)
            steady = (mean / (1 - settings.beta1 ** (taken + 1))) / ((square / (1 - settings.beta2 ** (taken + 1))).sqrt() + 1e-8)
            with torch.no_grad():
                parameters[name].mul_(1 - rate * decay).sub_(rate * steady)
    found = {f"master/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name in FACTORS[-1]:
        found |= {f"exp_avg/{name}": moments[name][0], f"exp_avg_sq/{name}": moments[name][1]}
    return found, losses


@pytest.mark.parametrize("stage", STAGES)
def test_four_stages_equal_adamw_by_hand(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    """Factors, the warm-up of what joins, a factor that changes, a part that pauses and comes back: all of it is in the weights."""
    config = staged_config(stage)
    found = list(segments(ranks, config, tmp_path))
    expected, losses = by_hand(config)
    assert [one for one, _, _ in found] == [0, 1, 2, 3]
    assert [loss for _, _, last in found for loss in last.losses] == pytest.approx(losses, abs=1e-6)
    end = found[-1][2]
    assert {name for name in end.state if name.startswith("master/")} == {f"master/{name}" for stage in FACTORS for name in stage}
    for name, value in end.state.items():
        torch.testing.assert_close(value, expected[name].float(), rtol=1e-5, atol=1e-6, msg=name)
    assert end.updates == {**dict.fromkeys(MLP, 5), **dict.fromkeys(LAST, 8), **dict.fromkeys(MIDDLE, 3)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_a_boundary_carries_over(ranks: Ranks, tmp_path: Path, stage: int, precision: str) -> None:
    config = staged_config(stage, precision)
    base: Tensors = {name: parameter.detach().clone() for name, parameter in small_model(precision).named_parameters()}
    before: Held | None = None
    for number, first, last in segments(ranks, config, tmp_path):
        trains = FACTORS[number]
        assert same(first.weights, before.weights if before is not None else base)
        for name in trains:
            stays = before is not None and name in FACTORS[number - 1]
            assert first.updates[name] == (before.updates[name] if before is not None and stays else 0)
            for kind in KINDS:
                if before is not None and (stays or (kind == "master" and f"master/{name}" in before.state)):
                    expected = before.state[f"{kind}/{name}"]
                else:
                    expected = base[name].float() if kind == "master" else torch.zeros(base[name].shape)
                assert torch.equal(first.state[f"{kind}/{name}"], expected), (number, kind, name)
        for name, value in last.state.items():
            kind, _, plain = name.partition("/")
            if plain in trains:
                assert not torch.equal(value, first.state[name]), (number, name)
            else:
                assert kind == "master" and torch.equal(value, first.state[name]), (number, name)
        assert all(torch.equal(last.weights[name], first.weights[name]) for name in base if name not in trains)
        before = last


def test_one_step_may_end_several_stages(ranks: Ranks, tmp_path: Path) -> None:
    """The first step trains more tokens than the second stage lasts: the third begins right behind it."""
    config, diary = staged_config(2), Diary()
    ends = (1, 2, RandomRows(4).valid_tokens(0) + 1)
    engine = TrainingEngine(small_model(), trained_groups(FACTORS, (0,)), config, ranks)
    try:
        one = Course(total_steps=TOTAL_STEPS, stage_ends_at_tokens=ends)
        state, ended = train(engine, RandomRows(4), RunState(), one, config.train, diary.callbacks(engine, tmp_path), PACE, StopRequest())
        assert (ended, state.step, state.stage, state.stage_steps) == ("stage", 1, 2, (0, 1, 1))
        masters = {name: engine.state_of(name, "master").clone() for name in MIDDLE}
    finally:
        engine.close()
    engine = TrainingEngine(small_model(), trained_groups(FACTORS, state.stage_steps), config, ranks)
    try:
        assert load_checkpoint(checkpoint_folder(tmp_path, 1), engine, BINDING).stage_steps == (0, 1, 1)
        assert engine.updates == dict.fromkeys([*MLP, *LAST], 0)
        assert all(torch.equal(engine.state_of(name, "master"), masters[name]) for name in MIDDLE)
    finally:
        engine.close()


def test_a_stage_without_a_step_is_no_pause() -> None:
    """The middle layer trains in the first stage and in the last, and the two between have not made a step."""
    (of_middle,) = [group for group in trained_groups(FACTORS, (0, 5, 5, 5)) if MIDDLE[0] in group.names]
    assert of_middle.since_step == 0 and set(of_middle.names) == set(MIDDLE)
